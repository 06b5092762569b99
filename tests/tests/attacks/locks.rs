//! What a buyer locks that is not what was agreed on.

use std::time::Duration;

use cdk::nuts::{Proofs, SecretKey};
use cdk::secret::Secret;
use hashpit_client::settle::End;
use hashpit_nips::eh06::{self, HtlcLock, Leg, Message};
use hashpit_tests::adversary::{Adversary, PREIMAGE, bits, hash, mint, spend};
use hashpit_tests::trade_house::TradeHouse;
use nostr_sdk::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::bench::{
    CALM, DUE, LOTS, PRICE, Victim, agree, claim, epoch, hand_over, locked, looks_good, nonce, pay,
    secrets,
};

/// A lock that is not as agreed on.
struct Flaw {
    name: &'static str,
    /// The secret instead of the agreed one.
    secret: fn(&HtlcLock, [u8; 32], &SecretKey) -> Secret,
    /// How the buyer spends it before the seller can, if that is the attack.
    theft: Option<Theft>,
}

struct Theft {
    /// With the buyer's signature.
    signs: bool,
    /// With the preimage; else with junk, as whoever takes back.
    shows: bool,
    /// After a short locktime, in seconds.
    waits: u64,
}

/// A secret with other fields than [`HtlcLock`] has.
fn raw(nonce: [u8; 32], data: &str, tags: serde_json::Value) -> Secret {
    Secret::new(
        json!(["HTLC", {"nonce": hex::encode(nonce), "data": data, "tags": tags}]).to_string(),
    )
}

fn strings(lock: &HtlcLock) -> (String, String, String, String) {
    let (to, refund) = (lock.to.to_string(), lock.refund.to_string());
    (hex::encode(lock.hash), to, refund, lock.locktime.to_string())
}

fn flaws() -> Vec<Flaw> {
    let flaw = |name, secret, theft| Flaw { name, secret, theft };
    vec![
        flaw(
            "another hash",
            |lock, nonce, _| HtlcLock { hash: [9; 32], ..lock.clone() }.secret(&nonce),
            None,
        ),
        flaw(
            "another key",
            |lock, nonce, own| HtlcLock { to: own.public_key(), ..lock.clone() }.secret(&nonce),
            Some(Theft { signs: true, shows: true, waits: 0 }),
        ),
        flaw(
            "a short locktime",
            |lock, nonce, _| {
                let locktime = Timestamp::now().as_secs() + 1;
                HtlcLock { locktime, ..lock.clone() }.secret(&nonce)
            },
            Some(Theft { signs: true, shows: false, waits: 3 }),
        ),
        flaw(
            "no refund, so that anyone spends after a short locktime",
            |lock, nonce, _| {
                let (hash, to, _, _) = strings(lock);
                let past = Timestamp::now().as_secs() - 5;
                let tags = json!([["pubkeys", to], ["locktime", past.to_string()]]);
                raw(nonce, &hash, tags)
            },
            Some(Theft { signs: false, shows: false, waits: 0 }),
        ),
        flaw(
            "no key, so that the preimage alone spends",
            |lock, nonce, _| {
                let (hash, _, refund, locktime) = strings(lock);
                raw(nonce, &hash, json!([["locktime", locktime], ["refund", refund]]))
            },
            Some(Theft { signs: false, shows: true, waits: 0 }),
        ),
        flaw(
            "two signatures wanted, of which the buyer has one",
            |lock, nonce, own| {
                let (hash, to, refund, locktime) = strings(lock);
                let own = own.public_key().to_string();
                let tags = json!([
                    ["pubkeys", to, own],
                    ["n_sigs", "2"],
                    ["locktime", locktime],
                    ["refund", refund]
                ]);
                raw(nonce, &hash, tags)
            },
            None,
        ),
        flaw(
            "another flag",
            |lock, nonce, _| HtlcLock { sig_all: !lock.sig_all, ..lock.clone() }.secret(&nonce),
            None,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn locks_that_rob_a_careless_seller_do_not_rob_ours() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    let amounts = eh06::amounts(DUE, &keyset).unwrap();
    for flaw in flaws() {
        // The careless: whatever the secret says, the tokens look good.
        let (seller, own) = (SecretKey::generate(), SecretKey::generate());
        let agreed = HtlcLock {
            hash: hash(&PREIMAGE),
            to: seller.public_key(),
            refund: own.public_key(),
            locktime: Timestamp::now().as_secs() + 600,
            sig_all: false,
        };
        let proofs = under(&house, &flaw, &agreed, &amounts, &own).await;
        assert!(looks_good(&house, &proofs).await, "{}", flaw.name);
        if let Some(Theft { signs, shows, waits }) = flaw.theft {
            sleep(Duration::from_secs(waits)).await;
            let (key, preimage) = (signs.then_some(&own), if shows { PREIMAGE } else { [0; 32] });
            let stolen = spend(&at, &keyset, &proofs, key, &preimage, false).await;
            assert!(stolen.is_ok(), "{}: {stolen:?}", flaw.name);
        }
        let claimed = spend(&at, &keyset, &proofs, Some(&seller), &PREIMAGE, false).await;
        assert!(claimed.is_err(), "{}: the careless seller has its sats", flaw.name);

        // Ours: the very same in a trade.
        let of = house.deal(LOTS, PRICE).await.unwrap();
        let deal = agree(&house, &mut adversary, of, |_| {}).await;
        let lock = deal.of_sats(&CALM);
        let proofs = under(&house, &flaw, &lock, &amounts, &deal.secret()).await;
        let message = Message::Locked { leg: Leg::Sats, proofs: hand_over(&proofs) };
        let to = deal.terms.seller().trader;
        adversary.say(&deal.key, to, of, &message).await.unwrap();
        let why = victim.void(of).await;
        assert!(why.contains("not locked as agreed"), "{}: {why}", flaw.name);
    }
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

async fn under(
    house: &TradeHouse,
    flaw: &Flaw,
    agreed: &HtlcLock,
    amounts: &[u64],
    own: &SecretKey,
) -> Proofs {
    let secrets = amounts.iter().enumerate();
    let secrets: Vec<_> = secrets
        .map(|(index, amount)| (*amount, (flaw.secret)(agreed, nonce(index), own)))
        .collect();
    locked(house, &secrets).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tokens_worth_less_than_they_look_are_refused() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    let tricks = ["twice", "shaved", "forged", "fewer", "undleqed"];
    for trick in tricks {
        let of = house.deal(LOTS, PRICE).await.unwrap();
        let deal = agree(&house, &mut adversary, of, |_| {}).await;
        let lock = deal.of_sats(&CALM);
        let amounts = eh06::amounts(DUE, &keyset).unwrap();
        let mut secrets = secrets(&lock, &amounts);
        if trick == "twice" {
            // One secret under all amounts: each is the mint's, and one can be spent.
            let one = secrets[0].1.clone();
            secrets.iter_mut().for_each(|(_, secret)| *secret = one.clone());
        }
        let mut proofs = locked(&house, &secrets).await;
        let mut handed = hand_over(&proofs);
        match trick {
            "twice" => {
                let first = handed[0].nonce;
                handed.iter_mut().for_each(|proof| proof.nonce = first);
                // It looks good to the careless, who then cannot claim it.
                assert!(looks_good(&house, &proofs).await);
                let key = SecretKey::generate();
                let claimed = spend(&at, &keyset, &proofs, Some(&key), &PREIMAGE, false).await;
                assert!(claimed.is_err());
            }
            // Another amount than the mint signed for, of which only DLEQ tells.
            "shaved" => {
                let last = handed.len() - 1;
                handed.swap(0, last);
                let (low, high) = (handed[last].amount, handed[0].amount);
                (handed[0].amount, handed[last].amount) = (low, high);
            }
            // A signature of nobody's, with somebody's proof.
            "forged" => {
                proofs[0].c = SecretKey::generate().public_key();
                handed[0].c = proofs[0].c;
                assert!(!looks_good(&house, &proofs).await);
            }
            "fewer" => drop(handed.pop()),
            _ => {
                let other = handed[1].dleq.clone();
                handed[0].dleq = other;
            }
        }
        let message = Message::Locked { leg: Leg::Sats, proofs: handed };
        let to = deal.terms.seller().trader;
        adversary.say(&deal.key, to, of, &message).await.unwrap();
        let why = victim.void(of).await;
        assert!(why.contains("not locked as agreed"), "{trick}: {why}");
    }
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_mint_takes_for_a_claim_is_the_buyers_to_pay() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start_dear(dir.path(), 500).await.unwrap();
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    // The careless take tokens of what is due, and get less for them.
    let (seller, own) = (SecretKey::generate(), SecretKey::generate());
    let lock = HtlcLock {
        hash: hash(&PREIMAGE),
        to: seller.public_key(),
        refund: own.public_key(),
        locktime: Timestamp::now().as_secs() + 600,
        sig_all: false,
    };
    let shaved = |lock: HtlcLock| {
        let amounts = bits(DUE).enumerate();
        amounts.map(|(index, amount)| (amount, lock.secret(&nonce(index)))).collect::<Vec<_>>()
    };
    let proofs = locked(&house, &shaved(lock)).await;
    assert!(looks_good(&house, &proofs).await);
    let got = spend(&at, &keyset, &proofs, Some(&seller), &PREIMAGE, false).await.unwrap();
    assert!(got.iter().map(|proof| u64::from(proof.amount)).sum::<u64>() < DUE);

    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let deal = agree(&house, &mut adversary, of, |_| {}).await;
    let proofs = locked(&house, &shaved(deal.of_sats(&CALM))).await;
    let message = Message::Locked { leg: Leg::Sats, proofs: hand_over(&proofs) };
    adversary.say(&deal.key, deal.terms.seller().trader, of, &message).await.unwrap();
    let why = victim.void(of).await;
    assert!(why.contains("net of the mint's fee"), "{why}");
    adversary.close().await;

    // An honest buyer pays the fee of the claim, too.
    let buyer = Victim::start(&house, &house.buyer, CALM).await;
    let of = house.deal(LOTS, PRICE).await.unwrap();
    assert_eq!(victim.end(of).await, End::Completed);
    assert_eq!(buyer.end(of).await, End::Completed);
    assert!(house.sats_of(&house.seller).await.unwrap() >= DUE);
    victim.stop().await;
    buyer.stop().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn other_keysets_than_the_mints_own_are_refused() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let (old, of_ehash) = (house.sats.keyset().unwrap().id, epoch(&house).await.keyset.id);
    // The mint has changed its keyset before anybody has looked.
    house.sats.rotate().await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    for (keyset, said) in [(of_ehash, "keyset"), (old, "signs no more")] {
        let of = house.deal(LOTS, PRICE).await.unwrap();
        let tweak = |mine: &mut eh06::Keys| {
            if let Some(lock) = &mut mine.lock {
                lock.keyset = keyset;
            }
        };
        agree(&house, &mut adversary, of, tweak).await;
        let why = victim.void(of).await;
        assert!(why.contains(said), "{why}");
    }
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mint_that_changes_its_keyset_owes_the_same() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let victim = Victim::start(&house, &house.seller, CALM).await;
    let mut adversary =
        Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let deal = agree(&house, &mut adversary, of, |_| {}).await;
    let proofs = pay(&house, &adversary, &deal).await;
    adversary.hears_lock(of, Leg::Ehash).await.unwrap();
    house.sats.rotate().await.unwrap();
    // The careless claim as they had planned to, for ever: until the buyer takes back.
    let careless = spend(&at, &keyset, &proofs, Some(&deal.secret()), &PREIMAGE, false).await;
    assert!(careless.is_err());
    claim(&house, &mut adversary, &deal).await;
    assert_eq!(victim.end(of).await, End::Completed);
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), DUE);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}
