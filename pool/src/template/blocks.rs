//! The file that holds the embedded chain: one block after the other, framed
//! as Bitcoin Core frames its own (`blk*.dat`): magic, length, block.
//!
//! It promises that a block is on the disk when [`BlockFile::append`] returns,
//! that a record torn by a crash is cut off when the file is opened, and that
//! damage to anything before the last record is an error, never a shorter
//! chain.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitcoin::Block;
use bitcoin::consensus::{deserialize, serialize};

use super::rules::Bits;

/// Magic and length.
const FRAME_BYTES: usize = 8;
/// A block is at most this long (BIP-141's weight limit).
const MAX_BLOCK_BYTES: usize = 4_000_000;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockFileError {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A record is damaged, and whole records follow it.
    #[error(
        "{path} is damaged at byte {offset}: restore it from a backup, or move it away to start a new chain"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damaged record begins.
        offset: u64,
    },
}

/// The open file. Its owner is the only writer: it holds the file's lock.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    magic: [u8; 4],
    /// Where the record of each height begins; index 0 is height 1.
    offsets: Vec<u64>,
    /// Where the next record goes.
    end: u64,
}

impl BlockFile {
    /// Opens or creates the file and returns the blocks in it.
    pub(super) fn open(path: &Path, magic: [u8; 4]) -> Result<(Self, Vec<Block>), BlockFileError> {
        let error =
            |action| move |source| BlockFileError::Io { action, path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(error("open"))?;
        file.try_lock().map_err(|e| error("lock")(e.into()))?;
        sync_directory_of(path).map_err(error("sync the directory of"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(error("read"))?;

        let scan = scan(&bytes, magic);
        if scan.end < bytes.len() {
            if has_record(&bytes[scan.end + 1..], magic) {
                return Err(BlockFileError::Damaged {
                    path: path.to_owned(),
                    offset: scan.end as u64,
                });
            }
            let torn_bytes = bytes.len() - scan.end;
            tracing::warn!(path = %path.display(), torn_bytes, "cut a torn record off the block file");
            file.set_len(scan.end as u64)
                .and_then(|()| file.sync_all())
                .map_err(error("truncate"))?;
        }
        let end = scan.end as u64;
        Ok((Self { file, magic, offsets: scan.offsets, end }, scan.blocks))
    }

    /// Writes `block` and returns once it is on the disk.
    ///
    /// After an error the file is as before: the next record overwrites
    /// whatever part was written.
    pub(super) fn append(&mut self, block: &Block) -> io::Result<()> {
        let bytes = serialize(block);
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let record = [self.magic.as_slice(), &length.to_le_bytes(), &bytes].concat();
        self.file.seek(SeekFrom::Start(self.end))?;
        let written = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // If this fails as well, the next start cuts the torn record off.
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.offsets.push(self.end);
        self.end += record.len() as u64;
        Ok(())
    }

    /// The block at `height`, if the file reaches that far. Height 0 is in no
    /// file.
    pub(super) fn read(&mut self, height: u32) -> io::Result<Option<Block>> {
        let Some(index) = (height as usize).checked_sub(1) else { return Ok(None) };
        let Some(&start) = self.offsets.get(index) else { return Ok(None) };
        let end = self.offsets.get(index + 1).copied().unwrap_or(self.end);
        let mut record = vec![0; (end - start) as usize];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut record)?;
        record_at(&record, self.magic).map(|(block, _)| Some(block)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the record has been damaged")
        })
    }
}

/// The whole records that a file begins with.
struct Scan {
    blocks: Vec<Block>,
    offsets: Vec<u64>,
    end: usize,
}

fn scan(bytes: &[u8], magic: [u8; 4]) -> Scan {
    let mut scan = Scan { blocks: Vec::new(), offsets: Vec::new(), end: 0 };
    while let Some((block, length)) = record_at(&bytes[scan.end..], magic) {
        scan.blocks.push(block);
        scan.offsets.push(scan.end as u64);
        scan.end += length;
    }
    scan
}

/// The record that `bytes` begin with, and its length. The header's own proof
/// of work and Merkle root serve as its checksum.
fn record_at(bytes: &[u8], magic: [u8; 4]) -> Option<(Block, usize)> {
    let (frame, rest) = bytes.split_at_checked(FRAME_BYTES)?;
    let length = u32::from_le_bytes(frame[4..].try_into().ok()?) as usize;
    if frame[..4] != magic || length > MAX_BLOCK_BYTES {
        return None;
    }
    let block: Block = deserialize(rest.get(..length)?).ok()?;
    let bits = Bits::new(block.header.bits.to_consensus()).ok()?;
    let whole = bits.target().is_met_by(block.block_hash())
        && block.check_merkle_root()
        && block.check_witness_commitment();
    whole.then_some((block, FRAME_BYTES + length))
}

/// Whether a whole record begins anywhere in `bytes`.
fn has_record(bytes: &[u8], magic: [u8; 4]) -> bool {
    bytes
        .windows(magic.len())
        .enumerate()
        .any(|(at, window)| window == magic && record_at(&bytes[at..], magic).is_some())
}

/// Makes a new file's name durable.
#[cfg(unix)]
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Other systems cannot open a directory; their file systems journal names.
#[cfg(not(unix))]
fn sync_directory_of(_path: &Path) -> io::Result<()> {
    Ok(())
}
