//! Everything secret in a trade, derived from the trader's key and the match: a
//! new machine that has the words works it out again.

use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use cdk::nuts::SecretKey;
use cdk::secret::Secret;
use nostr_sdk::{EventId, Keys};

use crate::wallet::Given;
use hashpit_nips::eh06::HtlcLock;

/// Secrets of one trade. Printing them shows nothing.
#[derive(Clone)]
pub(super) struct TradeKeys {
    secret: [u8; 32],
    of: EventId,
}

impl TradeKeys {
    pub(super) fn new(trader: &Keys, of: EventId) -> Self {
        Self { secret: trader.secret_key().to_secret_bytes(), of }
    }

    /// HMAC-SHA256, keyed with the trader's key, of what the value is for.
    fn derive(&self, label: &str, index: u32) -> [u8; 32] {
        let mut engine = HmacEngine::<sha256::Hash>::new(&self.secret);
        engine.input(b"EH-06/");
        engine.input(self.of.as_bytes());
        engine.input(label.as_bytes());
        engine.input(&index.to_be_bytes());
        Hmac::from_engine(engine).to_byte_array()
    }

    /// The key made for this trade (EH-06): seals its messages, claims, takes back.
    pub(super) fn keys(&self) -> Keys {
        let secret = nostr_sdk::SecretKey::from_slice(&self.derive("key", 0));
        Keys::new(secret.expect("one in 2^128 numbers is no key"))
    }

    /// The same, as Cashu's signatures want it.
    pub(super) fn cashu(&self) -> SecretKey {
        key(&self.derive("key", 0))
    }

    /// The buyer's secret.
    pub(super) fn preimage(&self) -> [u8; 32] {
        self.derive("preimage", 0)
    }

    /// The buyer's hash.
    pub(super) fn hash(&self) -> [u8; 32] {
        sha256(&self.preimage())
    }

    /// Nonce of the locked proof with this index.
    pub(super) fn nonce(&self, index: u32) -> [u8; 32] {
        self.derive("nonce", index)
    }

    /// Outputs under a lock.
    pub(super) fn locked(&self, lock: &HtlcLock, amounts: &[u64]) -> Vec<Given> {
        let one = |(index, amount): (u32, &u64)| Given {
            amount: *amount,
            secret: lock.secret(&self.nonce(index)),
            r: key(&self.derive("blinding", index)),
        };
        (0..).zip(amounts).map(one).collect()
    }

    /// Outputs without a lock, for what somebody else may finish; each label's are its
    /// own.
    pub(super) fn plain(&self, label: &str, amounts: &[u64]) -> Vec<Given> {
        let one = |(index, amount): (u32, &u64)| Given {
            amount: *amount,
            secret: Secret::new(hex::encode(self.derive(&format!("{label} nonce"), index))),
            r: key(&self.derive(&format!("{label} blinding"), index)),
        };
        (0..).zip(amounts).map(one).collect()
    }
}

/// What names a text among others, in letters that a store takes.
pub(super) fn short(text: &str) -> String {
    hex::encode(sha256(text.as_bytes()))
}

/// SHA-256, as locks and invoices have it.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    sha256::Hash::hash(bytes).to_byte_array()
}

fn key(bytes: &[u8; 32]) -> SecretKey {
    SecretKey::from_slice(bytes).expect("one in 2^128 numbers is no key")
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh06::lock_key;

    use super::*;

    #[test]
    fn each_trade_and_each_purpose_has_secrets_of_its_own() {
        let (me, of) = (Keys::generate(), EventId::from_byte_array([1; 32]));
        let keys = TradeKeys::new(&me, of);
        let again = TradeKeys::new(&me, of);
        assert_eq!(keys.preimage(), again.preimage());
        assert_eq!(keys.hash(), sha256(&keys.preimage()));
        let others = [
            keys.derive("key", 0),
            keys.nonce(0),
            keys.nonce(1),
            TradeKeys::new(&me, EventId::from_byte_array([2; 32])).preimage(),
            TradeKeys::new(&Keys::generate(), of).preimage(),
        ];
        assert!(!others.contains(&keys.preimage()));
    }

    #[test]
    fn what_is_locked_to_the_trades_key_is_its_to_sign() {
        let keys = TradeKeys::new(&Keys::generate(), EventId::all_zeros());
        let to = lock_key(&keys.keys().public_key());
        assert_eq!(to.x_only_public_key(), keys.cashu().public_key().x_only_public_key());
    }
}
