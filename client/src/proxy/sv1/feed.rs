//! An extended channel at the pool with its shares: jobs and verdicts out,
//! shares in. Owned by one device's session, or by the aggregate of all.

use std::sync::Arc;

use stratum_apps::stratum_core::mining_sv2::{
    SubmitSharesExtendedOwned, SubmitSharesSuccessOwned, UpdateChannelOwned,
};
use stratum_apps::stratum_core::parsers_sv2::{AnyMessageOwned, MiningOwned};
use tokio::sync::mpsc;

use crate::proxy::shares::{InFlight, Waiting};
use crate::proxy::upstream::{FromPool, Kind, Line, Opened, Request, Upstream, submission};
use crate::proxy::work::{Follower, Found, Job};
use hashpit_noise::framed;

/// What a feed tells its owner. `T` says whose a share is.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// The channel is open, with this prefix and so many bytes to roll.
    Opened {
        prefix: Vec<u8>,
        size: usize,
    },
    Job {
        job: Arc<Job>,
        clean: bool,
    },
    Accepted(Vec<Waiting<T>>),
    Rejected(Waiting<T>, String),
    /// The connection is gone; these shares will never be judged.
    Lost(Vec<Waiting<T>>),
    /// There is no channel, and there will be none.
    Refused(String),
}

/// A share for the pool.
#[derive(Debug)]
pub(super) struct Share<T> {
    pub(super) job: Arc<Job>,
    /// All of the extranonce that the pool has not chosen.
    pub(super) extranonce: Vec<u8>,
    pub(super) found: Found,
    /// Who found it, for the pool's statistics.
    pub(super) worker: Arc<str>,
    pub(super) ticket: T,
}

/// A channel with its shares.
pub(super) struct Feed<T> {
    line: Line,
    events: mpsc::Receiver<(u32, FromPool)>,
    channel: Option<Channel<T>>,
}

struct Channel<T> {
    opened: Opened,
    follower: Follower,
    in_flight: InFlight<T>,
    sequence_number: u32,
}

impl<T> Feed<T> {
    /// Opens an extended channel. The queue holds so many events: an owner that
    /// falls further behind is cut off.
    pub(super) async fn open(upstream: &Upstream, request: Request, queue: usize) -> Self {
        debug_assert!(matches!(request.kind, Kind::Extended { .. }));
        let (sender, events) = mpsc::channel(queue);
        let line = upstream.open(request, 0, sender).await;
        Self { line, events, channel: None }
    }

    /// The next event; `None` when the owner was too slow, or the proxy stops.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event<T>> {
        loop {
            let (_, event) = self.events.recv().await?;
            if let Some(event) = self.take(event) {
                return Some(event);
            }
        }
    }

    fn take(&mut self, event: FromPool) -> Option<Event<T>> {
        match event {
            FromPool::Opened(opened) => {
                let event =
                    Event::Opened { prefix: opened.prefix.clone(), size: opened.extranonce_size };
                self.channel = Some(Channel {
                    follower: Follower::new(opened.generation, opened.target),
                    in_flight: InFlight::new(Arc::clone(&opened.tally)),
                    sequence_number: 0,
                    opened: *opened,
                });
                Some(event)
            }
            FromPool::Message(message) => self.channel.as_mut()?.take(*message),
            FromPool::Lost => {
                let lost = self.channel.take().map(|mut channel| channel.in_flight.lost());
                Some(Event::Lost(lost.unwrap_or_default()))
            }
            FromPool::Refused(reason) => Some(Event::Refused(reason)),
        }
    }

    /// Submits a share; gives the ticket back if its job's connection is gone.
    pub(super) async fn submit(&mut self, share: Share<T>) -> Result<(), T> {
        let current = |channel: &&mut Channel<T>| channel.opened.generation == share.job.generation;
        let Some(channel) = self.channel.as_mut().filter(current) else {
            return Err(share.ticket);
        };
        channel.sequence_number = channel.sequence_number.wrapping_add(1);
        let sequence_number = channel.sequence_number;
        let message = SubmitSharesExtendedOwned {
            channel_id: channel.opened.channel_id,
            sequence_number,
            job_id: share.job.id,
            nonce: share.found.nonce,
            ntime: share.found.time,
            version: share.found.version,
            extranonce: match share.extranonce.try_into() {
                Ok(extranonce) => extranonce,
                Err(_) => return Err(share.ticket),
            },
        };
        let label = channel.opened.labels.then_some(&*share.worker);
        let Some(frame) = submission(message, label) else { return Err(share.ticket) };
        let (work, ticket) = (share.job.work, share.ticket);
        channel.in_flight.sent(Waiting { sequence_number, work, ticket });
        self.line.send(channel.opened.generation, frame).await;
        Ok(())
    }

    /// Tells the pool what the device can do, and what it wants (Sv2 5.3.7).
    pub(super) async fn update(&self, hashrate: f32, max_target: [u8; 32]) {
        let Some(channel) = &self.channel else { return };
        let update = MiningOwned::UpdateChannel(UpdateChannelOwned {
            channel_id: channel.opened.channel_id,
            nominal_hash_rate: hashrate,
            maximum_target: max_target.into(),
        });
        if let Ok(frame) = framed(AnyMessageOwned::Mining(update)) {
            self.line.send(channel.opened.generation, frame).await;
        }
    }
}

impl<T> Channel<T> {
    fn take(&mut self, message: MiningOwned) -> Option<Event<T>> {
        match message {
            MiningOwned::SubmitSharesSuccess(SubmitSharesSuccessOwned {
                last_sequence_number,
                ..
            }) => Some(Event::Accepted(self.in_flight.accepted_up_to(last_sequence_number))),
            MiningOwned::SubmitSharesError(error) => {
                let share = self.in_flight.refused(error.sequence_number)?;
                Some(Event::Rejected(share, error.error_code.as_utf8_or_hex()))
            }
            MiningOwned::SetExtranoncePrefix(set) => {
                self.opened.prefix = set.extranonce_prefix.as_bytes().to_vec();
                let (prefix, size) = (self.opened.prefix.clone(), self.opened.extranonce_size);
                Some(Event::Opened { prefix, size })
            }
            other => {
                let (job, clean) = self.follower.follow(other)?;
                Some(Event::Job { job, clean })
            }
        }
    }
}
