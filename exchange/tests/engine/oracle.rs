//! Plain limit orders and cancels, against a book that others wrote.

use hashpit_exchange::engine::{Command, OfferId};
use hashpit_nips::eh04::Side;
use orderbook_rs::{Id, OrderBook, TimeInForce};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::house::{House, address, buy, fills, id, sell, trader};

/// Maker, price and lots.
type Fill = (OfferId, u64, u32);

/// The other book, with our numbers.
struct Oracle(OrderBook<()>);

impl Oracle {
    fn place(&self, number: u32, side: Side, price: u64, lots: u32) -> Vec<Fill> {
        let side = match side {
            Side::Buy => orderbook_rs::Side::Buy,
            Side::Sell => orderbook_rs::Side::Sell,
        };
        let (number, price) = (Id::sequential(u64::from(number)), u128::from(price));
        let (lots, gtc) = (u64::from(lots), TimeInForce::Gtc);
        let placed = self.0.add_limit_order_with_result(number, price, lots, side, gtc, None);
        let Some(result) = placed.unwrap().1 else { return Vec::new() };
        let trades = result.match_result.trades().as_vec().iter();
        let fills = trades.map(|trade| {
            let maker = trade.maker_order_id().as_u64().unwrap();
            let price = u64::try_from(trade.price().as_u128()).unwrap();
            let lots = u32::try_from(trade.quantity().as_u64()).unwrap();
            (id(u32::try_from(maker).unwrap()), price, lots)
        });
        fills.collect()
    }

    fn cancel(&self, number: u32) -> bool {
        self.0.cancel_order(Id::sequential(u64::from(number))).unwrap().is_some()
    }
}

#[test]
fn the_sequence_of_fills_is_that_of_another_engine() {
    for seed in 0..4 {
        let total = follow(seed);
        assert!(total > 1_000, "seed {seed} made {total} fills only");
    }
}

/// Gives both engines the same orders, and counts their fills.
fn follow(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut house, oracle) = (House::new(), Oracle(OrderBook::new("EHASH")));
    let mut total = 0;
    for number in 1..=5_000 {
        if number > 1 && rng.random_ratio(1, 3) {
            let old = rng.random_range(1..number);
            let whose = trader(if old % 2 == 0 { 1 } else { 2 });
            let standing = house.engine.offer(address(old)).is_some();
            house.send(Command::CancelById { trader: whose, id: id(old) });
            assert_eq!(oracle.cancel(old), standing, "seed {seed}: cancelling {old}");
        }
        // Buyers have even numbers and sellers odd ones, so nobody meets itself.
        let (price, lots) = (rng.random_range(90..110), rng.random_range(1..40));
        let (order, side) = match number % 2 {
            0 => (buy(number, 1, price, lots), Side::Buy),
            _ => (sell(number, 2, price, lots), Side::Sell),
        };
        let ours = fills(&house.place(order));
        let theirs = oracle.place(number, side, price, lots);
        assert_eq!(ours, theirs, "seed {seed}: order {number}");
        total += ours.len();
    }
    total
}
