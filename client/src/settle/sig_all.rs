//! Whether a mint knows `SIG_ALL` (NUT-11), which no mint tells: tried out once,
//! with a coin of the wallet's own, and remembered.
//!
//! The coin is locked to a key of ours, under `SIG_ALL`, and claimed twice:
//! 1. with a signature over other outputs than it is sent with, which must be
//!    refused;
//! 2. as it was signed, which must be carried out.
//!
//! A mint that does not refuse the first looks at no signature, and one that
//! refuses the second knows another `SIG_ALL` or none. Then the coin is claimed as
//! under `SIG_INPUTS`, or taken back after its locktime. All outputs are the
//! wallet's, so that nothing but the mint's fee is lost by it. Each finding is
//! written before the next claim is sent, and a trial goes on where it was left.

use cdk::nuts::{Proofs, SwapRequest};
use hashpit_nips::eh06::{self, HtlcLock, lock_key};
use nostr_sdk::EventId;
use tracing::{debug, info};
use uuid::Uuid;

use super::SettleError;
use super::keys::{TradeKeys, sha256, short};
use super::legs::sign;
use super::mints::{Mints, Place, PlaceError};
use super::settler::Shared;
use crate::wallet::{NAMESPACE, Swap, SwapError, Wallet, WalletError};

const TABLE: &str = "sig_all";
/// How long a coin is locked that a mint gives out under no signature.
const LOCKED: u64 = 15 * 60;
/// What is tried out with, after the mint's fee.
const COIN: u64 = 1;

/// How far a trial has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Nothing is known.
    Nothing,
    /// A claim with other outputs was refused.
    Refuses,
    /// It knows `SIG_ALL`.
    Knows,
    /// It does not.
    Lacks,
}

impl Found {
    const ALL: [(Self, &'static [u8]); 3] =
        [(Self::Refuses, b"refuses"), (Self::Knows, b"knows"), (Self::Lacks, b"lacks")];
}

impl Mints {
    /// Whether a leg that another locks at a place may be under `SIG_ALL`.
    pub(super) async fn knows_sig_all(
        &self,
        shared: &Shared,
        place: &Place,
    ) -> Result<bool, PlaceError> {
        let tried = self.tried_sig_all(shared, place).await?;
        // A wallet that has nothing there yet cannot try; cdk's mint is known.
        Ok(tried.unwrap_or(place.by_cdk))
    }

    /// Whether a mint knows `SIG_ALL`, tried out if it never was; `None` where the
    /// wallet holds nothing to try with.
    pub(super) async fn tried_sig_all(
        &self,
        shared: &Shared,
        place: &Place,
    ) -> Result<Option<bool>, PlaceError> {
        let mint = short(&place.cdk.mint_url.to_string());
        let wallet = &shared.wallet;
        if found(wallet, &mint).await? == Found::Knows {
            return Ok(Some(true));
        }
        let _trying = self.trying.lock().await;
        Trial::new(shared, place, mint).run().await
    }
}

/// A trial of one mint.
struct Trial<'a> {
    shared: &'a Shared,
    place: &'a Place,
    /// Names the mint.
    mint: String,
    /// Names the trial's swaps.
    name: String,
    keys: TradeKeys,
}

impl<'a> Trial<'a> {
    fn new(shared: &'a Shared, place: &'a Place, mint: String) -> Self {
        let name = short(&format!("SIG_ALL {mint} {}", place.keyset.id));
        let of = EventId::from_byte_array(sha256(name.as_bytes()));
        let keys = TradeKeys::new(&shared.keys, of);
        Self { shared, place, mint, name, keys }
    }

    async fn run(&self) -> Result<Option<bool>, PlaceError> {
        let wallet = &self.shared.wallet;
        match found(wallet, &self.mint).await? {
            Found::Knows => return Ok(Some(true)),
            Found::Lacks => return self.take_back().await,
            Found::Nothing | Found::Refuses => {}
        }
        let Some(coin) = self.lock().await? else { return Ok(None) };
        let (cdk, keyset, name) = (&self.place.cdk, &self.place.keyset, self.claim_name());
        let swap = wallet.plan_receipt(&name, cdk, keyset, coin).await?;
        if found(wallet, &self.mint).await? == Found::Nothing {
            let found = match self.claim(&swap, Variant::Altered).await? {
                true => Found::Lacks,
                false => Found::Refuses,
            };
            self.note(found).await?;
        }
        if found(wallet, &self.mint).await? == Found::Refuses {
            let found = match self.claim(&swap, Variant::Whole).await? {
                true => Found::Knows,
                false => Found::Lacks,
            };
            self.note(found).await?;
        }
        let known = found(wallet, &self.mint).await? == Found::Knows;
        info!(mint = %cdk.mint_url, known, "tried whether the mint knows SIG_ALL");
        if !known {
            return self.take_back().await;
        }
        wallet.forget_swaps(&self.name).await?;
        Ok(Some(true))
    }

    /// Claims the coin without `SIG_ALL`, if it is still locked; the same claim is
    /// a refund after the locktime.
    async fn take_back(&self) -> Result<Option<bool>, PlaceError> {
        let wallet = &self.shared.wallet;
        if let Some(swap) = wallet.swap(&self.claim_name()).await? {
            if swap.is_done() || self.claim(&swap, Variant::Each).await? {
                wallet.forget_swaps(&self.name).await?;
            } else {
                debug!(mint = %self.place.cdk.mint_url, "a coin stays locked until later");
            }
        }
        Ok(Some(false))
    }

    fn claim_name(&self) -> String {
        format!("{}-claim", self.name)
    }

    /// The coin, locked; `None` where there is none to lock.
    async fn lock(&self) -> Result<Option<Proofs>, PlaceError> {
        let (wallet, keyset) = (&self.shared.wallet, &self.place.keyset);
        let Ok(amounts) = eh06::amounts(COIN, keyset) else { return Ok(None) };
        let key = lock_key(&self.keys.keys().public_key());
        let locktime = self.shared.clock.now() + LOCKED;
        let hash = self.keys.hash();
        let lock = HtlcLock { hash, to: key, refund: key, locktime, sig_all: true };
        let (name, operation) = (format!("{}-lock", self.name), self.operation());
        let given = self.keys.locked(&lock, &amounts);
        let planned = wallet.plan_payment(&name, operation, &self.place.cdk, keyset, given).await;
        let swap = match planned {
            Err(WalletError::Insufficient { .. }) => return Ok(None),
            planned => planned?,
        };
        let request = swap.request(wallet)?;
        let mint = self.place.mint();
        match wallet.carry_out(&swap, request, mint.as_ref(), keyset, &self.shared.probe).await {
            Ok(mut proofs) => {
                proofs.truncate(amounts.len());
                Ok(Some(proofs))
            }
            Err(SwapError::Wallet(error)) => Err(error.into()),
            Err(SwapError::Refused(error)) => {
                debug!(%error, "the mint does not lock a coin under SIG_ALL");
                wallet.give_up(&name, operation).await?;
                Ok(None)
            }
            Err(error @ SwapError::Reused) => {
                wallet.skip_counters(&swap).await?;
                wallet.give_up(&name, operation).await?;
                Err(PlaceError::Busy(error.to_string()))
            }
            Err(error) => Err(PlaceError::Busy(error.to_string())),
        }
    }

    /// Claims the coin; false if the mint refuses.
    async fn claim(&self, swap: &Swap, variant: Variant) -> Result<bool, PlaceError> {
        let (wallet, mint) = (&self.shared.wallet, self.place.mint());
        let request = self.signed(swap.request(wallet)?, variant)?;
        match wallet
            .carry_out(swap, request, mint.as_ref(), &self.place.keyset, &self.shared.probe)
            .await
        {
            Ok(_) => Ok(true),
            Err(SwapError::Refused(error)) => {
                debug!(%error, ?variant, "refused");
                Ok(false)
            }
            // Some makers give no code for this.
            Err(SwapError::Unknown(cdk::Error::UnknownErrorResponse(error))) => {
                debug!(%error, ?variant, "refused");
                Ok(false)
            }
            Err(error @ SwapError::Reused) => {
                wallet.skip_counters(swap).await?;
                let (cdk, keyset, name) = (&self.place.cdk, &self.place.keyset, self.claim_name());
                wallet.forget_swaps(&name).await?;
                wallet.plan_receipt(&name, cdk, keyset, swap.inputs().clone()).await?;
                Err(PlaceError::Busy(error.to_string()))
            }
            Err(SwapError::Wallet(error)) => Err(error.into()),
            Err(error) => Err(PlaceError::Busy(error.to_string())),
        }
    }

    fn signed(
        &self,
        mut request: SwapRequest,
        variant: Variant,
    ) -> Result<SwapRequest, PlaceError> {
        let own = request.outputs().clone();
        if variant == Variant::Altered
            && let Some(first) = request.outputs_mut().first_mut()
        {
            first.blinded_secret = self.keys.cashu().public_key();
        }
        let (key, preimage) = (self.keys.cashu(), self.keys.preimage());
        sign(&mut request, key, variant != Variant::Each, &preimage)
            .map_err(|error| PlaceError::Busy(error.to_string()))?;
        *request.outputs_mut() = own;
        Ok(request)
    }

    async fn note(&self, found: Found) -> Result<(), SettleError> {
        let Some((_, word)) = Found::ALL.into_iter().find(|(it, _)| *it == found) else {
            return Ok(());
        };
        let store = &self.shared.wallet.store;
        Ok(store.kv_write(NAMESPACE, TABLE, &self.mint, word).await?)
    }

    fn operation(&self) -> Uuid {
        Uuid::try_parse(&self.name[..32]).expect("32 hexadecimal digits")
    }
}

/// How a claim is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Under `SIG_ALL`, over other outputs.
    Altered,
    /// Under `SIG_ALL`.
    Whole,
    /// Each input, as under `SIG_INPUTS`.
    Each,
}

async fn found(wallet: &Wallet, mint: &str) -> Result<Found, SettleError> {
    let word = wallet.store.kv_read(NAMESPACE, TABLE, mint).await?;
    let named = Found::ALL.into_iter().find(|(_, word_of)| word.as_deref() == Some(*word_of));
    Ok(named.map_or(Found::Nothing, |(found, _)| found))
}
