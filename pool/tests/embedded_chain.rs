//! The embedded chain through its public door, and its file on the disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bitcoin::block::{Header, Version};
use bitcoin::consensus::{deserialize, serialize};
use bitcoin::hashes::Hash;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Sequence, Transaction, TxIn,
    TxMerkleNode, TxOut, Witness, absolute, transaction,
};
use hashpit_pool::template::embedded::{Clock, EmbeddedError, system_clock};
use hashpit_pool::template::{
    CurrentTemplate, EmbeddedChain, EmbeddedConfig, RuleError, SubmitError, TemplateSource,
};
use stratum_apps::stratum_core::template_distribution_sv2::SubmitSolutionOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn config() -> EmbeddedConfig {
    EmbeddedConfig { bits: "207fffff".parse().unwrap(), ..EmbeddedConfig::default() }
}

fn open(
    path: &Path,
    config: EmbeddedConfig,
    clock: Clock,
) -> Result<(EmbeddedChain, Running), EmbeddedError> {
    let (chain, task) = EmbeddedChain::open(config, path, clock)?;
    let stop = CancellationToken::new();
    Ok((chain, Running { task: tokio::spawn(task.run(stop.clone())), stop }))
}

struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Running {
    /// Stops the chain, so that its file is free again.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The coinbase that a pool would make of a template.
fn coinbase(current: &CurrentTemplate) -> Transaction {
    let template = &current.template;
    let script_sig = [template.coinbase_prefix.as_bytes(), b"\x04test"].concat();
    let commitment: TxOut = deserialize(template.coinbase_tx_outputs.as_bytes()).unwrap();
    let reward = Amount::from_sat(template.coinbase_tx_value_remaining);
    Transaction {
        version: transaction::Version(template.coinbase_tx_version.cast_signed()),
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: ScriptBuf::from(script_sig),
            sequence: Sequence(template.coinbase_tx_input_sequence),
            witness: Witness::from_slice(&[[0u8; 32]]),
        }],
        output: vec![
            TxOut { value: reward, script_pubkey: ScriptBuf::from(vec![0x51]) },
            commitment,
        ],
    }
}

/// A solution of `current` with that coinbase and time.
fn solve(current: &CurrentTemplate, coinbase: &Transaction, time: u32) -> SubmitSolutionOwned {
    let mut header = Header {
        version: Version::from_consensus(current.template.version.cast_signed()),
        prev_blockhash: BlockHash::from_byte_array(current.prev_hash.prev_hash.to_array()),
        merkle_root: TxMerkleNode::from_raw_hash(coinbase.compute_txid().to_raw_hash()),
        time,
        bits: CompactTarget::from_consensus(current.prev_hash.n_bits),
        nonce: 0,
    };
    while header.validate_pow(header.target()).is_err() {
        header.nonce += 1;
    }
    SubmitSolutionOwned {
        template_id: current.template.template_id,
        version: current.template.version,
        header_timestamp: time,
        header_nonce: header.nonce,
        coinbase_tx: serialize(coinbase).try_into().unwrap(),
    }
}

fn current(chain: &EmbeddedChain) -> CurrentTemplate {
    (**chain.subscribe().borrow()).clone()
}

async fn mine(chain: &EmbeddedChain) -> Result<(), SubmitError> {
    let current = current(chain);
    let time = current.prev_hash.header_timestamp;
    chain.submit(solve(&current, &coinbase(&current), time)).await
}

/// A chain of `blocks` blocks in a directory of its own, closed again.
async fn chain_of(blocks: u32) -> (tempfile::TempDir, PathBuf, BlockHash) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blocks.dat");
    let (chain, running) = open(&path, config(), system_clock()).unwrap();
    for _ in 0..blocks {
        mine(&chain).await.unwrap();
    }
    let tip = chain.tip();
    running.stop().await;
    (directory, path, tip)
}

#[tokio::test]
async fn a_block_moves_the_tip_and_a_second_start_goes_on_from_there() {
    // Past 16, where BIP-34's encoding of the height changes.
    let (_directory, path, tip) = chain_of(18).await;
    let (chain, running) = open(&path, config(), system_clock()).unwrap();
    assert_eq!((chain.height(), chain.tip()), (18, tip));
    mine(&chain).await.unwrap();
    assert_eq!(chain.height(), 19);
    let block: Block = chain.block(19).await.unwrap().unwrap();
    assert_eq!((block.block_hash(), block.header.prev_blockhash), (chain.tip(), tip));
    assert_eq!(chain.block(20).await.unwrap(), None);
    assert_eq!(chain.block(0).await.unwrap(), None);
    running.stop().await;
}

#[tokio::test]
async fn only_one_process_writes_the_file() {
    let (_directory, path, _) = chain_of(1).await;
    let (_chain, running) = open(&path, config(), system_clock()).unwrap();
    assert!(matches!(open(&path, config(), system_clock()), Err(EmbeddedError::File(_))));
    running.stop().await;
}

#[tokio::test]
async fn a_torn_tail_is_cut_off() {
    let (_directory, path, _) = chain_of(3).await;
    let whole = fs::read(&path).unwrap();
    let second_ends = whole.len() / 3 * 2;
    for tail in [whole.len() - 1, whole.len() - 40, second_ends + 5, second_ends + 1] {
        fs::write(&path, &whole[..tail]).unwrap();
        let (chain, running) = open(&path, config(), system_clock()).unwrap();
        assert_eq!(chain.height(), 2, "cut at {tail}");
        mine(&chain).await.unwrap();
        running.stop().await;
        let (chain, running) = open(&path, config(), system_clock()).unwrap();
        assert_eq!(chain.height(), 3);
        running.stop().await;
    }
    fs::write(&path, [whole.as_slice(), &[0; 500]].concat()).unwrap();
    let (chain, running) = open(&path, config(), system_clock()).unwrap();
    assert_eq!(chain.height(), 3);
    running.stop().await;
}

#[tokio::test]
async fn damage_before_the_tail_is_an_error_that_says_where() {
    let (_directory, path, _) = chain_of(3).await;
    let whole = fs::read(&path).unwrap();
    let record = whole.len() / 3;
    for at in [0, 5, record + 60, record * 2 - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        let error = open(&path, config(), system_clock()).map(|_| ()).unwrap_err().to_string();
        let begins = at / record * record;
        assert!(error.contains(&format!("damaged at byte {begins}")), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "an error changes nothing");
    }
}

#[tokio::test]
async fn bits_belong_to_the_chain() {
    let (_directory, path, _) = chain_of(1).await;
    let harder = EmbeddedConfig { bits: "1e0377ae".parse().unwrap(), ..config() };
    let error = open(&path, harder, system_clock()).map(|_| ()).unwrap_err();
    assert!(matches!(error, EmbeddedError::Block { height: 1, source: RuleError::Bits { .. } }));
    assert!(error.to_string().contains("stored block 1"));
}

#[tokio::test]
async fn wrong_blocks_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, running) =
        open(&directory.path().join("blocks.dat"), config(), Arc::new(|| 1_800_000_000)).unwrap();
    let current = current(&chain);
    let (good, now) = (coinbase(&current), current.prev_hash.header_timestamp);
    let invalid = |error| Err(SubmitError::Invalid(error));
    let with = |change: &dyn Fn(&mut Transaction)| {
        let mut changed = good.clone();
        change(&mut changed);
        solve(&current, &changed, now)
    };
    let greedy = with(&|tx| tx.output[0].value += Amount::from_sat(1));
    let uncommitted = with(&|tx| drop(tx.output.pop()));
    let elsewhere = with(&|tx| tx.input[0].script_sig = ScriptBuf::from(vec![0x52, 1, 1]));
    let unknown = SubmitSolutionOwned { template_id: 99, ..solve(&current, &good, now) };
    let mut idle = solve(&current, &good, now);
    idle.header_nonce = idle.header_nonce.wrapping_add(1);
    while is_solved(&current, &good, &idle) {
        idle.header_nonce = idle.header_nonce.wrapping_add(1);
    }
    let genesis = 1_598_918_400;
    let cases: [(SubmitSolutionOwned, Result<(), SubmitError>); 7] = [
        (greedy, invalid(RuleError::Subsidy(Amount::from_int_btc(50)))),
        (uncommitted, invalid(RuleError::WitnessCommitment)),
        (elsewhere, invalid(RuleError::Height(1))),
        (solve(&current, &good, genesis), invalid(RuleError::Time(genesis))),
        (solve(&current, &good, now + 7_201), invalid(RuleError::Time(now + 7_201))),
        (idle, invalid(RuleError::ProofOfWork)),
        (unknown, Err(SubmitError::UnknownTemplate(99))),
    ];
    for (solution, expected) in cases {
        let outcome = chain.submit(solution).await;
        assert_eq!(format!("{outcome:?}"), format!("{expected:?}"));
    }
    let first = solve(&current, &good, now);
    chain.submit(first.clone()).await.unwrap();
    assert!(matches!(chain.submit(first).await, Err(SubmitError::Stale(1))));
    running.stop().await;
}

fn is_solved(
    current: &CurrentTemplate,
    coinbase: &Transaction,
    solution: &SubmitSolutionOwned,
) -> bool {
    let header = Header {
        version: Version::from_consensus(solution.version.cast_signed()),
        prev_blockhash: BlockHash::from_byte_array(current.prev_hash.prev_hash.to_array()),
        merkle_root: TxMerkleNode::from_raw_hash(coinbase.compute_txid().to_raw_hash()),
        time: solution.header_timestamp,
        bits: CompactTarget::from_consensus(current.prev_hash.n_bits),
        nonce: solution.header_nonce,
    };
    header.validate_pow(header.target()).is_ok()
}

#[tokio::test(start_paused = true)]
async fn templates_are_refreshed_and_an_old_tip_is_announced_afresh() {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU32::new(1_800_000_000));
    let clock = Arc::clone(&now);
    let (chain, running) = open(
        &directory.path().join("blocks.dat"),
        EmbeddedConfig { refresh_secs: 30, reannounce_secs: 3_600, ..config() },
        Arc::new(move || clock.load(Ordering::Relaxed)),
    )
    .unwrap();
    let mut templates = chain.subscribe();
    let first = templates.borrow_and_update().clone();
    let mut newest = Arc::clone(&first);
    for refreshed in 1..=120 {
        now.fetch_add(30, Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(31), templates.changed()).await.unwrap().unwrap();
        newest = templates.borrow_and_update().clone();
        assert_eq!(newest.template.template_id, first.template.template_id + refreshed);
        assert_eq!(newest.announcement, first.announcement + u64::from(refreshed == 120));
    }
    assert_eq!(newest.prev_hash.prev_hash, first.prev_hash.prev_hash);
    assert_eq!(newest.prev_hash.header_timestamp, first.prev_hash.header_timestamp + 3_600);
    // A solution of any template of this tip is good.
    let time = first.prev_hash.header_timestamp;
    chain.submit(solve(&first, &coinbase(&first), time)).await.unwrap();
    assert_eq!(chain.height(), 1);
    running.stop().await;
}

#[test]
fn settings_are_read_and_wrong_ones_named() {
    let parse = |text: &str| toml::from_str::<EmbeddedConfig>(text).map_err(|e| e.to_string());
    assert_eq!(parse("").unwrap(), EmbeddedConfig::default());
    assert_eq!(parse("bits = \"1e0377ae\"").unwrap().bits.to_string(), "1e0377ae");
    assert!(parse("bits = \"ffffffff\"").unwrap_err().contains("no proof-of-work target"));
    assert!(parse("bitz = \"1e0377ae\"").unwrap_err().contains("bitz"));
}
