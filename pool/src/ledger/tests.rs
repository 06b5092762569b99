//! The ledger through its own door, on a real mint database that is closed and
//! opened again, gently or not.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use cdk::Mint;
use cdk::nuts::{PreMintSecrets, PublicKey as CashuKey};
use hashpit_nips::{Seed, Work, WorkBits};
use nostr_sdk::{EventId, Keys, PublicKey};
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::mint;
use crate::share::{Outcome, Share, Submission, Ticket};

const BITS: u8 = 4;

struct House {
    mint: Arc<Mint>,
    ledger: Ledger,
    shares: mpsc::Sender<Submission>,
    actor: JoinHandle<Result<(), LedgerError>>,
    stop: CancellationToken,
}

impl House {
    async fn open(dir: &Path) -> Self {
        Self::try_open(dir, 10).await.unwrap()
    }

    async fn try_open(dir: &Path, max_idle_miners: usize) -> Result<Self, LedgerError> {
        let seed = Seed::from_entropy(&[3; 16]);
        let pool = seed.nostr_keys(0).public_key();
        let (mint, store) = mint::open(dir, &seed, "test", "http://localhost").await.unwrap();
        let tip = (7, BlockHash::all_zeros());
        let work = WorkBits::new(BITS).unwrap();
        let epoch = mint::open_epoch(&mint, &store, pool, tip, work).await.unwrap();
        let limits = Limits { issue_interval: Duration::ZERO, max_idle_miners };
        let stop = CancellationToken::new();
        let (ledger, actor) = Actor::open(store, epoch, limits, stop.clone()).await?;
        let (shares, queue) = mpsc::channel(16);
        Ok(Self { mint, ledger, shares, actor: tokio::spawn(actor.run(queue)), stop })
    }

    async fn close(self) {
        self.stop.cancel();
        self.actor.await.unwrap().unwrap();
    }

    /// As a power cut: whatever is under way stays undone.
    fn crash(self) {
        self.actor.abort();
    }

    async fn submit(&self, miner: PublicKey, hash: u8, work: u128) -> Outcome {
        let (reply, mut verdicts) = mpsc::channel(1);
        let work = Work::new(work);
        let share = Share { miner, header_hash: [hash; 32], work };
        let ticket = Ticket { channel_id: 1, sequence_number: 1, work };
        self.shares.send(Submission { share, ticket, reply }).await.unwrap();
        verdicts.recv().await.unwrap().outcome
    }

    async fn add_blanks(&self, miner: PublicKey, blanks: Vec<CashuKey>) -> BlanksOutcome {
        let keyset = self.ledger.epoch().keyset.id;
        self.ledger.add_blanks(miner, keyset, blanks).await.unwrap()
    }

    /// Signs and records whatever is due; the batches' numbers by miner.
    async fn issue(&self) -> Vec<(PublicKey, Option<u64>)> {
        let mut issued = Vec::new();
        for plan in self.ledger.plan().await.unwrap() {
            let miner = plan.miner;
            let signatures = self.mint.blind_sign(plan.outputs.clone()).await.unwrap();
            issued.push((miner, self.ledger.issue(plan, signatures).await.unwrap()));
        }
        issued
    }

    async fn statement(&self, number: u8) -> Statement {
        self.ledger.statement(miner(number), EventId::all_zeros()).await.unwrap()
    }

    fn blanks(&self, first: u32, count: u32) -> Vec<CashuKey> {
        let id = self.ledger.epoch().keyset.id;
        let secrets = PreMintSecrets::restore_batch(id, &[9; 64], first, first + count).unwrap();
        secrets.secrets.iter().map(|s| s.blinded_message.blinded_secret).collect()
    }
}

fn miner(number: u8) -> PublicKey {
    Keys::parse(&format!("{:064x}", u32::from(number) + 1)).unwrap().public_key()
}

#[tokio::test]
async fn a_share_is_credited_once_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    assert_eq!(house.submit(miner(0), 1, 100).await, Outcome::Recorded);
    assert_eq!(house.submit(miner(0), 1, 100).await, Outcome::Duplicate);
    house.crash();

    let house = House::open(dir.path()).await;
    assert_eq!(house.submit(miner(1), 1, 100).await, Outcome::Duplicate);
    assert_eq!(house.submit(miner(0), 2, 5).await, Outcome::Recorded);
    let statement = house.statement(0).await;
    assert_eq!((statement.shares, statement.work), (2, Work::new(105)));
    house.close().await;
}

#[tokio::test]
async fn whole_units_are_issued_and_the_rest_stays_credit() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.submit(miner(0), 1, 16 * 13 + 7).await;
    assert!(house.issue().await.is_empty(), "no blanks yet");
    house.add_blanks(miner(0), house.blanks(0, 10)).await;
    assert_eq!(house.issue().await, [(miner(0), Some(0))]);

    let batch = house.ledger.batch(&miner(0), 0).await.unwrap().unwrap();
    let amounts: Vec<u64> = batch.signatures.iter().map(|s| s.signature.amount.into()).collect();
    assert_eq!(amounts, [8, 4, 1]);
    let keys = &house.ledger.epoch().keyset.keys;
    for signed in &batch.signatures {
        let key = keys.amount_key(signed.signature.amount).unwrap();
        signed.signature.verify_dleq(key, signed.blank).unwrap();
    }
    assert!(house.issue().await.is_empty(), "7 hashes are less than a unit");
    house.submit(miner(0), 2, 9).await;
    assert_eq!(house.issue().await, [(miner(0), Some(1))]);
    house.close().await;
}

#[tokio::test]
async fn a_batch_is_the_same_for_ever_and_unacked_until_acked() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.submit(miner(0), 1, 16 * 3).await;
    house.add_blanks(miner(0), house.blanks(0, 2)).await;
    house.issue().await;
    let before = house.ledger.batch(&miner(0), 0).await.unwrap().unwrap();
    house.crash();

    let house = House::open(dir.path()).await;
    assert_eq!(house.ledger.batch(&miner(0), 0).await.unwrap().unwrap(), before);
    assert_eq!(house.ledger.batch(&miner(0), 1).await.unwrap(), None);
    assert_eq!(house.ledger.unacked().await.unwrap(), [(miner(0), 0)]);
    house.ledger.ack(miner(1), vec![0]).await.unwrap();
    house.ledger.ack(miner(0), vec![0, 0, 5]).await.unwrap();
    house.close().await;
    let house = House::open(dir.path()).await;
    assert_eq!(house.ledger.unacked().await.unwrap(), []);
    house.close().await;
}

#[tokio::test]
async fn a_blank_is_never_signed_twice_whoever_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.submit(miner(0), 1, 16).await;
    house.add_blanks(miner(0), house.blanks(0, 1)).await;
    house.submit(miner(1), 2, 16).await;
    house.add_blanks(miner(1), house.blanks(0, 1)).await;
    // Both hold the same blank; one of them gets it signed, the other keeps its credit.
    let mut outcomes: Vec<_> = house.issue().await.into_iter().map(|(_, batch)| batch).collect();
    outcomes.sort();
    assert_eq!(outcomes, [None, Some(0)]);
    assert_eq!(
        house.add_blanks(miner(0), house.blanks(0, 1)).await,
        BlanksOutcome::Held { held: 0 }
    );
    for (number, fresh) in [(0, 1), (1, 2)] {
        house.add_blanks(miner(number), house.blanks(fresh, 1)).await;
    }
    assert_eq!(house.issue().await.len(), 1);
    assert_eq!(house.ledger.totals().issued, HashUnits::new(2));
    house.close().await;
}

#[tokio::test]
async fn blanks_that_cannot_be_held_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::try_open(dir.path(), 1).await.unwrap();
    let refused = |outcome, word: &str| match outcome {
        BlanksOutcome::Refused(reason) => assert!(reason.contains(word), "{reason}"),
        BlanksOutcome::Held { .. } => panic!("held"),
    };
    refused(house.add_blanks(miner(0), vec![]).await, "invalid: send 1 to 100");
    refused(house.add_blanks(miner(0), house.blanks(0, 101)).await, "invalid: send 1 to 100");
    let other = "00d0a1b24d1c1a53".parse().unwrap();
    let outcome = house.ledger.add_blanks(miner(0), other, house.blanks(0, 1)).await.unwrap();
    refused(outcome, "not the open epoch's");

    let held = BlanksOutcome::Held { held: 60 };
    assert_eq!(house.add_blanks(miner(0), house.blanks(0, 60)).await, held);
    assert_eq!(house.add_blanks(miner(0), house.blanks(0, 60)).await, held, "the same again");
    let full = BlanksOutcome::Held { held: 100 };
    assert_eq!(house.add_blanks(miner(0), house.blanks(60, 60)).await, full, "what is beyond goes");
    refused(house.add_blanks(miner(1), house.blanks(200, 1)).await, "restricted: mine a share");
    house.submit(miner(1), 1, 1).await;
    let one = BlanksOutcome::Held { held: 1 };
    assert_eq!(house.add_blanks(miner(1), house.blanks(200, 1)).await, one);
    house.close().await;
}

#[tokio::test]
async fn an_account_that_differs_from_its_shares_stops_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.submit(miner(0), 1, 100).await;
    let store = house.mint.localstore();
    house.close().await;
    let mut transaction = store.begin_transaction().await.unwrap();
    let forged = account::Account { shares: 1, work: Work::new(1000), ..Default::default() };
    let bytes = records::encode_account(&forged);
    let key = records::miner_key(&miner(0));
    transaction.kv_write(NAMESPACE, "accounts-7", &key, &bytes).await.unwrap();
    transaction.commit().await.unwrap();
    let error = House::try_open(dir.path(), 1).await.err().unwrap();
    assert!(error.to_string().contains("differs from its shares"), "{error}");
}

/// What a run of the property test may do.
#[derive(Debug, Clone)]
enum Step {
    Share { miner: u8, hash: u8, work: u16 },
    Blanks { miner: u8, count: u8 },
    Issue,
    PlanAndCrash,
    Crash,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..3, any::<u8>(), any::<u16>())
            .prop_map(|(miner, hash, work)| Step::Share { miner, hash, work }),
        3 => (0u8..3, 1u8..12).prop_map(|(miner, count)| Step::Blanks { miner, count }),
        4 => Just(Step::Issue),
        1 => Just(Step::PlanAndCrash),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

async fn follow(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::open(dir.path()).await;
    let (mut seen, mut work, mut blanks) = (HashSet::new(), HashMap::<u8, u128>::new(), 0);
    for step in steps {
        match step {
            Step::Share { miner: number, hash, work: worth } => {
                let outcome = house.submit(miner(number), hash, worth.into()).await;
                assert_eq!(outcome == Outcome::Recorded, seen.insert(hash));
                if outcome == Outcome::Recorded {
                    *work.entry(number).or_default() += u128::from(worth);
                }
            }
            Step::Blanks { miner: number, count } => {
                house.add_blanks(miner(number), house.blanks(blanks, count.into())).await;
                blanks += u32::from(count);
            }
            Step::Issue => drop(house.issue().await),
            Step::PlanAndCrash => {
                house.ledger.plan().await.unwrap();
                house.crash();
                house = House::open(dir.path()).await;
            }
            Step::Crash => {
                house.crash();
                house = House::open(dir.path()).await;
            }
            Step::Restart => {
                house.close().await;
                house = House::open(dir.path()).await;
            }
        }
        check(&house, &work).await;
    }
}

/// Credited as the model says, and in the mint what the statements say.
async fn check(house: &House, work: &HashMap<u8, u128>) {
    let mut issued = 0;
    for number in 0..3 {
        let statement = house.statement(number).await;
        assert_eq!(statement.work.get(), work.get(&number).copied().unwrap_or_default());
        assert!(u128::from(statement.issued.get()) << BITS <= statement.work.get());
        let mut signed = 0;
        for batch in 0..statement.batches {
            let batch = house.ledger.batch(&miner(number), batch).await.unwrap().unwrap();
            signed += batch.signatures.iter().map(|s| u64::from(s.signature.amount)).sum::<u64>();
        }
        assert_eq!(signed, statement.issued.get());
        issued += signed;
    }
    let keyset = house.ledger.epoch().keyset.id;
    let total = house.mint.total_issued().await.unwrap().get(&keyset).copied().unwrap_or_default();
    assert_eq!(u64::from(total), issued);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_books_balance_whatever_happens(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follow(steps));
    }
}
