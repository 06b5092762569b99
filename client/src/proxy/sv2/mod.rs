//! Stratum V2 below the proxy.
use std::sync::Arc;
use nostr_sdk::PublicKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use super::noise::Authority;
use super::settings::Settings;
use super::stats::Workers;
use super::upstream::Upstream;
pub(super) struct Sv2 {}
impl Sv2 {
    pub(super) fn new(_s: Settings, _m: PublicKey, _a: Authority, _u: Arc<Upstream>, _w: Arc<Workers>) -> Self { Self {} }
    pub(super) async fn serve(self, _l: TcpListener, _stop: CancellationToken, _t: TaskTracker) {}
}
