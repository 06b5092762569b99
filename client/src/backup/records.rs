//! The book on disk: cdk's key-value table, beside the wallet's other records.
//!
//! A new event is written first as it will be sent, then as a record: what has a
//! record can be sent again, byte for byte. Whoever changes records reads them
//! anew under the wallet's lock and adds what it has learnt, so that two
//! processes never undo each other's.

use std::collections::{BTreeMap, BTreeSet};

use cdk::nuts::{Proof, State};
use hashpit_nips::eh03::HeldTag;
use nostr_sdk::{Event, EventId, JsonUtil, RelayUrl, Timestamp};
use serde::{Deserialize, Serialize};

use super::book::{Book, Record};
use super::plan::{Coin, Y};
use super::{Backup, Settings};
use crate::wallet::{NAMESPACE, Wallet, WalletError};

const RECORDS: &str = "backup";
const EVENTS: &str = "backup_events";
const SETTINGS: &str = "backup_settings";
const TROUBLE: &str = "backup_trouble";
/// The one key of a table of one record.
const ONLY: &str = "current";
const VERSION: u8 = 1;

/// A record of its own with a version.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u8,
    #[serde(flatten)]
    value: T,
}

/// What last went wrong at each relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Troubles {
    pub(super) relays: BTreeMap<RelayUrl, Trouble>,
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) at: Timestamp,
    pub(super) reason: String,
}

/// The proofs that must be on the relays.
#[derive(Default)]
pub(super) struct Live {
    pub(super) coins: BTreeMap<Y, Coin>,
    pub(super) proofs: BTreeMap<Y, Proof>,
}

impl Live {
    /// What there is of each unit at each mint.
    pub(super) fn held(&self) -> Vec<HeldTag> {
        let mut amounts: BTreeMap<_, u64> = BTreeMap::new();
        for (y, coin) in &self.coins {
            let amount = self.proofs.get(y).map_or(0, |proof| u64::from(proof.amount));
            let sum = amounts.entry(coin.purse.clone()).or_default();
            *sum = sum.saturating_add(amount);
        }
        let tag = |((mint, unit), amount)| HeldTag { mint, unit, amount };
        amounts.into_iter().map(tag).collect()
    }
}

impl Record {
    pub(super) const VERSION: u8 = VERSION;
}

impl Wallet {
    /// The relays of this wallet's backup; none at first.
    pub async fn backup_settings(&self) -> Result<Settings, WalletError> {
        Ok(self.read_versioned(SETTINGS).await?.unwrap_or_default())
    }

    /// Sets the relays of this wallet's backup.
    pub async fn set_backup_settings(&self, settings: &Settings) -> Result<(), WalletError> {
        self.write_versioned(SETTINGS, settings).await
    }

    pub(super) async fn backup_troubles(&self) -> Result<Troubles, WalletError> {
        Ok(self.read_versioned(TROUBLE).await?.unwrap_or_default())
    }

    async fn read_versioned<T>(&self, table: &str) -> Result<Option<T>, WalletError>
    where
        T: for<'de> Deserialize<'de>,
    {
        let Some(bytes) = self.store.kv_read(NAMESPACE, table, ONLY).await? else {
            return Ok(None);
        };
        let damaged = || WalletError::Damaged(table.to_owned());
        let record: Versioned<T> = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if record.version != VERSION {
            return Err(damaged());
        }
        Ok(Some(record.value))
    }

    async fn write_versioned<T: Serialize>(
        &self,
        table: &str,
        value: &T,
    ) -> Result<(), WalletError> {
        let record = Versioned { version: VERSION, value };
        let bytes = serde_json::to_vec(&record).expect("strings and numbers are JSON");
        Ok(self.store.kv_write(NAMESPACE, table, ONLY, &bytes).await?)
    }

    /// Every record of what is on relays.
    pub(super) async fn backup_book(&self) -> Result<Book, WalletError> {
        let mut records = Vec::new();
        for key in self.store.kv_list(NAMESPACE, RECORDS).await? {
            let Some(bytes) = self.store.kv_read(NAMESPACE, RECORDS, &key).await? else { continue };
            let damaged = || WalletError::Damaged(format!("backup {key}"));
            let record: Record = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            if record.version != VERSION {
                return Err(damaged());
            }
            records.push(record);
        }
        Ok(Book::new(records))
    }

    /// Writes what changed in a book that was read under the lock that is still
    /// held. What was forgotten goes last.
    pub(super) async fn save_book(&self, book: &mut Book) -> Result<(), WalletError> {
        for id in std::mem::take(&mut book.changed) {
            let Some(record) = book.get(&id) else { continue };
            let bytes = serde_json::to_vec(record).expect("strings and numbers are JSON");
            self.store.kv_write(NAMESPACE, RECORDS, &id.to_hex(), &bytes).await?;
        }
        for id in std::mem::take(&mut book.forgotten) {
            self.store.kv_remove(NAMESPACE, RECORDS, &id.to_hex()).await?;
            self.store.kv_remove(NAMESPACE, EVENTS, &id.to_hex()).await?;
        }
        Ok(())
    }

    /// Stores an event as it will be sent. Its record follows.
    pub(super) async fn save_event(&self, event: &Event) -> Result<(), WalletError> {
        let (key, bytes) = (event.id.to_hex(), event.as_json().into_bytes());
        Ok(self.store.kv_write(NAMESPACE, EVENTS, &key, &bytes).await?)
    }

    /// An event as it was stored.
    pub(super) async fn saved_event(&self, id: &EventId) -> Result<Event, WalletError> {
        let damaged = || WalletError::Damaged(format!("backup event {id}"));
        let bytes = self.store.kv_read(NAMESPACE, EVENTS, &id.to_hex()).await?;
        Event::from_json(bytes.ok_or_else(damaged)?).map_err(|_| damaged())
    }

    /// Events that a crash left without a record: they were never sent.
    pub(super) async fn drop_orphans(&self, known: &BTreeSet<EventId>) -> Result<(), WalletError> {
        for key in self.store.kv_list(NAMESPACE, EVENTS).await? {
            if !EventId::from_hex(&key).is_ok_and(|id| known.contains(&id)) {
                self.store.kv_remove(NAMESPACE, EVENTS, &key).await?;
            }
        }
        Ok(())
    }

    /// Every proof that is not spent, or might not be: those on their way out
    /// may come back.
    pub(super) async fn live_proofs(&self) -> Result<Live, WalletError> {
        let mut live = Live::default();
        for info in self.store.get_proofs(None, None, None, None).await? {
            if info.state == State::Spent {
                continue;
            }
            let json = serde_json::to_string(&info.proof).expect("strings and numbers are JSON");
            let purse = (info.mint_url, info.unit);
            let y = info.y.to_hex();
            live.coins.insert(y.clone(), Coin { purse, bytes: json.len() + 1 });
            live.proofs.insert(y, info.proof);
        }
        Ok(live)
    }
}

impl Backup {
    /// Reads the book anew, changes it, and writes it, all under the lock.
    pub(super) async fn update<T>(
        &self,
        change: impl FnOnce(&mut Book) -> T,
    ) -> Result<T, WalletError> {
        let _lock = self.wallet.lock().await?;
        let mut book = self.wallet.backup_book().await?;
        let result = change(&mut book);
        self.wallet.save_book(&mut book).await?;
        Ok(result)
    }

    /// Notes what went wrong at some relays, and that the others are well again.
    pub(super) async fn note_troubles(
        &self,
        troubles: &BTreeMap<RelayUrl, String>,
    ) -> Result<(), WalletError> {
        let _lock = self.wallet.lock().await?;
        let before = self.wallet.backup_troubles().await?;
        let trouble = |(relay, reason): (&RelayUrl, &String)| {
            (relay.clone(), Trouble { at: Timestamp::now(), reason: reason.clone() })
        };
        let now = Troubles { relays: troubles.iter().map(trouble).collect() };
        if before == now {
            return Ok(());
        }
        self.wallet.write_versioned(TROUBLE, &now).await
    }
}
