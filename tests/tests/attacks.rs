//! Attacks on a trade: each first robs somebody careless, at real mints, and then
//! is tried against a settler.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdk::Amount;
use cdk::nuts::{Proof, Proofs, SecretKey};
use cdk::secret::Secret;
use cdk::wallet::MintConnector;
use hashpit_client::Wallet;
use hashpit_client::settle::{Clock, End, Evidence, Limits, Settler, Stage, Verdict, verify};
use hashpit_client::trade::Trader;
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh04::Side;
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::{self, HtlcLock, Leg, LockedProof, Message, Timing};
use hashpit_nips::{HashUnits, Lots, Millis, Price, seed_file};
use hashpit_tests::adversary::{Adversary, Deal, PREIMAGE, hash, mint, spend, swap, unspent};
use hashpit_tests::mint_proxy::{MintProxy, Trick};
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::{Event, EventId, Keys, PublicKey, Timestamp};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Deadlines that a busy machine keeps, and locktimes that no test waits for.
const CALM: Timing = Timing {
    agree: 20,
    sats: 40,
    ehash: 60,
    ehash_locktime: 120,
    sats_locktime: 240,
    margin: 30,
    skew: 60,
};
/// Locktimes that a test waits for.
const SHORT: Timing = Timing {
    agree: 10,
    sats: 14,
    ehash: 18,
    ehash_locktime: 30,
    sats_locktime: 40,
    margin: 8,
    skew: 60,
};
const LOTS: u32 = 100;
const PRICE: u64 = 12_345;
/// What those come to.
const DUE: u64 = 1_235;
const PATIENCE: Duration = Duration::from_secs(90);

/// A settler of a wallet that runs.
struct Victim {
    wallet: Wallet,
    stop: CancellationToken,
    task: JoinHandle<Result<(), hashpit_client::settle::SettleError>>,
}

impl Victim {
    async fn start(house: &TradeHouse, wallet: &Wallet, timing: Timing) -> Self {
        let limits = Limits { mints: vec![house.sats.url.clone()], ..Limits::default() };
        Self::start_with(house, wallet, timing, limits, Clock::default()).await
    }

    async fn start_with(
        house: &TradeHouse,
        wallet: &Wallet,
        timing: Timing,
        limits: Limits,
        clock: Clock,
    ) -> Self {
        let exchange = house.connect().await.unwrap();
        let settler = Settler::open(wallet.clone(), exchange, limits).await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(settler.with_timing(timing).with_clock(clock).run(stop.clone()));
        Self { wallet: wallet.clone(), stop, task }
    }

    /// How a trade ends.
    async fn end(&self, of: EventId) -> End {
        let over = async {
            loop {
                let trade = self.wallet.trade(of).await.unwrap();
                if let Some(Stage::Over { end }) = trade.map(|trade| trade.stage) {
                    return end;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, over).await.unwrap()
    }

    /// Why a trade in which nothing of ours was locked has ended.
    async fn void(&self, of: EventId) -> String {
        match self.end(of).await {
            End::Void { why } => why,
            end => panic!("{end:?}"),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn epoch(house: &TradeHouse) -> EpochKeyset {
    let exchange = house.connect().await.unwrap();
    let epoch = exchange.keyset(house.pool.epoch.id).await.unwrap().unwrap();
    exchange.close().await;
    epoch
}

/// The match's event, as the relay has it.
async fn matched(house: &TradeHouse, of: EventId) -> (Event, Match) {
    let onlooker =
        hashpit_tests::exchange_house::Onlooker::connect(&Keys::generate(), &house.relay.url)
            .await
            .unwrap();
    let event = onlooker.sees(nostr_sdk::Filter::new().id(of), |_| true).await.unwrap();
    let terms = Match::decode(&event).unwrap();
    (event, terms)
}

/// Has the two agree as far as step 1, the adversary as the buyer.
async fn agree(
    house: &TradeHouse,
    adversary: &mut Adversary,
    of: EventId,
    tweak: impl FnOnce(&mut eh06::Keys),
) -> Deal {
    let (_, terms) = matched(house, of).await;
    let theirs = adversary.hears_keys(of).await.unwrap();
    let (key, keyset) = (Keys::generate(), house.sats.keyset().unwrap());
    let mut mine = adversary.buyers_keys(&terms, &theirs, &key, &house.sats.url, &keyset);
    tweak(&mut mine);
    let seller = terms.seller().trader;
    let message = Message::Keys(Box::new(mine.clone()));
    adversary.say(&adversary.keys, seller, of, &message).await.unwrap();
    Deal { of, terms, mine, theirs, key }
}

/// Proofs of the sat mint under given secrets, one for each amount.
async fn locked(house: &TradeHouse, wanted: &[(u64, Secret)]) -> Proofs {
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    let due: u64 = wanted.iter().map(|(amount, _)| *amount).sum();
    let inputs = house.sats.proofs(due).await.unwrap();
    swap(&at, &keyset, inputs, wanted).await.unwrap()
}

fn nonce(index: usize) -> [u8; 32] {
    hash(format!("nonce {index}").as_bytes())
}

fn hand_over(proofs: &Proofs) -> Vec<LockedProof> {
    let handed = proofs.iter().enumerate().map(|(index, proof)| (nonce(index), proof));
    handed.map(|(nonce, proof)| LockedProof::hand_over(proof, nonce).unwrap()).collect()
}

/// What somebody careless asks of tokens before locking the other leg: the mint
/// signed them, they are worth it, and nobody has spent them.
async fn looks_good(house: &TradeHouse, proofs: &Proofs) -> bool {
    let keyset = house.sats.keyset().unwrap();
    let signed = |proof: &Proof| {
        let key = keyset.keys.amount_key(proof.amount).unwrap();
        proof.verify_dleq(key).is_ok()
    };
    let worth: u64 = proofs.iter().map(|proof| u64::from(proof.amount)).sum();
    let unspent = unspent(&mint(&house.sats.url), proofs).await.unwrap_or(true);
    proofs.iter().all(signed) && worth >= DUE && unspent
}

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
        let mut secrets: Vec<_> = (amounts.iter().enumerate())
            .map(|(index, amount)| (*amount, lock.secret(&nonce(index))))
            .collect();
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
    let lock = deal.of_sats(&CALM);
    let amounts = eh06::amounts(DUE, &keyset).unwrap();
    let secrets: Vec<_> = (amounts.iter().enumerate())
        .map(|(index, amount)| (*amount, lock.secret(&nonce(index))))
        .collect();
    let proofs = locked(&house, &secrets).await;
    let message = Message::Locked { leg: Leg::Sats, proofs: hand_over(&proofs) };
    // Other keys' words: an abort, the leg told by a stranger and by the old trade's key.
    for from in [&stranger, &old.key] {
        adversary.say(from, seller, of, &abort).await.unwrap();
        adversary.say(from, seller, of, &message).await.unwrap();
    }
    adversary.say(&deal.key, seller, of, &message).await.unwrap();
    let ehash = adversary.hears_lock(of, Leg::Ehash).await.unwrap();
    let opened = deal.of_ehash(&CALM).open(u64::from(LOTS), &epoch(&house).await.keyset, &ehash);
    let opened = opened.expect("the ehash is locked to the buyer's first key");
    // A false preimage is no claim.
    let junk = Message::Claimed { preimage: [0; 32] };
    adversary.say(&deal.key, seller, of, &junk).await.unwrap();
    let pool = epoch(&house).await;
    spend(&mint(&pool.mint), &pool.keyset, &opened, Some(&deal.secret()), &PREIMAGE, false)
        .await
        .unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_is_off_is_noticed_even_if_the_other_flatters_it() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let limits = || Limits { mints: vec![house.sats.url.clone()], ..Limits::default() };
    // The exchange is in league: it dates the match by the victim's clock, 70 s late.
    let slow = Clock { ahead: -70 };
    let timing = Timing { agree: 50, sats: 60, ehash: 70, ..CALM };
    let victim = Victim::start_with(&house, &house.seller, timing, limits(), slow).await;
    house.offer(&house.seller, Side::Sell, 2 * LOTS, PRICE).await.unwrap();
    let of = house.offer(&house.buyer, Side::Buy, LOTS, PRICE).await.unwrap()[0];
    let why = victim.void(of).await;
    assert!(why.contains("clock"), "dated in the victim's future: {why}");
    let adversary = Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    let forged = forge(&house, dir.path(), of, |terms| {
        terms.at = Millis::new((Timestamp::now().as_secs() - 70) * 1000);
    });
    let forged = forged.await;
    adversary.publish(&forged).await.unwrap();
    let why = victim.void(forged.id).await;
    assert!(why.contains("mint") && why.contains("clock"), "{why}");
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

/// A match that follows from nothing, signed by the exchange's own key.
async fn forge(
    house: &TradeHouse,
    dir: &Path,
    of: EventId,
    tweak: impl FnOnce(&mut Match),
) -> Event {
    let (_, mut terms) = matched(house, of).await;
    tweak(&mut terms);
    let path = dir.join("exchange/exchange.seed");
    let exchange = seed_file::read_or_create(&path, || [0; 16]).unwrap().nostr_keys(0);
    let event = terms.encode().unwrap().sign_with_keys(&exchange).unwrap();
    // To the careless, a match that the exchange signed is a match.
    assert_eq!((event.pubkey, Match::decode(&event).unwrap()), (house.exchange.key, terms));
    event
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exchange_with_its_key_and_journal_gains_nothing() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let timing = Timing { agree: 8, ..CALM };
    let victim = Victim::start(&house, &house.seller, timing).await;
    let adversary = Adversary::connect(house.buyer.trade_keys(), &house.relay.url).await.unwrap();
    // A true match of an offer of 100 lots, which its buyer lets lapse.
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let why = victim.void(of).await;
    assert!(why.contains("not told its keys"), "{why}");
    let now = || Millis::new(Timestamp::now().as_secs() * 1000);
    let thief = Keys::generate().public_key();
    type Tweak<'a> = Box<dyn Fn(&mut Match) + 'a>;
    let forgeries: Vec<(Tweak, &str)> = vec![
        (Box::new(|it| it.price = Price::new(1)), "a worse price"),
        (Box::new(|it| it.lots = Lots::new(LOTS + 1)), "more lots"),
        (Box::new(|it| it.units = HashUnits::new(it.units.get() * 5)), "units"),
        (Box::new(|it| it.at = Millis::new(it.at.get() + 120_000)), "future"),
        // The same offer once more, for another buyer.
        (Box::new(move |it| swap_buyer(it, thief)), "with its other matches more lots"),
        // An offer that was never made.
        (
            Box::new(|it| {
                let maker = it.taker_side == Side::Buy;
                let own = if maker { &mut it.maker } else { &mut it.taker };
                own.offer = EventId::from_byte_array([3; 32]);
            }),
            "does not show our offer",
        ),
        // The victim's own offer, and the victim on the other side.
        (
            Box::new(|it| {
                it.taker_side = match it.taker_side {
                    Side::Buy => Side::Sell,
                    Side::Sell => Side::Buy,
                };
            }),
            "another side",
        ),
    ];
    for (tweak, said) in forgeries {
        let forged = forge(&house, dir.path(), of, |it| {
            it.at = now();
            tweak(it);
        });
        let forged = forged.await;
        adversary.publish(&forged).await.unwrap();
        let why = victim.void(forged.id).await;
        assert!(why.contains(said), "{said}: {why}");
    }

    // An offer that was canceled.
    let keys = house.seller.trade_keys();
    house.offer(&house.seller, Side::Sell, 7, PRICE).await.unwrap();
    let mut trader = Trader::connect(keys, house.connect().await.unwrap()).await.unwrap();
    let offers = trader.offers().await.unwrap();
    let standing = offers.iter().find(|it| it.standing == hashpit_client::trade::Standing::Open);
    let standing = standing.unwrap().clone();
    trader.cancel(&standing).await.unwrap();
    trader.close().await;
    let forged = forge(&house, dir.path(), of, |it| {
        it.at = now();
        it.seq += 1_000;
        it.lots = Lots::new(7);
        it.units = HashUnits::new(7);
        let own = if it.taker_side == Side::Buy { &mut it.maker } else { &mut it.taker };
        own.offer = standing.event;
    });
    let forged = forged.await;
    adversary.publish(&forged).await.unwrap();
    let why = victim.void(forged.id).await;
    assert!(why.contains("replaced or canceled"), "{why}");

    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

fn swap_buyer(terms: &mut Match, buyer: PublicKey) {
    let leg = if terms.taker_side == Side::Buy { &mut terms.taker } else { &mut terms.maker };
    leg.trader = buyer;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_preimage_is_never_shown_late_even_if_the_mint_was_down() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let pool = epoch(&house).await;
    let (at, keyset) = (mint(&pool.mint), &pool.keyset);
    let token = house.seller.send(u64::from(LOTS), None).await.unwrap();
    let infos = at.get_mint_keysets().await.unwrap().keysets;
    let mut mined = token.proofs(&infos).unwrap();

    // The careless buyer claims when the mint is back, past the locktime: the ehash was
    // taken back a moment before, and the refused claim has shown the preimage.
    let (seller, buyer) = (SecretKey::generate(), SecretKey::generate());
    let lock = HtlcLock {
        hash: hash(&PREIMAGE),
        to: buyer.public_key(),
        refund: seller.public_key(),
        locktime: Timestamp::now().as_secs() + 1,
        sig_all: false,
    };
    let one = mined.pop().unwrap();
    let wanted = [(u64::from(one.amount), lock.secret(&nonce(0)))];
    let locked = swap(&at, keyset, vec![one], &wanted).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    mined.extend(spend(&at, keyset, &locked, Some(&seller), &[0; 32], false).await.unwrap());
    assert!(spend(&at, keyset, &locked, Some(&buyer), &PREIMAGE, false).await.is_err());
    let shown = |preimage: &[u8]| {
        let preimage = hex::encode(preimage);
        proxy.seen("/swap").into_iter().filter(move |seen| seen.body.contains(&preimage)).count()
    };
    assert!(shown(&PREIMAGE) > 0, "whoever is in league with the mint claims the sats");

    // Ours, in a trade whose mint goes down before the claim.
    let victim = Victim::start(&house, &house.buyer, SHORT).await;
    let mut adversary =
        Adversary::connect(house.seller.trade_keys(), &house.relay.url).await.unwrap();
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let (_, terms) = matched(&house, of).await;
    let theirs = adversary.hears_keys(of).await.unwrap();
    let key = Keys::generate();
    let mine = adversary.sellers_keys(&theirs, &key, &pool);
    let message = Message::Keys(Box::new(mine.clone()));
    let to = terms.buyer().trader;
    adversary.say(&adversary.keys, to, of, &message).await.unwrap();
    adversary.hears_lock(of, Leg::Sats).await.unwrap();
    let deal = Deal { of, terms, mine, theirs, key };
    let lock = deal.of_ehash(&SHORT);
    let amounts = eh06::amounts(u64::from(LOTS), keyset).unwrap();
    let wanted: Vec<_> = (amounts.iter().enumerate())
        .map(|(index, amount)| (*amount, lock.secret(&nonce(index))))
        .collect();
    let locked = swap(&at, keyset, mined, &wanted).await.unwrap();
    let before = proxy.seen("/swap").len();
    proxy.play("/swap", Trick::Stop);
    let message = Message::Locked { leg: Leg::Ehash, proofs: hand_over(&locked) };
    adversary.say(&deal.key, to, of, &message).await.unwrap();
    let last = SHORT.claim_until(deal.terms.at);
    while Timestamp::now().as_secs() <= last {
        sleep(Duration::from_millis(200)).await;
    }
    let tries = proxy.seen("/swap").len();
    assert!(tries > before, "the claim was tried in time");
    proxy.behave();
    let end = victim.end(of).await;
    assert!(matches!(end, End::Refunded { .. }), "{end:?}");
    let late = proxy.seen("/swap");
    let late = late.iter().skip(before).filter(|seen| seen.at.get() / 1000 > last + 1);
    assert_eq!(late.count(), 0, "a claim was sent later than {last}");
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ehash_that_can_be_melted_is_not_traded() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let unit = house.pool.epoch.id.to_string();
    proxy.play(
        "/info",
        Trick::Edit(Arc::new(move |info| {
            let mut info: serde_json::Value = serde_json::from_str(&info).unwrap();
            info["nuts"]["5"] =
                json!({"methods": [{"method": "bolt11", "unit": unit}], "disabled": false});
            info.to_string()
        })),
    );
    let victim = Victim::start(&house, &house.buyer, Timing { agree: 8, ..CALM }).await;
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let why = victim.void(of).await;
    assert!(why.contains("melted"), "{why}");
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    victim.stop().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mint_that_keeps_what_it_owes_is_shown_to_do_so() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    house.sats.tell_version().await.unwrap();
    let proxy = MintProxy::start().await.unwrap();
    proxy.leads_to(&house.sats.url.to_string()).unwrap();
    // The seller reaches the mint by a way on which signatures are lost.
    let limits = Limits { mints: vec![proxy.url.parse().unwrap()], ..Limits::default() };
    let seller = Victim::start_with(&house, &house.seller, CALM, limits, Clock::default()).await;
    let buyer = Victim::start(&house, &house.buyer, CALM).await;
    proxy.play("/swap", Trick::Lose);
    proxy.play("/restore", Trick::Answer(r#"{"outputs":[],"signatures":[]}"#));
    let of = house.deal(LOTS, PRICE).await.unwrap();
    assert_eq!(buyer.end(of).await, End::Completed);
    let path = Evidence::directory(house.seller.dir()).join(format!("{}-claim.json", of.to_hex()));
    let written = async {
        while !path.exists() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, written).await.unwrap();
    let evidence: Evidence = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(verify(&evidence).await, Verdict::Withheld);
    // A state of SPENT alone would show as much of a mint that has kept nothing.
    let mut slander = evidence.clone();
    let outputs = slander.request.outputs_mut();
    outputs[0].blinded_secret = SecretKey::generate().public_key();
    assert!(matches!(verify(&slander).await, Verdict::Unfounded(_)));
    let mut dear = evidence.clone();
    dear.tokens[0].amount = Amount::from(1 << 19);
    assert!(matches!(verify(&dear).await, Verdict::Unfounded(_)));
    // The mint clears itself by telling, and the seller has its sats.
    proxy.behave();
    assert_eq!(verify(&evidence).await, Verdict::Returned);
    assert_eq!(seller.end(of).await, End::Completed);
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), DUE);
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get() - u64::from(LOTS));
    seller.stop().await;
    buyer.stop().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whether_a_mint_knows_sig_all_is_tried_out() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let mut adversary =
        Adversary::connect(house.seller.trade_keys(), &house.relay.url).await.unwrap();
    let asks = async |adversary: &mut Adversary| {
        let of = house.deal(LOTS, PRICE).await.unwrap();
        adversary.hears_keys(of).await.unwrap().lock.unwrap().sig_all
    };
    // The mint tells no maker; what the buyer has there shows that it knows SIG_ALL.
    let victim = Victim::start(&house, &house.buyer, CALM).await;
    assert!(asks(&mut adversary).await);
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS, "and nothing was lost");
    victim.stop().await;

    // Behind a proxy the same mint takes no signature over a whole swap: it refuses the
    // altered claim by itself, and the other is refused for it.
    let proxy = MintProxy::start().await.unwrap();
    proxy.leads_to(&house.sats.url.to_string()).unwrap();
    let url: cdk::mint_url::MintUrl = proxy.url.parse().unwrap();
    let token = cdk::nuts::Token::new(
        url.clone(),
        house.sats.proofs(5_000).await.unwrap(),
        None,
        cdk::nuts::CurrencyUnit::Sat,
    );
    let poor = other_wallet(&dir.path().join("poor")).await;
    poor.receive(&token.to_string()).await.unwrap();
    let swaps = proxy.seen("/swap").len();
    // The coin's lock and the altered claim pass; what follows does not.
    proxy.play("/swap", Trick::RefuseAfter(swaps + 2));
    let limits = Limits { mints: vec![url], ..Limits::default() };
    let victim = Victim::start_with(&house, &poor, CALM, limits, Clock::default()).await;
    house.offer(&house.seller, Side::Sell, LOTS, PRICE).await.unwrap();
    let met = house.offer(&poor, Side::Buy, LOTS, PRICE).await.unwrap();
    let told = adversary.hears_keys(met[0]).await.unwrap();
    assert!(!told.lock.unwrap().sig_all, "it falls back");
    // A coin of one sat is locked until its locktime, and the rest is there.
    assert_eq!(house.sats_of(&poor).await.unwrap(), 4_999);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

async fn other_wallet(dir: &Path) -> Wallet {
    Wallet::open_or_create(dir, || [77; 16]).await.unwrap()
}
