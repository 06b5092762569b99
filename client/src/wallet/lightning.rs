//! Sats in and out of a mint by Lightning: deposits (NUT-04, 23) and withdrawals
//! (NUT-05, 23). cdk's sagas carry them out, and finish or undo after a crash what
//! had begun.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cdk::amount::SplitTarget;
use cdk::mint_url::MintUrl;
use cdk::nuts::{MeltQuoteState, MintQuoteState, PaymentMethod};
use cdk::{Amount, Wallet as CdkWallet};
use cdk_common::wallet::{MeltQuote, MintQuote};
use hashpit_nips::{HashUnits, Sats, eh07};
use nostr_sdk::Timestamp;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::{Balance, Wallet, WalletError, explain};

/// The unit.
const SAT: &str = "sat";

/// How often a mint is asked whether an invoice was paid: at first after, and then
/// twice as long each time, up to what a public mint allows.
const ASK_FIRST: Duration = Duration::from_millis(50);
const ASK_AT_MOST: Duration = Duration::from_secs(3);

/// How long a payment may take before the wallet is released; the next command
/// finds out what became of it. Less than others wait for the wallet.
const PAY: Duration = Duration::from_secs(20);

/// Seconds after an invoice's end in which it is still looked at: it may have been
/// paid in its last moment.
const STILL_LOOKED_AT: u64 = 86_400;

/// An invoice of a mint; what is paid on it comes into the wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deposit {
    /// The mint's name for it.
    pub id: String,
    /// The mint.
    pub mint: String,
    /// Sats.
    pub amount: u64,
    /// What is to be paid (BOLT 11).
    pub invoice: String,
    /// Unix time in seconds at which the invoice ends; 0 for never.
    pub expires: u64,
}

/// How a deposit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deposited {
    /// Nobody has paid the invoice yet.
    Waits,
    /// Its tokens are in the wallet.
    Done,
    /// Nobody has paid, and the invoice has ended.
    Expired,
}

/// What it takes to pay an invoice from tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Withdrawal {
    /// The mint's name for it.
    pub id: String,
    /// The mint.
    pub mint: String,
    /// Sats of the invoice.
    pub amount: u64,
    /// Most that the mint takes for the payment; what it does not need comes back.
    pub fee_reserve: u64,
}

/// What became of a withdrawal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Withdrawn {
    /// The mint.
    pub mint: String,
    /// Sats that were paid.
    pub amount: u64,
    /// Sats that it cost; `None` while the payment is under way.
    pub fee: Option<u64>,
    /// The payee's proof of it, if the mint has given it.
    pub preimage: Option<String>,
}

impl From<MintQuote> for Deposit {
    fn from(quote: MintQuote) -> Self {
        Self {
            id: quote.id,
            mint: quote.mint_url.to_string(),
            amount: quote.amount.map(u64::from).unwrap_or_default(),
            invoice: quote.request,
            expires: quote.expiry,
        }
    }
}

impl Deposit {
    fn has_ended(&self, ago: u64) -> bool {
        let now = Timestamp::now().as_secs();
        self.expires != 0 && self.expires.saturating_add(ago) < now
    }
}

impl Wallet {
    /// Mints of sats that this wallet knows: those that it holds sats of, and those
    /// of its pools, where they may issue any.
    pub async fn sat_mints(&self) -> Result<BTreeSet<MintUrl>, WalletError> {
        let held = self.balances().await?.into_iter().filter(|balance| balance.unit == SAT);
        let mut mints: BTreeSet<_> = held.filter_map(|balance| balance.mint.parse().ok()).collect();
        let epochs = self.epochs().await?.into_iter();
        mints.extend(epochs.filter_map(|epoch| eh07::sats_url(epoch.mint())));
        Ok(mints)
    }

    /// Deposits whose tokens have not come in, and which somebody may have paid.
    pub async fn deposits(&self) -> Result<Vec<Deposit>, WalletError> {
        let quotes = self.store.get_unissued_mint_quotes().await?.into_iter();
        let ours = quotes
            .filter(|quote| quote.unit.to_string() == SAT && quote.payment_method.is_bolt11());
        let open = ours.map(Deposit::from);
        Ok(open.filter(|deposit| !deposit.has_ended(STILL_LOOKED_AT)).collect())
    }

    /// Asks `mint` for an invoice of `amount`. Where one of that amount is open, it
    /// is that one: a deposit that was cut short is repeated, not doubled.
    pub async fn deposit(&self, mint: &MintUrl, amount: Sats) -> Result<Deposit, WalletError> {
        let _lock = self.lock().await?;
        let mut open = self.deposits().await?;
        open.retain(|deposit| deposit.mint == mint.to_string() && !deposit.has_ended(0));
        if let Some(deposit) = open.into_iter().find(|deposit| deposit.amount == amount.get()) {
            return Ok(deposit);
        }
        self.resume_swaps().await?;
        let cdk = self.cdk(&mint.to_string(), SAT).await?;
        let amount = Some(Amount::from(amount.get()));
        let quote = cdk.mint_quote(PaymentMethod::BOLT11, amount, None, None).await;
        Ok(quote.map_err(|error| explain(error, mint))?.into())
    }

    /// Takes the tokens of a deposit, if it was paid.
    pub async fn take_deposit(&self, deposit: &Deposit) -> Result<Deposited, WalletError> {
        let _lock = self.lock().await?;
        let cdk = self.cdk(&deposit.mint, SAT).await?;
        take(&cdk, deposit).await.map_err(|error| explain(error, &cdk.mint_url))
    }

    /// Waits until a deposit is paid, or has ended, and takes its tokens. May be
    /// dropped at any time.
    pub async fn await_deposit(&self, deposit: &Deposit) -> Result<Deposited, WalletError> {
        let mut pause = ASK_FIRST;
        loop {
            match self.take_deposit(deposit).await? {
                Deposited::Waits => sleep(pause).await,
                done => return Ok(done),
            }
            pause = (pause * 2).min(ASK_AT_MOST);
        }
    }

    /// Takes up what is held under `from`, a URL that the mint at `to` had before.
    /// Only for a mint whose move the caller knows of by itself: whoever answers at
    /// `to` is shown the tokens.
    pub async fn move_mint(&self, from: &MintUrl, to: &MintUrl) -> Result<(), WalletError> {
        let _lock = self.lock().await?;
        self.store.add_mint(to.clone(), None).await?;
        Ok(self.store.update_mint_url(from.clone(), to.clone()).await?)
    }

    /// Takes what was paid at a mint since its invoice was asked for.
    pub(super) async fn resume_deposits(&self, cdk: &CdkWallet) -> Result<(), cdk::Error> {
        let open = self.deposits().await.map_err(|error| cdk::Error::Custom(error.to_string()))?;
        for deposit in open.iter().filter(|open| open.mint == cdk.mint_url.to_string()) {
            take(cdk, deposit).await?;
        }
        Ok(())
    }

    /// Asks what it takes to pay `invoice` (BOLT 11) from the sats at `mint`, or at
    /// the mint that holds most of this wallet's.
    pub async fn quote_withdrawal(
        &self,
        invoice: &str,
        mint: Option<&MintUrl>,
    ) -> Result<Withdrawal, WalletError> {
        let _lock = self.lock().await?;
        self.resume_swaps().await?;
        let mut held = self.balances().await?;
        let at = mint.map(ToString::to_string);
        held.retain(|held| held.unit == SAT && at.as_ref().is_none_or(|at| held.mint == *at));
        let fullest = held.into_iter().max_by_key(|held| held.amount);
        let Some(Balance { mint, amount: available, .. }) = fullest else {
            return Err(WalletError::NoSats);
        };
        let cdk = self.cdk(&mint, SAT).await?;
        let asked = cdk.melt_quote(PaymentMethod::BOLT11, invoice.trim(), None, None).await;
        let quote = asked.map_err(|error| match error {
            cdk::Error::Invoice(error) => WalletError::Invoice(error.to_string()),
            other => explain(other, &cdk.mint_url),
        })?;
        let MeltQuote { id, amount, fee_reserve, .. } = quote;
        let (amount, fee_reserve) = (u64::from(amount), u64::from(fee_reserve));
        let wanted = amount.saturating_add(fee_reserve);
        if wanted > available {
            return Err(WalletError::Insufficient {
                available: HashUnits::new(available),
                wanted: HashUnits::new(wanted),
            });
        }
        Ok(Withdrawal { id, mint, amount, fee_reserve })
    }

    /// Pays the invoice of a withdrawal. Without an answer in good time it is
    /// pending: the next command finds out what became of it.
    pub async fn withdraw(&self, withdrawal: &Withdrawal) -> Result<Withdrawn, WalletError> {
        let _lock = self.lock().await?;
        let Withdrawal { id, mint, amount, .. } = withdrawal.clone();
        let cdk = self.cdk(&mint, SAT).await?;
        let paying = async {
            self.consolidate_at(&cdk).await?;
            cdk.prepare_melt(&id, HashMap::new()).await?.confirm().await
        };
        // Cut off where it stands, it is resumed like one that a crash cut off.
        let Ok(paid) = timeout(PAY, paying).await else {
            return Ok(Withdrawn { mint, amount, fee: None, preimage: None });
        };
        let paid = paid.map_err(|error| explain(error, &cdk.mint_url))?;
        let done = paid.state() == MeltQuoteState::Paid;
        let preimage = paid.payment_proof().map(str::to_owned).filter(|it| !it.is_empty());
        let fee = done.then(|| u64::from(paid.fee_paid()));
        Ok(Withdrawn { mint, amount: u64::from(paid.amount()), fee, preimage })
    }
}

async fn take(cdk: &CdkWallet, deposit: &Deposit) -> Result<Deposited, cdk::Error> {
    // Finishes too what a crash cut short after the mint had signed.
    let quote = cdk.check_mint_quote_status(&deposit.id).await?;
    match quote.state {
        MintQuoteState::Issued => Ok(Deposited::Done),
        MintQuoteState::Unpaid if deposit.has_ended(0) => Ok(Deposited::Expired),
        MintQuoteState::Unpaid => Ok(Deposited::Waits),
        MintQuoteState::Paid => {
            cdk.mint(&deposit.id, SplitTarget::default(), None).await?;
            Ok(Deposited::Done)
        }
    }
}
