//! One block header, hashed quickly: the first 64 of its 80 bytes are
//! compressed once for all nonces, and SHA extensions are used where the
//! processor has them.

use bitcoin::Target;
use bitcoin::block::Header;
use bitcoin::consensus::serialize;
use sha2::compress256;
use sha2::digest::generic_array::GenericArray;
use sha2::digest::generic_array::typenum::U64;

type Block = GenericArray<u8, U64>;

/// SHA-256's initial state (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
/// Where time and nonce are in the header's last 16 bytes.
const TIME: std::ops::Range<usize> = 4..8;
const NONCE: std::ops::Range<usize> = 12..16;

/// A header whose nonce is searched for.
#[derive(Debug, Clone)]
pub(super) struct Search {
    /// State after the header's first 64 bytes.
    midstate: [u32; 8],
    /// The header's other 16 bytes, padded.
    tail: Block,
    target: Target,
    /// The target's most significant word: most hashes fail against it.
    target_high: u32,
}

impl Search {
    pub(super) fn new(header: &Header, target: Target) -> Self {
        let bytes = serialize(header);
        let (head, rest) = bytes.split_at(64);
        let mut midstate = INITIAL;
        compress256(&mut midstate, &[GenericArray::clone_from_slice(head)]);
        let target_bytes = target.to_be_bytes();
        let high = [target_bytes[0], target_bytes[1], target_bytes[2], target_bytes[3]];
        let target_high = u32::from_be_bytes(high);
        Self { midstate, tail: padded(rest, 80), target, target_high }
    }

    pub(super) fn set_time(&mut self, time: u32) {
        self.tail[TIME].copy_from_slice(&time.to_le_bytes());
    }

    /// The first of `count` nonces from `start` that meets the target.
    pub(super) fn scan(&mut self, start: u32, count: u32) -> Option<u32> {
        let mut outer = [padded(&[0; 32], 32)];
        (0..count).map(|offset| start.wrapping_add(offset)).find(|nonce| {
            let hash = self.hash(*nonce, &mut outer);
            hash[7].swap_bytes() <= self.target_high && self.target >= as_target(hash)
        })
    }

    /// The double hash with this nonce, as big-endian words.
    fn hash(&mut self, nonce: u32, outer: &mut [Block; 1]) -> [u32; 8] {
        self.tail[NONCE].copy_from_slice(&nonce.to_le_bytes());
        let mut inner = self.midstate;
        compress256(&mut inner, std::slice::from_ref(&self.tail));
        for (bytes, word) in outer[0].chunks_exact_mut(4).zip(inner) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        let mut hash = INITIAL;
        compress256(&mut hash, outer);
        hash
    }
}

/// The last block of a message of `length` bytes that ends with `bytes`.
fn padded(bytes: &[u8], length: u64) -> Block {
    let mut block = Block::default();
    block[..bytes.len()].copy_from_slice(bytes);
    block[bytes.len()] = 0x80;
    block[56..].copy_from_slice(&(length * 8).to_be_bytes());
    block
}

/// A hash as the number that is compared with a target.
fn as_target(hash: [u32; 8]) -> Target {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(hash) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    Target::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use bitcoin::block::Version;
    use bitcoin::hashes::Hash;
    use bitcoin::{BlockHash, CompactTarget, TxMerkleNode};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_found_is_what_bitcoin_finds(
            version in any::<i32>(),
            prev in any::<[u8; 32]>(),
            root in any::<[u8; 32]>(),
            (before, time, start) in any::<(u32, u32, u32)>(),
            zeros in 0u32..8,
        ) {
            let mut header = Header {
                version: Version::from_consensus(version),
                prev_blockhash: BlockHash::from_byte_array(prev),
                merkle_root: TxMerkleNode::from_byte_array(root),
                time: before,
                bits: CompactTarget::from_consensus(0x1d00_ffff),
                nonce: 0,
            };
            let mut target = [0xff; 32];
            target[31] >>= zeros;
            let target = Target::from_le_bytes(target);
            let mut search = Search::new(&header, target);
            search.set_time(time);
            header.time = time;
            let found = search.scan(start, 600);
            let expected = (0..600).map(|n| start.wrapping_add(n)).find(|nonce| {
                header.nonce = *nonce;
                target.is_met_by(header.block_hash())
            });
            prop_assert_eq!(found, expected);
        }
    }
}
