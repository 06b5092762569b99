//! What the engine says becomes what an entry says.

use hashpit_nips::eh04::{MarketId as Address, MarketState};
use hashpit_nips::eh05::{Effect, Leg, Match, Outcome};
use hashpit_nips::{HashUnits, Millis, Msats};
use nostr::{EventId, PublicKey};

use super::{Consequences, State};
use crate::engine::{self, EndReason, MarketId, OfferId, Trader};

impl State {
    /// Adds what the engine said to what an entry brings about.
    pub(super) fn sort(&mut self, at: Millis, event: engine::Event, all: &mut Consequences) {
        match event {
            engine::Event::MarketOpened(market) => {
                self.market_changed(market, MarketState::Open, all);
            }
            engine::Event::State(market, state) => self.market_changed(market, state, all),
            engine::Event::Accepted { id, .. } => {
                self.done |= self.subject == Some(event_id(id));
                self.late(event_id(id), Outcome::Accepted, all);
            }
            engine::Event::Refused { seq, id, refusal } => {
                let id = id.map(event_id);
                let refused = Outcome::Refused(refusal.to_string());
                let own = seq == self.next || id == self.subject;
                if self.subject.is_some() && own {
                    all.outcome = Some(refused);
                } else if let Some(id) = id {
                    self.late(id, refused, all);
                }
            }
            engine::Event::Deferred { id, .. } => {
                all.outcome = Some(Outcome::Deferred);
                self.deferred.extend(self.subject.filter(|of| id.map(event_id) == Some(*of)));
            }
            engine::Event::Matched(matched) => self.matched(at, &matched, all),
            engine::Event::Ended { id, reason, .. } => {
                self.done |= reason == EndReason::Cancelled;
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

    /// Tells the outcome of an offer, if it was deferred by an earlier entry.
    fn late(&mut self, offer: EventId, outcome: Outcome, all: &mut Consequences) {
        if self.deferred.remove(&offer) && Some(offer) != self.subject {
            all.effects.push(Effect::Late(offer, outcome));
        }
    }

    fn market_changed(&mut self, market: MarketId, state: MarketState, all: &mut Consequences) {
        self.seats.changed(market, self.next);
        all.markets.push(market);
        let seat = self.seats.seat(market);
        all.effects.push(Effect::Market(seat.epoch, state, seat.until));
    }

    fn matched(&mut self, at: Millis, matched: &engine::Match, all: &mut Consequences) {
        let market = matched.market;
        let seat = self.seats.seat(market);
        let leg = |leg: &engine::Leg, fee: Msats| Leg {
            offer: event_id(leg.id),
            trader: key(leg.trader),
            fee,
        };
        let units = u64::from(matched.lots.get()).checked_mul(seat.lot.get());
        let matched = Match {
            seq: self.next,
            index: all.tally.matches as u32,
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
        let id = self.tell(event, all);
        self.trades.open(id, market, &matched);
        all.tally.matches += 1;
        all.tally.lots += u64::from(matched.lots.get());
    }
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
