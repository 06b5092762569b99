use std::path::Path;
use crate::harness::*;
use hashpit_relay::store::{Engine, EventStore};
use hashpit_relay::event::json::Checker;
use nostr::{JsonUtil, Keys};
#[test]
fn full_disk() {
    let Some(dir) = std::env::var_os("FULL_DIR") else { return };
    let engine = if std::env::var("ENG").unwrap() == "sled" { Engine::Sled } else { Engine::Fjall };
    let dir = Path::new(&dir);
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1u8; 8 << 20]).unwrap();
    let db = dir.join("db");
    let keys = Keys::generate();
    let mut store = EventStore::open(engine, &db).unwrap();
    let reader = store.reader();
    let mut acked = Vec::new();
    let mut failures = 0;
    let t = std::time::Instant::now();
    for n in 0..6000 {
        let mut tx = store.begin();
        let mut ids = vec![];
        let r = (|| {
            for m in 0..16 {
                let e = event(&keys, 1, NOW, [tag(&["t", "x"])], &format!("{n} {m} {}", rand::random::<u64>().to_string().repeat(30)));
                let e = Checker::default().check(&e.as_json()).unwrap();
                tx.insert(&e)?; ids.push(e.id());
            }
            tx.commit()
        })();
        match r {
            Ok(()) => { if failures > 0 && failures < 1000 { println!("{:?} recovered after {failures} at {n}", t.elapsed()); failures = 1000; } acked.extend(ids) }
            Err(e) => { failures += 1; if failures < 5 || failures % 50 == 0 { println!("{:?} fail {failures} at batch {n}: {e}", t.elapsed()); }
                if failures == 20 { std::fs::remove_file(&ballast).unwrap(); println!("freed"); }
                if failures > 1200 { println!("giving up"); break } }
        }
        if failures >= 1000 && n % 10 == 0 && acked.len() % 7 == 0 { }
        if failures == 1000 && acked.len() > 0 && n > 5990 { break }
    }
    let lost = acked.iter().filter(|id| !matches!(reader.get(id), Ok(Some(_)))).count();
    println!("acked {} lost {lost} in {:?}", acked.len(), t.elapsed());
    drop(store); drop(reader);
    let reader = EventStore::open(engine, &db).map(|s| s.reader());
    match reader { Ok(reader) => {
        let lost = acked.iter().filter(|id| !matches!(reader.get(id), Ok(Some(_)))).count();
        println!("after reopen lost {lost} audit {:?}", reader.audit());
    } Err(e) => println!("reopen: {e}") }
}
