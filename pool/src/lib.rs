//! The pool: an Sv2 mining front end, a share ledger, and the Cashu mint that
//! issues ehash for what the ledger credited.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`config`] | settings |
//! | [`template`] | where block templates come from: the embedded chain |
//! | [`sv2`] | the mining front end |
//! | [`share`] | what passes between front end and ledger |
//! | [`ledger`] | credit, blanks and batches, in the mint's database |
//! | [`mint`] | cdk's mint, the epoch and its keyset |
//! | `issuer` | credit → signatures |
//! | `issuance` | the pool's side of EH-02 over relays |
//! | `gateway` | the mint's HTTP API over relays (EH-07) |
//! | `announcement` | EH-01 events |
//!
//! A share's way: `sv2` validates it, `ledger` records it, `sv2` acknowledges
//! it; `issuer` has `mint` sign the miner's blanks, `ledger` records the batch,
//! `issuance` delivers it.

mod announcement;
pub mod config;
mod gateway;
mod issuance;
mod issuer;
pub mod ledger;
pub mod mint;
pub mod share;
pub mod sv2;
pub mod template;

use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::key::CompressedPublicKey;
use bitcoin::{BlockHash, ScriptBuf};
use cdk::mint_url::MintUrl;
use cdk_common::database::mint::DynMintDatabase;
use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::eh01::Sv2Endpoint;
use hashpit_nips::seed_file::{self, SeedFileError};
use hashpit_nips::{Seed, Work};
use nostr_sdk::{Keys, PublicKey};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use announcement::Announcer;
pub use config::Config;
use ledger::{Actor, Ledger, LedgerError, Limits, Totals};
use mint::MintError;
use share::Submission;
use sv2::{Authority, Front};
use template::{EmbeddedChain, embedded};

/// Shares that wait for the ledger. When full, connections wait, and with them
/// the miners' sockets: nothing is dropped.
const SHARE_QUEUE: usize = 4096;

/// How long requests to the mint may take to finish when the pool stops.
const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// Accounts of the pool's seed (NIP-06): one key, one purpose.
mod account {
    pub(super) const NOSTR: u32 = 0;
    pub(super) const SV2_AUTHORITY: u32 = 1;
    pub(super) const PAYOUT: u32 = 2;
}

/// Why a pool did not open, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("{path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has the data directory: two ledgers on one database
    /// would overwrite each other's shares.
    #[error("the pool in {0} is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// The seed file.
    #[error(transparent)]
    Seed(#[from] SeedFileError),
    /// The embedded chain.
    #[error("embedded chain: {0}")]
    Chain(#[from] embedded::EmbeddedError),
    /// The mint.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// The ledger.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The mining front end.
    #[error("mining front end: {0}")]
    Sv2(#[from] sv2::Error),
    /// The mint's HTTP server.
    #[error("mint HTTP server: {0}")]
    Http(#[source] std::io::Error),
    /// The relays.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// A setting that cannot work.
    #[error("setting {setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The sockets that a pool serves.
#[derive(Debug)]
pub struct Listeners {
    /// Stratum V2.
    pub sv2: TcpListener,
    /// The mint's HTTP.
    pub mint: TcpListener,
}

/// A pool whose state is loaded and that can be served.
pub struct Pool {
    config: Config,
    seed: Seed,
    authority: Authority,
    chain: Arc<EmbeddedChain>,
    chain_task: embedded::EmbeddedChainTask,
    mint: Arc<cdk::Mint>,
    ledger: Ledger,
    actor: Actor,
    ledger_stop: CancellationToken,
    stats: Arc<sv2::Stats>,
    /// What the mint's URLs have in common.
    mint_base: String,
    mint_url: MintUrl,
    sv2_address: String,
    listeners: Listeners,
    /// Held while the pool lives; the kernel releases it if the process dies.
    _lock: File,
}

/// What a pool is doing, for display.
#[derive(Debug, Clone)]
pub struct Status {
    /// Credit and issue.
    pub totals: Totals,
    /// The front end's counters.
    pub sv2: sv2::Snapshot,
    /// Height of the tip.
    pub height: u32,
    /// The tip.
    pub tip: BlockHash,
}

/// Reads a pool's [`Status`] while the pool is served.
#[derive(Clone)]
pub struct Monitor {
    ledger: Ledger,
    stats: Arc<sv2::Stats>,
    chain: Arc<EmbeddedChain>,
}

impl Monitor {
    /// The status now.
    pub fn status(&self) -> Status {
        Status {
            totals: self.ledger.totals(),
            sv2: self.stats.snapshot(),
            height: self.chain.height(),
            tip: self.chain.tip(),
        }
    }
}

impl Pool {
    /// Opens the pool in `dir`, making what is not there yet, and checks that
    /// its books balance.
    pub async fn open(config: Config, dir: &Path, listeners: Listeners) -> Result<Self, Error> {
        let directory = |source| Error::Directory { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(directory)?;
        let lock = File::create(dir.join("pool.lock")).map_err(directory)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::InUse(dir.to_owned()),
            TryLockError::Error(source) => directory(source),
        })?;
        let seed = seed_file::read_or_create(&dir.join("pool.seed"), rand::random)?;
        let secret = seed.nostr_keys(account::SV2_AUTHORITY).secret_key().to_secret_bytes();
        let authority = Authority::from_secret(&secret).expect("a Nostr secret is a valid scalar");

        let clock = embedded::system_clock();
        let (chain, chain_task) =
            EmbeddedChain::open(config.chain.clone(), &dir.join("blocks.dat"), clock)?;
        let sv2_address = public_or_local(&config.public_sv2, &listeners.sv2, "")?;
        let base = public_or_local(&config.public_mint, &listeners.mint, "http://")?;
        let mint_base = base.trim_end_matches('/').to_owned();
        let mint_url = mint_url(&mint_base, mint::PATH)?;
        let sats = &config.sats;
        sats.check(config.network)
            .map_err(|(setting, reason)| Error::Setting { setting, reason })?;
        let (mint, store) =
            mint::open_with_sats(dir, &seed, &config.name, &mint_url.to_string(), sats).await?;
        let ledger_stop = CancellationToken::new();
        let (ledger, actor) =
            open_ledger(&config, &seed, &chain, &mint, store, ledger_stop.clone()).await?;
        Ok(Self {
            config,
            seed,
            authority,
            chain: Arc::new(chain),
            chain_task,
            mint,
            ledger,
            actor,
            ledger_stop,
            stats: Arc::default(),
            mint_base,
            mint_url,
            sv2_address,
            listeners,
            _lock: lock,
        })
    }

    /// The pool's Nostr key.
    pub fn public_key(&self) -> PublicKey {
        self.keys().public_key()
    }

    /// The Sv2 authority key that miners must know.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where the mint answers for ehash.
    pub fn mint_url(&self) -> &MintUrl {
        &self.mint_url
    }

    /// Where it answers for sats, if it issues any.
    pub fn sats_url(&self) -> Option<MintUrl> {
        let url = || mint_url(&self.mint_base, mint::SATS_PATH).expect("the other path parsed");
        self.config.sats.issues().then(url)
    }

    /// The key by which the mint is known (NUT-06 `pubkey`).
    pub fn mint_key(&self) -> cdk::nuts::PublicKey {
        mint::key(self.public_key())
    }

    /// The open epoch.
    pub fn epoch(&self) -> &mint::Epoch {
        self.ledger.epoch()
    }

    /// Reads the status while the pool is served.
    pub fn monitor(&self) -> Monitor {
        Monitor {
            ledger: self.ledger.clone(),
            stats: self.stats.clone(),
            chain: self.chain.clone(),
        }
    }

    fn keys(&self) -> Keys {
        self.seed.nostr_keys(account::NOSTR)
    }

    /// Serves until `shutdown`, then stops in order: listeners, connections,
    /// deliveries, and last the ledger, which records what it was given.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let keys = self.keys();
        let min_work = self.min_work();
        let Self { config, ledger, mint, chain, .. } = self;
        let mailbox = Mailbox::connect(keys.clone(), &config.relays).await?;
        let inbox = mailbox.subscribe(issuance::filter(keys.public_key())).await?;
        let requests = mailbox.subscribe(gateway::filter(keys.public_key())).await?;
        let endpoint =
            Sv2Endpoint { address: self.sv2_address, authority: self.authority.to_string() };
        let announcer = Announcer::new(keys.clone(), &config, endpoint, self.mint_url, min_work);
        let (shares, share_queue) = mpsc::channel::<Submission>(SHARE_QUEUE);
        let (outbox, parcels) = mpsc::channel(issuance::OUTBOX);
        for event in announcer.all(&ledger) {
            outbox.send(issuance::Parcel::Public(Box::new(event))).await.expect("has room");
        }
        let front = Front {
            authority: self.authority,
            templates: chain.clone(),
            shares,
            payout: payout_script(&self.seed),
            coinbase_tag: "hashpit".to_owned(),
            config: config.sv2,
            stats: self.stats,
        };
        let http = mint::router(mint.clone(), &self.mint_base, &config.sats).await?;
        let stop = shutdown.child_token();
        let recording = tokio::spawn(self.actor.run(share_queue));

        let mut parts: JoinSet<Result<(), Error>> = JoinSet::new();
        let (sv2, web) = (self.listeners.sv2, self.listeners.mint);
        parts.spawn(part(stop.clone(), sv2::serve(front, sv2, stop.clone())));
        let gateway =
            gateway::serve(http.clone(), keys.clone(), mailbox.clone(), requests, stop.clone());
        parts.spawn(part(stop.clone(), gateway));
        parts.spawn(part(stop.clone(), serve_http(web, http, stop.clone())));
        let issuing = issuer::run(ledger.clone(), mint.clone(), outbox.clone(), stop.clone());
        parts.spawn(part(stop.clone(), issuing));
        let announcer = Arc::new(announcer);
        let receiving = issuance::receive(ledger.clone(), announcer, inbox, outbox, stop.clone());
        parts.spawn(part(stop.clone(), receiving));
        let delivering = issuance::deliver(ledger, mailbox.clone(), parcels, stop.clone());
        parts.spawn(part(stop.clone(), delivering));
        let chain_stop = CancellationToken::new();
        let chain_task = tokio::spawn(self.chain_task.run(chain_stop.clone()));

        info!("pool is up");
        let mut outcome = Ok(());
        while let Some(ended) = parts.join_next().await {
            let ended = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            outcome = outcome.and(ended);
        }
        self.ledger_stop.cancel();
        let recorded = recording.await.expect("the ledger does not panic");
        chain_stop.cancel();
        chain_task.await.expect("the chain does not panic");
        mailbox.close().await;
        mint.stop().await.map_err(MintError::from)?;
        info!("pool has stopped");
        outcome.and(recorded.map_err(Error::from))
    }

    /// Work of the easiest share, about: what the lowest hash rate that vardiff
    /// reckons with does between two shares.
    fn min_work(&self) -> Work {
        let sv2 = &self.config.sv2;
        Work::new(sv2.min_hashrate as u128 * 60 / (sv2.shares_per_minute.ceil() as u128).max(1))
    }
}

/// Runs a part; when it ends, for whatever reason, everything stops.
async fn part<E>(
    stop: CancellationToken,
    run: impl Future<Output = Result<(), E>>,
) -> Result<(), Error>
where
    Error: From<E>,
{
    let _stop_when_done = stop.drop_guard();
    Ok(run.await?)
}

async fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    stop: CancellationToken,
) -> Result<(), Error> {
    let graceful =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! { biased;
        served = graceful.into_future() => served.map_err(Error::Http),
        // Requests that are under way finish; a client that idles holds nobody up.
        () = async { stop.cancelled().await; tokio::time::sleep(HTTP_DRAIN).await } => Ok(()),
    }
}

async fn open_ledger(
    config: &Config,
    seed: &Seed,
    chain: &EmbeddedChain,
    mint: &cdk::Mint,
    store: DynMintDatabase,
    stop: CancellationToken,
) -> Result<(Ledger, Actor), Error> {
    let pool = seed.nostr_keys(account::NOSTR).public_key();
    let tip = (chain.height(), chain.tip());
    let epoch = mint::open_epoch(mint, &store, pool, tip, config.work_bits).await?;
    let limits =
        Limits { issue_interval: config.issue_interval(), max_idle_miners: config.max_idle_miners };
    Ok(Actor::open(store, epoch, limits, stop).await?)
}

/// P2WPKH of a key of the seed, so that the operator holds the reward.
fn payout_script(seed: &Seed) -> ScriptBuf {
    let secret = seed.nostr_keys(account::PAYOUT).secret_key().to_secret_bytes();
    let secret = bitcoin::secp256k1::SecretKey::from_slice(&secret).expect("a valid scalar");
    let key = CompressedPublicKey(secret.public_key(bitcoin::secp256k1::SECP256K1));
    ScriptBuf::new_p2wpkh(&key.wpubkey_hash())
}

fn mint_url(base: &str, path: &str) -> Result<MintUrl, Error> {
    format!("{base}{path}").parse().map_err(|error: cdk::mint_url::Error| Error::Setting {
        setting: "public_mint",
        reason: error.to_string(),
    })
}

fn public_or_local(public: &str, listener: &TcpListener, scheme: &str) -> Result<String, Error> {
    if !public.is_empty() {
        return Ok(public.to_owned());
    }
    let local = listener.local_addr().map_err(Error::Http)?;
    Ok(format!("{scheme}{local}"))
}
