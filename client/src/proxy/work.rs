//! An extended channel seen from its miner's side: extranonce, jobs, targets,
//! and what a share of a job has to be. No I/O: messages go in, jobs come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, CompactTarget, Target, TxMerkleNode};
use hashpit_nips::Work;
use stratum_apps::stratum_core::channels_sv2::bip141::try_strip_bip141;
use stratum_apps::stratum_core::channels_sv2::merkle_root::merkle_root_from_path;
use stratum_apps::stratum_core::mining_sv2::{NewExtendedMiningJobOwned, SetNewPrevHashOwned};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use stratum_apps::stratum_core::stratum_translation::sv2_to_sv1::build_sv1_notify_from_sv2;
use stratum_apps::stratum_core::sv1_api::server_to_client::Notify;

/// Future jobs that are remembered; only the newest is ever made current.
const MAX_FUTURE_JOBS: usize = 8;

/// How a coinbase's extranonce is made up: the pool's prefix, bytes that the
/// proxy fills, bytes that the device rolls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extranonce {
    /// The pool's.
    pub(super) prefix: Vec<u8>,
    /// The proxy's.
    pub(super) fixed: Vec<u8>,
    /// How many bytes the device rolls.
    pub(super) rolled: usize,
}

impl Extranonce {
    /// What Stratum V1 calls extranonce1.
    pub(super) fn first(&self) -> Vec<u8> {
        [self.prefix.as_slice(), &self.fixed].concat()
    }

    /// What an Sv2 share carries: all that the pool has not chosen.
    pub(super) fn submitted(&self, rolled: &[u8]) -> Vec<u8> {
        [self.fixed.as_slice(), rolled].concat()
    }
}

/// A job that can be worked on.
#[derive(Debug)]
pub(super) struct Job {
    /// The connection that it came by: the pool takes its shares on no other.
    pub(super) generation: u64,
    /// Its id at the pool.
    pub(super) id: u32,
    pub(super) version: u32,
    pub(super) version_rolling: bool,
    /// The earliest time that a share may bear.
    pub(super) min_time: u32,
    /// What a share has to meet: the easier of the channel's target and the
    /// network's.
    pub(super) target: Target,
    /// What a share is worth.
    pub(super) work: Work,
    /// Its coinbase stripped of witness data.
    message: NewExtendedMiningJobOwned,
    tip: SetNewPrevHashOwned,
}

/// The header fields that a device chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) version: u32,
    pub(super) time: u32,
    pub(super) nonce: u32,
}

impl Job {
    fn new(
        generation: u64,
        mut message: NewExtendedMiningJobOwned,
        tip: &SetNewPrevHashOwned,
        target: Target,
    ) -> Option<Self> {
        let (prefix, suffix) = (&message.coinbase_tx_prefix, &message.coinbase_tx_suffix);
        if let Some((prefix, suffix)) =
            try_strip_bip141(prefix.as_bytes(), suffix.as_bytes()).ok()?
        {
            message.coinbase_tx_prefix = prefix.try_into().ok()?;
            message.coinbase_tx_suffix = suffix.try_into().ok()?;
        }
        let network = Target::from_compact(CompactTarget::from_consensus(tip.nbits));
        let target = target.max(network);
        Some(Self {
            generation,
            id: message.job_id,
            version: message.version,
            version_rolling: message.version_rolling_allowed,
            min_time: message.min_ntime.as_ref().copied().unwrap_or(tip.min_ntime),
            work: Work::of_target(target).ok()?,
            target,
            message,
            tip: tip.clone(),
        })
    }

    /// As `mining.notify` tells it, under a name of our own.
    pub(super) fn notify(&self, name: &str, clean: bool) -> Option<Notify> {
        let notify = build_sv1_notify_from_sv2(self.tip.clone(), self.message.clone(), clean);
        notify.ok().map(|notify| Notify { job_id: name.to_owned(), ..notify })
    }

    /// The hash of a share's header, as the number that a target is compared
    /// with; `None` if the job holds no coinbase.
    pub(super) fn hash(&self, extranonce: &[u8], found: Found) -> Option<Target> {
        let root = merkle_root_from_path(
            self.message.coinbase_tx_prefix.as_bytes(),
            self.message.coinbase_tx_suffix.as_bytes(),
            extranonce,
            self.message.merkle_path.as_slice(),
        )?;
        let header = Header {
            version: Version::from_consensus(found.version.cast_signed()),
            prev_blockhash: BlockHash::from_byte_array(self.tip.prev_hash.to_array()),
            merkle_root: TxMerkleNode::from_byte_array(root),
            time: found.time,
            bits: CompactTarget::from_consensus(self.tip.nbits),
            nonce: found.nonce,
        };
        Some(Target::from_le_bytes(header.block_hash().to_byte_array()))
    }
}

/// Follows a channel's messages.
#[derive(Debug)]
pub(super) struct Follower {
    generation: u64,
    /// The target of jobs to come.
    target: Target,
    tip: Option<SetNewPrevHashOwned>,
    future: BTreeMap<u32, NewExtendedMiningJobOwned>,
}

impl Follower {
    pub(super) fn new(generation: u64, target: Target) -> Self {
        Self { generation, target, tip: None, future: BTreeMap::new() }
    }

    /// Takes note of a message; `Some` if there is a new job, and whether it
    /// makes all earlier ones worthless.
    pub(super) fn follow(&mut self, message: MiningOwned) -> Option<(Arc<Job>, bool)> {
        match message {
            MiningOwned::NewExtendedMiningJob(job) if job.min_ntime.as_ref().is_some() => {
                Some((self.job(job)?, false))
            }
            MiningOwned::NewExtendedMiningJob(job) => {
                self.future.insert(job.job_id, job);
                if self.future.len() > MAX_FUTURE_JOBS {
                    self.future.pop_first();
                }
                None
            }
            MiningOwned::SetNewPrevHash(tip) => {
                let job = self.future.remove(&tip.job_id);
                self.future.clear();
                self.tip = Some(tip);
                Some((self.job(job?)?, true))
            }
            // It holds for jobs to come (Sv2 5.3.21).
            MiningOwned::SetTarget(set) => {
                self.target = Target::from_le_bytes(set.maximum_target.to_array());
                None
            }
            other => {
                tracing::debug!(%other, "passed over");
                None
            }
        }
    }

    fn job(&self, message: NewExtendedMiningJobOwned) -> Option<Arc<Job>> {
        let job = Job::new(self.generation, message, self.tip.as_ref()?, self.target);
        if job.is_none() {
            tracing::warn!("the pool sent a job that cannot be worked on; passed over");
        }
        job.map(Arc::new)
    }
}
