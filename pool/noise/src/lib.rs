//! Frames behind Noise (Sv2 4.5), for both ends of a connection: a handshake, a
//! reader and a writer.
//!
//! The library's own stream buffers whatever length a header declares, up to
//! 16 MB. This one is built on the same codec and refuses a frame as soon as
//! its header is decrypted. Reading is safe to cancel; writing is not, and may
//! be cancelled only with the whole connection.
//!
//! | module | what lives in it |
//! |---|---|
//! | `authority` | the key by which a server proves itself |
//! | `admission` | how many connections there may be, in all and from one address |
//! | `wire` | messages that both ends make alike |

mod admission;
mod authority;
mod wire;

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use stratum_apps::key_utils::Secp256k1PublicKey as AuthorityKey;
use stratum_apps::stratum_core::codec_sv2::state::{ExpectsHandshakeMessage, InitiatorSent};
use stratum_apps::stratum_core::codec_sv2::{
    self, Decoded, Decrypted, Handshake, NoiseDecoder, NoiseEncoder, SerializedFrame, Transport,
    TransportDecryptState, TransportEncryptState,
};
use stratum_apps::stratum_core::framing_sv2::framing::HandshakeMessage;
use stratum_apps::stratum_core::noise_sv2::{Initiator, Responder};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, ParserError, Tlv, parse_message_frame_with_tlvs,
};
use stratum_apps::utils::types::OutboundFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

pub use admission::{Admission, Refused, Seat};
pub use authority::Authority;
pub use wire::{negotiate, text};

/// How long the certificate shown in a handshake is valid. It is made anew for
/// each, so it only has to outlive clocks that disagree.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(60 * 60);
/// A peer that is sent nothing shows only by probes that it is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What the kernel holds for a peer that does not read. Left to itself it would
/// grow to megabytes; a full set of jobs for all channels takes some 100 kB.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// What a peer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest time for the whole handshake.
    pub handshake: Duration,
    /// Longest time for what is sent to be taken.
    pub write: Duration,
    /// Largest frame that is read, in bytes; below 64 kB.
    pub frame: usize,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The peer hung up, or the network failed.
    #[error("the connection is closed: {0}")]
    Closed(#[from] std::io::Error),
    /// The peer did not answer, or did not read.
    #[error("no answer in time")]
    Timeout,
    /// Larger than the limit.
    #[error("a frame of more than {0} bytes")]
    FrameTooLarge(usize),
    /// The other side could not prove that it holds the key.
    #[error("the handshake failed: {0}; is the authority key the pool's?")]
    Handshake(codec_sv2::Error),
    /// The encryption failed.
    #[error("Noise failed: {0}")]
    Noise(codec_sv2::Error),
    /// Not a message, or one that does not fit a frame.
    #[error("a message that does not fit Sv2: {0:?}")]
    Message(ParserError),
}

impl From<tokio::time::error::Elapsed> for NoiseError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

/// Shakes hands with a peer that must hold `authority`.
pub async fn connect(
    stream: TcpStream,
    authority: &AuthorityKey,
    limits: Limits,
) -> Result<(Reader, Writer), NoiseError> {
    prepare(&stream)?;
    let handshake = async {
        let (mut read, mut write) = stream.into_split();
        let (mut decoder, mut encoder) = (NoiseDecoder::new(), NoiseEncoder::new());
        let initiator = Initiator::from_raw_k(authority.into_bytes())
            .map_err(|error| NoiseError::Handshake(error.into()))?;
        let (first, state) =
            Handshake::initiator(initiator).step_0().map_err(NoiseError::Handshake)?;
        write.write_all(encoder.encode_handshake(first).as_ref()).await?;
        let second = hear::<InitiatorSent>(&mut read, &mut decoder).await?;
        let second = second.payload().try_into().expect("the decoder returns this size");
        let transport = state.step_2(second).map_err(NoiseError::Handshake)?;
        Ok(halves(read, write, (decoder, encoder), transport, limits))
    };
    timeout(limits.handshake, handshake).await?
}

/// Answers a peer's handshake as `authority`.
pub async fn accept(
    stream: TcpStream,
    authority: &Authority,
    limits: Limits,
) -> Result<(Reader, Writer), NoiseError> {
    prepare(&stream)?;
    let handshake = async {
        let (mut read, mut write) = stream.into_split();
        let (mut decoder, mut encoder) = (NoiseDecoder::new(), NoiseEncoder::new());
        let responder = authority.responder(CERTIFICATE_VALIDITY).map_err(NoiseError::Noise)?;
        let first = hear::<Responder>(&mut read, &mut decoder).await?;
        let key = first.payload().try_into().expect("the decoder returns this size");
        let (second, transport) =
            Handshake::responder(responder).step_1(key).map_err(NoiseError::Noise)?;
        write.write_all(encoder.encode_handshake(second).as_ref()).await?;
        Ok(halves(read, write, (decoder, encoder), transport, limits))
    };
    timeout(limits.handshake, handshake).await?
}

/// Tells the kernel what this connection is for.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Jobs, shares and answers are small and urgent.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

fn halves(
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    (decoder, encoder): (NoiseDecoder, NoiseEncoder),
    transport: Transport,
    limits: Limits,
) -> (Reader, Writer) {
    let (encrypt, decrypt) = transport.split();
    let (state, window, max_frame) = (Some(decrypt), Vec::new(), limits.frame);
    let reader = Reader { read, decoder, state, window, filled: 0, max_frame };
    (reader, Writer { write, encoder, state: encrypt, timeout: limits.write })
}

async fn hear<R: ExpectsHandshakeMessage>(
    read: &mut OwnedReadHalf,
    decoder: &mut NoiseDecoder,
) -> Result<HandshakeMessage, NoiseError> {
    loop {
        match decoder.next_handshake_frame::<R>().map_err(NoiseError::Noise)? {
            Decoded::Frame(message) => return Ok(message),
            Decoded::Incomplete(_) => {
                let mut bytes = vec![0; decoder.writable_len()];
                read.read_exact(&mut bytes).await?;
                decoder.writable().copy_from_slice(&bytes);
            }
        }
    }
}

/// The peer's frames.
pub struct Reader {
    read: OwnedReadHalf,
    decoder: NoiseDecoder,
    /// Gone after a failed decryption, which ends the connection.
    state: Option<TransportDecryptState>,
    /// The bytes that the decoder wants next, of which `filled` have come.
    window: Vec<u8>,
    filled: usize,
    max_frame: usize,
}

impl Reader {
    /// The next message and the TLV fields behind it, where `extensions` has
    /// such. Cancel-safe.
    pub async fn next(
        &mut self,
        extensions: &[u16],
    ) -> Result<(AnyMessageOwned, Vec<Tlv>), NoiseError> {
        let mut frame = self.next_frame().await?;
        let header = frame.header();
        let (message, tlvs) = parse_message_frame_with_tlvs(header, frame.payload(), extensions)
            .map_err(NoiseError::Message)?;
        Ok((message.into_owned(), tlvs.unwrap_or_default()))
    }

    /// The next frame. Cancel-safe: bytes that have come stay in `window`.
    pub async fn next_frame(&mut self) -> Result<SerializedFrame, NoiseError> {
        loop {
            let wanted = self.decoder.writable_len();
            self.window.resize(wanted, 0);
            while self.filled < wanted {
                let count = self.read.read(&mut self.window[self.filled..]).await?;
                if count == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
                self.filled += count;
            }
            self.decoder.writable().copy_from_slice(&self.window);
            self.filled = 0;
            if let Some(frame) = self.decode()? {
                return Ok(frame);
            }
        }
    }

    fn decode(&mut self) -> Result<Option<SerializedFrame>, NoiseError> {
        let Some(state) = self.state.take() else {
            return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
        };
        match self.decoder.next_transport_frame(state).map_err(NoiseError::Noise)? {
            Decrypted::Frame(frame, state) => {
                self.state = Some(state);
                Ok(Some(frame))
            }
            // The header has been read: what the decoder wants now is the
            // payload, or its first 64 kB if that is longer.
            Decrypted::Incomplete(wanted, _) if wanted > self.max_frame => {
                Err(NoiseError::FrameTooLarge(self.max_frame))
            }
            Decrypted::Incomplete(_, state) => {
                self.state = Some(state);
                Ok(None)
            }
        }
    }
}

/// Messages to the peer.
pub struct Writer {
    write: OwnedWriteHalf,
    encoder: NoiseEncoder,
    state: TransportEncryptState,
    timeout: Duration,
}

impl Writer {
    /// Sends `frames` in order, in as few packets as they fit.
    ///
    /// Waits while the peer's buffers are full, and gives the peer up when
    /// that takes too long. Not cancel-safe.
    pub async fn send(
        &mut self,
        frames: impl IntoIterator<Item = OutboundFrame>,
    ) -> Result<(), NoiseError> {
        let mut bytes = Vec::new();
        for frame in frames {
            let encoded = self.encoder.encode_transport(frame, &mut self.state);
            bytes.extend_from_slice(encoded.map_err(NoiseError::Noise)?.as_ref());
        }
        Ok(timeout(self.timeout, self.write.write_all(&bytes)).await??)
    }

    /// Tells the peer that nothing more follows.
    pub async fn close(mut self) {
        // The peer may be gone already; there is nobody to tell then.
        let _ = timeout(self.timeout, self.write.shutdown()).await;
    }
}

/// A message as a frame.
pub fn framed(message: impl Into<AnyMessageOwned>) -> Result<OutboundFrame, NoiseError> {
    OutboundFrame::from_message(message.into()).map_err(NoiseError::Message)
}
