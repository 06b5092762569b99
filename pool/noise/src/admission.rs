//! How many connections there may be: in all, and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
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
pub enum Refused {
    /// As many as there may be.
    #[error("all seats are taken")]
    Full,
    /// As many as one address may have.
    #[error("too many connections from one address")]
    PerIp,
}

/// A connection's place; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {
    admission: Admission,
    origin: IpAddr,
}

impl Admission {
    /// Lets in `max` connections, `max_per_ip` of them from one address.
    pub fn new(max: usize, max_per_ip: usize) -> Self {
        Self { max, max_per_ip, seats: Arc::default() }
    }

    /// A seat, if there is one left for this address.
    pub fn admit(&self, ip: IpAddr) -> Result<Seat, Refused> {
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
        let admission = Admission::new(3, 2);
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

    fn take(admission: &Admission, ip: &str) -> Option<Seat> {
        admission.admit(ip.parse().unwrap()).ok()
    }

    #[test]
    fn seats_are_limited_in_all_and_by_address_and_come_back() {
        let admission = Admission::new(3, 2);
        let first = take(&admission, "10.0.0.1").unwrap();
        // The same address, as a socket for both families tells it.
        let second = take(&admission, "::ffff:10.0.0.1").unwrap();
        assert!(take(&admission, "10.0.0.1").is_none());
        let third = take(&admission, "10.0.0.2").unwrap();
        assert!(take(&admission, "10.0.0.3").is_none());
        drop(first);
        drop((take(&admission, "10.0.0.1").unwrap(), second, third));
        assert!(admission.lock().by_origin.is_empty());
        assert_eq!(admission.lock().taken, 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let admission = Admission::new(3, 1);
        let _first = take(&admission, "2001:db8::1").unwrap();
        assert!(take(&admission, "2001:db8::ffff:1").is_none());
        assert!(take(&admission, "2001:db8:0:1::1").is_some());
    }
}
