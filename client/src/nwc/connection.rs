//! One connection: requests, each with its answer, and what the wallet tells
//! unasked.
//!
//! Requests and answers are ephemeral events: one that is sent while the other
//! side is away is lost. So questions are asked again, and commands are not: a
//! wallet that got one twice might answer the second with a failure.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashpit_mailbox::{Arrival, Delivery, Inbox, Mailbox};
use nostr_sdk::nips::nip44;
use nostr_sdk::{
    Event, EventBuilder, EventId, Filter, Keys, Kind, PublicKey, Tag, TagKind, Timestamp,
};
use serde_json::Value;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::message::{Answer, Method, Notice, Request};
use super::{NwcError, NwcUri, unknown, unreadable};

const INFO: u16 = 13194;
const REQUEST: u16 = 23194;
const RESPONSE: u16 = 23195;
const NOTIFICATION: u16 = 23197;
const ENCRYPTION: &str = "nip44_v2";

/// How long relays may take to connect, and again to tell of the wallet.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request is worth carrying out; a wallet that hears of it later has to
/// leave it.
const WORTH: Duration = Duration::from_secs(60);
/// How long one question waits before it is asked again.
const QUESTION: Duration = Duration::from_secs(10);
/// How far the wallet's clock may be behind ours.
const SKEW: Duration = Duration::from_secs(600);
/// Notices that wait to be read. A reader that falls further behind is told so.
const NOTICES: usize = 256;

/// Cheap to clone; closed with the last clone.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    wallet: PublicKey,
    keys: Keys,
    mailbox: Mailbox,
    waiting: Waiting,
    /// Never read: others begin where it is made. The reader alone sends, so that
    /// they end with it.
    notices: broadcast::Receiver<Notice>,
    reader: JoinHandle<()>,
}

/// Who waits for the answer to which request; what they get is decrypted.
type Waiting = Arc<Mutex<HashMap<EventId, oneshot::Sender<Result<String, String>>>>>;

/// Why a request has no result.
enum Failure {
    /// It was not sent, or the wallet says that it did nothing.
    Not(NwcError),
    /// Nothing was heard of it.
    Silence,
    /// The answer leaves open what was done.
    Vague(String),
}

impl Connection {
    pub(super) async fn open(uri: &NwcUri) -> Result<Self, NwcError> {
        let (wallet, keys) = (uri.wallet(), uri.keys());
        let mailbox = Mailbox::connect(keys.clone(), uri.relays()).await?;
        let inbox = match subscribe(&mailbox, wallet).await {
            Ok(inbox) => inbox,
            Err(error) => {
                mailbox.close().await;
                return Err(error);
            }
        };
        let waiting = Waiting::default();
        let (telling, notices) = broadcast::channel(NOTICES);
        let reader =
            Reader { wallet, keys: keys.clone(), waiting: waiting.clone(), notices: telling };
        let reader = tokio::spawn(reader.run(inbox));
        Ok(Self(Arc::new(Inner { wallet, keys, mailbox, waiting, notices, reader })))
    }

    /// Asks what may be asked any number of times, until it is answered.
    pub(super) async fn question(
        &self,
        method: Method,
        params: Value,
        patience: Duration,
    ) -> Result<Value, NwcError> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + QUESTION);
            match self.ask(method, &params, until).await {
                Ok(result) => return Ok(result),
                Err(Failure::Not(error)) => return Err(error),
                Err(Failure::Vague(reason)) => return Err(unreadable(method, reason)),
                Err(Failure::Silence) => debug!(%method, "no answer; asking again"),
            }
        }
        Err(NwcError::NoAnswer { method, waited: patience })
    }

    /// Has something done, once.
    pub(super) async fn command(
        &self,
        method: Method,
        params: Value,
        patience: Duration,
    ) -> Result<Value, NwcError> {
        self.ask(method, &params, Instant::now() + patience).await.map_err(
            |failure| match failure {
                Failure::Not(error) => error,
                Failure::Silence => unknown(method, format!("no answer in {patience:?}")),
                Failure::Vague(reason) => unknown(method, reason),
            },
        )
    }

    async fn ask(&self, method: Method, params: &Value, until: Instant) -> Result<Value, Failure> {
        let mailbox = &self.0.mailbox;
        if mailbox.reached().await.is_empty() && mailbox.connected(CONNECT).await == 0 {
            return Err(Failure::Not(NwcError::Unreachable));
        }
        let request = self.request(method, params).map_err(Failure::Not)?;
        let (sender, answer) = oneshot::channel();
        lock(&self.0.waiting).insert(request.id, sender);
        let _forget = Forget(&self.0.waiting, request.id);
        let answer = timeout_at(until, async {
            let mut answer = answer;
            // An answer may come before the relay says that it took the request.
            tokio::select! { biased;
                answer = &mut answer => return Ok(answer),
                delivered = self.deliver(&request) => delivered?,
            }
            Ok(answer.await)
        });
        match answer.await {
            Err(_) => Err(Failure::Silence),
            Ok(Err(error)) => Err(Failure::Not(error)),
            Ok(Ok(Err(_))) => Err(Failure::Vague("the connection was closed".to_owned())),
            Ok(Ok(Ok(plain))) => read_answer(method, plain.map_err(Failure::Vague)?),
        }
    }

    fn request(&self, method: Method, params: &Value) -> Result<Event, NwcError> {
        let Inner { wallet, keys, .. } = &*self.0;
        let request = Request { method, params: params.clone() };
        let plain = serde_json::to_string(&request).expect("names and numbers are JSON");
        let sealed = nip44::encrypt(keys.secret_key(), wallet, plain, nip44::Version::V2);
        let cannot = |error: String| unreadable(method, format!("not asked: {error}"));
        EventBuilder::new(Kind::from(REQUEST), sealed.map_err(|error| cannot(error.to_string()))?)
            .tag(Tag::public_key(*wallet))
            .tag(Tag::custom(TagKind::custom("encryption"), [ENCRYPTION]))
            .tag(Tag::expiration(Timestamp::now() + WORTH))
            .sign_with_keys(keys)
            .map_err(|error| cannot(error.to_string()))
    }

    /// Errors only if it is certain that no relay has it.
    async fn deliver(&self, request: &Event) -> Result<(), NwcError> {
        let deliveries = self.0.mailbox.deliver(request).await?;
        let mut refusals = Vec::new();
        for (relay, delivery) in deliveries {
            match delivery {
                Delivery::Refused(why) => refusals.push(format!("{relay}: {why}")),
                Delivery::Stored | Delivery::Unanswered(_) => return Ok(()),
            }
        }
        Err(NwcError::NotTaken(refusals.join("; ")))
    }

    pub(super) fn notifications(&self) -> Notifications {
        Notifications(self.0.notices.resubscribe())
    }

    pub(super) async fn close(&self) {
        self.0.mailbox.close().await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("wallet", &self.0.wallet).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
        let mailbox = self.mailbox.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { mailbox.close().await });
        }
    }
}

/// Takes a request off the list, however it ends.
struct Forget<'a>(&'a Waiting, EventId);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

type Waiters = HashMap<EventId, oneshot::Sender<Result<String, String>>>;

fn lock(waiting: &Waiting) -> MutexGuard<'_, Waiters> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the wallet sends to us, from now on; and that the relays know it, and that
/// it has encryption to be trusted. A relay that answers the latter has read the
/// former.
async fn subscribe(mailbox: &Mailbox, wallet: PublicKey) -> Result<Inbox, NwcError> {
    if mailbox.connected(CONNECT).await == 0 {
        return Err(NwcError::Unreachable);
    }
    let to_us = Filter::new()
        .kinds([RESPONSE, NOTIFICATION].map(Kind::from))
        .author(wallet)
        .pubkey(mailbox.public_key())
        .since(Timestamp::now() - SKEW);
    let inbox = mailbox.subscribe(to_us).await?;
    let filter = Filter::new().kind(Kind::from(INFO)).author(wallet);
    let (events, told) = mailbox.fetch(filter, CONNECT).await?;
    let Some(info) = events.iter().max_by_key(|event| event.created_at) else {
        return Err(if told == 0 { NwcError::Unreachable } else { NwcError::NoWallet });
    };
    // Without the tag it has NIP-04 alone.
    let schemes = info.tags.find(TagKind::custom("encryption")).and_then(Tag::content);
    // The NIP separates them by spaces; some wallets use commas or several values.
    let has_it = schemes.is_some_and(|them| them.split([' ', ',']).any(|it| it == ENCRYPTION));
    if has_it { Ok(inbox) } else { Err(NwcError::Nip04Only) }
}

fn read_answer(method: Method, plain: String) -> Result<Value, Failure> {
    let answer: Answer =
        serde_json::from_str(&plain).map_err(|error| Failure::Vague(error.to_string()))?;
    if answer.result_type != method.name() {
        return Err(Failure::Vague(format!("it is one to {:?}", answer.result_type)));
    }
    let Some(complaint) = answer.error else {
        return answer.result.ok_or_else(|| Failure::Vague("it says nothing".to_owned()));
    };
    let (code, message) = (complaint.code, complaint.message);
    if code.is_certain() {
        return Err(Failure::Not(NwcError::Refused { method, code, message }));
    }
    Err(Failure::Vague(format!("{code}: {message}")))
}

/// What a wallet tells unasked.
#[derive(Debug)]
pub struct Notifications(broadcast::Receiver<Notice>);

impl Notifications {
    /// The next notice; `None` once the connection is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.0.recv().await {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Notice::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Reads what comes in, until the mailbox is closed.
struct Reader {
    wallet: PublicKey,
    keys: Keys,
    waiting: Waiting,
    notices: broadcast::Sender<Notice>,
}

impl Reader {
    async fn run(self, mut inbox: Inbox) {
        while let Some(arrival) = inbox.next().await {
            if inbox.take_missed() > 0 {
                self.tell(Notice::Missed);
            }
            match arrival {
                // What was told while the connection was down is lost.
                Arrival::Connected(_) => self.tell(Notice::Missed),
                Arrival::Event(event) if event.pubkey == self.wallet => self.take(&event),
                Arrival::Event(_) => {}
            }
        }
        lock(&self.waiting).clear();
    }

    fn take(&self, event: &Event) {
        match event.kind.as_u16() {
            RESPONSE => self.answer(event),
            NOTIFICATION => match self.open(event).and_then(|plain| Notice::read(&plain)) {
                Ok(notice) => notice.into_iter().for_each(|notice| self.tell(notice)),
                Err(error) => warn!(event = %event.id, %error, "unreadable notification dropped"),
            },
            _ => {}
        }
    }

    /// An answer that is not waited for is one that came twice, or too late.
    fn answer(&self, event: &Event) {
        let Some(request) = event.tags.event_ids().next() else { return };
        let Some(asker) = lock(&self.waiting).remove(request) else { return };
        // It may have given up meanwhile.
        let _ = asker.send(self.open(event));
    }

    fn open(&self, event: &Event) -> Result<String, String> {
        nip44::decrypt(self.keys.secret_key(), &event.pubkey, &event.content)
            .map_err(|error| format!("it cannot be decrypted: {error}"))
    }

    fn tell(&self, notice: Notice) {
        // Nobody may be listening.
        let _ = self.notices.send(notice);
    }
}
