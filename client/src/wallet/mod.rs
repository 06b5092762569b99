//! The wallet: one seed, ehash of any number of epochs, and what a crash may
//! have left half done.
//!
//! Proofs, counters and swaps are cdk's, in `wallet.sqlite`; beside them, in
//! the same database, stands how far the issuance of each epoch has come
//! ([`epoch::EpochState`]). Several processes may use a wallet at once: each
//! operation takes the wallet's file lock, and first finishes what an earlier
//! process left undone.

mod epoch;
mod lock;
mod outbox;
mod pools;
mod proofs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, State, Token};
use cdk::wallet::{BaseHttpClient, SendOptions, WalletBuilder};
use cdk::{Amount, Wallet as CdkWallet};
use cdk_common::database::WalletDatabase;
use cdk_common::wallet::{SendSagaState, WalletSagaState};
use cdk_sqlite::wallet::WalletSqliteDatabase;
use hashpit_mailbox::MailboxError;
use hashpit_nips::seed_file::{self, SeedFileError};
use hashpit_nips::{EpochId, HashUnits, Seed};
use nostr_sdk::{Keys, RelayUrl, Timestamp};
use serde::Serialize;

use crate::mint::{Mints, NostrTransport, Route};

pub(crate) use epoch::{Applied, EpochState, NewBlanks};
use lock::Lock;
pub(crate) use outbox::Terms;
pub use outbox::{Destination, Form, Outgoing};
pub use pools::KnownPool;

/// Where our records stand in cdk's key-value table.
const NAMESPACE: &str = "hashpit";

/// How long a mint may take to say what became of pending proofs.
const RESUME: Duration = Duration::from_secs(10);

/// How long after its last step the request of an interrupted send may still be
/// under way. The steps are dated to the second.
const REQUEST_ENDS: Duration = Duration::from_secs(3);
/// Proofs in one question to a mint (NUT-07).
const CHECKED_AT_ONCE: usize = 100;

/// cdk's wallet store.
pub(crate) type Store = Arc<dyn WalletDatabase<cdk_common::database::Error> + Send + Sync>;

/// Why the wallet could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// There is no wallet here yet.
    #[error("no wallet in {0}; make one with `hashpit wallet init`")]
    None(PathBuf),
    /// There is one already.
    #[error("there is a wallet in {0} already; choose another --data-dir, or remove it yourself")]
    Exists(PathBuf),
    /// The directory cannot be used.
    #[error("{path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The seed file.
    #[error(transparent)]
    Seed(#[from] SeedFileError),
    /// Another process holds the wallet.
    #[error("another hashpit process is using this wallet; try again when it is done")]
    Busy,
    /// The database failed.
    #[error("wallet database: {0}")]
    Database(#[from] cdk_common::database::Error),
    /// A record that does not decode.
    #[error("the wallet database holds a damaged record of {0}")]
    Damaged(String),
    /// cdk refused, or the mint did.
    #[error("{0}")]
    Cashu(#[from] cdk::Error),
    /// The mint could not be reached.
    #[error("the mint at {url} does not answer: {source}; is it running, and reachable from here?")]
    Unreachable {
        /// The mint.
        url: MintUrl,
        /// Why.
        source: cdk::Error,
    },
    /// The relays could not be used.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// No way to the mint over Nostr.
    #[error(
        "the mint of {0} cannot be reached over Nostr: no relay of its pool is known; \
         name one with --relay, or claim from the pool first"
    )]
    NoRelay(String),
    /// Not a Cashu token.
    #[error("this is no Cashu token: {0}; paste the whole string that starts with cashuB")]
    Token(String),
    /// None of the payee's mints.
    #[error("the payee takes only ehash of {0}, and this wallet holds none of theirs")]
    OtherMints(String),
    /// Not in the outbox.
    #[error("no payment {0} is waiting; see `hashpit wallet outbox`")]
    NoPayment(String),
    /// Not enough of a unit.
    #[error("{available} available, {wanted} wanted; see `hashpit wallet balance`")]
    Insufficient {
        /// What there is.
        available: HashUnits,
        /// What was asked for.
        wanted: HashUnits,
    },
    /// The unit must be named.
    #[error("the wallet holds several units; name one of them with --unit: {0}")]
    WhichUnit(String),
    /// The keyset that signed is not known here.
    #[error("unknown keyset {0}; the pool has to announce it first")]
    UnknownKeyset(cdk::nuts::Id),
    /// Signatures that are not what they should be.
    #[error("the pool's signatures were refused: {0}")]
    BadSignatures(&'static str),
}

/// An open wallet. Cheap to clone.
#[derive(Clone)]
pub struct Wallet {
    dir: PathBuf,
    seed: Seed,
    store: Store,
    mints: Mints,
}

/// What the wallet holds of one unit at one mint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Cashu unit: `hash_02<pool>_<height>` for ehash.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// Spendable.
    pub amount: u64,
    /// In tokens that were made and, as far as the wallet knows, not received
    /// yet; also in a send that was cut short, until the next send or receive.
    pub pending: u64,
}

/// A token that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Cashu unit.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// Units added, after the mint's fees.
    pub amount: u64,
}

impl Wallet {
    /// Makes a wallet in `dir`, from `entropy` of a secure generator.
    pub async fn create(dir: &Path, entropy: [u8; 16]) -> Result<Self, WalletError> {
        make_dir(dir)?;
        if seed_file::read(&seed_path(dir))?.is_some() {
            return Err(WalletError::Exists(dir.to_owned()));
        }
        let seed = seed_file::read_or_create(&seed_path(dir), || entropy)?;
        Self::with_seed(dir, seed).await
    }

    /// Opens the wallet in `dir`.
    pub async fn open(dir: &Path) -> Result<Self, WalletError> {
        let seed = seed_file::read(&seed_path(dir))?;
        let seed = seed.ok_or_else(|| WalletError::None(dir.to_owned()))?;
        Self::with_seed(dir, seed).await
    }

    /// Opens the wallet in `dir`, making one if there is none.
    pub async fn open_or_create(
        dir: &Path,
        entropy: impl FnOnce() -> [u8; 16],
    ) -> Result<Self, WalletError> {
        make_dir(dir)?;
        let seed = seed_file::read_or_create(&seed_path(dir), entropy)?;
        Self::with_seed(dir, seed).await
    }

    async fn with_seed(dir: &Path, seed: Seed) -> Result<Self, WalletError> {
        let store = WalletSqliteDatabase::new(&dir.join("wallet.sqlite")).await?;
        let wallet =
            Self { dir: dir.to_owned(), seed, store: Arc::new(store), mints: Mints::default() };
        drop(wallet.lock().await?);
        Ok(wallet)
    }

    /// This wallet, with another way to its mints.
    #[must_use]
    pub fn with_route(mut self, route: Route) -> Self {
        self.mints.route = route;
        self
    }

    /// This wallet, with relays to reach a pool's mint by that it has not claimed
    /// from.
    #[must_use]
    pub fn with_relays(mut self, relays: Vec<RelayUrl>) -> Self {
        self.mints.relays = relays;
        self
    }

    /// The words that everything derives from.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// The miner's Nostr key (NIP-06, account 0): its npub is what it mines under.
    pub fn keys(&self) -> Keys {
        self.seed.nostr_keys(0)
    }

    /// What there is to spend, and what is on its way out, by unit and mint.
    pub async fn balances(&self) -> Result<Vec<Balance>, WalletError> {
        let mut balances: BTreeMap<(String, String), Balance> = BTreeMap::new();
        for proof in self.store.get_proofs(None, None, None, None).await? {
            let (unit, mint) = (proof.unit.to_string(), proof.mint_url.to_string());
            let balance = balances.entry((unit.clone(), mint.clone()));
            let balance = balance.or_insert(Balance { unit, mint, amount: 0, pending: 0 });
            match proof.state {
                State::Unspent => balance.amount += u64::from(proof.proof.amount),
                State::Spent => {}
                State::Pending | State::Reserved | State::PendingSpent => {
                    balance.pending += u64::from(proof.proof.amount);
                }
            }
        }
        let held = |balance: &Balance| balance.amount > 0 || balance.pending > 0;
        Ok(balances.into_values().filter(held).collect())
    }

    /// What there is to spend of an epoch's ehash.
    pub async fn ehash(&self, epoch: EpochId) -> Result<HashUnits, WalletError> {
        let unit = epoch.to_string();
        let balances = self.balances().await?;
        let mine = balances.iter().filter(|balance| balance.unit == unit);
        Ok(HashUnits::new(mine.map(|balance| balance.amount).sum()))
    }

    /// Takes `amount` out of the wallet as a token (NUT-00, `cashuB…`). `unit`
    /// may be left out while the wallet holds only one.
    pub async fn send(&self, amount: u64, unit: Option<&str>) -> Result<Token, WalletError> {
        let _lock = self.lock().await?;
        self.resume_swaps().await?;
        let balance = self.choose(unit).await?;
        if balance.amount < amount {
            return Err(WalletError::Insufficient {
                available: HashUnits::new(balance.amount),
                wanted: HashUnits::new(amount),
            });
        }
        let cdk = self.cdk(&balance.mint, &balance.unit).await?;
        self.consolidate_at(&cdk).await.map_err(|error| explain(error, &cdk.mint_url))?;
        let prepared = cdk
            .prepare_send(Amount::from(amount), SendOptions::default())
            .await
            .map_err(|error| explain(error, &cdk.mint_url))?;
        prepared.confirm(None).await.map_err(|error| explain(error, &cdk.mint_url))
    }

    /// Puts a token into the wallet: swaps it for proofs that only this wallet
    /// knows (NUT-03).
    pub async fn receive(&self, token: &str) -> Result<Received, WalletError> {
        let invalid = |error: &dyn std::fmt::Display| WalletError::Token(error.to_string());
        let parsed = Token::from_str(token.trim()).map_err(|error| invalid(&error))?;
        let mint = parsed.mint_url().map_err(|error| invalid(&error))?.to_string();
        let unit = parsed.unit().unwrap_or(CurrencyUnit::Sat).to_string();
        let _lock = self.lock().await?;
        self.resume_swaps().await?;
        let cdk = self.cdk(&mint, &unit).await?;
        let received = self.receive_at(&cdk, token.trim()).await;
        let amount = received.map_err(|error| explain(error, &cdk.mint_url))?;
        Ok(Received { unit, mint, amount: u64::from(amount) })
    }

    /// Finishes or undoes sends and receives that a crash cut short, and notes
    /// which tokens have been received. What needs a mint that does not answer
    /// waits for another time.
    async fn resume_swaps(&self) -> Result<(), WalletError> {
        self.adopt_tokens().await?;
        self.let_requests_end().await?;
        for Balance { unit, mint, pending, .. } in self.balances().await? {
            if pending == 0 {
                continue;
            }
            let cdk = match self.cdk(&mint, &unit).await {
                Ok(cdk) => cdk,
                Err(error) => {
                    tracing::warn!(%error, mint, "pending proofs stay as they are");
                    continue;
                }
            };
            match tokio::time::timeout(RESUME, self.resume_swaps_at(&cdk)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, mint, "pending proofs stay as they are"),
                Err(_) => tracing::warn!(mint, "pending proofs stay as they are: no answer"),
            }
        }
        // Payments whose send was undone just now.
        self.adopt_tokens().await
    }

    /// A request of a process that died may be under way at the mint still, and
    /// would be taken for one that was never made.
    async fn let_requests_end(&self) -> Result<(), WalletError> {
        let handed_out = WalletSagaState::Send(SendSagaState::TokenCreated);
        let sagas = self.store.get_incomplete_sagas().await?;
        let begun = sagas.iter().filter(|saga| saga.state != handed_out);
        let Some(last) = begun.map(|saga| saga.updated_at).max() else { return Ok(()) };
        let age = Duration::from_secs(Timestamp::now().as_secs().saturating_sub(last));
        tokio::time::sleep(REQUEST_ENDS.saturating_sub(age)).await;
        Ok(())
    }

    /// Where cdk's recovery leaves a swap that was part of a send in doubt, the
    /// mint knows: inputs that it released and that are spent are forgotten, and
    /// outputs that no operation owns any more, and in no token, are released.
    async fn resume_swaps_at(&self, cdk: &CdkWallet) -> Result<(), cdk::Error> {
        let (mint, unit) = (Some(cdk.mint_url.clone()), Some(cdk.unit.clone()));
        let of = async |states: &[State]| {
            self.store.get_proofs(mint.clone(), unit.clone(), Some(states.to_vec()), None).await
        };
        let pending = [State::Pending, State::Reserved, State::PendingSpent];
        let mut doubtful = of(&pending).await?;
        cdk.recover_incomplete_sagas().await?;
        doubtful.extend(of(&pending).await?);
        doubtful.sort_by_key(|info| info.y);
        doubtful.dedup_by_key(|info| info.y);
        let doubtful: Vec<_> = doubtful.into_iter().map(|info| info.proof).collect();
        for proofs in doubtful.chunks(CHECKED_AT_ONCE) {
            // Forgets those that the mint knows as spent.
            cdk.check_proofs_spent(proofs.to_vec()).await?;
        }
        let operations = self.store.get_incomplete_sagas().await?;
        let mut orphans = of(&[State::Reserved]).await?;
        orphans.retain(|info| {
            let owner = info.used_by_operation;
            owner.is_none_or(|owner| operations.iter().all(|operation| operation.id != owner))
        });
        if !orphans.is_empty() {
            cdk.unreserve_proofs(orphans.into_iter().map(|info| info.y).collect()).await?;
        }
        Ok(())
    }

    async fn choose(&self, unit: Option<&str>) -> Result<Balance, WalletError> {
        self.choose_at(unit, &[]).await
    }

    /// What to pay from: `mints` are those that will do, empty for any.
    async fn choose_at(
        &self,
        unit: Option<&str>,
        mints: &[MintUrl],
    ) -> Result<Balance, WalletError> {
        let mut balances = self.balances().await?;
        balances.retain(|balance| balance.amount > 0);
        let will_do = |balance: &Balance| {
            mints.is_empty() || mints.iter().any(|mint| mint.to_string() == balance.mint)
        };
        if !balances.is_empty() && !balances.iter().any(will_do) {
            let mints: Vec<_> = mints.iter().map(ToString::to_string).collect();
            return Err(WalletError::OtherMints(mints.join(", ")));
        }
        balances.retain(will_do);
        balances.retain(|balance| unit.is_none_or(|unit| balance.unit == unit));
        // The same unit at two mints: the fuller one.
        balances.sort_by(|a, b| a.unit.cmp(&b.unit).then(b.amount.cmp(&a.amount)));
        balances.dedup_by(|a, b| a.unit == b.unit);
        if balances.len() > 1 {
            let units: Vec<_> = balances.into_iter().map(|balance| balance.unit).collect();
            return Err(WalletError::WhichUnit(units.join(", ")));
        }
        let nothing =
            WalletError::Insufficient { available: HashUnits::ZERO, wanted: HashUnits::new(1) };
        balances.pop().ok_or(nothing)
    }

    pub(crate) async fn cdk(&self, mint: &str, unit: &str) -> Result<CdkWallet, WalletError> {
        let invalid = |error: &dyn std::fmt::Display| WalletError::Token(error.to_string());
        let url: MintUrl = mint.parse().map_err(|error: cdk::mint_url::Error| invalid(&error))?;
        let mut wallet = WalletBuilder::new()
            .mint_url(url.clone())
            .unit(CurrencyUnit::from_str(unit).map_err(|error| invalid(&error))?)
            .localstore(self.store.clone())
            .seed(self.seed.to_bytes())
            .use_http_subscription()
            .target_proof_count(1);
        if unit.parse::<EpochId>().is_ok() {
            // cdk paces itself to 20 requests a minute, for public sat mints that
            // cap their clients; a pool's mint does not.
            wallet = wallet.without_rate_limiting();
        }
        if let Some(transport) = self.over_nostr(&url, unit).await? {
            wallet = wallet.client(BaseHttpClient::with_transport(url, transport, None));
        }
        Ok(wallet.build()?)
    }

    /// The way to a mint over Nostr, if that is the one to take.
    async fn over_nostr(
        &self,
        mint: &MintUrl,
        unit: &str,
    ) -> Result<Option<NostrTransport>, WalletError> {
        if self.mints.prefers_http(mint).await {
            return Ok(None);
        }
        let auto = self.mints.route == Route::Auto;
        let Ok(EpochId { pool, .. }) = unit.parse() else {
            let none = || WalletError::NoRelay(unit.to_owned());
            return if auto { Ok(None) } else { Err(none()) };
        };
        let known = self.pools().await?.into_iter().find(|known| known.pool == pool);
        let mut relays = known.map(|known| known.relays).unwrap_or_default();
        relays.extend(self.mints.relays.iter().cloned());
        if relays.is_empty() {
            return if auto { Ok(None) } else { Err(WalletError::NoRelay(unit.to_owned())) };
        }
        let line = self.mints.line(pool, &relays).await?;
        Ok(Some(NostrTransport::new(line, mint.clone())))
    }

    /// Takes the wallet's lock, and finishes what a crash left half done.
    pub(crate) async fn lock(&self) -> Result<Lock, WalletError> {
        let lock = Lock::take(&self.dir).await?;
        for mut epoch in self.epochs().await? {
            epoch.recover(&self.store, &self.seed).await?;
        }
        Ok(lock)
    }
}

fn seed_path(dir: &Path) -> PathBuf {
    dir.join("wallet.seed")
}

fn make_dir(dir: &Path) -> Result<(), WalletError> {
    std::fs::create_dir_all(dir)
        .map_err(|source| WalletError::Directory { path: dir.to_owned(), source })
}

fn explain(error: cdk::Error, mint: &MintUrl) -> WalletError {
    match error {
        cdk::Error::HttpError(None, _) => {
            WalletError::Unreachable { url: mint.clone(), source: error }
        }
        other => WalletError::Cashu(other),
    }
}
