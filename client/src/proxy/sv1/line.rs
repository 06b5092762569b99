//! Lines of JSON, in and out, with limits on both.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// Longest line that is read. Requests of devices stay below a few hundred bytes.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// What a buffer keeps for the next line.
const IDLE_BYTES: usize = 512;

/// A device's lines.
pub(super) struct LineReader {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes in which no line's end was found.
    searched: usize,
}

impl LineReader {
    pub(super) fn new(read: OwnedReadHalf) -> Self {
        Self { read, buffer: Vec::new(), searched: 0 }
    }

    /// The next line, without its end; `None` when the device has hung up.
    /// Cancel-safe: what has come stays in the buffer.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(Error::new(ErrorKind::InvalidData, "a line without an end"));
            }
            if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BYTES {
                self.buffer = Vec::new();
            }
            self.buffer.reserve(IDLE_BYTES);
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| end + self.searched) else {
            self.searched = self.buffer.len();
            return None;
        };
        self.searched = 0;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

/// Lines to a device.
pub(super) struct LineWriter {
    write: OwnedWriteHalf,
    timeout: Duration,
}

impl LineWriter {
    pub(super) fn new(write: OwnedWriteHalf, timeout: Duration) -> Self {
        Self { write, timeout }
    }

    /// Sends lines together. A device that does not read them in time is given
    /// up. Not cancel-safe.
    pub(super) async fn send(&mut self, lines: &[impl Serialize]) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(lines.len() * 128);
        for line in lines {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        let sent = timeout(self.timeout, self.write.write_all(&bytes)).await;
        sent.map_err(|_| Error::new(ErrorKind::TimedOut, "what was sent was not read in time"))?
    }
}
