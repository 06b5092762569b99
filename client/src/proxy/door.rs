//! Lets devices in, as many at once as there are seats.

use std::fmt::Display;
use std::time::Duration;

use hashpit_noise::Admission;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Where devices of one kind come in.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    /// Devices at once; a device that comes beyond is hung up on.
    pub(super) seats: usize,
    /// Those from one address.
    pub(super) seats_per_ip: usize,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Door {
    /// Serves each device in a task of its own, until stopped.
    pub(super) async fn admit<F, E>(
        self,
        protocol: &'static str,
        serve: impl Fn(TcpStream, CancellationToken) -> F,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display,
    {
        let admission = Admission::new(self.seats, self.seats_per_ip);
        loop {
            let accepted = tokio::select! { biased;
                () = self.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let seat = match admission.admit(peer.ip()) {
                Ok(seat) => seat,
                Err(reason) => {
                    tracing::debug!(%peer, %reason, "refused a device");
                    continue;
                }
            };
            let serving = serve(stream, self.stop.clone());
            let device = async move {
                let _seat = seat;
                match serving.await {
                    Ok(()) => tracing::debug!("the device hung up"),
                    Err(error) => tracing::info!(%error, "dropped a device"),
                }
            };
            self.tasks.spawn(device.instrument(tracing::info_span!("device", protocol, %peer)));
        }
    }
}
