//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use nostr_sdk::{PublicKey, RelayUrl};

/// Ehash on Nostr: mine, hold and trade tokens for work done.
///
/// `hashpit up` starts everything on this machine: a relay, a mint, a pool on a
/// chain of its own, a CPU miner, and a wallet that collects the ehash.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Args {
    /// Settings; `hashpit.example.toml` lists them all.
    #[arg(long, global = true, env = "HASHPIT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where seeds, databases and blocks are kept.
    #[arg(
        long,
        global = true,
        env = "HASHPIT_DATA_DIR",
        value_name = "DIR",
        default_value = "hashpit-data"
    )]
    pub data_dir: PathBuf,
    /// Say more: -v life cycle, -vv every message.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start relay, mint, pool, CPU miner and wallet in one process.
    Up(Up),
    /// Run a Nostr relay.
    Relay(Relay),
    /// Run a pool with its mint, on the relays of the configuration.
    Pool(Pool),
    /// Let your own mining devices, Stratum V1 or V2, mine for this wallet.
    ///
    /// The wallet in the data directory is opened, or made, and what the devices
    /// earn at the pool is claimed into it.
    Proxy(Proxy),
    /// Hold, send, receive and claim ehash.
    Wallet(Wallet),
}

impl Command {
    /// True for roles that an operator watches by their log.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Relay(_) | Self::Pool(_) | Self::Proxy(_))
    }
}

#[derive(Debug, clap::Args)]
pub struct Up {
    /// First of five ports (relay, mint, Sv2, proxy Sv1 and Sv2); 0 picks free ones.
    #[arg(long, value_name = "PORT")]
    pub port_base: Option<u16>,
    /// Stop, with status 0, once this is reached.
    #[arg(long, value_name = "MILESTONE")]
    pub exit_after: Option<Milestone>,
    /// Print one line of JSON on stdout at the end.
    #[arg(long)]
    pub json: bool,
    /// Start no CPU miner; point one of your own at the Sv2 port.
    #[arg(long)]
    pub no_miner: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Milestone {
    /// The miner's wallet holds ehash.
    Ehash,
}

#[derive(Debug, clap::Args)]
pub struct Relay {
    /// Port to listen on; 0 picks a free one.
    #[arg(long)]
    pub port: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub struct Pool {
    /// First of two ports (mint, Sv2); 0 picks free ones.
    #[arg(long, value_name = "PORT")]
    pub port_base: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub struct Proxy {
    /// A pool's address; may be repeated, the best first.
    #[arg(long = "pool", value_name = "HOST:PORT")]
    pub pools: Vec<String>,
    /// The pool's Sv2 authority key; one for each --pool, or one for all.
    #[arg(long = "authority", value_name = "KEY")]
    pub authorities: Vec<String>,
    /// The pool's npub, to claim from it; the wallet remembers it.
    #[arg(long)]
    pub npub: Option<PublicKey>,
    /// A relay that the pool reads; may be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Where Stratum V1 devices connect, in place of the configuration's port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub sv1: Option<SocketAddr>,
    /// Where Stratum V2 devices connect, in place of the configuration's port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub sv2: Option<SocketAddr>,
    /// One channel at the pool for all Stratum V1 devices.
    #[arg(long)]
    pub aggregate: bool,
    /// Seconds between two reports.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub interval: u64,
    /// Print a line of JSON on stdout at each report.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Wallet {
    /// Print JSON on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: WalletCommand,
}

#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a wallet and show its twelve words, once.
    Init,
    /// Show what there is to spend.
    Balance,
    /// Fetch the ehash that a pool owes this wallet's npub.
    ///
    /// Everything goes through a relay. The pool and the relay are remembered,
    /// so that they need be named only once.
    Claim(Claim),
    /// Take ehash out of the wallet, as a token string to hand over.
    Send(Send),
    /// Put a token string into the wallet.
    Receive(Receive),
}

#[derive(Debug, clap::Args)]
pub struct Claim {
    /// The pool's npub.
    #[arg(long)]
    pub pool: Option<PublicKey>,
    /// A relay that the pool reads; may be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Seconds to wait for what is due.
    #[arg(long, default_value_t = 30)]
    pub wait: u64,
    /// Go on until stopped.
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, clap::Args)]
pub struct Send {
    /// Units to send.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub amount: u64,
    /// Unit, where the wallet holds several: `hash_02…_<height>`.
    #[arg(long)]
    pub unit: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Receive {
    /// The token, `cashuB…`; `-` or nothing reads it from stdin.
    pub token: Option<String>,
}
