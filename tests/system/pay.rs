//! Payments to payment requests and npubs, through a relay: by the commands, with
//! SIGKILL at random moments, and with relays and shops that are away.
//!
//! `HASHPIT_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cdk::nuts::{PaymentRequestPayload, Token};
use hashpit_client::Wallet;
use hashpit_client::pay::{self, Order, Outcome, PayError, Payee, RequestTerms};
use hashpit_client::wallet::What;
use hashpit_mailbox::Mailbox;
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use hashpit_tests::process::Process;
use nostr_sdk::{EventBuilder, Keys, Kind, RelayUrl, Tag, Timestamp, ToBech32};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

const PAYMENTS: u32 = 5;
/// Longer than a payment takes in a debug build, so that some are not cut short.
const LIFE_MS: u64 = 600;

/// Two wallets in `dir`, of which one has mined; what it has.
async fn two_wallets(dir: &Path, pool: &PoolHouse, relay: &RelayHouse) -> (Wallet, Wallet, u64) {
    let payer = Wallet::open_or_create(&dir.join("payer/wallet"), rand::random).await.unwrap();
    let payee = Wallet::open_or_create(&dir.join("payee/wallet"), rand::random).await.unwrap();
    let whole = pool.pay_for_work(&payer, relay).await.unwrap().get();
    (payer, payee, whole)
}

async fn held(wallet: &Wallet) -> (u64, u64) {
    let balances = wallet.balances().await.unwrap();
    let sum = |part: fn(&hashpit_client::wallet::Balance) -> u64| balances.iter().map(part).sum();
    (sum(|balance| balance.amount), sum(|balance| balance.pending))
}

fn npub(wallet: &Wallet) -> String {
    wallet.public_key().to_bech32().unwrap()
}

/// Runs a command of the wallet in `dir` to its end.
async fn hashpit(dir: PathBuf, args: &[&str]) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).arg("wallet").args(args).arg("--json");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if !output.status.success() {
        return Err(text(output.stderr));
    }
    Ok(serde_json::from_str(&text(output.stdout)).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_npubs_are_paid_by_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (payer, payee, whole) = two_wallets(dir, &pool, &relay).await;
    let (from, to, url) = (dir.join("payer"), dir.join("payee"), relay.url.to_string());
    let (unit, mint) = (pool.epoch.id.to_string(), pool.mint_url.clone());

    let args = ["request", "3", "--unit", &unit, "--mint", &mint, "--relay", &url];
    let asked = hashpit(to.clone(), &args).await.unwrap();
    let request = asked["request"].as_str().unwrap();
    let refused = hashpit(from.clone(), &["pay", request, "4"]).await.unwrap_err();
    assert!(refused.contains("is for 3"), "{refused}");
    let paid = hashpit(from.clone(), &["pay", request]).await.unwrap();
    assert_eq!((&paid["amount"], &paid["unit"]), (&json!(3), &json!(unit)));

    // The payee has nothing of that mint yet, and does not trust it unasked.
    let inbox = ["receive", "--inbox", "--relay", &url];
    let shown = hashpit(to.clone(), &inbox).await.unwrap();
    assert_eq!((&shown[0]["outcome"], &shown[0]["amount"]), (&json!("unknown_mint"), &json!(3)));
    assert_eq!(held(&payee).await, (0, 0));
    let received = hashpit(to.clone(), &[&inbox[..], &["--any-mint"]].concat()).await.unwrap();
    assert_eq!(received[0]["outcome"], json!("received"));
    assert_eq!(received[0]["request"], asked["id"]);
    assert_eq!(held(&payee).await, (3, 0));

    let to_npub = ["pay", &npub(&payee), "2"];
    assert_eq!(hashpit(from.clone(), &to_npub).await.unwrap()["amount"], json!(2));
    let received = hashpit(to.clone(), &inbox).await.unwrap();
    assert_eq!((received.as_array().unwrap().len(), &received[0]["amount"]), (1, &json!(2)));
    assert_eq!(hashpit(to.clone(), &inbox).await.unwrap(), json!([]));
    assert_eq!((held(&payee).await, held(&payer).await.0), ((5, 0), whole - 5));
    assert_eq!(hashpit(from.clone(), &["outbox"]).await.unwrap(), json!([]));

    let no_amount = hashpit(from.clone(), &["pay", &npub(&payee)]).await.unwrap_err();
    assert!(no_amount.contains("how much"), "{no_amount}");
    let other = ["request", "1", "--unit", &unit, "--mint", "https://other.example/ehash"];
    let other = hashpit(to, &[&other[..], &["--relay", &url]].concat()).await.unwrap();
    let refused = hashpit(from, &["pay", other["request"].as_str().unwrap()]).await.unwrap_err();
    assert!(refused.contains("holds none of theirs"), "{refused}");
    assert_eq!(held(&payer).await.0, whole - 5);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_is_cut_short_arrives_once_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (relay, pool) = relay_and_pool(dir.path()).await.unwrap();
    cut_short(dir.path(), relay, pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_does_without_a_route_to_the_mint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let mut config = PoolHouse::config(std::slice::from_ref(&relay.url));
    config.public_mint = format!("http://{nowhere}");
    let pool = PoolHouse::start(config, &dir.join("pool")).await.unwrap();
    cut_short(dir, relay, pool).await;
}

/// Payments of one unit that are killed at random moments, and one that is not.
async fn cut_short(dir: &Path, relay: RelayHouse, pool: PoolHouse) {
    let seed = std::env::var("HASHPIT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("HASHPIT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (payer, payee, whole) = two_wallets(dir, &pool, &relay).await;
    let payee = payee.with_relays(vec![relay.url.clone()]);

    for number in 0..PAYMENTS {
        let mut pay = Command::new(env!("CARGO_BIN_EXE_hashpit"));
        pay.arg("--data-dir").arg(dir.join("payer")).args(["wallet", "pay", &npub(&payee), "1"]);
        pay.args(["--again", "--relay", relay.url.as_str()]);
        let mut pay = Process::start(&mut pay, &dir.join(format!("pay-{number}.log"))).unwrap();
        sleep(Duration::from_millis(rng.random_range(0..LIFE_MS))).await;
        pay.kill();
        if rng.random() {
            // A command between that has cdk finish or undo what was left.
            let token = payer.send(1, None).await.unwrap().to_string();
            payer.receive(&token).await.unwrap();
        }
    }
    // The last one is not cut short, and delivers what waits.
    hashpit(dir.join("payer"), &["pay", &npub(&payee), "1", "--again"]).await.unwrap();
    assert!(payer.outbox().await.unwrap().is_empty());
    let relays = [relay.url.clone()];
    let arrived = pay::collect(&payee, &relays, true).await.unwrap();
    assert!(arrived.iter().all(|token| token.outcome == Outcome::Received), "{arrived:?}");
    // Marks what was received.
    let token = payer.send(1, None).await.unwrap().to_string();
    payer.receive(&token).await.unwrap();
    let token = payer.send(1, None).await.unwrap().to_string();
    payer.receive(&token).await.unwrap();
    let (left, received) = (held(&payer).await.0, held(&payee).await.0);
    println!("{whole} at first: {left} left, {received} received in {} messages", arrived.len());
    assert_eq!(received, arrived.len() as u64);
    assert!((1..=u64::from(PAYMENTS) + 1).contains(&received));
    assert_eq!(left + received, whole, "nothing is lost, and nothing is pending for ever");
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_delivered_waits_and_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (payer, payee, whole) = two_wallets(dir, &pool, &relay).await;
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = away.local_addr().unwrap();
    drop(away);
    let there: RelayUrl = format!("ws://{address}").parse().unwrap();
    let to: Payee = npub(&payee).parse().unwrap();
    let order = |amount, again| Order {
        amount: Some(amount),
        relays: vec![there.clone()],
        again,
        ..Order::default()
    };
    for amount in [1, 2] {
        let once = order(amount, false);
        let undelivered = pay::pay(&payer, &to, &once).await.unwrap_err().to_string();
        assert!(undelivered.contains("--take-back"), "{undelivered}");
    }
    assert_eq!(held(&payer).await, (whole - 3, 3));
    let waiting = payer.outbox().await.unwrap();
    let second = waiting.iter().find(|payment| payment.amount == 2).unwrap();
    assert!(!format!("{second:?}").contains("cashuB"), "a token is never logged");
    assert_eq!(payer.take_back(&second.id).await.unwrap().amount, 2);
    assert!(payer.take_back(&second.id).await.is_err());
    assert_eq!(payer.outbox().await.unwrap().len(), 1);
    let undelivered = pay::pay(&payer, &to, &order(1, true)).await.unwrap_err();
    let PayError::Undelivered { id: again, .. } = undelivered else { panic!("{undelivered}") };
    payer.take_back(&again).await.unwrap();

    // What is reclaimed by its entry in the history is not delivered any more.
    pay::pay(&payer, &to, &order(3, false)).await.unwrap_err();
    let sent = payer.history().await.unwrap();
    let sent = sent.iter().find(|sent| (sent.what, sent.amount) == (What::Sent, 3)).unwrap();
    payer.reclaim(&sent.id).await.unwrap();
    let waiting = payer.outbox().await.unwrap();
    assert_eq!((waiting.len(), waiting[0].amount, held(&payer).await), (1, 1, (whole - 1, 1)));

    let listener = TcpListener::bind(address).await.unwrap();
    let back = RelayHouse::start_on(listener, &dir.join("back")).await.unwrap();
    // The same command again, by a script: not delivered and then paid once more.
    let repeated = ["pay", &npub(&payee), "1", "--relay", there.as_str()];
    let refused = hashpit(dir.join("payer"), &repeated).await.unwrap_err();
    assert!(refused.contains(&waiting[0].id) && refused.contains("--again"), "{refused}");
    assert_eq!(held(&payer).await, (whole - 1, 1));
    let retried = pay::deliver_waiting(&payer).await.unwrap();
    assert_eq!((retried.len(), &retried[0].waits), (1, &None));
    let arrived = pay::collect(&payee, &[there], true).await.unwrap();
    assert_eq!((arrived.len(), held(&payee).await), (1, (1, 0)));
    assert_eq!(held(&payer).await.0, whole - 1);
    back.stop().await.unwrap();
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// Reads one HTTP request, answers it, and returns its JSON body.
async fn shop(listener: &TcpListener, status: &str) -> Value {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut text = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = socket.read(&mut some).await.unwrap();
        text.extend_from_slice(&some[..count]);
        let Some(head) = text.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        if let Ok(body) = serde_json::from_slice(&text[head + 4..]) {
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: 4\r\nconnection: close\r\n\r\n\x1b[2J"
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
            return body;
        }
        assert!(count > 0, "the request ended in the middle");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shop_is_paid_by_http_once_whatever_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (payer, payee, whole) = two_wallets(dir, &pool, &relay).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unit = pool.epoch.id.to_string();
    let terms = RequestTerms {
        amount: Some(2),
        unit: Some(unit.clone()),
        mints: vec![pool.mint_url.parse().unwrap()],
        relays: vec![relay.url.clone()],
        description: Some("two shares, please".to_owned()),
    };
    let mut request = pay::request(&payee, terms).await.unwrap();
    let target = format!("http://{}/pay", listener.local_addr().unwrap());
    request.transports = vec![serde_json::from_value(json!({"t": "post", "a": target})).unwrap()];
    let to: Payee = request.to_string().parse().unwrap();
    assert!(to.to_string().contains("two shares"));

    let order = Order::default();
    let try_to_pay =
        async |answer| tokio::join!(shop(&listener, answer), pay::pay(&payer, &to, &order));
    let (first, undelivered) = try_to_pay("503 Busy").await;
    assert!(undelivered.unwrap_err().to_string().contains("503"));
    assert_eq!((&first["id"], &first["unit"]), (&json!(request.payment_id), &json!(unit)));
    let proofs = first["proofs"].as_array().unwrap();
    let sum: u64 = proofs.iter().map(|proof| proof["amount"].as_u64().unwrap()).sum();
    assert_eq!((sum, proofs[0]["id"].as_str().unwrap().len()), (2, 66));

    // The same payment each time; a redirection is not followed, and what a shop
    // writes does not reach the terminal as it is.
    for (answer, words) in [
        ("302 Found\r\nlocation: /elsewhere", "redirections"),
        ("400 Bad Request", "answered 400: \\u{1b}[2J"),
    ] {
        let (again, undelivered) = try_to_pay(answer).await;
        let undelivered = undelivered.unwrap_err().to_string();
        assert!(undelivered.contains(words), "{undelivered}");
        assert_eq!((&again, held(&payer).await), (&first, (whole - 2, 2)));
    }
    // The shop has received it, and its answer was lost.
    let PaymentRequestPayload { mint, proofs, unit, .. } =
        serde_json::from_value(first.clone()).unwrap();
    let token = Token::new(mint, proofs, None, unit).to_string();
    assert_eq!(payee.receive(&token).await.unwrap().amount, 2);
    let (again, paid) = try_to_pay("400 Spent").await;
    assert_eq!((&again, paid.unwrap().amount), (&first, 2));
    assert!(payer.outbox().await.unwrap().is_empty());
    assert_eq!((held(&payer).await.0, held(&payee).await.0), (whole - 2, 2));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_full_of_rubbish_hides_no_payment() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (payer, payee, _) = two_wallets(dir, &pool, &relay).await;
    let there = BadRelay::start(Fault::None).await.unwrap();
    let to: Payee = npub(&payee).parse().unwrap();
    let relays = vec![there.url.clone()];
    let order = Order { amount: Some(1), relays: relays.clone(), ..Order::default() };
    pay::pay(&payer, &to, &order).await.unwrap();

    // More than a page, all of one second, and newer than the payment.
    let keys = Keys::generate();
    let stranger = Mailbox::connect(keys.clone(), &relays).await.unwrap();
    stranger.connected(Duration::from_secs(10)).await;
    let now = Timestamp::now();
    for number in 0..250 {
        let rubbish = EventBuilder::new(Kind::GiftWrap, number.to_string());
        let rubbish = rubbish.tag(Tag::public_key(payee.public_key())).custom_created_at(now);
        stranger.publish(&rubbish.sign_with_keys(&keys).unwrap()).await.unwrap();
    }
    stranger.close().await;
    assert_eq!(there.events().len(), 251);
    let arrived = pay::collect(&payee, &relays, true).await.unwrap();
    assert_eq!((arrived.len(), held(&payee).await), (1, (1, 0)));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
