//! What holds whatever the commands: lots are conserved, the same journal gives
//! the same state, and another state has another digest.

use std::collections::{BTreeMap, BTreeSet};

use hashpit_exchange::engine::{
    Command, Engine, Event, Limits, MarketId, MarketRules, OfferId, Order, PayMask, Seq,
};
use hashpit_nips::eh04::{MarketState, OnEpoch, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

use crate::dice::Dice;
use crate::house::*;
use crate::model::Model;

/// A journal: what was applied, and when.
struct Journal {
    limits: Limits,
    entries: Vec<(Seq, Millis, Command)>,
}

impl Journal {
    /// The model only tells the dice what stands.
    fn random(seed: u64, length: u64) -> Self {
        let mut dice = Dice::new(seed);
        let limits = dice.limits();
        let (mut model, mut now, mut entries) = (Model::new(limits), 0, Vec::new());
        for seq in 1..=length {
            let command = dice.command(&model);
            now += dice.pause();
            model.apply(seq, Millis::new(now), command.clone());
            entries.push((seq, Millis::new(now), command));
        }
        Self { limits, entries }
    }

    fn replay(&self) -> (Engine, Vec<Event>) {
        let (mut engine, mut events) = (Engine::new(self.limits), Vec::new());
        for (seq, at, command) in &self.entries {
            engine.apply(*seq, *at, command.clone(), &mut events);
        }
        (engine, events)
    }
}

fn digests(engine: &Engine) -> Vec<[u8; 32]> {
    let markets = (0..engine.markets()).map(|number| engine.digest(MarketId(number)));
    markets.chain([engine.digest_of_house()]).collect()
}

#[test]
fn the_same_journal_gives_the_same_events_and_digests() {
    for seed in 1_000..1_020 {
        let journal = Journal::random(seed, 1_000);
        let ((first, events), (second, again)) = (journal.replay(), journal.replay());
        assert_eq!(events, again, "seed {seed}");
        assert_eq!(digests(&first), digests(&second), "seed {seed}");
    }
}

/// Due things happen as of their own time, not of the command that brings it.
#[test]
fn more_ticks_of_the_clock_change_nothing() {
    for seed in 2_000..2_020 {
        let journal = Journal::random(seed, 1_000);
        let mut engine = Engine::new(journal.limits);
        let (mut events, mut seq, mut last) = (Vec::new(), 0, 0);
        for (number, at, command) in &journal.entries {
            for now in last..=at.get() {
                // Numbers of the journal, with room for the ticks between them.
                seq = (number * 1_000).max(seq + 1);
                engine.apply(seq, Millis::new(now), Command::Time, &mut events);
            }
            seq += 1;
            last = at.get();
            engine.apply(seq, *at, command.clone(), &mut events);
        }
        let trades = |events: &[Event]| -> Vec<_> {
            let all = matches(events);
            all.iter().map(|m| (m.maker.id, m.taker.id, m.lots, m.price)).collect()
        };
        let (plain, expected) = journal.replay();
        assert_eq!(trades(&events), trades(&expected), "seed {seed}");
        assert_eq!(ends(&events), ends(&expected), "seed {seed}");
        for market in (0..plain.markets()).map(MarketId) {
            for side in [Side::Buy, Side::Sell] {
                assert!(engine.levels(market, side).eq(plain.levels(market, side)), "seed {seed}");
            }
        }
    }
}

/// What was accepted of each offer is what it got, what it did not get, and
/// what still stands.
#[test]
fn no_lot_is_made_or_lost() {
    for seed in 3_000..3_040 {
        let (engine, events) = Journal::random(seed, 1_000).replay();
        let mut left: BTreeMap<OfferId, Lots> = BTreeMap::new();
        let (mut paid, mut received) = (0, 0);
        for event in &events {
            match event {
                Event::Accepted { id, left: accepted, .. } => {
                    assert_eq!(left.insert(*id, *accepted), None, "seed {seed}");
                }
                Event::Matched(found) => {
                    for leg in [found.maker, found.taker] {
                        let before = left.insert(leg.id, leg.left).unwrap();
                        assert_eq!(before.checked_sub(found.lots), Ok(leg.left), "seed {seed}");
                    }
                    assert_eq!(found.price.of(found.lots), Ok(found.msats));
                    paid += found.msats.get();
                    received += found.price.get() * u64::from(found.lots.get());
                }
                Event::Ended { id, left: unfilled, .. } => {
                    assert_eq!(left.remove(id), Some(*unfilled), "seed {seed}");
                }
                _ => {}
            }
        }
        assert_eq!(paid, received);
        let standing = (0..8).map(trader).flat_map(|trader| engine.offers_of(trader));
        let standing: BTreeMap<_, _> = standing.map(|offer| (offer.id, offer.left)).collect();
        assert_eq!(left, standing, "seed {seed}");
    }
}

/// A name for each kind of event, reason and refusal that the dice may bring.
#[test]
fn the_dice_bring_about_everything() {
    let mut kinds = BTreeSet::new();
    for seed in 0..60 {
        for event in Journal::random(seed, 2_000).replay().1 {
            let shown = match event {
                Event::Refused { refusal, .. } => format!("{refusal:?}"),
                Event::Ended { reason, .. } => format!("{reason:?}"),
                other => format!("{other:?}"),
            };
            kinds.insert(shown.split([' ', '(']).next().unwrap().to_owned());
        }
    }
    let events = "Accepted Alive Burnt Committed Deferred Depth MarketOpened Matched State";
    let ends = "Amended Cancelled Closed DeadMan Epoch Expired Filled Immediate SelfTrade";
    let refusals = "AddressTaken Auction CommitsOfTrader Committed DeferredOfMarket \
        DeferredOfTrader Expired FillSizes Halted Lots NoPayment NoPrice NotFillable \
        OffersOfMarket OffersOfTrader OtherOffer Past Price Superseded UnknownMarket \
        UnknownOffer UnsoundRules Value WouldMatch";
    for kind in [events, ends, refusals].iter().flat_map(|kinds| kinds.split_whitespace()) {
        assert!(kinds.contains(kind), "no {kind} in {kinds:?}");
    }
}

#[test]
fn the_digest_differs_when_anything_of_an_offer_does() {
    let plain = buy(1, 1, 10, 5);
    let mut changed = vec![plain; 12];
    changed[0].id = id(9);
    changed[1].address = address(9);
    changed[2].trader = trader(9);
    changed[3].price = Some(Price::new(11));
    changed[4].lots = Lots::new(6);
    changed[5].min = Lots::new(2);
    changed[6].max = Lots::new(7);
    changed[7].tif = TimeInForce::Post;
    changed[8].pay = PayMask(3);
    changed[9].group = Some(0);
    changed[10].on_epoch = OnEpoch::Cancel;
    changed[11].expires = Some(Millis::new(5_000));
    let digest = |order: Order, waits: bool| {
        let mut house = House::new();
        if waits {
            house.commit(8, 80);
        }
        house.place(sell(2, 2, 20, 5));
        house.place(order);
        house.engine.digest(MARKET)
    };
    for waits in [false, true] {
        let all: BTreeSet<_> = changed.iter().map(|&order| digest(order, waits)).collect();
        assert_eq!(all.len(), changed.len());
        assert!(!all.contains(&digest(plain, waits)));
    }
}

#[test]
fn the_digest_differs_by_priority_fills_state_and_rules() {
    let mut all = BTreeSet::new();
    let mut note = |house: &House| {
        assert!(all.insert(house.engine.digest(MARKET)), "two states have one digest");
    };
    let mut house = House::new();
    note(&house);
    house.place(buy(1, 1, 10, 5));
    house.place(buy(2, 1, 10, 5));
    note(&house);
    house.place(sell(3, 2, 10, 1));
    note(&house);
    house.set(MarketState::Auction);
    note(&house);
    house.set(MarketState::Halted);
    note(&house);
    house.send(Command::SetRules(MARKET, MarketRules { taker_fee_ppm: 1, ..RULES }));
    note(&house);
    let mut other_way = House::new();
    other_way.place(buy(2, 1, 10, 5));
    other_way.place(buy(1, 1, 10, 5));
    note(&other_way);
    assert_eq!(house.engine.digest(MarketId(7)), [0; 32]);
}

#[test]
fn the_digest_of_the_house_shows_limits_switches_and_burnt_commits() {
    let mut house = House::new();
    let mut all = BTreeSet::from([house.engine.digest_of_house()]);
    house.send(Command::SetLimits(Limits { reveal_ms: 7, ..Limits::default() }));
    assert!(all.insert(house.engine.digest_of_house()));
    let until = Some(Millis::new(9_000));
    house.send(Command::Alive { trader: trader(1), until });
    assert!(all.insert(house.engine.digest_of_house()));
    house.commit(2, 20);
    house.wait_until(1_007);
    assert!(all.insert(house.engine.digest_of_house()));
    house.send(Command::Alive { trader: trader(1), until: None });
    assert!(all.insert(house.engine.digest_of_house()));
}
