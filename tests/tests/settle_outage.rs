//! A mint, the relay or the exchange goes away in the midst of trades, for a moment or
//! until every locktime has passed: nobody loses by it.
//!
//! Each trade of a round is held before another effect, of those that a probe saw in
//! a trade that nothing disturbs. When all are there, the part is stopped, and they
//! go on without it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hashpit_client::Wallet;
use hashpit_client::settle::{End, Probe, Progress, Settler, Stage, Timing};
use hashpit_tests::trade_house::{Pair, Part, TradeHouse};
use nostr_sdk::{EventId, Timestamp};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const LOTS: u32 = 21;
const MSATS_A_LOT: u64 = 12_345;
/// What that comes to, in whole sats.
const PRICE: u64 = 260;
const PATIENCE: Duration = Duration::from_secs(100);
/// Trades of one round.
const TRADES: usize = 8;
/// Deadlines for a round in which all trades wait for each other.
const TIMING: Timing = Timing {
    agree: 18,
    sats: 20,
    ehash: 22,
    ehash_locktime: 26,
    sats_locktime: 32,
    margin: 2,
    skew: 60,
};

/// Before the n-th effect of a name.
#[derive(Debug, Clone)]
struct Moment {
    is_seller: bool,
    effect: String,
    nth: usize,
}

/// A probe that notes every effect.
fn noting() -> (Probe, Arc<Mutex<BTreeMap<String, usize>>>) {
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let noted = seen.clone();
    let probe = Probe::new(move |effect, before| {
        if before {
            *noted.lock().unwrap().entry(effect.to_owned()).or_default() += 1;
        }
        Box::pin(std::future::ready(()))
    });
    (probe, seen)
}

/// A probe that says when a moment has come, and waits there until the gate opens.
fn held(moment: &Moment, gate: &watch::Receiver<bool>) -> (Probe, watch::Receiver<bool>) {
    let (there, arrived) = watch::channel(false);
    let (moment, gate, count) = (moment.clone(), gate.clone(), Mutex::new(0));
    let probe = Probe::new(move |effect, before| {
        if before && effect == moment.effect {
            let mut count = count.lock().unwrap();
            *count += 1;
            if *count == moment.nth {
                there.send_replace(true);
                let mut gate = gate.clone();
                return Box::pin(async move { drop(gate.wait_for(|open| *open).await) });
            }
        }
        Box::pin(std::future::ready(()))
    });
    (probe, arrived)
}

/// Both settlers of a pair.
struct Runs {
    progress: [watch::Receiver<Progress>; 2],
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Runs {
    async fn start(house: &TradeHouse, pair: &Pair, probes: [Probe; 2]) -> Self {
        let (stop, mut tasks, mut progress) = (CancellationToken::new(), JoinSet::new(), vec![]);
        for (wallet, probe) in [&pair.seller, &pair.buyer].into_iter().zip(probes) {
            let settler: Settler = house.settler(wallet).await.unwrap();
            let settler = settler.with_timing(TIMING).with_probe(probe);
            progress.push(settler.progress());
            let stop = stop.clone();
            tasks.spawn(async move { settler.run(stop).await.unwrap() });
        }
        Self { progress: progress.try_into().unwrap(), stop, tasks }
    }

    /// How a trade has ended, for the seller and for the buyer.
    async fn ends(mut self, pair: &Pair, of: EventId) -> [End; 2] {
        let mut ends = Vec::new();
        for (wallet, progress) in [&pair.seller, &pair.buyer].into_iter().zip(&mut self.progress) {
            let over = timeout(PATIENCE, over(wallet, progress, of)).await;
            let Ok(end) = over else {
                let stage = wallet.trade(of).await.unwrap().map(|trade| trade.stage);
                panic!("trade {of} does not end: {stage:?}");
            };
            ends.push(end);
        }
        self.stop.cancel();
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        ends.try_into().unwrap()
    }
}

async fn over(wallet: &Wallet, progress: &mut watch::Receiver<Progress>, of: EventId) -> End {
    loop {
        if let Some(trade) = wallet.trade(of).await.unwrap()
            && let Stage::Over { end } = trade.stage
        {
            return end;
        }
        let _ = timeout(Duration::from_secs(1), progress.changed()).await;
    }
}

/// Every moment of a trade that nothing disturbs.
async fn moments(house: &TradeHouse, pair: &Pair) -> Vec<Moment> {
    let ((of_seller, sold), (of_buyer, bought)) = (noting(), noting());
    let runs = Runs::start(house, pair, [of_seller, of_buyer]).await;
    let of = house.deal_of(pair, LOTS, MSATS_A_LOT).await.unwrap();
    assert_eq!(runs.ends(pair, of).await, [End::Completed, End::Completed]);
    let mut moments = Vec::new();
    for (is_seller, seen) in [(true, sold), (false, bought)] {
        for (effect, count) in seen.lock().unwrap().iter() {
            let all = 1..=*count;
            moments.extend(all.map(|nth| Moment { is_seller, effect: effect.clone(), nth }));
        }
    }
    moments
}

async fn holdings(house: &TradeHouse, pair: &Pair) -> [i64; 4] {
    let mut all = [0; 4];
    for (at, wallet) in [&pair.seller, &pair.buyer].into_iter().enumerate() {
        if wallet.balances().await.unwrap().iter().any(|balance| balance.pending > 0) {
            wallet.consolidate().await.unwrap();
        }
        all[at] = i64::try_from(house.ehash_of(wallet).await.unwrap()).unwrap();
        all[at + 2] = i64::try_from(house.sats_of(wallet).await.unwrap()).unwrap();
    }
    all
}

/// Trades that are all under way when a part goes away; how each has ended.
async fn round(
    house: TradeHouse,
    pairs: &[Pair],
    moments: &[Moment],
    part: Part,
    is_long: bool,
) -> TradeHouse {
    let (open, gate) = watch::channel(false);
    let (mut trades, mut last) = (Vec::new(), 0);
    for (pair, moment) in pairs.iter().zip(moments) {
        let before = holdings(&house, pair).await;
        let (probe, arrived) = held(moment, &gate);
        let mut probes = [probe, Probe::default()];
        if !moment.is_seller {
            probes.swap(0, 1);
        }
        trades.push((pair, moment, before, arrived, Runs::start(&house, pair, probes).await));
    }
    let mut matched = Vec::new();
    for pair in &pairs[..trades.len()] {
        matched.push(house.deal_of(pair, LOTS, MSATS_A_LOT).await.unwrap());
        last = Timestamp::now().as_secs();
    }
    for (_, moment, _, arrived, _) in &mut trades {
        let there = timeout(Duration::from_secs(5), arrived.wait_for(|there| *there)).await;
        if there.is_err() {
            eprintln!("did not come: {moment:?}");
        }
    }
    let away = async {
        open.send_replace(true);
        let until = if is_long { last + TIMING.sats_locktime + 3 } else { 0 };
        let begun = Instant::now();
        while Timestamp::now().as_secs() < until || begun.elapsed() < Duration::from_secs(2) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let house = house.without(part, away).await.unwrap();
    for ((pair, moment, before, _, runs), of) in trades.into_iter().zip(matched) {
        let ends = runs.ends(pair, of).await;
        let after = holdings(&house, pair).await;
        eprintln!("{part:?} {is_long} {moment:?} {ends:?}");
        check(&ends, before, after, part == Part::Pool && is_long);
    }
    house
}

/// Nothing is lost, both legs have changed hands or none. `may_rob` is for the mint
/// of the ehash away until the sats may be taken back: a seller that cannot be shown
/// the preimage is one that is away.
fn check(ends: &[End; 2], before: [i64; 4], after: [i64; 4], may_rob: bool) {
    let (lots, price) = (i64::from(LOTS), i64::try_from(PRICE).unwrap());
    let moved: Vec<i64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let expected: &[[i64; 4]] = match ends {
        [End::Lost { .. }, _] if may_rob => &[[-lots, lots, 0, 0]],
        [End::Lost { .. }, _] | [_, End::Lost { .. }] => &[],
        [End::Void { .. }, End::Void { .. }] => {
            // The coin with which a wallet tries a mint out waits for its next trade there.
            &[[0; 4], [-1, 0, 0, 0], [0, -1, 0, 0], [-1, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, -1]]
        }
        _ => &[[-lots, lots, price, -price], [0; 4]],
    };
    assert!(expected.iter().any(|expected| moved == expected), "{moved:?} {ends:?}");
}

/// A short outage, then a long one, each at moments of its own.
async fn without(part: Part, offset: usize) {
    let dir = TempDir::new().unwrap();
    let mut house = TradeHouse::start(&dir.path().join("house")).await.unwrap();
    let first = pair(&house, dir.path(), TRADES).await;
    // In its first trade a wallet tries a mint out.
    moments(&house, &first).await;
    let moments = moments(&house, &first).await;
    let mut pairs = Vec::new();
    for at in 0..TRADES {
        pairs.push(pair(&house, dir.path(), at).await);
    }
    let step = moments.len() / TRADES;
    for (is_long, offset) in [(false, offset), (true, offset + step / 2)] {
        let some: Vec<_> = moments.iter().skip(offset % step).step_by(step).cloned().collect();
        house = round(house, &pairs, &some, part, is_long).await;
    }
    house.stop().await.unwrap();
}

async fn pair(house: &TradeHouse, dir: &Path, name: usize) -> Pair {
    let dir = dir.join(name.to_string());
    house.pair(&dir, 4 * u64::from(LOTS), 4 * PRICE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_goes_away_costs_nobody_anything() {
    without(Part::Relay, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_goes_away_costs_nobody_anything() {
    without(Part::Pool, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mint_of_sats_that_goes_away_costs_nobody_anything() {
    without(Part::Sats, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_goes_away_costs_nobody_anything() {
    without(Part::Exchange, 6).await;
}
