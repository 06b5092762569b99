//! The trader's commands as a user types them, against an exchange that answers as
//! it is told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use hashpit_nips::eh04::{Action, Offer};
use hashpit_nips::eh05::{Fate, Level, Outcome};
use hashpit_nips::{EpochId, HashUnits, Lots, Price, Sats, WorkBits, eh04};
use hashpit_tests::house::RelayHouse;
use hashpit_tests::scripted_exchange::ScriptedExchange;
use nostr_sdk::{Keys, ToBech32};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};

/// For a line of a command that goes on.
const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory with a wallet, and a configuration that names the exchange.
struct Desk {
    dir: PathBuf,
    relay: RelayHouse,
    exchange: ScriptedExchange,
    pool: Keys,
}

impl Desk {
    async fn open(dir: &Path) -> Self {
        let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
        let pool = Keys::generate();
        let epoch = EpochId { pool: pool.public_key(), height: 840_000 };
        let exchange = ScriptedExchange::start(&relay.url, epoch).await.unwrap();
        let npub = exchange.key().to_bech32().unwrap();
        let settings = format!("[trade]\nexchange = \"{npub}\"\nrelays = [\"{}\"]\n", relay.url);
        std::fs::write(dir.join("hashpit.toml"), settings).unwrap();
        let desk = Self { dir: dir.to_owned(), relay, exchange, pool };
        desk.text(&["wallet", "init", "--json"]).await;
        desk
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
        command.arg("--data-dir").arg(&self.dir).args(args);
        command.arg("--config").arg(self.dir.join("hashpit.toml"));
        command
    }

    fn start(&self, args: &[&str]) -> JoinHandle<Output> {
        let mut command = self.command(args);
        spawn_blocking(move || command.output().unwrap())
    }

    /// Starts a command that goes on, and reads its lines.
    fn follow(&self, what: &str) -> Following {
        let mut command = self.command(&[what, "--follow", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        // Ends with the child's output.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|l| sender.send(l)));
        Following { child, lines: receiver }
    }

    async fn text(&self, args: &[&str]) -> String {
        stdout(self.start(args).await.unwrap())
    }

    /// What a command prints with --json, which is one line.
    async fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[args, &["--json"]].concat()).await).unwrap()
    }

    /// Runs a command that sends an event, and has the exchange answer it.
    async fn send(&mut self, args: &[&str], outcome: Outcome) -> (Output, nostr_sdk::Event) {
        let running = self.start(args);
        let event = self.exchange.answer(outcome).await.unwrap();
        (running.await.unwrap(), event)
    }

    async fn close(self) {
        self.exchange.stop().await;
        self.relay.stop().await.unwrap();
    }
}

fn stdout(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_is_made_changed_listed_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(dir.path()).await;
    let make = [
        "offer",
        "make",
        "sell",
        "10",
        "--price",
        "12340",
        "--min",
        "2",
        "--expires",
        "2h",
        "--force",
        "--no-watch",
    ];
    let (made, event) = desk.send(&make, Outcome::Accepted).await;
    let made = stdout(made);
    assert!(made.contains("10 lots") && made.contains("12 340 msats (12.34 sats)"), "{made}");
    let terms = Offer::decode(&event).unwrap().terms.unwrap();
    assert_eq!((terms.lots, terms.min), (Lots::new(10), Lots::new(2)));
    assert!(terms.expires.is_some_and(|at| at > event.created_at + 7_000));

    desk.exchange.fill(&event, Lots::new(3), Price::new(12_340)).await.unwrap();
    let listed = desk.text(&["offer", "list"]).await;
    let [_, row] = listed.lines().collect::<Vec<_>>()[..] else { panic!("{listed}") };
    assert!(row.contains("sell") && row.contains("12.34") && row.contains("partly"), "{row}");
    let offers = desk.json(&["offer", "list"]).await;
    assert_eq!((&offers[0]["filled"], &offers[0]["left"]), (&json!("3"), &json!("7")));
    let id = offers[0]["id"].as_str().unwrap().to_owned();

    let amend = ["offer", "amend", &id[..4], "--price", "12500", "--json"];
    let (amended, event) = desk.send(&amend, Outcome::Accepted).await;
    let amended: Value = serde_json::from_str(&stdout(amended)).unwrap();
    assert_eq!((&amended["id"], &amended["seq"]), (&json!(id), &json!(2)));
    let terms = Offer::decode(&event).unwrap().terms.unwrap();
    assert_eq!((terms.price, terms.lots), (Some(Price::new(12_500)), Lots::new(10)));

    let why = "blocked: the market is halted; wait until it opens".to_owned();
    let (refused, _) = desk.send(&["offer", "cancel", &id], Outcome::Refused(why.clone())).await;
    assert!(stderr(&refused).contains(&why));
    let (canceled, _) = desk.send(&["offer", "cancel", &id], Outcome::Accepted).await;
    assert!(stdout(canceled).contains(&id));
    assert!(desk.text(&["offer", "list"]).await.contains("No offer"));
    let all = desk.json(&["offer", "list", "--all"]).await;
    assert_eq!(all[0]["state"], "canceled");
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_for_all_offers_say_what_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(dir.path()).await;
    for (args, word) in [
        (["offer", "alive", "60"].as_slice(), "unless this is said again"),
        (&["offer", "alive", "off"], "stay"),
        (&["offer", "cancel-all", "--market", "840000"], "canceled"),
    ] {
        let (output, event) = desk.send(args, Outcome::Accepted).await;
        let text = stdout(output);
        assert!(text.contains(word), "{text}");
        let action = eh04::Command::decode(&event).unwrap().action;
        let epoch = desk.exchange.market.epoch;
        assert_eq!(action == Action::CancelAll(Some(epoch)), args[1] == "cancel-all");
    }
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::open(dir.path()).await;
    std::fs::write(dir.path().join("hashpit.toml"), "").unwrap();
    let npub = desk.exchange.key().to_bech32().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["book"], "--exchange"),
        (&["book", "--exchange", &npub], "--relay"),
        (&["offer", "make", "sell", "0"], "1 or more"),
        (&["offer", "make", "hold", "1"], "buy sell"),
        (
            &["offer", "cancel", "beef", "--exchange", &npub, "--relay", desk.relay.url.as_str()],
            "offer list",
        ),
    ];
    for (args, word) in cases {
        let said = stderr(&desk.start(args).await.unwrap());
        assert!(said.contains(word), "{args:?}: {said}");
    }
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_shows_prices_and_what_ehash_is_worth() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::open(dir.path()).await;
    let level = |price, lots| Level(Price::new(price), lots, 1);
    let (bids, asks) = ([level(12_300, 10), level(12_200, 30)], [level(12_400, 20)]);
    desk.exchange.checkpoint(1, &bids, &asks).await.unwrap();
    // 1,000,000 units share 12,500 sats: 12.5 sats for a lot of 1,000.
    let bits = WorkBits::new(32).unwrap();
    let (reward, issued) = (Sats::new(12_500), HashUnits::new(1_000_000));
    desk.exchange.close_epoch(&desk.pool, bits, reward, issued).await.unwrap();

    let text = desk.text(&["book"]).await;
    for word in ["12 300 │ 12 400", "100 msats (0.1 sats), 0.81 %", "12 500.0 msats a lot"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let book = desk.json(&["book"]).await;
    assert_eq!(book["bids"], json!([["12300", "10", 1], ["12200", "30", 1]]));
    assert_eq!(book["fair_msats_a_lot"], json!(12_500.0));
    // The last trade, 12,340 msats for 1,000 units of difficulty 1.
    let hashprice = book["implied_hashprice"].as_f64().unwrap();
    assert!((hashprice / (20_116_567.6 * 0.012_34) - 1.0).abs() < 1e-8, "{hashprice}");

    let market = desk.text(&["market", "show"]).await;
    assert!(market.contains("1 000 ehash") && market.contains("0.25 %"), "{market}");
    assert!(desk.text(&["market"]).await.contains("840000"));
    desk.close().await;
}

/// A command that goes on; killed when dropped.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(PATIENCE).unwrap()).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Either may fail only because it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_and_trades_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(dir.path()).await;
    desk.exchange.checkpoint(1, &[Level(Price::new(12_300), 10, 1)], &[]).await.unwrap();
    let book = desk.follow("book");
    assert_eq!(book.next()["bids"], json!([["12300", "10", 1]]));
    desk.exchange.depth(2, &[Level(Price::new(12_350), 4, 2)]).await.unwrap();
    assert_eq!(book.next()["bids"], json!([["12350", "4", 2], ["12300", "10", 1]]));

    let (_, event) = desk
        .send(
            &["offer", "make", "buy", "5", "--price", "9", "--force", "--no-watch"],
            Outcome::Accepted,
        )
        .await;
    let nine = desk.exchange.fill(&event, Lots::new(1), Price::new(9)).await.unwrap();
    let first = desk.json(&["trades"]).await;
    assert_eq!((&first["msats"], &first["taker_side"]), (&json!("9"), &json!("sell")));
    assert_eq!((&first["fate"], &first["step"]), (&json!("in_flight"), &json!(1)));
    let trades = desk.follow("trades");
    assert_eq!(trades.next()["price"], "9");
    let eight = desk.exchange.fill(&event, Lots::new(1), Price::new(8)).await.unwrap();
    assert_eq!(trades.next()["price"], "8");

    // One is settled, and one fails for want of what the buyer had to do.
    let traders = [Keys::generate().public_key(), event.pubkey];
    desk.exchange.settle(nine, traders, Fate::Completed).await.unwrap();
    let settled = trades.next();
    assert_eq!((&settled["price"], &settled["fate"]), (&json!("9"), &json!("completed")));
    let failed = Fate::Failed { step: 2, due: vec![event.pubkey] };
    desk.exchange.settle(eight, traders, failed).await.unwrap();
    let failed = trades.next();
    let by = event.pubkey.to_bech32().unwrap();
    assert_eq!((&failed["fate"], &failed["step"]), (&json!("failed"), &json!(2)));
    assert_eq!(failed["due"], json!([by]));

    let listed = desk.text(&["trades"]).await;
    let [_, one, other] = listed.lines().collect::<Vec<_>>()[..] else { panic!("{listed}") };
    assert!(one.ends_with("settled") && other.ends_with("failed at step 2: buyer"), "{listed}");
    let tape = desk.json(&["trades", "--settled"]).await;
    assert_eq!(tape["match"], json!(nine.to_hex()));

    let reputation = desk.json(&["trades", "--by", &by]).await;
    assert_eq!((&reputation["matches"], &reputation["failed_at"]), (&json!(2), &json!({"2": 1})));
    assert!(desk.text(&["trades", "--by", &by]).await.contains("  at step 2"));
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_an_offer_meets_is_shown_with_how_it_has_settled() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(dir.path()).await;
    let running =
        desk.start(&["offer", "make", "buy", "2", "--price", "9", "--force", "--no-watch"]);
    let event = desk.exchange.hear().await.unwrap();
    desk.exchange.fill(&event, Lots::new(2), Price::new(9)).await.unwrap();
    desk.exchange.enter(&event, Outcome::Accepted).await.unwrap();
    let made = stdout(running.await.unwrap());
    let words = ": 0 of 1 settled; failed: 0 by it, 0 by others; 1 in flight";
    assert!(made.contains("  with npub1") && made.contains(words), "{made}");
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_are_shown_of_what_was_settled() {
    let dir = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(dir.path()).await;
    assert!(desk.text(&["market", "show"]).await.contains("nothing was settled yet"));
    let make = ["offer", "make", "buy", "9", "--price", "5000", "--force", "--no-watch"];
    let (_, event) = desk.send(&make, Outcome::Accepted).await;
    let traders = [Keys::generate().public_key(), event.pubkey];
    for (price, lots) in [(4_000, 1), (5_000, 2), (4_500, 3)] {
        let of = desk.exchange.fill(&event, Lots::new(lots), Price::new(price)).await.unwrap();
        if price != 4_500 {
            desk.exchange.settle(of, traders, Fate::Completed).await.unwrap();
        }
    }
    let day = desk.text(&["market", "candles", "--every", "1d"]).await;
    assert!(day.contains("every day") && day.contains("may still grow"), "{day}");
    let candle = desk.json(&["market", "candles", "--every", "1d", "--limit", "2"]).await;
    assert_eq!(
        ["high", "low", "lots", "msats"].map(|of| &candle[of]),
        [&json!("5000"), &json!("4000"), &json!("3"), &json!("14000")]
    );
    assert_eq!((&candle["seconds"], &candle["trades"]), (&json!(86_400), &json!(2)));
    let shown = desk.text(&["market", "show"]).await;
    assert!(shown.contains("3 lots for 14 000 msats (14 sats), 2 trades"), "{shown}");
    assert!(shown.contains("24 h high     5 000 msats"), "{shown}");
    let listed = desk.json(&["market"]).await;
    assert_eq!(
        (&listed[0]["day"]["lots"], &listed[0]["day"]["low"]),
        (&json!("3"), &json!("4000"))
    );
    assert!(desk.text(&["market"]).await.contains("lots, 24 h"));
    desk.close().await;
}
