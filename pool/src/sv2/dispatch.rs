//! What each message of a peer does.

use hashpit_nips::MinerIdentity;
use stratum_apps::stratum_core::binary_sv2::{Str0255Owned, U256Owned};
use stratum_apps::stratum_core::bitcoin::Target;
use stratum_apps::stratum_core::codec_sv2::SerializedFrame;
use stratum_apps::stratum_core::common_messages_sv2::SetupConnectionOwned;
use stratum_apps::stratum_core::extensions_sv2::{
    EXTENSION_TYPE_WORKER_HASHRATE_TRACKING as WORKER_LABELS, TLV_FIELD_TYPE_USER_IDENTITY,
    UserIdentity,
};
use stratum_apps::stratum_core::framing_sv2::header::Header;
use stratum_apps::stratum_core::mining_sv2::{
    ERROR_CODE_OPEN_MINING_CHANNEL_CHANNEL_CAPACITY_EXHAUSTED as CAPACITY_EXHAUSTED,
    ERROR_CODE_OPEN_MINING_CHANNEL_EXTENDED_CHANNELS_NOT_SUPPORTED_FOR_STANDARD_JOBS as STANDARD_ONLY,
    ERROR_CODE_OPEN_MINING_CHANNEL_UNKNOWN_USER as UNKNOWN_USER,
    ERROR_CODE_SET_CUSTOM_MINING_JOB_JD_NOT_SUPPORTED as NO_CUSTOM_JOBS,
    ERROR_CODE_SUBMIT_SHARES_INVALID_CHANNEL_ID as INVALID_CHANNEL_ID,
    ERROR_CODE_SUBMIT_SHARES_STALE_SHARE as STALE_SHARE, OpenExtendedMiningChannelOwned,
    OpenMiningChannelErrorOwned, OpenStandardMiningChannelOwned, SetCustomMiningJobErrorOwned,
    SetCustomMiningJobOwned, UpdateChannelErrorOwned, UpdateChannelOwned,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, ExtensionsNegotiationOwned, ExtensionsOwned, MiningOwned,
    ParserError, Tlv, TlvField, parse_message_frame_with_tlvs,
};

use super::channel::{Accepted, Channel, Opening, Request, Submitted, Wish};
use super::codes::{Refusal, wire};
use super::connection::{Connection, ConnectionError, fatal, refusal};
use super::setup;
use crate::share::{Submission, Ticket};
use hashpit_noise::{framed, negotiate};

/// A message and the TLV fields behind it.
fn parse(
    header: Header,
    payload: &mut [u8],
    extensions: &[u16],
) -> Result<(AnyMessageOwned, Vec<Tlv>), ParserError> {
    let (message, tlvs) = parse_message_frame_with_tlvs(header, payload, extensions)?;
    Ok((message.into_owned(), tlvs.unwrap_or_default()))
}

/// What an `Open…MiningChannel` asks for.
struct OpenRequest {
    request: Request,
    request_id: u32,
    user_identity: Str0255Owned,
    wish: Wish,
}

impl From<OpenStandardMiningChannelOwned> for OpenRequest {
    fn from(open: OpenStandardMiningChannelOwned) -> Self {
        Self {
            request: Request::Standard,
            request_id: open.request_id,
            user_identity: open.user_identity,
            wish: wish(open.nominal_hash_rate, &open.max_target),
        }
    }
}

impl From<OpenExtendedMiningChannelOwned> for OpenRequest {
    fn from(open: OpenExtendedMiningChannelOwned) -> Self {
        Self {
            request: Request::Extended { min_extranonce_bytes: open.min_extranonce_size },
            request_id: open.request_id,
            user_identity: open.user_identity,
            wish: wish(open.nominal_hash_rate, &open.max_target),
        }
    }
}

fn wish(hashrate: f32, max_target: &U256Owned) -> Wish {
    Wish { hashrate, max_target: Target::from_le_bytes(max_target.to_array()) }
}

impl Connection {
    /// Does what a frame asks for.
    pub(super) async fn receive(
        &mut self,
        mut frame: SerializedFrame,
    ) -> Result<(), ConnectionError> {
        let (message, tlvs) = match parse(frame.header(), frame.payload(), &self.extensions) {
            Ok(parsed) => parsed,
            Err(error) => return self.strike(&format!("{error:?}")),
        };
        match message {
            AnyMessageOwned::Common(CommonMessagesOwned::SetupConnection(setup)) => {
                self.set_up(setup).await
            }
            AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(
                ExtensionsNegotiationOwned::RequestExtensions(request),
            )) if self.agreed.is_some() => {
                let (agreed, answer) = negotiate(request);
                self.extensions = agreed;
                Ok(self.writer.send([framed(answer)?]).await?)
            }
            AnyMessageOwned::Mining(message) if self.agreed.is_some() => {
                self.mine(message, &tlvs).await
            }
            other => self.strike(&format!("unexpected {other}")),
        }
    }

    async fn set_up(&mut self, setup: SetupConnectionOwned) -> Result<(), ConnectionError> {
        if self.agreed.is_some() {
            return self.strike("a second SetupConnection");
        }
        match setup::answer(&setup) {
            Ok(agreed) => {
                tracing::info!(
                    vendor = setup.vendor.as_utf8_or_hex(),
                    firmware = setup.firmware.as_utf8_or_hex(),
                    standard_jobs_only = agreed.standard_jobs_only,
                    "a miner connected"
                );
                self.agreed = Some(agreed);
                Ok(self.writer.send([framed(setup::success())?]).await?)
            }
            Err(code) => {
                self.writer.send([framed(setup::refusal(&setup, code))?]).await?;
                Err(ConnectionError::SetupRefused(code))
            }
        }
    }

    async fn mine(&mut self, message: MiningOwned, tlvs: &[Tlv]) -> Result<(), ConnectionError> {
        match message {
            MiningOwned::OpenStandardMiningChannel(open) => self.open(open.into()).await,
            MiningOwned::OpenExtendedMiningChannel(open) => self.open(open.into()).await,
            MiningOwned::UpdateChannel(update) => self.update(update).await,
            MiningOwned::CloseChannel(close) => {
                self.close_channel(close.channel_id);
                Ok(())
            }
            MiningOwned::SubmitSharesStandard(share) => {
                let (channel_id, number) = (share.channel_id, share.sequence_number);
                self.submit(channel_id, number, Submitted::Standard(share)).await
            }
            MiningOwned::SubmitSharesExtended(share) => {
                note_worker(share.channel_id, tlvs);
                let (channel_id, number) = (share.channel_id, share.sequence_number);
                self.submit(channel_id, number, Submitted::Extended(share)).await
            }
            MiningOwned::SetCustomMiningJob(job) => self.refuse_custom_job(job).await,
            // The rest is for servers to send.
            other => self.strike(&format!("unexpected {other}")),
        }
    }

    async fn open(&mut self, open: OpenRequest) -> Result<(), ConnectionError> {
        let request_id = open.request_id;
        match self.try_open(open) {
            Ok(messages) => self.send(messages).await,
            Err(Refusal::Code(code)) => {
                let error = OpenMiningChannelErrorOwned { request_id, error_code: wire(code) };
                self.send([MiningOwned::OpenMiningChannelError(error)]).await
            }
            Err(error @ Refusal::Fatal(_)) => Err(fatal(error)),
        }
    }

    /// Opens a channel: its `Success`, to the owner of an extended channel its
    /// target once more, its first job, and the tip.
    fn try_open(&mut self, open: OpenRequest) -> Result<Vec<MiningOwned>, Refusal> {
        let extended = matches!(open.request, Request::Extended { .. });
        if extended && self.agreed.is_some_and(|agreed| agreed.standard_jobs_only) {
            return Err(Refusal::Code(STANDARD_ONLY));
        }
        let shared = std::sync::Arc::clone(&self.shared);
        if self.channels.len() >= shared.front.config.max_channels_per_connection {
            return Err(Refusal::Code(CAPACITY_EXHAUSTED));
        }
        let identity = identity(&open.user_identity)?;
        tracing::info!(%identity, extended, hashrate = open.wish.hashrate, "opening a channel");
        let channel_id = self.last_channel_id + 1;
        let opening = Opening {
            request: open.request,
            request_id: open.request_id,
            channel_id,
            identity,
            wish: open.wish,
            prefix: shared.allocate(open.request)?,
            coinbase_tag: &shared.front.coinbase_tag,
        };
        let (mut channel, success) = Channel::open(opening, &shared.front.config)?;
        let [job, prev_hash] = self.first_work(&mut channel)?;
        let mut messages = vec![success];
        if extended {
            // Said once more, for the stock translator: without a SetTarget it
            // gives its miners a target of its own, and loses their work. It
            // passes a target on with the next job only, so this comes first.
            messages.push(channel.set_target());
        }
        messages.extend([job, prev_hash]);
        self.last_channel_id = channel_id;
        self.channels.insert(channel_id, channel);
        shared.front.stats.channels_opened();
        Ok(messages)
    }

    async fn update(&mut self, update: UpdateChannelOwned) -> Result<(), ConnectionError> {
        let channel_id = update.channel_id;
        let wish = wish(update.nominal_hash_rate, &update.maximum_target);
        let updated = match self.channels.get_mut(&channel_id) {
            Some(channel) => channel.update(wish),
            None => Err(Refusal::Code(INVALID_CHANNEL_ID)),
        };
        match updated {
            Ok(set_target) => self.retarget(channel_id, set_target).await,
            Err(Refusal::Code(code)) => {
                let error = UpdateChannelErrorOwned { channel_id, error_code: wire(code) };
                self.send([MiningOwned::UpdateChannelError(error)]).await
            }
            Err(error @ Refusal::Fatal(_)) => Err(fatal(error)),
        }
    }

    fn close_channel(&mut self, channel_id: u32) {
        if self.channels.remove(&channel_id).is_some() {
            self.shared.front.stats.channels_closed(1);
        }
    }

    /// Checks a share and gives it to the ledger. Its block, if it solved one,
    /// goes out at once: it waits for no room in the ledger's queue.
    async fn submit(
        &mut self,
        channel_id: u32,
        sequence_number: u32,
        submitted: Submitted,
    ) -> Result<(), ConnectionError> {
        let checked = match self.channels.get_mut(&channel_id) {
            Some(channel) => channel.submit(submitted),
            None => Err(Refusal::Code(INVALID_CHANNEL_ID)),
        };
        let Accepted { share, solution } = match checked {
            Ok(accepted) => accepted,
            Err(Refusal::Code(code)) => {
                self.shared.front.stats.rejected(code);
                tracing::debug!(channel_id, sequence_number, code, "refused a share");
                self.send([refusal(channel_id, sequence_number, code)]).await?;
                // A new tip makes a proxy's shares stale by the hundred.
                return if code == STALE_SHARE { Ok(()) } else { self.rejected() };
            }
            Err(error @ Refusal::Fatal(_)) => return Err(fatal(error)),
        };
        if let Some(channel) = self.channels.get_mut(&channel_id) {
            channel.acks.submitted(sequence_number);
        }
        let ticket = Ticket { channel_id, sequence_number, work: share.work };
        self.record(Submission { share, ticket, reply: self.reply() })?;
        if let Some(solution) = solution {
            match self.shared.front.templates.submit(solution).await {
                Ok(()) => self.shared.front.stats.block(),
                Err(error) => tracing::warn!(%error, "a solved block was not taken"),
            }
        }
        Ok(())
    }

    async fn refuse_custom_job(
        &mut self,
        job: SetCustomMiningJobOwned,
    ) -> Result<(), ConnectionError> {
        let (channel_id, request_id) = (job.channel_id, job.request_id);
        let error_code = wire(NO_CUSTOM_JOBS);
        let error = SetCustomMiningJobErrorOwned { channel_id, request_id, error_code };
        self.send([MiningOwned::SetCustomMiningJobError(error)]).await
    }
}

fn identity(user_identity: &Str0255Owned) -> Result<MinerIdentity, Refusal> {
    user_identity.as_utf8_or_hex().parse().map_err(|error| {
        tracing::info!(%error, "refused a channel");
        Refusal::Code(UNKNOWN_USER)
    })
}

/// Extension 0x0002 names the worker behind a share. Credit is the channel's,
/// so the label is for the log only.
fn note_worker(channel_id: u32, tlvs: &[Tlv]) {
    let labels = tlvs.iter().filter(|tlv| {
        tlv.r#type.extension_type == WORKER_LABELS
            && tlv.r#type.field_type == TLV_FIELD_TYPE_USER_IDENTITY
    });
    for worker in labels.filter_map(|tlv| UserIdentity::from_tlv(tlv).ok()) {
        tracing::debug!(channel_id, worker = worker.as_string_or_hex(), "share of a worker");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn mangled_frames_never_panic(
            extension in prop_oneof![Just(0u16), Just(1), Just(2), Just(0x8000), any::<u16>()],
            kind in any::<u8>(),
            mut payload in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let length = (payload.len() as u32).to_le_bytes();
            let header = [&extension.to_le_bytes()[..], &[kind], &length[..3]].concat();
            let header = Header::from_bytes(&header).unwrap();
            let _ = parse(header, &mut payload, &[WORKER_LABELS]).map(|(_, tlvs)| note_worker(1, &tlvs));
        }
    }
}
