//! Twelve words from which a wallet or a pool derives every key that it has.

use std::fmt;
use std::str::FromStr;

use bip39::Mnemonic;
use nostr::Keys;
use nostr::nips::nip06::FromMnemonic;

/// A BIP-39 phrase. Printing it shows `<redacted>`; [`Seed::words`] is the one
/// way to see it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    mnemonic: Mnemonic,
    /// Kept, since deriving it takes a millisecond and wallets need it often.
    bytes: [u8; 64],
}

/// Not a BIP-39 phrase. The words themselves are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a BIP-39 phrase: {0}; check the words and their order")]
pub struct SeedError(String);

impl Seed {
    /// Twelve words that encode `entropy`, which must come from a secure
    /// generator.
    pub fn from_entropy(entropy: &[u8; 16]) -> Self {
        Mnemonic::from_entropy(entropy).expect("16 bytes make 12 words").into()
    }

    /// The words, separated by single spaces.
    pub fn words(&self) -> String {
        self.mnemonic.to_string()
    }

    /// The Nostr key of an account: `m/44'/1237'/<account>'/0/0` (NIP-06).
    pub fn nostr_keys(&self, account: u32) -> Keys {
        Keys::from_mnemonic_with_account(self.words(), None, Some(account))
            .expect("a valid phrase derives a key for every account below 2^31")
    }

    /// The BIP-39 seed without a passphrase: what NUT-13 derives secrets from.
    pub fn to_bytes(&self) -> [u8; 64] {
        self.bytes
    }
}

impl From<Mnemonic> for Seed {
    fn from(mnemonic: Mnemonic) -> Self {
        Self { bytes: mnemonic.to_seed(""), mnemonic }
    }
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(words: &str) -> Result<Self, Self::Err> {
        let mnemonic: Result<Mnemonic, bip39::Error> = words.parse();
        mnemonic.map(Self::from).map_err(|error| SeedError(error.to_string()))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use nostr::nips::nip19::ToBech32;

    use super::*;

    /// The first test vector of NIP-06.
    const WORDS: &str =
        "leader monkey parrot ring guide accident before fence cannon height naive bean";

    #[test]
    fn the_nostr_key_is_the_one_of_nip06() {
        let keys = WORDS.parse::<Seed>().unwrap().nostr_keys(0);
        let npub = keys.public_key().to_bech32().unwrap();
        assert_eq!(npub, "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu");
    }

    #[test]
    fn a_seed_never_prints_its_words() {
        let seed = Seed::from_entropy(&[7; 16]);
        assert_eq!(format!("{seed:?}"), "Seed(<redacted>)");
        let typo = seed.words().replacen(' ', " zebraa ", 1);
        let error = typo.parse::<Seed>().unwrap_err().to_string();
        assert!(seed.words().split(' ').filter(|word| word.len() > 4).all(|w| !error.contains(w)));
    }
}
