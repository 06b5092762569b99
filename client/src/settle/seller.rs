//! The seller's script: locks ehash once the sats are locked for it, and claims
//! them with the preimage that the buyer has shown.

use cdk::nuts::Proofs;
use hashpit_nips::eh06::{Leg, Message};
use tracing::{debug, warn};

use super::SettleError;
use super::agree::Agreed;
use super::buyer::{AGAIN_SECS, unlocked};
use super::keys::sha256;
use super::legs::{LegFault, LegPlan, LegState};
use super::locking::Locked;
use super::record::{End, Stage};
use super::trade::Trade;

/// First and longest pause between two questions to the mint, in seconds: the
/// buyer tells mostly, and the mint's word counts.
const ASK: (u64, u64) = (1, 5);

impl Trade {
    pub(super) async fn sell(&mut self) -> Result<End, SettleError> {
        let agreed = match self.agree().await? {
            Ok(agreed) => agreed,
            Err(why) => return self.void(why).await,
        };
        let end = self.sell_for(&agreed).await?;
        let is_sold = self.record.preimage.is_some();
        if agreed.sats.is_none() && !is_sold && end != End::Completed {
            self.cancel_invoice(&agreed.ehash).await;
        }
        Ok(end)
    }

    async fn sell_for(&mut self, Agreed { ehash, sats }: &Agreed) -> Result<End, SettleError> {
        if self.record.stage == Stage::Agreeing {
            match self.next_of_recovered(ehash).await? {
                Some(stage) => self.enter(stage).await?,
                None if self.record.recovered => return Ok(unlocked()),
                None => {
                    let paid = match sats {
                        Some(sats) => self.await_sats(sats).await?,
                        None => self.await_payment(ehash).await?,
                    };
                    if let Err(why) = paid {
                        return self.void(why).await;
                    }
                    self.enter(Stage::Locking).await?;
                }
            }
        }
        if self.record.stage == Stage::Locking {
            match self.lock(ehash, self.due(self.timing().ehash)).await {
                Ok(Locked::Shown) => self.enter(Stage::Waiting).await?,
                Ok(Locked::Hidden(why)) => self.enter(Stage::Refunding { why }).await?,
                Err(LegFault::Refused(why)) => return self.void(why).await,
                Err(LegFault::Settle(error)) => return Err(error),
            }
        }
        if self.record.stage == Stage::Waiting {
            match self.await_preimage(ehash, sats.as_ref()).await? {
                Ok(preimage) => self.record.preimage = Some(preimage),
                Err(end) => return Ok(end),
            }
            self.enter(Stage::Claiming).await?;
        }
        if let Stage::Refunding { why } = self.record.stage.clone() {
            // Nobody was shown what is locked.
            return self.take_hidden_back(ehash, why).await;
        }
        match sats {
            Some(sats) => self.claim_sats(sats).await,
            None => self.settle_invoice(ehash).await,
        }
    }

    /// Waits for step 2, checks it, and whether the ehash may be locked.
    async fn await_sats(&mut self, sats: &LegPlan) -> Result<Result<(), String>, SettleError> {
        let until = self.due(self.timing().ehash);
        let handed = match self.record.got.clone() {
            got if !got.is_empty() => got,
            _ => match self.their_lock(Leg::Sats, until).await {
                Some(handed) => handed,
                None => return Ok(Err(self.unheard("the buyer has not locked the sats in time"))),
            },
        };
        match self.check(sats, &handed).await {
            Ok(_) => {}
            Err(LegFault::Refused(why)) => {
                warn!(why, trade = %self.record.id(), "the sats are not locked as agreed");
                return Ok(Err(format!("the sats are not locked as agreed: {why}")));
            }
            Err(LegFault::Settle(error)) => return Err(error),
        }
        if self.record.got.is_empty() {
            // The buyer may have its message deleted; another machine of ours needs it.
            let copy = Message::Locked { leg: Leg::Sats, proofs: handed.clone() };
            if !self.keep(&copy, until).await {
                return Ok(Err("no relay has stored a copy of the buyer's lock".to_owned()));
            }
            self.record.got = handed;
            self.save("got").await?;
        }
        Ok(self.may_lock(self.timing().ehash).await)
    }

    /// Step 3 is done: tells so, and waits until the buyer has claimed the ehash, or
    /// until it can be taken back.
    async fn await_preimage(
        &mut self,
        ehash: &LegPlan,
        sats: Option<&LegPlan>,
    ) -> Result<Result<[u8; 32], End>, SettleError> {
        let proofs = match self.own_proofs(ehash).await {
            Ok(proofs) => proofs,
            Err(LegFault::Refused(why)) => return Ok(Err(End::Lost { why })),
            Err(LegFault::Settle(error)) => return Err(error),
        };
        // An honest buyer does nothing with it after that, and another races our refund.
        if self.now() < self.timing().claim_until(self.terms.at) {
            let handed = self.record.locked.clone();
            self.have_watched(ehash, &proofs, sats).await?;
            self.send(Message::Locked { leg: Leg::Ehash, proofs: handed });
            self.report(3).await?;
        }
        let mut pause = ASK.0;
        while self.now() <= ehash.lock.locktime {
            let until = (self.now() + pause).min(ehash.lock.locktime + 1);
            if let Some(preimage) = self.told_preimage(ehash, until).await {
                return Ok(Ok(preimage));
            }
            pause = (pause * 2).min(ASK.1);
            match self.try_state(ehash, &proofs).await {
                Ok(LegState::Claimed(preimage)) => return Ok(Ok(preimage)),
                // Nobody can take it back yet, whatever the mint says.
                Ok(_) => {}
                Err(error) => debug!(%error, "the mint does not answer"),
            }
        }
        self.take_ehash_back(ehash, &proofs).await
    }

    /// Takes back ehash that could not be handed over.
    async fn take_hidden_back(&mut self, ehash: &LegPlan, why: String) -> Result<End, SettleError> {
        self.sleep_until(ehash.lock.locktime + 1).await;
        let proofs = match self.own_proofs(ehash).await {
            Ok(proofs) => proofs,
            Err(LegFault::Refused(why)) => return Ok(End::Lost { why }),
            Err(LegFault::Settle(error)) => return Err(error),
        };
        match self.take_ehash_back(ehash, &proofs).await? {
            Err(End::Refunded { .. }) => Ok(End::Refunded { why }),
            Err(end) => Ok(end),
            Ok(_) => Ok(End::Lost { why: "somebody has claimed the ehash".to_owned() }),
        }
    }

    /// Takes the ehash back, or learns that it was claimed: from its mint, or from the
    /// buyer while the mint is away.
    async fn take_ehash_back(
        &mut self,
        ehash: &LegPlan,
        proofs: &Proofs,
    ) -> Result<Result<[u8; 32], End>, SettleError> {
        let mut pause = ASK.0;
        loop {
            match self.take_back(self.now() + ASK.1, ehash, proofs.clone()).await {
                Ok(true) => return Ok(Err(refunded())),
                Ok(false) => {}
                Err(LegFault::Refused(error)) => debug!(error, "the ehash is not back yet"),
                Err(LegFault::Settle(error)) => return Err(error),
            }
            match self.try_state(ehash, proofs).await {
                Ok(LegState::Claimed(preimage)) => return Ok(Ok(preimage)),
                Ok(LegState::TakenBack) => return self.gather_refund(ehash, proofs).await.map(Err),
                Ok(LegState::Unspent | LegState::Pending) => {}
                Err(error) => debug!(%error, "the mint does not answer"),
            }
            if let Some(preimage) = self.told_preimage(ehash, self.now() + pause).await {
                return Ok(Ok(preimage));
            }
            pause = (pause * 2).min(AGAIN_SECS);
        }
    }

    /// The preimage, if the buyer tells it before `until`.
    async fn told_preimage(&mut self, ehash: &LegPlan, until: u64) -> Option<[u8; 32]> {
        let (from, hash) = (self.their_key()?, ehash.lock.hash);
        // A wish cannot be granted here: the ehash is locked, and nobody's yet.
        self.record.wish = None;
        let told = self.wait(until, |it| match &it.message {
            Message::Claimed { preimage } if it.from == from && sha256(preimage) == hash => {
                Some(*preimage)
            }
            _ => None,
        });
        told.await
    }

    /// Step 5: claims the sats, for as long as they can be claimed.
    async fn claim_sats(&mut self, sats: &LegPlan) -> Result<End, SettleError> {
        let lost = |why: &str| Ok(End::Lost { why: why.to_owned() });
        let Some(preimage) = self.record.preimage else { return lost("the preimage is not known") };
        let opened = sats.lock.open(sats.net, &sats.place.keyset, &self.record.got);
        let Ok(proofs) = opened else { return lost("the sats do not open any more") };
        let mut pause = 1;
        loop {
            match self.claim(sats, proofs.clone(), &preimage).await {
                Ok(()) => break,
                Err(LegFault::Refused(error)) => warn!(error, "the sats are not claimed yet"),
                Err(LegFault::Settle(error)) => return Err(error),
            }
            match self.state(sats, &proofs).await {
                Ok(LegState::TakenBack) => {
                    return lost("the buyer has taken the sats back after their locktime");
                }
                Ok(LegState::Claimed(_)) => match self.gather(sats, &proofs).await {
                    Ok(()) => break,
                    Err(LegFault::Refused(why)) => return lost(&why),
                    Err(LegFault::Settle(error)) => return Err(error),
                },
                Ok(LegState::Unspent | LegState::Pending) | Err(LegFault::Refused(_)) => {}
                Err(LegFault::Settle(error)) => return Err(error),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(AGAIN_SECS);
        }
        self.report(5).await?;
        self.report(6).await?;
        Ok(End::Completed)
    }
}

pub(super) fn refunded() -> End {
    End::Refunded { why: "the buyer has not claimed the ehash in time".to_owned() }
}
