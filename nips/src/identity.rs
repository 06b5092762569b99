//! The name that a miner mines under: an npub, and perhaps a worker's name.

use std::fmt;
use std::str::FromStr;

use nostr::PublicKey;
use nostr::nips::nip19::{FromBech32, ToBech32};

/// Sv2 `user_identity`: `npub1…[.worker]`, split at the first `.`.
///
/// Unauthenticated by design: anyone may donate work to an npub, and only the
/// holder of its key can claim it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MinerIdentity {
    /// The key that the work is credited to.
    pub miner: PublicKey,
    /// A label for statistics; never empty, at most [`Self::MAX_WORKER_BYTES`].
    pub worker: Option<String>,
}

/// Why a `user_identity` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The part before the first `.` is no npub (NIP-19).
    #[error("user identity must be npub1…[.worker], and {0:?} is no npub")]
    NotAnNpub(String),
    /// A worker's name with control characters or too many bytes.
    #[error("worker name must be printable and at most {max} bytes", max = MinerIdentity::MAX_WORKER_BYTES)]
    BadWorker,
}

impl MinerIdentity {
    /// What is left of Sv2's 255 bytes after an npub and a dot would be 191;
    /// nobody's dashboard shows more than this.
    pub const MAX_WORKER_BYTES: usize = 64;
}

impl FromStr for MinerIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (npub, worker) = text.split_once('.').unwrap_or((text, ""));
        let miner = PublicKey::from_bech32(npub)
            .map_err(|_| IdentityError::NotAnNpub(npub.chars().take(70).collect()))?;
        if worker.len() > Self::MAX_WORKER_BYTES || worker.chars().any(char::is_control) {
            return Err(IdentityError::BadWorker);
        }
        let worker = (!worker.is_empty()).then(|| worker.to_owned());
        Ok(Self { miner, worker })
    }
}

impl fmt::Display for MinerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(npub) = self.miner.to_bech32();
        f.write_str(&npub)?;
        match &self.worker {
            Some(worker) => write!(f, ".{worker}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";

    #[test]
    fn an_npub_alone_or_with_a_worker() {
        let bare: MinerIdentity = NPUB.parse().unwrap();
        assert_eq!(bare.worker, None);
        let named: MinerIdentity = format!("{NPUB}.rack.7").parse().unwrap();
        assert_eq!((named.miner, named.worker.as_deref()), (bare.miner, Some("rack.7")));
        assert_eq!(named.to_string(), format!("{NPUB}.rack.7"));
        assert_eq!(format!("{NPUB}.").parse(), Ok(bare));
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("{NPUB}.{}", "w".repeat(65));
        let hex = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";
        for bad in
            ["", ".", "worker", "tb1qfoo.w", hex, &NPUB[..62], &long, &format!("{NPUB}.a\nb")]
        {
            assert!(bad.parse::<MinerIdentity>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn mangled_identities_never_panic(text in ".{0,300}") {
            let _ = text.parse::<MinerIdentity>();
        }
    }
}
