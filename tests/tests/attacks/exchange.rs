//! What an exchange can sign, or who holds its key; and clocks.

use std::path::Path;

use hashpit_client::settle::{Clock, Limits};
use hashpit_client::trade::{Standing, Trader};
use hashpit_nips::eh04::Side;
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::Timing;
use hashpit_nips::{HashUnits, Lots, Millis, Price};
use hashpit_tests::adversary::Adversary;
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::{EventId, Keys, PublicKey, Timestamp};
use tempfile::TempDir;

use crate::bench::{CALM, LOTS, PRICE, Victim, forge};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_is_off_is_noticed_even_if_the_other_flatters_it() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let limits = || Limits { mints: vec![house.sats.url.clone()], ..Limits::default() };
    // The exchange is in league: it dates the match by the victim's clock, 70 s late.
    let slow = Clock { ahead: -70 };
    let timing = Timing { agree: 50, sats: 60, ehash: 70, ..CALM };
    let victim = Victim::start_with(&house, &house.seller, timing, limits(), slow).await;
    house.offer(&house.seller, Side::Sell, 2 * LOTS, PRICE).await.unwrap();
    let of = house.offer(&house.buyer, Side::Buy, LOTS, PRICE).await.unwrap()[0];
    let why = victim.void(of).await;
    assert!(why.contains("clock"), "dated in the victim's future: {why}");
    let adversary = Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let forged = forge(&house, dir.path(), of, |terms| {
        terms.at = Millis::new((Timestamp::now().as_secs() - 70) * 1000);
    });
    let forged = forged.await;
    adversary.publish(&forged).await.unwrap();
    let why = victim.void(forged.id).await;
    assert!(why.contains("mint") && why.contains("clock"), "{why}");
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exchange_with_its_key_and_journal_gains_nothing() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let timing = Timing { agree: 8, ..CALM };
    let victim = Victim::start(&house, &house.seller, timing).await;
    let adversary = Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    // A true match of an offer of 100 lots, which its buyer lets lapse.
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let why = victim.void(of).await;
    assert!(why.contains("not told its keys"), "{why}");
    let now = || Millis::new(Timestamp::now().as_secs() * 1000);
    let thief = Keys::generate().public_key();
    type Tweak<'a> = Box<dyn Fn(&mut Match) + 'a>;
    let forgeries: Vec<(Tweak, &str)> = vec![
        (Box::new(|it| it.price = Price::new(1)), "a worse price"),
        (Box::new(|it| it.lots = Lots::new(LOTS + 1)), "more lots"),
        (Box::new(|it| it.units = HashUnits::new(it.units.get() * 5)), "units"),
        (Box::new(|it| it.at = Millis::new(it.at.get() + 120_000)), "future"),
        // The same offer once more, for another buyer.
        (Box::new(move |it| swap_buyer(it, thief)), "with its other matches more lots"),
        // An offer that was never made.
        (
            Box::new(|it| {
                let maker = it.taker_side == Side::Buy;
                let own = if maker { &mut it.maker } else { &mut it.taker };
                own.offer = EventId::from_byte_array([3; 32]);
            }),
            "does not show our offer",
        ),
        // The victim's own offer, and the victim on the other side.
        (
            Box::new(|it| {
                it.taker_side = match it.taker_side {
                    Side::Buy => Side::Sell,
                    Side::Sell => Side::Buy,
                };
            }),
            "another side",
        ),
    ];
    for (tweak, said) in forgeries {
        let forged = forge(&house, dir.path(), of, |it| {
            it.at = now();
            tweak(it);
        });
        let forged = forged.await;
        adversary.publish(&forged).await.unwrap();
        let why = victim.void(forged.id).await;
        assert!(why.contains(said), "{said}: {why}");
    }

    a_canceled_offer_is_matched(&house, dir.path(), of, &victim, &adversary).await;
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

async fn a_canceled_offer_is_matched(
    house: &TradeHouse,
    dir: &Path,
    of: EventId,
    victim: &Victim,
    adversary: &Adversary,
) {
    let keys = house.seller.trade_keys();
    house.offer(&house.seller, Side::Sell, 7, PRICE).await.unwrap();
    let mut trader = Trader::connect(keys, house.connect().await.unwrap()).await.unwrap();
    let offers = trader.offers().await.unwrap();
    let standing = offers.iter().find(|it| it.standing == Standing::Open);
    let standing = standing.unwrap().clone();
    trader.cancel(&standing).await.unwrap();
    trader.close().await;
    let forged = forge(house, dir, of, |it| {
        it.at = Millis::new(Timestamp::now().as_secs() * 1000);
        it.seq += 1_000;
        it.lots = Lots::new(7);
        it.units = HashUnits::new(7);
        let own = if it.taker_side == Side::Buy { &mut it.maker } else { &mut it.taker };
        own.offer = standing.event;
    });
    let forged = forged.await;
    adversary.publish(&forged).await.unwrap();
    let why = victim.void(forged.id).await;
    assert!(why.contains("replaced or canceled"), "{why}");
}

fn swap_buyer(terms: &mut Match, buyer: PublicKey) {
    let leg = if terms.taker_side == Side::Buy { &mut terms.taker } else { &mut terms.maker };
    leg.trader = buyer;
}
