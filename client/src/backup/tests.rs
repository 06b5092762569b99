//! Plan and book against a dumb model: relays that are sets of events, and a
//! wallet that receives, spends, crashes and loses sight of relays.

use std::collections::{BTreeMap, BTreeSet};

use cdk::nuts::CurrencyUnit;
use hashpit_nips::eh03::MAX_PLAINTEXT;
use nostr_sdk::{EventId, RelayUrl, Timestamp};
use proptest::prelude::*;

use super::book::{Body, Book, Record, Token};
use super::plan::{Coin, Y, plan};
use super::{Author, Settings};

const RELAYS: usize = 3;
/// A proof with its DLEQ proof.
const BYTES: usize = 470;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// So many proofs come in, of this unit.
    Receive(u8, u8),
    /// These of the live proofs are spent.
    Spend(Vec<prop::sample::Index>),
    /// Relays answer (or not) while a backup runs; it is cut short after so many
    /// events and deletions.
    Sync { up: [bool; RELAYS], cut: usize },
    /// A relay loses everything, and a verification notices.
    Lose(usize),
    /// Mints move: every coin of a unit is honoured elsewhere.
    Move(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let up = any::<[bool; RELAYS]>();
    let cut = prop_oneof![3 => Just(usize::MAX), 2 => 0usize..12];
    let step = prop_oneof![
        3 => (1u8..60, 0u8..2).prop_map(|(count, unit)| Step::Receive(count, unit)),
        3 => prop::collection::vec(any::<prop::sample::Index>(), 1..20).prop_map(Step::Spend),
        6 => (up, cut).prop_map(|(up, cut)| Step::Sync { up, cut }),
        1 => (0..RELAYS).prop_map(Step::Lose),
        1 => (0u8..2).prop_map(Step::Move),
    ];
    prop::collection::vec(step, 1..40)
}

/// A token event as a relay has it.
#[derive(Debug, Clone)]
struct Stored {
    coins: BTreeSet<Y>,
    del: Vec<EventId>,
}

#[derive(Default)]
struct Relay {
    events: BTreeMap<EventId, Stored>,
    deletions: BTreeSet<EventId>,
}

struct World {
    settings: Settings,
    relays: Vec<Relay>,
    live: BTreeMap<Y, Coin>,
    /// What is on disk: all that a crash leaves.
    disk: Vec<Record>,
    written: BTreeMap<EventId, Stored>,
    moves: u32,
    next: u64,
    /// Coins that a quorum was once said to hold.
    safe: BTreeSet<Y>,
}

fn coin(unit: u8, moves: u32) -> Coin {
    let mint = format!("http://mint.example/{moves}").parse().unwrap();
    let unit = CurrencyUnit::custom(format!("unit_{unit}"));
    Coin { purse: (mint, unit), bytes: BYTES }
}

impl World {
    fn new() -> Self {
        let url = |n| format!("ws://relay{n}.example").parse::<RelayUrl>().unwrap();
        Self {
            settings: Settings { relays: (0..RELAYS).map(url).collect(), quorum: None },
            relays: (0..RELAYS).map(|_| Relay::default()).collect(),
            live: BTreeMap::new(),
            disk: Vec::new(),
            written: BTreeMap::new(),
            moves: 0,
            next: 0,
            safe: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Receive(count, unit) => {
                for _ in 0..*count {
                    self.next += 1;
                    self.live.insert(format!("{:08}", self.next), coin(*unit, self.moves));
                }
            }
            Step::Spend(which) => {
                for index in which {
                    let ys: Vec<_> = self.live.keys().cloned().collect();
                    if !ys.is_empty() {
                        let y = &ys[index.index(ys.len())];
                        self.live.remove(y);
                        self.safe.remove(y);
                    }
                }
            }
            Step::Sync { up, cut } => self.sync(up, *cut),
            Step::Lose(relay) => {
                self.relays[*relay] = Relay::default();
                let mut book = Book::new(self.disk.clone());
                for id in book.ids() {
                    book.lost(&self.settings.relays[*relay], &id);
                }
                self.save(&book);
                // It may have been the last but one.
                self.safe.clear();
            }
            Step::Move(unit) => {
                self.moves += 1;
                let moved = coin(*unit, self.moves).purse;
                for coin in self.live.values_mut().filter(|coin| coin.purse.1 == moved.1) {
                    coin.purse = moved.clone();
                }
            }
        }
        self.check();
    }

    fn save(&mut self, book: &Book) {
        self.disk = book.records().cloned().collect();
    }

    /// As `Backup::sync`, with `cut` writes until the machine stops.
    fn sync(&mut self, up: &[bool; RELAYS], mut cut: usize) {
        let mut book = Book::new(self.disk.clone());
        let todo = plan(&self.live, &book.held());
        for draft in &todo.drafts {
            if cut == 0 {
                return;
            }
            cut -= 1;
            self.next += 1;
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&self.next.to_be_bytes());
            let id = EventId::from_byte_array(bytes);
            let (coins, del) = (draft.coins.clone(), draft.replaces.clone());
            let size = coins.len() * BYTES + del.len() * 67 + 200;
            assert!(size <= MAX_PLAINTEXT + 200, "an event of {size} bytes");
            self.written.insert(id, Stored { coins: coins.clone(), del });
            book.add(record(id, self.next, draft.purse.clone(), coins, &draft.replaces));
            // The new event's record is on disk before the note on the old one.
            self.disk.push(book.get(&id).unwrap().clone());
        }
        book.retire(&todo.retired);
        self.save(&book);
        for (n, relay) in self.settings.relays.clone().iter().enumerate() {
            for id in book.wanting(relay).iter().map(|r| r.id).collect::<Vec<_>>() {
                if !up[n] || cut == 0 {
                    continue;
                }
                cut -= 1;
                self.relays[n].events.insert(id, self.written[&id].clone());
                book.confirm(relay, &id);
            }
        }
        self.save(&book);
        if !book.has_quorum(&self.settings) {
            return;
        }
        self.safe = self.live.keys().cloned().collect();
        for (n, relay) in self.settings.relays.clone().iter().enumerate() {
            if !up[n] || !book.wanting(relay).is_empty() {
                continue;
            }
            for id in book.doomed(relay).iter().map(|r| r.id).collect::<Vec<_>>() {
                if cut == 0 {
                    return;
                }
                cut -= 1;
                self.relays[n].events.remove(&id);
                self.relays[n].deletions.insert(id);
                book.deleted(relay, &id);
                self.save(&book);
            }
        }
        book.sweep(&self.settings);
        self.save(&book);
        if cut > 0 && up.iter().all(|up| *up) {
            self.check_exact();
        }
    }

    /// What a reader concludes from some relays (EH-03, Reading).
    fn read(&self, relays: &[usize]) -> BTreeSet<Y> {
        let relays: Vec<_> = relays.iter().map(|n| &self.relays[*n]).collect();
        let events = || relays.iter().flat_map(|relay| &relay.events);
        let mut gone: BTreeSet<EventId> =
            relays.iter().flat_map(|relay| relay.deletions.iter().copied()).collect();
        gone.extend(events().flat_map(|(_, stored)| stored.del.iter().copied()));
        let left = events().filter(|(id, _)| !gone.contains(id));
        left.flat_map(|(_, stored)| stored.coins.iter().cloned()).collect()
    }

    /// Whatever was safe once and lives still is read from any quorum.
    fn check(&self) {
        for pair in [[0, 1], [0, 2], [1, 2]] {
            let read = self.read(&pair);
            let lost: Vec<_> = self.safe.difference(&read).collect();
            assert!(lost.is_empty(), "not on relays {pair:?}: {lost:?}");
        }
        for y in &self.safe {
            let holding = self
                .relays
                .iter()
                .filter(|relay| relay.events.values().any(|stored| stored.coins.contains(y)));
            assert!(holding.count() >= self.settings.needed(), "{y} is on too few relays");
        }
    }

    /// With every relay up, they hold what lives and nothing else.
    fn check_exact(&self) {
        let live: BTreeSet<_> = self.live.keys().cloned().collect();
        for n in 0..RELAYS {
            assert_eq!(self.read(&[n]), live, "relay {n}");
        }
        assert!(self.disk.iter().all(|record| match &record.body {
            Body::Token(token) => !token.retired,
            Body::Wallet { .. } | Body::History {} => true,
        }));
        let small = 2 * (16 + 1) + self.live.len() * BYTES * 4 / MAX_PLAINTEXT + 2;
        assert!(self.disk.len() <= small, "{} events for {} coins", self.disk.len(), live.len());
    }
}

fn record(
    id: EventId,
    at: u64,
    (mint, unit): (cdk::mint_url::MintUrl, CurrencyUnit),
    coins: BTreeSet<Y>,
    replaces: &[EventId],
) -> Record {
    Record {
        version: Record::VERSION,
        id,
        author: Author::Ehash,
        created_at: Timestamp::from(at),
        confirmed: BTreeSet::new(),
        body: Body::Token(Token {
            mint,
            unit,
            amount: coins.len() as u64,
            coins,
            replaces: replaces.to_vec(),
            retired: false,
            deleted: BTreeSet::new(),
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_was_safe_stays_safe_and_in_the_end_the_relays_hold_what_lives(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Sync { up: [true; RELAYS], cut: usize::MAX });
        // Once more changes nothing.
        let before = world.disk.clone();
        world.step(&Step::Sync { up: [true; RELAYS], cut: usize::MAX });
        prop_assert_eq!(before, world.disk);
    }
}

#[test]
fn nothing_is_planned_for_nothing() {
    assert_eq!(plan(&BTreeMap::new(), &[]), super::plan::Plan::default());
}
