//! Settling that goes on after a command has ended: a process of its own, which ends
//! once there is nothing left to do.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use hashpit_client::Wallet;
use hashpit_client::settle::Settler;
use hashpit_client::trade::Exchange;
use nostr_sdk::ToBech32;

use crate::terminal::PASSWORD;

/// Bytes of its log from which on the next process begins a new one.
const MAX_LOG: u64 = 1 << 20;

/// What the process has to be told.
pub struct Background<'a> {
    /// The configuration file, if there is one.
    pub config: Option<&'a Path>,
    /// Where the wallet's directory is.
    pub data_dir: &'a Path,
    /// The wallet's password, if it has one.
    pub password: Option<String>,
}

/// What came of it.
pub enum Started {
    /// A process of this id settles, and writes here.
    Now(u32, PathBuf),
    /// One settles already.
    Before,
}

impl Background<'_> {
    /// Starts a process that settles, unless one does.
    pub fn start(self, wallet: &Wallet, exchange: &Exchange) -> anyhow::Result<Started> {
        if Settler::is_running(wallet, exchange.key())? {
            return Ok(Started::Before);
        }
        let path = wallet.dir().join("trades.log");
        let log = log(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(config) = self.config {
            command.arg("--config").arg(config);
        }
        let Ok(npub) = exchange.key().to_bech32();
        command.arg("-v").arg("--data-dir").arg(self.data_dir);
        command.args(["trade", "watch", "--until-idle", "--exchange", &npub]);
        for relay in exchange.relays() {
            command.args(["--relay", relay.as_str()]);
        }
        match self.password {
            Some(password) => command.env(PASSWORD, password),
            None => command.env_remove(PASSWORD),
        };
        // A process group of its own: neither Ctrl-C nor the terminal's end reach it.
        command.process_group(0).stdin(Stdio::null());
        let child = command.stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.context("cannot start the process that settles")?;
        Ok(Started::Now(child.id(), path))
    }
}

fn log(path: &Path) -> std::io::Result<File> {
    let is_long = path.metadata().is_ok_and(|known| known.len() > MAX_LOG);
    if is_long {
        std::fs::remove_file(path)?;
    }
    File::options().create(true).append(true).mode(0o600).open(path)
}
