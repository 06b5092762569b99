//! The exchange. Nothing of it is built yet: this crate keeps its place in the
//! house, between the event codecs that it will speak and the binary that will
//! run it.
