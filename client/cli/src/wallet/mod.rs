//! The wallet's commands.
//!
//! | module | what lives in it |
//! |---|---|
//! | `make` | `init`, `restore`, `keys` |
//! | `money` | `balance`, `send`, `receive`, `history`, `reclaim` |
//! | `lightning` | `deposit`, `withdraw` |
//! | `claim` | `claim` |
//! | `pay` | `pay`, `request`, `outbox`, `receive --inbox` |
//! | `backup` | `backup`: the wallet on Nostr relays |

mod backup;
mod claim;
mod lightning;
mod make;
mod money;
mod pay;

use std::path::Path;

use hashpit_client::Wallet;
use hashpit_client::wallet::WalletError;
use hashpit_nips::EpochId;
use tokio_util::sync::CancellationToken;

pub use claim::back_up_by_default;

use crate::args::{self, WalletCommand};
use crate::terminal;

/// `hashpit wallet …`.
pub async fn run(
    options: args::Wallet,
    data_dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let dir = data_dir.join("wallet");
    let (json, via) = (options.json, options.via);
    match options.command {
        WalletCommand::Init(mut options) => {
            options.signer = options.signer.map(terminal::signer).transpose()?;
            return make::init(&dir, options, json).await;
        }
        WalletCommand::Restore(options) => return make::restore(&dir, options, via, json).await,
        _ => {}
    }
    let wallet = open(&dir).await?.with_route(via);
    match options.command {
        WalletCommand::Init(_) | WalletCommand::Restore(_) => unreachable!("done above"),
        WalletCommand::Keys(options) => make::keys(&wallet, &dir, options, json),
        WalletCommand::Balance => money::balance(&wallet, json).await,
        WalletCommand::Send(options) => money::send(&wallet, options, json).await,
        WalletCommand::Receive(options) => {
            let wallet = wallet.with_relays(options.relays.clone());
            match options.inbox {
                true => pay::collect(&wallet, options, json).await,
                false => money::receive(&wallet, options, json).await,
            }
        }
        WalletCommand::Deposit(options) => {
            lightning::deposit(&wallet, options, json, shutdown).await
        }
        WalletCommand::Withdraw(options) => lightning::withdraw(&wallet, options, json).await,
        WalletCommand::Backup(options) => backup::run(&wallet, options, json).await,
        WalletCommand::Pay(options) => pay::pay(&wallet, options, json).await,
        WalletCommand::Request(options) => pay::request(&wallet, options, json).await,
        WalletCommand::Outbox(options) => pay::outbox(&wallet, options, json).await,
        WalletCommand::History(options) => money::history(&wallet, options, json).await,
        WalletCommand::Reclaim(options) => money::reclaim(&wallet, options, json).await,
        WalletCommand::Claim(options) => claim::claim(&wallet, options, json, shutdown).await,
    }
}

/// Opens the wallet in `dir`, asking for its password if it has one.
pub async fn open(dir: &Path) -> anyhow::Result<Wallet> {
    Ok(open_and_tell(dir).await?.0)
}

/// As [`open`]; the password too, for a process that has to open it again.
pub async fn open_and_tell(dir: &Path) -> anyhow::Result<(Wallet, Option<String>)> {
    match Wallet::open(dir).await {
        Err(WalletError::Locked(_)) => {
            let password = terminal::password()?;
            Ok((Wallet::unlock(dir, &password).await?, Some(password)))
        }
        opened => Ok((opened?, None)),
    }
}

/// As [`open`], making a wallet if there is none.
pub async fn open_or_create(dir: &Path) -> anyhow::Result<Wallet> {
    match Wallet::exists(dir)? {
        true => open(dir).await,
        false => Ok(Wallet::open_or_create(dir, rand::random).await?),
    }
}

/// `hash_02ab…cdef_840000`: enough of the pool's key to tell pools apart. Other
/// units may be anybody's words, and are escaped.
pub fn short_unit(unit: &str) -> String {
    match unit.parse::<EpochId>() {
        Ok(EpochId { pool, height }) => {
            let key = pool.to_hex();
            format!("hash_02{}…{}_{height}", &key[..2], &key[60..])
        }
        Err(_) => unit.escape_debug().to_string(),
    }
}

/// What a unit's tokens are called.
fn noun(unit: &str) -> String {
    match unit.parse::<EpochId>() {
        Ok(_) => format!("ehash of {}", short_unit(unit)),
        Err(_) => short_unit(unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_shortened_or_escaped() {
        let key = nostr_sdk::Keys::generate().public_key().to_hex();
        let short = format!("hash_02{}…{}_7", &key[..2], &key[60..]);
        assert_eq!(noun(&format!("hash_02{key}_7")), format!("ehash of {short}"));
        assert_eq!(noun("sat"), "sat");
        assert_eq!(noun("\u{1b}[2Jsat\n"), "\\u{1b}[2Jsat\\n");
    }
}
