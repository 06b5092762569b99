//! The wallet's commands as a user types them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const HASHPIT: &str = env!("CARGO_BIN_EXE_hashpit");

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(HASHPIT);
    command.arg("--data-dir").arg(dir).args(args).env_remove("HASHPIT_PASSWORD");
    command
}

fn run(dir: &Path, args: &[&str], password: Option<&str>, stdin: &str) -> Output {
    let mut command = command(dir, args);
    if let Some(password) = password {
        command.env("HASHPIT_PASSWORD", password);
    }
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn an_encrypted_wallet_opens_with_its_password_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made =
        json(&run(dir, &["wallet", "init", "--encrypt", "--json"], Some("correct horse"), ""));
    let words = made["words"].as_str().unwrap();
    let file = std::fs::read_to_string(dir.join("wallet/wallet.seed")).unwrap();
    assert!(file.starts_with("ncryptsec1") && !file.contains(&words[..8]));
    let locked = stderr(&run(dir, &["wallet", "balance"], None, ""));
    assert!(locked.contains("HASHPIT_PASSWORD"), "{locked}");
    let wrong = stderr(&run(dir, &["wallet", "balance"], Some("wrong"), ""));
    assert!(wrong.contains("password is wrong"), "{wrong}");
    assert_eq!(
        json(&run(dir, &["wallet", "balance", "--json"], Some("correct horse"), "")),
        serde_json::json!([])
    );
    let keys = ["wallet", "keys", "--words", "--json"];
    let keys = json(&run(dir, &keys, Some("correct horse"), ""));
    assert_eq!((&keys["words"], &keys["npub"]), (&made["words"], &made["npub"]));
    stdout(&run(dir, &["wallet", "keys", "--decrypt"], Some("correct horse"), ""));
    assert_eq!(json(&run(dir, &["wallet", "balance", "--json"], None, "")), serde_json::json!([]));
}

#[test]
fn restoring_says_what_it_lacks_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let nowhere = stderr(&run(dir, &["wallet", "restore"], None, ""));
    assert!(nowhere.contains("--relay") && nowhere.contains("--mint"), "{nowhere}");
    let restore = ["wallet", "restore", "--mint", "http://127.0.0.1:1/ehash", "--json"];
    let typo = stderr(&run(dir, &restore, None, "leader monkey parrot"));
    assert!(typo.contains("check the words"), "{typo}");
    assert!(!dir.join("wallet/wallet.seed").exists());

    let words = "leader monkey parrot ring guide accident before fence cannon height naive bean";
    let restored = json(&run(dir, &restore, None, words));
    let npub = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu";
    assert_eq!(restored["npub"], npub);
    assert!(restored["mints"]["http://127.0.0.1:1/ehash"]["unverified"].is_string());
    // Again, and a second wallet in the same place.
    json(&run(dir, &restore, None, words));
    let other = stderr(&run(dir, &["wallet", "init"], None, ""));
    assert!(other.contains("--data-dir"), "{other}");
}

#[test]
fn completions_and_codes_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(dir, &["completions", shell], None, "")).contains("hashpit"));
    }
    run(dir, &["wallet", "init"], None, "");
    let keys = stdout(&run(dir, &["wallet", "keys", "--qr"], None, ""));
    assert!(keys.contains("npub1") && keys.contains('█'), "{keys}");
    assert!(!keys.contains("words"));
    let exported = ["wallet", "keys", "--ncryptsec", "--json"];
    let exported = json(&run(dir, &exported, Some("pass"), ""));
    assert!(exported["ncryptsec"].as_str().unwrap().starts_with("ncryptsec1"));
}

#[test]
fn a_remote_signers_uri_is_read_from_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let init = ["wallet", "init", "--signer", "-"];
    let refused = stderr(&run(dir.path(), &init, None, "no-bunker\nmore\n"));
    let by_argument = tempfile::tempdir().unwrap();
    let init = ["wallet", "init", "--signer", "no-bunker"];
    assert_eq!(refused, stderr(&run(by_argument.path(), &init, None, "")));
}
