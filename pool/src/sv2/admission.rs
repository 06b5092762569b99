//! How many connections there may be: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Config;

/// Counts connections; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    max: usize,
    max_per_ip: usize,
    seats: Arc<Mutex<Seats>>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: usize,
    by_origin: HashMap<IpAddr, usize>,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("all seats are taken")]
    Full,
    #[error("too many connections from one address")]
    PerIp,
}

/// A connection's place; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    admission: Admission,
    origin: IpAddr,
}

impl Admission {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            max: config.max_connections,
            max_per_ip: config.max_connections_per_ip,
            seats: Arc::default(),
        }
    }

    pub(super) fn admit(&self, ip: IpAddr) -> Result<Seat, Refused> {
        let origin = origin(ip);
        let mut seats = self.lock();
        if seats.taken >= self.max {
            return Err(Refused::Full);
        }
        let here = seats.by_origin.get(&origin).copied().unwrap_or(0);
        if here >= self.max_per_ip {
            return Err(Refused::PerIp);
        }
        seats.by_origin.insert(origin, here + 1);
        seats.taken += 1;
        Ok(Seat { admission: self.clone(), origin })
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.admission.lock();
        seats.taken -= 1;
        if let Some(here) = seats.by_origin.get_mut(&self.origin) {
            *here -= 1;
            if *here == 0 {
                seats.by_origin.remove(&self.origin);
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

    #[test]
    fn seats_run_out_in_all_and_per_origin_and_come_back() {
        let config = Config { max_connections: 3, max_connections_per_ip: 2, ..Config::default() };
        let admission = Admission::new(&config);
        let admit = |ip: &str| admission.admit(ip.parse().unwrap());
        let first = admit("2001:db8::1").unwrap();
        let _second = admit("2001:db8::2").unwrap();
        assert_eq!(admit("2001:db8::3").unwrap_err(), Refused::PerIp);
        let _third = admit("192.0.2.1").unwrap();
        assert_eq!(admit("192.0.2.2").unwrap_err(), Refused::Full);
        drop(first);
        assert!(admit("::ffff:192.0.2.1").is_ok());
        assert_eq!(admission.lock().taken, 2);
    }
}
