//! The pools that a wallet claims from: their relays, and how far their
//! messages were read.

use hashpit_mailbox::MESSAGE_LIFETIME;
use hashpit_nips::eh03::PoolTag;
use nostr_sdk::{PublicKey, RelayUrl, Timestamp};
use serde::{Deserialize, Serialize};

use super::{NAMESPACE, Wallet, WalletError};

const TABLE: &str = "pools";

/// A pool that the wallet claims from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownPool {
    version: u8,
    /// The pool's Nostr key.
    pub pool: PublicKey,
    /// Relays that it reads and writes.
    pub relays: Vec<RelayUrl>,
    /// Creation time of the newest message that was acted on.
    pub(crate) read_until: Timestamp,
}

impl KnownPool {
    /// A pool of which nothing has been read; relays keep no message of before
    /// `since`.
    pub(crate) fn new(pool: PublicKey, since: Timestamp) -> Self {
        Self { version: 1, pool, relays: Vec::new(), read_until: since }
    }
}

impl Wallet {
    /// The pools that this wallet has claimed from.
    pub async fn pools(&self) -> Result<Vec<KnownPool>, WalletError> {
        let mut pools = Vec::new();
        for key in self.store.kv_list(NAMESPACE, TABLE).await? {
            let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, &key).await? else { continue };
            pools.push(serde_json::from_slice(&bytes).map_err(|_| WalletError::Damaged(key))?);
        }
        Ok(pools)
    }

    /// Remembers pools that a backup names, so that claiming goes on.
    pub async fn remember_pools(&self, pools: &[PoolTag]) -> Result<(), WalletError> {
        let known = self.pools().await?;
        for PoolTag { pool, relays } in pools {
            if known.iter().any(|known| known.pool == *pool) {
                continue;
            }
            let mut known = KnownPool::new(*pool, Timestamp::now() - MESSAGE_LIFETIME);
            known.relays = relays.clone();
            self.remember(&known).await?;
        }
        Ok(())
    }

    pub(crate) async fn remember(&self, pool: &KnownPool) -> Result<(), WalletError> {
        let bytes = serde_json::to_vec(pool).expect("strings and numbers are JSON");
        Ok(self.store.kv_write(NAMESPACE, TABLE, &pool.pool.to_hex(), &bytes).await?)
    }
}
