//! What a watchtower looks at before it watches: whoever has it watch something has
//! sats locked for himself.

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::schnorr::Signature;
use cdk::nuts::{
    Conditions, Proofs, ProofsMethods, PublicKey as CashuKey, SigFlag,
    SpendingConditionVerification, SpendingConditions, SwapRequest,
};
use hashpit_nips::eh06::Watch;

/// Proofs of a leg, as EH-06 has it.
const MAX_PROOFS: usize = 64;

/// Why something is not watched, as far as it shows by itself: locks, their times, and
/// the signatures of who may spend them.
pub(super) fn vet(watch: &Watch) -> Result<(), &'static str> {
    let swaps = std::iter::once(&watch.claim).chain(&watch.refund);
    let counts = swaps.flat_map(|swap| [swap.inputs().len(), swap.outputs().len()]);
    if counts.chain([watch.ehash.len()]).any(|count| !(1..=MAX_PROOFS).contains(&count)) {
        return Err("it has too many proofs, or none");
    }
    let sats = lock(watch.claim.inputs(), &watch.hash, watch.sats_until);
    let sats = sats.ok_or("its sats are not locked as it says")?;
    if !is_signed(&watch.claim, sats.pubkeys.as_deref()) {
        return Err("its claim is not signed by who may claim");
    }
    let Some(refund) = &watch.refund else { return Ok(()) };
    let ehash = lock(refund.inputs(), &watch.hash, watch.ehash_until);
    let ehash = ehash.ok_or("its ehash is not locked as it says")?;
    if refund.inputs().ys().ok().as_ref() != Some(&watch.ehash) {
        return Err("its refund is of other ehash");
    }
    if !is_signed(refund, ehash.refund_keys.as_deref()) {
        return Err("its refund is not signed by who may take it back");
    }
    Ok(())
}

/// The one lock of these proofs, if it is by this hash, under `SIG_ALL`, until then.
fn lock(inputs: &Proofs, hash: &[u8; 32], until: u64) -> Option<Conditions> {
    let mut found = None;
    for proof in inputs {
        let SpendingConditions::HTLCConditions { data, conditions: Some(lock) } =
            SpendingConditions::try_from(&proof.secret).ok()?
        else {
            return None;
        };
        let fits = data.to_byte_array() == *hash
            && lock.locktime == Some(until)
            && lock.sig_flag == SigFlag::SigAll;
        if !fits || found.as_ref().is_some_and(|it| *it != lock) {
            return None;
        }
        found = Some(lock);
    }
    found
}

/// Whether the one key there is has signed for all inputs and outputs (NUT-11).
fn is_signed(swap: &SwapRequest, keys: Option<&[CashuKey]>) -> bool {
    let Some([key]) = keys else { return false };
    let witness = swap.inputs().first().and_then(|first| first.witness.as_ref());
    let signatures = witness.and_then(|witness| witness.signatures()).unwrap_or_default();
    let message = swap.sig_all_msg_to_sign();
    let sound = |text: &String| {
        let signature: Result<Signature, _> = text.parse();
        signature.is_ok_and(|it| key.verify(message.as_bytes(), &it).is_ok())
    };
    signatures.iter().any(sound)
}
