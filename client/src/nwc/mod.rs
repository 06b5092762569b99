//! A Lightning wallet by Nostr Wallet Connect (NIP-47; hold invoices as NWC-03 has
//! them): invoices that are held on somebody else's hash, and payments of them.
//!
//! | module | what lives in it |
//! |---|---|
//! | `uri` | `nostr+walletconnect://…`, which is the right to spend |
//! | `connection` | requests and their answers, and what the wallet tells unasked |
//! | `message` | the JSON of both |
//! | `invoice` | what a BOLT11 invoice must say before it is paid |
//!
//! It promises that a failure is never told where it is not certain. Requests that
//! move money go out once; where their outcome is not known
//! ([`NwcError::Unknown`]), [`Nwc::lookup_invoice`] tells. Encryption is NIP-44
//! alone: NIP-04 would let a relay alter what it carries.

mod connection;
mod invoice;
mod message;
mod uri;

use std::time::Duration;

use bitcoin::hashes::{Hash, sha256};
use cdk::Bolt11Invoice;
use hashpit_mailbox::MailboxError;
use hashpit_nips::Msats;
use serde_json::json;

use connection::Connection;
pub use connection::Notifications;
pub use invoice::{CheckedInvoice, InvoiceError, InvoiceTerms, MAX_FINAL_CLTV, check_invoice};
pub use message::{ErrorCode, Info, Invoice, InvoiceState, Method, Notice};
pub use uri::{NwcUri, NwcUriError};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a payment may: a held one is answered only once it is settled.
const PAY_PATIENCE: Duration = Duration::from_secs(20 * 60);

/// Why a wallet did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum NwcError {
    /// The relays could not be used at all.
    #[error(transparent)]
    Relay(#[from] MailboxError),
    /// No relay of the wallet's is connected.
    #[error("none of the wallet's relays can be reached; are you online?")]
    Unreachable,
    /// No relay took the request.
    #[error("the wallet's relays refuse the request: {0}")]
    NotTaken(String),
    /// The relays know nothing of the wallet.
    #[error("no wallet announces itself there; is it running, and the connection still allowed?")]
    NoWallet,
    /// The wallet has no encryption that protects money.
    #[error("the wallet has only NIP-04 encryption; update it, or use one with nip44_v2")]
    Nip04Only,
    /// A question that was not answered.
    #[error("the wallet did not answer {method} in {waited:?}; is it running?")]
    NoAnswer {
        /// What it was asked.
        method: Method,
        /// For how long.
        waited: Duration,
    },
    /// An answer that makes no sense.
    #[error("the wallet's answer to {method} is of no use: {reason}")]
    Unreadable {
        /// What it was asked.
        method: Method,
        /// What is wrong with it.
        reason: String,
    },
    /// The wallet did nothing, and says why.
    #[error("the wallet refuses {method}: {code}: {message}")]
    Refused {
        /// What it was asked.
        method: Method,
        /// NIP-47's code.
        code: ErrorCode,
        /// In its words.
        message: String,
    },
    /// It may have been done, or may yet be.
    #[error("whether the wallet did {method} is not known ({reason}); look the invoice up")]
    Unknown {
        /// What it was asked.
        method: Method,
        /// Why it is not known.
        reason: String,
    },
    /// What it was to pay is no invoice.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
}

/// What an error leaves to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing was done, and asking the same again gets the same answer.
    Refused,
    /// Nothing was done; ask again later.
    Unreachable,
    /// It may have been done: look the invoice up before anything else.
    Unknown,
}

impl NwcError {
    /// What it leaves to do.
    pub fn class(&self) -> Class {
        match self {
            Self::Unknown { .. } => Class::Unknown,
            Self::Nip04Only | Self::Invoice(_) => Class::Refused,
            Self::Refused { code: ErrorCode::RateLimited, .. } => Class::Unreachable,
            Self::Refused { .. } => Class::Refused,
            Self::Relay(_)
            | Self::Unreachable
            | Self::NotTaken(_)
            | Self::NoWallet
            | Self::NoAnswer { .. }
            | Self::Unreadable { .. } => Class::Unreachable,
        }
    }
}

/// An invoice to be held on a hash whose preimage the payer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldOrder {
    /// What it asks for.
    pub amount: Msats,
    /// SHA-256 of the payer's preimage.
    pub payment_hash: [u8; 32],
    /// For how many seconds it may be paid. For how long a payment is held is
    /// another matter: see `min_final_cltv`.
    pub expiry_secs: u32,
    /// What the payer reads.
    pub description: String,
    /// The least number of blocks for which the last hop may be held. A wallet that
    /// cannot set it may refuse or ignore it.
    pub min_final_cltv: Option<u32>,
}

/// An invoice that the wallet holds payments of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldInvoice {
    /// BOLT11, for the payer.
    pub bolt11: String,
    /// Blocks that the payer is asked to give the last hop.
    pub min_final_cltv: u64,
}

impl HoldOrder {
    /// That an invoice is the one ordered.
    fn check(&self, made: &str) -> Result<HoldInvoice, NwcError> {
        const METHOD: Method = Method::MakeHoldInvoice;
        let invoice: Bolt11Invoice =
            made.parse().map_err(|error| unknown(METHOD, format!("no BOLT11: {error}")))?;
        if invoice.payment_hash().to_byte_array() != self.payment_hash
            || invoice.amount_milli_satoshis() != Some(self.amount.get())
        {
            return Err(unknown(METHOD, "its invoice is not the one ordered"));
        }
        let min_final_cltv = invoice.min_final_cltv_expiry_delta();
        Ok(HoldInvoice { bolt11: made.to_owned(), min_final_cltv })
    }
}

/// A connection to a wallet. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Nwc {
    connection: Connection,
    pay_patience: Duration,
}

impl Nwc {
    /// Connects to the wallet's relays and reads what encryption it has.
    pub async fn connect(uri: &NwcUri) -> Result<Self, NwcError> {
        let connection = Connection::open(uri).await?;
        Ok(Self { connection, pay_patience: PAY_PATIENCE })
    }

    /// How long [`Nwc::pay_invoice`] waits; 20 minutes unless said otherwise.
    pub fn with_pay_patience(self, pay_patience: Duration) -> Self {
        Self { pay_patience, ..self }
    }

    /// What the wallet can do, and its chain (`get_info`).
    pub async fn info(&self) -> Result<Info, NwcError> {
        let answer = self.connection.question(Method::GetInfo, json!({}), PATIENCE).await?;
        Info::read(answer).map_err(|reason| unreadable(Method::GetInfo, reason))
    }

    /// Makes an invoice whose payment is held (`make_hold_invoice`). That it asks
    /// for what was ordered is checked. May be repeated: an invoice on this hash that
    /// the wallet has already is looked up.
    pub async fn make_hold_invoice(&self, order: &HoldOrder) -> Result<HoldInvoice, NwcError> {
        const METHOD: Method = Method::MakeHoldInvoice;
        let mut params = json!({
            "amount": order.amount.get(),
            "payment_hash": message::hex(&order.payment_hash),
            "expiry": order.expiry_secs,
            "description": order.description,
        });
        if let Some(blocks) = order.min_final_cltv {
            params["min_cltv_expiry_delta"] = blocks.into();
        }
        match self.connection.command(METHOD, params, PATIENCE).await {
            Ok(answer) => match answer["invoice"].as_str() {
                Some(made) => order.check(made),
                None => Err(unknown(METHOD, "it gives no invoice")),
            },
            Err(error) if error.class() == Class::Unknown => {
                let standing = self.lookup_invoice(order.payment_hash).await.ok();
                let standing = standing.filter(|it| {
                    matches!(it.state, InvoiceState::Pending | InvoiceState::Accepted)
                });
                let made = standing.and_then(|it| it.bolt11).ok_or(error)?;
                order.check(&made)
            }
            Err(error) => Err(error),
        }
    }

    /// Pays (`pay_invoice`), and returns the preimage, checked against the invoice's
    /// hash. If the invoice is a held one, that takes until it is settled.
    ///
    /// Every failure but a refusal to begin is [`NwcError::Unknown`]: NIP-47's
    /// `PAYMENT_FAILED` covers a wallet that has lost patience with a payment that
    /// may yet arrive. Dropping the future does not stop the payment.
    pub async fn pay_invoice(&self, invoice: &str) -> Result<[u8; 32], NwcError> {
        const METHOD: Method = Method::PayInvoice;
        let parsed: Bolt11Invoice = invoice.parse().map_err(InvoiceError::from)?;
        let params = json!({ "invoice": invoice });
        let answer = self.connection.command(METHOD, params, self.pay_patience).await?;
        let preimage = answer["preimage"].as_str().and_then(message::from_hex);
        preimage
            .filter(|it| sha256::Hash::hash(it) == *parsed.payment_hash())
            .ok_or_else(|| unknown(METHOD, "it gives no preimage of the invoice's hash"))
    }

    /// What became of an invoice or payment (`lookup_invoice`). A preimage that it
    /// gives is one of `hash`.
    pub async fn lookup_invoice(&self, hash: [u8; 32]) -> Result<Invoice, NwcError> {
        const METHOD: Method = Method::LookupInvoice;
        let params = json!({ "payment_hash": message::hex(&hash) });
        let answer = self.connection.question(METHOD, params, PATIENCE).await?;
        let invoice = Invoice::read(answer).map_err(|reason| unreadable(METHOD, reason))?;
        if invoice.payment_hash != hash {
            return Err(unreadable(METHOD, "it is about another invoice".to_owned()));
        }
        Ok(invoice)
    }

    /// Takes a held payment (`settle_hold_invoice`). The wallet's yes means that it
    /// tries: the money is there once [`Nwc::lookup_invoice`] says settled.
    pub async fn settle_hold_invoice(&self, preimage: &[u8; 32]) -> Result<(), NwcError> {
        let params = json!({ "preimage": message::hex(preimage) });
        self.connection.command(Method::SettleHoldInvoice, params, PATIENCE).await.map(drop)
    }

    /// Gives a held payment back, or takes no more (`cancel_hold_invoice`).
    pub async fn cancel_hold_invoice(&self, hash: [u8; 32]) -> Result<(), NwcError> {
        let params = json!({ "payment_hash": message::hex(&hash) });
        self.connection.command(Method::CancelHoldInvoice, params, PATIENCE).await.map(drop)
    }

    /// What the wallet tells unasked, from now on.
    pub fn notifications(&self) -> Notifications {
        self.connection.notifications()
    }

    /// Closes the connection, of all clones.
    pub async fn close(&self) {
        self.connection.close().await;
    }
}

fn unreadable(method: Method, reason: String) -> NwcError {
    NwcError::Unreadable { method, reason }
}

fn unknown(method: Method, reason: impl Into<String>) -> NwcError {
    NwcError::Unknown { method, reason: reason.into() }
}
