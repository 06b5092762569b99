//! Requests to one pool's mint through its relays (EH-07), each repeated with the
//! same id until it is answered.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashpit_mailbox::{Arrival, Inbox, Mailbox, MailboxError};
use hashpit_nips::eh07::{self, MessageError, Method, Request, RequestId, Response};
use hashpit_nips::kind;
use nostr_sdk::secp256k1::rand::rngs::OsRng;
use nostr_sdk::{Filter, Keys, PublicKey, RelayUrl, Timestamp};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

/// How long a request is repeated.
const DEADLINE: Duration = Duration::from_secs(30);
/// First and longest pause before a request is repeated. An answer takes some
/// milliseconds; one that was sent before the relay knew our key is lost.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long the first connection may take before a request is tried anyway.
const CONNECT: Duration = Duration::from_secs(5);
/// Answers to one request that wait to be read; more than one comes of repeating.
const ANSWERS: usize = 4;
/// The pool asks for patience: not carried out, ask again.
const BUSY: [u16; 2] = [429, 503];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Nothing was heard in time. It may have been carried out.
    #[error("no answer over Nostr in {0:?}; is the pool running, and does it read these relays?")]
    Silence(Duration),
    /// The request cannot be sent.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A connection to one pool's mint, under a key of its own that says nothing of
/// whose wallet it is. Cheap to clone; closed with the last clone.
#[derive(Clone)]
pub struct Line(Arc<Inner>);

struct Inner {
    pool: PublicKey,
    keys: Keys,
    mailbox: Mailbox,
    waiting: Waiting,
    connected: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

type Waiting = Arc<Mutex<HashMap<RequestId, mpsc::Sender<Response>>>>;

impl Line {
    /// Begins to connect; does not wait.
    pub async fn open(pool: PublicKey, relays: &[RelayUrl]) -> Result<Self, MailboxError> {
        let keys = Keys::generate();
        let filter = Filter::new().kind(kind::MINT).author(pool).pubkey(keys.public_key());
        let mailbox = Mailbox::connect(keys.clone(), relays).await?;
        let inbox = mailbox.subscribe(filter).await?;
        let waiting = Waiting::default();
        let (connecting, connected) = watch::channel(false);
        let reader = tokio::spawn(read(inbox, pool, keys.clone(), waiting.clone(), connecting));
        Ok(Self(Arc::new(Inner { pool, keys, mailbox, waiting, connected, reader })))
    }

    /// Asks until there is an answer; the pool carries it out once.
    pub async fn request(
        &self,
        method: Method,
        path: String,
        body: Option<Value>,
    ) -> Result<Response, LineError> {
        let request = Request { id: RequestId::new(rand::random()), method, path, body };
        let (sender, mut answers) = mpsc::channel(ANSWERS);
        lock(&self.0.waiting).insert(request.id, sender);
        let _forget = Forget(&self.0.waiting, request.id);
        let deadline = Instant::now() + DEADLINE;
        // Sooner than this nobody would hear.
        let mut connected = self.0.connected.clone();
        let _ = timeout(CONNECT, connected.wait_for(|connected| *connected)).await;
        let mut pause = PAUSE.0;
        while Instant::now() < deadline {
            let again = Instant::now() + pause;
            let asking = async {
                self.publish(&request, again).await?;
                sleep_until(again).await;
                Ok::<_, LineError>(())
            };
            tokio::select! { biased;
                Some(answer) = answers.recv() => {
                    if !BUSY.contains(&answer.status) {
                        return Ok(answer);
                    }
                    sleep_until(again).await;
                }
                asked = asking => asked?,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        Err(LineError::Silence(DEADLINE))
    }

    /// Publishes once; only what repeating cannot mend is an error.
    async fn publish(&self, request: &Request, until: Instant) -> Result<(), LineError> {
        let Inner { pool, keys, mailbox, .. } = &*self.0;
        let event = eh07::seal(request, keys, pool, Timestamp::now(), &mut OsRng)?;
        // A relay that says nothing to ephemeral events may have carried it.
        if let Ok(Err(error)) = timeout_at(until, mailbox.publish(&event)).await {
            debug!(%error, "request not published; trying again");
        }
        Ok(())
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("pool", &self.0.pool).finish_non_exhaustive()
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
struct Forget<'a>(&'a Waiting, RequestId);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<RequestId, mpsc::Sender<Response>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(
    mut inbox: Inbox,
    pool: PublicKey,
    keys: Keys,
    waiting: Waiting,
    connected: watch::Sender<bool>,
) {
    while let Some(arrival) = inbox.next().await {
        let event = match arrival {
            Arrival::Connected(_) => {
                connected.send_replace(true);
                continue;
            }
            Arrival::Event(event) if event.pubkey == pool => event,
            Arrival::Event(_) => continue,
        };
        match eh07::open::<Response>(&event, &keys) {
            Ok(response) => {
                let asker = lock(&waiting).get(&response.id).cloned();
                // One that is not waited for, or not read, was answered before.
                let _ = asker.map(|asker| asker.try_send(response));
            }
            Err(error) => warn!(event = %event.id, %error, "unreadable answer dropped"),
        }
    }
}
