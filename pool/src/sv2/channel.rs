//! One mining channel: its jobs, its targets, and what its shares are worth.
//!
//! Wraps the library's standard and extended channels into one type and adds
//! what they do not keep: the credit of each job, in integers, fixed when the
//! job is made. It does no I/O: templates go in and messages come out.

use std::collections::HashMap;

use bitcoin::{Amount, CompactTarget, ScriptBuf, Target, TxOut};
use hashpit_nips::{MinerIdentity, Work};
use nostr_sdk::PublicKey;
use stratum_apps::stratum_core::channels_sv2::extranonce_manager::AllocatedExtranoncePrefix;
use stratum_apps::stratum_core::channels_sv2::server::extended::ExtendedChannel;
use stratum_apps::stratum_core::channels_sv2::server::share_accounting::ShareValidationResult;
use stratum_apps::stratum_core::channels_sv2::server::standard::StandardChannel;
use stratum_apps::stratum_core::channels_sv2::{Vardiff, VardiffState};
use stratum_apps::stratum_core::mining_sv2::{
    ERROR_CODE_OPEN_MINING_CHANNEL_INVALID_NOMINAL_HASHRATE as INVALID_HASHRATE,
    ERROR_CODE_OPEN_MINING_CHANNEL_MAX_TARGET_OUT_OF_RANGE as MAX_TARGET_OUT_OF_RANGE,
    ERROR_CODE_SUBMIT_SHARES_INVALID_CHANNEL_ID as INVALID_CHANNEL_ID,
    ERROR_CODE_SUBMIT_SHARES_INVALID_JOB_ID as INVALID_JOB_ID, NewExtendedMiningJobOwned,
    NewMiningJobOwned, OpenExtendedMiningChannelSuccessOwned,
    OpenStandardMiningChannelSuccessOwned, SetNewPrevHashOwned, SetTargetOwned,
    SubmitSharesExtendedOwned, SubmitSharesStandardOwned,
};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use stratum_apps::stratum_core::template_distribution_sv2::{
    NewTemplateOwned, SubmitSolutionOwned,
};

use super::acks::Acks;
use super::codes::Refusal;
use super::{Config, ROLLABLE_BYTES};
use crate::share::Share;
use crate::template::CurrentTemplate;

/// Acknowledgements follow the ledger, so the library never asks for one.
const NO_BATCH: usize = usize::MAX;
/// A thousand million times all of Bitcoin's: above it, targets overflow.
const MAX_HASHRATE: f32 = 1e30;
/// Jobs of this channel go to it alone (Sv2 5.2.3).
const NO_GROUP: u32 = 0;

/// Which kind of channel is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Header-only mining: the pool makes the Merkle root.
    Standard,
    /// The miner rolls part of the extranonce.
    Extended {
        /// How much of it, at least.
        min_extranonce_bytes: u16,
    },
}

/// What a miner asks for when it opens a channel, and what it is given.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) request: Request,
    pub(super) request_id: u32,
    pub(super) channel_id: u32,
    pub(super) identity: MinerIdentity,
    pub(super) wish: Wish,
    pub(super) prefix: AllocatedExtranoncePrefix,
    pub(super) coinbase_tag: &'a str,
}

/// What a miner says of itself, when it opens a channel or later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Hashes per second.
    pub(super) hashrate: f32,
    /// The easiest target that it wants.
    pub(super) max_target: Target,
}

impl Wish {
    /// The hash rate that a target may be set for, which is at least
    /// `min_hashrate`; refused where no miner could meet that target.
    fn hashrate_granted(self, min_hashrate: f32) -> Result<f32, Refusal> {
        if !(0.0..=MAX_HASHRATE).contains(&self.hashrate) {
            return Err(Refusal::Code(INVALID_HASHRATE));
        }
        if Work::of_target(self.max_target).is_err() {
            return Err(Refusal::Code(MAX_TARGET_OUT_OF_RANGE));
        }
        Ok(self.hashrate.max(min_hashrate))
    }
}

/// A share as it comes off the wire.
#[derive(Debug)]
pub(super) enum Submitted {
    Standard(SubmitSharesStandardOwned),
    Extended(SubmitSharesExtendedOwned),
}

/// A share that met its target, and the block that it solved, if it did.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) share: Share,
    pub(super) solution: Option<SubmitSolutionOwned>,
}

/// An open channel.
#[derive(Debug)]
pub(super) struct Channel {
    id: u32,
    miner: PublicKey,
    kind: Kind,
    vardiff: VardiffState,
    min_hashrate: f32,
    /// Credit of each job that may still bear shares.
    credits: HashMap<u32, Work>,
    pub(super) acks: Acks,
}

#[derive(Debug)]
enum Kind {
    // Boxed: the two differ much in size, and the map of channels moves them.
    Standard(Box<StandardChannel>),
    Extended(Box<ExtendedChannel>),
}

/// Runs the same expression on whichever kind of channel it is.
macro_rules! on_kind {
    ($kind:expr, $channel:ident => $body:expr) => {
        match $kind {
            Kind::Standard($channel) => $body,
            Kind::Extended($channel) => $body,
        }
    };
}

impl Channel {
    /// Opens a channel and returns it with the message that says so.
    pub(super) fn open(
        opening: Opening<'_>,
        config: &Config,
    ) -> Result<(Self, MiningOwned), Refusal> {
        let hashrate = opening.wish.hashrate_granted(config.min_hashrate)?;
        let (id, miner, request_id) =
            (opening.channel_id, opening.identity.miner, opening.request_id);
        let kind = Kind::new(opening, hashrate, config.shares_per_minute)?;
        let vardiff = VardiffState::new_with_min(config.min_hashrate)
            .map_err(|error| Refusal::Fatal(format!("the clock is before 1970: {error:?}")))?;
        let success = kind.opened(request_id, id);
        let credits = HashMap::new();
        let min_hashrate = config.min_hashrate;
        Ok((
            Self { id, miner, kind, vardiff, min_hashrate, credits, acks: Acks::default() },
            success,
        ))
    }

    /// Moves the channel to a new announcement of the tip: a future job, then
    /// the previous hash that makes it current (Sv2 5.3.17). Older jobs become
    /// stale.
    pub(super) fn announce(
        &mut self,
        current: &CurrentTemplate,
        payout: &ScriptBuf,
    ) -> Result<[MiningOwned; 2], Refusal> {
        let template = NewTemplateOwned { future_template: true, ..current.template.clone() };
        let id = template.template_id;
        let (job_id, job): (u32, JobMessage) = on_kind!(&mut self.kind, channel => {
            channel.on_new_template(template, outputs(current, payout))?;
            let job_id = channel.get_future_job_id_from_template_id(id);
            let job = job_id.and_then(|id| channel.get_future_job(id)).ok_or_else(missing_job)?;
            let made = (job.get_job_id(), job.get_job_message().clone().into());
            channel.on_set_new_prev_hash(current.prev_hash.clone())?;
            made
        });
        self.credits.clear();
        self.remember(job_id, current)?;
        let prev_hash = MiningOwned::SetNewPrevHash(SetNewPrevHashOwned {
            channel_id: self.id,
            job_id,
            prev_hash: current.prev_hash.prev_hash.clone(),
            min_ntime: current.prev_hash.header_timestamp,
            nbits: current.prev_hash.n_bits,
        });
        Ok([job.0, prev_hash])
    }

    /// A new job on the announced tip; earlier ones stay good.
    pub(super) fn refresh(
        &mut self,
        current: &CurrentTemplate,
        payout: &ScriptBuf,
    ) -> Result<MiningOwned, Refusal> {
        let template = NewTemplateOwned { future_template: false, ..current.template.clone() };
        let (job_id, job): (u32, JobMessage) = on_kind!(&mut self.kind, channel => {
            channel.on_new_template(template, outputs(current, payout))?;
            let job = channel.get_active_job().ok_or_else(missing_job)?;
            (job.get_job_id(), job.get_job_message().clone().into())
        });
        self.remember(job_id, current)?;
        Ok(job.0)
    }

    /// What a share of this job is worth, now that its target is decided.
    ///
    /// A hash that meets the network's target counts even where the share's
    /// own is harder, so the easier of the two is what a share had to meet.
    fn remember(&mut self, job_id: u32, current: &CurrentTemplate) -> Result<(), Refusal> {
        let network = Target::from_compact(CompactTarget::from_consensus(current.prev_hash.n_bits));
        let credit = Work::of_target(self.kind.target().max(network))
            .map_err(|error| Refusal::Fatal(format!("a job's target: {error}")))?;
        let kind = &self.kind;
        self.credits.retain(|id, _| kind.takes_shares_of(*id));
        self.credits.insert(job_id, credit);
        Ok(())
    }

    /// Checks a share against its job.
    pub(super) fn submit(&mut self, submitted: Submitted) -> Result<Accepted, Refusal> {
        let header = Header::of(&submitted);
        let credit = self.credits.get(&header.job_id).copied();
        let verdict = match (&mut self.kind, submitted) {
            (Kind::Standard(channel), Submitted::Standard(share)) => {
                channel.validate_share(share)?
            }
            (Kind::Extended(channel), Submitted::Extended(share)) => {
                channel.validate_share(share)?
            }
            (Kind::Standard(_), Submitted::Extended(_))
            | (Kind::Extended(_), Submitted::Standard(_)) => {
                return Err(Refusal::Code(INVALID_CHANNEL_ID));
            }
        };
        let work = credit.ok_or(Refusal::Code(INVALID_JOB_ID))?;
        self.vardiff.increment_shares_since_last_update();
        let (hash, solution) = match verdict {
            ShareValidationResult::Valid(hash) => (hash, None),
            ShareValidationResult::BlockFound(hash, template_id, coinbase) => {
                (hash, header.solution(template_id, coinbase))
            }
        };
        let header_hash = *AsRef::<[u8; 32]>::as_ref(&hash);
        Ok(Accepted { share: Share { miner: self.miner, header_hash, work }, solution })
    }

    /// Takes a miner's word on its hash rate and the easiest target it wants
    /// (Sv2 5.3.7). The new target holds from the next job on.
    pub(super) fn update(&mut self, wish: Wish) -> Result<MiningOwned, Refusal> {
        let hashrate = wish.hashrate_granted(self.min_hashrate)?;
        self.retarget(hashrate, Some(wish.max_target))?;
        Ok(self.set_target())
    }

    /// Compares the rate of shares with the rate wanted; `Some` if the target
    /// changed.
    pub(super) fn vardiff(
        &mut self,
        shares_per_minute: f32,
    ) -> Result<Option<MiningOwned>, Refusal> {
        let (hashrate, target) = (self.kind.hashrate(), self.kind.target());
        let estimate = self.vardiff.try_vardiff(hashrate, &target, shares_per_minute);
        let Some(estimate) = estimate.unwrap_or_else(|error| {
            tracing::warn!(?error, "vardiff skipped");
            None
        }) else {
            return Ok(None);
        };
        self.retarget(estimate, None)?;
        if self.kind.target() == target {
            return Ok(None);
        }
        tracing::debug!(channel = self.id, hashrate = estimate, "vardiff");
        Ok(Some(self.set_target()))
    }

    fn retarget(&mut self, hashrate: f32, max_target: Option<Target>) -> Result<(), Refusal> {
        on_kind!(&mut self.kind, channel => channel.update_channel(hashrate, max_target)?);
        Ok(())
    }

    /// The message that tells the channel's target (Sv2 5.3.21).
    pub(super) fn set_target(&self) -> MiningOwned {
        MiningOwned::SetTarget(SetTargetOwned {
            channel_id: self.id,
            maximum_target: self.kind.target().to_le_bytes().into(),
        })
    }
}

impl Kind {
    fn new(opening: Opening<'_>, hashrate: f32, shares_per_minute: f32) -> Result<Self, Refusal> {
        let Opening { request, channel_id, identity, wish, prefix, coinbase_tag, .. } = opening;
        let (user, tag) = (identity.to_string(), coinbase_tag.to_owned());
        Ok(match request {
            Request::Standard => Self::Standard(Box::new(StandardChannel::new_for_pool(
                channel_id,
                user,
                prefix,
                wish.max_target,
                hashrate,
                NO_BATCH,
                shares_per_minute,
                tag,
                None,
            )?)),
            Request::Extended { .. } => Self::Extended(Box::new(ExtendedChannel::new_for_pool(
                channel_id,
                user,
                prefix,
                wish.max_target,
                hashrate,
                true,
                ROLLABLE_BYTES,
                NO_BATCH,
                shares_per_minute,
                tag,
                None,
            )?)),
        })
    }

    fn opened(&self, request_id: u32, channel_id: u32) -> MiningOwned {
        let target = self.target().to_le_bytes().into();
        let prefix = on_kind!(self, channel => channel.get_extranonce_prefix().to_vec());
        let extranonce_prefix = prefix.try_into().expect("a prefix is at most 32 bytes");
        match self {
            Self::Standard(_) => MiningOwned::OpenStandardMiningChannelSuccess(
                OpenStandardMiningChannelSuccessOwned {
                    request_id,
                    channel_id,
                    target,
                    extranonce_prefix,
                    group_channel_id: NO_GROUP,
                },
            ),
            Self::Extended(channel) => MiningOwned::OpenExtendedMiningChannelSuccess(
                OpenExtendedMiningChannelSuccessOwned {
                    request_id,
                    channel_id,
                    target,
                    extranonce_size: channel.get_rollable_extranonce_size(),
                    extranonce_prefix,
                    group_channel_id: NO_GROUP,
                },
            ),
        }
    }

    fn target(&self) -> Target {
        on_kind!(self, channel => *channel.get_target())
    }

    fn hashrate(&self) -> f32 {
        on_kind!(self, channel => channel.get_nominal_hashrate())
    }

    fn takes_shares_of(&self, job_id: u32) -> bool {
        on_kind!(self, channel => {
            channel.get_active_job().is_some_and(|job| job.get_job_id() == job_id)
                || channel.get_past_job(job_id).is_some()
        })
    }
}

/// Either kind of job, as the message that tells a miner of it.
struct JobMessage(MiningOwned);

impl From<NewMiningJobOwned> for JobMessage {
    fn from(job: NewMiningJobOwned) -> Self {
        Self(MiningOwned::NewMiningJob(job))
    }
}

impl From<NewExtendedMiningJobOwned> for JobMessage {
    fn from(job: NewExtendedMiningJobOwned) -> Self {
        Self(MiningOwned::NewExtendedMiningJob(job))
    }
}

/// The fields of a share that a block's header needs.
struct Header {
    job_id: u32,
    version: u32,
    time: u32,
    nonce: u32,
}

impl Header {
    fn of(submitted: &Submitted) -> Self {
        let (job_id, version, time, nonce) = match submitted {
            Submitted::Standard(s) => (s.job_id, s.version, s.ntime, s.nonce),
            Submitted::Extended(s) => (s.job_id, s.version, s.ntime, s.nonce),
        };
        Self { job_id, version, time, nonce }
    }

    /// `None` for a custom job, which this pool does not give out.
    fn solution(self, template_id: Option<u64>, coinbase: Vec<u8>) -> Option<SubmitSolutionOwned> {
        Some(SubmitSolutionOwned {
            template_id: template_id?,
            version: self.version,
            header_timestamp: self.time,
            header_nonce: self.nonce,
            coinbase_tx: coinbase.try_into().ok()?,
        })
    }
}

/// Where the coins of the next block go.
fn outputs(current: &CurrentTemplate, payout: &ScriptBuf) -> Vec<TxOut> {
    let value = Amount::from_sat(current.template.coinbase_tx_value_remaining);
    vec![TxOut { value, script_pubkey: payout.clone() }]
}

fn missing_job() -> Refusal {
    Refusal::Fatal("the library made no job of a template".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::template::embedded::system_clock;
    use crate::template::{EmbeddedChain, EmbeddedConfig, TemplateSource};
    use stratum_apps::stratum_core::channels_sv2::extranonce_manager::ExtranonceAllocator;

    const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";

    fn template(bits: &str) -> CurrentTemplate {
        let directory = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig { bits: bits.parse().unwrap(), ..EmbeddedConfig::default() };
        let (chain, _task) =
            EmbeddedChain::open(config, &directory.path().join("blocks.dat"), system_clock())
                .unwrap();
        let current = chain.subscribe();
        CurrentTemplate::clone(&current.borrow())
    }

    fn open(request: Request, wish: Wish, config: &Config) -> Result<Channel, Refusal> {
        let mut extranonces = ExtranonceAllocator::new(vec![1; 6], 20, 1 << 16).unwrap();
        let prefix = match request {
            Request::Standard => extranonces.allocate_standard().unwrap(),
            Request::Extended { .. } => extranonces.allocate_extended(8).unwrap(),
        };
        let identity = NPUB.parse().unwrap();
        let opening = Opening {
            request,
            request_id: 1,
            channel_id: 1,
            identity,
            wish,
            prefix,
            coinbase_tag: "t",
        };
        Channel::open(opening, config).map(|(channel, _)| channel)
    }

    fn share(job_id: u32, sequence_number: u32, nonce: u32, ntime: u32) -> Submitted {
        Submitted::Standard(SubmitSharesStandardOwned {
            channel_id: 1,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version: 0x2000_0000,
        })
    }

    /// Mines a share of `job_id` by asking the channel itself.
    fn mine(channel: &mut Channel, job_id: u32, ntime: u32) -> Share {
        (0..).find_map(|nonce| channel.submit(share(job_id, 0, nonce, ntime)).ok()).unwrap().share
    }

    fn job_id(message: &MiningOwned) -> u32 {
        match message {
            MiningOwned::NewMiningJob(job) => job.job_id,
            other => panic!("not a job: {other}"),
        }
    }

    const EASIEST: Target = Target::MAX;

    #[test]
    fn a_share_of_an_older_job_keeps_the_credit_of_its_time() {
        let config = Config { min_hashrate: 1.0, shares_per_minute: 60.0, ..Config::default() };
        let current = template("1d00ffff");
        let payout = ScriptBuf::new();
        let max_target = Target::from_le_bytes([0xff; 32]);
        let mut channel =
            open(Request::Standard, Wish { hashrate: 16.0, max_target }, &config).unwrap();
        let [first, _] = channel.announce(&current, &payout).unwrap();
        let easy = Work::of_target(channel.kind.target()).unwrap();
        channel.update(Wish { hashrate: 4_000.0, max_target }).unwrap();
        let second = channel.refresh(&current, &payout).unwrap();
        let hard = Work::of_target(channel.kind.target()).unwrap();
        assert!(easy < hard);
        let ntime = current.prev_hash.header_timestamp;
        assert_eq!(mine(&mut channel, job_id(&second), ntime).work, hard);
        assert_eq!(mine(&mut channel, job_id(&first), ntime).work, easy);
        channel.announce(&current, &payout).unwrap();
        assert_eq!(
            channel.submit(share(job_id(&first), 0, 0, ntime)).unwrap_err(),
            Refusal::Code("stale-share")
        );
    }

    #[test]
    fn wishes_that_no_miner_can_have_are_refused() {
        let config = Config::default();
        let zero = Target::from_le_bytes([0; 32]);
        for hashrate in [f32::NAN, f32::INFINITY, -1.0, f32::MAX] {
            let refused = open(Request::Standard, Wish { hashrate, max_target: EASIEST }, &config);
            assert_eq!(refused.unwrap_err(), Refusal::Code(INVALID_HASHRATE));
        }
        let request = Request::Extended { min_extranonce_bytes: 8 };
        let refused = open(request, Wish { hashrate: 1.0, max_target: zero }, &config);
        assert_eq!(refused.unwrap_err(), Refusal::Code(MAX_TARGET_OUT_OF_RANGE));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever a miner declares and a channel aims at, a share is worth
        /// the work of the easier of its job's target and the network's.
        #[test]
        fn credit_is_the_work_of_the_target(
            hashrate in 0.0f32..40_000.0,
            shares_per_minute in 1.0f32..600.0,
            bits in prop_oneof![Just("207fffff"), Just("1f7fffff"), Just("1d00ffff")],
        ) {
            prop_assume!(hashrate * 60.0 / shares_per_minute < 20_000.0);
            let config = Config { min_hashrate: 1.0, shares_per_minute, ..Config::default() };
            let current = template(bits);
            let max_target = Target::from_le_bytes([0xff; 32]);
            let mut channel = open(Request::Standard, Wish { hashrate, max_target }, &config).unwrap();
            let [job, _] = channel.announce(&current, &ScriptBuf::new()).unwrap();
            let network = Target::from_compact(CompactTarget::from_consensus(current.prev_hash.n_bits));
            let expected = Work::of_target(channel.kind.target().max(network)).unwrap();
            let share = mine(&mut channel, job_id(&job), current.prev_hash.header_timestamp);
            prop_assert_eq!(share.work, expected);
            let hash = Target::from_le_bytes(share.header_hash);
            prop_assert!(hash <= channel.kind.target().max(network));
        }
    }
}
