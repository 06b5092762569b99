//! What `hashpit up` shows: where everything listens, then a line of progress.
//! On stderr, so that stdout is free for the result.

use std::io::{IsTerminal, Write, stderr};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use hashpit_client::issuance::Progress;
use hashpit_client::miner;
use hashpit_client::wallet::MintUrl;
use hashpit_pool::Status;
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};

use super::buying::Bought;
use super::offering::Offered;
use crate::wallet::short_unit;

/// Without a terminal a line is printed at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where the roles are reached.
#[derive(Debug)]
pub struct Addresses {
    pub relay: RelayUrl,
    pub mint: String,
    /// Where the mint issues simulated sats, if it does.
    pub sats: Option<MintUrl>,
    pub sv2: SocketAddr,
    pub authority: String,
    /// The proxy's ports: Sv1, Sv2.
    pub proxy: [SocketAddr; 2],
    pub proxy_authority: String,
    pub pool: PublicKey,
    pub exchange: PublicKey,
    pub miner: PublicKey,
}

/// Prints progress.
#[derive(Debug)]
pub struct Display {
    terminal: bool,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    at: Option<Duration>,
    had_ehash: bool,
}

impl Display {
    /// Prints the head.
    pub fn start(dir: &Path, addresses: &Addresses) -> Self {
        let Addresses { relay, mint, sats, sv2, authority, pool, exchange, miner, .. } = addresses;
        let ([proxy_sv1, proxy_sv2], proxy_authority) =
            (addresses.proxy, &addresses.proxy_authority);
        let (Ok(pool), Ok(exchange), Ok(miner)) =
            (pool.to_bech32(), exchange.to_bech32(), miner.to_bech32());
        eprintln!("hashpit is up. Data in {}; Ctrl-C stops.\n", dir.display());
        eprintln!("  relay      {relay}");
        eprintln!("  mint       {mint}");
        if let Some(sats) = sats {
            eprintln!("  sats       {sats}  SIMULATION: worth nothing");
        }
        eprintln!("  Sv2        {sv2}");
        eprintln!("  authority  {authority}");
        eprintln!("  pool       {pool}");
        eprintln!("  exchange   {exchange}");
        eprintln!("  miner      {miner}");
        eprintln!("  proxy Sv1  stratum+tcp://{proxy_sv1}");
        eprintln!("  proxy Sv2  {proxy_sv2}  authority {proxy_authority}");
        eprintln!(
            "\nMine for this wallet with any device: point it at the proxy, under any worker name.\n\
             Others join at the Sv2 port: user identity is an npub, perhaps with .worker behind."
        );
        eprintln!(
            "The wallet's twelve words are in {}.\n",
            dir.join("wallet/wallet.seed").display()
        );
        Self { terminal: stderr().is_terminal(), last: Mutex::default() }
    }

    /// Prints a line of progress if it is time for one.
    pub fn show(
        &self,
        elapsed: Duration,
        pool: &Status,
        miner: &miner::Progress,
        wallet: &Progress,
        offered: &Offered,
        bought: &Bought,
    ) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = last.at.is_none_or(|at| elapsed.saturating_sub(at) >= PLAIN_INTERVAL);
        let first_ehash = !last.had_ehash && wallet.received.get() > 0;
        if !(self.terminal || due || first_ehash) {
            return;
        }
        *last = Last { at: Some(elapsed), had_ehash: wallet.received.get() > 0 };
        let line = line(elapsed, pool, miner, wallet) + &offer(offered) + &matched(bought);
        if self.terminal {
            // Overwrite the line; a broken terminal is no reason to stop.
            let _ = write!(stderr(), "\r\x1b[2K{line}");
            let _ = stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if self.terminal {
            eprintln!();
        }
    }
}

fn line(elapsed: Duration, pool: &Status, miner: &miner::Progress, wallet: &Progress) -> String {
    let seconds = elapsed.as_secs();
    let unit = wallet.epoch.map(|epoch| short_unit(&epoch.to_string())).unwrap_or_default();
    format!(
        "{:02}:{:02}  {:.1} MH/s  shares {}  credit {} MH  issued {}  wallet {} {unit}  block {}",
        seconds / 60,
        seconds % 60,
        miner.hashrate / 1e6,
        pool.totals.shares,
        pool.totals.work.get() / 1_000_000,
        pool.totals.issued,
        wallet.received,
        pool.height,
    )
}

fn offer(offered: &Offered) -> String {
    let offer = offered.offer.as_ref();
    offer.map(|offer| format!("  on offer {} lots", offer.lots)).unwrap_or_default()
}

fn matched(bought: &Bought) -> String {
    let matched = bought.matched.as_ref();
    matched.map(|matched| format!("  matched {} lots", matched.lots)).unwrap_or_default()
}
