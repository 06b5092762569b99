//! An encrypted wallet's Nostr key, opened by a library of another make (NIP-49).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_client::wallet::Wallet;
use hashpit_interop::{node, within_patience};
use hashpit_nips::Seed;
use serde_json::json;

/// NIP-49's own example of a password that has to be normalised, as it is typed
/// and in its normal form (NFKC).
const PASSWORD: [&str; 2] = ["\u{212b}\u{2126}\u{1e9b}\u{323}", "\u{c5}\u{3a9}\u{1e69}"];

#[tokio::test(flavor = "multi_thread")]
async fn nostr_tools_decrypts_the_first_line_of_a_seed_file() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let seed = Seed::from_entropy(&[9; 16]);
        let wallet = Wallet::create(dir.path(), seed, Some(PASSWORD[0])).await.unwrap();
        let file = std::fs::read_to_string(dir.path().join("wallet.seed")).unwrap();
        let key = file.lines().next().unwrap();
        for password in PASSWORD {
            let opened = node("key.mjs", &[key, password]).await.unwrap();
            assert_eq!(opened, json!({"pubkey": wallet.public_key().to_hex()}));
        }
        node("key.mjs", &[key, "another"]).await.unwrap_err();
    })
    .await;
}
