//! `hashpit trade evidence`.

use std::path::Path;

use anyhow::{Context, bail};
use hashpit_client::settle::{Evidence, Verdict, verify};
use serde_json::json;

use crate::terminal::printable;

/// Bytes of evidence that are read; a leg of 64 proofs takes some hundred thousand.
const MAX_BYTES: u64 = 4 << 20;

/// Says whether a mint keeps what it owes, by evidence that anybody may have written.
///
/// Errors where the evidence is unfounded, or the mint does not answer.
pub async fn run(file: &Path, as_json: bool) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", file.display());
    if file.metadata().with_context(cannot)?.len() > MAX_BYTES {
        bail!("{} is too large to be evidence", file.display());
    }
    let text = std::fs::read(file).with_context(cannot)?;
    let evidence: Evidence = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no evidence of hashpit's", file.display()))?;
    let mint = printable(&evidence.mint.to_string());
    let (verdict, said) = match verify(&evidence).await {
        Verdict::Withheld => (
            "withheld",
            format!(
                "{mint} says that it has taken the tokens with this very request, and returns no \
                 signature for them: it keeps what it owes."
            ),
        ),
        Verdict::Returned => {
            ("returned", format!("{mint} has signed what was asked for: it owes nothing."))
        }
        Verdict::NotTaken => {
            ("not_taken", format!("{mint} has not taken the tokens: they can still be spent."))
        }
        Verdict::Otherwise => (
            "otherwise",
            format!("The tokens were spent by another request: {mint} need not answer this one."),
        ),
        Verdict::Unfounded(why) => bail!("the evidence does not hold: {why}"),
        Verdict::NoAnswer(why) => bail!("{mint} does not answer, so nothing can be said: {why}"),
    };
    match as_json {
        true => println!(
            "{}",
            json!({ "verdict": verdict, "mint": evidence.mint, "match": evidence.of })
        ),
        false => println!("{said}"),
    }
    Ok(())
}
