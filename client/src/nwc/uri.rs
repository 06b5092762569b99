//! The connection URI of NIP-47: which wallet, through which relays, and the key
//! that may spend from it.

use std::fmt;
use std::str::FromStr;

use nostr_sdk::{Keys, PublicKey, RelayUrl, SecretKey, Url};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const SCHEME: &str = "nostr+walletconnect";
/// A URI could name any number; each is a connection.
const MAX_RELAYS: usize = 8;

/// A wallet and the right to use it. Whoever has it can spend: printing it shows
/// `<redacted>` for the secret, and only [`NwcUri::reveal`] and serde show it.
#[derive(Clone, PartialEq, Eq)]
pub struct NwcUri {
    wallet: PublicKey,
    relays: Vec<RelayUrl>,
    secret: SecretKey,
}

/// Not a connection URI. None of it repeats what was given, which may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NwcUriError {
    /// Another kind of text.
    #[error("not a connection to a wallet; it begins with nostr+walletconnect://")]
    Scheme,
    /// No wallet's key.
    #[error("the connection names no wallet: a public key of 64 hex digits follows the //")]
    Wallet,
    /// No relay, too many, or one that is none.
    #[error("the connection needs one to {MAX_RELAYS} relays, as relay=wss://…")]
    Relays,
    /// No secret, several, or one that is no key.
    #[error("the connection needs one secret of 64 hex digits, as secret=…")]
    Secret,
}

impl NwcUri {
    /// A connection to `wallet` by the key `secret`.
    pub fn new(
        wallet: PublicKey,
        relays: Vec<RelayUrl>,
        secret: SecretKey,
    ) -> Result<Self, NwcUriError> {
        if relays.is_empty() || relays.len() > MAX_RELAYS {
            return Err(NwcUriError::Relays);
        }
        Ok(Self { wallet, relays, secret })
    }

    /// The wallet's key.
    pub fn wallet(&self) -> PublicKey {
        self.wallet
    }

    /// Where it listens.
    pub fn relays(&self) -> &[RelayUrl] {
        &self.relays
    }

    /// The whole text, secret included.
    pub fn reveal(&self) -> String {
        self.text(&self.secret.to_secret_hex())
    }

    pub(super) fn keys(&self) -> Keys {
        Keys::new(self.secret.clone())
    }

    fn text(&self, secret: &str) -> String {
        let mut text = format!("{SCHEME}://{}?", self.wallet.to_hex());
        for relay in &self.relays {
            let relay: String = relay.as_str().chars().map(escaped).collect();
            text += &format!("relay={relay}&");
        }
        text + "secret=" + secret
    }
}

/// A relay's URL has no characters that a query must not hold, but for these.
fn escaped(c: char) -> String {
    match c {
        ':' | '/' | '?' | '&' | '=' | '+' | '%' | '#' | '@' => format!("%{:02X}", u32::from(c)),
        _ => c.to_string(),
    }
}

impl FromStr for NwcUri {
    type Err = NwcUriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri = Url::parse(text.trim()).map_err(|_| NwcUriError::Scheme)?;
        if uri.scheme() != SCHEME {
            return Err(NwcUriError::Scheme);
        }
        // Some wallets leave the slashes out.
        let wallet = uri.host_str().unwrap_or(uri.path());
        let wallet = PublicKey::from_hex(wallet).map_err(|_| NwcUriError::Wallet)?;
        let named = |name: &'static str| {
            uri.query_pairs().filter(move |(key, _)| key == name).map(|(_, value)| value)
        };
        let relays: Result<Vec<_>, _> =
            named("relay").take(MAX_RELAYS + 1).map(|relay| RelayUrl::parse(&relay)).collect();
        let relays = relays.map_err(|_| NwcUriError::Relays)?;
        let secrets: Vec<_> = named("secret").take(2).collect();
        let [secret] = secrets.as_slice() else { return Err(NwcUriError::Secret) };
        let secret = SecretKey::from_hex(secret).map_err(|_| NwcUriError::Secret)?;
        Self::new(wallet, relays, secret)
    }
}

impl fmt::Display for NwcUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text("<redacted>"))
    }
}

impl fmt::Debug for NwcUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NwcUri({self})")
    }
}

impl Serialize for NwcUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reveal())
    }
}

impl<'de> Deserialize<'de> for NwcUri {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALLET: &str = "b889ff5b1513b641e2a139f661a661364979c5beee91842f8f0ef42ab558e9d4";
    const SECRET: &str = "71a8c14c1407c113601079c4302dab36460f0ccd0ad506f1f2dc73b5100e4f3c";

    #[test]
    fn the_example_of_nip_47_is_read_and_written() {
        let text = format!(
            "nostr+walletconnect://{WALLET}?relay=wss%3A%2F%2Frelay.damus.io&secret={SECRET}"
        );
        let uri: NwcUri = text.parse().unwrap();
        assert_eq!(uri.wallet().to_hex(), WALLET);
        assert_eq!(uri.relays(), [RelayUrl::parse("wss://relay.damus.io").unwrap()]);
        assert_eq!(uri.reveal(), text);
        let json = serde_json::to_string(&uri).unwrap();
        assert_eq!(serde_json::from_str::<NwcUri>(&json).unwrap(), uri);
    }

    #[test]
    fn the_secret_is_not_printed() {
        let text = format!("nostr+walletconnect:{WALLET}?secret={SECRET}&relay=ws://127.0.0.1:1/a");
        let uri: NwcUri = text.parse().unwrap();
        for shown in [format!("{uri}"), format!("{uri:?}")] {
            assert!(shown.contains("<redacted>") && !shown.contains(SECRET), "{shown}");
        }
        assert_eq!(uri.reveal().parse::<NwcUri>().unwrap(), uri);
    }

    #[test]
    fn what_is_missing_is_named() {
        let relay = "relay=wss://relay.damus.io";
        let parse = |text: String| text.parse::<NwcUri>().unwrap_err();
        let scheme = format!("https://{WALLET}?{relay}&secret={SECRET}");
        assert_eq!(parse(scheme), NwcUriError::Scheme);
        let with = |wallet: &str, query: String| format!("nostr+walletconnect://{wallet}?{query}");
        assert_eq!(parse(with("npub1", format!("{relay}&secret={SECRET}"))), NwcUriError::Wallet);
        assert_eq!(parse(with(WALLET, format!("secret={SECRET}"))), NwcUriError::Relays);
        let many = format!("{relay}&").repeat(MAX_RELAYS + 1);
        assert_eq!(parse(with(WALLET, format!("{many}secret={SECRET}"))), NwcUriError::Relays);
        assert_eq!(parse(with(WALLET, relay.to_owned())), NwcUriError::Secret);
        let twice = format!("{relay}&secret={SECRET}&secret={SECRET}");
        assert_eq!(parse(with(WALLET, twice)), NwcUriError::Secret);
    }
}
