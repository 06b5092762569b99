//! Tokens that came as gift wraps (NIP-17, NIP-59) to this wallet's npub.
//!
//! What was dealt with is remembered by the wrap's id, so that each is shown and
//! tried once. A crash between the swap and the note of it costs nothing: the
//! token is in the wallet, and the next run finds it spent.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

use cdk::nuts::{PaymentRequestPayload, Token};
use hashpit_mailbox::Mailbox;
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::signer::SignerBackend;
use nostr_sdk::{Event, EventId, Filter, Kind, PublicKey, RelayUrl, Timestamp};
use serde::Serialize;
use tracing::debug;

use super::PayError;
use super::delivery::our_relays;
use crate::wallet::{Wallet, WalletError};

/// How long relays may take to tell what they have.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wraps asked for at once, and how often: more than a hundred pages of them is
/// spam, of which the newest are read.
const PAGE: usize = 200;
const PAGES: usize = 100;

/// What became of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// In the wallet.
    Received,
    /// Spent already: by its sender, or received in an earlier run.
    Spent,
    /// Of a mint that this wallet has nothing of. Not swapped: a stranger's mint
    /// may print what it likes. It stays where it is.
    UnknownMint,
    /// No good.
    Refused {
        /// Why.
        reason: String,
    },
    /// Not now: the mint does not answer. It is tried again.
    Later {
        /// Why.
        reason: String,
    },
}

/// A token in a gift wrap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arrived {
    /// The gift wrap.
    pub event: EventId,
    /// Who sealed it; a throwaway key, most likely.
    pub from: PublicKey,
    /// The payment request that it answers, if it says so.
    pub request: Option<String>,
    /// Cashu unit.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// Units that it is said to be worth, or that were received.
    pub amount: u64,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Receives what came to this wallet's npub through `relays`, or if there are
/// none, our pools'. Tokens of mints that the wallet does not know are received
/// only if `any_mint`.
pub async fn collect(
    wallet: &Wallet,
    relays: &[RelayUrl],
    any_mint: bool,
) -> Result<Vec<Arrived>, PayError> {
    let relays = if relays.is_empty() { our_relays(wallet).await? } else { relays.to_vec() };
    if relays.is_empty() {
        return Err(PayError::NoRelay);
    }
    let mailbox = Mailbox::connect_as(wallet.signer(), wallet.public_key(), &relays).await?;
    let wraps = fetch(wallet, &mailbox).await;
    mailbox.close().await;
    let mut arrived = Vec::new();
    for wrap in wraps? {
        let Some(mut tokens) = open(wallet, &wrap).await? else { continue };
        for token in &mut tokens {
            receive(wallet, token, any_mint).await?;
        }
        let waits =
            |outcome: &Outcome| matches!(outcome, Outcome::Later { .. } | Outcome::UnknownMint);
        if !tokens.iter().any(|(_, token)| waits(&token.outcome)) {
            wallet.note_wrap(wrap.id).await?;
        }
        arrived.extend(tokens.into_iter().map(|(_, arrived)| arrived));
    }
    Ok(arrived)
}

/// The wraps that were not dealt with yet, oldest first.
async fn fetch(wallet: &Wallet, mailbox: &Mailbox) -> Result<Vec<Event>, PayError> {
    let done = wallet.noted_wraps().await?;
    let mine = Filter::new().kind(Kind::GiftWrap).pubkey(mailbox.public_key()).limit(PAGE);
    let (mut seen, mut wraps) = (HashSet::new(), Vec::<Event>::new());
    let (mut until, mut stuck) = (None::<Timestamp>, false);
    for _ in 0..PAGES {
        let filter = until.map_or(mine.clone(), |until| mine.clone().until(until));
        let (page, answered) = mailbox.fetch(filter, PATIENCE).await?;
        if answered == 0 {
            return Err(PayError::NoAnswer);
        }
        let oldest = page.iter().map(|event| event.created_at).min();
        let fresh: Vec<_> = page.into_iter().filter(|event| seen.insert(event.id)).collect();
        if fresh.is_empty() {
            // The end, or a second with more wraps than a page: `until` cannot
            // point into it, and strangers could fill one to hide what is older.
            let Some(full) = until.filter(|_| !stuck) else { break };
            (until, stuck) = (Some(full - 1), true);
            continue;
        }
        (until, stuck) = (oldest, false);
        wraps.extend(fresh.into_iter().filter(|event| !done.contains(&event.id)));
    }
    wraps.sort_by_key(|event| event.created_at);
    Ok(wraps)
}

type Found = (Token, Arrived);

/// The tokens in a wrap; `None` if it does not open, and is then forgotten.
async fn open(wallet: &Wallet, wrap: &Event) -> Result<Option<Vec<Found>>, PayError> {
    let unwrapped = match UnwrappedGift::from_gift_wrap(&wallet.signer(), wrap).await {
        Ok(unwrapped) => unwrapped,
        Err(error) => {
            debug!(event = %wrap.id, %error, "gift wrap does not open");
            // A remote signer may only have been out of reach.
            if matches!(wallet.signer().backend(), SignerBackend::Keys) {
                wallet.note_wrap(wrap.id).await?;
            }
            return Ok(None);
        }
    };
    let found = tokens(&unwrapped.rumor.content).into_iter().filter_map(|(token, request)| {
        let arrived = Arrived {
            event: wrap.id,
            from: unwrapped.sender,
            request,
            unit: token.unit().unwrap_or_default().to_string(),
            mint: token.mint_url().ok()?.to_string(),
            amount: token.value().ok()?.into(),
            outcome: Outcome::UnknownMint,
        };
        Some((token, arrived))
    });
    Ok(Some(found.collect()))
}

/// The tokens in a message: NUT-18's payload, or token strings among words.
fn tokens(message: &str) -> Vec<(Token, Option<String>)> {
    if let Ok(payload) = serde_json::from_str::<PaymentRequestPayload>(message) {
        let PaymentRequestPayload { id, memo, mint, unit, proofs } = payload;
        return vec![(Token::new(mint, proofs, memo, unit), id)];
    }
    let words = message.split_whitespace().map(|word| word.trim_start_matches("cashu:"));
    let words = words.filter(|word| word.starts_with("cashuA") || word.starts_with("cashuB"));
    words.filter_map(|word| Token::from_str(word).ok()).map(|token| (token, None)).collect()
}

async fn receive(wallet: &Wallet, found: &mut Found, any_mint: bool) -> Result<(), PayError> {
    let (token, arrived) = found;
    let known = wallet.known_mints().await?;
    if !any_mint && !known.iter().any(|(_, mint)| *mint == arrived.mint) {
        arrived.outcome = Outcome::UnknownMint;
        return Ok(());
    }
    arrived.outcome = match wallet.receive(&token.to_string()).await {
        Ok(received) => {
            arrived.amount = received.amount;
            Outcome::Received
        }
        Err(WalletError::Cashu(cdk::Error::TokenAlreadySpent)) => Outcome::Spent,
        Err(WalletError::Cashu(error)) if error.is_definitive_failure() => {
            Outcome::Refused { reason: error.to_string() }
        }
        Err(WalletError::Token(reason)) => Outcome::Refused { reason },
        Err(
            error @ (WalletError::Cashu(_)
            | WalletError::Unreachable { .. }
            | WalletError::NoRelay(_)
            | WalletError::Mailbox(_)),
        ) => Outcome::Later { reason: error.to_string() },
        Err(error) => return Err(error.into()),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_without_a_token_hold_none() {
        for message in ["", "hello", "{}", "{\"proofs\":7}", "cashuB", "cashuBAAAA see?", "cashu:"]
        {
            assert!(tokens(message).is_empty(), "{message}");
        }
    }
}
