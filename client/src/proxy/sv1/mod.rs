//! Stratum V1 below the proxy: the devices that most miners own.
//!
//! Each connection is a task ([`session`]). In the default mode it has a channel
//! of its own at the pool; aggregated, all share one (`aggregate`). A device
//! hears `true` once the pool has acknowledged the share's sequence number, and
//! the pool's error otherwise; what the proxy can judge itself it refuses at
//! once (`judge`).
//!
//! | module | what lives in it |
//! |---|---|
//! | `line` | lines with a limit |
//! | `request` | what devices ask |
//! | `difficulty` | difficulty ↔ target, in integers |
//! | `feed` | a channel with its shares |
//! | `aggregate` | one channel for all devices |
//! | `allowance` | how many lines a device may send |
//! | `judge` | what the proxy can say of a share |
//! | `vardiff` | a device's own target, where devices are aggregated |
//! | `session` | one device |

mod aggregate;
mod allowance;
mod difficulty;
mod feed;
mod judge;
mod line;
mod request;
mod session;
mod vardiff;

use std::sync::Arc;
use std::time::Duration;

use nostr_sdk::PublicKey;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::Door;
use super::identity::identity;
use super::settings::Settings;
use super::stats::Workers;
use super::upstream::{Kind, Request, Upstream};
use aggregate::{Aggregate, SLOT_BYTES};

/// Fewer bytes to roll are too few for a device.
const MIN_EXTRANONCE2: usize = 4;
/// Only probes show that a silent device is gone.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What all sessions share.
pub(super) struct Sv1 {
    settings: Settings,
    miner: PublicKey,
    upstream: Arc<Upstream>,
    workers: Arc<Workers>,
    aggregate: Option<Aggregate>,
}

impl Sv1 {
    pub(super) fn new(
        settings: Settings,
        miner: PublicKey,
        upstream: Arc<Upstream>,
        workers: Arc<Workers>,
    ) -> Self {
        Self { settings, miner, upstream, workers, aggregate: None }
    }

    /// What a channel is opened with.
    fn request(&self, worker: Option<&str>, hashrate: f32, max_target: [u8; 32]) -> Request {
        let identity = identity(self.miner, worker.unwrap_or_default());
        let slot = if self.settings.aggregate { SLOT_BYTES } else { 0 };
        let min_extranonce = (self.settings.extranonce2_bytes + slot) as u16;
        Request { kind: Kind::Extended { min_extranonce }, identity, hashrate, max_target }
    }

    /// Serves devices on `listener` until `stop`.
    pub(super) async fn serve(
        mut self,
        listener: TcpListener,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) {
        if self.settings.aggregate {
            let request = self.request(None, self.settings.hashrate, [0xff; 32]);
            let upstream = Arc::clone(&self.upstream);
            self.aggregate = Some(Aggregate::start(upstream, request, stop.clone(), &tasks));
        }
        let Settings { max_miners: seats, max_connections_per_ip, .. } = self.settings;
        let door = Door { listener, seats, seats_per_ip: max_connections_per_ip, stop, tasks };
        let sv1 = Arc::new(self);
        door.admit("sv1", |stream, stop| attend(Arc::clone(&sv1), stream, stop)).await;
    }
}

/// One device, from its first byte to its last.
async fn attend(
    sv1: Arc<Sv1>,
    stream: TcpStream,
    stop: CancellationToken,
) -> Result<(), session::SessionError> {
    prepare(&stream)?;
    session::run(sv1, stream, stop).await
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // Jobs and answers are small and urgent.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
