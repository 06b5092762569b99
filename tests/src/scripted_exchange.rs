//! An exchange that says what a test tells it to, when it tells it to: for what the
//! real one does not do on request, as to stay silent or to lose a change.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use cdk::Amount;
use cdk::nuts::{CurrencyUnit, Id, KeySet, Keys as CashuKeys, PublicKey as CashuKey};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::eh01::{EpochKeyset, EpochState};
use hashpit_nips::eh04::{ExchangeInfo, Market, MarketId, MarketState, Payment, Rules, Way};
use hashpit_nips::eh05::{
    Book, Change, Checkpoint, Depth, Entry, Fate, LastTrade, Leg, Level, Match, Outcome,
    Settlement, Subject,
};
use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Msats, Price, Sats, WorkBits, kind};
use nostr_sdk::{
    Alphabet, Event, EventBuilder, EventId, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag,
    Timestamp,
};
use tokio::time::timeout;

/// How long a trader's event may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

/// The mint of its market's ehash; nobody goes there.
const MINT: &str = "https://mint.example.org/ehash";

/// An exchange with one open market.
pub struct ScriptedExchange {
    /// Its market.
    pub market: MarketId,
    keys: Keys,
    mailbox: Mailbox,
    inbox: Inbox,
    prev: EventId,
    seq: u64,
    /// Matches so far.
    fills: AtomicU32,
    state: MarketState,
    rules: Rules,
    relay: RelayUrl,
}

impl ScriptedExchange {
    /// Ehash units in one lot of its market.
    pub const LOT: u64 = 1_000;
    /// Bits of work that it wants of a key's first event.
    pub const POW_BITS: u8 = 8;

    /// Announces itself and a market for `epoch` on `relay`.
    pub async fn start(relay: &RelayUrl, epoch: EpochId) -> anyhow::Result<Self> {
        let keys = Keys::generate();
        let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await?;
        let x = SingleLetterTag::lowercase(Alphabet::X);
        let to_us = Filter::new()
            .kinds([kind::OFFER, kind::COMMAND])
            .custom_tag(x, keys.public_key().to_hex());
        let mut inbox = mailbox.subscribe(to_us).await?;
        while !matches!(inbox.next().await, Some(Arrival::Connected(_)) | None) {}
        let rules =
            Rules { lot: HashUnits::new(Self::LOT), pow_bits: Self::POW_BITS, ..Rules::default() };
        let exchange = Self {
            market: MarketId { exchange: keys.public_key(), epoch },
            keys,
            mailbox,
            inbox,
            // Its rules are the first entry, which no trader looks at.
            prev: EventId::from_byte_array([1; 32]),
            seq: 1,
            fills: AtomicU32::new(0),
            state: MarketState::Open,
            rules,
            relay: relay.clone(),
        };
        exchange.announce().await?;
        Ok(exchange)
    }

    async fn announce(&self) -> anyhow::Result<()> {
        let info = ExchangeInfo {
            name: "scripted".to_owned(),
            relays: vec![self.relay.clone()],
            pools: vec![self.market.epoch.pool],
            rules: self.rules.clone(),
        };
        let market = Market {
            epoch: self.market.epoch,
            mint: MINT.parse()?,
            state: self.state,
            until: None,
            seq: self.seq,
            lot: self.rules.lot,
            tick: self.rules.tick,
            fee_ppm: (0, 2_500),
            pay: vec![Payment { way: Way::Nwc, mint: None }],
        };
        self.publish(info.encode()).await?;
        self.publish(market.encode()).await?;
        Ok(())
    }

    /// Its key.
    pub fn key(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// The next event of a trader.
    pub async fn hear(&mut self) -> anyhow::Result<Event> {
        let event = async {
            loop {
                match self.inbox.next().await {
                    Some(Arrival::Event(event)) => return Ok(*event),
                    Some(Arrival::Connected(_)) => {}
                    None => anyhow::bail!("the mailbox is closed"),
                }
            }
        };
        timeout(PATIENCE, event).await?
    }

    /// Enters what became of a trader's event into the journal.
    pub async fn enter(&mut self, event: &Event, outcome: Outcome) -> anyhow::Result<u64> {
        let entry = Entry {
            seq: self.seq,
            prev: self.prev,
            at: now(),
            subject: Subject::Trader(Box::new(event.clone())),
            outcome,
            effects: Vec::new(),
            more: 0,
        };
        self.prev = self.publish(entry.encode()).await?;
        self.seq += 1;
        Ok(entry.seq)
    }

    /// [`Self::hear`], then [`Self::enter`].
    pub async fn answer(&mut self, outcome: Outcome) -> anyhow::Result<Event> {
        let event = self.hear().await?;
        self.enter(&event, outcome).await?;
        Ok(event)
    }

    /// Matches the offer `maker` with one of a stranger's.
    pub async fn fill(&self, maker: &Event, lots: Lots, price: Price) -> anyhow::Result<EventId> {
        let leg = |offer, trader| Leg { offer, trader, fee: Msats::ZERO };
        let offer = hashpit_nips::eh04::Offer::decode(maker)?;
        let side = offer.terms.map(|terms| terms.side);
        let found = Match {
            seq: self.seq,
            index: self.fills.fetch_add(1, Ordering::Relaxed),
            market: self.market,
            maker: leg(maker.id, maker.pubkey),
            taker: leg(EventId::from_byte_array([7; 32]), Keys::generate().public_key()),
            taker_side: side.ok_or_else(|| anyhow::anyhow!("a cancelled offer"))?.opposite(),
            price,
            lots,
            units: HashUnits::new(u64::from(lots.get()) * Self::LOT),
            pay: vec![Way::Nwc],
            at: now(),
        };
        self.publish(found.encode()?).await
    }

    /// Says how a match of these two, seller and buyer, has ended.
    pub async fn settle(
        &self,
        of: EventId,
        traders: [PublicKey; 2],
        fate: Fate,
    ) -> anyhow::Result<EventId> {
        let settled = Settlement { seq: self.seq, of, traders, fate, at: now() };
        self.publish(settled.encode()).await
    }

    /// Publishes the book after depth event `number`.
    pub async fn checkpoint(
        &self,
        number: u64,
        bids: &[Level],
        asks: &[Level],
    ) -> anyhow::Result<()> {
        let book = Book {
            state: self.state,
            bids: bids.to_vec(),
            asks: asks.to_vec(),
            cut: false,
            last: Some(LastTrade { price: Price::new(12_340), lots: Lots::new(5), at: now() }),
        };
        let checkpoint = Checkpoint {
            epoch: self.market.epoch,
            seq: number * 10,
            entry: self.prev,
            digest: [0; 32],
            depth: number,
            at: now(),
            book,
        };
        // Of two events of one second, relays keep the one with the lower id.
        let dated = Timestamp::from(Timestamp::now().as_secs() - 60 + number);
        self.publish(checkpoint.encode().custom_created_at(dated)).await?;
        Ok(())
    }

    /// Publishes depth event `number`: bids as they are now.
    pub async fn depth(&self, number: u64, bids: &[Level]) -> anyhow::Result<()> {
        let change = Change { state: self.state, bids: bids.to_vec(), asks: vec![], last: None };
        let depth = Depth { market: self.market, number, seq: number * 10, change };
        self.publish(depth.encode()).await?;
        Ok(())
    }

    /// Publishes, as the pool of the market's epoch, that a block closed it.
    pub async fn close_epoch(
        &self,
        pool: &Keys,
        work: WorkBits,
        reward: Sats,
        issued: HashUnits,
    ) -> anyhow::Result<()> {
        let unit = CurrencyUnit::Custom(self.market.epoch.to_string().into());
        let key = CashuKey::from_hex(format!("02{}", self.key().to_hex()))?;
        let keys = CashuKeys::new([(Amount::from(1), key)].into());
        let id = Id::v2_from_data(&keys, &unit, 0, None);
        let keyset = KeySet { id, unit, active: None, keys, input_fee_ppk: 0, final_expiry: None };
        let keyset = EpochKeyset {
            epoch: self.market.epoch,
            opened_by: BlockHash::all_zeros(),
            state: EpochState::Final,
            work,
            keyset,
            mint: MINT.parse()?,
            reward: Some(reward),
            issued,
        };
        let event = keyset.encode().sign_with_keys(pool)?;
        Ok(self.mailbox.publish(&event).await?)
    }

    async fn publish(&self, event: EventBuilder) -> anyhow::Result<EventId> {
        let event = event.sign_with_keys(&self.keys)?;
        self.mailbox.publish(&event).await?;
        Ok(event.id)
    }

    /// Closes its connections.
    pub async fn stop(self) {
        self.mailbox.close().await;
    }
}

fn now() -> Millis {
    Millis::new(Timestamp::now().as_secs() * 1000)
}
