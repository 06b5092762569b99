//! A mint of sats, on a free loopback port: cdk's, with tokens issued directly
//! instead of for Lightning payments.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use cdk::Mint;
use cdk::dhke::{blind_message, construct_proofs};
use cdk::mint_url::MintUrl;
use cdk::nuts::{BlindedMessage, CurrencyUnit, Id, KeySet, MintVersion, Proofs, PublicKey, Token};
use cdk::secret::Secret;
use hashpit_nips::Seed;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Amounts are powers of two up to 2^20 sats.
const MAX_BITS: u32 = 20;

/// A running mint.
pub struct SatMint {
    /// Where it answers.
    pub url: MintUrl,
    /// Its key (NUT-06).
    pub key: PublicKey,
    mint: Arc<Mint>,
    keyset: Id,
    stop: DropGuard,
    serving: JoinHandle<std::io::Result<()>>,
}

impl SatMint {
    /// Starts a mint that keeps its books in `dir`. Its keyset has an id of
    /// version 1, which older wallets read.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with_fee(dir, 0).await
    }

    /// As [`SatMint::start`], with a fee for each input (NUT-02), in thousandths of
    /// a sat.
    pub async fn start_with_fee(dir: &Path, fee_ppk: u64) -> anyhow::Result<Self> {
        Self::open(TcpListener::bind("127.0.0.1:0").await?, dir, fee_ppk).await
    }

    /// Starts a mint on a port of the caller's: one that comes back.
    pub async fn start_on(listener: TcpListener, dir: &Path) -> anyhow::Result<Self> {
        Self::open(listener, dir, 0).await
    }

    async fn open(listener: TcpListener, dir: &Path, fee_ppk: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let url = format!("http://{}", listener.local_addr()?);
        let seed = Seed::from_entropy(&[3; 16]);
        let (mint, _) = hashpit_pool::mint::open(dir, &seed, "sats", &url).await?;
        let amounts = (0..=MAX_BITS).map(|bit| 1 << bit).collect();
        let known = mint.keysets().keysets.into_iter().find(|it| it.unit == CurrencyUnit::Sat);
        let keyset = match known {
            Some(known) => known.id,
            None => mint.rotate_keyset(CurrencyUnit::Sat, amounts, fee_ppk, false, None).await?.id,
        };
        // As a foreign mint's may, its info tells no maker.
        let mut info = mint.mint_info().await?;
        info.version = None;
        mint.set_mint_info(info).await?;
        let router = cdk_axum::create_mint_router(Arc::clone(&mint), Vec::new()).await?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(stopped).await
        });
        let key = mint
            .mint_info()
            .await?
            .pubkey
            .ok_or_else(|| anyhow::anyhow!("a mint without a key"))?;
        Ok(Self {
            url: MintUrl::from_str(&url)?,
            key,
            mint,
            keyset,
            stop: stop.drop_guard(),
            serving,
        })
    }

    /// Its keyset.
    pub fn keyset(&self) -> anyhow::Result<KeySet> {
        let keyset = self.mint.keyset(&self.keyset);
        keyset.ok_or_else(|| anyhow::anyhow!("the mint has lost its keyset"))
    }

    /// Has the mint tell its version, from which it is known that it can `SIG_ALL`.
    pub async fn tell_version(&self) -> anyhow::Result<()> {
        let version = MintVersion::new("cdk-mintd".to_owned(), "0.18.3".to_owned());
        let info = self.mint.mint_info().await?.version(version);
        Ok(self.mint.set_mint_info(info).await?)
    }

    /// Signs by a new keyset from now on, and no more by the old one.
    pub async fn rotate(&self) -> anyhow::Result<()> {
        let amounts = (0..=MAX_BITS).map(|bit| 1 << bit).collect();
        self.mint.rotate_keyset(CurrencyUnit::Sat, amounts, 0, false, None).await?;
        Ok(())
    }

    /// Stops it; its books stay.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        Ok(self.serving.await??)
    }

    /// A new token of `amount` sats, below 2^21.
    pub async fn token(&self, amount: u64) -> anyhow::Result<Token> {
        let proofs = self.proofs(amount).await?;
        Ok(Token::new(self.url.clone(), proofs, None, CurrencyUnit::Sat))
    }

    /// New proofs of `amount` sats, below 2^21: one for each bit of it.
    pub async fn proofs(&self, amount: u64) -> anyhow::Result<Proofs> {
        let keys = self.mint.keyset(&self.keyset).map(|keyset| keyset.keys);
        let keys = keys.ok_or_else(|| anyhow::anyhow!("the mint has lost its keyset"))?;
        let (mut outputs, mut rs, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for bit in (0..=MAX_BITS).filter(|bit| amount & (1 << bit) != 0) {
            let secret = Secret::generate();
            let (blinded, r) = blind_message(&secret.to_bytes(), None)?;
            outputs.push(BlindedMessage::new((1 << bit).into(), self.keyset, blinded));
            rs.push(r);
            secrets.push(secret);
        }
        let signatures = self.mint.blind_sign(outputs).await?;
        Ok(construct_proofs(signatures, rs, secrets, &keys)?)
    }
}
