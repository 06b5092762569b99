//! The binary as a new user meets it: `hashpit up`, then the wallet's commands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hashpit_tests::process::Process;
use serde_json::Value;

/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn hashpit(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir);
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    hashpit(dir).args(args).output().unwrap()
}

fn json(output: &Output) -> Value {
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    serde_json::from_slice(out).unwrap_or_else(|_| panic!("not JSON: {out:?}\n{err}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_command_turns_work_into_tokens_and_a_second_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let up = ["up", "--port-base", "0", "--exit-after", "ehash", "--json"];
    let first = json(&run(dir.path(), &up));
    assert!(first["ehash"].as_u64().unwrap() > 0, "{first}");
    assert!(first["shares"].as_u64().unwrap() > 0);
    assert!(first["relay_events"].as_u64().unwrap() >= 4, "announcements and messages are stored");

    // Its relay may listen on another port by now.
    let up = ["up", "--port-base", "0", "--exit-after", "backup", "--json"];
    let second = json(&run(dir.path(), &up));
    assert_eq!(second["backed_up"], true);
    assert_eq!(second["unit"], first["unit"]);
    assert!(second["ehash"].as_u64() >= first["ehash"].as_u64());
    assert!(second["shares"].as_u64() >= first["shares"].as_u64());

    // The journal names relays and exchange, which have stayed the same.
    let up = ["up", "--port-base", "0", "--exit-after", "offer", "--json"];
    let third = json(&run(dir.path(), &up));
    assert_eq!(third["exchange"], second["exchange"]);
    assert_eq!(third["offer"]["unit"], first["unit"]);
    assert_ne!(third["offer"]["lots"], "0");

    // It is the offer of every later start; a second wallet takes it with sats that it
    // keeps when the mint has moved to another port, and the two settle.
    let up = ["up", "--port-base", "0", "--exit-after", "trade", "--json"];
    let fourth = json(&run(dir.path(), &up));
    assert_eq!(fourth["unit"], first["unit"]);
    for what in ["unit", "lots", "price_msat"] {
        assert_eq!(fourth["match"][what], third["offer"][what], "{what}");
    }
    let number = |value: &Value| text(value).parse::<u64>().unwrap();
    let msats = number(&fourth["match"]["lots"]) * number(&fourth["match"]["price_msat"]);
    assert_eq!(fourth["trade"]["id"], fourth["match"]["id"]);
    assert_eq!(number(&fourth["trade"]["sats"]), msats.div_ceil(1000));
    assert_eq!(
        fourth["trade"]["stage"],
        serde_json::json!({ "stage": "over", "end": "completed" })
    );
    let fifth = json(&run(dir.path(), &up));
    for what in ["match", "trade", "buyer_sats"] {
        assert_eq!(fifth[what], fourth[what], "{what}");
    }
}

#[test]
fn an_epochs_offer_that_has_ended_is_not_made_again() {
    let dir = tempfile::tempdir().unwrap();
    // Without sats there is nobody who buys it.
    let settings = dir.path().join("hashpit.toml");
    std::fs::write(&settings, "[pool.sats]\nbackend = \"none\"\n").unwrap();
    let settings = settings.to_str().unwrap();
    let config = ["--config", settings, "up", "--port-base", "0"];
    let offered =
        json(&run(dir.path(), &[&config[..], &["--exit-after", "offer", "--json"]].concat()));
    assert_eq!((&offered["match"], &offered["buyer_sats"]), (&Value::Null, &Value::Null));
    let (exchange, id) = (text(&offered["exchange"]), text(&offered["offer"]["id"]));
    let log = dir.path().join("up.log");
    let start = || {
        let mut command = hashpit(dir.path());
        command.arg("-v").args(config);
        Process::start(&mut command, &log).unwrap()
    };
    // The newest of the log's relays is the one that is up.
    let own = |up: &Process, args: &[&str]| {
        let said = up.output();
        let mut relays = said.lines().filter_map(|it| it.trim().strip_prefix("relay      "));
        let at = ["--exchange", exchange, "--relay", relays.next_back().unwrap(), "--json"];
        json(&run(dir.path(), &[&["offer"], args, &at].concat()))
    };
    let mut up = start();
    wait_for("offer", || up.output().contains("offered ehash").then_some(()));
    assert_eq!(own(&up, &["cancel", id])["outcome"], "accepted");
    assert!(up.terminate().unwrap().success(), "{}", up.output());

    let mut up = start();
    wait_for("word", || up.output().contains("not made again").then_some(()));
    let all = own(&up, &["list", "--all"]);
    let all: Vec<_> = all.as_array().unwrap().iter().map(|it| (&it["id"], &it["state"])).collect();
    assert_eq!(all, [(&id.into(), &"canceled".into())]);
    assert!(up.terminate().unwrap().success(), "{}", up.output());
}

#[test]
fn a_token_goes_from_one_wallet_to_another() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = home.path().join("up.log");
    let mut up =
        Process::start(hashpit(home.path()).args(["up", "--port-base", "0"]), &log).unwrap();
    let funded = wait_for("ehash", || {
        let output = run(home.path(), &["wallet", "balance", "--json"]);
        // Until the wallet exists, the command says so.
        let balances: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        balances[0]["amount"].as_u64()
    });
    assert!(funded > 0);

    let made = json(&run(other.path(), &["wallet", "init", "--json"]));
    assert_eq!(made["words"].as_str().unwrap().split(' ').count(), 12);
    let sent = json(&run(home.path(), &["wallet", "send", "1", "--json"]));
    let token = sent["token"].as_str().unwrap();
    assert!(token.starts_with("cashuB"));
    let received = json(&run(other.path(), &["wallet", "receive", token, "--json"]));
    assert_eq!(received["amount"], 1);
    let balance = json(&run(other.path(), &["wallet", "balance", "--json"]));
    assert_eq!(balance[0]["amount"], 1);
    assert_eq!(balance[0]["unit"], received["unit"]);

    let again = complaint(&run(other.path(), &["wallet", "receive", token]));
    assert!(again.contains("Already Spent"), "{again}");
    let greedy = complaint(&run(other.path(), &["wallet", "send", "2"]));
    assert!(greedy.contains("1 available, 2 wanted"), "{greedy}");
    assert!(up.terminate().unwrap().success(), "{}", up.output());

    // What needs no change goes out without the mint; nothing comes in without it.
    let offline = json(&run(other.path(), &["wallet", "send", "1", "--json"]));
    let token = offline["token"].as_str().unwrap();
    let unreachable = complaint(&run(home.path(), &["wallet", "receive", token]));
    assert!(unreachable.contains("does not answer"), "{unreachable}");
}

#[test]
fn mistakes_are_answered_with_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    let said = |args: &[&str], words: &str| {
        let error = complaint(&run(dir.path(), args));
        assert!(error.contains(words), "{args:?}: {error}");
    };
    said(&["wallet", "balance"], "make one with `hashpit wallet init`");
    json(&run(dir.path(), &["wallet", "init", "--json"]));
    said(&["wallet", "init"], "there is a wallet");
    said(&["wallet", "claim"], "--pool <npub> --relay <url>");
    said(&["wallet", "receive", "nonsense"], "no Cashu token");
    said(&["wallet", "send", "1"], "0 available");
    said(&["pool"], "set `relays`");
    said(&["--config", "no-such-file", "relay"], "no-such-file");
    let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    let silent = ["wallet", "claim", "--wait", "1", "--pool", npub, "--relay", "ws://127.0.0.1:9"];
    said(&silent, "has not answered");
}

#[test]
fn the_seed_is_readable_only_by_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    json(&run(dir.path(), &["wallet", "init", "--json"]));
    let seed = dir.path().join("wallet/wallet.seed").metadata().unwrap();
    assert_eq!(seed.permissions().mode() & 0o777, 0o600);
}
