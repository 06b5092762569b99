//! A wallet without a route to the mint: it claims, sends, receives, checks and
//! restores through the relay alone (EH-07).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cdk::Wallet as CdkWallet;
use cdk::amount::SplitTarget;
use cdk::nuts::{
    CurrencyUnit, PreMintSecrets, Proofs, ProofsMethods, RestoreRequest, SwapRequest, Token,
};
use cdk::wallet::WalletBuilder;
use cdk_sqlite::wallet::WalletSqliteDatabase;
use hashpit_client::Wallet;
use hashpit_client::mint::{Line, Route};
use hashpit_client::wallet::{MintUrl, Remains};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::eh07::{self, Method, Request, RequestId, Response};
use hashpit_nips::{WorkBits, kind};
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::house::{PoolHouse, RelayHouse};
use nostr_sdk::secp256k1::rand::rngs::OsRng;
use nostr_sdk::{Filter, Keys, RelayUrl, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An address at which nobody listens.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A pool whose announced mint URL leads nowhere.
async fn unreachable_mint(dir: &Path, relays: &[RelayUrl]) -> PoolHouse {
    let mut config = PoolHouse::config(relays);
    config.public_mint = closed_port().await;
    PoolHouse::start(config, &dir.join("pool")).await.unwrap()
}

async fn wallet(dir: &Path, name: &str) -> Wallet {
    Wallet::open_or_create(&dir.join(name), rand::random).await.unwrap()
}

async fn held(wallet: &Wallet) -> (u64, u64) {
    let balances = wallet.balances().await.unwrap();
    let sum = |part: fn(&hashpit_client::wallet::Balance) -> u64| balances.iter().map(part).sum();
    (sum(|balance| balance.amount), sum(|balance| balance.pending))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ehash_changes_hands_without_a_route_to_the_mint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let payer = wallet(dir, "payer").await;
    let whole = pool.pay_for_work(&payer, &relay).await.unwrap().get();

    let begun = Instant::now();
    let token = payer.send(whole / 2 + 1, None).await.unwrap().to_string();
    println!("sent in {:?}", begun.elapsed());
    assert_eq!(held(&payer).await, (whole - whole / 2 - 1, whole / 2 + 1));

    let payee = wallet(dir, "payee").await.with_route(Route::Http);
    let lost = payee.receive(&token).await.unwrap_err().to_string();
    assert!(lost.contains("does not answer"), "{lost}");
    let payee = payee.with_route(Route::Nostr);
    let lost = payee.receive(&token).await.unwrap_err().to_string();
    assert!(lost.contains("--relay"), "{lost}");
    let payee = payee.with_relays(vec![relay.url.clone()]);
    let begun = Instant::now();
    let received = payee.receive(&token).await.unwrap();
    println!("received in {:?}", begun.elapsed());
    assert_eq!(received.amount, whole / 2 + 1);
    assert_eq!(held(&payee).await, (whole / 2 + 1, 0));
    let twice = payee.receive(&token).await.unwrap_err().to_string();
    assert!(twice.to_lowercase().contains("spent"), "{twice}");

    // The payer finds out that its token was received, and spends the rest.
    let begun = Instant::now();
    let rest = payer.send(1, None).await.unwrap().to_string();
    println!("sent again in {:?}", begun.elapsed());
    assert_eq!(held(&payer).await, (whole - whole / 2 - 2, 1));
    payee.receive(&rest).await.unwrap();
    assert_eq!(held(&payee).await.0, whole / 2 + 2);

    // From the words, without any proof that a relay would have kept.
    let again = Wallet::create(&dir.join("again"), payee.seed().clone(), None).await.unwrap();
    let again = again.with_route(Route::Nostr).with_relays(vec![relay.url.clone()]);
    let mint: MintUrl = pool.mint_url.parse().unwrap();
    let pools = [(mint.clone(), pool.key)].into();
    let remains = Remains { mints: [mint].into(), pools, ..Remains::default() };
    let begun = Instant::now();
    let report = again.restore(&remains, &|_| ()).await.unwrap();
    println!("restored in {:?}", begun.elapsed());
    assert!(report.values().all(|found| found.unverified.is_none()), "{report:?}");
    assert_eq!(held(&again).await, (whole / 2 + 2, 0));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_what_it_may_and_refuses_the_rest_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let line = Line::open(pool.key, std::slice::from_ref(&relay.url)).await.unwrap();
    let ask = async |method, path: &str, body| {
        let asked = timeout(PATIENCE, line.request(method, path.to_owned(), body)).await;
        asked.unwrap().unwrap()
    };
    let info = ask(Method::Get, "/v1/info", None).await;
    assert_eq!((info.status, &info.body["urls"]), (200, &json!([pool.mint_url])));
    let keyset = pool.epoch.keyset.id.to_string();
    let keys = ask(Method::Get, &format!("/v1/keys/{keyset}"), None).await;
    assert_eq!((keys.status, &keys.body["keysets"][0]["id"]), (200, &json!(keyset)));

    for (method, path, body, status, words) in [
        (Method::Get, "/v1/swap", None, 404, "not carried"),
        (Method::Get, "/v1/ws", None, 404, "not carried"),
        (Method::Post, "/v1/mint/quote/bolt11", Some(json!({})), 404, "not carried"),
        (Method::Get, "/../ehash/v1/info", None, 404, "not carried"),
        (Method::Post, "/v1/swap", Some(json!({"outputs": vec![0; 151]})), 413, "at most 150"),
        (Method::Post, "/v1/swap", Some(json!({"inputs": 7})), 422, ""),
        (Method::Post, "/v1/swap", None, 400, ""),
    ] {
        let refused = ask(method, path, body).await;
        assert_eq!(refused.status, status, "{path}: {refused:?}");
        assert!(refused.body.to_string().contains(words), "{refused:?}");
    }
    let long = json!({"Ys": vec!["02".repeat(33); 1000]});
    let unsent = line.request(Method::Post, "/v1/checkstate".to_owned(), Some(long)).await;
    assert!(unsent.unwrap_err().to_string().contains("ask for less"));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// A wallet's key at the relay, without the patience of [`Line`].
struct Peer {
    keys: Keys,
    mailbox: Mailbox,
    inbox: Inbox,
    pool: PoolHouse,
}

impl Peer {
    async fn start(relay: &RelayHouse, pool: PoolHouse) -> Self {
        let relays = std::slice::from_ref(&relay.url);
        let keys = Keys::generate();
        let mailbox = Mailbox::connect(keys.clone(), relays).await.unwrap();
        let mine = keys.public_key();
        let inbox = mailbox.subscribe(Filter::new().kind(kind::MINT).pubkey(mine)).await.unwrap();
        let mut peer = Self { keys, mailbox, inbox, pool };
        // Asked until the relay has authenticated both sides.
        let info = peer.info(u128::MAX);
        loop {
            peer.ask(&info).await;
            if timeout(Duration::from_millis(500), peer.answer()).await.is_ok() {
                return peer;
            }
        }
    }

    fn info(&self, number: u128) -> Request {
        let id = RequestId::new(number.to_be_bytes());
        Request { id, method: Method::Get, path: "/v1/info".to_owned(), body: None }
    }

    /// Publishes a request once; while the relay is not connected, that fails.
    async fn ask(&self, request: &Request) {
        let (now, mut rng) = (Timestamp::now(), OsRng);
        let event = eh07::seal(request, &self.keys, &self.pool.key, now, &mut rng).unwrap();
        let _ = self.mailbox.publish(&event).await;
    }

    async fn answer(&mut self) -> Response {
        loop {
            if let Some(Arrival::Event(event)) = self.inbox.next().await {
                return eh07::open(&event, &self.keys).unwrap();
            }
        }
    }

    async fn answers(&mut self, id: RequestId, count: usize) -> Vec<Response> {
        let mut answers = Vec::new();
        while answers.len() < count {
            let answer = timeout(PATIENCE, self.answer()).await.unwrap();
            answers.extend((answer.id == id).then_some(answer));
        }
        answers
    }
}

/// A swap of a whole token for as much.
fn swap(token: &Token, pool: &PoolHouse) -> Value {
    let keyset = &pool.epoch.keyset;
    let info = json!({"id": keyset.id, "unit": keyset.unit, "active": true, "input_fee_ppk": 0});
    let proofs = token.proofs(&[serde_json::from_value(info).unwrap()]).unwrap();
    let amounts: Vec<u64> = keyset.keys.iter().map(|(amount, _)| u64::from(*amount)).collect();
    let (total, split) = (proofs.total_amount().unwrap(), SplitTarget::None);
    let outputs = PreMintSecrets::random(keyset.id, total, &split, &(0, amounts).into()).unwrap();
    serde_json::to_value(SwapRequest::new(proofs, outputs.blinded_messages())).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_carried_out_once_however_often_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let payer = wallet(dir, "payer").await;
    pool.pay_for_work(&payer, &relay).await.unwrap();
    let token = payer.send(3, None).await.unwrap();
    let [body, other] = [swap(&token, &pool), swap(&token, &pool)];
    let mut peer = Peer::start(&relay, pool).await;

    let mut request = peer.info(1);
    (request.method, request.path, request.body) =
        (Method::Post, "/v1/swap".to_owned(), Some(body));
    for _ in 0..5 {
        peer.ask(&request).await;
    }
    // One that comes while the first is under way gets no answer of its own.
    let first = peer.answers(request.id, 1).await.remove(0);
    assert_eq!((first.status, first.body["signatures"].as_array().unwrap().len()), (200, 2));
    peer.ask(&request).await;
    peer.ask(&request).await;
    assert!(peer.answers(request.id, 2).await.iter().all(|answer| *answer == first));

    (request.id, request.body) = (RequestId::new([2; 16]), Some(other));
    peer.ask(&request).await;
    let again = peer.answers(request.id, 1).await.remove(0);
    assert!((400..500).contains(&again.status) && again.body["code"].is_u64(), "{again:?}");
    peer.mailbox.close().await;
    peer.pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_told_to_wait_and_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let line = Line::open(pool.key, std::slice::from_ref(&relay.url)).await.unwrap();
    let mut peer = Peer::start(&relay, pool).await;
    for number in 0..200 {
        peer.ask(&peer.info(number)).await;
    }
    let refused = loop {
        let answer = timeout(PATIENCE, peer.answer()).await.unwrap();
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.body.as_str().is_some()), (429, true), "{refused:?}");
    // Rubbish that is addressed to the pool, and signed.
    let rubbish = nostr_sdk::EventBuilder::new(kind::MINT, "rubbish")
        .tag(nostr_sdk::Tag::public_key(peer.pool.key))
        .sign_with_keys(&peer.keys)
        .unwrap();
    peer.mailbox.publish(&rubbish).await.unwrap();
    let info = line.request(Method::Get, "/v1/info".to_owned(), None).await.unwrap();
    assert_eq!(info.status, 200, "another key is served");
    peer.mailbox.close().await;
    peer.pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_waits_for_a_relay_that_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let relay = RelayHouse::start_on(listener, &dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let payer = wallet(dir, "payer").await;
    let whole = pool.pay_for_work(&payer, &relay).await.unwrap().get();
    let payee = wallet(dir, "payee").await.with_relays(vec![relay.url.clone()]);
    let token = payer.send(1, None).await.unwrap().to_string();
    assert_eq!(payee.receive(&token).await.unwrap().amount, 1, "all is connected");
    let token = payer.send(whole - 1, None).await.unwrap().to_string();

    relay.stop().await.unwrap();
    let receiving = tokio::spawn({
        let payee = payee.clone();
        async move { payee.receive(&token).await }
    });
    let listener = TcpListener::bind(address).await.unwrap();
    let relay = RelayHouse::start_on(listener, &dir.join("relay")).await.unwrap();
    let begun = Instant::now();
    let received = timeout(PATIENCE, receiving).await.unwrap().unwrap().unwrap();
    println!("received {:?} after the relay came back", begun.elapsed());
    assert_eq!((received.amount, held(&payee).await), (whole - 1, (whole, 0)));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// Another program's view of our wallet's database.
async fn same_wallet(dir: &Path, wallet: &Wallet, pool: &PoolHouse) -> CdkWallet {
    let store = WalletSqliteDatabase::new(&dir.join("wallet.sqlite")).await.unwrap();
    let unit = CurrencyUnit::from_str(&pool.epoch.id.to_string()).unwrap();
    WalletBuilder::new()
        .mint_url(pool.mint_url.parse().unwrap())
        .unit(unit)
        .localstore(Arc::new(store))
        .seed(wallet.seed().to_bytes())
        .use_http_subscription()
        .without_rate_limiting()
        .build()
        .unwrap()
}

/// Changes all that the wallet has into proofs of one unit, `count` of them, and
/// the rest.
async fn into_ones(cdk: &CdkWallet, count: u64) {
    let swap = async |proofs: Proofs, split| {
        cdk.swap(None, split, proofs, None, false, false).await.unwrap();
        cdk.get_unspent_proofs().await.unwrap()
    };
    let chunks = vec![cdk::Amount::from(256); count.div_ceil(256) as usize];
    let all = cdk.get_unspent_proofs().await.unwrap();
    let mut proofs = swap(all, SplitTarget::Values(chunks)).await;
    let ones = |proofs: &Proofs| proofs.iter().filter(|one| u64::from(one.amount) == 1).count();
    while (ones(&proofs) as u64) < count {
        proofs.retain(|proof| u64::from(proof.amount) == 256);
        proofs = swap(proofs.split_off(proofs.len() - 1), SplitTarget::Value(1.into())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_small_proofs_can_be_spent_by_either_way() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let mut config = PoolHouse::config(std::slice::from_ref(&relay.url));
    config.work_bits = WorkBits::new(4).unwrap();
    let pool = PoolHouse::start(config, &dir.join("pool")).await.unwrap();
    let owner = wallet(dir, "owner").await;
    let whole = pool.pay_for_work(&owner, &relay).await.unwrap().get();
    assert!(whole > 1536, "a share is worth only {whole}");

    for (route, ones) in [(Route::Http, 1_200), (Route::Nostr, 130)] {
        let owner = owner.clone().with_route(route);
        let cdk = same_wallet(&dir.join("owner"), &owner, &pool).await;
        into_ones(&cdk, ones).await;
        let before = cdk.get_unspent_proofs().await.unwrap().len();
        let begun = Instant::now();
        let token = owner.send(whole - 1, None).await.unwrap();
        let parts = token.token_secrets().len();
        println!("{before} proofs, sent as {parts} by {route:?} in {:?}", begun.elapsed());
        assert!(before as u64 >= ones && parts < 50, "{before} became {parts}");
        assert_eq!(held(&owner).await, (1, whole - 1));
        let back = owner.receive(&token.to_string()).await.unwrap();
        assert_eq!((back.amount, held(&owner).await), (whole - 1, (whole, 0)));

        // A token of many proofs, by a wallet that does not consolidate.
        into_ones(&cdk, ones).await;
        let mut small = cdk.get_unspent_proofs().await.unwrap();
        small.retain(|proof| u64::from(proof.amount) == 1);
        small.truncate(ones as usize);
        let (url, unit) = (cdk.mint_url.clone(), cdk.unit.clone());
        let token = Token::new(url, small.clone(), None, unit);
        assert_eq!(token.token_secrets().len() as u64, ones);
        let begun = Instant::now();
        let payee = wallet(dir, &format!("payee-{route:?}")).await.with_route(route);
        let payee = payee.with_relays(vec![relay.url.clone()]);
        assert_eq!(payee.receive(&token.to_string()).await.unwrap().amount, ones);
        println!("{ones} proofs received by {route:?} in {:?}", begun.elapsed());
        for some in small.chunks(500) {
            cdk.check_proofs_spent(some.to_vec()).await.unwrap();
        }
        let all = payee.send(ones, None).await.unwrap().to_string();
        assert_eq!(owner.receive(&all).await.unwrap().amount, ones);
        assert_eq!(held(&owner).await, (whole, 0));

        into_ones(&cdk, ones).await;
        let fewer = owner.consolidate().await.unwrap();
        assert!(fewer as u64 > ones - 100, "{fewer}");
        assert_eq!((owner.consolidate().await.unwrap(), held(&owner).await), (0, (whole, 0)));
    }
    restore(&owner, &pool, &relay).await;
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// NUT-09 over Nostr: a hundred outputs in one request, and their signatures in
/// one answer.
async fn restore(owner: &Wallet, pool: &PoolHouse, relay: &RelayHouse) {
    let (id, seed) = (pool.epoch.keyset.id, owner.seed().to_bytes());
    let outputs = PreMintSecrets::restore_batch(id, &seed, 1000, 1100).unwrap().blinded_messages();
    assert_eq!(outputs.len(), 100);
    let request = serde_json::to_value(RestoreRequest { outputs }).unwrap();
    let line = Line::open(pool.key, std::slice::from_ref(&relay.url)).await.unwrap();
    let restored = line.request(Method::Post, "/v1/restore".to_owned(), Some(request)).await;
    let restored = restored.unwrap();
    assert_eq!(restored.status, 200, "{restored:?}");
    assert_eq!(restored.body["signatures"].as_array().unwrap().len(), 100);
    println!("100 signatures restored: {} bytes", restored.body.to_string().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_relay_of_the_pool_holds_up_no_wallet() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let silent = BadRelay::start(Fault::Silent).await.unwrap();
    let pool = unreachable_mint(dir, &[relay.url.clone(), silent.url.clone()]).await;
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    for _ in 0..2 {
        let line = Line::open(pool.key, std::slice::from_ref(&relay.url)).await.unwrap();
        let line = Arc::new(line);
        for _ in 0..40 {
            let line = Arc::clone(&line);
            asked.spawn(async move { line.request(Method::Get, "/v1/info".into(), None).await });
        }
    }
    for answer in asked.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    println!("80 answers in {:?}", begun.elapsed());
    // The SDK waits ten seconds for a relay; of 80 requests 32 are served at once.
    assert!(begun.elapsed() < Duration::from_secs(18), "{:?}", begun.elapsed());
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
