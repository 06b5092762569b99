//! What the pool publishes about itself: EH-01's announcement and epoch keyset,
//! and NIP-87's mint.

use hashpit_nips::Work;
use hashpit_nips::eh01::{
    EpochKeyset, EpochState, MintAnnouncement, PayoutScheme, PoolAnnouncement, Sv2Endpoint,
};
use nostr_sdk::{Event, EventBuilder, Keys};

use crate::config::Config;
use crate::ledger::Ledger;
use crate::mint;

/// Builds and signs the pool's public events.
#[derive(Debug)]
pub(crate) struct Announcer {
    keys: Keys,
    pool: PoolAnnouncement,
    mint: MintAnnouncement,
}

impl Announcer {
    /// `sv2` and `mint` are where miners and wallets reach the pool.
    pub(crate) fn new(
        keys: Keys,
        config: &Config,
        sv2: Sv2Endpoint,
        mint: cdk::mint_url::MintUrl,
        min_work: Work,
    ) -> Self {
        let pool = PoolAnnouncement {
            network: config.network,
            name: config.name.clone(),
            sv2: vec![sv2],
            mint: mint.clone(),
            relays: config.relays.clone(),
            fee_ppm: config.fee_ppm,
            scheme: PayoutScheme::Proportional,
            min_work,
            description: config.description.clone(),
        };
        let mint = MintAnnouncement {
            pubkey: mint::key(keys.public_key()),
            url: mint,
            nuts: mint::NUTS.to_vec(),
            network: config.network,
        };
        Self { keys, pool, mint }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Kinds 38470, 38471 and 38172, as they are now.
    pub(crate) fn all(&self, ledger: &Ledger) -> [Event; 3] {
        [self.sign(self.pool.encode()), self.epoch_keyset(ledger), self.sign(self.mint.encode())]
    }

    /// Kind 38471 of the open epoch.
    pub(crate) fn epoch_keyset(&self, ledger: &Ledger) -> Event {
        let epoch = ledger.epoch();
        let keyset = EpochKeyset {
            epoch: epoch.id,
            opened_by: epoch.opened_by,
            state: EpochState::Open,
            work: epoch.work,
            keyset: epoch.keyset.clone(),
            mint: self.mint.url.clone(),
            reward: None,
            issued: ledger.totals().issued,
        };
        self.sign(keyset.encode())
    }

    fn sign(&self, event: EventBuilder) -> Event {
        event.sign_with_keys(&self.keys).expect("signing with a valid key cannot fail")
    }
}
