//! A trade as its user is told of it: its steps, legs and deadlines.

use cdk::mint_url::MintUrl;
use cdk::nuts::Id;
use hashpit_nips::eh04::Way;
use hashpit_nips::eh06::{Leg, LockedProof, Timing};
use nostr_sdk::PublicKey;

use super::record::{End, Record, Role, Stage, Watched, Wish};

/// Who takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// We do.
    Ours,
    /// The other trader does.
    Theirs,
    /// Each takes its part.
    Both,
}

/// A step of EH-06, as far as this side knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// 1 to 6.
    pub number: u8,
    /// Who takes it.
    pub whose: Whose,
    /// Whether it is taken; `None` where only the other trader knows.
    pub done: Option<bool>,
    /// Until when it has to be, in seconds of the Unix epoch.
    pub due: Option<u64>,
}

/// One side of the exchange, as it is or will be locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegView {
    /// Which one.
    pub leg: Leg,
    /// What its receiver gets, in sats or units of ehash.
    pub net: u64,
    /// Where it is locked, and by which keyset; unknown before step 1, and of
    /// Lightning payments.
    pub place: Option<(MintUrl, Id)>,
    /// Amounts of its proofs, once they are locked.
    pub amounts: Vec<u64>,
    /// From when whoever locked it may take it back, in seconds of the Unix epoch.
    pub locktime: u64,
}

impl Record {
    /// All six steps.
    pub fn steps(&self, timing: &Timing) -> [Step; 6] {
        let at = self.terms().at;
        let due = |after| Some(Timing::of(at, after));
        let (ours, theirs) = (Whose::Ours, Whose::Theirs);
        let (buyers, sellers) = match self.role {
            Role::Buyer => (ours, theirs),
            Role::Seller => (theirs, ours),
        };
        let (sats, ehash) = (self.has_locked(Leg::Sats), self.has_locked(Leg::Ehash));
        let completed = matches!(self.stage, Stage::Over { end: End::Completed });
        let (shown, claimed) = match self.role {
            Role::Buyer => (completed, None),
            Role::Seller => (completed || self.preimage.is_some(), Some(completed)),
        };
        let step = |number, whose, done, due| Step { number, whose, done, due };
        [
            step(1, Whose::Both, Some(self.theirs.is_some()), due(timing.agree)),
            step(2, buyers, Some(sats), due(timing.sats)),
            step(3, sellers, Some(ehash), due(timing.ehash)),
            step(4, buyers, Some(shown), Some(timing.claim_until(at))),
            step(5, sellers, claimed, Some(timing.sats_until(at))),
            step(6, Whose::Both, Some(completed), None),
        ]
    }

    /// Both legs: sats, then ehash.
    pub fn legs(&self, timing: &Timing) -> [LegView; 2] {
        let at = self.terms().at;
        let view = |leg, net, locktime| LegView {
            leg,
            net,
            place: self.place(leg),
            amounts: self.proofs(leg).iter().map(|proof| proof.amount).collect(),
            locktime,
        };
        [
            view(Leg::Sats, self.sats().get(), timing.sats_until(at)),
            view(Leg::Ehash, self.units().get(), timing.ehash_until(at)),
        ]
    }

    /// What has to happen next, and until when; for a leg that is taken back, from
    /// when. `None` once it is over.
    pub fn due(&self, timing: &Timing) -> Option<u64> {
        let at = self.terms().at;
        let [_, sats, ehash, claim, take, _] = self.steps(timing);
        match (&self.stage, self.role) {
            (Stage::Over { .. }, _) => None,
            (Stage::Agreeing, _) if self.theirs.is_none() => Some(Timing::of(at, timing.agree)),
            (Stage::Agreeing, _) | (Stage::Locking, Role::Buyer) => sats.due,
            (Stage::Locking, Role::Seller) => ehash.due,
            (Stage::Waiting, Role::Buyer) => ehash.due,
            (Stage::Waiting, Role::Seller) | (Stage::Claiming, Role::Buyer) => claim.due,
            (Stage::Claiming, Role::Seller) => take.due,
            (Stage::Refunding { .. }, _) => Some(self.own_locktime(timing)),
        }
    }

    /// From when our own leg can be taken back, in seconds of the Unix epoch.
    pub fn own_locktime(&self, timing: &Timing) -> u64 {
        let at = self.terms().at;
        match self.role {
            Role::Buyer => timing.sats_until(at),
            Role::Seller => timing.ehash_until(at),
        }
    }

    /// Whether a leg is locked, as far as we know.
    pub fn has_locked(&self, leg: Leg) -> bool {
        let ours = (self.role == Role::Buyer) == (leg == Leg::Sats);
        match &self.stage {
            // Proofs that are spent are forgotten.
            Stage::Over { end: End::Completed } => return true,
            Stage::Over { end: End::Refunded { .. } | End::Lost { .. } } if ours => return true,
            _ => {}
        }
        let lightning = leg == Leg::Sats && self.way() == Some(Way::Nwc);
        !self.proofs(leg).is_empty() || lightning && self.has_locked_after_payment()
    }

    /// A payment by Lightning leaves no proofs: what follows on it tells.
    fn has_locked_after_payment(&self) -> bool {
        match self.role {
            Role::Buyer => !matches!(self.stage, Stage::Agreeing | Stage::Over { .. }),
            Role::Seller => !self.locked.is_empty(),
        }
    }

    fn proofs(&self, leg: Leg) -> &[LockedProof] {
        match (self.role, leg) {
            (Role::Seller, Leg::Ehash) | (Role::Buyer, Leg::Sats) => &self.locked,
            _ => &self.got,
        }
    }

    fn place(&self, leg: Leg) -> Option<(MintUrl, Id)> {
        let keys = match (self.role, leg) {
            (Role::Seller, Leg::Ehash) | (Role::Buyer, Leg::Sats) => &self.mine,
            _ => &self.theirs,
        };
        let lock = keys.as_ref()?.lock.as_ref()?;
        Some((lock.mint.clone(), lock.keyset))
    }

    /// How the buyer pays, once that is agreed on.
    pub fn way(&self) -> Option<Way> {
        let keys = [self.mine.as_ref(), self.theirs.as_ref()];
        keys.into_iter().flatten().find_map(|keys| Some(keys.pays.as_ref()?.way))
    }

    /// Whether a watchtower could claim the sats for us; `None` for a buyer, and
    /// before step 3.
    pub fn watched(&self) -> Option<&Watched> {
        self.watched.as_ref()
    }

    /// When it was matched, in seconds of the Unix epoch.
    pub fn matched_at(&self) -> u64 {
        self.terms().at.get() / 1000
    }

    /// Whether a wish can be granted as it stands, or why not.
    pub fn grants(&self, wish: Wish) -> Result<(), &'static str> {
        match (wish, &self.stage, self.role) {
            (_, Stage::Over { .. }, _) => Err("it is over"),
            (_, Stage::Refunding { .. }, _) => Err("it is being taken back already"),
            (Wish::Cancel, Stage::Agreeing, _) => Ok(()),
            (Wish::Refund, Stage::Waiting, Role::Buyer) => Ok(()),
            (_, Stage::Claiming, _) => Err("the other leg is being claimed, so it is nearly done"),
            (Wish::Refund, Stage::Agreeing, _) => Err("nothing of yours is locked yet"),
            (_, Stage::Waiting, Role::Seller) => {
                Err("your ehash is locked, and until its locktime only the buyer can have it")
            }
            (Wish::Cancel, _, _) => Err("something of yours is locked already"),
            (Wish::Refund, _, _) => Err("it is being locked just now"),
        }
    }

    /// The watchtowers that have a claim.
    pub fn watchers(&self) -> &[PublicKey] {
        match &self.watched {
            Some(Watched::By { watchers, .. }) => watchers,
            _ => &[],
        }
    }
}
