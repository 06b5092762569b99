//! The invoices that a service has made, in one file that is replaced whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ldk_node::bitcoin::hex::DisplayHex;
use serde::{Deserialize, Serialize};

/// How far an invoice has come.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum State {
    Pending,
    /// So much is held until that block.
    Accepted {
        msats: u64,
        deadline: u32,
    },
    /// LDK was given the preimage.
    Settling {
        msats: u64,
        deadline: u32,
        preimage: [u8; 32],
    },
    Settled {
        preimage: [u8; 32],
        at: u64,
    },
    /// Given back.
    Failed,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) bolt11: String,
    /// Msats.
    pub(super) amount: u64,
    pub(super) created_at: u64,
    pub(super) expires_at: u64,
    pub(super) state: State,
}

pub(super) struct Ledger {
    path: PathBuf,
    records: BTreeMap<String, Record>,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let records = match path.exists() {
            true => serde_json::from_slice(&fs::read(path)?)?,
            false => BTreeMap::new(),
        };
        Ok(Self { path: path.to_owned(), records })
    }

    pub(super) fn get(&self, hash: [u8; 32]) -> Option<Record> {
        self.records.get(&hash.to_lower_hex_string()).cloned()
    }

    pub(super) fn put(&mut self, hash: [u8; 32], record: Record) -> Result<()> {
        self.records.insert(hash.to_lower_hex_string(), record);
        let next = self.path.with_extension("next");
        fs::write(&next, serde_json::to_vec(&self.records)?)?;
        Ok(fs::rename(next, &self.path)?)
    }
}
