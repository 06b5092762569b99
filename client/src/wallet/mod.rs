//! The wallet: one seed, ehash of any number of epochs, and what a crash may
//! have left half done.
//!
//! Proofs, counters and swaps are cdk's, in `wallet.sqlite`; beside them, in
//! the same database, stands how far the issuance of each epoch has come
//! ([`epoch::EpochState`]). Several processes may use a wallet at once: each
//! operation takes the wallet's file lock, and first finishes what an earlier
//! process left undone.

mod epoch;
mod history;
mod identity;
mod lightning;
mod lock;
mod outbox;
mod pools;
mod proofs;
mod recovery;
mod restore;
mod swaps;
#[cfg(test)]
mod tests;
mod told;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, State, Token};
use cdk::wallet::{BaseHttpClient, SendOptions, WalletBuilder};
use cdk::{Amount, Wallet as CdkWallet};
use cdk_common::database::WalletDatabase;
use cdk_sqlite::wallet::WalletSqliteDatabase;
use hashpit_mailbox::MailboxError;
use hashpit_nips::eh01::EpochState as Phase;
use hashpit_nips::seed_file::{self, SeedFile, SeedFileError};
use hashpit_nips::{EpochId, HashUnits, Seed, eh07};
use nostr_sdk::{PublicKey, RelayUrl};
use serde::Serialize;

use crate::mint::{Mints, NostrTransport, Patient, Route};

pub(crate) use epoch::{Applied, EpochState, NewBlanks};
pub use history::{Entry, Status, What};
use identity::Identity;
pub use identity::account;
pub use lightning::{Deposit, Deposited, Withdrawal, Withdrawn};
use lock::Lock;
pub use outbox::{Destination, Form, Outgoing};
pub(crate) use outbox::{PaidOut, Terms};
pub use pools::KnownPool;
use restore::Connector;
pub use restore::{Remains, RestoreStep, RestoredAt};
pub(crate) use swaps::{Given, Swap, SwapError};
pub(crate) use told::{Standing, standing};

/// Where our records stand in cdk's key-value table.
pub(crate) const NAMESPACE: &str = "hashpit";

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
    /// The words are encrypted.
    #[error("the wallet in {0} is encrypted; type its password, or give it in HASHPIT_PASSWORD")]
    Locked(PathBuf),
    /// The remote signer.
    #[error("remote signer: {0}; is it running, and has it allowed hashpit?")]
    Signer(String),
    /// The identity cannot change any more.
    #[error(
        "this wallet has mined under its own key; make another wallet (--data-dir) for a remote \
         signer, and send the ehash there"
    )]
    IdentityInUse,
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
        "no relay of the pool behind {0} is known; name one with --relay, or claim from the pool \
         first"
    )]
    NoRelay(MintUrl),
    /// Not a Cashu token.
    #[error("this is no Cashu token: {0}; paste the whole string that starts with cashuB")]
    Token(String),
    /// None of the payee's mints.
    #[error("the payee takes only ehash of {0}, and this wallet holds none of theirs")]
    OtherMints(String),
    /// Not in the outbox.
    #[error("no payment {0} is waiting; see `hashpit wallet outbox`")]
    NoPayment(String),
    /// Ehash of a known pool, by a mint that is not its own.
    #[error(
        "the token is of a known pool's unit, but of the mint {mint}; the pool's own is {own}. It \
         was left alone: it may be worth nothing"
    )]
    NotThePoolsMint {
        /// The token's mint.
        mint: String,
        /// What the pool has announced.
        own: String,
    },
    /// Not enough of a unit.
    #[error("{available} available, {wanted} wanted; see `hashpit wallet balance`")]
    Insufficient {
        /// What there is.
        available: HashUnits,
        /// What was asked for.
        wanted: HashUnits,
    },
    /// Not a Lightning invoice.
    #[error("this is no Lightning invoice: {0}; paste the whole string that starts with lnbc")]
    Invoice(String),
    /// Nothing to withdraw.
    #[error("this wallet holds no sats there; see `hashpit wallet balance`")]
    NoSats,
    /// The unit must be named.
    #[error("the wallet holds several units; name one of them with --unit: {0}")]
    WhichUnit(String),
    /// The keyset that signed is not known here.
    #[error("unknown keyset {0}; the pool has to announce it first")]
    UnknownKeyset(cdk::nuts::Id),
    /// No sent token has this id.
    #[error("no one token that was sent has the id {0}; see `hashpit wallet history`")]
    NoSuchToken(String),
    /// It cannot be taken back.
    #[error("token {0} is not pending: it was received, or taken back before")]
    NotPending(String),
    /// Signatures that are not what they should be.
    #[error("the pool's signatures were refused: {0}")]
    BadSignatures(&'static str),
}

/// An open wallet. Cheap to clone.
#[derive(Clone)]
pub struct Wallet {
    dir: PathBuf,
    seed: Seed,
    identity: Identity,
    pub(crate) store: Store,
    mints: Mints,
    /// Who waits for the lock in this process.
    queue: Arc<tokio::sync::Mutex<()>>,
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
    /// For ehash, what its pool last said of the epoch.
    pub state: Option<Phase>,
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

impl WalletError {
    /// True where the same may succeed at another time: a mint, a relay or another
    /// process stands in the way.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Cashu(_)
                | Self::Unreachable { .. }
                | Self::Mailbox(_)
                | Self::NoRelay(_)
        )
    }

    fn signer(error: impl std::fmt::Display) -> Self {
        Self::Signer(error.to_string())
    }
}

impl Wallet {
    /// Makes a wallet of `seed` in `dir`; with a password, the words are stored
    /// encrypted (NIP-49). Making the same wallet again is no error.
    pub async fn create(
        dir: &Path,
        seed: Seed,
        password: Option<&str>,
    ) -> Result<Self, WalletError> {
        make_dir(dir)?;
        let path = seed_path(dir);
        match (seed_file::open(&path)?, password) {
            (Some(SeedFile::Open(present)), _) if present == seed => {}
            (Some(SeedFile::Locked(locked)), Some(password))
                if locked.unlock(password).is_ok_and(|present| present == seed) => {}
            (Some(_), _) => return Err(WalletError::Exists(dir.to_owned())),
            (None, Some(password)) => {
                seed_file::write_locked(
                    &path,
                    &seed,
                    password,
                    &mut nostr_sdk::secp256k1::rand::rngs::OsRng,
                )?;
            }
            (None, None) => seed_file::write(&path, &seed)?,
        }
        Self::with_seed(dir, seed).await
    }

    /// True if there is a wallet in `dir`.
    pub fn exists(dir: &Path) -> Result<bool, WalletError> {
        Ok(seed_file::open(&seed_path(dir))?.is_some())
    }

    /// Opens the wallet in `dir`.
    pub async fn open(dir: &Path) -> Result<Self, WalletError> {
        match seed_file::open(&seed_path(dir))? {
            Some(SeedFile::Open(seed)) => Self::with_seed(dir, seed).await,
            Some(SeedFile::Locked(_)) => Err(WalletError::Locked(dir.to_owned())),
            None => Err(WalletError::None(dir.to_owned())),
        }
    }

    /// Opens the wallet in `dir` whose words are encrypted with `password`.
    pub async fn unlock(dir: &Path, password: &str) -> Result<Self, WalletError> {
        match seed_file::open(&seed_path(dir))? {
            Some(SeedFile::Locked(locked)) => Self::with_seed(dir, locked.unlock(password)?).await,
            _ => Self::open(dir).await,
        }
    }

    /// Opens the wallet in `dir`, making one if there is none.
    pub async fn open_or_create(
        dir: &Path,
        entropy: impl FnOnce() -> [u8; 16],
    ) -> Result<Self, WalletError> {
        match Self::open(dir).await {
            Err(WalletError::None(_)) => {
                Self::create(dir, Seed::from_entropy(&entropy()), None).await
            }
            opened => opened,
        }
    }

    async fn with_seed(dir: &Path, seed: Seed) -> Result<Self, WalletError> {
        make_dir(dir)?;
        let store: Store = Arc::new(WalletSqliteDatabase::new(&dir.join("wallet.sqlite")).await?);
        let identity = Identity::load(&store, &seed).await?;
        let mints = Mints::default();
        let wallet =
            Self { dir: dir.to_owned(), seed, identity, store, mints, queue: Arc::default() };
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

    /// Where it is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// This wallet, with mints that it may ask as often as it needs. Others, unless
    /// they are of a known pool or on this machine, are asked 20 times a minute.
    #[must_use]
    pub fn without_pacing(mut self, mints: Vec<MintUrl>) -> Self {
        self.mints.unpaced = mints;
        self
    }

    /// The words that everything derives from.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// What there is to spend, and what is on its way out, by unit and mint.
    pub async fn balances(&self) -> Result<Vec<Balance>, WalletError> {
        let mut balances: BTreeMap<(String, String), Balance> = BTreeMap::new();
        let epochs = self.epochs().await?;
        let state = |unit: &str| {
            let known = epochs.iter().find(|epoch| epoch.unit.to_string() == unit);
            known.and_then(|epoch| epoch.phase)
        };
        for proof in self.store.get_proofs(None, None, None, None).await? {
            let (unit, mint) = (proof.unit.to_string(), proof.mint_url.to_string());
            let balance = balances.entry((unit.clone(), mint.clone()));
            let balance = balance.or_insert_with(|| {
                let state = state(&unit);
                Balance { unit, mint, amount: 0, pending: 0, state }
            });
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
        let known = self.epoch(epoch).await?.map(|state| state.mint().to_string());
        let balances = self.balances().await?;
        let mine = balances.iter().filter(|balance| {
            balance.unit == unit && known.as_ref().is_none_or(|mint| balance.mint == *mint)
        });
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
        self.refuse_strangers_ehash(&mint, &unit).await?;
        self.resume_swaps().await?;
        let cdk = self.cdk(&mint, &unit).await?;
        let received = self.receive_at(&cdk, token.trim()).await;
        let amount = received.map_err(|error| explain(error, &cdk.mint_url))?;
        Ok(Received { unit, mint, amount: u64::from(amount) })
    }

    /// The mint of each unit that its pool has announced.
    async fn mints_of_epochs(&self) -> Result<BTreeMap<String, String>, WalletError> {
        let epochs = self.epochs().await?.into_iter();
        Ok(epochs.map(|epoch| (epoch.unit.to_string(), epoch.mint().to_string())).collect())
    }

    /// Anybody's mint may name a unit after a known pool.
    async fn refuse_strangers_ehash(&self, mint: &str, unit: &str) -> Result<(), WalletError> {
        match self.mints_of_epochs().await?.get(unit) {
            Some(own) if own != mint => {
                Err(WalletError::NotThePoolsMint { mint: mint.to_owned(), own: own.clone() })
            }
            _ => Ok(()),
        }
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
        // The same unit at two mints: the pool's own, else the fuller one.
        let own = self.mints_of_epochs().await?;
        let other = |one: &Balance| own.get(&one.unit).is_some_and(|mint| *mint != one.mint);
        balances.sort_by_key(|one| (one.unit.clone(), other(one), Reverse(one.amount)));
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
        let unit = CurrencyUnit::from_str(unit).map_err(|error| invalid(&error))?;
        let (builder, paced) = self.builder(url, unit).await?;
        // cdk paces itself to 20 requests a minute, for public sat mints that cap
        // their clients; a pool's mint does not, nor one on this machine.
        let builder = if paced { builder } else { builder.without_rate_limiting() };
        Ok(builder.build()?)
    }

    /// As [`Wallet::cdk`], for a mint that the user trades at: not paced, since a
    /// trade has deadlines.
    pub(crate) async fn trading_cdk(
        &self,
        mint: &MintUrl,
        unit: &CurrencyUnit,
    ) -> Result<CdkWallet, WalletError> {
        let (builder, _) = self.builder(mint.clone(), unit.clone()).await?;
        Ok(builder.without_rate_limiting().build()?)
    }

    /// A cdk wallet in the making, and whether its mint wants it paced.
    async fn builder(
        &self,
        url: MintUrl,
        unit: CurrencyUnit,
    ) -> Result<(WalletBuilder, bool), WalletError> {
        let pool = unit.to_string().parse::<EpochId>().ok().map(|epoch| epoch.pool);
        let door = match pool {
            Some(pool) => Some(Door { pool, below: "" }),
            None => self.door_for_sats(&url).await?,
        };
        let paced = door.is_none() && !self.mints.is_unpaced(&url);
        let builder = WalletBuilder::new()
            .shared_client(self.connector(&url, door).await?)
            .mint_url(url)
            .unit(unit)
            .localstore(self.store.clone())
            .seed(self.seed.to_bytes())
            .use_http_subscription()
            .target_proof_count(1);
        Ok((builder, paced))
    }

    /// The way to a mint: HTTP, or through the relays of the pool that runs it.
    async fn connector(
        &self,
        mint: &MintUrl,
        door: Option<Door>,
    ) -> Result<Connector, WalletError> {
        if !self.mints.prefers_http(mint).await {
            if let Some(transport) = self.over_nostr(mint, door).await? {
                return Ok(Arc::new(BaseHttpClient::with_transport(mint.clone(), transport, None)));
            }
            if self.mints.route == Route::Nostr {
                return Err(WalletError::NoRelay(mint.clone()));
            }
        }
        Ok(Arc::new(BaseHttpClient::with_transport(mint.clone(), Patient::default(), None)))
    }

    /// The way over Nostr, if relays of its pool are known.
    async fn over_nostr(
        &self,
        mint: &MintUrl,
        door: Option<Door>,
    ) -> Result<Option<NostrTransport>, WalletError> {
        let Some(Door { pool, below }) = door else { return Ok(None) };
        let known = self.pools().await?.into_iter().find(|known| known.pool == pool);
        let mut relays = known.map(|known| known.relays).unwrap_or_default();
        relays.extend(self.mints.relays.iter().cloned());
        if relays.is_empty() {
            return Ok(None);
        }
        let line = self.mints.line(pool, &relays).await?;
        Ok(Some(NostrTransport::new(line, mint.clone(), below)))
    }

    /// Which of the known pools issues sats at `mint`, by its URL and its key
    /// (NUT-06), which the mint must have told by HTTP: a pool could name a
    /// stranger's mint as its own, and be shown the stranger's tokens.
    async fn door_for_sats(&self, mint: &MintUrl) -> Result<Option<Door>, WalletError> {
        let Some(key) = self.store.get_mint(mint.clone()).await?.and_then(|info| info.pubkey)
        else {
            return Ok(None);
        };
        let epochs = self.epochs().await?.into_iter().map(|epoch| (epoch.unit.pool, epoch.mint));
        let mut own = epochs.filter(|(pool, _)| key.to_hex() == format!("02{}", pool.to_hex()));
        let of = own.find(|(_, ehash)| eh07::sats_url(ehash).as_ref() == Some(mint));
        Ok(of.map(|(pool, _)| Door { pool, below: eh07::SATS_PATH }))
    }

    /// Takes the wallet's lock, and finishes what a crash left half done.
    pub(crate) async fn lock(&self) -> Result<Lock, WalletError> {
        let lock = Lock::take(&self.dir, &self.queue).await?;
        for mut epoch in self.epochs().await? {
            epoch.recover(&self.store, &self.seed).await?;
        }
        self.finish_arrivals().await?;
        Ok(lock)
    }
}

/// A mint that a pool runs.
#[derive(Debug, Clone, Copy)]
struct Door {
    pool: PublicKey,
    /// What the paths of requests over Nostr begin with (EH-07).
    below: &'static str,
}

fn seed_path(dir: &Path) -> PathBuf {
    dir.join("wallet.seed")
}

/// Makes the directory, if need be, for its owner alone: the database holds the
/// secrets of every token.
fn make_dir(dir: &Path) -> Result<(), WalletError> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))
    };
    make().map_err(|source| WalletError::Directory { path: dir.to_owned(), source })
}

fn explain(error: cdk::Error, mint: &MintUrl) -> WalletError {
    match error {
        cdk::Error::HttpError(None, _) => {
            WalletError::Unreachable { url: mint.clone(), source: error }
        }
        other => WalletError::Cashu(other),
    }
}
