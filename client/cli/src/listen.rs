//! Addresses and ports, and binding them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use serde::Deserialize;
use tokio::net::TcpListener;

/// Where the roles listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Address; loopback unless others are to reach this machine.
    pub address: IpAddr,
    /// Port of the relay; the mint, Sv2 and the proxy's Sv1 and Sv2 take the next
    /// four. 0 picks free ones.
    pub port_base: u16,
    /// Port of the relay, in place of `port_base`.
    pub relay: Option<u16>,
    /// Port of the mint's HTTP, in place of `port_base` + 1.
    pub mint: Option<u16>,
    /// Port of Stratum V2, in place of `port_base` + 2.
    pub sv2: Option<u16>,
    /// Port of the proxy for Stratum V1 devices, in place of `port_base` + 3.
    pub proxy_sv1: Option<u16>,
    /// Port of the proxy for Stratum V2 devices, in place of `port_base` + 4.
    pub proxy_sv2: Option<u16>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port_base: 34260,
            relay: None,
            mint: None,
            sv2: None,
            proxy_sv1: None,
            proxy_sv2: None,
        }
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Relay,
    Mint,
    Sv2,
    ProxySv1,
    ProxySv2,
}

impl Listen {
    /// Binds a role's port.
    pub async fn bind(&self, port: Port) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::new(self.address, self.number(port)?);
        TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for {port:?}; choose other ports, or --port-base 0")
        })
    }

    fn number(&self, port: Port) -> anyhow::Result<u16> {
        let (own, offset) = match port {
            Port::Relay => (self.relay, 0),
            Port::Mint => (self.mint, 1),
            Port::Sv2 => (self.sv2, 2),
            Port::ProxySv1 => (self.proxy_sv1, 3),
            Port::ProxySv2 => (self.proxy_sv2, 4),
        };
        match own {
            Some(number) => Ok(number),
            None if self.port_base == 0 => Ok(0),
            None => self.port_base.checked_add(offset).context("port_base must be below 65532"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_base_unless_named() {
        let listen = Listen { port_base: 1000, sv2: Some(7), ..Listen::default() };
        let numbers = [Port::Relay, Port::Mint, Port::Sv2].map(|p| listen.number(p).unwrap());
        assert_eq!(numbers, [1000, 1001, 7]);
        let free = Listen { port_base: 0, ..Listen::default() };
        assert_eq!(free.number(Port::Sv2).unwrap(), 0);
        let high = Listen { port_base: u16::MAX, ..Listen::default() };
        assert!(high.number(Port::Mint).is_err());
    }
}
