//! Stratum V2 below the proxy: devices that speak it, and translators.
//!
//! Each connection is a task. Each of its channels is one at the pool, with the
//! identity, the ids and, after another connection to the pool, the extranonce
//! prefix rewritten; all other fields pass as they are.
//!
//! | module | what lives in it |
//! |---|---|
//! | `channel` | one channel, and how its messages are rewritten |
//! | `session` | one device |

mod channel;
mod session;

use std::sync::Arc;
use std::time::Duration;

use nostr_sdk::PublicKey;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::noise::Authority;
use super::settings::Settings;
use super::stats::Workers;
use super::upstream::Upstream;

/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// What all sessions share.
pub(super) struct Sv2 {
    settings: Settings,
    miner: PublicKey,
    authority: Authority,
    upstream: Arc<Upstream>,
    workers: Arc<Workers>,
}

impl Sv2 {
    pub(super) fn new(
        settings: Settings,
        miner: PublicKey,
        authority: Authority,
        upstream: Arc<Upstream>,
        workers: Arc<Workers>,
    ) -> Self {
        Self { settings, miner, authority, upstream, workers }
    }

    /// Serves devices on `listener` until `stop`.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) {
        let seats = Arc::new(Semaphore::new(self.settings.max_sv2_connections));
        let sv2 = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
                tracing::debug!(%peer, "refused a device: all seats are taken");
                continue;
            };
            let span = tracing::info_span!("sv2", %peer);
            let (sv2, stop) = (Arc::clone(&sv2), stop.clone());
            let attend = async move {
                let _seat = seat;
                match session::run(sv2, stream, stop).await {
                    Ok(()) => tracing::debug!("the device hung up"),
                    Err(error) => tracing::info!(%error, "dropped a device"),
                }
            };
            tasks.spawn(attend.instrument(span));
        }
    }
}
