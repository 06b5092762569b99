//! An exchange in this process, and the pools and traders around it, which are
//! only keys that publish events.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use cashu::nuts::nut02::Id;
use cashu::{Amount, CurrencyUnit, KeySet};
use hashpit_exchange::{Config, Exchange};
use hashpit_mailbox::{Arrival, Mailbox};
use hashpit_nips::eh01::{EpochKeyset, EpochState};
use hashpit_nips::eh04::{MarketId, Offer, Rules, Side, Terms, Way};
use hashpit_nips::{EpochId, HashUnits, Lots, Price, WorkBits, kind};
use nostr_sdk::{
    Alphabet, Event, EventBuilder, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag, Timestamp,
};
use tokio::time::timeout;

use crate::house::Running;

/// How long an event may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Our exchange.
pub struct ExchangeHouse {
    /// Its Nostr key.
    pub key: PublicKey,
    running: Running,
}

impl ExchangeHouse {
    /// Settings for quick tests: no work for a first event, checkpoints each second.
    pub fn config(relays: &[RelayUrl], pools: &[&BarePool]) -> Config {
        Config {
            relays: relays.to_vec(),
            pools: pools.iter().map(|pool| pool.keys.public_key()).collect(),
            depth_ms: 20,
            checkpoint_secs: 1,
            rules: Rules { pow_bits: 0, ..Rules::default() },
            ..Config::default()
        }
    }

    /// Starts an exchange that keeps its key and journal in `dir`.
    pub async fn start(config: Config, dir: &Path) -> anyhow::Result<Self> {
        let exchange = Exchange::open(config, dir, false).await?;
        let key = exchange.public_key();
        let running = Running::start(|stop| async move { Ok(exchange.serve(stop).await?) });
        Ok(Self { key, running })
    }

    /// The market of an epoch.
    pub fn market(&self, epoch: EpochId) -> MarketId {
        MarketId { exchange: self.key, epoch }
    }

    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }

    /// Ends it where it stands: nothing is drained or closed.
    pub async fn kill(self) {
        self.running.kill().await;
    }
}

/// A pool that is only a key.
pub struct BarePool {
    /// Its Nostr key.
    pub keys: Keys,
}

impl BarePool {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        Self { keys: Keys::generate() }
    }

    /// The epoch that it opened at a height.
    pub fn epoch(&self, height: u32) -> EpochId {
        EpochId { pool: self.keys.public_key(), height }
    }

    /// Its event of kind 38471, published at `at`.
    pub fn keyset(&self, height: u32, state: EpochState, at: Timestamp) -> anyhow::Result<Event> {
        let epoch = self.epoch(height);
        let mut keys = BTreeMap::new();
        for amount in [1, 2, 4, 8] {
            let key = format!("02{}", Keys::generate().public_key().to_hex());
            keys.insert(Amount::from(amount), key.parse()?);
        }
        let keys = cashu::Keys::new(keys);
        let unit = CurrencyUnit::Custom(epoch.to_string().into());
        let id = Id::v2_from_data(&keys, &unit, 0, None);
        let keyset = EpochKeyset {
            epoch,
            opened_by: BlockHash::all_zeros(),
            state,
            work: WorkBits::new(22)?,
            keyset: KeySet { id, unit, active: None, keys, input_fee_ppk: 0, final_expiry: None },
            mint: "http://127.0.0.1:1/ehash".parse()?,
            reward: None,
            issued: HashUnits::ZERO,
        };
        Ok(keyset.encode().custom_created_at(at).sign_with_keys(&self.keys)?)
    }
}

/// An offer of lots at msats a lot, signed now.
pub fn offer(trader: &Keys, market: MarketId, side: Side, price: u64, lots: u32) -> Event {
    let offer = unsigned_offer(market, side, price, lots);
    offer.sign_with_keys(trader).expect("a key that we hold signs any event")
}

/// An offer that nobody has signed; each has a name of its own.
pub fn unsigned_offer(market: MarketId, side: Side, price: u64, lots: u32) -> EventBuilder {
    let terms = Terms::new(side, Some(Price::new(price)), Lots::new(lots), vec![Way::Nwc]);
    let d = Keys::generate().public_key().to_hex();
    Offer { d, market, prev: None, terms: Some(terms) }.encode()
}

/// Somebody who reads and writes one relay.
pub struct Onlooker {
    /// The relay.
    pub relay: RelayUrl,
    /// The connection.
    pub mailbox: Mailbox,
}

impl Onlooker {
    /// Connects, as `keys`.
    pub async fn connect(keys: &Keys, relay: &RelayUrl) -> anyhow::Result<Self> {
        let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await?;
        anyhow::ensure!(mailbox.connected(PATIENCE).await == 1, "{relay} is not there");
        Ok(Self { relay: relay.clone(), mailbox })
    }

    /// The first event that matches and for which `wanted` holds, stored or to come.
    pub async fn sees(
        &self,
        filter: Filter,
        wanted: impl Fn(&Event) -> bool,
    ) -> anyhow::Result<Event> {
        // What a connection has seen it does not see again.
        let mailbox = Mailbox::connect(Keys::generate(), std::slice::from_ref(&self.relay)).await?;
        let mut inbox = mailbox.subscribe(filter).await?;
        let seen = timeout(PATIENCE, async {
            loop {
                match inbox.next().await {
                    Some(Arrival::Event(event)) if wanted(&event) => return Ok(*event),
                    Some(_) => {}
                    None => anyhow::bail!("the connection is closed"),
                }
            }
        })
        .await;
        mailbox.close().await;
        seen?
    }

    /// The journal's entry for an event.
    pub async fn entry_of(&self, exchange: PublicKey, event: &Event) -> anyhow::Result<Event> {
        let filter = Filter::new().kind(kind::ENTRY).author(exchange).event(event.id);
        self.sees(filter, |_| true).await
    }

    /// The entry with a sequence.
    pub async fn entry(&self, exchange: PublicKey, seq: u64) -> anyhow::Result<Event> {
        let n = SingleLetterTag::lowercase(Alphabet::N);
        let filter = Filter::new().kind(kind::ENTRY).author(exchange);
        self.sees(filter.custom_tag(n, seq.to_string()), |_| true).await
    }

    /// All that the relay has of the journal, entries only, oldest first.
    pub async fn journal(&self, exchange: PublicKey) -> anyhow::Result<Vec<Event>> {
        let filter = Filter::new().kind(kind::ENTRY).author(exchange);
        Ok(self.mailbox.stored(&self.relay, filter, PATIENCE).await?)
    }
}
