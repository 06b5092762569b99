//! A damaged database ends in a clear error or a clean recovery, never in a
//! panic.

use std::fs;
use std::path::{Path, PathBuf};

use hashpit_relay::event::json::Checker;
use hashpit_relay::filter::Filter;
use hashpit_relay::store::{Engine, EventStore, Query, StoreError};
use hashpit_relay::visibility::Viewer;
use nostr::{JsonUtil, Keys, Timestamp};

use crate::harness::{ENGINES, NOW, event, tag};

fn fill(engine: Engine, dir: &Path) {
    let keys = Keys::generate();
    let mut store = EventStore::open(engine, dir, 0).unwrap();
    for n in 0..20 {
        let mut transaction = store.begin();
        for m in 0..10 {
            let content = format!("{n} {m} {}", "x".repeat(300));
            let event = event(&keys, 1, NOW, [tag(&["t", "x"])], &content);
            transaction.insert(&Checker::default().check(&event.as_json()).unwrap()).unwrap();
        }
        transaction.commit().unwrap();
    }
}

/// Opens, reads everything and writes.
fn use_store(engine: Engine, dir: &Path) -> Result<u64, StoreError> {
    let mut store = EventStore::open(engine, dir, 0)?;
    let reader = store.reader();
    let now = Timestamp::from_secs(NOW);
    let last = reader.last_sequence();
    let mut query = Query::new(&reader, &[Filter::default()], Viewer::default(), last, now)?;
    while !query.next_page(10_000, 1_000)?.done {}
    let events = reader.audit()?.events;
    let event = event(&Keys::generate(), 1, NOW, [], "after");
    let mut transaction = store.begin();
    transaction.insert(&Checker::default().check(&event.as_json()).unwrap())?;
    transaction.commit()?;
    Ok(events)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

/// Ways to harm a file of `len` bytes, of which `used` hold data.
fn damage(file: &Path, how: &str) {
    let mut bytes = fs::read(file).unwrap();
    // Preallocated files end in zeros; harm what holds data.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match how {
        "empty" => bytes.clear(),
        "cut in half" => bytes.truncate(used / 2),
        "cut at the end" => bytes.truncate(used.saturating_sub(3)),
        "garbage at the start" => bytes.iter_mut().take(64).for_each(|byte| *byte ^= 0x5a),
        "garbage inside" => {
            bytes[used / 2..used].iter_mut().step_by(97).for_each(|byte| *byte ^= 0xff);
        }
        other => unreachable!("{other}"),
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn no_damage_ends_in_a_panic() {
    for engine in ENGINES {
        let whole = tempfile::tempdir().unwrap();
        fill(engine, whole.path());
        // Opened twice, so that there is more than a journal.
        assert_eq!(use_store(engine, whole.path()).unwrap(), 200);
        for file in files(whole.path()) {
            for how in
                ["empty", "cut in half", "cut at the end", "garbage at the start", "garbage inside"]
            {
                let dir = tempfile::tempdir().unwrap();
                copy(whole.path(), dir.path());
                let relative = file.strip_prefix(whole.path()).unwrap();
                damage(&dir.path().join(relative), how);
                match use_store(engine, dir.path()) {
                    Ok(events) => println!("{engine:?} {relative:?} {how}: {events} events"),
                    Err(error) => println!("{engine:?} {relative:?} {how}: {error}"),
                }
            }
        }
    }
}

#[test]
fn an_unknown_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("version"), b"FJL\x09").unwrap();
    let error = EventStore::open(Engine::Fjall, dir.path(), 0).err().unwrap().to_string();
    assert!(error.contains("cannot be opened") && error.contains("empty one"), "{error}");
}
