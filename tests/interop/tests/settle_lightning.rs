//! Two wallets trade ehash for sats by Lightning: Bitcoin Core, two LDK nodes, and
//! Nostr Wallet Connect between them and us.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::nwc::{InvoiceState, Nwc, NwcUri};
use hashpit_client::settle::{End, Progress, SettleError, Settler, Stage, Timing};
use hashpit_interop::lightning::LightningHouse;
use hashpit_nips::eh04::{Payment, Way};
use hashpit_tests::trade_house::TradeHouse;
use nostr_sdk::EventId;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

struct Side {
    progress: watch::Receiver<Progress>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SettleError>>,
}

impl Side {
    fn start(settler: Settler) -> Self {
        let (progress, stop) = (settler.progress(), CancellationToken::new());
        Self { progress, task: tokio::spawn(settler.run(stop.clone())), stop }
    }

    async fn is_over(&mut self) {
        let over = self.progress.wait_for(|now| now.completed + now.failed == 1);
        timeout(PATIENCE, over).await.unwrap().unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn house(dir: &TempDir) -> (TradeHouse, LightningHouse) {
    let pay = vec![Payment { way: Way::Nwc, mint: None }];
    let house = TradeHouse::start_paying(dir.path(), Some(pay)).await.unwrap();
    let below = dir.path().join("lightning");
    let lightning = LightningHouse::start(&house.relay.url, &below).await.unwrap();
    (house, lightning)
}

async fn stage(wallet: &Wallet, of: EventId) -> Stage {
    wallet.trade(of).await.unwrap().unwrap().stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ehash_is_sold_for_a_held_payment() {
    let dir = TempDir::new().unwrap();
    let (house, lightning) = house(&dir).await;
    let [payer, payee] = [Some(lightning.buyer.clone()), Some(lightning.seller.clone())];
    let mut seller = Side::start(house.settler_by(&house.seller, payee).await.unwrap());
    let mut buyer = Side::start(house.settler_by(&house.buyer, payer).await.unwrap());
    let of = house.deal(100, 12_345).await.unwrap();
    for side in [&mut seller, &mut buyer] {
        side.is_over().await;
    }
    for wallet in [&house.seller, &house.buyer] {
        assert_eq!(stage(wallet, of).await, Stage::Over { end: End::Completed });
    }
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), 100);
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get() - 100);
    seller.stop().await;
    buyer.stop().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_payment_goes_back_when_the_buyer_has_vanished() {
    let dir = TempDir::new().unwrap();
    let (house, lightning) = house(&dir).await;
    let payer = Nwc::connect(&lightning.buyer).await.unwrap();
    let timing = Timing {
        agree: 10,
        sats: 14,
        ehash: 18,
        ehash_locktime: 24,
        sats_locktime: 40,
        margin: 3,
        skew: 60,
    };
    let begin = async |wallet: &Wallet, nwc: &NwcUri| {
        let settler = house.settler_by(wallet, Some(nwc.clone())).await.unwrap();
        Side::start(settler.with_timing(timing))
    };
    let mut seller = begin(&house.seller, &lightning.seller).await;
    let mut buyer = begin(&house.buyer, &lightning.buyer).await;
    let of = house.deal(100, 12_345).await.unwrap();
    let paying = buyer
        .progress
        .wait_for(|now| matches!(now.last, Some((_, Stage::Waiting | Stage::Claiming))));
    drop(timeout(PATIENCE, paying).await.unwrap().unwrap());
    // Paid, and gone before the ehash was claimed.
    buyer.task.abort();
    seller.is_over().await;
    let sold = stage(&house.seller, of).await;
    assert!(matches!(sold, Stage::Over { end: End::Refunded { .. } }), "{sold:?}");
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    let mut buyer = begin(&house.buyer, &lightning.buyer).await;
    buyer.is_over().await;
    let bought = stage(&house.buyer, of).await;
    assert!(matches!(bought, Stage::Over { end: End::Refunded { .. } }), "{bought:?}");
    let hash = house.buyer.trade(of).await.unwrap().unwrap().hash().unwrap();
    let paid = payer.lookup_invoice(hash).await.unwrap();
    assert!(matches!(paid.state, InvoiceState::Failed | InvoiceState::Expired), "{paid:?}");
    seller.stop().await;
    buyer.stop().await;
    house.stop().await.unwrap();
}
