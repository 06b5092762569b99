//! The trader's side of EH-04 and EH-05: offers to an exchange, and what its
//! journal says.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`Exchange`] | an exchange as anyone may read it: markets, trades, reputation |
//! | [`Trader`] | makes, amends and cancels offers, and waits for the journal's word |
//! | [`Book`], [`BookFeed`] | a market's book, live |
//! | [`OwnOffer`] | what became of a trader's offers |
//! | [`Line`], [`TapeFeed`] | matches, and what becomes of them |
//! | [`Tape`], [`Candle`], [`Ticker`] | prices, of completed matches |
//! | [`Reputation`] | how a key has settled |
//!
//! Nothing is kept here: the journal is public, and what a trader has done is read
//! from it. Every event that counts is signed by the exchange's key: the mailbox
//! checks signatures, and each event is held against the filter that it was asked
//! for by, since a relay may send anything.

mod book;
mod candles;
mod exchange;
mod feed;
mod offers;
mod reputation;
mod tape;
mod trader;

pub use book::Book;
pub use candles::{Candle, Ticker};
pub use exchange::{Exchange, Trade};
pub use feed::{BookFeed, TapeFeed};
use hashpit_mailbox::MailboxError;
use hashpit_nips::eh04::DecodeError;
use nostr_sdk::{EventId, PublicKey, ToBech32};
pub use offers::{End, OwnOffer, Standing};
pub use reputation::Reputation;
pub use tape::{Line, Stage, Tape};
pub use trader::{Answer, Trader};

/// Why a trade command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum TradeError {
    /// The relays could not be used.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// None of them told all that it has.
    #[error("no relay answered; check the address, or name another with --relay <url>")]
    NoRelay,
    /// The relays do not know the exchange.
    #[error(
        "these relays know no exchange {}; name one that it writes to with --relay <url>",
        npub(.0)
    )]
    NoExchange(PublicKey),
    /// Nothing is traded.
    #[error("the exchange has no open market now; see `hashpit market list`")]
    NoMarket,
    /// Several are.
    #[error("the exchange has several markets; name one with --market: {0}")]
    WhichMarket(String),
    /// Not this one.
    #[error("the exchange has no market {0:?}; see `hashpit market list`")]
    UnknownMarket(String),
    /// No such offer by this trader.
    #[error("no offer of yours is called {0:?}; see `hashpit offer list`")]
    NoOffer(String),
    /// The first digits of several offers.
    #[error("several offers of yours begin with {0:?}; type more of it")]
    WhichOffer(String),
    /// It cannot be changed any more.
    #[error("offer {d} is {end}, and cannot be changed; make another")]
    Over {
        /// The offer.
        d: String,
        /// What became of it.
        end: End,
    },
    /// It cannot be changed yet.
    #[error("the exchange has not acknowledged offer {0} yet; cancel it, or try again later")]
    NotStanding(String),
    /// Terms that nobody can offer.
    #[error("such an offer cannot be made: {0}")]
    Terms(DecodeError),
    /// More work than a computer does in good time.
    #[error("the exchange asks for {0} bits of work (NIP-13) of a new key; no more than {max} are done", max = trader::MAX_POW)]
    TooMuchWork(u8),
    /// The event could not be signed.
    #[error("signing: {0}")]
    Sign(String),
    /// Stored on a relay, and not a word from the exchange.
    #[error(
        "the exchange has not answered within {seconds} s. A relay has what was sent \
         ({event}), and the exchange may carry it out yet: see `hashpit offer list`"
    )]
    NoAnswer {
        /// What was sent.
        event: EventId,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The offer was never shown.
    #[error(
        "the exchange has not taken the commit within {seconds} s, so the offer was not shown; \
         nothing of it stands"
    )]
    NoPlace {
        /// How long it was waited for.
        seconds: u64,
    },
}

fn npub(key: &PublicKey) -> String {
    let Ok(npub) = key.to_bech32();
    npub
}
