//! What a wallet knows besides its proofs, as kind 17375 keeps it.

use std::collections::BTreeMap;

use cdk::mint_url::MintUrl;
use cdk::nuts::CurrencyUnit;
use cdk_common::wallet::{SendSagaState, WalletSagaState};
use hashpit_nips::eh03::{CounterTag, EpochTag, PoolTag, WalletContent};

use super::{Author, Settings};
use crate::wallet::{Wallet, WalletError, account};

impl Wallet {
    /// What a restored wallet needs to go on mining: mints, pools, epochs, and
    /// for each keyset the lowest counter that it must look at.
    ///
    /// While a swap is unfinished, counters stay where the last backup had them:
    /// its outputs may be signed and not in the wallet yet.
    pub async fn backup_state(&self) -> Result<WalletContent, WalletError> {
        let _lock = self.lock().await?;
        self.gather_state().await
    }

    /// [`Self::backup_state`], under a lock that is held already.
    pub(super) async fn gather_state(&self) -> Result<WalletContent, WalletError> {
        let mut content = WalletContent::default();
        for pool in self.pools().await? {
            content.pools.push(PoolTag { pool: pool.pool, relays: pool.relays });
        }
        let epochs = self.epochs().await?;
        for epoch in &epochs {
            content.epochs.push(EpochTag {
                unit: epoch.unit,
                keyset: epoch.keyset,
                mint: epoch.mint().clone(),
                work: epoch.work,
                batches: epoch.next_batch,
                received: epoch.received,
            });
        }
        let before = self.backup_book().await?;
        let before = before.wallet(Author::Ehash).map(|(_, plaintext)| plaintext);
        let before = before.and_then(|plaintext| WalletContent::decode(plaintext).ok());
        let before = before.unwrap_or_default().counters.into_iter();
        let before: BTreeMap<_, _> = before.map(|tag| (tag.keyset, tag.from)).collect();
        // A token that was handed out has its change in the wallet already.
        let handed_out = WalletSagaState::Send(SendSagaState::TokenCreated);
        let sagas = self.store.get_incomplete_sagas().await?;
        let unfinished = sagas.iter().any(|saga| saga.state != handed_out);
        for (mint, units) in self.mints_and_units().await? {
            if units.iter().any(|(_, unit)| *unit != CurrencyUnit::Sat) {
                content.mints.push(mint);
            }
            for (keyset, _) in units {
                let next = self.store.increment_keyset_counter(&keyset, 0).await?;
                let waiting = epochs.iter().filter(|epoch| epoch.keyset == keyset);
                let waiting = waiting.filter_map(|epoch| epoch.lowest_outstanding()).min();
                let low = next.min(waiting.unwrap_or(next));
                let low =
                    if unfinished { before.get(&keyset).map_or(0, |b| low.min(*b)) } else { low };
                if next > 0 {
                    content.counters.push(CounterTag { keyset, from: low, next });
                }
            }
        }
        content.counters.sort_by_key(|tag| tag.keyset.to_string());
        Ok(content)
    }

    /// The keysets of each mint.
    async fn mints_and_units(
        &self,
    ) -> Result<BTreeMap<MintUrl, Vec<(cdk::nuts::Id, CurrencyUnit)>>, WalletError> {
        let mut mints = BTreeMap::new();
        for mint in self.store.get_mints().await?.into_keys() {
            let keysets = self.store.get_mint_keysets(mint.clone()).await?.unwrap_or_default();
            let keysets = keysets.into_iter().map(|info| (info.id, info.unit)).collect();
            mints.insert(mint, keysets);
        }
        Ok(mints)
    }
}

/// The two authors' wallet events, as this wallet alone would write them. The
/// identity has one only while there are sats, by mint.
pub(super) fn contents(
    wallet: &Wallet,
    mut state: WalletContent,
    sat_mints: Vec<MintUrl>,
    settings: &Settings,
) -> BTreeMap<Author, WalletContent> {
    state.relays = settings.relays.clone();
    let mut contents = BTreeMap::from([(Author::Ehash, state)]);
    if !sat_mints.is_empty() {
        let privkeys = vec![wallet.seed().nostr_keys(account::NUTZAP).secret_key().clone()];
        let (mints, relays) = (sat_mints, settings.relays.clone());
        let sats = WalletContent { mints, privkeys, relays, ..WalletContent::default() };
        contents.insert(Author::Identity, sats);
    }
    contents
}

/// `ours`, with what else the relays have: it may be another wallet's. A key
/// for nutzaps that is there already stays the only one. The relays of ehash are
/// ours to set; those of the identity may serve another wallet.
pub(super) fn united(author: Author, ours: WalletContent, theirs: WalletContent) -> WalletContent {
    let mut united = ours;
    if !theirs.privkeys.is_empty() {
        united.privkeys.clear();
    }
    let known = |keyset| united.counters.iter().any(|ours| ours.keyset == keyset);
    let counters = theirs.counters.iter().filter(|tag| !known(tag.keyset)).copied().collect();
    let known = |unit| united.epochs.iter().any(|ours| ours.unit == unit);
    let epochs = theirs.epochs.iter().filter(|epoch| !known(epoch.unit)).cloned().collect();
    let known = |pool| united.pools.iter().any(|ours| ours.pool == pool);
    let pools = theirs.pools.iter().filter(|pool| !known(pool.pool)).cloned().collect();
    let relays = match author {
        Author::Ehash => Vec::new(),
        Author::Identity => theirs.relays.clone(),
    };
    // What we do not hold any more is gone.
    let held = Vec::new();
    united.merge(WalletContent { counters, epochs, pools, relays, held, ..theirs });
    united
}
