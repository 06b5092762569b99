//! The live index against asking every filter.

use nostr::{EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::event::json::Checker;

fn event(author: &Keys, kind: u16, tags: &[(char, u8)]) -> Event {
    let tags = tags
        .iter()
        .map(|(letter, value)| Tag::parse([letter.to_string(), value.to_string()]).unwrap());
    let event = EventBuilder::new(Kind::from(kind), "")
        .tags(tags)
        .custom_created_at(Timestamp::from_secs(100))
        .sign_with_keys(author)
        .unwrap();
    Checker::default().check(&event.as_json()).unwrap()
}

fn keys(n: u8) -> Keys {
    Keys::parse(&format!("{:064x}", u64::from(n) + 1)).unwrap()
}

prop_compose! {
    fn filter()(
        authors in prop::option::of(prop::collection::vec(0u8..3, 0..3)),
        kinds in prop::option::of(prop::collection::vec(0u16..3, 0..3)),
        tags in prop::collection::btree_map(prop::sample::select(vec!['t', 'r']), prop::collection::vec(0u8..3, 0..3), 0..3),
        since in prop::option::of(99u64..102),
    ) -> Filter {
        let mut json = serde_json::Map::new();
        if let Some(authors) = authors {
            let authors: Vec<_> = authors.iter().map(|n| keys(*n).public_key().to_hex()).collect();
            json.insert("authors".into(), authors.into());
        }
        if let Some(kinds) = kinds {
            json.insert("kinds".into(), kinds.into());
        }
        for (letter, values) in tags {
            let values: Vec<_> = values.iter().map(u8::to_string).collect();
            json.insert(format!("#{letter}"), values.into());
        }
        if let Some(since) = since {
            json.insert("since".into(), since.into());
        }
        Filter::parse(&json.into(), &crate::config::Limits::default()).unwrap()
    }
}

proptest! {
    #[test]
    fn the_index_finds_what_asking_every_filter_finds(
        subscriptions in prop::collection::vec(prop::collection::vec(filter(), 1..3), 1..12),
        gone in prop::collection::vec(any::<bool>(), 12),
        author in 0u8..3, kind in 0u16..3,
        tags in prop::collection::vec((prop::sample::select(vec!['t', 'r', 'x']), 0u8..3), 0..4),
    ) {
        let event = event(&keys(author), kind, &tags);
        let mut index = LiveIndex::default();
        let key = |number: usize| SubscriptionKey { session: number as u64 % 3, number: number as u64 };
        for (number, filters) in subscriptions.iter().enumerate() {
            index.insert(key(number), filters.clone());
        }
        (0..subscriptions.len()).filter(|n| gone[*n]).for_each(|n| index.remove(key(n)));
        let mut expected: Vec<_> = (0..subscriptions.len())
            .filter(|n| !gone[*n] && subscriptions[*n].iter().any(|filter| filter.matches(&event)))
            .map(key)
            .collect();
        expected.sort_unstable();
        prop_assert_eq!(index.matching(&event), expected);
    }
}

#[test]
fn a_mailbox_that_is_full_ends_its_session() {
    let (_hub, mut state) = Hub::new();
    let (mailbox, mut inbox) = mpsc::channel(1);
    let lagged = CancellationToken::new();
    state.obey(Command::Join { session: 1, mailbox, lagged: lagged.clone() });
    let key = SubscriptionKey { session: 1, number: 7 };
    state.obey(Command::Subscribe { key, filters: vec![Filter::default()] });
    let publish = || Command::Publish(vec![Published::new(event(&keys(0), 1, &[]), 1)]);
    state.obey(publish());
    assert!(!lagged.is_cancelled());
    state.obey(publish());
    assert!(lagged.is_cancelled());
    assert_eq!(inbox.try_recv().unwrap().subscription, 7);
    assert!(state.sessions.is_empty());
}
