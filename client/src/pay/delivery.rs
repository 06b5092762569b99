//! Gets a recorded payment to its payee.

use std::net::IpAddr;
use std::time::Duration;

use cdk::nuts::{PaymentRequest, TransportType};
use cdk_common::HttpClient;
use hashpit_mailbox::Mailbox;
use nostr_sdk::{Event, EventBuilder, Filter, Keys, Kind, PublicKey, RelayUrl, Tag, ToBech32, Url};
use tokio::time::timeout;

use super::{Order, PayError, Payee, PayeeError};
use crate::wallet::{Destination, Form, Outgoing, Wallet};

/// How long relays may take to connect, and to tell what they have.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a message may take to be accepted.
const DELIVER: Duration = Duration::from_secs(20);
/// Relays of a payee that are used; a profile could name any number.
const MAX_RELAYS: usize = 8;

/// Where a payment goes, and in which form.
pub(super) async fn destination(
    wallet: &Wallet,
    payee: &Payee,
    order: &Order,
) -> Result<(Destination, Form), PayError> {
    let form = match payee {
        Payee::Key { .. } => Form::Token,
        Payee::Request(request) => Form::Payload { id: request.payment_id.clone() },
    };
    let to = match address(payee)? {
        Address::Shop(url) => Destination::Post { url: url.into() },
        Address::Key(key, named) => {
            let relays = relays_of(wallet, key, &named, &order.relays).await?;
            Destination::Nostr { key, relays }
        }
    };
    Ok((to, form))
}

/// Where a payee says that it takes tokens.
enum Address {
    Shop(Url),
    Key(PublicKey, Vec<RelayUrl>),
}

impl Payee {
    /// Who gets the token, whatever the payee is called: the host of a shop, or an
    /// npub.
    pub fn recipient(&self) -> Result<String, PayeeError> {
        Ok(match address(self)? {
            Address::Shop(url) => url.host_str().unwrap_or_default().to_owned(),
            Address::Key(key, _) => {
                let Ok(npub) = key.to_bech32();
                npub
            }
        })
    }
}

fn address(payee: &Payee) -> Result<Address, PayeeError> {
    let request = match payee {
        Payee::Key { key, relays } => return Ok(Address::Key(*key, relays.clone())),
        Payee::Request(request) => request,
    };
    let (by, address) = transport(request)?;
    if by == TransportType::HttpPost {
        return shop(address).map(Address::Shop);
    }
    match address.parse() {
        Ok(Payee::Key { key, relays }) => Ok(Address::Key(key, relays)),
        _ => Err(PayeeError::Address(address.to_owned())),
    }
}

/// A shop's URL: encrypted, unless it is on this machine or Tor encrypts.
fn shop(address: &str) -> Result<Url, PayeeError> {
    let unknown = || PayeeError::Address(address.to_owned());
    let url = Url::parse(address).map_err(|_| unknown())?;
    let host = url.host_str().ok_or_else(unknown)?;
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let here = ip.map_or(host == "localhost", |ip| ip.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if here || host.ends_with(".onion") => Ok(url),
        "http" => Err(PayeeError::InTheClear(address.to_owned())),
        _ => Err(unknown()),
    }
}

/// The first way to deliver that we know: the payee's order is its preference.
fn transport(request: &PaymentRequest) -> Result<(TransportType, &str), PayeeError> {
    let direct = |tags: &[Vec<String>]| {
        let kinds = || tags.iter().filter(|tag| tag.first().is_some_and(|name| name == "n"));
        kinds().next().is_none() || kinds().any(|tag| tag.iter().any(|nip| nip == "17"))
    };
    let known = request.transports.iter().find(|transport| match transport._type {
        TransportType::HttpPost => true,
        TransportType::Nostr => direct(&transport.tags),
    });
    known.map(|it| (it._type, it.target.as_str())).ok_or(PayeeError::NoTransport)
}

/// Where a key reads: what it was named with and what the order adds; else its
/// list of inbox relays (NIP-17, kind 10050) as our pools' relays have it; else
/// those relays themselves.
async fn relays_of(
    wallet: &Wallet,
    key: PublicKey,
    named: &[RelayUrl],
    added: &[RelayUrl],
) -> Result<Vec<RelayUrl>, PayError> {
    let mut relays: Vec<_> = named.iter().chain(added).cloned().collect();
    if relays.is_empty() {
        let ours = our_relays(wallet).await?;
        relays = inbox_relays(key, &ours).await?;
        if relays.is_empty() {
            relays = ours;
        }
    }
    relays.sort();
    relays.dedup();
    relays.truncate(MAX_RELAYS);
    if relays.is_empty() { Err(PayError::NoRelay) } else { Ok(relays) }
}

/// The relays of the pools that the wallet has claimed from.
pub(super) async fn our_relays(wallet: &Wallet) -> Result<Vec<RelayUrl>, PayError> {
    let pools = wallet.pools().await?;
    let mut relays: Vec<_> = pools.into_iter().flat_map(|pool| pool.relays).collect();
    relays.sort();
    relays.dedup();
    Ok(relays)
}

async fn inbox_relays(key: PublicKey, at: &[RelayUrl]) -> Result<Vec<RelayUrl>, PayError> {
    if at.is_empty() {
        return Ok(Vec::new());
    }
    let mailbox = Mailbox::connect(Keys::generate(), at).await?;
    let filter = Filter::new().kind(Kind::InboxRelays).author(key);
    let found = mailbox.fetch(filter, CONNECT).await;
    mailbox.close().await;
    let (events, _) = found?;
    let newest = events.into_iter().max_by_key(|event| event.created_at);
    let tags = newest.map(|event| event.tags).unwrap_or_default();
    let urls = tags.iter().filter_map(|tag| match tag.as_slice() {
        [name, url, ..] if name == "relay" => RelayUrl::parse(url).ok(),
        _ => None,
    });
    Ok(urls.collect())
}

/// Delivers, and forgets the record; else says why not. Safe to repeat.
pub(super) async fn deliver(wallet: &Wallet, mut payment: Outgoing) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let Some(message) = wallet.message(&payment).await.map_err(|error| words(&error))? else {
        return Err("the mint has not made the token yet".to_owned());
    };
    match payment.to.clone() {
        Destination::Post { url } => match post(&url, &message).await {
            // It may have received the token before, and its answer was lost.
            Err(Unposted::Refused(_)) if wallet.is_spent(&payment).await.unwrap_or(false) => {}
            posted => posted.map_err(|error| words(&error))?,
        },
        Destination::Nostr { key, relays } => {
            let sealed = match payment.sealed.take() {
                Some(sealed) => sealed,
                None => wrap(key, message).await?,
            };
            payment.sealed = Some(sealed.clone());
            wallet.save_payment(&payment).await.map_err(|error| words(&error))?;
            publish(&relays, &sealed).await?;
        }
    }
    wallet.forget_payment(&payment.id).await.map_err(|error| words(&error))
}

/// A NIP-17 message in NIP-59's wraps, from a key that is used once.
async fn wrap(to: PublicKey, message: String) -> Result<Event, String> {
    let from = Keys::generate();
    let rumor = EventBuilder::new(Kind::PrivateDirectMessage, message)
        .tag(Tag::public_key(to))
        .build(from.public_key());
    let wrapped = EventBuilder::gift_wrap(&from, &to, rumor, []).await;
    wrapped.map_err(|error| format!("cannot seal the message: {error}"))
}

async fn publish(relays: &[RelayUrl], event: &Event) -> Result<(), String> {
    let mailbox = Mailbox::connect(Keys::generate(), relays).await.map_err(|e| e.to_string())?;
    let published = match mailbox.connected(CONNECT).await {
        0 => Err(format!("no relay of {} can be reached", relays.len())),
        _ => match timeout(DELIVER, mailbox.publish(event)).await {
            Ok(published) => published.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no relay answered in {DELIVER:?}")),
        },
    };
    mailbox.close().await;
    published
}

/// Why a shop did not take a payment. What the shop wrote is escaped: it goes to
/// a terminal.
#[derive(Debug, thiserror::Error)]
enum Unposted {
    /// It answered that the payment is at fault (4xx).
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

async fn post(url: &str, message: &str) -> Result<(), Unposted> {
    let failed = |error: &dyn std::fmt::Display| Unposted::Failed(error.to_string());
    let payload: serde_json::Value = serde_json::from_str(message).map_err(|e| failed(&e))?;
    // A token goes where the payer was told that it goes, and nowhere else.
    let client = HttpClient::builder().no_redirects().build().map_err(|e| failed(&e))?;
    let sent = timeout(DELIVER, client.post(url).json(&payload).send()).await;
    let url = url.escape_debug();
    match sent {
        Ok(Ok(answer)) if answer.is_success() => Ok(()),
        Ok(Ok(answer)) => {
            let (status, body) = (answer.status(), answer.body_lossy());
            let said: String = body.chars().take(200).collect();
            let words = format!("{url} answered {status}: {}", said.escape_debug());
            let refused = (400..500).contains(&status);
            Err(if refused { Unposted::Refused(words) } else { Unposted::Failed(words) })
        }
        Ok(Err(error)) => Err(Unposted::Failed(format!("{url}: {error}"))),
        Err(_) => Err(Unposted::Failed(format!("{url} did not answer in {DELIVER:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_transport_that_is_known_is_taken() {
        let transport_of = |transports: serde_json::Value| {
            let mut request = PaymentRequest::builder().build();
            request.transports = serde_json::from_value(transports).unwrap();
            transport(&request).map(|(_, target)| target.to_owned())
        };
        let nostr = |nip: &str| serde_json::json!({"t": "nostr", "a": nip, "g": [["n", nip]]});
        let post = serde_json::json!({"t": "post", "a": "https://shop.example"});
        assert_eq!(transport_of(serde_json::json!([nostr("17"), post])).unwrap(), "17");
        assert_eq!(
            transport_of(serde_json::json!([nostr("99"), post])).unwrap(),
            "https://shop.example"
        );
        assert_eq!(transport_of(serde_json::json!([{"t": "nostr", "a": "any"}])).unwrap(), "any");
        assert_eq!(transport_of(serde_json::json!([nostr("99")])), Err(PayeeError::NoTransport));
        assert_eq!(transport_of(serde_json::json!([])), Err(PayeeError::NoTransport));
    }

    #[test]
    fn a_shop_is_encrypted_or_on_this_machine() {
        let taken = |url| shop(url).map(|url| url.host_str().unwrap().to_owned());
        for (url, host) in [
            ("https://shop.example/pay", "shop.example"),
            ("https://shop.example@evil.example/", "evil.example"),
            ("http://127.0.0.1:8080/pay", "127.0.0.1"),
            ("http://[::1]/", "[::1]"),
            ("http://localhost/", "localhost"),
            ("http://abc.onion/pay", "abc.onion"),
        ] {
            assert_eq!(taken(url).as_deref(), Ok(host));
        }
        for url in ["http://shop.example", "http://10.0.0.1", "http://127.0.0.1.shop.example"] {
            assert_eq!(taken(url), Err(PayeeError::InTheClear(url.to_owned())));
        }
        for url in ["", "shop.example", "ftp://shop.example", "file:///etc", "https://"] {
            assert_eq!(taken(url), Err(PayeeError::Address(url.to_owned())));
        }
    }
}
