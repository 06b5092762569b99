//! Nostr Wallet Connect (NIP-47) over an LDK node, for one client.
//!
//! What LDK does not say again is kept in a file, before LDK is told that it was
//! heard: which payments are held, and until when.

mod ledger;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use ldk_node::Event as LdkEvent;
use ldk_node::bitcoin::hashes::{Hash, sha256};
use ldk_node::bitcoin::hex::{DisplayHex, FromHex};
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning_invoice::Bolt11Invoice;
use ldk_node::lightning_types::payment::{PaymentHash, PaymentPreimage};
use ldk_node::payment::{PaymentDetails, PaymentKind, PaymentStatus};
use nostr_sdk::nips::nip44;
use nostr_sdk::{
    Event, EventBuilder, Filter, Keys, Kind, PublicKey, RelayUrl, Tag, TagKind, Timestamp,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::node::Node;
use ledger::{Ledger, Record, State};

const INFO: u16 = 13194;
const REQUEST: u16 = 23194;
const RESPONSE: u16 = 23195;
const NOTIFICATION: u16 = 23197;
const METHODS: [&str; 6] = [
    "get_info",
    "lookup_invoice",
    "make_hold_invoice",
    "settle_hold_invoice",
    "cancel_hold_invoice",
    "pay_invoice",
];
const NOTICES: [&str; 3] = ["hold_invoice_accepted", "payment_received", "payment_sent"];
/// How long the relay may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// A running service.
pub struct WalletService {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    node: Node,
    keys: Keys,
    client: PublicKey,
    mailbox: Mailbox,
    ledger: Mutex<Ledger>,
    /// Who waits for a payment of theirs to end.
    paying: Mutex<HashMap<[u8; 32], Payer>>,
}

type Payer = oneshot::Sender<Result<String, Refusal>>;

/// A code of NIP-47, and why.
type Refusal = (&'static str, String);

/// What a client asks.
#[derive(Deserialize)]
struct Request {
    method: String,
    #[serde(default)]
    params: Value,
}

impl WalletService {
    /// Starts one that answers `client` under `keys`, with its file in `dir`; returns
    /// once it can be asked.
    pub async fn start(
        node: Node,
        dir: &Path,
        keys: Keys,
        client: PublicKey,
        relay: &RelayUrl,
    ) -> Result<Self> {
        let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await?;
        ensure!(mailbox.connected(CONNECT).await == 1, "{relay} is out of reach");
        let filter = Filter::new().kind(Kind::from(REQUEST)).author(client);
        let inbox = mailbox.subscribe(filter.pubkey(keys.public_key())).await?;
        let ledger = Mutex::new(Ledger::open(&dir.join("held.json"))?);
        let shared = Shared { node, keys, client, mailbox, ledger, paying: Mutex::default() };
        let shared = Arc::new(shared);
        shared.announce().await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let serving = shared.clone().serve(inbox, tasks.clone(), stop.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(serving));
        let watching = shared.clone().watch();
        tasks.spawn(stop.clone().run_until_cancelled_owned(watching));
        Ok(Self { shared, stop, tasks })
    }

    /// The node that it serves.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// Stops it and its node where they stand: who waits for an answer gets none.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.shared.mailbox.close().await;
        self.shared.node.clone().stop().await
    }
}

impl Shared {
    async fn announce(&self) -> Result<()> {
        let info = EventBuilder::new(Kind::from(INFO), METHODS.join(" ") + " notifications")
            .tag(Tag::custom(TagKind::custom("encryption"), ["nip44_v2"]))
            .tag(Tag::custom(TagKind::custom("notifications"), [NOTICES.join(" ")]))
            .sign_with_keys(&self.keys)?;
        Ok(self.mailbox.publish(&info).await?)
    }

    async fn serve(self: Arc<Self>, mut inbox: Inbox, tasks: TaskTracker, stop: CancellationToken) {
        while let Some(arrival) = inbox.next().await {
            if let Arrival::Event(event) = arrival {
                let answering = self.clone().answer(event);
                tasks.spawn(stop.clone().run_until_cancelled_owned(answering));
            }
        }
    }

    async fn answer(self: Arc<Self>, event: Box<Event>) {
        let late = event.tags.expiration().is_some_and(|at| *at < Timestamp::now());
        let Some(request) = self.open(&event).filter(|_| !late) else { return };
        let body = match self.call(&request).await {
            Ok(result) => json!({ "result_type": request.method, "result": result, "error": null }),
            Err((code, message)) => json!({
                "result_type": request.method,
                "result": null,
                "error": { "code": code, "message": message },
            }),
        };
        self.send(RESPONSE, vec![Tag::event(event.id)], &body).await;
    }

    fn open(&self, event: &Event) -> Option<Request> {
        let plain = nip44::decrypt(self.keys.secret_key(), &event.pubkey, &event.content).ok()?;
        serde_json::from_str(&plain).ok()
    }

    /// What cannot be sent is lost, as it is with any such service.
    async fn send(&self, kind: u16, tags: Vec<Tag>, body: &Value) {
        let (key, version) = (self.keys.secret_key(), nip44::Version::V2);
        let Ok(content) = nip44::encrypt(key, &self.client, body.to_string(), version) else {
            return;
        };
        let event = EventBuilder::new(Kind::from(kind), content)
            .tag(Tag::public_key(self.client))
            .tags(tags)
            .sign_with_keys(&self.keys);
        if let Ok(event) = event {
            let _ = self.mailbox.publish(&event).await;
        }
    }

    async fn call(&self, request: &Request) -> Result<Value, Refusal> {
        let params = &request.params;
        match request.method.as_str() {
            "get_info" => Ok(self.info()),
            "make_hold_invoice" => self.make_hold_invoice(params),
            "settle_hold_invoice" => self.settle(hex(&params["preimage"])?),
            "cancel_hold_invoice" => self.cancel(hex(&params["payment_hash"])?),
            "lookup_invoice" => self.look_up(hex(&params["payment_hash"])?),
            "pay_invoice" => self.pay(params).await,
            other => Err(("NOT_IMPLEMENTED", format!("{other} is not one of {METHODS:?}"))),
        }
    }

    fn info(&self) -> Value {
        json!({
            "alias": "LDK",
            "pubkey": self.node.id().to_string(),
            "network": "regtest",
            "block_height": self.node.height(),
            "methods": METHODS,
            "notifications": NOTICES,
        })
    }

    fn make_hold_invoice(&self, params: &Value) -> Result<Value, Refusal> {
        let hash = hex(&params["payment_hash"])?;
        let amount = params["amount"].as_u64().ok_or_else(|| other("the amount is missing"))?;
        let expiry = params["expiry"].as_u64().unwrap_or(3600);
        let expiry_secs = u32::try_from(expiry).map_err(other)?;
        let description = params["description"].as_str().unwrap_or_default();
        let cltv = params["min_cltv_expiry_delta"].as_u64();
        // LDK would take the same hash again, even one whose preimage is known.
        if self.node.knows(hash) {
            return Err(other("this payment hash was used before; take another"));
        }
        let invoice = self
            .node
            .hold_invoice(amount, hash, description, expiry_secs, cltv)
            .map_err(|error| ("INTERNAL", error.to_string()))?;
        let created_at = invoice.duration_since_epoch().as_secs();
        let record = Record {
            bolt11: invoice.to_string(),
            amount,
            created_at,
            expires_at: created_at + expiry,
            state: State::Pending,
        };
        let told = self.tell(hash, &record);
        self.ledger().put(hash, record).map_err(internal)?;
        Ok(told)
    }

    fn settle(&self, preimage: [u8; 32]) -> Result<Value, Refusal> {
        let hash = sha256::Hash::hash(&preimage).to_byte_array();
        let mut ledger = self.ledger();
        let record = ledger.get(hash).ok_or_else(no_such_invoice)?;
        let State::Accepted { msats, deadline } = record.state else {
            return Err(other("no payment of this invoice is held"));
        };
        // LDK takes the preimage then too, and gives the payment back all the same.
        if self.node.height() >= deadline {
            return Err(other("the payment was held for too long, and goes back"));
        }
        let state = State::Settling { msats, deadline, preimage };
        ledger.put(hash, Record { state, ..record }).map_err(internal)?;
        drop(ledger);
        self.node
            .ldk()
            .bolt11_payment()
            .claim_for_hash(PaymentHash(hash), msats, PaymentPreimage(preimage))
            .map_err(internal)?;
        Ok(json!({}))
    }

    fn cancel(&self, hash: [u8; 32]) -> Result<Value, Refusal> {
        let mut ledger = self.ledger();
        let record = ledger.get(hash).ok_or_else(no_such_invoice)?;
        match record.state {
            State::Failed => return Ok(json!({})),
            State::Settling { .. } | State::Settled { .. } => {
                return Err(other("the payment was taken"));
            }
            State::Pending | State::Accepted { .. } => {}
        }
        ledger.put(hash, Record { state: State::Failed, ..record }).map_err(internal)?;
        drop(ledger);
        self.node.ldk().bolt11_payment().fail_for_hash(PaymentHash(hash)).map_err(internal)?;
        Ok(json!({}))
    }

    fn look_up(&self, hash: [u8; 32]) -> Result<Value, Refusal> {
        if let Some(record) = self.ledger().get(hash) {
            return Ok(self.tell(hash, &record));
        }
        let payment = self.node.ldk().payment(&PaymentId(hash)).ok_or_else(no_such_invoice)?;
        Ok(sent(hash, &payment))
    }

    async fn pay(&self, params: &Value) -> Result<Value, Refusal> {
        let invoice = params["invoice"].as_str().unwrap_or_default();
        let invoice: Bolt11Invoice = invoice.parse().map_err(other)?;
        let hash = invoice.payment_hash().to_byte_array();
        let (sender, ended) = oneshot::channel();
        {
            let mut paying = self.paying.lock().unwrap_or_else(PoisonError::into_inner);
            // LDK refuses it too if it was begun before this service was started.
            if paying.contains_key(&hash) {
                return Err(other("it is being paid"));
            }
            paying.insert(hash, sender);
        }
        if let Err(error) = self.node.ldk().bolt11_payment().send(&invoice, None) {
            self.payer(hash);
            return Err(("PAYMENT_FAILED", error.to_string()));
        }
        let preimage = ended.await.map_err(internal)??;
        Ok(json!({ "preimage": preimage }))
    }

    fn payer(&self, hash: [u8; 32]) -> Option<Payer> {
        self.paying.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash)
    }

    /// Hears what LDK says; broken bookkeeping ends the process.
    async fn watch(self: Arc<Self>) {
        loop {
            let event = self.node.ldk().next_event_async().await;
            self.hear(event).await.expect("the ledger can be written");
            self.node.ldk().event_handled().expect("LDK can write");
        }
    }

    /// LDK may say the same again.
    async fn hear(&self, event: LdkEvent) -> Result<()> {
        match event {
            LdkEvent::PaymentClaimable {
                payment_hash,
                claimable_amount_msat,
                claim_deadline,
                ..
            } => {
                let deadline = claim_deadline.context("LDK gives every payment a deadline")?;
                self.accepted(payment_hash.0, claimable_amount_msat, deadline).await?;
            }
            LdkEvent::PaymentReceived { payment_hash, .. } => self.received(payment_hash.0).await?,
            LdkEvent::PaymentSuccessful { payment_hash, payment_preimage, .. } => {
                let preimage = payment_preimage.context("BOLT11 has preimages")?;
                if let Some(payer) = self.payer(payment_hash.0) {
                    let _ = payer.send(Ok(preimage.0.to_lower_hex_string()));
                }
                let payment = self.node.ldk().payment(&PaymentId(payment_hash.0));
                let payment = payment.context("LDK knows what it has paid")?;
                self.notify("payment_sent", sent(payment_hash.0, &payment)).await;
            }
            LdkEvent::PaymentFailed { payment_hash: Some(hash), reason, .. } => {
                if let Some(payer) = self.payer(hash.0) {
                    let _ = payer.send(Err(("PAYMENT_FAILED", format!("{reason:?}"))));
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn accepted(&self, hash: [u8; 32], msats: u64, deadline: u32) -> Result<()> {
        let record = self.ledger().get(hash);
        let Some(record) =
            record.filter(|it| matches!(it.state, State::Pending | State::Accepted { .. }))
        else {
            // Cancelled before it was paid, or not ours.
            return Ok(self.node.ldk().bolt11_payment().fail_for_hash(PaymentHash(hash))?);
        };
        let record = Record { state: State::Accepted { msats, deadline }, ..record };
        let told = self.tell(hash, &record);
        self.ledger().put(hash, record)?;
        self.notify("hold_invoice_accepted", told).await;
        Ok(())
    }

    async fn received(&self, hash: [u8; 32]) -> Result<()> {
        let Some(record) = self.ledger().get(hash) else { return Ok(()) };
        let State::Settling { preimage, .. } = record.state else { return Ok(()) };
        let state = State::Settled { preimage, at: Timestamp::now().as_secs() };
        let record = Record { state, ..record };
        let told = self.tell(hash, &record);
        self.ledger().put(hash, record)?;
        self.notify("payment_received", told).await;
        Ok(())
    }

    async fn notify(&self, kind: &str, notification: Value) {
        let body = json!({ "notification_type": kind, "notification": notification });
        self.send(NOTIFICATION, Vec::new(), &body).await;
    }

    /// NIP-47's words for an invoice.
    fn tell(&self, hash: [u8; 32], record: &Record) -> Value {
        let mut told = json!({
            "type": "incoming",
            "invoice": record.bolt11,
            "payment_hash": hash.to_lower_hex_string(),
            "amount": record.amount,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
        });
        let state = match record.state {
            State::Pending if record.expires_at < Timestamp::now().as_secs() => "expired",
            State::Pending => "pending",
            // LDK gives it back there, and says nothing.
            State::Accepted { deadline, .. } if self.node.height() >= deadline => "failed",
            State::Accepted { deadline, .. } | State::Settling { deadline, .. } => {
                told["settle_deadline"] = deadline.into();
                "accepted"
            }
            State::Settled { preimage, at } => {
                told["preimage"] = preimage.to_lower_hex_string().into();
                told["settled_at"] = at.into();
                "settled"
            }
            State::Failed => "failed",
        };
        told["state"] = state.into();
        told
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// NIP-47's words for a payment of the node's.
fn sent(hash: [u8; 32], payment: &PaymentDetails) -> Value {
    let mut told = json!({
        "type": "outgoing",
        "payment_hash": hash.to_lower_hex_string(),
        "amount": payment.amount_msat.unwrap_or_default(),
        "fees_paid": payment.fee_paid_msat.unwrap_or_default(),
        "created_at": payment.latest_update_timestamp,
        "state": match payment.status {
            PaymentStatus::Pending => "pending",
            PaymentStatus::Succeeded => "settled",
            PaymentStatus::Failed => "failed",
        },
    });
    if let PaymentKind::Bolt11 { preimage: Some(preimage), .. } = payment.kind {
        told["preimage"] = preimage.0.to_lower_hex_string().into();
        told["settled_at"] = payment.latest_update_timestamp.into();
    }
    told
}

fn hex(value: &Value) -> Result<[u8; 32], Refusal> {
    let bytes = value.as_str().and_then(|text| <[u8; 32]>::from_hex(text).ok());
    bytes.ok_or_else(|| other("64 hex digits are missing"))
}

fn other(reason: impl ToString) -> Refusal {
    ("OTHER", reason.to_string())
}

fn internal(reason: impl ToString) -> Refusal {
    ("INTERNAL", reason.to_string())
}

fn no_such_invoice() -> Refusal {
    ("NOT_FOUND", "no invoice of that hash".to_owned())
}
