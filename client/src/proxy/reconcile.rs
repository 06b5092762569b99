//! The pool's signed statements, compared with the proxy's own count.
//!
//! Other machines may mine for the same npub, so more work than ours is no
//! wonder; less is. Between a statement that came at r₁ and one that was asked
//! for at h₂, the pool's total must have grown by A(h₂) − A(r₁) − I(r₁) at
//! least, where A(t) is the work that the pool had acknowledged to us by t and
//! I(t) what was in flight: a share in the first statement had been submitted by
//! r₁, so by then it was acknowledged, in flight, or refused; and a share
//! acknowledged by h₂ was recorded before the second statement was made.
//!
//! That holds only where r₁ ≤ h₂. Statements come by several relays, and stored
//! ones the newest first: one that was asked for before the last one came says
//! nothing of what happened since, and is passed over.
//!
//! The books are those of the first pool of the list, so the statements have to
//! be that pool's.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use hashpit_nips::eh02::Statement;
use hashpit_nips::{EpochId, Work};
use nostr_sdk::EventId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{Books, Monitor};
use crate::issuance::Progress;

/// How often the books are looked at. A statement is compared with the look
/// before it was asked for.
const LOOK: Duration = Duration::from_millis(500);
/// Looks that are remembered: ten minutes, where an answer takes seconds.
const MAX_LOOKS: usize = 1_200;

/// A pool's statement that lacks work which the pool had acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// The epoch.
    pub unit: EpochId,
    /// What the pool acknowledged to this proxy between the two statements.
    pub acknowledged: Work,
    /// What the pool's statements have grown by.
    pub stated: Work,
    /// The hellos that the two statements answer: the events that quote them
    /// are signed by the pool.
    pub statements: [EventId; 2],
}

/// In words, with what to do.
impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, acknowledged, stated, statements: [first, second] } = self;
        write!(
            f,
            "the pool acknowledged {acknowledged} hashes of work to this proxy, but its signed \
             statement of {unit} grew by only {stated}. If the ehash is claimed from another pool than \
             the first one mined at (--npub names its operator, the first --pool its port), this \
             is no wonder: name the same pool in both. Otherwise keep the two statements as \
             evidence (they answer the messages {first} and {second}; the relay holds them), ask \
             the pool's operator, and mine elsewhere until it is explained"
        )
    }
}

/// The statement that the next is compared with.
#[derive(Debug)]
struct Last {
    statement: Statement,
    /// When it came, or later.
    came: Instant,
    /// The books at that time.
    books: Books,
}

/// Compares statements; no clock and no I/O of its own.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// Our books at times gone by, the oldest first.
    looks: VecDeque<(Instant, Books)>,
    last: Option<Last>,
}

impl Reconciler {
    /// Notes the books as they are now.
    pub fn look(&mut self, now: Instant, books: Books) {
        if self.looks.len() == MAX_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((now, books));
    }

    /// Takes a statement that was asked for at `asked_at` and has come by `now`,
    /// with the books as they are now. One that was asked for before the last
    /// one came is passed over.
    pub fn compare(
        &mut self,
        statement: Statement,
        asked_at: Instant,
        now: Instant,
        books: Books,
    ) -> Option<Shortfall> {
        if self.last.as_ref().is_some_and(|last| asked_at < last.came) {
            return None;
        }
        let last = self.last.replace(Last { statement: statement.clone(), came: now, books });
        let Last { statement: before, books: then, .. } =
            last.filter(|last| last.statement.unit == statement.unit)?;
        let (_, asked) = self.looks.iter().rev().find(|(at, _)| *at <= asked_at)?;
        // No difference: nothing was acknowledged that the first statement may
        // not have held already.
        let expected = asked.acknowledged.checked_sub(then.acknowledged).ok()?;
        let expected = expected.checked_sub(then.in_flight).ok()?;
        let stated = statement.work.checked_sub(before.work).unwrap_or(Work::ZERO);
        let shrunk = statement.work < before.work;
        (stated < expected || shrunk).then_some(Shortfall {
            unit: statement.unit,
            acknowledged: expected,
            stated,
            statements: [before.of, statement.of],
        })
    }
}

/// Compares every statement that the wallet gets with the proxy's books, and
/// warns of a shortfall, until `stop`. `found` holds the latest.
pub async fn watch(
    monitor: Monitor,
    mut claiming: watch::Receiver<Progress>,
    found: watch::Sender<Option<Shortfall>>,
    stop: CancellationToken,
) {
    let mut reconciler = Reconciler::default();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut compared = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = looks.tick() => reconciler.look(Instant::now(), monitor.books()),
            changed = claiming.changed() => {
                if changed.is_err() {
                    return;
                }
                let (statement, asked_at) = {
                    let progress = claiming.borrow_and_update();
                    (progress.statement.clone(), progress.statement_asked_at)
                };
                let (Some(statement), Some(asked_at)) = (statement, asked_at) else { continue };
                if compared.replace(statement.of) == Some(statement.of) {
                    continue;
                }
                let (now, books) = (Instant::now(), monitor.books());
                if let Some(shortfall) = reconciler.compare(statement, asked_at, now, books) {
                    tracing::warn!("{shortfall}");
                    found.send_replace(Some(shortfall));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::HashUnits;
    use proptest::prelude::*;

    use super::*;

    fn unit(height: u32) -> EpochId {
        format!(
            "hash_02{}_{height}",
            "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"
        )
        .parse()
        .unwrap()
    }

    fn statement(number: u8, work: u128, height: u32) -> Statement {
        Statement {
            of: EventId::from_byte_array([number; 32]),
            unit: unit(height),
            shares: 0,
            work: Work::new(work),
            issued: HashUnits::ZERO,
            batches: 0,
            blanks: 0,
        }
    }

    fn books(acknowledged: u128, in_flight: u128) -> Books {
        let [acknowledged, in_flight] = [acknowledged, in_flight].map(Work::new);
        Books { acknowledged, in_flight, ..Books::default() }
    }

    /// A first statement of 1,000 at books of 500 with `in_flight` in flight,
    /// then one of `work`, asked for when 800 were acknowledged.
    fn second(in_flight: u128, work: u128) -> Option<Shortfall> {
        let (mut reconciler, now) = (Reconciler::default(), Instant::now());
        reconciler.look(now, books(500, in_flight));
        assert_eq!(
            reconciler.compare(statement(1, 1_000, 1), now, now, books(500, in_flight)),
            None
        );
        reconciler.look(now + LOOK, books(800, 0));
        // Acknowledged after the question: the answer need not hold it.
        reconciler.look(now + 3 * LOOK, books(900, 50));
        let came = now + 3 * LOOK;
        reconciler.compare(statement(2, work, 1), now + 2 * LOOK, came, books(900, 50))
    }

    #[test]
    fn what_was_acknowledged_must_be_stated() {
        assert_eq!(second(0, 1_300), None);
        let shortfall = second(0, 1_299).unwrap();
        assert_eq!((shortfall.acknowledged, shortfall.stated), (Work::new(300), Work::new(299)));
        let words = shortfall.to_string();
        for word in ["300 hashes", "only 299", &"01".repeat(32), &"02".repeat(32), "evidence"] {
            assert!(words.contains(word), "{words}");
        }
    }

    #[test]
    fn what_was_in_flight_may_have_been_stated_before() {
        assert_eq!(second(100, 1_200), None);
        assert!(second(100, 1_199).is_some());
        assert_eq!(second(400, 1_000), None);
    }

    #[test]
    fn other_machines_may_mine_for_the_same_npub() {
        assert_eq!(second(0, 1_000_000), None);
    }

    #[test]
    fn a_total_never_shrinks() {
        assert!(second(0, 999).is_some());
        assert!(second(300, 999).is_some());
    }

    #[test]
    fn epochs_are_apart() {
        let (mut reconciler, now) = (Reconciler::default(), Instant::now());
        reconciler.look(now, books(500, 0));
        reconciler.compare(statement(1, 1_000, 1), now, now, books(500, 0));
        let later = now + LOOK;
        reconciler.look(later, books(800, 0));
        assert_eq!(reconciler.compare(statement(2, 0, 2), later, later, books(800, 0)), None);
    }

    #[test]
    fn a_question_older_than_every_look_is_passed_over() {
        let (mut reconciler, now) = (Reconciler::default(), Instant::now());
        reconciler.compare(statement(1, 0, 1), now, now, books(0, 0));
        reconciler.look(now + LOOK, books(800, 0));
        let came = now + LOOK;
        assert_eq!(reconciler.compare(statement(2, 0, 1), now, came, books(800, 0)), None);
    }

    #[test]
    fn a_statement_that_was_overtaken_is_passed_over() {
        let (mut reconciler, begun) = (Reconciler::default(), Instant::now());
        let at = |step: u32| begun + step * LOOK;
        (0..4).for_each(|step| reconciler.look(at(step), books(500 + 100 * u128::from(step), 0)));
        // Asked for at 0 and at 1; the answer to the second comes first.
        assert_eq!(reconciler.compare(statement(2, 600, 1), at(1), at(2), books(700, 0)), None);
        assert_eq!(reconciler.compare(statement(1, 500, 1), at(0), at(3), books(800, 0)), None);
        // The next is compared with the newer one, though the older came last.
        let shortfall = reconciler.compare(statement(3, 699, 1), at(3), at(4), books(900, 0));
        let shortfall = shortfall.unwrap();
        assert_eq!((shortfall.acknowledged, shortfall.stated), (Work::new(100), Work::new(99)));
        assert_eq!(shortfall.statements[0], statement(2, 0, 1).of);
    }

    proptest! {
        /// An honest pool is never suspected, however shares, answers and
        /// statements fall in time, whatever others mine, whenever connections
        /// are lost, and in whatever order statements arrive.
        #[test]
        fn honest_pools_are_left_alone(
            steps in proptest::collection::vec((0u8..7, 1u128..50), 1..200),
        ) {
            let (mut reconciler, begun) = (Reconciler::default(), Instant::now());
            // Of ours: sent, recorded by the pool, acknowledged. And all that it
            // has recorded of others, or of ours without our hearing of it.
            let (mut sent, mut recorded, mut acknowledged, mut others) = (0, 0, 0, 0);
            // Statements that are on their way, with the time of the question.
            let mut coming = Vec::new();
            for (number, (step, work)) in steps.into_iter().enumerate() {
                let now = begun + number as u32 * LOOK;
                match step {
                    0 => sent += work,
                    1 => recorded = (recorded + work).min(sent),
                    2 => acknowledged = (acknowledged + work).min(recorded),
                    3 => others += work,
                    4 => {
                        others += recorded - acknowledged;
                        (sent, recorded) = (acknowledged, acknowledged);
                    }
                    5 => coming.push((now, statement(number as u8, recorded + others, 1))),
                    _ if coming.is_empty() => {}
                    _ => {
                        let (asked, stated) = coming.swap_remove(work as usize % coming.len());
                        let books = books(acknowledged, sent - acknowledged);
                        prop_assert_eq!(reconciler.compare(stated, asked, now, books), None);
                    }
                }
                reconciler.look(now, books(acknowledged, sent - acknowledged));
            }
        }
    }
}
