//! Priority, fills, times in force, and who does not match whom.

use hashpit_exchange::engine::{
    Command, EndReason, Event, Limits, MarketId, MarketRules, Order, PayMask, Refusal,
};
use hashpit_nips::eh04::{SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Msats, Price};

use crate::house::*;

#[test]
fn the_best_price_comes_first_then_the_oldest_and_the_makers_price_counts() {
    let mut house = House::new();
    house.place(sell(1, 1, 12, 5));
    house.place(sell(2, 1, 10, 5));
    house.place(sell(3, 2, 10, 5));
    let events = house.place(buy(4, 3, 12, 11));
    assert_eq!(fills(&events), [(id(2), 10, 5), (id(3), 10, 5), (id(1), 12, 1)]);
    assert_eq!(house.book(Side::Sell), [(1, 4)]);
    assert_eq!(house.book(Side::Buy), []);
    let filled = |number| (id(number), EndReason::Filled);
    assert_eq!(ends(&events), [filled(2), filled(3), filled(4)]);
}

#[test]
fn what_is_left_of_a_buyer_is_taken_by_the_next_seller() {
    let mut house = House::new();
    house.place(buy(1, 1, 10, 5));
    house.place(buy(2, 1, 11, 5));
    let events = house.place(sell(3, 2, 10, 20));
    assert_eq!(fills(&events), [(id(2), 11, 5), (id(1), 10, 5)]);
    assert_eq!(house.book(Side::Sell), [(3, 10)]);
    assert_eq!(fills(&house.place(buy(4, 1, 10, 3))), [(id(3), 10, 3)]);
}

#[test]
fn a_match_tells_its_cost_fees_and_what_is_left() {
    let rules = MarketRules { maker_fee_ppm: 1, taker_fee_ppm: 2_500, ..RULES };
    let mut house = House::with(rules, Limits::default());
    house.place(sell(1, 1, 1_001, 10));
    let found = matches(&house.place(buy(2, 2, 2_000, 3)))[0];
    assert_eq!(found.msats, Msats::new(3_003));
    assert_eq!((found.maker_fee, found.taker_fee), (Msats::new(1), Msats::new(8)));
    assert_eq!((found.maker.left, found.taker.left), (Lots::new(7), Lots::ZERO));
    assert_eq!((found.maker.seq, found.taker.seq), (2, 3));
    assert_eq!((found.maker.trader, found.taker.trader), (trader(1), trader(2)));
    assert_eq!(found.taker_side, Side::Buy);
}

#[test]
fn ioc_takes_what_it_can_and_ends() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    let mut order = buy(2, 2, 10, 8);
    order.tif = TimeInForce::Ioc;
    let events = house.place(order);
    assert_eq!(fills(&events), [(id(1), 10, 5)]);
    assert_eq!(ends(&events)[1], (id(2), EndReason::Immediate));
    assert_eq!(house.book(Side::Buy), []);
}

#[test]
fn a_market_order_takes_any_price_and_fok_takes_all_or_nothing() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    house.place(sell(2, 1, 1_000, 5));
    let mut order = buy(3, 2, 1, 11);
    (order.price, order.tif) = (None, TimeInForce::Fok);
    assert_eq!(refusal(&house.place(order)), Refusal::NotFillable);
    assert_eq!(house.book(Side::Sell), [(1, 5), (2, 5)]);
    order.lots = Lots::new(10);
    assert_eq!(fills(&house.place(order)), [(id(1), 10, 5), (id(2), 1_000, 5)]);
    order.tif = TimeInForce::Ioc;
    assert_eq!(ends(&house.place(order)), [(id(3), EndReason::Immediate)]);
    order.tif = TimeInForce::Gtc;
    assert_eq!(refusal(&house.place(order)), Refusal::NoPrice);
}

#[test]
fn post_only_is_refused_where_it_would_match() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    let mut order = buy(2, 2, 10, 1);
    order.tif = TimeInForce::Post;
    assert_eq!(refusal(&house.place(order)), Refusal::WouldMatch);
    // Its own offer counts, and stays.
    for self_trade in [SelfTrade::CancelNew, SelfTrade::CancelOld] {
        let own = Order { trader: trader(1), self_trade, ..order };
        assert_eq!(refusal(&house.place(own)), Refusal::WouldMatch);
    }
    assert_eq!(house.book(Side::Sell), [(1, 5)]);
    order.price = Some(Price::new(9));
    house.place(order);
    assert_eq!(house.book(Side::Buy), [(2, 1)]);
}

#[test]
fn offers_without_a_common_payment_pass_each_other_by() {
    let mut house = House::new();
    for (number, pay) in [(1, 0b100), (2, 0b010)] {
        let mut order = sell(number, 1, 10, 5);
        order.pay = PayMask(pay);
        house.place(order);
    }
    let mut order = buy(3, 2, 10, 6);
    order.pay = PayMask(0b011);
    let events = house.place(order);
    assert_eq!(fills(&events), [(id(2), 10, 5)]);
    assert_eq!(matches(&events)[0].pay, PayMask(0b010));
    assert_eq!(house.book(Side::Buy), [(3, 1)]);
    assert_eq!(house.book(Side::Sell), [(1, 5)]);
}

#[test]
fn a_group_does_not_trade_with_itself() {
    let mut house = House::new();
    for (number, group) in [(1, Some(7)), (2, None), (3, Some(8))] {
        let mut order = sell(number, 1, 10, 5);
        order.group = group;
        house.place(order);
    }
    let mut order = buy(4, 2, 10, 10);
    order.group = Some(7);
    assert_eq!(fills(&house.place(order)), [(id(2), 10, 5), (id(3), 10, 5)]);
}

#[test]
fn no_fill_is_below_min_or_above_max_of_either() {
    let mut house = House::new();
    let mut picky = sell(1, 1, 10, 20);
    (picky.min, picky.max) = (Lots::new(5), Lots::new(8));
    house.place(picky);
    assert_eq!(fills(&house.place(buy(2, 2, 10, 4))), []);
    // One fill of a walk, and of at most 8, however much is wanted.
    assert_eq!(fills(&house.place(buy(3, 2, 10, 30))), [(id(1), 10, 8)]);
    house.send(Command::CancelAll { trader: trader(2), market: None });
    assert_eq!(fills(&house.place(buy(4, 2, 10, 8))), [(id(1), 10, 8)]);
    // Of its 4 lots 4 are enough, and 3 are not.
    assert_eq!(fills(&house.place(buy(5, 2, 10, 3))), []);
    let mut wants_more = buy(6, 2, 10, 9);
    wants_more.min = Lots::new(6);
    assert_eq!(fills(&house.place(wants_more)), []);
    assert_eq!(fills(&house.place(buy(7, 2, 10, 4))), [(id(1), 10, 4)]);
}

#[test]
fn its_own_offer_ends_the_newcomer_or_is_cancelled() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    house.place(sell(2, 2, 11, 5));
    house.place(sell(3, 1, 12, 5));
    let events = house.place(buy(4, 2, 12, 20));
    assert_eq!(fills(&events), [(id(1), 10, 5)]);
    assert_eq!(ends(&events)[1], (id(4), EndReason::SelfTrade));
    assert_eq!(house.book(Side::Sell), [(2, 5), (3, 5)]);
    let mut order = buy(5, 2, 12, 20);
    (order.self_trade, order.tif) = (SelfTrade::CancelOld, TimeInForce::Fok);
    assert_eq!(refusal(&house.place(order)), Refusal::NotFillable);
    assert_eq!(house.book(Side::Sell), [(2, 5), (3, 5)]);
    order.tif = TimeInForce::Gtc;
    let events = house.place(order);
    assert_eq!(ends(&events)[0], (id(2), EndReason::SelfTrade));
    assert_eq!(fills(&events), [(id(3), 12, 5)]);
    assert_eq!(house.book(Side::Buy), [(5, 15)]);
}

#[test]
fn its_own_offer_that_it_could_not_match_is_passed_by() {
    let mut house = House::new();
    let mut own = sell(1, 1, 10, 5);
    own.pay = PayMask(2);
    house.place(own);
    house.place(sell(2, 2, 10, 5));
    assert_eq!(fills(&house.place(buy(3, 1, 10, 5))), [(id(2), 10, 5)]);
    assert_eq!(house.book(Side::Sell), [(1, 5)]);
}

/// Makes an order that cannot be.
type Spoil = fn(&mut Order);

#[test]
fn orders_that_cannot_be_are_refused_with_what_to_do() {
    let rules = MarketRules {
        tick: Price::new(5),
        min_lots: Lots::new(2),
        max_lots: Lots::new(9),
        ..RULES
    };
    let mut house = House::with(rules, Limits::default());
    let good = buy(1, 1, 10, 5);
    let range = Refusal::Lots { min: Lots::new(2), max: Lots::new(9) };
    let tick = Refusal::Price { tick: Price::new(5) };
    let cases: [(Refusal, Spoil); 10] = [
        (range, |o| o.lots = Lots::new(1)),
        (range, |o| o.lots = Lots::new(10)),
        (tick, |o| o.price = Some(Price::new(11))),
        (tick, |o| o.price = Some(Price::ZERO)),
        (Refusal::Value, |o| o.price = Some(Price::new(u64::MAX))),
        (Refusal::FillSizes, |o| o.min = Lots::ZERO),
        (Refusal::FillSizes, |o| (o.min, o.max) = (Lots::new(3), Lots::new(2))),
        (Refusal::NoPayment, |o| o.pay = PayMask(0)),
        (Refusal::Expired, |o| o.expires = Some(Millis::new(1_000))),
        (Refusal::UnknownMarket, |o| o.market = MarketId(1)),
    ];
    for (expected, spoil) in cases {
        let mut order = good;
        spoil(&mut order);
        let refusal = refusal(&house.place(order));
        assert_eq!(refusal, expected);
        assert!(refusal.to_string().starts_with("invalid: "), "{refusal}");
    }
    house.place(good);
    assert_eq!(refusal(&house.place(good)), Refusal::AddressTaken);
}

#[test]
fn depth_is_told_once_a_level_with_what_now_stands_there() {
    let mut house = House::new();
    let depth = |side, price, lots, offers| Event::Depth {
        market: MARKET,
        side,
        price: Price::new(price),
        lots,
        offers,
    };
    house.place(sell(1, 1, 10, 5));
    house.place(sell(2, 1, 10, 5));
    house.place(sell(3, 1, 11, 5));
    let events = house.send_all(Command::Place(buy(4, 2, 11, 17)));
    let depths: Vec<_> = events.into_iter().filter(|e| matches!(e, Event::Depth { .. })).collect();
    assert_eq!(
        depths,
        [depth(Side::Buy, 11, 2, 1), depth(Side::Sell, 10, 0, 0), depth(Side::Sell, 11, 0, 0)]
    );
}

#[test]
fn an_order_looks_at_no_more_offers_than_the_limit() {
    let limits = Limits { makers_per_order: 2, ..Limits::default() };
    let mut house = House::with(RULES, limits);
    for number in 1..=3 {
        house.place(sell(number, 1, 10, 1));
    }
    assert_eq!(fills(&house.place(buy(4, 2, 10, 3))).len(), 2);
    assert_eq!(house.book(Side::Buy), [(4, 1)]);
}
