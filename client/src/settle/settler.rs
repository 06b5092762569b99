//! Takes up every match of a wallet, and drives each trade to its end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, TryLockError};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::Sats;
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh05::{Match, Settlement};
use hashpit_nips::eh06::Timing;
use hashpit_nips::kind;
use nostr_sdk::{Event, EventId, Filter, Keys, Kind, PublicKey, RelayUrl, Timestamp};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::agree::Lack;
use super::lightning::Lightning;
use super::mints::Mints;
use super::post::{self, Incoming};
use super::record::{End, Record, Role, Stage, Wish};
use super::recover::{all_of, recover_through};
use super::trade::{Note, Trade};
use super::{Clock, Limits, Probe, SettleError};
use crate::trade::Exchange;
use crate::wallet::{NAMESPACE, Wallet};

/// How often wishes of other processes are looked for, on this disk.
const WISHES: Duration = Duration::from_secs(1);
/// Pause before the relays are asked for messages that are due and have not come.
const ASK_AGAIN: Duration = Duration::from_secs(4);
/// Notes that wait for one trade.
const QUEUE: usize = 64;
/// Changes that wait to be shown; whoever falls behind misses the oldest.
const CHANGES: usize = 1024;
/// Messages kept for matches that have not been heard of yet.
const MAX_EARLY: usize = 512;
/// Wraps that are known as opened: those of some hundred trades.
const MAX_OPENED: usize = 20_000;
/// Pause before a trade is begun again that something stood in the way of.
const AGAIN: Duration = Duration::from_secs(5);
const WISH_TABLE: &str = "wishes";

/// What all trades of a wallet share.
pub(super) struct Shared {
    pub(super) wallet: Wallet,
    pub(super) exchange: Exchange,
    /// The key that offers are signed by.
    pub(super) keys: Keys,
    pub(super) mailbox: Mailbox,
    pub(super) mints: Mints,
    pub(super) lightning: Lightning,
    pub(super) limits: Limits,
    pub(super) timing: Timing,
    pub(super) clock: Clock,
    pub(super) probe: Probe,
    progress: watch::Sender<Progress>,
    changes: broadcast::Sender<Change>,
    /// Trades under way.
    open: Mutex<HashMap<EventId, Open>>,
    /// Buyers' hashes, and the trade that each was first seen in.
    hashes: Mutex<HashMap<[u8; 32], EventId>>,
    /// Until the last trade's task has ended, no other settler may begin.
    _lock: File,
}

/// A trade under way, as limits see it.
#[derive(Debug)]
struct Open {
    with: PublicKey,
    sats: u64,
    /// It was found to be within the limits.
    counts: bool,
}

impl Open {
    fn of(record: &Record) -> Self {
        Self {
            with: record.counterparty(),
            sats: record.sats().get(),
            counts: record.mine.is_some(),
        }
    }
}

/// A trade that has changed, and what it is now.
pub type Change = (EventId, Stage);

/// What a settler has done since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Trades under way.
    pub open: usize,
    /// Trades that were completed.
    pub completed: usize,
    /// Trades that ended otherwise.
    pub failed: usize,
    /// The trade that changed last, and what it is now.
    pub last: Option<(EventId, Stage)>,
    /// Trades that the exchange has attested as completed.
    pub attested: usize,
}

/// Settles a wallet's trades at one exchange.
pub struct Settler {
    shared: Shared,
}

impl Settler {
    /// A settler of `wallet`'s trades at `exchange`.
    ///
    /// Errors with [`SettleError::Busy`] where another process is one.
    pub async fn open(
        wallet: Wallet,
        exchange: Exchange,
        limits: Limits,
    ) -> Result<Self, SettleError> {
        let lock = lock(&wallet, exchange.key())?;
        let keys = wallet.trade_keys();
        let mailbox = Mailbox::connect(keys.clone(), exchange.relays()).await?;
        let mints = Mints::new(wallet.clone(), limits.mints.clone());
        let shared = Shared {
            wallet,
            exchange,
            keys,
            mailbox,
            mints,
            lightning: Lightning::new(limits.lightning.clone()),
            limits,
            timing: Timing::EH06,
            clock: Clock::default(),
            probe: Probe::default(),
            progress: watch::Sender::new(Progress::default()),
            changes: broadcast::Sender::new(CHANGES),
            open: Mutex::default(),
            hashes: Mutex::default(),
            _lock: lock,
        };
        Ok(Self { shared })
    }

    /// This settler, by other deadlines and locktimes than the draft's. Both sides
    /// of a trade need the same.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.shared.timing = timing;
        self
    }

    /// This settler, by another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.shared.clock = clock;
        self
    }

    /// This settler, telling `probe` of each effect.
    #[must_use]
    pub fn with_probe(mut self, probe: Probe) -> Self {
        self.shared.probe = probe;
        self
    }

    /// What it does, as it goes on.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Every change of a trade, as long as they are read.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// True if a process settles this wallet's trades at an exchange.
    pub fn is_running(wallet: &Wallet, exchange: PublicKey) -> Result<bool, SettleError> {
        match lock(wallet, exchange) {
            Ok(_) => Ok(false),
            Err(SettleError::Busy) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Settles until stopped. Every trade can be left at any moment, and is taken
    /// up by the next run.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SettleError> {
        let shared = Arc::new(self.shared);
        tokio::select! { biased;
            () = stop.cancelled() => return Ok(()),
            looked = look_once(&shared) => looked?,
        }
        let mut desk = Desk::new(shared.clone());
        let outcome = desk.run(&stop).await;
        desk.tasks.shutdown().await;
        shared.mailbox.close().await;
        shared.exchange.close().await;
        outcome
    }
}

/// Looks for trades of another machine, if this wallet never has at this exchange.
async fn look_once(shared: &Shared) -> Result<(), SettleError> {
    let (wallet, exchange) = (&shared.wallet, &shared.exchange);
    if wallet.has_looked_for_trades(exchange.key()).await? {
        return Ok(());
    }
    // In connections of its own: what one has told it does not tell the subscription.
    let mailbox = Mailbox::connect(shared.keys.clone(), exchange.relays()).await?;
    let found = recover_through(wallet, &mailbox, exchange.relays()).await;
    mailbox.close().await;
    match found {
        Ok(found) => {
            if found.count > 0 {
                info!(trades = found.count, "trades of another machine");
            }
            if found.is_all {
                wallet.note_looked_for_trades(exchange.key()).await?;
            }
        }
        // Looked for again by the next run; meanwhile the mint shows what was locked.
        Err(error) => warn!(%error, "trades of another machine could not be looked for"),
    }
    Ok(())
}

/// Tells the settler of a wallet what the user wants of a trade; it may be another
/// process, or start later.
pub async fn wish(wallet: &Wallet, of: EventId, wish: Wish) -> Result<(), SettleError> {
    let bytes = serde_json::to_vec(&wish).expect("a word is JSON");
    Ok(wallet.store.kv_write(NAMESPACE, WISH_TABLE, &of.to_hex(), &bytes).await?)
}

/// One settler of a wallet's trades at an exchange at a time; the kernel releases
/// the lock if the process dies.
fn lock(wallet: &Wallet, exchange: PublicKey) -> Result<File, SettleError> {
    let path = wallet.dir().join(format!("trades-{}.lock", &exchange.to_hex()[..16]));
    let failed = |source| crate::wallet::WalletError::Directory { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SettleError::Busy),
        Err(TryLockError::Error(source)) => Err(failed(source).into()),
    }
}

/// Who hands out what comes in.
struct Desk {
    shared: Arc<Shared>,
    trades: HashMap<EventId, mpsc::Sender<Note>>,
    early: VecDeque<Incoming>,
    tasks: JoinSet<(EventId, Result<Record, SettleError>)>,
    /// Wraps that were opened, oldest first: relays tell them again and again.
    opened: (HashSet<EventId>, VecDeque<EventId>),
    /// What relays had stored when they were connected to.
    stored: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    readers: JoinSet<()>,
    /// Until when messages are due for the trades that began last.
    listening: Instant,
    /// When relays are asked for them again.
    ask_at: Instant,
}

impl Desk {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            trades: HashMap::new(),
            early: VecDeque::new(),
            tasks: JoinSet::new(),
            opened: Default::default(),
            stored: mpsc::channel(QUEUE),
            readers: JoinSet::new(),
            listening: Instant::now(),
            ask_at: Instant::now(),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), SettleError> {
        let (mut journal, mut wraps) = self.subscribe().await?;
        for market in self.shared.exchange.markets() {
            // What its lots are before anything is matched; again with the first match.
            let _ = self.shared.lot(market.epoch).await;
        }
        for record in self.shared.wallet.trades().await? {
            if !record.is_over() && record.exchange() == self.shared.exchange.key() {
                self.start(record, Duration::ZERO);
            }
        }
        let mut wishes = interval(WISHES);
        wishes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    match done {
                        Ok((of, outcome)) => self.left(of, outcome).await?,
                        Err(error) if error.is_panic() => {
                            std::panic::resume_unwind(error.into_panic())
                        }
                        Err(_) => {}
                    }
                }
                Some(event) = self.stored.1.recv() => self.take(&event).await?,
                Some(_) = self.readers.join_next(), if !self.readers.is_empty() => {}
                _ = wishes.tick() => {
                    self.listen_again();
                    self.grant_wishes().await?;
                }
                arrival = journal.next() => match arrival {
                    Some(Arrival::Event(event)) => self.take(&event).await?,
                    Some(Arrival::Connected(relay)) => self.read_stored(relay),
                    None => return Ok(()),
                },
                arrival = wraps.next() => match arrival {
                    Some(Arrival::Event(event)) => self.take(&event).await?,
                    Some(Arrival::Connected(_)) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    /// The journal, and what is encrypted to us. Apart, since a relay that wants
    /// authentication answers a question that is in part for everybody without the
    /// rest, and would not come back to that.
    async fn subscribe(&self) -> Result<(Inbox, Inbox), SettleError> {
        let (me, exchange) = (self.shared.keys.public_key(), self.shared.exchange.key());
        let wraps = Filter::new().kind(Kind::GiftWrap).pubkey(me);
        let recent = Timestamp::now() - Duration::from_secs(self.shared.timing.agree * 2);
        let journal = Filter::new().author(exchange).kinds([kind::MATCH, kind::SETTLEMENT]);
        let journal = journal.pubkey(me).since(recent);
        let mailbox = &self.shared.mailbox;
        Ok((mailbox.subscribe(journal).await?, mailbox.subscribe(wraps).await?))
    }

    /// Asks the relays for messages once more while some are due: what comes in between
    /// two answers of a relay is told to whichever subscription it is told first.
    fn listen_again(&mut self) {
        let now = Instant::now();
        if now < self.ask_at || now > self.listening || !self.readers.is_empty() {
            return;
        }
        self.ask_at = now + ASK_AGAIN;
        for relay in self.shared.exchange.relays().to_vec() {
            self.read_stored(relay);
        }
    }

    /// Reads all wraps that a relay has: a subscription gives no more of them than fit
    /// in one answer, and those are not the newest, since wraps are dated at random.
    fn read_stored(&mut self, relay: RelayUrl) {
        debug!(%relay, "settling through");
        if self.trades.is_empty() {
            return;
        }
        let (shared, events) = (self.shared.clone(), self.stored.0.clone());
        self.readers.spawn(async move {
            let wraps = Filter::new().kind(Kind::GiftWrap).pubkey(shared.keys.public_key());
            match all_of(&shared.mailbox, &relay, &wraps).await {
                Ok(stored) => {
                    for wrap in stored.events {
                        let _ = events.send(wrap).await;
                    }
                }
                Err(error) => warn!(%relay, %error, "messages may be missed"),
            }
        });
    }

    /// True if a wrap was not opened before.
    fn is_new(&mut self, wrap: EventId) -> bool {
        let (known, order) = &mut self.opened;
        if !known.insert(wrap) {
            return false;
        }
        order.push_back(wrap);
        if order.len() > MAX_OPENED
            && let Some(oldest) = order.pop_front()
        {
            known.remove(&oldest);
        }
        true
    }

    async fn take(&mut self, event: &Event) -> Result<(), SettleError> {
        if event.kind == Kind::GiftWrap {
            if self.is_new(event.id)
                && let Some(incoming) = post::open(&self.shared.keys, event).await
            {
                self.hand_over(incoming);
            }
            return Ok(());
        }
        if event.pubkey != self.shared.exchange.key() {
            return Ok(());
        }
        if let Ok(settlement) = Settlement::decode(event) {
            info!(trade = %settlement.of, fate = ?settlement.fate, "the exchange attests");
            if settlement.fate == hashpit_nips::eh05::Fate::Completed {
                self.shared.progress.send_modify(|progress| progress.attested += 1);
            }
            return Ok(());
        }
        if let Ok(terms) = Match::decode(event) {
            self.begin(event, &terms).await?;
        }
        Ok(())
    }

    /// Takes up a match that was not seen before.
    async fn begin(&mut self, event: &Event, terms: &Match) -> Result<(), SettleError> {
        let me = self.shared.keys.public_key();
        let role = match (terms.seller().trader == me, terms.buyer().trader == me) {
            (true, false) => Role::Seller,
            (false, true) => Role::Buyer,
            _ => return Ok(()),
        };
        let wallet = &self.shared.wallet;
        if wallet.trade(event.id).await?.is_some() || wallet.ended_elsewhere(event.id).await? {
            return Ok(());
        }
        // A key that is no point of the curve can be signed for, and not encrypted to.
        if [terms.seller(), terms.buyer()].iter().any(|leg| leg.trader.xonly().is_err()) {
            warn!(trade = %event.id, "a match with a key that does not exist");
            return Ok(());
        }
        let now = self.shared.clock.now();
        if now >= Timing::of(terms.at, self.shared.timing.agree) {
            debug!(trade = %event.id, "a match of which nothing can come any more");
            return Ok(());
        }
        info!(trade = %event.id, ?role, lots = %terms.lots, "matched");
        let record = Record::new(event.clone(), role);
        let written = self.shared.wallet.save_trade(&record);
        self.shared.probe.around("write match", written).await?;
        self.start(record, Duration::ZERO);
        Ok(())
    }

    fn start(&mut self, record: Record, after: Duration) {
        let (of, (notes, inbox)) = (record.id(), mpsc::channel(QUEUE));
        let now = Instant::now();
        self.listening = now + Duration::from_secs(self.shared.timing.ehash);
        if self.ask_at < now {
            self.ask_at = now + ASK_AGAIN;
        }
        self.shared.open().insert(of, Open::of(&record));
        let trade = Trade::new(self.shared.clone(), record, inbox);
        self.tasks.spawn(async move {
            sleep(after).await;
            // One trade's panic must not end the others.
            let outcome = AssertUnwindSafe(trade.run()).catch_unwind().await;
            (of, outcome.unwrap_or(Err(SettleError::Panicked(of))))
        });
        self.trades.insert(of, notes);
        let (now, later) =
            std::mem::take(&mut self.early).into_iter().partition(|incoming| incoming.of == of);
        self.early = later;
        let now: VecDeque<Incoming> = now;
        now.into_iter().for_each(|incoming| self.hand_over(incoming));
        self.shared.progress.send_modify(|progress| progress.open = self.trades.len());
    }

    /// Gives a message to its trade. One that is flooded loses messages; whoever
    /// floods it is its counterparty.
    fn hand_over(&mut self, incoming: Incoming) {
        if incoming.from == self.shared.keys.public_key() {
            return;
        }
        match self.trades.get(&incoming.of) {
            Some(trade) => {
                if trade.try_send(Note::Message(incoming)).is_err() {
                    warn!("a trade does not keep up with its messages; one is lost");
                }
            }
            None => {
                if self.early.len() == MAX_EARLY {
                    self.early.pop_front();
                }
                self.early.push_back(incoming);
            }
        }
    }

    /// A trade's task has ended: the trade is over, or is begun again where what
    /// stood in its way may pass.
    async fn left(
        &mut self,
        of: EventId,
        outcome: Result<Record, SettleError>,
    ) -> Result<(), SettleError> {
        match outcome {
            Ok(record) => self.ended(&record),
            Err(error) if error.is_passing() => {
                warn!(trade = %of, %error, "a trade is begun again");
                if let Some(record) = self.shared.wallet.trade(of).await? {
                    // Its messages were with the task.
                    self.opened = Default::default();
                    self.start(record, AGAIN);
                    for relay in self.shared.exchange.relays().to_vec() {
                        self.read_stored(relay);
                    }
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn ended(&mut self, record: &Record) {
        self.trades.remove(&record.id());
        self.shared.open().remove(&record.id());
        let open = self.trades.len();
        let completed = matches!(record.stage, Stage::Over { end: End::Completed });
        self.shared.progress.send_modify(|progress| {
            progress.open = open;
            progress.completed += usize::from(completed);
            progress.failed += usize::from(!completed);
        });
    }

    async fn grant_wishes(&self) -> Result<(), SettleError> {
        let store = &self.shared.wallet.store;
        for key in store.kv_list(NAMESPACE, WISH_TABLE).await? {
            let told = store.kv_read(NAMESPACE, WISH_TABLE, &key).await?;
            let wish = told.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let of = EventId::from_hex(&key).ok();
            let trade = of.and_then(|of| self.trades.get(&of));
            let Some(trade) = trade else {
                // It is another settler's, or came too late.
                if self.is_over(of).await? {
                    store.kv_remove(NAMESPACE, WISH_TABLE, &key).await?;
                }
                continue;
            };
            if let Some(wish) = wish {
                let _ = trade.try_send(Note::Wish(wish));
            }
            store.kv_remove(NAMESPACE, WISH_TABLE, &key).await?;
        }
        Ok(())
    }
}

impl Desk {
    async fn is_over(&self, of: Option<EventId>) -> Result<bool, SettleError> {
        let Some(of) = of else { return Ok(true) };
        Ok(self.shared.wallet.trade(of).await?.is_none_or(|trade| trade.is_over()))
    }
}

impl Shared {
    /// Tells who watches that a trade has changed.
    pub(super) fn changed(&self, record: &Record) {
        let last = Some((record.id(), record.stage.clone()));
        self.progress.send_modify(|progress| progress.last = last);
        // Nobody may be looking.
        let _ = self.changes.send((record.id(), record.stage.clone()));
    }

    /// Notes an epoch in the wallet; false if its pool has shown another keyset for
    /// it before.
    pub(super) async fn learn(&self, epoch: &EpochKeyset) -> Result<bool, SettleError> {
        Ok(self.wallet.learn(epoch, Timestamp::now()).await?.is_some())
    }

    /// Whether a trade is within what the user risks.
    pub(super) fn within_limits(&self, record: &Record) -> Result<(), Lack> {
        let (limits, sats) = (&self.limits, record.sats());
        let beyond = |what: &str, limit: u64| {
            Lack::Reason(format!("the trade is of {sats} sats, {what} {limit} ([trade] limits)"))
        };
        if sats > Sats::new(limits.max_trade_sats) {
            return Err(beyond("more than", limits.max_trade_sats));
        }
        if sats < Sats::new(limits.min_trade_sats) {
            return Err(beyond("fewer than", limits.min_trade_sats));
        }
        // Of matches that come at one time the first are within a limit, not none.
        let mut open = self.open();
        let others = open.iter().filter(|(of, other)| {
            **of != record.id() && other.with == record.counterparty() && other.counts
        });
        let others = others.map(|(_, other)| other.sats).fold(0, u64::saturating_add);
        if others.saturating_add(sats.get()) > limits.max_counterparty_sats {
            return Err(beyond(
                "and with what is open with its trader more than",
                limits.max_counterparty_sats,
            ));
        }
        if let Some(this) = open.get_mut(&record.id()) {
            this.counts = true;
        }
        Ok(())
    }

    /// Whether no other trade of this wallet was on the same hash: one payment would
    /// count for both. What is asked for is new only once.
    pub(super) async fn is_new(&self, of: EventId, hash: [u8; 32]) -> Result<bool, SettleError> {
        {
            let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
            if hashes.insert(hash, of).is_some_and(|before| before != of) {
                return Ok(false);
            }
        }
        let trades = self.wallet.trades().await?;
        Ok(trades.iter().all(|trade| trade.id() == of || trade.hash() != Some(hash)))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<EventId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
