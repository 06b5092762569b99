//! A settler to be robbed, and what its robbers have in common.

use std::path::Path;
use std::time::Duration;

use cdk::nuts::{Proof, Proofs};
use cdk::secret::Secret;
use hashpit_client::Wallet;
use hashpit_client::settle::{Clock, End, Limits, SettleError, Settler, Stage};
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::{self, HtlcLock, Leg, LockedProof, Message, Timing};
use hashpit_nips::seed_file;
use hashpit_tests::adversary::{Adversary, Deal, PREIMAGE, bits, hash, mint, spend, swap, unspent};
use hashpit_tests::exchange_house::Onlooker;
use hashpit_tests::trade_house::TradeHouse;
use nostr_sdk::{Event, EventId, Filter, Keys};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Deadlines that a busy machine keeps, and locktimes that no test waits for.
pub const CALM: Timing = Timing {
    agree: 20,
    sats: 40,
    ehash: 60,
    ehash_locktime: 120,
    sats_locktime: 240,
    margin: 30,
    skew: 60,
};
/// Locktimes that a test waits for.
pub const SHORT: Timing = Timing {
    agree: 10,
    sats: 14,
    ehash: 18,
    ehash_locktime: 30,
    sats_locktime: 40,
    margin: 8,
    skew: 60,
};
pub const LOTS: u32 = 100;
pub const PRICE: u64 = 12_345;
/// What those come to.
pub const DUE: u64 = 1_235;
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A settler of a wallet that runs.
pub struct Victim {
    wallet: Wallet,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SettleError>>,
}

impl Victim {
    pub async fn start(house: &TradeHouse, wallet: &Wallet, timing: Timing) -> Self {
        let limits = Limits { mints: vec![house.sats.url.clone()], ..Limits::default() };
        Self::start_with(house, wallet, timing, limits, Clock::default()).await
    }

    pub async fn start_with(
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
    pub async fn end(&self, of: EventId) -> End {
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
    pub async fn void(&self, of: EventId) -> String {
        match self.end(of).await {
            End::Void { why } => why,
            end => panic!("{end:?}"),
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub async fn epoch(house: &TradeHouse) -> EpochKeyset {
    let exchange = house.connect().await.unwrap();
    let epoch = exchange.keyset(house.pool.epoch.id).await.unwrap().unwrap();
    exchange.close().await;
    epoch
}

/// The match's event, as the relay has it.
pub async fn matched(house: &TradeHouse, of: EventId) -> (Event, Match) {
    let onlooker = Onlooker::connect(&Keys::generate(), &house.relay.url).await.unwrap();
    let event = onlooker.sees(Filter::new().id(of), |_| true).await.unwrap();
    let terms = Match::decode(&event).unwrap();
    (event, terms)
}

/// Has the two agree as far as step 1, the adversary as the buyer.
pub async fn agree(
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
pub async fn locked(house: &TradeHouse, wanted: &[(u64, Secret)]) -> Proofs {
    let (keyset, at) = (house.sats.keyset().unwrap(), mint(&house.sats.url));
    let due: u64 = wanted.iter().map(|(amount, _)| *amount).sum();
    // More than enough for the mint's fee; what is over goes to nobody.
    let gross = due + if keyset.input_fee_ppk == 0 { 0 } else { 64 };
    let inputs = house.sats.proofs(gross).await.unwrap();
    let over = gross - due - eh06::fee(inputs.len(), &keyset);
    let change = bits(over).map(|amount| (amount, Secret::generate()));
    let all: Vec<_> = wanted.iter().cloned().chain(change).collect();
    let mut proofs = swap(&at, &keyset, inputs, &all).await.unwrap();
    proofs.truncate(wanted.len());
    proofs
}

pub fn nonce(index: usize) -> [u8; 32] {
    hash(format!("nonce {index}").as_bytes())
}

pub fn hand_over(proofs: &Proofs) -> Vec<LockedProof> {
    let handed = proofs.iter().enumerate().map(|(index, proof)| (nonce(index), proof));
    handed.map(|(nonce, proof)| LockedProof::hand_over(proof, nonce).unwrap()).collect()
}

/// What somebody careless asks of tokens before locking the other leg: the mint
/// signed them, they are worth it, and nobody has spent them.
pub async fn looks_good(house: &TradeHouse, proofs: &Proofs) -> bool {
    let keyset = house.sats.keyset().unwrap();
    let signed = |proof: &Proof| {
        let key = keyset.keys.amount_key(proof.amount).unwrap();
        proof.verify_dleq(key).is_ok()
    };
    let worth: u64 = proofs.iter().map(|proof| u64::from(proof.amount)).sum();
    let unspent = unspent(&mint(&house.sats.url), proofs).await.unwrap_or(true);
    proofs.iter().all(signed) && worth >= DUE && unspent
}

/// A match that follows from nothing, signed by the exchange's own key.
pub async fn forge(
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

/// Secrets under a lock, one for each amount.
pub fn secrets(lock: &HtlcLock, amounts: &[u64]) -> Vec<(u64, Secret)> {
    let amounts = amounts.iter().enumerate();
    amounts.map(|(index, amount)| (*amount, lock.secret(&nonce(index)))).collect()
}

/// Locks what is due for [`LOTS`] as it was agreed, and tells so.
pub async fn pay(house: &TradeHouse, adversary: &Adversary, deal: &Deal) -> Proofs {
    let amounts = eh06::amounts(DUE, &house.sats.keyset().unwrap()).unwrap();
    let proofs = locked(house, &secrets(&deal.of_sats(&CALM), &amounts)).await;
    let message = Message::Locked { leg: Leg::Sats, proofs: hand_over(&proofs) };
    adversary.say(&deal.key, deal.terms.seller().trader, deal.of, &message).await.unwrap();
    proofs
}

/// Waits for the ehash, and claims it.
pub async fn claim(house: &TradeHouse, adversary: &mut Adversary, deal: &Deal) {
    let (pool, handed) =
        (epoch(house).await, adversary.hears_lock(deal.of, Leg::Ehash).await.unwrap());
    let opened = deal.of_ehash(&CALM).open(u64::from(LOTS), &pool.keyset, &handed).unwrap();
    let key = deal.secret();
    spend(&mint(&pool.mint), &pool.keyset, &opened, Some(&key), &PREIMAGE, false).await.unwrap();
}
