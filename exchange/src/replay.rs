//! Following a journal entry by entry: the same for the exchange that starts
//! again, for one that gets its journal back from relays, and for an auditor.

use hashpit_nips::Millis;
use hashpit_nips::eh05::{DecodeError, Effect, Entry, MAX_EFFECTS, Outcome, Subject};
use nostr::{Event, EventId, PublicKey};

use crate::state::{Consequences, State, Verdict};

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not decode.
    #[error("it is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// It is signed by another key, or its id is not its hash.
    #[error("it is not a valid event by the exchange's key")]
    Forged,
    /// The event inside is not signed by its author.
    #[error("the event inside is not signed by its author")]
    ForgedSubject,
    /// Its sequence is not the next one.
    #[error("its sequence is {found}, and {expected} is the next one")]
    Sequence {
        /// The next sequence.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// It does not name the entry before it.
    #[error("it follows {found}, and the entry before it is {expected}")]
    Fork {
        /// Id of the entry before.
        expected: EventId,
        /// What it says.
        found: EventId,
    },
    /// Its time is earlier than that of the entry before.
    #[error("its time is {found} ms, and the entry before it had {before} ms")]
    Time {
        /// The entry before.
        before: Millis,
        /// What it says.
        found: Millis,
    },
    /// Nothing follows from it by the rules, so that it has no place.
    #[error("it has no place in the journal: {0}")]
    NoPlace(&'static str),
    /// Something else follows from it.
    #[error("it says \"{said}\", and by the rules it is \"{derived}\"")]
    Outcome {
        /// What it says.
        said: String,
        /// What follows.
        derived: String,
    },
}

/// A journal, as far as it was followed.
#[derive(Debug)]
pub struct Replay {
    author: PublicKey,
    state: State,
    head: EventId,
}

impl Replay {
    /// Before the first entry of the exchange with this key.
    pub fn new(author: PublicKey) -> Self {
        Self { author, state: State::new(author), head: EventId::all_zeros() }
    }

    /// The state after the newest entry.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Sequence and id of the newest entry.
    pub fn head(&self) -> Option<(u64, EventId)> {
        Some((self.state.next().checked_sub(1)?, self.head))
    }

    /// What follows from a subject, and the entry that says so, which is the
    /// newest from now on once [`Replay::follow`] is told its event's id.
    ///
    /// Errors, with nothing changed, where it gets no entry.
    pub(crate) fn next(
        &mut self,
        at: Millis,
        subject: Subject,
    ) -> Result<(Entry, Box<Consequences>), &'static str> {
        let seq = self.state.next();
        let mut all = match self.state.apply(at, &subject) {
            Verdict::Ignored(why) => return Err(why),
            Verdict::Entry(all) => all,
        };
        let mut effects = std::mem::take(&mut all.effects);
        let more = effects.len().saturating_sub(MAX_EFFECTS) as u32;
        effects.truncate(MAX_EFFECTS);
        let outcome = all.outcome.clone().unwrap_or(Outcome::Accepted);
        Ok((Entry { seq, prev: self.head, at, subject, outcome, effects, more }, all))
    }

    /// Notes the id of the newest entry's event.
    pub(crate) fn follow(&mut self, id: EventId) {
        self.head = id;
    }

    /// Takes the next entry, whose event's and inner event's signatures were
    /// checked; what follows from it.
    ///
    /// Errors where it is not what the journal before it leads to. Nothing can be
    /// followed after that.
    pub fn entry(&mut self, event: &Event) -> Result<Box<Consequences>, Fault> {
        self.decoded(event.id, event.pubkey, Entry::decode(event)?)
    }

    /// As [`Replay::entry`], for one that was decoded elsewhere.
    pub fn decoded(
        &mut self,
        id: EventId,
        author: PublicKey,
        said: Entry,
    ) -> Result<Box<Consequences>, Fault> {
        if author != self.author {
            return Err(Fault::Forged);
        }
        if said.seq != self.state.next() {
            return Err(Fault::Sequence { expected: self.state.next(), found: said.seq });
        }
        if said.prev != self.head {
            return Err(Fault::Fork { expected: self.head, found: said.prev });
        }
        if said.at < self.state.at() {
            return Err(Fault::Time { before: self.state.at(), found: said.at });
        }
        let (outcome, effects, more) = (said.outcome, said.effects, said.more);
        let (derived, all) = self.next(said.at, said.subject).map_err(Fault::NoPlace)?;
        let agree = same(&outcome, &derived.outcome)
            && effects.len() == derived.effects.len()
            && std::iter::zip(&effects, &derived.effects)
                .all(|(one, other)| same_effect(one, other))
            && more == derived.more;
        if !agree {
            return Err(Fault::Outcome {
                said: describe(&outcome, effects.len(), more),
                derived: describe(&derived.outcome, derived.effects.len(), derived.more),
            });
        }
        self.follow(id);
        Ok(all)
    }
}

/// Whether two outcomes are the same. Of a refusal only the prefix binds: the words
/// after it are for people, and may be put better one day.
fn same(one: &Outcome, other: &Outcome) -> bool {
    let prefix = |reason: &str| reason.split_once(':').map(|(prefix, _)| prefix.to_owned());
    match (one, other) {
        (Outcome::Refused(one), Outcome::Refused(other)) => prefix(one) == prefix(other),
        _ => one == other,
    }
}

fn same_effect(one: &Effect, other: &Effect) -> bool {
    match (one, other) {
        (Effect::Late(event, one), Effect::Late(of, other)) => event == of && same(one, other),
        _ => one == other,
    }
}

fn describe(outcome: &Outcome, effects: usize, more: u32) -> String {
    let outcome = match outcome {
        Outcome::Accepted => "accepted".to_owned(),
        Outcome::Deferred => "deferred".to_owned(),
        Outcome::Refused(reason) => format!("refused ({reason})"),
    };
    format!("{outcome}, with {} effects", effects as u64 + u64::from(more))
}
