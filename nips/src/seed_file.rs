//! A seed on disk: twelve words in a file that only its owner can read, if
//! wanted encrypted with a password.
//!
//! An encrypted file has two lines. The first is the account 0 Nostr key as an
//! `ncryptsec` (NIP-49), which any Nostr client takes; the second is the words,
//! encrypted (NIP-44) by that key to itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nostr::nips::nip19::{FromBech32, ToBech32};
use nostr::nips::nip44;
use nostr::nips::nip49::{EncryptedSecretKey, KeySecurity};
use nostr::secp256k1::rand::{CryptoRng, RngCore};
use nostr::{Keys, SecretKey};

use crate::Seed;

/// Cost of trying a password: scrypt with 2^16 rounds, 64 MiB and about 0.1 s
/// (NIP-49).
const LOG_N: u8 = 16;

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
    /// The file is encrypted, which is not what was expected here.
    #[error("{0} is encrypted; a password is needed")]
    Locked(PathBuf),
    /// The password does not fit.
    #[error("{0}: the password is wrong, or the file is damaged; your twelve words restore it")]
    Password(PathBuf),
    /// Encrypting failed.
    #[error("encrypting the seed: {0}")]
    Encrypt(String),
}

/// What a seed file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedFile {
    /// The words.
    Open(Seed),
    /// The words, encrypted.
    Locked(LockedSeed),
}

/// Encrypted words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedSeed {
    path: PathBuf,
    key: String,
    words: String,
}

impl LockedSeed {
    /// Decrypts; takes a tenth of a second.
    pub fn unlock(&self, password: &str) -> Result<Seed, SeedFileError> {
        self.decrypt(password).ok_or_else(|| SeedFileError::Password(self.path.clone()))
    }

    fn decrypt(&self, password: &str) -> Option<Seed> {
        let key = EncryptedSecretKey::from_bech32(&self.key).ok()?.decrypt(password).ok()?;
        let keys = Keys::new(key);
        let words = nip44::decrypt(keys.secret_key(), &keys.public_key(), &self.words).ok()?;
        words.parse().ok()
    }
}

/// Reads the file in `path`; `None` if there is no such file.
pub fn open(path: &Path) -> Result<Option<SeedFile>, SeedFileError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SeedFileError::Io { path: path.to_owned(), source }),
    };
    if let Some((key, words)) = text.trim().split_once('\n')
        && key.starts_with("ncryptsec1")
    {
        let (key, words) = (key.trim().to_owned(), words.trim().to_owned());
        return Ok(Some(SeedFile::Locked(LockedSeed { path: path.to_owned(), key, words })));
    }
    match text.trim().parse() {
        Ok(seed) => Ok(Some(SeedFile::Open(seed))),
        Err(source) => Err(SeedFileError::Words { path: path.to_owned(), source }),
    }
}

/// Reads the seed in `path`, or stores a new one there that encodes `entropy`.
/// An encrypted one is an error.
pub fn read_or_create(
    path: &Path,
    entropy: impl FnOnce() -> [u8; 16],
) -> Result<Seed, SeedFileError> {
    match open(path)? {
        Some(SeedFile::Open(seed)) => Ok(seed),
        Some(SeedFile::Locked(locked)) => Err(SeedFileError::Locked(locked.path)),
        None => {
            let seed = Seed::from_entropy(&entropy());
            write(path, &seed)?;
            Ok(seed)
        }
    }
}

/// Stores the words as they are.
pub fn write(path: &Path, seed: &Seed) -> Result<(), SeedFileError> {
    store(path, &seed.words())
}

/// Stores the words encrypted with `password`.
pub fn write_locked<R: RngCore + CryptoRng>(
    path: &Path,
    seed: &Seed,
    password: &str,
    rng: &mut R,
) -> Result<(), SeedFileError> {
    let keys = seed.nostr_keys(0);
    let key = lock_key(keys.secret_key(), password, rng)?;
    let version = nip44::Version::V2;
    let words =
        nip44::encrypt_with_rng(rng, keys.secret_key(), &keys.public_key(), seed.words(), version)
            .map_err(|error| SeedFileError::Encrypt(error.to_string()))?;
    store(path, &format!("{key}\n{words}"))
}

/// A secret key as an `ncryptsec` (NIP-49).
pub fn lock_key<R: RngCore + CryptoRng>(
    key: &SecretKey,
    password: &str,
    rng: &mut R,
) -> Result<String, SeedFileError> {
    let failed = |error: &dyn std::fmt::Display| SeedFileError::Encrypt(error.to_string());
    EncryptedSecretKey::new_with_rng(rng, key, password, LOG_N, KeySecurity::Medium)
        .map_err(|error| failed(&error))?
        .to_bech32()
        .map_err(|error| failed(&error))
}

/// Stores with mode 0600, whole or not at all: a file that a crash left half
/// written would be taken for a damaged seed.
fn store(path: &Path, text: &str) -> Result<(), SeedFileError> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| SeedFileError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nostr::secp256k1::rand::rngs::OsRng;

    use super::*;

    #[test]
    fn a_seed_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.seed");
        assert_eq!(open(&path).unwrap(), None);
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

    #[test]
    fn an_encrypted_seed_needs_its_password_and_says_nothing_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet.seed");
        let seed = Seed::from_entropy(&[3; 16]);
        write_locked(&path, &seed, "correct horse", &mut OsRng).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("ncryptsec1") && !text.contains("abandon"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(read_or_create(&path, || [1; 16]), Err(SeedFileError::Locked(_))));
        let Some(SeedFile::Locked(locked)) = open(&path).unwrap() else { panic!("not encrypted") };
        assert_eq!(locked.unlock("correct horse").unwrap(), seed);
        assert!(matches!(locked.unlock("Correct horse"), Err(SeedFileError::Password(_))));
    }

    #[test]
    fn the_first_line_is_the_nostr_key_for_any_client() {
        let seed = Seed::from_entropy(&[4; 16]);
        let keys = seed.nostr_keys(0);
        let line = lock_key(keys.secret_key(), "pass", &mut OsRng).unwrap();
        let key = EncryptedSecretKey::from_bech32(&line).unwrap().decrypt("pass").unwrap();
        assert_eq!(&key, keys.secret_key());
    }
}
