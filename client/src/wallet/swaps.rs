//! Swaps at a mint (NUT-03) that are carried out once, whatever happens in
//! between: where outputs are locked or inputs are, and cdk's own would draw
//! random nonces and lose them in a crash.
//!
//! Order of writing:
//! 1. inputs reserved, counters moved past the outputs, and this record, with all
//!    that derives the outputs;
//! 2. the request, and again until the mint has answered or has shown what it
//!    signed before (NUT-09);
//! 3. this record with what came of it, then cdk's proofs, then this record as
//!    done. [`Wallet::lock`] finishes this step before anything can be spent.

use std::collections::HashSet;

use cdk::dhke::blind_message;
use cdk::mint_url::MintUrl;
use cdk::nuts::{
    BlindSignature, BlindedMessage, CurrencyUnit, Id, KeySet, PreMint, PreMintSecrets, Proof,
    Proofs, ProofsMethods, PublicKey as CashuKey, SecretKey, State, SwapRequest,
};
use cdk::secret::Secret;
use cdk::wallet::MintConnector;
use cdk::{Amount, Wallet as CdkWallet};
use cdk_common::wallet::ProofInfo;
use hashpit_nips::HashUnits;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::told::{Signed, Standing, signed, spent, standing, unblind};
use super::{NAMESPACE, Wallet, WalletError, explain};
use crate::settle::Probe;

const TABLE: &str = "swaps";
/// Names of swaps whose proofs are being stored.
const ARRIVING: &str = "arriving";
const VERSION: u8 = 1;
/// Counters that are passed over where the mint knows one already: less than a
/// restore passes over.
const SKIPPED: u32 = 100;

/// A swap, with all that it takes to repeat it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Swap {
    version: u8,
    /// What names it, here and for ever.
    name: String,
    mint: MintUrl,
    unit: CurrencyUnit,
    keyset: Id,
    inputs: Proofs,
    outputs: Vec<Output>,
    stage: Stage,
}

/// An output: one of the wallet's own, or one that somebody derives.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Output {
    /// NUT-13.
    Counter {
        amount: u64,
        counter: u32,
    },
    Given(Given),
}

/// An output that is derived elsewhere.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) amount: u64,
    pub(crate) secret: Secret,
    /// The blinding factor.
    pub(crate) r: SecretKey,
}

impl Given {
    /// As it is blinded for a keyset.
    pub(crate) fn blind(&self, keyset: Id) -> Result<PreMint, WalletError> {
        let (blinded, r) = blind_message(&self.secret.to_bytes(), Some(self.r.clone()))
            .map_err(cdk::Error::from)?;
        let amount = Amount::from(self.amount);
        let blinded_message = BlindedMessage::new(amount, keyset, blinded);
        let secret = self.secret.clone();
        Ok(PreMint { blinded_message, secret, r, amount, derivation_index: None })
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Planned,
    /// What is to be stored, and which proofs are spent by it.
    Arriving {
        added: Vec<ProofInfo>,
        spent: Vec<CashuKey>,
    },
    Done,
}

/// Why a swap has not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwapError {
    /// The mint has refused it for certain, and has signed nothing.
    #[error("the mint refused: {0}")]
    Refused(cdk::Error),
    /// It may have come about, or not; to be tried again.
    #[error("the mint has not answered: {0}")]
    Unknown(cdk::Error),
    /// Its outputs were signed in another swap, while its inputs are unspent: it cannot
    /// come about, and one with other outputs can.
    #[error("the mint has signed its outputs before, in another swap")]
    Reused,
    /// The mint has answered with what it must not.
    #[error("the mint's signatures were refused: {0}")]
    Lie(&'static str),
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
}

impl From<cdk_common::database::Error> for SwapError {
    fn from(error: cdk_common::database::Error) -> Self {
        Self::Wallet(error.into())
    }
}

impl Swap {
    /// Its request, unsigned.
    pub(crate) fn request(&self, wallet: &Wallet) -> Result<SwapRequest, WalletError> {
        let outputs = self.outputs(wallet)?.into_iter().map(|output| output.blinded_message);
        Ok(SwapRequest::new(self.inputs.clone(), outputs.collect()))
    }

    /// What it spends.
    pub(crate) fn inputs(&self) -> &Proofs {
        &self.inputs
    }

    /// True once its proofs are stored.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The keyset that signs its outputs.
    pub(crate) fn keyset(&self) -> Id {
        self.keyset
    }

    fn outputs(&self, wallet: &Wallet) -> Result<Vec<PreMint>, WalletError> {
        self.outputs.iter().map(|output| output.derive(self.keyset, wallet)).collect()
    }
}

impl Output {
    fn derive(&self, keyset: Id, wallet: &Wallet) -> Result<PreMint, WalletError> {
        let (amount, counter) = match self {
            Self::Given(given) => return given.blind(keyset),
            Self::Counter { amount, counter } => (Amount::from(*amount), *counter),
        };
        let seed = wallet.seed.to_bytes();
        let one = PreMintSecrets::restore_batch(keyset, &seed, counter, counter + 1);
        let mut output = one.map_err(cdk::Error::from)?.secrets.pop().expect("a range of one");
        output.amount = amount;
        output.blinded_message.amount = amount;
        Ok(output)
    }
}

impl Wallet {
    /// The swap of this name, if it was planned.
    pub(crate) async fn swap(&self, name: &str) -> Result<Option<Swap>, WalletError> {
        let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, name).await? else {
            return Ok(None);
        };
        let damaged = || WalletError::Damaged(format!("swap {name}"));
        let swap: Swap = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if swap.version == VERSION { Ok(Some(swap)) } else { Err(damaged()) }
    }

    async fn save_swap(&self, swap: &Swap) -> Result<(), WalletError> {
        let bytes = serde_json::to_vec(swap).expect("strings and numbers are JSON");
        Ok(self.store.kv_write(NAMESPACE, TABLE, &swap.name, &bytes).await?)
    }

    /// Plans a swap of the wallet's own proofs for `given` and change, and
    /// reserves them for `operation`. The swap of this name, if there is one.
    ///
    /// Errors where the wallet holds too little.
    pub(crate) async fn plan_payment(
        &self,
        name: &str,
        operation: Uuid,
        cdk: &CdkWallet,
        keyset: &KeySet,
        given: Vec<Given>,
    ) -> Result<Swap, WalletError> {
        let _lock = self.lock().await?;
        if let Some(planned) = self.swap(name).await? {
            return Ok(planned);
        }
        self.store.release_proofs(&operation).await?;
        self.resume_swaps().await?;
        let failed = |error| explain(error, &cdk.mint_url);
        self.consolidate_at(cdk).await.map_err(failed)?;
        let due = given.iter().map(|output| output.amount).sum();
        let (inputs, change) = choose(cdk, due).await.map_err(failed)??;
        let mut outputs: Vec<_> = given.into_iter().map(Output::Given).collect();
        outputs.extend(self.own_outputs(change, keyset).await?);
        self.store.reserve_proofs(inputs.ys().map_err(cdk::Error::from)?, &operation).await?;
        let swap = Swap {
            version: VERSION,
            name: name.to_owned(),
            mint: cdk.mint_url.clone(),
            unit: cdk.unit.clone(),
            keyset: keyset.id,
            inputs,
            outputs,
            stage: Stage::Planned,
        };
        self.save_swap(&swap).await?;
        Ok(swap)
    }

    /// Plans a swap of proofs that are not in the wallet for such that are. The
    /// swap of this name, if there is one.
    pub(crate) async fn plan_receipt(
        &self,
        name: &str,
        cdk: &CdkWallet,
        keyset: &KeySet,
        inputs: Proofs,
    ) -> Result<Swap, WalletError> {
        let fee = hashpit_nips::eh06::fee(inputs.len(), keyset);
        self.plan_receipt_for(name, cdk, keyset, inputs, fee).await
    }

    /// As [`Wallet::plan_receipt`], where the mint's fee is known.
    pub(crate) async fn plan_receipt_for(
        &self,
        name: &str,
        cdk: &CdkWallet,
        keyset: &KeySet,
        inputs: Proofs,
        fee: u64,
    ) -> Result<Swap, WalletError> {
        let _lock = self.lock().await?;
        if let Some(planned) = self.swap(name).await? {
            return Ok(planned);
        }
        let gross: u64 = inputs.iter().map(|proof| u64::from(proof.amount)).sum();
        let net = gross.saturating_sub(fee);
        let swap = Swap {
            version: VERSION,
            name: name.to_owned(),
            mint: cdk.mint_url.clone(),
            unit: cdk.unit.clone(),
            keyset: keyset.id,
            inputs,
            outputs: self.own_outputs(net, keyset).await?,
            stage: Stage::Planned,
        };
        self.save_swap(&swap).await?;
        Ok(swap)
    }

    async fn own_outputs(&self, amount: u64, keyset: &KeySet) -> Result<Vec<Output>, WalletError> {
        let amounts: Vec<u64> = keyset.keys.iter().map(|(amount, _)| (*amount).into()).collect();
        let split = Amount::from(amount).split(&(0, amounts).into()).map_err(cdk::Error::from)?;
        let count = u32::try_from(split.len()).expect("a number has few bits");
        let next = self.store.increment_keyset_counter(&keyset.id, count).await?;
        let counted = split.into_iter().zip(next - count..next);
        Ok(counted
            .map(|(amount, counter)| Output::Counter { amount: amount.into(), counter })
            .collect())
    }

    /// Gives a planned swap up: what it reserved is the wallet's again. Only for
    /// one that the mint has refused, or that was never asked for.
    pub(crate) async fn give_up(&self, name: &str, operation: Uuid) -> Result<(), WalletError> {
        let _lock = self.lock().await?;
        self.store.release_proofs(&operation).await?;
        Ok(self.store.kv_remove(NAMESPACE, TABLE, name).await?)
    }

    /// Passes over counters, since the mint has signed outputs of this swap in another:
    /// some other machine uses the same words. The next plan has other outputs.
    pub(crate) async fn skip_counters(&self, swap: &Swap) -> Result<(), WalletError> {
        let _lock = self.lock().await?;
        self.store.increment_keyset_counter(&swap.keyset, SKIPPED).await?;
        Ok(())
    }

    /// Forgets those of a swap's inputs that are spent, so that no other swap is planned
    /// with them.
    pub(crate) async fn forget_spent(
        &self,
        swap: &Swap,
        mint: &(dyn MintConnector + Send + Sync),
    ) -> Result<(), SwapError> {
        let spent = spent(mint, &swap.inputs).await.map_err(SwapError::Unknown)?;
        let _lock = self.lock().await?;
        Ok(self.store.update_proofs(Vec::new(), spent.into_iter().collect()).await?)
    }

    /// Carries a swap out: its outputs' proofs, in their order. Those of the
    /// wallet's own are stored. To be repeated until it succeeds or is refused.
    pub(crate) async fn carry_out(
        &self,
        swap: &Swap,
        request: SwapRequest,
        mint: &(dyn MintConnector + Send + Sync),
        keyset: &KeySet,
        probe: &Probe,
    ) -> Result<Proofs, SwapError> {
        let outputs = self.outputs_of(swap)?;
        let (signatures, is_fresh) = match probe.around("post swap", mint.post_swap(request)).await
        {
            Ok(answer) => (answer.signatures, true),
            Err(error) => {
                let told = answered_before(swap, &outputs, mint, keyset, error);
                (probe.around("ask restore", told).await?, false)
            }
        };
        let proofs = match unblind(&outputs, signatures, keyset) {
            Ok(proofs) => proofs,
            Err(lie) => {
                let standing = standing(mint, &swap.inputs).await;
                return Err(if let Ok(Standing::Unspent) = standing {
                    SwapError::Reused
                } else {
                    lie
                });
            }
        };
        // What was signed some time ago may be spent by now, by another machine.
        let gone = match is_fresh {
            true => HashSet::new(),
            false => spent(mint, &proofs).await.map_err(SwapError::Unknown)?,
        };
        self.arrive(swap, &outputs, &proofs, &gone, probe).await?;
        Ok(proofs)
    }

    /// What the mint has signed of a swap that was asked for before, perhaps by
    /// another machine; `None` if nothing.
    pub(crate) async fn signed_before(
        &self,
        outputs: &[PreMint],
        mint: &(dyn MintConnector + Send + Sync),
        keyset: &KeySet,
    ) -> Result<Option<Proofs>, SwapError> {
        match signed(mint, outputs).await.map_err(SwapError::Unknown)? {
            Signed::All(signatures) => Ok(Some(unblind(outputs, signatures, keyset)?)),
            Signed::Some | Signed::Nothing => Ok(None),
        }
    }

    /// As [`Wallet::signed_before`], for proofs that are shown to nobody but the mint:
    /// those need no DLEQ proof, and it is not looked at.
    pub(crate) async fn signed_unproven(
        &self,
        outputs: &[PreMint],
        mint: &(dyn MintConnector + Send + Sync),
        keyset: &KeySet,
    ) -> Result<Option<Proofs>, SwapError> {
        let Signed::All(mut signatures) =
            signed(mint, outputs).await.map_err(SwapError::Unknown)?
        else {
            return Ok(None);
        };
        signatures.iter_mut().for_each(|signature| signature.dleq = None);
        Ok(Some(unblind(outputs, signatures, keyset)?))
    }

    fn outputs_of(&self, swap: &Swap) -> Result<Vec<PreMint>, WalletError> {
        swap.outputs(self)
    }

    /// Stores what is the wallet's own of a swap's outcome, once, but for what is `gone`.
    async fn arrive(
        &self,
        swap: &Swap,
        outputs: &[PreMint],
        proofs: &[Proof],
        gone: &HashSet<CashuKey>,
        probe: &Probe,
    ) -> Result<(), WalletError> {
        let _lock = self.lock().await?;
        let current = self.swap(&swap.name).await?;
        let mut swap = current.unwrap_or_else(|| swap.clone());
        if swap.stage != Stage::Planned {
            return Ok(());
        }
        // A restore may have found some; what the store knows of them is newer.
        let ys = proofs.iter().map(Proof::y).collect::<Result<_, _>>();
        let held = self.store.get_proofs_by_ys(ys.map_err(cdk::Error::from)?).await?;
        let held: HashSet<_> = held.into_iter().map(|info| info.y).collect();
        let mut added = Vec::new();
        for (output, proof) in outputs.iter().zip(proofs) {
            let Some(counter) = output.derivation_index else { continue };
            let y = proof.y().map_err(cdk::Error::from)?;
            if held.contains(&y) || gone.contains(&y) {
                continue;
            }
            let (mint, unit) = (swap.mint.clone(), swap.unit.clone());
            let info = ProofInfo::new(proof.clone(), mint, State::Unspent, unit)?;
            added.push(info.with_derivation_index(counter));
        }
        let spent = swap.inputs.ys().map_err(cdk::Error::from)?;
        let noted = self.store.kv_write(NAMESPACE, ARRIVING, &swap.name, &[]);
        probe.around("write arriving", noted).await?;
        swap.stage = Stage::Arriving { added, spent };
        probe.around("write outcome", self.save_swap(&swap)).await?;
        self.finish_arriving(&swap.name, probe).await
    }

    /// What the inputs of planned swaps are reserved for.
    pub(super) async fn swap_operations(
        &self,
    ) -> Result<HashSet<Uuid>, cdk_common::database::Error> {
        let names = self.store.kv_list(NAMESPACE, TABLE).await?;
        Ok(names.iter().filter_map(|name| Uuid::try_parse(name.get(..32)?).ok()).collect())
    }

    /// Forgets the swaps of an operation that is over.
    pub(crate) async fn forget_swaps(&self, prefix: &str) -> Result<(), WalletError> {
        let _lock = self.lock().await?;
        for name in self.store.kv_list(NAMESPACE, TABLE).await? {
            if name.starts_with(prefix) {
                self.store.kv_remove(NAMESPACE, TABLE, &name).await?;
            }
        }
        Ok(())
    }

    /// Finishes what a crash interrupted. Called with the lock held.
    pub(super) async fn finish_arrivals(&self) -> Result<(), WalletError> {
        for name in self.store.kv_list(NAMESPACE, ARRIVING).await? {
            self.finish_arriving(&name, &Probe::default()).await?;
        }
        Ok(())
    }

    async fn finish_arriving(&self, name: &str, probe: &Probe) -> Result<(), WalletError> {
        if let Some(mut swap) = self.swap(name).await?
            && let Stage::Arriving { added, spent } = swap.stage
        {
            probe.around("write proofs", self.store.update_proofs(added, spent)).await?;
            swap.stage = Stage::Done;
            probe.around("write done", self.save_swap(&swap)).await?;
        }
        let ended = self.store.kv_remove(NAMESPACE, ARRIVING, name);
        Ok(probe.around("write arrived", ended).await?)
    }
}

/// Proofs that make up `due` and the mint's fee for spending them, and what is
/// left of them.
async fn choose(
    cdk: &CdkWallet,
    due: u64,
) -> Result<Result<(Proofs, u64), WalletError>, cdk::Error> {
    let mut proofs = cdk.get_unspent_proofs().await?;
    proofs.sort_by_key(|proof| proof.amount);
    let available: u64 = proofs.iter().map(|proof| u64::from(proof.amount)).sum();
    let (mut chosen, mut sum) = (Proofs::new(), 0u64);
    loop {
        let fee: u64 = cdk.get_proofs_fee(&chosen).await?.total.into();
        let needed = due.saturating_add(fee);
        if sum >= needed {
            return Ok(Ok((chosen, sum - needed)));
        }
        // The smallest that is enough, else the largest.
        let lacking = needed - sum;
        let enough = proofs.iter().position(|proof| u64::from(proof.amount) >= lacking);
        let Some(next) = enough.or_else(|| proofs.len().checked_sub(1)) else {
            let (available, wanted) = (HashUnits::new(available), HashUnits::new(needed));
            return Ok(Err(WalletError::Insufficient { available, wanted }));
        };
        let next = proofs.remove(next);
        sum = sum.saturating_add(next.amount.into());
        chosen.push(next);
    }
}

/// What the mint has signed for a swap to which it has answered with `error`. An
/// output can be known from another swap, where counters were used twice; then this
/// one has not come about, and never will.
async fn answered_before(
    swap: &Swap,
    outputs: &[PreMint],
    mint: &(dyn MintConnector + Send + Sync),
    keyset: &KeySet,
    error: cdk::Error,
) -> Result<Vec<BlindSignature>, SwapError> {
    let signed = match signed(mint, outputs).await {
        Ok(Signed::Nothing) if is_final(&error) => return Err(SwapError::Refused(error)),
        Ok(Signed::Nothing) | Err(_) => return Err(SwapError::Unknown(error)),
        Ok(signed) => signed,
    };
    // Asked for in this order: a swap's inputs are spent before its outputs are known.
    let Ok(standing) = standing(mint, &swap.inputs).await else {
        return Err(SwapError::Unknown(error));
    };
    match (signed, standing) {
        (_, Standing::Unspent) => Err(SwapError::Reused),
        (Signed::All(signatures), Standing::Spent) if is_for(&signatures, outputs, keyset) => {
            Ok(signatures)
        }
        (_, Standing::Spent) => Err(SwapError::Refused(error)),
        (_, Standing::Mixed) if is_final(&error) => Err(SwapError::Refused(error)),
        (_, Standing::Mixed) => Err(SwapError::Unknown(error)),
    }
}

fn is_for(signatures: &[BlindSignature], outputs: &[PreMint], keyset: &KeySet) -> bool {
    let fits = |(signature, output): (&BlindSignature, &PreMint)| {
        signature.amount == output.amount && signature.keyset_id == keyset.id
    };
    signatures.iter().zip(outputs).all(fits)
}

/// True if the mint has judged the request, so that repeating it changes nothing. A
/// status without a code of NUT-00 may be the word of something before the mint.
fn is_final(error: &cdk::Error) -> bool {
    if let cdk::Error::HttpError(..) = error {
        return false;
    }
    error.is_definitive_failure() || matches!(error, cdk::Error::TokenAlreadySpent)
}
