//! One channel of an Sv2 device: the pool's channel behind it, what its shares
//! are worth, and how its messages are rewritten between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{CompactTarget, Target};
use hashpit_nips::Work;
use stratum_apps::stratum_core::binary_sv2::B032Owned;
use stratum_apps::stratum_core::mining_sv2::{
    OpenExtendedMiningChannelSuccessOwned, OpenStandardMiningChannelSuccessOwned,
    SetExtranoncePrefixOwned, SetTargetOwned,
};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;

use crate::proxy::shares::InFlight;
use crate::proxy::stats::{Connected, Worker};
use crate::proxy::upstream::{Kind, Line, Opened};

/// Jobs of one tip whose worth is remembered.
const MAX_JOBS: usize = 64;
/// A channel of ours belongs to no group (Sv2 5.2.3).
const NO_GROUP: u32 = 0;

/// A device's channel.
pub(super) struct Channel {
    /// Its id on the device's connection.
    pub(super) id: u32,
    pub(super) request_id: u32,
    pub(super) kind: Kind,
    pub(super) line: Line,
    /// The worker's name, for the pool's statistics.
    pub(super) label: String,
    pub(super) worker: Arc<Worker>,
    pub(super) _connected: Connected,
    /// Bytes that the device rolls, once it has been told.
    pub(super) rolled: Option<usize>,
    /// The pool's side, while there is one.
    pub(super) pool: Option<PoolSide>,
}

/// The pool's channel.
pub(super) struct PoolSide {
    pub(super) opened: Opened,
    /// Bytes before the device's that the proxy fills with zeros: this pool
    /// gives more than the device was told of.
    pub(super) filled: usize,
    pub(super) credits: Credits,
    pub(super) in_flight: InFlight<Arc<Worker>>,
}

impl Channel {
    /// Takes the pool's side, and says what the device has to know; `None` if
    /// this pool leaves fewer bytes than the device rolls.
    pub(super) fn opened(&mut self, opened: Opened) -> Option<Vec<MiningOwned>> {
        let told = self.rolled;
        let rolled = told.unwrap_or(opened.extranonce_size);
        let filled = opened.extranonce_size.checked_sub(rolled)?;
        let prefix = filled_prefix(&opened.prefix, filled)?;
        let messages = match told {
            None => vec![self.success(&opened, prefix)],
            Some(_) => vec![
                MiningOwned::SetExtranoncePrefix(SetExtranoncePrefixOwned {
                    channel_id: self.id,
                    extranonce_prefix: prefix,
                }),
                MiningOwned::SetTarget(SetTargetOwned {
                    channel_id: self.id,
                    maximum_target: opened.target.to_le_bytes().into(),
                }),
            ],
        };
        self.rolled = Some(rolled);
        self.pool = Some(PoolSide {
            filled,
            credits: Credits::new(opened.target),
            in_flight: InFlight::new(Arc::clone(&opened.tally)),
            opened,
        });
        Some(messages)
    }

    fn success(&self, opened: &Opened, extranonce_prefix: B032Owned) -> MiningOwned {
        let (request_id, channel_id) = (self.request_id, self.id);
        let (target, group_channel_id) = (opened.target.to_le_bytes().into(), NO_GROUP);
        match self.kind {
            Kind::Standard => MiningOwned::OpenStandardMiningChannelSuccess(
                OpenStandardMiningChannelSuccessOwned {
                    request_id,
                    channel_id,
                    target,
                    extranonce_prefix,
                    group_channel_id,
                },
            ),
            Kind::Extended { .. } => MiningOwned::OpenExtendedMiningChannelSuccess(
                OpenExtendedMiningChannelSuccessOwned {
                    request_id,
                    channel_id,
                    target,
                    // At most 32, as the prefix is.
                    extranonce_size: opened.extranonce_size as u16,
                    extranonce_prefix,
                    group_channel_id,
                },
            ),
        }
    }

    /// A message of the pool's for the device, noted and readdressed; `None`
    /// if it is nothing for devices.
    pub(super) fn readdressed(&mut self, mut message: MiningOwned) -> Option<MiningOwned> {
        let side = self.pool.as_mut()?;
        side.credits.follow(&message);
        let channel_id = match &mut message {
            MiningOwned::NewExtendedMiningJob(m) => &mut m.channel_id,
            MiningOwned::NewMiningJob(m) => &mut m.channel_id,
            MiningOwned::SetNewPrevHash(m) => &mut m.channel_id,
            MiningOwned::SetTarget(m) => &mut m.channel_id,
            MiningOwned::SubmitSharesError(m) => &mut m.channel_id,
            MiningOwned::SubmitSharesSuccess(m) => &mut m.channel_id,
            MiningOwned::UpdateChannelError(m) => &mut m.channel_id,
            MiningOwned::SetExtranoncePrefix(m) => {
                m.extranonce_prefix = filled_prefix(m.extranonce_prefix.as_bytes(), side.filled)?;
                &mut m.channel_id
            }
            _ => return None,
        };
        *channel_id = self.id;
        Some(message)
    }
}

fn filled_prefix(prefix: &[u8], filled: usize) -> Option<B032Owned> {
    [prefix, &vec![0; filled]].concat().try_into().ok()
}

/// What the shares of each job are worth.
#[derive(Debug)]
pub(super) struct Credits {
    /// The target of jobs to come.
    target: Target,
    network: Target,
    jobs: BTreeMap<u32, Work>,
    newest: u32,
}

impl Credits {
    fn new(target: Target) -> Self {
        Self { target, network: Target::ZERO, jobs: BTreeMap::new(), newest: 0 }
    }

    fn follow(&mut self, message: &MiningOwned) {
        match message {
            MiningOwned::NewExtendedMiningJob(m) => {
                self.note(m.job_id, m.min_ntime.as_ref().is_some());
            }
            MiningOwned::NewMiningJob(m) => self.note(m.job_id, m.min_ntime.as_ref().is_some()),
            MiningOwned::SetNewPrevHash(m) => {
                self.network = Target::from_compact(CompactTarget::from_consensus(m.nbits));
                self.jobs.clear();
                self.note(m.job_id, true);
            }
            MiningOwned::SetTarget(m) => {
                self.target = Target::from_le_bytes(m.maximum_target.to_array());
            }
            _ => {}
        }
    }

    /// A job; what it is worth is decided when it becomes current.
    fn note(&mut self, job_id: u32, current: bool) {
        self.newest = self.newest.max(job_id);
        let work = Work::of_target(self.target.max(self.network));
        let (true, Ok(work)) = (current, work) else { return };
        self.jobs.insert(job_id, work);
        if self.jobs.len() > MAX_JOBS {
            self.jobs.pop_first();
        }
    }

    /// What a share of a job is worth, or the Sv2 code of why it is nothing.
    pub(super) fn of(&self, job_id: u32) -> Result<Work, &'static str> {
        let unknown = if job_id <= self.newest { "stale-share" } else { "invalid-job-id" };
        self.jobs.get(&job_id).copied().ok_or(unknown)
    }
}

#[cfg(test)]
mod tests {
    use stratum_apps::stratum_core::binary_sv2::Sv2OptionOwned;
    use stratum_apps::stratum_core::mining_sv2::{NewMiningJobOwned, SetNewPrevHashOwned};

    use super::*;

    fn job(job_id: u32, min_ntime: Option<u32>) -> MiningOwned {
        MiningOwned::NewMiningJob(NewMiningJobOwned {
            channel_id: 1,
            job_id,
            min_ntime: Sv2OptionOwned::new(min_ntime),
            version: 0,
            merkle_root: [0; 32].into(),
        })
    }

    fn tip(job_id: u32, nbits: u32) -> MiningOwned {
        MiningOwned::SetNewPrevHash(SetNewPrevHashOwned {
            channel_id: 1,
            job_id,
            prev_hash: [0; 32].into(),
            min_ntime: 0,
            nbits,
        })
    }

    #[test]
    fn a_job_is_worth_what_was_set_when_it_became_current() {
        let (easy, hard) = ([0xff; 32], [0x0f; 32]);
        let worth = |bytes| Work::of_target(Target::from_le_bytes(bytes)).unwrap();
        let mut credits = Credits::new(Target::from_le_bytes(easy));
        credits.follow(&job(1, None));
        assert_eq!(credits.of(1), Err("stale-share"), "it is of the future");
        credits.follow(&tip(1, 0x1d00_ffff));
        credits.follow(&MiningOwned::SetTarget(SetTargetOwned {
            channel_id: 1,
            maximum_target: hard.into(),
        }));
        credits.follow(&job(2, Some(0)));
        assert_eq!((credits.of(1), credits.of(2)), (Ok(worth(easy)), Ok(worth(hard))));
        assert_eq!(credits.of(3), Err("invalid-job-id"));
        credits.follow(&tip(2, 0x207f_ffff));
        assert_eq!(credits.of(1), Err("stale-share"));
        assert!(credits.of(2).unwrap() < worth(hard), "the network's target is easier");
    }
}
