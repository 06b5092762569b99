//! The mint's two doors: one URL for ehash and one for sats.
//!
//! Some wallets lose sight of every keyset at a URL that has one unit they do not
//! know; so each door shows the keysets and methods of its own units, as if there
//! were no others. Behind them is one mint, with one database.
//!
//! What is asked at the wrong door:
//!
//! | | |
//! |---|---|
//! | `keys/{id}` | 404, with NUT-00's error object |
//! | inputs or outputs of a keyset (`swap`, `restore`, `mint`, `melt`) | refused before the mint sees it |
//! | `checkstate`, `ws` | answered: both ask by a point or a quote id, which belong to no door, and change nothing |
//!
//! The ehash door has no `mint` and no `melt` at all; at the other, the mint itself
//! refuses too what is of two units. So ehash cannot be melted.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use cdk::Mint;
use cdk::error::{ErrorCode, ErrorResponse};
use cdk::nuts::{CurrencyUnit, Id, KeysResponse, KeysetResponse, MintInfo, PaymentMethod};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MintError, PATH, SATS_PATH, sats};

/// Bytes of a request; axum's own limit.
const MAX_REQUEST: usize = 2 << 20;
/// Bytes of an answer that is filtered: a keyset takes 4 kB in `keys`, and 200
/// bytes in `keysets`, where every epoch stays.
const MAX_ANSWER: usize = 64 << 20;

/// NUT-00's code where none fits, as cdk gives it.
const UNKNOWN: ErrorCode = ErrorCode::Unknown(50_000);

/// The mint's HTTP interface, below [`PATH`] and, if it issues sats,
/// [`SATS_PATH`]. `base` is the URL that both are below.
pub async fn router(
    mint: Arc<Mint>,
    base: &str,
    config: &sats::Config,
) -> Result<Router, MintError> {
    let mut router = Router::new();
    let ehash = Door { mint: mint.clone(), base: base.to_owned(), side: Side::Ehash };
    router = router.nest(PATH, ehash.router(Vec::new()).await?);
    if config.issues() {
        let side = Side::Sats { simulation: config.is_simulation() };
        let sats = Door { mint, base: base.to_owned(), side };
        let methods = vec![PaymentMethod::BOLT11.to_string()];
        router = router.nest(SATS_PATH, sats.router(methods).await?);
    }
    Ok(router.layer(middleware::from_fn(to_the_end)))
}

/// Carries a request out even if its client has gone: a swap that was dropped
/// between its two transactions would leave its proofs pending until the mint
/// starts again.
async fn to_the_end(request: Request, next: Next) -> Response {
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ehash,
    Sats { simulation: bool },
}

impl Side {
    fn path(self) -> &'static str {
        match self {
            Self::Ehash => PATH,
            Self::Sats { .. } => SATS_PATH,
        }
    }

    /// Whether tokens of `unit` are dealt with here.
    fn is_of(self, unit: &CurrencyUnit) -> bool {
        (*unit == CurrencyUnit::Sat) == (self != Self::Ehash)
    }

    /// The mint's info, as if it had only this door.
    fn describe(self, base: &str, info: &mut MintInfo) {
        info.urls = Some(vec![format!("{base}{}", self.path())]);
        let nuts = &mut info.nuts;
        nuts.nut04.methods.retain(|method| self.is_of(&method.unit));
        nuts.nut04.disabled = nuts.nut04.methods.is_empty();
        nuts.nut05.methods.retain(|method| self.is_of(&method.unit));
        nuts.nut05.disabled = nuts.nut05.methods.is_empty();
        nuts.nut15.methods.retain(|method| self.is_of(&method.unit));
        nuts.nut17.supported.retain(|method| self.is_of(&method.unit));
        if self == (Self::Sats { simulation: true }) {
            let name = info.name.take().unwrap_or_default();
            info.name = Some(format!("{name} (SIMULATION)"));
            let what = "Simulated sats: nobody pays for them and nobody is paid. Worth nothing.";
            info.description = Some(what.to_owned());
            info.motd = Some(what.to_owned());
        }
    }
}

#[derive(Clone)]
struct Door {
    mint: Arc<Mint>,
    base: String,
    side: Side,
}

impl Door {
    async fn router(self, methods: Vec<String>) -> Result<Router, MintError> {
        let api = cdk_axum::create_mint_router(self.mint.clone(), methods)
            .await
            .map_err(|error| MintError::Router(error.to_string()))?;
        Ok(api.layer(middleware::from_fn_with_state(self, keep_apart)))
    }

    /// A keyset that the mint has, behind the other door.
    fn elsewhere(&self, ids: &BTreeSet<Id>) -> Option<Id> {
        let stranger = |id: &&Id| {
            let keyset = self.mint.get_keyset_info(id);
            keyset.is_some_and(|keyset| !self.side.is_of(&keyset.unit))
        };
        ids.iter().find(stranger).copied()
    }

    /// Lets a request through whose keysets are this door's.
    async fn admit(&self, request: Request) -> Result<Request, Response> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, MAX_REQUEST).await.map_err(|_| {
            let reason = format!("the request is longer than {MAX_REQUEST} bytes; ask for less");
            refusal(StatusCode::PAYLOAD_TOO_LARGE, UNKNOWN, reason)
        })?;
        let named: Named = serde_json::from_slice(&body).map_err(|error| {
            let status = if error.is_data() {
                StatusCode::UNPROCESSABLE_ENTITY
            } else {
                StatusCode::BAD_REQUEST
            };
            refusal(status, UNKNOWN, format!("no request that this mint knows: {error}"))
        })?;
        match self.elsewhere(&named.keysets()) {
            Some(id) => Err(self.not_here(StatusCode::BAD_REQUEST, id)),
            None => Ok(Request::from_parts(parts, Body::from(body))),
        }
    }

    fn not_here(&self, status: StatusCode, id: Id) -> Response {
        let other = if self.side == Side::Ehash { SATS_PATH } else { PATH };
        let reason = format!("keyset {id} is not of this mint; ask at {}{other}", self.base);
        refusal(status, ErrorCode::KeysetNotFound, reason)
    }
}

/// The keysets that a request names (NUT-03, 04, 05, 08, 09).
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    inputs: Option<Vec<OfKeyset>>,
    #[serde(default)]
    outputs: Option<Vec<OfKeyset>>,
}

/// A proof or a blinded message.
#[derive(Deserialize)]
struct OfKeyset {
    id: Id,
}

impl Named {
    fn keysets(&self) -> BTreeSet<Id> {
        self.inputs.iter().chain(&self.outputs).flatten().map(|one| one.id).collect()
    }
}

/// What a door adds to the mint's own interface.
async fn keep_apart(State(door): State<Door>, request: Request, next: Next) -> Response {
    let side = door.side;
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/info") => {
            let base = &door.base;
            rewrite(next.run(request).await, |info| side.describe(base, info)).await
        }
        (&Method::GET, "/v1/keysets") => {
            rewrite(next.run(request).await, |all: &mut KeysetResponse| {
                all.keysets.retain(|keyset| side.is_of(&keyset.unit));
            })
            .await
        }
        (&Method::GET, "/v1/keys") => {
            rewrite(next.run(request).await, |all: &mut KeysResponse| {
                all.keysets.retain(|keyset| side.is_of(&keyset.unit));
            })
            .await
        }
        (&Method::GET, path) if path.starts_with("/v1/keys/") => {
            let id = path.trim_start_matches("/v1/keys/").parse::<Id>();
            match id.ok().and_then(|id| door.elsewhere(&BTreeSet::from([id]))) {
                Some(id) => door.not_here(StatusCode::NOT_FOUND, id),
                None => next.run(request).await,
            }
        }
        (&Method::POST, _) => match door.admit(request).await {
            Ok(request) => next.run(request).await,
            Err(refused) => refused,
        },
        _ => next.run(request).await,
    }
}

/// An answer of the mint's, changed; an error passes as it is.
async fn rewrite<T>(response: Response, change: impl FnOnce(&mut T)) -> Response
where
    T: DeserializeOwned + Serialize,
{
    if !response.status().is_success() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let read = to_bytes(body, MAX_ANSWER).await.ok();
    let Some(mut answer) = read.and_then(|bytes| serde_json::from_slice::<T>(&bytes).ok()) else {
        let reason = "the mint's answer is too long; ask for a single keyset".to_owned();
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, UNKNOWN, reason);
    };
    change(&mut answer);
    let body = serde_json::to_vec(&answer).expect("what was JSON is JSON");
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(body))
}

/// NUT-00's error object, which wallets in browsers may read too.
fn refusal(status: StatusCode, code: ErrorCode, reason: String) -> Response {
    let anybody = [(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    (status, anybody, Json(ErrorResponse::new(code, reason))).into_response()
}
