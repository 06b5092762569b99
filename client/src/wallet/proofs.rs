//! How many proofs go into one request, and what to do when there are more.

use std::collections::HashSet;
use std::str::FromStr;

use cdk::Wallet as CdkWallet;
use cdk::amount::SplitTarget;
use cdk::nuts::{CheckStateRequest, KeySet, KeySetInfo, Proofs, ProofsMethods, State, Token};
use cdk::wallet::ReceiveOptions;
use cdk::{Amount, Error};
use cdk_common::wallet::KeysetLoadPolicy;

use super::{Balance, CHECKED_AT_ONCE, Wallet, WalletError, explain};

/// Proofs in one swap by HTTP: cdk's mints take 1,000, others fewer.
const BY_HTTP: usize = 500;
/// Proofs in one swap over Nostr: about 15 kB, and as much again for as many
/// outputs; relays that take events of 64 kB carry it.
const OVER_NOSTR: usize = 50;

impl Wallet {
    /// Swaps many small proofs of each unit for few, so that what is spent next
    /// fits into one request. How many proofs there are fewer.
    pub async fn consolidate(&self) -> Result<usize, WalletError> {
        let _lock = self.lock().await?;
        self.resume_swaps().await?;
        let mut fewer = 0;
        for Balance { unit, mint, .. } in self.balances().await? {
            let cdk = self.cdk(&mint, &unit).await?;
            let done = self.swap_for_fewer(&cdk).await;
            fewer += done.map_err(|error| explain(error, &cdk.mint_url))?;
        }
        Ok(fewer)
    }

    /// Consolidates if there are more proofs than one request carries.
    pub(super) async fn consolidate_at(&self, cdk: &CdkWallet) -> Result<(), Error> {
        self.consolidate_to(cdk, self.at_once(cdk).await).await
    }

    /// Consolidates if there are more than `few` proofs.
    pub(super) async fn consolidate_to(&self, cdk: &CdkWallet, few: usize) -> Result<(), Error> {
        if cdk.get_unspent_proofs().await?.len() > few {
            self.swap_for_fewer(cdk).await?;
        }
        Ok(())
    }

    /// Swaps the smallest proofs, as many at once as one request carries, until
    /// swapping makes no fewer. Each swap is one of cdk's, which finishes or undoes
    /// it after a crash.
    async fn swap_for_fewer(&self, cdk: &CdkWallet) -> Result<usize, Error> {
        let at_once = self.at_once(cdk).await;
        let mut proofs = cdk.get_unspent_proofs().await?;
        let first = proofs.len();
        loop {
            let count = proofs.len();
            proofs.sort_by_key(|proof| proof.amount);
            proofs.truncate(at_once);
            if !has_pairs(&proofs) {
                return Ok(first - count);
            }
            // No wish for certain amounts: the fewest proofs.
            let fewest = SplitTarget::Values(Vec::new());
            cdk.swap(None, fewest, proofs, None, false, false).await?;
            proofs = cdk.get_unspent_proofs().await?;
            tracing::debug!(before = count, after = proofs.len(), "proofs consolidated");
            if proofs.len() >= count {
                return Ok(first - count);
            }
        }
    }

    /// Receives a token, in as many swaps as it takes. If an earlier attempt came
    /// only so far, the rest.
    pub(super) async fn receive_at(&self, cdk: &CdkWallet, token: &str) -> Result<Amount, Error> {
        let at_once = self.at_once(cdk).await;
        let parsed = Token::from_str(token)?;
        if parsed.token_secrets().len() <= at_once {
            return cdk.receive(token, ReceiveOptions::default()).await;
        }
        let keysets = cdk.keysets(KeysetLoadPolicy::default()).await?;
        let proofs = parsed.proofs(&keysets.into_iter().map(info).collect::<Vec<_>>())?;
        let mut left = Proofs::new();
        for some in proofs.chunks(CHECKED_AT_ONCE) {
            left.extend(self.unspent(cdk, some.to_vec()).await?);
        }
        if left.is_empty() {
            return Err(Error::TokenAlreadySpent);
        }
        let mut amount = Amount::ZERO;
        for some in left.chunks(at_once) {
            let options = ReceiveOptions::default();
            let received = cdk.receive_proofs(some.to_vec(), options, None, None).await?;
            amount = amount.checked_add(received).ok_or(Error::AmountOverflow)?;
        }
        Ok(amount)
    }

    async fn unspent(&self, cdk: &CdkWallet, proofs: Proofs) -> Result<Proofs, Error> {
        let request = CheckStateRequest { ys: proofs.ys()? };
        let answer = cdk.mint_connector().post_check_state(request).await?;
        let states = answer.states.into_iter();
        let spent: HashSet<_> =
            states.filter(|told| told.state == State::Spent).map(|told| told.y).collect();
        Ok(proofs
            .into_iter()
            .filter(|proof| proof.y().is_ok_and(|y| !spent.contains(&y)))
            .collect())
    }

    async fn at_once(&self, cdk: &CdkWallet) -> usize {
        if self.mints.prefers_http(&cdk.mint_url).await { BY_HTTP } else { OVER_NOSTR }
    }
}

pub(super) fn info(keyset: KeySet) -> KeySetInfo {
    let KeySet { id, unit, active, input_fee_ppk, final_expiry, .. } = keyset;
    KeySetInfo { id, unit, active: active.unwrap_or(true), input_fee_ppk, final_expiry }
}

/// True if two are of the same amount; otherwise they are the fewest that make
/// their sum.
fn has_pairs(proofs: &Proofs) -> bool {
    proofs.windows(2).any(|pair| pair[0].amount == pair[1].amount)
}
