//! Both stores against a deliberately dumb model: a list of events, asked one by
//! one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use hashpit_relay::event::json::Checker;
use hashpit_relay::filter::Filter;
use hashpit_relay::store::{EventStore, Outcome, Query};
use hashpit_relay::visibility::Viewer;
use hashpit_relay::{Limits, event};
use nostr::{Event, JsonUtil, Keys, Timestamp};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::harness::{ENGINES, NOW, as_value, event, tag};

const KINDS: [u16; 8] = [0, 1, 5, 7, 1059, 10_002, 30_000, 30_001];

fn keys(n: usize) -> Keys {
    Keys::parse(&format!("{:064x}", n + 1)).unwrap()
}

/// A stored list and what was deleted from it.
#[derive(Default)]
struct Model {
    stored: Vec<Event>,
    deletions: Vec<Event>,
}

fn address(event: &Event) -> Option<String> {
    let kind = event.kind.as_u16();
    let d = match kind {
        0 | 3 | 10_000..20_000 => "",
        30_000..40_000 => event.tags.identifier().unwrap_or_default(),
        _ => return None,
    };
    Some(format!("{kind}:{}:{d}", event.pubkey))
}

fn has_tag(event: &Event, name: &str, value: &str) -> bool {
    event.tags.iter().any(|tag| tag.kind().as_str() == name && tag.content() == Some(value))
}

fn deletes(deletion: &Event, target: &Event) -> bool {
    let by_address = address(target).is_some_and(|address| has_tag(deletion, "a", &address));
    deletion.pubkey == target.pubkey
        && target.kind.as_u16() != 5
        && (has_tag(deletion, "e", &target.id.to_hex())
            || (by_address && target.created_at <= deletion.created_at))
}

impl Model {
    fn insert(&mut self, event: &Event) -> &'static str {
        if self.stored.iter().any(|stored| stored.id == event.id) {
            return "duplicate";
        }
        if self.deletions.iter().any(|deletion| deletes(deletion, event)) {
            return "deleted";
        }
        let address = address(event);
        let rank = |event: &Event| (event.created_at, Reverse(event.id));
        if let Some(at) =
            self.stored.iter().position(|e| address.is_some() && self::address(e) == address)
        {
            if rank(event) < rank(&self.stored[at]) {
                return "superseded";
            }
            self.stored.remove(at);
        }
        self.stored.push(event.clone());
        if event.kind.as_u16() == 5 {
            self.stored.retain(|stored| !deletes(event, stored));
            self.deletions.push(event.clone());
        }
        "stored"
    }

    fn query(&self, filters: &[Value], viewer: Option<&Keys>) -> Vec<String> {
        let order = |event: &Event| (Reverse(event.created_at), event.id);
        let mut found = BTreeSet::new();
        for filter in filters {
            let visible = self.stored.iter().filter(|event| may_see(event, viewer));
            let mut matching: Vec<_> =
                visible.filter(|event| matches(event, filter)).map(order).collect();
            matching.sort();
            found.extend(matching.into_iter().take(filter["limit"].as_u64().unwrap() as usize));
        }
        found.into_iter().map(|(_, id)| id.to_hex()).collect()
    }
}

fn may_see(event: &Event, viewer: Option<&Keys>) -> bool {
    let expires = event.tags.expiration().is_some_and(|at| at.as_secs() <= NOW);
    let private = event.kind.as_u16() == 1059;
    let involved = viewer
        .map(|keys| keys.public_key())
        .is_some_and(|key| event.pubkey == key || has_tag(event, "p", &key.to_hex()));
    !expires && (!private || involved)
}

fn matches(event: &Event, filter: &Value) -> bool {
    let json = as_value(event);
    filter.as_object().unwrap().iter().all(|(name, wanted)| match name.as_str() {
        "ids" => wanted.as_array().unwrap().contains(&json["id"]),
        "authors" => wanted.as_array().unwrap().contains(&json["pubkey"]),
        "kinds" => wanted.as_array().unwrap().contains(&json["kind"]),
        "since" => event.created_at.as_secs() >= wanted.as_u64().unwrap(),
        "until" => event.created_at.as_secs() <= wanted.as_u64().unwrap(),
        "limit" => true,
        tag => wanted
            .as_array()
            .unwrap()
            .iter()
            .any(|value| has_tag(event, &tag[1..], value.as_str().unwrap())),
    })
}

/// The plan of a tag; what it refers to is known when the events are made.
#[derive(Clone, Debug)]
enum TagPlan {
    Plain(&'static str, &'static str),
    Person(usize),
    Earlier(prop::sample::Index),
    Address(usize, u16, &'static str),
    Expires(u64),
}

#[derive(Clone, Debug)]
struct EventPlan {
    author: usize,
    kind: u16,
    age: u64,
    tags: Vec<TagPlan>,
    content: u8,
    /// True if the transaction is committed after it.
    commit: bool,
}

fn long() -> &'static str {
    "long long long long long long long long long long long long long long long long long long \
     long long long long long long long long long long long long long long long long long long"
}

fn tag_plan() -> impl Strategy<Value = TagPlan> {
    prop_oneof![
        prop::sample::select(vec![
            ("d", "a"),
            ("d", "b"),
            ("t", "x"),
            ("t", "y"),
            ("t", long()),
            ("word", "x")
        ])
        .prop_map(|(name, value)| TagPlan::Plain(name, value)),
        (0usize..3).prop_map(TagPlan::Person),
        any::<prop::sample::Index>().prop_map(TagPlan::Earlier),
        (0usize..3, prop::sample::select(KINDS.to_vec()), prop::sample::select(vec!["", "a", "b"]))
            .prop_map(|(author, kind, d)| TagPlan::Address(author, kind, d)),
        (NOW - 1..NOW + 2).prop_map(TagPlan::Expires),
    ]
}

prop_compose! {
    fn event_plan()(
        author in 0usize..3, kind in prop::sample::select(KINDS.to_vec()), age in 0u64..4,
        tags in prop::collection::vec(tag_plan(), 0..4), content in 0u8..2, commit: bool,
    ) -> EventPlan {
        EventPlan { author, kind, age, tags, content, commit }
    }
}

fn make(plans: &[EventPlan]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for plan in plans {
        let tags = plan.tags.iter().filter_map(|plan| match plan {
            TagPlan::Plain(name, value) => Some(tag(&[name, value])),
            TagPlan::Person(n) => Some(tag(&["p", &keys(*n).public_key().to_hex()])),
            TagPlan::Earlier(_) if events.is_empty() => None,
            TagPlan::Earlier(at) => Some(tag(&["e", &at.get(&events).id.to_hex()])),
            TagPlan::Address(n, kind, d) => {
                Some(tag(&["a", &format!("{kind}:{}:{d}", keys(*n).public_key())]))
            }
            TagPlan::Expires(at) => Some(tag(&["expiration", &at.to_string()])),
        });
        let tags: Vec<_> = tags.collect();
        let content = plan.content.to_string();
        events.push(event(&keys(plan.author), plan.kind, NOW - plan.age, tags, &content));
    }
    events
}

prop_compose! {
    fn filter_plan()(
        ids in prop::option::weighted(0.2, prop::collection::vec(any::<prop::sample::Index>(), 0..4)),
        authors in prop::option::of(prop::collection::vec(0usize..4, 0..3)),
        kinds in prop::option::of(prop::collection::vec(prop::sample::select(KINDS.to_vec()), 0..4)),
        topics in prop::option::weighted(0.2, prop::collection::vec(prop::sample::select(vec!["x", "y", long(), "z"]), 0..3)),
        people in prop::option::weighted(0.2, prop::collection::vec(0usize..4, 0..3)),
        since in prop::option::weighted(0.3, NOW - 4..NOW + 1),
        until in prop::option::weighted(0.3, NOW - 4..NOW + 1),
        limit in prop_oneof![0u64..4, Just(100u64)],
    ) -> (Option<Vec<prop::sample::Index>>, Map<String, Value>) {
        let mut filter = Map::new();
        let people_of = |list: Vec<usize>| -> Value {
            list.iter().map(|n| keys(*n).public_key().to_hex()).collect::<Vec<_>>().into()
        };
        let fields = [
            ("authors", authors.map(people_of)),
            ("kinds", kinds.map(Value::from)),
            ("#t", topics.map(Value::from)),
            ("#p", people.map(people_of)),
            ("since", since.map(Value::from)),
            ("until", until.map(Value::from)),
            ("limit", Some(json!(limit))),
        ];
        for (name, value) in fields {
            filter.extend(value.map(|value| (name.to_owned(), value)));
        }
        (ids, filter)
    }
}

fn stored_query(
    store: &EventStore,
    filters: &[Value],
    viewer: Option<&Keys>,
    (bytes, looks): (usize, usize),
) -> Vec<String> {
    let limits = Limits::default();
    let filters: Vec<_> =
        filters.iter().map(|filter| Filter::parse(filter, &limits).unwrap()).collect();
    let reader = store.reader();
    let viewer = Viewer::new(viewer.iter().map(|keys| keys.public_key()).collect::<Vec<_>>());
    let now = Timestamp::from_secs(NOW);
    let mut query = Query::new(&reader, &filters, viewer, reader.last_sequence(), now).unwrap();
    let mut ids = Vec::new();
    loop {
        let page = query.next_page(bytes, looks).unwrap();
        ids.extend(page.events.iter().map(|event| event.id().to_hex()));
        if page.done {
            return ids;
        }
    }
}

fn checked(event: &Event) -> event::Event {
    Checker::default().check(&event.as_json()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn both_stores_do_what_the_model_does(
        plans in prop::collection::vec(event_plan(), 1..60),
        filters in prop::collection::vec(prop::collection::vec(filter_plan(), 1..4), 1..12),
        viewer in prop::option::of(0usize..3),
        page in (1usize..2_000, 1usize..40),
    ) {
        let events = make(&plans);
        let viewer = viewer.map(keys);
        for engine in ENGINES {
            let dir = tempfile::tempdir().unwrap();
            let mut store = EventStore::open(engine, dir.path(), 0).unwrap();
            let mut model = Model::default();
            let mut transaction = store.begin();
            for (event, plan) in events.iter().zip(&plans) {
                let outcome = match transaction.insert(&checked(event)).unwrap() {
                    Outcome::Stored(_) => "stored",
                    Outcome::Duplicate => "duplicate",
                    Outcome::Superseded => "superseded",
                    Outcome::Deleted => "deleted",
                };
                prop_assert_eq!(outcome, model.insert(event), "{:?}: {:?}", engine, event);
                if plan.commit {
                    transaction.commit().unwrap();
                    transaction = store.begin();
                }
            }
            transaction.commit().unwrap();

            for filters in &filters {
                let filters: Vec<_> = filters.iter().map(|(ids, filter)| {
                    let mut filter = filter.clone();
                    if let Some(ids) = ids {
                        let ids: Vec<_> = ids.iter().map(|at| at.get(&events).id.to_hex()).collect();
                        filter.insert("ids".into(), ids.into());
                    }
                    Value::Object(filter)
                }).collect();
                let found = stored_query(&store, &filters, viewer.as_ref(), page);
                prop_assert_eq!(found, model.query(&filters, viewer.as_ref()), "{:?}: {:?}", engine, filters);
            }
            let audit = store.reader().audit().unwrap();
            prop_assert_eq!((audit.events, audit.mismatches), (model.stored.len() as u64, 0));
            drop(store);
            let store = EventStore::open(engine, dir.path(), 0).unwrap();
            prop_assert_eq!(store.reader().audit().unwrap(), audit);
        }
    }
}
