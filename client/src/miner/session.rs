//! The talk with one pool: connect, set up, open a standard channel, then jobs
//! in and shares out (Sv2 5).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, CompactTarget, Target, TxMerkleNode};
use hashpit_noise::text;
use stratum_apps::network_helpers::connect_with_noise;
use stratum_apps::network_helpers::noise_stream::{NoiseTcpReadHalf, NoiseTcpWriteHalf};
use stratum_apps::stratum_core::common_messages_sv2::{Protocol, SetupConnectionOwned};
use stratum_apps::stratum_core::mining_sv2::{
    NewMiningJobOwned, OpenStandardMiningChannelOwned, SetNewPrevHashOwned, SubmitSharesStandard,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, MiningOwned, parse_message_frame_with_tlvs,
};
use stratum_apps::utils::types::OutboundFrame;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::hashers::{Found, Hashers, Job};
use super::{Config, Progress};

/// Time to connect, and time for the pool to read what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);
/// A pool that has sent nothing for so long is gone: it sends a job at least
/// every half minute.
const MAX_SILENCE: Duration = Duration::from_secs(300);
/// How often the hash rate is reported.
const REPORT: Duration = Duration::from_secs(2);
/// The miner handles headers only (`REQUIRES_STANDARD_JOBS`, Sv2 5.3.1).
const STANDARD_JOBS: u32 = 1;
/// Future jobs that are remembered; only the newest is ever made current.
const MAX_FUTURE_JOBS: usize = 16;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("the pool did not answer in time")]
    Timeout,
    #[error("connection lost: {0}")]
    Noise(String),
    #[error("the pool sent what cannot be understood: {0}")]
    Nonsense(String),
    #[error("the pool refused: {0}")]
    Refused(String),
    #[error("the pool closed the channel: {0}")]
    Closed(String),
    #[error("the hashing threads have stopped")]
    NoHashers,
}

impl From<tokio::time::error::Elapsed> for SessionError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

impl From<stratum_apps::network_helpers::Error> for SessionError {
    fn from(error: stratum_apps::network_helpers::Error) -> Self {
        Self::Noise(error.to_string())
    }
}

/// One connection, from its making to its end.
pub(super) struct Session<'a> {
    config: &'a Config,
    hashrate: f64,
    progress: &'a watch::Sender<Progress>,
    hashers: &'a mut Hashers,
    found: &'a mut mpsc::Receiver<Found>,
    channel: Option<Channel>,
}

/// The channel, once it is open.
#[derive(Debug)]
struct Channel {
    id: u32,
    target: Target,
    tip: Option<(SetNewPrevHashOwned, Instant)>,
    future: BTreeMap<u32, NewMiningJobOwned>,
    sequence_number: u32,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a Config,
        hashrate: f64,
        progress: &'a watch::Sender<Progress>,
        hashers: &'a mut Hashers,
        found: &'a mut mpsc::Receiver<Found>,
    ) -> Self {
        Self { config, hashrate, progress, hashers, found, channel: None }
    }

    /// Whether the pool has opened a channel.
    pub(super) fn opened(&self) -> bool {
        self.channel.is_some()
    }

    /// Mines until `shutdown`, or until something fails.
    pub(super) async fn run(&mut self, shutdown: &CancellationToken) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            // Cancelled with the whole connection, so that no half-written
            // frame is ever followed by another.
            ended = self.talk() => ended,
        }
    }

    async fn talk(&mut self) -> Result<(), SessionError> {
        let (mut read, mut write) = self.connect().await?;
        let mut report = tokio::time::interval_at(tokio::time::Instant::now() + REPORT, REPORT);
        let mut before = (self.hashers.hashes(), Instant::now());
        let mut heard = tokio::time::Instant::now();
        loop {
            tokio::select! {
                biased;
                // Safe to cancel: the reader keeps what has come.
                frame = read_message(&mut read) => {
                    heard = tokio::time::Instant::now();
                    self.receive(frame?)?;
                }
                found = self.found.recv() => {
                    let found = found.ok_or(SessionError::NoHashers)?;
                    self.submit(&mut write, found).await?;
                }
                _ = report.tick() => {
                    let now = (self.hashers.hashes(), Instant::now());
                    let seconds = now.1.duration_since(before.1).as_secs_f64();
                    let hashrate = (now.0 - before.0) as f64 / seconds.max(f64::EPSILON);
                    self.progress.send_modify(|progress| progress.hashrate = hashrate);
                    before = now;
                }
                () = tokio::time::sleep_until(heard + MAX_SILENCE) => return Err(SessionError::Timeout),
            }
        }
    }

    /// Connects, sets up, and asks for a channel.
    async fn connect(&mut self) -> Result<(NoiseTcpReadHalf, NoiseTcpWriteHalf), SessionError> {
        let stream = timeout(PATIENCE, TcpStream::connect(&self.config.pool)).await?;
        let stream = stream.map_err(SessionError::Connect)?;
        stream.set_nodelay(true).map_err(SessionError::Connect)?;
        let noise = connect_with_noise(stream, Some(self.config.authority));
        let (mut read, mut write) = timeout(PATIENCE, noise).await??.into_split();
        write_message(&mut write, AnyMessageOwned::Common(setup(&self.config.pool).into())).await?;
        match timeout(PATIENCE, read_message(&mut read)).await?? {
            AnyMessageOwned::Common(CommonMessagesOwned::SetupConnectionSuccess(_)) => {}
            AnyMessageOwned::Common(CommonMessagesOwned::SetupConnectionError(m)) => {
                return Err(SessionError::Refused(m.error_code.as_utf8_or_hex()));
            }
            other => return Err(SessionError::Nonsense(other.to_string())),
        }
        let open = OpenStandardMiningChannelOwned {
            request_id: 1,
            user_identity: text(&self.config.identity.to_string()),
            nominal_hash_rate: self.hashrate as f32,
            max_target: [0xff; 32].into(),
        };
        let open = MiningOwned::OpenStandardMiningChannel(open);
        write_message(&mut write, AnyMessageOwned::Mining(open)).await?;
        Ok((read, write))
    }

    fn receive(&mut self, message: AnyMessageOwned) -> Result<(), SessionError> {
        let AnyMessageOwned::Mining(message) = message else {
            tracing::debug!(%message, "passed over");
            return Ok(());
        };
        match message {
            MiningOwned::OpenStandardMiningChannelSuccess(m) => {
                self.channel = Some(Channel {
                    id: m.channel_id,
                    target: Target::from_le_bytes(m.target.to_array()),
                    tip: None,
                    future: BTreeMap::new(),
                    sequence_number: 0,
                });
                self.progress.send_modify(|progress| progress.connected = true);
                tracing::info!(pool = self.config.pool, "the pool opened a channel");
            }
            MiningOwned::OpenMiningChannelError(m) => {
                return Err(SessionError::Refused(m.error_code.as_utf8_or_hex()));
            }
            MiningOwned::CloseChannel(m) => {
                return Err(SessionError::Closed(m.reason_code.as_utf8_or_hex()));
            }
            MiningOwned::SubmitSharesSuccess(m) => self.progress.send_modify(|progress| {
                progress.accepted += u64::from(m.new_submits_accepted_count);
            }),
            MiningOwned::SubmitSharesError(m) => {
                let code = m.error_code.as_utf8_or_hex();
                tracing::debug!(code, "the pool refused a share");
                self.progress
                    .send_modify(|progress| *progress.rejected.entry(code).or_default() += 1);
            }
            other => {
                if let Some(job) = self.channel.as_mut().and_then(|channel| channel.follow(other)) {
                    self.hashers.work_on(job);
                }
            }
        }
        Ok(())
    }

    async fn submit(
        &mut self,
        write: &mut NoiseTcpWriteHalf,
        found: Found,
    ) -> Result<(), SessionError> {
        // A find of an earlier session, or of a tip that has gone: worth nothing.
        let Some(share) = self.channel.as_mut().and_then(|channel| channel.share(&found)) else {
            return Ok(());
        };
        write_message(write, AnyMessageOwned::Mining(MiningOwned::SubmitSharesStandard(share)))
            .await?;
        self.progress.send_modify(|progress| progress.submitted += 1);
        Ok(())
    }
}

impl Channel {
    /// Takes note of a message; `Some` if there is a new job to work on.
    fn follow(&mut self, message: MiningOwned) -> Option<Job> {
        match message {
            MiningOwned::NewMiningJob(job) if job.min_ntime.as_ref().is_some() => self.job(&job),
            MiningOwned::NewMiningJob(job) => {
                self.future.insert(job.job_id, job);
                if self.future.len() > MAX_FUTURE_JOBS {
                    self.future.pop_first();
                }
                None
            }
            MiningOwned::SetNewPrevHash(tip) => {
                let job = self.future.remove(&tip.job_id)?;
                self.future.clear();
                self.tip = Some((tip, Instant::now()));
                self.job(&job)
            }
            // It holds for jobs to come and for future jobs (Sv2 5.3.21).
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

    fn job(&self, job: &NewMiningJobOwned) -> Option<Job> {
        let (tip, since) = self.tip.as_ref()?;
        let header = Header {
            version: Version::from_consensus(job.version.cast_signed()),
            prev_blockhash: BlockHash::from_byte_array(tip.prev_hash.to_array()),
            merkle_root: TxMerkleNode::from_byte_array(job.merkle_root.to_array()),
            time: tip.min_ntime,
            bits: CompactTarget::from_consensus(tip.nbits),
            nonce: 0,
        };
        Some(Job { job_id: job.job_id, header, target: self.target, since: *since })
    }

    /// The message that submits `found`, if it is of the current tip.
    fn share(&mut self, found: &Found) -> Option<SubmitSharesStandard> {
        let (tip, _) = self.tip.as_ref()?;
        if found.header.prev_blockhash.to_byte_array() != tip.prev_hash.to_array() {
            return None;
        }
        self.sequence_number = self.sequence_number.wrapping_add(1);
        Some(SubmitSharesStandard {
            channel_id: self.id,
            sequence_number: self.sequence_number,
            job_id: found.job_id,
            nonce: found.header.nonce,
            ntime: found.header.time,
            version: found.header.version.to_consensus().cast_unsigned(),
        })
    }
}

fn setup(pool: &str) -> SetupConnectionOwned {
    let (host, port) = pool.rsplit_once(':').unwrap_or((pool, ""));
    SetupConnectionOwned {
        protocol: Protocol::MiningProtocol,
        min_version: 2,
        max_version: 2,
        flags: STANDARD_JOBS,
        endpoint_host: text(host),
        endpoint_port: port.parse().unwrap_or_default(),
        vendor: text("hashpit"),
        hardware_version: text("CPU"),
        firmware: text(env!("CARGO_PKG_VERSION")),
        device_id: text(""),
    }
}

async fn read_message(read: &mut NoiseTcpReadHalf) -> Result<AnyMessageOwned, SessionError> {
    let mut frame = read.read_frame().await?;
    let header = frame.header();
    parse_message_frame_with_tlvs(header, frame.payload(), &[])
        .map(|(message, _)| message.into_owned())
        .map_err(|error| SessionError::Nonsense(format!("{error:?}")))
}

async fn write_message(
    write: &mut NoiseTcpWriteHalf,
    message: AnyMessageOwned,
) -> Result<(), SessionError> {
    let frame = OutboundFrame::from_message(message)
        .map_err(|error| SessionError::Nonsense(format!("{error:?}")))?;
    Ok(timeout(PATIENCE, write.write_frame(frame)).await??)
}
