//! Who may depend on whom (ARCHITECTURE.md): the roles meet on the wire, never
//! in each other's code.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// What each package may depend on, of ours.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("hashpit-nips", &[]),
    ("hashpit-mailbox", &["hashpit-nips"]),
    ("hashpit-relay", &["hashpit-nips"]),
    ("hashpit-noise", &[]),
    ("hashpit-pool", &["hashpit-nips", "hashpit-mailbox", "hashpit-noise"]),
    ("hashpit-exchange", &["hashpit-nips", "hashpit-mailbox"]),
    ("hashpit-client", &["hashpit-nips", "hashpit-mailbox", "hashpit-noise"]),
];
/// These put the others together, and may depend on all.
const MAKERS: [&str; 3] = ["hashpit", "hashpit-tests", "hashpit-interop"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(metadata["packages"].take()).unwrap()
}

/// Our packages, and which of ours each depends on.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let ours = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter().map(name);
        (name(package), dependencies.filter(|name| name.starts_with("hashpit")).collect())
    };
    packages().iter().map(ours).collect()
}

#[test]
fn every_package_depends_on_what_it_may() {
    let packages = dependencies();
    for (package, dependencies) in &packages {
        if MAKERS.contains(&package.as_str()) {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(name, _)| name == package);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{package} is not in the rule yet"));
        for dependency in dependencies {
            assert!(allowed.contains(&dependency.as_str()), "{package} imports {dependency}");
        }
    }
    assert!(packages.len() >= ALLOWED.len());
}

#[test]
fn there_is_one_binary() {
    let packages = packages();
    let targets = packages.iter().flat_map(|package| package["targets"].as_array().unwrap());
    let is_binary = |target: &&Value| target["kind"][0] == "bin";
    let binaries: Vec<_> = targets.filter(is_binary).map(|target| &target["name"]).collect();
    assert_eq!(binaries, ["hashpit"]);
}
