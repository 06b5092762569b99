//! Payment requests of our own (NUT-18).

use std::collections::BTreeSet;
use std::str::FromStr;

use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, PaymentRequest, Transport, TransportType};
use nostr_sdk::nips::nip19::Nip19Profile;
use nostr_sdk::{RelayUrl, ToBech32};

use super::delivery::our_relays;
use super::{PayError, PayeeError};
use crate::wallet::{Wallet, WalletError};

/// What to ask for.
#[derive(Debug, Clone, Default)]
pub struct RequestTerms {
    /// Units; the payer chooses if absent.
    pub amount: Option<u64>,
    /// Cashu unit; if absent, the only one that the wallet holds.
    pub unit: Option<String>,
    /// Mints that will do; if empty, those that the wallet knows for the unit.
    pub mints: Vec<MintUrl>,
    /// Relays that the payer publishes to; if empty, our pools'.
    pub relays: Vec<RelayUrl>,
    /// Shown to the payer.
    pub description: Option<String>,
}

/// A request to pay this wallet's npub by a gift wrap, which
/// [`super::collect`] finds.
pub async fn request(wallet: &Wallet, terms: RequestTerms) -> Result<PaymentRequest, PayError> {
    let RequestTerms { amount, unit, mut mints, mut relays, description } = terms;
    let mut known: BTreeSet<_> = wallet.known_mints().await?.into_iter().collect();
    let unit = match unit {
        Some(unit) => unit,
        None => {
            let units: BTreeSet<_> = known.iter().map(|(unit, _)| unit.clone()).collect();
            let only = units.first().filter(|_| units.len() == 1).cloned();
            let which = || units.into_iter().collect::<Vec<_>>().join(", ");
            only.ok_or_else(|| WalletError::WhichUnit(which()))?
        }
    };
    known.retain(|(of, _)| *of == unit);
    if mints.is_empty() {
        mints = known.iter().filter_map(|(_, mint)| mint.parse().ok()).collect();
    }
    if relays.is_empty() {
        relays = our_relays(wallet).await?;
    }
    if relays.is_empty() {
        return Err(PayError::NoRelay);
    }
    let address = Nip19Profile::new(wallet.public_key(), relays).to_bech32();
    let target = address.map_err(|error| PayeeError::Address(error.to_string()))?;
    let mut request = PaymentRequest::builder()
        .payment_id(format!("{:08x}", rand::random::<u32>()))
        .unit(CurrencyUnit::from_str(&unit).map_err(|e| PayeeError::Request(e.to_string()))?)
        .mints(mints)
        .add_transport(Transport {
            _type: TransportType::Nostr,
            target,
            tags: vec![vec!["n".to_owned(), "17".to_owned()]],
        })
        .build();
    request.amount = amount.map(Into::into);
    request.description = description;
    Ok(request)
}
