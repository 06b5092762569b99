//! Places, outcomes, records, restarts.

use hashpit_exchange::audit::audit;
use hashpit_exchange::desk::Answer;
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{Action, MarketState, OnEpoch, Rules, Side, Terms};
use hashpit_nips::eh05::{Effect, Fate, LastTrade, Match, Outcome, Settlement};
use hashpit_nips::{Lots, Millis, Price};
use nostr::{EventBuilder, Keys, Kind, Tag, Timestamp};

use crate::world::{START, World, rules};

async fn house() -> (World, Keys, Keys) {
    let world = World::open(rules());
    assert_eq!(world.publish(1, EpochState::Open).await, Answer::Entry(1));
    (world, Keys::generate(), Keys::generate())
}

#[tokio::test]
async fn two_offers_meet_and_the_record_says_so() {
    let (world, seller, buyer) = house().await;
    let sell = world.offer(&seller, World::terms(Side::Sell, 1_500, 5));
    let buy = world.offer(&buyer, World::terms(Side::Buy, 2_000, 3));
    world.accepted(&sell).await;
    let entry = world.accepted(&buy).await;
    let record = world.record(entry.seq);
    let matched = Match::decode(&record[1]).unwrap();
    assert_eq!(record.len(), 2);
    assert!(record.iter().all(|event| event.verify().is_ok()));
    assert_eq!((matched.price, matched.lots), (Price::new(1_500), Lots::new(3)));
    assert_eq!((matched.maker.offer, matched.taker.offer), (sell.id, buy.id));
    assert_eq!(matched.seller().trader, seller.public_key());
    let book = world.desk.snapshots(None).await.unwrap().remove(0).book;
    assert_eq!((book.asks.len(), book.asks[0].1, book.bids.len()), (1, 2, 0));
    let (newest, changes) = world.desk.take_changes();
    assert_eq!(newest, Some(entry.seq));
    assert_eq!(changes[&world.epoch(1)].asks, book.asks);
    assert_eq!(changes[&world.epoch(1)].last, None, "it is not settled yet");
    assert!(world.desk.take_changes().1.is_empty());
}

#[tokio::test]
async fn the_last_trade_is_the_newest_match_that_was_completed() {
    let (world, seller, buyer) = house().await;
    let mut matches = Vec::new();
    for price in [1_500, 1_600, 1_700] {
        world.pass(1_000);
        world.accepted(&world.offer(&seller, World::terms(Side::Sell, price, 2))).await;
        let taken = world.accepted(&world.offer(&buyer, World::terms(Side::Buy, price, 2))).await;
        matches.push((world.record(taken.seq)[1].id, price, taken.at));
    }
    assert_eq!(world.last().await, None, "none is settled");
    world.desk.take_changes();

    // The second is settled first. It stays the newest when the first is, too.
    let (of, price, at) = matches[1];
    world.pass(5_000);
    let done = world.settle(of, [&seller, &buyer]).await;
    let last = LastTrade { price: Price::new(price), lots: Lots::new(2), at };
    assert_eq!(world.last().await, Some(last));
    let (newest, changes) = world.desk.take_changes();
    assert_eq!((newest, changes[&world.epoch(1)].last), (Some(done.seq), Some(last)));
    assert!(changes[&world.epoch(1)].asks.is_empty(), "no level has changed");
    world.settle(matches[0].0, [&seller, &buyer]).await;
    assert_eq!(world.last().await, Some(last));
    assert!(world.desk.take_changes().1.is_empty());

    // The third fails, and nobody has traded at its price.
    world.pass(60_000);
    world.accepted(&world.command(&seller, Action::Alive(None))).await;
    let told: Vec<_> = world.records().into_iter().flatten().collect();
    let told = told.iter().filter_map(|event| Settlement::decode(event).ok());
    let fates: Vec<_> = told.map(|settled| (settled.of, settled.fate)).collect();
    let both = vec![seller.public_key(), buyer.public_key()];
    let failed = (matches[2].0, Fate::Failed { step: 1, due: both });
    assert_eq!(fates.last(), Some(&failed));
    assert_eq!(world.last().await, Some(last));
}

#[tokio::test]
async fn a_restart_forgets_nothing_and_repeats_nothing() {
    let (mut world, seller, buyer) = house().await;
    let mut events = Vec::new();
    for number in 0..40 {
        let side = if number % 3 == 0 { Side::Buy } else { Side::Sell };
        let who = if number % 2 == 0 { &seller } else { &buyer };
        world.pass(700);
        events.push(world.offer(who, World::terms(side, 1_000 + number * 7 % 90, 4)));
        world.accepted(events.last().unwrap()).await;
    }
    let (before, records) = (world.desk.digest().await.unwrap(), world.records());
    world = world.reopen().await;
    assert_eq!(world.desk.digest().await.unwrap(), before);
    assert_eq!(world.records(), records);
    for event in events {
        let again = world.desk.submit(event).await.unwrap();
        assert!(matches!(again, Answer::Ignored(_)), "{again:?}");
    }
    assert_eq!(world.desk.digest().await.unwrap(), before);
}

#[tokio::test]
async fn refusals_have_their_place_and_name_what_is_wrong() {
    let (world, trader, _) = house().await;
    let stale = world.offer(&trader, World::terms(Side::Buy, 5, 1));
    world.pass(61_000);
    assert!(world.refused(&stale).await.contains("created_at is 61 s off"));
    let mut terms = World::terms(Side::Buy, 5, 1);
    terms.pay = vec![format!("cashu:02{}", trader.public_key()).parse().unwrap()];
    let strange = world.offer(&trader, terms);
    assert!(world.refused(&strange).await.contains("ways of payment"));
    let plain = world.offer(&trader, World::terms(Side::Buy, 5, 1));
    let tags = plain.tags.iter().filter(|tag| tag.as_slice()[0] != "qty").cloned();
    let broken = EventBuilder::new(plain.kind, "").tags(tags.collect::<Vec<_>>());
    let broken = broken.custom_created_at(plain.created_at).sign_with_keys(&trader).unwrap();
    assert!(world.refused(&broken).await.contains("\"qty\" is missing"));
    let foreign = Tag::parse(["x", &trader.public_key().to_hex()]).unwrap();
    let foreign = EventBuilder::new(plain.kind, "").tag(foreign).sign_with_keys(&trader).unwrap();
    assert!(matches!(world.desk.submit(foreign).await.unwrap(), Answer::Ignored(_)));
}

#[tokio::test]
async fn an_offer_is_amended_by_naming_what_stands_and_cancelled_three_ways() {
    let (world, trader, _) = house().await;
    let first = world.offer_at(&trader, "a", None, Some(World::terms(Side::Sell, 9, 5)));
    world.accepted(&first).await;
    let blind = world.offer_at(&trader, "a", None, Some(World::terms(Side::Sell, 8, 5)));
    assert!(world.refused(&blind).await.contains("prev"));
    let better = Some(World::terms(Side::Sell, 8, 5));
    let second = world.offer_at(&trader, "a", Some(first.id), better.clone());
    world.accepted(&second).await;
    let late = world.offer_at(&trader, "a", Some(first.id), Some(World::terms(Side::Sell, 7, 5)));
    world.refused(&late).await;
    let depth = |world: &World| {
        let desk = world.desk.clone();
        async move { desk.snapshots(None).await.unwrap().remove(0).book.asks.len() }
    };
    assert_eq!(depth(&world).await, 1);
    world.accepted(&world.offer_at(&trader, "a", None, None)).await;
    assert_eq!(depth(&world).await, 0);

    let third = world.offer_at(&trader, "b", None, better.clone());
    world.accepted(&third).await;
    let coordinate = format!("38480:{}:b", trader.public_key());
    let delete =
        EventBuilder::new(Kind::EventDeletion, "").tag(Tag::parse(["a", &coordinate]).unwrap());
    let delete = delete.sign_with_keys(&trader).unwrap();
    // Dated by this machine's clock, which is years off the exchange's: a
    // cancellation may be old.
    assert!(delete.created_at.as_secs() < START / 1000);
    world.accepted(&delete).await;
    assert_eq!(depth(&world).await, 0);
    assert!(matches!(world.desk.submit(delete).await.unwrap(), Answer::Ignored(_)));

    world.accepted(&world.offer_at(&trader, "c", None, better)).await;
    world.accepted(&world.command(&trader, Action::CancelAll(None))).await;
    assert_eq!(depth(&world).await, 0);
}

#[tokio::test]
async fn a_hidden_offer_keeps_the_place_of_its_commit() {
    let (world, hidden, rival) = house().await;
    world.accepted(&world.offer(&rival, World::terms(Side::Sell, 100, 1))).await;
    let buy = world.offer(&hidden, World::terms(Side::Buy, 100, 1));
    let commit = Action::Commit { epoch: world.epoch(1), offer: buy.id };
    world.accepted(&world.command(&hidden, commit)).await;
    world.pass(500);
    let faster = world.offer(&rival, World::terms(Side::Buy, 100, 1));
    let third = Keys::generate();
    let other = world.offer(&third, World::terms(Side::Buy, 101, 1));
    assert_eq!(world.submit(&faster).await.outcome, Outcome::Deferred);
    assert_eq!(world.submit(&other).await.outcome, Outcome::Deferred);
    let shown = world.accepted(&buy).await;
    let matched = Match::decode(&world.record(shown.seq)[1]).unwrap();
    assert_eq!(matched.taker.offer, buy.id);
    assert!(shown.effects.contains(&Effect::Late(other.id, Outcome::Accepted)), "{shown:?}");

    let never = Action::Commit { epoch: world.epoch(1), offer: faster.id };
    world.accepted(&world.command(&hidden, never)).await;
    world.pass(2_000);
    let next = world.submit(&world.offer(&third, World::terms(Side::Buy, 1, 1))).await;
    let burnt = world.entry(next.seq - 1);
    assert_eq!(burnt.effects, [Effect::Burnt(faster.id)]);
}

#[tokio::test]
async fn a_new_epoch_halts_the_market_then_an_auction_opens_it() {
    let (world, seller, buyer) = house().await;
    let keep = |side, price| Terms { on_epoch: OnEpoch::Keep, ..World::terms(side, price, 2) };
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 500, 2))).await;
    world.accepted(&world.offer(&seller, keep(Side::Sell, 400))).await;
    world.pass(1_000);
    world.publish(2, EpochState::Open).await;
    let state = |height: u32| {
        let (desk, epoch) = (world.desk.clone(), world.epoch(height));
        async move {
            let snapshot = desk.snapshots(Some(vec![epoch])).await.unwrap().remove(0);
            (snapshot.book.state, snapshot.book.asks.len())
        }
    };
    assert_eq!(state(1).await, (MarketState::Halted, 1), "one offer went with the epoch");
    assert_eq!(state(2).await, (MarketState::Open, 0));
    assert!(world.refused(&world.offer(&buyer, keep(Side::Buy, 450))).await.contains("halt"));
    world.pass(5_000);
    world.accepted(&world.offer(&buyer, keep(Side::Buy, 450))).await;
    assert_eq!(state(1).await, (MarketState::Auction, 1));
    world.pass(10_000);
    assert_eq!(state(1).await, (MarketState::Open, 0));
    let newest = world.desk.newest().borrow().unwrap();
    assert_eq!(Match::decode(&world.record(newest)[1]).unwrap().lots, Lots::new(2));

    world.pass(1_000);
    world.accepted(&world.offer(&seller, keep(Side::Sell, 300))).await;
    world.publish(1, EpochState::Open).await;
    assert_eq!(state(1).await, (MarketState::Auction, 1), "the block was orphaned");
    assert_eq!(state(2).await, (MarketState::Closed, 0));
    world.pass(10_000);
    assert_eq!(state(1).await, (MarketState::Open, 1));
}

#[tokio::test]
async fn who_does_not_settle_is_on_record() {
    let (world, seller, buyer) = house().await;
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 100, 2))).await;
    let taken = world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 100, 2))).await;
    let of = world.record(taken.seq)[1].id;
    world.accepted(&world.command(&seller, Action::Step { of, step: 1 })).await;
    world.refused(&world.command(&Keys::generate(), Action::Step { of, step: 1 })).await;
    world.pass(60_000);
    let late = world.submit(&world.command(&buyer, Action::Step { of, step: 1 })).await;
    assert!(matches!(late.outcome, Outcome::Refused(_)));
    let failed = world.records().into_iter().flatten().find_map(|e| Settlement::decode(&e).ok());
    let failed = failed.unwrap();
    assert_eq!(failed.fate, Fate::Failed { step: 1, due: vec![buyer.public_key()] });
    assert_eq!(failed.of, of);
    assert_eq!(failed.at, Millis::new(START + 60_000));
}

#[tokio::test]
async fn what_settles_or_ends_an_offer_does_not_count_against_its_traders_rate() {
    let world = World::open(Rules { events_per_minute: 4, ..rules() });
    world.publish(1, EpochState::Open).await;
    let (seller, buyer) = (Keys::generate(), Keys::generate());
    let [stands, other] = ["stands", "other"]
        .map(|d| world.offer_at(&seller, d, None, Some(World::terms(Side::Sell, 900, 1))));
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 100, 2))).await;
    let taken = world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 100, 2))).await;
    let of = world.record(taken.seq)[1].id;
    let step = |step| world.command(&seller, Action::Step { of, step });
    world.accepted(&step(1)).await;
    world.accepted(&stands).await;
    world.accepted(&other).await;
    assert!(world.refused(&step(2)).await.contains("the other trader's"), "the fourth");
    world.accepted(&step(3)).await;

    // At the limit: what is awaited is taken, and ends nothing of the minute.
    world.accepted(&step(5)).await;
    world.accepted(&world.offer_at(&seller, "other", Some(other.id), None)).await;
    let ignored = async |event| {
        let answer = world.desk.submit(event).await.unwrap();
        assert!(matches!(answer, Answer::Ignored(_)), "{answer:?}");
    };
    world.pass(1_000);
    assert!(world.refused(&step(5)).await.starts_with("rate-limited:"), "said before");
    ignored(step(2)).await;
    ignored(world.offer_at(&seller, "stands", Some(other.id), None)).await;
    ignored(world.offer_at(&seller, "other", None, None)).await;
    world.accepted(&step(6)).await;
    world.accepted(&world.command(&seller, Action::CancelAll(None))).await;
    world.pass(1_000);
    ignored(world.command(&seller, Action::CancelAll(None))).await;
    let report = audit(world.exchange.public_key(), &world.evidence(&[]).await);
    assert!(report.is_clean(), "{:?}", report.findings);

    world.pass(60_000);
    world.accepted(&world.command(&seller, Action::CancelAll(None))).await;
}

#[tokio::test]
async fn a_dead_mans_switch_ends_all_offers_of_its_trader() {
    let (world, trader, other) = house().await;
    world.accepted(&world.offer(&trader, World::terms(Side::Sell, 100, 2))).await;
    world.accepted(&world.offer(&other, World::terms(Side::Sell, 100, 3))).await;
    let until = Timestamp::from(START / 1000 + 30);
    world.accepted(&world.command(&trader, Action::Alive(Some(until)))).await;
    world.pass(30_000);
    let book = world.desk.snapshots(None).await.unwrap().remove(0).book;
    assert_eq!(book.asks[0].1, 3);
}
