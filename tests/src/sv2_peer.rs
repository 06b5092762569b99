//! A raw Sv2 client for tests: it does what a miner does, one step at a time,
//! and what no miner should.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitcoin::block::{Header, Version};
use bitcoin::hashes::{Hash, sha256d};
use bitcoin::{BlockHash, CompactTarget, Target, TxMerkleNode};
use stratum_apps::key_utils::Secp256k1PublicKey;
use stratum_apps::network_helpers::connect_with_noise;
use stratum_apps::network_helpers::noise_stream::{NoiseTcpReadHalf, NoiseTcpWriteHalf};
use stratum_apps::stratum_core::common_messages_sv2::{Protocol, SetupConnectionOwned};
use stratum_apps::stratum_core::mining_sv2::{
    NewExtendedMiningJobOwned, OpenExtendedMiningChannelOwned, OpenStandardMiningChannelOwned,
    SetNewPrevHashOwned, SubmitSharesExtendedOwned, SubmitSharesStandard,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, MiningOwned, parse_message_frame_with_tlvs,
};
use stratum_apps::utils::types::OutboundFrame;
use tokio::net::TcpStream;

/// How long a peer waits for anything. Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nonces tried before a target is called too hard for a test.
const MAX_HASHES: u32 = 1 << 26;

/// A connection behind Noise.
pub struct Sv2Peer {
    read: NoiseTcpReadHalf,
    write: NoiseTcpWriteHalf,
}

impl Sv2Peer {
    /// Connects and shakes hands; checks the pool's key if there is one.
    pub async fn connect(pool: SocketAddr, authority: Option<Secp256k1PublicKey>) -> Result<Self> {
        Self::over(TcpStream::connect(pool).await?, authority).await
    }

    /// Shakes hands over a connection that the caller has made.
    pub async fn over(stream: TcpStream, authority: Option<Secp256k1PublicKey>) -> Result<Self> {
        stream.set_nodelay(true)?;
        let noise = connect_with_noise(stream, authority).await;
        let (read, write) =
            noise.map_err(|error| anyhow::anyhow!("handshake: {error}"))?.into_split();
        Ok(Self { read, write })
    }

    /// Connects, shakes hands and sets up a mining connection.
    pub async fn ready(pool: SocketAddr) -> Result<Self> {
        let mut peer = Self::connect(pool, None).await?;
        match peer.set_up(setup()).await? {
            CommonMessagesOwned::SetupConnectionSuccess(_) => Ok(peer),
            other => bail!("setup refused: {other}"),
        }
    }

    /// Sends `SetupConnection` and returns the answer.
    pub async fn set_up(&mut self, setup: SetupConnectionOwned) -> Result<CommonMessagesOwned> {
        self.send(AnyMessageOwned::Common(CommonMessagesOwned::SetupConnection(setup))).await?;
        match self.next().await? {
            AnyMessageOwned::Common(answer) => Ok(answer),
            other => bail!("expected an answer to SetupConnection, not {other}"),
        }
    }

    /// Sends any message.
    pub async fn send(&mut self, message: AnyMessageOwned) -> Result<()> {
        let frame = OutboundFrame::from_message(message)
            .map_err(|error| anyhow::anyhow!("cannot frame a message: {error:?}"))?;
        self.send_frame(frame).await
    }

    /// Sends a mining message.
    pub async fn send_mining(&mut self, message: MiningOwned) -> Result<()> {
        self.send(AnyMessageOwned::Mining(message)).await
    }

    /// Sends a frame as it is, whatever it holds.
    pub async fn send_frame(&mut self, frame: OutboundFrame) -> Result<()> {
        let sent = tokio::time::timeout(PATIENCE, self.write.write_frame(frame)).await?;
        sent.map_err(|error| anyhow::anyhow!("write: {error}"))
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<AnyMessageOwned> {
        let read = tokio::time::timeout(PATIENCE, self.read.read_frame());
        let mut frame = read
            .await
            .context("the pool sent nothing")?
            .map_err(|error| anyhow::anyhow!("read: {error}"))?;
        let header = frame.header();
        let (message, _) = parse_message_frame_with_tlvs(header, frame.payload(), &[])
            .map_err(|error| anyhow::anyhow!("the pool sent nonsense: {error:?}"))?;
        Ok(message.into_owned())
    }

    /// The next mining message.
    pub async fn next_mining(&mut self) -> Result<MiningOwned> {
        match self.next().await? {
            AnyMessageOwned::Mining(message) => Ok(message),
            other => bail!("expected a mining message, not {other}"),
        }
    }

    /// Returns once the pool has closed the connection.
    pub async fn closed(&mut self) -> Result<()> {
        // Silence is no end: only a read that fails is.
        let closed = async { while self.read.read_frame().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, closed).await.context("the pool kept the connection")
    }

    /// Asks for a standard channel; returns it with its first job, or the
    /// pool's error code.
    pub async fn open_standard(
        &mut self,
        identity: &str,
        hashrate: f32,
    ) -> Result<Result<Channel, String>> {
        self.send_mining(MiningOwned::OpenStandardMiningChannel(OpenStandardMiningChannelOwned {
            request_id: 1,
            user_identity: text(identity)?,
            nominal_hash_rate: hashrate,
            max_target: [0xff; 32].into(),
        }))
        .await?;
        self.opened().await
    }

    /// Asks for an extended channel with 8 bytes to roll, as
    /// [`Self::open_standard`] does.
    pub async fn open_extended(
        &mut self,
        identity: &str,
        hashrate: f32,
    ) -> Result<Result<Channel, String>> {
        self.open_extended_with(identity, hashrate, 8).await
    }

    /// Asks for an extended channel with so many bytes to roll.
    pub async fn open_extended_with(
        &mut self,
        identity: &str,
        hashrate: f32,
        min_extranonce_size: u16,
    ) -> Result<Result<Channel, String>> {
        self.send_mining(MiningOwned::OpenExtendedMiningChannel(OpenExtendedMiningChannelOwned {
            request_id: 1,
            user_identity: text(identity)?,
            nominal_hash_rate: hashrate,
            max_target: [0xff; 32].into(),
            min_extranonce_size,
        }))
        .await?;
        self.opened().await
    }

    async fn opened(&mut self) -> Result<Result<Channel, String>> {
        let mut channel = match self.next_mining().await? {
            MiningOwned::OpenStandardMiningChannelSuccess(m) => Channel::new(
                m.channel_id,
                m.target.to_array(),
                m.extranonce_prefix.as_bytes(),
                None,
            ),
            MiningOwned::OpenExtendedMiningChannelSuccess(m) => Channel::new(
                m.channel_id,
                m.target.to_array(),
                m.extranonce_prefix.as_bytes(),
                Some(m.extranonce_size.into()),
            ),
            MiningOwned::OpenMiningChannelError(m) => {
                return Ok(Err(m.error_code.as_utf8_or_hex()));
            }
            other => bail!("expected an answer to opening a channel, not {other}"),
        };
        while channel.tip.is_none() {
            channel.follow(&self.next_mining().await?);
        }
        Ok(Ok(channel))
    }
}

/// A mining `SetupConnection` that asks for nothing special.
pub fn setup() -> SetupConnectionOwned {
    let text = |s: &str| s.to_owned().try_into().expect("shorter than 255 bytes");
    SetupConnectionOwned {
        protocol: Protocol::MiningProtocol,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: text("127.0.0.1"),
        endpoint_port: 0,
        vendor: text("hashpit-tests"),
        hardware_version: text(""),
        firmware: text(""),
        device_id: text(""),
    }
}

fn text(s: &str) -> Result<stratum_apps::stratum_core::binary_sv2::Str0255Owned> {
    s.to_owned().try_into().map_err(|error| anyhow::anyhow!("{s:?} is too long: {error:?}"))
}

/// A channel as its miner sees it.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Its id.
    pub id: u32,
    /// The target that shares of the next job have to meet.
    pub target: Target,
    /// Bytes of the extranonce that the pool chose.
    pub extranonce_prefix: Vec<u8>,
    /// Bytes that the miner rolls; `None` on a standard channel.
    pub extranonce_size: Option<usize>,
    /// Jobs by id, with the target that each was made under.
    pub jobs: BTreeMap<u32, Job>,
    /// The tip, once known.
    pub tip: Option<SetNewPrevHashOwned>,
    sequence_number: u32,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    /// The header's version.
    pub version: u32,
    /// The target that its shares have to meet.
    pub target: Target,
    root: Root,
}

#[derive(Debug, Clone)]
enum Root {
    Given([u8; 32]),
    Coinbase(Box<NewExtendedMiningJobOwned>),
}

/// A share, ready to be sent or spoilt.
#[derive(Debug, Clone)]
pub struct Share {
    /// Its channel.
    pub channel_id: u32,
    /// Its place among the channel's submissions.
    pub sequence_number: u32,
    /// Its job.
    pub job_id: u32,
    /// Header fields.
    pub nonce: u32,
    /// Header fields.
    pub ntime: u32,
    /// Header fields.
    pub version: u32,
    /// The rolled bytes; `None` on a standard channel.
    pub extranonce: Option<Vec<u8>>,
    /// The header's hash.
    pub hash: BlockHash,
}

impl Share {
    /// The message that submits it.
    pub fn message(&self) -> MiningOwned {
        let Self { channel_id, sequence_number, job_id, nonce, ntime, version, .. } = *self;
        match &self.extranonce {
            None => MiningOwned::SubmitSharesStandard(SubmitSharesStandard {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
            }),
            Some(extranonce) => MiningOwned::SubmitSharesExtended(SubmitSharesExtendedOwned {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
                extranonce: extranonce.clone().try_into().expect("at most 32 bytes"),
            }),
        }
    }
}

impl Channel {
    fn new(id: u32, target: [u8; 32], prefix: &[u8], extranonce_size: Option<usize>) -> Self {
        Self {
            id,
            target: Target::from_le_bytes(target),
            extranonce_prefix: prefix.to_vec(),
            extranonce_size,
            jobs: BTreeMap::new(),
            tip: None,
            sequence_number: 0,
        }
    }

    /// Takes note of a job, a tip or a target for this channel; anything else
    /// is passed over.
    pub fn follow(&mut self, message: &MiningOwned) {
        match message {
            MiningOwned::NewMiningJob(job) if job.channel_id == self.id => {
                let root = Root::Given(job.merkle_root.to_array());
                self.jobs
                    .insert(job.job_id, Job { version: job.version, target: self.target, root });
            }
            MiningOwned::NewExtendedMiningJob(job) if job.channel_id == self.id => {
                let root = Root::Coinbase(Box::new(job.clone()));
                self.jobs
                    .insert(job.job_id, Job { version: job.version, target: self.target, root });
            }
            MiningOwned::SetNewPrevHash(tip) if tip.channel_id == self.id => {
                self.tip = Some(tip.clone());
            }
            MiningOwned::SetTarget(set) if set.channel_id == self.id => {
                self.target = Target::from_le_bytes(set.maximum_target.to_array());
            }
            _ => {}
        }
    }

    /// The newest job's id.
    pub fn newest_job(&self) -> u32 {
        self.jobs.keys().next_back().copied().unwrap_or_default()
    }

    /// Mines a share of the newest job.
    pub fn mine(&mut self) -> Result<Share> {
        self.mine_where(self.newest_job(), |hash, target| target.is_met_by(hash))
    }

    /// Mines until `wanted(hash, the job's target)`. Every call goes on from
    /// other nonces, so that no share comes twice.
    pub fn mine_where(
        &mut self,
        job_id: u32,
        wanted: impl Fn(BlockHash, Target) -> bool,
    ) -> Result<Share> {
        let job = self.jobs.get(&job_id).context("no such job")?;
        let tip = self.tip.as_ref().context("no tip yet")?;
        self.sequence_number += 1;
        let extranonce = self.extranonce_size.map(|size| {
            let mut bytes = self.sequence_number.to_le_bytes().to_vec();
            bytes.resize(size, 0);
            bytes
        });
        let mut header = Header {
            version: Version::from_consensus(job.version.cast_signed()),
            prev_blockhash: BlockHash::from_byte_array(tip.prev_hash.to_array()),
            merkle_root: TxMerkleNode::from_byte_array(
                job.root
                    .compute(&self.extranonce_prefix, extranonce.as_deref().unwrap_or_default()),
            ),
            time: tip.min_ntime,
            bits: CompactTarget::from_consensus(tip.nbits),
            nonce: self.sequence_number.wrapping_mul(MAX_HASHES),
        };
        for _ in 0..MAX_HASHES {
            let hash = header.block_hash();
            if wanted(hash, job.target) {
                return Ok(Share {
                    channel_id: self.id,
                    sequence_number: self.sequence_number,
                    job_id,
                    nonce: header.nonce,
                    ntime: header.time,
                    version: job.version,
                    extranonce,
                    hash,
                });
            }
            header.nonce = header.nonce.wrapping_add(1);
        }
        bail!("{MAX_HASHES} hashes found nothing")
    }
}

impl Root {
    fn compute(&self, prefix: &[u8], extranonce: &[u8]) -> [u8; 32] {
        match self {
            Self::Given(root) => *root,
            Self::Coinbase(job) => {
                let coinbase = [
                    job.coinbase_tx_prefix.as_bytes(),
                    prefix,
                    extranonce,
                    job.coinbase_tx_suffix.as_bytes(),
                ];
                let leaf = sha256d::Hash::hash(&coinbase.concat()).to_byte_array();
                job.merkle_path.as_slice().iter().fold(leaf, |node, sibling| {
                    sha256d::Hash::hash(&[node, sibling.to_array()].concat()).to_byte_array()
                })
            }
        }
    }
}
