//! The seller's side of a watchtower: hands out a claim that somebody else may
//! finish, and takes in what was claimed elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use cdk::nuts::{
    CheckStateRequest, HTLCWitness, Id, KeySet, PreMint, Proofs, ProofsMethods, State, SwapRequest,
    Witness,
};
use cdk_common::wallet::KeysetLoadPolicy;
use hashpit_nips::eh06::{Watch, fee};
use nostr_sdk::{PublicKey, Timestamp};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::SettleError;
use super::legs::{LegFault, LegPlan};
use super::mints::Place;
use super::record::Watched;
use super::trade::Trade;
use crate::wallet::{Remains, SwapError};

/// How long relays may take to store what goes to watchtowers, before the trade
/// goes on without.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long relays keep it after the sats' locktime, in seconds.
const KEPT: u64 = 60 * 60;
/// First and longest pause before a mint is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Trade {
    /// Hands a claim of the sats to each watchtower, unless one has it. It takes
    /// seconds at most, and a trade without a watchtower goes on.
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
            Ok(watchers) => Watched::By { watchers },
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

    /// The watchtowers for which a relay has the claim, or why there are none.
    async fn hand_out(
        &self,
        ehash: &LegPlan,
        locked: &Proofs,
        sats: Option<&LegPlan>,
    ) -> Result<Vec<PublicKey>, String> {
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
        let watch = self.watch(ehash, locked, sats).map_err(|error| error.to_string())?;
        let expires = Timestamp::from(sats.lock.locktime.saturating_add(KEPT));
        let (from, deadline) = (self.keys.keys(), Instant::now() + PATIENCE);
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
        if reached.is_empty() { Err(why) } else { Ok(reached) }
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
        })
    }

    /// A claim of the sats into outputs that follow from the trade, signed, and
    /// without the preimage.
    fn claim_to_finish(&self, sats: &LegPlan) -> Result<SwapRequest, LegFault> {
        let inputs = sats.lock.open(sats.net, &sats.place.keyset, &self.record.got);
        let inputs = inputs.map_err(refused)?;
        let outputs = self.spare_outputs(sats, &inputs, sats.place.keyset.id)?;
        let outputs = outputs.into_iter().map(|output| output.blinded_message).collect();
        let mut claim = SwapRequest::new(inputs, outputs);
        if let Some(first) = claim.inputs_mut().first_mut() {
            let witness = HTLCWitness { preimage: String::new(), signatures: None };
            first.witness = Some(Witness::HTLCWitness(witness));
        }
        claim.sign_sig_all(self.keys.cashu()).map_err(refused)?;
        Ok(claim)
    }

    /// The outputs of [`Trade::claim_to_finish`].
    fn spare_outputs(
        &self,
        sats: &LegPlan,
        inputs: &Proofs,
        keyset: Id,
    ) -> Result<Vec<PreMint>, LegFault> {
        let keys = &sats.place.keyset;
        let gross: u64 = inputs.iter().map(|proof| u64::from(proof.amount)).sum();
        let net = gross.saturating_sub(fee(inputs.len(), keys));
        let denominations: Vec<u64> =
            keys.keys.iter().map(|(amount, _)| (*amount).into()).collect();
        let split = cdk::Amount::from(net).split(&(0, denominations).into()).map_err(refused)?;
        let amounts: Vec<u64> = split.into_iter().map(u64::from).collect();
        let given = self.keys.plain(&amounts);
        let blinded: Result<Vec<_>, _> = given.iter().map(|it| it.blind(keyset)).collect();
        Ok(blinded?)
    }

    /// Takes in sats that were claimed, though not by this wallet: by a watchtower,
    /// or by another machine that has the same words. They are nobody else's, so it
    /// is tried for as long as it takes.
    pub(super) async fn gather(
        &mut self,
        sats: &LegPlan,
        claimed: &Proofs,
    ) -> Result<(), LegFault> {
        let mut pause = PAUSE.0;
        loop {
            let Some(proofs) = self.finished(sats, claimed).await? else {
                return self.find(sats).await;
            };
            match self.receive(sats, &proofs).await {
                Err(LegFault::Refused(why)) => warn!(why, "the mint refuses what it has signed"),
                done => return done,
            }
            let name = self.record.swap("gather");
            self.shared.wallet.give_up(&name, self.record.operation()).await?;
            if self.is_spent(sats, &proofs).await {
                return self.find(sats).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Swaps proofs of the trade's for such as the words alone bring back.
    async fn receive(&self, sats: &LegPlan, proofs: &Proofs) -> Result<(), LegFault> {
        let (wallet, place) = (&self.shared.wallet, &sats.place);
        let keysets = self.keysets(sats).await;
        let fee_ppk = proofs.first().and_then(|proof| {
            let signed = keysets.iter().find(|keyset| keyset.id == proof.keyset_id)?;
            Some(signed.input_fee_ppk)
        });
        let active = place.cdk.active_keyset().await.unwrap_or(place.keyset.clone());
        // What a swap costs follows from the keyset of its inputs.
        let input_fee_ppk = fee_ppk.unwrap_or(active.input_fee_ppk);
        let costing = KeySet { input_fee_ppk, ..active };
        let name = self.record.swap("gather");
        let planned = wallet.plan_receipt(&name, &place.cdk, &costing, proofs.clone());
        let planned = self.shared.probe.around("write gather", planned).await?;
        if planned.is_done() {
            return Ok(());
        }
        let keyset = keysets.into_iter().find(|keyset| keyset.id == planned.keyset());
        let place = Place { keyset: keyset.unwrap_or(costing), ..place.clone() };
        let request = planned.request(wallet)?;
        self.carry_out("gather", &planned, &request, &place, u64::MAX).await.map(drop)
    }

    async fn is_spent(&self, sats: &LegPlan, proofs: &Proofs) -> bool {
        let Ok(ys) = proofs.ys() else { return false };
        let asked = sats.place.mint().post_check_state(CheckStateRequest { ys }).await;
        asked.is_ok_and(|told| told.states.iter().any(|it| it.state == State::Spent))
    }

    /// Proofs of the claim that was handed out, if somebody has finished it.
    async fn finished(&self, sats: &LegPlan, claimed: &Proofs) -> Result<Option<Proofs>, LegFault> {
        let (wallet, mint) = (&self.shared.wallet, sats.place.mint());
        let mut pause = PAUSE.0;
        loop {
            // A watchtower may have named a younger keyset than ours.
            let mut asked = BTreeSet::new();
            for keyset in self.keysets(sats).await {
                if !asked.insert(keyset.id) {
                    continue;
                }
                let outputs = self.spare_outputs(sats, claimed, keyset.id)?;
                let told = wallet.signed_before(&outputs, mint.as_ref(), &keyset);
                match self.shared.probe.around("ask gather", told).await {
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
    async fn keysets(&self, sats: &LegPlan) -> Vec<KeySet> {
        let more = sats.place.cdk.keysets(KeysetLoadPolicy::Refresh).await;
        let more = more.inspect_err(|error| debug!(%error, "the mint does not tell its keysets"));
        let sound = more
            .unwrap_or_default()
            .into_iter()
            .filter(|keyset| keyset.unit == sats.place.keyset.unit && keyset.verify_id().is_ok());
        std::iter::once(sats.place.keyset.clone()).chain(sound).collect()
    }

    /// Another machine has claimed into outputs of the wallet's: the mint remembers
    /// them.
    async fn find(&self, sats: &LegPlan) -> Result<(), LegFault> {
        let mint = sats.place.cdk.mint_url.clone();
        let remains = Remains { mints: [mint.clone()].into(), ..Remains::default() };
        let mut pause = PAUSE.0;
        loop {
            let restored = self.shared.wallet.restore(&remains, &|_| {});
            let report = self.shared.probe.around("restore", restored).await?;
            match report.get(&mint.to_string()) {
                Some(found) if found.unverified.is_none() => {
                    warn!(found.proofs, trade = %self.record.id(), "claimed by another machine");
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
