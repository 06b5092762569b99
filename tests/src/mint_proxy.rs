//! A way to a mint that somebody else holds: it passes on what it likes, alters
//! what it likes, and remembers all of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hashpit_nips::Millis;
use nostr_sdk::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is done with requests to one path.
#[derive(Clone)]
pub enum Trick {
    /// The mint never hears of it.
    Stop,
    /// The mint carries it out, and the answer is lost.
    Lose,
    /// The mint carries it out, and this is answered instead.
    Answer(&'static str),
    /// The mint's answer is altered.
    Edit(Arc<dyn Fn(String) -> String + Send + Sync>),
    /// The first so many are passed on; the mint never hears of the rest, which are
    /// refused as wrongly signed.
    RefuseAfter(usize),
}

/// A proxy before one mint.
pub struct MintProxy {
    /// Where it listens: `http://` and its address.
    pub url: String,
    ways: Arc<Ways>,
    _stop: DropGuard,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its path.
    pub path: String,
    /// When.
    pub at: Millis,
    /// Its body.
    pub body: String,
}

#[derive(Default)]
struct Ways {
    mint: OnceLock<SocketAddr>,
    tricks: Mutex<HashMap<&'static str, Trick>>,
    seen: Mutex<Vec<Seen>>,
}

impl MintProxy {
    /// Starts it; its mint may be named later.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (url, ways) = (format!("http://{}", listener.local_addr()?), Arc::<Ways>::default());
        let router = Router::new().fallback(pass).with_state(ways.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await },
        );
        Ok(Self { url, ways, _stop: stop.drop_guard() })
    }

    /// Names the mint behind it, by its URL.
    pub fn leads_to(&self, mint: &str) -> anyhow::Result<()> {
        let address = mint.trim_start_matches("http://").split('/').next().unwrap_or_default();
        // A second name would not be the first one's mint.
        self.ways.mint.set(address.parse()?).map_err(|_| anyhow::anyhow!("it leads elsewhere"))
    }

    /// Plays a trick on requests whose path ends so.
    pub fn play(&self, path: &'static str, trick: Trick) {
        lock(&self.ways.tricks).insert(path, trick);
    }

    /// Passes everything on from here.
    pub fn behave(&self) {
        lock(&self.ways.tricks).clear();
    }

    /// Has the mint carry a request out that it has never heard of.
    pub async fn pass_on(&self, seen: &Seen) -> anyhow::Result<()> {
        let mint = self.ways.mint.get().ok_or_else(|| anyhow::anyhow!("it leads nowhere"))?;
        let (status, answer) = ask(*mint, &Method::POST, &seen.path, seen.body.as_bytes()).await?;
        anyhow::ensure!(status.is_success(), "the mint refused: {answer}");
        Ok(())
    }

    /// Requests whose path ends so, in their order.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        lock(&self.ways.seen).iter().filter(|seen| seen.path.ends_with(path)).cloned().collect()
    }
}

async fn pass(State(ways): State<Arc<Ways>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let at = Millis::new(Timestamp::now().as_secs() * 1000);
    let seen = Seen { path: path.clone(), at, body: String::from_utf8_lossy(&body).into_owned() };
    let earlier = {
        let mut all = lock(&ways.seen);
        all.push(seen);
        all.iter().filter(|it| it.path == path).count() - 1
    };
    let trick =
        lock(&ways.tricks).iter().find(|(end, _)| path.ends_with(**end)).map(|it| it.1.clone());
    match &trick {
        Some(Trick::Stop) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Trick::RefuseAfter(most)) if earlier >= *most => {
            let why = r#"{"code":20008,"detail":"a signature is missing or wrong"}"#;
            return (StatusCode::BAD_REQUEST, json(), why).into_response();
        }
        _ => {}
    }
    let Some(mint) = ways.mint.get() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let Ok((status, answer)) = ask(*mint, &method, &path, &body).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    match trick {
        Some(Trick::Lose) => StatusCode::GATEWAY_TIMEOUT.into_response(),
        Some(Trick::Answer(instead)) => (json(), instead).into_response(),
        Some(Trick::Edit(edit)) => (status, json(), edit(answer)).into_response(),
        _ => (status, json(), answer).into_response(),
    }
}

fn json() -> [(header::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "application/json")]
}

async fn ask(
    mint: SocketAddr,
    method: &Method,
    path: &str,
    body: &[u8],
) -> anyhow::Result<(StatusCode, String)> {
    let mut stream = TcpStream::connect(mint).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {mint}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow::anyhow!("no head"))?;
    anyhow::ensure!(!head.to_lowercase().contains("chunked"), "in chunks, which is not read");
    let status = head.split(' ').nth(1).ok_or_else(|| anyhow::anyhow!("no status"))?;
    Ok((status.parse()?, body.to_owned()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
