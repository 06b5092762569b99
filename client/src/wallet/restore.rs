//! Bringing a wallet back: from proofs that relays kept, and from what its
//! mints remember of the seed's blinded messages (NUT-09).
//!
//! Nothing that a relay or a mint says is taken for money unless a mint calls it
//! unspent (NUT-07); only where the mint does not answer are a relay's proofs
//! stored as they are. Every step may be repeated, on a new wallet or on one in
//! use: what the wallet has already is left as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use cdk::mint_url::MintUrl;
use cdk::nuts::{
    CheckStateRequest, CurrencyUnit, Id, KeySet, KeySetInfo, PreMint, PreMintSecrets, Proof,
    PublicKey as CashuKey, RestoreRequest, State,
};
use cdk::wallet::MintConnector;
use cdk_common::wallet::ProofInfo;
use futures_util::{StreamExt, TryStreamExt, stream};
use hashpit_nips::EpochId;
use hashpit_nips::eh02::MAX_BLANKS;
use hashpit_nips::eh03::{CounterTag, HeldTag};
use nostr_sdk::PublicKey;
use serde::{Deserialize, Serialize};

use super::{Door, NAMESPACE, Wallet, WalletError};
use crate::backup::{Found, FoundToken};

/// Blinded messages in one question (NUT-13).
const WINDOW: u32 = 100;
/// Windows without a signature after which a keyset is done (NUT-13).
const EMPTY_WINDOWS: u32 = 3;
/// Proofs in one question about states (NUT-07); the answer fits an encrypted
/// event.
const STATES_AT_ONCE: usize = 250;
/// Questions under way at once.
const IN_FLIGHT: usize = 4;
const TABLE: &str = "restored";
const VERSION: u8 = 1;

pub(super) type Connector = Arc<dyn MintConnector + Send + Sync>;

/// What is known before the mints are asked.
#[derive(Debug, Clone, Default)]
pub struct Remains {
    /// Mints to ask about every keyset that they have.
    pub mints: BTreeSet<MintUrl>,
    /// Pools that run a mint, by which it is reached over Nostr.
    pub pools: BTreeMap<MintUrl, PublicKey>,
    /// Proofs that relays kept.
    pub proofs: BTreeMap<(MintUrl, CurrencyUnit), Vec<Proof>>,
    /// Proofs of events that others replaced: most are spent.
    pub stale: BTreeMap<(MintUrl, CurrencyUnit), Vec<Proof>>,
    /// How far the secrets of each keyset were used, and below which counter
    /// nothing is missing in `proofs`.
    pub counters: BTreeMap<Id, CounterTag>,
    /// What `proofs` came to when they were backed up. A relay that gives less
    /// has lost some, and then `counters` say nothing.
    pub held: BTreeMap<(MintUrl, CurrencyUnit), u64>,
}

impl Remains {
    /// What a backup held.
    pub fn of(found: &Found) -> Self {
        let mut remains = Self { proofs: found.tokens.clone(), ..Self::default() };
        remains.mints.extend(found.ehash.mints.iter().chain(&found.identity.mints).cloned());
        for counter in &found.ehash.counters {
            remains.counters.insert(counter.keyset, *counter);
        }
        for FoundToken { content, .. } in &found.stale {
            let purse = (content.mint.clone(), content.unit.clone());
            remains.stale.entry(purse).or_default().extend(content.proofs.iter().cloned());
        }
        if !found.unread.is_empty() {
            remains.distrust_counters();
        }
        for HeldTag { mint, unit, amount } in found.ehash.held.iter().cloned() {
            remains.mints.insert(mint.clone());
            remains.held.insert((mint, unit), amount);
        }
        for epoch in &found.ehash.epochs {
            remains.mints.insert(epoch.mint.clone());
            remains.pools.insert(epoch.mint.clone(), epoch.unit.pool);
        }
        for (mint, unit) in found.tokens.keys() {
            if let Ok(epoch) = unit.to_string().parse::<EpochId>() {
                remains.pools.insert(mint.clone(), epoch.pool);
            }
        }
        remains
    }
}

impl Remains {
    /// Has every mint asked for every counter.
    pub fn distrust_counters(&mut self) {
        self.counters.values_mut().for_each(|counter| counter.from = 0);
    }
}

/// How far a restore is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreStep {
    /// This many of so many proofs have been checked at a mint.
    Checked(usize, usize),
    /// A mint has been asked about a keyset up to this counter.
    Scanned(Id, u32),
}

/// What a restore found at one mint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RestoredAt {
    /// Proofs that the wallet did not have.
    pub proofs: usize,
    /// Proofs that had been spent since.
    pub spent: usize,
    /// Why the mint could not be asked; what the relays kept is stored, and may
    /// have been spent.
    pub unverified: Option<String>,
}

/// Counters that a restored keyset may have outstanding blanks at.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RestoredKeyset {
    version: u8,
    unsigned: BTreeSet<u32>,
}

/// A proof, with the counter that its secret derives from if that is known.
struct Candidate {
    proof: Proof,
    counter: Option<u32>,
}

impl Candidate {
    fn stored(
        self,
        mint: &MintUrl,
        unit: &CurrencyUnit,
        state: State,
    ) -> Result<ProofInfo, WalletError> {
        let info = ProofInfo::new(self.proof, mint.clone(), state, unit.clone())?;
        Ok(match self.counter {
            Some(counter) => info.with_derivation_index(counter),
            None => info,
        })
    }
}

impl Wallet {
    /// Stores what is left of this seed's tokens, and moves every counter past
    /// all that has been used. The report is by mint.
    pub async fn restore(
        &self,
        remains: &Remains,
        progress: &(dyn Fn(RestoreStep) + Send + Sync),
    ) -> Result<BTreeMap<String, RestoredAt>, WalletError> {
        let _lock = self.lock().await?;
        let mut mints = remains.mints.clone();
        mints.extend(remains.proofs.keys().map(|(mint, _)| mint.clone()));
        let mut report = BTreeMap::new();
        for mint in mints {
            self.store.add_mint(mint.clone(), None).await?;
            let found = match self.restore_at(&mint, remains, progress).await {
                Ok(found) => found,
                Err(error) if self.is_ours(&error) => return Err(error),
                Err(error) => self.keep_unverified(&mint, remains, &error).await?,
            };
            report.insert(mint.to_string(), found);
        }
        Ok(report)
    }

    /// True for errors that are not the mint's.
    fn is_ours(&self, error: &WalletError) -> bool {
        !matches!(
            error,
            WalletError::Cashu(_)
                | WalletError::Unreachable { .. }
                | WalletError::BadSignatures(_)
                | WalletError::NoRelay(_)
                | WalletError::Mailbox(_)
        )
    }

    async fn restore_at(
        &self,
        mint: &MintUrl,
        remains: &Remains,
        progress: &(dyn Fn(RestoreStep) + Send + Sync),
    ) -> Result<RestoredAt, WalletError> {
        let door = remains.pools.get(mint).map(|pool| Door { pool: *pool, below: "" });
        let connector = self.connector(mint, door).await?;
        let unreachable = |error| super::explain(error, mint);
        let keysets = connector.get_mint_keysets().await.map_err(unreachable)?.keysets;
        self.store.add_mint_keysets(mint.clone(), keysets.clone()).await?;
        let mut report = RestoredAt::default();
        report.spent += self.forget_spent_at(mint, &connector, progress).await?;
        let kept = remains.proofs.iter().chain(&remains.stale);
        for ((_, unit), proofs) in kept.filter(|((at, _), _)| at == mint) {
            let candidates = proofs.iter().cloned().map(|proof| Candidate { proof, counter: None });
            let candidates = candidates.collect();
            self.admit(mint, unit, candidates, &connector, &mut report, progress).await?;
        }
        let lacking = self.lacking(mint, remains).await?;
        for info in keysets {
            let fresh = CounterTag { keyset: info.id, from: 0, next: 0 };
            let mut counter = remains.counters.get(&info.id).copied().unwrap_or(fresh);
            if lacking.contains(&info.unit) {
                counter.from = 0;
            }
            self.restore_keyset(mint, &info, counter, &connector, &mut report, progress).await?;
        }
        Ok(report)
    }

    /// Forgets what the wallet has as unspent and the mint knows as spent. How
    /// many.
    async fn forget_spent_at(
        &self,
        mint: &MintUrl,
        connector: &Connector,
        progress: &(dyn Fn(RestoreStep) + Send + Sync),
    ) -> Result<usize, WalletError> {
        let unspent = Some(vec![State::Unspent]);
        let held = self.store.get_proofs(Some(mint.clone()), None, unspent, None).await?;
        let ys: Vec<_> = held.iter().map(|info| info.y).collect();
        let told = states(connector, &ys, progress).await?;
        let spent = ys.into_iter().zip(told).filter(|(_, state)| *state == State::Spent);
        let spent: Vec<_> = spent.map(|(y, _)| y).collect();
        let count = spent.len();
        if count > 0 {
            self.store.update_proofs(Vec::new(), spent).await?;
        }
        Ok(count)
    }

    /// Units of which less is unspent here than the relays once held.
    async fn lacking(
        &self,
        mint: &MintUrl,
        remains: &Remains,
    ) -> Result<HashSet<CurrencyUnit>, WalletError> {
        let mut lacking = HashSet::new();
        for ((_, unit), held) in remains.held.iter().filter(|((at, _), _)| at == mint) {
            let here = self.store.get_proofs(Some(mint.clone()), Some(unit.clone()), None, None);
            let here = here.await?.into_iter().filter(|info| info.state != State::Spent);
            let here: u64 = here.map(|info| u64::from(info.proof.amount)).sum();
            if here < *held {
                tracing::info!(%unit, held, here, "the relays have less than was backed up");
                lacking.insert(unit.clone());
            }
        }
        Ok(lacking)
    }

    async fn restore_keyset(
        &self,
        mint: &MintUrl,
        info: &KeySetInfo,
        known: CounterTag,
        connector: &Connector,
        report: &mut RestoredAt,
        progress: &(dyn Fn(RestoreStep) + Send + Sync),
    ) -> Result<(), WalletError> {
        let keyset = self.keyset(mint, info.id, connector).await?;
        let (mut next, mut empty, mut unsigned) = (known.from, 0, BTreeSet::new());
        // One past the last counter with a signature.
        let mut used = known.from;
        while empty < EMPTY_WINDOWS || next < known.next {
            let window: Vec<u32> = (next..next + WINDOW).collect();
            let signed = self.ask(&keyset, &window, connector).await?;
            let found: HashSet<u32> = signed.iter().filter_map(|found| found.counter).collect();
            unsigned.extend(window.iter().filter(|counter| !found.contains(counter)));
            used = found.iter().map(|counter| counter + 1).fold(used, u32::max);
            empty = if found.is_empty() { empty + 1 } else { 0 };
            next += WINDOW;
            self.defer_batches(&info.id, &found).await?;
            self.admit(mint, &info.unit, signed, connector, report, progress).await?;
            progress(RestoreStep::Scanned(info.id, next));
        }
        if used.max(known.next) == 0 {
            return Ok(());
        }
        // The pool may hold blanks beyond the last one that it signed.
        let end = known.next.max(used + MAX_BLANKS as u32);
        unsigned.retain(|counter| *counter < end);
        self.note_restored(info.id, unsigned, end).await
    }

    /// Records which counters may be blanks at a pool, then reserves them.
    async fn note_restored(
        &self,
        keyset: Id,
        unsigned: BTreeSet<u32>,
        end: u32,
    ) -> Result<(), WalletError> {
        let record = RestoredKeyset { version: VERSION, unsigned };
        let bytes = serde_json::to_vec(&record).expect("numbers are JSON");
        self.store.kv_write(NAMESPACE, TABLE, &keyset.to_string(), &bytes).await?;
        let counter = self.store.increment_keyset_counter(&keyset, 0).await?;
        if let Some(missing) = end.checked_sub(counter).filter(|missing| *missing > 0) {
            self.store.increment_keyset_counter(&keyset, missing).await?;
        }
        Ok(())
    }

    /// The counters that may be blanks at a pool, if this keyset was restored.
    pub(super) async fn restored_blanks(
        &self,
        keyset: &Id,
    ) -> Result<Option<BTreeSet<u32>>, WalletError> {
        let key = keyset.to_string();
        let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, &key).await? else {
            return Ok(None);
        };
        let damaged = || WalletError::Damaged(format!("the restored keyset {keyset}"));
        let record: RestoredKeyset = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if record.version != VERSION {
            return Err(damaged());
        }
        Ok(Some(record.unsigned))
    }

    /// Asks the mint which of these counters it has signed, and stores those
    /// proofs that are unspent. The counters that it has signed. Called with the
    /// lock held.
    pub(super) async fn recover_signed(
        &self,
        mint: &MintUrl,
        unit: &CurrencyUnit,
        keyset: Id,
        counters: &BTreeSet<u32>,
    ) -> Result<BTreeSet<u32>, WalletError> {
        let epoch = unit.to_string().parse::<EpochId>().ok();
        let door = epoch.map(|epoch| Door { pool: epoch.pool, below: "" });
        let connector = self.connector(mint, door).await?;
        let keyset = self.keyset(mint, keyset, &connector).await?;
        let counters: Vec<u32> = counters.iter().copied().collect();
        let mut signed = BTreeSet::new();
        for window in counters.chunks(WINDOW as usize) {
            let found = self.ask(&keyset, window, &connector).await?;
            signed.extend(found.iter().filter_map(|found| found.counter));
            self.admit(mint, unit, found, &connector, &mut RestoredAt::default(), &|_| ()).await?;
        }
        Ok(signed)
    }

    /// The keyset's keys, which must be those that its id commits to.
    async fn keyset(
        &self,
        mint: &MintUrl,
        id: Id,
        connector: &Connector,
    ) -> Result<KeySet, WalletError> {
        let keyset =
            connector.get_mint_keyset(id).await.map_err(|error| super::explain(error, mint))?;
        if keyset.id != id || keyset.verify_id().is_err() {
            return Err(WalletError::BadSignatures("a keyset whose id is not that of its keys"));
        }
        if self.store.get_keys(&id).await?.is_none() {
            self.store.add_keys(keyset.clone()).await?;
        }
        Ok(keyset)
    }

    /// Those of the counters that the mint has signed (NUT-09), as proofs.
    async fn ask(
        &self,
        keyset: &KeySet,
        counters: &[u32],
        connector: &Connector,
    ) -> Result<Vec<Candidate>, WalletError> {
        let mut own = HashMap::new();
        let mut outputs = Vec::new();
        for counter in counters {
            let blank = self.blank(keyset.id, *counter)?;
            outputs.push(blank.blinded_message.clone());
            own.insert(blank.blinded_message.blinded_secret, blank);
        }
        let answer = connector.post_restore(RestoreRequest { outputs }).await?;
        if answer.outputs.len() != answer.signatures.len() {
            return Err(WalletError::BadSignatures("a restore of unequal lengths"));
        }
        let mut found = Vec::new();
        for (output, signature) in answer.outputs.iter().zip(answer.signatures) {
            let blank = own.remove(&output.blinded_secret);
            let blank = blank.ok_or(WalletError::BadSignatures("on what was not asked for"))?;
            let counter = blank.derivation_index;
            let key = keyset.keys.amount_key(signature.amount);
            let key = key.ok_or(WalletError::BadSignatures("for an amount without a key"))?;
            if signature.dleq.is_some() {
                signature
                    .verify_dleq(key, output.blinded_secret)
                    .map_err(|_| WalletError::BadSignatures("without a valid DLEQ proof"))?;
            }
            let (rs, secrets) = (vec![blank.r], vec![blank.secret]);
            let proofs = cdk::dhke::construct_proofs(vec![signature], rs, secrets, &keyset.keys)
                .map_err(cdk::Error::from)?;
            found.extend(proofs.into_iter().map(|proof| Candidate { proof, counter }));
        }
        Ok(found)
    }

    fn blank(&self, keyset: Id, counter: u32) -> Result<PreMint, WalletError> {
        let seed = self.seed.to_bytes();
        let batch = PreMintSecrets::restore_batch(keyset, &seed, counter, counter + 1);
        let blank = batch.map_err(cdk::Error::from)?.secrets.pop();
        Ok(blank.expect("a range of one makes one"))
    }

    /// Stores those candidates that the wallet does not have and the mint calls
    /// unspent or pending.
    async fn admit(
        &self,
        mint: &MintUrl,
        unit: &CurrencyUnit,
        candidates: Vec<Candidate>,
        connector: &Connector,
        report: &mut RestoredAt,
        progress: &(dyn Fn(RestoreStep) + Send + Sync),
    ) -> Result<(), WalletError> {
        let fresh = self.without_known(candidates).await?;
        let ys: Vec<CashuKey> = fresh.iter().map(|(y, _)| *y).collect();
        let states = states(connector, &ys, progress).await?;
        let mut proofs = Vec::new();
        for ((_, candidate), state) in fresh.into_iter().zip(states) {
            if state == State::Spent {
                report.spent += 1;
                continue;
            }
            proofs.push(candidate.stored(mint, unit, state)?);
        }
        report.proofs += proofs.len();
        Ok(self.store.update_proofs(proofs, Vec::new()).await?)
    }

    /// Each candidate once, with its Y, and none that the wallet has.
    async fn without_known(
        &self,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<(CashuKey, Candidate)>, WalletError> {
        let mut fresh = HashMap::new();
        for candidate in candidates {
            fresh.insert(candidate.proof.y().map_err(cdk::Error::from)?, candidate);
        }
        let ys: Vec<CashuKey> = fresh.keys().copied().collect();
        if ys.is_empty() {
            return Ok(Vec::new());
        }
        for known in self.store.get_proofs_by_ys(ys).await? {
            fresh.remove(&known.y);
        }
        Ok(fresh.into_iter().collect())
    }

    /// The mint does not answer: what the relays kept is all there is.
    async fn keep_unverified(
        &self,
        mint: &MintUrl,
        remains: &Remains,
        why: &WalletError,
    ) -> Result<RestoredAt, WalletError> {
        let mut report = RestoredAt { unverified: Some(why.to_string()), ..RestoredAt::default() };
        for ((_, unit), proofs) in remains.proofs.iter().filter(|((at, _), _)| at == mint) {
            let candidates = proofs.iter().cloned().map(|proof| Candidate { proof, counter: None });
            let fresh = self.without_known(candidates.collect()).await?;
            let proofs = fresh
                .into_iter()
                .map(|(_, found)| found.stored(mint, unit, State::Unspent))
                .collect::<Result<Vec<_>, _>>()?;
            report.proofs += proofs.len();
            self.store.update_proofs(proofs, Vec::new()).await?;
        }
        Ok(report)
    }
}

/// What the mint calls each proof (NUT-07), in order.
async fn states(
    connector: &Connector,
    ys: &[CashuKey],
    progress: &(dyn Fn(RestoreStep) + Send + Sync),
) -> Result<Vec<State>, WalletError> {
    let questions: Vec<_> = ys.chunks(STATES_AT_ONCE).map(<[CashuKey]>::to_vec).collect();
    let questions = questions.into_iter().map(|ys| states_of(connector.clone(), ys));
    let mut answers = stream::iter(questions).buffered(IN_FLIGHT);
    let mut states = Vec::new();
    while let Some(answer) = answers.try_next().await? {
        states.extend(answer);
        progress(RestoreStep::Checked(states.len(), ys.len()));
    }
    Ok(states)
}

async fn states_of(connector: Connector, ys: Vec<CashuKey>) -> Result<Vec<State>, WalletError> {
    let answer = connector.post_check_state(CheckStateRequest { ys: ys.clone() }).await?;
    let by_y: HashMap<_, _> = answer.states.iter().map(|one| (one.y, one.state)).collect();
    let states: Option<Vec<State>> = ys.iter().map(|y| by_y.get(y).copied()).collect();
    states.ok_or(WalletError::BadSignatures("a state of every proof was not given"))
}
