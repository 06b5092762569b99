//! An honest exchange passes; each kind of cheat is found, by its first sequence.

use hashpit_exchange::audit::{Evidence, Finding, Lie, Report, audit};
use hashpit_exchange::desk::Answer;
use hashpit_exchange::replay::Fault;
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{Action, Command, ExchangeInfo, Offer, Rules, Side};
use hashpit_nips::eh05::{Checkpoint, Entry, Match, Outcome, Subject};
use hashpit_nips::{Lots, Millis, Price};
use nostr::{Event, EventBuilder, Keys, Timestamp};

use crate::world::{START, World, relays, rules};

/// An exchange that has been at work for an hour.
async fn open(rules: Rules) -> World {
    let world = World::open(rules);
    world.publish(1, EpochState::Open).await;
    world.pass(3_600_000);
    world
}

/// Time passes, in which the exchange does something else.
async fn go_on(world: &World) {
    let other = Keys::generate();
    for _ in 0..4 {
        world.pass(150_000);
        world.accepted(&mined(world, &other, Action::Alive(None))).await;
    }
}

/// A command with as much work as the rules of these tests ask for.
fn mined(world: &World, trader: &Keys, action: Action) -> Event {
    let command = Command { exchange: world.exchange.public_key(), action };
    let event = command.encode().custom_created_at(Timestamp::from(world.now() / 1000));
    event.pow(WORK).sign_with_keys(trader).unwrap()
}

/// Bits of a first event's work, where there are any.
const WORK: u8 = 8;

/// An exchange that has done some honest business; the traders' events.
async fn business() -> (World, Vec<Event>) {
    let world = open(rules()).await;
    let traders = [Keys::generate(), Keys::generate(), Keys::generate()];
    let mut events = Vec::new();
    for number in 0..30_u64 {
        world.pass(300);
        let side = if number % 2 == 0 { Side::Sell } else { Side::Buy };
        let terms = World::terms(side, 1_000 + number * 13 % 50, 1 + number as u32 % 4);
        events.push(world.offer(&traders[number as usize % 3], terms));
        world.submit(events.last().unwrap()).await;
    }
    // Every second match is settled, and the others fail.
    let records = world.records().into_iter().flatten();
    let matches = records.filter_map(|event| Some((event.id, Match::decode(&event).ok()?)));
    let keys = |trader| traders.iter().find(|keys| keys.public_key() == trader).unwrap();
    for (of, matched) in matches.step_by(2) {
        world.settle(of, [matched.maker.trader, matched.taker.trader].map(keys)).await;
    }
    go_on(&world).await;
    (world, events)
}

fn evidence(world: &World, events: impl IntoIterator<Item = Event>) -> Evidence {
    let mut evidence = Evidence::new(Timestamp::from(world.now() / 1000));
    for event in events {
        evidence.add(world.exchange.public_key(), &relays()[0], event);
    }
    evidence
}

fn first(report: &Report) -> (u64, &Lie) {
    let finding = report.findings.first().expect("the cheat is found");
    (finding.seq, &finding.lie)
}

fn report(world: &World, evidence: &Evidence) -> Report {
    audit(world.exchange.public_key(), evidence)
}

/// The journal with one entry said differently, and all that follows signed
/// anew so that the chain holds: what a cheat would publish from the start.
fn lie(world: &World, at: u64, change: impl FnOnce(&mut Entry)) -> Vec<Event> {
    let (mut events, mut change) = (Vec::new(), Some(change));
    let mut prev = nostr::EventId::all_zeros();
    for mut record in world.records() {
        let mut entry = Entry::decode(&record[0]).unwrap();
        entry.prev = prev;
        if entry.seq == at {
            change.take().unwrap()(&mut entry);
        }
        record[0] = entry.encode().sign_with_keys(&world.exchange).unwrap();
        prev = record[0].id;
        events.extend(record);
    }
    events
}

#[tokio::test]
async fn an_honest_exchange_passes() {
    let (world, offers) = business().await;
    let report = report(&world, &world.evidence(&offers).await);
    assert!(report.is_clean(), "{:?}", report.findings);
    let (newest, digest) = world.desk.digest().await.unwrap();
    assert_eq!((report.entries, report.digest), (newest.unwrap() + 1, digest));
    assert!(report.matches > 5 && report.settlements == report.matches, "{report:?}");
    assert_eq!(report.completed, report.matches.div_ceil(2));
    assert_eq!((report.checkpoints, report.offers), (1, offers.len() as u64));
}

#[tokio::test]
async fn a_fork_is_found() {
    let (world, _) = business().await;
    let mut other = world.entry(9);
    other.outcome = Outcome::Refused("blocked: I do not like you".to_owned());
    let other = other.encode().sign_with_keys(&world.exchange).unwrap();
    let honest = world.records().into_iter().flatten();
    let report = report(&world, &evidence(&world, honest.chain([other])));
    assert!(matches!(first(&report), (9, Lie::Forks(..))), "{:?}", report.findings);
}

#[tokio::test]
async fn a_missing_entry_is_found_even_the_newest() {
    let (world, _) = business().await;
    let mut records = world.records();
    let gone = records.remove(7);
    let rest = records.into_iter().flatten();
    let found = report(&world, &evidence(&world, rest));
    assert_eq!(first(&found), (7, &Lie::Skips));
    drop(gone);

    let (mut records, checkpoints) = (world.records(), world.checkpoints().await);
    let newest = records.len() as u64 - 1;
    records.pop();
    let rest = records.into_iter().flatten().chain(checkpoints);
    let found = report(&world, &evidence(&world, rest));
    assert_eq!(first(&found), (newest, &Lie::Skips));
}

#[tokio::test]
async fn a_false_outcome_is_found() {
    let (world, _) = business().await;
    let events = lie(&world, 12, |entry| {
        entry.outcome = Outcome::Refused("rate-limited: wait".to_owned());
    });
    let report = report(&world, &evidence(&world, events));
    let (seq, Lie::Entry(_, Fault::Outcome { .. })) = first(&report) else {
        panic!("{:?}", report.findings)
    };
    assert_eq!(seq, 12);
}

#[tokio::test]
async fn two_offers_in_the_other_order_lead_to_other_matches() {
    let world = World::open(rules());
    world.publish(1, EpochState::Open).await;
    // Two sellers at one price, of whom the first was to trade first.
    let (early, late) = (Keys::generate(), Keys::generate());
    let offers = [&early, &late].map(|who| world.offer(who, World::terms(Side::Sell, 1, 1)));
    let first_seq = world.accepted(&offers[0]).await.seq;
    world.accepted(&offers[1]).await;
    let buyer = Keys::generate();
    world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 1, 1))).await;
    world.pass(600_000);
    let [one, other] = [first_seq, first_seq + 1].map(|seq| world.entry(seq).subject);
    let events = lie(&world, first_seq, |entry| entry.subject = other.clone());
    let twice = report(&world, &evidence(&world, events));
    assert!(
        matches!(first(&twice), (seq, Lie::Entry(_, Fault::NoPlace(_))) if seq == first_seq + 1)
    );

    // The cheat keeps the honest matches and swaps the two entries.
    let mut prev = nostr::EventId::all_zeros();
    let mut events = Vec::new();
    for mut record in world.records() {
        let mut entry = Entry::decode(&record[0]).unwrap();
        entry.prev = prev;
        if entry.seq == first_seq {
            entry.subject = other.clone();
        } else if entry.seq == first_seq + 1 {
            entry.subject = one.clone();
        }
        record[0] = entry.encode().sign_with_keys(&world.exchange).unwrap();
        prev = record[0].id;
        events.extend(record);
    }
    let found = report(&world, &evidence(&world, events));
    let lies: Vec<_> = found.findings.iter().map(|finding| (finding.seq, &finding.lie)).collect();
    assert!(lies.iter().all(|(seq, _)| *seq == first_seq + 2), "{lies:?}");
    assert!(lies.iter().any(|(_, lie)| matches!(lie, Lie::Withheld(_))), "{lies:?}");
    assert!(lies.iter().any(|(_, lie)| matches!(lie, Lie::Invented(_))), "{lies:?}");
}

#[tokio::test]
async fn a_match_that_is_withheld_or_invented_is_found() {
    let (world, _) = business().await;
    let records = world.records();
    let matched = records.iter().find(|record| record.len() > 1).unwrap()[1].clone();
    let honest = Match::decode(&matched).unwrap();
    let all = || world.records().into_iter().flatten();
    let without = all().filter(|event| event.id != matched.id);
    let found = report(&world, &evidence(&world, without));
    assert_eq!(first(&found), (honest.seq, &Lie::Withheld(matched.id)));

    let mut better = honest.clone();
    better.price = Price::new(honest.price.get() + 1);
    let better = better.encode().unwrap().sign_with_keys(&world.exchange).unwrap();
    let id = better.id;
    let found = report(&world, &evidence(&world, all().chain([better])));
    assert_eq!(first(&found), (honest.seq, &Lie::Invented(id)));
}

#[tokio::test]
async fn an_offer_that_its_trader_did_not_sign_is_found() {
    let (world, _) = business().await;
    let events = lie(&world, 15, |entry| {
        let Subject::Trader(event) = &mut entry.subject else { panic!("an offer") };
        event.sig = world.record(3)[0].sig;
    });
    let report = report(&world, &evidence(&world, events));
    assert!(matches!(first(&report), (15, Lie::Entry(_, Fault::ForgedSubject))));
}

#[tokio::test]
async fn a_clock_that_goes_back_and_a_broken_chain_are_found() {
    let (world, _) = business().await;
    let events = lie(&world, 20, |entry| {
        entry.at = Millis::new(entry.at.get() - 60_000);
    });
    let found = report(&world, &evidence(&world, events));
    assert!(matches!(first(&found), (20, Lie::Entry(_, Fault::Time { .. }))));

    let mut records = world.records();
    let mut entry = Entry::decode(&records[20][0]).unwrap();
    entry.prev = records[3][0].id;
    records[20][0] = entry.encode().sign_with_keys(&world.exchange).unwrap();
    let found = report(&world, &evidence(&world, records.into_iter().flatten()));
    assert!(matches!(first(&found), (20, Lie::Entry(_, Fault::Fork { .. }))));
}

#[tokio::test]
async fn a_checkpoint_of_another_book_is_found() {
    let (world, _) = business().await;
    let honest = Checkpoint::decode(&world.checkpoints().await[0]).unwrap();
    let seq = honest.seq;
    let changes: [fn(&mut Checkpoint); 7] = [
        |it| it.digest[0] ^= 1,
        |it| it.book.bids.clear(),
        |it| (it.book.cut, it.book.asks) = (true, Vec::new()),
        |it| it.book.asks[0].1 += 1,
        |it| it.at = Millis::new(5),
        |it| it.book.last.as_mut().unwrap().lots = Lots::new(77),
        |it| it.book.last = None,
    ];
    for change in changes {
        let mut checkpoint = honest.clone();
        change(&mut checkpoint);
        let lie = checkpoint.encode().sign_with_keys(&world.exchange).unwrap();
        let (id, all) = (lie.id, world.records().into_iter().flatten());
        let found = report(&world, &evidence(&world, all.chain([lie])));
        assert_eq!(first(&found), (seq, &Lie::Checkpoint(id, world.epoch(1))));
    }
    assert!(!honest.book.bids.is_empty() && honest.book.bids[0].1 > Lots::ZERO.get().into());
}

#[tokio::test]
async fn an_offer_that_two_relays_saw_and_nobody_answered_is_found() {
    let (world, mut offers) = business().await;
    let ignored = world.offer(&Keys::generate(), World::terms(Side::Buy, 5, 1));
    offers.push(ignored.clone());
    go_on(&world).await;
    let found = report(&world, &world.evidence(&offers).await);
    assert!(matches!(first(&found), (_, Lie::Unanswered(id)) if *id == ignored.id));

    // One relay alone may have shown it to nobody but the auditor.
    let mut once = world.evidence(&offers[..offers.len() - 1]).await;
    once.add(world.exchange.public_key(), &relays()[0], ignored);
    assert!(report(&world, &once).is_clean());
}

/// Whether an audit that is shown these on two relays finds one unanswered.
async fn accused(world: &World, events: &[Event]) -> bool {
    go_on(world).await;
    let found = report(world, &world.evidence(events).await);
    let unanswered = |finding: &Finding| matches!(finding.lie, Lie::Unanswered(_));
    assert!(found.findings.iter().all(unanswered), "{:?}", found.findings);
    !found.is_clean()
}

#[tokio::test]
async fn an_exchange_may_ignore_a_key_until_it_has_done_its_work() {
    let world = open(Rules { pow_bits: WORK, ..rules() }).await;
    let trader = Keys::generate();
    let plain = loop {
        let offer = world.offer(&trader, World::terms(Side::Sell, 10, 1));
        if !offer.id.check_pow(WORK) {
            break offer;
        }
    };
    assert!(matches!(world.desk.submit(plain.clone()).await.unwrap(), Answer::Ignored(_)));
    let mut ahead = (300..).map(|by| {
        let ahead = EventBuilder::new(plain.kind, "").tags(plain.tags.clone());
        let ahead = ahead.custom_created_at(Timestamp::from(world.now() / 1000 + by));
        ahead.sign_with_keys(&trader).unwrap()
    });
    let ahead = ahead.find(|event| !event.id.check_pow(WORK)).unwrap();
    world.accepted(&mined(&world, &trader, Action::Alive(None))).await;
    assert!(!accused(&world, &[plain, ahead]).await);

    // A key that it has known for long is another matter, and so is new work.
    world.pass(3_600_000);
    assert!(accused(&world, &[world.offer(&trader, World::terms(Side::Sell, 10, 1))]).await);
    world.pass(3_600_000);
    let stranger = mined(&world, &Keys::generate(), Action::CancelAll(None));
    assert!(accused(&world, &[stranger]).await);
}

#[tokio::test]
async fn an_exchange_may_ignore_a_key_in_the_minute_in_which_it_was_too_fast() {
    let world = open(Rules { events_per_minute: 3, ..rules() }).await;
    let trader = Keys::generate();
    for _ in 0..4 {
        world.submit(&world.offer(&trader, World::terms(Side::Sell, 10, 1))).await;
    }
    // Dated before that, and sent after it.
    let old = Offer { d: "x".to_owned(), market: world.market(1), prev: None, terms: None };
    let old = old.encode().custom_created_at(Timestamp::from(world.now() / 1000 - 300));
    let old = old.sign_with_keys(&trader).unwrap();
    assert!(matches!(world.desk.submit(old.clone()).await.unwrap(), Answer::Ignored(_)));
    assert!(!accused(&world, &[old]).await);
}

#[tokio::test]
async fn a_refusal_of_another_kind_does_not_excuse_looking_away() {
    let world = open(Rules { offers_per_trader: 1, ..rules() }).await;
    let trader = Keys::generate();
    world.accepted(&world.offer(&trader, World::terms(Side::Sell, 10, 1))).await;
    let reason = world.refused(&world.offer(&trader, World::terms(Side::Sell, 10, 1))).await;
    assert!(reason.starts_with("rate-limited:"), "{reason}");
    assert!(accused(&world, &[world.command(&trader, Action::CancelAll(None))]).await);
}

#[tokio::test]
async fn an_exchange_that_was_down_has_not_looked_away() {
    let world = open(rules()).await;
    let sent = world.offer(&Keys::generate(), World::terms(Side::Sell, 10, 1));
    world.pass(600_000);
    let found = report(&world, &world.evidence(std::slice::from_ref(&sent)).await);
    assert!(found.is_clean(), "{:?}", found.findings);
    // It is back, and still reading what it has missed.
    world.accepted(&world.command(&Keys::generate(), Action::Alive(None))).await;
    let found = report(&world, &world.evidence(std::slice::from_ref(&sent)).await);
    assert!(found.is_clean(), "{:?}", found.findings);
    assert!(accused(&world, &[sent]).await);
}

#[tokio::test]
async fn an_event_of_the_end_of_time_is_owed_nothing() {
    let world = open(rules()).await;
    let end = Offer { d: "x".to_owned(), market: world.market(1), prev: None, terms: None };
    let end = end.encode().custom_created_at(Timestamp::from(u64::MAX - 5));
    assert!(!accused(&world, &[end.sign_with_keys(&Keys::generate()).unwrap()]).await);
}

#[tokio::test]
async fn a_checkpoint_that_nobody_can_read_is_found() {
    let (world, _) = business().await;
    let honest = world.checkpoints().await.remove(0);
    let lie = EventBuilder::new(honest.kind, "?").tags(honest.tags);
    let lie = lie.sign_with_keys(&world.exchange).unwrap();
    let (id, all) = (lie.id, world.records().into_iter().flatten());
    let found = report(&world, &evidence(&world, all.chain([lie])));
    assert!(matches!(first(&found).1, Lie::Malformed(it, _) if *it == id), "{:?}", found.findings);
}

#[tokio::test]
async fn a_checkpoint_may_leave_out_what_is_behind_500_levels_and_no_more() {
    let world = open(rules()).await;
    let makers = [(); 4].map(|()| Keys::generate());
    for price in 1..=600 {
        let maker = &makers[price as usize / 160];
        world.accepted(&world.offer(maker, World::terms(Side::Sell, price, 1))).await;
    }
    let mut honest = Checkpoint::decode(&world.checkpoints().await[0]).unwrap();
    honest.book.cut = true;
    for (levels, findings) in [(600, 0), (500, 0), (499, 1)] {
        honest.book.asks.truncate(levels);
        let checkpoint = honest.encode().sign_with_keys(&world.exchange).unwrap();
        let all = world.records().into_iter().flatten().chain([checkpoint]);
        let found = report(&world, &evidence(&world, all));
        assert_eq!(found.findings.len(), findings, "{levels}: {:?}", found.findings);
    }
}

#[tokio::test]
async fn a_restart_forgets_no_trade() {
    let (world, offers) = business().await;
    let before = world.last().await;
    let world = world.reopen().await;
    assert_eq!(world.last().await, before);
    assert!(before.is_some());
    let report = report(&world, &world.evidence(&offers).await);
    assert_eq!((report.findings, report.checkpoints), (Vec::new(), 1));
}

#[tokio::test]
async fn what_is_missing_of_the_last_two_minutes_is_held_against_nobody() {
    let world = open(rules()).await;
    let (seller, buyer) = (Keys::generate(), Keys::generate());
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 10, 1))).await;
    let taken = world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 10, 1))).await;
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 10, 1))).await;
    let all: Vec<Event> = world.records().into_iter().flatten().collect();
    let [entry, matched] = &world.record(taken.seq)[..] else { panic!("one match") };
    let made_up = Match { seq: taken.seq + 2, ..Match::decode(matched).unwrap() };
    let made_up = made_up.encode().unwrap().sign_with_keys(&world.exchange).unwrap();
    let without = |id| all.iter().filter(move |event| event.id != id).cloned();
    let cases = [
        (without(entry.id).collect::<Vec<_>>(), taken.seq, Lie::Skips),
        (without(matched.id).collect(), taken.seq, Lie::Withheld(matched.id)),
        (
            all.iter().cloned().chain([made_up.clone()]).collect(),
            taken.seq + 2,
            Lie::Invented(made_up.id),
        ),
    ];
    for (events, seq, lie) in cases {
        let mut evidence = evidence(&world, events);
        let young = report(&world, &evidence);
        assert!(young.is_clean(), "{:?}", young.findings);
        assert_eq!(young.entries, if lie == Lie::Skips { seq } else { taken.seq + 2 });
        evidence.seen_at = evidence.seen_at + 121_u64;
        assert_eq!(first(&report(&world, &evidence)), (seq, &lie));
    }
}

#[tokio::test]
async fn an_info_with_other_rules_than_the_journals_is_found() {
    let world = open(rules()).await;
    let info = ExchangeInfo {
        name: "House".to_owned(),
        relays: relays().to_vec(),
        pools: vec![world.pool.public_key()],
        rules: rules(),
    };
    let lie = ExchangeInfo { rules: Rules { maker_fee_ppm: 1, ..rules() }, ..info.clone() };
    let sign = |info: &ExchangeInfo, at: u64| {
        let event = info.encode().custom_created_at(Timestamp::from(at));
        event.sign_with_keys(&world.exchange).unwrap()
    };
    let now = world.now() / 1000;
    let found = |event: Event| {
        let all = world.records().into_iter().flatten().chain([event]);
        let mut evidence = evidence(&world, all);
        evidence.seen_at = evidence.seen_at + 600_u64;
        report(&world, &evidence).findings
    };
    assert_eq!(found(sign(&info, now)), []);
    // Of before the journal's rules.
    assert_eq!(found(sign(&lie, START / 1000 - 1)), []);
    let lie = sign(&lie, now);
    let id = lie.id;
    assert_eq!(found(lie).iter().map(|it| &it.lie).collect::<Vec<_>>(), [&Lie::Info(id)]);
}
