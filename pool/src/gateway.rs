//! The mint over Nostr (EH-07): requests that come through the relays go into
//! the same router that HTTP is served from, and the answers go back.
//!
//! An id of a key is carried out once while its answer is remembered; the wallet
//! repeats what is not answered and gets the same answer. What does not fit in
//! (too many at once) is dropped: the wallet asks again within a second or two,
//! so nothing is carried out that has waited long enough to be given up.

mod answers;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request as HttpRequest, header};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::eh07::{
    self, MAX_AGE_SECS, MAX_MESSAGE, MessageError, Method, Request, RequestId, Response,
};
use hashpit_nips::kind;
use nostr_sdk::secp256k1::rand::rngs::OsRng;
use nostr_sdk::{Event, Filter, Keys, PublicKey, Timestamp};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use crate::mint;
use answers::{Answers, Begun};

/// Requests under way at once, their answers' delivery included. The mint's
/// database works on one at a time anyway.
const UNDER_WAY: usize = 32;
/// Requests that a key may make at once, and then each second. A wallet that
/// restores or consolidates makes about ten a second.
const BURST: f64 = 60.0;
const RATE: f64 = 20.0;
/// A key that asks too often is told so at most this often.
const TELL: Duration = Duration::from_secs(1);
/// Keys whose rate is remembered; strangers could make any number.
const MAX_KEYS: usize = 10_000;
/// Blinded messages in one swap. Their signatures, with DLEQ proofs, are twice as
/// long, and have to fit into one event once the swap cannot be undone.
const MAX_OUTPUTS: usize = 150;
/// How long an answer may take to be stored by a relay. A relay that is silent
/// must not hold up the others' wallets; the answer is kept, and given again to
/// a wallet that asks again.
const DELIVER: Duration = Duration::from_secs(2);
/// How long requests under way may take to finish when the pool stops.
const DRAIN: Duration = Duration::from_secs(5);
/// What the mint may answer; far more than one event holds.
const MAX_BODY: usize = 1 << 20;

/// What wallets' requests to this mint match.
pub(crate) fn filter(pool: PublicKey) -> Filter {
    let since = Timestamp::now() - Duration::from_secs(MAX_AGE_SECS);
    Filter::new().kind(kind::MINT).pubkey(pool).since(since)
}

/// Answers requests until `shutdown`; those under way are finished first.
pub(crate) async fn serve(
    router: Router,
    keys: Keys,
    mailbox: Mailbox,
    mut inbox: Inbox,
    shutdown: CancellationToken,
) -> Result<(), Infallible> {
    let answers = Arc::new(Mutex::new(Answers::default()));
    let mut gateway = Gateway { router, keys, mailbox, answers, rates: HashMap::new() };
    let mut under_way = JoinSet::new();
    loop {
        let arrival = tokio::select! { biased;
            () = shutdown.cancelled() => break,
            Some(done) = under_way.join_next() => {
                done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                continue;
            }
            arrival = inbox.next() => arrival,
        };
        match arrival {
            Some(Arrival::Event(event)) if under_way.len() < UNDER_WAY => {
                if let Some(work) = gateway.admit(&event) {
                    under_way.spawn(work.run());
                }
            }
            Some(Arrival::Event(event)) => debug!(key = %event.pubkey, "busy; request dropped"),
            Some(Arrival::Connected(relay)) => debug!(%relay, "the mint listens"),
            None => break,
        }
    }
    let finish = async { while under_way.join_next().await.is_some() {} };
    // What is cut off here was asked by a wallet that asks again.
    let _ = timeout(DRAIN, finish).await;
    Ok(())
}

struct Gateway {
    router: Router,
    keys: Keys,
    mailbox: Mailbox,
    answers: Arc<Mutex<Answers>>,
    rates: HashMap<PublicKey, Rate>,
}

impl Gateway {
    /// What is to be done about an event.
    fn admit(&mut self, event: &Event) -> Option<Work> {
        let wallet = event.pubkey;
        let age = Timestamp::now().as_secs().saturating_sub(event.created_at.as_secs());
        if age > MAX_AGE_SECS {
            debug!(%wallet, age_secs = age, "request of another time dropped");
            return None;
        }
        let verdict = self.rate(wallet);
        if verdict == Verdict::Drop {
            return None;
        }
        let request = match eh07::open::<Request>(event, &self.keys) {
            Ok(request) => request,
            Err(error) => {
                // Without an id there is nothing that an answer could name.
                debug!(%wallet, event = %event.id, %error, "unreadable request dropped");
                return None;
            }
        };
        if verdict == Verdict::Tell {
            debug!(%wallet, "a key asks too often");
            let refusal = refusal(request.id, 429, "too many requests; ask again in a second");
            return Some(self.work(wallet, Task::Repeat(Arc::new(refusal))));
        }
        match self.answers().begin((wallet, request.id)) {
            Begun::Now => Some(self.work(wallet, Task::CarryOut(request))),
            Begun::Before => None,
            Begun::Answered(response) => Some(self.work(wallet, Task::Repeat(response))),
        }
    }

    fn work(&self, wallet: PublicKey, task: Task) -> Work {
        let (router, keys, mailbox) =
            (self.router.clone(), self.keys.clone(), self.mailbox.clone());
        Work { wallet, task, router, keys, mailbox, answers: self.answers.clone() }
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&mut self, wallet: PublicKey) -> Verdict {
        if self.rates.len() >= MAX_KEYS && !self.rates.contains_key(&wallet) {
            self.rates.clear();
        }
        self.rates.entry(wallet).or_insert_with(Rate::new).ask(Instant::now())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Tell,
    Drop,
}

/// A token bucket.
struct Rate {
    left: f64,
    at: Instant,
    told: Option<Instant>,
}

impl Rate {
    fn new() -> Self {
        Self { left: BURST, at: Instant::now(), told: None }
    }

    fn ask(&mut self, now: Instant) -> Verdict {
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * RATE).min(BURST);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Verdict::Pass;
        }
        if self.told.is_some_and(|told| now - told < TELL) {
            return Verdict::Drop;
        }
        self.told = Some(now);
        Verdict::Tell
    }
}

enum Task {
    CarryOut(Request),
    Repeat(Arc<Response>),
}

/// One request on its way to an answer.
struct Work {
    wallet: PublicKey,
    task: Task,
    router: Router,
    keys: Keys,
    mailbox: Mailbox,
    answers: Arc<Mutex<Answers>>,
}

impl Work {
    async fn run(self) {
        let response = match self.task {
            Task::Repeat(response) => response,
            Task::CarryOut(request) => {
                let id = request.id;
                let response = Arc::new(fitting(carry_out(self.router, request).await));
                let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.finish((self.wallet, id), response.clone());
                response
            }
        };
        if let Err(error) = deliver(&self.keys, &self.wallet, &response, &self.mailbox).await {
            debug!(wallet = %self.wallet, %error, "answer not delivered; the wallet asks again");
        }
    }
}

async fn deliver(
    keys: &Keys,
    wallet: &PublicKey,
    response: &Response,
    mailbox: &Mailbox,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let event = eh07::seal(response, keys, wallet, Timestamp::now(), &mut OsRng)?;
    Ok(timeout(DELIVER, mailbox.publish(&event)).await??)
}

/// A refusal by the gateway itself, in words, where the mint would give NUT-00's
/// object. Nothing was carried out.
fn refusal(id: RequestId, status: u16, reason: &str) -> Response {
    Response { id, status, body: Value::from(reason) }
}

/// Where a request goes in the mint's router, and its path below that mint's URL.
fn door(path: &str) -> (&'static str, &str) {
    match path.strip_prefix(mint::SATS_PATH) {
        Some(below) if below.starts_with('/') => (mint::SATS_PATH, below),
        _ => (mint::PATH, path),
    }
}

/// False for what wallets have no need of: ehash has neither quotes nor melts, sats
/// are paid for over the Internet anyway, and a socket cannot be carried.
fn may_pass(method: Method, path: &str) -> bool {
    match method {
        Method::Get => match path.strip_prefix("/v1/keys/") {
            Some(id) => id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            None => ["/v1/info", "/v1/keys", "/v1/keysets"].contains(&path),
        },
        Method::Post => ["/v1/swap", "/v1/checkstate", "/v1/restore"].contains(&path),
    }
}

async fn carry_out(router: Router, request: Request) -> Response {
    let Request { id, method, path, body } = request;
    let (mint, path) = door(&path);
    if !may_pass(method, path) {
        let reason =
            "not carried over Nostr: info, keys, keysets, swap, checkstate and restore are";
        return refusal(id, 404, reason);
    }
    let outputs = body.as_ref().and_then(|body| body["outputs"].as_array()).map_or(0, Vec::len);
    if outputs > MAX_OUTPUTS {
        let reason = format!("{outputs} outputs; ask for at most {MAX_OUTPUTS} at once");
        return refusal(id, 413, &reason);
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let http = HttpRequest::builder()
        .method(method.as_str())
        .uri(format!("{mint}{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    let Ok(http) = http else { return refusal(id, 400, "the path is no path of a URL") };
    let Ok(answer) = router.oneshot(http).await;
    let status = answer.status().as_u16();
    match to_bytes(answer.into_body(), MAX_BODY).await {
        Ok(bytes) => Response { id, status, body: json_or_words(&bytes) },
        Err(error) => refusal(id, 500, &error.to_string()),
    }
}

fn json_or_words(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// The response, or one that says that it is too long. Whoever swaps is kept from
/// that by [`MAX_OUTPUTS`]; what else is asked for changes nothing.
fn fitting(response: Response) -> Response {
    let length = serde_json::to_string(&response).map_or(usize::MAX, |json| json.len());
    if length <= MAX_MESSAGE {
        return response;
    }
    refusal(response.id, 413, &MessageError::TooLong(length).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_wallet_needs_passes() {
        let id = "01".repeat(33);
        for path in ["/v1/info", "/v1/keys", "/v1/keysets", &format!("/v1/keys/{id}")] {
            assert!(may_pass(Method::Get, path) && !may_pass(Method::Post, path), "{path}");
        }
        for path in ["/v1/swap", "/v1/checkstate", "/v1/restore"] {
            assert!(may_pass(Method::Post, path) && !may_pass(Method::Get, path), "{path}");
        }
        for path in ["", "/", "/v1/ws", "/v1/mint/quote/bolt11", "/v1/keys/../swap", "/v1/swap/"] {
            assert!(!may_pass(Method::Get, path) && !may_pass(Method::Post, path), "{path}");
        }
    }

    #[test]
    fn each_path_leads_to_one_mint() {
        for (path, at) in [
            ("/v1/info", (mint::PATH, "/v1/info")),
            ("/sat/v1/info", (mint::SATS_PATH, "/v1/info")),
            ("/sats/v1/info", (mint::PATH, "/sats/v1/info")),
            ("/sat", (mint::PATH, "/sat")),
            ("/ehash/v1/info", (mint::PATH, "/ehash/v1/info")),
        ] {
            assert_eq!(door(path), at, "{path}");
        }
        let (_, below) = door("/sat/v1/melt/bolt11");
        assert!(!may_pass(Method::Post, below));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_asks_too_often_is_told_now_and_then_and_recovers() {
        let mut rate = Rate::new();
        let now = Instant::now();
        let verdicts: Vec<_> = (0..100).map(|_| rate.ask(now)).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Pass).count(), 60);
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Tell).count(), 1);
        assert_eq!(rate.ask(now + Duration::from_secs(1)), Verdict::Pass);
    }

    #[test]
    fn what_does_not_fit_is_replaced_by_words() {
        let id = RequestId::new([1; 16]);
        let long = Response { id, status: 200, body: Value::from("x".repeat(MAX_MESSAGE)) };
        let answer = fitting(long);
        assert_eq!((answer.id, answer.status), (id, 413));
        assert!(answer.body.as_str().unwrap().contains("ask for less"));
        let short = Response { id, status: 200, body: Value::from("x") };
        assert_eq!(fitting(short.clone()), short);
    }
}
