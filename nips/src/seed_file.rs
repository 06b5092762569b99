//! A seed on disk: twelve words in a file that only its owner can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Seed;

/// Why the seed could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SeedFileError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no BIP-39 phrase.
    #[error("{path}: {source}")]
    Words {
        /// The file.
        path: PathBuf,
        /// Why.
        source: crate::seed::SeedError,
    },
}

/// Reads the seed in `path`; `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<Seed>, SeedFileError> {
    match std::fs::read_to_string(path) {
        Ok(words) => match words.trim().parse() {
            Ok(seed) => Ok(Some(seed)),
            Err(source) => Err(SeedFileError::Words { path: path.to_owned(), source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SeedFileError::Io { path: path.to_owned(), source }),
    }
}

/// Reads the seed in `path`, or stores a new one there that encodes `entropy`.
pub fn read_or_create(
    path: &Path,
    entropy: impl FnOnce() -> [u8; 16],
) -> Result<Seed, SeedFileError> {
    if let Some(seed) = read(path)? {
        return Ok(seed);
    }
    let seed = Seed::from_entropy(&entropy());
    write(path, &seed).map_err(|source| SeedFileError::Io { path: path.to_owned(), source })?;
    Ok(seed)
}

/// Stores with mode 0600, whole or not at all: a file that a crash left half
/// written would be taken for a damaged seed.
fn write(path: &Path, seed: &Seed) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    writeln!(file, "{}", seed.words())?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_seed_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.seed");
        assert_eq!(read(&path).unwrap(), None);
        let seed = read_or_create(&path, || [1; 16]).unwrap();
        assert_eq!(read_or_create(&path, || [2; 16]).unwrap(), seed);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_seed_is_an_error_and_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.seed");
        std::fs::write(&path, "twelve words that are none").unwrap();
        assert!(read_or_create(&path, || [1; 16]).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "twelve words that are none");
    }
}
