//! One Sv2 device, or translator: an actor that owns the connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use stratum_apps::stratum_core::binary_sv2::Str0255Owned;
use stratum_apps::stratum_core::common_messages_sv2::{
    Protocol, SetupConnectionErrorOwned, SetupConnectionOwned, SetupConnectionSuccess,
};
use stratum_apps::stratum_core::extensions_sv2::{
    EXTENSION_TYPE_WORKER_HASHRATE_TRACKING as WORKER_LABELS, TLV_FIELD_TYPE_USER_IDENTITY,
    UserIdentity,
};
use stratum_apps::stratum_core::mining_sv2::{
    CloseChannelOwned, OpenMiningChannelErrorOwned, SetCustomMiningJobErrorOwned,
    SubmitSharesErrorOwned,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, ExtensionsNegotiationOwned, ExtensionsOwned, MiningOwned,
    Tlv, TlvField,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Sv2;
use super::channel::Channel;
use crate::proxy::identity::{identity, worker_name};
use crate::proxy::settings::{MAX_FRAME_BYTES, MAX_SV2_IN_FLIGHT};
use crate::proxy::shares::{Refusals, Waiting};
use crate::proxy::upstream::{Events, FromPool, Kind, Request, submission};
use hashpit_noise::{Limits, NoiseError, Reader, Writer, framed, negotiate, text};

/// The one version of Sv2.
const VERSION: u16 = 2;
/// Flags of `SetupConnection` that are welcome (Sv2 5.3.1): standard jobs only,
/// and version rolling.
const WELCOME_FLAGS: u32 = 0b101;
/// Events from the pool that wait for all channels of a connection.
const EVENT_QUEUE: usize = 2_048;
/// Frames without sense before a device is dropped.
const MAX_STRIKES: u32 = 10;

/// Why a session ended other than by the device's or our own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Noise(#[from] NoiseError),
    #[error("no SetupConnection in time")]
    SetupTimeout,
    #[error("setup refused: {0}")]
    SetupRefused(&'static str),
    #[error("it has been silent for too long")]
    Idle,
    #[error("too many frames that make no sense")]
    Junk,
    #[error("it does not keep up with its jobs")]
    TooSlow,
    #[error("too many wrong shares in a row")]
    WrongShares,
}

struct Session {
    sv2: Arc<Sv2>,
    writer: Writer,
    set_up: bool,
    extensions: Vec<u16>,
    channels: BTreeMap<u32, Channel>,
    last_channel_id: u32,
    events: Events,
    out: Vec<AnyMessageOwned>,
    in_flight: usize,
    refusals: Refusals,
    strikes: u32,
    heard: Instant,
}

/// Serves one device until it leaves, errs, or `stop`.
pub(super) async fn run(
    sv2: Arc<Sv2>,
    stream: TcpStream,
    stop: CancellationToken,
) -> Result<(), SessionError> {
    let settings = &sv2.settings;
    let limits = Limits {
        handshake: settings.handshake_timeout(),
        write: settings.write_timeout(),
        frame: MAX_FRAME_BYTES,
    };
    let serving = async {
        let (reader, writer) = hashpit_noise::accept(stream, &sv2.authority, limits).await?;
        let (events, inbox) = mpsc::channel(EVENT_QUEUE);
        let mut session = Session {
            sv2: Arc::clone(&sv2),
            writer,
            set_up: false,
            extensions: Vec::new(),
            channels: BTreeMap::new(),
            last_channel_id: 0,
            events,
            out: Vec::new(),
            in_flight: 0,
            refusals: Refusals::default(),
            strikes: 0,
            heard: Instant::now(),
        };
        let served = session.serve(reader, inbox).await;
        // What was still to be said, such as why it ends.
        let _ = session.flush().await;
        session.writer.close().await;
        served
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = serving => ended,
    }
}

impl Session {
    async fn serve(
        &mut self,
        mut reader: Reader,
        mut inbox: mpsc::Receiver<(u32, FromPool)>,
    ) -> Result<(), SessionError> {
        let setup_deadline = Instant::now() + self.sv2.settings.handshake_timeout();
        loop {
            let channels = self.channels.len().max(1);
            let max_in_flight = self.sv2.settings.max_in_flight * channels;
            let may_read = self.in_flight < max_in_flight.min(MAX_SV2_IN_FLIGHT);
            let idle = self.heard + self.sv2.settings.idle_timeout();
            // Every branch is cancel-safe: each only waits, and works afterwards.
            tokio::select! {
                biased;
                Some((channel, event)) = inbox.recv() => {
                    self.take(channel, event);
                    while let Ok((channel, event)) = inbox.try_recv() {
                        self.take(channel, event);
                    }
                    if self.channels.values().any(|channel| channel.line.is_cut_off()) {
                        return Err(SessionError::TooSlow);
                    }
                    if self.refusals.are_too_many() {
                        return Err(SessionError::WrongShares);
                    }
                }
                () = tokio::time::sleep_until(setup_deadline), if !self.set_up => {
                    return Err(SessionError::SetupTimeout);
                }
                () = tokio::time::sleep_until(idle) => return Err(SessionError::Idle),
                message = reader.next(&self.extensions), if may_read => {
                    self.heard = Instant::now();
                    match message {
                        Ok((message, tlvs)) => self.receive(message, &tlvs).await?,
                        Err(NoiseError::Message(_)) => self.strike()?,
                        Err(NoiseError::Closed(_)) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            self.flush().await?;
        }
    }

    async fn flush(&mut self) -> Result<(), NoiseError> {
        let frames: Result<Vec<_>, _> = self.out.drain(..).map(framed).collect();
        let frames = frames?;
        if frames.is_empty() { Ok(()) } else { self.writer.send(frames).await }
    }

    fn say(&mut self, message: MiningOwned) {
        self.out.push(AnyMessageOwned::Mining(message));
    }

    fn strike(&mut self) -> Result<(), SessionError> {
        self.strikes += 1;
        if self.strikes >= MAX_STRIKES { Err(SessionError::Junk) } else { Ok(()) }
    }

    // -------------------------------------------------------- from the device

    async fn receive(
        &mut self,
        message: AnyMessageOwned,
        tlvs: &[Tlv],
    ) -> Result<(), SessionError> {
        match message {
            AnyMessageOwned::Common(CommonMessagesOwned::SetupConnection(setup))
                if !self.set_up =>
            {
                self.set_up(&setup)
            }
            AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(
                ExtensionsNegotiationOwned::RequestExtensions(request),
            )) if self.set_up => {
                let (agreed, answer) = negotiate(request);
                self.extensions = agreed;
                self.out.push(answer);
                Ok(())
            }
            AnyMessageOwned::Mining(message) if self.set_up => self.mine(message, tlvs).await,
            _ => self.strike(),
        }
    }

    fn set_up(&mut self, setup: &SetupConnectionOwned) -> Result<(), SessionError> {
        let refusal = match setup {
            _ if setup.protocol != Protocol::MiningProtocol => Some("unsupported-protocol"),
            _ if setup.get_version(VERSION, VERSION).is_none() => Some("protocol-version-mismatch"),
            _ if setup.flags & !WELCOME_FLAGS != 0 => Some("unsupported-feature-flags"),
            _ => None,
        };
        if let Some(code) = refusal {
            let flags = setup.flags & !WELCOME_FLAGS;
            let error = SetupConnectionErrorOwned { flags, error_code: text(code) };
            self.out.push(AnyMessageOwned::Common(error.into()));
            return Err(SessionError::SetupRefused(code));
        }
        self.set_up = true;
        let success = SetupConnectionSuccess { used_version: VERSION, flags: 0 };
        self.out.push(AnyMessageOwned::Common(success.into()));
        Ok(())
    }

    async fn mine(&mut self, message: MiningOwned, tlvs: &[Tlv]) -> Result<(), SessionError> {
        match message {
            MiningOwned::OpenStandardMiningChannel(m) => {
                let (hashrate, target) = (m.nominal_hash_rate, m.max_target.to_array());
                self.open(Kind::Standard, m.request_id, &m.user_identity, hashrate, target).await;
            }
            MiningOwned::OpenExtendedMiningChannel(m) => {
                let (hashrate, target) = (m.nominal_hash_rate, m.max_target.to_array());
                let kind = Kind::Extended { min_extranonce: m.min_extranonce_size };
                self.open(kind, m.request_id, &m.user_identity, hashrate, target).await;
            }
            MiningOwned::UpdateChannel(mut m) => {
                if let Some(channel) = self.channels.get(&m.channel_id)
                    && let Some(side) = &channel.pool
                {
                    m.channel_id = side.opened.channel_id;
                    let frame = framed(AnyMessageOwned::Mining(MiningOwned::UpdateChannel(m)))?;
                    channel.line.send(side.opened.generation, frame).await;
                }
            }
            MiningOwned::CloseChannel(m) => drop(self.remove(m.channel_id)),
            MiningOwned::SubmitSharesStandard(_) | MiningOwned::SubmitSharesExtended(_) => {
                self.submit(message, tlvs).await?;
            }
            MiningOwned::SetCustomMiningJob(m) => {
                self.say(MiningOwned::SetCustomMiningJobError(SetCustomMiningJobErrorOwned {
                    channel_id: m.channel_id,
                    request_id: m.request_id,
                    error_code: text("jd-not-supported"),
                }));
            }
            // The rest is for servers to send.
            _ => return self.strike(),
        }
        Ok(())
    }

    async fn open(
        &mut self,
        kind: Kind,
        request_id: u32,
        user: &Str0255Owned,
        hashrate: f32,
        max_target: [u8; 32],
    ) {
        if self.channels.len() >= self.sv2.settings.max_sv2_channels {
            return self.refuse_channel(request_id, "channel-capacity-exhausted".to_owned());
        }
        self.last_channel_id += 1;
        let id = self.last_channel_id;
        let label = worker_name(&user.as_utf8_or_hex());
        let worker = self.sv2.workers.named(&label);
        tracing::info!(worker = label, hashrate, "a device opens a channel");
        let identity = identity(self.sv2.miner, &label);
        let request = Request { kind, identity, hashrate, max_target };
        let line = self.sv2.upstream.open(request, id, self.events.clone()).await;
        let _connected = worker.connected();
        let (rolled, pool) = (None, None);
        self.channels.insert(
            id,
            Channel { id, request_id, kind, line, label, worker, _connected, rolled, pool },
        );
    }

    fn refuse_channel(&mut self, request_id: u32, code: String) {
        let error_code = text(&code);
        let error = OpenMiningChannelErrorOwned { request_id, error_code };
        self.say(MiningOwned::OpenMiningChannelError(error));
    }

    /// Sends a share on, or says at once why it is worth nothing.
    async fn submit(&mut self, message: MiningOwned, tlvs: &[Tlv]) -> Result<(), SessionError> {
        let (id, sequence_number, job_id) = match &message {
            MiningOwned::SubmitSharesStandard(m) => (m.channel_id, m.sequence_number, m.job_id),
            MiningOwned::SubmitSharesExtended(m) => (m.channel_id, m.sequence_number, m.job_id),
            _ => return self.strike(),
        };
        let Some(channel) = self.channels.get_mut(&id) else {
            self.refuse_share(id, sequence_number, "invalid-channel-id");
            return self.strike();
        };
        let worker = label(tlvs).map_or(Arc::clone(&channel.worker), |label| {
            self.sv2.workers.named(&worker_name(&label))
        });
        let side = channel.pool.as_mut();
        let credit = side.map_or(Err("stale-share"), |side| Ok((side.credits.of(job_id)?, side)));
        let (work, side) = match credit {
            Ok(credited) => credited,
            Err(code) => {
                worker.rejected(code);
                self.refuse_share(id, sequence_number, code);
                return Ok(());
            }
        };
        let frame = match message {
            MiningOwned::SubmitSharesStandard(mut m) => {
                m.channel_id = side.opened.channel_id;
                framed(AnyMessageOwned::Mining(MiningOwned::SubmitSharesStandard(m))).ok()
            }
            MiningOwned::SubmitSharesExtended(mut m) => {
                m.channel_id = side.opened.channel_id;
                let extranonce = [&vec![0; side.filled], m.extranonce.as_bytes()].concat();
                let named = label(tlvs).unwrap_or_else(|| channel.label.clone());
                let labelled = side.opened.labels.then_some(named.as_str());
                extranonce.try_into().ok().and_then(|extranonce| {
                    m.extranonce = extranonce;
                    submission(m, labelled)
                })
            }
            _ => None,
        };
        let Some(frame) = frame else {
            self.refuse_share(id, sequence_number, "bad-extranonce-size");
            return self.strike();
        };
        worker.found(work);
        self.in_flight += 1;
        side.in_flight.sent(Waiting { sequence_number, work, ticket: worker });
        channel.line.send(side.opened.generation, frame).await;
        Ok(())
    }

    fn refuse_share(&mut self, channel_id: u32, sequence_number: u32, code: &str) {
        let error_code = text(code);
        let error = SubmitSharesErrorOwned { channel_id, sequence_number, error_code };
        self.say(MiningOwned::SubmitSharesError(error));
    }

    fn remove(&mut self, id: u32) -> Option<Channel> {
        let mut channel = self.channels.remove(&id)?;
        if let Some(side) = &mut channel.pool {
            let lost = side.in_flight.lost();
            self.in_flight -= lost.len();
            lost.iter().for_each(|share| share.ticket.unknown());
        }
        Some(channel)
    }

    // ---------------------------------------------------------- from the pool

    fn take(&mut self, id: u32, event: FromPool) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        match event {
            FromPool::Opened(opened) => match channel.opened(*opened) {
                Some(messages) => messages.into_iter().for_each(|message| self.say(message)),
                None => self.close(id, "the pool gives fewer bytes of extranonce"),
            },
            FromPool::Message(message) => {
                self.in_flight -= account(channel, &mut self.refusals, &message);
                if let Some(message) = channel.readdressed(*message) {
                    self.say(message);
                }
            }
            FromPool::Lost => self.lost(id),
            FromPool::Refused(code) if channel.rolled.is_none() => {
                let request_id = channel.request_id;
                self.channels.remove(&id);
                self.refuse_channel(request_id, code);
            }
            FromPool::Refused(code) => self.close(id, &code),
        }
    }

    /// The shares in flight will never be judged: the device is told so.
    fn lost(&mut self, id: u32) {
        let side = self.channels.get_mut(&id).and_then(|channel| channel.pool.take());
        let lost = side.map(|mut side| side.in_flight.lost()).unwrap_or_default();
        for Waiting { sequence_number, ticket, .. } in lost {
            self.in_flight -= 1;
            ticket.unknown();
            self.refuse_share(id, sequence_number, "unknown-pool-connection-lost");
        }
    }

    fn close(&mut self, id: u32, reason: &str) {
        self.remove(id);
        let reason_code = text(reason);
        self.say(MiningOwned::CloseChannel(CloseChannelOwned { channel_id: id, reason_code }));
    }
}

/// Counts the pool's word on shares; how many it was on.
fn account(channel: &mut Channel, refusals: &mut Refusals, message: &MiningOwned) -> usize {
    let Some(side) = &mut channel.pool else { return 0 };
    match message {
        MiningOwned::SubmitSharesSuccess(m) => {
            let accepted = side.in_flight.accepted_up_to(m.last_sequence_number);
            for share in &accepted {
                refusals.accepted();
                share.ticket.accepted(share.work);
            }
            accepted.len()
        }
        MiningOwned::SubmitSharesError(m) => {
            let Some(share) = side.in_flight.refused(m.sequence_number) else { return 0 };
            let code = m.error_code.as_utf8_or_hex();
            refusals.refused(&code);
            share.ticket.rejected(&code);
            1
        }
        _ => 0,
    }
}

/// The worker's name that a share carries (extension 0x0002).
fn label(tlvs: &[Tlv]) -> Option<String> {
    let tlv = tlvs.iter().find(|tlv| {
        tlv.r#type.extension_type == WORKER_LABELS
            && tlv.r#type.field_type == TLV_FIELD_TYPE_USER_IDENTITY
    })?;
    UserIdentity::from_tlv(tlv).ok().map(|label| label.as_string_or_hex())
}
