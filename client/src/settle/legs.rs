//! A leg at its mint: check, claim, take back.

use std::time::Duration;

use cdk::nuts::{
    CheckStateRequest, HTLCWitness, KeySet, Proofs, ProofsMethods, SecretKey, State, SwapRequest,
    Witness,
};
use cdk_common::wallet::KeysetLoadPolicy;
use hashpit_nips::eh06::{HtlcLock, LockedProof};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::SettleError;
use super::keys::sha256;
use super::mints::Place;
use super::trade::Trade;
use crate::wallet::{Standing, Swap, SwapError, standing};

/// First and longest pause before a mint is asked again.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is to be locked, where, and under which condition.
#[derive(Clone)]
pub(super) struct LegPlan {
    pub(super) place: Place,
    pub(super) lock: HtlcLock,
    /// What its receiver gets, after the mint's fee for claiming it.
    pub(super) net: u64,
}

/// Where a locked leg stands, by its mint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LegState {
    /// Nobody has spent it, as far as the mint says.
    Unspent,
    /// Something is under way.
    Pending,
    /// Claimed, with this preimage.
    Claimed([u8; 32]),
    /// Spent, as its mint shows, without the preimage: taken back.
    TakenBack,
}

/// Why something at a mint has failed for good.
#[derive(Debug, thiserror::Error)]
pub(super) enum LegFault {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl From<crate::wallet::WalletError> for LegFault {
    fn from(error: crate::wallet::WalletError) -> Self {
        Self::Settle(error.into())
    }
}

/// What came of asking a mint for a swap.
pub(super) enum Asked {
    Done(Proofs),
    /// Not known yet.
    Open,
    /// Not known yet: the mint has answered with what it must not.
    Lied(&'static str),
    /// Other outputs are needed.
    Reused,
    Refused(String),
}

/// Plans of one swap that are made before it is left to the script.
pub(super) const PLANS: usize = 8;
/// Answers with what a mint must not that are borne.
const LIES: usize = 8;
pub(super) const REUSED: &str = "the mint has signed each try's outputs before; does another machine use \
    the same words?";

impl Trade {
    /// Checks the other's leg as it was handed over: everything that follows from
    /// the agreement, and that nobody has spent it yet.
    pub(super) async fn check(
        &self,
        plan: &LegPlan,
        handed: &[LockedProof],
    ) -> Result<Proofs, LegFault> {
        let opened = plan.lock.open(plan.net, &plan.place.keyset, handed);
        let proofs = opened.map_err(|error| LegFault::Refused(error.to_string()))?;
        match self.state(plan, &proofs).await? {
            LegState::Unspent => Ok(proofs),
            _ => Err(LegFault::Refused("it is spent, or being spent".to_owned())),
        }
    }

    /// Where a leg stands; waits for the mint as long as it takes.
    pub(super) async fn state(
        &self,
        plan: &LegPlan,
        proofs: &Proofs,
    ) -> Result<LegState, LegFault> {
        let mut pause = PAUSE.0;
        loop {
            match self.try_state(plan, proofs).await {
                Ok(state) => return Ok(state),
                Err(error) => debug!(%error, "the mint does not say where a leg stands"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Asks the mint once.
    pub(super) async fn try_state(
        &self,
        plan: &LegPlan,
        proofs: &Proofs,
    ) -> Result<LegState, cdk::Error> {
        let (ys, mint) = (proofs.ys()?, plan.place.mint());
        let asked = mint.post_check_state(CheckStateRequest { ys: ys.clone() });
        let told = self.shared.probe.around("ask state", asked).await?.states;
        let told: Vec<_> = told.into_iter().filter(|it| ys.contains(&it.y)).collect();
        if told.len() < ys.len() {
            return Err(cdk::Error::UnexpectedProofState);
        }
        let preimages = told.iter().filter_map(|it| it.witness.as_ref()?.preimage());
        // Whoever takes a leg back writes what he likes there.
        let fits = |text: String| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).ok()?;
            (sha256(&bytes) == plan.lock.hash).then_some(bytes)
        };
        let preimage = preimages.filter_map(fits).next();
        let any = |state| told.iter().any(|it| it.state == state);
        let is_shown = told.iter().any(|it| it.state == State::Spent && it.witness.is_some());
        Ok(match preimage {
            Some(preimage) if any(State::Spent) => LegState::Claimed(preimage),
            _ if is_shown => LegState::TakenBack,
            // Without a witness nobody can tell how it was spent.
            _ if any(State::Spent) || any(State::Pending) => LegState::Pending,
            _ => LegState::Unspent,
        })
    }

    /// Claims a leg with the preimage, into the wallet.
    pub(super) async fn claim(
        &mut self,
        plan: &LegPlan,
        proofs: Proofs,
        preimage: &[u8; 32],
    ) -> Result<(), LegFault> {
        self.spend("claim", plan, proofs, preimage, u64::MAX).await.map(drop)
    }

    /// As [`Trade::claim`], but shows the mint the preimage only before a time;
    /// false once that has passed.
    pub(super) async fn claim_before(
        &mut self,
        until: u64,
        plan: &LegPlan,
        proofs: Proofs,
        preimage: &[u8; 32],
    ) -> Result<bool, LegFault> {
        self.spend("claim", plan, proofs, preimage, until).await
    }

    /// Takes our leg back, once its locktime has passed; false if the mint has not
    /// answered by a time.
    pub(super) async fn take_back(
        &mut self,
        until: u64,
        plan: &LegPlan,
        proofs: Proofs,
    ) -> Result<bool, LegFault> {
        self.spend("refund", plan, proofs, &junk(&plan.lock.hash), until).await
    }

    async fn spend(
        &mut self,
        what: &'static str,
        plan: &LegPlan,
        proofs: Proofs,
        preimage: &[u8; 32],
        until: u64,
    ) -> Result<bool, LegFault> {
        let name = self.record.swap(what);
        let planned = self.plan_spend(&name, plan, &proofs);
        let planned = self.shared.probe.around(&format!("write {what}"), planned).await?;
        let (mut swap, mut place) = planned;
        if swap.is_done() {
            return Ok(true);
        }
        let (mut pause, mut plans) = (PAUSE.0, 1);
        while self.now() < until {
            let mut request = swap.request(&self.shared.wallet)?;
            sign(&mut request, self.keys.cashu(), plan.lock.sig_all, preimage)?;
            match self.ask_once(what, &swap, &request, &place).await? {
                Asked::Done(_) => return Ok(true),
                Asked::Open | Asked::Lied(_) => self.note_withheld(what, plan, &request).await,
                Asked::Reused if plans == PLANS => {
                    return Err(LegFault::Refused(REUSED.to_owned()));
                }
                Asked::Reused => {
                    plans += 1;
                    self.shared.wallet.skip_counters(&swap).await?;
                    self.shared.wallet.forget_swaps(&name).await?;
                    (swap, place) = self.plan_spend(&name, plan, &proofs).await?;
                    continue;
                }
                Asked::Refused(why) => {
                    self.note_withheld(what, plan, &request).await;
                    if !self.plan_anew(&name, plan, &swap, &proofs).await? {
                        return Err(LegFault::Refused(why));
                    }
                    (swap, place) = self.plan_spend(&name, plan, &proofs).await?;
                    continue;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        Ok(false)
    }

    /// A swap of a leg's proofs for the wallet's own, and where it is signed: by the
    /// leg's keyset, or by that of a plan made anew.
    async fn plan_spend(
        &self,
        name: &str,
        plan: &LegPlan,
        proofs: &Proofs,
    ) -> Result<(Swap, Place), LegFault> {
        let (wallet, place) = (&self.shared.wallet, &plan.place);
        let swap = wallet.plan_receipt(name, &place.cdk, &place.keyset, proofs.clone()).await?;
        if swap.is_done() || swap.keyset() == place.keyset.id {
            return Ok((swap, place.clone()));
        }
        let keysets = place.cdk.keysets(KeysetLoadPolicy::CacheThenNetwork).await;
        let keysets = keysets.map_err(|error| LegFault::Refused(error.to_string()))?;
        let signs = keysets.into_iter().find(|keyset| keyset.id == swap.keyset());
        let signs = signs.ok_or_else(|| LegFault::Refused("the mint hides a keyset".to_owned()))?;
        Ok((swap, Place { keyset: signs, ..place.clone() }))
    }

    /// Plans a refused swap anew, if its keyset signs no more: a mint may change it
    /// at any time. False if that is not why it was refused.
    async fn plan_anew(
        &self,
        name: &str,
        plan: &LegPlan,
        refused: &Swap,
        proofs: &Proofs,
    ) -> Result<bool, LegFault> {
        let place = &plan.place;
        let Ok(keysets) = place.cdk.keysets(KeysetLoadPolicy::Refresh).await else {
            return Ok(false);
        };
        let of = |id| keysets.iter().find(|keyset| keyset.id == id);
        let signs_no_more = of(refused.keyset()).is_some_and(|it| it.active == Some(false));
        let active = keysets.iter().find(|it| it.active == Some(true) && it.unit == place.cdk.unit);
        let Some(active) = active.filter(|it| signs_no_more && it.verify_id().is_ok()) else {
            return Ok(false);
        };
        // An earlier request may have been carried out, and its plan is all that finds
        // what was signed.
        let standing = standing(place.mint().as_ref(), proofs).await;
        if !matches!(standing, Ok(Standing::Unspent)) {
            return Ok(false);
        }
        // What a swap costs follows from the keyset of its inputs.
        let input_fee_ppk = place.keyset.input_fee_ppk;
        let costing = KeySet { input_fee_ppk, ..active.clone() };
        let wallet = &self.shared.wallet;
        wallet.forget_swaps(name).await?;
        wallet.plan_receipt(name, &place.cdk, &costing, proofs.clone()).await?;
        Ok(true)
    }

    /// Asks the mint for a swap until it has answered, or a time has passed.
    pub(super) async fn carry_out(
        &self,
        what: &str,
        swap: &Swap,
        request: &SwapRequest,
        place: &Place,
        until: u64,
    ) -> Result<Option<Proofs>, LegFault> {
        match self.ask(what, swap, request, place, until).await? {
            Asked::Done(proofs) => Ok(Some(proofs)),
            Asked::Open | Asked::Lied(_) => Ok(None),
            Asked::Reused => Err(LegFault::Refused(REUSED.to_owned())),
            Asked::Refused(why) => Err(LegFault::Refused(why)),
        }
    }

    /// As [`Trade::carry_out`].
    pub(super) async fn ask(
        &self,
        what: &str,
        swap: &Swap,
        request: &SwapRequest,
        place: &Place,
        until: u64,
    ) -> Result<Asked, LegFault> {
        let (mut pause, mut lies) = (PAUSE.0, 0);
        while self.now() < until {
            match self.ask_once(what, swap, request, place).await? {
                Asked::Open => {}
                Asked::Lied(_) if lies < LIES => lies += 1,
                Asked::Lied(how) => return Ok(Asked::Refused(how.to_owned())),
                asked => return Ok(asked),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        Ok(Asked::Open)
    }

    async fn ask_once(
        &self,
        what: &str,
        swap: &Swap,
        request: &SwapRequest,
        place: &Place,
    ) -> Result<Asked, LegFault> {
        let (wallet, mint) = (&self.shared.wallet, place.mint());
        let probe = &self.shared.probe;
        let asked = wallet.carry_out(swap, request.clone(), mint.as_ref(), &place.keyset, probe);
        match probe.around(&format!("swap {what}"), asked).await {
            Ok(proofs) => return Ok(Asked::Done(proofs)),
            Err(SwapError::Reused) => {
                warn!(what, trade = %self.record.id(), "{}", SwapError::Reused);
                return Ok(Asked::Reused);
            }
            Err(SwapError::Refused(error)) => return Ok(Asked::Refused(error.to_string())),
            Err(SwapError::Unknown(error)) => {
                debug!(%error, what, trade = %self.record.id(), "asking the mint again");
            }
            Err(SwapError::Lie(how)) => {
                warn!(how, what, trade = %self.record.id(), "the mint's signatures were refused");
                return Ok(Asked::Lied(how));
            }
            Err(SwapError::Wallet(error)) => return Err(error.into()),
        }
        Ok(Asked::Open)
    }
}

/// What stands for the preimage where a leg is taken back: every mint tried wants
/// something there. It is never the preimage, even if the buyer has made one of zeros:
/// beside that a mint wants the signature of who claims, and takes no other.
pub(super) fn junk(hash: &[u8; 32]) -> [u8; 32] {
    let zeros = [0; 32];
    if sha256(&zeros) == *hash { [1; 32] } else { zeros }
}

/// Signs for inputs under a lock, and shows the preimage.
pub(super) fn sign(
    request: &mut SwapRequest,
    key: SecretKey,
    sig_all: bool,
    preimage: &[u8; 32],
) -> Result<(), LegFault> {
    let failed = |error: cdk::nuts::nut11::Error| LegFault::Refused(error.to_string());
    let witness = || {
        let preimage = hex::encode(preimage);
        Some(Witness::HTLCWitness(HTLCWitness { preimage, signatures: None }))
    };
    if sig_all {
        if let Some(first) = request.inputs_mut().first_mut() {
            first.witness = witness();
        }
        return request.sign_sig_all(key).map_err(failed);
    }
    for input in request.inputs_mut() {
        input.witness = witness();
        input.sign_p2pk(key.clone()).map_err(failed)?;
    }
    Ok(())
}

pub(super) fn fault(error: SwapError) -> LegFault {
    match error {
        SwapError::Wallet(error) => error.into(),
        other => LegFault::Refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use cdk::nuts::{BlindedMessage, Id, Proof, SpendingConditionVerification};
    use hashpit_nips::eh06::HtlcLock;

    use super::*;

    #[test]
    fn what_is_locked_by_a_hash_of_zeros_can_be_taken_back() {
        let (owner, other) = (SecretKey::generate(), SecretKey::generate());
        let keyset = Id::from_bytes(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        for preimage in [[0; 32], [1; 32], [7; 32]] {
            let hash = sha256(&preimage);
            let (to, refund) = (other.public_key(), owner.public_key());
            let lock = HtlcLock { hash, to, refund, locktime: 1, sig_all: true };
            let input = Proof::new(1.into(), keyset, lock.secret(&[9; 32]), other.public_key());
            let output = BlindedMessage::new(1.into(), keyset, owner.public_key());
            let taken_back = |shown| {
                let mut request = SwapRequest::new(vec![input.clone()], vec![output.clone()]);
                sign(&mut request, owner.clone(), true, &shown).unwrap();
                request.verify_spending_conditions()
            };
            assert!(taken_back(preimage).is_err());
            taken_back(junk(&hash)).unwrap();
        }
    }
}
