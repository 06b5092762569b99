//! The channel library's refusals as Sv2 error codes. Where Sv2 has no code
//! for one, the connection ends and the log says why.

use stratum_apps::stratum_core::binary_sv2::Str0255Owned;
use stratum_apps::stratum_core::channels_sv2::extranonce_manager::ExtranonceAllocatorError;
use stratum_apps::stratum_core::channels_sv2::server::error::{
    ExtendedChannelError, StandardChannelError,
};
use stratum_apps::stratum_core::channels_sv2::server::share_accounting::ShareValidationError;
use stratum_apps::stratum_core::mining_sv2::{
    ERROR_CODE_OPEN_MINING_CHANNEL_CHANNEL_CAPACITY_EXHAUSTED as CAPACITY_EXHAUSTED,
    ERROR_CODE_OPEN_MINING_CHANNEL_MIN_EXTRANONCE_SIZE_TOO_LARGE as MIN_EXTRANONCE_TOO_LARGE,
};

/// What a miner is told, or that it is told nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// An Sv2 error code.
    Code(&'static str),
    /// No code exists: the connection ends for this reason.
    Fatal(String),
}

/// `code` in the wire's string type.
pub(super) fn wire(code: &'static str) -> Str0255Owned {
    code.to_owned().try_into().expect("error codes are shorter than 255 bytes")
}

impl From<ShareValidationError> for Refusal {
    fn from(error: ShareValidationError) -> Self {
        use ShareValidationError as E;
        match error {
            E::Invalid(code)
            | E::Stale(code)
            | E::InvalidJobId(code)
            | E::DoesNotMeetTarget(code)
            | E::VersionRollingNotAllowed(code)
            | E::DuplicateShare(code)
            | E::BadExtranonceSize(code) => Self::Code(code),
            E::InvalidCoinbase => Self::Fatal("a job's coinbase is malformed".to_owned()),
            E::NoChainTip => Self::Fatal("a share before any job".to_owned()),
            E::SeenSharesBudgetExhausted => Self::Fatal(
                "too many shares on one tip; the channel has to be opened anew".to_owned(),
            ),
        }
    }
}

impl From<StandardChannelError> for Refusal {
    fn from(error: StandardChannelError) -> Self {
        use StandardChannelError as E;
        match error {
            E::OpenChannelInvalidNominalHashrate(code)
            | E::UpdateChannelInvalidNominalHashrate(code)
            | E::OpenChannelInvalidMaxTarget(code)
            | E::UpdateChannelInvalidMaxTarget(code) => Self::Code(code),
            E::InvalidTarget
            | E::TemplateIdNotFound
            | E::ExtranoncePrefixTooLarge
            | E::JobFactoryError(_)
            | E::ChainTipNotSet
            | E::FailedToConvertToStandardJob
            | E::ScriptSigSizeTooLarge
            | E::JobMinNtimeBelowChainTip => Self::Fatal(format!("standard channel: {error:?}")),
        }
    }
}

impl From<ExtendedChannelError> for Refusal {
    fn from(error: ExtendedChannelError) -> Self {
        use ExtendedChannelError as E;
        match error {
            E::OpenChannelInvalidNominalHashrate(code)
            | E::UpdateChannelInvalidNominalHashrate(code)
            | E::OpenChannelInvalidMaxTarget(code)
            | E::UpdateChannelInvalidMaxTarget(code)
            | E::RequestedMinExtranonceSizeTooLarge(code) => Self::Code(code),
            E::InvalidTarget
            | E::JobFactoryError(_)
            | E::ChainTipNotSet
            | E::TemplateIdNotFound
            | E::JobIdNotFound
            | E::ExtranoncePrefixTooLarge
            | E::ScriptSigSizeTooLarge
            | E::InvalidJobOrigin
            | E::JobMinNtimeBelowChainTip
            | E::GroupJobVersionRollingNotAllowed => {
                Self::Fatal(format!("extended channel: {error:?}"))
            }
        }
    }
}

impl From<ExtranonceAllocatorError> for Refusal {
    fn from(error: ExtranonceAllocatorError) -> Self {
        use ExtranonceAllocatorError as E;
        match error {
            E::CapacityExhausted => Self::Code(CAPACITY_EXHAUSTED),
            E::InvalidRollableSize => Self::Code(MIN_EXTRANONCE_TOO_LARGE),
            E::ExceedsMaxLength | E::ZeroMaxChannels | E::PrefixExceedsTotalLength => {
                Self::Fatal(format!("extranonce: {error}"))
            }
        }
    }
}
