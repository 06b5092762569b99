//! The seller's side of a watchtower: hands out a claim and a refund that somebody else
//! may finish, and takes in what was claimed or taken back elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use cdk::nuts::{
    CheckStateRequest, HTLCWitness, Id, KeySet, PreMint, Proofs, ProofsMethods, State, SwapRequest,
    Witness,
};
use cdk_common::wallet::KeysetLoadPolicy;
use hashpit_nips::eh06::{Watch, fee};
use nostr_sdk::{JsonUtil, PublicKey, Timestamp};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::SettleError;
use super::legs::{LegFault, LegPlan, junk};
use super::mints::Place;
use super::record::{End, Watched};
use super::seller::refunded;
use super::trade::Trade;
use crate::wallet::{Remains, SwapError};

/// How long relays may take to store what goes to watchtowers, before the trade
/// goes on without.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long relays keep it after the sats' locktime, in seconds.
const KEPT: u64 = 60 * 60;
/// Bytes of a rumor that NIP-44 encrypts twice over: what comes of a longer one is
/// padded to more than the outer encryption takes.
const MAX_RUMOR: usize = 40_960;
/// First and longest pause before a mint is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What somebody else may finish. The outputs of each are its own.
#[derive(Debug, Clone, Copy)]
enum Handed {
    /// The claim of the sats.
    Claim,
    /// The refund of the ehash.
    Refund,
}

impl Handed {
    /// What its outputs derive from.
    fn label(self) -> &'static str {
        match self {
            Self::Claim => "watch",
            Self::Refund => "watch refund",
        }
    }

    /// Names the swap by which its outputs become the wallet's.
    fn swap(self) -> &'static str {
        match self {
            Self::Claim => "gather",
            Self::Refund => "regain",
        }
    }
}

impl Trade {
    /// Hands a claim of the sats and a refund of the ehash to each watchtower, unless
    /// one has them. It takes seconds at most, and a trade without a watchtower goes on.
    pub(super) async fn have_watched(
        &mut self,
        ehash: &LegPlan,
        locked: &Proofs,
        sats: Option<&LegPlan>,
    ) -> Result<(), SettleError> {
        if matches!(self.record.watched, Some(Watched::By { .. })) {
            return Ok(());
        }
        let watched = match self.hand_out(ehash, locked, sats).await {
            Ok((watchers, no_refund)) => Watched::By { watchers, no_refund },
            Err(why) => Watched::Nobody { why },
        };
        if self.record.watched.as_ref() == Some(&watched) {
            return Ok(());
        }
        if let Watched::Nobody { why } = &watched {
            debug!(why, trade = %self.record.id(), "nobody watches");
        }
        self.record.watched = Some(watched);
        self.save("watched").await
    }

    /// The watchtowers for which a relay has the claim, and why it has no refund if it
    /// has none; or why there are none.
    async fn hand_out(
        &self,
        ehash: &LegPlan,
        locked: &Proofs,
        sats: Option<&LegPlan>,
    ) -> Result<(Vec<PublicKey>, Option<String>), String> {
        let by_lightning = "the sats come by Lightning, to this wallet alone";
        let sats = sats.ok_or(by_lightning)?;
        let watchers = &self.shared.limits.watchers;
        if watchers.is_empty() {
            return Err("no watchtower is named ([trade] watchers)".to_owned());
        }
        if !sats.lock.sig_all {
            let why = "the mint of the sats lacks SIG_ALL, without which a watchtower could take \
                       them";
            return Err(why.to_owned());
        }
        let from = self.keys.keys();
        let mut watch = self.watch(ehash, locked, sats).map_err(|error| error.to_string())?;
        let mut no_refund = None;
        match self.refund_to_finish(ehash, locked) {
            Ok(refund) => watch.refund = Some(refund),
            Err(why) => no_refund = Some(why.to_string()),
        }
        if watch.rumor(from.public_key()).as_json().len() > MAX_RUMOR && watch.refund.is_some() {
            watch.refund = None;
            no_refund = Some("it has too many proofs for one message".to_owned());
        }
        let expires = Timestamp::from(sats.lock.locktime.saturating_add(KEPT));
        let deadline = Instant::now() + PATIENCE;
        let (mut reached, mut why) = (Vec::new(), "no relay answered in time".to_owned());
        for watcher in watchers {
            let rumor = watch.rumor(from.public_key());
            let sent = self.shared.hand(&from, *watcher, rumor, expires);
            match timeout_at(deadline, sent).await {
                Ok(Ok(())) => reached.push(*watcher),
                Ok(Err(error)) => why = error,
                Err(_) => {}
            }
        }
        if reached.is_empty() { Err(why) } else { Ok((reached, no_refund)) }
    }

    fn watch(&self, ehash: &LegPlan, locked: &Proofs, sats: &LegPlan) -> Result<Watch, LegFault> {
        Ok(Watch {
            hash: sats.lock.hash,
            ehash_mint: ehash.place.cdk.mint_url.clone(),
            ehash: locked.ys().map_err(refused)?,
            ehash_until: ehash.lock.locktime,
            sats_mint: sats.place.cdk.mint_url.clone(),
            sats_until: sats.lock.locktime,
            claim: self.claim_to_finish(sats)?,
            refund: None,
        })
    }

    /// A claim of the sats into outputs that follow from the trade, signed, and
    /// without the preimage.
    fn claim_to_finish(&self, sats: &LegPlan) -> Result<SwapRequest, LegFault> {
        let inputs = sats.lock.open(sats.net, &sats.place.keyset, &self.record.got);
        let inputs = inputs.map_err(refused)?;
        let proven = inputs.clone();
        let mut claim = self.to_finish(Handed::Claim, sats, inputs, String::new())?;
        // A watchtower wants to see that the mint has signed the sats (NUT-12).
        for (input, proven) in claim.inputs_mut().iter_mut().zip(proven) {
            input.dleq = proven.dleq;
        }
        Ok(claim)
    }

    /// A refund of the ehash into outputs that follow from the trade, signed. The mint
    /// refuses it until the locktime has passed.
    fn refund_to_finish(&self, ehash: &LegPlan, locked: &Proofs) -> Result<SwapRequest, LegFault> {
        if !ehash.lock.sig_all {
            let why = "the ehash is not locked under SIG_ALL, without which a watchtower could \
                       take it";
            return Err(refused(why));
        }
        // Whoever finishes it has no use for the proofs of its signatures.
        let junk = hex::encode(junk(&ehash.lock.hash));
        self.to_finish(Handed::Refund, ehash, locked.without_dleqs(), junk)
    }

    /// A swap of a leg's proofs, signed over them and its outputs.
    fn to_finish(
        &self,
        handed: Handed,
        leg: &LegPlan,
        inputs: Proofs,
        preimage: String,
    ) -> Result<SwapRequest, LegFault> {
        let outputs = self.spare_outputs(handed, leg, &inputs, leg.place.keyset.id)?;
        let outputs = outputs.into_iter().map(|output| output.blinded_message).collect();
        let mut request = SwapRequest::new(inputs, outputs);
        if let Some(first) = request.inputs_mut().first_mut() {
            let witness = HTLCWitness { preimage, signatures: None };
            first.witness = Some(Witness::HTLCWitness(witness));
        }
        request.sign_sig_all(self.keys.cashu()).map_err(refused)?;
        Ok(request)
    }

    /// The outputs of what was handed out.
    fn spare_outputs(
        &self,
        handed: Handed,
        leg: &LegPlan,
        inputs: &Proofs,
        keyset: Id,
    ) -> Result<Vec<PreMint>, LegFault> {
        let keys = &leg.place.keyset;
        let gross: u64 = inputs.iter().map(|proof| u64::from(proof.amount)).sum();
        let net = gross.saturating_sub(fee(inputs.len(), keys));
        let denominations: Vec<u64> =
            keys.keys.iter().map(|(amount, _)| (*amount).into()).collect();
        let split = cdk::Amount::from(net).split(&(0, denominations).into()).map_err(refused)?;
        let amounts: Vec<u64> = split.into_iter().map(u64::from).collect();
        let given = self.keys.plain(handed.label(), &amounts);
        let blinded: Result<Vec<_>, _> = given.iter().map(|it| it.blind(keyset)).collect();
        Ok(blinded?)
    }

    /// Takes in sats that were claimed, though not by this wallet: by a watchtower,
    /// or by another machine that has the same words. They are nobody else's, so it
    /// is tried for as long as it takes.
    pub(super) async fn gather(&self, sats: &LegPlan, claimed: &Proofs) -> Result<(), LegFault> {
        self.take_in(Handed::Claim, sats, claimed).await
    }

    /// Takes in ehash that was taken back, though not by this wallet, as
    /// [`Trade::gather`] does sats; how the trade ends.
    pub(super) async fn gather_refund(
        &self,
        ehash: &LegPlan,
        refunded_proofs: &Proofs,
    ) -> Result<End, SettleError> {
        match self.take_in(Handed::Refund, ehash, refunded_proofs).await {
            Ok(()) => Ok(refunded()),
            Err(LegFault::Refused(why)) => Ok(End::Lost { why }),
            Err(LegFault::Settle(error)) => Err(error),
        }
    }

    async fn take_in(
        &self,
        handed: Handed,
        leg: &LegPlan,
        inputs: &Proofs,
    ) -> Result<(), LegFault> {
        let mut pause = PAUSE.0;
        loop {
            let Some(proofs) = self.finished(handed, leg, inputs).await? else {
                return self.find(leg).await;
            };
            match self.receive(handed, leg, &proofs).await {
                Err(LegFault::Refused(why)) => warn!(why, "the mint refuses what it has signed"),
                done => return done,
            }
            let name = self.record.swap(handed.swap());
            self.shared.wallet.give_up(&name, self.record.operation()).await?;
            if self.is_spent(leg, &proofs).await {
                return self.find(leg).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Swaps proofs of the trade's for such as the words alone bring back.
    async fn receive(
        &self,
        handed: Handed,
        leg: &LegPlan,
        proofs: &Proofs,
    ) -> Result<(), LegFault> {
        let (wallet, place) = (&self.shared.wallet, &leg.place);
        let keysets = self.keysets(leg).await;
        let fee_ppk = proofs.first().and_then(|proof| {
            let signed = keysets.iter().find(|keyset| keyset.id == proof.keyset_id)?;
            Some(signed.input_fee_ppk)
        });
        let active = place.cdk.active_keyset().await.unwrap_or(place.keyset.clone());
        // What a swap costs follows from the keyset of its inputs.
        let input_fee_ppk = fee_ppk.unwrap_or(active.input_fee_ppk);
        let costing = KeySet { input_fee_ppk, ..active };
        let name = self.record.swap(handed.swap());
        let planned = wallet.plan_receipt(&name, &place.cdk, &costing, proofs.clone());
        let planned =
            self.shared.probe.around(&format!("write {}", handed.swap()), planned).await?;
        if planned.is_done() {
            return Ok(());
        }
        let keyset = keysets.into_iter().find(|keyset| keyset.id == planned.keyset());
        let place = Place { keyset: keyset.unwrap_or(costing), ..place.clone() };
        let request = planned.request(wallet)?;
        self.carry_out(handed.swap(), &planned, &request, &place, u64::MAX).await.map(drop)
    }

    async fn is_spent(&self, leg: &LegPlan, proofs: &Proofs) -> bool {
        let Ok(ys) = proofs.ys() else { return false };
        let asked = leg.place.mint().post_check_state(CheckStateRequest { ys }).await;
        asked.is_ok_and(|told| told.states.iter().any(|it| it.state == State::Spent))
    }

    /// Proofs of what was handed out, if somebody has finished it.
    async fn finished(
        &self,
        handed: Handed,
        leg: &LegPlan,
        inputs: &Proofs,
    ) -> Result<Option<Proofs>, LegFault> {
        let (wallet, mint) = (&self.shared.wallet, leg.place.mint());
        let mut pause = PAUSE.0;
        loop {
            // A watchtower may have named a younger keyset than ours.
            let mut asked = BTreeSet::new();
            for keyset in self.keysets(leg).await {
                if !asked.insert(keyset.id) {
                    continue;
                }
                let outputs = self.spare_outputs(handed, leg, inputs, keyset.id)?;
                let told = wallet.signed_before(&outputs, mint.as_ref(), &keyset);
                match self.shared.probe.around(&format!("ask {}", handed.swap()), told).await {
                    Ok(found) => return Ok(found),
                    Err(SwapError::Wallet(error)) => return Err(error.into()),
                    Err(error) => debug!(%error, "the mint has not told what it signed"),
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The keyset that was agreed on, and all others of the mint.
    async fn keysets(&self, leg: &LegPlan) -> Vec<KeySet> {
        let more = leg.place.cdk.keysets(KeysetLoadPolicy::Refresh).await;
        let more = more.inspect_err(|error| debug!(%error, "the mint does not tell its keysets"));
        let sound = more
            .unwrap_or_default()
            .into_iter()
            .filter(|keyset| keyset.unit == leg.place.keyset.unit && keyset.verify_id().is_ok());
        std::iter::once(leg.place.keyset.clone()).chain(sound).collect()
    }

    /// Another machine has swapped a leg for outputs of the wallet's: the mint remembers
    /// them.
    pub(super) async fn find(&self, leg: &LegPlan) -> Result<(), LegFault> {
        let mint = leg.place.cdk.mint_url.clone();
        let remains = Remains { mints: [mint.clone()].into(), ..Remains::default() };
        let mut pause = PAUSE.0;
        loop {
            let restored = self.shared.wallet.restore(&remains, &|_| {});
            let report = self.shared.probe.around("restore", restored).await?;
            match report.get(&mint.to_string()) {
                Some(found) if found.unverified.is_none() => {
                    warn!(found.proofs, trade = %self.record.id(), "swapped by another machine");
                    return Ok(());
                }
                _ => debug!("the mint does not tell what it signed"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

fn refused(error: impl std::fmt::Display) -> LegFault {
    LegFault::Refused(error.to_string())
}
