//! The exchange. Nothing of it is built yet but what ehash is worth: this crate
//! keeps its place in the house, between the event codecs that it will speak and
//! the binary that will run it.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`fair_value`] | what ehash is worth, to be shown next to its price |

pub mod fair_value;
