//! What whole-system tests are made of: hashpit's roles in this process, and
//! peers that stand outside and talk to them.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`adversary`] | a trader that speaks EH-06 by hand |
//! | [`bad_relay`] | a relay that misbehaves |
//! | [`exchange_house`] | an exchange, and pools and traders that are only a key |
//! | [`house`] | a relay and a pool on free loopback ports |
//! | [`proxy_house`] | a proxy on free loopback ports |
//! | [`mint_proxy`] | a way to a mint that somebody else holds |
//! | [`process`] | child processes that do not outlive their test |
//! | [`sat_mint`] | a mint of sats |
//! | [`scripted_exchange`] | an exchange that says what a test tells it to |
//! | [`sv1_miner`] | a Stratum V1 CPU miner, to mine under a translator |
//! | [`sv2_peer`] | a raw Sv2 client, well-behaved or not |
//! | [`trade_house`] | all that two wallets need to trade with each other |

pub mod adversary;
pub mod bad_relay;
pub mod exchange_house;
pub mod house;
pub mod mint_proxy;
pub mod process;
pub mod proxy_house;
pub mod sat_mint;
pub mod scripted_exchange;
pub mod sv1_miner;
pub mod sv2_peer;
pub mod trade_house;
