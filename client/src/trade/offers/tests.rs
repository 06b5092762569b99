use hashpit_nips::Price;
use hashpit_nips::eh04::{Side, Way};
use nostr_sdk::{EventBuilder, Keys, Tag};

use super::*;

const NOON: u64 = 1_800_000_000;

/// A trader whose events an exchange enters, one a second.
struct Desk {
    trader: Keys,
    market: MarketId,
    entries: Vec<Entry>,
}

impl Desk {
    fn new() -> Self {
        let exchange = Keys::parse(&"11".repeat(32)).unwrap().public_key();
        let epoch = EpochId { pool: exchange, height: 7 };
        let market = MarketId { exchange, epoch };
        Self { trader: Keys::generate(), market, entries: Vec::new() }
    }

    fn enter(&mut self, subject: Subject, outcome: Outcome, effects: Vec<Effect>) -> usize {
        let seq = self.entries.len() as u64;
        let (prev, at) = (EventId::all_zeros(), Millis::new((NOON + seq) * 1000));
        self.entries.push(Entry { seq, prev, at, subject, outcome, effects, more: 0 });
        self.entries.len() - 1
    }

    fn sign(&self, event: EventBuilder) -> Event {
        event.sign_with_keys(&self.trader).unwrap()
    }

    fn offer(&self, d: &str, prev: Option<EventId>, terms: Option<Terms>) -> Event {
        let offer = Offer { d: d.to_owned(), market: self.market, prev, terms };
        self.sign(offer.encode())
    }

    /// Enters an event of the trader's.
    fn told(&mut self, event: &Event, outcome: Outcome, effects: Vec<Effect>) {
        self.enter(Subject::Trader(Box::new(event.clone())), outcome, effects);
    }

    /// Enters an offer that is taken.
    fn taken(&mut self, d: &str, terms: Terms) -> Event {
        let event = self.offer(d, None, Some(terms));
        self.told(&event, Outcome::Accepted, vec![]);
        event
    }

    fn offers_at(&self, now: u64, own: &[Event]) -> Vec<OwnOffer> {
        // Relays give them in any order, and twice.
        let entries: Vec<_> = self.entries.iter().rev().chain(&self.entries).cloned().collect();
        let records = Records {
            trader: self.trader.public_key(),
            exchange: self.market.exchange,
            entries,
            matches: &[],
            own,
            markets: &[],
            now: Timestamp::from(now),
        };
        records.offers()
    }

    fn standing(&self, d: &str) -> Standing {
        let offers = self.offers_at(NOON + 100, &[]);
        offers.into_iter().find(|offer| offer.d == d).unwrap().standing
    }
}

fn sell(lots: u32) -> Terms {
    Terms::new(Side::Sell, Some(Price::new(5)), Lots::new(lots), vec![Way::Nwc])
}

fn refused() -> Outcome {
    Outcome::Refused("invalid: no".to_owned())
}

#[test]
fn an_offer_ends_as_the_journal_says() {
    let ends = [
        ("expired", End::Expired),
        ("dead_man", End::DeadMan),
        ("epoch", End::Epoch),
        ("closed", End::Closed),
        ("self", End::SelfTrade),
        ("ioc", End::AtOnce),
        ("flood", End::Other("flood".to_owned())),
    ];
    let mut desk = Desk::new();
    for (why, end) in ends {
        let event = desk.taken(why, sell(1));
        assert_eq!(desk.standing(why), Standing::Open);
        desk.enter(Subject::Time, Outcome::Accepted, vec![Effect::Ended(event.id, why.to_owned())]);
        assert_eq!(desk.standing(why), Standing::Over(end));
    }
}

#[test]
fn a_refused_amendment_or_cancel_leaves_the_offer_standing() {
    let mut desk = Desk::new();
    let first = desk.taken("a", sell(1));
    for terms in [Some(sell(2)), None] {
        let event = desk.offer("a", Some(first.id), terms);
        desk.told(&event, refused(), vec![]);
    }
    let own = desk.offers_at(NOON + 9, &[]).remove(0);
    assert_eq!((own.event, own.terms, own.standing), (first.id, sell(1), Standing::Open));
    let never = desk.offer("b", None, Some(sell(1)));
    desk.told(&never, refused(), vec![]);
    assert!(matches!(desk.standing("b"), Standing::Over(End::Refused(_))));
}

#[test]
fn what_was_deferred_counts_once_it_is_carried_out() {
    let mut desk = Desk::new();
    let [a, b] = ["a", "b"].map(|d| desk.offer(d, None, Some(sell(1))));
    desk.told(&a, Outcome::Deferred, vec![]);
    desk.told(&b, Outcome::Deferred, vec![]);
    assert_eq!(desk.standing("a"), Standing::Deferred);
    let late = vec![Effect::Late(a.id, Outcome::Accepted), Effect::Late(b.id, refused())];
    desk.enter(Subject::Time, Outcome::Accepted, late);
    assert_eq!(desk.standing("a"), Standing::Open);
    assert!(matches!(desk.standing("b"), Standing::Over(End::Refused(_))));

    let amendment = desk.offer("a", Some(a.id), Some(sell(3)));
    desk.told(&amendment, Outcome::Deferred, vec![]);
    assert_eq!(desk.offers_at(NOON + 9, &[])[0].terms, sell(1), "the old one stands");
    let late = vec![Effect::Late(amendment.id, Outcome::Accepted)];
    desk.enter(Subject::Time, Outcome::Accepted, late);
    let own = &desk.offers_at(NOON + 9, &[])[0];
    assert_eq!((own.event, &own.terms), (amendment.id, &sell(3)));
}

#[test]
fn an_amendment_in_its_place_is_told_by_silence() {
    let mut desk = Desk::new();
    let first = desk.taken("a", sell(3));
    let fewer = desk.offer("a", Some(first.id), Some(sell(2)));
    desk.told(&fewer, Outcome::Deferred, vec![]);
    let lots = |now| desk.offers_at(now, &[])[0].terms.lots;
    // Entered a second after noon; by then anything else would have been told.
    let told = NOON + 1 + DEFERRED.as_secs();
    assert_eq!([told, told + 1].map(lots), [Lots::new(3), Lots::new(2)]);
    let cancel = desk.offer("a", None, None);
    desk.told(&cancel, Outcome::Deferred, vec![]);
    assert_eq!(desk.standing("a"), Standing::Over(End::Canceled));
}

#[test]
fn time_ends_offers_without_a_word() {
    let mut desk = Desk::new();
    let expires = Some(Timestamp::from(NOON + 50));
    desk.taken("good till", Terms { expires, ..sell(1) });
    desk.taken("kept", sell(1));
    let alive = |until| Command { exchange: desk.market.exchange, action: Action::Alive(until) };
    let armed = desk.sign(alive(Some(Timestamp::from(NOON + 70))).encode());
    desk.told(&armed, Outcome::Accepted, vec![]);
    let ended = |now| {
        let offers = desk.offers_at(now, &[]);
        offers.into_iter().filter(|offer| !offer.is_live()).count()
    };
    assert_eq!([NOON + 49, NOON + 50, NOON + 69, NOON + 70].map(ended), [0, 1, 1, 2]);
}

#[test]
fn the_switch_taken_back_ends_nothing() {
    let mut desk = Desk::new();
    desk.taken("kept", sell(1));
    for until in [Some(Timestamp::from(NOON + 10)), None] {
        let action = Action::Alive(until);
        let event = desk.sign(Command { exchange: desk.market.exchange, action }.encode());
        desk.told(&event, Outcome::Accepted, vec![]);
    }
    assert_eq!(desk.standing("kept"), Standing::Open);
}

#[test]
fn an_offer_is_deleted_by_its_id_or_its_address() {
    let mut desk = Desk::new();
    let by_id = desk.taken("id", sell(1));
    desk.taken("address", sell(1));
    desk.taken("kept", sell(1));
    let address = format!("38480:{}:address", desk.trader.public_key().to_hex());
    let tags = [Tag::event(by_id.id), Tag::parse(["a", &address]).unwrap()];
    let deletion = desk.sign(EventBuilder::new(Kind::EventDeletion, "").tags(tags));
    desk.told(&deletion, Outcome::Accepted, vec![]);
    let canceled = Standing::Over(End::Canceled);
    assert_eq!(desk.standing("id"), canceled);
    assert_eq!(desk.standing("address"), canceled);
    assert_eq!(desk.standing("kept"), Standing::Open);
}

#[test]
fn what_the_exchange_has_not_answered_is_told_apart() {
    let mut desk = Desk::new();
    let first = desk.taken("a", sell(1));
    let (change, new) =
        (desk.offer("a", Some(first.id), Some(sell(2))), desk.offer("b", None, Some(sell(3))));
    let offers = desk.offers_at(NOON, &[change, new]);
    let found: Vec<_> = offers.iter().map(|o| (o.d.as_str(), &o.standing, o.unanswered)).collect();
    let expected = [("b", &Standing::Unanswered, false), ("a", &Standing::Open, true)];
    assert_eq!(found, expected);
    assert_eq!(offers[1].terms, sell(1), "what stands is what was acknowledged");
}

#[test]
fn an_exchange_cannot_make_up_offers() {
    let mut desk = Desk::new();
    let mut forged = desk.offer("a", None, Some(sell(1)));
    forged.sig = desk.offer("b", None, Some(sell(1))).sig;
    desk.told(&forged, Outcome::Accepted, vec![]);
    let stranger = Keys::generate();
    let foreign =
        Offer { d: "c".to_owned(), market: desk.market, prev: None, terms: Some(sell(1)) };
    let foreign = foreign.encode().sign_with_keys(&stranger).unwrap();
    desk.told(&foreign, Outcome::Accepted, vec![]);
    assert_eq!(desk.offers_at(NOON, &[]), []);
}
