//! What the interop tests are made of: programs of other makes, and a pool and
//! a wallet of ours for them to work with.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`translator`] | the stock Sv2 translator |
//! | [`tap`] | what a Stratum V1 server told its miner |
//! | [`foreign_relay`] | nostr-rs-relay |
//! | [`bunker`] | a remote signer by NDK |
//! | [`lightning`] | Bitcoin Core, two LDK nodes and wallets by Nostr Wallet Connect |
//! | [`pair`] | a pool and the wallet that it pays |

pub mod bunker;
pub mod foreign_relay;
pub mod lightning;
pub mod pair;
pub mod tap;
pub mod translator;

use std::env;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

/// How long a whole test may take. Only one that fails takes so long.
const PATIENCE: Duration = Duration::from_secs(150);
/// Between two looks at a program that does not say when it is ready.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs the body of a test, which has failed if it takes too long.
pub async fn within_patience(body: impl Future<Output = ()>) {
    // It lives on while this panics, so that its child processes show what they
    // have printed.
    let mut body = pin!(body);
    if tokio::time::timeout(PATIENCE, &mut body).await.is_err() {
        panic!("not done after {PATIENCE:?}");
    }
}

/// Runs one of the scripts in `js/` with node, and returns the JSON that it prints.
pub async fn node(script: &str, args: &[&str]) -> Result<Value> {
    let js = Path::new(env!("CARGO_MANIFEST_DIR")).join("js");
    ensure!(
        js.join("node_modules/@cashu/cashu-ts").is_dir(),
        "cashu-ts is missing; run tests/interop/install first"
    );
    let mut node = Command::new("node");
    // Node 20 has WebSocket only if asked to.
    node.arg("--experimental-websocket");
    node.arg(js.join(script)).args(args).kill_on_drop(true);
    let output = node.output().await.context("node does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One of the scripts in `js/ndk/`, which have packages of their own.
pub fn ndk(script: &str) -> Result<Command> {
    let js = Path::new(env!("CARGO_MANIFEST_DIR")).join("js/ndk");
    ensure!(
        js.join("node_modules/@nostr-dev-kit/ndk").is_dir(),
        "NDK is missing; run tests/interop/install first"
    );
    let mut node = Command::new("node");
    // Node 20 has it only if asked to.
    node.arg("--experimental-websocket").arg(js.join(script)).kill_on_drop(true);
    Ok(node)
}

/// Where `install` has put a program.
fn program(name: &str) -> Result<PathBuf> {
    let program = peers()?.join("bin").join(name);
    ensure!(program.is_file(), "{} is missing; run tests/interop/install first", program.display());
    Ok(program)
}

fn peers() -> Result<PathBuf> {
    if let Some(peers) = env::var_os("HASHPIT_PEERS") {
        return Ok(peers.into());
    }
    let cache = env::var_os("HASHPIT_CACHE").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/hashpit"));
    Ok(cache.or_else(home).context("HOME is not set")?.join("peers"))
}
