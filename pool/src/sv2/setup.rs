//! The first message of a connection: `SetupConnection` (Sv2 3.6). Pure: a
//! question in, an answer out.

use stratum_apps::stratum_core::common_messages_sv2::{
    ERROR_CODE_SETUP_CONNECTION_PROTOCOL_VERSION_MISMATCH as VERSION_MISMATCH,
    ERROR_CODE_SETUP_CONNECTION_UNSUPPORTED_FEATURE_FLAGS as UNSUPPORTED_FLAGS,
    ERROR_CODE_SETUP_CONNECTION_UNSUPPORTED_PROTOCOL as UNSUPPORTED_PROTOCOL, Protocol,
    SetupConnectionErrorOwned, SetupConnectionOwned, SetupConnectionSuccess,
};
use stratum_apps::stratum_core::parsers_sv2::AnyMessageOwned;

use super::codes::wire;

/// The one version of Sv2.
const VERSION: u16 = 2;

/// Bits of `SetupConnection.flags` for mining (Sv2 5.3.1).
mod flag {
    /// The miner handles headers only.
    pub(super) const STANDARD_JOBS: u32 = 1;
    /// The miner rolls versions. Every job here allows it.
    pub(super) const VERSION_ROLLING: u32 = 1 << 2;
    /// The miner wants to choose transactions. Ehash is issued for work on the
    /// pool's own templates only.
    pub(super) const WORK_SELECTION: u32 = 1 << 1;
}

/// What was agreed on with a miner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// It can use standard channels only.
    pub(super) standard_jobs_only: bool,
}

/// Answers `SetupConnection`: what was agreed on, or why nothing was.
pub(super) fn answer(setup: &SetupConnectionOwned) -> Result<Agreed, &'static str> {
    if setup.protocol != Protocol::MiningProtocol {
        return Err(UNSUPPORTED_PROTOCOL);
    }
    if setup.get_version(VERSION, VERSION).is_none() {
        return Err(VERSION_MISMATCH);
    }
    if setup.flags & !(flag::STANDARD_JOBS | flag::VERSION_ROLLING) != 0 {
        return Err(UNSUPPORTED_FLAGS);
    }
    Ok(Agreed { standard_jobs_only: setup.flags & flag::STANDARD_JOBS != 0 })
}

/// The message for a setup that was agreed on: no restrictions of ours.
pub(super) fn success() -> AnyMessageOwned {
    AnyMessageOwned::Common(SetupConnectionSuccess { used_version: VERSION, flags: 0 }.into())
}

/// The message for one that was not. It names every flag asked for that is not
/// supported, and always work selection, so that a proxy learns what is.
pub(super) fn refusal(setup: &SetupConnectionOwned, code: &'static str) -> AnyMessageOwned {
    let unsupported = setup.flags & !(flag::STANDARD_JOBS | flag::VERSION_ROLLING);
    let flags = if code == UNSUPPORTED_FLAGS { unsupported | flag::WORK_SELECTION } else { 0 };
    AnyMessageOwned::Common(SetupConnectionErrorOwned { flags, error_code: wire(code) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(flags: u32) -> SetupConnectionOwned {
        let text = |s: &str| s.to_owned().try_into().unwrap();
        SetupConnectionOwned {
            protocol: Protocol::MiningProtocol,
            min_version: 2,
            max_version: 2,
            flags,
            endpoint_host: text("localhost"),
            endpoint_port: 1,
            vendor: text("test"),
            hardware_version: text(""),
            firmware: text(""),
            device_id: text(""),
        }
    }

    #[test]
    fn miners_with_and_without_version_rolling_are_welcome() {
        assert_eq!(answer(&setup(0)), Ok(Agreed { standard_jobs_only: false }));
        assert_eq!(answer(&setup(0b101)), Ok(Agreed { standard_jobs_only: true }));
    }

    #[test]
    fn other_protocols_versions_and_flags_are_refused_by_name() {
        let other = SetupConnectionOwned { protocol: Protocol::JobDeclarationProtocol, ..setup(0) };
        assert_eq!(answer(&other), Err("unsupported-protocol"));
        let newer = SetupConnectionOwned { min_version: 3, max_version: 4, ..setup(0) };
        assert_eq!(answer(&newer), Err("protocol-version-mismatch"));
        let wider = SetupConnectionOwned { min_version: 1, max_version: 9, ..setup(0) };
        assert!(answer(&wider).is_ok());
        for flags in [0b010, 0b111, 1 << 31] {
            assert_eq!(answer(&setup(flags)), Err("unsupported-feature-flags"), "{flags:b}");
        }
    }
}
