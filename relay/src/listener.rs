//! The listening socket with its limits: connections in all and per IP address.
//!
//! A connection over a limit is closed at once, before any of its bytes are
//! read. The permit lives as long as the socket, WebSocket or not.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Limits;

/// The open connections.
pub(crate) struct Connections {
    max: usize,
    /// `0` is no limit.
    max_per_ip: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    total: usize,
    per_ip: HashMap<IpAddr, usize>,
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max: limits.max_connections,
            max_per_ip: limits.max_connections_per_ip,
            open: Mutex::default(),
        })
    }

    /// How many are open.
    pub(crate) fn total(&self) -> usize {
        self.lock().total
    }

    fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Permit> {
        let mut open = self.lock();
        let of_ip = open.per_ip.get(&ip).copied().unwrap_or(0);
        if open.total >= self.max || (self.max_per_ip > 0 && of_ip >= self.max_per_ip) {
            return None;
        }
        open.total += 1;
        open.per_ip.insert(ip, of_ip + 1);
        Some(Permit { connections: Arc::clone(self), ip })
    }

    // Counters are whole even if a holder panicked.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted connection.
struct Permit {
    connections: Arc<Connections>,
    ip: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.total -= 1;
        if let Some(of_ip) = open.per_ip.get_mut(&self.ip) {
            *of_ip -= 1;
            if *of_ip == 0 {
                open.per_ip.remove(&self.ip);
            }
        }
    }
}

/// A listener that admits connections up to the limits.
pub(crate) struct Gate {
    pub(crate) listener: TcpListener,
    pub(crate) connections: Arc<Connections>,
}

impl Listener for Gate {
    type Io = Admitted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Admitted, SocketAddr) {
        loop {
            // axum's own accept logs and waits where the system is out of sockets.
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            let Some(permit) = self.connections.admit(peer.ip()) else {
                tracing::debug!(%peer, "connection refused: too many are open");
                continue;
            };
            // With Nagle's algorithm, answers wait 40 ms for a delayed ACK. A
            // socket that is broken already shows it on its first read.
            let _ = stream.set_nodelay(true);
            return (Admitted { stream, _permit: permit }, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its permit.
pub(crate) struct Admitted {
    stream: TcpStream,
    _permit: Permit,
}

impl Admitted {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_in_all_and_per_address_and_permits_come_back() {
        let limits = Limits { max_connections: 3, max_connections_per_ip: 2, ..Limits::default() };
        let connections = Connections::new(&limits);
        let [one, two, three] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]].map(IpAddr::from);
        let first = connections.admit(one);
        let second = connections.admit(one);
        assert!(first.is_some() && second.is_some());
        assert!(connections.admit(one).is_none());
        let third = connections.admit(two);
        assert!(third.is_some());
        assert!(connections.admit(three).is_none());
        drop(first);
        assert_eq!(connections.total(), 2);
        assert!(connections.admit(one).is_some());
        drop((second, third));
        assert!(connections.lock().per_ip.is_empty());
    }
}
