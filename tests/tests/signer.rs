//! A wallet whose Nostr identity a remote signer holds (NIP-46).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hashpit_client::Wallet;
use hashpit_client::wallet::WalletError;
use hashpit_tests::house::relay_and_pool;
use nostr_connect::prelude::{
    NostrConnectKeys, NostrConnectRemoteSigner, NostrConnectRequest, NostrConnectSignerActions,
};
use nostr_sdk::{Keys, PublicKey, RelayUrl};
use tokio::task::JoinHandle;

/// Allows everything, and counts.
#[derive(Clone, Default)]
struct Allow(Arc<AtomicU32>);

impl NostrConnectSignerActions for Allow {
    fn approve(&self, _: &PublicKey, _: &NostrConnectRequest) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Starts a remote signer; the URI that pairs with it.
fn bunker(
    keys: NostrConnectKeys,
    relay: &RelayUrl,
    secret: Option<String>,
    asked: &Allow,
) -> (String, JoinHandle<()>) {
    let signer = NostrConnectRemoteSigner::new(keys, [relay.clone()], secret, None).unwrap();
    let (uri, asked) = (signer.bunker_uri().to_string(), asked.clone());
    (uri, tokio::spawn(async move { signer.serve(asked).await.unwrap() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn ehash_for_a_remote_signers_npub_is_claimed_and_restored_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let user = Keys::generate();
    let keys = NostrConnectKeys { signer: Keys::generate(), user: user.clone() };
    let asked = Allow::default();
    let secret = Some("s3cret".to_owned());
    let (uri, pairing) = bunker(keys.clone(), &relay.url, secret, &asked);

    let path = dir.join("wallet");
    let mut wallet = Wallet::open_or_create(&path, rand::random).await.unwrap();
    assert!(matches!(wallet.use_remote_signer("wss://x").await, Err(WalletError::Signer(_))));
    let npub = wallet.use_remote_signer(&uri).await.unwrap();
    assert_eq!((npub, wallet.public_key()), (user.public_key(), user.public_key()));
    // The secret serves once; the next process knows the signer by its record.
    pairing.abort();
    let (_, serving) = bunker(keys, &relay.url, None, &asked);
    let wallet = Wallet::open(&path).await.unwrap();
    assert_eq!(wallet.public_key(), user.public_key());
    let before = asked.0.load(Ordering::Relaxed);
    let earned = pool.pay_for_work(&wallet, &relay).await.unwrap();
    assert!(asked.0.load(Ordering::Relaxed) > before && earned.get() > 0);
    // It has mined: another identity would lose what is due; the same one is no
    // change.
    let mut wallet = wallet;
    let other = NostrConnectKeys { signer: Keys::generate(), user: Keys::generate() };
    let (others, other) = bunker(other, &relay.url, None, &asked);
    assert!(matches!(wallet.use_remote_signer(&others).await, Err(WalletError::IdentityInUse)));
    assert_eq!(wallet.use_remote_signer(&uri).await.unwrap(), user.public_key());
    other.abort();

    serving.abort();
    let again = Wallet::create(&dir.join("again"), wallet.seed().clone(), None).await.unwrap();
    let mint = pool.mint_url.parse().unwrap();
    let remains = hashpit_client::wallet::Remains { mints: [mint].into(), ..Default::default() };
    again.restore(&remains, &|_| ()).await.unwrap();
    assert_eq!(again.ehash(pool.epoch.id).await.unwrap(), earned);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
