//! What readers make of settlements at a real exchange: matches in flight with the
//! step that is due, completed ones as prices, and keys by how they settle.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use hashpit_client::trade::{Exchange, Line, Stage, TapeFeed};
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{Action, Command, MarketId, Side};
use hashpit_nips::eh05::{Fate, Match, Outcome};
use hashpit_nips::{EpochId, Millis, Price, kind};
use hashpit_tests::exchange_house::{BarePool, ExchangeHouse, Onlooker, offer};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::{Event, EventId, Filter, Keys, Timestamp};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
const HEIGHT: u32 = 7;

/// An exchange with one open market, and two who trade there.
struct Scene {
    relay: RelayHouse,
    exchange: ExchangeHouse,
    onlooker: Onlooker,
    market: MarketId,
    seller: Keys,
    buyer: Keys,
}

impl Scene {
    async fn open(dir: &Path) -> Self {
        let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
        let pool = BarePool::new();
        let config = ExchangeHouse::config(std::slice::from_ref(&relay.url), &[&pool]);
        let exchange = ExchangeHouse::start(config, &dir.join("exchange")).await.unwrap();
        let onlooker = Onlooker::connect(&pool.keys, &relay.url).await.unwrap();
        let market = exchange.market(pool.epoch(HEIGHT));
        let (seller, buyer) = (Keys::generate(), Keys::generate());
        let scene = Self { relay, exchange, onlooker, market, seller, buyer };
        let keyset = pool.keyset(HEIGHT, EpochState::Open, Timestamp::now()).unwrap();
        scene.enter(&keyset).await;
        scene
    }

    /// Publishes an event, and waits for its entry.
    async fn enter(&self, event: &Event) -> Event {
        self.onlooker.mailbox.publish(event).await.unwrap();
        self.onlooker.entry_of(self.exchange.key, event).await.unwrap()
    }

    /// The two match at a price.
    async fn matched(&self, price: u64, lots: u32) -> EventId {
        self.enter(&offer(&self.seller, self.market, Side::Sell, price, lots)).await;
        let bought = offer(&self.buyer, self.market, Side::Buy, price, lots);
        self.enter(&bought).await;
        let filter = Filter::new().kind(kind::MATCH).author(self.exchange.key).event(bought.id);
        self.onlooker.sees(filter, |event| Match::decode(event).is_ok()).await.unwrap().id
    }

    async fn report(&self, trader: &Keys, of: EventId, step: u8) {
        let action = Action::Step { of, step };
        let event = Command { exchange: self.exchange.key, action }.encode();
        let entry = self.enter(&event.sign_with_keys(trader).unwrap()).await;
        let entry = hashpit_nips::eh05::Entry::decode(&entry).unwrap();
        assert_eq!(entry.outcome, Outcome::Accepted);
    }

    async fn settle(&self, of: EventId) {
        self.report(&self.seller, of, 6).await;
        self.report(&self.buyer, of, 6).await;
        let ended = Filter::new().kind(kind::SETTLEMENT).author(self.exchange.key).event(of);
        self.onlooker.sees(ended, |_| true).await.unwrap();
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

    fn epoch(&self) -> EpochId {
        self.market.epoch
    }

    async fn close(self) {
        self.exchange.stop().await.unwrap();
        self.relay.stop().await.unwrap();
    }
}

async fn next(feed: &mut TapeFeed<'_>) -> Line {
    timeout(PATIENCE, feed.next()).await.expect("a line in time").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_is_in_flight_until_both_say_that_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let [fresh, under_way, done] =
        [scene.matched(1_000, 2).await, scene.matched(1_100, 3).await, scene.matched(900, 5).await];
    scene.report(&scene.seller, under_way, 1).await;
    scene.report(&scene.buyer, under_way, 1).await;
    scene.report(&scene.buyer, under_way, 2).await;
    scene.settle(done).await;

    let reader = scene.reader().await;
    let lines = reader.lines(scene.epoch(), 10).await.unwrap();
    let ids: Vec<_> = lines.iter().map(|line| line.trade.id).collect();
    assert_eq!(ids, [done, under_way, fresh], "newest first");
    assert!(lines[0].is_completed());
    let flying = |line: &Line, step, due: &[&Keys], seconds: u64| {
        let by = Millis::new(line.trade.terms.at.get() + seconds * 1_000);
        let due = due.iter().map(|keys| keys.public_key()).collect();
        assert_eq!(line.stage, Stage::InFlight { step, due, by });
    };
    flying(&lines[1], 3, &[&scene.seller], 240);
    flying(&lines[2], 1, &[&scene.seller, &scene.buyer], 60);

    let settled = reader.settled(scene.epoch(), 1).await.unwrap();
    assert_eq!(settled.iter().map(|line| line.trade.id).collect::<Vec<_>>(), [done]);
    let reputation = reader.reputation(scene.seller.public_key()).await.unwrap();
    assert_eq!(reputation.to_string(), "1 of 3 settled; failed: 0 by it, 0 by others; 2 in flight");
    reader.close().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_are_of_completed_matches_only() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let mut matches = Vec::new();
    for (price, lots) in [(1_000, 2), (1_200, 3), (900, 5), (7_777, 1)] {
        matches.push(scene.matched(price, lots).await);
    }
    let reader = scene.reader().await;
    let empty = reader.tickers(None).await.unwrap().remove(0);
    assert_eq!((empty.last, empty.day), (None, None), "nothing is settled");
    assert!(reader.candles(scene.epoch(), 86_400, 2).await.unwrap().1.is_empty());
    reader.close().await;

    // The last of them stays in flight, and the first is settled last.
    for of in [matches[2], matches[1], matches[0]] {
        scene.settle(of).await;
    }
    let reader = scene.reader().await;
    // Two, in case midnight has come in between.
    let (_, candles) = reader.candles(scene.epoch(), 86_400, 2).await.unwrap();
    assert_eq!(candles.iter().map(|day| day.lots).sum::<u64>(), 10);
    assert_eq!(candles.iter().map(|day| day.trades).sum::<u64>(), 3);
    let paid: u64 = candles.iter().map(|day| day.msats.get()).sum();
    assert_eq!(paid, 1_000 * 2 + 1_200 * 3 + 900 * 5);
    assert_eq!(candles.last().unwrap().close, Price::new(900));

    for epoch in [None, Some(scene.epoch())] {
        let ticker = reader.tickers(epoch).await.unwrap().remove(0);
        let day = ticker.day.unwrap();
        assert_eq!((day.high, day.low), (Price::new(1_200), Price::new(900)));
        assert_eq!((day.lots, day.trades), (10, 3));
        assert_eq!(ticker.last.unwrap().price, Price::new(900), "by the time of the match");
    }
    let book = timeout(PATIENCE, async {
        let mut feed = reader.follow_book(scene.epoch()).await.unwrap();
        while feed.book().last().is_none_or(|last| last.price != Price::new(900)) {
            feed.next().await.unwrap();
        }
    });
    book.await.expect("the exchange's own word in time");
    reader.close().await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_sees_a_match_and_then_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::open(dir.path()).await;
    let earlier = scene.matched(1_000, 2).await;
    let reader = scene.reader().await;
    assert_eq!(reader.lines(scene.epoch(), 10).await.unwrap().len(), 1);
    let mut feed = reader.follow_tape(scene.epoch()).await.unwrap();
    let later = scene.matched(1_100, 1).await;
    let line = next(&mut feed).await;
    assert_eq!(line.trade.id, later);
    assert!(matches!(line.stage, Stage::InFlight { step: 1, .. }), "{line:?}");
    for of in [earlier, later] {
        scene.settle(of).await;
        let line = next(&mut feed).await;
        assert_eq!((line.trade.id, line.is_completed()), (of, true));
        assert!(matches!(line.stage, Stage::Ended { fate: Fate::Completed, .. }));
    }
    reader.close().await;
    scene.close().await;
}
