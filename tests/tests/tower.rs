//! A seller vanishes once the ehash is locked: what becomes of the sats and of the
//! ehash, with a watchtower and without.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use cdk::HttpClient;
use cdk::dhke::blind_message;
use cdk::nuts::{
    BlindedMessage, CheckStateRequest, HTLCWitness, Id, Proof, SecretKey, SwapRequest, Witness,
};
use cdk::secret::Secret;
use cdk::wallet::MintConnector;
use hashpit_client::Wallet;
use hashpit_client::settle::{End, Limits, Probe, Settler, Stage, Timing, Watched, Watchtower};
use hashpit_mailbox::Mailbox;
use hashpit_nips::eh06::{HtlcLock, LockedProof, Watch, lock_key};
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::{EventBuilder, EventId, Filter, Keys, Kind, PublicKey, Timestamp};
use serde_json::{Value, from_value};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Steps that a busy machine can keep to, and a locktime that a test can wait for.
const TIMING: Timing = Timing {
    agree: 12,
    sats: 16,
    ehash: 20,
    ehash_locktime: 26,
    sats_locktime: 40,
    margin: 3,
    skew: 60,
};
const LOTS: u32 = 100;
/// Sats of the trade: 100 lots at 12.345.
const PRICE: u64 = 1_235;
const PATIENCE: Duration = Duration::from_secs(60);

/// A trade whose seller is gone after step 3, and whose buyer has the ehash, or waits.
struct Deserted {
    house: TradeHouse,
    of: EventId,
    watchers: Vec<PublicKey>,
    /// The buyer's record while its sats were locked.
    buyers: Value,
    _dir: TempDir,
}

impl Deserted {
    /// The buyer has claimed the ehash.
    async fn new(watchers: Vec<PublicKey>, sig_all: bool) -> Self {
        let trade = Self::until(watchers, sig_all, "send claimed").await;
        assert_eq!(trade.house.ehash_of(&trade.house.buyer).await.unwrap(), u64::from(LOTS));
        trade
    }

    /// The buyer could claim the ehash, and does not.
    async fn waiting(watchers: Vec<PublicKey>) -> Self {
        let trade = Self::until(watchers, true, "write claim").await;
        assert_eq!(trade.house.ehash_of(&trade.house.buyer).await.unwrap(), 0);
        trade
    }

    /// The buyer is gone before it does this.
    async fn until(watchers: Vec<PublicKey>, sig_all: bool, last: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let house = TradeHouse::start(dir.path()).await.unwrap();
        if sig_all {
            house.sats.tell_version().await.unwrap();
        }
        let (gone, stop) = (CancellationToken::new(), CancellationToken::new());
        let vanish = gone.clone();
        let probe = Probe::new(move |what, before| {
            let dies = what == "send locked" && !before;
            let gone = vanish.clone();
            Box::pin(async move {
                if dies {
                    gone.cancel();
                    pending::<()>().await;
                }
            })
        });
        let seller = settler(&house, &house.seller, &watchers).await.with_probe(probe);
        let kept = Arc::new(Mutex::new(Value::Null));
        let held = (kept.clone(), house.buyer.clone(), stop.clone());
        let probe = Probe::new(move |what, before| {
            let held = (what == last && before).then(|| held.clone());
            Box::pin(async move {
                if let Some((keep, buyers, stop)) = held {
                    let record = buyers.trades().await.unwrap().remove(0);
                    *keep.lock().unwrap() = serde_json::to_value(&record).unwrap();
                    stop.cancel();
                    pending::<()>().await;
                }
            })
        });
        let buyer = settler(&house, &house.buyer, &[]).await.with_probe(probe);
        let seller = tokio::spawn(seller.run(gone));
        let buyer = tokio::spawn(buyer.run(stop.clone()));
        let of = house.deal(LOTS, 12_345).await.unwrap();
        timeout(PATIENCE, buyer).await.unwrap().unwrap().unwrap();
        timeout(PATIENCE, seller).await.unwrap().unwrap().unwrap();
        assert_eq!(house.sats_of(&house.seller).await.unwrap(), 0);
        let buyers = kept.lock().unwrap().clone();
        Self { house, of, watchers, buyers, _dir: dir }
    }

    async fn past_the_locktime(&self) {
        let record = self.house.seller.trade(self.of).await.unwrap().unwrap();
        let until = record.matched_at() + TIMING.sats_locktime + 1;
        let left = until.saturating_sub(Timestamp::now().as_secs());
        sleep(Duration::from_secs(left)).await;
    }

    /// The buyer takes the sats back, as nobody but a thief would who has the ehash.
    async fn rob(&self) -> Result<(), cdk::Error> {
        let request = self.spend(["mine", "theirs"], "locked", TIMING.sats_locktime, [0; 32]);
        self.sats().post_swap(request.await).await.map(drop)
    }

    /// The buyer claims the ehash when it should do so no more.
    async fn claim_late(&self) -> Result<(), cdk::Error> {
        let preimage = self.derive("preimage");
        let request = self.spend(["theirs", "mine"], "got", TIMING.ehash_locktime, preimage).await;
        let mint = self.buyers["theirs"]["lock"]["mint"].as_str().unwrap().parse().unwrap();
        HttpClient::new(mint, None).post_swap(request).await.map(drop)
    }

    /// A swap of a leg by the buyer, for outputs that nobody needs.
    async fn spend(
        &self,
        [locker, claimer]: [&str; 2],
        proofs: &str,
        locktime: u64,
        preimage: [u8; 32],
    ) -> SwapRequest {
        let record = &self.buyers;
        let key = |of: &str| lock_key(&from_value(record[of]["key"].clone()).unwrap());
        let terms = &record[locker]["lock"];
        let seconds = self.house.buyer.trade(self.of).await.unwrap().unwrap().matched_at();
        let lock = HtlcLock {
            hash: hex::decode(record["mine"]["pays"]["hash"].as_str().unwrap())
                .unwrap()
                .try_into()
                .unwrap(),
            to: key(claimer),
            refund: key(locker),
            locktime: seconds + locktime,
            sig_all: terms["sig_all"].as_bool().unwrap(),
        };
        let keyset = Id::from_str(terms["keyset"].as_str().unwrap()).unwrap();
        let locked: Vec<LockedProof> = from_value(record[proofs].clone()).unwrap();
        let inputs = locked.iter().map(|proof| {
            Proof::new(proof.amount.into(), keyset, lock.secret(&proof.nonce), proof.c)
        });
        let outputs = locked.iter().map(|proof| output(proof.amount, keyset)).collect();
        let mut request = SwapRequest::new(inputs.collect(), outputs);
        let witness = HTLCWitness { preimage: hex::encode(preimage), signatures: None };
        request.inputs_mut()[0].witness = Some(Witness::HTLCWitness(witness));
        request.sign_sig_all(SecretKey::from_slice(&self.derive("key")).unwrap()).unwrap();
        request
    }

    /// As EH-06 derives it from the buyer's words.
    fn derive(&self, label: &str) -> [u8; 32] {
        let secret = self.house.buyer.trade_keys().secret_key().to_secret_bytes();
        let mut engine = HmacEngine::<sha256::Hash>::new(&secret);
        engine.input(b"EH-06/");
        engine.input(self.of.as_bytes());
        engine.input(label.as_bytes());
        engine.input(&0u32.to_be_bytes());
        Hmac::from_engine(engine).to_byte_array()
    }

    fn sats(&self) -> HttpClient {
        HttpClient::new(self.house.sats.url.clone(), None)
    }

    /// The seller is back; how the trade ends for him.
    async fn seller_returns(&self) -> Stage {
        let seller = settler(&self.house, &self.house.seller, &self.watchers).await;
        let (stop, mut sold) = (CancellationToken::new(), seller.progress());
        let running = tokio::spawn(seller.run(stop.clone()));
        let over = sold.wait_for(|now| now.completed + now.failed == 1);
        timeout(PATIENCE, over).await.unwrap().unwrap();
        stop.cancel();
        running.await.unwrap().unwrap();
        self.house.seller.trade(self.of).await.unwrap().unwrap().stage
    }

    /// What the seller handed to a watchtower.
    async fn package(&self, tower: &Keys) -> Vec<Watch> {
        let relays = [self.house.relay.url.clone()];
        let mailbox = Mailbox::connect(tower.clone(), &relays).await.unwrap();
        let wraps = Filter::new().kind(Kind::GiftWrap).pubkey(tower.public_key());
        let (found, _) = mailbox.fetch(wraps, Duration::from_secs(5)).await.unwrap();
        mailbox.close().await;
        let mut packages = Vec::new();
        for wrap in found {
            let opened = UnwrappedGift::from_gift_wrap(tower, &wrap).await.unwrap();
            packages.push(Watch::read(&opened.rumor).unwrap());
        }
        packages
    }

    async fn preimage(&self, watch: &Watch) -> String {
        let mint = HttpClient::new(watch.ehash_mint.clone(), None);
        let request = CheckStateRequest { ys: watch.ehash.clone() };
        let states = mint.post_check_state(request).await.unwrap().states;
        states[0].witness.as_ref().unwrap().preimage().unwrap()
    }
}

fn output(amount: u64, keyset: Id) -> BlindedMessage {
    let (blinded, _) = blind_message(&Secret::generate().to_bytes(), None).unwrap();
    BlindedMessage::new(amount.into(), keyset, blinded)
}

async fn settler(house: &TradeHouse, wallet: &Wallet, watchers: &[PublicKey]) -> Settler {
    let limits = Limits {
        mints: vec![house.sats.url.clone()],
        watchers: watchers.to_vec(),
        ..Limits::default()
    };
    let exchange = house.connect().await.unwrap();
    Settler::open(wallet.clone(), exchange, limits).await.unwrap().with_timing(TIMING)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_watchtower_a_buyer_may_end_with_both() {
    let trade = Deserted::new(Vec::new(), true).await;
    let record = trade.house.seller.trade(trade.of).await.unwrap().unwrap();
    let why = match record.watched() {
        Some(Watched::Nobody { why }) => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(why.contains("watchers"), "{why}");
    trade.past_the_locktime().await;
    trade.rob().await.unwrap();
    let stage = trade.seller_returns().await;
    assert!(matches!(stage, Stage::Over { end: End::Lost { .. } }), "{stage:?}");
    assert_eq!(trade.house.sats_of(&trade.house.seller).await.unwrap(), 0);
    trade.house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_a_watchtower_the_seller_has_the_sats_when_he_is_back() {
    let keys = Keys::generate();
    let trade = Deserted::new(vec![keys.public_key()], true).await;
    // It begins only now: what it has to know is on the relay.
    let relays = [trade.house.relay.url.clone()];
    let tower = Watchtower::open(keys.clone(), &relays).await.unwrap();
    let (stop, mut progress) = (CancellationToken::new(), tower.progress());
    let running = tokio::spawn(tower.run(stop.clone()));
    timeout(PATIENCE, progress.wait_for(|now| now.finished == 1)).await.unwrap().unwrap();
    assert_eq!(progress.borrow().watching, 0);
    trade.past_the_locktime().await;
    assert!(trade.rob().await.is_err());
    let record = trade.house.seller.trade(trade.of).await.unwrap().unwrap();
    assert_eq!(record.watchers(), [keys.public_key()]);
    assert_eq!(trade.seller_returns().await, Stage::Over { end: End::Completed });
    assert_eq!(trade.house.sats_of(&trade.house.seller).await.unwrap(), PRICE);
    assert_eq!(trade.house.sats_of(&trade.house.buyer).await.unwrap(), SATS - PRICE);
    // They are the wallet's to spend.
    let token = trade.house.seller.send(PRICE, Some("sat")).await.unwrap().to_string();
    assert_eq!(trade.house.buyer.receive(&token).await.unwrap().amount, PRICE);
    stop.cancel();
    running.await.unwrap().unwrap();
    trade.house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_watchtower_a_buyer_may_wait_for_both() {
    let trade = Deserted::waiting(Vec::new()).await;
    trade.past_the_locktime().await;
    trade.rob().await.unwrap();
    trade.claim_late().await.unwrap();
    let stage = trade.seller_returns().await;
    assert!(matches!(stage, Stage::Over { end: End::Lost { .. } }), "{stage:?}");
    trade.house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_a_watchtower_the_seller_has_the_ehash_though_the_buyer_waits() {
    let keys = Keys::generate();
    let trade = Deserted::waiting(vec![keys.public_key()]).await;
    let record = trade.house.seller.trade(trade.of).await.unwrap().unwrap();
    let watched = Watched::By { watchers: vec![keys.public_key()], no_refund: None };
    assert_eq!(record.watched(), Some(&watched));
    let [watch] = &trade.package(&keys).await[..] else { panic!("one package") };
    let early = watch.refund.clone().unwrap();
    let ehash = HttpClient::new(watch.ehash_mint.clone(), None);
    assert!(ehash.post_swap(early).await.is_err());

    let relays = [trade.house.relay.url.clone()];
    let tower = Watchtower::open(keys.clone(), &relays).await.unwrap();
    let (stop, mut progress) = (CancellationToken::new(), tower.progress());
    let running = tokio::spawn(tower.run(stop.clone()));
    timeout(PATIENCE, progress.wait_for(|now| now.refunded == 1)).await.unwrap().unwrap();
    assert_eq!(progress.borrow().watching, 0);
    trade.past_the_locktime().await;
    trade.rob().await.unwrap();
    assert!(trade.claim_late().await.is_err());
    let stage = trade.seller_returns().await;
    assert!(matches!(stage, Stage::Over { end: End::Refunded { .. } }), "{stage:?}");
    // All that was mined is the wallet's to spend.
    let mined = trade.house.mined.get();
    assert_eq!(trade.house.ehash_of(&trade.house.seller).await.unwrap(), mined);
    let unit = trade.house.pool.epoch.id.to_string();
    let token = trade.house.seller.send(mined, Some(&unit)).await.unwrap().to_string();
    assert_eq!(trade.house.buyer.receive(&token).await.unwrap().amount, mined);
    stop.cancel();
    running.await.unwrap().unwrap();
    trade.house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_has_no_sats_at_stake_is_not_watched() {
    let keys = Keys::generate();
    let trade = Deserted::waiting(vec![keys.public_key()]).await;
    let [watch] = &trade.package(&keys).await[..] else { panic!("one package") };
    // Another watchtower, that the seller does not know.
    let (keys, relays) = (Keys::generate(), [trade.house.relay.url.clone()]);
    let tower = Watchtower::open(keys.clone(), &relays).await.unwrap();
    let (stop, mut progress) = (CancellationToken::new(), tower.progress());
    let running = tokio::spawn(tower.run(stop.clone()));

    // Each has one thing that is not as it was signed.
    let mut redirected = watch.clone();
    let first = redirected.claim.outputs()[0].clone();
    redirected.claim.outputs_mut()[0] = output(first.amount.into(), first.keyset_id);
    let mut longer = watch.clone();
    longer.sats_until += 600;
    let mut elsewhere = watch.clone();
    elsewhere.ehash.reverse();
    let mut fewer = watch.clone();
    fewer.refund.as_mut().unwrap().outputs_mut().pop();
    let refused = [redirected, longer, elsewhere, fewer, invented(watch)];
    for (count, watch) in (1..).zip(refused) {
        hand(&trade, &keys, &watch).await;
        let told = progress.wait_for(|now| now.refused == count);
        timeout(PATIENCE, told).await.unwrap().unwrap();
    }
    // The same sats are watched once, whoever asks for it.
    hand(&trade, &keys, watch).await;
    timeout(PATIENCE, progress.wait_for(|now| now.watching == 1)).await.unwrap().unwrap();
    hand(&trade, &keys, watch).await;
    timeout(PATIENCE, progress.wait_for(|now| now.refused == 6)).await.unwrap().unwrap();
    timeout(PATIENCE, progress.wait_for(|now| now.refunded == 1)).await.unwrap().unwrap();
    assert_eq!(progress.borrow().watching, 0);
    stop.cancel();
    running.await.unwrap().unwrap();
    trade.house.stop().await.unwrap();
}

/// Sats that no mint has signed, locked and signed for as they should be.
fn invented(watch: &Watch) -> Watch {
    let key = SecretKey::generate();
    let lock = HtlcLock {
        hash: watch.hash,
        to: key.public_key(),
        refund: key.public_key(),
        locktime: watch.sats_until,
        sig_all: true,
    };
    let first = watch.claim.inputs()[0].clone();
    let input = Proof { secret: lock.secret(&[9; 32]), ..first };
    let mut claim = SwapRequest::new(vec![input.clone()], watch.claim.outputs().clone());
    claim.inputs_mut()[0].dleq = input.dleq;
    let witness = HTLCWitness { preimage: String::new(), signatures: None };
    claim.inputs_mut()[0].witness = Some(Witness::HTLCWitness(witness));
    claim.sign_sig_all(key).unwrap();
    Watch { claim, refund: None, ..watch.clone() }
}

/// Hands something to a watchtower, by a key that nobody knows.
async fn hand(trade: &Deserted, tower: &Keys, watch: &Watch) {
    let (from, relays) = (Keys::generate(), [trade.house.relay.url.clone()]);
    let rumor = watch.rumor(from.public_key());
    let wrap = EventBuilder::gift_wrap(&from, &tower.public_key(), rumor, []).await.unwrap();
    let mailbox = Mailbox::connect(from, &relays).await.unwrap();
    // A relay that is not connected yet stores nothing.
    mailbox.fetch(Filter::new().id(wrap.id), Duration::from_secs(5)).await.unwrap();
    mailbox.publish(&wrap).await.unwrap();
    mailbox.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_watchtower_names_a_new_keyset_and_nothing_else() {
    let keys = Keys::generate();
    let trade = Deserted::new(vec![keys.public_key()], true).await;
    let [watch] = &trade.package(&keys).await[..] else { panic!("one package") };
    let preimage = trade.preimage(watch).await;
    let mut claim = watch.claim.clone();
    claim.inputs_mut()[0].add_preimage(preimage);
    let sats = trade.sats();

    let mut own = claim.clone();
    let first = own.outputs()[0].clone();
    own.outputs_mut()[0] = output(first.amount.into(), first.keyset_id);
    let mut reordered = claim.clone();
    reordered.outputs_mut().reverse();
    let mut fewer = claim.clone();
    fewer.outputs_mut().pop();
    for altered in [own, reordered, fewer] {
        assert!(sats.post_swap(altered).await.is_err());
    }

    trade.house.sats.rotate().await.unwrap();
    assert!(sats.post_swap(claim.clone()).await.is_err());
    let relays = [trade.house.relay.url.clone()];
    let tower = Watchtower::open(keys.clone(), &relays).await.unwrap();
    let (stop, mut progress) = (CancellationToken::new(), tower.progress());
    let running = tokio::spawn(tower.run(stop.clone()));
    timeout(PATIENCE, progress.wait_for(|now| now.finished == 1)).await.unwrap().unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(trade.seller_returns().await, Stage::Over { end: End::Completed });
    assert_eq!(trade.house.sats_of(&trade.house.seller).await.unwrap(), PRICE);
    trade.house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mint_without_sig_all_is_not_watched_and_that_is_said() {
    let keys = Keys::generate();
    let trade = Deserted::new(vec![keys.public_key()], false).await;
    assert!(trade.package(&keys).await.is_empty());
    let record = trade.house.seller.trade(trade.of).await.unwrap().unwrap();
    let said = matches!(record.watched(), Some(Watched::Nobody { why }) if why.contains("SIG_ALL"));
    assert!(said, "{:?}", record.watched());
    assert_eq!(trade.seller_returns().await, Stage::Over { end: End::Completed });
    trade.house.stop().await.unwrap();
}
