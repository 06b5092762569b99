//! The key by which whoever is connected to proves itself.

use std::fmt;
use std::time::Duration;

use bitcoin::secp256k1::{self, SECP256K1, SecretKey};
use stratum_apps::stratum_core::codec_sv2;
use stratum_apps::stratum_core::noise_sv2::Responder;

/// A Noise authority key (Sv2 4.5). Prints its public half.
#[derive(Clone)]
pub struct Authority {
    public: [u8; 32],
    secret: SecretKey,
}

impl Authority {
    /// Version that precedes an authority key in base58 (Sv2 4.7).
    const KEY_VERSION: [u8; 2] = 1u16.to_le_bytes();

    /// The key of a secret, if the bytes are one.
    pub fn from_secret(bytes: &[u8; 32]) -> Result<Self, secp256k1::Error> {
        let secret = SecretKey::from_slice(bytes)?;
        let public = secret.x_only_public_key(SECP256K1).0.serialize();
        Ok(Self { public, secret })
    }

    /// The x-only public key.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    pub(crate) fn responder(&self, validity: Duration) -> Result<Box<Responder>, codec_sv2::Error> {
        Ok(Responder::from_authority_kp(&self.public, &self.secret.secret_bytes(), validity)?)
    }
}

/// As miners put it into their configuration: base58check (Sv2 4.7).
impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [Self::KEY_VERSION.as_slice(), &self.public].concat();
        f.write_str(&bitcoin::base58::encode_check(&bytes))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("public", &self.to_string())
            .field("secret", &"<redacted>")
            .finish()
    }
}
