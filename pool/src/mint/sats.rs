//! The unit `sat` of the mint: settings, keyset, and who pays its invoices.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cdk::mint::{MintBuilder, MintMeltLimits, UnitConfig};
use cdk::nuts::{CurrencyUnit, PaymentMethod};
use cdk_common::common::FeeReserve;
use cdk_fake_wallet::FakeWallet;
use serde::Deserialize;

use super::MintError;

/// The largest token is 2^31 sats, about 21 bitcoin.
const MAX_AMOUNT_BITS: u32 = 31;
/// Sats of one invoice: more than any block's reward, and far below the sums at
/// which cdk's totals overflow.
const MAX_INVOICE: u64 = 1 << 36;
/// Most that a spent token may cost, in thousandths of a sat: the smallest one
/// would be worth nothing above it.
const MAX_INPUT_FEE_PPK: u64 = 1000;
/// What the simulation takes for a payment; the same for each, and known before.
const SIMULATED_FEE: u64 = 1;

/// Settings: the `[pool.sats]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who pays and is paid. If not set: nobody, except in `hashpit up`, which
    /// simulates.
    pub backend: Option<Backend>,
    /// Thousandths of a sat for each token that is spent (NUT-02), 0 to 1000.
    pub input_fee_ppk: u64,
}

/// Who pays the mint's invoices, and those that sats are withdrawn to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Nobody: the mint issues ehash only.
    None,
    /// Nobody, but the mint acts as if: each of its invoices is paid at once, and
    /// each that it is asked to pay counts as paid. Such sats are worth nothing.
    Simulation,
}

impl Config {
    /// Whether the mint issues sats.
    pub fn issues(&self) -> bool {
        self.is_simulation()
    }

    /// Whether its sats are worth nothing.
    pub fn is_simulation(&self) -> bool {
        self.backend == Some(Backend::Simulation)
    }

    /// What is wrong with these settings for a pool that announces `network`.
    pub(crate) fn check(&self, network: bitcoin::Network) -> Result<(), (&'static str, String)> {
        if self.input_fee_ppk > MAX_INPUT_FEE_PPK {
            let reason = format!("must be 0 to {MAX_INPUT_FEE_PPK}");
            return Err(("sats.input_fee_ppk", reason));
        }
        // The embedded chain is a signet; whoever announces another means it.
        if self.is_simulation() && network != bitcoin::Network::Signet {
            let reason = format!(
                "sats are simulated on the embedded chain only, and `network` is {network}; \
                 set backend = \"none\""
            );
            return Err(("sats.backend", reason));
        }
        Ok(())
    }
}

/// Has the mint issue sats, if the settings say so.
pub(super) async fn add(builder: &mut MintBuilder, config: &Config) -> Result<(), MintError> {
    if !config.issues() {
        return Ok(());
    }
    let amounts = (0..=MAX_AMOUNT_BITS).map(|bit| 1 << bit).collect();
    let unit = UnitConfig { amounts, input_fee_ppk: config.input_fee_ppk };
    builder.configure_unit(CurrencyUnit::Sat, unit)?;
    let reserve = FeeReserve { min_fee_reserve: SIMULATED_FEE.into(), percent_fee_reserve: 0.0 };
    let lightning = FakeWallet::new(reserve, HashMap::new(), HashSet::new(), 0, CurrencyUnit::Sat);
    let limits = MintMeltLimits::new(1, MAX_INVOICE);
    let (unit, method) = (CurrencyUnit::Sat, PaymentMethod::BOLT11);
    builder.add_payment_processor(unit, method, limits, Arc::new(lightning)).await?;
    tracing::info!("the mint issues SIMULATED sats: nobody pays for them, they are worth nothing");
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::Network;

    use super::*;

    #[test]
    fn sats_are_simulated_only_on_the_chain_of_the_pools_own() {
        let simulation = Config { backend: Some(Backend::Simulation), ..Config::default() };
        assert!(simulation.check(Network::Signet).is_ok());
        for network in [Network::Bitcoin, Network::Testnet, Network::Regtest] {
            let (setting, reason) = simulation.check(network).unwrap_err();
            assert_eq!(setting, "sats.backend");
            assert!(reason.contains(&network.to_string()), "{reason}");
            assert!(Config::default().check(network).is_ok());
        }
    }

    #[test]
    fn a_token_does_not_cost_more_than_a_sat() {
        let fee = |input_fee_ppk| Config { input_fee_ppk, ..Config::default() };
        assert!(fee(1000).check(Network::Signet).is_ok());
        assert_eq!(fee(1001).check(Network::Signet).unwrap_err().0, "sats.input_fee_ppk");
    }
}
