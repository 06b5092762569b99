//! The sats by Lightning: the buyer pays an invoice that the seller's wallet holds
//! on the buyer's hash, and the seller settles it with the preimage that the
//! claimed ehash shows. Both wallets are reached by Nostr Wallet Connect (NIP-47).

use std::time::Duration;

use bitcoin::Network;
use hashpit_nips::Msats;
use hashpit_nips::eh06::Message;
use nostr_sdk::Timestamp;
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use super::SettleError;
use super::legs::LegPlan;
use super::record::{End, Stage};
use super::trade::Trade;
use crate::nwc::{
    Class, ErrorCode, HoldOrder, InvoiceState, InvoiceTerms, Nwc, NwcError, NwcUri, check_invoice,
};

/// Blocks for which the seller wants a payment held: a day, where its wallet lets it
/// be set.
const MIN_FINAL_CLTV: u32 = 144;
/// Blocks that must be left of a held payment when the ehash is locked for it: ten
/// hours, against locktimes of minutes.
const BLOCKS_LEFT: u32 = 60;
/// First and longest pause between two questions to the Lightning wallet, in
/// seconds.
const ASK: (u64, u64) = (1, 30);
/// How long an invoice must be payable when the buyer looks at it.
const PAYABLE: Duration = Duration::from_secs(5);

/// The way to this side's Lightning wallet, made when it is first needed.
pub(super) struct Lightning {
    uri: Option<NwcUri>,
    connected: OnceCell<Nwc>,
}

impl Lightning {
    pub(super) fn new(uri: Option<NwcUri>) -> Self {
        Self { uri, connected: OnceCell::new() }
    }

    pub(super) fn is_set_up(&self) -> bool {
        self.uri.is_some()
    }

    async fn get(&self) -> Result<Nwc, String> {
        let missing = "Lightning is not set up here: name your wallet in [trade] nwc_file";
        let uri = self.uri.as_ref().ok_or(missing)?;
        let connect = || Nwc::connect(uri);
        let connected = self.connected.get_or_try_init(connect).await;
        connected.cloned().map_err(|error| format!("your Lightning wallet: {error}"))
    }
}

impl Trade {
    /// The Lightning wallet of this side. Where a payment may be under way there is no
    /// going on without it; else it is waited for until step 2 is due.
    async fn nwc(&mut self) -> Result<Nwc, String> {
        let agreeing = self.record.stage == Stage::Agreeing;
        let until = if agreeing { self.due(self.timing().sats) } else { u64::MAX };
        let mut pause = ASK.0;
        loop {
            match self.shared.lightning.get().await {
                Ok(nwc) => return Ok(nwc),
                Err(why) if agreeing && !self.shared.lightning.is_set_up() => return Err(why),
                Err(why) if self.now() >= until => return Err(why),
                Err(why) => warn!(why, trade = %self.record.id(), "a payment waits"),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(ASK.1);
        }
    }

    /// What is paid, in whole sats (EH-04).
    fn payment(&self) -> Msats {
        Msats::new(self.record.sats().get().saturating_mul(1000))
    }

    /// The buyer's script from step 2 on.
    pub(super) async fn buy_by_lightning(&mut self, ehash: &LegPlan) -> Result<End, SettleError> {
        let nwc = match self.nwc().await {
            Ok(nwc) => nwc,
            Err(why) => return self.void(why).await,
        };
        if self.record.stage == Stage::Agreeing {
            // Another machine of ours may have paid the invoice that was found.
            let is_found = self.record.recovered && self.record.invoice.is_some();
            if !is_found && let Err(why) = self.await_invoice(&nwc, ehash).await? {
                return self.void(why).await;
            }
            self.enter(Stage::Locking).await?;
        }
        if self.record.stage == Stage::Locking {
            if let Err(why) = self.begin_to_pay(&nwc, ehash).await {
                return self.void(why).await;
            }
            self.enter(Stage::Waiting).await?;
        }
        if self.record.stage == Stage::Waiting {
            self.report(2).await?;
            let next = self.await_ehash(ehash).await?;
            self.enter(next).await?;
        }
        if self.record.stage == Stage::Claiming {
            match self.claim_ehash(ehash).await? {
                Ok(()) => return self.bought().await,
                Err(why) => self.enter(Stage::Refunding { why }).await?,
            }
        }
        self.await_payment_back(&nwc, ehash).await
    }

    /// Waits for the seller's invoice, and checks it.
    async fn await_invoice(
        &mut self,
        nwc: &Nwc,
        ehash: &LegPlan,
    ) -> Result<Result<(), String>, SettleError> {
        let until = self.due(self.timing().sats);
        let Some(from) = self.their_key() else { return Ok(Err("no keys".to_owned())) };
        let told = self.wait(until, |it| match &it.message {
            Message::Invoice { bolt11 } if it.from == from => Some(Ok(bolt11.clone())),
            Message::Abort { reason } if it.from == from => Some(Err(reason.clone())),
            _ => None,
        });
        let bolt11 = match told.await {
            Some(Ok(bolt11)) => bolt11,
            Some(Err(reason)) => return Ok(Err(format!("the seller says: {reason}"))),
            None => return Ok(Err(self.unheard("the seller has not sent its invoice in time"))),
        };
        let network = match self.network(nwc, until).await {
            Ok(network) => network,
            Err(why) => return Ok(Err(why)),
        };
        let (amount, payment_hash) = (self.payment(), ehash.lock.hash);
        let terms = InvoiceTerms { amount, payment_hash, network, margin: PAYABLE };
        let now = Timestamp::from(self.now());
        if let Err(error) = check_invoice(&bolt11, &terms, now) {
            return Ok(Err(error.to_string()));
        }
        self.record.invoice = Some(bolt11);
        self.save("invoice").await?;
        Ok(self.may_lock(self.timing().sats).await)
    }

    async fn network(&mut self, nwc: &Nwc, until: u64) -> Result<Network, String> {
        loop {
            match nwc.info().await {
                Ok(info) => {
                    let unknown = "your Lightning wallet does not say which chain it is on";
                    return info.network.ok_or_else(|| unknown.to_owned());
                }
                Err(error) if self.now() >= until => return Err(error.to_string()),
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            self.sleep_until(self.now() + ASK.0).await;
        }
    }

    /// Has the invoice paid, once: a payment that may be under way is never begun
    /// again. It ends when the seller settles or cancels it, long after this.
    async fn begin_to_pay(&mut self, nwc: &Nwc, ehash: &LegPlan) -> Result<(), String> {
        let invoice = self.record.invoice.clone().ok_or("the invoice is lost")?;
        if self.was_paid(nwc, ehash).await? {
            return Ok(());
        }
        let (nwc, probe) = (nwc.clone(), self.shared.probe.clone());
        self.posts.spawn(async move {
            match probe.around("pay", nwc.pay_invoice(&invoice)).await {
                Ok(_) => debug!("the invoice is paid"),
                Err(error) => warn!(%error, "the payment of the invoice"),
            }
        });
        Ok(())
    }

    /// Whether the wallet knows of a payment on our hash. Errors when it is too late
    /// to begin one.
    async fn was_paid(&mut self, nwc: &Nwc, ehash: &LegPlan) -> Result<bool, String> {
        let until = self.due(self.timing().sats);
        let mut pause = ASK.0;
        loop {
            match nwc.lookup_invoice(ehash.lock.hash).await {
                Ok(_) => return Ok(true),
                Err(error) if is_unknown(&error) => {
                    let late = self.now() >= until;
                    return if late { Err("it is too late to pay".to_owned()) } else { Ok(false) };
                }
                Err(error) if error.class() == Class::Refused => return Err(error.to_string()),
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(ASK.1);
        }
    }

    /// Nothing was claimed: waits until the payment is back. The seller cancels it,
    /// or its blocks run out.
    async fn await_payment_back(&mut self, nwc: &Nwc, ehash: &LegPlan) -> Result<End, SettleError> {
        let Stage::Refunding { why } = self.record.stage.clone() else {
            return self.void("it had not begun".to_owned()).await;
        };
        let mut pause = ASK.0;
        loop {
            match nwc.lookup_invoice(ehash.lock.hash).await.map(|it| it.state) {
                Ok(InvoiceState::Failed | InvoiceState::Expired) => {
                    return Ok(End::Refunded { why });
                }
                Ok(InvoiceState::Settled) => {
                    let why = format!("the seller has taken the payment; {why}");
                    return self.got_after_all(ehash, End::Completed, End::Lost { why }).await;
                }
                Ok(InvoiceState::Pending | InvoiceState::Accepted) => {}
                Err(error) if is_unknown(&error) => return Ok(End::Refunded { why }),
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(ASK.1);
        }
    }

    /// The seller's part of step 2: makes the invoice, and waits until its payment is
    /// held for long enough.
    pub(super) async fn await_payment(
        &mut self,
        ehash: &LegPlan,
    ) -> Result<Result<(), String>, SettleError> {
        let nwc = match self.nwc().await {
            Ok(nwc) => nwc,
            Err(why) => return Ok(Err(why)),
        };
        if self.record.invoice.is_none() {
            match self.make_invoice(&nwc, ehash).await {
                Ok(bolt11) => self.record.invoice = Some(bolt11),
                Err(why) => return Ok(Err(why)),
            }
            self.save("invoice").await?;
        }
        let bolt11 = self.record.invoice.clone().unwrap_or_default();
        self.send(Message::Invoice { bolt11 });
        if let Err(why) = self.await_held(&nwc, ehash).await {
            return Ok(Err(why));
        }
        Ok(self.may_lock(self.timing().ehash).await)
    }

    async fn make_invoice(&mut self, nwc: &Nwc, ehash: &LegPlan) -> Result<String, String> {
        let until = self.due(self.timing().sats);
        let order = HoldOrder {
            amount: self.payment(),
            payment_hash: ehash.lock.hash,
            expiry_secs: u32::try_from(self.timing().ehash_locktime).unwrap_or(u32::MAX),
            description: format!("hashpit trade {}", &self.record.id().to_hex()[..8]),
            min_final_cltv: Some(MIN_FINAL_CLTV),
        };
        while self.now() < until {
            match self.shared.probe.around("make invoice", nwc.make_hold_invoice(&order)).await {
                Ok(invoice) => return Ok(invoice.bolt11),
                Err(error) if error.class() == Class::Refused => {
                    // Perhaps it was made before, and the answer lost.
                    let made = nwc.lookup_invoice(ehash.lock.hash).await;
                    let made = made.ok().and_then(|invoice| invoice.bolt11);
                    return made.ok_or_else(|| format!("your Lightning wallet: {error}"));
                }
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            self.sleep_until(self.now() + ASK.0).await;
        }
        Err("your Lightning wallet has not made an invoice in time".to_owned())
    }

    async fn await_held(&mut self, nwc: &Nwc, ehash: &LegPlan) -> Result<(), String> {
        let until = self.due(self.timing().ehash);
        loop {
            match nwc.lookup_invoice(ehash.lock.hash).await {
                Ok(invoice) if invoice.state == InvoiceState::Accepted => {
                    return self.is_held_for_long(nwc, invoice.settle_deadline).await;
                }
                Ok(_) => {}
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            if self.now() >= until || self.record.wish.is_some() {
                return Err(self.unheard("the buyer has not paid the invoice in time"));
            }
            self.sleep_until(self.now() + ASK.0).await;
        }
    }

    async fn is_held_for_long(&self, nwc: &Nwc, deadline: Option<u32>) -> Result<(), String> {
        let info = nwc.info().await.map_err(|error| error.to_string())?;
        let (Some(deadline), Some(height)) = (deadline, info.block_height) else {
            return Err("your Lightning wallet does not say for how long it holds the \
                        payment, so the ehash is not locked for it"
                .to_owned());
        };
        let left = deadline.saturating_sub(height);
        if left >= BLOCKS_LEFT {
            return Ok(());
        }
        Err(format!("the payment is held for {left} blocks only; {BLOCKS_LEFT} are needed"))
    }

    /// Step 5: takes the held payment with the preimage, until the wallet has it.
    pub(super) async fn settle_invoice(&mut self, ehash: &LegPlan) -> Result<End, SettleError> {
        let lost = |why: &str| Ok(End::Lost { why: why.to_owned() });
        let Some(preimage) = self.record.preimage else { return lost("the preimage is not known") };
        let mut pause = ASK.0;
        loop {
            let nwc = match self.nwc().await {
                Ok(nwc) => nwc,
                Err(why) => return lost(&why),
            };
            let asked = nwc.settle_hold_invoice(&preimage);
            if let Err(error) = self.shared.probe.around("settle invoice", asked).await {
                debug!(%error, "the payment is not taken yet");
            }
            match nwc.lookup_invoice(ehash.lock.hash).await.map(|it| it.state) {
                Ok(InvoiceState::Settled) => break,
                Ok(InvoiceState::Failed | InvoiceState::Expired) => {
                    return lost("the payment had gone back to the buyer");
                }
                Ok(_) => {}
                Err(error) => debug!(%error, "the Lightning wallet does not answer"),
            }
            self.sleep_until(self.now() + pause).await;
            pause = (pause * 2).min(ASK.1);
        }
        self.report(5).await?;
        self.report(6).await?;
        Ok(End::Completed)
    }

    /// Gives a held payment back, after nothing was sold. Best effort: it goes back
    /// by itself when its blocks run out.
    pub(super) async fn cancel_invoice(&self, ehash: &LegPlan) {
        let Ok(nwc) = self.shared.lightning.get().await else { return };
        if self.record.invoice.is_none() {
            return;
        }
        for _ in 0..3 {
            match nwc.cancel_hold_invoice(ehash.lock.hash).await {
                Ok(()) => return,
                Err(error) if error.class() == Class::Refused => return,
                Err(error) => debug!(%error, "the invoice is not canceled yet"),
            }
            tokio::time::sleep(Duration::from_secs(ASK.0)).await;
        }
    }
}

/// True if the wallet says that it knows of no such invoice or payment.
fn is_unknown(error: &NwcError) -> bool {
    matches!(error, NwcError::Refused { code: ErrorCode::NotFound, .. })
}
