//! An epoch: the time between two blocks of one pool, and the Cashu unit that
//! ehash of that time is denominated in.

use std::fmt;
use std::str::FromStr;

use nostr::PublicKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A pool's epoch, named as Hashpool names its units so that both systems'
/// tokens look alike: `hash_02<pool key>_<height>`, with the pool's Nostr key
/// as a compressed public key and the height of the block that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId {
    /// The pool's Nostr key (BIP-340, x only).
    pub pool: PublicKey,
    /// Height of the block that opened the epoch.
    pub height: u32,
}

/// Not the name of an epoch's unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an ehash unit; expected hash_02<64 hex digits>_<height>")]
pub struct EpochIdError(String);

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hash_02{}_{}", self.pool.to_hex(), self.height)
    }
}

impl FromStr for EpochId {
    type Err = EpochIdError;

    fn from_str(unit: &str) -> Result<Self, Self::Err> {
        parse(unit).ok_or_else(|| EpochIdError(unit.chars().take(100).collect()))
    }
}

fn parse(unit: &str) -> Option<EpochId> {
    let (pool, height) = unit.strip_prefix("hash_02")?.split_once('_')?;
    let lower_hex = pool.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    Some(EpochId {
        pool: lower_hex.then(|| PublicKey::from_hex(pool).ok()).flatten()?,
        height: crate::units::decimal(height)?,
    })
}

impl Serialize for EpochId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EpochId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: &str =
        "hash_0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798_840000";

    #[test]
    fn the_unit_names_the_pool_and_the_height() {
        let epoch: EpochId = UNIT.parse().unwrap();
        assert_eq!(epoch.height, 840_000);
        assert_eq!(epoch.to_string(), UNIT);
    }

    #[test]
    fn near_misses_are_refused() {
        for bad in [
            "sat",
            &UNIT.replace("hash_02", "hash_03"),
            &UNIT.replace("_840000", "_0840000"),
            &UNIT.replace("_840000", ""),
            &UNIT.replace("_840000", "_4294967296"),
            &UNIT.replace("79be", "79BE"),
        ] {
            assert!(bad.parse::<EpochId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn mangled_units_never_panic(text in ".{0,120}") {
            let _ = text.parse::<EpochId>();
        }
    }
}
