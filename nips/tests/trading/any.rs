//! Values of every type that the two drafts define, at random.

use hashpit_nips::eh04::*;
use hashpit_nips::eh05::*;
use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Msats, Price};
use nostr::secp256k1::schnorr::Signature;
use nostr::{Event, EventBuilder, EventId, Keys, PublicKey, RelayUrl, SecretKey, Timestamp};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

/// An event as a reader sees it; no codec looks at the signature.
pub(crate) fn unsigned(builder: EventBuilder, author: PublicKey) -> Event {
    let mut event = builder.build(author);
    let sig = Signature::from_slice(&[0; 64]).unwrap();
    let id = event.id();
    Event::new(id, author, event.created_at, event.kind, event.tags, event.content, sig)
}

pub(crate) fn key() -> impl Strategy<Value = PublicKey> {
    any::<[u8; 32]>().prop_map(PublicKey::from_byte_array)
}

fn id() -> impl Strategy<Value = EventId> {
    any::<[u8; 32]>().prop_map(EventId::from_byte_array)
}

fn epoch() -> impl Strategy<Value = EpochId> {
    (key(), any::<u32>()).prop_map(|(pool, height)| EpochId { pool, height })
}

fn market_id() -> impl Strategy<Value = MarketId> {
    (key(), epoch()).prop_map(|(exchange, epoch)| MarketId { exchange, epoch })
}

fn way() -> impl Strategy<Value = Way> {
    let mint = (1u8..=20).prop_map(|secret| {
        let secret = SecretKey::from_slice(&[secret; 32]).unwrap();
        let key = Keys::new(secret).public_key();
        format!("cashu:02{}", key.to_hex()).parse().unwrap()
    });
    prop_oneof![Just(Way::Nwc), mint]
}

fn ways() -> impl Strategy<Value = Vec<Way>> {
    vec(way(), 1..6)
}

fn payments() -> impl Strategy<Value = Vec<Payment>> {
    let mint = of(Just("https://mint.example/sat".parse().unwrap()));
    proptest::collection::hash_set(way(), 1..6).prop_flat_map(move |ways| {
        ways.into_iter()
            .map(|way| mint.clone().prop_map(move |mint| Payment { way, mint }))
            .collect::<Vec<_>>()
    })
}

pub(crate) fn side() -> impl Strategy<Value = Side> {
    select(vec![Side::Buy, Side::Sell])
}

fn state() -> impl Strategy<Value = MarketState> {
    use MarketState::*;
    select(vec![Open, Halted, Auction, Closed])
}

fn lots() -> impl Strategy<Value = Lots> {
    (1..=u32::MAX).prop_map(Lots::new)
}

fn price() -> impl Strategy<Value = Price> {
    (1..=u64::from(u32::MAX)).prop_map(Price::new)
}

/// Times whose milliseconds fit into 64 bits.
fn seconds() -> impl Strategy<Value = Timestamp> {
    (0..=u64::MAX / 1000).prop_map(Timestamp::from)
}

fn millis() -> impl Strategy<Value = Millis> {
    any::<u64>().prop_map(Millis::new)
}

fn terms() -> impl Strategy<Value = Terms> {
    use TimeInForce::*;
    let sizes = (1..=u32::MAX)
        .prop_flat_map(|qty| (1..=qty).prop_flat_map(move |max| (Just(qty), Just(max), 1..=max)));
    let choices = (
        select(vec![OnEpoch::Cancel, OnEpoch::Keep]),
        of(".{1,16}"),
        select(vec![SelfTrade::CancelNew, SelfTrade::CancelOld]),
        of(seconds()),
    );
    (side(), of(price()), sizes, any::<bool>(), any::<bool>(), ways(), choices).prop_map(
        |(side, price, (qty, max, min), a, b, pay, (on_epoch, group, self_trade, expires))| {
            let tif = match (a, b) {
                (false, false) if price.is_some() => Gtc,
                (false, true) if price.is_some() => Post,
                (_, false) => Ioc,
                (_, true) => Fok,
            };
            let (min, max) = (Lots::new(min), Lots::new(max));
            let plain = Terms::new(side, price, Lots::new(qty), pay);
            Terms { min, max, tif, on_epoch, group, self_trade, expires, ..plain }
        },
    )
}

pub(crate) fn offer() -> impl Strategy<Value = Offer> {
    (".{1,16}", market_id(), of(id()), of(terms())).prop_map(|(d, market, prev, terms)| Offer {
        d,
        market,
        prev,
        terms,
    })
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![
        of(epoch()).prop_map(Action::CancelAll),
        of(seconds()).prop_map(Action::Alive),
        (epoch(), id()).prop_map(|(epoch, offer)| Action::Commit { epoch, offer }),
        (id(), 1u8..=6).prop_map(|(of, step)| Action::Step { of, step }),
    ];
    (key(), action).prop_map(|(exchange, action)| Command { exchange, action })
}

fn rules() -> impl Strategy<Value = Rules> {
    let fees = (0u32..=1_000_000, 0u32..=1_000_000);
    ((1..=u32::MAX), price(), lots(), lots(), fees, payments(), any::<[u32; 4]>()).prop_map(
        |(lot, tick, one, other, (maker_fee_ppm, taker_fee_ppm), pay, [a, b, c, d])| Rules {
            lot: HashUnits::new(lot.into()),
            tick,
            min_lots: one.min(other),
            max_lots: one.max(other),
            maker_fee_ppm,
            taker_fee_ppm,
            pay,
            pow_bits: a as u8,
            max_drift_secs: b,
            reveal_ms: c,
            auction_ms: d,
            ..Rules::default()
        },
    )
}

pub(crate) fn info() -> impl Strategy<Value = ExchangeInfo> {
    let relays = vec(Just(RelayUrl::parse("wss://relay.example").unwrap()), 0..3);
    (".{1,40}", relays, vec(key(), 0..4), rules())
        .prop_map(|(name, relays, pools, rules)| ExchangeInfo { name, relays, pools, rules })
}

pub(crate) fn market() -> impl Strategy<Value = Market> {
    let fees = (0..=1_000_000_u32, 0..=1_000_000_u32);
    let numbers = (any::<u64>(), 1..=u64::from(u32::MAX), fees);
    (epoch(), state(), of(millis()), numbers, price(), payments()).prop_map(
        |(epoch, state, until, (seq, lot, fee_ppm), tick, pay)| Market {
            epoch,
            mint: "https://pool.example/ehash".parse().unwrap(),
            state,
            until,
            seq,
            lot: HashUnits::new(lot),
            tick,
            fee_ppm,
            pay,
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let refused = ".{0,40}".prop_map(Outcome::Refused);
    prop_oneof![Just(Outcome::Accepted), Just(Outcome::Deferred), refused]
}

fn effect() -> impl Strategy<Value = Effect> {
    let whys = vec!["expired", "dead_man", "epoch", "closed", "self", "ioc"];
    prop_oneof![
        (id(), select(whys)).prop_map(|(id, why)| Effect::Ended(id, why.to_owned())),
        (id(), outcome()).prop_map(|(id, outcome)| Effect::Late(id, outcome)),
        id().prop_map(Effect::Burnt),
        (epoch(), state(), of(millis()))
            .prop_map(|(epoch, state, until)| Effect::Market(epoch, state, until)),
    ]
}

pub(crate) fn entry() -> impl Strategy<Value = Entry> {
    let offer = (offer(), key()).prop_map(|(offer, by)| unsigned(offer.encode(), by));
    let command = (command(), key()).prop_map(|(command, by)| unsigned(command.encode(), by));
    let traders = prop_oneof![offer, command].prop_map(|event| Subject::Trader(Box::new(event)));
    let subject = prop_oneof![rules().prop_map(Subject::Rules), Just(Subject::Time), traders];
    let parts = (1..=u64::MAX, id(), millis(), vec(effect(), 0..8), any::<u32>());
    (parts, subject, outcome()).prop_map(|((seq, prev, at, effects, more), subject, outcome)| {
        let said = matches!(subject, Subject::Trader(_) | Subject::Epoch(_));
        let outcome = if said { outcome } else { Outcome::Accepted };
        Entry { seq, prev, at, subject, outcome, effects, more }
    })
}

fn leg() -> impl Strategy<Value = Leg> {
    (id(), key(), any::<u64>()).prop_map(|(offer, trader, fee)| Leg {
        offer,
        trader,
        fee: Msats::new(fee),
    })
}

pub(crate) fn matched() -> impl Strategy<Value = Match> {
    let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), millis());
    (market_id(), leg(), leg(), side(), price(), lots(), ways(), numbers).prop_map(
        |(market, maker, taker, taker_side, price, lots, pay, (seq, index, units, at))| Match {
            seq,
            index,
            market,
            maker,
            taker,
            taker_side,
            price,
            lots,
            units: HashUnits::new(units),
            pay,
            at,
        },
    )
}

pub(crate) fn settlement() -> impl Strategy<Value = Settlement> {
    let who = select(vec![&[0][..], &[1], &[0, 1]]);
    let failed = of((1u8..=6, who));
    (any::<u64>(), id(), [key(), key()], failed, millis()).prop_map(
        |(seq, of, traders, failed, at)| {
            let fate = failed.map_or(Fate::Completed, |(step, who)| Fate::Failed {
                step,
                due: who.iter().map(|&who: &usize| traders[who]).collect(),
            });
            Settlement { seq, of, traders, fate, at }
        },
    )
}

fn levels() -> impl Strategy<Value = Vec<Level>> {
    let level = any::<(u64, u64, u32)>();
    vec(level.prop_map(|(price, lots, offers)| Level(Price::new(price), lots, offers)), 0..6)
}

fn last() -> impl Strategy<Value = Option<LastTrade>> {
    of((price(), lots(), millis()).prop_map(|(price, lots, at)| LastTrade { price, lots, at }))
}

pub(crate) fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let book = (state(), levels(), levels(), any::<bool>(), last())
        .prop_map(|(state, bids, asks, cut, last)| Book { state, bids, asks, cut, last });
    (epoch(), any::<[u64; 2]>(), id(), any::<[u8; 32]>(), millis(), book).prop_map(
        |(epoch, [seq, depth], entry, digest, at, book)| Checkpoint {
            epoch,
            seq,
            entry,
            digest,
            depth,
            at,
            book,
        },
    )
}

pub(crate) fn depth() -> impl Strategy<Value = Depth> {
    let change = (state(), levels(), levels(), last())
        .prop_map(|(state, bids, asks, last)| Change { state, bids, asks, last });
    (market_id(), any::<[u64; 2]>(), change).prop_map(|(market, [number, seq], change)| Depth {
        market,
        number,
        seq,
        change,
    })
}
