//! A relay of another make: `nostr-rs-relay`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hashpit_tests::process::{Process, free_port};
use nostr_sdk::RelayUrl;
use tokio_tungstenite::connect_async;

use crate::{PAUSE, program};

/// A running relay.
pub struct ForeignRelay {
    /// Where it listens.
    pub url: RelayUrl,
    _process: Process,
}

impl ForeignRelay {
    /// Starts one that keeps its events in `dir`; returns once it takes
    /// connections.
    pub async fn start(dir: &Path) -> Result<Self> {
        let port = free_port()?;
        let config = dir.join("relay.toml");
        std::fs::write(&config, format!("[network]\naddress = \"127.0.0.1\"\nport = {port}\n"))?;
        let mut command = Command::new(program("nostr-rs-relay")?);
        command.env("NO_COLOR", "1").env("RUST_LOG", "info");
        command.arg("--config").arg(&config).arg("--db").arg(dir);
        let process = Process::start(&mut command, &dir.join("relay.log"))?;
        let url = format!("ws://127.0.0.1:{port}");
        while connect_async(&url).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Self { url: url.parse()?, _process: process })
    }
}
