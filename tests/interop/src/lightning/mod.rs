//! Lightning on a chain of its own: Bitcoin Core (regtest), two LDK nodes with a
//! channel between them, and a wallet service (NIP-47) over each.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`bitcoind`] | Bitcoin Core |
//! | [`node`] | an LDK node |
//! | [`wallet_service`] | Nostr Wallet Connect over a node |
//!
//! Core and, in a test of it, the client are of other makes. The service is ours:
//! no registry has one that holds invoices.

pub mod bitcoind;
pub mod node;
pub mod wallet_service;

use std::path::{Path, PathBuf};

use anyhow::Result;
use hashpit_client::nwc::NwcUri;
use nostr_sdk::{Keys, RelayUrl};

use crate::PAUSE;
use bitcoind::Bitcoind;
use node::Node;
use wallet_service::WalletService;

/// What is in the channel at first, and how much of it is the seller's.
const CHANNEL_SATS: u64 = 10_000_000;
const PUSHED_SATS: u64 = 4_000_000;
/// A coinbase can be spent after so many blocks.
const MATURITY: u32 = 101;
/// Blocks that bury a channel.
const CHANNEL_DEPTH: u32 = 6;

/// A buyer's wallet and a seller's, either of which can pay the other some millions
/// of sats. The runtime must have several threads: LDK blocks on it.
pub struct LightningHouse {
    /// How to connect to the buyer's wallet.
    pub buyer: NwcUri,
    /// How to connect to the seller's wallet.
    pub seller: NwcUri,
    wallets: [Option<WalletService>; 2],
    makings: [Makings; 2],
    bitcoind: Bitcoind,
}

/// What a wallet is started from, and started again.
#[derive(Clone)]
struct Makings {
    dir: PathBuf,
    port: u16,
    seed: [u8; 64],
    keys: Keys,
    client: Keys,
    relay: RelayUrl,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Side {
    Buyer,
    Seller,
}

impl Makings {
    fn new(dir: &Path, seed: u8, relay: &RelayUrl) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            port: hashpit_tests::process::free_port()?,
            seed: [seed; 64],
            keys: Keys::generate(),
            client: Keys::generate(),
            relay: relay.clone(),
        })
    }

    fn uri(&self) -> Result<NwcUri> {
        let secret = self.client.secret_key().clone();
        Ok(NwcUri::new(self.keys.public_key(), vec![self.relay.clone()], secret)?)
    }

    async fn node(&self, bitcoind: &Bitcoind) -> Result<Node> {
        Node::start(&self.dir, self.port, self.seed, bitcoind).await
    }

    async fn serve(&self, node: Node) -> Result<WalletService> {
        let client = self.client.public_key();
        WalletService::start(node, &self.dir, self.keys.clone(), client, &self.relay).await
    }
}

impl LightningHouse {
    /// Starts everything below `dir`, wallets on `relay`, and opens the channel.
    pub async fn start(relay: &RelayUrl, dir: &Path) -> Result<Self> {
        let bitcoind = Bitcoind::start(&dir.join("bitcoin")).await?;
        let makings = [
            Makings::new(&dir.join("buyer"), 1, relay)?,
            Makings::new(&dir.join("seller"), 2, relay)?,
        ];
        // Nodes take a chain without a recent block for one that is not synced.
        bitcoind.mine(1).await?;
        let buyer = makings[0].node(&bitcoind).await?;
        let seller = makings[1].node(&bitcoind).await?;
        open_channel(&buyer, &seller, &bitcoind).await?;
        let (buyer_uri, seller_uri) = (makings[0].uri()?, makings[1].uri()?);
        let wallets = [Some(makings[0].serve(buyer).await?), Some(makings[1].serve(seller).await?)];
        Ok(Self { buyer: buyer_uri, seller: seller_uri, wallets, makings, bitcoind })
    }

    /// Mines `blocks`; returns once both nodes have seen them.
    pub async fn mine(&self, blocks: u32) -> Result<()> {
        self.bitcoind.mine(blocks).await?;
        let height = self.bitcoind.height().await?;
        for wallet in self.wallets.iter().flatten() {
            wallet.node().reach(height).await?;
        }
        Ok(())
    }

    /// Stops a wallet, service and node.
    pub async fn stop_wallet(&mut self, side: Side) -> Result<()> {
        match self.wallets[side as usize].take() {
            Some(wallet) => wallet.stop().await,
            None => Ok(()),
        }
    }

    /// Starts a wallet that was stopped, from what it has on disk; returns once its
    /// channel can be used.
    pub async fn start_wallet(&mut self, side: Side) -> Result<()> {
        let makings = &self.makings[side as usize];
        let node = makings.node(&self.bitcoind).await?;
        if let Some(other) = &self.wallets[1 - side as usize] {
            node.connect(other.node()).await?;
        }
        self.wallets[side as usize] = Some(makings.serve(node).await?);
        Ok(())
    }

    /// What a side can send, in msats.
    pub fn can_send(&self, side: Side) -> u64 {
        self.wallets[side as usize].as_ref().map_or(0, |wallet| wallet.node().can_send())
    }

    /// Waits until it can send that. What was received can be sent once both nodes
    /// have dropped the old state of the channel, a little later.
    pub async fn until_can_send(&self, side: Side, msats: u64) {
        while self.can_send(side) != msats {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops everything.
    pub async fn stop(mut self) -> Result<()> {
        for side in [Side::Buyer, Side::Seller] {
            self.stop_wallet(side).await?;
        }
        self.bitcoind.stop()
    }
}

async fn open_channel(buyer: &Node, seller: &Node, bitcoind: &Bitcoind) -> Result<()> {
    bitcoind.mine_to(1, &buyer.address()?).await?;
    bitcoind.mine(MATURITY).await?;
    let height = bitcoind.height().await?;
    buyer.reach(height).await?;
    seller.reach(height).await?;
    buyer.open_channel(seller, CHANNEL_SATS, PUSHED_SATS).await?;
    bitcoind.until_mempool_holds_one().await?;
    bitcoind.mine(CHANNEL_DEPTH).await?;
    buyer.reach(height + CHANNEL_DEPTH).await?;
    seller.reach(height + CHANNEL_DEPTH).await?;
    buyer.until_channel_usable().await;
    seller.until_channel_usable().await;
    Ok(())
}
