//! Sats at the pool's mint: two doors that keep ehash and sats apart, deposits,
//! withdrawals, and a wallet that is lost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdk::amount::SplitTarget;
use cdk::nuts::{CurrencyUnit, Id, KeySet, PreMintSecrets, Proofs, ProofsMethods, Token};
use cdk::wallet::MintConnector;
use cdk::{Amount, HttpClient};
use hashpit_client::Wallet;
use hashpit_client::backup::{self, Backup, FetchProgress, Settings};
use hashpit_client::mint::{Line, Route};
use hashpit_client::wallet::{Deposited, MintUrl, Remains, What};
use hashpit_nips::Sats;
use hashpit_nips::eh07::Method;
use hashpit_tests::house::{PoolHouse, RelayHouse};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

struct House {
    relay: RelayHouse,
    pool: PoolHouse,
    sats: MintUrl,
}

impl House {
    async fn start(dir: &Path) -> Self {
        let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
        let config = PoolHouse::config_with_sats(std::slice::from_ref(&relay.url));
        let pool = PoolHouse::start(config, &dir.join("pool")).await.unwrap();
        let sats = pool.sats_url.clone().unwrap();
        Self { relay, pool, sats }
    }

    async fn stop(self) {
        self.pool.stop().await.unwrap();
        self.relay.stop().await.unwrap();
    }

    /// What a door answers: HTTP's status, and JSON, or null where there is none.
    async fn ask(&self, door: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (host, _) = host_and_path(&self.pool.mint_url);
        let mut stream = TcpStream::connect(host).await.unwrap();
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{method} /{door}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        // Wallets in browsers may read every answer of the mint's.
        let open = head.contains("access-control-allow-origin: *");
        assert!(open || body.is_empty(), "{head}");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

fn host_and_path(url: &str) -> (&str, &str) {
    url.strip_prefix("http://").unwrap().split_once('/').unwrap()
}

async fn wallet(dir: &Path, name: &str) -> Wallet {
    Wallet::open_or_create(&dir.join(name), rand::random).await.unwrap()
}

async fn held(wallet: &Wallet, unit: &str) -> (u64, u64) {
    let balances = wallet.balances().await.unwrap().into_iter();
    balances
        .filter(|one| one.unit == unit)
        .fold((0, 0), |(amount, pending), one| (amount + one.amount, pending + one.pending))
}

async fn deposit(wallet: &Wallet, mint: &MintUrl, sats: u64) {
    let deposit = wallet.deposit(mint, Sats::new(sats)).await.unwrap();
    let deposited = timeout(PATIENCE, wallet.await_deposit(&deposit)).await.unwrap();
    assert_eq!(deposited.unwrap(), Deposited::Done);
}

/// A token's proofs.
fn proofs(token: &Token, keyset: &KeySet) -> Proofs {
    let info = json!({"id": keyset.id, "unit": keyset.unit, "active": true, "input_fee_ppk": 0});
    token.proofs(&[serde_json::from_value(info).unwrap()]).unwrap()
}

/// Blinded messages for `amount`.
fn outputs(keyset: &KeySet, amount: u64) -> Value {
    let amounts = keyset.keys.iter().map(|(amount, _)| u64::from(*amount)).collect::<Vec<_>>();
    let split = SplitTarget::default();
    let fees = &(0, amounts).into();
    let secrets = PreMintSecrets::random(keyset.id, Amount::from(amount), &split, fees);
    json!(secrets.unwrap().blinded_messages())
}

async fn sat_keyset(house: &House) -> KeySet {
    let client = HttpClient::new(house.sats.clone(), None);
    client.get_mint_keys().await.unwrap().pop().unwrap()
}

fn units(answer: &Value) -> Vec<&str> {
    let keysets = answer["keysets"].as_array().unwrap();
    keysets.iter().map(|keyset| keyset["unit"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_door_shows_its_own_units_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let (ehash, sats) = (house.pool.epoch.keyset.clone(), sat_keyset(&house).await);
    assert_eq!(sats.keys.len(), 32);
    let unit = ehash.unit.to_string();
    for (door, own, stranger) in
        [("ehash", (unit.as_str(), ehash.id), sats.id), ("sat", ("sat", sats.id), ehash.id)]
    {
        for path in ["/v1/keys", "/v1/keysets", &format!("/v1/keys/{}", own.1)] {
            let (status, answer) = house.ask(door, path, None).await;
            assert_eq!((status, units(&answer)), (200, vec![own.0]), "{door}{path}");
        }
        let (status, answer) = house.ask(door, &format!("/v1/keys/{stranger}"), None).await;
        assert_eq!((status, &answer["code"]), (404, &json!(12001)), "{answer}");
        let (_, info) = house.ask(door, "/v1/info", None).await;
        let (host, _) = host_and_path(&house.pool.mint_url);
        assert_eq!(info["urls"], json!([format!("http://{host}/{door}")]));
        assert_eq!(info["pubkey"], json!(format!("02{}", house.pool.key.to_hex())));
        let simulated = door == "sat";
        for (nut, methods) in [("4", "methods"), ("5", "methods")] {
            let methods = info["nuts"][nut][methods].as_array().unwrap();
            assert_eq!(methods.len(), usize::from(simulated), "{door}: {info}");
            assert_eq!(info["nuts"][nut]["disabled"], json!(!simulated), "{door}");
        }
        assert_eq!(info["name"].as_str().unwrap().contains("SIMULATION"), simulated);
        assert_eq!(info["motd"].as_str().is_some_and(|it| it.contains("Worth nothing")), simulated);
        assert!(!info.to_string().contains(if simulated { "hash_" } else { "\"sat\"" }), "{info}");
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ehash_can_neither_be_melted_nor_mixed_with_sats() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let wallet = wallet(dir.path(), "wallet").await;
    let mined = house.pool.pay_for_work(&wallet, &house.relay).await.unwrap().get();
    deposit(&wallet, &house.sats, mined).await;
    let (ehash, sats) = (house.pool.epoch.keyset.clone(), sat_keyset(&house).await);
    let unit = ehash.unit.to_string();
    let of_ehash = proofs(&wallet.send(mined, Some(&unit)).await.unwrap(), &ehash);
    let of_sats = proofs(&wallet.send(mined, Some("sat")).await.unwrap(), &sats);

    // At the ehash door there is nothing to melt or to mint by.
    let invoice = wallet.deposit(&house.sats, Sats::new(1)).await.unwrap().invoice;
    let quote = json!({ "request": invoice, "unit": unit });
    for path in ["/v1/melt/quote/bolt11", "/v1/melt/bolt11", "/v1/mint/quote/bolt11"] {
        assert_eq!(house.ask("ehash", path, Some(quote.clone())).await.0, 404, "{path}");
    }
    // At the other there is no quote for it, and none that it could pay.
    let (status, answer) = house.ask("sat", "/v1/melt/quote/bolt11", Some(quote)).await;
    assert_eq!((status, &answer["code"]), (400, &json!(11013)), "{answer}");
    let quote = json!({ "request": invoice, "unit": "sat" });
    let (status, quote) = house.ask("sat", "/v1/melt/quote/bolt11", Some(quote)).await;
    assert_eq!(status, 200, "{quote}");
    let id = &quote["quote"];
    let of_both = [&of_ehash[..], &of_sats[..]].concat();
    for body in [
        json!({ "quote": id, "inputs": of_ehash }),
        json!({ "quote": id, "inputs": of_both }),
        json!({ "quote": id, "inputs": of_sats, "outputs": outputs(&ehash, 1) }),
    ] {
        refused(&house, "sat", "/v1/melt/bolt11", body, ehash.id).await;
    }
    // Nor does a swap at either door take the other's, or give it.
    for (door, inputs, outputs, stranger) in [
        ("sat", &of_ehash, outputs(&ehash, mined), ehash.id),
        ("ehash", &of_sats, outputs(&sats, mined), sats.id),
        ("sat", &of_sats, outputs(&ehash, mined), ehash.id),
        ("ehash", &of_sats, outputs(&ehash, mined), sats.id),
        ("ehash", &of_ehash, outputs(&sats, mined), sats.id),
        ("sat", &of_ehash, outputs(&sats, mined), ehash.id),
    ] {
        let body = json!({ "inputs": inputs, "outputs": outputs });
        refused(&house, door, "/v1/swap", body, stranger).await;
    }
    let of_other = json!({ "outputs": outputs(&ehash, 1) });
    refused(&house, "sat", "/v1/restore", of_other, ehash.id).await;
    // Nothing of this has spent anything; each goes through its own door still.
    for (door, proofs, keyset) in [("ehash", &of_ehash, &ehash), ("sat", &of_sats, &sats)] {
        let states = json!({ "Ys": proofs.ys().unwrap() });
        let (_, answer) = house.ask("sat", "/v1/checkstate", Some(states)).await;
        let states = answer["states"].as_array().unwrap();
        assert!(states.iter().all(|one| one["state"] == "UNSPENT"), "{door}: {answer}");
        let swap = json!({ "inputs": proofs, "outputs": outputs(keyset, mined) });
        let (status, answer) = house.ask(door, "/v1/swap", Some(swap)).await;
        assert_eq!(status, 200, "{door}: {answer}");
    }
    house.stop().await;
}

async fn refused(house: &House, door: &str, path: &str, body: Value, stranger: Id) {
    let (status, answer) = house.ask(door, path, Some(body)).await;
    assert_eq!((status, &answer["code"]), (400, &json!(12001)), "{door}{path}: {answer}");
    assert!(answer["detail"].as_str().unwrap().contains(&stranger.to_string()), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sats_come_in_and_go_out_by_invoices() {
    let dir = tempfile::tempdir().unwrap();
    let (house, far) =
        (House::start(&dir.path().join("a")).await, House::start(&dir.path().join("b")).await);
    let (payer, payee) = (wallet(dir.path(), "payer").await, wallet(dir.path(), "payee").await);
    // Asking again for what is open gives the same invoice.
    let first = payer.deposit(&house.sats, Sats::new(1000)).await.unwrap();
    assert_eq!(payer.deposit(&house.sats, Sats::new(1000)).await.unwrap(), first);
    // A deposit that its command does not wait for is taken by the next one.
    deposit(&payer, &house.sats, 500).await;
    timeout(PATIENCE, async {
        while held(&payer, "sat").await != (1500, 0) {
            payer.consolidate().await.unwrap();
        }
    })
    .await
    .unwrap();
    assert!(payer.deposits().await.unwrap().is_empty());

    let invoice = payee.deposit(&far.sats, Sats::new(300)).await.unwrap();
    let withdrawal = payer.quote_withdrawal(&invoice.invoice, None).await.unwrap();
    assert_eq!((withdrawal.amount, &withdrawal.mint), (300, &house.sats.to_string()));
    let withdrawn = payer.withdraw(&withdrawal).await.unwrap();
    let fee = withdrawn.fee.unwrap();
    assert!(fee <= withdrawal.fee_reserve);
    assert_eq!((withdrawn.amount, held(&payer, "sat").await), (300, (1200 - fee, 0)));
    assert_eq!(payee.await_deposit(&invoice).await.unwrap(), Deposited::Done);
    assert_eq!(held(&payee, "sat").await, (300, 0));
    let whats: Vec<_> = payer.history().await.unwrap().iter().map(|one| one.what).collect();
    assert_eq!(whats.iter().filter(|what| **what == What::Deposited).count(), 2);
    assert_eq!(whats.iter().filter(|what| **what == What::Withdrawn).count(), 1);

    let again = payer.quote_withdrawal(&invoice.invoice, None).await;
    let twice = match again {
        Ok(withdrawal) => payer.withdraw(&withdrawal).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(twice.unwrap_err().to_string().to_lowercase().contains("paid"));
    let much = payee.deposit(&far.sats, Sats::new(5000)).await.unwrap();
    let much = payer.quote_withdrawal(&much.invoice, None).await.unwrap_err().to_string();
    assert!(much.contains("5001 wanted"), "{much}");
    assert_eq!(held(&payer, "sat").await, (1200 - fee, 0));
    house.stop().await;
    far.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sats_are_swapped_over_nostr_as_ehash_is() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let wallet = wallet(dir.path(), "wallet").await;
    house.pool.pay_for_work(&wallet, &house.relay).await.unwrap();
    deposit(&wallet, &house.sats, 1000).await;
    let token = wallet.send(300, Some("sat")).await.unwrap().to_string();

    let line = Line::open(house.pool.key, std::slice::from_ref(&house.relay.url)).await.unwrap();
    let ask = async |path: &str| {
        let asked = timeout(PATIENCE, line.request(Method::Get, path.to_owned(), None)).await;
        asked.unwrap().unwrap()
    };
    let info = ask("/sat/v1/info").await;
    assert_eq!((info.status, &info.body["urls"]), (200, &json!([house.sats])));
    let keysets = ask("/sat/v1/keysets").await;
    assert_eq!(units(&keysets.body), ["sat"]);
    assert_eq!(ask("/sat/v1/mint/quote/bolt11").await.status, 404);

    // The wallet knows by the URL which pool to ask.
    let wallet = wallet.with_route(Route::Nostr);
    assert_eq!(wallet.receive(&token).await.unwrap().amount, 300);
    assert_eq!(held(&wallet, "sat").await, (1000, 0));
    house.stop().await;
}

/// A pool that says its mint is where another's is.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_names_a_strangers_mint_is_not_shown_its_sats() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(&dir.path().join("honest")).await;
    let wallet = wallet(dir.path(), "wallet").await;
    deposit(&wallet, &house.sats, 1000).await;
    let token = wallet.send(300, Some("sat")).await.unwrap().to_string();
    let mut config = PoolHouse::config_with_sats(std::slice::from_ref(&house.relay.url));
    let (host, _) = host_and_path(&house.pool.mint_url);
    config.public_mint = format!("http://{host}");
    let thief = PoolHouse::start(config, &dir.path().join("thief")).await.unwrap();
    assert_eq!(thief.sats_url.as_ref(), Some(&house.sats));
    thief.pay_for_work(&wallet, &house.relay).await.unwrap();

    for wallet in [wallet.clone(), self::wallet(dir.path(), "payee").await] {
        let wallet = wallet.with_route(Route::Nostr).with_relays(vec![house.relay.url.clone()]);
        let refused = wallet.receive(&token).await.unwrap_err().to_string();
        assert!(refused.contains("no relay of the pool behind"), "{refused}");
    }
    assert_eq!(wallet.receive(&token).await.unwrap().amount, 300);
    thief.stop().await.unwrap();
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_and_a_relay_bring_back_sats() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let lost = wallet(dir.path(), "lost").await;
    let settings = Settings { relays: vec![house.relay.url.clone()], quorum: None };
    lost.set_backup_settings(&settings).await.unwrap();
    deposit(&lost, &house.sats, 1000).await;
    let sent = lost.send(300, Some("sat")).await.unwrap().to_string();
    Backup::connect(&lost, settings).unwrap().sync().await.unwrap();
    // Newer than the backup: the mint has it still.
    deposit(&lost, &house.sats, 50).await;
    let seed = lost.seed().clone();
    drop(lost);

    let restored = Wallet::create(&dir.path().join("restored"), seed, None).await.unwrap();
    let (progress, _) = watch::channel(FetchProgress::default());
    let ehash = Arc::new(restored.backup_keys());
    let relays = [house.relay.url.clone()];
    let found = backup::fetch(ehash, restored.signer(), &relays, progress).await.unwrap();
    let report = restored.restore(&Remains::of(&found), &|_| ()).await.unwrap();
    assert!(report.values().all(|found| found.unverified.is_none()), "{report:?}");
    // With the token that nobody has received.
    assert_eq!(held(&restored, "sat").await, (1050, 0));
    let whole = restored.send(1050, Some(&CurrencyUnit::Sat.to_string())).await.unwrap();
    let other = wallet(dir.path(), "other").await;
    assert_eq!(other.receive(&whole.to_string()).await.unwrap().amount, 1050);
    assert!(other.receive(&sent).await.unwrap_err().to_string().contains("Spent"));
    house.stop().await;
}
