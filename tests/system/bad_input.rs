//! Junk on every port and in every message: refused with a reason, and it
//! costs nobody else anything.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
