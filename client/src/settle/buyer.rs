//! The buyer's script: locks sats, and claims ehash with a preimage of its own.

use cdk::nuts::Proofs;
use hashpit_nips::eh06::{Leg, LockedProof, Message};
use tracing::{debug, warn};

use super::SettleError;
use super::agree::Agreed;
use super::legs::{LegFault, LegPlan, LegState};
use super::locking::Locked;
use super::record::{End, Stage};
use super::trade::Trade;

/// Longest pause before a mint is asked again to give a leg back, in seconds.
pub(super) const AGAIN_SECS: u64 = 30;

/// A trade that another machine of ours began, and had locked nothing in: what was
/// checked before a lock is not known here.
pub(super) fn unlocked() -> End {
    End::Void { why: "another machine had begun it, and locked nothing".to_owned() }
}

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
            match self.next_of_recovered(&sats).await? {
                Some(stage) => self.enter(stage).await?,
                None if self.record.recovered => return Ok(unlocked()),
                None => {
                    if let Err(why) = self.may_lock(self.timing().sats).await {
                        return self.void(why).await;
                    }
                    self.enter(Stage::Locking).await?;
                }
            }
        }
        if self.record.stage == Stage::Locking {
            match self.lock(&sats, self.due(self.timing().sats)).await {
                Ok(Locked::Shown) => self.enter(Stage::Waiting).await?,
                Ok(Locked::Hidden(why)) => self.enter(Stage::Refunding { why }).await?,
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
        self.take_sats_back(&sats, &ehash).await
    }

    /// Whether it is not too late to lock, and nothing has changed.
    pub(super) async fn may_lock(&self, before: u64) -> Result<(), String> {
        if self.record.wish.is_some() {
            return Err("you have canceled it".to_owned());
        }
        if !self.is_epoch_unchanged(self.due(before)).await {
            return Err("the epoch has changed since the match, or nobody tells".to_owned());
        }
        if self.now() >= self.due(before) {
            return Err("it is too late to lock anything".to_owned());
        }
        Ok(())
    }

    /// Where a trade that was found on relays goes on, if another machine of ours has
    /// locked our leg.
    pub(super) async fn next_of_recovered(
        &mut self,
        own: &LegPlan,
    ) -> Result<Option<Stage>, SettleError> {
        if !self.record.recovered {
            return Ok(None);
        }
        match self.find_locked(own).await {
            Ok(None) => Ok(None),
            Ok(Some(Locked::Shown)) => Ok(Some(Stage::Waiting)),
            Ok(Some(Locked::Hidden(why))) => Ok(Some(Stage::Refunding { why })),
            Err(LegFault::Refused(why)) => {
                warn!(why, trade = %self.record.id(), "what was locked is not known");
                Ok(None)
            }
            Err(LegFault::Settle(error)) => Err(error),
        }
    }

    /// Waits for step 3, and checks it.
    pub(super) async fn await_ehash(&mut self, ehash: &LegPlan) -> Result<Stage, SettleError> {
        if !self.record.got.is_empty() {
            // Another machine of ours may have claimed it.
            return Ok(Stage::Claiming);
        }
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

    /// Step 4: shows the preimage, and not later than it is safe. Errors with why the
    /// ehash was not got; whether a mint that does not answer has got the preimage is
    /// looked at again once the sats are back.
    pub(super) async fn claim_ehash(
        &mut self,
        ehash: &LegPlan,
    ) -> Result<Result<(), String>, SettleError> {
        let opened = ehash.lock.open(ehash.net, &ehash.place.keyset, &self.record.got);
        let Ok(proofs) = opened else { return Ok(Err("the ehash does not open".to_owned())) };
        let (timing, preimage) = (self.timing(), self.keys.preimage());
        let until = timing.claim_until(self.terms.at);
        let sats_until = timing.sats_until(self.terms.at);
        loop {
            if self.now() < until {
                match self.claim_before(until, ehash, proofs.clone(), &preimage).await {
                    Ok(true) => return Ok(Ok(())),
                    Ok(false) => {}
                    Err(LegFault::Refused(why)) => debug!(why, "the ehash is not claimed yet"),
                    Err(LegFault::Settle(error)) => return Err(error),
                }
            }
            let is_late = self.now() >= until;
            match self.try_state(ehash, &proofs).await {
                Ok(LegState::Claimed(_)) => return self.fetch_claimed(ehash, proofs).await.map(Ok),
                Ok(LegState::TakenBack) => {
                    return Ok(Err("the seller has taken the ehash back".to_owned()));
                }
                Ok(LegState::Unspent) if is_late => {
                    return Ok(Err("it was too late to claim the ehash safely".to_owned()));
                }
                Err(error) if self.now() > sats_until => {
                    return Ok(Err(format!("the mint of the ehash does not answer: {error}")));
                }
                Ok(LegState::Unspent | LegState::Pending) => {}
                Err(error) => debug!(%error, "the mint does not say where the ehash stands"),
            }
            self.sleep_until(self.now() + 2).await;
        }
    }

    /// The mint has the preimage: only its signatures are missing, unless another
    /// machine of ours has them.
    async fn fetch_claimed(&mut self, ehash: &LegPlan, proofs: Proofs) -> Result<(), SettleError> {
        let preimage = self.keys.preimage();
        let claimed = match self.claim(ehash, proofs, &preimage).await {
            Err(LegFault::Refused(why)) => {
                debug!(why, trade = %self.record.id(), "claimed with other outputs");
                self.find(ehash).await
            }
            claimed => claimed,
        };
        match claimed {
            Ok(()) => Ok(()),
            Err(LegFault::Refused(why)) => {
                warn!(why, trade = %self.record.id(), "the claimed ehash is not in the wallet");
                Ok(())
            }
            Err(LegFault::Settle(error)) => Err(error),
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
        sats: &LegPlan,
        ehash: &LegPlan,
    ) -> Result<End, SettleError> {
        let Stage::Refunding { why } = self.record.stage.clone() else {
            return self.void("it had not begun".to_owned()).await;
        };
        self.sleep_until(sats.lock.locktime + 1).await;
        let proofs = match self.own_proofs(sats).await {
            Ok(proofs) => proofs,
            Err(LegFault::Settle(error)) => return Err(error),
            Err(LegFault::Refused(why)) => return Ok(End::Lost { why }),
        };
        let mut pause = 1;
        loop {
            match self.take_back(self.now() + AGAIN_SECS, sats, proofs.clone()).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(LegFault::Refused(error)) => debug!(error, "the sats are not back yet"),
                Err(LegFault::Settle(error)) => return Err(error),
            }
            match self.try_state(sats, &proofs).await {
                Ok(LegState::Claimed(_)) => {
                    let lost = format!("the seller has claimed the sats; {why}");
                    return self
                        .got_after_all(ehash, End::Completed, End::Lost { why: lost })
                        .await;
                }
                Ok(LegState::TakenBack) => break,
                Ok(LegState::Unspent | LegState::Pending) => {}
                Err(error) => debug!(%error, "the mint does not say where the sats stand"),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(AGAIN_SECS);
        }
        let end = End::Refunded { why };
        // The mint may have carried a claim out whose answer never came.
        let asked = self.shared.wallet.swap(&self.record.swap("claim")).await?;
        if asked.is_some() { self.got_after_all(ehash, end.clone(), end).await } else { Ok(end) }
    }

    /// Brings the ehash in if it was claimed after all, for which its mint has to
    /// answer: `got` then, else `not`.
    pub(super) async fn got_after_all(
        &mut self,
        ehash: &LegPlan,
        got: End,
        not: End,
    ) -> Result<End, SettleError> {
        let opened = ehash.lock.open(ehash.net, &ehash.place.keyset, &self.record.got);
        let Ok(proofs) = opened else { return Ok(not) };
        loop {
            match self.state(ehash, &proofs).await {
                Ok(LegState::Claimed(_)) => {
                    self.fetch_claimed(ehash, proofs).await?;
                    return Ok(got);
                }
                // Nothing can be under way any more, so long after the last claim.
                Ok(LegState::TakenBack | LegState::Unspent) | Err(LegFault::Refused(_)) => {
                    return Ok(not);
                }
                Ok(LegState::Pending) => self.sleep_until(self.now() + 2).await,
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
    }
}
