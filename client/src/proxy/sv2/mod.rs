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

use nostr_sdk::PublicKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::Door;
use super::settings::Settings;
use super::stats::Workers;
use super::upstream::Upstream;
use hashpit_noise::Authority;

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
        let Settings { max_sv2_connections: seats, max_connections_per_ip, .. } = self.settings;
        let door = Door { listener, seats, seats_per_ip: max_connections_per_ip, stop, tasks };
        let sv2 = Arc::new(self);
        door.admit("sv2", |stream, stop| session::run(Arc::clone(&sv2), stream, stop)).await;
    }
}
