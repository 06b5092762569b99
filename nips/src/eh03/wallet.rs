//! Kind 17375: what a wallet knows besides its proofs.

use std::fmt::Display;

use cashu::{CurrencyUnit, Id, MintUrl};
use nostr::{PublicKey, RelayUrl, SecretKey};

use super::PlaintextError;
use crate::units::decimal;
use crate::{EpochId, HashUnits, WorkBits};

/// The plaintext of kind 17375: an array of tags.
///
/// A tag that is not known here, or does not parse, is kept in `other` and
/// written back as it was: it may be another wallet's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalletContent {
    /// `mint`: the mints in use.
    pub mints: Vec<MintUrl>,
    /// `privkey`: what NIP-61 nutzaps to this wallet are locked to. Only in the
    /// wallet of sats.
    pub privkeys: Vec<SecretKey>,
    /// `pool`: the pools that ehash is claimed from.
    pub pools: Vec<PoolTag>,
    /// `counter`: how far the secrets of each keyset were used.
    pub counters: Vec<CounterTag>,
    /// `epoch`: how far the issuance of each epoch has come.
    pub epochs: Vec<EpochTag>,
    /// `held`: what the token events are worth together, by mint and unit. A
    /// restore that finds less asks the mint for every counter.
    pub held: Vec<HeldTag>,
    /// `relay`: the relays that hold this backup.
    pub relays: Vec<RelayUrl>,
    /// Tags of other makes.
    pub other: Vec<Vec<String>>,
}

/// `["pool", <hex key>, <relay>…]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolTag {
    /// The pool's Nostr key.
    pub pool: PublicKey,
    /// Relays that it reads and writes.
    pub relays: Vec<RelayUrl>,
}

/// `["epoch", <unit>, <keyset id>, <mint URL>, <work bits>, <batches>, <units>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochTag {
    /// The epoch.
    pub unit: EpochId,
    /// Its keyset.
    pub keyset: Id,
    /// Where its ehash is honoured.
    pub mint: MintUrl,
    /// One unit is 2^work hashes.
    pub work: WorkBits,
    /// Batches below this number have all arrived (EH-02).
    pub batches: u64,
    /// Units received of the pool.
    pub received: HashUnits,
}

/// `["counter", <keyset id>, <from>, <next>]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterTag {
    /// The keyset.
    pub keyset: Id,
    /// The lowest NUT-13 counter that may still be looked for at the mint.
    /// Everything below it was signed, and is in a token event or spent.
    pub from: u32,
    /// The next counter: none from it on was used.
    pub next: u32,
}

/// `["held", <mint URL>, <unit>, <amount>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTag {
    /// The mint.
    pub mint: MintUrl,
    /// The unit.
    pub unit: CurrencyUnit,
    /// What all token events of both are worth, in the unit.
    pub amount: u64,
}

impl WalletContent {
    /// The JSON to be sealed.
    pub fn encode(&self) -> String {
        let mut tags: Vec<Vec<String>> = Vec::new();
        tags.extend(self.privkeys.iter().map(|key| tag("privkey", [key.to_secret_hex()])));
        tags.extend(self.mints.iter().map(|mint| tag("mint", [mint])));
        tags.extend(self.pools.iter().map(|pool| {
            let relays = pool.relays.iter().map(ToString::to_string);
            tag("pool", std::iter::once(pool.pool.to_hex()).chain(relays))
        }));
        tags.extend(self.epochs.iter().map(EpochTag::encode));
        let counters = self.counters.iter();
        tags.extend(counters.map(|CounterTag { keyset, from, next }| {
            tag("counter", [keyset as &dyn Display, from, next])
        }));
        tags.extend(self.held.iter().map(HeldTag::encode));
        tags.extend(self.relays.iter().map(|relay| tag("relay", [relay])));
        tags.extend(self.other.iter().cloned());
        serde_json::to_string(&tags).expect("strings are JSON")
    }

    /// Parses what was opened: an array of arrays of strings.
    pub fn decode(plaintext: &str) -> Result<Self, PlaintextError> {
        let tags: Vec<Vec<String>> = serde_json::from_str(plaintext)?;
        let mut content = Self::default();
        for tag in tags {
            if content.take(&tag).is_none() {
                content.other.push(tag);
            }
        }
        Ok(content)
    }

    /// Unites with what another event of the same wallet says: of a counter's
    /// ends the outer, of what is held the more, of an epoch what came further, of all else
    /// both.
    pub fn merge(&mut self, other: Self) {
        unite(&mut self.mints, other.mints);
        unite(&mut self.privkeys, other.privkeys);
        unite(&mut self.relays, other.relays);
        unite(&mut self.other, other.other);
        for theirs in other.pools {
            match self.pools.iter_mut().find(|ours| ours.pool == theirs.pool) {
                Some(ours) => unite(&mut ours.relays, theirs.relays),
                None => self.pools.push(theirs),
            }
        }
        for theirs in other.counters {
            match self.counters.iter_mut().find(|ours| ours.keyset == theirs.keyset) {
                Some(ours) => {
                    ours.from = ours.from.min(theirs.from);
                    ours.next = ours.next.max(theirs.next);
                }
                None => self.counters.push(theirs),
            }
        }
        for theirs in other.held {
            let same = |ours: &&mut HeldTag| ours.mint == theirs.mint && ours.unit == theirs.unit;
            match self.held.iter_mut().find(same) {
                Some(ours) => ours.amount = ours.amount.max(theirs.amount),
                None => self.held.push(theirs),
            }
        }
        for theirs in other.epochs {
            match self.epochs.iter_mut().find(|ours| ours.unit == theirs.unit) {
                Some(ours) if ours.batches < theirs.batches => *ours = theirs,
                Some(_) => {}
                None => self.epochs.push(theirs),
            }
        }
    }

    /// Adds a tag; `None` if it is not one of ours.
    fn take(&mut self, tag: &[String]) -> Option<()> {
        let (name, values) = tag.split_first()?;
        match (name.as_str(), values) {
            ("mint", [mint]) => self.mints.push(mint.parse().ok()?),
            ("privkey", [key]) => self.privkeys.push(SecretKey::from_hex(key).ok()?),
            ("relay", [relay]) => self.relays.push(relay.parse().ok()?),
            ("counter", [keyset, from, next]) => self.counters.push(CounterTag {
                keyset: keyset.parse().ok()?,
                from: decimal(from)?,
                next: decimal(next)?,
            }),
            ("pool", [pool, relays @ ..]) => {
                let relays = relays.iter().map(|relay| relay.parse().ok());
                let relays = relays.collect::<Option<_>>()?;
                self.pools.push(PoolTag { pool: PublicKey::from_hex(pool).ok()?, relays });
            }
            ("held", [mint, unit, amount]) => self.held.push(HeldTag {
                mint: mint.parse().ok()?,
                unit: unit.parse().ok()?,
                amount: decimal(amount)?,
            }),
            ("epoch", values) => self.epochs.push(EpochTag::decode(values)?),
            _ => return None,
        }
        Some(())
    }
}

impl EpochTag {
    fn encode(&self) -> Vec<String> {
        let values: [&dyn Display; 6] =
            [&self.unit, &self.keyset, &self.mint, &self.work.get(), &self.batches, &self.received];
        tag("epoch", values)
    }

    fn decode(values: &[String]) -> Option<Self> {
        let [unit, keyset, mint, work, batches, received] = values else { return None };
        Some(Self {
            unit: unit.parse().ok()?,
            keyset: keyset.parse().ok()?,
            mint: mint.parse().ok()?,
            work: WorkBits::new(decimal(work)?).ok()?,
            batches: decimal(batches)?,
            received: HashUnits::new(decimal(received)?),
        })
    }
}

impl HeldTag {
    fn encode(&self) -> Vec<String> {
        let values: [&dyn Display; 3] = [&self.mint, &self.unit, &self.amount];
        tag("held", values)
    }
}

fn tag(name: &str, values: impl IntoIterator<Item = impl Display>) -> Vec<String> {
    let values = values.into_iter().map(|value| value.to_string());
    std::iter::once(name.to_owned()).chain(values).collect()
}

fn unite<T: PartialEq>(ours: &mut Vec<T>, theirs: Vec<T>) {
    for value in theirs {
        if !ours.contains(&value) {
            ours.push(value);
        }
    }
}
