//! Frames behind Noise (Sv2 4.5): a handshake, a reader and a writer.
//!
//! The library's own stream buffers whatever length a header declares, up to
//! 16 MB. This one is built on the same codec and refuses a frame as soon as
//! its header is decrypted. Reading is safe to cancel; writing is not, and is
//! never cancelled.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use stratum_apps::stratum_core::codec_sv2::{
    self, Decoded, Decrypted, Handshake, NoiseDecoder, NoiseEncoder, SerializedFrame,
    TransportDecryptState, TransportEncryptState,
};
use stratum_apps::stratum_core::noise_sv2::{ELLSWIFT_ENCODING_SIZE, Responder};
use stratum_apps::stratum_core::parsers_sv2::{AnyMessageOwned, ParserError};
use stratum_apps::utils::types::OutboundFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::Authority;
use super::config::MAX_FRAME_BYTES;

/// How long the certificate shown in a handshake is valid. It is made anew for
/// each, so it only has to outlive clocks that disagree.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(60 * 60);

/// What the kernel holds for a peer that does not read. Left to itself it would
/// grow to megabytes; a full set of jobs for all channels takes some 100 kB.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// A peer without channels is sent nothing, so only probes show that it is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a transport ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("the connection is closed")]
    Closed(#[from] std::io::Error),
    #[error("the handshake took too long")]
    HandshakeTimeout,
    #[error("what was sent was not read in time")]
    WriteTimeout,
    #[error("a frame of more than {MAX_FRAME_BYTES} bytes")]
    FrameTooLarge,
    #[error("Noise failed: {0}")]
    Noise(codec_sv2::Error),
    #[error("a message does not fit a frame: {0:?}")]
    Encode(ParserError),
}

impl From<codec_sv2::Error> for TransportError {
    fn from(error: codec_sv2::Error) -> Self {
        Self::Noise(error)
    }
}

/// Answers a handshake on `stream`, all of it within `timeout`.
pub(super) async fn accept(
    stream: TcpStream,
    authority: &Authority,
    timeout: Duration,
    write_timeout: Duration,
) -> Result<(Reader, Writer), TransportError> {
    prepare(&stream)?;
    tokio::time::timeout(timeout, handshake(stream, authority, write_timeout))
        .await
        .map_err(|_| TransportError::HandshakeTimeout)?
}

/// Tells the kernel what this connection is for.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Jobs and answers are small and urgent.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

async fn handshake(
    stream: TcpStream,
    authority: &Authority,
    write_timeout: Duration,
) -> Result<(Reader, Writer), TransportError> {
    let (mut read, mut write) = stream.into_split();
    let secret = authority.secret.secret_bytes();
    let responder = Responder::from_authority_kp(&authority.public, &secret, CERTIFICATE_VALIDITY)
        .map_err(codec_sv2::Error::from)?;

    let mut decoder = NoiseDecoder::new();
    let first = loop {
        match decoder.next_handshake_frame::<Responder>()? {
            Decoded::Frame(first) => break first,
            Decoded::Incomplete(_) => {
                let mut bytes = vec![0; decoder.writable_len()];
                read.read_exact(&mut bytes).await?;
                decoder.writable().copy_from_slice(&bytes);
            }
        }
    };
    let key: [u8; ELLSWIFT_ENCODING_SIZE] =
        first.payload().try_into().expect("the decoder returns a message of this size");
    let (second, transport) = Handshake::responder(responder).step_1(key)?;
    let mut encoder = NoiseEncoder::new();
    write.write_all(encoder.encode_handshake(second).as_ref()).await?;

    let (encrypt, decrypt) = transport.split();
    let reader = Reader { read, decoder, state: Some(decrypt), window: Vec::new(), filled: 0 };
    let writer = Writer { write, encoder, state: encrypt, timeout: write_timeout };
    Ok((reader, writer))
}

/// The peer's frames.
pub(super) struct Reader {
    read: OwnedReadHalf,
    decoder: NoiseDecoder,
    /// Gone after a failed decryption, which ends the connection.
    state: Option<TransportDecryptState>,
    /// The bytes that the decoder wants next, of which `filled` have come.
    window: Vec<u8>,
    filled: usize,
}

impl Reader {
    /// The next frame. Cancel-safe: bytes that have come stay in `window`.
    pub(super) async fn next_frame(&mut self) -> Result<SerializedFrame, TransportError> {
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

    fn decode(&mut self) -> Result<Option<SerializedFrame>, TransportError> {
        let Some(state) = self.state.take() else {
            return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
        };
        match self.decoder.next_transport_frame(state)? {
            Decrypted::Frame(frame, state) => {
                self.state = Some(state);
                Ok(Some(frame))
            }
            // The header has been read: what the decoder wants now is the
            // payload, or its first 64 kB if that is longer.
            Decrypted::Incomplete(wanted, _) if wanted > MAX_FRAME_BYTES => {
                Err(TransportError::FrameTooLarge)
            }
            Decrypted::Incomplete(_, state) => {
                self.state = Some(state);
                Ok(None)
            }
        }
    }
}

/// Messages to the peer.
pub(super) struct Writer {
    write: OwnedWriteHalf,
    encoder: NoiseEncoder,
    state: TransportEncryptState,
    timeout: Duration,
}

impl Writer {
    /// Sends `messages` in order, in as few packets as they fit.
    ///
    /// Waits while the peer's buffers are full, and gives the peer up when
    /// that takes too long. Not cancel-safe.
    pub(super) async fn send(
        &mut self,
        messages: impl IntoIterator<Item = AnyMessageOwned>,
    ) -> Result<(), TransportError> {
        let mut bytes = Vec::new();
        for message in messages {
            let frame = OutboundFrame::from_message(message).map_err(TransportError::Encode)?;
            bytes
                .extend_from_slice(self.encoder.encode_transport(frame, &mut self.state)?.as_ref());
        }
        tokio::time::timeout(self.timeout, self.write.write_all(&bytes))
            .await
            .map_err(|_| TransportError::WriteTimeout)??;
        Ok(())
    }

    /// Tells the peer that nothing more follows.
    pub(super) async fn close(mut self) {
        // The peer may be gone already; there is nobody to tell then.
        let _ = tokio::time::timeout(self.timeout, self.write.shutdown()).await;
    }
}
