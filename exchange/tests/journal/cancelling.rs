//! Offers that their traders take back, by any way that Nostr has, also while a
//! commit waits.

use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{Action, Side};
use hashpit_nips::eh05::Outcome;
use nostr::{Event, EventBuilder, Keys, Kind, Tag, Timestamp};

use crate::world::{World, rules};

async fn house() -> (World, Keys, Keys) {
    let world = World::open(rules());
    world.publish(1, EpochState::Open).await;
    (world, Keys::generate(), Keys::generate())
}

/// A NIP-09 event by these tags.
fn deletion(world: &World, trader: &Keys, tags: &[(&str, String)]) -> Event {
    let tags = tags.iter().map(|(name, value)| Tag::parse([*name, value.as_str()]).unwrap());
    let event = EventBuilder::new(Kind::EventDeletion, "").tags(tags);
    let now = Timestamp::from(world.now() / 1000);
    event.custom_created_at(now).sign_with_keys(trader).unwrap()
}

fn address(trader: &Keys, d: &str) -> (&'static str, String) {
    ("a", format!("38480:{}:{d}", trader.public_key()))
}

async fn commit(world: &World, trader: &Keys, offer: &Event) {
    let action = Action::Commit { epoch: world.epoch(1), offer: offer.id };
    world.accepted(&world.command(trader, action)).await;
}

async fn asks(world: &World) -> usize {
    world.desk.snapshots(None).await.unwrap().remove(0).book.asks.len()
}

#[tokio::test]
async fn an_offer_named_twice_is_cancelled_and_the_journal_says_so() {
    let (world, trader, _) = house().await;
    let offer = world.offer_at(&trader, "one", None, Some(World::terms(Side::Sell, 10, 1)));
    world.accepted(&offer).await;
    let tags = [("e", offer.id.to_hex()), address(&trader, "one"), address(&trader, "none")];
    world.accepted(&deletion(&world, &trader, &tags)).await;
    assert_eq!(asks(&world).await, 0);
}

#[tokio::test]
async fn what_stands_goes_at_once_while_a_commit_waits() {
    let (world, maker, taker) = house().await;
    world
        .accepted(&world.offer_at(&maker, "one", None, Some(World::terms(Side::Sell, 10, 1))))
        .await;
    let hidden = world.offer(&taker, World::terms(Side::Buy, 10, 1));
    commit(&world, &taker, &hidden).await;
    world.accepted(&world.offer_at(&maker, "one", None, None)).await;
    assert_eq!(asks(&world).await, 0);
    let shown = world.accepted(&hidden).await;
    assert_eq!(world.record(shown.seq).len(), 1, "nothing is left to match");
}

#[tokio::test]
async fn several_that_wait_are_deleted_in_their_turn_and_the_desk_goes_on() {
    let (world, maker, taker) = house().await;
    let hidden = world.offer(&taker, World::terms(Side::Sell, 50, 1));
    commit(&world, &taker, &hidden).await;
    let mut tags = Vec::new();
    for d in ["one", "two"] {
        let offer = world.offer_at(&maker, d, None, Some(World::terms(Side::Sell, 10, 1)));
        assert_eq!(world.submit(&offer).await.outcome, Outcome::Deferred);
        tags.extend([address(&maker, d), ("e", offer.id.to_hex())]);
    }
    let deletion = deletion(&world, &maker, &tags);
    assert_eq!(world.submit(&deletion).await.outcome, Outcome::Deferred);
    let cancel_all = world.command(&maker, Action::CancelAll(None));
    assert_eq!(world.submit(&cancel_all).await.outcome, Outcome::Deferred);
    world.pass(3_000);
    assert_eq!(asks(&world).await, 0);
    let digest = world.desk.digest().await.unwrap();
    let world = world.reopen().await;
    assert_eq!(world.desk.digest().await.unwrap(), digest);
}

#[tokio::test]
async fn a_reveal_is_told_as_what_it_was_whatever_fails_behind_it() {
    let (world, maker, taker) = house().await;
    let first = world.offer_at(&maker, "one", None, Some(World::terms(Side::Sell, 10, 1)));
    world.accepted(&first).await;
    let hidden = world.offer(&taker, World::terms(Side::Buy, 10, 1));
    commit(&world, &taker, &hidden).await;
    let terms = Some(World::terms(Side::Sell, 11, 1));
    let amended = world.offer_at(&maker, "one", Some(first.id), terms);
    assert_eq!(world.submit(&amended).await.outcome, Outcome::Deferred);
    let shown = world.accepted(&hidden).await;
    assert_eq!(world.record(shown.seq).len(), 2, "the entry and its match");
    let [hashpit_nips::eh05::Effect::Late(of, Outcome::Refused(_))] = &shown.effects[..] else {
        panic!("{:?}", shown.effects)
    };
    assert_eq!(*of, amended.id, "what it would have amended was filled");
}

#[tokio::test]
async fn an_amendment_that_lets_more_match_does_so() {
    let (world, maker, taker) = house().await;
    let mut large = World::terms(Side::Sell, 10, 5);
    large.min = large.lots;
    let sell = world.offer_at(&maker, "one", None, Some(large));
    world.accepted(&sell).await;
    world.accepted(&world.offer(&taker, World::terms(Side::Buy, 10, 3))).await;
    let any = Some(World::terms(Side::Sell, 10, 5));
    let entry = world.accepted(&world.offer_at(&maker, "one", Some(sell.id), any)).await;
    assert_eq!(world.record(entry.seq).len(), 2, "the book would stand crossed");
}
