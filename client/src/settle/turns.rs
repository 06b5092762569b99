//! A watchtower's questions to mints: few at once, fewer at one host, and none for long,
//! so that a mint that does not answer holds up little but itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cdk::HttpClient;
use cdk::mint_url::MintUrl;
use cdk::nuts::{CheckStateRequest, Proofs, PublicKey as CashuKey, State, SwapRequest};
use cdk::wallet::MintConnector;
use nostr_sdk::Url;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::info;

/// Questions to mints under way at once, and those to one host.
const MAX_ASKED: usize = 256;
const MAX_OF_HOST: usize = 4;
/// How long a question may wait for its turn, and a mint may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who asks next.
pub(super) struct Turns {
    all: Semaphore,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Semaphore::new(MAX_ASKED), hosts: Mutex::default() }
    }

    /// A mint, to be asked in turn with others.
    pub(super) fn mint(self: &Arc<Self>, url: &MintUrl) -> Mint {
        let name = url.to_string();
        let host = Url::parse(&name).ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let host = host.unwrap_or(name);
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, turns| turns.strong_count() > 0);
        let known = hosts.get(&host).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            let own = Arc::new(Semaphore::new(MAX_OF_HOST));
            hosts.insert(host, Arc::downgrade(&own));
            own
        });
        Mint { client: HttpClient::new(url.clone(), None), own, turns: self.clone() }
    }
}

/// A mint as a watchtower asks it.
pub(super) struct Mint {
    client: HttpClient,
    /// Turns at its host.
    own: Arc<Semaphore>,
    turns: Arc<Turns>,
}

impl Mint {
    /// Whether a mint has signed all these proofs (NUT-12), by its word on its keyset,
    /// whose id follows from the keys.
    pub(super) async fn has_signed(&self, proofs: &Proofs) -> Result<bool, String> {
        let Some(first) = proofs.first() else { return Ok(false) };
        let keyset = self.ask(self.client.get_mint_keyset(first.keyset_id)).await?;
        let sound = keyset.id == first.keyset_id && keyset.verify_id().is_ok();
        Ok(sound
            && proofs.iter().all(|proof| {
                let key = keyset.keys.amount_key(proof.amount);
                proof.keyset_id == keyset.id && key.is_some_and(|it| proof.verify_dleq(it).is_ok())
            }))
    }

    /// What stands where preimages do in the witnesses of these points, if one of
    /// them is spent (NUT-07).
    pub(super) async fn spent(&self, ys: &[CashuKey]) -> Result<Option<Vec<String>>, String> {
        let request = CheckStateRequest { ys: ys.to_vec() };
        let told = self.ask(self.client.post_check_state(request)).await?.states;
        let spent = told.iter().filter(|it| ys.contains(&it.y) && it.state == State::Spent);
        let spent: Vec<_> = spent.collect();
        let shown = spent.iter().filter_map(|it| it.witness.as_ref()?.preimage()).collect();
        Ok((!spent.is_empty()).then_some(shown))
    }

    /// Asks for a swap. If the mint signs no more by the outputs' keyset, the request
    /// names another afterwards.
    pub(super) async fn swap(&self, request: &mut SwapRequest) -> Result<(), String> {
        let done = self.ask(self.client.post_swap(request.clone())).await;
        if done.is_err() {
            self.renew(request).await;
        }
        done.map(drop)
    }

    /// Names another keyset for the outputs, if the mint signs no more by theirs.
    /// The signature does not cover that; their points and amounts it does.
    async fn renew(&self, request: &mut SwapRequest) {
        let Ok(told) = self.ask(self.client.get_mint_keysets()).await else { return };
        let Some(named) = request.outputs().first().map(|output| output.keyset_id) else { return };
        let Some(named) = told.keysets.iter().find(|keyset| keyset.id == named) else { return };
        let next = told.keysets.iter().find(|it| it.active && it.unit == named.unit);
        if let (false, Some(next)) = (named.active, next) {
            info!(keyset = %next.id, "the mint has another keyset now");
            request.outputs_mut().iter_mut().for_each(|output| output.keyset_id = next.id);
        }
    }

    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, cdk::Error>>,
    ) -> Result<T, String> {
        let turn = async {
            let own = self.own.acquire().await;
            (own, self.turns.all.acquire().await)
        };
        let _turn = timeout(PATIENCE, turn).await.map_err(|_| "others ask it".to_owned())?;
        let answer =
            timeout(PATIENCE, question).await.map_err(|_| "it takes too long".to_owned())?;
        answer.map_err(|error| error.to_string())
    }
}
