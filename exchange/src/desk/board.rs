//! What has changed in the books since the feed last looked. It holds what each
//! changed level is now, so it never grows beyond the books.

use std::collections::BTreeMap;

use hashpit_nips::eh04::{MarketState, Side};
use hashpit_nips::eh05::{Change, LastTrade, Level};
use hashpit_nips::{EpochId, Price};

use crate::engine::{self, MarketId};
use crate::state::{Consequences, State};

/// Changes that the feed has not taken.
#[derive(Debug, Default)]
pub(super) struct Board {
    newest: Option<u64>,
    changed: BTreeMap<EpochId, Changed>,
}

/// What every change tells again, and the levels that changed.
#[derive(Debug)]
struct Changed {
    state: MarketState,
    last: Option<LastTrade>,
    bids: BTreeMap<Price, (u64, u32)>,
    asks: BTreeMap<Price, (u64, u32)>,
}

impl Board {
    /// Adds what one entry has changed. `state` is that after it, or after a later
    /// one that is told with it.
    pub(super) fn add(&mut self, seq: u64, state: &State, all: &Consequences) {
        self.newest = Some(seq);
        for market in &all.markets {
            self.changed(*market, state);
        }
        for event in &all.depth {
            let engine::Event::Depth { market, side, price, lots, offers } = event else {
                continue;
            };
            let changed = self.changed(*market, state);
            let levels = if *side == Side::Buy { &mut changed.bids } else { &mut changed.asks };
            levels.insert(*price, (*lots, *offers));
        }
    }

    fn changed(&mut self, market: MarketId, state: &State) -> &mut Changed {
        let seat = state.seats().seat(market);
        let (now, last) = (state.market_state(market), seat.last);
        let none = || Changed { state: now, last, bids: BTreeMap::new(), asks: BTreeMap::new() };
        let changed = self.changed.entry(seat.epoch).or_insert_with(none);
        (changed.state, changed.last) = (now, last);
        changed
    }

    pub(super) fn take(&mut self) -> (Option<u64>, BTreeMap<EpochId, Change>) {
        let changed = std::mem::take(&mut self.changed);
        let changes = changed.into_iter().map(|(epoch, changed)| {
            let Changed { state, last, bids, asks } = changed;
            let level = |(price, (lots, offers)): (Price, (u64, u32))| Level(price, lots, offers);
            let bids = bids.into_iter().rev().map(level).collect();
            let asks = asks.into_iter().map(level).collect();
            (epoch, Change { state, bids, asks, last })
        });
        (self.newest, changes.collect())
    }
}
