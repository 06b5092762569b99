//! Event kinds of the EH drafts (see the table in `nips/README.md`).

use nostr::Kind;

/// EH-01 pool announcement; addressable, `d` = network.
pub const POOL: Kind = Kind::Custom(38470);
/// EH-01 epoch keyset; addressable, `d` = Cashu unit.
pub const EPOCH_KEYSET: Kind = Kind::Custom(38471);
/// EH-01 supply attestation; regular.
pub const SUPPLY_ATTESTATION: Kind = Kind::Custom(8471);
/// NIP-87 Cashu mint announcement; addressable.
pub const CASHU_MINT: Kind = Kind::Custom(38172);
/// EH-02 issuance message; regular, encrypted, private.
pub const ISSUANCE: Kind = Kind::Custom(8470);
/// NIP-60 wallet, one for each author; replaceable, encrypted to oneself.
pub const WALLET: Kind = Kind::Custom(17375);
/// NIP-60 unspent proofs; regular, encrypted to oneself.
pub const TOKEN: Kind = Kind::Custom(7375);
/// NIP-60 spending history; regular, encrypted to oneself.
pub const HISTORY: Kind = Kind::Custom(7376);
/// EH-07 mint request or response; ephemeral, encrypted, private.
pub const MINT: Kind = Kind::Custom(28470);
/// EH-04 offer; addressable, by the trader.
pub const OFFER: Kind = Kind::Custom(38480);
/// EH-04 market; addressable, by the exchange, `d` = unit.
pub const MARKET: Kind = Kind::Custom(38481);
/// EH-04 exchange info; addressable, by the exchange.
pub const EXCHANGE: Kind = Kind::Custom(38482);
/// EH-04 trader's command to an exchange; regular.
pub const COMMAND: Kind = Kind::Custom(8483);
/// EH-06 message of a trade; never published: it travels in NIP-59 wraps.
pub const SWAP: Kind = Kind::Custom(8484);
/// EH-06 claim for a watchtower; never published: it travels in NIP-59 wraps.
pub const WATCH: Kind = Kind::Custom(8485);
/// EH-05 journal entry; regular, by the exchange.
pub const ENTRY: Kind = Kind::Custom(8480);
/// EH-05 match; regular, by the exchange.
pub const MATCH: Kind = Kind::Custom(8481);
/// EH-05 settlement attestation; regular, by the exchange.
pub const SETTLEMENT: Kind = Kind::Custom(8482);
/// EH-05 checkpoint; addressable, by the exchange, `d` = unit.
pub const CHECKPOINT: Kind = Kind::Custom(38483);
/// EH-05 changes of a book's depth, and its ticker; ephemeral.
pub const DEPTH: Kind = Kind::Custom(28480);

/// Kinds whose events a relay serves only to their author and to the keys in
/// their `p` tags, authenticated by NIP-42: who mines where, and who writes to
/// whom, is nobody else's business.
///
/// NIP-04 direct messages (4), NIP-59 seals and gift wraps (13, 1059), EH-02
/// issuance (8470) and EH-07 mint messages (28470).
pub const PRIVATE: [u16; 5] = [4, 13, 1059, 8470, 28470];

/// True if only the recipients and the author of such an event may see it.
pub fn is_private(kind: Kind) -> bool {
    PRIVATE.contains(&kind.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuance_is_private_and_announcements_are_not() {
        assert!(is_private(ISSUANCE) && is_private(MINT));
        for public in [POOL, EPOCH_KEYSET, SUPPLY_ATTESTATION, CASHU_MINT] {
            assert!(!is_private(public));
        }
    }
}
