//! Markets follow the pools' epochs: a market for each, halted when its epoch
//! closes, opened again by a call auction, closed when the epoch is over or was
//! dissolved.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use cashu::MintUrl;
use hashpit_nips::eh01::{EpochKeyset, EpochState};
use hashpit_nips::eh04::{MarketState, Payment, Rules, Way};
use hashpit_nips::eh05::LastTrade;
use hashpit_nips::{EpochId, HashUnits, Millis};
use nostr::{PublicKey, Timestamp};

use super::trades::Print;
use crate::engine::{Command, MarketId, MarketRules, PayMask};

/// A market, beside what the engine knows of it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) epoch: EpochId,
    pub(crate) mint: MintUrl,
    /// Units of ehash in a lot; for ever, since offers count in lots.
    pub(crate) lot: HashUnits,
    /// Ways of payment, by bit of a [`PayMask`]; for ever, likewise.
    pub(crate) pay: Vec<Payment>,
    /// When a halt or an auction ends.
    pub(crate) until: Option<Millis>,
    /// Its newest match that was completed.
    pub(crate) last: Option<LastTrade>,
    /// That one's sequence and number.
    last_place: (u64, u32),
    /// Sequence of the newest entry that changed its state.
    pub(crate) changed: u64,
    /// Whether its epoch has closed.
    turned: bool,
    /// Whether its epoch has expired.
    over: bool,
    /// Of the newest keyset event.
    published: Timestamp,
}

impl Seat {
    /// The bits of those ways that this market knows.
    pub(crate) fn mask(&self, ways: &[Way]) -> PayMask {
        let bits = self.pay.iter().enumerate();
        let known = bits.filter(|(_, payment)| ways.contains(&payment.way));
        PayMask(known.fold(0, |mask, (bit, _)| mask | 1 << bit))
    }

    /// The ways that a mask stands for.
    pub(crate) fn ways(&self, mask: PayMask) -> Vec<Way> {
        let bits = self.pay.iter().enumerate().filter(|(bit, _)| mask.0 >> bit & 1 == 1);
        bits.map(|(_, payment)| payment.way).collect()
    }
}

/// Every market that there was, by the number that the engine gave it.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    seats: Vec<Seat>,
    by_epoch: HashMap<EpochId, MarketId>,
    /// Each pool's epochs by height.
    by_pool: HashMap<PublicKey, BTreeMap<u32, MarketId>>,
    /// Halts and auctions that end.
    phases: BTreeMap<(Millis, MarketId), MarketState>,
}

/// What the engine is to do because of an epoch.
pub(super) type Steps = Vec<Command>;

impl Seats {
    pub(crate) fn get(&self, epoch: &EpochId) -> Option<MarketId> {
        self.by_epoch.get(epoch).copied()
    }

    pub(crate) fn seat(&self, id: MarketId) -> &Seat {
        &self.seats[id.0 as usize]
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (MarketId, &Seat)> {
        self.seats.iter().enumerate().map(|(number, seat)| (MarketId(number as u32), seat))
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.phases.first_key_value().map(|((at, _), _)| *at)
    }

    /// Notes that a match was completed; whether it is the market's newest that was.
    pub(super) fn traded(&mut self, print: Print) -> bool {
        let seat = &mut self.seats[print.market.0 as usize];
        let newest = seat.last.is_none() || seat.last_place < print.place;
        if newest {
            (seat.last, seat.last_place) = (Some(print.trade), print.place);
        }
        newest
    }

    /// Notes that a market has changed its state.
    pub(super) fn changed(&mut self, id: MarketId, seq: u64) {
        self.seats[id.0 as usize].changed = seq;
    }

    /// The next halt or auction that has ended by `at`.
    pub(super) fn take_phase(&mut self, at: Millis, rules: &Rules) -> Option<Command> {
        let entry = self.phases.first_entry().filter(|entry| entry.key().0 <= at)?;
        let (_, id) = *entry.key();
        let state = entry.remove();
        self.seats[id.0 as usize].until = None;
        if state == MarketState::Auction {
            self.phase(id, at, rules.auction_ms, MarketState::Open);
        }
        Some(Command::SetState(id, state))
    }

    /// Whether anything follows from a pool's keyset event.
    pub(super) fn concerns(&self, keyset: &EpochKeyset, published: Timestamp) -> bool {
        let (expired, open) =
            (keyset.state == EpochState::Expired, keyset.state == EpochState::Open);
        let Some(id) = self.get(&keyset.epoch) else { return !expired };
        let seat = self.seat(id);
        published >= seat.published && if expired { !seat.over } else { seat.turned == open }
    }

    /// What follows from a pool's keyset event that [concerns](Seats::concerns)
    /// a market.
    pub(super) fn epoch(
        &mut self,
        keyset: &EpochKeyset,
        published: Timestamp,
        at: Millis,
        rules: &Rules,
    ) -> Steps {
        let Some(id) = self.get(&keyset.epoch) else {
            return self.open(keyset, published, at, rules);
        };
        self.seats[id.0 as usize].published = published;
        let mut steps = Steps::new();
        match keyset.state {
            EpochState::Expired => {
                self.close(id, &mut steps);
                self.seats[id.0 as usize].over = true;
            }
            EpochState::Open => self.restore(id, at, rules, &mut steps),
            EpochState::Closing | EpochState::Final | EpochState::Redeeming => {
                self.turn(id, at, rules, &mut steps);
            }
        }
        steps
    }

    /// Opens a market.
    fn open(
        &mut self,
        keyset: &EpochKeyset,
        published: Timestamp,
        at: Millis,
        rules: &Rules,
    ) -> Steps {
        let (epoch, id) = (keyset.epoch, MarketId(self.seats.len() as u32));
        self.seats.push(Seat {
            epoch,
            mint: keyset.mint.clone(),
            lot: rules.lot,
            pay: rules.pay.clone(),
            until: None,
            last: None,
            last_place: (0, 0),
            changed: 0,
            turned: keyset.state != EpochState::Open,
            over: false,
            published,
        });
        self.by_epoch.insert(epoch, id);
        let mut steps = vec![Command::OpenMarket(market_rules(rules))];
        let epochs = self.by_pool.entry(epoch.pool).or_default();
        epochs.insert(epoch.height, id);
        self.turn_before(epoch, at, rules, &mut steps);
        steps
    }

    /// Halts the markets of the pool's earlier epochs that are still in the belief
    /// that theirs is the open one.
    fn turn_before(&mut self, epoch: EpochId, at: Millis, rules: &Rules, steps: &mut Steps) {
        let epochs = self.by_pool.get(&epoch.pool);
        let before = epochs.into_iter().flat_map(|epochs| epochs.range(..epoch.height));
        for id in before.map(|(_, id)| *id).collect::<Vec<_>>() {
            if !self.seats[id.0 as usize].turned {
                self.turn(id, at, rules, steps);
            }
        }
    }

    /// The epoch circuit breaker.
    fn turn(&mut self, id: MarketId, at: Millis, rules: &Rules, steps: &mut Steps) {
        self.seats[id.0 as usize].turned = true;
        steps.push(Command::SetState(id, MarketState::Halted));
        steps.push(Command::TurnEpoch(id));
        self.phase(id, at, rules.halt_ms, MarketState::Auction);
    }

    /// The block that closed the epoch is gone, or the one that did away with it:
    /// its market opens again by an auction, those of the epochs that came after
    /// close, and those before halt if they had opened again.
    fn restore(&mut self, id: MarketId, at: Millis, rules: &Rules, steps: &mut Steps) {
        let seat = &mut self.seats[id.0 as usize];
        (seat.turned, seat.over) = (false, false);
        let epoch = seat.epoch;
        steps.push(Command::SetState(id, MarketState::Auction));
        self.phase(id, at, rules.auction_ms, MarketState::Open);
        let epochs = self.by_pool.get(&epoch.pool);
        let after =
            epochs.into_iter().flat_map(|epochs| epochs.range((Excluded(epoch.height), Unbounded)));
        for id in after.map(|(_, id)| *id).collect::<Vec<_>>() {
            self.close(id, steps);
        }
        self.turn_before(epoch, at, rules, steps);
    }

    /// Closes a market. It takes an event that says its epoch is open to open it
    /// again.
    fn close(&mut self, id: MarketId, steps: &mut Steps) {
        let seat = &mut self.seats[id.0 as usize];
        seat.turned = true;
        if let Some(until) = seat.until.take() {
            self.phases.remove(&(until, id));
        }
        steps.push(Command::SetState(id, MarketState::Closed));
    }

    /// At the end of so many milliseconds, a market goes to this state.
    fn phase(&mut self, id: MarketId, at: Millis, after_ms: u32, state: MarketState) {
        let seat = &mut self.seats[id.0 as usize];
        if let Some(until) = seat.until.take() {
            self.phases.remove(&(until, id));
        }
        let until = Millis::new(at.get().saturating_add(u64::from(after_ms)));
        seat.until = Some(until);
        self.phases.insert((until, id), state);
    }

    /// Feeds all that is remembered to a digest.
    pub(super) fn digest(&self, mut feed: impl FnMut(&[u8])) {
        for (_, seat) in self.all() {
            feed(seat.epoch.to_string().as_bytes());
            feed(seat.mint.to_string().as_bytes());
            feed(&seat.lot.get().to_be_bytes());
            feed(serde_json::to_string(&seat.pay).expect("plain data is JSON").as_bytes());
            feed(&seat.until.map_or(0, Millis::get).to_be_bytes());
            feed(serde_json::to_string(&seat.last).expect("plain data is JSON").as_bytes());
            feed(&seat.last_place.0.to_be_bytes());
            feed(&seat.last_place.1.to_be_bytes());
            feed(&seat.changed.to_be_bytes());
            feed(&[u8::from(seat.turned), u8::from(seat.over)]);
            feed(&seat.published.as_secs().to_be_bytes());
        }
    }
}

pub(super) fn market_rules(rules: &Rules) -> MarketRules {
    MarketRules {
        tick: rules.tick,
        min_lots: rules.min_lots,
        max_lots: rules.max_lots,
        maker_fee_ppm: rules.maker_fee_ppm,
        taker_fee_ppm: rules.taker_fee_ppm,
    }
}
