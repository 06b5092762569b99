//! Traders at a real exchange, by way of a real relay: what the journal says reaches
//! them, and their lists and books are what it follows to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use hashpit_client::trade::{Answer, End, Exchange, OwnOffer, Standing, Trader};
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{
    Action, Command, OnEpoch, Rules, SelfTrade, Side, Terms, TimeInForce, Way,
};
use hashpit_nips::eh05::{Level, Outcome};
use hashpit_nips::{Lots, Price};
use hashpit_tests::exchange_house::{BarePool, ExchangeHouse, Onlooker};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::{EventId, Keys, Timestamp};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
const HEIGHT: u32 = 7;
/// Bits of work for a key's first event: enough to be missed, and done at once.
const POW: u8 = 6;

struct Scene {
    relay: RelayHouse,
    exchange: ExchangeHouse,
    pool: BarePool,
    onlooker: Onlooker,
}

impl Scene {
    /// An exchange with one open market.
    async fn open(dir: &Path) -> Self {
        let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
        let pool = BarePool::new();
        let mut config = ExchangeHouse::config(std::slice::from_ref(&relay.url), &[&pool]);
        config.rules = Rules {
            pow_bits: POW,
            reveal_ms: 1_000,
            halt_ms: 100,
            auction_ms: 100,
            ..config.rules
        };
        let exchange = ExchangeHouse::start(config, &dir.join("exchange")).await.unwrap();
        let onlooker = Onlooker::connect(&pool.keys, &relay.url).await.unwrap();
        let scene = Self { relay, exchange, pool, onlooker };
        let keyset = scene.turn(EpochState::Open, 0).await;
        scene.onlooker.entry_of(scene.exchange.key, &keyset).await.unwrap();
        scene
    }

    /// Publishes the epoch's keyset, so much later.
    async fn turn(&self, state: EpochState, later: u64) -> nostr_sdk::Event {
        let at = Timestamp::now() + later;
        let keyset = self.pool.keyset(HEIGHT, state, at).unwrap();
        self.onlooker.mailbox.publish(&keyset).await.unwrap();
        keyset
    }

    async fn reader(&self) -> Exchange {
        timeout(PATIENCE, async {
            loop {
                let relays = std::slice::from_ref(&self.relay.url);
                match Exchange::connect(self.exchange.key, relays).await {
                    Ok(exchange) if !exchange.markets().is_empty() => return exchange,
                    // Info and market are published a moment after the entry.
                    Ok(early) => early.close().await,
                    Err(_) => {}
                }
            }
        })
        .await
        .expect("a market in time")
    }

    async fn trader(&self) -> Trader {
        Trader::connect(Keys::generate(), self.reader().await).await.unwrap()
    }

    async fn close(self, traders: Vec<Trader>) {
        for trader in traders {
            trader.close().await;
        }
        self.exchange.stop().await.unwrap();
        self.relay.stop().await.unwrap();
    }
}

fn terms(side: Side, price: u64, lots: u32) -> Terms {
    Terms::new(side, Some(Price::new(price)), Lots::new(lots), vec![Way::Nwc])
}

async fn offer(trader: &mut Trader, d: &str, terms: Terms, hidden: bool) -> Answer {
    let market = trader.exchange().market(None).unwrap().clone();
    trader.make(&market, d.to_owned(), terms, hidden).await.unwrap()
}

/// The trader's offer `d`, once it is as wanted.
async fn becomes(trader: &Trader, d: &str, wanted: impl Fn(&OwnOffer) -> bool) -> OwnOffer {
    let found = timeout(PATIENCE, async {
        loop {
            let own = trader.offer(d).await.unwrap();
            if wanted(&own) {
                return own;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("offer {d} in time"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_traders_meet_and_both_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let (mut seller, mut buyer) = (scene.trader().await, scene.trader().await);
    let epoch = seller.exchange().market(None).unwrap().epoch;
    let mut feed = buyer.exchange().follow_book(epoch).await.unwrap();

    let sold = offer(&mut seller, "s", terms(Side::Sell, 12_000, 10), false).await;
    assert_eq!((&sold.outcome, sold.matches.len()), (&Outcome::Accepted, 0));
    let low = offer(&mut buyer, "low", terms(Side::Buy, 11_000, 2), false).await;
    assert_eq!(low.outcome, Outcome::Accepted);
    let bought = offer(&mut buyer, "b", terms(Side::Buy, 12_500, 4), false).await;
    let [trade] = &bought.matches[..] else { panic!("{bought:?}") };
    assert_eq!((trade.terms.price, trade.terms.lots), (Price::new(12_000), Lots::new(4)));

    let own = becomes(&seller, "s", |own| own.filled == Lots::new(4)).await;
    assert_eq!((&own.standing, own.left()), (&Standing::Open, Lots::new(6)));
    let own = becomes(&buyer, "b", |own| own.filled == Lots::new(4)).await;
    assert_eq!(own.standing, Standing::Over(End::Filled));

    let book = (vec![Level(Price::new(11_000), 2, 1)], vec![Level(Price::new(12_000), 6, 1)]);
    let seen = timeout(PATIENCE, async {
        loop {
            let now = feed.book();
            if (now.bids().collect::<Vec<_>>(), now.asks().collect::<Vec<_>>()) == book {
                return now.last();
            }
            feed.next().await.unwrap();
        }
    });
    assert_eq!(seen.await.expect("the book in time"), None, "nothing is settled yet");
    let trades = seller.exchange().trades(epoch, 10).await.unwrap();
    assert_eq!(trades.iter().map(|trade| trade.id).collect::<Vec<_>>(), [trade.id]);
    scene.close(vec![seller, buyer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_are_amended_cancelled_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let mut trader = scene.trader().await;
    offer(&mut trader, "a", terms(Side::Sell, 12_000, 10), false).await;
    let own = becomes(&trader, "a", |own| own.standing == Standing::Open).await;
    let stale = own.clone();
    let amended = trader.amend(&own, terms(Side::Sell, 13_000, 8)).await.unwrap();
    assert_eq!(amended.outcome, Outcome::Accepted);
    let own = becomes(&trader, "a", |own| own.event == amended.event).await;
    assert_eq!(own.terms.price, Some(Price::new(13_000)));
    // What another machine has changed meanwhile is not changed blindly.
    let refused = trader.amend(&stale, terms(Side::Sell, 1, 8)).await.unwrap();
    assert!(matches!(refused.outcome, Outcome::Refused(_)), "{refused:?}");

    // An own offer in the way.
    let crossing = Terms { self_trade: SelfTrade::CancelOld, ..terms(Side::Buy, 14_000, 1) };
    offer(&mut trader, "x", crossing, false).await;
    becomes(&trader, "a", |own| own.standing == Standing::Over(End::SelfTrade)).await;
    let at_once = Terms { tif: TimeInForce::Ioc, ..terms(Side::Sell, 20_000, 1) };
    offer(&mut trader, "i", at_once, false).await;
    becomes(&trader, "i", |own| own.standing == Standing::Over(End::AtOnce)).await;
    let whole = Terms { tif: TimeInForce::Fok, ..terms(Side::Sell, 20_000, 1) };
    let refused = offer(&mut trader, "f", whole, false).await;
    assert!(matches!(refused.outcome, Outcome::Refused(_)), "{refused:?}");

    let own = becomes(&trader, "x", |own| own.standing == Standing::Open).await;
    assert_eq!(trader.cancel(&own).await.unwrap().outcome, Outcome::Accepted);
    becomes(&trader, "x", |own| own.standing == Standing::Over(End::Canceled)).await;
    offer(&mut trader, "y", terms(Side::Buy, 1, 1), false).await;
    assert_eq!(trader.cancel_all(None).await.unwrap().outcome, Outcome::Accepted);
    becomes(&trader, "y", |own| own.standing == Standing::Over(End::Canceled)).await;
    scene.close(vec![trader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_offer_goes_first_and_who_waits_behind_a_commit_learns_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let mut hidden = scene.trader().await;
    let shown = offer(&mut hidden, "h", terms(Side::Sell, 12_000, 1), true).await;
    assert_eq!(shown.outcome, Outcome::Accepted);
    becomes(&hidden, "h", |own| own.standing == Standing::Open).await;

    // A commit that is never shown holds the market up until it is burnt.
    let mut other = scene.trader().await;
    offer(&mut other, "o", terms(Side::Buy, 10_000, 5), false).await;
    let standing = becomes(&other, "o", |own| own.standing == Standing::Open).await;
    let epoch = other.exchange().market(None).unwrap().epoch;
    let action = Action::Commit { epoch, offer: EventId::from_byte_array([9; 32]) };
    let command = Command { exchange: scene.exchange.key, action };
    let blocker = Keys::generate();
    let commit = command.encode().pow(POW).sign_with_keys(&blocker).unwrap();
    scene.onlooker.mailbox.publish(&commit).await.unwrap();
    scene.onlooker.entry_of(scene.exchange.key, &commit).await.unwrap();
    let waits = offer(&mut other, "w", terms(Side::Buy, 9_000, 1), false).await;
    assert_eq!(waits.outcome, Outcome::Deferred);
    let fewer = other.amend(&standing, terms(Side::Buy, 10_000, 4)).await.unwrap();
    assert_eq!(fewer.outcome, Outcome::Deferred);
    becomes(&other, "w", |own| own.standing == Standing::Open).await;
    scene.close(vec![hidden, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_closes_ends_offers_that_were_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let mut trader = scene.trader().await;
    offer(&mut trader, "goes", terms(Side::Sell, 12_000, 1), false).await;
    let keep = Terms { on_epoch: OnEpoch::Keep, ..terms(Side::Sell, 12_000, 1) };
    offer(&mut trader, "stays", keep, false).await;
    scene.turn(EpochState::Closing, 1).await;
    becomes(&trader, "goes", |own| own.standing == Standing::Over(End::Epoch)).await;
    becomes(&trader, "stays", |own| own.standing == Standing::Open).await;
    scene.close(vec![trader]).await;
}
