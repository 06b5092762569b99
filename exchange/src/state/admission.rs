//! Who may speak: proof of work on first contact, rates, clocks. A pure function
//! of the journal, so that an auditor comes to the same answers.

use std::collections::{HashMap, HashSet};

use hashpit_nips::Millis;
use hashpit_nips::eh04::Rules;
use nostr::{Event, EventId, PublicKey};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// Bytes of a trader's event, as JSON: it goes into an entry, whole.
const MAX_EVENT: usize = 8 * 1024;

/// What may be done with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may be carried out.
    Free,
    /// It gets an entry that refuses it.
    Refused(String),
    /// Likewise, and its key's further events of this minute get none.
    TooFast(String),
    /// It gets no entry.
    Ignored(&'static str),
}

/// What has to be remembered of the journal to admit the next event.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Events that have an entry.
    answered: HashSet<EventId>,
    /// Keys that have one, and since when.
    known: HashMap<PublicKey, Millis>,
    /// The most work that a key's first event ever needed.
    most_work: u8,
    /// Entries of each key in this minute that count.
    minute: (u64, HashMap<PublicKey, Pace>),
    /// Burnt commits of each key on this day.
    day: (u64, HashMap<PublicKey, u32>),
}

/// How fast a key has been in a minute.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    entries: u32,
    /// Whether it was told that it is too fast.
    told: bool,
}

/// What an entry is to the rate of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Toll {
    /// It is one of the events of its minute.
    Counted,
    /// It does not count: what it did was owed to somebody, or set him free.
    Free,
    /// It is the refusal after which there are no more answers in this minute.
    Last,
}

/// What an event is, before it is looked at more closely.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    /// It has to be signed now.
    pub(super) timely: bool,
    /// The rate of its key does not bind it.
    pub(super) free: bool,
}

impl Gate {
    pub(super) fn is_answered(&self, id: &EventId) -> bool {
        self.answered.contains(id)
    }

    /// Whether an event of a trader may be carried out at `at`.
    pub(super) fn admit(
        &self,
        event: &Event,
        claim: Claim,
        at: Millis,
        rules: &Rules,
    ) -> Admission {
        if self.is_answered(&event.id) {
            return Admission::Ignored("it has its entry");
        }
        if size(event) > MAX_EVENT {
            return Admission::Ignored("it is longer than 8 KiB");
        }
        if !self.knows(event, rules) {
            return Admission::Ignored("a key's first event needs proof of work (NIP-13)");
        }
        let misdated = misdated(event, claim.timely, at, rules);
        if !(claim.free && misdated.is_none()) {
            let pace = self.pace(&event.pubkey, at);
            if pace.told {
                return Admission::Ignored("its key has had its refusal for this minute");
            }
            if pace.entries >= rules.events_per_minute {
                return Admission::TooFast(too_fast(at));
            }
        }
        misdated.map_or(Admission::Free, Admission::Refused)
    }

    /// Whether an event is of a size and by a key that get answers.
    pub(super) fn knows(&self, event: &Event, rules: &Rules) -> bool {
        let worked = self.known.contains_key(&event.pubkey) || event.id.check_pow(rules.pow_bits);
        worked && size(event) <= MAX_EVENT
    }

    /// Whether an event that came in at `from` or later was by a key that gets
    /// answers, under whatever rules there were.
    pub(super) fn knew(&self, event: &Event, from: Millis) -> bool {
        let known = self.known.get(&event.pubkey).is_some_and(|since| *since < from);
        (known || event.id.check_pow(self.most_work)) && size(event) <= MAX_EVENT
    }

    /// Notes the rules that are in force from now on.
    pub(super) fn ruled(&mut self, rules: &Rules) {
        self.most_work = self.most_work.max(rules.pow_bits);
    }

    /// Whether a key has left too many commits without their offer today.
    pub(super) fn may_commit(&self, key: &PublicKey, at: Millis, rules: &Rules) -> bool {
        let (day, burnt) = &self.day;
        let today = *day == at.get() / DAY_MS;
        !today || burnt.get(key).copied().unwrap_or_default() < rules.burnt_per_day
    }

    /// Notes that an event has got its entry.
    pub(super) fn answered(&mut self, event: &Event, at: Millis, toll: Toll) {
        self.answered.insert(event.id);
        self.known.entry(event.pubkey).or_insert(at);
        if toll != Toll::Free {
            let pace = of(&mut self.minute, at.get() / MINUTE_MS, event.pubkey);
            pace.entries = pace.entries.saturating_add(1);
            pace.told |= toll == Toll::Last;
        }
    }

    /// Notes that a pool's event has got its entry.
    pub(super) fn answered_pool(&mut self, id: EventId) {
        self.answered.insert(id);
    }

    /// Notes that a commit was burnt.
    pub(super) fn burnt(&mut self, key: PublicKey, at: Millis) {
        *of(&mut self.day, at.get() / DAY_MS, key) += 1;
    }

    fn pace(&self, key: &PublicKey, at: Millis) -> Pace {
        let (minute, paces) = &self.minute;
        let now = paces.get(key).filter(|_| *minute == at.get() / MINUTE_MS);
        now.copied().unwrap_or_default()
    }
}

/// What a window of time with this number holds of a key.
fn of<T: Default>(
    window: &mut (u64, HashMap<PublicKey, T>),
    number: u64,
    key: PublicKey,
) -> &mut T {
    if window.0 != number {
        *window = (number, HashMap::new());
    }
    window.1.entry(key).or_default()
}

/// Why an event's date rules it out, if it does.
fn misdated(event: &Event, timely: bool, at: Millis, rules: &Rules) -> Option<String> {
    let (signed, now) = (event.created_at.as_secs(), at.get() / 1000);
    let drift = u64::from(rules.max_drift_secs);
    if signed <= now.saturating_add(drift) && !(timely && signed.saturating_add(drift) < now) {
        return None;
    }
    let off = signed.abs_diff(now);
    Some(format!(
        "invalid: created_at is {off} s off this exchange's clock, and {drift} s are allowed; set \
         your clock and sign it anew"
    ))
}

fn too_fast(at: Millis) -> String {
    let rest = 60 - at.get() % MINUTE_MS / 1000;
    format!(
        "rate-limited: your key has had all its events of this minute; further ones get no \
         answer for {rest} s"
    )
}

/// Bytes that an event takes in an entry, at least: quotes count double there, and
/// control characters up to seven times.
fn size(event: &Event) -> usize {
    let tags = event.tags.iter().flat_map(|tag| tag.as_slice().iter());
    escaped(&event.content) + tags.map(|text| escaped(text) + 5).sum::<usize>()
}

fn escaped(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => 4,
        0..32 => 7,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, Timestamp};

    use super::*;

    const TIMELY: Claim = Claim { timely: true, free: false };

    fn event(keys: &Keys, at: u64, text: &str) -> Event {
        let builder = EventBuilder::new(Kind::Custom(38480), text);
        builder.custom_created_at(Timestamp::from(at)).sign_with_keys(keys).unwrap()
    }

    #[test]
    fn a_stranger_works_for_its_first_event_only() {
        let (keys, rules) = (Keys::generate(), Rules { pow_bits: 12, ..Rules::default() });
        let (mut gate, at) = (Gate::default(), Millis::new(1_000_000));
        let plain = event(&keys, 1_000, "");
        assert!(matches!(gate.admit(&plain, TIMELY, at, &rules), Admission::Ignored(_)));
        let builder = EventBuilder::new(Kind::Custom(38480), "").pow(12);
        let worked = builder.custom_created_at(Timestamp::from(1_000));
        let worked = worked.sign_with_keys(&keys).unwrap();
        assert_eq!(gate.admit(&worked, TIMELY, at, &rules), Admission::Free);
        gate.answered(&worked, at, Toll::Counted);
        assert_eq!(gate.admit(&plain, TIMELY, at, &rules), Admission::Free);
        assert!(matches!(gate.admit(&worked, TIMELY, at, &rules), Admission::Ignored(_)));
    }

    #[test]
    fn a_key_that_is_too_fast_hears_it_once_a_minute() {
        let rules = Rules { pow_bits: 0, events_per_minute: 3, ..Rules::default() };
        let (keys, mut gate, at) = (Keys::generate(), Gate::default(), Millis::new(1_200_000));
        for number in 0..3 {
            let event = event(&keys, 1_200, &number.to_string());
            assert_eq!(gate.admit(&event, TIMELY, at, &rules), Admission::Free);
            gate.answered(&event, at, Toll::Counted);
        }
        let fourth = event(&keys, 1_200, "fourth");
        assert!(matches!(gate.admit(&fourth, TIMELY, at, &rules), Admission::TooFast(_)));
        gate.answered(&fourth, at, Toll::Last);
        let fifth = event(&keys, 1_200, "fifth");
        assert!(matches!(gate.admit(&fifth, TIMELY, at, &rules), Admission::Ignored(_)));
        let later = Millis::new(1_260_000);
        assert_eq!(gate.admit(&fifth, TIMELY, later, &rules), Admission::Free);
    }

    #[test]
    fn what_is_free_neither_counts_nor_waits_for_the_next_minute() {
        let rules = Rules { pow_bits: 0, events_per_minute: 2, ..Rules::default() };
        let (keys, mut gate, at) = (Keys::generate(), Gate::default(), Millis::new(1_200_000));
        let free = Claim { timely: false, free: true };
        let told = [Toll::Free, Toll::Free, Toll::Counted, Toll::Counted, Toll::Last];
        for (number, toll) in told.into_iter().enumerate() {
            let event = event(&keys, 1_200, &number.to_string());
            assert_eq!(gate.admit(&event, free, at, &rules), Admission::Free, "{number}");
            gate.answered(&event, at, toll);
        }
        let plain = event(&keys, 1_200, "plain");
        assert!(matches!(gate.admit(&plain, TIMELY, at, &rules), Admission::Ignored(_)));
        assert_eq!(gate.admit(&plain, free, at, &rules), Admission::Free);
        let tomorrow = event(&keys, 99_000, "nobody is owed an answer to a wrong date");
        assert!(matches!(gate.admit(&tomorrow, free, at, &rules), Admission::Ignored(_)));
    }

    #[test]
    fn a_limit_that_is_lowered_within_a_minute_is_told_all_the_same() {
        let wide = Rules { pow_bits: 0, events_per_minute: 9, ..Rules::default() };
        let narrow = Rules { events_per_minute: 2, ..wide.clone() };
        let (keys, mut gate, at) = (Keys::generate(), Gate::default(), Millis::new(1_200_000));
        for number in 0..5 {
            let event = event(&keys, 1_200, &number.to_string());
            assert_eq!(gate.admit(&event, TIMELY, at, &wide), Admission::Free);
            gate.answered(&event, at, Toll::Counted);
        }
        let next = event(&keys, 1_200, "next");
        assert!(matches!(gate.admit(&next, TIMELY, at, &narrow), Admission::TooFast(_)));
    }

    #[test]
    fn what_has_to_be_signed_now_may_be_a_minute_off() {
        let rules = Rules { pow_bits: 0, ..Rules::default() };
        let (keys, gate, at) = (Keys::generate(), Gate::default(), Millis::new(1_000_000));
        for (signed, timely, free) in [
            (940, true, true),
            (1_060, true, true),
            (939, true, false),
            (1_061, true, false),
            (1, false, true),
            (1_061, false, false),
        ] {
            let claim = Claim { timely, free: false };
            let admitted = gate.admit(&event(&keys, signed, ""), claim, at, &rules);
            assert_eq!(admitted == Admission::Free, free, "{signed} {timely}: {admitted:?}");
        }
    }
}
