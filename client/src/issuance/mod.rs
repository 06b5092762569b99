//! The miner's side of EH-02: sends blanks ahead, turns batches of blind
//! signatures into proofs, acknowledges them, and asks for what is missing.

mod keeper;

use std::collections::VecDeque;
use std::time::Duration;

use hashpit_mailbox::{Arrival, MESSAGE_LIFETIME, Mailbox, MailboxError};
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh02::{Batch, MAX_ACKS, MinerMessage, PoolMessage, Statement};
use hashpit_nips::{EpochId, HashUnits, kind};
use nostr_sdk::{Event, EventId, Filter, PublicKey, RelayUrl, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use keeper::{BatchId, Keeper};

use crate::backup::{Backup, BackupError};
use crate::wallet::{Applied, EpochState, KnownPool, NewBlanks, Wallet, WalletError};

/// Blanks that the pool should have. A batch uses as many as its amount has
/// bits, mostly under ten; restoring from the seed looks no further than 100
/// unused ones (NUT-13).
const BLANKS: usize = 64;
/// Top up when fewer are left.
const FEW_BLANKS: usize = 32;
/// How often to acknowledge, and to see whether something is missing.
const TICK: Duration = Duration::from_millis(500);
/// First and longest pause between two hellos that nobody answers.
const HELLO: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// What is asked for again may be on its way: wait this long first.
const GRACE: Duration = Duration::from_secs(3);
/// Messages of ours that an answer may refer to.
const MAX_SENT: usize = 64;
/// Clocks differ, and relays deliver out of order.
const OVERLAP: Duration = Duration::from_secs(10 * 60);

/// When claiming is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The pool owes nothing more; an error if that takes longer than this.
    Settled(Duration),
    /// Only at shutdown.
    Shutdown,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The open epoch, once the pool has named it.
    pub epoch: Option<EpochId>,
    /// Units that have arrived in this epoch.
    pub received: HashUnits,
    /// Batches that have arrived in this epoch, without a gap.
    pub batches: u64,
    /// The pool's latest statement.
    pub statement: Option<Statement>,
    /// True if all that has arrived is backed up, or no backup is wanted.
    pub safe: bool,
    /// When the hello that it answers was about to be sent.
    pub statement_asked_at: Option<Instant>,
}

/// Why claiming stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The relays.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// The backup's settings.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// It arrived, and is on too few relays.
    #[error("{received} ehash arrived and is in the wallet, but not backed up: {reason}")]
    NotBackedUp {
        /// Units that arrived in this epoch.
        received: HashUnits,
        /// What is wrong.
        reason: String,
    },
    /// Nothing was heard of the pool.
    #[error(
        "the pool has not answered in {0:?}; check its npub and relay, and whether it is running"
    )]
    Silence(Duration),
    /// The pool answered and still owes ehash.
    #[error("{received} ehash arrived in {waited:?} and more is due; run the same command again")]
    Unsettled {
        /// How long it was waited for.
        waited: Duration,
        /// Units that arrived in this epoch.
        received: HashUnits,
    },
}

/// Claims from `pool` through `relays`, and remembers both. If the wallet has
/// relays to back up to, a batch is acknowledged once a quorum holds its tokens.
pub async fn claim(
    wallet: &Wallet,
    pool: PublicKey,
    relays: &[RelayUrl],
    until: Until,
    progress: watch::Sender<Progress>,
    shutdown: CancellationToken,
) -> Result<Progress, ClaimError> {
    let known = wallet.pools().await?.into_iter().find(|known| known.pool == pool);
    let oldest = Timestamp::now() - MESSAGE_LIFETIME;
    let mut known = known.unwrap_or_else(|| KnownPool::new(pool, oldest));
    known.relays = relays.to_vec();
    wallet.remember(&known).await?;
    let settings = wallet.backup_settings().await?;
    let backup = match settings.relays.is_empty() {
        true => None,
        false => Some(Backup::connect(wallet, settings)?),
    };
    let mailbox = Mailbox::connect_as(wallet.signer(), wallet.public_key(), relays).await?;
    let claim = Claim {
        wallet,
        known,
        mailbox: mailbox.clone(),
        progress,
        epoch: None,
        acks: Vec::new(),
        keeper: Keeper::new(backup),
        sent: VecDeque::new(),
        hello_at: Instant::now(),
        hello_pause: HELLO.0,
        blanks_sent: None,
        statement_at: None,
        asked_again: None,
    };
    let outcome = claim.run(until, shutdown).await;
    mailbox.close().await;
    outcome
}

struct Claim<'a> {
    wallet: &'a Wallet,
    known: KnownPool,
    mailbox: Mailbox,
    progress: watch::Sender<Progress>,
    epoch: Option<EpochState>,
    /// Batches to acknowledge.
    acks: Vec<BatchId>,
    keeper: Keeper,
    /// Messages sent in this run: an answer to another is of another time.
    sent: VecDeque<(EventId, Instant)>,
    hello_at: Instant,
    hello_pause: Duration,
    blanks_sent: Option<Instant>,
    statement_at: Option<Instant>,
    asked_again: Option<Instant>,
}

impl Claim<'_> {
    async fn run(
        mut self,
        until: Until,
        shutdown: CancellationToken,
    ) -> Result<Progress, ClaimError> {
        let filter = Filter::new()
            .kind(kind::ISSUANCE)
            .author(self.known.pool)
            .pubkey(self.wallet.public_key())
            .since(self.known.read_until - OVERLAP);
        let mut inbox = self.mailbox.subscribe(filter).await?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        let outcome = loop {
            tokio::select! { biased;
                () = shutdown.cancelled() => break Ok(()),
                arrival = inbox.next() => match arrival {
                    Some(Arrival::Event(event)) => self.read(&event).await?,
                    Some(Arrival::Connected(_)) => {
                        self.hello_pause = HELLO.0;
                        self.hello().await;
                    }
                    None => break Ok(()),
                },
                safe = self.keeper.done() => self.acks.extend(safe),
                _ = tick.tick() => self.look_after().await?,
            }
            self.keeper.begin();
            self.note_safety();
            if let Until::Settled(patience) = until {
                if self.is_settled() {
                    break Ok(());
                }
                if begun.elapsed() > patience {
                    break Err(self.complaint(patience));
                }
            }
        };
        let safe = self.keeper.finish().await;
        self.acks.extend(safe);
        self.note_safety();
        self.acknowledge().await;
        self.wallet.remember(&self.known).await?;
        outcome.map(|()| self.progress.borrow().clone())
    }

    async fn read(&mut self, event: &Event) -> Result<(), ClaimError> {
        let message = match self.mailbox.open::<PoolMessage>(event).await {
            Ok(message) if event.pubkey == self.known.pool => message,
            Ok(_) => return Ok(()),
            Err(error) => {
                warn!(event = %event.id, %error, "unreadable message dropped");
                return Ok(());
            }
        };
        match message {
            PoolMessage::Keyset { event } => self.learn(&event).await?,
            PoolMessage::Signatures(batch) => self.apply(batch).await?,
            PoolMessage::Statement(statement) if self.sent_at(statement.of).is_some() => {
                self.compare(statement).await?;
            }
            PoolMessage::Refused { of, reason } if self.sent_at(of).is_some() => {
                warn!(event = %of, reason, "the pool refused a message of ours");
            }
            PoolMessage::Statement(Statement { of, .. }) | PoolMessage::Refused { of, .. } => {
                debug!(event = %of, "an answer to an earlier run");
            }
        }
        self.known.read_until = self.known.read_until.max(event.created_at);
        Ok(())
    }

    async fn learn(&mut self, event: &Event) -> Result<(), ClaimError> {
        let announced = match EpochKeyset::decode(event) {
            Ok(announced) if event.pubkey == self.known.pool && event.verify().is_ok() => announced,
            Ok(_) => return Ok(()),
            Err(error) => {
                warn!(%error, "the pool sent a keyset that does not hold together");
                return Ok(());
            }
        };
        let Some(epoch) = self.wallet.learn(&announced, event.created_at).await? else {
            warn!(
                unit = %announced.epoch,
                "the pool announced a second keyset for one epoch; no blanks are sent to it"
            );
            return Ok(());
        };
        self.adopt(epoch);
        self.top_up().await
    }

    async fn apply(&mut self, batch: Batch) -> Result<(), ClaimError> {
        let (unit, number) = (batch.unit, batch.batch);
        if self.wallet.epoch(unit).await?.is_none() {
            debug!(%unit, "signatures before their keyset; asking for it");
            self.hello().await;
            return Ok(());
        }
        match self.wallet.apply(batch).await {
            Ok(Applied::New(units)) => info!(batch = number, %units, "ehash received"),
            Ok(Applied::Known) => debug!(batch = number, "batch known already"),
            Ok(Applied::Deferred) => {
                debug!(batch = number, "restored; asking the pool where we stand");
                self.epoch = self.wallet.epoch(unit).await?;
                self.hello().await;
                return Ok(());
            }
            Err(WalletError::BadSignatures(why)) => {
                warn!(batch = number, why, "batch refused; it is not acknowledged");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.acks.extend(self.keeper.take((unit, number)));
        if let Some(epoch) = self.wallet.epoch(unit).await? {
            self.adopt(epoch);
        }
        self.top_up().await
    }

    async fn compare(&mut self, statement: Statement) -> Result<(), ClaimError> {
        self.statement_at = Some(Instant::now());
        self.hello_pause = HELLO.1;
        self.adopt_statement(&statement).await?;
        if let Some(epoch) = self.epoch.as_ref().filter(|epoch| epoch.unit == statement.unit) {
            if epoch.contradicts(&statement) {
                warn!(
                    received = %epoch.received,
                    issued = %statement.issued,
                    "the pool's statement differs from what it sent"
                );
            }
            let lacking = (statement.blanks as usize) < epoch.outstanding();
            if lacking && self.blanks_sent.is_none_or(|sent| sent.elapsed() > GRACE) {
                let unit = epoch.unit;
                if let Some(blanks) = self.wallet.outstanding_blanks(unit).await? {
                    self.send_blanks(blanks).await;
                }
            }
        }
        let asked_at = self.sent_at(statement.of);
        self.progress.send_modify(|progress| {
            progress.statement = Some(statement);
            progress.statement_asked_at = asked_at;
        });
        Ok(())
    }

    /// A restored wallet counts on from the first statement.
    async fn adopt_statement(&mut self, statement: &Statement) -> Result<(), ClaimError> {
        let Some(epoch) = &self.epoch else { return Ok(()) };
        if epoch.unit != statement.unit || !epoch.awaits_adoption() {
            return Ok(());
        }
        match self.wallet.adopt(statement).await {
            Ok(epoch) => {
                info!(received = %epoch.received, "restored; counting on from the pool's word");
                self.keeper.stir();
                self.adopt(epoch);
                self.top_up().await
            }
            Err(error @ (WalletError::Database(_) | WalletError::Directory { .. })) => {
                Err(error.into())
            }
            Err(error) => {
                warn!(%error, "the mint must say what it signed before; trying again");
                self.hello_pause = HELLO.0;
                Ok(())
            }
        }
    }

    /// Sends what has become due: acknowledgements, hellos, requests.
    async fn look_after(&mut self) -> Result<(), ClaimError> {
        self.acknowledge().await;
        // A restored wallet can do nothing with batches before it has a statement, and the
        // pool answers one question in a second.
        let restored = self.epoch.as_ref().is_some_and(EpochState::awaits_adoption);
        if !restored
            && self.is_missing_batches()
            && self.asked_again.is_none_or(|at| at.elapsed() > GRACE)
        {
            self.asked_again = Some(Instant::now());
            if let Some(EpochState { unit, next_batch, .. }) = self.epoch {
                debug!(from = next_batch, "asking for batches again");
                self.send(&MinerMessage::Resend { unit, from: next_batch }).await;
            }
        }
        if self.hello_at.elapsed() >= self.hello_pause {
            self.hello_pause = (self.hello_pause * 2).min(HELLO.1);
            self.hello().await;
            self.wallet.remember(&self.known).await?;
        }
        Ok(())
    }

    fn is_missing_batches(&self) -> bool {
        let progress = self.progress.borrow();
        let (Some(epoch), Some(statement)) = (&self.epoch, &progress.statement) else {
            return false;
        };
        let settled = self.statement_at.is_some_and(|at| at.elapsed() > GRACE);
        settled && epoch.unit == statement.unit && epoch.next_batch < statement.batches
    }

    fn is_settled(&self) -> bool {
        let progress = self.progress.borrow();
        let (Some(epoch), Some(statement)) = (&self.epoch, &progress.statement) else {
            return false;
        };
        epoch.unit == statement.unit && epoch.is_settled(statement) && self.keeper.is_idle()
    }

    fn note_safety(&self) {
        let safe = self.keeper.is_idle();
        self.progress
            .send_if_modified(|progress| std::mem::replace(&mut progress.safe, safe) != safe);
    }

    fn complaint(&self, waited: Duration) -> ClaimError {
        let progress = self.progress.borrow();
        if let Some(reason) = self.keeper.trouble() {
            let (received, reason) = (progress.received, reason.to_owned());
            return ClaimError::NotBackedUp { received, reason };
        }
        match progress.statement {
            None => ClaimError::Silence(waited),
            Some(_) => ClaimError::Unsettled { waited, received: progress.received },
        }
    }

    fn adopt(&mut self, epoch: EpochState) {
        // What has just arrived is not safe before it is backed up.
        let safe = self.keeper.is_idle();
        self.progress.send_modify(|progress| {
            progress.safe = safe;
            progress.epoch = Some(epoch.unit);
            progress.received = epoch.received;
            progress.batches = epoch.next_batch;
        });
        self.epoch = Some(epoch);
    }

    async fn top_up(&mut self) -> Result<(), ClaimError> {
        let Some(epoch) = &self.epoch else { return Ok(()) };
        if epoch.outstanding() >= FEW_BLANKS {
            return Ok(());
        }
        let unit = epoch.unit;
        if let Some(blanks) = self.wallet.new_blanks(unit, BLANKS).await? {
            self.send_blanks(blanks).await;
            self.epoch = self.wallet.epoch(unit).await?;
        }
        Ok(())
    }

    async fn send_blanks(&mut self, blanks: NewBlanks) {
        debug!(count = blanks.outputs.len(), "sending blanks");
        self.blanks_sent = Some(Instant::now());
        let NewBlanks { keyset, outputs } = blanks;
        self.send(&MinerMessage::Blanks { keyset, outputs }).await;
    }

    async fn acknowledge(&mut self) {
        let acks = std::mem::take(&mut self.acks);
        for same in acks.chunk_by(|a, b| a.0 == b.0) {
            for some in same.chunks(MAX_ACKS) {
                let batches = some.iter().map(|(_, number)| *number).collect();
                self.send(&MinerMessage::Ack { unit: some[0].0, batches }).await;
            }
        }
    }

    async fn hello(&mut self) {
        self.hello_at = Instant::now();
        self.send(&MinerMessage::Hello {}).await;
    }

    /// When a message of this run was about to be sent.
    fn sent_at(&self, id: EventId) -> Option<Instant> {
        self.sent.iter().find(|(sent, _)| *sent == id).map(|(_, at)| *at)
    }

    /// Every message can be lost without harm: the next hello finds out.
    async fn send(&mut self, message: &MinerMessage) {
        let begun = Instant::now();
        match self.mailbox.send(&self.known.pool, message).await {
            Ok(id) => {
                if self.sent.len() == MAX_SENT {
                    self.sent.pop_front();
                }
                self.sent.push_back((id, begun));
            }
            Err(MailboxError::Message(error)) => warn!(%error, "message not sent"),
            Err(error) => debug!(%error, "message not sent"),
        }
    }
}
