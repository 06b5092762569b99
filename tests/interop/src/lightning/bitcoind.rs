//! Bitcoin Core on a regtest chain, over its JSON-RPC.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hashpit_tests::process::{Process, free_port};
use ldk_node::bitcoin::base64::Engine;
use ldk_node::bitcoin::base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PAUSE, program};

/// Whose coinbases nobody needs: the example address of BIP-173, on regtest.
const NOBODY: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

/// A running node without peers. It ends when dropped.
pub struct Bitcoind {
    /// Its RPC port.
    pub rpc_port: u16,
    cookie: PathBuf,
    process: Process,
}

impl Bitcoind {
    /// Starts one that keeps its chain in `dir`; returns once it answers.
    pub async fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let rpc_port = free_port()?;
        let mut command = Command::new(program("bitcoind")?);
        command.arg(format!("-datadir={}", dir.display())).arg(format!("-rpcport={rpc_port}"));
        command.args(["-regtest", "-listen=0", "-connect=0", "-dnsseed=0", "-printtoconsole=0"]);
        let process = Process::start(&mut command, &dir.join("output.log"))?;
        let mut it = Self { rpc_port, cookie: dir.join("regtest/.cookie"), process };
        while it.height().await.is_err() {
            ensure!(it.process.ended()?.is_none(), "bitcoind ended: {}", it.process.output());
            tokio::time::sleep(PAUSE).await;
        }
        Ok(it)
    }

    /// The user and password of its RPC.
    pub fn credentials(&self) -> Result<(String, String)> {
        let cookie = fs::read_to_string(&self.cookie)?;
        let (user, password) = cookie.split_once(':').context("a cookie without a colon")?;
        Ok((user.to_owned(), password.to_owned()))
    }

    /// Mines blocks that pay nobody.
    pub async fn mine(&self, blocks: u32) -> Result<()> {
        self.mine_to(blocks, NOBODY).await
    }

    /// Mines blocks that pay `address`.
    pub async fn mine_to(&self, blocks: u32, address: &str) -> Result<()> {
        self.call("generatetoaddress", json!([blocks, address])).await.map(drop)
    }

    /// Height of the best block.
    pub async fn height(&self) -> Result<u32> {
        let height = self.call("getblockcount", json!([])).await?;
        Ok(height.as_u64().context("no number")?.try_into()?)
    }

    /// Waits for a transaction to be mined.
    pub async fn until_mempool_holds_one(&self) -> Result<()> {
        while self.call("getrawmempool", json!([])).await? == json!([]) {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Ends it in good order.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "bitcoind ended with {status}");
        Ok(())
    }

    async fn call(&self, method: &str, params: Value) -> Result<Value> {
        let credentials = STANDARD.encode(fs::read_to_string(&self.cookie)?);
        let body = json!({ "method": method, "params": params }).to_string();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {credentials}\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.rpc_port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let mut body: Value = serde_json::from_str(body)?;
        ensure!(body["error"].is_null(), "{method}: {}", body["error"]);
        Ok(body["result"].take())
    }
}
