//! The thread behind the desk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hashpit_nips::eh04::{Market, Rules};
use hashpit_nips::eh05::Subject;
use hashpit_nips::{EpochId, Millis, kind};
use nostr::{Event, EventBuilder, Keys};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::board::Board;
use super::{Answer, Clock, Snapshot};
use crate::engine::MarketId;
use crate::journal::{self, Journal, JournalError};
use crate::replay::Replay;
use crate::state::Consequences;

/// Events that become durable together.
const MAX_BATCH: usize = 256;

/// What the desk is asked.
#[derive(Debug)]
pub(super) enum Request {
    Submit { event: Box<Event>, answer: oneshot::Sender<Answer> },
    Snapshots { of: Option<Vec<EpochId>>, answer: oneshot::Sender<Vec<Snapshot>> },
    Digest { answer: oneshot::Sender<(Option<u64>, [u8; 32])> },
}

pub(super) struct Clerk {
    replay: Replay,
    keys: Keys,
    clock: Clock,
    journal: Arc<Journal>,
    newest: watch::Sender<Option<u64>>,
    board: Arc<Mutex<Board>>,
    /// Records that are not durable yet.
    batch: Vec<(u64, Vec<u8>)>,
    /// What they changed.
    changes: Vec<(u64, Box<Consequences>)>,
    /// Who waits for them.
    waiting: Vec<(oneshot::Sender<Answer>, Answer)>,
}

impl Clerk {
    pub(super) fn new(
        replay: Replay,
        keys: Keys,
        clock: Clock,
        journal: Arc<Journal>,
        newest: watch::Sender<Option<u64>>,
        board: Arc<Mutex<Board>>,
    ) -> Self {
        let (batch, changes, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Self { replay, keys, clock, journal, newest, board, batch, changes, waiting }
    }

    /// Makes these rules an entry if they are not in force.
    pub(super) fn set_rules(&mut self, rules: Rules) -> Result<(), JournalError> {
        let state = self.replay.state();
        if state.next() == 0 || *state.rules() != rules {
            let taken = self.enter(Subject::Rules(rules));
            taken.expect("rules always have a place in the journal");
            self.commit()?;
        }
        Ok(())
    }

    /// Serves until nobody can ask any more, or the journal cannot be written.
    pub(super) fn run(
        mut self,
        runtime: &Handle,
        mut requests: mpsc::Receiver<Request>,
    ) -> Result<(), JournalError> {
        loop {
            match runtime.block_on(self.next(&mut requests)) {
                Next::Gone => return Ok(()),
                Next::Due => self.pass_time(),
                Next::Request(request) => {
                    self.pass_time();
                    self.serve(request)?;
                    while self.waiting.len() < MAX_BATCH
                        && let Ok(request) = requests.try_recv()
                    {
                        self.pass_time();
                        self.serve(request)?;
                    }
                }
            }
            self.commit()?;
        }
    }

    /// The next request, or the time at which something happens by itself.
    async fn next(&self, requests: &mut mpsc::Receiver<Request>) -> Next {
        let asked = async {
            match requests.recv().await {
                Some(request) => Next::Request(request),
                None => Next::Gone,
            }
        };
        let Some(deadline) = self.replay.state().next_deadline() else { return asked.await };
        let rest = deadline.get().saturating_sub((self.clock)().get());
        tokio::time::timeout(Duration::from_millis(rest), asked).await.unwrap_or(Next::Due)
    }

    /// Makes the passing of time an entry, if something happens because of it.
    fn pass_time(&mut self) {
        let due = self.replay.state().next_deadline().is_some_and(|due| due <= self.now());
        if due {
            self.enter(Subject::Time).expect("time always has a place in the journal");
        }
    }

    fn serve(&mut self, request: Request) -> Result<(), JournalError> {
        match request {
            Request::Submit { event, answer } => {
                let is_pools = event.kind == kind::EPOCH_KEYSET;
                let subject = if is_pools { Subject::Epoch(event) } else { Subject::Trader(event) };
                let said = match self.enter(subject) {
                    Ok(seq) => Answer::Entry(seq),
                    Err(why) => Answer::Ignored(why),
                };
                self.waiting.push((answer, said));
            }
            Request::Snapshots { of, answer } => {
                self.commit()?;
                // Nobody waits any more: nothing is lost.
                let _ = answer.send(self.snapshots(of.as_deref()));
            }
            Request::Digest { answer } => {
                self.commit()?;
                let state = self.replay.state();
                let _ = answer.send((state.next().checked_sub(1), state.digest()));
            }
        }
        Ok(())
    }

    /// Never earlier than the newest entry, whatever the clock says.
    fn now(&self) -> Millis {
        (self.clock)().max(self.replay.state().at())
    }

    /// Makes a subject the next entry; durable only after [`Clerk::commit`].
    fn enter(&mut self, subject: Subject) -> Result<u64, &'static str> {
        let (entry, mut all) = self.replay.next(self.now(), subject)?;
        let event = self.sign(entry.encode());
        self.replay.follow(event.id);
        let mut record = vec![event];
        let signed = all.events.drain(..).map(|event| event.sign_with_keys(&self.keys));
        record.extend(signed.map(|event| event.expect("a key that we hold signs any event")));
        self.batch.push((entry.seq, journal::encode(&record)));
        let seq = entry.seq;
        self.changes.push((seq, all));
        Ok(seq)
    }

    fn sign(&self, event: EventBuilder) -> Event {
        event.sign_with_keys(&self.keys).expect("a key that we hold signs any event")
    }

    /// Makes what was entered durable, then says so.
    ///
    /// A disk that refuses is not asked again: sled takes nothing more after its
    /// first error, and what the disk has of the batch is known only once the
    /// journal is opened anew. Nothing of it was answered.
    fn commit(&mut self) -> Result<(), JournalError> {
        if let Some((newest, _)) = self.batch.last() {
            let newest = *newest;
            self.journal.append(&self.batch)?;
            self.batch.clear();
            let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
            for (seq, all) in self.changes.drain(..) {
                board.add(seq, self.replay.state(), &all);
            }
            drop(board);
            self.newest.send_replace(Some(newest));
        }
        for (waiting, answer) in self.waiting.drain(..) {
            // Who has gone reads the journal.
            let _ = waiting.send(answer);
        }
        Ok(())
    }

    fn snapshots(&self, of: Option<&[EpochId]>) -> Vec<Snapshot> {
        let Some(head) = self.replay.head() else { return Vec::new() };
        let seats = self.replay.state().seats();
        let wanted = seats.all().filter(|(_, seat)| of.is_none_or(|of| of.contains(&seat.epoch)));
        wanted.map(|(id, _)| self.snapshot(id, head)).collect()
    }

    fn snapshot(&self, id: MarketId, head: (u64, nostr::EventId)) -> Snapshot {
        let state = self.replay.state();
        let (engine, seat) = (state.engine(), state.seats().seat(id));
        let book = state.book(id);
        let rules = engine.rules(id);
        let fees = rules.map_or((0, 0), |rules| (rules.maker_fee_ppm, rules.taker_fee_ppm));
        Snapshot {
            market: Market {
                epoch: seat.epoch,
                mint: seat.mint.clone(),
                state: book.state,
                until: seat.until,
                seq: seat.changed,
                lot: seat.lot,
                tick: rules.map_or(state.rules().tick, |rules| rules.tick),
                fee_ppm: fees,
                pay: seat.pay.clone(),
            },
            head,
            digest: engine.digest(id),
            at: state.at(),
            book,
        }
    }
}

/// What wakes the desk.
enum Next {
    Request(Request),
    Due,
    Gone,
}
