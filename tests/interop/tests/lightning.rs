//! Our client of Nostr Wallet Connect (NIP-47) against wallets over LDK nodes on
//! Bitcoin Core, through our relay; and a client of another make against the same
//! wallets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hashpit_client::nwc::{
    Class, HoldOrder, Invoice, InvoiceState, InvoiceTerms, Method, Notice, Notifications, Nwc,
    NwcError, NwcUri, check_invoice,
};
use hashpit_interop::lightning::{LightningHouse, Side};
use hashpit_interop::within_patience;
use hashpit_nips::Msats;
use hashpit_tests::house::RelayHouse;
use ldk_node::bitcoin::Network;
use ldk_node::bitcoin::hashes::{Hash, sha256};
use nostr_sdk::Timestamp;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const AMOUNT: Msats = Msats::new(50_000_123);
/// What a trade wants: enough blocks to lock the other leg and claim it.
const FINAL_CLTV: u32 = 144;
const BLOCKS_LEFT: u32 = 60;

struct Scene {
    relay: RelayHouse,
    house: LightningHouse,
    buyer: Nwc,
    seller: Nwc,
    heard: Notifications,
    _dir: TempDir,
}

impl Scene {
    async fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let house = LightningHouse::start(&relay.url, dir.path()).await.unwrap();
        let buyer = Nwc::connect(&house.buyer).await.unwrap();
        let seller = Nwc::connect(&house.seller).await.unwrap();
        let heard = seller.notifications();
        Self { relay, house, buyer, seller, heard, _dir: dir }
    }

    async fn strike(self) {
        self.buyer.close().await;
        self.seller.close().await;
        self.house.stop().await.unwrap();
        self.relay.stop().await.unwrap();
    }

    /// An invoice of the seller's on the buyer's hash, and the buyer paying it.
    async fn pay(&self, preimage: [u8; 32]) -> JoinHandle<Result<[u8; 32], NwcError>> {
        let made = self.seller.make_hold_invoice(&order(preimage)).await.unwrap();
        let terms = InvoiceTerms {
            amount: AMOUNT,
            payment_hash: hash_of(preimage),
            network: Network::Regtest,
            margin: Duration::from_secs(500),
        };
        let checked = check_invoice(&made.bolt11, &terms, Timestamp::now()).unwrap();
        assert_eq!(checked.min_final_cltv, u64::from(FINAL_CLTV));
        let buyer = self.buyer.clone();
        tokio::spawn(async move { buyer.pay_invoice(&checked.bolt11).await })
    }

    /// Waits until the seller is told that the payment is held.
    async fn accepted(&mut self, preimage: [u8; 32]) -> Invoice {
        loop {
            match self.heard.next().await.unwrap() {
                Notice::HoldInvoiceAccepted(it) if it.payment_hash == hash_of(preimage) => {
                    return it;
                }
                _ => {}
            }
        }
    }

    async fn received(&mut self, preimage: [u8; 32]) {
        loop {
            match self.heard.next().await.unwrap() {
                Notice::PaymentReceived(it) if it.payment_hash == hash_of(preimage) => return,
                _ => {}
            }
        }
    }

    async fn state(&self, of: &Nwc, preimage: [u8; 32]) -> InvoiceState {
        of.lookup_invoice(hash_of(preimage)).await.unwrap().state
    }
}

fn hash_of(preimage: [u8; 32]) -> [u8; 32] {
    sha256::Hash::hash(&preimage).to_byte_array()
}

fn order(preimage: [u8; 32]) -> HoldOrder {
    HoldOrder {
        amount: AMOUNT,
        payment_hash: hash_of(preimage),
        expiry_secs: 600,
        description: "12,000 ehash".to_owned(),
        min_final_cltv: Some(FINAL_CLTV),
    }
}

fn has_failed(paid: &Result<[u8; 32], NwcError>) -> bool {
    matches!(paid, Err(NwcError::Unknown { method: Method::PayInvoice, .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_held_until_the_payers_preimage_takes_it() {
    within_patience(async {
        let mut scene = Scene::set().await;
        let info = scene.seller.info().await.unwrap();
        assert!(info.can(Method::MakeHoldInvoice) && info.can(Method::SettleHoldInvoice));
        assert!(info.notifications.iter().any(|it| it == "hold_invoice_accepted"));
        assert_eq!(info.network, Some(Network::Regtest));
        let before = [Side::Buyer, Side::Seller].map(|side| scene.house.can_send(side));

        let preimage = [21; 32];
        let paying = scene.pay(preimage).await;
        let held = scene.accepted(preimage).await;
        assert_eq!((held.amount, held.state), (AMOUNT, InvoiceState::Accepted));
        let left = held.settle_deadline.unwrap() - info.block_height.unwrap();
        assert!(left >= BLOCKS_LEFT, "{left} blocks left");
        assert_eq!(scene.state(&scene.seller, preimage).await, InvoiceState::Accepted);
        assert_eq!(scene.state(&scene.buyer, preimage).await, InvoiceState::Pending);
        assert!(!paying.is_finished());

        // Another preimage takes nothing, and there is one invoice on this one.
        let wrong = scene.seller.settle_hold_invoice(&[22; 32]).await.unwrap_err();
        assert_eq!(wrong.class(), Class::Refused, "{wrong}");
        let again = scene.seller.make_hold_invoice(&order(preimage)).await.unwrap();
        assert_eq!(Some(again.bolt11), held.bolt11);
        assert_eq!(scene.state(&scene.seller, preimage).await, InvoiceState::Accepted);

        scene.seller.settle_hold_invoice(&preimage).await.unwrap();
        assert_eq!(paying.await.unwrap().unwrap(), preimage);
        scene.received(preimage).await;
        for wallet in [&scene.seller, &scene.buyer] {
            let settled = wallet.lookup_invoice(hash_of(preimage)).await.unwrap();
            assert_eq!(settled.state, InvoiceState::Settled);
            assert_eq!(settled.preimage, Some(preimage));
        }
        let again = scene.seller.make_hold_invoice(&order(preimage)).await.unwrap_err();
        assert_eq!(again.class(), Class::Unknown, "{again}");
        scene.house.until_can_send(Side::Buyer, before[0] - AMOUNT.get()).await;
        scene.house.until_can_send(Side::Seller, before[1] + AMOUNT.get()).await;
        scene.strike().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_goes_back_when_cancelled_or_left_until_its_deadline() {
    within_patience(async {
        let mut scene = Scene::set().await;
        let before = scene.house.can_send(Side::Buyer);

        let cancelled = [31; 32];
        let paying = scene.pay(cancelled).await;
        scene.accepted(cancelled).await;
        scene.seller.cancel_hold_invoice(hash_of(cancelled)).await.unwrap();
        let paid = paying.await.unwrap();
        assert!(has_failed(&paid), "{paid:?}");
        for wallet in [&scene.seller, &scene.buyer] {
            assert_eq!(scene.state(wallet, cancelled).await, InvoiceState::Failed);
        }
        let late = scene.seller.settle_hold_invoice(&cancelled).await.unwrap_err();
        assert_eq!(late.class(), Class::Unknown, "{late}");

        let abandoned = [32; 32];
        let paying = scene.pay(abandoned).await;
        let deadline = scene.accepted(abandoned).await.settle_deadline.unwrap();
        let height = scene.seller.info().await.unwrap().block_height.unwrap();
        scene.house.mine(deadline - 1 - height).await.unwrap();
        assert_eq!(scene.state(&scene.seller, abandoned).await, InvoiceState::Accepted);
        assert!(!paying.is_finished());
        scene.house.mine(1).await.unwrap();
        let paid = paying.await.unwrap();
        assert!(has_failed(&paid), "{paid:?}");
        for wallet in [&scene.seller, &scene.buyer] {
            assert_eq!(scene.state(wallet, abandoned).await, InvoiceState::Failed);
        }
        scene.house.until_can_send(Side::Buyer, before).await;
        scene.strike().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_outlives_either_wallet() {
    within_patience(async {
        let mut scene = Scene::set().await;
        let preimage = [41; 32];
        let paying = scene.pay(preimage).await;
        let held = scene.accepted(preimage).await;

        // A question waits for the seller's wallet, which knows how long it may hold.
        scene.house.stop_wallet(Side::Seller).await.unwrap();
        let seller = scene.seller.clone();
        let asked = tokio::spawn(async move { seller.lookup_invoice(hash_of(preimage)).await });
        scene.house.start_wallet(Side::Seller).await.unwrap();
        let known = asked.await.unwrap().unwrap();
        assert_eq!(known.state, InvoiceState::Accepted);
        assert_eq!(known.settle_deadline, held.settle_deadline);

        // The buyer's comes back, and has forgotten who asked it to pay.
        scene.house.stop_wallet(Side::Buyer).await.unwrap();
        scene.house.start_wallet(Side::Buyer).await.unwrap();
        assert_eq!(scene.state(&scene.buyer, preimage).await, InvoiceState::Pending);
        let again = scene.buyer.pay_invoice(&known.bolt11.unwrap()).await;
        assert!(has_failed(&again), "{again:?}");
        assert!(!paying.is_finished());

        let mut sent = scene.buyer.notifications();
        scene.seller.settle_hold_invoice(&preimage).await.unwrap();
        scene.received(preimage).await;
        assert_eq!(scene.state(&scene.seller, preimage).await, InvoiceState::Settled);
        let sent = loop {
            if let Notice::PaymentSent(sent) = sent.next().await.unwrap() {
                break sent;
            }
        };
        assert_eq!((sent.payment_hash, sent.preimage), (hash_of(preimage), Some(preimage)));
        paying.abort();
        scene.strike().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_make_uses_the_same_wallets() {
    within_patience(async {
        let scene = Scene::set().await;
        let uris = [&scene.house.buyer, &scene.house.seller].map(NwcUri::reveal);
        let did = hashpit_interop::node("nwc.mjs", &[&uris[0], &uris[1]]).await.unwrap();
        assert_eq!(did["encryption"], "nip44_v2");
        let settled = ["pending", "accepted", "settled"];
        assert_eq!(did["settled"], serde_json::json!(settled));
        assert_eq!(did["cancelled"], serde_json::json!(["pending", "accepted", "failed"]));
        assert_eq!(did["refused"], "PAYMENT_FAILED");
        assert!(did["blocks_left"].as_u64().unwrap() >= u64::from(BLOCKS_LEFT));
        scene.strike().await;
    })
    .await;
}
