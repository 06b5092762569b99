//! What has changed in the books since the feed last looked. It holds what each
//! changed level is now, so it never grows beyond the books.

use std::collections::{BTreeMap, HashMap};

use hashpit_nips::eh04::{MarketState, Side};
use hashpit_nips::eh05::{Change, Effect, LastTrade, Level, Match};
use hashpit_nips::{EpochId, Price};

use crate::engine;
use crate::state::{Consequences, State};

/// Changes that the feed has not taken.
#[derive(Debug, Default)]
pub(super) struct Board {
    newest: Option<u64>,
    changed: BTreeMap<EpochId, Changed>,
    /// What every change tells again.
    known: HashMap<EpochId, (MarketState, Option<LastTrade>)>,
}

#[derive(Debug, Default)]
struct Changed {
    bids: BTreeMap<Price, (u64, u32)>,
    asks: BTreeMap<Price, (u64, u32)>,
}

impl Board {
    /// Nothing has changed yet.
    pub(super) fn of(state: &State) -> Self {
        let markets = state.seats().all();
        let known = markets
            .filter_map(|(id, seat)| Some((seat.epoch, (state.engine().state(id)?, seat.last))));
        Self { known: known.collect(), ..Self::default() }
    }

    /// Adds what one entry has changed.
    pub(super) fn add(&mut self, seq: u64, state: &State, all: &Consequences, effects: &[Effect]) {
        self.newest = Some(seq);
        for effect in effects {
            if let Effect::Market(epoch, state, _) = effect {
                self.known.entry(*epoch).or_insert((*state, None)).0 = *state;
                self.changed.entry(*epoch).or_default();
            }
        }
        for matched in &all.matches {
            self.trade(matched);
        }
        for event in &all.depth {
            let engine::Event::Depth { market, side, price, lots, offers } = event else {
                continue;
            };
            let changed = self.changed.entry(state.seats().seat(*market).epoch).or_default();
            let levels = if *side == Side::Buy { &mut changed.bids } else { &mut changed.asks };
            levels.insert(*price, (*lots, *offers));
        }
    }

    fn trade(&mut self, matched: &Match) {
        let last = LastTrade { price: matched.price, lots: matched.lots, at: matched.at };
        let epoch = matched.market.epoch;
        self.known.entry(epoch).or_insert((MarketState::Open, None)).1 = Some(last);
        self.changed.entry(epoch).or_default();
    }

    pub(super) fn take(&mut self) -> (Option<u64>, BTreeMap<EpochId, Change>) {
        let changed = std::mem::take(&mut self.changed);
        let changes = changed.into_iter().filter_map(|(epoch, changed)| {
            let (state, last) = *self.known.get(&epoch)?;
            let level = |(price, (lots, offers)): (Price, (u64, u32))| Level(price, lots, offers);
            let bids = changed.bids.into_iter().rev().map(level).collect();
            let asks = changed.asks.into_iter().map(level).collect();
            Some((epoch, Change { state, bids, asks, last }))
        });
        (self.newest, changes.collect())
    }
}
