//! Following the journal from its beginning, at start. Records are decoded on
//! all cores and followed on one.

use nostr::{Event, EventId, PublicKey};

use super::DeskError;
use crate::journal::{Journal, JournalError, decode};
use crate::replay::{Fault, Replay};
use hashpit_nips::eh05::Entry;

/// Records decoded at a time by one core.
const CHUNK: usize = 512;

/// A record, as far as it can be checked by itself.
struct Decoded {
    seq: u64,
    id: EventId,
    author: PublicKey,
    entry: Result<Entry, Fault>,
    /// Ids of what it brought about.
    rest: Vec<EventId>,
}

/// The state that the journal leads to.
///
/// Errors where a record is damaged, or is not what those before it lead to.
pub(crate) fn replay(journal: &Journal, author: PublicKey) -> Result<Replay, DeskError> {
    let mut replay = Replay::new(author);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut records = journal.from(0);
    loop {
        let chunk = records.by_ref().take(CHUNK * cores).collect::<Result<Vec<_>, _>>()?;
        if chunk.is_empty() {
            return Ok(replay);
        }
        for decoded in decode_all(&chunk, cores) {
            follow(&mut replay, decoded?)?;
        }
    }
}

fn decode_all(chunk: &[(u64, sled::IVec)], cores: usize) -> Vec<Result<Decoded, JournalError>> {
    let share = chunk.len().div_ceil(cores).max(1);
    let decode = |part: &[(u64, sled::IVec)]| -> Vec<_> {
        part.iter().map(|(seq, record)| Decoded::new(*seq, record)).collect()
    };
    std::thread::scope(|scope| {
        let parts = chunk.chunks(share).map(|part| scope.spawn(move || decode(part)));
        let parts: Vec<_> = parts.collect();
        parts.into_iter().flat_map(|part| part.join().expect("decoding does not panic")).collect()
    })
}

impl Decoded {
    fn new(seq: u64, record: &[u8]) -> Result<Self, JournalError> {
        let events = decode(seq, record)?;
        let Some((first, rest)) = events.split_first() else {
            return Err(JournalError::Damaged { seq, detail: "it is empty".to_owned() });
        };
        // The chain of ids covers every entry; signatures were made here.
        let entry = if first.verify_id() {
            Entry::decode(first).map_err(Fault::from)
        } else {
            Err(Fault::Forged)
        };
        let rest = rest.iter().map(|event: &Event| event.id).collect();
        Ok(Self { seq, id: first.id, author: first.pubkey, entry, rest })
    }
}

fn follow(replay: &mut Replay, decoded: Decoded) -> Result<(), DeskError> {
    let contradiction = |fault| DeskError::Contradiction { seq: decoded.seq, fault };
    let entry = decoded.entry.map_err(contradiction)?;
    let all = replay.decoded(decoded.id, decoded.author, entry).map_err(contradiction)?;
    if all.ids().ne(decoded.rest) {
        let fault = Fault::NoPlace("its record holds other matches than follow from it");
        return Err(contradiction(fault));
    }
    Ok(())
}
