//! A trader's event becomes what the engine is to do.

use hashpit_nips::eh04::{Action, Offer, Terms};
use hashpit_nips::eh05::Outcome;
use hashpit_nips::{EpochId, Millis, kind};
use nostr::{Event, EventId, Kind};
use sha2::{Digest, Sha256};

use super::State;
use super::admission::{Admission, Claim, Toll};
use crate::engine::{Address, Command, MarketId, OfferId, Order, Trader};

/// What a trader's event asks for.
enum Wish {
    /// Nothing that could be done; the refusal.
    Invalid(String),
    /// Something with the book.
    Book(Vec<Command>),
    /// A place in a market's queue.
    Commit(Command),
    /// To note a step of a settlement.
    Step(EventId, u8),
}

impl super::State {
    /// Makes a trader's event the next entry.
    ///
    /// Errors, with nothing changed, where it gets no entry.
    pub(super) fn trader(
        &mut self,
        at: Millis,
        event: &Event,
        all: &mut super::Consequences,
    ) -> Result<(), &'static str> {
        let (wish, timely) = self.wish(event)?;
        let claim = Claim { timely, free: self.is_free(event, &wish, at) };
        let (refused, mut toll) = match self.gate.admit(event, claim, at, &self.rules) {
            Admission::Ignored(why) => return Err(why),
            Admission::Refused(reason) => (Some(reason), Toll::Counted),
            Admission::TooFast(reason) => {
                all.too_fast = Some(event.pubkey);
                (Some(reason), Toll::Last)
            }
            Admission::Free => (None, Toll::Counted),
        };
        self.advance(at, all);
        let wish = refused.map_or(wish, Wish::Invalid);
        if self.grant(at, event, wish, all) && claim.free {
            toll = Toll::Free;
        }
        self.gate.answered(event, at, toll);
        Ok(())
    }

    /// Whether the rate of its key does not bind an event: a report that is awaited,
    /// or a cancelling that ends something. Who owes much to others, or has to get
    /// out in a hurry, is not to wait for the next minute; and there can be no more
    /// of these than of the matches and offers that they are about.
    fn is_free(&self, event: &Event, wish: &Wish, at: Millis) -> bool {
        match wish {
            Wish::Step(of, step) => self.trades.awaits((*of, *step), event.pubkey, at),
            Wish::Book(commands) => {
                commands.iter().all(Command::is_cancelling)
                    && commands.iter().any(|command| self.engine.would_end(command))
            }
            Wish::Commit(_) | Wish::Invalid(_) => false,
        }
    }

    /// Does what an event asks for; whether a report was taken or an offer ended by
    /// its trader's word.
    fn grant(
        &mut self,
        at: Millis,
        event: &Event,
        wish: Wish,
        all: &mut super::Consequences,
    ) -> bool {
        match wish {
            Wish::Invalid(reason) => all.outcome = Some(Outcome::Refused(reason)),
            Wish::Book(commands) => {
                self.subject = Some(event.id);
                let (outcome, ended) = self.carry_out(at, commands, all);
                all.outcome = outcome;
                self.subject = None;
                return ended;
            }
            Wish::Commit(command) => {
                if !self.gate.may_commit(&event.pubkey, at, &self.rules) {
                    let reason = "blocked: too many of your commits were left without their \
                                  offer today; make offers in the open";
                    all.outcome = Some(Outcome::Refused(reason.to_owned()));
                    return false;
                }
                self.subject = Some(event.id);
                self.run(at, command, all);
                self.subject = None;
            }
            Wish::Step(of, step) => {
                match self.trades.report((of, step), event.pubkey, self.next, at) {
                    Ok(None) => return true,
                    Ok(Some((settled, print))) => {
                        self.completed(&settled, print, all);
                        return true;
                    }
                    Err(reason) => all.outcome = Some(Outcome::Refused(reason.to_owned())),
                }
            }
        }
        false
    }

    /// Runs the commands of one event; its outcome, and whether they did anything at
    /// once. It is refused only if none of them did anything.
    fn carry_out(
        &mut self,
        at: Millis,
        commands: Vec<Command>,
        all: &mut super::Consequences,
    ) -> (Option<Outcome>, bool) {
        let (mut outcomes, mut done) = (Vec::new(), false);
        for command in commands {
            self.done = false;
            self.run(at, command, all);
            let outcome = all.outcome.take().unwrap_or(Outcome::Accepted);
            done |= self.done;
            let in_part = self.done && matches!(outcome, Outcome::Refused(_));
            outcomes.push(if in_part { Outcome::Accepted } else { outcome });
        }
        let weight = |outcome: &Outcome| match outcome {
            Outcome::Accepted => 0,
            Outcome::Deferred => 1,
            Outcome::Refused(_) => 2,
        };
        (outcomes.into_iter().min_by_key(weight), done)
    }

    /// What an event asks for, and whether it has to be signed now.
    ///
    /// Errors where it is not for this exchange.
    fn wish(&self, event: &Event) -> Result<(Wish, bool), &'static str> {
        if event.kind == Kind::EventDeletion {
            return Ok((Wish::Book(self.deletions(event)?), false));
        }
        let ours = self.exchange.to_hex();
        let named = event.tags.iter().any(|tag| tag.as_slice() == ["x", &ours]);
        if !named {
            return Err("it is for another exchange");
        }
        let invalid = |error: hashpit_nips::eh04::DecodeError| {
            (Wish::Invalid(format!("invalid: {error}; see EH-04")), true)
        };
        if event.kind == kind::OFFER {
            return Ok(Offer::decode(event).map_or_else(invalid, |offer| self.offer(event, &offer)));
        }
        match hashpit_nips::eh04::Command::decode(event) {
            Ok(command) => Ok(self.command(event, &command.action)),
            Err(_) if event.kind != kind::COMMAND => Err("it is of no kind that is traded by"),
            Err(error) => Ok(invalid(error)),
        }
    }

    fn offer(&self, event: &Event, offer: &Offer) -> (Wish, bool) {
        let Some(market) = self.seats.get(&offer.market.epoch) else {
            return (no_market(&offer.market.epoch), true);
        };
        let (trader, address) = (trader(event), address(event, &offer.d));
        let prev = offer.prev.map(|prev| OfferId(prev.to_bytes()));
        let Some(terms) = &offer.terms else {
            return (Wish::Book(vec![Command::Cancel { trader, address, prev }]), false);
        };
        let order = self.order(event, address, market, terms);
        if order.pay.is_empty() {
            let reason = "invalid: none of its ways of payment is one of this market's; see the \
                          pay tags of its 38481";
            return (Wish::Invalid(reason.to_owned()), true);
        }
        let command = match prev {
            Some(prev) => Command::Amend { prev, order },
            None => Command::Place(order),
        };
        (Wish::Book(vec![command]), true)
    }

    fn order(&self, event: &Event, address: Address, market: MarketId, terms: &Terms) -> Order {
        let seconds = |time: nostr::Timestamp| Millis::new(time.as_secs().saturating_mul(1000));
        Order {
            id: OfferId(event.id.to_bytes()),
            address,
            trader: trader(event),
            market,
            side: terms.side,
            price: terms.price,
            lots: terms.lots,
            min: terms.min,
            max: terms.max,
            tif: terms.tif,
            pay: self.seats.seat(market).mask(&terms.pay),
            group: terms.group.as_deref().map(group),
            self_trade: terms.self_trade,
            on_epoch: terms.on_epoch,
            expires: terms.expires.map(seconds),
        }
    }

    fn command(&self, event: &Event, action: &Action) -> (Wish, bool) {
        let trader = trader(event);
        let wish = match action {
            Action::CancelAll(None) => {
                Wish::Book(vec![Command::CancelAll { trader, market: None }])
            }
            Action::CancelAll(Some(epoch)) => match self.seats.get(epoch) {
                Some(id) => Wish::Book(vec![Command::CancelAll { trader, market: Some(id) }]),
                None => no_market(epoch),
            },
            Action::Alive(until) => {
                let until = until.map(|until| Millis::new(until.as_secs().saturating_mul(1000)));
                Wish::Book(vec![Command::Alive { trader, until }])
            }
            Action::Commit { epoch, offer } => match self.seats.get(epoch) {
                Some(market) => {
                    Wish::Commit(Command::Commit { trader, market, id: OfferId(offer.to_bytes()) })
                }
                None => no_market(epoch),
            },
            Action::Step { of, step } => return (Wish::Step(*of, *step), false),
        };
        (wish, true)
    }

    /// The offers that a deletion (NIP-09) names and that stand here.
    fn deletions(&self, event: &Event) -> Result<Vec<Command>, &'static str> {
        let trader = trader(event);
        let prefix = format!("{}:{}:", kind::OFFER.as_u16(), event.pubkey.to_hex());
        let mut commands = Vec::new();
        for tag in event.tags.iter() {
            match tag.as_slice() {
                [name, at, ..] if name == "a" => {
                    let Some(d) = at.strip_prefix(&prefix) else { continue };
                    let address = address(event, d);
                    if self.engine.offer(address).is_some() || self.engine.waits_at(trader, address)
                    {
                        commands.push(Command::Cancel { trader, address, prev: None });
                    }
                }
                [name, id, ..] if name == "e" => {
                    let Ok(id) = id.parse::<EventId>() else { continue };
                    let id = OfferId(id.to_bytes());
                    let named = self.engine.offers_of(trader).find(|offer| offer.id == id);
                    if let Some(address) = named.map(|offer| offer.address) {
                        commands.push(Command::Cancel { trader, address, prev: None });
                    } else if self.engine.waits_for(trader, id) {
                        commands.push(Command::CancelById { trader, id });
                    }
                }
                _ => {}
            }
        }
        let mut seen = Vec::new();
        commands.retain(|command| {
            let new = !seen.contains(command);
            seen.extend(new.then(|| command.clone()));
            new
        });
        if commands.is_empty() { Err("it deletes nothing that stands here") } else { Ok(commands) }
    }
}

impl State {
    /// Whether a deletion names an offer that stands here, or an event is for this
    /// exchange: cheap, for those that nobody is owed an answer for.
    pub fn concerns(&self, event: &Event) -> bool {
        self.wish(event).is_ok()
    }
}

fn no_market(epoch: &EpochId) -> Wish {
    Wish::Invalid(format!(
        "invalid: there is no market for {epoch} here; see this exchange's 38481"
    ))
}

fn trader(event: &Event) -> Trader {
    Trader(event.pubkey.to_bytes())
}

/// Where an offer stands through its amendments: author and `d`.
pub(crate) fn address(event: &Event, d: &str) -> Address {
    let hash = Sha256::new().chain_update(event.pubkey.to_bytes()).chain_update(d).finalize();
    let mut address = [0; 16];
    address.copy_from_slice(&hash[..16]);
    Address(address)
}

/// A group by the first bytes of its name's hash.
fn group(name: &str) -> u64 {
    let hash = Sha256::digest(name);
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}
