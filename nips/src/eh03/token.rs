//! Kind 7375: unspent proofs of one unit at one mint.

use std::fmt;

use cashu::{CurrencyUnit, MintUrl, Proof};
use nostr::EventId;
use serde::{Deserialize, Serialize};

use super::PlaintextError;

/// Longest plaintext whose sealed event stays below 60,000 bytes: many relays
/// take 64 KiB at most, and NIP-44 pads to multiples of 8 KiB up here.
pub const MAX_PLAINTEXT: usize = 40_960;

/// The plaintext of kind 7375.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenContent {
    /// Where the proofs are honoured.
    pub mint: MintUrl,
    /// What they are denominated in. Always written; read as `sat` if absent.
    #[serde(default)]
    pub unit: CurrencyUnit,
    /// Unspent proofs (NUT-00), with their DLEQ proofs where those are known.
    pub proofs: Vec<Proof>,
    /// Token events that this one replaces. It holds everything of them that
    /// was unspent when it was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub del: Vec<EventId>,
}

impl TokenContent {
    /// The JSON to be sealed.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }

    /// Parses what was opened. Fields that it does not know are ignored.
    pub fn decode(plaintext: &str) -> Result<Self, PlaintextError> {
        Ok(serde_json::from_str(plaintext)?)
    }

    /// Units in all.
    ///
    /// `None` beyond 64 bits, which no honest mint issues.
    pub fn amount(&self) -> Option<u64> {
        self.proofs.iter().try_fold(0u64, |sum, proof| sum.checked_add(proof.amount.into()))
    }

    /// Bytes of the JSON without any proof.
    fn frame_len(mint: &MintUrl, unit: &CurrencyUnit) -> usize {
        let (mint, unit) = (mint.clone(), unit.clone());
        Self { mint, unit, proofs: Vec::new(), del: Vec::new() }.encode().len()
    }
}

/// Token contents of `mint` and `unit` that hold `proofs`, in order, none with
/// a plaintext above [`MAX_PLAINTEXT`]. A proof too long to fit stands alone,
/// and cannot be sealed.
pub fn split(mint: &MintUrl, unit: &CurrencyUnit, proofs: Vec<Proof>) -> Vec<TokenContent> {
    let frame = TokenContent::frame_len(mint, unit);
    let (mut contents, mut length): (Vec<TokenContent>, usize) = (Vec::new(), 0);
    for proof in proofs {
        // With its comma.
        let bytes = serde_json::to_string(&proof).expect("strings and numbers are JSON").len() + 1;
        match contents.last_mut() {
            Some(last) if length + bytes <= MAX_PLAINTEXT => {
                last.proofs.push(proof);
                length += bytes;
            }
            _ => {
                let (mint, unit) = (mint.clone(), unit.clone());
                contents.push(TokenContent { mint, unit, proofs: vec![proof], del: Vec::new() });
                length = frame + bytes;
            }
        }
    }
    contents
}

/// Proofs are money: only their number is shown.
impl fmt::Debug for TokenContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenContent")
            .field("mint", &self.mint)
            .field("unit", &self.unit)
            .field("proofs", &format_args!("<{} redacted>", self.proofs.len()))
            .field("del", &self.del)
            .finish()
    }
}
