//! NIP-47's JSON: methods, error codes, and what a wallet says of its invoices.

use std::fmt;

use bitcoin::Network;
use bitcoin::hashes::{Hash, sha256};
use bitcoin::hex::{DisplayHex, FromHex};
use hashpit_nips::Msats;
use nostr_sdk::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a wallet is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are NIP-47's own names")]
pub enum Method {
    GetInfo,
    LookupInvoice,
    MakeHoldInvoice,
    SettleHoldInvoice,
    CancelHoldInvoice,
    PayInvoice,
}

impl Method {
    /// Its name in NIP-47.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetInfo => "get_info",
            Self::LookupInvoice => "lookup_invoice",
            Self::MakeHoldInvoice => "make_hold_invoice",
            Self::SettleHoldInvoice => "settle_hold_invoice",
            Self::CancelHoldInvoice => "cancel_hold_invoice",
            Self::PayInvoice => "pay_invoice",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a wallet says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "they are NIP-47's own names")]
pub enum ErrorCode {
    RateLimited,
    NotImplemented,
    InsufficientBalance,
    QuotaExceeded,
    Restricted,
    Unauthorized,
    UnsupportedEncryption,
    NotFound,
    PaymentFailed,
    Internal,
    /// `OTHER`, or a code that NIP-47 does not have.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    /// True if it says that nothing was begun. The others may come of a failure on
    /// the way, or of a request that was carried out before.
    pub(super) const fn is_certain(self) -> bool {
        match self {
            Self::RateLimited
            | Self::NotImplemented
            | Self::InsufficientBalance
            | Self::QuotaExceeded
            | Self::Restricted
            | Self::Unauthorized
            | Self::UnsupportedEncryption
            | Self::NotFound => true,
            Self::PaymentFailed | Self::Internal | Self::Other => false,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RateLimited => "RATE_LIMITED",
            Self::NotImplemented => "NOT_IMPLEMENTED",
            Self::InsufficientBalance => "INSUFFICIENT_BALANCE",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::Restricted => "RESTRICTED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::UnsupportedEncryption => "UNSUPPORTED_ENCRYPTION",
            Self::NotFound => "NOT_FOUND",
            Self::PaymentFailed => "PAYMENT_FAILED",
            Self::Internal => "INTERNAL",
            Self::Other => "OTHER",
        })
    }
}

#[derive(Serialize)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) params: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) result_type: String,
    pub(super) error: Option<Complaint>,
    pub(super) result: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Complaint {
    pub(super) code: ErrorCode,
    #[serde(default)]
    pub(super) message: String,
}

/// What a wallet can do, and its chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Names of the methods that this connection may use.
    pub methods: Vec<String>,
    /// Names of what it tells unasked.
    pub notifications: Vec<String>,
    /// Its chain, if it says.
    pub network: Option<Network>,
    /// The height of its best block, if it says.
    pub block_height: Option<u32>,
}

impl Info {
    pub(super) fn read(answer: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            methods: Vec<String>,
            #[serde(default)]
            notifications: Option<Vec<String>>,
            network: Option<String>,
            block_height: Option<u32>,
        }
        let raw: Raw = serde_json::from_value(answer).map_err(|error| error.to_string())?;
        let network = raw.network.as_deref().and_then(|network| match network {
            "mainnet" | "bitcoin" => Some(Network::Bitcoin),
            "testnet" => Some(Network::Testnet),
            "signet" => Some(Network::Signet),
            "regtest" => Some(Network::Regtest),
            _ => None,
        });
        Ok(Self {
            methods: raw.methods,
            notifications: raw.notifications.unwrap_or_default(),
            network,
            block_height: raw.block_height,
        })
    }

    /// True if the connection may use `method`.
    pub fn can(&self, method: Method) -> bool {
        self.methods.iter().any(|name| name == method.name())
    }
}

/// How far an invoice, or a payment, has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceState {
    /// Nothing was paid yet; a payment is on its way.
    Pending,
    /// Paid and held: the money can be taken or given back.
    Accepted,
    /// Paid for good.
    Settled,
    /// Given back; it will not be paid.
    Failed,
    /// It can no longer be paid.
    Expired,
}

/// An invoice or payment as its wallet tells it. The preimage is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Invoice {
    /// What it is paid on.
    pub payment_hash: [u8; 32],
    /// What it asks for.
    pub amount: Msats,
    /// How far it has come. A wallet that does not tell has it pending until it
    /// tells when it was settled.
    pub state: InvoiceState,
    /// BOLT11, if told.
    pub bolt11: Option<String>,
    /// The preimage of `payment_hash`, if told.
    pub preimage: Option<[u8; 32]>,
    /// The block before which a held payment must be taken or given back, if told.
    pub settle_deadline: Option<u32>,
    /// Until when it can be paid, if told.
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for Invoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invoice")
            .field("payment_hash", &hex(&self.payment_hash))
            .field("amount", &self.amount)
            .field("state", &self.state)
            .field("preimage", &self.preimage.map(|_| format_args!("<redacted>").to_string()))
            .field("settle_deadline", &self.settle_deadline)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Invoice {
    pub(super) fn read(answer: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            payment_hash: String,
            amount: u64,
            state: Option<InvoiceState>,
            invoice: Option<String>,
            preimage: Option<String>,
            settled_at: Option<u64>,
            settle_deadline: Option<u32>,
            expires_at: Option<u64>,
        }
        let raw: Raw = serde_json::from_value(answer).map_err(|error| error.to_string())?;
        let payment_hash = from_hex(&raw.payment_hash).ok_or("its payment hash is none")?;
        // Some wallets give an empty text where they have none.
        let preimage = raw.preimage.filter(|it| !it.is_empty());
        let preimage = preimage
            .map(|it| {
                from_hex(&it)
                    .filter(|it| sha256::Hash::hash(it).to_byte_array() == payment_hash)
                    .ok_or("its preimage is not one of its hash")
            })
            .transpose()?;
        let untold = match raw.settled_at {
            Some(at) if at > 0 => InvoiceState::Settled,
            _ => InvoiceState::Pending,
        };
        Ok(Self {
            payment_hash,
            amount: Msats::new(raw.amount),
            state: raw.state.unwrap_or(untold),
            bolt11: raw.invoice.filter(|it| !it.is_empty()),
            preimage,
            settle_deadline: raw.settle_deadline,
            expires_at: raw.expires_at.map(Timestamp::from),
        })
    }
}

/// What a wallet tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A payment of a held invoice has arrived.
    HoldInvoiceAccepted(Invoice),
    /// Money has been received.
    PaymentReceived(Invoice),
    /// Money has been sent.
    PaymentSent(Invoice),
    /// Some may have been missed, for the connection was lost or the reader was
    /// slow: look up what you wait for.
    Missed,
}

impl Notice {
    /// `None` if it is of a kind that is not known here.
    pub(super) fn read(plain: &str) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        struct Raw {
            notification_type: String,
            notification: Value,
        }
        let raw: Raw = serde_json::from_str(plain).map_err(|error| error.to_string())?;
        let (kind, state) = match raw.notification_type.as_str() {
            "hold_invoice_accepted" => {
                (Self::HoldInvoiceAccepted as fn(_) -> _, InvoiceState::Accepted)
            }
            "payment_received" => (Self::PaymentReceived as fn(_) -> _, InvoiceState::Settled),
            "payment_sent" => (Self::PaymentSent as fn(_) -> _, InvoiceState::Settled),
            _ => return Ok(None),
        };
        let invoice = Invoice::read(raw.notification)?;
        Ok(Some(kind(Invoice { state, ..invoice })))
    }
}

/// 64 lower-case hex digits.
pub(super) fn hex(bytes: &[u8; 32]) -> String {
    bytes.to_lower_hex_string()
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    <[u8; 32]>::from_hex(text).ok()
}
