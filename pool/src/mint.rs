//! The Cashu mint: cdk's, with one keyset for each epoch, made at run time.
//!
//! Ehash has no payment processor, so it can neither be minted by a quote nor
//! melted: the ledger issues it, and wallets swap it (NUT-03), check it
//! (NUT-07), restore it (NUT-09) and lock it (NUT-10, 11, 14).
//!
//! The same mint may issue sats, at a URL of their own.
//!
//! | module | what lives in it |
//! |---|---|
//! | `doors` | the HTTP interface: a URL for ehash, and one for sats |
//! | [`sats`] | settings of the unit `sat`, and who pays its invoices |

mod doors;
pub mod sats;

use std::path::Path;
use std::sync::Arc;

use bitcoin::BlockHash;
use cdk::Mint;
use cdk::mint::MintBuilder;
use cdk::nuts::{CurrencyUnit, KeySet, MintVersion, PublicKey as MintKey};
use cdk_common::database::mint::DynMintDatabase;
use cdk_sqlite::MintSqliteDatabase;
pub use doors::router;
use hashpit_nips::{EpochId, Seed, WorkBits};
use serde::{Deserialize, Serialize};

use crate::ledger::{MAX_AMOUNT_BITS, NAMESPACE};

/// NUTs that the mint supports for ehash.
pub const NUTS: [u16; 10] = [3, 7, 9, 10, 11, 12, 13, 14, 17, 20];
/// Path below which the mint answers for ehash.
pub const PATH: &str = "/ehash";
/// Path below which it answers for sats.
pub const SATS_PATH: &str = hashpit_nips::eh07::SATS_PATH;

/// What it says that it is made of (NUT-06): wallets know how cdk's mint behaves.
const MAKER: &str = "cdk-hashpit";

const EPOCH_TABLE: &str = "epoch";
const EPOCH_KEY: &str = "current";
/// NUT-03 inputs or outputs in one request; cdk's own limit.
const MAX_PROOFS: usize = 1000;

/// Why the mint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The database failed.
    #[error("mint database: {0}")]
    Database(#[from] cdk_common::database::Error),
    /// The SQLite file could not be opened.
    #[error("cannot open the mint database {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: cdk_common::database::Error,
    },
    /// cdk refused.
    #[error("mint: {0}")]
    Mint(#[from] cdk::Error),
    /// The HTTP interface could not be built.
    #[error("mint: {0}")]
    Router(String),
    /// The recorded epoch does not fit.
    #[error("the recorded epoch {0}")]
    Epoch(&'static str),
}

/// The open epoch and the keys that sign its ehash.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// Pool and height.
    pub id: EpochId,
    /// Hash of the block that opened it.
    pub opened_by: BlockHash,
    /// One unit is 2^work hashes.
    pub work: WorkBits,
    /// The keyset that signs its ehash.
    pub keyset: KeySet,
}

/// An epoch as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EpochRecord {
    version: u8,
    unit: EpochId,
    opened_by: BlockHash,
    work: WorkBits,
}

/// Opens the mint in `dir`, for ehash only. Its keys derive from `seed`.
pub async fn open(
    dir: &Path,
    seed: &Seed,
    name: &str,
    url: &str,
) -> Result<(Arc<Mint>, DynMintDatabase), MintError> {
    open_with_sats(dir, seed, name, url, &sats::Config::default()).await
}

/// Opens the mint in `dir`, for ehash and, as its settings say, for sats.
pub async fn open_with_sats(
    dir: &Path,
    seed: &Seed,
    name: &str,
    url: &str,
    config: &sats::Config,
) -> Result<(Arc<Mint>, DynMintDatabase), MintError> {
    let path = dir.join("mint.sqlite");
    let database = MintSqliteDatabase::new(&path)
        .await
        .map_err(|source| MintError::Open { path: path.display().to_string(), source })?;
    let database = Arc::new(database);
    let store: DynMintDatabase = database.clone();
    let pubkey = key(seed.nostr_keys(0).public_key());
    let mut builder = MintBuilder::new(store.clone())
        .with_name(name.to_owned())
        .with_urls(vec![url.to_owned()])
        .with_version(MintVersion::new(MAKER.to_owned(), env!("CARGO_PKG_VERSION").to_owned()))
        .with_pubkey(pubkey)
        .with_limits(MAX_PROOFS, MAX_PROOFS);
    sats::add(&mut builder, config).await?;
    let info = builder.current_mint_info();
    let mint = builder.build_with_seed(database, &seed.to_bytes()).await?;
    // What is in the database since the first start would win otherwise.
    mint.set_mint_info(info).await?;
    mint.start().await?;
    Ok((Arc::new(mint), store))
}

/// The key by which a pool's mint is known (NUT-06 `pubkey`).
pub fn key(pool: nostr_sdk::PublicKey) -> MintKey {
    let pubkey = format!("02{}", pool.to_hex());
    pubkey.parse().expect("a Nostr key is the x of a point on the curve")
}

/// The open epoch: the recorded one, or a new one opened by the block given.
/// Safe to repeat after a crash at any point.
pub async fn open_epoch(
    mint: &Mint,
    store: &DynMintDatabase,
    pool: nostr_sdk::PublicKey,
    opened_by: (u32, BlockHash),
    work: WorkBits,
) -> Result<Epoch, MintError> {
    let record = match store.kv_read(NAMESPACE, EPOCH_TABLE, EPOCH_KEY).await? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|_| MintError::Epoch("does not decode; restore the mint database"))?,
        None => {
            let (height, opened_by) = opened_by;
            let unit = EpochId { pool, height };
            let record = EpochRecord { version: 1, unit, opened_by, work };
            record_epoch(store, &record).await?;
            record
        }
    };
    if record.version != 1 {
        return Err(MintError::Epoch("is of a newer version; upgrade hashpit"));
    }
    if record.unit.pool != pool {
        return Err(MintError::Epoch(
            "belongs to another pool key; put the old seed file back, or use a new data directory",
        ));
    }
    if record.work != work {
        tracing::warn!(
            work_bits = record.work.get(),
            "the open epoch keeps the work_bits that it was opened with"
        );
    }
    let keyset = keyset_of(mint, record.unit).await?;
    Ok(Epoch { id: record.unit, opened_by: record.opened_by, work: record.work, keyset })
}

async fn record_epoch(store: &DynMintDatabase, record: &EpochRecord) -> Result<(), MintError> {
    let bytes = serde_json::to_vec(record).expect("strings and numbers are JSON");
    let mut transaction = store.begin_transaction().await?;
    transaction.kv_write(NAMESPACE, EPOCH_TABLE, EPOCH_KEY, &bytes).await?;
    Ok(transaction.commit().await?)
}

async fn keyset_of(mint: &Mint, epoch: EpochId) -> Result<KeySet, MintError> {
    let unit = CurrencyUnit::Custom(epoch.to_string().into());
    let id = match mint.get_active_keysets().get(&unit) {
        Some(id) => *id,
        None => {
            let amounts = (0..=MAX_AMOUNT_BITS).map(|bit| 1 << bit).collect();
            mint.rotate_keyset(unit, amounts, 0, true, None).await?.id
        }
    };
    mint.keyset(&id).ok_or(MintError::Epoch("has no keyset"))
}
