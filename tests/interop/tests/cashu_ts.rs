//! The mint, by plain HTTP, with a Cashu wallet of another make.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_interop::pair::Pair;
use hashpit_interop::{node, within_patience};
use hashpit_nips::HashUnits;
use hashpit_tests::house::RelayHouse;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn cashu_ts_takes_ehash_and_gives_it_back() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let pair = Pair::start(dir.path(), Pair::config(&relay.url, 20_000.0, 600.0).unwrap())
            .await
            .unwrap();
        pair.mine(10).await.unwrap();
        pair.claim().await.unwrap();
        let ehash = pair.ehash().await.unwrap();
        let sent = ehash.get() / 2;
        assert!(sent >= 3, "too little to share out: {sent}");
        let unit = pair.pool.epoch.id.to_string();
        let token = pair.wallet.send(sent, Some(&unit)).await.unwrap();
        assert_eq!(pair.ehash().await.unwrap(), ehash.checked_sub(HashUnits::new(sent)).unwrap());

        let report =
            node("wallet.mjs", &[&pair.pool.mint_url, &unit, &token.to_string()]).await.unwrap();
        let keyset = pair.pool.epoch.keyset.id.to_string();
        assert_eq!(keyset.len(), 66, "not a version-2 keyset id: {keyset}");
        assert_eq!(report["keysets"], json!([{"id": keyset, "unit": unit, "active": true}]));
        assert_not_by_quote(&report["nuts"], &unit);
        assert_eq!(amount(&report["received"]), sent);
        assert_eq!(amount(&report["paid"]), sent / 3);
        assert_eq!(amount(&report["kept"]), sent - sent / 3);
        assert_eq!(
            report["states"],
            json!({"before": ["UNSPENT"], "sent": ["SPENT"], "held": ["UNSPENT"]})
        );

        let back = pair.wallet.receive(report["token"].as_str().unwrap()).await.unwrap();
        assert_eq!((back.amount, back.unit), (sent, unit));
        assert_eq!(pair.ehash().await.unwrap(), ehash);
        pair.pool.stop().await.unwrap();
        relay.stop().await.unwrap();
    })
    .await;
}

/// Ehash is neither minted (NUT-04) nor melted (NUT-05) by quote.
fn assert_not_by_quote(nuts: &Value, unit: &str) {
    for nut in ["4", "5"] {
        let methods = nuts[nut]["methods"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(methods.iter().all(|method| method["unit"] != unit), "NUT-0{nut}: {methods:?}");
    }
}

fn amount(text: &Value) -> u64 {
    text.as_str().unwrap().parse().unwrap()
}
