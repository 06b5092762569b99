//! The miner's side: a wallet for ehash, the claiming of it over Nostr, and a
//! CPU miner.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`wallet`] | seed, proofs, and how far each epoch's issuance has come |
//! | [`issuance`] | the miner's side of EH-02 |
//! | [`miner`] | a CPU miner that speaks Stratum V2 |
//! | [`proxy`] | devices below, pools above: Stratum V1 and V2 |

pub mod issuance;
pub mod miner;
pub mod proxy;
pub mod wallet;

pub use wallet::Wallet;
