//! The pool's side of EH-02: reads what miners write, and delivers batches and
//! answers through the relays.
//!
//! Nothing here is needed to keep the books: whatever is lost on the way, the
//! miner's wallet notices and asks for again, and an unacknowledged batch is
//! delivered again after a restart.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hashpit_mailbox::{Arrival, Inbox, Mailbox, MailboxError};
use hashpit_nips::eh02::{self, MAX_ACKS, MessageError, MinerMessage, PoolMessage};
use hashpit_nips::{EpochId, kind};
use nostr_sdk::{Event, EventId, Filter, PublicKey, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::announcement::Announcer;
use crate::ledger::{BlanksOutcome, Ledger, LedgerError};

/// Parcels that wait to be delivered. When full, issuing waits: what is not
/// issued stays credited.
pub(crate) const OUTBOX: usize = 256;
/// Parcels on their way to the relays at once.
const IN_FLIGHT: usize = 32;
/// Longest pause between attempts to deliver a parcel that must arrive.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A key gets an answer to `hello`, or a refusal, at most this often.
const ANSWER_INTERVAL: Duration = Duration::from_secs(1);
/// Keys whose last answer is remembered; strangers could make any number.
const MAX_REMEMBERED: usize = 10_000;
/// Batches sent for one `resend`.
const MAX_RESENT: u64 = 100;
/// How far back messages are read at a start. Whatever is older, its sender has
/// repeated or will.
const LOOK_BACK: Duration = Duration::from_secs(24 * 60 * 60);

/// Something to deliver through the relays.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A batch; tried until a relay has it.
    Batch { miner: PublicKey, batch: u64 },
    /// A public event; tried until a relay has it.
    Public(Box<Event>),
    /// An answer; tried once, since whoever asked asks again.
    Answer { to: PublicKey, message: PoolMessage },
}

/// What miners' messages to this pool match.
pub(crate) fn filter(pool: PublicKey) -> Filter {
    Filter::new().kind(kind::ISSUANCE).pubkey(pool).since(Timestamp::now() - LOOK_BACK)
}

/// Reads miners' messages until `shutdown`.
pub(crate) async fn receive(
    ledger: Ledger,
    announcer: Arc<Announcer>,
    mut inbox: Inbox,
    outbox: mpsc::Sender<Parcel>,
    shutdown: CancellationToken,
) -> Result<(), LedgerError> {
    let mut desk = Desk { ledger, announcer, outbox, answered: HashMap::new() };
    loop {
        let arrival = tokio::select! { biased;
            () = shutdown.cancelled() => return Ok(()),
            arrival = inbox.next() => arrival,
        };
        match arrival {
            Some(Arrival::Event(event)) => desk.read(&event).await?,
            Some(Arrival::Connected(relay)) => info!(%relay, "relay connected"),
            None => return Ok(()),
        }
    }
}

struct Desk {
    ledger: Ledger,
    announcer: Arc<Announcer>,
    outbox: mpsc::Sender<Parcel>,
    answered: HashMap<PublicKey, Instant>,
}

impl Desk {
    async fn read(&mut self, event: &Event) -> Result<(), LedgerError> {
        let miner = event.pubkey;
        match eh02::open::<MinerMessage>(event, self.announcer.keys()) {
            Ok(MinerMessage::Hello {}) => self.greet(miner, event.id).await,
            Ok(MinerMessage::Blanks { keyset, outputs }) => {
                match self.ledger.add_blanks(miner, keyset, outputs).await? {
                    BlanksOutcome::Held { held } => debug!(%miner, held, "blanks"),
                    BlanksOutcome::Refused(reason) => self.refuse(miner, event.id, reason).await,
                }
                Ok(())
            }
            Ok(MinerMessage::Ack { unit, mut batches }) => {
                batches.truncate(MAX_ACKS);
                if self.is_open(miner, event.id, unit).await {
                    self.ledger.ack(miner, batches).await?;
                }
                Ok(())
            }
            Ok(MinerMessage::Resend { unit, from }) => {
                if self.is_open(miner, event.id, unit).await && self.may_answer(miner) {
                    self.resend(miner, event.id, from).await?;
                }
                Ok(())
            }
            Err(MessageError::Json(error)) => {
                self.refuse(miner, event.id, format!("invalid: {error}; see EH-02")).await;
                Ok(())
            }
            Err(error) => {
                debug!(%miner, event = %event.id, %error, "unreadable message dropped");
                Ok(())
            }
        }
    }

    async fn greet(&mut self, miner: PublicKey, hello: EventId) -> Result<(), LedgerError> {
        if !self.may_answer(miner) {
            return Ok(());
        }
        let statement = self.ledger.statement(miner, hello).await?;
        let event = Box::new(self.announcer.epoch_keyset(&self.ledger));
        self.answer(miner, PoolMessage::Keyset { event }).await;
        self.answer(miner, PoolMessage::Statement(statement)).await;
        Ok(())
    }

    async fn resend(
        &mut self,
        miner: PublicKey,
        of: EventId,
        from: u64,
    ) -> Result<(), LedgerError> {
        let issued = self.ledger.statement(miner, of).await?.batches;
        for batch in (from..issued).take(MAX_RESENT as usize) {
            self.post(Parcel::Batch { miner, batch }).await;
        }
        Ok(())
    }

    async fn is_open(&mut self, miner: PublicKey, of: EventId, unit: EpochId) -> bool {
        let open = unit == self.ledger.epoch().id;
        if !open {
            let reason = format!("invalid: {unit} is not the open epoch; ask for it with hello");
            self.refuse(miner, of, reason).await;
        }
        open
    }

    async fn refuse(&mut self, miner: PublicKey, of: EventId, reason: String) {
        info!(%miner, event = %of, reason, "message refused");
        if self.may_answer(miner) {
            self.answer(miner, PoolMessage::Refused { of, reason }).await;
        }
    }

    async fn answer(&self, to: PublicKey, message: PoolMessage) {
        self.post(Parcel::Answer { to, message }).await;
    }

    async fn post(&self, parcel: Parcel) {
        // The outbox is gone only when everything stops.
        let _ = self.outbox.send(parcel).await;
    }

    fn may_answer(&mut self, miner: PublicKey) -> bool {
        let now = Instant::now();
        if self.answered.get(&miner).is_some_and(|last| now - *last < ANSWER_INTERVAL) {
            return false;
        }
        if self.answered.len() >= MAX_REMEMBERED {
            self.answered.clear();
        }
        self.answered.insert(miner, now);
        true
    }
}

/// Delivers parcels until `shutdown`; batches that are unacknowledged from
/// before the start go first.
pub(crate) async fn deliver(
    ledger: Ledger,
    mailbox: Mailbox,
    mut parcels: mpsc::Receiver<Parcel>,
    shutdown: CancellationToken,
) -> Result<(), LedgerError> {
    let mut unacked = ledger.unacked().await?;
    let mut under_way: JoinSet<Result<(), LedgerError>> = JoinSet::new();
    loop {
        let room = under_way.len() < IN_FLIGHT;
        let parcel = tokio::select! { biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(done) = under_way.join_next() => {
                done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
                continue;
            }
            () = std::future::ready(()), if room && !unacked.is_empty() => {
                unacked.pop().map(|(miner, batch)| Parcel::Batch { miner, batch })
            }
            parcel = parcels.recv(), if room => parcel,
        };
        let Some(parcel) = parcel else { return Ok(()) };
        under_way.spawn(carry(ledger.clone(), mailbox.clone(), parcel));
    }
}

async fn carry(ledger: Ledger, mailbox: Mailbox, parcel: Parcel) -> Result<(), LedgerError> {
    match parcel {
        Parcel::Answer { to, message } => {
            if let Err(error) = mailbox.send(&to, &message).await {
                debug!(miner = %to, %error, "answer not delivered; the miner will ask again");
            }
        }
        Parcel::Public(event) => {
            persist(|| mailbox.publish(&event)).await;
            debug!(kind = event.kind.as_u16(), "published");
        }
        Parcel::Batch { miner, batch } => {
            let Some(signatures) = ledger.batch(&miner, batch).await? else { return Ok(()) };
            let message = PoolMessage::Signatures(signatures);
            persist(|| mailbox.send(&miner, &message)).await;
            debug!(%miner, batch, "batch delivered");
        }
    }
    Ok(())
}

/// Repeats `attempt` until it succeeds.
async fn persist<T, F>(attempt: impl Fn() -> F)
where
    F: Future<Output = Result<T, MailboxError>>,
{
    let mut pause = Duration::from_secs(1);
    while let Err(error) = attempt().await {
        warn!(%error, retry_ms = pause.as_millis(), "not delivered yet");
        let jitter = rand::random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
