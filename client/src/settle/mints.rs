//! The mints of a trade: keysets whose ids follow from their keys, and which sat
//! mints are trusted.
//!
//! A mint's key (NUT-06) is only what the mint says. So a way of payment
//! `cashu:<key>` is honoured at mints alone that this wallet trusts anyway, never
//! at a URL that an exchange or a counterparty names.

use std::collections::HashMap;
use std::sync::Arc;

use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, Id, KeySet, MintInfo, PublicKey as MintKey};
use cdk::wallet::MintConnector;
use cdk::{Error, Wallet as CdkWallet};
use nostr_sdk::Timestamp;
use tokio::sync::Mutex;

use super::SettleError;
use super::record::Honoured;
use crate::wallet::Wallet;

/// A unit at a mint, and the keyset that signs there.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) cdk: Arc<CdkWallet>,
    pub(super) keyset: KeySet,
    /// Seconds that the mint's clock is ahead of this machine's, if it tells.
    pub(super) ahead: i64,
    /// Whether its maker is known for `SIG_ALL`.
    pub(super) by_cdk: bool,
    /// Held while a leg is locked here: what is left of the proofs that one trade
    /// spends may be all that the next has.
    pub(super) till: Arc<Mutex<()>>,
}

impl Place {
    fn new(
        cdk: Arc<CdkWallet>,
        keyset: KeySet,
        info: Option<&MintInfo>,
        till: Arc<Mutex<()>>,
    ) -> Self {
        let ahead = |time: u64| time.cast_signed() - Timestamp::now().as_secs().cast_signed();
        let by_cdk = info
            .and_then(|info| info.version.as_ref())
            .is_some_and(|it| it.name.starts_with("cdk"));
        Self { cdk, keyset, ahead: info.and_then(|info| info.time).map_or(0, ahead), by_cdk, till }
    }

    pub(super) fn mint(&self) -> Arc<dyn MintConnector + Send + Sync> {
        self.cdk.mint_connector()
    }

    pub(super) fn honoured(&self) -> Honoured {
        Honoured { mint: self.cdk.mint_url.clone(), keyset: self.keyset.clone() }
    }
}

/// Why a mint will not do for a trade.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("no mint that this wallet trusts has the key {0}; add its URL to [trade] mints")]
    Untrusted(MintKey),
    #[error("the mint does not support what a swap needs: NUT-{0:02}")]
    Unable(u8),
    #[error("this ehash can be melted, which would let a preimage be hidden")]
    Meltable,
    #[error("the mint's keyset {0} is not what its keys say, or of another unit")]
    Keyset(Id),
    #[error("the mint: {0}")]
    Mint(#[from] Error),
    #[error("whether the mint knows SIG_ALL is not known yet: {0}")]
    Busy(String),
    #[error(transparent)]
    Settle(#[from] SettleError),
}

impl From<crate::wallet::WalletError> for PlaceError {
    fn from(error: crate::wallet::WalletError) -> Self {
        Self::Settle(error.into())
    }
}

/// What is known of mints.
pub(super) struct Mints {
    wallet: Wallet,
    trusted: Vec<MintUrl>,
    known: Mutex<Known>,
    /// Held while a mint is tried out.
    pub(super) trying: Mutex<()>,
}

#[derive(Default)]
struct Known {
    sats: HashMap<MintKey, MintUrl>,
    places: HashMap<(MintUrl, Option<Id>), Place>,
    tills: HashMap<MintUrl, Arc<Mutex<()>>>,
}

impl Mints {
    pub(super) fn new(wallet: Wallet, trusted: Vec<MintUrl>) -> Self {
        Self { wallet, trusted, known: Mutex::default(), trying: Mutex::default() }
    }

    /// The trusted sat mint with a key.
    pub(super) async fn sats(&self, key: MintKey) -> Result<MintUrl, PlaceError> {
        let mut known = self.known.lock().await;
        if let Some(url) = known.sats.get(&key) {
            return Ok(url.clone());
        }
        let used = self.wallet.known_mints().await?;
        let used = used.into_iter().filter(|(unit, _)| unit == "sat");
        let used: Vec<MintUrl> = used.filter_map(|(_, mint)| mint.parse().ok()).collect();
        for url in self.trusted.iter().chain(&used) {
            let mint = self.wallet.trading_cdk(url, &CurrencyUnit::Sat).await?.mint_connector();
            match mint.get_mint_info().await {
                Ok(info) if info.pubkey == Some(key) => {
                    known.sats.insert(key, url.clone());
                    return Ok(url.clone());
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%url, %error, "a trusted mint does not answer"),
            }
        }
        Err(PlaceError::Untrusted(key))
    }

    /// Where sats are locked: at a mint, by its active keyset or by a named one.
    pub(super) async fn sat_place(
        &self,
        url: &MintUrl,
        keyset: Option<Id>,
    ) -> Result<Place, PlaceError> {
        let mut known = self.known.lock().await;
        if let Some(place) = known.places.get(&(url.clone(), keyset)) {
            return Ok(place.clone());
        }
        let cdk = Arc::new(self.wallet.trading_cdk(url, &CurrencyUnit::Sat).await?);
        let info = able(&cdk, None).await?;
        let active = match keyset {
            None => cdk.active_keyset().await?,
            Some(id) => {
                let all = cdk.keysets(Default::default()).await?;
                all.into_iter().find(|it| it.id == id).ok_or(PlaceError::Keyset(id))?
            }
        };
        let place = Place::new(cdk, active, Some(&info), known.till(url));
        let place = checked(place, &CurrencyUnit::Sat)?;
        known.places.insert((url.clone(), Some(place.keyset.id)), place.clone());
        Ok(place)
    }

    /// Where an epoch's ehash is locked, as its pool has announced.
    pub(super) async fn ehash_place(&self, ehash: &Honoured) -> Result<Place, PlaceError> {
        let unit = ehash.keyset.unit.clone();
        let mut known = self.known.lock().await;
        let named = (ehash.mint.clone(), Some(ehash.keyset.id));
        if let Some(place) = known.places.get(&named) {
            return Ok(place.clone());
        }
        let cdk = Arc::new(self.wallet.trading_cdk(&ehash.mint, &unit).await?);
        let info = able(&cdk, Some(&unit)).await?;
        let till = known.till(&ehash.mint);
        let place = checked(Place::new(cdk, ehash.keyset.clone(), Some(&info), till), &unit)?;
        known.places.insert(named, place.clone());
        Ok(place)
    }

    /// A place that was found good before; nobody is asked.
    pub(super) async fn place(&self, honoured: &Honoured) -> Result<Place, PlaceError> {
        let Honoured { mint, keyset } = honoured.clone();
        let mut known = self.known.lock().await;
        if let Some(place) = known.places.get(&(mint.clone(), Some(keyset.id))) {
            return Ok(place.clone());
        }
        let till = known.till(&mint);
        let unit = keyset.unit.clone();
        let cdk = Arc::new(self.wallet.trading_cdk(&mint, &unit).await?);
        checked(Place::new(cdk, keyset, None, till), &unit)
    }
}

impl Known {
    fn till(&mut self, mint: &MintUrl) -> Arc<Mutex<()>> {
        self.tills.entry(mint.clone()).or_default().clone()
    }
}

/// Whether the mint can do what a swap needs, and what it says of itself. `ehash`
/// must not be meltable.
async fn able(cdk: &CdkWallet, ehash: Option<&CurrencyUnit>) -> Result<MintInfo, PlaceError> {
    let info = cdk.mint_connector().get_mint_info().await?;
    let nuts = &info.nuts;
    let supported = [
        (7, nuts.nut07.supported),
        (9, nuts.nut09.supported),
        (10, nuts.nut10.supported),
        (11, nuts.nut11.supported),
        (12, nuts.nut12.supported),
        (14, nuts.nut14.supported),
    ];
    if let Some((missing, _)) = supported.into_iter().find(|(_, supported)| !supported) {
        return Err(PlaceError::Unable(missing));
    }
    let melts = |unit: &CurrencyUnit| nuts.nut05.methods.iter().any(|method| method.unit == *unit);
    if ehash.is_some_and(melts) {
        return Err(PlaceError::Meltable);
    }
    Ok(info)
}

fn checked(place: Place, unit: &CurrencyUnit) -> Result<Place, PlaceError> {
    let keyset = &place.keyset;
    if keyset.verify_id().is_err() || keyset.unit != *unit {
        return Err(PlaceError::Keyset(keyset.id));
    }
    Ok(place)
}
