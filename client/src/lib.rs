//! The miner's side: a wallet for ehash, the claiming of it over Nostr, and a
//! CPU miner.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`wallet`] | seed, proofs, and how far each epoch's issuance has come |
//! | [`backup`] | the wallet on Nostr relays (EH-03) |
//! | [`issuance`] | the miner's side of EH-02 |
//! | [`mint`] | the ways to a mint: HTTP, or Nostr (EH-07) |
//! | [`nwc`] | a Lightning wallet over Nostr (NIP-47) |
//! | [`pay`] | payment requests, tokens to an npub, and an inbox for them |
//! | [`miner`] | a CPU miner that speaks Stratum V2 |
//! | [`proxy`] | devices below, pools above: Stratum V1 and V2 |
//! | [`settle`] | settlement of matches by atomic swap (EH-06) |
//! | [`trade`] | offers to an exchange, and what its journal says (EH-04, EH-05) |

pub mod backup;
pub mod issuance;
pub mod miner;
pub mod mint;
pub mod nwc;
pub mod pay;
pub mod proxy;
pub mod settle;
pub mod trade;
pub mod wallet;

pub use wallet::Wallet;
