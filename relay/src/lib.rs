//! A Nostr relay that never loses an event that it said OK to.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | settings and limits |
//! | `server` | opening, serving and stopping: [`Relay`], [`run`] |
//! | `listener`, `http` | connections, upgrades, the NIP-11 document |
//! | `session` | one connection: input, queries, subscriptions |
//! | `verify` | signature checks on threads of their own |
//! | `writer` | the one thread that writes: batch, commit, then OK |
//! | `live` | live delivery through an index of filters |
//! | [`store`] | events and indexes; NIP-01, 09 and 40 |
//! | `kv` | the ordered key-value trait, with fjall and sled below it |
//! | [`event`], [`filter`], [`message`] | what clients and relay tell each other |
//! | [`admission`], `authentication`, [`visibility`] | who may publish, prove and see what |
//!
//! An event goes session → verify → writer → store, and only when it is durable
//! back to the session as `OK`, and to `live` and other sessions. Queries go
//! from a session to a reader of the store. No other path shows an event to
//! anybody, and both ask the same [`visibility`].

pub mod admission;
mod authentication;
mod clock;
pub mod config;
pub mod event;
pub mod filter;
mod http;
mod kv;
mod listener;
mod live;
pub mod message;
mod server;
mod session;
pub mod store;
mod threads;
mod verify;
pub mod visibility;
mod writer;

pub use clock::Clock;
pub use config::{Config, Limits};
pub use server::{Error, Gauges, Relay, Stats, run};
