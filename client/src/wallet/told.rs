//! What a mint tells of a swap afterwards: where its inputs stand (NUT-07), and what
//! was signed of its outputs (NUT-09).

use std::collections::{HashMap, HashSet};

use cdk::dhke::construct_proofs;
use cdk::nuts::{
    BlindSignature, BlindedMessage, CheckStateRequest, KeySet, PreMint, Proofs, ProofsMethods,
    PublicKey as CashuKey, RestoreRequest, State,
};
use cdk::wallet::MintConnector;

use super::swaps::SwapError;

/// Where proofs stand together, by their mint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All of them.
    Unspent,
    /// All of them.
    Spent,
    /// Something is under way, or some are spent and others are not.
    Mixed,
}

/// Asks a mint where proofs stand (NUT-07).
pub(crate) async fn standing(
    mint: &(dyn MintConnector + Send + Sync),
    proofs: &Proofs,
) -> Result<Standing, cdk::Error> {
    let states = states(mint, proofs).await?;
    let all = |state| states.values().all(|it| *it == state);
    Ok(match () {
        () if all(State::Unspent) => Standing::Unspent,
        () if all(State::Spent) => Standing::Spent,
        () => Standing::Mixed,
    })
}

/// Those of proofs that are spent.
pub(super) async fn spent(
    mint: &(dyn MintConnector + Send + Sync),
    proofs: &Proofs,
) -> Result<HashSet<CashuKey>, cdk::Error> {
    let states = states(mint, proofs).await?.into_iter();
    Ok(states.filter(|(_, state)| *state == State::Spent).map(|(y, _)| y).collect())
}

async fn states(
    mint: &(dyn MintConnector + Send + Sync),
    proofs: &Proofs,
) -> Result<HashMap<CashuKey, State>, cdk::Error> {
    let ys = proofs.ys()?;
    let told = mint.post_check_state(CheckStateRequest { ys: ys.clone() }).await?.states;
    let told: HashMap<_, _> = told.into_iter().map(|it| (it.y, it.state)).collect();
    let of = |y| told.get(&y).map(|state| (y, *state)).ok_or(cdk::Error::UnexpectedProofState);
    ys.into_iter().map(of).collect()
}

/// What a mint has signed of some outputs.
pub(super) enum Signed {
    Nothing,
    Some,
    All(Vec<BlindSignature>),
}

/// The mint's signatures on these outputs (NUT-09).
pub(super) async fn signed(
    mint: &(dyn MintConnector + Send + Sync),
    outputs: &[PreMint],
) -> Result<Signed, cdk::Error> {
    let asked: Vec<BlindedMessage> =
        outputs.iter().map(|output| output.blinded_message.clone()).collect();
    let told = mint.post_restore(RestoreRequest { outputs: asked.clone() }).await?;
    let pairs: Vec<_> = told.outputs.iter().zip(&told.signatures).collect();
    let find = |wanted: &BlindedMessage| {
        let found = pairs.iter().find(|(output, _)| output.blinded_secret == wanted.blinded_secret);
        found.map(|(_, signature)| (*signature).clone())
    };
    let found: Vec<BlindSignature> = asked.iter().filter_map(find).collect();
    Ok(match found.len() {
        0 => Signed::Nothing,
        some if some < asked.len() => Signed::Some,
        _ => Signed::All(found),
    })
}

/// Proofs of signatures that are what was asked for: amounts, keyset, DLEQ.
pub(super) fn unblind(
    outputs: &[PreMint],
    signatures: Vec<BlindSignature>,
    keyset: &KeySet,
) -> Result<Proofs, SwapError> {
    if signatures.len() != outputs.len() {
        return Err(SwapError::Lie("other signatures than were asked for"));
    }
    for (signature, output) in signatures.iter().zip(outputs) {
        if signature.amount != output.amount || signature.keyset_id != keyset.id {
            return Err(SwapError::Lie("of another amount or keyset"));
        }
        let key = keyset.keys.amount_key(signature.amount);
        let key = key.ok_or(SwapError::Lie("for an amount without a key"))?;
        // Some mints leave the proof out of what they restore.
        if signature.dleq.is_some() {
            let proven = signature.verify_dleq(key, output.blinded_message.blinded_secret);
            proven.map_err(|_| SwapError::Lie("with a false DLEQ proof"))?;
        }
    }
    let (rs, secrets) =
        outputs.iter().map(|output| (output.r.clone(), output.secret.clone())).unzip();
    construct_proofs(signatures, rs, secrets, &keyset.keys)
        .map_err(|_| SwapError::Lie("that do not unblind"))
}
