//! The traders that the engine has to remember: those with an offer, a waiting
//! command, a dead man's switch or a burnt commit.

use std::collections::HashMap;

use hashpit_nips::Millis;

use super::command::{Address, MarketId, OfferId, Seq, Trader};
use super::offers::List;

/// What is known of one trader.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: Trader,
    /// Its offers, of all markets.
    pub offers: List,
    /// When they all end, and the command that said so.
    pub alive: Option<(Millis, Seq)>,
    /// Commits that ran out of time.
    pub burnt: u32,
    /// Its commits and deferred commands.
    pub waiting: Vec<Waiting>,
}

/// A commit or command of a trader that waits in a market.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub seq: Seq,
    pub market: MarketId,
    /// Whether it is a commit.
    pub commit: bool,
    /// The offer that it will place or amend, once that is known.
    pub offer: Option<(Address, OfferId)>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.offers.is_empty() && self.alive.is_none() && self.burnt == 0 && self.waiting.is_empty()
    }
}

/// Traders by key, and by a small number that their offers bear. Numbers are
/// used again, and no result depends on them.
#[derive(Debug, Clone, Default)]
pub(super) struct Traders {
    entries: Vec<Entry>,
    free: Vec<u32>,
    by_key: HashMap<Trader, u32>,
}

impl Traders {
    pub fn find(&self, key: Trader) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub fn get(&self, key: Trader) -> Option<&Entry> {
        self.find(key).map(|number| self.entry(number))
    }

    pub fn entry(&self, number: u32) -> &Entry {
        &self.entries[number as usize]
    }

    pub fn entry_mut(&mut self, number: u32) -> &mut Entry {
        &mut self.entries[number as usize]
    }

    /// The trader's number, a new one if it was not known. Whoever asks for it
    /// gives the trader something to be remembered by, or forgets it.
    pub fn intern(&mut self, key: Trader) -> u32 {
        if let Some(number) = self.find(key) {
            return number;
        }
        let entry = Entry { key, offers: List::EMPTY, alive: None, burnt: 0, waiting: Vec::new() };
        let number = match self.free.pop() {
            Some(number) => {
                *self.entry_mut(number) = entry;
                number
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("limits keep traders below 2^32")
            }
        };
        self.by_key.insert(key, number);
        number
    }

    /// Forgets a trader of whom there is nothing to remember.
    pub fn forget_idle(&mut self, number: u32) {
        let entry = self.entry(number);
        if entry.is_idle() && self.find(entry.key) == Some(number) {
            self.by_key.remove(&self.entries[number as usize].key);
            self.free.push(number);
        }
    }

    /// All that are remembered, in order of their keys.
    pub fn sorted(&self) -> Vec<&Entry> {
        let mut numbers: Vec<_> = self.by_key.iter().collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|(_, &number)| self.entry(number)).collect()
    }
}
