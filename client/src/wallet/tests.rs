//! The wallet against a mint of a few keys, with crashes between its writes.

use std::collections::BTreeMap;
use std::path::Path;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use std::os::unix::fs::PermissionsExt;

use cdk::Amount;
use cdk::dhke::sign_message;
use cdk::nuts::{
    BlindSignature, CurrencyUnit, Id, KeySet, Keys as CashuKeys, PublicKey as CashuKey, SecretKey,
};
use cdk_common::wallet::ProofInfo;
use hashpit_nips::eh01::{EpochKeyset, EpochState as Phase};
use hashpit_nips::eh02::{Batch, SignedBlank, Statement};
use hashpit_nips::eh03::CounterTag;
use hashpit_nips::{EpochId, HashUnits, Work, WorkBits};
use nostr_sdk::{EventId, Keys, Timestamp};

use super::*;

/// A mint that signs the amounts 1, 2, 4 … 128.
struct Mint {
    announced: EpochKeyset,
    secrets: BTreeMap<u64, SecretKey>,
}

impl Mint {
    fn new(first_key: u8) -> Self {
        let pool = Keys::parse(&format!("{:064x}", 3)).unwrap().public_key();
        let epoch = EpochId { pool, height: 1 };
        let secret = |bit: u8| SecretKey::from_slice(&[first_key + bit; 32]).unwrap();
        let secrets: BTreeMap<u64, SecretKey> = (0..8).map(|bit| (1 << bit, secret(bit))).collect();
        let keys = secrets.iter().map(|(amount, key)| (Amount::from(*amount), key.public_key()));
        let keys = CashuKeys::new(keys.collect());
        let unit = CurrencyUnit::Custom(epoch.to_string().into());
        let id = Id::v2_from_data(&keys, &unit, 0, None);
        let keyset = KeySet { id, unit, active: None, keys, input_fee_ppk: 0, final_expiry: None };
        let announced = EpochKeyset {
            epoch,
            opened_by: BlockHash::all_zeros(),
            state: Phase::Open,
            work: WorkBits::new(4).unwrap(),
            keyset,
            mint: "http://localhost:1/ehash".parse().unwrap(),
            reward: None,
            issued: HashUnits::ZERO,
        };
        Self { announced, secrets }
    }

    fn unit(&self) -> EpochId {
        self.announced.epoch
    }

    fn sign(&self, amount: u64, blank: CashuKey, with: u64) -> SignedBlank {
        let (id, key) = (self.announced.keyset.id, &self.secrets[&with]);
        let c = sign_message(key, &blank).unwrap();
        let signature = BlindSignature::new(Amount::from(amount), c, id, &blank, key).unwrap();
        SignedBlank { blank, signature }
    }

    fn batch(&self, batch: u64, amounts: &[u64], blanks: &[CashuKey]) -> Batch {
        let signatures = amounts.iter().zip(blanks).map(|(a, blank)| self.sign(*a, *blank, *a));
        Batch { unit: self.unit(), batch, signatures: signatures.collect() }
    }
}

async fn wallet(dir: &Path) -> Wallet {
    Wallet::open_or_create(dir, || [7; 16]).await.unwrap()
}

async fn with_blanks(dir: &Path, mint: &Mint) -> (Wallet, Vec<CashuKey>) {
    let wallet = wallet(dir).await;
    wallet.learn(&mint.announced, Timestamp::from(10)).await.unwrap().unwrap();
    let blanks = wallet.new_blanks(mint.unit(), 16).await.unwrap().unwrap();
    assert_eq!((blanks.keyset, blanks.outputs.len()), (mint.announced.keyset.id, 16));
    (wallet, blanks.outputs)
}

#[tokio::test]
async fn a_batch_counts_once_and_its_blanks_are_used_up() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    let batch = mint.batch(0, &[8, 1], &blanks);
    assert_eq!(wallet.apply(batch.clone()).await.unwrap(), Applied::New(HashUnits::new(9)));
    assert_eq!(wallet.apply(batch).await.unwrap(), Applied::Known);
    assert_eq!(wallet.ehash(mint.unit()).await.unwrap(), HashUnits::new(9));
    let state = wallet.epoch(mint.unit()).await.unwrap().unwrap();
    assert_eq!((state.outstanding(), state.next_batch), (14, 1));
    assert_eq!(wallet.new_blanks(mint.unit(), 14).await.unwrap(), None);
    let outstanding = wallet.outstanding_blanks(mint.unit()).await.unwrap().unwrap();
    assert_eq!(outstanding.outputs, blanks[2..]);
}

#[tokio::test]
async fn signatures_that_are_not_right_are_refused_and_change_nothing() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    let batch = |signatures| Batch { unit: mint.unit(), batch: 0, signatures };
    let stranger = SecretKey::from_slice(&[99; 32]).unwrap().public_key();
    let other_keyset = Mint::new(50).sign(1, blanks[0], 1);
    let mut without_proof = mint.sign(1, blanks[0], 1);
    without_proof.signature.dleq = None;
    let cases = [
        vec![mint.sign(8, blanks[0], 1)],
        vec![mint.sign(1, stranger, 1)],
        vec![mint.sign(1, blanks[0], 1), mint.sign(1, blanks[0], 1)],
        vec![mint.sign(3, blanks[0], 1)],
        vec![other_keyset],
        vec![without_proof],
    ];
    for (number, signatures) in cases.into_iter().enumerate() {
        let refused = wallet.apply(batch(signatures)).await;
        assert!(matches!(refused, Err(WalletError::BadSignatures(_))), "case {number}");
    }
    assert_eq!(wallet.ehash(mint.unit()).await.unwrap(), HashUnits::ZERO);
    let state = wallet.epoch(mint.unit()).await.unwrap().unwrap();
    assert_eq!((state.outstanding(), state.next_batch), (16, 0));
}

#[tokio::test]
async fn batches_may_arrive_in_any_order() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    for (number, next) in [(2, 0), (0, 1), (1, 3)] {
        let batch = mint.batch(number, &[4], &blanks[number as usize..]);
        wallet.apply(batch).await.unwrap();
        assert_eq!(wallet.epoch(mint.unit()).await.unwrap().unwrap().next_batch, next);
    }
    let state = wallet.epoch(mint.unit()).await.unwrap().unwrap();
    let statement = |work, issued, batches| Statement {
        of: EventId::all_zeros(),
        unit: mint.unit(),
        shares: 1,
        work: Work::new(work),
        issued: HashUnits::new(issued),
        batches,
        blanks: 0,
    };
    assert!(state.is_settled(&statement(12 * 16 + 15, 12, 3)));
    assert!(!state.is_settled(&statement(13 * 16, 12, 3)), "a unit is due");
    assert!(!state.is_settled(&statement(12 * 16, 12, 4)), "a batch is missing");
    assert!(state.contradicts(&statement(16 * 16, 13, 3)));
    assert!(!state.contradicts(&statement(16 * 16, 13, 4)), "the rest may be on its way");
}

/// Puts the wallet back to where a crash would have left it: the batch is
/// recorded as being applied, and its proofs may or may not be stored.
async fn crash_while_applying(dir: &Path, mint: &Mint, proofs_stored: bool) -> Wallet {
    let (wallet, blanks) = with_blanks(dir, mint).await;
    let mut before = wallet.epoch(mint.unit()).await.unwrap().unwrap();
    let batch = mint.batch(0, &[8, 1], &blanks);
    if proofs_stored {
        wallet.apply(batch.clone()).await.unwrap();
    }
    before.applying = Some(batch);
    before.save(&wallet.store).await.unwrap();
    drop(wallet);
    self::wallet(dir).await
}

#[tokio::test]
async fn a_crash_while_a_batch_is_applied_loses_and_doubles_nothing() {
    for proofs_stored in [false, true] {
        let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
        let wallet = crash_while_applying(dir.path(), &mint, proofs_stored).await;
        assert_eq!(wallet.ehash(mint.unit()).await.unwrap(), HashUnits::new(9));
        let state = wallet.epoch(mint.unit()).await.unwrap().unwrap();
        assert_eq!((state.next_batch, state.received), (1, HashUnits::new(9)));
        assert_eq!(state.outstanding(), 14);
    }
}

#[tokio::test]
async fn a_crash_before_the_counter_moved_reuses_no_secret() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (first, blanks) = with_blanks(dir.path(), &mint).await;
    let state = first.epoch(mint.unit()).await.unwrap().unwrap();
    drop(first);
    // Another directory with the same seed and record, and a counter at zero.
    let other = tempfile::tempdir().unwrap();
    let wallet = wallet(other.path()).await;
    wallet.learn(&mint.announced, Timestamp::from(10)).await.unwrap();
    state.save(&wallet.store).await.unwrap();
    let fresh = wallet.new_blanks(mint.unit(), 20).await.unwrap().unwrap();
    assert_eq!(fresh.outputs.len(), 4);
    assert!(fresh.outputs.iter().all(|blank| !blanks.contains(blank)));
}

#[tokio::test]
async fn a_second_keyset_for_an_epoch_is_refused_and_an_older_word_is_ignored() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    wallet.apply(mint.batch(0, &[8], &blanks)).await.unwrap();
    assert_eq!(wallet.learn(&Mint::new(50).announced, Timestamp::from(20)).await.unwrap(), None);

    let mut moved = mint.announced.clone();
    moved.mint = "http://localhost:2/ehash".parse().unwrap();
    for (at, port) in [(9, 1), (11, 2), (10, 2)] {
        let announced = if at == 10 { &mint.announced } else { &moved };
        wallet.learn(announced, Timestamp::from(at)).await.unwrap().unwrap();
        let balances = wallet.balances().await.unwrap();
        assert_eq!(balances.len(), 1);
        assert_eq!(balances[0].mint, format!("http://localhost:{port}/ehash"));
    }
}

#[tokio::test]
async fn the_counter_that_is_backed_up_never_passes_a_blank_that_the_pool_has() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    let keyset = mint.announced.keyset.id;
    let counter = |from| CounterTag { keyset, from, next: 16 };
    assert_eq!(wallet.backup_state().await.unwrap().counters, [counter(0)]);
    wallet.apply(mint.batch(0, &[8, 1], &blanks)).await.unwrap();
    let state = wallet.backup_state().await.unwrap();
    assert_eq!(state.counters, [counter(2)], "14 blanks are out from there on");
    assert_eq!((state.epochs[0].batches, state.epochs[0].received), (1, HashUnits::new(9)));
    assert_eq!(state.mints, std::slice::from_ref(&mint.announced.mint));
    // Out of order: the pool may sign the blanks between.
    wallet.apply(mint.batch(2, &[4], &blanks[9..])).await.unwrap();
    assert_eq!(wallet.backup_state().await.unwrap().counters, [counter(2)]);
}

fn proof(number: u8, keyset: Id) -> cdk::nuts::Proof {
    let point = SecretKey::from_slice(&[number; 32]).unwrap().public_key();
    let secret = cdk::secret::Secret::new(format!("{number:064}"));
    cdk::nuts::Proof::new(Amount::from(1), keyset, secret, point)
}

#[tokio::test]
async fn a_pool_moves_its_own_ehash_and_nothing_else() {
    let (dir, mut mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, blanks) = with_blanks(dir.path(), &mint).await;
    wallet.apply(mint.batch(0, &[8], &blanks)).await.unwrap();
    let (other, id) = ("https://sats.example", mint.announced.keyset.id);
    let sat =
        ProofInfo::new(proof(7, id), other.parse().unwrap(), State::Unspent, CurrencyUnit::Sat);
    wallet.store.update_proofs(vec![sat.unwrap()], Vec::new()).await.unwrap();
    // First it claims to live where our sats are, then elsewhere.
    for (time, url) in [(11, other), (12, "https://evil.example")] {
        mint.announced.mint = url.parse().unwrap();
        wallet.learn(&mint.announced, Timestamp::from(time)).await.unwrap().unwrap();
    }
    let balances = wallet.balances().await.unwrap();
    let at = |unit: &str| balances.iter().find(|one| one.unit == unit).unwrap().mint.clone();
    assert_eq!(at("sat"), other);
    assert_eq!(at(&mint.unit().to_string()), "https://evil.example");
}

#[tokio::test]
async fn a_known_pools_unit_at_a_strangers_mint_is_refused() {
    let (dir, mint) = (tempfile::tempdir().unwrap(), Mint::new(1));
    let (wallet, _) = with_blanks(dir.path(), &mint).await;
    let unit = mint.announced.keyset.unit.clone();
    let proofs = vec![proof(9, mint.announced.keyset.id)];
    let token = Token::new("https://evil.example".parse().unwrap(), proofs, None, unit);
    let refused = wallet.receive(&token.to_string()).await;
    assert!(matches!(refused, Err(WalletError::NotThePoolsMint { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_database_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wallet");
    wallet(&path).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}
