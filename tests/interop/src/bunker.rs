//! A remote signer of another make (NIP-46): NDK's.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result};
use nostr_sdk::{Keys, RelayUrl};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// What a client has to know to be allowed everything.
pub const SECRET: &str = "s3cret";

/// A running remote signer. It ends when dropped.
pub struct Bunker {
    /// What pairs a client with it, the secret included.
    pub uri: String,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Bunker {
    /// Starts one that signs with `keys`; returns once it listens at `relay`.
    pub async fn start(relay: &RelayUrl, keys: &Keys) -> Result<Self> {
        let mut node = crate::ndk("bunker.mjs")?;
        node.args([relay.as_str(), &keys.secret_key().to_secret_hex(), SECRET]);
        let mut process = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let uri = lines.next_line().await?.context("NDK's signer has ended")?;
        Ok(Self { uri, process, lines })
    }

    /// Ends it. How often it was asked for what, by NIP-46's names.
    pub async fn stop(mut self) -> Result<BTreeMap<String, u64>> {
        drop(self.process.stdin.take());
        let asked = self.lines.next_line().await?.context("NDK's signer had ended before")?;
        self.process.wait().await?;
        Ok(serde_json::from_str(&asked)?)
    }
}
