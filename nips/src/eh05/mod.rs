//! EH-05: what an exchange did, in an order that it cannot change afterwards.
//!
//! | type | kind | what |
//! |---|---|---|
//! | [`Entry`] | 8480 | one link of the journal's chain: an event that came in, and its outcome |
//! | [`Match`] | 8481 | two offers that met |
//! | [`Settlement`] | 8482 | what became of a match |
//! | [`Progress`] | | which step of that is due |
//! | [`Checkpoint`] | 38483 | a market's book at one sequence |
//! | [`Depth`] | 28480 | what has changed since |

mod depth;
mod entry;
mod matched;
mod progress;
mod settlement;

pub use depth::{Book, Change, Checkpoint, Depth, LastTrade, Level};
pub use entry::{Effect, Entry, GENESIS, MAX_EFFECTS, Outcome, Subject};
pub use matched::{Leg, Match};
pub use progress::{NotDue, Progress, STEPS};
pub use settlement::{Fate, Settlement};

pub use crate::tag::DecodeError;
