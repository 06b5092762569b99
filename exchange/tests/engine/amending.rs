//! Amendments: compare and swap, place in the queue, all or nothing.

use hashpit_exchange::engine::{Command, EndReason, Event, Limits, MarketId, Order, Refusal};
use hashpit_nips::eh04::{Side, TimeInForce};
use hashpit_nips::{Lots, Price};

use crate::house::*;

/// `order`, by event `event`.
fn by(event: u32, order: Order) -> Order {
    Order { id: id(event), ..order }
}

#[test]
fn only_what_stands_can_be_amended_and_only_by_naming_it() {
    let mut house = House::new();
    house.place(buy(1, 1, 10, 5));
    let next = by(2, buy(1, 1, 10, 4));
    let superseded = Refusal::Superseded { standing: id(1) };
    assert_eq!(refusal(&house.amend(9, next)), superseded);
    let elsewhere = Order { address: address(7), ..next };
    assert_eq!(refusal(&house.amend(1, elsewhere)), Refusal::UnknownOffer);
    let other_side = Order { side: Side::Sell, ..next };
    assert_eq!(refusal(&house.amend(1, other_side)), Refusal::OtherOffer);
    let stranger = Order { trader: trader(2), ..next };
    assert_eq!(refusal(&house.amend(1, stranger)), Refusal::UnknownOffer);
    let nowhere = Order { market: MarketId(5), ..next };
    assert_eq!(refusal(&house.amend(1, nowhere)), Refusal::UnknownMarket);
    assert_eq!(house.book(Side::Buy), [(1, 5)]);
    let events = house.amend(1, next);
    assert_eq!(ends(&events), [(id(1), EndReason::Amended)]);
    let left = Lots::new(4);
    assert_eq!(events[1], Event::Accepted { market: MARKET, id: id(2), seq: 2, left });
    assert_eq!(refusal(&house.amend(1, next)), Refusal::Superseded { standing: id(2) });
}

#[test]
fn fewer_lots_keep_the_place_and_more_or_another_price_lose_it() {
    let mut house = House::new();
    for number in 1..=3 {
        house.place(sell(number, 1, 10, 5));
    }
    house.amend(1, by(11, sell(1, 1, 10, 3)));
    assert_eq!(house.book(Side::Sell), [(11, 3), (2, 5), (3, 5)]);
    house.amend(11, by(12, sell(1, 1, 10, 4)));
    assert_eq!(house.book(Side::Sell), [(2, 5), (3, 5), (12, 4)]);
    house.amend(2, by(13, sell(2, 1, 9, 5)));
    house.amend(13, by(14, sell(2, 1, 10, 5)));
    assert_eq!(house.book(Side::Sell), [(3, 5), (12, 4), (14, 5)]);
    let levels: Vec<_> = house.engine.levels(MARKET, Side::Sell).collect();
    assert_eq!(levels, [(Price::new(10), 14, 3)]);
}

#[test]
fn lots_that_were_filled_count_towards_the_new_total() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 10));
    house.place(buy(2, 2, 10, 4));
    house.amend(1, by(11, sell(1, 1, 10, 9)));
    assert_eq!(house.book(Side::Sell), [(11, 5)]);
    house.amend(11, by(12, sell(1, 1, 11, 20)));
    assert_eq!(house.book(Side::Sell), [(12, 16)]);
    assert_eq!(house.engine.offer(address(1)).unwrap().filled, Lots::new(4));
    let events = house.amend(12, by(13, sell(1, 1, 12, 4)));
    assert_eq!(ends(&events), [(id(12), EndReason::Amended), (id(13), EndReason::Filled)]);
    assert_eq!(house.book(Side::Sell), []);
}

#[test]
fn an_amendment_that_crosses_takes_and_a_refused_one_changes_nothing() {
    let mut house = House::new();
    house.place(sell(1, 1, 12, 5));
    house.place(buy(2, 2, 10, 8));
    let post = Order { tif: TimeInForce::Post, ..by(21, buy(2, 2, 12, 8)) };
    assert_eq!(refusal(&house.amend(2, post)), Refusal::WouldMatch);
    let fok = Order { tif: TimeInForce::Fok, ..post };
    assert_eq!(refusal(&house.amend(2, fok)), Refusal::NotFillable);
    assert_eq!(house.book(Side::Buy), [(2, 8)]);
    let events = house.amend(2, by(22, buy(2, 2, 12, 8)));
    assert_eq!(fills(&events), [(id(1), 12, 5)]);
    assert_eq!(house.book(Side::Buy), [(22, 3)]);
    assert_eq!(house.engine.offer(address(2)).unwrap().filled, Lots::new(5));
}

#[test]
fn an_offer_can_be_amended_into_one_that_takes_at_once() {
    let mut house = House::new();
    house.place(sell(1, 1, 12, 5));
    house.place(buy(2, 2, 10, 8));
    let mut now = by(21, buy(2, 2, 10, 8));
    (now.price, now.tif) = (None, TimeInForce::Ioc);
    let events = house.amend(2, now);
    assert_eq!(fills(&events), [(id(1), 12, 5)]);
    let reasons = [(id(2), EndReason::Amended), (id(1), EndReason::Filled)];
    assert_eq!(ends(&events), [reasons[0], reasons[1], (id(21), EndReason::Immediate)]);
    assert_eq!(house.book(Side::Buy), []);
}

#[test]
fn an_amendment_needs_no_further_room() {
    let limits =
        Limits { open_offers_per_trader: 1, open_offers_per_market: 1, ..Limits::default() };
    let mut house = House::with(RULES, limits);
    house.place(buy(1, 1, 10, 5));
    house.amend(1, by(11, buy(1, 1, 11, 5)));
    assert_eq!(house.book(Side::Buy), [(11, 5)]);
}

#[test]
fn cancelling_may_name_what_has_to_stand() {
    let mut house = House::new();
    house.place(buy(1, 1, 10, 5));
    let cancel = |whose, prev: Option<u32>| Command::Cancel {
        trader: trader(whose),
        address: address(1),
        prev: prev.map(id),
    };
    assert_eq!(refusal(&house.send(cancel(2, None))), Refusal::UnknownOffer);
    let superseded = Refusal::Superseded { standing: id(1) };
    assert_eq!(refusal(&house.send(cancel(1, Some(9)))), superseded);
    assert_eq!(ends(&house.send(cancel(1, Some(1)))), [(id(1), EndReason::Cancelled)]);
    assert_eq!(refusal(&house.send(cancel(1, None))), Refusal::UnknownOffer);
    house.place(buy(2, 1, 10, 5));
    let by_id = |whose| Command::CancelById { trader: trader(whose), id: id(2) };
    assert_eq!(refusal(&house.send(by_id(2))), Refusal::UnknownOffer);
    assert_eq!(ends(&house.send(by_id(1))), [(id(2), EndReason::Cancelled)]);
}
