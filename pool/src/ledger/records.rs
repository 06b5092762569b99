//! What the ledger stores, and where: rows in the key-value table of the mint's
//! database, so that credit, signatures and batches share one transaction.
//!
//! Every value begins with a version. Integers are big-endian.
//!
//! | namespace | key | value |
//! |---|---|---|
//! | `epoch` | `current` | JSON [`EpochRecord`](crate::mint::EpochRecord) |
//! | `shares-<height>` | row number | shares of one commit: 32 B hash, 32 B miner, 16 B work each |
//! | `accounts-<height>` | miner | totals: shares, work, issued, batches |
//! | `blanks-<height>` | miner | unused blanks, 33 B each |
//! | `batches-<height>` | miner-number | the batch's blanks, 33 B each; signatures are in cdk's own table |
//! | `unacked-<height>` | miner-number | empty: the miner has not acknowledged the batch |

use std::collections::VecDeque;

use cdk::nuts::PublicKey as CashuKey;
use hashpit_nips::{HashUnits, Work};
use nostr_sdk::PublicKey;

use super::LedgerError;
use super::account::Account;
use crate::share::Share;

/// cdk's primary namespace for everything of ours.
pub(crate) const NAMESPACE: &str = "hashpit";

const VERSION: u8 = 1;
const SHARE_BYTES: usize = 32 + 32 + 16;
const BLANK_BYTES: usize = 33;

/// The namespaces of one epoch.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) shares: String,
    pub(crate) accounts: String,
    pub(crate) blanks: String,
    pub(crate) batches: String,
    pub(crate) unacked: String,
}

impl Tables {
    pub(crate) fn of_epoch(height: u32) -> Self {
        let table = |name: &str| format!("{name}-{height}");
        Self {
            shares: table("shares"),
            accounts: table("accounts"),
            blanks: table("blanks"),
            batches: table("batches"),
            unacked: table("unacked"),
        }
    }
}

pub(crate) fn miner_key(miner: &PublicKey) -> String {
    miner.to_hex()
}

pub(crate) fn parse_miner(key: &str) -> Result<PublicKey, LedgerError> {
    PublicKey::from_hex(key).map_err(|_| LedgerError::Damaged("a miner's key"))
}

pub(crate) fn batch_key(miner: &PublicKey, number: u64) -> String {
    format!("{}-{number}", miner.to_hex())
}

pub(crate) fn parse_batch_key(key: &str) -> Result<(PublicKey, u64), LedgerError> {
    let (miner, number) = key.split_once('-').ok_or(LedgerError::Damaged("a batch's key"))?;
    let number = number.parse().map_err(|_| LedgerError::Damaged("a batch's number"))?;
    Ok((parse_miner(miner)?, number))
}

/// Row keys sort as the rows were written.
pub(crate) fn row_key(row: u64) -> String {
    format!("{row:020}")
}

pub(crate) fn encode_shares(shares: &[Share]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + shares.len() * SHARE_BYTES);
    bytes.push(VERSION);
    for share in shares {
        bytes.extend_from_slice(&share.header_hash);
        bytes.extend_from_slice(share.miner.as_bytes());
        bytes.extend_from_slice(&share.work.get().to_be_bytes());
    }
    bytes
}

/// The shares of a row: header hash, miner, work.
pub(crate) fn decode_shares(bytes: &[u8]) -> Result<Vec<Share>, LedgerError> {
    let (shares, rest) = body(bytes, "a row of shares")?.as_chunks::<SHARE_BYTES>();
    if !rest.is_empty() {
        return Err(LedgerError::Damaged("a row of shares"));
    }
    Ok(shares.iter().map(decode_share).collect())
}

fn decode_share(bytes: &[u8; SHARE_BYTES]) -> Share {
    let (hash, rest) = bytes.split_first_chunk::<32>().expect("a share is 80 bytes");
    let (miner, rest) = rest.split_first_chunk::<32>().expect("a share is 80 bytes");
    let work = rest.first_chunk::<16>().expect("a share is 80 bytes");
    Share {
        header_hash: *hash,
        miner: PublicKey::from_byte_array(*miner),
        work: Work::new(u128::from_be_bytes(*work)),
    }
}

pub(crate) fn encode_account(account: &Account) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&account.shares.to_be_bytes());
    bytes.extend_from_slice(&account.work.get().to_be_bytes());
    bytes.extend_from_slice(&account.issued.get().to_be_bytes());
    bytes.extend_from_slice(&account.batches.to_be_bytes());
    bytes
}

pub(crate) fn decode_account(bytes: &[u8]) -> Result<Account, LedgerError> {
    const DAMAGED: LedgerError = LedgerError::Damaged("an account");
    let body: &[u8; 40] = body(bytes, "an account")?.try_into().map_err(|_| DAMAGED)?;
    let word = |at: usize| {
        let bytes = body[at..].first_chunk::<8>().expect("every word ends within 40 bytes");
        u64::from_be_bytes(*bytes)
    };
    Ok(Account {
        shares: word(0),
        work: Work::new(u128::from(word(8)) << 64 | u128::from(word(16))),
        issued: HashUnits::new(word(24)),
        batches: word(32),
    })
}

pub(crate) fn encode_blanks<'a>(blanks: impl IntoIterator<Item = &'a CashuKey>) -> Vec<u8> {
    std::iter::once(VERSION).chain(blanks.into_iter().flat_map(CashuKey::to_bytes)).collect()
}

pub(crate) fn decode_blanks(bytes: &[u8]) -> Result<VecDeque<CashuKey>, LedgerError> {
    const DAMAGED: LedgerError = LedgerError::Damaged("a row of blanks");
    let (blanks, rest) = body(bytes, "a row of blanks")?.as_chunks::<BLANK_BYTES>();
    if !rest.is_empty() {
        return Err(DAMAGED);
    }
    blanks.iter().map(|blank| CashuKey::from_slice(blank).map_err(|_| DAMAGED)).collect()
}

fn body<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], LedgerError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some(_) => Err(LedgerError::NewerVersion(what)),
        None => Err(LedgerError::Damaged(what)),
    }
}

#[cfg(test)]
mod tests {
    use nostr_sdk::Keys;
    use proptest::prelude::*;

    use super::*;

    fn miner() -> PublicKey {
        Keys::parse("0000000000000000000000000000000000000000000000000000000000000005")
            .unwrap()
            .public_key()
    }

    /// The bytes that version 1 wrote; a change of format must still read them.
    #[test]
    fn version_1_reads_for_ever() {
        let account = Account {
            shares: 3,
            work: Work::new((1 << 64) + 2),
            issued: HashUnits::new(7),
            batches: 9,
        };
        let bytes = "01000000000000000300000000000000010000000000000002\
                     00000000000000070000000000000009";
        assert_eq!(hex::encode(encode_account(&account)), bytes);
        assert_eq!(decode_account(&hex::decode(bytes).unwrap()).unwrap(), account);

        let share = Share { miner: miner(), header_hash: [0xab; 32], work: Work::new(5) };
        let bytes = format!("01{}{}{:032x}", "ab".repeat(32), miner().to_hex(), 5);
        assert_eq!(hex::encode(encode_shares(&[share])), bytes);
        assert_eq!(decode_shares(&hex::decode(bytes).unwrap()).unwrap(), [share]);
    }

    #[test]
    fn a_newer_version_is_said_to_be_one() {
        assert!(matches!(decode_account(&[2; 41]), Err(LedgerError::NewerVersion(_))));
    }

    proptest! {
        #[test]
        fn mangled_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_shares(&bytes);
            let _ = decode_account(&bytes);
            let _ = decode_blanks(&bytes);
        }

        #[test]
        fn shares_survive_a_round_trip(hashes in prop::collection::vec(any::<[u8; 32]>(), 0..9)) {
            let shares: Vec<Share> = hashes
                .into_iter()
                .map(|header_hash| Share { miner: miner(), header_hash, work: Work::new(1) })
                .collect();
            prop_assert_eq!(decode_shares(&encode_shares(&shares)).unwrap(), shares);
        }
    }
}
