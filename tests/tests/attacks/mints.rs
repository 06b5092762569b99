//! What a mint does, or who holds the way to it; and what must not be shown late.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cdk::Amount;
use cdk::mint_url::MintUrl;
use cdk::nuts::{CheckStateRequest, CurrencyUnit, KeySet, Proofs, ProofsMethods, SecretKey, Token};
use cdk::wallet::{HttpClient, MintConnector};
use hashpit_client::Wallet;
use hashpit_client::settle::{Clock, End, Evidence, Limits, Stage, Verdict, verify};
use hashpit_nips::eh04::Side;
use hashpit_nips::eh06::{self, HtlcLock, Leg, Message, Timing};
use hashpit_tests::adversary::{Adversary, Deal, PREIMAGE, hash, mint, spend, swap};
use hashpit_tests::mint_proxy::{MintProxy, Trick};
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::{EventId, Keys, Timestamp};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::bench::{
    CALM, DUE, LOTS, PATIENCE, PRICE, SHORT, Victim, epoch, hand_over, matched, secrets,
};

/// Ehash of the seller's, out of its wallet.
async fn mined(house: &TradeHouse, at: &HttpClient) -> Proofs {
    let token = house.seller.send(u64::from(LOTS), None).await.unwrap();
    token.proofs(&at.get_mint_keysets().await.unwrap().keysets).unwrap()
}

/// Sells as far as step 3: the ehash is locked, and not told of.
async fn sell(
    house: &TradeHouse,
    adversary: &mut Adversary,
    of: EventId,
    ehash: Proofs,
) -> (Deal, Proofs) {
    let (pool, (_, terms)) = (epoch(house).await, matched(house, of).await);
    let (theirs, key) = (adversary.hears_keys(of).await.unwrap(), Keys::generate());
    let mine = adversary.sellers_keys(&theirs, &key, &pool);
    let (message, to) = (Message::Keys(Box::new(mine.clone())), terms.buyer().trader);
    adversary.say(&adversary.keys, to, of, &message).await.unwrap();
    adversary.hears_lock(of, Leg::Sats).await.unwrap();
    let deal = Deal { of, terms, mine, theirs, key };
    let amounts = eh06::amounts(u64::from(LOTS), &pool.keyset).unwrap();
    let wanted = secrets(&deal.of_ehash(&SHORT), &amounts);
    let locked = swap(&mint(&pool.mint), &pool.keyset, ehash, &wanted).await.unwrap();
    (deal, locked)
}

/// Tells of the ehash while the mint is away, until it is too late to claim it.
async fn tell_in_vain(adversary: &Adversary, proxy: &MintProxy, deal: &Deal, locked: &Proofs) {
    proxy.play("/swap", Trick::Stop);
    let before = proxy.seen("/swap").len();
    let message = Message::Locked { leg: Leg::Ehash, proofs: hand_over(locked) };
    adversary.say(&deal.key, deal.terms.buyer().trader, deal.of, &message).await.unwrap();
    while Timestamp::now().as_secs() <= SHORT.claim_until(deal.terms.at) {
        sleep(Duration::from_millis(200)).await;
    }
    assert!(proxy.seen("/swap").len() > before, "the claim was tried in time");
    proxy.behave();
}

/// Claims past the locktime, as the careless do when the mint is back: the ehash was
/// taken back a moment before, and the refused claim has shown the preimage.
async fn claim_late(at: &HttpClient, keyset: &KeySet, ehash: Proofs) -> Proofs {
    let (seller, buyer) = (SecretKey::generate(), SecretKey::generate());
    let lock = HtlcLock {
        hash: hash(&PREIMAGE),
        to: buyer.public_key(),
        refund: seller.public_key(),
        locktime: Timestamp::now().as_secs() + 1,
        sig_all: false,
    };
    let amounts: Vec<u64> = ehash.iter().map(|proof| proof.amount.into()).collect();
    let locked = swap(at, keyset, ehash, &secrets(&lock, &amounts)).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    let back = spend(at, keyset, &locked, Some(&seller), &[0; 32], false).await.unwrap();
    assert!(spend(at, keyset, &locked, Some(&buyer), &PREIMAGE, false).await.is_err());
    back
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_preimage_is_never_shown_late_even_if_the_mint_was_down() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let pool = epoch(&house).await;
    let at = mint(&pool.mint);
    let ehash = claim_late(&at, &pool.keyset, mined(&house, &at).await).await;
    let preimage = hex::encode(PREIMAGE);
    let shown = proxy.seen("/swap").iter().any(|seen| seen.body.contains(&preimage));
    assert!(shown, "whoever is in league with the mint claims the sats");

    let victim = Victim::start(&house, &house.buyer, SHORT).await;
    let mut adversary =
        Adversary::connect(house.seller.trade_keys(), &house.relay.url).await.unwrap();
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let (deal, locked) = sell(&house, &mut adversary, of, ehash).await;
    let before = proxy.seen("/swap").len();
    tell_in_vain(&adversary, &proxy, &deal, &locked).await;
    let end = victim.end(of).await;
    assert!(matches!(end, End::Refunded { .. }), "{end:?}");
    let (last, swaps) = (SHORT.claim_until(deal.terms.at), proxy.seen("/swap"));
    let late = swaps.iter().skip(before).filter(|seen| seen.at.get() / 1000 > last + 1);
    assert_eq!(late.count(), 0, "a claim was sent later than {last}");
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    victim.stop().await;
    adversary.close().await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_claim_that_is_held_up_until_it_was_given_up_is_not_lost() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let pool = epoch(&house).await;
    let at = mint(&pool.mint);
    let ehash = mined(&house, &at).await;
    let victim = Victim::start(&house, &house.buyer, SHORT).await;
    let mut adversary =
        Adversary::connect(house.seller.trade_keys(), &house.relay.url).await.unwrap();
    let of = house.deal(LOTS, PRICE).await.unwrap();
    let (deal, locked) = sell(&house, &mut adversary, of, ehash).await;
    tell_in_vain(&adversary, &proxy, &deal, &locked).await;
    let given_up = async {
        let is = |stage| matches!(stage, Stage::Refunding { .. });
        while !is(house.buyer.trade(of).await.unwrap().unwrap().stage) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, given_up).await.unwrap();
    // Whoever held the claim lets it go now: the mint takes it, and shows the preimage.
    let held = proxy.seen("/swap").pop().unwrap();
    proxy.pass_on(&held).await.unwrap();
    let ys = locked.ys().unwrap();
    let told = at.post_check_state(CheckStateRequest { ys }).await.unwrap();
    let shown = told.states.iter().find_map(|it| it.witness.as_ref()?.preimage()).unwrap();
    let handed = adversary.hears_lock(of, Leg::Sats).await.unwrap();
    let (lock, keyset) = (deal.of_sats(&SHORT), house.sats.keyset().unwrap());
    let sats = lock.open(DUE, &keyset, &handed).unwrap();
    let (key, shown) = (deal.secret(), hex::decode(shown).unwrap());
    let sat_mint = mint(&house.sats.url);
    spend(&sat_mint, &keyset, &sats, Some(&key), &shown, lock.sig_all).await.unwrap();
    // The careless, who have given the claim up, have neither now.
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), 0);
    assert_eq!(victim.end(of).await, End::Completed);
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), u64::from(LOTS));
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS - DUE);
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
    let url: MintUrl = proxy.url.parse().unwrap();
    let token =
        Token::new(url.clone(), house.sats.proofs(5_000).await.unwrap(), None, CurrencyUnit::Sat);
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
