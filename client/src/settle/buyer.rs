//! The buyer's script: locks sats, and claims ehash with a preimage of its own.

use cdk::nuts::Proofs;
use hashpit_nips::eh06::{Leg, LockedProof, Message};
use tracing::{debug, warn};

use super::SettleError;
use super::agree::Agreed;
use super::legs::{LegFault, LegPlan, LegState};
use super::record::{End, Stage};
use super::trade::Trade;

/// Longest pause before a mint is asked again to give a leg back, in seconds.
pub(super) const AGAIN_SECS: u64 = 30;

impl Trade {
    pub(super) async fn buy(&mut self) -> Result<End, SettleError> {
        let agreed = match self.agree().await? {
            Ok(agreed) => agreed,
            Err(why) => return self.void(why).await,
        };
        let Agreed { ehash, sats: Some(sats) } = agreed else {
            return self.buy_by_lightning(&agreed.ehash).await;
        };
        if self.record.stage == Stage::Agreeing {
            if let Err(why) = self.may_lock(self.timing().sats).await {
                return self.void(why).await;
            }
            self.enter(Stage::Locking).await?;
        }
        if self.record.stage == Stage::Locking {
            match self.lock(&sats, self.due(self.timing().sats)).await {
                Ok(_) => self.enter(Stage::Waiting).await?,
                Err(LegFault::Refused(why)) => return self.void(why).await,
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
        if self.record.stage == Stage::Waiting {
            let proofs = self.record.locked.clone();
            self.send(Message::Locked { leg: Leg::Sats, proofs });
            self.report(2).await?;
            let next = self.await_ehash(&ehash).await?;
            self.enter(next).await?;
        }
        if self.record.stage == Stage::Claiming {
            match self.claim_ehash(&ehash).await? {
                Ok(()) => return self.bought().await,
                Err(why) => self.enter(Stage::Refunding { why }).await?,
            }
        }
        self.take_sats_back(&ehash, &sats).await
    }

    /// Whether it is not too late to lock, and nothing has changed.
    pub(super) async fn may_lock(&self, before: u64) -> Result<(), String> {
        if self.record.wish.is_some() {
            return Err("you have canceled it".to_owned());
        }
        if !self.is_epoch_unchanged(self.due(before)).await {
            return Err("the epoch has changed since the match, or nobody tells".to_owned());
        }
        // A record of another machine may have been locked on in time.
        if !self.record.recovered && self.now() >= self.due(before) {
            return Err("it is too late to lock anything".to_owned());
        }
        Ok(())
    }

    /// Waits for step 3, and checks it.
    pub(super) async fn await_ehash(&mut self, ehash: &LegPlan) -> Result<Stage, SettleError> {
        let until = self.timing().claim_until(self.terms.at);
        let Some(handed) = self.their_lock(Leg::Ehash, until).await else {
            let why = self.unheard("the seller has not locked the ehash in time");
            return Ok(Stage::Refunding { why });
        };
        match self.check(ehash, &handed).await {
            Ok(_) => {
                self.record.got = handed;
                self.save("got").await?;
                Ok(Stage::Claiming)
            }
            Err(LegFault::Refused(why)) => {
                warn!(why, trade = %self.record.id(), "the ehash is not locked as agreed");
                Ok(Stage::Refunding { why: format!("the ehash is not locked as agreed: {why}") })
            }
            Err(LegFault::Settle(error)) => Err(error),
        }
    }

    /// What the other trader says it has locked.
    pub(super) async fn their_lock(&mut self, wanted: Leg, until: u64) -> Option<Vec<LockedProof>> {
        let from = self.their_key()?;
        let answer = self.wait(until, |it| match &it.message {
            Message::Locked { leg, proofs } if it.from == from && *leg == wanted => {
                Some(Some(proofs.clone()))
            }
            Message::Abort { .. } if it.from == from => Some(None),
            _ => None,
        });
        answer.await.flatten()
    }

    /// Step 4: shows the preimage, and not later than it is safe.
    pub(super) async fn claim_ehash(
        &mut self,
        ehash: &LegPlan,
    ) -> Result<Result<(), String>, SettleError> {
        let opened = ehash.lock.open(ehash.net, &ehash.place.keyset, &self.record.got);
        let Ok(proofs) = opened else { return Ok(Err("the ehash does not open".to_owned())) };
        let until = self.timing().claim_until(self.terms.at);
        loop {
            if self.now() >= until {
                return self.claimed_before(ehash, proofs).await;
            }
            let preimage = self.keys.preimage();
            match self.claim_before(until, ehash, proofs.clone(), &preimage).await {
                Ok(true) => return Ok(Ok(())),
                Ok(false) => {}
                Err(LegFault::Refused(why)) => {
                    return match self.state(ehash, &proofs).await {
                        Ok(LegState::Claimed(_)) => Ok(Ok(())),
                        _ => Ok(Err(format!("the mint has refused the claim: {why}"))),
                    };
                }
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
    }

    /// It is too late to show the preimage; whether the mint has carried out a claim
    /// that was sent before.
    async fn claimed_before(
        &mut self,
        ehash: &LegPlan,
        proofs: Proofs,
    ) -> Result<Result<(), String>, SettleError> {
        loop {
            match self.state(ehash, &proofs).await {
                Ok(LegState::Claimed(preimage)) => {
                    // Only the mint's signatures are missing; everybody knows it now.
                    match self.claim(ehash, proofs, &preimage).await {
                        Ok(()) | Err(LegFault::Refused(_)) => return Ok(Ok(())),
                        Err(LegFault::Settle(error)) => return Err(error),
                    }
                }
                Ok(LegState::Pending) => self.sleep_until(self.now() + 1).await,
                Ok(LegState::Unspent | LegState::TakenBack) => {
                    return Ok(Err("it was too late to claim the ehash safely".to_owned()));
                }
                Err(LegFault::Refused(why)) => return Ok(Err(why)),
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
    }

    pub(super) async fn bought(&mut self) -> Result<End, SettleError> {
        let preimage = self.keys.preimage();
        self.send(Message::Claimed { preimage });
        self.report(4).await?;
        self.report(6).await?;
        Ok(End::Completed)
    }

    /// Takes the sats back once their locktime has passed, however long that takes.
    async fn take_sats_back(
        &mut self,
        ehash: &LegPlan,
        sats: &LegPlan,
    ) -> Result<End, SettleError> {
        let Stage::Refunding { why } = self.record.stage.clone() else {
            return self.void("it had not begun".to_owned()).await;
        };
        self.sleep_until(sats.lock.locktime + 1).await;
        let proofs = match self.own_proofs(sats) {
            Ok(proofs) => proofs,
            Err(LegFault::Settle(error)) => return Err(error),
            Err(LegFault::Refused(why)) => return Ok(End::Lost { why }),
        };
        let mut pause = 1;
        loop {
            match self.take_back(sats, proofs.clone()).await {
                Ok(()) => return Ok(End::Refunded { why }),
                Err(LegFault::Refused(error)) => debug!(error, "the sats are not back yet"),
                Err(LegFault::Settle(error)) => return Err(error),
            }
            match self.state(sats, &proofs).await {
                Ok(LegState::Claimed(preimage)) => {
                    return self.claimed_late(ehash, preimage, why).await;
                }
                Ok(LegState::TakenBack) => return Ok(End::Refunded { why }),
                Ok(LegState::Unspent | LegState::Pending) | Err(LegFault::Refused(_)) => {}
                Err(LegFault::Settle(error)) => return Err(error),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(AGAIN_SECS);
        }
    }

    /// The sats are the seller's, so the preimage is known: a claim of ours must
    /// have reached the mint late, and its signatures can be had.
    async fn claimed_late(
        &mut self,
        ehash: &LegPlan,
        preimage: [u8; 32],
        why: String,
    ) -> Result<End, SettleError> {
        let opened = ehash.lock.open(ehash.net, &ehash.place.keyset, &self.record.got);
        if let Ok(proofs) = opened
            && matches!(self.state(ehash, &proofs).await, Ok(LegState::Claimed(_)))
        {
            match self.claim(ehash, proofs, &preimage).await {
                Ok(()) => return self.bought().await,
                Err(LegFault::Refused(error)) => warn!(error, "the ehash cannot be had"),
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
        Ok(End::Lost { why: format!("the seller has claimed the sats; {why}") })
    }
}
