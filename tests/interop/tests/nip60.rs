//! A NIP-60 wallet of another make: what we wrote opens there, and what it wrote
//! opens here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hashpit_client::Wallet;
use hashpit_client::backup::{Backup, FetchProgress, Found, Settings, fetch};
use hashpit_interop::within_patience;
use hashpit_tests::house::RelayHouse;
use hashpit_tests::sat_mint::SatMint;
use nostr_sdk::{Keys, RelayUrl};
use serde_json::{Value, json};
use tokio::sync::watch;

async fn ndk(relay: &RelayUrl, keys: &Keys, more: &[&str]) -> Result<Value> {
    let mut node = hashpit_interop::ndk("wallet.mjs")?;
    node.args([relay.as_str(), &keys.secret_key().to_secret_hex()]).args(more);
    let output = node.output().await.context("node does not start")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{complaint}");
    serde_json::from_slice(&output.stdout).with_context(|| complaint.into_owned())
}

async fn found(wallet: &Wallet, relay: &RelayUrl) -> Found {
    let (ehash, identity) = (Arc::new(wallet.backup_keys()), wallet.signer());
    let (progress, _) = watch::channel(FetchProgress::default());
    fetch(ehash, identity, std::slice::from_ref(relay), progress).await.unwrap()
}

fn secrets(found: &Found) -> BTreeSet<String> {
    found.tokens.values().flatten().map(|proof| proof.secret.to_string()).collect()
}

fn strings(values: &Value) -> BTreeSet<String> {
    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sats_that_we_backed_up_open_in_ndk() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let mint = SatMint::start(&dir.path().join("mint")).await.unwrap();
        let wallet = Wallet::open_or_create(&dir.path().join("wallet"), || [7; 16]).await.unwrap();
        let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
        let backup = Backup::connect(&wallet, settings).unwrap();
        for amount in [1_000, 234] {
            let token = mint.token(amount).await.unwrap();
            wallet.receive(&token.to_string()).await.unwrap();
            backup.sync().await.unwrap();
        }
        let report = ndk(&relay.url, &wallet.seed().nostr_keys(0), &[]).await.unwrap();
        let ours = found(&wallet, &relay.url).await;
        assert_eq!(report["balance"], json!(1_234), "{report}");
        assert_eq!(strings(&report["secrets"]), secrets(&ours));
        assert_eq!(report["mints"], json!([mint.url.to_string()]));
        assert_eq!(report["privkeys"], json!([ours.identity.privkeys[0].to_secret_hex()]));
        relay.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_ndk_wrote_opens_here_and_is_not_overwritten() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let mint = SatMint::start(&dir.path().join("mint")).await.unwrap();
        let wallet = Wallet::open_or_create(&dir.path().join("wallet"), || [7; 16]).await.unwrap();
        let (url, token) = (mint.url.to_string(), mint.token(77).await.unwrap().to_string());
        let theirs = ndk(&relay.url, &wallet.seed().nostr_keys(0), &[&url, &token]).await.unwrap();
        assert_eq!(theirs["balance"], json!(77), "{theirs}");
        let read = found(&wallet, &relay.url).await;
        assert_eq!(secrets(&read), strings(&theirs["secrets"]));
        assert!(read.unreadable.is_empty(), "{:?}", read.unreadable);
        assert_eq!(read.identity.mints, std::slice::from_ref(&mint.url));
        let key = read.identity.privkeys[0].to_secret_hex();
        assert_eq!(theirs["privkeys"], json!([key]));

        // Our own backup goes beside it.
        wallet.receive(&mint.token(5).await.unwrap().to_string()).await.unwrap();
        let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
        Backup::connect(&wallet, settings).unwrap().sync().await.unwrap();
        let both = ndk(&relay.url, &wallet.seed().nostr_keys(0), &[]).await.unwrap();
        assert_eq!(both["balance"], json!(82), "{both}");
        assert_eq!(both["privkeys"], json!([key]), "the key for nutzaps stays");
        relay.stop().await.unwrap();
    })
    .await;
}
