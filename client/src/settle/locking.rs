//! Our own leg at its mint: locked once, or not at all.

use cdk::nuts::Proofs;
use hashpit_nips::eh06::{self, LockedProof};
use tokio::time::sleep;
use tracing::debug;

use super::legs::{Asked, LegFault, LegPlan, PAUSE, PLANS, REUSED, fault};
use super::mints::Place;
use super::trade::Trade;
use crate::wallet::{Given, Standing, Swap, SwapError, WalletError, standing};

const LATE: &str = "it is too late to lock anything";

/// What has become of locking our leg.
pub(super) enum Locked {
    /// Its proofs can be handed over.
    Shown,
    /// The mint has locked it and signed nothing that can be shown, for this reason:
    /// all that is left is to take it back.
    Hidden(String),
}

impl Trade {
    /// Locks our leg, unless that was done.
    ///
    /// Errors where the mint has refused, or has not done it by `until`: then nothing
    /// is locked, and what was reserved is free.
    pub(super) async fn lock(&mut self, plan: &LegPlan, until: u64) -> Result<Locked, LegFault> {
        if !self.record.locked.is_empty() {
            return Ok(Locked::Shown);
        }
        let given = self.given(plan)?;
        let mut refused = REUSED.to_owned();
        for _ in 0..PLANS {
            let (swap, asked) = match self.lock_anew(plan, &given, until).await {
                Ok(asked) => asked,
                Err(LegFault::Refused(why)) => {
                    // Nothing of this machine's; another of ours may have locked it.
                    refused = why;
                    break;
                }
                Err(error) => return Err(error),
            };
            let is_reused = matches!(asked, Asked::Reused);
            let is_open = match asked {
                Asked::Done(mut proofs) => {
                    proofs.truncate(given.len());
                    return self.note_locked(&proofs).await;
                }
                Asked::Reused => false,
                Asked::Refused(why) => {
                    refused = why;
                    self.standing(plan, &swap).await != Standing::Unspent
                }
                Asked::Open | Asked::Lied(_) => {
                    refused = LATE.to_owned();
                    true
                }
            };
            if let Some(locked) = self.end_lock(plan, &given, &swap, is_open).await? {
                return Ok(locked);
            }
            if !is_reused {
                return Err(LegFault::Refused(refused));
            }
            self.shared.wallet.skip_counters(&swap).await?;
        }
        let found = self.find_locked(plan).await?;
        // A stop may have come between what is reserved and its plan.
        let (name, operation) = (self.record.swap("lock"), self.record.operation());
        self.shared.wallet.give_up(&name, operation).await?;
        found.ok_or(LegFault::Refused(refused))
    }

    fn given(&self, plan: &LegPlan) -> Result<Vec<Given>, LegFault> {
        let amounts = eh06::amounts(plan.net, &plan.place.keyset);
        let amounts = amounts.map_err(|error| LegFault::Refused(error.to_string()))?;
        Ok(self.keys.locked(&plan.lock, &amounts))
    }

    /// The leg that another machine of ours has locked, if there was one.
    pub(super) async fn find_locked(&mut self, plan: &LegPlan) -> Result<Option<Locked>, LegFault> {
        match self.locked_before(plan, &self.given(plan)?).await? {
            Ok(None) => Ok(None),
            Ok(Some(proofs)) => self.note_locked(&proofs).await.map(Some),
            Err(why) => Ok(Some(Locked::Hidden(why))),
        }
    }

    /// Has the mint lock our leg, of what the wallet holds. Errors where nothing was
    /// planned.
    async fn lock_anew(
        &self,
        plan: &LegPlan,
        given: &[Given],
        until: u64,
    ) -> Result<(Swap, Asked), LegFault> {
        let (name, place) = (self.record.swap("lock"), &plan.place);
        let _till = place.till.lock().await;
        let swap = self.plan_lock(&name, plan, given, until).await?;
        let request = swap.request(&self.shared.wallet)?;
        let asked = self.ask("lock", &swap, &request, place, until).await?;
        Ok((swap, asked))
    }

    /// Ends a lock that has not come about, and gives free what it reserved; what was
    /// locked, if it has come about all the same, or by another machine of ours.
    /// `is_open` where the mint may have carried it out, or may yet.
    async fn end_lock(
        &mut self,
        plan: &LegPlan,
        given: &[Given],
        lock: &Swap,
        is_open: bool,
    ) -> Result<Option<Locked>, LegFault> {
        let (wallet, place) = (self.shared.wallet.clone(), &plan.place);
        if is_open {
            // What it spends is spent otherwise: the mint decides which came first.
            match self.undo_lock(plan, lock).await {
                Ok(()) => {}
                Err(LegFault::Refused(why)) => debug!(why, "a lock is not undone"),
                Err(error) => return Err(error),
            }
        }
        let found = self.locked_before(plan, given).await?;
        if is_open && !matches!(found, Ok(None)) {
            // With its change, if it is this lock that has come about.
            let request = lock.request(&wallet)?;
            let asked = self.ask("lock", lock, &request, place, u64::MAX).await?;
            if let Asked::Done(mut proofs) = asked {
                proofs.truncate(given.len());
                return self.note_locked(&proofs).await.map(Some);
            }
        }
        self.forget_spent(plan, lock).await?;
        wallet.forget_swaps(&self.record.swap("undo")).await?;
        wallet.give_up(&self.record.swap("lock"), self.record.operation()).await?;
        match found {
            Ok(None) => Ok(None),
            Ok(Some(proofs)) => self.note_locked(&proofs).await.map(Some),
            Err(why) => Ok(Some(Locked::Hidden(why))),
        }
    }

    /// Where a swap's inputs stand; waits for the mint as long as it takes.
    async fn standing(&self, plan: &LegPlan, swap: &Swap) -> Standing {
        let (mint, mut pause) = (plan.place.mint(), PAUSE.0);
        loop {
            let asked = standing(mint.as_ref(), swap.inputs());
            match self.shared.probe.around("ask inputs", asked).await {
                Ok(standing) => return standing,
                Err(error) => debug!(%error, "the mint does not say where its proofs stand"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn forget_spent(&self, plan: &LegPlan, swap: &Swap) -> Result<(), LegFault> {
        let (mint, mut pause) = (plan.place.mint(), PAUSE.0);
        loop {
            match self.shared.wallet.forget_spent(swap, mint.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(SwapError::Unknown(error)) => debug!(%error, "the mint does not answer"),
                Err(error) => return Err(fault(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
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
        for _ in 0..PLANS {
            let inputs = lock.inputs().clone();
            // What a swap costs follows from the keysets of its inputs.
            let fee = self.fee_of(place, &inputs).await;
            let planned = wallet.plan_receipt_for(&name, &place.cdk, &place.keyset, inputs, fee);
            let swap = self.shared.probe.around("write undo", planned).await?;
            if swap.is_done() {
                return Ok(());
            }
            let request = swap.request(wallet)?;
            match self.ask("undo", &swap, &request, place, u64::MAX).await? {
                Asked::Done(_) | Asked::Open | Asked::Lied(_) => return Ok(()),
                Asked::Refused(why) => return Err(LegFault::Refused(why)),
                Asked::Reused => {
                    wallet.skip_counters(&swap).await?;
                    wallet.forget_swaps(&name).await?;
                }
            }
        }
        Err(LegFault::Refused(REUSED.to_owned()))
    }

    async fn fee_of(&self, place: &Place, inputs: &Proofs) -> u64 {
        let mut pause = PAUSE.0;
        loop {
            match place.cdk.get_proofs_fee(inputs).await {
                Ok(fee) => return fee.total.into(),
                Err(error) => debug!(%error, "what a swap costs is not known yet"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// What the mint has signed of a lock, or why that cannot be shown; waits for it as
    /// long as it takes.
    async fn locked_before(
        &self,
        plan: &LegPlan,
        given: &[Given],
    ) -> Result<Result<Option<Proofs>, String>, LegFault> {
        let keyset = &plan.place.keyset;
        let outputs: Result<Vec<_>, _> = given.iter().map(|it| it.blind(keyset.id)).collect();
        let (outputs, mint) = (outputs?, plan.place.mint());
        let mut pause = PAUSE.0;
        loop {
            let asked = self.shared.wallet.signed_before(&outputs, mint.as_ref(), keyset);
            match self.shared.probe.around("ask lock", asked).await {
                Ok(found) => return Ok(Ok(found)),
                Err(SwapError::Unknown(error)) => debug!(%error, "the mint does not answer"),
                Err(error @ SwapError::Lie(_)) => return Ok(Err(error.to_string())),
                Err(error) => return Err(fault(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn note_locked(&mut self, proofs: &Proofs) -> Result<Locked, LegFault> {
        let handed = (0..)
            .zip(proofs)
            .map(|(index, proof)| LockedProof::hand_over(proof, self.keys.nonce(index)));
        let handed: Option<Vec<_>> = handed.collect();
        let Some(handed) = handed else {
            let unproven = "the mint's signatures have no DLEQ proof, so they cannot be shown";
            return Ok(Locked::Hidden(unproven.to_owned()));
        };
        self.record.locked = handed;
        self.save("locked").await?;
        Ok(Locked::Shown)
    }

    /// Our own locked proofs: as they were handed over, else as the mint has signed
    /// them.
    pub(super) async fn own_proofs(&self, plan: &LegPlan) -> Result<Proofs, LegFault> {
        if self.record.locked.is_empty() {
            return self.own_unproven(plan).await;
        }
        let opened = plan.lock.open(plan.net, &plan.place.keyset, &self.record.locked);
        opened.map_err(|error| LegFault::Refused(error.to_string()))
    }

    async fn own_unproven(&self, plan: &LegPlan) -> Result<Proofs, LegFault> {
        let keyset = &plan.place.keyset;
        let given = self.given(plan)?;
        let outputs: Result<Vec<_>, _> = given.iter().map(|it| it.blind(keyset.id)).collect();
        let (outputs, mint) = (outputs?, plan.place.mint());
        let mut pause = PAUSE.0;
        loop {
            let asked = self.shared.wallet.signed_unproven(&outputs, mint.as_ref(), keyset);
            match self.shared.probe.around("ask lock", asked).await {
                Ok(Some(proofs)) => return Ok(proofs),
                Ok(None) => return Err(LegFault::Refused("the mint has no such lock".to_owned())),
                Err(SwapError::Unknown(error)) => debug!(%error, "the mint does not answer"),
                Err(error) => return Err(fault(error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
