//! Whether an answer to our challenge proves a key (NIP-42).

use nostr::{PublicKey, Timestamp};

use crate::admission::AUTHENTICATION;
use crate::event::Event;

/// What a connection's client was asked to sign.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    /// Random text, new for each connection.
    pub(crate) text: String,
    /// The host, and port if not the usual one, that the client connected to;
    /// `None` if we cannot know, and then no key can be proven.
    pub(crate) host: Option<String>,
}

/// Why an answer proves nothing; the text goes into its `OK`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AuthError {
    #[error("invalid: an AUTH message takes an event of kind 22242")]
    Kind,
    #[error("invalid: created_at is too far from this relay's time; check your clock")]
    Time,
    #[error("invalid: the challenge tag is not what this connection was sent")]
    Challenge,
    #[error("invalid: the relay tag does not name this relay")]
    Relay,
}

/// The key that `answer` proves.
pub(crate) fn check(
    answer: &Event,
    challenge: &Challenge,
    now: Timestamp,
    max_age_seconds: u64,
) -> Result<PublicKey, AuthError> {
    if answer.kind().as_u16() != AUTHENTICATION {
        return Err(AuthError::Kind);
    }
    if answer.created_at().as_secs().abs_diff(now.as_secs()) > max_age_seconds {
        return Err(AuthError::Time);
    }
    let value = |name| answer.tag(name).map(|item| item.to_text());
    if value("challenge").as_ref() != Some(&challenge.text) {
        return Err(AuthError::Challenge);
    }
    let host = value("relay").as_deref().and_then(host_of);
    if host.is_none() || host != challenge.host {
        return Err(AuthError::Relay);
    }
    Ok(answer.pubkey())
}

/// The host and port of a URL, or of a `Host` header, in one spelling. NIP-42
/// leaves how exact to be to the relay: the path is not compared.
pub(crate) fn host_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let usual = match scheme {
        "wss" | "https" => host.strip_suffix(":443"),
        "ws" | "http" => host.strip_suffix(":80"),
        // A header does not tell; clients leave either usual port out of it.
        _ => host.strip_suffix(":443").or(host.strip_suffix(":80")),
    };
    let host = usual.unwrap_or(&host);
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys, Kind, Tag};

    use super::*;
    use crate::event::json::Checker;

    const NOW: u64 = 1_700_000_000;

    fn answer(
        kind: u16,
        created_at: u64,
        challenge: &str,
        relay: &str,
    ) -> Result<PublicKey, AuthError> {
        let tag = |name: &str, value: &str| Tag::parse([name, value]).unwrap();
        let event = EventBuilder::new(Kind::from(kind), "")
            .tags([tag("challenge", challenge), tag("relay", relay)])
            .custom_created_at(Timestamp::from_secs(created_at))
            .sign_with_keys(&Keys::generate())
            .unwrap();
        let event = Checker::default().check(&event.as_json()).unwrap();
        let challenge = Challenge { text: "asked".into(), host: host_of("wss://relay.example/") };
        check(&event, &challenge, Timestamp::from_secs(NOW), 600)
    }

    #[test]
    fn an_answer_must_fit_kind_time_challenge_and_relay() {
        let relay = "wss://Relay.Example:443";
        assert!(answer(22242, NOW, "asked", relay).is_ok());
        assert_eq!(answer(1, NOW, "asked", relay), Err(AuthError::Kind));
        assert_eq!(answer(22242, NOW - 601, "asked", relay), Err(AuthError::Time));
        assert_eq!(answer(22242, NOW + 601, "asked", relay), Err(AuthError::Time));
        assert_eq!(answer(22242, NOW, "other", relay), Err(AuthError::Challenge));
        assert_eq!(answer(22242, NOW, "asked", "wss://other.example"), Err(AuthError::Relay));
        assert_eq!(answer(22242, NOW, "asked", ""), Err(AuthError::Relay));
    }

    #[test]
    fn hosts_have_one_spelling() {
        for url in ["ws://a.b:80", "wss://a.b:443/x", "https://A.b?q", "a.b", "a.b:443"] {
            assert_eq!(host_of(url).as_deref(), Some("a.b"), "{url}");
        }
        assert_eq!(host_of("127.0.0.1:7000").as_deref(), Some("127.0.0.1:7000"));
        assert_eq!(host_of("ws://"), None);
    }
}
