//! What the engine says becomes what an entry says.

use hashpit_nips::eh04::{MarketId as Address, MarketState};
use hashpit_nips::eh05::{Effect, LastTrade, Leg, Match, Outcome};
use hashpit_nips::{HashUnits, Millis, Msats};
use nostr::{EventBuilder, EventId, PublicKey};

use super::{Consequences, State};
use crate::engine::{self, EndReason, MarketId, OfferId, Trader};

/// Deferred events whose outcome is still to be told.
const MAX_DEFERRED: usize = 100_000;

impl State {
    /// Adds what the engine said to what an entry brings about.
    pub(super) fn sort(&mut self, at: Millis, event: engine::Event, all: &mut Consequences) {
        match event {
            engine::Event::MarketOpened(market) => {
                self.market_changed(market, MarketState::Open, all);
            }
            engine::Event::State(market, state) => self.market_changed(market, state, all),
            engine::Event::Accepted { seq, .. } => {
                self.late(seq, Outcome::Accepted, all);
            }
            engine::Event::Refused { seq, id, refusal } => {
                let refused = Outcome::Refused(refusal.to_string());
                let own = seq == self.next || id.map(event_id) == self.subject;
                if !self.late(seq, refused.clone(), all) && self.subject.is_some() && own {
                    all.outcome = Some(refused);
                }
            }
            engine::Event::Deferred { seq, .. } => {
                all.outcome = Some(Outcome::Deferred);
                if let Some(subject) = self.subject {
                    self.deferred.insert(seq, subject);
                }
                if self.deferred.len() > MAX_DEFERRED {
                    self.deferred.pop_first();
                }
            }
            engine::Event::Matched(matched) => self.matched(at, &matched, all),
            engine::Event::Ended { id, reason, .. } => {
                all.effects.extend(why(reason).map(|why| Effect::Ended(event_id(id), why)));
            }
            depth @ engine::Event::Depth { .. } => all.depth.push(depth),
            engine::Event::Burnt { trader, id, counted, .. } => {
                all.effects.push(Effect::Burnt(event_id(id)));
                if counted {
                    self.gate.burnt(key(trader), at);
                }
            }
            engine::Event::Committed { .. } | engine::Event::Alive { .. } => {}
        }
    }

    /// Tells the outcome of a deferred event; false if it was none.
    fn late(&mut self, seq: u64, outcome: Outcome, all: &mut Consequences) -> bool {
        let event = if seq == self.next { None } else { self.deferred.remove(&seq) };
        let Some(event) = event.filter(|event| Some(*event) != self.subject) else { return false };
        all.effects.push(Effect::Late(event, outcome));
        true
    }

    fn market_changed(&mut self, market: MarketId, state: MarketState, all: &mut Consequences) {
        self.seats.changed(market, self.next);
        let seat = self.seats.seat(market);
        all.effects.push(Effect::Market(seat.epoch, state, seat.until));
    }

    fn matched(&mut self, at: Millis, matched: &engine::Match, all: &mut Consequences) {
        let last = LastTrade { price: matched.price, lots: matched.lots, at };
        self.seats.traded(matched.market, last);
        let seat = self.seats.seat(matched.market);
        let leg = |leg: &engine::Leg, fee: Msats| Leg {
            offer: event_id(leg.id),
            trader: key(leg.trader),
            fee,
        };
        let units = u64::from(matched.lots.get()).checked_mul(seat.lot.get());
        let matched = Match {
            seq: self.next,
            index: all.matches.len() as u32,
            market: Address { exchange: self.exchange, epoch: seat.epoch },
            maker: leg(&matched.maker, matched.maker_fee),
            taker: leg(&matched.taker, matched.taker_fee),
            taker_side: matched.taker_side,
            price: matched.price,
            lots: matched.lots,
            units: HashUnits::new(units.expect("rules keep lots times units within 64 bits")),
            pay: seat.ways(matched.pay),
            at,
        };
        let event = matched.encode().expect("the engine has multiplied price and lots");
        self.trades.open(id_of(event, self.exchange), &matched);
        all.matches.push(matched);
    }
}

/// The id that an event by this key will have.
pub(crate) fn id_of(event: EventBuilder, author: PublicKey) -> EventId {
    let mut unsigned = event.build(author);
    unsigned.id()
}

fn event_id(id: OfferId) -> EventId {
    EventId::from_byte_array(id.0)
}

fn key(trader: Trader) -> PublicKey {
    PublicKey::from_byte_array(trader.0)
}

/// Why an offer ended, where neither a fill nor its trader did it.
fn why(reason: EndReason) -> Option<String> {
    let why = match reason {
        EndReason::Filled | EndReason::Cancelled | EndReason::Amended => return None,
        EndReason::Immediate => "ioc",
        EndReason::SelfTrade => "self",
        EndReason::Expired => "expired",
        EndReason::DeadMan => "dead_man",
        EndReason::Epoch => "epoch",
        EndReason::Closed => "closed",
    };
    Some(why.to_owned())
}
