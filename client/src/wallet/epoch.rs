//! How far the issuance of one epoch's ehash has come: which blanks are with
//! the pool, which batches have arrived.
//!
//! Order of writing, so that a crash anywhere loses nothing:
//! - new blanks: this record, then cdk's counter, then the message;
//! - a batch: this record with the batch in `applying`, then cdk's proofs, then
//!   this record without it, then the acknowledgement.
//!
//! [`EpochState::recover`] finishes either under the wallet's lock, before
//! anything else can spend what a batch brought.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use cdk::mint_url::MintUrl;
use cdk::nuts::{
    BlindSignature, CurrencyUnit, Id, KeySetInfo, PreMint, PreMintSecrets, PublicKey as CashuKey,
    State,
};
use cdk_common::wallet::ProofInfo;
use hashpit_nips::eh01::{EpochKeyset, EpochState as Phase};
use hashpit_nips::eh02::{Batch, MAX_BLANKS, Statement};
use hashpit_nips::{EpochId, HashUnits, Seed, WorkBits};
use nostr_sdk::Timestamp;
use serde::{Deserialize, Serialize};

use super::{NAMESPACE, Store, Wallet, WalletError, history};

const TABLE: &str = "epochs";
const VERSION: u8 = 1;

/// The record, and what it promises to finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EpochState {
    version: u8,
    /// The epoch.
    pub(crate) unit: EpochId,
    /// Its keyset.
    pub(crate) keyset: Id,
    /// Where its ehash is honoured.
    pub(super) mint: MintUrl,
    /// When the pool said so; relays may deliver an older word later.
    announced_at: Timestamp,
    /// One unit is 2^work hashes.
    pub(crate) work: WorkBits,
    /// NUT-13 counters of blanks that the pool has and has not signed.
    outstanding: BTreeSet<u32>,
    /// Every batch below this number has arrived.
    pub(crate) next_batch: u64,
    /// Batches that arrived before one with a smaller number.
    early: BTreeSet<u64>,
    /// Units that arrived.
    pub(crate) received: HashUnits,
    /// A batch whose proofs may or may not be stored yet.
    pub(super) applying: Option<Batch>,
    /// What the pool last said of the epoch.
    #[serde(default)]
    pub(crate) phase: Option<Phase>,
    /// What became of the epoch's batches before the wallet was restored.
    #[serde(default)]
    past: Past,
}

/// How well a wallet knows which batches its epoch had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Past {
    /// It has applied every one itself.
    #[default]
    Own,
    /// The wallet was restored. Once the pool has said how many there were, the
    /// mint is asked which of the outstanding blanks were signed.
    Unknown,
    /// It was restored, and has counted on from a statement.
    Adopted,
}

/// Blanks to send to the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewBlanks {
    pub(crate) keyset: Id,
    pub(crate) outputs: Vec<CashuKey>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Its proofs are in the wallet.
    New(HashUnits),
    /// They were before.
    Known,
    /// Not before the pool has said where a restored wallet stands.
    Deferred,
}

impl Wallet {
    /// Every epoch that the wallet has kept records of.
    pub(crate) async fn epochs(&self) -> Result<Vec<EpochState>, WalletError> {
        let mut epochs = Vec::new();
        for key in self.store.kv_list(NAMESPACE, TABLE).await? {
            let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, &key).await? else { continue };
            let damaged = || WalletError::Damaged(key.clone());
            let state: EpochState = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            if state.version != VERSION {
                return Err(damaged());
            }
            epochs.push(state);
        }
        Ok(epochs)
    }

    /// The record of an epoch, if there is one.
    pub(crate) async fn epoch(&self, unit: EpochId) -> Result<Option<EpochState>, WalletError> {
        Ok(self.epochs().await?.into_iter().find(|state| state.unit == unit))
    }

    /// Learns of an epoch, or of another URL of its mint. `None` if the pool
    /// announced another keyset for this epoch before: one of them is a lie,
    /// and the first stands.
    pub(crate) async fn learn(
        &self,
        announced: &EpochKeyset,
        announced_at: Timestamp,
    ) -> Result<Option<EpochState>, WalletError> {
        let _lock = self.lock().await?;
        let mut state = match self.epoch(announced.epoch).await? {
            Some(known) if known.keyset != announced.keyset.id => return Ok(None),
            Some(known) if known.announced_at > announced_at => return Ok(Some(known)),
            Some(known) => known,
            None => self.first_sight(announced).await?,
        };
        state.announced_at = announced_at;
        state.phase = Some(announced.state);
        if state.mint != announced.mint {
            // Only this pool's unit: whatever else stands at the old URL is not
            // the pool's to move.
            let (old, unit) = (Some(state.mint.clone()), Some(state.unit()?));
            let mut moved = self.store.get_proofs(old, unit, None, None).await?;
            moved.iter_mut().for_each(|info| info.mint_url = announced.mint.clone());
            self.store.update_proofs(moved, Vec::new()).await?;
            state.mint = announced.mint.clone();
        }
        let info = KeySetInfo {
            id: state.keyset,
            unit: announced.keyset.unit.clone(),
            active: true,
            input_fee_ppk: announced.keyset.input_fee_ppk,
            final_expiry: None,
        };
        self.store.add_mint(state.mint.clone(), None).await?;
        self.store.add_mint_keysets(state.mint.clone(), vec![info]).await?;
        if self.store.get_keys(&state.keyset).await?.is_none() {
            self.store.add_keys(announced.keyset.clone()).await?;
        }
        state.save(&self.store).await?;
        Ok(Some(state))
    }

    async fn first_sight(&self, announced: &EpochKeyset) -> Result<EpochState, WalletError> {
        let mut state = EpochState::new(announced);
        if let Some(blanks) = self.restored_blanks(&state.keyset).await? {
            state.outstanding = blanks;
            state.past = Past::Unknown;
        }
        Ok(state)
    }

    /// The mint has given signatures on blanks of ours whose batch has not been
    /// read: it must not be applied once they are in the wallet.
    pub(super) async fn defer_batches(
        &self,
        keyset: &Id,
        signed: &HashSet<u32>,
    ) -> Result<(), WalletError> {
        for mut state in self.epochs().await? {
            let affected = state.outstanding.iter().any(|counter| signed.contains(counter));
            if state.keyset == *keyset && affected && state.past != Past::Unknown {
                state.past = Past::Unknown;
                state.save(&self.store).await?;
            }
        }
        Ok(())
    }

    /// Lets a restored wallet count on from the pool's statement: whatever was
    /// signed before it is asked of the mint. The mint must answer.
    pub(crate) async fn adopt(&self, statement: &Statement) -> Result<EpochState, WalletError> {
        let _lock = self.lock().await?;
        let state = self.epoch(statement.unit).await?;
        let mut state = state.ok_or(WalletError::BadSignatures("of an epoch not announced"))?;
        if state.past != Past::Unknown {
            return Ok(state);
        }
        let (keyset, unit) = (state.keyset, state.unit()?);
        let signed = self.recover_signed(&state.mint, &unit, keyset, &state.outstanding).await?;
        state.outstanding.retain(|counter| !signed.contains(counter));
        state.next_batch = statement.batches;
        state.early.clear();
        state.received = statement.issued;
        state.past = Past::Adopted;
        state.save(&self.store).await?;
        Ok(state)
    }

    /// Tops the outstanding blanks up to `target` and returns the new ones.
    pub(crate) async fn new_blanks(
        &self,
        unit: EpochId,
        target: usize,
    ) -> Result<Option<NewBlanks>, WalletError> {
        let _lock = self.lock().await?;
        let Some(mut state) = self.epoch(unit).await? else { return Ok(None) };
        let missing = target.saturating_sub(state.outstanding.len());
        if missing == 0 {
            return Ok(None);
        }
        let first = self.store.increment_keyset_counter(&state.keyset, 0).await?;
        let counters = first..first + u32::try_from(missing).expect("targets are small");
        state.outstanding.extend(counters.clone());
        state.save(&self.store).await?;
        state.reserve_counters(&self.store).await?;
        Ok(Some(NewBlanks { keyset: state.keyset, outputs: state.blanks(&self.seed, counters)? }))
    }

    /// All blanks that the pool should have and has not signed.
    pub(crate) async fn outstanding_blanks(
        &self,
        unit: EpochId,
    ) -> Result<Option<NewBlanks>, WalletError> {
        let Some(state) = self.epoch(unit).await? else { return Ok(None) };
        let counters = state.outstanding.iter().copied().take(MAX_BLANKS);
        let outputs = state.blanks(&self.seed, counters)?;
        let blanks = NewBlanks { keyset: state.keyset, outputs };
        Ok((!blanks.outputs.is_empty()).then_some(blanks))
    }

    /// Checks a batch and stores its proofs. Safe to repeat.
    pub(crate) async fn apply(&self, batch: Batch) -> Result<Applied, WalletError> {
        let _lock = self.lock().await?;
        let state = self.epoch(batch.unit).await?;
        let mut state = state.ok_or(WalletError::BadSignatures("of an epoch not announced"))?;
        if state.has(batch.batch) {
            return Ok(Applied::Known);
        }
        if state.past == Past::Unknown {
            return Ok(Applied::Deferred);
        }
        let blanks = match state.match_blanks(&self.seed, &batch) {
            // Recovered from the mint since the statement that was counted from.
            Err(WalletError::BadSignatures(_)) if state.past == Past::Adopted => {
                state.past = Past::Unknown;
                state.save(&self.store).await?;
                return Ok(Applied::Deferred);
            }
            matched => matched?,
        };
        state.check(&self.store, &batch).await?;
        let units = batch.signatures.iter().map(|signed| u64::from(signed.signature.amount));
        let units = HashUnits::new(units.sum());
        state.applying = Some(batch);
        state.save(&self.store).await?;
        state.finish_applying(&self.store, blanks).await?;
        Ok(Applied::New(units))
    }
}

impl EpochState {
    /// Where its ehash is honoured.
    pub(crate) fn mint(&self) -> &MintUrl {
        &self.mint
    }

    fn new(announced: &EpochKeyset) -> Self {
        Self {
            version: VERSION,
            unit: announced.epoch,
            keyset: announced.keyset.id,
            mint: announced.mint.clone(),
            announced_at: Timestamp::default(),
            work: announced.work,
            outstanding: BTreeSet::new(),
            next_batch: 0,
            early: BTreeSet::new(),
            received: HashUnits::ZERO,
            applying: None,
            phase: None,
            past: Past::Own,
        }
    }

    /// True if the wallet was restored and has to hear from the pool first.
    pub(crate) fn awaits_adoption(&self) -> bool {
        self.past == Past::Unknown
    }

    fn unit(&self) -> Result<CurrencyUnit, WalletError> {
        Ok(CurrencyUnit::from_str(&self.unit.to_string()).map_err(cdk::Error::from)?)
    }

    /// True if the batch of this number has arrived.
    fn has(&self, batch: u64) -> bool {
        batch < self.next_batch || self.early.contains(&batch)
    }

    /// Blanks that the pool should have and has not signed; a pool holds no more
    /// than [`MAX_BLANKS`].
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len().min(MAX_BLANKS)
    }

    /// The lowest NUT-13 counter of a blank that the pool may still sign.
    pub(crate) fn lowest_outstanding(&self) -> Option<u32> {
        self.outstanding.first().copied()
    }

    /// True if every batch of the statement has arrived and the pool owes no
    /// whole unit more.
    pub(crate) fn is_settled(&self, statement: &Statement) -> bool {
        let owed = self.work.units_in(statement.work).unwrap_or(HashUnits::ZERO);
        self.past != Past::Unknown && self.next_batch >= statement.batches && owed <= self.received
    }

    /// True if all batches have arrived and their sum is not what the pool
    /// says it issued.
    pub(crate) fn contradicts(&self, statement: &Statement) -> bool {
        self.past != Past::Unknown
            && self.next_batch == statement.batches
            && self.received != statement.issued
    }

    /// Finishes what a crash interrupted. Called with the lock held.
    pub(crate) async fn recover(&mut self, store: &Store, seed: &Seed) -> Result<(), WalletError> {
        self.reserve_counters(store).await?;
        if let Some(batch) = self.applying.clone() {
            let blanks = self.match_blanks(seed, &batch)?;
            self.finish_applying(store, blanks).await?;
        }
        Ok(())
    }

    /// Moves cdk's counter past every outstanding blank.
    async fn reserve_counters(&self, store: &Store) -> Result<(), WalletError> {
        let Some(last) = self.outstanding.last() else { return Ok(()) };
        let counter = store.increment_keyset_counter(&self.keyset, 0).await?;
        if let Some(missing) = (last + 1).checked_sub(counter).filter(|missing| *missing > 0) {
            store.increment_keyset_counter(&self.keyset, missing).await?;
        }
        Ok(())
    }

    fn derive(&self, seed: &Seed, counter: u32) -> Result<PreMint, WalletError> {
        let batch =
            PreMintSecrets::restore_batch(self.keyset, &seed.to_bytes(), counter, counter + 1);
        let derived = batch.map_err(cdk::Error::from)?.secrets.pop();
        Ok(derived.expect("a range of one makes one"))
    }

    fn blanks(
        &self,
        seed: &Seed,
        counters: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<CashuKey>, WalletError> {
        let derive = |counter| Ok(self.derive(seed, counter)?.blinded_message.blinded_secret);
        counters.into_iter().map(derive).collect()
    }

    /// The wallet's own halves of a batch's blanks, in the batch's order.
    fn match_blanks(&self, seed: &Seed, batch: &Batch) -> Result<Vec<PreMint>, WalletError> {
        let mut own = HashMap::new();
        for counter in &self.outstanding {
            let blank = self.derive(seed, *counter)?;
            own.insert(blank.blinded_message.blinded_secret, blank);
        }
        let matched = batch.signatures.iter().map(|signed| own.remove(&signed.blank));
        let matched: Option<Vec<_>> = matched.collect();
        matched.ok_or(WalletError::BadSignatures("on a blank that is not outstanding here"))
    }

    /// Keyset, amounts and DLEQ proofs (NUT-12).
    async fn check(&self, store: &Store, batch: &Batch) -> Result<(), WalletError> {
        let keys = store.get_keys(&self.keyset).await?;
        let keys = keys.ok_or(WalletError::UnknownKeyset(self.keyset))?;
        for signed in &batch.signatures {
            let BlindSignature { amount, keyset_id, .. } = &signed.signature;
            if *keyset_id != self.keyset {
                return Err(WalletError::BadSignatures("by another keyset"));
            }
            let key = keys.amount_key(*amount);
            let key = key.ok_or(WalletError::BadSignatures("for an amount without a key"))?;
            signed
                .signature
                .verify_dleq(key, signed.blank)
                .map_err(|_| WalletError::BadSignatures("without a valid DLEQ proof"))?;
        }
        Ok(())
    }

    /// Stores the proofs of the batch being applied, then forgets it.
    async fn finish_applying(
        &mut self,
        store: &Store,
        blanks: Vec<PreMint>,
    ) -> Result<(), WalletError> {
        let Some(batch) = self.applying.take() else { return Ok(()) };
        let keys = store.get_keys(&self.keyset).await?;
        let keys = keys.ok_or(WalletError::UnknownKeyset(self.keyset))?;
        let unit = self.unit()?;
        let (mut proofs, mut units) = (Vec::new(), 0u64);
        let mut ys = Vec::new();
        for (signed, blank) in batch.signatures.iter().zip(&blanks) {
            let (signature, r) = (vec![signed.signature.clone()], vec![blank.r.clone()]);
            let secret = vec![blank.secret.clone()];
            let unblinded = cdk::dhke::construct_proofs(signature, r, secret, &keys)
                .map_err(cdk::Error::from)?;
            for proof in unblinded {
                units += u64::from(proof.amount);
                let counter = blank.derivation_index.expect("derived from a counter");
                let info = ProofInfo::new(proof, self.mint.clone(), State::Unspent, unit.clone())?;
                ys.push(info.y);
                proofs.push(info.with_derivation_index(counter));
                self.outstanding.remove(&counter);
            }
        }
        store.update_proofs(proofs, Vec::new()).await?;
        store.add_transaction(history::claimed(self, units, ys, unit)).await?;
        let received = self.received.checked_add(HashUnits::new(units));
        self.received = received.map_err(|_| WalletError::BadSignatures("beyond counting"))?;
        self.early.insert(batch.batch);
        while self.early.remove(&self.next_batch) {
            self.next_batch += 1;
        }
        self.save(store).await
    }

    pub(super) async fn save(&self, store: &Store) -> Result<(), WalletError> {
        let bytes = serde_json::to_vec(self).expect("strings and numbers are JSON");
        Ok(store.kv_write(NAMESPACE, TABLE, &self.keyset.to_string(), &bytes).await?)
    }
}
