//! What an audit is about: events by the exchange, and events for it, as relays
//! gave them.

use std::collections::{BTreeMap, HashMap};

use hashpit_nips::kind;
use nostr::{Event, EventId, PublicKey, RelayUrl, Timestamp};

/// Public events, each with a good signature.
#[derive(Debug)]
pub struct Evidence {
    /// Entries by sequence; more than one with a sequence is a fork.
    pub entries: BTreeMap<u64, Vec<Event>>,
    /// Matches and settlements: the sequence that they name, and their time.
    pub consequences: HashMap<EventId, (u64, Timestamp)>,
    /// Checkpoints, and the sequence that they name.
    pub checkpoints: Vec<(u64, Event)>,
    /// What the exchange says of itself.
    pub infos: Vec<Event>,
    /// Traders' events for the exchange, by relay.
    pub offers: HashMap<RelayUrl, HashMap<EventId, Event>>,
    /// When the relays were asked.
    pub seen_at: Timestamp,
}

impl Evidence {
    /// Nothing yet.
    pub fn new(seen_at: Timestamp) -> Self {
        Self {
            entries: BTreeMap::new(),
            consequences: HashMap::new(),
            checkpoints: Vec::new(),
            infos: Vec::new(),
            offers: HashMap::new(),
            seen_at,
        }
    }

    /// The newest sequence that an entry or a checkpoint names.
    pub fn newest(&self) -> Option<u64> {
        let entry = self.entries.last_key_value().map(|(seq, _)| *seq);
        entry.max(self.checkpoints.iter().map(|(seq, _)| *seq).max())
    }

    /// Adds an event that a relay gave; one that has nothing to do with the
    /// exchange, or whose signature is bad, is passed over: the relay may have
    /// made it up.
    pub fn add(&mut self, exchange: PublicKey, relay: &RelayUrl, event: Event) {
        if event.pubkey != exchange {
            let ours = exchange.to_hex();
            let named = event.tags.iter().any(|tag| tag.as_slice() == ["x", &ours]);
            if named && event.verify().is_ok() {
                self.offers.entry(relay.clone()).or_default().insert(event.id, event);
            }
            return;
        }
        if event.kind == kind::EXCHANGE {
            let is_new = self.infos.iter().all(|known| known.id != event.id);
            if is_new && event.verify().is_ok() {
                self.infos.push(event);
            }
            return;
        }
        // An entry without a readable sequence is nobody's, and fails nothing. A
        // checkpoint is shown to people.
        let seq = number(&event).or((event.kind == kind::CHECKPOINT).then_some(0));
        let Some(seq) = seq else { return };
        if !self.knows(seq, &event) && event.verify().is_ok() {
            self.keep(seq, event);
        }
    }

    fn knows(&self, seq: u64, event: &Event) -> bool {
        let is_same = |known: &Event| known.id == event.id;
        self.consequences.contains_key(&event.id)
            || self.entries.get(&seq).is_some_and(|entries| entries.iter().any(is_same))
            || self.checkpoints.iter().any(|(_, known)| is_same(known))
    }

    fn keep(&mut self, seq: u64, event: Event) {
        if event.kind == kind::ENTRY {
            self.entries.entry(seq).or_default().push(event);
        } else if event.kind == kind::MATCH || event.kind == kind::SETTLEMENT {
            self.consequences.insert(event.id, (seq, event.created_at));
        } else if event.kind == kind::CHECKPOINT {
            self.checkpoints.push((seq, event));
        }
    }
}

/// The sequence that an event names.
fn number(event: &Event) -> Option<u64> {
    event.tags.iter().find_map(|tag| match tag.as_slice() {
        [name, seq, ..] if name == "n" => seq.parse().ok(),
        _ => None,
    })
}
