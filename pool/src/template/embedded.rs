//! A chain of the pool's own: a signet whose challenge is `OP_TRUE`, mined at
//! one fixed target, so that the whole system runs on one machine with no node.
//!
//! One task, [`EmbeddedChainTask`], owns the tip and the file of blocks;
//! [`EmbeddedChain`] is its handle. It promises that a block is on the disk
//! before the next tip is announced, and that a second start goes on from the
//! same tip.
//!
//! With `bits = "1e0377ae"` a real node takes its blocks (the first 2,016,
//! until that node's difficulty adjusts):
//! `bitcoind -signet -signetchallenge=51 -loadblock=<the file>`. Bitcoin Core's
//! signet accepts no other bits there, and the default is harder: those bits
//! are a block a second on one core.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bitcoin::block::{Header, Version};
use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash;
use bitcoin::{Block, BlockHash, CompactTarget, Transaction, TxMerkleNode};
use serde::Deserialize;
use stratum_apps::stratum_core::template_distribution_sv2::{
    NewTemplateOwned, SetNewPrevHashOwned, SubmitSolutionOwned,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blocks::{BlockFile, BlockFileError};
use super::rules::{self, Bits, RuleError, Tip};
use super::{CurrentTemplate, SubmitError, TemplateSource};

/// Commands that may wait for the chain's task. A full queue makes the caller
/// wait: blocks are rare and take a millisecond each.
const COMMAND_QUEUE: usize = 16;
/// Block version with no BIP-9 bit signalled.
const BLOCK_VERSION: u32 = 0x2000_0000;

/// Seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u32 + Send + Sync>;

/// The operating system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX)
    })
}

/// Settings of the embedded chain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// Proof-of-work target of every block, in compact form. It belongs to the
    /// chain: to change it, begin a new one.
    ///
    /// The default takes one CPU core about two minutes a block. Bitcoin Core
    /// follows a chain with `bits = "1e0377ae"` only, which takes a second.
    pub bits: Bits,
    /// Seconds between two templates on the same tip.
    pub refresh_secs: u64,
    /// Age in seconds at which the same tip is announced afresh. Miners may
    /// not roll a block's time more than two hours past its announcement, so
    /// a tip must not get as old as that.
    pub reannounce_secs: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self { bits: Bits::ONE_CORE, refresh_secs: 30, reannounce_secs: 60 * 60 }
    }
}

/// Why the embedded chain does not open.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The file of blocks cannot be used.
    #[error(transparent)]
    File(#[from] BlockFileError),
    /// A stored block breaks a rule.
    #[error("stored block {height} is invalid: {source}")]
    Block {
        /// Its height.
        height: u32,
        /// The rule.
        source: RuleError,
    },
}

/// A handle on the embedded chain; cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddedChain {
    current: watch::Receiver<Arc<CurrentTemplate>>,
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Command {
    Submit(SubmitSolutionOwned, oneshot::Sender<Result<(), SubmitError>>),
    Read(u32, oneshot::Sender<Result<Option<Block>, SubmitError>>),
}

impl EmbeddedChain {
    /// Opens the chain kept in the file at `path`, or begins one there.
    ///
    /// Nothing is announced or refreshed until the caller runs the task.
    pub fn open(
        config: EmbeddedConfig,
        path: &Path,
        clock: Clock,
    ) -> Result<(Self, EmbeddedChainTask), EmbeddedError> {
        let (file, blocks) = BlockFile::open(path, rules::magic())?;
        let mut tip = Tip::genesis();
        for block in &blocks {
            let height = tip.height + 1;
            tip.check(block, config.bits, None)
                .map_err(|source| EmbeddedError::Block { height, source })?;
            tip = tip.extend(block);
        }
        let mut state =
            State { config, clock, tip, template_id: 0, first_id_of_tip: 1, announcement: 0 };
        tracing::info!(height = state.tip.height, tip = %state.tip.hash, "opened the embedded chain");
        let (current, receiver) = watch::channel(Arc::new(state.announce()));
        let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
        let task = EmbeddedChainTask { state, file: Arc::new(Mutex::new(file)), current, inbox };
        Ok((Self { current: receiver, commands }, task))
    }

    /// Height of the newest block; 0 is signet's genesis.
    pub fn height(&self) -> u32 {
        self.current.borrow().height - 1
    }

    /// Hash of the newest block.
    pub fn tip(&self) -> BlockHash {
        BlockHash::from_byte_array(self.current.borrow().prev_hash.prev_hash.to_array())
    }

    /// The block at `height`, if the chain reaches that far. Genesis is not
    /// stored.
    pub async fn block(&self, height: u32) -> Result<Option<Block>, SubmitError> {
        self.ask(|reply| Command::Read(height, reply)).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, SubmitError>>) -> Command,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| SubmitError::Stopped)?;
        answer.await.map_err(|_| SubmitError::Stopped)?
    }
}

#[async_trait]
impl TemplateSource for EmbeddedChain {
    fn subscribe(&self) -> watch::Receiver<Arc<CurrentTemplate>> {
        self.current.clone()
    }

    async fn submit(&self, solution: SubmitSolutionOwned) -> Result<(), SubmitError> {
        self.ask(|reply| Command::Submit(solution, reply)).await
    }
}

/// Owns the chain; the caller runs it.
#[derive(Debug)]
pub struct EmbeddedChainTask {
    state: State,
    /// Behind a lock only so that blocking threads can write; they are never
    /// two at a time.
    file: Arc<Mutex<BlockFile>>,
    current: watch::Sender<Arc<CurrentTemplate>>,
    inbox: mpsc::Receiver<Command>,
}

impl EmbeddedChainTask {
    /// Takes blocks and refreshes templates until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut refresh =
            tokio::time::interval(Duration::from_secs(self.state.config.refresh_secs.max(1)));
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        refresh.reset();
        let mut announced = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if self.handle(command).await {
                            announced = Instant::now();
                            refresh.reset();
                        }
                    }
                    None => return,
                },
                _ = refresh.tick() => {
                    let old = announced.elapsed().as_secs() >= self.state.config.reannounce_secs;
                    let next = if old { self.state.announce() } else { self.state.refresh() };
                    if old {
                        announced = Instant::now();
                    }
                    self.current.send_replace(Arc::new(next));
                }
            }
        }
    }

    /// Answers `command`; `true` if the tip moved. A reply that nobody waits
    /// for any more is dropped.
    async fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(solution, reply) => {
                let taken = self.submit(solution).await;
                let moved = taken.is_ok();
                let _ = reply.send(taken);
                moved
            }
            Command::Read(height, reply) => {
                let block = self.with_file(move |file| file.read(height)).await;
                let _ = reply.send(block.map_err(SubmitError::Store));
                false
            }
        }
    }

    async fn submit(&mut self, solution: SubmitSolutionOwned) -> Result<(), SubmitError> {
        let block = self.state.assemble(&solution)?;
        let stored = block.clone();
        self.with_file(move |file| file.append(&stored)).await?;
        self.state.advance(&block);
        tracing::info!(height = self.state.tip.height, hash = %self.state.tip.hash, "new block");
        self.current.send_replace(Arc::new(self.state.announce()));
        Ok(())
    }

    /// Runs `work` on a blocking thread: it waits for the disk.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut BlockFile) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || {
            work(&mut file.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .map_err(std::io::Error::other)?
    }
}

/// The chain's tip and its templates, without I/O.
struct State {
    config: EmbeddedConfig,
    clock: Clock,
    tip: Tip,
    template_id: u64,
    /// Templates of one tip differ only in time, so this id is all that tells
    /// a stale solution from a good one.
    first_id_of_tip: u64,
    announcement: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("tip", &self.tip)
            .field("template_id", &self.template_id)
            .finish()
    }
}

impl State {
    /// A template that miners have to switch to.
    fn announce(&mut self) -> CurrentTemplate {
        self.announcement += 1;
        self.refresh()
    }

    /// A new template of the same tip.
    fn refresh(&mut self) -> CurrentTemplate {
        self.template_id += 1;
        let height = self.tip.height + 1;
        CurrentTemplate {
            template: self.template(height),
            prev_hash: SetNewPrevHashOwned {
                template_id: self.template_id,
                prev_hash: self.tip.hash.to_byte_array().into(),
                header_timestamp: (self.clock)().max(self.tip.min_time()),
                n_bits: self.config.bits.to_consensus(),
                target: self.config.bits.target().to_le_bytes().into(),
            },
            height,
            announcement: self.announcement,
        }
    }

    fn template(&self, height: u32) -> NewTemplateOwned {
        NewTemplateOwned {
            template_id: self.template_id,
            future_template: true,
            version: BLOCK_VERSION,
            coinbase_tx_version: 2,
            coinbase_prefix: rules::height_push(height)
                .try_into()
                .expect("a height takes at most 5 bytes of 255"),
            coinbase_tx_input_sequence: u32::MAX,
            coinbase_tx_value_remaining: rules::subsidy(height).to_sat(),
            coinbase_tx_outputs_count: 1,
            coinbase_tx_outputs: serialize(&rules::witness_commitment())
                .try_into()
                .expect("one output takes 47 bytes of 65,535"),
            coinbase_tx_locktime: 0,
            merkle_path: Vec::new().try_into().expect("an empty path fits"),
        }
    }

    /// The block that `solution` completes, checked.
    fn assemble(&self, solution: &SubmitSolutionOwned) -> Result<Block, SubmitError> {
        if solution.template_id == 0 || solution.template_id > self.template_id {
            return Err(SubmitError::UnknownTemplate(solution.template_id));
        }
        if solution.template_id < self.first_id_of_tip {
            return Err(SubmitError::Stale(solution.template_id));
        }
        let coinbase: Transaction = deserialize(solution.coinbase_tx.as_bytes())?;
        let header = Header {
            version: Version::from_consensus(solution.version.cast_signed()),
            prev_blockhash: self.tip.hash,
            merkle_root: TxMerkleNode::from_raw_hash(coinbase.compute_txid().to_raw_hash()),
            time: solution.header_timestamp,
            bits: CompactTarget::from_consensus(self.config.bits.to_consensus()),
            nonce: solution.header_nonce,
        };
        let block = Block { header, txdata: vec![coinbase] };
        self.tip.check(&block, self.config.bits, Some((self.clock)()))?;
        Ok(block)
    }

    fn advance(&mut self, block: &Block) {
        self.tip = self.tip.extend(block);
        self.first_id_of_tip = self.template_id + 1;
    }
}
