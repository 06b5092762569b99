//! The one binary: every role, and the wallet.
//!
//! | module | what lives in it |
//! |---|---|
//! | `args` | the command line |
//! | `audit` | what anyone may check of an exchange |
//! | `config` | the configuration file |
//! | `listen` | addresses, ports, and binding them |
//! | `up` | every role in one process |
//! | `claiming` | claiming that goes on for ever |
//! | `proxy` | devices of one's own, mining for the wallet |
//! | `settling` | settling that goes on for ever |
//! | `roles` | one role for operators |
//! | `wallet` | the wallet's commands |
//! | `trade` | offers, books and trades |
//! | `terminal` | tables, QR codes, progress bars, questions |

mod args;
mod audit;
mod claiming;
mod config;
mod listen;
mod proxy;
mod roles;
mod settling;
mod terminal;
mod trade;
mod up;
mod wallet;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use args::{Args, Command};
use clap::{CommandFactory, Parser};
use config::Config;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    log(&args);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hashpit: {}", in_words(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = on_signal()?;
        let config = Config::load(args.config.as_deref())?;
        let dir = &args.data_dir;
        match args.command {
            Command::Up(options) => up::run(options, config, dir, shutdown).await,
            Command::Relay(options) => roles::relay(options, config, dir, shutdown).await,
            Command::Pool(options) => roles::pool(options, config, dir, shutdown).await,
            Command::Exchange(options) => roles::exchange(options, config, dir, shutdown).await,
            Command::Proxy(options) => proxy::run(options, config, dir, shutdown).await,
            Command::Wallet(options) => wallet::run(options, dir, shutdown).await,
            Command::Watch => roles::watch(config.watch, dir, shutdown).await,
            Command::Offer(options) => {
                trade::offer(options, &config.trade, dir, args.config.as_deref()).await
            }
            Command::Trade(options) => trade::trade(options, &config.trade, dir, shutdown).await,
            Command::Book(options) => trade::book(options, &config.trade, dir, shutdown).await,
            Command::Trades(options) => trade::trades(options, &config.trade, dir, shutdown).await,
            Command::Market(options) => trade::market(options, &config.trade, dir).await,
            Command::Audit(options) => audit::run(options, &config.trade).await,
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Args::command(), "hashpit", &mut io::stdout());
                Ok(())
            }
        }
    })
}

/// An error and what caused it, without what was said already. Mints, shops and
/// relays may have written parts of it.
fn in_words(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let words = causes.fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.contains(&cause) => said.to_owned(),
        said => format!("{said}: {cause}"),
    });
    terminal::printable(&words)
}

/// Cancelled by Ctrl-C or SIGTERM; a second one ends the process at once.
fn on_signal() -> io::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(shutdown)
}

/// Logs go to stderr: stdout is for results.
fn log(args: &Args) {
    let ours = match (args.verbose, args.command.is_server()) {
        (0, false) => "warn",
        (0, true) | (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let ours = ["", "_cli", "_client", "_exchange", "_mailbox", "_pool", "_relay"]
        .map(|name| format!("hashpit{name}={ours}"));
    // Libraries log failures that we handle, and then log ourselves.
    let quiet = "error,cdk=off,cdk_sql_common=off,cdk_sqlite=off,nostr_relay_pool=off";
    let default = format!("{quiet},{}", ours.join(","));
    let filter = std::env::var("HASHPIT_LOG").unwrap_or(default);
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_said_once_and_cannot_steer_the_terminal() {
        let error = anyhow::anyhow!("the mint said \u{1b}]0;pwned\u{7}").context("not received");
        let said = "not received: the mint said \u{fffd}]0;pwned\u{fffd}";
        assert_eq!(in_words(&error), said);
        assert_eq!(
            in_words(&error.context("all: the mint said \u{1b}]0;pwned\u{7}")),
            "all: the mint said \u{fffd}]0;pwned\u{fffd}: not received"
        );
    }
}
