//! What is said of a trade, by whom it may be.

use hashpit_client::settle::End;
use hashpit_nips::eh06::{self, Leg, Message};
use hashpit_tests::adversary::{Adversary, Deal, mint, unspent};
use hashpit_tests::trade_house::TradeHouse;
use nostr_sdk::{Keys, PublicKey};
use tempfile::TempDir;

use crate::bench::{CALM, DUE, LOTS, PRICE, Victim, agree, claim, matched, pay};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_others_say_of_a_trade_counts_for_nothing() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));

    // A trade that is given up after step 1: what was said in it is said again later.
    let first = house.deal(LOTS, PRICE).await.unwrap();
    let old = agree(&house, &mut adversary, first, |_| {}).await;
    let abort = Message::Abort { reason: "no".to_owned() };
    adversary.say(&old.key, old.terms.seller().trader, first, &abort).await.unwrap();
    victim.void(first).await;

    let of = house.deal(LOTS, PRICE).await.unwrap();
    let (_, terms) = matched(&house, of).await;
    let (seller, stranger) = (terms.seller().trader, Keys::generate());
    let theirs = adversary.hears_keys(of).await.unwrap();
    let key = Keys::generate();
    let honest = adversary.buyers_keys(&terms, &theirs, &key, &house.sats.url, &keyset);
    // A stranger in the buyer's name: all that it needs is public. Who reads messages
    // without their seals locks the ehash to the stranger.
    let usurped =
        Message::Keys(Box::new(eh06::Keys { key: stranger.public_key(), ..honest.clone() }));
    let rumor = usurped.rumor(of, adversary.keys.public_key());
    let (named, read) = Message::read(&rumor).unwrap();
    assert_eq!((named, &read), (of, &usurped), "to the careless it is the buyer's word");
    adversary.say_rumor(&stranger, seller, rumor).await.unwrap();
    // A key that is no point: who locks to it locks to nobody, or breaks down.
    let nobody = PublicKey::from_hex(&"ff".repeat(32)).unwrap();
    let mut broken = usurped.rumor(of, adversary.keys.public_key());
    broken.content = broken.content.replace(&stranger.public_key().to_hex(), &nobody.to_hex());
    broken.id = None;
    adversary.say_rumor(&adversary.keys, seller, broken).await.unwrap();
    // A flood of a stranger's.
    for _ in 0..40 {
        adversary.say(&stranger, seller, of, &abort).await.unwrap();
    }
    // What counts, and then another that contradicts it.
    let message = Message::Keys(Box::new(honest.clone()));
    adversary.say(&adversary.keys, seller, of, &message).await.unwrap();
    adversary.say(&adversary.keys, seller, of, &usurped).await.unwrap();
    let deal = Deal { of, terms, mine: honest, theirs, key };
    // Other keys' words: an abort by a stranger and by the old trade's key.
    for from in [&stranger, &old.key] {
        adversary.say(from, seller, of, &abort).await.unwrap();
    }
    let proofs = pay(&house, &adversary, &deal).await;
    adversary.hears_lock(of, Leg::Ehash).await.unwrap();
    // A false preimage is no claim.
    let junk = Message::Claimed { preimage: [0; 32] };
    adversary.say(&deal.key, seller, of, &junk).await.unwrap();
    // Claimed under the buyer's first key: what came after it counted for nothing.
    claim(&house, &mut adversary, &deal).await;
    assert_eq!(victim.end(of).await, End::Completed);
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), DUE);
    assert!(!unspent(&at, &proofs).await.unwrap());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_that_do_not_fit_the_trade_end_it() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    type Tweak = fn(&mut eh06::Keys, &eh06::Keys);
    let tweaks: [(Tweak, &str); 4] = [
        (|mine, _| mine.terms = [7; 32], "other terms"),
        (|mine, theirs| mine.key = theirs.key, "our own key"),
        (|mine, _| mine.clock -= 90, "clock"),
        (|mine, _| mine.pays = None, "wrong side"),
    ];
    for (tweak, said) in tweaks {
        let of = house.deal(LOTS, PRICE).await.unwrap();
        let theirs = adversary.hears_keys(of).await.unwrap();
        agree(&house, &mut adversary, of, |mine| tweak(mine, &theirs)).await;
        let why = victim.void(of).await;
        assert!(why.contains(said), "{why}");
    }
    // Its own words back: the settler's keys, as if they were the buyer's.
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let theirs = adversary.hears_keys(of).await.unwrap();
    let echo = Message::Keys(Box::new(theirs));
    let seller = house.seller.trade_keys().public_key();
    adversary.say(&adversary.keys, seller, of, &echo).await.unwrap();
    assert!(victim.void(of).await.contains("our own key"));
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}
