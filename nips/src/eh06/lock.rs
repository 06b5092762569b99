//! How a leg is locked, and the complete check of a lock.
//!
//! Every byte of a locked secret but its nonce follows from what the two agreed
//! on, so a receiver builds the secrets anew instead of judging what it is shown.

use std::collections::HashSet;

use cashu::nuts::nut12::ProofDleq;
use cashu::secret::Secret;
use cashu::{Amount, KeySet, Proof, PublicKey as CashuKey};
use serde::{Deserialize, Serialize};

/// Proofs in one leg: a message holds them (NIP-44), and so does a swap.
const MAX_PROOFS: usize = 64;

/// The spending condition of a leg (NUT-14): `to` spends with the preimage of
/// `hash`, `refund` after `locktime`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HtlcLock {
    /// SHA-256 of the preimage.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
    /// Who claims.
    pub to: CashuKey,
    /// Who takes back.
    pub refund: CashuKey,
    /// From when, in seconds of the Unix epoch, by the mint's clock.
    pub locktime: u64,
    /// Whether a signature covers the whole swap (NUT-11, `SIG_ALL`).
    pub sig_all: bool,
}

/// A locked proof as it is handed over: what the receiver cannot work out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedProof {
    /// Units, or sats.
    pub amount: u64,
    /// 32 bytes that nobody else knows.
    #[serde(with = "hex::serde")]
    pub nonce: [u8; 32],
    /// The mint's signature.
    #[serde(rename = "C")]
    pub c: CashuKey,
    /// Proof that it is the mint's (NUT-12).
    pub dleq: ProofDleq,
}

/// Why a leg is not what was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LegError {
    /// The keyset's id does not follow from its keys.
    #[error("the keyset's id is not that of its keys")]
    Keyset,
    /// No combination of the keyset's amounts will do.
    #[error("the amount cannot be made of the keyset's amounts, or takes too many proofs")]
    Amount,
    /// Other amounts than those that follow from what is to be received.
    #[error("the proofs are not of the amounts agreed on, net of the mint's fee")]
    Amounts,
    /// Two proofs have one secret, of which only one can be spent.
    #[error("two proofs have the same secret")]
    Twice,
    /// Not signed by the keyset, or not over the agreed lock.
    #[error("a proof is not the mint's signature on a secret with the lock agreed on")]
    Signature,
}

impl HtlcLock {
    /// The secret with a nonce, as it is signed and shown to the mint (NUT-10).
    pub fn secret(&self, nonce: &[u8; 32]) -> Secret {
        let Self { hash, to, refund, locktime, sig_all } = self;
        let (nonce, hash) = (hex::encode(nonce), hex::encode(hash));
        let flag = if *sig_all { "SIG_ALL" } else { "SIG_INPUTS" };
        Secret::new(format!(
            r#"["HTLC",{{"nonce":"{nonce}","data":"{hash}","tags":[["pubkeys","{to}"],["locktime","{locktime}"],["refund","{refund}"],["sigflag","{flag}"]]}}]"#
        ))
    }

    /// The proofs that were handed over, if they are `net` under this lock: every
    /// secret is built anew, and the mint's signature on it is checked.
    pub fn open(
        &self,
        net: u64,
        keyset: &KeySet,
        handed: &[LockedProof],
    ) -> Result<Vec<Proof>, LegError> {
        keyset.verify_id().map_err(|_| LegError::Keyset)?;
        let agreed = amounts(net, keyset)?;
        if !handed.iter().map(|proof| proof.amount).eq(agreed) {
            return Err(LegError::Amounts);
        }
        let nonces: HashSet<_> = handed.iter().map(|proof| proof.nonce).collect();
        if nonces.len() < handed.len() {
            return Err(LegError::Twice);
        }
        handed.iter().map(|proof| self.open_one(keyset, proof)).collect()
    }

    fn open_one(&self, keyset: &KeySet, handed: &LockedProof) -> Result<Proof, LegError> {
        let amount = Amount::from(handed.amount);
        let key = keyset.keys.amount_key(amount).ok_or(LegError::Amounts)?;
        let mut proof = Proof::new(amount, keyset.id, self.secret(&handed.nonce), handed.c);
        proof.dleq = Some(handed.dleq.clone());
        proof.verify_dleq(key).map_err(|_| LegError::Signature)?;
        Ok(proof)
    }
}

impl LockedProof {
    /// A proof of ours with its nonce; `None` without its DLEQ proof.
    pub fn hand_over(proof: &Proof, nonce: [u8; 32]) -> Option<Self> {
        let dleq = proof.dleq.clone()?;
        Some(Self { amount: proof.amount.into(), nonce, c: proof.c, dleq })
    }
}

/// The mint's fee for a swap of so many proofs of a keyset (NUT-02).
pub fn fee(proofs: usize, keyset: &KeySet) -> u64 {
    (proofs as u64).saturating_mul(keyset.input_fee_ppk).div_ceil(1000)
}

/// How many proofs an amount takes, without making them: who chooses a keyset's
/// amounts could ask for billions.
fn coins(amount: u64, keyset: &KeySet) -> u64 {
    let mut denominations: Vec<u64> =
        keyset.keys.iter().map(|(amount, _)| (*amount).into()).filter(|&it| it > 0).collect();
    denominations.sort_unstable_by(|a, b| b.cmp(a));
    let (mut coins, mut left) = (0u64, amount);
    for denomination in denominations {
        coins = coins.saturating_add(left / denomination);
        left %= denomination;
    }
    coins
}

/// The amounts of a lock from which its receiver gets `net` after the mint's fee
/// for claiming it: ascending, and the same for whoever works them out.
pub fn amounts(net: u64, keyset: &KeySet) -> Result<Vec<u64>, LegError> {
    let denominations: Vec<u64> = keyset.keys.iter().map(|(amount, _)| (*amount).into()).collect();
    let denominations = (0, denominations).into();
    let mut gross = net;
    // Each round adds what the last one fell short of; fees are small.
    for _ in 0..MAX_PROOFS {
        if coins(gross, keyset) > MAX_PROOFS as u64 {
            return Err(LegError::Amount);
        }
        let split = Amount::from(gross).split(&denominations).map_err(|_| LegError::Amount)?;
        if split.is_empty() || split.len() > MAX_PROOFS {
            return Err(LegError::Amount);
        }
        let needed = net.checked_add(fee(split.len(), keyset)).ok_or(LegError::Amount)?;
        if gross >= needed {
            let mut amounts: Vec<u64> = split.into_iter().map(u64::from).collect();
            amounts.sort_unstable();
            return Ok(amounts);
        }
        gross = needed;
    }
    Err(LegError::Amount)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cashu::dhke::{blind_message, construct_proofs, sign_message};
    use cashu::nuts::nut02::Id;
    use cashu::{BlindSignature, CurrencyUnit, Keys, SecretKey, SpendingConditions};
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_slice(&[byte; 32]).unwrap()
    }

    fn keyset(input_fee_ppk: u64) -> KeySet {
        let keys = (0..20u8).map(|bit| (Amount::from(1 << bit), key(bit + 1).public_key()));
        let keys = Keys::new(keys.collect::<BTreeMap<_, _>>());
        let unit = CurrencyUnit::Sat;
        let id = Id::v2_from_data(&keys, &unit, input_fee_ppk, None);
        KeySet { id, unit, active: None, keys, input_fee_ppk, final_expiry: None }
    }

    fn lock() -> HtlcLock {
        HtlcLock {
            hash: [7; 32],
            to: key(100).public_key(),
            refund: key(101).public_key(),
            locktime: 2_000_000_000,
            sig_all: true,
        }
    }

    /// What the mint of [`keyset`] makes of a lock.
    fn locked(lock: &HtlcLock, net: u64, keyset: &KeySet) -> Vec<LockedProof> {
        let amounts = amounts(net, keyset).unwrap();
        let one = |(index, amount): (usize, u64)| {
            let nonce = [index as u8; 32];
            let secret = lock.secret(&nonce);
            let (blinded, r) = blind_message(&secret.to_bytes(), None).unwrap();
            let signer = key(amount.trailing_zeros() as u8 + 1);
            let c = sign_message(&signer, &blinded).unwrap();
            let signature = BlindSignature::new(amount.into(), c, keyset.id, &blinded, &signer);
            let made =
                construct_proofs(vec![signature.unwrap()], vec![r], vec![secret], &keyset.keys);
            LockedProof::hand_over(&made.unwrap()[0], nonce).unwrap()
        };
        amounts.into_iter().enumerate().map(one).collect()
    }

    #[test]
    fn a_secret_is_a_condition_that_mints_read() {
        let secret = lock().secret(&[1; 32]);
        let conditions = SpendingConditions::try_from(&secret).unwrap();
        assert_eq!(conditions.locktime(), Some(2_000_000_000));
        assert_eq!(conditions.pubkeys(), Some(vec![lock().to]));
        assert_eq!(conditions.refund_keys(), Some(vec![lock().refund]));
    }

    #[test]
    fn what_was_agreed_opens_and_nothing_else_does() {
        let (keyset, lock) = (keyset(0), lock());
        let good = locked(&lock, 1_000, &keyset);
        assert_eq!(lock.open(1_000, &keyset, &good).unwrap().len(), good.len());
        assert_eq!(lock.open(1_001, &keyset, &good), Err(LegError::Amounts));
        for other in [
            HtlcLock { hash: [8; 32], ..lock.clone() },
            HtlcLock { to: key(102).public_key(), ..lock.clone() },
            HtlcLock { refund: key(102).public_key(), ..lock.clone() },
            HtlcLock { locktime: lock.locktime - 1, ..lock.clone() },
            HtlcLock { sig_all: false, ..lock.clone() },
        ] {
            let handed = locked(&other, 1_000, &keyset);
            assert_eq!(lock.open(1_000, &keyset, &handed), Err(LegError::Signature));
        }
        let mut twice = good.clone();
        twice[1].nonce = twice[0].nonce;
        assert_eq!(lock.open(1_000, &keyset, &twice), Err(LegError::Twice));
        let mut forged = keyset.clone();
        forged.input_fee_ppk = 1;
        assert_eq!(lock.open(1_000, &forged, &good), Err(LegError::Keyset));
        assert_eq!(lock.open(1_000, &keyset, &good[1..]), Err(LegError::Amounts));
    }

    proptest! {
        #[test]
        fn a_receiver_nets_what_was_agreed(net in 1u64..1_000_000, ppk in 0u64..2_000) {
            let keyset = keyset(ppk);
            let amounts = amounts(net, &keyset).unwrap();
            let gross: u64 = amounts.iter().sum();
            prop_assert!(gross - fee(amounts.len(), &keyset) >= net);
            prop_assert!(amounts.is_sorted());
        }
    }
}
