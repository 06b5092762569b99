//! Which live filters an event could match, without asking all of them.
//!
//! Each filter is listed under the values of one of its fields: ids, else its
//! shortest tag list, else authors, else kinds, else under "all". An event looks
//! up its own values and asks only the filters that it finds there.

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::Event;
use crate::filter::{Filter, TagValue};

/// A live subscription: its connection, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SubscriptionKey {
    pub(crate) session: u64,
    pub(crate) number: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Interest {
    Id([u8; 32]),
    Tag(u8, TagValue),
    Author([u8; 32]),
    Kind(u16),
    All,
}

struct Listed {
    key: SubscriptionKey,
    filter: Arc<Filter>,
}

/// The filters of all live subscriptions.
#[derive(Default)]
pub(crate) struct LiveIndex {
    listed: HashMap<Interest, Vec<Listed>>,
    filters: HashMap<SubscriptionKey, Vec<Arc<Filter>>>,
}

impl LiveIndex {
    pub(crate) fn insert(&mut self, key: SubscriptionKey, filters: Vec<Filter>) {
        self.remove(key);
        let filters: Vec<_> =
            filters.into_iter().filter(|filter| !filter.is_void()).map(Arc::new).collect();
        for filter in &filters {
            for interest in interests(filter) {
                let listed = Listed { key, filter: Arc::clone(filter) };
                self.listed.entry(interest).or_default().push(listed);
            }
        }
        self.filters.insert(key, filters);
    }

    pub(crate) fn remove(&mut self, key: SubscriptionKey) {
        for filter in self.filters.remove(&key).unwrap_or_default() {
            for interest in interests(&filter) {
                let Some(listed) = self.listed.get_mut(&interest) else { continue };
                listed.retain(|listed| listed.key != key);
                if listed.is_empty() {
                    self.listed.remove(&interest);
                }
            }
        }
    }

    /// The subscriptions that ask for `event`, each once.
    pub(crate) fn matching(&self, event: &Event) -> Vec<SubscriptionKey> {
        let mut keys: Vec<_> = offers(event)
            .filter_map(|interest| self.listed.get(&interest))
            .flatten()
            .filter(|listed| listed.filter.matches(event))
            .map(|listed| listed.key)
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// What a filter is listed under.
fn interests(filter: &Filter) -> Vec<Interest> {
    if let Some(ids) = &filter.ids {
        return ids.iter().copied().map(Interest::Id).collect();
    }
    if let Some((letter, values)) = filter.tags.iter().min_by_key(|(_, values)| values.len()) {
        return values.iter().map(|value| Interest::Tag(*letter, value.clone())).collect();
    }
    if let Some(authors) = &filter.authors {
        return authors.iter().copied().map(Interest::Author).collect();
    }
    match &filter.kinds {
        Some(kinds) => kinds.iter().copied().map(Interest::Kind).collect(),
        None => vec![Interest::All],
    }
}

/// What an event is looked up under.
fn offers(event: &Event) -> impl Iterator<Item = Interest> {
    let fields = [
        Interest::Id(event.id().to_bytes()),
        Interest::Author(event.pubkey().to_bytes()),
        Interest::Kind(event.kind().as_u16()),
        Interest::All,
    ];
    let tags = event.tags().filter_map(|tag| tag.indexed());
    fields.into_iter().chain(tags.map(|(letter, value)| Interest::Tag(letter, value.into())))
}
