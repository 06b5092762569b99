//! Our client of Nostr Wallet Connect (NIP-47) and wallets that answer wrongly, or
//! not at all: a failure is told only where it is certain.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bitcoin::hashes::{Hash, sha256};
use bitcoin::secp256k1::{SECP256K1, SecretKey};
use cdk::lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use futures_util::{SinkExt, StreamExt};
use hashpit_client::nwc::{Class, HoldOrder, Method, Notice, Nwc, NwcError, NwcUri};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::Msats;
use hashpit_tests::house::RelayHouse;
use nostr_sdk::nips::nip44;
use nostr_sdk::{
    Event, EventBuilder, Filter, JsonUtil, Keys, Kind, RelayUrl, Tag, TagKind, Timestamp,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(60);
const PREIMAGE: [u8; 32] = [5; 32];
const MSATS: u64 = 7_000;

const INFO: u16 = 13194;
const REQUEST: u16 = 23194;
const RESPONSE: u16 = 23195;
const NOTIFICATION: u16 = 23197;

/// A wallet that says what the test has it say.
struct Wallet {
    keys: Keys,
    client: Keys,
    relay: RelayUrl,
    mailbox: Mailbox,
    requests: Inbox,
}

impl Wallet {
    async fn start(relay: &RelayUrl) -> Self {
        let (keys, client) = (Keys::generate(), Keys::generate());
        let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await.unwrap();
        assert_eq!(mailbox.connected(PATIENCE).await, 1);
        let filter = Filter::new().kind(Kind::from(REQUEST)).pubkey(keys.public_key());
        let requests = mailbox.subscribe(filter).await.unwrap();
        Self { keys, client, relay: relay.clone(), mailbox, requests }
    }

    fn uri(&self) -> NwcUri {
        let secret = self.client.secret_key().clone();
        NwcUri::new(self.keys.public_key(), vec![self.relay.clone()], secret).unwrap()
    }

    async fn announce(&self, encryption: Option<&str>) {
        self.mailbox.publish(&info(&self.keys, encryption)).await.unwrap();
    }

    /// Waits until it hears of requests again after its connection was lost.
    async fn returned(&mut self) {
        let returned = async {
            while !matches!(self.requests.next().await.unwrap(), Arrival::Connected(_)) {}
        };
        timeout(PATIENCE, returned).await.expect("a connection in time");
        // The relay reads in order, so that it knows the subscription when it answers.
        let anything = Filter::new().kind(Kind::from(INFO));
        assert_eq!(self.mailbox.fetch(anything, PATIENCE).await.unwrap().1, 1);
    }

    /// The next request, and what it says.
    async fn asked(&mut self) -> (Event, Value) {
        let asked = timeout(PATIENCE, async {
            loop {
                if let Arrival::Event(event) = self.requests.next().await.unwrap() {
                    return *event;
                }
            }
        });
        let event = asked.await.expect("a request in time");
        let plain = nip44::decrypt(self.keys.secret_key(), &event.pubkey, &event.content).unwrap();
        (event, serde_json::from_str(&plain).unwrap())
    }

    async fn say(&self, kind: u16, about: Option<&Event>, body: &Value) {
        let event = message(&self.keys, &self.client, kind, about, body);
        self.mailbox.publish(&event).await.unwrap();
    }

    async fn answer(&mut self, body: Value) {
        let (request, _) = self.asked().await;
        self.say(RESPONSE, Some(&request), &body).await;
    }
}

fn info(keys: &Keys, encryption: Option<&str>) -> Event {
    let scheme = encryption.map(|it| Tag::custom(TagKind::custom("encryption"), [it]));
    EventBuilder::new(Kind::from(INFO), "pay_invoice").tags(scheme).sign_with_keys(keys).unwrap()
}

fn message(from: &Keys, to: &Keys, kind: u16, about: Option<&Event>, body: &Value) -> Event {
    let (key, to) = (from.secret_key(), to.public_key());
    let content = nip44::encrypt(key, &to, body.to_string(), nip44::Version::V2).unwrap();
    EventBuilder::new(Kind::from(kind), content)
        .tag(Tag::public_key(to))
        .tags(about.map(|request| Tag::event(request.id)))
        .sign_with_keys(from)
        .unwrap()
}

fn hash() -> [u8; 32] {
    sha256::Hash::hash(&PREIMAGE).to_byte_array()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn invoice() -> String {
    let key = SecretKey::from_slice(&[7; 32]).unwrap();
    InvoiceBuilder::new(Currency::Regtest)
        .description(String::new())
        .payment_hash(sha256::Hash::from_byte_array(hash()))
        .payment_secret(PaymentSecret([1; 32]))
        .current_timestamp()
        .min_final_cltv_expiry_delta(80)
        .amount_milli_satoshis(MSATS)
        .build_signed(|hash| SECP256K1.sign_ecdsa_recoverable(hash, &key))
        .unwrap()
        .to_string()
}

fn refusal(method: &str, code: &str) -> Value {
    json!({ "result_type": method, "error": { "code": code, "message": "no" }, "result": null })
}

fn result(method: &str, result: Value) -> Value {
    json!({ "result_type": method, "error": null, "result": result })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_is_certain_only_where_the_wallet_leaves_no_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let mut wallet = Wallet::start(&relay.url).await;
    wallet.announce(Some("nip44_v2 nip04")).await;
    let nwc = Nwc::connect(&wallet.uri()).await.unwrap();
    let told = |preimage: &[u8]| result("pay_invoice", json!({ "preimage": hex(preimage) }));
    let answers = [
        (told(&PREIMAGE), None),
        (told(&[6; 32]), Some(Class::Unknown)),
        (told(b"junk"), Some(Class::Unknown)),
        (result("pay_invoice", Value::Null), Some(Class::Unknown)),
        (result("lookup_invoice", json!({ "preimage": hex(&PREIMAGE) })), Some(Class::Unknown)),
        (json!("paid"), Some(Class::Unknown)),
        (refusal("pay_invoice", "PAYMENT_FAILED"), Some(Class::Unknown)),
        (refusal("pay_invoice", "INTERNAL"), Some(Class::Unknown)),
        (refusal("pay_invoice", "SOMETHING_NEW"), Some(Class::Unknown)),
        (refusal("pay_invoice", "INSUFFICIENT_BALANCE"), Some(Class::Refused)),
        (refusal("pay_invoice", "RESTRICTED"), Some(Class::Refused)),
        (refusal("pay_invoice", "RATE_LIMITED"), Some(Class::Unreachable)),
    ];
    let bolt11 = invoice();
    for (answer, class) in answers {
        let shown = answer.to_string();
        let (paid, ()) = tokio::join!(nwc.pay_invoice(&bolt11), wallet.answer(answer));
        match (paid, class) {
            (Ok(preimage), None) => assert_eq!(preimage, PREIMAGE),
            (Err(error), Some(class)) => assert_eq!(error.class(), class, "{shown}: {error}"),
            (paid, _) => panic!("{shown}: {paid:?}"),
        }
    }
    let junk = nwc.pay_invoice("lnbcrt1junk").await.unwrap_err();
    assert_eq!(junk.class(), Class::Refused, "{junk}");
    nwc.close().await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_is_asked_for_once_and_then_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let mut wallet = Wallet::start(&relay.url).await;
    wallet.announce(Some("nip44_v2")).await;
    let nwc = Nwc::connect(&wallet.uri()).await.unwrap();
    let (bolt11, hasty) = (invoice(), nwc.clone().with_pay_patience(Duration::from_millis(300)));

    let (paid, (request, asked)) = tokio::join!(hasty.pay_invoice(&bolt11), wallet.asked());
    assert_eq!(paid.unwrap_err().class(), Class::Unknown);
    assert_eq!(asked, json!({ "method": "pay_invoice", "params": { "invoice": bolt11 } }));
    assert!(request.tags.expiration().unwrap().as_secs() <= Timestamp::now().as_secs() + 60);
    let scheme = request.tags.find(TagKind::custom("encryption")).unwrap();
    assert_eq!(scheme.content(), Some("nip44_v2"));

    // The next request is the question of what became of it.
    let mut said = json!({
        "type": "outgoing", "payment_hash": hex(&hash()), "amount": MSATS, "state": "settled",
        "preimage": hex(&[6; 32]), "created_at": 1, "fees_paid": 0,
    });
    let lie = result("lookup_invoice", said.clone());
    let (known, ()) = tokio::join!(nwc.lookup_invoice(hash()), wallet.answer(lie));
    assert!(matches!(known, Err(NwcError::Unreadable { .. })), "{known:?}");
    said["preimage"] = hex(&PREIMAGE).into();
    let truth = result("lookup_invoice", said.clone());
    let (known, ()) = tokio::join!(nwc.lookup_invoice(hash()), wallet.answer(truth));
    assert_eq!(known.unwrap().preimage, Some(PREIMAGE));
    let other = result("lookup_invoice", said);
    let (known, ()) = tokio::join!(nwc.lookup_invoice([8; 32]), wallet.answer(other));
    assert!(matches!(known, Err(NwcError::Unreadable { .. })), "{known:?}");
    nwc.close().await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invoice_that_was_not_ordered_is_not_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let mut wallet = Wallet::start(&relay.url).await;
    wallet.announce(Some("nip44_v2")).await;
    let nwc = Nwc::connect(&wallet.uri()).await.unwrap();
    let order = |msats, payment_hash| HoldOrder {
        amount: Msats::new(msats),
        payment_hash,
        expiry_secs: 600,
        description: String::new(),
        min_final_cltv: Some(80),
    };
    for (order, good) in [
        (order(MSATS, hash()), true),
        (order(MSATS + 1, hash()), false),
        (order(MSATS, [8; 32]), false),
    ] {
        let made = result("make_hold_invoice", json!({ "invoice": invoice() }));
        let (made, ()) = tokio::join!(nwc.make_hold_invoice(&order), wallet.answer(made));
        match made {
            Ok(made) => assert!(good && made.min_final_cltv == 80),
            Err(error) => assert!(!good && error.class() == Class::Unknown, "{error}"),
        }
    }
    // One whose answer was lost is found again, unless it can no longer be paid.
    for (state, good) in [("pending", true), ("settled", false)] {
        let said = json!({
            "payment_hash": hex(&hash()), "amount": MSATS, "state": state, "invoice": invoice(),
        });
        let order = order(MSATS, hash());
        let (made, ()) = tokio::join!(nwc.make_hold_invoice(&order), async {
            wallet.answer(refusal("make_hold_invoice", "OTHER")).await;
            wallet.answer(result("lookup_invoice", said)).await;
        });
        assert_eq!(made.is_ok(), good, "{made:?}");
    }
    nwc.close().await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_is_used_only_with_encryption_that_cannot_be_altered() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let wallet = Wallet::start(&relay.url).await;
    let absent = Nwc::connect(&wallet.uri()).await.unwrap_err();
    assert!(matches!(absent, NwcError::NoWallet), "{absent}");
    for scheme in [None, Some("nip04"), Some("nip44_v3")] {
        let other = Wallet::start(&relay.url).await;
        other.announce(scheme).await;
        let refused = Nwc::connect(&other.uri()).await.unwrap_err();
        assert!(matches!(refused, NwcError::Nip04Only), "{scheme:?}: {refused}");
    }
    relay.stop().await.unwrap();
    let gone = Nwc::connect(&wallet.uri()).await.unwrap_err();
    assert_eq!(gone.class(), Class::Unreachable, "{gone}");
    assert!(matches!(gone, NwcError::Unreachable), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_is_told_that_the_connection_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let mut wallet = Wallet::start(&relay.url).await;
    wallet.announce(Some("nip44_v2")).await;
    let nwc = Nwc::connect(&wallet.uri()).await.unwrap();
    let mut heard = nwc.notifications();
    let said = json!({
        "notification_type": "hold_invoice_accepted",
        "notification": {
            "type": "incoming", "payment_hash": hex(&hash()), "amount": MSATS, "invoice": "",
            "created_at": 1, "expires_at": 2, "settle_deadline": 840_000,
        },
    });
    wallet
        .say(NOTIFICATION, None, &json!({ "notification_type": "new", "notification": {} }))
        .await;
    wallet.say(NOTIFICATION, None, &said).await;
    let held = loop {
        match next(&mut heard).await {
            Notice::HoldInvoiceAccepted(held) => break held,
            other => assert_eq!(other, Notice::Missed),
        }
    };
    assert_eq!((held.payment_hash, held.settle_deadline), (hash(), Some(840_000)));
    let address = relay.url.as_str().trim_start_matches("ws://").trim_end_matches('/').to_owned();
    relay.stop().await.unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let relay = RelayHouse::start_on(listener, dir.path()).await.unwrap();
    assert_eq!(next(&mut heard).await, Notice::Missed);
    wallet.returned().await;
    let bolt11 = invoice();
    let close = async {
        wallet.asked().await;
        nwc.close().await;
    };
    let (paid, ()) = tokio::join!(nwc.pay_invoice(&bolt11), close);
    assert_eq!(paid.unwrap_err().class(), Class::Unknown);
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), None);
    assert_eq!(nwc.info().await.unwrap_err().class(), Class::Unreachable);
    relay.stop().await.unwrap();
}

async fn next(heard: &mut hashpit_client::nwc::Notifications) -> Notice {
    timeout(PATIENCE, heard.next()).await.expect("a notice in time").unwrap()
}

/// A relay that answers a request itself, with all that it can forge, and then
/// brings the wallet's own answer.
async fn serve_with_forgeries(listener: TcpListener, wallet: Keys, client: Keys) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
    let mut subscription = Value::Null;
    while let Some(Ok(message)) = socket.next().await {
        let Ok(message) = serde_json::from_slice::<Value>(&message.into_data()) else { continue };
        let answers = match message[0].as_str() {
            Some("REQ") if message[2]["kinds"] == json!([INFO]) => {
                let info: Value = as_json(&info(&wallet, Some("nip44_v2")));
                vec![json!(["EVENT", message[1], info]), json!(["EOSE", message[1]])]
            }
            Some("REQ") => {
                subscription = message[1].clone();
                vec![json!(["EOSE", message[1]])]
            }
            Some("EVENT") => {
                let request = Event::from_json(message[1].to_string()).unwrap();
                let mut answers = vec![json!(["OK", message[1]["id"], true, ""])];
                answers.extend(
                    forgeries(&wallet, &client, &request)
                        .map(|event| json!(["EVENT", subscription, event])),
                );
                answers
            }
            _ => Vec::new(),
        };
        for answer in answers {
            socket.send(Message::text(answer.to_string())).await.unwrap();
        }
    }
}

/// What a relay can make of a wallet's answers: a stranger's, one that was altered,
/// one to another request; and last the true one.
fn forgeries(wallet: &Keys, client: &Keys, request: &Event) -> impl Iterator<Item = Value> {
    let info = |height: u32| {
        result("get_info", json!({ "methods": ["get_info"], "block_height": height }))
    };
    let other = EventBuilder::text_note("").sign_with_keys(client).unwrap();
    let stranger = message(&Keys::generate(), client, RESPONSE, Some(request), &info(1));
    let mut altered = as_json(&message(wallet, client, RESPONSE, Some(&other), &info(2)));
    altered["tags"] = json!([["p", client.public_key()], ["e", request.id]]);
    let elsewhere = message(wallet, client, RESPONSE, Some(&other), &info(3));
    let unbound = message(wallet, client, RESPONSE, None, &info(4));
    let unasked = message(wallet, client, NOTIFICATION, Some(request), &info(5));
    let truth = message(wallet, client, RESPONSE, Some(request), &info(840_000));
    [as_json(&stranger), altered, as_json(&elsewhere), as_json(&unbound), as_json(&unasked)]
        .into_iter()
        .chain([as_json(&truth)])
}

fn as_json(event: &Event) -> Value {
    serde_json::from_str(&event.as_json()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_wallets_own_answer_to_this_request_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (wallet, client) = (Keys::generate(), Keys::generate());
    let relay = tokio::spawn(serve_with_forgeries(listener, wallet.clone(), client.clone()));
    let secret = client.secret_key().clone();
    let uri = NwcUri::new(wallet.public_key(), vec![url], secret).unwrap();
    let nwc = Nwc::connect(&uri).await.unwrap();
    let info = timeout(PATIENCE, nwc.info()).await.expect("an answer in time").unwrap();
    assert!(info.can(Method::GetInfo));
    assert_eq!(info.block_height, Some(840_000));
    nwc.close().await;
    relay.abort();
}
