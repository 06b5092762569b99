//! What both ends say in the same words.

use stratum_apps::stratum_core::binary_sv2::{Seq064KOwned, Str0255Owned};
use stratum_apps::stratum_core::extensions_sv2::{
    EXTENSION_TYPE_WORKER_HASHRATE_TRACKING as WORKER_LABELS, RequestExtensionsErrorOwned,
    RequestExtensionsOwned, RequestExtensionsSuccessOwned,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, ExtensionsNegotiationOwned, ExtensionsOwned,
};

/// At most 255 bytes of `s`, in the wire's string type.
pub fn text(s: &str) -> Str0255Owned {
    let end = s.floor_char_boundary(255);
    s[..end].to_owned().try_into().expect("cut to 255 bytes")
}

/// Answers `RequestExtensions` (extension 0x0001) for one who knows worker labels
/// (0x0002) only: the extensions agreed on, and the message that says so.
pub fn negotiate(request: RequestExtensionsOwned) -> (Vec<u16>, AnyMessageOwned) {
    let request_id = request.request_id;
    let (agreed, unsupported): (Vec<u16>, Vec<u16>) =
        request.requested_extensions.into_inner().into_iter().partition(|id| *id == WORKER_LABELS);
    let negotiation = if agreed.is_empty() {
        ExtensionsNegotiationOwned::RequestExtensionsError(RequestExtensionsErrorOwned {
            request_id,
            unsupported_extensions: list(unsupported),
            required_extensions: list(Vec::new()),
        })
    } else {
        ExtensionsNegotiationOwned::RequestExtensionsSuccess(RequestExtensionsSuccessOwned {
            request_id,
            supported_extensions: list(agreed.clone()),
        })
    };
    (agreed, AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(negotiation)))
}

fn list(ids: Vec<u16>) -> Seq064KOwned<u16> {
    Seq064KOwned::new(ids).expect("no longer than the list that came in a frame")
}
