//! Answering a `REQ` from the store, newest first, a page at a time.
//!
//! Each filter becomes a [`Scan`]: a merge of [`Cursor`]s over the index that
//! selects least, with the rest of the filter checked on the events. The query
//! merges the scans. An event has one position everywhere, so the same event
//! from two cursors or two scans arrives twice in a row and is dropped.
//!
//! Cursors read pages and hold nothing in between, so a query may wait for a
//! slow client as long as it likes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use nostr::Timestamp;

use super::keys::{self, Position, Prefix};
use super::{Reader, StoreError};
use crate::event::Event;
use crate::filter::Filter;
use crate::kv::Order;
use crate::visibility::Viewer;

/// More cursors than this, and a filter uses a coarser index.
const MAX_CURSORS: usize = 4_096;
/// Bounds of a cursor's page: with many cursors each reads little at first, and
/// twice as much each time that it is asked again.
const MIN_READ: usize = 4;
const MAX_READ: usize = 256;

/// A part of a query's answer.
#[derive(Debug, Default)]
pub struct Page {
    /// Events, newest first.
    pub events: Vec<Event>,
    /// True if there is no more.
    pub done: bool,
}

/// A query that has not given its whole answer yet.
pub struct Query {
    view: View,
    scans: Vec<Scan>,
    last: Option<Position>,
}

/// What a query may see.
struct View {
    reader: Reader,
    viewer: Viewer,
    now: Timestamp,
    /// Events after this one are delivered live instead.
    watermark: u64,
}

impl Query {
    /// A query for `filters` as `viewer` may see them. Each filter's `limit`
    /// must be set. Events after `watermark` (see [`Reader::last_sequence`]) and
    /// those that have expired at `now` are left out.
    pub fn new(
        reader: &Reader,
        filters: &[Filter],
        viewer: Viewer,
        watermark: u64,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let wanted = filters.iter().filter(|filter| !filter.is_void() && filter.limit != Some(0));
        let scans = wanted.map(|filter| Scan::new(reader, filter)).collect::<Result<_, _>>()?;
        let view = View { reader: reader.clone(), viewer, now, watermark };
        Ok(Self { view, scans, last: None })
    }

    /// The next part of the answer, about `max_bytes` of stored events, or fewer
    /// after looking at `max_looks` index entries.
    pub fn next_page(&mut self, max_bytes: usize, max_looks: usize) -> Result<Page, StoreError> {
        let mut page = Page::default();
        let (mut bytes, mut looks) = (0, 0);
        while bytes < max_bytes && looks < max_looks {
            // Every scan must show its next event before the newest can be told.
            for scan in &mut self.scans {
                looks += scan.advance(&self.view, max_looks.saturating_sub(looks))?;
            }
            if self.scans.iter().any(|scan| scan.is_searching()) {
                break;
            }
            let first = self.scans.iter_mut().filter(|scan| scan.next.is_some());
            let Some(scan) = first.min_by_key(|scan| scan.next.as_ref().map(|(at, _)| *at)) else {
                page.done = true;
                break;
            };
            if let Some((position, event)) = scan.next.take()
                && self.last != Some(position)
            {
                self.last = Some(position);
                bytes += event.as_record().len();
                page.events.push(event);
            }
        }
        Ok(page)
    }
}

/// One filter's events, newest first.
struct Scan {
    filter: Filter,
    left: usize,
    cursors: Vec<Cursor>,
    /// The first key of each cursor that has one.
    heads: BinaryHeap<Reverse<(Position, usize)>>,
    /// Cursors that have not been read yet, or whose page is used up.
    hungry: Vec<usize>,
    last: Option<Position>,
    next: Option<(Position, Event)>,
}

impl Scan {
    fn new(reader: &Reader, filter: &Filter) -> Result<Self, StoreError> {
        let left = filter.limit.unwrap_or(usize::MAX);
        let mut scan = Self {
            filter: filter.clone(),
            left,
            cursors: Vec::new(),
            heads: BinaryHeap::new(),
            hungry: Vec::new(),
            last: None,
            next: None,
        };
        if let Some(ids) = &filter.ids {
            scan.cursors = vec![Cursor::of_ids(reader, ids)?];
        } else {
            let prefixes = plan(reader, filter)?;
            let read = (left / prefixes.len().max(1)).saturating_add(1).clamp(MIN_READ, MAX_READ);
            let (since, until) = filter.period();
            scan.cursors =
                prefixes.iter().map(|p| Cursor::new(p.period(since, until), read)).collect();
        }
        scan.hungry = (0..scan.cursors.len()).collect();
        Ok(scan)
    }

    /// True while it can give more events but has not found the next one.
    fn is_searching(&self) -> bool {
        self.next.is_none() && self.left > 0 && !(self.heads.is_empty() && self.hungry.is_empty())
    }

    /// Looks for the next event that `view` may see, at up to `max` entries and
    /// at least one; says how many it looked at.
    fn advance(&mut self, view: &View, max: usize) -> Result<usize, StoreError> {
        let mut looks = 0;
        while self.is_searching() && (looks == 0 || looks < max) {
            looks += self.feed(view)?;
            let Some(Reverse((position, cursor))) = self.heads.pop() else { continue };
            looks += 1;
            match self.cursors[cursor].take() {
                Some(next) => self.heads.push(Reverse((next, cursor))),
                None if self.cursors[cursor].is_finished() => {}
                None => self.hungry.push(cursor),
            }
            if self.last.replace(position) == Some(position) {
                continue;
            }
            if let Some(event) = self.look(view, position)? {
                self.left -= 1;
                self.next = Some((position, event));
            }
        }
        Ok(looks)
    }

    /// Reads the pages of cursors that need one.
    fn feed(&mut self, view: &View) -> Result<usize, StoreError> {
        let hungry = std::mem::take(&mut self.hungry);
        let reads = hungry.len();
        for cursor in hungry {
            self.cursors[cursor].read(&view.reader)?;
            if let Some(position) = self.cursors[cursor].take() {
                self.heads.push(Reverse((position, cursor)));
            }
        }
        Ok(reads)
    }

    fn look(&self, view: &View, position: Position) -> Result<Option<Event>, StoreError> {
        let sequence = position.sequence();
        if sequence > view.watermark {
            return Ok(None);
        }
        let event = view.reader.at(sequence)?;
        Ok(event.filter(|event| {
            self.filter.matches(event) && !event.has_expired(view.now) && view.viewer.may_see(event)
        }))
    }
}

/// Positions from one range of an index, read a page at a time.
struct Cursor {
    start: Vec<u8>,
    end: Vec<u8>,
    read: usize,
    page: VecDeque<Position>,
    finished: bool,
}

impl Cursor {
    fn new((start, end): (Vec<u8>, Vec<u8>), read: usize) -> Self {
        Self { start, end, read, page: VecDeque::new(), finished: false }
    }

    /// A cursor over given events, all read at once: ids have no order in time.
    fn of_ids(reader: &Reader, ids: &[[u8; 32]]) -> Result<Self, StoreError> {
        let mut positions = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(value) = reader.kv.get(&keys::id(&nostr::EventId::from_byte_array(*id)))?
            else {
                continue;
            };
            let sequence = keys::sequence(&value).ok_or(StoreError::Damaged("id index"))?;
            let event = reader.at(sequence)?;
            positions.extend(event.map(|event| Position::new(&event, sequence)));
        }
        positions.sort_unstable();
        let mut cursor = Self::new((Vec::new(), Vec::new()), 0);
        cursor.page = positions.into();
        cursor.finished = true;
        Ok(cursor)
    }

    fn take(&mut self) -> Option<Position> {
        self.page.pop_front()
    }

    fn is_finished(&self) -> bool {
        self.finished && self.page.is_empty()
    }

    fn read(&mut self, reader: &Reader) -> Result<(), StoreError> {
        if self.finished {
            return Ok(());
        }
        let page = reader.kv.page(&self.start..&self.end, Order::Forward, self.read)?;
        self.finished = page.len() < self.read;
        if let Some((last, _)) = page.last() {
            self.start = [last, &[0][..]].concat();
        }
        for (key, _) in &page {
            self.page.push_back(Position::of_key(key).ok_or(StoreError::Damaged("index key"))?);
        }
        self.read = (self.read * 2).min(MAX_READ);
        Ok(())
    }
}

/// The index ranges that hold all that `filter` can match, from the index that
/// needs the fewest.
fn plan(reader: &Reader, filter: &Filter) -> Result<Vec<Prefix>, StoreError> {
    let narrowest_tag = filter.tags.iter().min_by_key(|(_, values)| values.len());
    let authors = filter.authors.as_deref();
    if let Some((letter, values)) = narrowest_tag
        && authors.is_none_or(|authors| values.len() <= authors.len())
    {
        return Ok(values.iter().map(|value| Prefix::tag(*letter, value)).collect());
    }
    if let Some(authors) = authors
        && let Some(prefixes) = author_prefixes(reader, authors, filter.kinds.as_deref())?
    {
        return Ok(prefixes);
    }
    Ok(match &filter.kinds {
        Some(kinds) => kinds.iter().map(|kind| Prefix::kind(*kind)).collect(),
        None => vec![Prefix::created()],
    })
}

/// A range per author and kind, or `None` if there are too many.
fn author_prefixes(
    reader: &Reader,
    authors: &[[u8; 32]],
    kinds: Option<&[u16]>,
) -> Result<Option<Vec<Prefix>>, StoreError> {
    let mut prefixes = Vec::new();
    for author in authors {
        match kinds {
            Some(kinds) => prefixes.extend(kinds.iter().map(|kind| Prefix::author(author, *kind))),
            None => push_kinds_of(reader, author, &mut prefixes)?,
        }
        if prefixes.len() > MAX_CURSORS {
            return Ok(None);
        }
    }
    Ok(Some(prefixes))
}

/// Appends a range for each kind that `author` has published, hopping from one
/// kind to the next; stops where there are too many.
fn push_kinds_of(
    reader: &Reader,
    author: &[u8; 32],
    prefixes: &mut Vec<Prefix>,
) -> Result<(), StoreError> {
    let mut from = Some(0);
    while let Some(kind) = from
        && prefixes.len() <= MAX_CURSORS
    {
        let (start, end) = keys::author_from(author, kind);
        let page = reader.kv.page(&start..&end, Order::Forward, 1)?;
        let Some((key, _)) = page.first() else { break };
        let kind = keys::author_key_kind(key).ok_or(StoreError::Damaged("author index"))?;
        prefixes.push(Prefix::author(author, kind));
        from = kind.checked_add(1);
    }
    Ok(())
}
