//! The exchange of hashpit.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`engine`] | the matching engine: commands in, events out, nothing else |

pub mod engine;
