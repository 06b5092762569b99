//! States of a market, its auction, and the turn of an epoch.

use hashpit_exchange::engine::{Command, EndReason, Event, Limits, MarketRules, Order, Refusal};
use hashpit_nips::eh04::{MarketState, OnEpoch, Side, TimeInForce};
use hashpit_nips::{Lots, Msats, Price};

use crate::house::*;

#[test]
fn a_halted_market_only_cancels() {
    let mut house = House::new();
    house.place(buy(1, 1, 10, 5));
    let halted = Event::State(MARKET, MarketState::Halted);
    assert_eq!(house.set(MarketState::Halted), [halted]);
    assert_eq!(refusal(&house.place(sell(2, 2, 10, 5))), Refusal::Halted);
    assert_eq!(refusal(&house.amend(1, buy(1, 1, 10, 4))), Refusal::Halted);
    assert_eq!(refusal(&house.commit(1, 9)), Refusal::Halted);
    let cancel = Command::CancelAll { trader: trader(1), market: Some(MARKET) };
    assert_eq!(ends(&house.send(cancel)), [(id(1), EndReason::Cancelled)]);
}

#[test]
fn a_closed_market_has_no_offers_and_may_open_again() {
    let mut house = House::new();
    house.place(buy(2, 1, 10, 5));
    house.place(sell(1, 1, 11, 5));
    let events = house.set(MarketState::Closed);
    assert_eq!(ends(&events), [(id(2), EndReason::Closed), (id(1), EndReason::Closed)]);
    assert_eq!(refusal(&house.place(sell(3, 2, 10, 5))), Refusal::Closed);
    let cancel = Command::CancelAll { trader: trader(1), market: Some(MARKET) };
    assert_eq!(refusal(&house.send(cancel)), Refusal::Closed);
    house.set(MarketState::Open);
    house.place(sell(3, 2, 10, 5));
    assert_eq!(house.book(Side::Sell), [(3, 5)]);
}

#[test]
fn an_auction_gathers_and_takes_nothing_at_once() {
    let mut house = House::new();
    house.set(MarketState::Auction);
    house.place(buy(1, 1, 12, 5));
    assert_eq!(fills(&house.place(sell(2, 2, 10, 5))), []);
    let post = Order { tif: TimeInForce::Post, ..sell(3, 2, 10, 5) };
    assert_eq!(fills(&house.place(post)), []);
    assert_eq!(house.book(Side::Sell), [(2, 5), (3, 5)]);
    for tif in [TimeInForce::Ioc, TimeInForce::Fok] {
        let order = Order { tif, ..buy(4, 1, 12, 5) };
        assert_eq!(refusal(&house.place(order)), Refusal::Auction);
    }
    assert_eq!(refusal(&house.commit(1, 9)), Refusal::Auction);
}

/// Gathers orders, opens, and gives what happened.
fn clear(house: &mut House, orders: &[Order]) -> Vec<Event> {
    house.set(MarketState::Auction);
    for &order in orders {
        assert_eq!(fills(&house.place(order)), []);
    }
    house.set(MarketState::Open)
}

#[test]
fn the_auction_trades_most_lots_at_one_price() {
    let mut house = House::new();
    let orders =
        [buy(1, 1, 12, 5), buy(2, 1, 11, 5), buy(3, 1, 10, 5), sell(4, 2, 9, 4), sell(5, 2, 11, 7)];
    let events = clear(&mut house, &orders);
    // At 11: 10 wanted, 11 offered.
    let all = matches(&events);
    assert!(all.iter().all(|found| found.price == Price::new(11)));
    let pairs: Vec<_> = all.iter().map(|m| (m.maker.id, m.taker.id, m.lots.get())).collect();
    assert_eq!(pairs, [(id(1), id(4), 4), (id(1), id(5), 1), (id(2), id(5), 5)]);
    assert_eq!(house.book(Side::Sell), [(5, 1)]);
    assert_eq!(house.book(Side::Buy), [(3, 5)]);
    assert_eq!(events.last(), Some(&Event::State(MARKET, MarketState::Open)));
}

#[test]
fn of_equal_prices_the_balanced_then_the_nearest_to_the_last_then_the_lowest_wins() {
    let crossing = |base| [buy(base, 1, 15, 5), sell(base + 1, 2, 10, 5)];
    let price = |events: &[Event]| matches(events)[0].price.get();
    let mut house = House::new();
    assert_eq!(price(&clear(&mut house, &crossing(1))), 10);
    for (base, last, expected) in [(10, 13, 13), (20, 40, 15), (30, 3, 10)] {
        house.place(sell(base + 5, 2, last, 1));
        house.place(buy(base + 6, 1, last, 1));
        assert_eq!(price(&clear(&mut house, &crossing(base))), expected);
    }
    // Between the levels nothing is left over.
    let mut house = House::new();
    let orders = [buy(1, 1, 15, 5), sell(2, 2, 10, 5), buy(3, 1, 10, 3), sell(4, 2, 15, 3)];
    assert_eq!(price(&clear(&mut house, &orders)), 11);
}

#[test]
fn the_older_side_of_an_auction_pays_the_makers_fee() {
    let rules = MarketRules { maker_fee_ppm: 0, taker_fee_ppm: 100_000, ..RULES };
    let mut house = House::with(rules, Limits::default());
    let found = matches(&clear(&mut house, &[sell(1, 1, 10, 5), buy(2, 2, 10, 5)]))[0];
    assert_eq!((found.maker.id, found.taker_side), (id(1), Side::Buy));
    assert_eq!((found.maker_fee, found.taker_fee), (Msats::ZERO, Msats::new(5)));
}

#[test]
fn an_auction_keeps_apart_who_does_not_trade_with_each_other() {
    let mut house = House::new();
    let own = sell(2, 1, 10, 5);
    let grouped = Order { group: Some(4), ..sell(3, 2, 10, 5) };
    let large = Order { min: Lots::new(6), ..sell(4, 2, 10, 9) };
    let last = sell(5, 3, 10, 5);
    let buyer = Order { group: Some(4), ..buy(1, 1, 10, 5) };
    let events = clear(&mut house, &[buyer, own, grouped, large, last]);
    let all = matches(&events);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].maker.id, all[0].taker.id), (id(1), id(5)));
    assert_eq!(house.book(Side::Sell), [(2, 5), (3, 5), (4, 9)]);
}

#[test]
fn what_gathered_is_cleared_even_if_the_market_was_halted_in_between() {
    let mut house = House::new();
    house.set(MarketState::Auction);
    house.place(buy(1, 1, 12, 5));
    house.place(sell(2, 2, 10, 5));
    house.set(MarketState::Halted);
    let events = house.set(MarketState::Open);
    assert_eq!(matches(&events).len(), 1);
}

#[test]
fn the_turn_of_an_epoch_cancels_what_asked_for_it() {
    let mut house = House::new();
    house.place(Order { on_epoch: OnEpoch::Cancel, ..buy(1, 1, 10, 5) });
    house.place(buy(2, 1, 10, 5));
    house.place(Order { on_epoch: OnEpoch::Cancel, ..sell(3, 1, 11, 5) });
    let events = house.send(Command::TurnEpoch(MARKET));
    assert_eq!(ends(&events), [(id(1), EndReason::Epoch), (id(3), EndReason::Epoch)]);
    assert_eq!(house.book(Side::Buy), [(2, 5)]);
}

#[test]
fn rules_must_be_sound_and_count_for_what_comes_after() {
    let mut house = House::new();
    house.place(sell(1, 1, 11, 5));
    let unsound = MarketRules { taker_fee_ppm: 1_000_001, ..RULES };
    assert_eq!(refusal(&house.send(Command::OpenMarket(unsound))), Refusal::UnsoundRules);
    assert_eq!(refusal(&house.send(Command::SetRules(MARKET, unsound))), Refusal::UnsoundRules);
    let rules = MarketRules { tick: Price::new(10), taker_fee_ppm: 1_000_000, ..RULES };
    assert_eq!(house.send(Command::SetRules(MARKET, rules)), []);
    let tick = Price::new(10);
    assert_eq!(refusal(&house.place(buy(2, 2, 11, 5))), Refusal::Price { tick });
    let found = matches(&house.place(buy(2, 2, 20, 5)))[0];
    assert_eq!((found.msats, found.taker_fee), (Msats::new(55), Msats::new(55)));
}
