//! A leg at its mint: lock, check, claim, take back.

use std::time::Duration;

use cdk::nuts::{
    CheckStateRequest, HTLCWitness, KeySet, Proofs, ProofsMethods, SecretKey, State, SwapRequest,
    Witness,
};
use cdk_common::wallet::KeysetLoadPolicy;
use hashpit_nips::eh06::{self, HtlcLock, LockedProof};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::SettleError;
use super::keys::sha256;
use super::mints::Place;
use super::trade::Trade;
use crate::wallet::{Given, Swap, SwapError, WalletError};

/// First and longest pause before a mint is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

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
    /// Spent without the preimage: taken back.
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

const LATE: &str = "it is too late to lock anything";

impl Trade {
    /// Locks our leg; the proofs that were locked before, if it was done.
    ///
    /// Errors where the mint has refused, or has not done it by `until`: then nothing
    /// is locked, and what was reserved is free.
    pub(super) async fn lock(&mut self, plan: &LegPlan, until: u64) -> Result<Proofs, LegFault> {
        if !self.record.locked.is_empty() {
            return self.own_proofs(plan);
        }
        let amounts = eh06::amounts(plan.net, &plan.place.keyset);
        let amounts = amounts.map_err(|error| LegFault::Refused(error.to_string()))?;
        let given = self.keys.locked(&plan.lock, &amounts);
        let (name, operation) = (self.record.swap("lock"), self.record.operation());
        let wallet = self.shared.wallet.clone();
        match self.lock_anew(&name, plan, &given, until).await {
            Ok(mut proofs) => {
                proofs.truncate(amounts.len());
                self.note_locked(proofs, plan).await
            }
            Err(LegFault::Refused(why)) => {
                // Another machine of ours may have locked it, with other change.
                let before = self.locked_before(plan, &given).await?;
                wallet.give_up(&name, operation).await?;
                match before {
                    Some(proofs) => self.note_locked(proofs, plan).await,
                    None => Err(LegFault::Refused(why)),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The leg that another machine of ours has locked, if there was one.
    pub(super) async fn find_locked(&mut self, plan: &LegPlan) -> Result<bool, LegFault> {
        let amounts = eh06::amounts(plan.net, &plan.place.keyset);
        let amounts = amounts.map_err(|error| LegFault::Refused(error.to_string()))?;
        let given = self.keys.locked(&plan.lock, &amounts);
        let Some(proofs) = self.locked_before(plan, &given).await? else { return Ok(false) };
        self.note_locked(proofs, plan).await?;
        Ok(true)
    }

    /// Has the mint lock our leg, of what the wallet holds.
    async fn lock_anew(
        &self,
        name: &str,
        plan: &LegPlan,
        given: &[Given],
        until: u64,
    ) -> Result<Proofs, LegFault> {
        let (wallet, place) = (&self.shared.wallet, &plan.place);
        let till = place.till.lock().await;
        let swap = self.plan_lock(name, plan, given, until).await?;
        let request = swap.request(wallet)?;
        if let Some(proofs) = self.carry_out("lock", &swap, &request, place, until).await? {
            return Ok(proofs);
        }
        drop(till);
        // The last request may have been carried out all the same, or may be yet: what
        // it spends is spent otherwise, and the mint decides which came first.
        let undone = self.undo_lock(plan, &swap).await;
        if self.locked_before(plan, given).await?.is_some() {
            let done = self.carry_out("lock", &swap, &request, place, u64::MAX).await?;
            return Ok(done.unwrap_or_default());
        }
        undone?;
        Err(LegFault::Refused(LATE.to_owned()))
    }

    async fn plan_lock(
        &self,
        name: &str,
        plan: &LegPlan,
        given: &[Given],
        until: u64,
    ) -> Result<Swap, LegFault> {
        let (wallet, place) = (&self.shared.wallet, &plan.place);
        let operation = self.record.operation();
        loop {
            if let Some(planned) = wallet.swap(name).await? {
                return Ok(planned);
            }
            if self.now() >= until {
                return Err(LegFault::Refused(LATE.to_owned()));
            }
            let planned =
                wallet.plan_payment(name, operation, &place.cdk, &place.keyset, given.to_vec());
            match self.shared.probe.around("write lock", planned).await {
                Ok(swap) => return Ok(swap),
                Err(error @ WalletError::Insufficient { .. }) => {
                    return Err(LegFault::Refused(error.to_string()));
                }
                Err(error) if error.is_passing() => debug!(%error, "not locked yet"),
                Err(error) => return Err(error.into()),
            }
            sleep(PAUSE.0).await;
        }
    }

    /// Swaps what a lock was to spend for proofs of the wallet's own. Errors where it
    /// is spent.
    async fn undo_lock(&self, plan: &LegPlan, lock: &Swap) -> Result<(), LegFault> {
        let (name, wallet, place) = (self.record.swap("undo"), &self.shared.wallet, &plan.place);
        let inputs = lock.inputs().clone();
        let planned = wallet.plan_receipt(&name, &place.cdk, &place.keyset, inputs);
        let swap = self.shared.probe.around("write undo", planned).await?;
        if !swap.is_done() {
            let request = swap.request(wallet)?;
            self.carry_out("undo", &swap, &request, place, u64::MAX).await?;
        }
        Ok(())
    }

    /// What the mint has signed of a lock; waits for it as long as it takes.
    async fn locked_before(
        &self,
        plan: &LegPlan,
        given: &[Given],
    ) -> Result<Option<Proofs>, LegFault> {
        let keyset = &plan.place.keyset;
        let outputs: Result<Vec<_>, _> = given.iter().map(|it| it.blind(keyset.id)).collect();
        let (outputs, mint) = (outputs?, plan.place.mint());
        let mut pause = PAUSE.0;
        loop {
            let asked = self.shared.wallet.signed_before(&outputs, mint.as_ref(), keyset);
            match self.shared.probe.around("ask lock", asked).await {
                Ok(found) => return Ok(found),
                Err(SwapError::Unknown(error)) => debug!(%error, "the mint does not answer"),
                Err(error) => return Err(fault(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn note_locked(&mut self, proofs: Proofs, plan: &LegPlan) -> Result<Proofs, LegFault> {
        let handed = (0..)
            .zip(&proofs)
            .map(|(index, proof)| LockedProof::hand_over(proof, self.keys.nonce(index)));
        let unproven = "the mint's signatures have no DLEQ proof, so they cannot be shown";
        let handed: Option<Vec<_>> = handed.collect();
        self.record.locked = handed.ok_or_else(|| LegFault::Refused(unproven.to_owned()))?;
        self.save("locked").await?;
        self.own_proofs(plan)
    }

    /// Our own locked proofs.
    pub(super) fn own_proofs(&self, plan: &LegPlan) -> Result<Proofs, LegFault> {
        let opened = plan.lock.open(plan.net, &plan.place.keyset, &self.record.locked);
        opened.map_err(|error| LegFault::Refused(error.to_string()))
    }

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
        Ok(match preimage {
            Some(preimage) if any(State::Spent) => LegState::Claimed(preimage),
            _ if any(State::Spent) => LegState::TakenBack,
            _ if any(State::Pending) => LegState::Pending,
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
        let mut pause = PAUSE.0;
        while self.now() < until {
            let mut request = swap.request(&self.shared.wallet)?;
            sign(&mut request, self.keys.cashu(), plan.lock.sig_all, preimage)?;
            match self.carry_out_once(what, &swap, &request, &place).await {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => self.note_withheld(what, plan, &request).await,
                Err(LegFault::Refused(why)) => {
                    self.note_withheld(what, plan, &request).await;
                    if !self.plan_anew(&name, plan, &swap, &proofs).await? {
                        return Err(LegFault::Refused(why));
                    }
                    (swap, place) = self.plan_spend(&name, plan, &proofs).await?;
                    continue;
                }
                Err(error) => return Err(error),
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
        let mut pause = PAUSE.0;
        while self.now() < until {
            if let Some(proofs) = self.carry_out_once(what, swap, request, place).await? {
                return Ok(Some(proofs));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        Ok(None)
    }

    /// Asks the mint for a swap; `None` where it has to be asked again.
    async fn carry_out_once(
        &self,
        what: &str,
        swap: &Swap,
        request: &SwapRequest,
        place: &Place,
    ) -> Result<Option<Proofs>, LegFault> {
        let (wallet, mint) = (&self.shared.wallet, place.mint());
        let probe = &self.shared.probe;
        let asked = wallet.carry_out(swap, request.clone(), mint.as_ref(), &place.keyset, probe);
        match probe.around(&format!("swap {what}"), asked).await {
            Ok(proofs) => return Ok(Some(proofs)),
            Err(SwapError::Unknown(error)) => {
                debug!(%error, what, trade = %self.record.id(), "asking the mint again");
            }
            Err(error @ SwapError::Lie(_)) => {
                warn!(%error, what, trade = %self.record.id(), "asking the mint again");
            }
            Err(error) => return Err(fault(error)),
        }
        Ok(None)
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

fn fault(error: SwapError) -> LegFault {
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
