//! An honest exchange passes; each kind of cheat is found, by its first sequence.

use hashpit_exchange::audit::{Evidence, Lie, Report, audit};
use hashpit_exchange::replay::Fault;
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::Side;
use hashpit_nips::eh05::{Checkpoint, Entry, Match, Outcome, Subject};
use hashpit_nips::{Lots, Millis, Price};
use nostr::{Event, Keys, Timestamp};

use crate::world::{START, World, relays, rules};

/// An exchange that has done some honest business; the traders' events.
async fn business() -> (World, Vec<Event>) {
    let world = World::open(rules());
    world.publish(1, EpochState::Open).await;
    let traders = [Keys::generate(), Keys::generate(), Keys::generate()];
    let mut events = Vec::new();
    for number in 0..30_u64 {
        world.pass(300);
        let side = if number % 2 == 0 { Side::Sell } else { Side::Buy };
        let terms = World::terms(side, 1_000 + number * 13 % 50, 1 + number as u32 % 4);
        events.push(world.offer(&traders[number as usize % 3], terms));
        world.submit(events.last().unwrap()).await;
    }
    world.pass(600_000);
    world.desk.digest().await.unwrap();
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
    // Those of the journal's first second may have come before it began.
    let later = offers.iter().filter(|offer| offer.created_at.as_secs() > START / 1000).count();
    assert_eq!((report.checkpoints, report.offers), (1, later as u64));
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
    for change in [0, 1] {
        let mut checkpoint = honest.clone();
        match change {
            0 => checkpoint.digest[0] ^= 1,
            _ => checkpoint.book.bids.clear(),
        }
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
    world.pass(600_000);
    let found = report(&world, &world.evidence(&offers).await);
    assert!(matches!(first(&found), (_, Lie::Unanswered(id)) if *id == ignored.id));

    // One relay alone may have shown it to nobody but the auditor.
    let mut once = world.evidence(&offers[..offers.len() - 1]).await;
    once.add(world.exchange.public_key(), &relays()[0], ignored);
    assert!(report(&world, &once).is_clean());
}
