//! Wallets spend, receive, crash and come back from relays or the mint at random,
//! against a model that only adds and subtracts.
//!
//! `HASHPIT_SEED` repeats a run; `HASHPIT_STEPS` makes it longer; `HASHPIT_LOG`
//! shows what happens, `cdk=debug` for one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::backup::{self, Backup, FetchProgress, Settings};
use hashpit_client::wallet::Remains;
use hashpit_nips::Seed;
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use nostr_sdk::RelayUrl;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

const STEPS: u32 = 60;
const WALLETS: usize = 3;
/// Longer than most operations take in a debug build, so that some are not cut
/// short.
const LIFE_MS: u64 = 300;

fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// A wallet and what the model says it holds, tokens not yet received included.
struct Player {
    dir: PathBuf,
    seed: Seed,
    held: u64,
}

/// A token that nobody has received.
struct Loose {
    token: String,
    from: usize,
    amount: u64,
}

struct World {
    dir: tempfile::TempDir,
    relay: RelayHouse,
    pool: PoolHouse,
    players: Vec<Player>,
    loose: Vec<Loose>,
    rng: StdRng,
    moves: u32,
}

impl World {
    async fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (relay, pool) = relay_and_pool(dir.path()).await.unwrap();
        let mut players = Vec::new();
        for number in 0..WALLETS {
            let dir = dir.path().join(number.to_string());
            let wallet = Wallet::open_or_create(&dir, rand::random).await.unwrap();
            let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
            wallet.set_backup_settings(&settings).await.unwrap();
            players.push(Player { dir, seed: wallet.seed().clone(), held: 0 });
        }
        let first = Wallet::open(&players[0].dir).await.unwrap();
        players[0].held = pool.pay_for_work(&first, &relay).await.unwrap().get();
        let rng = StdRng::seed_from_u64(seed);
        Self { dir, relay, pool, players, loose: Vec::new(), rng, moves: 0 }
    }

    fn wallet(&self, who: usize) -> impl Future<Output = Wallet> + use<> {
        let dir = self.players[who].dir.clone();
        async move { Wallet::open(&dir).await.unwrap() }
    }

    async fn step(&mut self) {
        self.moves += 1;
        let who = self.rng.random_range(0..WALLETS);
        let what = self.rng.random_range(0..10);
        println!("step {}: wallet {who} does {what}", self.moves);
        match what {
            0..4 => self.send(who).await,
            4..8 => self.receive(who).await,
            8 => self.burn(who, true).await,
            _ => self.burn(who, false).await,
        }
        self.check(who).await;
    }

    /// Sends, and perhaps crashes in the middle.
    async fn send(&mut self, from: usize) {
        let wallet = self.wallet(from).await;
        let free: u64 = wallet.balances().await.unwrap().iter().map(|one| one.amount).sum();
        if free == 0 {
            return;
        }
        let amount = self.rng.random_range(1..=free);
        let sending = async move { wallet.send(amount, None).await.unwrap().to_string() };
        if let Some(token) = self.perhaps_crash(sending).await {
            self.loose.push(Loose { token, from, amount });
        }
        self.back_up(from).await;
    }

    /// Receives a loose token, if need be after a crash.
    async fn receive(&mut self, to: usize) {
        if self.loose.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.loose.len());
        let Loose { token, from, amount } = self.loose.swap_remove(index);
        let (wallet, copy) = (self.wallet(to).await, token.clone());
        let receiving = async move { wallet.receive(&copy).await.unwrap() };
        if self.perhaps_crash(receiving).await.is_none() {
            // Either it was through and is found again, or this is the first time.
            let again = self.wallet(to).await.receive(&token).await;
            if let Err(error) = again {
                let words = error.to_string().to_lowercase();
                assert!(words.contains("spent"), "{words}");
            }
        }
        self.players[from].held -= amount;
        self.players[to].held += amount;
        self.back_up(to).await;
        self.back_up(from).await;
    }

    /// Loses a wallet's directory and brings it back from its words.
    async fn burn(&mut self, who: usize, from_relay: bool) {
        let Player { dir, seed, .. } = &self.players[who];
        std::fs::remove_dir_all(dir).unwrap();
        let wallet = Wallet::create(dir, seed.clone(), None).await.unwrap();
        let settings = Settings { relays: vec![self.relay.url.clone()], quorum: None };
        wallet.set_backup_settings(&settings).await.unwrap();
        if from_relay {
            restore_from(&wallet, &self.relay.url).await;
        } else {
            let mints = [self.pool.mint_url.parse().unwrap()].into();
            let remains = Remains { mints, ..Remains::default() };
            wallet.restore(&remains, &|_| ()).await.unwrap();
            self.back_up(who).await;
        }
        // Their proofs can be spent by the restored wallet now.
        self.loose.retain(|loose| loose.from != who);
    }

    async fn back_up(&self, who: usize) {
        let wallet = self.wallet(who).await;
        let settings = wallet.backup_settings().await.unwrap();
        Backup::connect(&wallet, settings).unwrap().sync().await.unwrap();
    }

    /// `None` if the operation was cut short.
    async fn perhaps_crash<T: Send + 'static>(
        &mut self,
        operation: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let crash = self.rng.random_bool(0.4);
        let life = Duration::from_millis(self.rng.random_range(0..LIFE_MS));
        let task = tokio::spawn(operation);
        if crash {
            tokio::time::sleep(life).await;
            task.abort();
        }
        match task.await {
            Ok(done) => Some(done),
            Err(error) if error.is_cancelled() => {
                println!("    cut short after {life:?}");
                None
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn check(&self, who: usize) {
        let wallet = self.wallet(who).await;
        // Finishes or undoes what was cut short.
        wallet.consolidate().await.unwrap();
        let balances = wallet.balances().await.unwrap();
        let held: u64 = balances.iter().map(|one| one.amount + one.pending).sum();
        assert_eq!(held, self.players[who].held, "wallet {who} after step {}", self.moves);
    }
}

async fn restore_from(wallet: &Wallet, relay: &RelayUrl) {
    let (progress, _) = watch::channel(FetchProgress::default());
    let ehash = Arc::new(wallet.backup_keys());
    let relays = [relay.clone()];
    let found = backup::fetch(ehash, wallet.signer(), &relays, progress).await.unwrap();
    wallet.restore(&Remains::of(&found), &|_| ()).await.unwrap();
    let settings = wallet.backup_settings().await.unwrap();
    Backup::connect(wallet, settings).unwrap().adopt(&found).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wallet_holds_what_the_model_says_whatever_crashes_or_burns() {
    if let Ok(filter) = std::env::var("HASHPIT_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).init();
    }
    let seed = from_env("HASHPIT_SEED").unwrap_or_else(rand::random);
    println!("HASHPIT_SEED={seed}");
    let mut world = World::new(seed).await;
    let whole = world.players[0].held;
    for _ in 0..from_env("HASHPIT_STEPS").unwrap_or(STEPS) {
        world.step().await;
    }
    for who in 0..WALLETS {
        world.check(who).await;
    }
    assert_eq!(world.players.iter().map(|player| player.held).sum::<u64>(), whole);
    let World { dir, relay, pool, .. } = world;
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
    let _: &Path = dir.path();
}
