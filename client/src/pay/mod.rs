//! Paying and being paid: NUT-18 payment requests, and tokens to an npub.
//!
//! | module | what lives in it |
//! |---|---|
//! | `payee` | what a payment request or an npub asks for |
//! | `delivery` | gift wraps (NIP-17, NIP-59) and HTTP POSTs, on their way out |
//! | `request` | payment requests of our own |
//! | `inbox` | tokens that came as gift wraps |
//!
//! A payment is recorded before anything leaves (see `wallet::outbox`), and is
//! delivered again and again, the same message to the same payee, until a relay
//! or the payee has it or it is taken back. Payments are sealed by a throwaway
//! key: the payee learns what it gets, and from nobody in particular.

mod delivery;
mod inbox;
mod payee;
mod request;

use hashpit_mailbox::MailboxError;
use nostr_sdk::RelayUrl;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::wallet::{PaidOut, Terms, Wallet, WalletError};
pub use inbox::{Arrived, Outcome, collect};
pub use payee::{Payee, PayeeError};
pub use request::{RequestTerms, request};

/// Why a payment was not made, or has not arrived.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The relays.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// The request cannot be paid.
    #[error(transparent)]
    Payee(#[from] PayeeError),
    /// No relay is known.
    #[error("which relay? name one with --relay <url>")]
    NoRelay,
    /// No relay told what it has.
    #[error("no relay answered; check --relay, and the network")]
    NoAnswer,
    /// Taken out of the wallet and recorded, and not delivered.
    #[error(
        "payment {id} is not delivered yet: {reason}; `hashpit wallet outbox` tries again, \
         or take it back with `hashpit wallet outbox --take-back {id}`"
    )]
    Undelivered {
        /// Names the payment.
        id: String,
        /// Why.
        reason: String,
    },
    /// A payment that may be the same one waits. Nothing was taken out.
    #[error(
        "payment {id} of {amount} to the same payee waits already; `hashpit wallet outbox` \
         delivers it, and --again pays once more"
    )]
    Waiting {
        /// Names the payment that waits.
        id: String,
        /// Its units.
        amount: u64,
    },
}

/// What to pay, beside what the payee says.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// Units; the payee's request may say it.
    pub amount: Option<u64>,
    /// Cashu unit; the payee's request may say it.
    pub unit: Option<String>,
    /// Relays to publish to, beside the payee's.
    pub relays: Vec<RelayUrl>,
    /// Pay although a payment to the same payee waits, for the same request or of
    /// the same amount.
    pub again: bool,
}

/// A payment that a relay or the payee has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Paid {
    /// Names it.
    pub id: String,
    /// Cashu unit.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// Units.
    pub amount: u64,
}

/// Pays, and returns once a relay or the payee has the token.
///
/// May be repeated: where a payment for the same request waits, that one is
/// delivered; where another one waits that may have been meant, it is
/// [`PayError::Waiting`]. [`Order::again`] overrides both.
pub async fn pay(wallet: &Wallet, payee: &Payee, order: &Order) -> Result<Paid, PayError> {
    let (amount, unit, mints) = payee.price(order)?;
    let (to, form) = delivery::destination(wallet, payee, order).await?;
    let terms = Terms { amount, unit, mints, to: to.clone(), form, again: order.again };
    let payment = match wallet.pay_out(terms).await? {
        PaidOut::Now(payment) => payment,
        PaidOut::Before(mut payment) => {
            // By the relays that are known by now.
            payment.to = to;
            payment
        }
        PaidOut::Alike(payment) => {
            return Err(PayError::Waiting { id: payment.id, amount: payment.amount });
        }
    };
    let paid = Paid {
        id: payment.id.clone(),
        unit: payment.unit.clone(),
        mint: payment.mint.clone(),
        amount: payment.amount,
    };
    match delivery::deliver(wallet, payment).await {
        Ok(()) => Ok(paid),
        Err(reason) => Err(PayError::Undelivered { id: paid.id, reason }),
    }
}

/// What became of a payment that was waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// Names it.
    pub id: String,
    /// Cashu unit.
    pub unit: String,
    /// Units.
    pub amount: u64,
    /// Why it waits still; `None` if it was delivered.
    pub waits: Option<String>,
}

/// Delivers what earlier payments could not.
pub async fn deliver_waiting(wallet: &Wallet) -> Result<Vec<Retried>, PayError> {
    let mut deliveries = JoinSet::new();
    for payment in wallet.waiting_payments().await? {
        let wallet = wallet.clone();
        deliveries.spawn(async move {
            let (id, unit, amount) = (payment.id.clone(), payment.unit.clone(), payment.amount);
            let waits = delivery::deliver(&wallet, payment).await.err();
            Retried { id, unit, amount, waits }
        });
    }
    Ok(deliveries.join_all().await)
}
