//! An LDK node on Bitcoin Core, and its invoices that are held.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ldk_node::Builder;
use ldk_node::bitcoin::Network;
use ldk_node::bitcoin::bip32::Xpriv;
use ldk_node::bitcoin::secp256k1::{PublicKey, SECP256K1, SecretKey};
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning::sign::KeysManager;
use ldk_node::lightning_invoice::{
    Bolt11Invoice, Bolt11InvoiceDescription, Currency, Description, InvoiceBuilder,
};
use ldk_node::lightning_types::payment::PaymentHash;
use tokio::task::spawn_blocking;

use super::bitcoind::Bitcoind;
use crate::PAUSE;

/// What it asks of the last hop if nobody says otherwise; LDK takes no less.
const FINAL_CLTV: u64 = 42;

/// A running node. Clones share it.
#[derive(Clone)]
pub struct Node {
    ldk: Arc<ldk_node::Node>,
    /// Its identity: it signs invoices.
    key: SecretKey,
    address: SocketAddress,
}

impl Node {
    /// Starts one that listens on `port` and keeps its channels in `dir`, its log
    /// among them.
    pub async fn start(dir: &Path, port: u16, seed: [u8; 64], chain: &Bitcoind) -> Result<Self> {
        let address = format!("127.0.0.1:{port}");
        let address: SocketAddress =
            address.parse().map_err(|error| anyhow::anyhow!("{address}: {error:?}"))?;
        let (user, password) = chain.credentials()?;
        let mut builder = Builder::new();
        builder
            .set_network(Network::Regtest)
            .set_entropy_seed_bytes(seed)
            .set_storage_dir_path(dir.join("ldk").display().to_string())
            .set_chain_source_bitcoind_rpc("127.0.0.1".into(), chain.rpc_port, user, password)
            .set_filesystem_logger(Some(dir.join("ldk.log").display().to_string()), None)
            .set_listening_addresses(vec![address.clone()])?;
        let ldk = spawn_blocking(move || {
            let ldk = Arc::new(builder.build()?);
            ldk.start()?;
            anyhow::Ok(ldk)
        });
        let node = Self { ldk: ldk.await??, key: identity(&seed)?, address };
        ensure!(node.key.public_key(SECP256K1) == node.id(), "LDK derives another key");
        Ok(node)
    }

    /// Stops it.
    pub async fn stop(self) -> Result<()> {
        Ok(spawn_blocking(move || self.ldk.stop()).await??)
    }

    /// LDK's own handle.
    pub fn ldk(&self) -> &Arc<ldk_node::Node> {
        &self.ldk
    }

    /// Its identity.
    pub fn id(&self) -> PublicKey {
        self.ldk.node_id()
    }

    /// The height of its best block.
    pub fn height(&self) -> u32 {
        self.ldk.status().current_best_block.height
    }

    /// An address of its wallet on the chain.
    pub fn address(&self) -> Result<String> {
        Ok(self.ldk.onchain_payment().new_address()?.to_string())
    }

    /// Returns once it has seen the chain up to `height`.
    pub async fn reach(&self, height: u32) -> Result<()> {
        while self.height() < height {
            let ldk = self.ldk.clone();
            // It polls every two seconds by itself; asked now, it may be at it already.
            let polled = spawn_blocking(move || ldk.sync_wallets()).await?;
            if polled.is_err() || self.height() < height {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Opens a channel of `sats`, of which the other side gets `pushed`.
    pub async fn open_channel(&self, to: &Self, sats: u64, pushed: u64) -> Result<()> {
        let (ldk, id, address) = (self.ldk.clone(), to.id(), to.address.clone());
        let open = move || ldk.open_channel(id, address, sats, Some(pushed * 1000), None);
        spawn_blocking(open).await??;
        Ok(())
    }

    /// Connects to a node that it has a channel with; returns once that can be used.
    pub async fn connect(&self, to: &Self) -> Result<()> {
        let (ldk, id, address) = (self.ldk.clone(), to.id(), to.address.clone());
        spawn_blocking(move || ldk.connect(id, address, true)).await??;
        self.until_channel_usable().await;
        to.until_channel_usable().await;
        Ok(())
    }

    /// Waits for the channel.
    pub async fn until_channel_usable(&self) {
        while !self.ldk.list_channels().iter().any(|channel| channel.is_usable) {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What it can send now, in msats.
    pub fn can_send(&self) -> u64 {
        self.ldk.list_channels().iter().map(|channel| channel.outbound_capacity_msat).sum()
    }

    /// True if a payment on this hash has been made, or asked for.
    pub fn knows(&self, hash: [u8; 32]) -> bool {
        self.ldk.payment(&PaymentId(hash)).is_some()
    }

    /// An invoice on `hash` whose payment is held, for `min_final_cltv` blocks or more.
    pub fn hold_invoice(
        &self,
        msats: u64,
        hash: [u8; 32],
        description: &str,
        expiry_secs: u32,
        min_final_cltv: Option<u64>,
    ) -> Result<Bolt11Invoice> {
        let description = Description::new(description.to_owned()).context("too long")?;
        let wanted = Bolt11InvoiceDescription::Direct(description);
        let payments = self.ldk.bolt11_payment();
        let made = payments.receive_for_hash(msats, &wanted, expiry_secs, PaymentHash(hash))?;
        match min_final_cltv {
            Some(blocks) if blocks > FINAL_CLTV => self.with_final_cltv(&made, blocks),
            _ => Ok(made),
        }
    }

    /// The same invoice with another `min_final_cltv`, which ldk-node has fixed: what
    /// is paid to it is the same to LDK, and may be held for longer.
    fn with_final_cltv(&self, invoice: &Bolt11Invoice, blocks: u64) -> Result<Bolt11Invoice> {
        let msats = invoice.amount_milli_satoshis().context("an amount was asked for")?;
        let mut builder = InvoiceBuilder::new(Currency::Regtest)
            .description(invoice.description().to_string())
            .payment_hash(*invoice.payment_hash())
            .payment_secret(*invoice.payment_secret())
            .timestamp(invoice.timestamp())
            .expiry_time(invoice.expiry_time())
            .amount_milli_satoshis(msats)
            .min_final_cltv_expiry_delta(blocks)
            .basic_mpp();
        for route in invoice.private_routes() {
            builder = builder.private_route(route.clone().into_inner());
        }
        let sign = |hash: &_| SECP256K1.sign_ecdsa_recoverable(hash, &self.key);
        builder.build_signed(sign).map_err(|error| anyhow::anyhow!("{error:?}"))
    }
}

/// The key that LDK derives from an ldk-node's seed.
fn identity(seed: &[u8; 64]) -> Result<SecretKey> {
    let master = Xpriv::new_master(Network::Regtest, seed)?;
    // The clock feeds only keys of channels that are made here, which are none.
    Ok(KeysManager::new(&master.private_key.secret_bytes(), 1, 1, true).get_node_secret_key())
}
