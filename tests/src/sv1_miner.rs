//! A small Stratum V1 miner on the CPU, to mine under a translator: subscribe,
//! configure, authorize, then notify in and submit out. It rolls extranonce2,
//! time stays as given, and it counts the answers that it gets.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bitcoin::block::{Header, Version};
use bitcoin::hashes::{Hash, sha256d};
use bitcoin::{BlockHash, CompactTarget, Target, TxMerkleNode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// How long the pool may take to answer anything. Only a test that fails waits
/// so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nonces hashed between two looks at what the pool says.
const BATCH: u32 = 20_000;

/// What became of the shares so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Shares sent.
    pub submitted: u64,
    /// Answered `true`.
    pub accepted: u64,
    /// Answered otherwise, by the reason given.
    pub rejected: BTreeMap<String, u64>,
}

/// What a device says first.
#[derive(Debug, Clone, Copy)]
pub struct Handshake<'a> {
    /// Its lines, word for word.
    pub lines: &'a [&'a str],
    /// Whether it sends them all before it reads an answer.
    pub pipelined: bool,
    /// Whether its submissions name the version's rolled bits.
    pub rolls_version: bool,
    /// The user that it submits for.
    pub user: &'a str,
}

/// A connected miner.
pub struct Sv1Miner {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    user: String,
    rolls_version: bool,
    next_id: u64,
    extranonce1: Vec<u8>,
    extranonce2_size: usize,
    extranonce2: u64,
    target: Target,
    work: Option<Work>,
    submitted_at: Instant,
    /// Submissions that have no answer yet.
    waiting: HashMap<u64, ()>,
    tally: Tally,
}

/// A `mining.notify`.
#[derive(Debug, Clone)]
struct Work {
    job_id: String,
    prev_hash: [u8; 32],
    coinbase: [Vec<u8>; 2],
    branch: Vec<[u8; 32]>,
    version: u32,
    bits: u32,
    time: u32,
}

/// One header of a [`Work`], and how far its nonces are tried.
struct Attempt {
    header: Header,
    extranonce2: Vec<u8>,
}

impl Sv1Miner {
    /// Connects, subscribes and authorizes as `user`; returns once there is
    /// work.
    pub async fn connect(server: SocketAddr, user: &str) -> Result<Self> {
        let mut miner = Self::open(server, user, true).await?;
        let rolling = json!([["version-rolling"], {"version-rolling.mask": "1fffe000", "version-rolling.min-bit-count": 2}]);
        miner.call("mining.configure", rolling).await?;
        let subscribed = miner.call("mining.subscribe", json!(["hashpit-tests"])).await?;
        miner.extranonce1 = hex::decode(subscribed[1].as_str().context("no extranonce1")?)?;
        miner.extranonce2_size =
            subscribed[2].as_u64().context("no extranonce2 size")?.try_into()?;
        let authorized = miner.call("mining.authorize", json!([user, "x"])).await?;
        if authorized != Value::Bool(true) {
            bail!("{user} is not authorized: {authorized}");
        }
        while miner.work.is_none() {
            miner.hear().await?;
        }
        Ok(miner)
    }

    /// Connects with a device's own words; returns once there is work.
    pub async fn shake_hands(server: SocketAddr, handshake: Handshake<'_>) -> Result<Self> {
        let Handshake { lines, pipelined, rolls_version, user } = handshake;
        let mut miner = Self::open(server, user, rolls_version).await?;
        let mut asked = Vec::new();
        for line in lines {
            let request: Value = serde_json::from_str(line)?;
            miner.write.write_all(format!("{line}\n").as_bytes()).await?;
            asked.push(request["id"].clone());
            while !pipelined && !asked.is_empty() {
                miner.hear_answer(&mut asked).await?;
            }
        }
        while !asked.is_empty() {
            miner.hear_answer(&mut asked).await?;
        }
        // Submissions have ids of their own.
        miner.next_id = 1_000;
        while miner.work.is_none() {
            miner.hear().await?;
        }
        Ok(miner)
    }

    /// Takes a message; if it answers one of those asked, notes what it says.
    async fn hear_answer(&mut self, asked: &mut Vec<Value>) -> Result<()> {
        let message = self.next_line().await?;
        let answered = asked.iter().position(|id| *id == message["id"]);
        let Some(answered) = answered.filter(|_| message.get("method").is_none()) else {
            return self.take(&message);
        };
        asked.remove(answered);
        if !message["error"].is_null() {
            bail!("the server refused: {message}");
        }
        let result = &message["result"];
        if let (Some(extranonce1), Some(size)) = (result[1].as_str(), result[2].as_u64()) {
            self.extranonce1 = hex::decode(extranonce1)?;
            self.extranonce2_size = size.try_into()?;
        }
        Ok(())
    }

    async fn open(server: SocketAddr, user: &str, rolls_version: bool) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self {
            lines: BufReader::new(read).lines(),
            write,
            user: user.to_owned(),
            rolls_version,
            next_id: 0,
            extranonce1: Vec::new(),
            extranonce2_size: 0,
            extranonce2: 0,
            target: Target::ZERO,
            work: None,
            submitted_at: Instant::now(),
            waiting: HashMap::new(),
            tally: Tally::default(),
        })
    }

    /// The target that it was set.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Bytes of extranonce that it rolls.
    pub fn extranonce2_size(&self) -> usize {
        self.extranonce2_size
    }

    /// Reads on until the extranonce has changed.
    pub async fn moved(&mut self) -> Result<()> {
        let before = self.extranonce1.clone();
        while self.extranonce1 == before {
            self.hear().await?;
        }
        self.work = None;
        while self.work.is_none() {
            self.hear().await?;
        }
        Ok(())
    }

    /// Reads on until the server has hung up.
    pub async fn hung_up(&mut self) {
        while self.hear().await.is_ok() {}
    }

    /// Mines until `shares` of them have been answered, one way or the other.
    pub async fn mine(&mut self, shares: u64) -> Result<Tally> {
        let until = self.answered() + shares;
        while self.answered() < until {
            // Look before every batch, so that no stale work is hashed for long.
            while let Ok(heard) = tokio::time::timeout(Duration::ZERO, self.lines.next_line()).await
            {
                let line = heard?.context("the server hung up")?;
                self.take(&serde_json::from_str(&line)?)?;
            }
            if self.answered() + (self.waiting.len() as u64) < until {
                self.hash().await?;
            } else if !self.waiting.is_empty() {
                self.hear().await?;
            }
        }
        Ok(self.tally.clone())
    }

    /// Mines a share, and returns how long its answer took.
    pub async fn timed_share(&mut self) -> Result<Duration> {
        while self.waiting.is_empty() {
            self.hash().await?;
        }
        while !self.waiting.is_empty() {
            self.hear().await?;
        }
        Ok(self.submitted_at.elapsed())
    }

    /// The answers so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    fn answered(&self) -> u64 {
        self.tally.accepted + self.tally.rejected.values().sum::<u64>()
    }

    /// Hashes a batch of a fresh extranonce2, and submits the first share in it.
    async fn hash(&mut self) -> Result<()> {
        let work = self.work.clone().context("no work")?;
        self.extranonce2 += 1;
        let attempt = self.attempt(&work)?;
        let (target, mut header) = (self.target, attempt.header);
        // Off the async workers: a batch takes some milliseconds.
        let found = tokio::task::spawn_blocking(move || {
            (0..BATCH).find(|nonce| {
                header.nonce = *nonce;
                target.is_met_by(header.block_hash())
            })
        })
        .await?;
        let Some(nonce) = found else { return Ok(()) };
        let mut params = vec![
            self.user.clone(),
            work.job_id,
            hex::encode(attempt.extranonce2),
            format!("{:08x}", attempt.header.time),
            format!("{nonce:08x}"),
        ];
        if self.rolls_version {
            params.push(format!("{:08x}", 0));
        }
        self.submitted_at = Instant::now();
        let id = self.send("mining.submit", json!(params)).await?;
        self.waiting.insert(id, ());
        self.tally.submitted += 1;
        Ok(())
    }

    fn attempt(&self, work: &Work) -> Result<Attempt> {
        let mut extranonce2 = self.extranonce2.to_le_bytes().to_vec();
        extranonce2.resize(self.extranonce2_size, 0);
        let [first, second] = &work.coinbase;
        let coinbase = [first.as_slice(), &self.extranonce1, &extranonce2, second].concat();
        let root = work.branch.iter().fold(sha256d::Hash::hash(&coinbase), |node, sibling| {
            sha256d::Hash::hash(&[node.to_byte_array(), *sibling].concat())
        });
        let header = Header {
            version: Version::from_consensus(work.version.cast_signed()),
            prev_blockhash: BlockHash::from_byte_array(work.prev_hash),
            merkle_root: TxMerkleNode::from_raw_hash(root),
            time: work.time,
            bits: CompactTarget::from_consensus(work.bits),
            nonce: 0,
        };
        Ok(Attempt { header, extranonce2 })
    }

    async fn send(&mut self, method: &str, params: Value) -> Result<u64> {
        self.next_id += 1;
        let line = format!("{}\n", json!({"id": self.next_id, "method": method, "params": params}));
        tokio::time::timeout(PATIENCE, self.write.write_all(line.as_bytes())).await??;
        Ok(self.next_id)
    }

    /// Sends a request and returns its result.
    async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let id = self.send(method, params).await?;
        loop {
            let message = self.next_line().await?;
            if message["id"].as_u64() == Some(id) && message.get("method").is_none() {
                return match &message["error"] {
                    Value::Null => Ok(message["result"].clone()),
                    error => bail!("{method}: {error}"),
                };
            }
            self.take(&message)?;
        }
    }

    /// Takes the next message.
    async fn hear(&mut self) -> Result<()> {
        let message = self.next_line().await?;
        self.take(&message)
    }

    async fn next_line(&mut self) -> Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.context("the server sent nothing")??.context("the server hung up")?;
        Ok(serde_json::from_str(&line)?)
    }

    fn take(&mut self, message: &Value) -> Result<()> {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("mining.set_difficulty") => {
                self.target = target_of(params[0].as_f64().context("no difficulty")?);
            }
            Some("mining.notify") => self.work = Some(Work::parse(params)?),
            Some("mining.set_extranonce") => {
                self.extranonce1 = hex::decode(params[0].as_str().context("no extranonce1")?)?;
                self.extranonce2_size = params[1].as_u64().context("no size")?.try_into()?;
            }
            Some(_) => {}
            None => self.take_answer(message),
        }
        Ok(())
    }

    fn take_answer(&mut self, message: &Value) {
        let known = message["id"].as_u64().and_then(|id| self.waiting.remove(&id));
        if known.is_none() {
            return;
        }
        if message["result"] == Value::Bool(true) {
            self.tally.accepted += 1;
        } else {
            *self.tally.rejected.entry(message["error"].to_string()).or_default() += 1;
        }
    }
}

impl Work {
    fn parse(params: &Value) -> Result<Self> {
        let text = |index: usize| params[index].as_str().context("a notify lacks a field");
        let number = |index| anyhow::Ok(u32::from_str_radix(text(index)?, 16)?);
        let branch = params[4].as_array().context("no Merkle branch")?.iter();
        Ok(Self {
            job_id: text(0)?.to_owned(),
            prev_hash: prev_hash(text(1)?)?,
            coinbase: [hex::decode(text(2)?)?, hex::decode(text(3)?)?],
            branch: branch
                .map(|node| hash(node.as_str().context("a Merkle node is no string")?))
                .collect::<Result<_>>()?,
            version: number(5)?,
            bits: number(6)?,
            time: number(7)?,
        })
    }
}

fn hash(digits: &str) -> Result<[u8; 32]> {
    let bytes = hex::decode(digits)?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{digits} is no hash"))
}

/// Stratum V1 sends the previous hash in words of four bytes, each reversed.
fn prev_hash(digits: &str) -> Result<[u8; 32]> {
    let mut bytes = hash(digits)?;
    bytes.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    Ok(bytes)
}

/// The target of a difficulty, which Stratum V1 gives as a float: difficulty 1
/// is 0xffff × 2^208.
fn target_of(difficulty: f64) -> Target {
    // The upper 16 bytes hold all the precision that a float has.
    let high = f64::from(0xffff_u32) * 2f64.powi(80) / difficulty;
    let mut bytes = [0xff; 32];
    bytes[16..].copy_from_slice(&(high as u128).to_le_bytes());
    Target::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difficulty_one_is_its_target() {
        let one = Target::from_compact(CompactTarget::from_consensus(0x1d00_ffff));
        assert!(target_of(1.0) >= one);
        assert!((target_of(1.0).difficulty_float() - 1.0).abs() < 1e-4);
        assert!((target_of(0.001).difficulty_float() - 0.001).abs() < 1e-7);
    }

    #[test]
    fn words_of_the_previous_hash_are_reversed() {
        let digits = format!("01020304{}", "00".repeat(28));
        assert_eq!(prev_hash(&digits).unwrap()[..5], [4, 3, 2, 1, 0]);
        assert!(prev_hash("0102").is_err());
    }
}
