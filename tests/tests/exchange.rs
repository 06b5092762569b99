//! An exchange among relays that come and go: what is offered anywhere gets one
//! place, every relay ends up with the whole journal, and a journal that was lost
//! comes back from them, or the exchange does not start.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use hashpit_mailbox::{Arrival, Mailbox};
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{Market, MarketId, MarketState, Side};
use hashpit_nips::eh05::{Change, Checkpoint, Depth, Entry, Level, Match, Outcome};
use hashpit_nips::kind;
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::exchange_house::{BarePool, ExchangeHouse, Onlooker, offer, unsigned_offer};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::{Event, Filter, JsonUtil, Keys, Kind, RelayUrl, Timestamp};
use tokio::net::TcpListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
const HEIGHT: u32 = 7;

/// An exchange with one open market.
struct Scene {
    exchange: ExchangeHouse,
    pool: BarePool,
    trader: Keys,
    market: MarketId,
}

impl Scene {
    /// On `relays`, of which the first is up.
    async fn open(relays: &[RelayUrl], dir: &Path) -> Self {
        let (pool, trader) = (BarePool::new(), Keys::generate());
        let config = ExchangeHouse::config(relays, &[&pool]);
        let exchange = ExchangeHouse::start(config, dir).await.unwrap();
        let market = exchange.market(pool.epoch(HEIGHT));
        let keyset = pool.keyset(HEIGHT, EpochState::Open, Timestamp::now()).unwrap();
        let first = Onlooker::connect(&pool.keys, &relays[0]).await.unwrap();
        first.mailbox.publish(&keyset).await.unwrap();
        let scene = Self { exchange, pool, trader, market };
        scene.market_at(&first).await;
        scene
    }

    /// Stops the exchange and starts it again with what is in its directory,
    /// after `between`.
    async fn restart(self, relays: &[RelayUrl], dir: &Path, between: impl AsyncFnOnce()) -> Self {
        let Self { exchange, pool, trader, market } = self;
        exchange.stop().await.unwrap();
        between().await;
        let config = ExchangeHouse::config(relays, &[&pool]);
        let exchange = ExchangeHouse::start(config, dir).await.unwrap();
        assert_eq!(exchange.key, market.exchange, "the key is the directory's");
        Self { exchange, pool, trader, market }
    }

    async fn market_at(&self, relay: &Onlooker) -> Market {
        let unit = self.market.epoch.to_string();
        let filter = Filter::new().kind(kind::MARKET).author(self.exchange.key).identifier(unit);
        Market::decode(&relay.sees(filter, |_| true).await.unwrap()).unwrap()
    }

    fn sell(&self, price: u64, lots: u32) -> Event {
        offer(&self.trader, self.market, Side::Sell, price, lots)
    }

    async fn at(&self, relay: &RelayUrl) -> Onlooker {
        Onlooker::connect(&self.trader, relay).await.unwrap()
    }
}

/// The journal is whole: from 0 on, each entry names the one before.
fn whole(journal: &[Event]) -> Vec<Entry> {
    let mut entries: Vec<_> =
        journal.iter().map(|event| (Entry::decode(event).unwrap(), event.id)).collect();
    entries.sort_by_key(|(entry, _)| entry.seq);
    for (seq, pair) in entries.windows(2).enumerate() {
        assert_eq!((pair[0].0.seq, pair[1].0.seq), (seq as u64, seq as u64 + 1));
        assert_eq!(pair[1].0.prev, pair[0].1);
    }
    entries.into_iter().map(|(entry, _)| entry).collect()
}

async fn two_relays(dir: &Path) -> [RelayHouse; 2] {
    let [one, other] = ["one", "other"].map(|name| dir.join(name));
    [RelayHouse::start(&one).await.unwrap(), RelayHouse::start(&other).await.unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_on_one_relay_has_its_entry_on_every_relay() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = two_relays(dir.path()).await;
    let relays = [one.url.clone(), other.url.clone()];
    let scene = Scene::open(&relays, &dir.path().join("exchange")).await;
    let (one_side, other_side) = (scene.at(&relays[0]).await, scene.at(&relays[1]).await);
    let event = scene.sell(5_000, 3);
    let begun = Instant::now();
    other_side.mailbox.publish(&event).await.unwrap();
    let entry = one_side.entry_of(scene.exchange.key, &event).await.unwrap();
    println!("offer to entry, by way of two relays: {:?}", begun.elapsed());
    assert_eq!(other_side.entry_of(scene.exchange.key, &event).await.unwrap(), entry);
    let said = Entry::decode(&entry).unwrap();
    assert_eq!((said.outcome, said.seq), (Outcome::Accepted, 2), "after the rules and the epoch");
    assert_eq!(scene.market_at(&other_side).await.state, MarketState::Open);
    scene.exchange.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_on_two_relays_gets_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = two_relays(dir.path()).await;
    let relays = [one.url.clone(), other.url.clone()];
    let scene = Scene::open(&relays, &dir.path().join("exchange")).await;
    let both = Mailbox::connect(scene.trader.clone(), &relays).await.unwrap();
    assert_eq!(both.connected(PATIENCE).await, 2);
    let offers: Vec<Event> = (1..=20).map(|price| scene.sell(price, 1)).collect();
    for event in &offers {
        both.publish(event).await.unwrap();
    }
    let reader = scene.at(&relays[1]).await;
    for event in &offers {
        reader.entry_of(scene.exchange.key, event).await.unwrap();
    }
    scene.exchange.stop().await.unwrap();
    let entries = whole(&reader.journal(scene.market.exchange).await.unwrap());
    let subjects: Vec<_> = entries.iter().filter_map(|it| it.event().map(|it| it.id)).collect();
    assert_eq!(subjects[1..], offers.iter().map(|it| it.id).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_was_down_gets_the_whole_journal() {
    let dir = tempfile::tempdir().unwrap();
    let one = RelayHouse::start(&dir.path().join("one")).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let later: RelayUrl = format!("ws://{address}").parse().unwrap();
    drop(listener);
    let relays = [one.url.clone(), later.clone()];
    let scene = Scene::open(&relays, &dir.path().join("exchange")).await;
    let here = scene.at(&relays[0]).await;
    let offers: Vec<Event> = (1..=100).map(|price| scene.sell(price, 1)).collect();
    for event in &offers {
        here.mailbox.publish(event).await.unwrap();
    }
    let last = offers.last().unwrap();
    here.entry_of(scene.exchange.key, last).await.unwrap();

    // Meanwhile something is offered there, where the exchange cannot see it.
    let home = dir.path().join("other");
    let hidden = RelayHouse::start(&home).await.unwrap();
    let unseen = scene.sell(1_000, 1);
    scene.at(&hidden.url).await.mailbox.publish(&unseen).await.unwrap();
    hidden.stop().await.unwrap();

    let listener = TcpListener::bind(address).await.unwrap();
    let other = RelayHouse::start_on(listener, &home).await.unwrap();
    let there = scene.at(&later).await;
    here.entry_of(scene.exchange.key, &unseen).await.unwrap();
    there.entry_of(scene.exchange.key, &unseen).await.unwrap();
    there.entry_of(scene.exchange.key, last).await.unwrap();
    assert_eq!(scene.market_at(&there).await.state, MarketState::Open, "markets are told again");
    scene.exchange.stop().await.unwrap();
    let (here, there) = (here.journal(scene.market.exchange), there.journal(scene.market.exchange));
    let (here, there) = (here.await.unwrap(), there.await.unwrap());
    assert_eq!(whole(&here).len(), 103);
    assert_eq!(here, there);
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = two_relays(dir.path()).await;
    let relays = [one.url.clone(), other.url.clone()];
    let home = dir.path().join("exchange");
    let mut scene = Scene::open(&relays, &home).await;
    let trader = scene.at(&relays[0]).await;
    let mut offers = Vec::new();
    for round in 0..3 {
        // Killed with offers on their way, and offers while it is dead.
        let before: Vec<Event> = (1..=30).map(|price| scene.sell(100 * round + price, 1)).collect();
        for event in &before {
            trader.mailbox.publish(event).await.unwrap();
        }
        let Scene { exchange, pool, trader: keys, market } = scene;
        exchange.kill().await;
        let missed = offer(&keys, market, Side::Sell, 5_000 + round, 1);
        trader.mailbox.publish(&missed).await.unwrap();
        let config = ExchangeHouse::config(&relays, &[&pool]);
        let exchange = ExchangeHouse::start(config, &home).await.unwrap();
        scene = Scene { exchange, pool, trader: keys, market };
        offers.extend(before);
        offers.push(missed);
    }
    for relay in &relays {
        let reader = scene.at(relay).await;
        for event in &offers {
            reader.entry_of(scene.exchange.key, event).await.unwrap();
        }
    }
    scene.exchange.stop().await.unwrap();
    let mut journals = Vec::new();
    for relay in &relays {
        let reader = Onlooker::connect(&scene.trader, relay).await.unwrap();
        journals.push(reader.journal(scene.market.exchange).await.unwrap());
    }
    let entries = whole(&journals[0]);
    assert_eq!(entries.len(), 2 + offers.len(), "each offer was acknowledged once");
    assert!(entries.iter().all(|entry| entry.outcome == Outcome::Accepted));
    assert_eq!(journals[0], journals[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_of_a_downtime_are_all_read_from_a_relay_that_tells_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let good = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let few = BadRelay::start(Fault::AtMost(7)).await.unwrap();
    let relays = [good.url.clone(), few.url.clone()];
    let home = dir.path().join("exchange");
    let scene = Scene::open(&relays, &home).await;
    let (keys, market) = (scene.trader.clone(), scene.market);
    let begin = Timestamp::now().as_secs() - 40;
    let sign = |number| {
        let at = Timestamp::from(begin + number);
        let unsigned = unsigned_offer(market, Side::Sell, 100 + number, 1);
        unsigned.custom_created_at(at).sign_with_keys(&keys).unwrap()
    };
    let offers: Vec<Event> = (0..40).map(sign).collect();
    let scene = scene
        .restart(&relays, &home, async || {
            let trader = Onlooker::connect(&keys, &few.url).await.unwrap();
            for event in &offers {
                trader.mailbox.publish(event).await.unwrap();
            }
        })
        .await;
    let trader = scene.at(&good.url).await;
    for event in &offers {
        trader.entry_of(scene.exchange.key, event).await.unwrap();
    }
    scene.exchange.stop().await.unwrap();
    let entries = whole(&trader.journal(scene.market.exchange).await.unwrap());
    let subjects: Vec<_> = entries.iter().filter_map(|it| it.event().map(|it| it.id)).collect();
    assert_eq!(subjects[1..], offers.iter().map(|it| it.id).collect::<Vec<_>>(), "oldest first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_journal_comes_back_from_the_relays() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = two_relays(dir.path()).await;
    let relays = [one.url.clone(), other.url.clone()];
    let home = dir.path().join("exchange");
    let scene = Scene::open(&relays, &home).await;
    let trader = scene.at(&relays[0]).await;
    let (buyer, market) = (Keys::generate(), scene.market);
    for price in 1..=60 {
        trader.mailbox.publish(&scene.sell(1_000 + price, 2)).await.unwrap();
    }
    let buy = offer(&buyer, scene.market, Side::Buy, 1_010, 7);
    trader.mailbox.publish(&buy).await.unwrap();
    trader.entry_of(scene.exchange.key, &buy).await.unwrap();
    let before = std::cell::RefCell::new(Vec::new());
    let lose = async || {
        before.replace(trader.journal(market.exchange).await.unwrap());
        std::fs::remove_dir_all(home.join("journal")).unwrap();
    };
    let scene = scene.restart(&relays, &home, lose).await;
    let before = before.into_inner();
    let next = scene.sell(9_000, 1);
    trader.mailbox.publish(&next).await.unwrap();
    let entry = trader.entry_of(scene.exchange.key, &next).await.unwrap();
    assert_eq!(Entry::decode(&entry).unwrap().seq, before.len() as u64);
    scene.exchange.stop().await.unwrap();
    let after = trader.journal(scene.market.exchange).await.unwrap();
    assert_eq!(whole(&after).len(), before.len() + 1);
    assert!(before.iter().all(|entry| after.contains(entry)));
    let matches = Filter::new().kind(kind::MATCH).author(scene.market.exchange);
    let matches = trader.mailbox.stored(&relays[0], matches, PATIENCE).await.unwrap();
    assert_eq!(matches.len(), 4, "each match once, although signed twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_comes_back_from_a_relay_that_tells_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let good = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let few = BadRelay::start(Fault::None).await.unwrap();
    let home = dir.path().join("exchange");
    let scene = Scene::open(&[good.url.clone(), few.url.clone()], &home).await;
    let trader = scene.at(&good.url).await;
    // Most of these have their entries within one second, in the order of chance.
    let offers: Vec<Event> = (1..=150).map(|price| scene.sell(price, 1)).collect();
    let publish = async |event| trader.mailbox.publish(event).await.unwrap();
    stream::iter(&offers).for_each_concurrent(32, publish).await;
    for event in &offers {
        trader.entry_of(scene.exchange.key, event).await.unwrap();
    }
    let market = scene.market;
    let lose = async || {
        few.set(Fault::AtMost(20));
        std::fs::remove_dir_all(home.join("journal")).unwrap();
    };
    let scene = scene.restart(std::slice::from_ref(&few.url), &home, lose).await;
    scene.exchange.stop().await.unwrap();
    // The same chain, as one entry more on the other relay shows.
    let scene = {
        let config = ExchangeHouse::config(std::slice::from_ref(&good.url), &[&scene.pool]);
        Scene { exchange: ExchangeHouse::start(config, &home).await.unwrap(), ..scene }
    };
    let next = scene.sell(9_000, 1);
    trader.mailbox.publish(&next).await.unwrap();
    let entry = trader.entry_of(market.exchange, &next).await.unwrap();
    assert_eq!(Entry::decode(&entry).unwrap().seq, 152);
    scene.exchange.stop().await.unwrap();
    assert_eq!(whole(&trader.journal(market.exchange).await.unwrap()).len(), 153);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_made_whole_is_not_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let home = dir.path().join("exchange");
    let scene = Scene::open(std::slice::from_ref(&relay.url), &home).await;
    let trader = scene.at(&relay.url).await;
    for price in 1..=10 {
        let event = scene.sell(price, 1);
        trader.mailbox.publish(&event).await.unwrap();
        trader.entry_of(scene.exchange.key, &event).await.unwrap();
    }
    scene.exchange.stop().await.unwrap();
    let journal = trader.journal(scene.market.exchange).await.unwrap();
    let entries = whole(&journal);
    assert_eq!(entries.len(), 12);
    std::fs::remove_dir_all(home.join("journal")).unwrap();

    // One relay that has all of it but an entry in the middle.
    let gappy = BadRelay::start(Fault::None).await.unwrap();
    let copyist = Onlooker::connect(&scene.trader, &gappy.url).await.unwrap();
    for event in journal.iter().filter(|event| Entry::decode(event).unwrap().seq != 5) {
        copyist.mailbox.publish(event).await.unwrap();
    }
    let start = |relay: &RelayUrl| {
        let config = ExchangeHouse::config(std::slice::from_ref(relay), &[&scene.pool]);
        ExchangeHouse::start(config, &home)
    };
    let refused = start(&gappy.url).await.err().unwrap().to_string();
    assert!(refused.contains("5 is missing"), "{refused}");
    // A relay that is not there could have it.
    let nobody: RelayUrl = "ws://127.0.0.1:1".parse().unwrap();
    let refused = start(&gappy.url).await.err().unwrap().to_string();
    assert!(refused.contains("5 is missing"), "{refused}");
    std::fs::remove_dir_all(home.join("journal")).unwrap();
    let refused = start(&nobody).await.err().unwrap().to_string();
    assert!(refused.contains("--new"), "{refused}");
    // Where it is whole, it starts.
    start(&relay.url).await.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_refuses_the_journal_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let good = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let (refusing, silent) =
        (BadRelay::start(Fault::Refuses).await.unwrap(), BadRelay::start(Fault::Silent).await);
    let relays = [good.url.clone(), refusing.url.clone(), silent.unwrap().url.clone()];
    let scene = Scene::open(&relays, &dir.path().join("exchange")).await;
    let trader = scene.at(&good.url).await;
    for price in 1..=10 {
        let event = scene.sell(price, 1);
        trader.mailbox.publish(&event).await.unwrap();
        trader.entry_of(scene.exchange.key, &event).await.unwrap();
    }
    let stopping = Instant::now();
    scene.exchange.stop().await.unwrap();
    assert!(stopping.elapsed() < PATIENCE, "stopping waits for no relay for long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_was_not_named_gets_no_market() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let scene = Scene::open(std::slice::from_ref(&relay.url), &dir.path().join("exchange")).await;
    let (stranger, trader) = (BarePool::new(), scene.at(&relay.url).await);
    let keyset = stranger.keyset(HEIGHT, EpochState::Open, Timestamp::now()).unwrap();
    trader.mailbox.publish(&keyset).await.unwrap();
    let market = MarketId { exchange: scene.exchange.key, epoch: stranger.epoch(HEIGHT) };
    let event = offer(&scene.trader, market, Side::Sell, 1, 1);
    trader.mailbox.publish(&event).await.unwrap();
    let entry = trader.entry_of(scene.exchange.key, &event).await.unwrap();
    let Outcome::Refused(reason) = Entry::decode(&entry).unwrap().outcome else { panic!() };
    println!("{reason}");
    scene.exchange.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_traders_of_a_match_are_told_in_private() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let scene = Scene::open(std::slice::from_ref(&relay.url), &dir.path().join("exchange")).await;
    let trader = scene.at(&relay.url).await;
    let buyer = Keys::generate();
    trader.mailbox.publish(&scene.sell(500, 4)).await.unwrap();
    trader.mailbox.publish(&offer(&buyer, scene.market, Side::Buy, 600, 3)).await.unwrap();
    let public = Filter::new().kind(kind::MATCH).author(scene.exchange.key);
    let public = trader.sees(public, |_| true).await.unwrap();
    assert_eq!(Match::decode(&public).unwrap().price.get(), 500);
    for keys in [&scene.trader, &buyer] {
        let filter = Filter::new().kind(Kind::GiftWrap).pubkey(keys.public_key());
        let mailbox =
            Mailbox::connect(keys.clone(), std::slice::from_ref(&relay.url)).await.unwrap();
        let mut inbox = mailbox.subscribe(filter).await.unwrap();
        let wrap = timeout(PATIENCE, async {
            loop {
                if let Arrival::Event(event) = inbox.next().await.unwrap() {
                    return event;
                }
            }
        });
        let wrap = wrap.await.unwrap();
        let gift = UnwrappedGift::from_gift_wrap(keys, &wrap).await.unwrap();
        assert_eq!((gift.sender, gift.rumor.kind), (scene.exchange.key, kind::MATCH));
        assert_eq!(Event::from_json(gift.rumor.content).unwrap(), public);
        mailbox.close().await;
    }
    scene.exchange.stop().await.unwrap();
}

/// A reader's picture of a market's asks.
#[derive(Default)]
struct Picture {
    number: Option<u64>,
    asks: BTreeMap<u64, u64>,
}

impl Picture {
    fn start(&mut self, checkpoint: &Checkpoint) {
        self.number = Some(checkpoint.depth);
        self.asks = checkpoint.book.asks.iter().map(|it| (it.0.get(), it.1)).collect();
    }

    /// False at a gap.
    fn add(&mut self, number: u64, change: &Change) -> bool {
        if self.number.is_some_and(|newest| number <= newest) {
            return true;
        }
        if self.number.is_none_or(|newest| number != newest + 1) {
            return false;
        }
        self.number = Some(number);
        for Level(price, lots, _) in &change.asks {
            self.asks.insert(price.get(), *lots);
        }
        self.asks.retain(|_, lots| *lots > 0);
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_misses_a_change_is_right_again_by_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let scene = Scene::open(std::slice::from_ref(&relay.url), &dir.path().join("exchange")).await;
    let reader =
        Mailbox::connect(Keys::generate(), std::slice::from_ref(&relay.url)).await.unwrap();
    let filter = Filter::new().kinds([kind::CHECKPOINT, kind::DEPTH]).author(scene.exchange.key);
    let mut inbox = reader.subscribe(filter).await.unwrap();
    let trader = scene.at(&relay.url).await;
    let (mut picture, mut right) = (Picture::default(), BTreeMap::new());
    let (mut depths, mut gaps) = (0, 0);
    let read = timeout(PATIENCE, async {
        loop {
            let Arrival::Event(event) = inbox.next().await.unwrap() else { continue };
            if event.kind == kind::CHECKPOINT {
                picture.start(&Checkpoint::decode(&event).unwrap());
                if gaps > 0 && picture.asks == right {
                    return;
                }
            } else {
                depths += 1;
                let depth = Depth::decode(&event).unwrap();
                // Every third one is lost.
                gaps += usize::from(depths % 3 != 1 && !picture.add(depth.number, &depth.change));
            }
            if picture.number.is_some() && gaps == 0 {
                let price = 100 + right.len() as u64;
                let event = scene.sell(price, 2);
                trader.mailbox.publish(&event).await.unwrap();
                right.insert(price, 2);
            }
        }
    });
    read.await.unwrap();
    reader.close().await;
    scene.exchange.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addressable_events_of_a_market_never_go_back_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let home = dir.path().join("exchange");
    let mut scene = Scene::open(std::slice::from_ref(&relay.url), &home).await;
    let trader = scene.at(&relay.url).await;
    for price in 1..=3 {
        trader.mailbox.publish(&scene.sell(price, 1)).await.unwrap();
        let filter = Filter::new().kind(kind::CHECKPOINT).author(scene.exchange.key);
        let with =
            |event: &Event| Checkpoint::decode(event).unwrap().book.asks.len() == price as usize;
        trader.sees(filter, with).await.unwrap();
        scene = scene.restart(std::slice::from_ref(&relay.url), &home, async || {}).await;
    }
    scene.exchange.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_exchange() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let home = dir.path().join("exchange");
    let scene = Scene::open(std::slice::from_ref(&relay.url), &home).await;
    let config = ExchangeHouse::config(std::slice::from_ref(&relay.url), &[&scene.pool]);
    let refused = ExchangeHouse::start(config, &home).await.err().unwrap().to_string();
    assert!(refused.contains("another process"), "{refused}");
    scene.exchange.stop().await.unwrap();
}
