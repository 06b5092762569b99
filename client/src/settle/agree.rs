//! Step 1: what both bring to a trade, whether it fits, and what follows from it.

use std::time::Duration;

use cdk::nuts::PublicKey as MintKey;
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh04::Way;
use hashpit_nips::eh06::{HtlcLock, Keys, LockTerms, Message, Pays, lock_key};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::SettleError;
use super::legs::LegPlan;
use super::mints::{Place, PlaceError};
use super::record::{Honoured, Role, Stage};
use super::trade::Trade;

/// Pause before what a trade needs to know is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
const UNKEPT: &str =
    "it was too late, or no relay has stored in time what another machine would need to go on";

/// What follows from what both brought.
pub(super) struct Agreed {
    pub(super) ehash: LegPlan,
    /// None where sats go by Lightning.
    pub(super) sats: Option<LegPlan>,
}

/// Why there is no agreement: a reason for the user, or an error of our own.
pub(super) type Unfit<T> = Result<Result<T, String>, SettleError>;

impl Trade {
    /// Exchanges keys with the other trader, or takes up what was agreed before.
    pub(super) async fn agree(&mut self) -> Unfit<Agreed> {
        if self.record.mine.is_none() {
            match self.bring().await? {
                Ok((mine, ehash)) => {
                    self.record.mine = Some(mine);
                    self.record.ehash = Some(ehash);
                }
                Err(why) => return Ok(Err(why)),
            }
            self.save("mine").await?;
        }
        if self.record.theirs.is_none()
            && let Err(why) = self.meet().await?
        {
            return Ok(Err(why));
        }
        let agreed = match self.plan().await? {
            Ok(agreed) => agreed,
            Err(why) => return Ok(Err(why)),
        };
        if self.record.stage == Stage::Agreeing
            && let Err(why) = self.keep_agreed(&agreed).await?
        {
            return Ok(Err(why));
        }
        Ok(Ok(agreed))
    }

    /// Keeps what was agreed, here and for another machine of ours: the other trader
    /// may have its messages deleted, and its mint's URL is only its word.
    async fn keep_agreed(&mut self, agreed: &Agreed) -> Unfit<()> {
        let honoured = |leg: &LegPlan| leg.place.honoured();
        let mut theirs = self.record.theirs.clone().expect("agreed with before");
        let leg = if theirs.pays.is_some() { agreed.sats.as_ref() } else { Some(&agreed.ehash) };
        if let (Some(lock), Some(leg)) = (&mut theirs.lock, leg) {
            lock.mint = leg.place.cdk.mint_url.clone();
        }
        let until = self.due(self.timing().ehash);
        let kept = self.keep(&Message::Keys(Box::new(theirs)), until).await;
        if !kept && !self.record.recovered {
            return Ok(Err(UNKEPT.to_owned()));
        }
        self.record.ehash = Some(honoured(&agreed.ehash));
        self.record.sats = agreed.sats.as_ref().map(honoured);
        self.save("theirs").await?;
        Ok(Ok(()))
    }

    /// Tells our keys, and waits for theirs.
    async fn meet(&mut self) -> Unfit<()> {
        let mine = self.record.mine.clone().expect("brought before");
        let (me, of) = (self.shared.keys.clone(), self.record.id());
        let message = Message::Keys(Box::new(mine.clone()));
        let (counterparty, until) = (self.record.counterparty(), self.due(self.timing().agree));
        // A copy to ourselves: from it and the words another machine goes on.
        if !self.keep(&message, until).await {
            return Ok(Err(UNKEPT.to_owned()));
        }
        let told = self.shared.send(&me, counterparty, of, &message);
        let _ = timeout(self.left(until), told).await;
        self.report(1).await?;
        let theirs = self.wait(until, |it| match &it.message {
            Message::Keys(keys) if it.from == counterparty => Some((**keys).clone()),
            _ => None,
        });
        let Some(theirs) = theirs.await else {
            return Ok(Err(self.unheard("the other trader has not told its keys in time")));
        };
        if let Err(why) = self.fits(&mine, &theirs) {
            return Ok(Err(why.to_owned()));
        }
        if let Some(pays) = &theirs.pays
            && pays.way == Way::Nwc
            && !self.shared.is_new(of, pays.hash).await?
        {
            return Ok(Err("the buyer's hash was used in another trade".to_owned()));
        }
        self.record.theirs = Some(theirs);
        Ok(Ok(()))
    }

    /// Why a wait has ended without what was waited for.
    pub(super) fn unheard(&self, late: &str) -> String {
        let canceled = self.record.wish.map(|_| "you have canceled it");
        canceled.unwrap_or(late).to_owned()
    }

    /// Whether what they bring fits the match and what we bring.
    fn fits(&self, mine: &Keys, theirs: &Keys) -> Result<(), &'static str> {
        let skew = self.timing().skew;
        let (locks, pays) = (theirs.lock.is_some(), theirs.pays.as_ref());
        let way = pays.or(mine.pays.as_ref()).map(|pays| pays.way);
        if theirs.terms != mine.terms {
            Err("the other trader means other terms")
        } else if theirs.clock.abs_diff(self.now()) > skew {
            Err("the other trader's clock and ours are too far apart; check this machine's")
        } else if theirs.epoch != mine.epoch {
            Err("the two traders know the epoch in different states")
        } else if theirs.key == mine.key || theirs.key == self.shared.keys.public_key() {
            Err("the other trader shows our own key")
        } else if (self.role() == Role::Seller) != pays.is_some() {
            Err("the other trader takes the wrong side")
        } else if !way.is_some_and(|way| self.terms.pay.contains(&way)) {
            Err("the buyer pays in a way that the match does not have")
        } else if locks != (self.role() == Role::Buyer || matches!(way, Some(Way::Cashu(_)))) {
            Err("the other trader does not say where it locks its leg")
        } else {
            Ok(())
        }
    }

    /// What we bring: checked against our own offer and limits first.
    async fn bring(&mut self) -> Unfit<(Keys, Honoured)> {
        let until = self.due(self.timing().agree);
        loop {
            let late = self.now() >= until;
            match self.try_to_bring().await {
                Ok(brought) if !late => return Ok(Ok(brought)),
                Ok(_) => return Ok(Err("the match was heard of too late".to_owned())),
                Err(Lack::Reason(why)) => return Ok(Err(why)),
                Err(Lack::NotNow(why)) if late => return Ok(Err(why)),
                Err(Lack::NotNow(why)) => debug!(why, "cannot begin yet"),
                Err(Lack::Settle(error)) => return Err(error),
            }
            sleep(AGAIN).await;
        }
    }

    async fn try_to_bring(&self) -> Result<(Keys, Honoured), Lack> {
        self.follows_from_our_offer().await?;
        self.shared.within_limits(&self.record)?;
        let epoch = self.epoch().await?;
        let honoured = Honoured { mint: epoch.mint.clone(), keyset: epoch.keyset.clone() };
        let ehash = self.shared.mints.ehash_place(&honoured).await?;
        let takes_sig_all = self.takes_sig_all(&ehash).await?;
        let pays = match self.role() {
            Role::Seller => None,
            Role::Buyer => Some(Pays { hash: self.keys.hash(), way: self.way().await? }),
        };
        let place = match pays.as_ref().map(|pays| pays.way) {
            None => Some(ehash),
            Some(Way::Nwc) => None,
            Some(Way::Cashu(key)) => {
                let url = self.shared.mints.sats(key).await?;
                Some(self.shared.mints.sat_place(&url, None).await?)
            }
        };
        let lock = match place {
            None => None,
            Some(place) => {
                self.is_in_time_with(&place)?;
                let sig_all = self.shared.mints.tried_sig_all(&self.shared, &place).await?;
                let (mint, keyset) = (place.cdk.mint_url.clone(), place.keyset.id);
                Some(LockTerms { mint, keyset, sig_all: sig_all.unwrap_or(false) })
            }
        };
        let terms = self.terms.terms().map_err(|error| Lack::Reason(error.to_string()))?;
        let key = self.keys.keys().public_key();
        let (clock, epoch) = (self.now(), epoch.state);
        let keys = Keys { terms, key, clock, epoch, lock, pays, takes_sig_all };
        Ok((keys, honoured))
    }

    /// Whether the other's leg may be under `SIG_ALL`: whoever claims what its mint
    /// does not let him claim has lost it.
    async fn takes_sig_all(&self, ehash: &Place) -> Result<bool, Lack> {
        let mints = &self.shared.mints;
        if self.role() == Role::Buyer {
            return Ok(mints.knows_sig_all(&self.shared, ehash).await?);
        }
        for way in &self.terms.pay {
            let Way::Cashu(key) = way else { continue };
            // A mint that is not trusted, or not there, is not locked at either.
            let Ok(url) = mints.sats(*key).await else { continue };
            let Ok(place) = mints.sat_place(&url, None).await else { return Ok(false) };
            if !mints.knows_sig_all(&self.shared, &place).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Locktimes count by the mint's clock.
    fn is_in_time_with(&self, place: &Place) -> Result<(), Lack> {
        let ahead = place.ahead.saturating_sub(self.shared.clock.ahead);
        if ahead.unsigned_abs() <= self.timing().skew {
            return Ok(());
        }
        let mint = &place.cdk.mint_url;
        let why = "'s clock and ours are too far apart; check this machine's";
        Err(Lack::Reason(format!("the mint {mint}{why}")))
    }

    /// Whether a leg can be locked at a place; once it is, there is no way back.
    fn suits(&self, place: &Place) -> Result<(), Lack> {
        if self.record.recovered || self.record.stage != Stage::Agreeing {
            return Ok(());
        }
        if place.keyset.active == Some(false) {
            return Err(Lack::Reason(format!("the keyset {} signs no more", place.keyset.id)));
        }
        self.is_in_time_with(place)
    }

    /// The first way of the match that we can pay by.
    async fn way(&self) -> Result<Way, Lack> {
        let mut why = Lack::Reason("the match has no way of payment that we have".to_owned());
        for way in &self.terms.pay {
            match way {
                Way::Cashu(key) => match self.shared.mints.sats(*key).await {
                    Ok(_) => return Ok(*way),
                    Err(error) => why = error.into(),
                },
                Way::Nwc if self.shared.lightning.is_set_up() => return Ok(*way),
                Way::Nwc => {}
            }
        }
        Err(why)
    }

    /// The epoch as its pool last said; the wallet knows its keyset then.
    async fn epoch(&self) -> Result<EpochKeyset, Lack> {
        let unit = self.terms.market.epoch;
        let exchange = &self.shared.exchange;
        let told = exchange.keyset(unit).await.map_err(|error| Lack::NotNow(error.to_string()))?;
        let unknown = || Lack::NotNow("no relay knows the pool's keyset".to_owned());
        let epoch = told.ok_or_else(unknown)?;
        let learned = self.shared.learn(&epoch).await?;
        if learned { Ok(epoch) } else { Err(Lack::Reason("the pool shows a second keyset".into())) }
    }

    /// Whether the epoch is as it was when we agreed; asks until a time.
    pub(super) async fn is_epoch_unchanged(&self, until: u64) -> bool {
        let agreed = self.record.mine.as_ref().map(|mine| mine.epoch);
        loop {
            match self.epoch().await {
                Ok(epoch) => return Some(epoch.state) == agreed,
                Err(_) if self.now() >= until => return false,
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    /// Where the ehash is honoured: as recorded, else as its pool says now.
    async fn honoured(&self) -> Result<Honoured, Lack> {
        match &self.record.ehash {
            Some(honoured) => Ok(honoured.clone()),
            None => {
                let epoch = self.epoch().await?;
                Ok(Honoured { mint: epoch.mint, keyset: epoch.keyset })
            }
        }
    }

    /// Both legs, as they follow from what both brought. Once something may be locked
    /// nobody is asked any more: what was learnt stands in the record.
    async fn plan(&self) -> Unfit<Agreed> {
        let lockable = self.record.recovered || self.record.stage != Stage::Agreeing;
        let until = if lockable { u64::MAX } else { self.due(self.timing().ehash) };
        loop {
            match self.try_to_plan().await {
                Ok(agreed) => return Ok(Ok(agreed)),
                Err(Lack::Reason(why)) => return Ok(Err(why)),
                Err(Lack::NotNow(why)) if self.now() >= until => return Ok(Err(why)),
                Err(Lack::NotNow(why)) => debug!(why, trade = %self.record.id(), "not yet"),
                Err(Lack::Settle(error)) => return Err(error),
            }
            sleep(AGAIN).await;
        }
    }

    async fn place_of_ehash(&self) -> Result<Place, Lack> {
        let honoured = self.honoured().await?;
        // Whether it can be melted was for who might lock; now it is locked, or may be.
        if self.record.recovered || self.record.stage != Stage::Agreeing {
            return Ok(self.shared.mints.place(&honoured).await?);
        }
        Ok(self.shared.mints.ehash_place(&honoured).await?)
    }

    async fn place_of_sats(&self, key: MintKey, terms: &LockTerms) -> Result<Place, Lack> {
        let mints = &self.shared.mints;
        if let Some(honoured) = &self.record.sats {
            return Ok(mints.place(honoured).await?);
        }
        let url = match mints.sats(key).await {
            // The copy that we kept says where we found it.
            Err(PlaceError::Untrusted(_)) if self.record.recovered => terms.mint.clone(),
            found => found?,
        };
        Ok(mints.sat_place(&url, Some(terms.keyset)).await?)
    }

    async fn try_to_plan(&self) -> Result<Agreed, Lack> {
        let (Some(mine), Some(theirs)) = (&self.record.mine, &self.record.theirs) else {
            return Err(Lack::Reason("no keys were exchanged".to_owned()));
        };
        let (seller, buyer) = match self.role() {
            Role::Seller => (mine, theirs),
            Role::Buyer => (theirs, mine),
        };
        let wrong = |why: &str| Lack::Reason(why.to_owned());
        let pays = buyer.pays.as_ref().ok_or_else(|| wrong("the buyer does not pay"))?;
        let of_ehash = seller.lock.as_ref().ok_or_else(|| wrong("no word on the ehash"))?;
        let place = self.place_of_ehash().await?;
        if of_ehash.keyset != place.keyset.id {
            return Err(wrong("the seller would lock ehash of another keyset than the pool's"));
        }
        let lock = |to: &Keys, refund: &Keys, locktime, sig_all| HtlcLock {
            hash: pays.hash,
            to: lock_key(&to.key),
            refund: lock_key(&refund.key),
            locktime,
            sig_all,
        };
        let (timing, at) = (self.timing(), self.terms.at);
        let sig_all = of_ehash.sig_all && buyer.takes_sig_all;
        self.suits(&place)?;
        let ehash = LegPlan {
            place,
            lock: lock(buyer, seller, timing.ehash_until(at), sig_all),
            net: self.terms.units.get(),
        };
        let sats = match (pays.way, &buyer.lock) {
            (Way::Nwc, _) => None,
            (Way::Cashu(_), None) => return Err(wrong("no word on the sats")),
            (Way::Cashu(key), Some(terms)) => {
                let place = self.place_of_sats(key, terms).await?;
                self.suits(&place)?;
                let sig_all = terms.sig_all && seller.takes_sig_all;
                let lock = lock(seller, buyer, timing.sats_until(at), sig_all);
                let net = self.record.sats().get();
                Some(LegPlan { place, lock, net })
            }
        };
        Ok(Agreed { ehash, sats })
    }
}

/// What keeps a trade from going on.
pub(super) enum Lack {
    /// For good.
    Reason(String),
    /// Until somebody answers.
    NotNow(String),
    Settle(SettleError),
}

impl From<PlaceError> for Lack {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Settle(error) => Self::Settle(error),
            PlaceError::Mint(error) => Self::NotNow(error.to_string()),
            PlaceError::Busy(error) => Self::NotNow(error),
            other => Self::Reason(other.to_string()),
        }
    }
}

impl From<SettleError> for Lack {
    fn from(error: SettleError) -> Self {
        Self::Settle(error)
    }
}
