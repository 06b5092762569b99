//! Gets a recorded payment to its payee.

use std::time::Duration;

use cdk::nuts::{PaymentRequest, TransportType};
use cdk_common::HttpClient;
use hashpit_mailbox::Mailbox;
use nostr_sdk::{Event, EventBuilder, Filter, Keys, Kind, PublicKey, RelayUrl, Tag};
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
    match payee {
        Payee::Key { key, relays } => {
            let relays = relays_of(wallet, *key, relays, &order.relays).await?;
            Ok((Destination::Nostr { key: *key, relays }, Form::Token))
        }
        Payee::Request(request) => {
            let form = Form::Payload { id: request.payment_id.clone() };
            let (to, address) = transport(request)?;
            let unknown = || PayeeError::Address(address.to_owned());
            if to == TransportType::HttpPost {
                let is_url = address.starts_with("https://") || address.starts_with("http://");
                let url = is_url.then(|| address.to_owned()).ok_or_else(unknown)?;
                return Ok((Destination::Post { url }, form));
            }
            let profile: Payee = address.parse().map_err(|_| unknown())?;
            let Payee::Key { key, relays } = profile else { return Err(unknown().into()) };
            let relays = relays_of(wallet, key, &relays, &order.relays).await?;
            Ok((Destination::Nostr { key, relays }, form))
        }
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
        Destination::Post { url } => post(&url, &message).await?,
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

async fn post(url: &str, message: &str) -> Result<(), String> {
    let payload: serde_json::Value =
        serde_json::from_str(message).map_err(|error| error.to_string())?;
    let sent = timeout(DELIVER, HttpClient::new().post(url).json(&payload).send()).await;
    match sent {
        Ok(Ok(answer)) if answer.is_success() => Ok(()),
        Ok(Ok(answer)) => {
            let said: String = answer.body_lossy().chars().take(200).collect();
            Err(format!("{url} answered {}: {said}", answer.status()))
        }
        Ok(Err(error)) => Err(format!("{url}: {error}")),
        Err(_) => Err(format!("{url} did not answer in {DELIVER:?}")),
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
}
