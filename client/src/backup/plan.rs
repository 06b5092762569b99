//! What to write, given what there is and what the relays hold. Pure.
//!
//! An event that holds dead coins is replaced by one that holds all of it that
//! lives, in one piece: so `del` never names more than the event replaces
//! (EH-03). Small events are united the same way.

use std::collections::{BTreeMap, BTreeSet};

use cdk::mint_url::MintUrl;
use cdk::nuts::CurrencyUnit;
use hashpit_nips::eh03::MAX_PLAINTEXT;
use nostr_sdk::EventId;

/// What names a coin: Y = hash_to_curve(secret), in hex. No secret itself.
pub(super) type Y = String;
/// Where coins are honoured, and in what they are denominated. An event holds
/// coins of one purse.
pub(super) type Purse = (MintUrl, CurrencyUnit);

/// Events below this many bytes of plaintext are small: about 22 proofs.
const SMALL: usize = MAX_PLAINTEXT / 4;
/// More small events than this in a purse are united.
const MANY: usize = 16;
/// Bytes of an id in `del`, with quotes and comma.
const DEL: usize = 67;
/// Bytes of a token's plaintext besides proofs, ids, mint and unit.
const FRAME: usize = 64;

/// A proof that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Coin {
    pub(super) purse: Purse,
    /// Of its JSON, with a comma.
    pub(super) bytes: usize,
}

/// A token event that relays hold, or will.
#[derive(Debug, Clone)]
pub(super) struct Held<'a> {
    pub(super) id: EventId,
    pub(super) purse: Purse,
    pub(super) coins: &'a BTreeSet<Y>,
}

/// A token event to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) purse: Purse,
    pub(super) coins: BTreeSet<Y>,
    pub(super) replaces: Vec<EventId>,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) drafts: Vec<Draft>,
    /// Events that need no replacement: nothing of them lives, or all of it is
    /// in drafts that replace nothing.
    pub(super) retired: Vec<EventId>,
}

/// What must stay together in one event.
struct Piece {
    coins: BTreeSet<Y>,
    bytes: usize,
    replaces: Option<EventId>,
}

/// Plans so that afterwards every coin of `live` is in an event, and no event
/// holds any other.
pub(super) fn plan(live: &BTreeMap<Y, Coin>, held: &[Held<'_>]) -> Plan {
    let mut plan = Plan::default();
    let mut pieces: BTreeMap<Purse, Vec<Piece>> = BTreeMap::new();
    let mut kept: BTreeMap<Purse, Vec<Piece>> = BTreeMap::new();
    let mut covered = BTreeSet::new();
    for event in held {
        let alive: BTreeSet<Y> =
            event.coins.iter().filter(|y| live.contains_key(*y)).cloned().collect();
        let purses: BTreeSet<_> = alive.iter().map(|y| &live[y].purse).collect();
        // A mint may have moved; then all of its coins have another purse.
        let (Some(purse), 1) = (purses.first().map(|purse| (*purse).clone()), purses.len()) else {
            plan.retired.push(event.id);
            continue;
        };
        covered.extend(alive.iter().cloned());
        let whole = alive.len() == event.coins.len() && purse == event.purse;
        let bytes = alive.iter().map(|y| live[y].bytes).sum();
        let piece = Piece { coins: alive, bytes, replaces: Some(event.id) };
        let of = if whole { &mut kept } else { &mut pieces };
        of.entry(purse).or_default().push(piece);
    }
    for (y, coin) in live.iter().filter(|(y, _)| !covered.contains(*y)) {
        let coins = BTreeSet::from([y.clone()]);
        let piece = Piece { coins, bytes: coin.bytes, replaces: None };
        pieces.entry(coin.purse.clone()).or_default().push(piece);
    }
    for (purse, kept) in kept {
        let small = kept.into_iter().filter(|piece| piece.bytes < SMALL);
        let small: Vec<_> = small.collect();
        let one_more = usize::from(pieces.contains_key(&purse));
        if small.len() + one_more > MANY {
            pieces.entry(purse).or_default().extend(small);
        }
    }
    for (purse, pieces) in pieces {
        pack(&purse, pieces, &mut plan.drafts);
    }
    plan
}

/// First fit, what is bound together first.
fn pack(purse: &Purse, mut pieces: Vec<Piece>, drafts: &mut Vec<Draft>) {
    pieces.sort_by_key(|piece| piece.replaces.is_none());
    let room = MAX_PLAINTEXT - FRAME - purse.0.to_string().len() - purse.1.to_string().len();
    let mut bins: Vec<(usize, Draft)> = Vec::new();
    for Piece { coins, bytes, replaces } in pieces {
        let bytes = bytes + if replaces.is_some() { DEL } else { 0 };
        let fits = bins.iter_mut().find(|(used, _)| used + bytes <= room);
        let (used, draft) = match fits {
            Some(bin) => bin,
            None => {
                let (purse, coins, replaces) = (purse.clone(), BTreeSet::new(), Vec::new());
                bins.push((0, Draft { purse, coins, replaces }));
                bins.last_mut().expect("just pushed")
            }
        };
        *used += bytes;
        draft.coins.extend(coins);
        draft.replaces.extend(replaces);
    }
    drafts.extend(bins.into_iter().map(|(_, draft)| draft));
}
