//! Lets devices in, as many at once as there are seats.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
        let seats = Arc::new(Seats::new(self.seats, self.seats_per_ip));
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
            let Some(seat) = Seats::take(&seats, peer.ip()) else {
                tracing::debug!(%peer, "refused a device: all seats are taken, or its address's");
                continue;
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

/// Counts devices: in all, and from one address.
#[derive(Debug)]
struct Seats {
    max: usize,
    max_per_ip: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_origin: HashMap<IpAddr, usize>,
}

/// A device's seat; dropping it gives it back.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    origin: IpAddr,
}

impl Seats {
    fn new(max: usize, max_per_ip: usize) -> Self {
        Self { max, max_per_ip, taken: Mutex::default() }
    }

    /// A seat, if there is one left for this address.
    fn take(seats: &Arc<Self>, ip: IpAddr) -> Option<Seat> {
        let origin = origin(ip);
        let mut taken = seats.lock();
        let here = taken.by_origin.get(&origin).copied().unwrap_or(0);
        if taken.all >= seats.max || here >= seats.max_per_ip {
            return None;
        }
        taken.all += 1;
        taken.by_origin.insert(origin, here + 1);
        Some(Seat { seats: Arc::clone(seats), origin })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        if let Some(here) = taken.by_origin.get_mut(&self.origin) {
            *here -= 1;
            if *here == 0 {
                taken.by_origin.remove(&self.origin);
            }
        }
    }
}

/// Whom an address belongs to. A single IPv6 customer has at least a /64.
fn origin(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(seats: &Arc<Seats>, ip: &str) -> Option<Seat> {
        Seats::take(seats, ip.parse().unwrap())
    }

    #[test]
    fn seats_are_limited_in_all_and_by_address_and_come_back() {
        let seats = Arc::new(Seats::new(3, 2));
        let first = take(&seats, "10.0.0.1").unwrap();
        // The same address, as a socket for both families tells it.
        let second = take(&seats, "::ffff:10.0.0.1").unwrap();
        assert!(take(&seats, "10.0.0.1").is_none());
        let third = take(&seats, "10.0.0.2").unwrap();
        assert!(take(&seats, "10.0.0.3").is_none());
        drop(first);
        drop((take(&seats, "10.0.0.1").unwrap(), second, third));
        assert!(seats.lock().by_origin.is_empty());
        assert_eq!(seats.lock().all, 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let seats = Arc::new(Seats::new(3, 1));
        let _first = take(&seats, "2001:db8::1").unwrap();
        assert!(take(&seats, "2001:db8::ffff:1").is_none());
        assert!(take(&seats, "2001:db8:0:1::1").is_some());
    }
}
