//! A wallet whose Nostr identity is with a remote signer of another make
//! (NIP-46).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_client::wallet::{Wallet, WalletError};
use hashpit_interop::bunker::{Bunker, SECRET};
use hashpit_interop::pair::Pair;
use hashpit_interop::within_patience;
use hashpit_nips::HashUnits;
use hashpit_tests::house::RelayHouse;
use nostr_sdk::Keys;

#[tokio::test(flavor = "multi_thread")]
async fn ehash_arrives_for_an_npub_that_ndk_holds() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let config = Pair::config(&relay.url, 20_000.0, 600.0).unwrap();
        let mut pair = Pair::start(dir.path(), config).await.unwrap();
        let user = Keys::generate();
        let bunker = Bunker::start(&relay.url, &user).await.unwrap();

        let guessed = bunker.uri.replace(SECRET, "guessed");
        let refused = pair.wallet.use_remote_signer(&guessed).await;
        assert!(matches!(refused, Err(WalletError::Signer(_))), "{refused:?}");
        let npub = pair.wallet.use_remote_signer(&bunker.uri).await.unwrap();
        assert_eq!((npub, pair.wallet.public_key()), (user.public_key(), user.public_key()));

        // The next process knows the signer by its record, without the secret.
        pair.wallet = Wallet::open(&dir.path().join("wallet")).await.unwrap();
        pair.mine(10).await.unwrap();
        let status = pair.claim().await.unwrap();
        let ehash = pair.ehash().await.unwrap();
        assert!(ehash > HashUnits::ZERO);
        assert_eq!(ehash, status.totals.issued);

        let asked = bunker.stop().await.unwrap();
        for method in ["connect", "sign_event", "nip44_encrypt", "nip44_decrypt"] {
            assert!(asked.contains_key(method), "{method} is not among {asked:?}");
        }
        pair.pool.stop().await.unwrap();
        relay.stop().await.unwrap();
    })
    .await;
}
