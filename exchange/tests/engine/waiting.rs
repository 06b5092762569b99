//! What happens by itself: expiry, dead man's switch, commits; and limits.

use hashpit_exchange::engine::{Command, EndReason, Event, Limits, Order, Refusal};
use hashpit_nips::Millis;
use hashpit_nips::eh04::{MarketState, Side};

use crate::house::*;

fn expiring(order: Order, at: u64) -> Order {
    Order { expires: Some(Millis::new(at)), ..order }
}

fn alive(whose: u8, until: Option<u64>) -> Command {
    Command::Alive { trader: trader(whose), until: until.map(Millis::new) }
}

#[test]
fn an_offer_ends_when_its_time_has_come_and_before_the_command() {
    let mut house = House::new();
    house.place(expiring(sell(1, 1, 10, 5), 2_000));
    house.place(sell(2, 1, 10, 5));
    assert_eq!(house.engine.next_deadline(), Some(Millis::new(2_000)));
    house.now = 1_999;
    assert_eq!(fills(&house.place(buy(3, 2, 10, 1))), [(id(1), 10, 1)]);
    house.now = 2_000;
    let events = house.place(buy(4, 2, 10, 1));
    assert_eq!(ends(&events)[0], (id(1), EndReason::Expired));
    assert_eq!(fills(&events), [(id(2), 10, 1)]);
    assert_eq!(house.engine.next_deadline(), None);
}

#[test]
fn an_amendment_moves_the_expiry_and_an_end_lifts_it() {
    let mut house = House::new();
    house.place(expiring(sell(1, 1, 10, 5), 2_000));
    house.amend(1, expiring(Order { id: id(11), ..sell(1, 1, 10, 4) }, 3_000));
    assert_eq!(house.wait_until(2_500), []);
    house.amend(11, Order { id: id(12), ..sell(1, 1, 10, 4) });
    assert_eq!(house.engine.next_deadline(), None);
    house.place(expiring(sell(2, 1, 10, 5), 4_000));
    house.send(Command::CancelById { trader: trader(1), id: id(2) });
    assert_eq!(house.engine.next_deadline(), None);
}

#[test]
fn a_silent_traders_offers_end_and_a_renewal_puts_it_off() {
    let mut house = House::new();
    house.place(buy(1, 1, 10, 5));
    house.place(sell(2, 1, 12, 5));
    house.place(buy(3, 2, 10, 5));
    assert_eq!(refusal(&house.send(alive(1, Some(1_000)))), Refusal::Past);
    house.send(alive(1, Some(2_000)));
    house.now = 1_500;
    house.send(alive(1, Some(3_000)));
    assert_eq!(house.wait_until(2_999), []);
    let events = house.wait_until(3_000);
    assert_eq!(ends(&events), [(id(1), EndReason::DeadMan), (id(2), EndReason::DeadMan)]);
    assert_eq!(events.last(), Some(&Event::Alive { trader: trader(1), until: None }));
    assert_eq!(house.book(Side::Buy), [(3, 5)]);
    house.send(alive(2, Some(5_000)));
    house.send(alive(2, None));
    assert_eq!(house.wait_until(6_000), []);
    assert_eq!(house.book(Side::Buy), [(3, 5)]);
}

#[test]
fn what_is_due_happens_in_order_of_deadline_then_seq() {
    let mut house = House::new();
    house.place(expiring(buy(1, 1, 10, 5), 3_000));
    house.place(expiring(buy(2, 1, 11, 5), 2_000));
    house.place(buy(3, 2, 12, 5));
    house.send(alive(2, Some(3_000)));
    house.place(expiring(buy(4, 1, 13, 5), 3_000));
    let order: Vec<_> = ends(&house.wait_until(9_000)).into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, [id(2), id(1), id(3), id(4)]);
}

#[test]
fn a_commit_comes_before_all_that_came_after_it() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    house.commit(2, 20);
    let commit_seq = house.seq;
    // Another buyer comes, too late.
    assert!(matches!(house.place(buy(3, 3, 10, 5))[..], [Event::Deferred { .. }]));
    assert_eq!(house.book(Side::Sell), [(1, 5)]);
    let events = house.place(buy(20, 2, 10, 7));
    assert_eq!(fills(&events), [(id(1), 10, 5)]);
    assert_eq!(matches(&events)[0].taker.seq, commit_seq);
    assert_eq!(house.book(Side::Buy), [(20, 2), (3, 5)]);
    assert_eq!(house.engine.deferred_in(MARKET), 0);
    assert_eq!(house.engine.next_deadline(), None);
}

#[test]
fn what_stands_is_cancelled_at_once_and_what_waits_in_its_turn() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    house.place(sell(2, 1, 10, 5));
    house.place(sell(3, 3, 11, 5));
    house.commit(2, 20);
    house.place(sell(4, 1, 9, 5));
    let cancel = |number| Command::CancelById { trader: trader(1), id: id(number) };
    assert_eq!(ends(&house.send(cancel(1))), [(id(1), EndReason::Cancelled)]);
    assert!(matches!(house.send(cancel(4))[..], [Event::Deferred { .. }]));
    let all = house.send(Command::CancelAll { trader: trader(1), market: None });
    assert_eq!(ends(&all), [(id(2), EndReason::Cancelled)]);
    assert!(all.iter().any(|event| matches!(event, Event::Deferred { .. })), "one still waits");
    let shown = house.place(buy(20, 2, 11, 7));
    assert_eq!(fills(&shown), [(id(3), 11, 5), (id(20), 11, 2)]);
    assert_eq!(house.book(Side::Sell), [], "the rest of it was cancelled in its turn");
    assert_eq!(house.engine.deferred_in(MARKET), 0);
}

#[test]
fn a_commit_that_is_not_shown_is_burnt_and_counted() {
    let mut house = House::new();
    house.commit(2, 20);
    house.place(buy(3, 3, 10, 5));
    assert_eq!(house.wait_until(2_999), []);
    let events = house.wait_until(3_000);
    let (trader, counted) = (trader(2), true);
    assert_eq!(events[0], Event::Burnt { market: MARKET, trader, id: id(20), counted });
    assert_eq!(house.book(Side::Buy), [(3, 5)]);
    assert_eq!(house.engine.burnt(trader), 1);
    // Shown too late, it is an offer like any other.
    house.place(buy(20, 2, 10, 1));
    assert_eq!(house.book(Side::Buy), [(3, 5), (20, 1)]);
}

#[test]
fn several_commits_queue_and_one_that_is_shown_early_waits_for_its_turn() {
    let mut house = House::new();
    house.place(sell(1, 1, 10, 5));
    house.commit(2, 20);
    house.commit(3, 30);
    assert_eq!(refusal(&house.commit(3, 30)), Refusal::Committed);
    assert_eq!(refusal(&house.commit(3, 31)), Refusal::CommitsOfTrader { limit: 1 });
    house.place(sell(4, 4, 9, 5));
    let shown = house.place(buy(30, 3, 10, 5));
    assert_eq!(shown, [Event::Deferred { seq: 4, market: MARKET, id: Some(id(30)) }]);
    let events = house.place(buy(20, 2, 10, 3));
    let takers: Vec<_> = matches(&events).iter().map(|m| (m.taker.id, m.maker.id)).collect();
    assert_eq!(takers, [(id(20), id(1)), (id(30), id(1)), (id(4), id(30))]);
}

#[test]
fn what_waits_can_be_cancelled_behind_it() {
    let mut house = House::new();
    house.commit(2, 20);
    house.place(buy(3, 3, 10, 5));
    let cancel = Command::Cancel { trader: trader(3), address: address(3), prev: None };
    assert!(matches!(house.send(cancel)[..], [Event::Deferred { .. }]));
    let all = Command::CancelAll { trader: trader(3), market: None };
    assert!(matches!(house.send(all)[..], [Event::Deferred { .. }]));
    let events = house.place(buy(20, 2, 10, 1));
    assert_eq!(ends(&events), [(id(3), EndReason::Cancelled)]);
    assert_eq!(house.book(Side::Buy), [(20, 1)]);
}

#[test]
fn a_change_of_state_drops_commits_without_blame_and_does_what_waited() {
    for halt in [true, false] {
        let mut house = House::new();
        house.commit(2, 20);
        house.place(buy(3, 3, 10, 5));
        house.commit(4, 40);
        house.place(sell(5, 5, 10, 2));
        let command = match halt {
            true => Command::SetState(MARKET, MarketState::Halted),
            false => Command::TurnEpoch(MARKET),
        };
        let events = house.send(command);
        let burnt = events.iter().filter(|e| matches!(e, Event::Burnt { counted: false, .. }));
        assert_eq!(burnt.count(), 2);
        assert_eq!(fills(&events), [(id(3), 10, 2)]);
        assert_eq!((house.engine.burnt(trader(2)), house.engine.burnt(trader(4))), (0, 0));
        assert_eq!(house.engine.next_deadline(), None);
    }
}

#[test]
fn time_does_not_wait_for_a_commit() {
    let mut house = House::new();
    house.place(expiring(sell(1, 1, 10, 5), 1_500));
    house.commit(2, 20);
    assert_eq!(ends(&house.wait_until(1_500)), [(id(1), EndReason::Expired)]);
    assert_eq!(fills(&house.place(buy(20, 2, 10, 5))), []);
}

#[test]
fn every_limit_says_what_it_is() {
    let limits = Limits {
        open_offers_per_trader: 2,
        open_offers_per_market: 3,
        deferred_per_market: 3,
        deferred_per_trader: 1,
        ..Limits::default()
    };
    let mut house = House::with(RULES, limits);
    house.place(buy(1, 1, 10, 5));
    house.place(buy(2, 1, 10, 5));
    let of_trader = Refusal::OffersOfTrader { limit: 2 };
    assert_eq!(refusal(&house.place(buy(3, 1, 10, 5))), of_trader);
    house.place(buy(3, 2, 10, 5));
    assert_eq!(refusal(&house.place(buy(4, 3, 10, 5))), Refusal::OffersOfMarket { limit: 3 });
    house.commit(4, 40);
    house.place(buy(7, 1, 10, 5));
    let of_trader_behind = refusal(&house.place(buy(8, 1, 10, 5)));
    assert_eq!(of_trader_behind, Refusal::DeferredOfTrader { limit: 1 });
    house.place(buy(5, 5, 10, 5));
    assert_eq!(refusal(&house.place(buy(6, 6, 10, 5))), Refusal::DeferredOfMarket);
    for refusal in [of_trader, Refusal::DeferredOfTrader { limit: 1 }, Refusal::DeferredOfMarket] {
        assert!(refusal.to_string().starts_with("rate-limited: "), "{refusal}");
    }
}
