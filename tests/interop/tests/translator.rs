//! Stratum V1 miners below the stock Sv2 translator: what they were told that
//! their shares are worth is what arrives in the wallet.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use hashpit_interop::pair::Pair;
use hashpit_interop::tap::Tap;
use hashpit_interop::translator::{Settings, Translator};
use hashpit_interop::within_patience;
use hashpit_nips::Work;
use hashpit_tests::house::RelayHouse;
use hashpit_tests::sv1_miner::Sv1Miner;

/// What the pool is set to: 20,000 hashes a share at first. That is far below
/// what any machine reaches, so that it soon sets another target.
const POOL: Settings =
    Settings { aggregated: false, vardiff: false, hashrate: 20_000.0, shares_per_minute: 60.0 };

/// An npub that nobody here has the key of.
const STRANGER: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_for_each_miner() {
    within_patience(mine_and_claim(POOL, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_channel_for_all_miners() {
    within_patience(mine_and_claim(Settings { aggregated: true, ..POOL }, 2)).await;
}

/// Such a translator asks the pool for no easier target than its miners have,
/// or half of their work would be credited to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_harder_target_than_the_pool_would_set() {
    let settings = Settings { vardiff: true, shares_per_minute: 30.0, ..POOL };
    within_patience(mine_and_claim(settings, 1)).await;
}

/// Without vardiff the translator has a target of its own in mind until the pool
/// has told it the channel's.
#[tokio::test(flavor = "multi_thread")]
async fn another_rate_of_shares_in_mind() {
    let settings = Settings { shares_per_minute: 30.0, ..POOL };
    within_patience(mine_and_claim(settings, 1)).await;
}

/// The translator's Sv2 connection leads to our proxy, which mines for the
/// wallet whatever identity the translator has.
#[tokio::test(flavor = "multi_thread")]
async fn below_our_proxy() {
    within_patience(mine_and_claim_below(POOL, 2, true)).await;
}

async fn mine_and_claim(settings: Settings, targets: usize) {
    mine_and_claim_below(settings, targets, false).await;
}

/// Two miners mine until each has had shares accepted at so many different
/// targets, and then their wallet claims.
async fn mine_and_claim_below(settings: Settings, targets: usize, proxied: bool) {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let config = Pair::config(&relay.url, POOL.hashrate, POOL.shares_per_minute).unwrap();
    let pair = Pair::start(dir.path(), config).await.unwrap();
    let proxy = match proxied {
        true => Some(pair.proxy().await.unwrap()),
        false => None,
    };
    let server = proxy.as_ref().map(|proxy| (proxy.sv2, proxy.authority.as_str()));
    let identity = if proxied { STRANGER.to_owned() } else { pair.npub().unwrap() };
    let translator = Translator::start(
        dir.path(),
        server.unwrap_or((pair.pool.sv2, &pair.pool.authority)),
        &identity,
        settings,
    )
    .unwrap();
    let taps = [
        Tap::start(translator.address).await.unwrap(),
        Tap::start(translator.address).await.unwrap(),
    ];

    // Miners stay connected, so that no share of theirs is lost with its line.
    let miners = tokio::try_join!(mine(&taps[0], targets), mine(&taps[1], targets)).unwrap();
    for miner in [&miners.0, &miners.1] {
        assert!(miner.tally().rejected.is_empty(), "{:?}", miner.tally());
    }
    // The translator says `true` before the pool has judged; so what it said is
    // compared with the pool's acknowledgements, and with the pool's books.
    let told: Vec<_> = taps.iter().flat_map(Tap::accepted).collect();
    let shares = told.iter().map(|(_, count)| count).sum();
    let work = told.iter().map(|(work, count)| work.get() * u128::from(*count)).sum();
    assert_eq!(shares, miners.0.tally().accepted + miners.1.tally().accepted);
    translator.acknowledged(shares).await;
    let status = pair.claim().await.unwrap();

    assert_eq!(status.sv2.channels, if settings.aggregated { 1 } else { 2 });
    assert!(status.sv2.rejected.is_empty(), "{:?}", status.sv2.rejected);
    assert_eq!(status.sv2.accepted, shares);
    assert_eq!(status.totals.shares, shares);
    assert_eq!(status.totals.work, Work::new(work));
    let owed = pair.pool.epoch.work.units_in(Work::new(work)).unwrap();
    assert_eq!(status.totals.issued, owed);
    assert_eq!(pair.ehash().await.unwrap(), owed);
    if let Some(proxy) = proxy {
        let books = proxy.monitor.books();
        assert_eq!((books.shares, books.acknowledged), (shares, Work::new(work)));
        proxy.stop().await.unwrap();
    }
    pair.pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// Mines until shares at so many different targets have been accepted.
async fn mine(tap: &Tap, targets: usize) -> Result<Sv1Miner> {
    let mut miner = Sv1Miner::connect(tap.address, "rig").await?;
    while tap.accepted().len() < targets {
        miner.mine(4).await?;
    }
    Ok(miner)
}
