//! A pool, some traders, and an exchange whose clock stands still until told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cashu::{Amount, CurrencyUnit, Id, KeySet, Keys as MintKeys, SecretKey};
use hashpit_exchange::audit::Evidence;
use hashpit_exchange::desk::{Answer, Clock, Desk, DeskThread};
use hashpit_exchange::journal::Journal;
use hashpit_nips::eh01::{EpochKeyset, EpochState};
use hashpit_nips::eh04::{Action, Command, MarketId, Offer, Payment, Rules, Side, Terms, Way};
use hashpit_nips::eh05::{Checkpoint, Entry, LastTrade, Outcome};
use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Price, WorkBits};
use nostr::{Event, EventId, Keys, RelayUrl, Timestamp};

pub const START: u64 = 1_800_000_000_000;

/// Rules without proof of work, and with short phases.
pub fn rules() -> Rules {
    Rules {
        pow_bits: 0,
        pay: vec![Payment { way: Way::Nwc, mint: None }],
        halt_ms: 5_000,
        auction_ms: 10_000,
        events_per_minute: 1_000,
        ..Rules::default()
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub exchange: Keys,
    pub pool: Keys,
    pub clock: Arc<AtomicU64>,
    pub desk: Desk,
    thread: DeskThread,
    /// Numbers offers, so that no two are alike.
    made: AtomicU64,
}

impl World {
    pub fn open(rules: Rules) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (exchange, clock) = (Keys::generate(), Arc::new(AtomicU64::new(START)));
        let (desk, thread) = open(dir.path().join("journal"), &exchange, rules, &clock);
        let (pool, made) = (Keys::generate(), AtomicU64::new(0));
        Self { dir, exchange, pool, clock, desk, thread, made }
    }

    /// Stops and opens again on the same journal.
    pub async fn reopen(self) -> Self {
        let Self { dir, exchange, pool, clock, desk, thread, made } = self;
        drop(desk);
        thread.ended().await.unwrap();
        let (desk, thread) = open(dir.path().join("journal"), &exchange, rules(), &clock);
        Self { dir, exchange, pool, clock, desk, thread, made }
    }

    pub fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    pub fn epoch(&self, height: u32) -> EpochId {
        EpochId { pool: self.pool.public_key(), height }
    }

    /// The pool says where one of its epochs stands.
    pub async fn publish(&self, height: u32, state: EpochState) -> Answer {
        let epoch = self.epoch(height);
        let event = keyset(epoch, state).encode();
        let event = event.custom_created_at(Timestamp::from(self.now() / 1000));
        self.desk.submit(event.sign_with_keys(&self.pool).unwrap()).await.unwrap()
    }

    pub fn market(&self, height: u32) -> MarketId {
        MarketId { exchange: self.exchange.public_key(), epoch: self.epoch(height) }
    }

    /// An offer's terms at a price.
    pub fn terms(side: Side, price: u64, lots: u32) -> Terms {
        Terms::new(side, Some(Price::new(price)), Lots::new(lots), vec![Way::Nwc])
    }

    /// A signed offer in the first epoch's market.
    pub fn offer(&self, trader: &Keys, terms: Terms) -> Event {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        self.offer_at(trader, &number.to_string(), None, Some(terms))
    }

    pub fn offer_at(
        &self,
        trader: &Keys,
        d: &str,
        prev: Option<EventId>,
        terms: Option<Terms>,
    ) -> Event {
        let offer = Offer { d: d.to_owned(), market: self.market(1), prev, terms };
        let event = offer.encode().custom_created_at(Timestamp::from(self.now() / 1000));
        event.sign_with_keys(trader).unwrap()
    }

    pub fn command(&self, trader: &Keys, action: Action) -> Event {
        let command = Command { exchange: self.exchange.public_key(), action };
        let event = command.encode().custom_created_at(Timestamp::from(self.now() / 1000));
        event.sign_with_keys(trader).unwrap()
    }

    /// Both traders say that a match is settled; the entry that completes it.
    pub async fn settle(&self, of: EventId, traders: [&Keys; 2]) -> Entry {
        let [one, other] = traders.map(|it| self.command(it, Action::Step { of, step: 6 }));
        self.accepted(&one).await;
        self.accepted(&other).await
    }

    /// The newest match that was completed in the first epoch's market.
    pub async fn last(&self) -> Option<LastTrade> {
        self.desk.snapshots(None).await.unwrap().remove(0).book.last
    }

    /// Hands in an event; its entry.
    pub async fn submit(&self, event: &Event) -> Entry {
        match self.desk.submit(event.clone()).await.unwrap() {
            Answer::Entry(seq) => self.entry(seq),
            Answer::Ignored(why) => panic!("ignored: {why}"),
        }
    }

    pub async fn accepted(&self, event: &Event) -> Entry {
        let entry = self.submit(event).await;
        assert_eq!(entry.outcome, Outcome::Accepted, "{entry:?}");
        entry
    }

    /// Hands in an event; why it was refused.
    pub async fn refused(&self, event: &Event) -> String {
        match self.submit(event).await.outcome {
            Outcome::Refused(why) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn entry(&self, seq: u64) -> Entry {
        Entry::decode(&self.record(seq)[0]).unwrap()
    }

    pub fn record(&self, seq: u64) -> Vec<Event> {
        self.desk.journal().record(seq).unwrap().unwrap()
    }

    /// All records.
    pub fn records(&self) -> Vec<Vec<Event>> {
        (0..).map_while(|seq| self.desk.journal().record(seq).unwrap()).collect()
    }

    /// What two relays would hold of this exchange: its records, and checkpoints
    /// of now.
    pub async fn evidence(&self, offers: &[Event]) -> Evidence {
        let mut evidence = Evidence::new(Timestamp::from(self.now() / 1000));
        for event in self.records().into_iter().flatten() {
            evidence.add(self.exchange.public_key(), &relays()[0], event);
        }
        for checkpoint in self.checkpoints().await {
            evidence.add(self.exchange.public_key(), &relays()[0], checkpoint);
        }
        for offer in offers {
            for relay in relays() {
                evidence.add(self.exchange.public_key(), &relay, offer.clone());
            }
        }
        evidence
    }

    pub async fn checkpoints(&self) -> Vec<Event> {
        let snapshots = self.desk.snapshots(None).await.unwrap();
        let checkpoint = |snapshot: hashpit_exchange::desk::Snapshot| Checkpoint {
            epoch: snapshot.market.epoch,
            seq: snapshot.head.0,
            entry: snapshot.head.1,
            digest: snapshot.digest,
            depth: 0,
            at: snapshot.at,
            book: snapshot.book,
        };
        let sign = |checkpoint: Checkpoint| checkpoint.encode().sign_with_keys(&self.exchange);
        snapshots.into_iter().map(checkpoint).map(|c| sign(c).unwrap()).collect()
    }
}

pub fn relays() -> [RelayUrl; 2] {
    ["ws://one.example", "ws://two.example"].map(|url| RelayUrl::parse(url).unwrap())
}

fn open(dir: PathBuf, keys: &Keys, rules: Rules, clock: &Arc<AtomicU64>) -> (Desk, DeskThread) {
    let clock = Arc::clone(clock);
    let clock: Clock = Arc::new(move || Millis::new(clock.load(Ordering::SeqCst)));
    let journal = Arc::new(Journal::open(&dir).unwrap());
    Desk::open(journal, keys.clone(), rules, clock).unwrap()
}

/// An epoch's keyset, with keys that nobody signs with.
pub fn keyset(epoch: EpochId, state: EpochState) -> EpochKeyset {
    let key = SecretKey::from_hex(format!("{:064x}", 7)).unwrap().public_key();
    let keys = MintKeys::new(BTreeMap::from([(Amount::ONE, key)]));
    let unit = CurrencyUnit::Custom(epoch.to_string().into());
    let id = Id::v2_from_data(&keys, &unit, 0, None);
    EpochKeyset {
        epoch,
        opened_by: format!("{:064x}", epoch.height).parse().unwrap(),
        state,
        work: WorkBits::new(22).unwrap(),
        keyset: KeySet { id, unit, active: None, keys, input_fee_ppk: 0, final_expiry: None },
        mint: "https://pool.example/ehash".parse().unwrap(),
        reward: None,
        issued: HashUnits::ZERO,
    }
}
