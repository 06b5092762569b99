//! What a BOLT11 invoice must say before it is paid. Pure.

use std::time::Duration;

use bitcoin::Network;
use bitcoin::hashes::Hash;
use cdk::Bolt11Invoice;
use cdk::lightning_invoice::ParseOrSemanticError;
use hashpit_nips::Msats;
use nostr_sdk::Timestamp;

/// Most blocks that an invoice may want its last hop held for: two weeks, as long
/// as Lightning nodes lock money up at all.
pub const MAX_FINAL_CLTV: u64 = 2016;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceTerms {
    /// What is to be paid, to the msat.
    pub amount: Msats,
    /// The hash that it is paid on.
    pub payment_hash: [u8; 32],
    /// The chain.
    pub network: Network,
    /// How long it must be payable from now, at least.
    pub margin: Duration,
}

/// An invoice that asks for what was agreed on, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedInvoice {
    /// BOLT11.
    pub bolt11: String,
    /// Until when it can be paid.
    pub expires_at: Timestamp,
    /// Blocks that it wants its last hop held for.
    pub min_final_cltv: u64,
}

/// Why an invoice is not to be paid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvoiceError {
    /// No BOLT11, or its signature is wrong.
    #[error("not a Lightning invoice (BOLT11): {0}")]
    Parse(String),
    /// For another chain.
    #[error("the invoice is for {found}, not {expected}")]
    Network {
        /// What was agreed on.
        expected: Network,
        /// What it says.
        found: Network,
    },
    /// Another amount, or none.
    #[error("the invoice asks for {found:?}, not {expected:?}")]
    Amount {
        /// What was agreed on.
        expected: Msats,
        /// What it says; any amount if `None`.
        found: Option<Msats>,
    },
    /// Another hash.
    #[error("the invoice is on another payment hash than the one agreed on")]
    PaymentHash,
    /// It expires too early.
    #[error("the invoice expires at {0}, which is too early; ask for a new one")]
    Expires(Timestamp),
    /// It would lock the money up for too long.
    #[error("the invoice wants the payment held for {0} blocks; at most {MAX_FINAL_CLTV} are safe")]
    FinalCltv(u64),
}

impl From<ParseOrSemanticError> for InvoiceError {
    fn from(error: ParseOrSemanticError) -> Self {
        Self::Parse(error.to_string())
    }
}

/// Checks an invoice against what was agreed on, as of `now`. Its description is
/// free.
pub fn check_invoice(
    invoice: &str,
    terms: &InvoiceTerms,
    now: Timestamp,
) -> Result<CheckedInvoice, InvoiceError> {
    // Parsing checks the signature too.
    let parsed: Bolt11Invoice = invoice.parse()?;
    if parsed.network() != terms.network {
        let (expected, found) = (terms.network, parsed.network());
        return Err(InvoiceError::Network { expected, found });
    }
    let found = parsed.amount_milli_satoshis().map(Msats::new);
    if found != Some(terms.amount) {
        return Err(InvoiceError::Amount { expected: terms.amount, found });
    }
    if parsed.payment_hash().to_byte_array() != terms.payment_hash {
        return Err(InvoiceError::PaymentHash);
    }
    let expiry = parsed.duration_since_epoch().saturating_add(parsed.expiry_time());
    let expires_at = Timestamp::from(expiry.as_secs());
    if expires_at < now + terms.margin {
        return Err(InvoiceError::Expires(expires_at));
    }
    let min_final_cltv = parsed.min_final_cltv_expiry_delta();
    if min_final_cltv > MAX_FINAL_CLTV {
        return Err(InvoiceError::FinalCltv(min_final_cltv));
    }
    Ok(CheckedInvoice { bolt11: invoice.to_owned(), expires_at, min_final_cltv })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::hashes::sha256;
    use bitcoin::secp256k1::{SECP256K1, SecretKey};
    use cdk::lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
    use proptest::prelude::*;

    const MADE: u64 = 1_700_000_000;

    fn invoice(msats: Option<u64>, cltv: u64) -> String {
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        let builder = InvoiceBuilder::new(Currency::Regtest)
            .description("12,000 ehash".to_owned())
            .payment_hash(sha256::Hash::from_byte_array([9; 32]))
            .payment_secret(PaymentSecret([1; 32]))
            .duration_since_epoch(Duration::from_secs(MADE))
            .expiry_time(Duration::from_secs(600))
            .min_final_cltv_expiry_delta(cltv);
        let sign = |hash: &_| SECP256K1.sign_ecdsa_recoverable(hash, &key);
        match msats {
            Some(msats) => builder.amount_milli_satoshis(msats).build_signed(sign),
            None => builder.build_signed(sign),
        }
        .unwrap()
        .to_string()
    }

    fn terms() -> InvoiceTerms {
        InvoiceTerms {
            amount: Msats::new(50_001),
            payment_hash: [9; 32],
            network: Network::Regtest,
            margin: Duration::from_secs(60),
        }
    }

    fn check(invoice: &str, terms: &InvoiceTerms, after: u64) -> Result<(), InvoiceError> {
        check_invoice(invoice, terms, Timestamp::from(MADE + after)).map(drop)
    }

    #[test]
    fn what_was_agreed_on_passes_until_the_margin() {
        let invoice = invoice(Some(50_001), MAX_FINAL_CLTV);
        let checked = check_invoice(&invoice, &terms(), Timestamp::from(MADE)).unwrap();
        assert_eq!(checked.bolt11, invoice);
        assert_eq!(checked.expires_at.as_secs(), MADE + 600);
        assert_eq!(checked.min_final_cltv, MAX_FINAL_CLTV);
        assert_eq!(check(&invoice, &terms(), 540), Ok(()));
        let expired = Err(InvoiceError::Expires(Timestamp::from(MADE + 600)));
        assert_eq!(check(&invoice, &terms(), 541), expired);
    }

    #[test]
    fn anything_else_is_refused() {
        let good = invoice(Some(50_001), 80);
        let amount = |found: Option<u64>| InvoiceError::Amount {
            expected: Msats::new(50_001),
            found: found.map(Msats::new),
        };
        for found in [Some(50_000), Some(50_002), None] {
            assert_eq!(check(&invoice(found, 80), &terms(), 0), Err(amount(found)));
        }
        let held = invoice(Some(50_001), MAX_FINAL_CLTV + 1);
        assert_eq!(check(&held, &terms(), 0), Err(InvoiceError::FinalCltv(MAX_FINAL_CLTV + 1)));
        let other = InvoiceTerms { payment_hash: [8; 32], ..terms() };
        assert_eq!(check(&good, &other, 0), Err(InvoiceError::PaymentHash));
        let mainnet = InvoiceTerms { network: Network::Bitcoin, ..terms() };
        let (expected, found) = (Network::Bitcoin, Network::Regtest);
        let network = InvoiceError::Network { expected, found };
        assert_eq!(check(&good, &mainnet, 0), Err(network));
    }

    proptest! {
        #[test]
        fn a_mangled_invoice_never_passes(at in 0usize..400, with in "[a-z0-9]") {
            let good = invoice(Some(50_001), 80);
            let at = at % good.len();
            let mut mangled = good.clone();
            mangled.replace_range(at..=at, &with);
            prop_assert_eq!(check(&mangled, &terms(), 0).is_ok(), mangled == good);
        }
    }
}
