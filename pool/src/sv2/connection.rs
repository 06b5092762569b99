//! One peer: an actor that owns the connection and its channels.
//!
//! The loop waits for the first of: the end, verdicts, a template, the vardiff
//! tick, room in the ledger's queue, a frame. It reads no further frame while a
//! share waits for that room or as many shares as allowed wait for verdicts, so
//! a slow ledger slows its miners and loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use stratum_apps::stratum_core::mining_sv2::{
    ERROR_CODE_SUBMIT_SHARES_DUPLICATE_SHARE as DUPLICATE_SHARE, SubmitSharesErrorOwned,
    SubmitSharesSuccess,
};
use stratum_apps::stratum_core::parsers_sv2::{AnyMessageOwned, MiningOwned};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acks::Answers;
use super::channel::Channel;
use super::codes::{Refusal, wire};
use super::config::{MAX_FRAME_BYTES, MAX_REJECTED_IN_A_ROW, VARDIFF_TICK};
use super::setup::Agreed;
use super::{DRAIN_DEADLINE, Shared};
use crate::share::{Submission, Verdict};
use crate::template::CurrentTemplate;
use hashpit_noise::{Limits, NoiseError, Reader, Writer, framed};

/// Hashes that a share of difficulty 1 stands for.
const DIFFICULTY_ONE: u128 = 4_295_032_833;

/// Why a connection ended other than by the peer's or our own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Transport(#[from] NoiseError),
    #[error("no SetupConnection in time")]
    SetupTimeout,
    #[error("setup refused: {0}")]
    SetupRefused(&'static str),
    #[error("too many frames that make no sense")]
    Junk,
    #[error("{MAX_REJECTED_IN_A_ROW} shares in a row were wrong")]
    NothingRight,
    #[error("{0}")]
    Channel(String),
    #[error("the ledger has stopped")]
    LedgerStopped,
    #[error("the template source has stopped")]
    TemplatesStopped,
}

impl ConnectionError {
    /// Whether the operator may want to know of the peer.
    pub(super) fn is_peers_fault(&self) -> bool {
        match self {
            Self::Transport(NoiseError::Closed(_)) => false,
            Self::LedgerStopped | Self::TemplatesStopped => false,
            Self::Transport(_) | Self::SetupTimeout | Self::SetupRefused(_) => true,
            Self::Junk | Self::NothingRight | Self::Channel(_) => true,
        }
    }
}

/// The connection's state, without the half that is read.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
    pub(super) agreed: Option<Agreed>,
    pub(super) extensions: Vec<u16>,
    pub(super) channels: BTreeMap<u32, Channel>,
    pub(super) last_channel_id: u32,
    templates: watch::Receiver<Arc<CurrentTemplate>>,
    /// The announcement that all channels are on.
    announcement: u64,
    /// Goes along with each share. It has room for a verdict on every share in
    /// flight, so the ledger never waits for a connection.
    reply: mpsc::Sender<Verdict>,
    in_flight: usize,
    /// A share that the ledger's queue had no room for.
    pending: Option<Submission>,
    strikes: u32,
    rejected_in_a_row: u32,
}

/// Serves one peer until it leaves, errs, or `stop`.
pub(super) async fn run(
    shared: Arc<Shared>,
    stream: TcpStream,
    stop: CancellationToken,
) -> Result<(), ConnectionError> {
    let config = &shared.front.config;
    let limits = Limits {
        handshake: config.handshake_timeout(),
        write: config.write_timeout(),
        frame: MAX_FRAME_BYTES,
    };
    let handshake = hashpit_noise::accept(stream, &shared.front.authority, limits);
    let (reader, writer) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        accepted = handshake => accepted?,
    };
    let (reply, mut verdicts) = mpsc::channel(config.max_in_flight);
    let mut connection = Connection::new(shared, writer, reply);
    let result = connection.serve(reader, &mut verdicts, &stop).await;
    connection.finish(&mut verdicts).await;
    result
}

impl Connection {
    fn new(shared: Arc<Shared>, writer: Writer, reply: mpsc::Sender<Verdict>) -> Self {
        let templates = shared.front.templates.subscribe();
        let announcement = templates.borrow().announcement;
        Self {
            shared,
            writer,
            agreed: None,
            extensions: Vec::new(),
            channels: BTreeMap::new(),
            last_channel_id: 0,
            templates,
            announcement,
            reply,
            in_flight: 0,
            pending: None,
            strikes: 0,
            rejected_in_a_row: 0,
        }
    }

    async fn serve(
        &mut self,
        mut reader: Reader,
        verdicts: &mut mpsc::Receiver<Verdict>,
        stop: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let setup_deadline = Instant::now() + self.shared.front.config.setup_timeout();
        let mut vardiff = tokio::time::interval_at(Instant::now() + VARDIFF_TICK, VARDIFF_TICK);
        vardiff.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shares = self.shared.front.shares.clone();
        loop {
            let may_read =
                self.pending.is_none() && self.in_flight < self.shared.front.config.max_in_flight;
            // Every branch is cancel-safe: each only waits, and works afterwards.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(verdict) = verdicts.recv() => self.answer(verdict, verdicts).await?,
                changed = self.templates.changed() => {
                    changed.map_err(|_| ConnectionError::TemplatesStopped)?;
                    self.spread_template().await?;
                }
                () = tokio::time::sleep_until(setup_deadline), if self.agreed.is_none() => {
                    return Err(ConnectionError::SetupTimeout);
                }
                _ = vardiff.tick() => self.vardiff().await?,
                room = shares.reserve(), if self.pending.is_some() => {
                    let room = room.map_err(|_| ConnectionError::LedgerStopped)?;
                    if let Some(submission) = self.pending.take() {
                        room.send(submission);
                    }
                }
                frame = reader.next_frame(), if may_read => {
                    self.receive(frame?).await?;
                }
            }
        }
    }

    /// Delivers what is left when the peer is gone or the front end stops: the
    /// share that waits for room, and verdicts on those in flight.
    async fn finish(mut self, verdicts: &mut mpsc::Receiver<Verdict>) {
        let shared = Arc::clone(&self.shared);
        let _ = tokio::time::timeout(DRAIN_DEADLINE, async {
            if let Some(submission) = self.pending.take() {
                // A ledger that has stopped is its owner's error, not this one's.
                let _ = shared.front.shares.send(submission).await;
            }
            while self.in_flight > 0 {
                let Some(verdict) = verdicts.recv().await else { break };
                if self.answer(verdict, verdicts).await.is_err() {
                    break;
                }
            }
        })
        .await;
        shared.front.stats.channels_closed(self.channels.len());
        self.writer.close().await;
    }

    /// Gives a share to the ledger, or keeps it until there is room.
    pub(super) fn record(&mut self, submission: Submission) -> Result<(), ConnectionError> {
        self.in_flight += 1;
        self.rejected_in_a_row = 0;
        match self.shared.front.shares.try_send(submission) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(submission)) => {
                self.pending = Some(submission);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ConnectionError::LedgerStopped),
        }
    }

    pub(super) fn reply(&self) -> mpsc::Sender<Verdict> {
        self.reply.clone()
    }

    /// Answers all verdicts that wait, with one `SubmitShares.Success` for each
    /// channel.
    async fn answer(
        &mut self,
        first: Verdict,
        verdicts: &mut mpsc::Receiver<Verdict>,
    ) -> Result<(), ConnectionError> {
        let mut next = Some(first);
        while let Some(verdict) = next {
            self.in_flight = self.in_flight.saturating_sub(1);
            // The channel may have been closed since.
            if let Some(channel) = self.channels.get_mut(&verdict.ticket.channel_id) {
                channel.acks.judged(verdict);
            }
            next = verdicts.try_recv().ok();
        }
        let mut messages = Vec::new();
        for (id, channel) in &mut self.channels {
            let answers = channel.acks.take();
            self.shared.front.stats.accepted(answers.success.map_or(0, |success| success.count));
            for _ in &answers.duplicates {
                self.shared.front.stats.rejected(DUPLICATE_SHARE);
            }
            messages.extend(answer_messages(*id, answers));
        }
        self.send(messages).await
    }

    /// Takes every channel to the newest template.
    async fn spread_template(&mut self) -> Result<(), ConnectionError> {
        let current = Arc::clone(&self.templates.borrow_and_update());
        let announced = current.announcement != self.announcement;
        self.announcement = current.announcement;
        let payout = &self.shared.front.payout;
        let mut messages = Vec::new();
        for channel in self.channels.values_mut() {
            if announced {
                messages.extend(channel.announce(&current, payout).map_err(fatal)?);
            } else {
                messages.push(channel.refresh(&current, payout).map_err(fatal)?);
            }
        }
        self.send(messages).await
    }

    /// What a new channel works on. Where a new tip still waits to be spread,
    /// the channel is announced it twice, which is harmless.
    pub(super) fn first_work(
        &mut self,
        channel: &mut Channel,
    ) -> Result<[MiningOwned; 2], Refusal> {
        let current = Arc::clone(&self.templates.borrow());
        channel.announce(&current, &self.shared.front.payout)
    }

    /// `SetTarget`, and a job that it holds for: jobs keep the target that they
    /// were made under.
    pub(super) async fn retarget(
        &mut self,
        channel_id: u32,
        set_target: MiningOwned,
    ) -> Result<(), ConnectionError> {
        let current = Arc::clone(&self.templates.borrow());
        let mut messages = vec![set_target];
        // If a new tip is waiting, its job comes next and a refresh would mix
        // the two.
        if current.announcement == self.announcement
            && let Some(channel) = self.channels.get_mut(&channel_id)
        {
            messages.push(channel.refresh(&current, &self.shared.front.payout).map_err(fatal)?);
        }
        self.send(messages).await
    }

    async fn vardiff(&mut self) -> Result<(), ConnectionError> {
        let shares_per_minute = self.shared.front.config.shares_per_minute;
        let mut changed = Vec::new();
        for (id, channel) in &mut self.channels {
            let set_target = channel.vardiff(shares_per_minute).map_err(fatal)?;
            changed.extend(set_target.map(|message| (*id, message)));
        }
        for (id, set_target) in changed {
            self.retarget(id, set_target).await?;
        }
        Ok(())
    }

    /// Counts a frame that makes no sense.
    pub(super) fn strike(&mut self, what: &str) -> Result<(), ConnectionError> {
        self.strikes += 1;
        tracing::debug!(strikes = self.strikes, what, "a frame that makes no sense");
        if self.strikes >= self.shared.front.config.max_strikes {
            return Err(ConnectionError::Junk);
        }
        Ok(())
    }

    /// Counts a wrong share.
    pub(super) fn rejected(&mut self) -> Result<(), ConnectionError> {
        self.rejected_in_a_row += 1;
        if self.rejected_in_a_row >= MAX_REJECTED_IN_A_ROW {
            return Err(ConnectionError::NothingRight);
        }
        Ok(())
    }

    pub(super) async fn send(
        &mut self,
        messages: impl IntoIterator<Item = MiningOwned>,
    ) -> Result<(), ConnectionError> {
        let messages = messages.into_iter().map(AnyMessageOwned::Mining);
        let frames = messages.map(framed).collect::<Result<Vec<_>, _>>()?;
        Ok(self.writer.send(frames).await?)
    }
}

/// A refusal where Sv2 has no answer.
pub(super) fn fatal(refusal: Refusal) -> ConnectionError {
    match refusal {
        Refusal::Code(code) => ConnectionError::Channel(code.to_owned()),
        Refusal::Fatal(reason) => ConnectionError::Channel(reason),
    }
}

/// `SubmitShares.Error` for each duplicate, then at most one
/// `SubmitShares.Success` (Sv2 5.3.14, 5.3.13).
fn answer_messages(channel_id: u32, answers: Answers) -> Vec<MiningOwned> {
    let mut messages: Vec<MiningOwned> = answers
        .duplicates
        .iter()
        .map(|number| refusal(channel_id, *number, DUPLICATE_SHARE))
        .collect();
    messages.extend(answers.success.map(|success| {
        let difficulty = success.work.get() / DIFFICULTY_ONE;
        MiningOwned::SubmitSharesSuccess(SubmitSharesSuccess {
            channel_id,
            last_sequence_number: success.last_sequence_number,
            new_submits_accepted_count: success.count,
            new_shares_sum: u64::try_from(difficulty).unwrap_or(u64::MAX),
        })
    }));
    messages
}

/// `SubmitShares.Error`.
pub(super) fn refusal(channel_id: u32, sequence_number: u32, code: &'static str) -> MiningOwned {
    MiningOwned::SubmitSharesError(SubmitSharesErrorOwned {
        channel_id,
        sequence_number,
        error_code: wire(code),
    })
}
