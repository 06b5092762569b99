//! Who the wallet is on Nostr: the seed's own key, or one that a remote signer
//! holds (NIP-46). Money never depends on it: Cashu secrets and the key that
//! ehash is backed up under come from the seed alone.

use std::sync::Arc;
use std::time::Duration;

use nostr_connect::prelude::{NostrConnect, NostrConnectURI};
use nostr_sdk::{Keys, NostrSigner, PublicKey};
use serde::{Deserialize, Serialize};

use super::{NAMESPACE, Store, Wallet, WalletError};
use hashpit_nips::Seed;

const TABLE: &str = "identity";
const KEY: &str = "signer";
const VERSION: u8 = 1;

/// What a wallet's seed derives by NIP-06, by account.
pub mod account {
    /// The miner's Nostr key.
    pub const IDENTITY: u32 = 0;
    /// Author of ehash backups.
    pub const BACKUP: u32 = 1;
    /// Author of offers, and parent of the keys made for single trades.
    pub const TRADE: u32 = 2;
    /// The key that a NIP-60 wallet receives nutzaps to.
    pub const NUTZAP: u32 = 3;
    /// How the wallet speaks to its remote signer.
    pub const SIGNER_CLIENT: u32 = 4;
    /// The key by which a proxy proves itself to its Sv2 devices.
    pub const PROXY_AUTHORITY: u32 = 5;
}

/// How long a remote signer, or the person behind it, may take.
const SIGNER_PATIENCE: Duration = Duration::from_secs(60);

/// The wallet's Nostr key, wherever it is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    public_key: PublicKey,
    signer: Arc<dyn NostrSigner>,
}

/// A remote signer as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteSigner {
    version: u8,
    /// `bunker://…`, without the secret, which served for the first connection.
    uri: String,
    user: PublicKey,
}

impl Identity {
    pub(super) async fn load(store: &Store, seed: &Seed) -> Result<Self, WalletError> {
        let Some(bytes) = store.kv_read(NAMESPACE, TABLE, KEY).await? else {
            return Ok(Self::own(seed.nostr_keys(account::IDENTITY)));
        };
        let damaged = || WalletError::Damaged("the remote signer".to_owned());
        let record: RemoteSigner = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if record.version != VERSION {
            return Err(damaged());
        }
        let uri = NostrConnectURI::parse(&record.uri).map_err(|_| damaged())?;
        let signer = client(uri, seed)?;
        signer.non_secure_set_user_public_key(record.user).map_err(WalletError::signer)?;
        Ok(Self { public_key: record.user, signer: Arc::new(signer) })
    }

    fn own(keys: Keys) -> Self {
        Self { public_key: keys.public_key(), signer: Arc::new(keys) }
    }
}

fn client(uri: NostrConnectURI, seed: &Seed) -> Result<NostrConnect, WalletError> {
    let keys = seed.nostr_keys(account::SIGNER_CLIENT);
    NostrConnect::new(uri, keys, SIGNER_PATIENCE, None).map_err(WalletError::signer)
}

impl Wallet {
    /// The miner's Nostr key: its npub is what it mines under.
    pub fn public_key(&self) -> PublicKey {
        self.identity.public_key
    }

    /// Signs, encrypts and decrypts as [`Wallet::public_key`]. A remote signer
    /// answers in its own time, or never.
    pub fn signer(&self) -> Arc<dyn NostrSigner> {
        self.identity.signer.clone()
    }

    /// The author of ehash backups: an own key, since existing NIP-60 wallets
    /// would read every token under the identity as sats.
    pub fn backup_keys(&self) -> Keys {
        self.seed.nostr_keys(account::BACKUP)
    }

    /// The author of offers: an own key, so that they do not show who mines.
    pub fn trade_keys(&self) -> Keys {
        self.seed.nostr_keys(account::TRADE)
    }

    /// Takes on the Nostr identity that a remote signer holds (NIP-46,
    /// `bunker://…`), for this wallet's whole life: asks it for its key and
    /// remembers both. Refused once there is ehash or a pool under another key.
    pub async fn use_remote_signer(&mut self, uri: &str) -> Result<PublicKey, WalletError> {
        let uri = NostrConnectURI::parse(uri).map_err(WalletError::signer)?;
        if !uri.is_bunker() {
            return Err(WalletError::Signer("expected bunker://<key>?relay=…".to_owned()));
        }
        let signer = client(uri, &self.seed)?;
        let user = signer.get_public_key().await.map_err(WalletError::signer)?;
        if user != self.public_key() && !self.pools().await?.is_empty() {
            return Err(WalletError::IdentityInUse);
        }
        let uri = signer.bunker_uri().await.map_err(WalletError::signer)?.to_string();
        let record = RemoteSigner { version: VERSION, uri, user };
        let bytes = serde_json::to_vec(&record).expect("strings are JSON");
        self.store.kv_write(NAMESPACE, TABLE, KEY, &bytes).await?;
        self.identity = Identity { public_key: user, signer: Arc::new(signer) };
        Ok(user)
    }
}
