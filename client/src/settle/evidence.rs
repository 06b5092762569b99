//! Proof, for anybody, that a mint has taken tokens and keeps what it owes for
//! them.
//!
//! It is a swap (NUT-03) that the owner asked for, signed under `SIG_ALL`: so the
//! owner wanted these outputs and no others. Tokens and signature are checked
//! offline. That the mint has carried it out is its own word: it says that the
//! tokens are spent with this very witness (NUT-07), and tells no signature on the
//! outputs (NUT-09). A mint can clear itself at any time, by telling them; so
//! whoever has got his tokens cannot slander it.

use std::path::{Path, PathBuf};

use cdk::Amount;
use cdk::mint_url::MintUrl;
use cdk::nuts::{
    CheckStateRequest, KeySet, Proofs, ProofsMethods, RestoreRequest,
    SpendingConditionVerification, State, SwapRequest,
};
use cdk::wallet::{HttpClient, MintConnector};
use hashpit_nips::eh06;
use nostr_sdk::EventId;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::legs::LegPlan;
use super::trade::Trade;

const VERSION: u8 = 1;

/// A swap that a mint was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    version: u8,
    /// The match that it was part of.
    #[serde(rename = "match")]
    pub of: EventId,
    /// The mint.
    pub mint: MintUrl,
    /// The keyset of tokens and outputs; its id follows from its keys.
    pub keyset: KeySet,
    /// The tokens, with the mint's proof that it signed them (NUT-12).
    pub tokens: Proofs,
    /// What was asked for.
    pub request: SwapRequest,
}

/// What is to be thought of evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The mint says that it has carried the swap out, and tells no signature.
    Withheld,
    /// It tells the signatures: nothing is kept from anybody.
    Returned,
    /// It has not carried the swap out.
    NotTaken,
    /// The tokens were spent by another request than this.
    Otherwise,
    /// The evidence does not hold by itself; why.
    Unfounded(&'static str),
    /// The mint does not answer, so nothing can be said; what it said last.
    NoAnswer(String),
}

/// Asks the mint over HTTP whether evidence against it is true.
pub async fn verify(evidence: &Evidence) -> Verdict {
    evidence.judge(&HttpClient::new(evidence.mint.clone(), None)).await
}

impl Evidence {
    /// What holds without asking anybody: the mint has signed the tokens, and their
    /// owner asked for exactly these outputs.
    ///
    /// Errors with what does not.
    pub fn hold(&self) -> Result<(), &'static str> {
        let Self { keyset, tokens, request, .. } = self;
        if self.version != VERSION {
            return Err("it is of another version");
        }
        if keyset.verify_id().is_err() {
            return Err("the keyset's id is not that of its keys");
        }
        let same = tokens.iter().zip(request.inputs()).all(|(token, input)| {
            (token.amount, token.keyset_id, &token.secret, token.c)
                == (input.amount, input.keyset_id, &input.secret, input.c)
        });
        if tokens.is_empty() || tokens.len() != request.inputs().len() || !same {
            return Err("the tokens are not those of the request");
        }
        for token in tokens {
            let key = keyset.keys.amount_key(token.amount).ok_or("an amount without a key")?;
            if token.keyset_id != keyset.id || token.verify_dleq(key).is_err() {
                return Err("a token is not proven to be the mint's");
            }
        }
        if !matches!(request.has_at_least_one_sig_all(), Ok(true))
            || request.verify_spending_conditions().is_err()
        {
            return Err("the owner has not signed for these outputs");
        }
        let sum = |amounts: &mut dyn Iterator<Item = Amount>| amounts.map(u64::from).sum::<u64>();
        let brought = sum(&mut tokens.iter().map(|token| token.amount));
        let wanted = sum(&mut request.outputs().iter().map(|output| output.amount));
        let fee = eh06::fee(tokens.len(), keyset);
        if wanted.checked_add(fee) != Some(brought) {
            return Err("the outputs are not worth what the tokens are");
        }
        Ok(())
    }

    /// Whether it is true, by the mint's own word.
    pub(crate) async fn judge(&self, mint: &(dyn MintConnector + Send + Sync)) -> Verdict {
        if let Err(why) = self.hold() {
            return Verdict::Unfounded(why);
        }
        match self.ask(mint).await {
            Ok(verdict) => verdict,
            Err(error) => Verdict::NoAnswer(error.to_string()),
        }
    }

    async fn ask(&self, mint: &(dyn MintConnector + Send + Sync)) -> Result<Verdict, cdk::Error> {
        let ys = self.tokens.ys()?;
        let told = mint.post_check_state(CheckStateRequest { ys: ys.clone() }).await?.states;
        let of = |y| told.iter().find(|it| it.y == y);
        if !ys.iter().all(|y| of(*y).is_some_and(|it| it.state == State::Spent)) {
            return Ok(Verdict::NotTaken);
        }
        // The signature stands on the first input (NUT-11).
        let shown = ys.first().and_then(|y| of(*y)?.witness.as_ref()?.signatures());
        let signed = self.request.inputs().first().and_then(|it| it.witness.as_ref()?.signatures());
        if shown.is_none() || shown != signed {
            return Ok(Verdict::Otherwise);
        }
        let outputs = self.request.outputs().clone();
        let restored = mint.post_restore(RestoreRequest { outputs }).await?;
        let nothing = restored.signatures.is_empty();
        Ok(if nothing { Verdict::Withheld } else { Verdict::Returned })
    }

    /// Where evidence of a wallet is kept, beside it.
    pub fn directory(wallet: &Path) -> PathBuf {
        wallet.join("evidence")
    }

    /// Written whole or not at all.
    fn write(&self, wallet: &Path, name: &str) -> std::io::Result<PathBuf> {
        let directory = Self::directory(wallet);
        std::fs::create_dir_all(&directory)?;
        let (path, part) = (directory.join(name), directory.join(format!("{name}.part")));
        std::fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&part, &path)?;
        Ok(path)
    }
}

impl Trade {
    /// Keeps evidence where a mint has taken a leg of ours, by its own word, and
    /// told no signatures for it.
    pub(super) async fn note_withheld(&self, what: &str, plan: &LegPlan, request: &SwapRequest) {
        let name = format!("{}.json", self.record.swap(what));
        let wallet = self.shared.wallet.dir();
        if !plan.lock.sig_all || Evidence::directory(wallet).join(&name).exists() {
            return;
        }
        let handed = if what == "refund" { &self.record.locked } else { &self.record.got };
        let Ok(tokens) = plan.lock.open(plan.net, &plan.place.keyset, handed) else { return };
        let evidence = Evidence {
            version: VERSION,
            of: self.record.id(),
            mint: plan.place.cdk.mint_url.clone(),
            keyset: plan.place.keyset.clone(),
            tokens,
            request: request.clone(),
        };
        if evidence.judge(plan.place.mint().as_ref()).await != Verdict::Withheld {
            return;
        }
        match evidence.write(wallet, &name) {
            Ok(path) => error!(
                mint = %evidence.mint, path = %path.display(),
                "the mint has taken tokens and withholds what it owes; the proof is written"
            ),
            Err(error) => warn!(%error, "evidence against a mint cannot be written"),
        }
    }
}
