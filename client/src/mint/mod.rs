//! The ways to a mint: HTTP, or the same API in encrypted events through the
//! relays of the pool that runs it (EH-07).
//!
//! | module | what lives in it |
//! |---|---|
//! | `line` | requests to one pool, repeated until answered |
//! | `patient` | cdk's HTTP transport, with an end to waiting |
//! | `transport` | cdk's HTTP transport, over a line |

mod line;
mod patient;
mod transport;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cdk::mint_url::MintUrl;
use hashpit_mailbox::MailboxError;
use nostr_sdk::{PublicKey, RelayUrl, Url};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::debug;

pub use line::{Line, LineError};
pub(crate) use patient::Patient;
pub(crate) use transport::NostrTransport;

/// How long a mint's host may take to accept a connection before it counts as
/// out of reach.
const KNOCK: Duration = Duration::from_secs(2);
/// How long what was found stays true.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Which way requests to mints take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Route {
    /// HTTP where the mint's host can be reached, else Nostr where the relays of
    /// its pool are known.
    #[default]
    Auto,
    /// HTTP always.
    Http,
    /// Nostr always.
    Nostr,
}

/// Not the name of a route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to a mint; say auto, http or nostr")]
pub struct UnknownRoute(String);

impl FromStr for Route {
    type Err = UnknownRoute;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "http" => Ok(Self::Http),
            "nostr" => Ok(Self::Nostr),
            other => Err(UnknownRoute(other.to_owned())),
        }
    }
}

/// A wallet's ways to mints. Clones share what is connected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mints {
    pub(crate) route: Route,
    /// Relays to try for pools that the wallet does not know.
    pub(crate) relays: Vec<RelayUrl>,
    /// Mints that may be asked as often as need be.
    pub(crate) unpaced: Vec<MintUrl>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<HashMap<PublicKey, OpenLine>>,
    /// Whether a host could be reached, and when.
    reached: Mutex<HashMap<String, (Instant, bool)>>,
}

#[derive(Debug)]
struct OpenLine {
    relays: BTreeSet<RelayUrl>,
    line: Line,
}

impl Mints {
    /// True if requests to `mint` should go by HTTP: they must, or they may and
    /// its host answers.
    pub(crate) async fn prefers_http(&self, mint: &MintUrl) -> bool {
        match self.route {
            Route::Http => true,
            Route::Nostr => false,
            Route::Auto => self.reaches(mint).await,
        }
    }

    /// True for mints that were named, and those on this machine.
    pub(crate) fn is_unpaced(&self, mint: &MintUrl) -> bool {
        self.unpaced.contains(mint) || is_loopback(mint)
    }

    async fn reaches(&self, mint: &MintUrl) -> bool {
        let Some(host) = host_and_port(mint) else { return true };
        let mut reached = self.shared.reached.lock().await;
        if let Some((_, yes)) = reached.get(&host).filter(|(at, _)| at.elapsed() < REMEMBERED) {
            return *yes;
        }
        let yes = matches!(timeout(KNOCK, TcpStream::connect(&host)).await, Ok(Ok(_)));
        debug!(host, yes, "can the mint's host be reached");
        reached.insert(host, (Instant::now(), yes));
        yes
    }

    /// The line to a pool, opened if there is none through these relays.
    pub(crate) async fn line(
        &self,
        pool: PublicKey,
        relays: &[RelayUrl],
    ) -> Result<Line, MailboxError> {
        let relays: BTreeSet<_> = relays.iter().cloned().collect();
        let mut lines = self.shared.lines.lock().await;
        if let Some(open) = lines.get(&pool).filter(|open| open.relays == relays) {
            return Ok(open.line.clone());
        }
        let line = Line::open(pool, &relays.iter().cloned().collect::<Vec<_>>()).await?;
        lines.insert(pool, OpenLine { relays, line: line.clone() });
        Ok(line)
    }
}

fn is_loopback(mint: &MintUrl) -> bool {
    let url: Option<Url> = mint.to_string().parse().ok();
    match url.as_ref().and_then(Url::host_str) {
        Some("localhost") => true,
        Some(host) => {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            address.is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

fn host_and_port(mint: &MintUrl) -> Option<String> {
    let url: Url = mint.to_string().parse().ok()?;
    Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_host_that_refuses_is_out_of_reach_and_one_that_accepts_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = format!("http://{}/ehash", listener.local_addr().unwrap()).parse().unwrap();
        let shut = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://{}/ehash", listener.local_addr().unwrap()).parse().unwrap()
        };
        let mints = |route| Mints { route, ..Mints::default() };
        for (route, open_by_http, shut_by_http) in
            [(Route::Auto, true, false), (Route::Http, true, true), (Route::Nostr, false, false)]
        {
            assert_eq!(mints(route).prefers_http(&open).await, open_by_http, "{route:?}");
            assert_eq!(mints(route).prefers_http(&shut).await, shut_by_http, "{route:?}");
        }
    }

    #[test]
    fn mints_are_paced_unless_named_or_on_this_machine() {
        let mint = |url: &str| url.parse::<MintUrl>().unwrap();
        let named = mint("https://mint.example/sat");
        let mints = Mints { unpaced: vec![named.clone()], ..Mints::default() };
        assert!(mints.is_unpaced(&named));
        for url in ["http://127.0.0.1:3338/sat", "http://[::1]:3338", "http://localhost"] {
            assert!(mints.is_unpaced(&mint(url)), "{url}");
        }
        for url in ["https://mint.example", "http://127.0.0.1.example", "http://10.0.0.1"] {
            assert!(!mints.is_unpaced(&mint(url)), "{url}");
        }
    }

    #[test]
    fn hosts_have_the_port_of_their_scheme() {
        for (url, host) in [
            ("https://mint.example/ehash", "mint.example:443"),
            ("http://mint.example", "mint.example:80"),
            ("http://[::1]:3338", "[::1]:3338"),
        ] {
            assert_eq!(host_and_port(&url.parse().unwrap()).unwrap(), host);
        }
    }
}
