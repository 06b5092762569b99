//! Who may see what: the one rule that stored and live events go through.
//!
//! Private kinds (NIP-04 messages, NIP-17/59 seals and gift wraps, EH-02
//! issuance, EH-07 mint messages) are served only to their author and to the keys
//! in their `p` tags, authenticated by NIP-42. Everything else is public.

use std::sync::Arc;

use hashpit_nips::kind::is_private;
use nostr::{Kind, PublicKey};

use crate::event::Event;
use crate::filter::Filter;

/// The keys that a connection has authenticated (NIP-42). Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Viewer {
    keys: Arc<[PublicKey]>,
}

impl Viewer {
    /// A viewer with these keys.
    pub fn new(keys: impl Into<Arc<[PublicKey]>>) -> Self {
        Self { keys: keys.into() }
    }

    /// The keys that it has authenticated.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// True if `key` is one of its own.
    pub fn is(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// True if it may see `event`.
    pub fn may_see(&self, event: &Event) -> bool {
        !is_private(event.kind())
            || self.is(&event.pubkey())
            || self.keys.iter().any(|key| event.is_addressed_to(key))
    }

    /// True if it has to authenticate before `filter` could show it anything:
    /// the filter names private kinds and nothing else.
    pub(crate) fn must_authenticate_for(&self, filter: &Filter) -> bool {
        let only_private = |kinds: &Vec<u16>| {
            !kinds.is_empty() && kinds.iter().all(|kind| is_private(Kind::from(*kind)))
        };
        self.keys.is_empty() && filter.kinds.as_ref().is_some_and(only_private)
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys, Tag};

    use super::*;
    use crate::config::Limits;
    use crate::event::json::Checker;

    fn event(author: &Keys, kind: u16, to: &Keys) -> Event {
        let event = EventBuilder::new(Kind::from(kind), "x")
            .tag(Tag::public_key(to.public_key()))
            .sign_with_keys(author)
            .unwrap();
        Checker::default().check(&event.as_json()).unwrap()
    }

    #[test]
    fn private_kinds_are_for_author_and_recipient_only() {
        let [author, recipient, third] = [Keys::generate(), Keys::generate(), Keys::generate()];
        let viewer = |keys: &Keys| Viewer::new([keys.public_key()]);
        for kind in hashpit_nips::kind::PRIVATE {
            let event = event(&author, kind, &recipient);
            assert!(viewer(&author).may_see(&event));
            assert!(viewer(&recipient).may_see(&event));
            assert!(!viewer(&third).may_see(&event));
            assert!(!Viewer::default().may_see(&event));
        }
        assert!(Viewer::default().may_see(&event(&author, 1, &recipient)));
    }

    #[test]
    fn only_a_filter_for_nothing_but_private_kinds_needs_a_key() {
        let needs = |filter: serde_json::Value| {
            let filter = Filter::parse(&filter, &Limits::default()).unwrap();
            Viewer::default().must_authenticate_for(&filter)
        };
        assert!(needs(serde_json::json!({"kinds": [1059, 4]})));
        assert!(!needs(serde_json::json!({"kinds": [1059, 1]})));
        assert!(!needs(serde_json::json!({})));
    }
}
