//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use hashpit_client::mint::Route;
use hashpit_client::wallet::MintUrl;
use nostr_sdk::{PublicKey, RelayUrl};

use crate::trade::args as trade;
use crate::trade::settle::args as settle;

/// Ehash on Nostr: mine, hold and trade tokens for work done.
///
/// `hashpit up` starts everything on this machine: a relay, a mint, a pool on a
/// chain of its own, an exchange, a CPU miner, and a wallet that collects the
/// ehash.
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
    /// Start relay, mint, pool, exchange, CPU miner and wallet in one process.
    Up(Up),
    /// Run a Nostr relay.
    Relay(Relay),
    /// Run a pool with its mint, on the relays of the configuration.
    Pool(Pool),
    /// Run an exchange for the ehash of the configured pools.
    ///
    /// At start its journal is compared with what the relays hold of it, and
    /// fetched from them if it is not on this disk.
    Exchange(Exchange),
    /// Let your own mining devices, Stratum V1 or V2, mine for this wallet.
    ///
    /// The wallet in the data directory is opened, or made, and what the devices
    /// earn at the pool is claimed into it.
    Proxy(Proxy),
    /// Run a watchtower: finish the claims of sellers who are away.
    ///
    /// Sellers name its npub, which it prints, under `[trade] watchers`. It needs
    /// relays that they write to, under `[watch]` in the configuration.
    Watch,
    /// Hold, send, receive and claim ehash.
    Wallet(Wallet),
    /// Make, change and cancel offers at an exchange.
    Offer(trade::Offer),
    /// Show a market's book: who pays how much for ehash.
    Book(trade::Book),
    /// Settle your matches, and see how far they are.
    Trade(settle::Trade),
    /// Show what was traded.
    Trades(trade::Trades),
    /// Show an exchange's markets and rules.
    Market(trade::Market),
    /// Check what an exchange did against what it published.
    Audit(crate::audit::Audit),
    /// Print a script that completes hashpit's commands in a shell.
    ///
    /// For bash: `hashpit completions bash > ~/.local/share/bash-completion/completions/hashpit`
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// True for roles that an operator watches by their log.
    pub fn is_server(&self) -> bool {
        matches!(
            self,
            Self::Relay(_) | Self::Pool(_) | Self::Exchange(_) | Self::Proxy(_) | Self::Watch
        )
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
    /// It is backed up on the relay too.
    Backup,
    /// Part of it is on offer at the exchange.
    Offer,
    /// A second wallet's bid has met the offer.
    Match,
    /// The two have settled it: ehash and sats have changed hands.
    Trade,
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
pub struct Exchange {
    /// This exchange's key never traded, or only from this directory: start
    /// although the relays cannot be asked whether they hold more of its journal.
    #[arg(long)]
    pub new: bool,
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
    ///
    /// It has to be the operator of the first --pool: its signed statements are
    /// compared with the work that was acknowledged there.
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
    /// How to reach mints: auto, http, or nostr (through the pool's relays).
    ///
    /// Auto takes HTTP where the mint's host answers, else Nostr.
    #[arg(long, global = true, value_name = "WAY", default_value = "auto")]
    pub via: Route,
    #[command(subcommand)]
    pub command: WalletCommand,
}

#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a wallet and show its twelve words.
    Init(Init),
    /// Bring a wallet back from its twelve words, read from stdin.
    ///
    /// A relay that holds its backup is enough; so is a mint, which is slower.
    Restore(Restore),
    /// Show the wallet's public keys, and what else is asked for.
    Keys(Keys),
    /// Show what there is to spend.
    Balance,
    /// Fetch the ehash that a pool owes this wallet's npub.
    ///
    /// Everything goes through a relay. The pool and the relay are remembered,
    /// so that they need be named only once.
    Claim(Claim),
    /// Take ehash out of the wallet, as a token string to hand over.
    Send(Send),
    /// Put a token string into the wallet, or with --inbox those that were sent
    /// to its npub.
    Receive(Receive),
    /// Turn sats of Lightning into tokens: prints an invoice and waits until it is
    /// paid.
    ///
    /// Cut short, it goes on when it is repeated; and once the invoice is paid, any
    /// command that spends or receives takes the tokens.
    Deposit(Deposit),
    /// Pay a Lightning invoice from the wallet's sats.
    Withdraw(Withdraw),
    /// Show what came in and went out, newest first.
    History(History),
    /// Take back a token that nobody has received.
    Reclaim(Reclaim),
    /// Back the wallet up to Nostr relays, encrypted.
    ///
    /// The relays are remembered, so that they need be named only once.
    #[command(args_conflicts_with_subcommands = true)]
    Backup(Backup),
    /// Pay a payment request (NUT-18, `creqA…`), or an npub by an encrypted
    /// message (NIP-17).
    Pay(Pay),
    /// Print a payment request (NUT-18) to this wallet's npub.
    Request(Request),
    /// Deliver payments that have not arrived yet, or take one back.
    Outbox(Outbox),
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// Encrypt the words with a password (NIP-49).
    #[arg(long)]
    pub encrypt: bool,
    /// Leave the Nostr identity with a remote signer (NIP-46): `bunker://…`, or
    /// `-` to read it from stdin, where no other user sees its secret.
    #[arg(long, value_name = "BUNKER")]
    pub signer: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Restore {
    /// A relay that holds the backup; may be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// A mint to ask for everything of this seed; may be repeated.
    #[arg(long = "mint", value_name = "URL")]
    pub mints: Vec<MintUrl>,
    /// Encrypt the words with a password (NIP-49).
    #[arg(long)]
    pub encrypt: bool,
    /// The remote signer that held the Nostr identity (NIP-46): `bunker://…`, or
    /// `-` to read it from stdin, as a second line after the words.
    #[arg(long, value_name = "BUNKER")]
    pub signer: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Keys {
    /// Show the npub as a QR code too.
    #[arg(long)]
    pub qr: bool,
    /// Show the twelve words.
    #[arg(long)]
    pub words: bool,
    /// Show the Nostr secret key, encrypted with a password (NIP-49).
    #[arg(long)]
    pub ncryptsec: bool,
    /// Encrypt the stored words with a password from now on.
    #[arg(long, conflicts_with = "decrypt")]
    pub encrypt: bool,
    /// Store the words without a password from now on.
    #[arg(long)]
    pub decrypt: bool,
}

#[derive(Debug, clap::Args)]
pub struct History {
    /// Entries to show.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Show each batch of a pool by itself.
    #[arg(long)]
    pub batches: bool,
}

#[derive(Debug, clap::Args)]
pub struct Reclaim {
    /// The token's id, or its end, as `history` shows it.
    pub id: String,
}

#[derive(Debug, clap::Args)]
pub struct Backup {
    /// A relay to keep the backup, in the place of those set before; may be
    /// repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Relays that must hold a token before it counts as backed up; more than
    /// half, if not set.
    #[arg(long, value_name = "N", value_parser = parse_quorum)]
    pub quorum: Option<usize>,
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
}

fn parse_quorum(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&quorum| quorum > 0).ok_or("a number of 1 or more".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Show what each relay is known to hold; asks none.
    Status,
    /// Read everything back from each relay and compare.
    Verify,
    /// Send again what relays have lost, and delete what they should not have.
    Repair,
}

#[derive(Debug, clap::Args)]
pub struct Pay {
    /// Whom: `creqA…`, npub or nprofile.
    pub payee: String,
    /// Units, where the request does not say.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub amount: Option<u64>,
    /// Unit, where the wallet holds several: `hash_02…_<height>`.
    #[arg(long)]
    pub unit: Option<String>,
    /// A relay that the payee reads; may be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Pay once more, although a payment of this amount to the same payee waits.
    ///
    /// Without it a payment that failed half way may be repeated safely: it is
    /// delivered, or refused, and never paid twice.
    #[arg(long)]
    pub again: bool,
}

#[derive(Debug, clap::Args)]
pub struct Request {
    /// Units; without it the payer chooses.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub amount: Option<u64>,
    /// Unit, where the wallet knows several: `hash_02…_<height>`.
    #[arg(long)]
    pub unit: Option<String>,
    /// A mint that will do; may be repeated. Otherwise those known for the unit.
    #[arg(long = "mint", value_name = "URL")]
    pub mints: Vec<String>,
    /// A relay to be paid through; may be repeated. Otherwise the pools'.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Shown to the payer.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct Outbox {
    /// Put the payment of this id back into the wallet instead.
    #[arg(long, value_name = "ID")]
    pub take_back: Option<String>,
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
    /// Show the token as a QR code too.
    #[arg(long)]
    pub qr: bool,
}

#[derive(Debug, clap::Args)]
pub struct Deposit {
    /// Sats.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub sats: u64,
    /// The mint, where the wallet knows several or none.
    #[arg(long, value_name = "URL")]
    pub mint: Option<MintUrl>,
    /// Show the invoice as a QR code too.
    #[arg(long)]
    pub qr: bool,
}

#[derive(Debug, clap::Args)]
pub struct Withdraw {
    /// What to pay: a BOLT 11 invoice, `lnbc…`.
    pub invoice: String,
    /// The mint to pay from; otherwise the one that holds most.
    #[arg(long, value_name = "URL")]
    pub mint: Option<MintUrl>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, clap::Args)]
pub struct Receive {
    /// The token, `cashuB…`; `-` or nothing reads it from stdin.
    pub token: Option<String>,
    /// A relay of the token's pool, where its mint cannot be reached and the
    /// pool is new to this wallet; with --inbox, one to look at. May be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Receive the tokens that were sent to this wallet's npub.
    #[arg(long, conflicts_with = "token")]
    pub inbox: bool,
    /// With --inbox: also tokens of mints that this wallet does not know.
    #[arg(long, requires = "inbox")]
    pub any_mint: bool,
}
