//! The HTTP face of the relay: upgrades, the NIP-11 document, a word for
//! browsers, and `/health`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::authentication::host_of;
use crate::config::Config;
use crate::message::MAX_SUBSCRIPTION_ID_CHARS;
use crate::session::{Session, Shared};

/// NIPs that this relay serves. 17 and 59: gift wraps go to their recipients only.
const SUPPORTED_NIPS: [u16; 8] = [1, 9, 11, 17, 40, 42, 59, 70];
const NIP_11: &str = "application/nostr+json";
/// tungstenite zero-fills its read buffer on each read, so keep it small.
const READ_BUFFER: usize = 16 * 1024;
const WRITE_BUFFER: usize = 64 * 1024;
/// NIP-11: browsers of any origin may read the document.
const CORS: [(&str, &str); 3] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-headers", "*"),
    ("access-control-allow-methods", "GET, OPTIONS"),
];

#[derive(Clone)]
struct App {
    /// Weak, so that a client in the middle of a request holds nothing open when
    /// the relay stops.
    shared: Weak<Shared>,
    sessions: TaskTracker,
    last_session: Arc<AtomicU64>,
}

/// The relay's routes; their sessions are counted by `sessions`.
pub(crate) fn router(shared: &Arc<Shared>, sessions: TaskTracker) -> Router {
    let app = App { shared: Arc::downgrade(shared), sessions, last_session: Arc::default() };
    Router::new()
        .route("/", get(root).options(|| async { (CORS, StatusCode::NO_CONTENT) }))
        .route("/health", get(|| async { "ok" }))
        .with_state(app)
}

async fn root(
    State(app): State<App>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Some(shared) = app.shared.upgrade() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    if let Ok(upgrade) = upgrade {
        return connect(&app, shared, &headers, upgrade);
    }
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accepts.is_some_and(|accept| accept.contains(NIP_11)) {
        let document = document(&shared.config).to_string();
        return (CORS, [(header::CONTENT_TYPE, NIP_11)], document).into_response();
    }
    let config = &shared.config;
    let text = format!(
        "{}\n\n{}\n\nThis is a Nostr relay: connect to it with a Nostr client.\n",
        config.name, config.description
    );
    (CORS, text).into_response()
}

fn connect(
    app: &App,
    shared: Arc<Shared>,
    headers: &HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let id = app.last_session.fetch_add(1, Ordering::Relaxed) + 1;
    let max_message = shared.config.limits.max_message_bytes;
    let host = relay_host(&shared.config, headers);
    // Held by the session: stopping waits for it.
    let token = app.sessions.token();
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(max_message)
        .max_frame_size(max_message)
        .on_upgrade(move |socket| async move {
            Session::open(id, shared, socket, host).await.run().await;
            drop(token);
        })
}

/// The host that an answer to our challenge must name (NIP-42).
fn relay_host(config: &Config, headers: &HeaderMap) -> Option<String> {
    match &config.url {
        Some(url) => host_of(url),
        None => host_of(headers.get(header::HOST)?.to_str().ok()?),
    }
}

/// The NIP-11 document.
fn document(config: &Config) -> Value {
    let limits = &config.limits;
    let mut document = json!({
        "name": config.name,
        "description": config.description,
        "supported_nips": SUPPORTED_NIPS,
        "software": "hashpit",
        "version": env!("CARGO_PKG_VERSION"),
        "limitation": {
            "max_message_length": limits.max_message_bytes,
            "max_subscriptions": limits.max_subscriptions,
            "max_limit": limits.max_limit,
            "default_limit": limits.default_limit,
            "max_subid_length": MAX_SUBSCRIPTION_ID_CHARS,
            "max_event_tags": limits.max_event_tags,
            "max_content_length": limits.max_content_bytes,
            "min_pow_difficulty": 0,
            "auth_required": false,
            "payment_required": false,
            "restricted_writes": false,
            "created_at_upper_limit": limits.max_future_seconds,
        },
    });
    for (name, value) in [("contact", &config.contact), ("pubkey", &config.pubkey)] {
        if let Some(value) = value {
            document[name] = value.as_str().into();
        }
    }
    document
}
