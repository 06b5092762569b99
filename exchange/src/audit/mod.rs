//! Whether an exchange did what its rules say, from public events alone.
//!
//! Everything is derived anew: the journal's chain is followed, each entry's
//! outcome, every match and every settlement must be what follows from the
//! entries before it, checkpoints must show the state that the journal leads to,
//! and an offer that was seen on two relays must have its entry.

mod evidence;
mod fetch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use hashpit_nips::eh04::ExchangeInfo;
use hashpit_nips::eh05::{Checkpoint, DecodeError, Entry, Level, Subject};
use hashpit_nips::{EpochId, Millis};
use nostr::{Event, EventId, PublicKey};

pub use evidence::Evidence;
pub use fetch::{CollectError, Collected, collect, complete};

use crate::feed::LEVELS;
use crate::replay::{Fault, Replay};
use crate::state::{Consequences, State};

/// Seconds that an exchange has to give an event its entry.
const GRACE_SECS: u64 = 120;

/// Seconds that an event may have come in before the time that it is dated.
/// Relays take none that is dated further off.
const FUTURE_SECS: u64 = 900;

/// What an audit has found.
#[derive(Debug)]
pub struct Report {
    /// The exchange.
    pub exchange: PublicKey,
    /// Entries that were followed, from the first on.
    pub entries: u64,
    /// Matches that follow from them.
    pub matches: u64,
    /// Lots of those matches.
    pub lots: u128,
    /// Settlements that follow from them.
    pub settlements: u64,
    /// Those of them that say that a match was completed.
    pub completed: u64,
    /// Checkpoints that agree with the journal.
    pub checkpoints: u64,
    /// Traders' events that were asked about: each must have an entry.
    pub offers: u64,
    /// SHA-256 of the state after the newest entry that was followed.
    pub digest: [u8; 32],
    /// What is wrong, by sequence.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The first sequence that it concerns.
    pub seq: u64,
    /// What it is.
    pub lie: Lie,
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// Two entries with one sequence, both signed.
    Forks(EventId, EventId),
    /// No relay has the entry, and later ones name it.
    Skips,
    /// The entry is not what those before it lead to.
    Entry(EventId, Fault),
    /// A match or settlement follows, and was not published.
    Withheld(EventId),
    /// A match or settlement was published, and does not follow.
    Invented(EventId),
    /// A checkpoint shows another state.
    Checkpoint(EventId, EpochId),
    /// A checkpoint does not decode.
    Malformed(EventId, DecodeError),
    /// What the exchange says of itself names other rules than its journal.
    Info(EventId),
    /// An event for the exchange, seen on two relays, has no entry.
    Unanswered(EventId),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seq = self.seq;
        match &self.lie {
            Lie::Forks(one, other) => {
                write!(f, "sequence {seq} forks: {one} and {other} are both signed")
            }
            Lie::Skips => write!(f, "sequence {seq} is missing, and later ones exist"),
            Lie::Entry(id, fault) => write!(f, "sequence {seq} ({id}): {fault}"),
            Lie::Withheld(id) => {
                write!(f, "sequence {seq} leads to {id}, which was not published")
            }
            Lie::Invented(id) => write!(f, "sequence {seq} does not lead to {id}"),
            Lie::Checkpoint(id, epoch) => {
                write!(f, "checkpoint {id} of {epoch} is not the state after sequence {seq}")
            }
            Lie::Malformed(id, error) => write!(f, "checkpoint {id} is malformed: {error}"),
            Lie::Info(id) => {
                write!(f, "info {id} names other rules than the journal before sequence {seq}")
            }
            Lie::Unanswered(id) => write!(
                f,
                "{id} was seen on two relays before sequence {seq}, and was never answered"
            ),
        }
    }
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Matches and settlements that follow and were not seen. Before that is held
    /// against the exchange, relays are asked for them by their ids.
    pub fn withheld(&self) -> Vec<EventId> {
        let withheld = self.findings.iter().filter_map(|finding| match &finding.lie {
            Lie::Withheld(id) => Some(*id),
            _ => None,
        });
        withheld.collect()
    }
}

/// Follows an exchange's journal and compares all that it published with it.
pub fn audit(exchange: PublicKey, evidence: &Evidence) -> Report {
    let mut auditor = Auditor::new(exchange, evidence);
    auditor.follow();
    auditor.compare_published();
    auditor.compare_infos();
    auditor.look_for_unanswered();
    auditor.report()
}

struct Auditor<'a> {
    evidence: &'a Evidence,
    replay: Replay,
    /// Those that follow from the journal.
    derived: HashSet<EventId>,
    checkpoints: BTreeMap<u64, Vec<(EventId, Checkpoint)>>,

    /// Keys that were refused for their rate, and when that last was.
    too_fast: HashMap<PublicKey, Millis>,
    /// Seconds of the newest entry of rules.
    ruled: u64,
    /// Seconds of each entry that was followed.
    times: Vec<u64>,
    report: Report,
    /// Where following had to stop.
    broken: Option<u64>,
}

impl<'a> Auditor<'a> {
    fn new(exchange: PublicKey, evidence: &'a Evidence) -> Self {
        let mut checkpoints = BTreeMap::<u64, Vec<_>>::new();
        let mut findings = Vec::new();
        for (seq, event) in &evidence.checkpoints {
            match Checkpoint::decode(event) {
                Ok(checkpoint) => checkpoints.entry(*seq).or_default().push((event.id, checkpoint)),
                Err(error) => {
                    let lie = Lie::Malformed(event.id, error);
                    findings.push(Finding { seq: *seq, lie });
                }
            }
        }
        let report = Report {
            exchange,
            entries: 0,
            matches: 0,
            lots: 0,
            settlements: 0,
            completed: 0,
            checkpoints: 0,
            offers: 0,
            digest: State::new(exchange).digest(),
            findings,
        };
        Self {
            evidence,
            replay: Replay::new(exchange),
            derived: HashSet::new(),
            checkpoints,
            too_fast: HashMap::new(),
            ruled: 0,
            times: Vec::new(),
            report,
            broken: None,
        }
    }

    fn find(&mut self, seq: u64, lie: Lie) {
        self.report.findings.push(Finding { seq, lie });
    }

    /// Follows the chain to its end, or to the first entry that cannot be right.
    fn follow(&mut self) {
        let evidence = self.evidence;
        let Some(newest) = evidence.newest() else { return };
        for seq in 0..=newest {
            let lie = match evidence.entries.get(&seq).map(Vec::as_slice) {
                None | Some([]) if self.may_be_on_its_way(seq) => {
                    self.broken = Some(seq);
                    return;
                }
                None | Some([]) => Some(Lie::Skips),
                Some([entry]) => self.entry(entry).err(),
                Some([one, other, ..]) => Some(Lie::Forks(one.id, other.id)),
            };
            if let Some(lie) = lie {
                self.broken = Some(seq);
                return self.find(seq, lie);
            }
            self.check(seq);
        }
    }

    fn entry(&mut self, event: &Event) -> Result<(), Lie> {
        let wrong = |fault| Lie::Entry(event.id, fault);
        let entry = Entry::decode(event).map_err(|error| wrong(error.into()))?;
        if entry.event().is_some_and(|inner| inner.verify().is_err()) {
            return Err(wrong(Fault::ForgedSubject));
        }
        let (seq, at, author) = (entry.seq, entry.at, event.pubkey);
        if matches!(entry.subject, Subject::Rules(_)) {
            self.ruled = at.get() / 1000;
        }
        let all = self.replay.decoded(event.id, author, entry).map_err(wrong)?;
        self.times.push(at.get() / 1000);
        self.too_fast.extend(all.too_fast.map(|key| (key, at)));
        self.count(seq, at, &all);
        Ok(())
    }

    fn count(&mut self, seq: u64, at: Millis, all: &Consequences) {
        self.report.entries = seq + 1;
        self.report.matches += all.tally.matches;
        self.report.lots += u128::from(all.tally.lots);
        self.report.settlements += all.tally.completed + all.tally.failed;
        self.report.completed += all.tally.completed;
        for id in all.ids() {
            self.derived.insert(id);
            if !self.evidence.consequences.contains_key(&id) && !self.is_young(at.get() / 1000) {
                self.find(seq, Lie::Withheld(id));
            }
        }
    }

    /// Compares the checkpoints of a sequence with the state after it.
    fn check(&mut self, seq: u64) {
        let Some(checkpoints) = self.checkpoints.remove(&seq) else { return };
        for (id, checkpoint) in checkpoints {
            if self.agrees(&checkpoint) {
                self.report.checkpoints += 1;
            } else {
                self.find(seq, Lie::Checkpoint(id, checkpoint.epoch));
            }
        }
    }

    fn agrees(&self, said: &Checkpoint) -> bool {
        let state = self.replay.state();
        let head = self.replay.head().map(|(_, id)| id);
        let Some(market) = state.seats().get(&said.epoch) else { return false };
        let book = state.book(market);
        Some(said.entry) == head
            && said.at == state.at()
            && said.digest == state.engine().digest(market)
            && (said.book.state, said.book.last) == (book.state, book.last)
            && shows(&said.book.bids, &book.bids, said.book.cut)
            && shows(&said.book.asks, &book.asks, said.book.cut)
    }

    /// What was published must follow from the part of the journal that was
    /// followed.
    fn compare_published(&mut self) {
        let evidence = self.evidence;
        for (id, (seq, at)) in &evidence.consequences {
            let later = self.broken.is_some_and(|broken| *seq >= broken)
                || (*seq >= self.replay.state().next() && self.is_young(at.as_secs()));
            if !later && !self.derived.contains(id) {
                self.find(*seq, Lie::Invented(*id));
            }
        }
    }

    /// What the exchange has said of itself since its newest rules entry must name
    /// those rules.
    fn compare_infos(&mut self) {
        if self.broken.is_some_and(|seq| !self.may_be_on_its_way(seq)) {
            return;
        }
        let evidence = self.evidence;
        for event in &evidence.infos {
            let at = event.created_at.as_secs();
            let rules = ExchangeInfo::decode(event).map(|info| info.rules);
            let agrees = rules.is_ok_and(|rules| rules == *self.replay.state().rules());
            if at > self.ruled && !self.is_young(at) && !agrees {
                self.find(self.first_at(at) as u64, Lie::Info(event.id));
            }
        }
    }

    /// Whether something of this time may be on one relay, and what belongs to it
    /// not be there yet.
    fn is_young(&self, seconds: u64) -> bool {
        let seen_at = self.evidence.seen_at.as_secs();
        let since = seen_at.saturating_sub(GRACE_SECS);
        seconds > since && seconds <= seen_at.saturating_add(FUTURE_SECS)
    }

    /// Whether an entry that was not seen may be too new to be: all that names it
    /// or a later one is.
    fn may_be_on_its_way(&self, seq: u64) -> bool {
        let entries = self.evidence.entries.range(seq..).flat_map(|(_, entries)| entries);
        let checkpoints = self.evidence.checkpoints.iter().filter(|(named, _)| *named >= seq);
        let mut later = entries.chain(checkpoints.map(|(_, event)| event));
        later.all(|event| self.is_young(event.created_at.as_secs()))
    }

    /// Events that two relays have, and the journal has not.
    fn look_for_unanswered(&mut self) {
        let evidence = self.evidence;
        if self.broken.is_some() {
            return;
        }
        let mut seen = HashMap::<EventId, (&Event, usize)>::new();
        for events in evidence.offers.values() {
            for event in events.values() {
                seen.entry(event.id).or_insert((event, 0)).1 += 1;
            }
        }
        let mut unanswered = Vec::new();
        for (event, relays) in seen.into_values() {
            if relays < 2 || !self.is_owed(event) {
                continue;
            }
            self.report.offers += 1;
            if !self.replay.state().is_answered(&event.id) {
                unanswered.push(Finding {
                    seq: self.first_at(event.created_at.as_secs().saturating_add(GRACE_SECS))
                        as u64,
                    lie: Lie::Unanswered(event.id),
                });
            }
        }
        self.report.findings.extend(unanswered);
    }

    /// Whether an event must have an entry by now, whenever it came in: the
    /// exchange had begun, knew the key and did not find it too fast.
    fn is_owed(&self, event: &Event) -> bool {
        let signed = event.created_at.as_secs();
        let from = signed.saturating_sub(FUTURE_SECS);
        let since = Millis::new(from.saturating_mul(1000));
        let limited = self.too_fast.get(&event.pubkey).is_some_and(|at| *at >= since);
        event.kind != nostr::Kind::EventDeletion
            && self.times.first().is_some_and(|began| *began < from)
            && self.had_time(signed)
            && !limited
            && self.replay.state().owes(event, since)
    }

    /// Whether the exchange is known to have been at work after the grace that it
    /// has from a time on, and for as long again: one that was down reads what it
    /// has missed.
    fn had_time(&self, seconds: u64) -> bool {
        let due = seconds.saturating_add(GRACE_SECS);
        let at_work = self.times.get(self.first_at(due));
        let newest = self.times.last().zip(at_work);
        due < self.evidence.seen_at.as_secs()
            && newest.is_some_and(|(newest, at_work)| newest - at_work >= GRACE_SECS)
    }

    /// The first sequence at a time or later, or the next one.
    fn first_at(&self, seconds: u64) -> usize {
        self.times.partition_point(|at| *at < seconds)
    }

    fn report(mut self) -> Report {
        self.report.digest = self.replay.state().digest();
        self.report.findings.sort_by_key(|finding| finding.seq);
        self.report
    }
}

/// Whether a checkpoint's levels are those of a side: all, or the best of them if
/// it says that it is cut and they are as many as it has to list.
fn shows(said: &[Level], levels: &[Level], cut: bool) -> bool {
    said == levels || (cut && said.len() >= LEVELS && levels.starts_with(said))
}
