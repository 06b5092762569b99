//! What an operator can set. Every limit of the relay is here, with its unit.

use serde::Deserialize;

use crate::kv::Engine;

/// The relay's settings, as read from the `[relay]` table of the program's TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name shown by clients (NIP-11).
    pub name: String,
    /// What this relay is for (NIP-11).
    pub description: String,
    /// How to reach the operator, for example `mailto:` or `nostr:` (NIP-11).
    pub contact: Option<String>,
    /// The operator's public key, 64 hex digits (NIP-11).
    pub pubkey: Option<String>,
    /// The engine that keeps the events. A database of one engine is not read
    /// by the other.
    pub store: Engine,
    /// The URL that clients connect to, which they sign when they authenticate
    /// (NIP-42). Unset: the `Host` header of their own request counts, which is
    /// right unless a proxy changes it.
    pub url: Option<String>,
    /// What one client, event, filter or queue may take.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "hashpit relay".to_owned(),
            description: "A Nostr relay that stores before it says OK".to_owned(),
            contact: None,
            pubkey: None,
            store: Engine::default(),
            url: None,
            limits: Limits::default(),
        }
    }
}

/// The relay's limits. NIP-11 tells clients those that concern them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one WebSocket message. Twice the content limit leaves room for
    /// tags and JSON escapes.
    pub max_message_bytes: usize,
    /// Open subscriptions of one connection. Clients open one per view.
    pub max_subscriptions: usize,
    /// Filters of one `REQ`.
    pub max_filters: usize,
    /// Values of one list in a filter: follow lists of a thousand authors exist.
    pub max_filter_values: usize,
    /// The most stored events that one filter gets, whatever it asks for.
    pub max_limit: usize,
    /// Stored events that a filter without `limit` gets.
    pub default_limit: usize,
    /// Tags of one event.
    pub max_event_tags: usize,
    /// Bytes of an event's content.
    pub max_content_bytes: usize,
    /// Bytes of one string in a tag.
    pub max_tag_value_bytes: usize,
    /// Seconds that an event's `created_at` may lie ahead of our clock.
    pub max_future_seconds: u64,
    /// Seconds that the `created_at` of a NIP-42 answer may differ from our clock.
    pub max_auth_age_seconds: u64,
    /// Public keys that one connection may authenticate.
    pub max_auth_keys: usize,
    /// Open connections. Each takes a socket and up to `live_queue` references.
    pub max_connections: usize,
    /// Open connections of one IP address; `0` is no limit (behind a proxy all
    /// clients share the proxy's address).
    pub max_connections_per_ip: usize,
    /// Messages that make no sense, or events that do not verify, before a
    /// connection is closed.
    pub max_strikes: u32,
    /// Events of one connection that wait for their `OK`. When reached, its
    /// socket is not read until some are answered.
    pub max_in_flight: usize,
    /// Live events that wait for one connection to take them. When full, the
    /// connection is closed: it would miss events silently otherwise.
    pub live_queue: usize,
    /// Chunks of up to 16 events that wait for a signature check; also those
    /// that wait for the writer. When full, connections wait.
    pub ingest_queue: usize,
    /// Queries that run at once. Others wait their turn.
    pub max_running_queries: usize,
    /// Bytes of disk that are left free: events are refused before the engine's
    /// own background work runs out of room, which neither engine survives well.
    pub disk_reserve_bytes: u64,
    /// Seconds between pings. A connection silent for two of them is closed.
    pub ping_seconds: u64,
    /// Seconds that a client may take to accept what we send to it.
    pub write_timeout_seconds: u64,
    /// Seconds that stopping may take before what is left is abandoned. Nothing
    /// acknowledged is ever at risk. More than a write may take, or one client
    /// that does not read could use it up.
    pub stop_timeout_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 256 * 1024,
            max_subscriptions: 64,
            max_filters: 16,
            max_filter_values: 1_000,
            max_limit: 1_000,
            default_limit: 500,
            max_event_tags: 2_000,
            max_content_bytes: 128 * 1024,
            max_tag_value_bytes: 4 * 1024,
            max_future_seconds: 900,
            max_auth_age_seconds: 600,
            max_auth_keys: 16,
            max_connections: 4_096,
            max_connections_per_ip: 256,
            max_strikes: 32,
            max_in_flight: 512,
            live_queue: 1_024,
            ingest_queue: 64,
            max_running_queries: 4,
            disk_reserve_bytes: 1 << 30,
            ping_seconds: 30,
            write_timeout_seconds: 10,
            stop_timeout_seconds: 15,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_its_default_and_what_is_unknown_is_refused() {
        let config: Config =
            serde_json::from_str(r#"{"store": "sled", "limits": {"max_limit": 7}}"#).unwrap();
        assert_eq!((config.store, config.limits.max_limit), (Engine::Sled, 7));
        assert_eq!(config.limits.max_filters, Limits::default().max_filters);
        assert!(serde_json::from_str::<Config>(r#"{"stoer": "sled"}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"limits": {"max_limits": 7}}"#).is_err());
    }
}
