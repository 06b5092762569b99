//! What makes a block of the embedded chain valid. Pure: blocks in, verdicts
//! out.
//!
//! The chain is a signet whose challenge is `OP_TRUE`, so that an empty
//! solution satisfies it (BIP-325), with one proof-of-work target for ever.
//! These are Bitcoin Core's rules for such a block, less what cannot occur
//! here: transactions other than the coinbase, and retargeting.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use bitcoin::consensus::serialize;
use bitcoin::hashes::{Hash, sha256d};
use bitcoin::{Amount, Block, BlockHash, CompactTarget, ScriptBuf, Target, Transaction};
use serde::{Deserialize, Serialize};

/// `OP_TRUE`, the signet challenge.
const CHALLENGE: [u8; 1] = [0x51];
/// Where BIP-141's commitment output begins: `OP_RETURN`, push 36, tag.
const COMMITMENT_TAG: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
/// Blocks between two halvings of the subsidy.
const HALVING_INTERVAL: u32 = 210_000;
/// Blocks whose median time a new block must exceed (BIP-113).
const MEDIAN_TIME_SPAN: usize = 11;
/// How far ahead of the clock a block's time may be, as in Bitcoin Core.
const MAX_FUTURE_SECS: u32 = 2 * 60 * 60;
/// Lowest block version since BIP-34, BIP-66 and BIP-65.
const MIN_VERSION: i32 = 4;
/// Consensus bounds of a coinbase's scriptSig.
const SCRIPT_SIG_BYTES: std::ops::RangeInclusive<usize> = 2..=100;

/// The rule that a block breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Proof-of-work bits that encode no target a hash could meet.
    #[error(
        "{0} is no proof-of-work target; expected compact bits as 8 hex digits, such as 1e0377ae"
    )]
    NoTarget(String),
    /// Bits other than the chain's.
    #[error("bits are {found}, but this chain is mined at {expected}")]
    Bits {
        /// The block's.
        found: Bits,
        /// The chain's.
        expected: Bits,
    },
    /// The hash does not meet the target.
    #[error("the hash does not meet the target")]
    ProofOfWork,
    /// It builds on another block than the tip.
    #[error("it builds on {0}, which is not the tip")]
    Parent(BlockHash),
    /// Its time is not above the median of the last eleven, or too far ahead.
    #[error("time {0} is out of range")]
    Time(u32),
    /// Its version is too low.
    #[error("version {0} is below 4")]
    Version(i32),
    /// Transactions other than a coinbase, or a malformed coinbase.
    #[error("it must hold exactly one transaction, a coinbase")]
    Coinbase,
    /// The coinbase does not begin with the height (BIP-34).
    #[error("the coinbase does not begin with height {0}")]
    Height(u32),
    /// The coinbase pays more than the subsidy.
    #[error("the coinbase pays more than {0}")]
    Subsidy(Amount),
    /// The header's Merkle root is not that of the transactions.
    #[error("the Merkle root is wrong")]
    MerkleRoot,
    /// The witness commitment (BIP-141) is missing or wrong.
    #[error("the witness commitment is missing or wrong")]
    WitnessCommitment,
}

/// A proof-of-work target in compact form, as in a block's header; written as
/// eight hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bits(u32);

impl Bits {
    /// About a thousand million hashes a block: one CPU core with SHA
    /// extensions does eight million a second, so two minutes.
    pub const ONE_CORE: Self = Self(0x1d04_4444);

    /// The only bits that Bitcoin Core takes in the first 2,016 blocks of a
    /// signet: its easiest target, about 4.8 million hashes a block.
    pub const SIGNET: Self = Self(0x1e03_77ae);

    /// Bits as in a header, if some hash can meet them.
    pub fn new(bits: u32) -> Result<Self, RuleError> {
        let (exponent, mantissa) = (bits >> 24, bits & 0x00ff_ffff);
        let overflows = exponent > 34
            || (exponent > 33 && mantissa > 0xff)
            || (exponent > 32 && mantissa > 0xffff);
        if overflows || Self(bits).target() == Target::ZERO {
            return Err(RuleError::NoTarget(format!("{bits:08x}")));
        }
        Ok(Self(bits))
    }

    /// The target.
    pub fn target(self) -> Target {
        Target::from_compact(CompactTarget::from_consensus(self.0))
    }

    /// As in a header.
    pub fn to_consensus(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Bits {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = digits.then(|| u32::from_str_radix(text, 16).ok()).flatten();
        Self::new(bits.ok_or_else(|| RuleError::NoTarget(format!("{text:?}")))?)
    }
}

impl TryFrom<String> for Bits {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Bits> for String {
    fn from(bits: Bits) -> Self {
        bits.to_string()
    }
}

/// The end of the chain: all that the next block depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) hash: BlockHash,
    pub(super) height: u32,
    /// Times of the last [`MEDIAN_TIME_SPAN`] blocks, oldest first.
    times: VecDeque<u32>,
}

impl Tip {
    /// Signet's first block, which every signet shares.
    pub(super) fn genesis() -> Self {
        let block = bitcoin::constants::genesis_block(bitcoin::Network::Signet);
        Self { hash: block.block_hash(), height: 0, times: VecDeque::from([block.header.time]) }
    }

    /// The tip once `block` has been checked against this one.
    pub(super) fn extend(&self, block: &Block) -> Self {
        let mut times = self.times.clone();
        if times.len() == MEDIAN_TIME_SPAN {
            times.pop_front();
        }
        times.push_back(block.header.time);
        Self { hash: block.block_hash(), height: self.height + 1, times }
    }

    /// The lowest time that the next block may bear.
    pub(super) fn min_time(&self) -> u32 {
        let mut sorted: Vec<u32> = self.times.iter().copied().collect();
        sorted.sort_unstable();
        sorted[sorted.len() / 2] + 1
    }

    /// Checks `block` as the next one. `now` is `None` for stored blocks,
    /// whose time was checked when they were new.
    pub(super) fn check(
        &self,
        block: &Block,
        bits: Bits,
        now: Option<u32>,
    ) -> Result<(), RuleError> {
        check_header(self, block, bits, now)?;
        let [coinbase] = block.txdata.as_slice() else { return Err(RuleError::Coinbase) };
        check_coinbase(coinbase, self.height + 1)?;
        if !block.check_merkle_root() {
            return Err(RuleError::MerkleRoot);
        }
        // Without an output of this form there is nowhere for BIP-325's
        // solution to be, and Bitcoin Core refuses the block.
        let commits =
            |out: &bitcoin::TxOut| out.script_pubkey.as_bytes().starts_with(&COMMITMENT_TAG);
        if !coinbase.output.iter().any(commits) || !block.check_witness_commitment() {
            return Err(RuleError::WitnessCommitment);
        }
        Ok(())
    }
}

fn check_header(tip: &Tip, block: &Block, bits: Bits, now: Option<u32>) -> Result<(), RuleError> {
    let header = &block.header;
    if header.bits.to_consensus() != bits.0 {
        return Err(RuleError::Bits { found: Bits(header.bits.to_consensus()), expected: bits });
    }
    if !bits.target().is_met_by(header.block_hash()) {
        return Err(RuleError::ProofOfWork);
    }
    if header.prev_blockhash != tip.hash {
        return Err(RuleError::Parent(header.prev_blockhash));
    }
    if header.version.to_consensus() < MIN_VERSION {
        return Err(RuleError::Version(header.version.to_consensus()));
    }
    let too_new = now.is_some_and(|now| header.time > now.saturating_add(MAX_FUTURE_SECS));
    if header.time < tip.min_time() || too_new {
        return Err(RuleError::Time(header.time));
    }
    Ok(())
}

fn check_coinbase(coinbase: &Transaction, height: u32) -> Result<(), RuleError> {
    let script_sig = match coinbase.input.as_slice() {
        [input] if coinbase.is_coinbase() => input.script_sig.as_bytes(),
        _ => return Err(RuleError::Coinbase),
    };
    if !SCRIPT_SIG_BYTES.contains(&script_sig.len()) {
        return Err(RuleError::Coinbase);
    }
    if !script_sig.starts_with(&height_push(height)) {
        return Err(RuleError::Height(height));
    }
    let paid = coinbase.output.iter().try_fold(Amount::ZERO, |sum, out| sum.checked_add(out.value));
    if paid.is_none_or(|paid| paid > subsidy(height)) {
        return Err(RuleError::Subsidy(subsidy(height)));
    }
    Ok(())
}

/// New coins of the block at `height`.
pub fn subsidy(height: u32) -> Amount {
    let halvings = height / HALVING_INTERVAL;
    Amount::from_sat(Amount::from_int_btc(50).to_sat().checked_shr(halvings).unwrap_or(0))
}

/// How a coinbase's scriptSig begins (BIP-34). Heights 1 to 16 are the single
/// opcodes `OP_1` to `OP_16`.
pub(super) fn height_push(height: u32) -> Vec<u8> {
    bitcoin::script::Builder::new().push_int(height.into()).into_script().into_bytes()
}

/// The commitment output of a block without other transactions (BIP-141): the
/// coinbase counts as a zero leaf, and its reserved value is zero.
pub(super) fn witness_commitment() -> bitcoin::TxOut {
    let root = bitcoin::WitnessMerkleNode::all_zeros();
    let commitment = Block::compute_witness_commitment(&root, &[0; 32]);
    let script = [COMMITMENT_TAG.as_slice(), commitment.as_byte_array()].concat();
    bitcoin::TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from(script) }
}

/// A signet's network magic: the first bytes of its challenge's hash (BIP-325).
pub(super) fn magic() -> [u8; 4] {
    let hash = sha256d::Hash::hash(&serialize(&CHALLENGE.to_vec())).to_byte_array();
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_that_no_hash_can_meet_are_refused() {
        for bad in [
            "",
            "1e0377a",
            "1e0377ae0",
            "+e0377ae",
            "00000000",
            "1e000000",
            "1e800001",
            "23000001",
            "ff7fffff",
        ] {
            assert!(bad.parse::<Bits>().is_err(), "{bad}");
        }
        assert_eq!("1E0377AE".parse(), Ok(Bits::SIGNET));
        assert_eq!(Bits::SIGNET.to_string(), "1e0377ae");
    }

    #[test]
    fn heights_are_pushed_as_bip_34_wants_them() {
        assert_eq!(height_push(1), [0x51]);
        assert_eq!(height_push(16), [0x60]);
        assert_eq!(height_push(17), [1, 17]);
        assert_eq!(height_push(128), [2, 0x80, 0]);
        assert_eq!(height_push(840_000), [3, 0x40, 0xd1, 0x0c]);
    }

    #[test]
    fn the_subsidy_halves_and_ends() {
        assert_eq!(subsidy(1), Amount::from_int_btc(50));
        assert_eq!(subsidy(209_999), Amount::from_int_btc(50));
        assert_eq!(subsidy(210_000), Amount::from_int_btc(25));
        assert_eq!(subsidy(u32::MAX), Amount::ZERO);
    }

    #[test]
    fn the_magic_is_that_of_a_signet_with_challenge_op_true() {
        // As `bitcoind -signet -signetchallenge=51` logs it.
        assert_eq!(hex::encode(magic()), "54d26fbd");
    }

    #[test]
    fn the_next_block_must_exceed_the_median_time() {
        let genesis = Tip::genesis();
        let times: VecDeque<u32> = [9, 1, 8, 2, 7].into_iter().collect();
        assert_eq!(Tip { times, ..genesis }.min_time(), 8);
    }

    proptest! {
        #[test]
        fn bits_print_and_parse_back(bits in any::<u32>()) {
            if let Ok(bits) = Bits::new(bits) {
                prop_assert_eq!(bits.to_string().parse(), Ok(bits));
                prop_assert!(bits.target() > Target::ZERO);
            }
        }
    }
}
