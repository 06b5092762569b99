//! The proxy between real devices' requests and the real pool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod devices;
mod outages;
mod statements;
mod sv1;
mod verdicts;

use std::path::Path;
use std::time::Duration;

use hashpit_tests::house::PoolHouse;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use nostr_sdk::{Keys, PublicKey};

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom the proxies of these tests mine for.
fn miner() -> PublicKey {
    Keys::parse("0000000000000000000000000000000000000000000000000000000000000007")
        .unwrap()
        .public_key()
}

async fn pool(dir: &Path) -> PoolHouse {
    PoolHouse::start(PoolHouse::config_without_blocks(&[]).unwrap(), dir).await.unwrap()
}

async fn proxy(pool: &PoolHouse) -> ProxyHouse {
    let pools = vec![address(pool).unwrap()];
    ProxyHouse::start(pools, miner(), ProxyHouse::settings()).await.unwrap()
}

async fn within_patience<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it takes too long")
}
