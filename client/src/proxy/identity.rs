//! Whose work it is: the wallet's npub, with the worker's name that a device
//! brings.

use hashpit_nips::MinerIdentity;
use nostr_sdk::PublicKey;

/// The identity that a channel is opened under at the pool.
pub(super) fn identity(miner: PublicKey, worker: &str) -> String {
    let worker = (!worker.is_empty()).then(|| worker.to_owned());
    MinerIdentity { miner, worker }.to_string()
}

/// A worker's name out of a user name: what follows the first dot, or all of
/// it unless it is an npub, without what an identity cannot hold.
pub(super) fn worker_name(user: &str) -> String {
    let whole = if user.starts_with("npub1") { "" } else { user };
    let name = user.split_once('.').map_or(whole, |(_, worker)| worker);
    let printable: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    let end = printable.floor_char_boundary(MinerIdentity::MAX_WORKER_BYTES);
    printable[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_worker_is_what_follows_the_first_dot() {
        for (user, worker) in [
            ("npub1abc.rack.7", "rack.7"),
            ("garage", "garage"),
            ("npub1abc", ""),
            ("bc1q.", ""),
            ("", ""),
            ("a.b\nc ", "bc"),
        ] {
            assert_eq!(worker_name(user), worker, "{user:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_fits_an_identity(user in ".{0,300}") {
            let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
            let identity: Result<MinerIdentity, _> = format!("{npub}.{}", worker_name(&user)).parse();
            prop_assert!(identity.is_ok());
        }
    }
}
