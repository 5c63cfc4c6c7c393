//! SHA-256 for what was adopted without: added to the record as a whole, once, and only of what was adopted.

mod archives;

use archives::{BEGAN, DATE, NOW, archive, path, scan, written};
use bak_tests::{Kit, bin, check_store, noise, sha256_file, strace};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

fn record(kit: &Kit, id: u32) -> Value {
    let text = fs::read_to_string(path(kit, &format!("vzdump-lxc-{id}-{DATE}.dump.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn id(vm: u32) -> String {
    format!("{vm}@20261120T020002Z")
}

#[test]
fn added_later() {
    let kit = Kit::new();
    let files: Vec<String> = (100..103).map(|id| archive(&kit, "lxc", id, ".tar.zst", 3000)).collect();
    scan(&kit, &[]).clean();
    let before = record(&kit, 101);
    assert_eq!(scan(&kit, &["-n", "--hash"]).clean().column("id").len(), 3);
    let ran = scan(&kit, &["--hash", &id(100)]).clean();
    assert_eq!(ran.column("id"), [id(100)]);
    let first = record(&kit, 100);
    assert_eq!(first["files"][0]["sha256"], sha256_file(&path(&kit, &files[0])));
    assert_eq!(first["adopted"], json!({"at": NOW, "proof": ["log"], "hashed": NOW}));
    assert_eq!(record(&kit, 101), before, "only what was asked for");
    assert_eq!(scan(&kit, &["--hash"]).clean().column("id"), [id(101), id(102)]);
    assert_eq!(scan(&kit, &["--hash"]).clean().out, "", "all have theirs");
    // What is there stays, whatever the file has become.
    fs::write(path(&kit, &files[0]), noise(9, 3000)).unwrap();
    assert_eq!(scan(&kit, &["--hash", &id(100)]).clean().out, "");
    assert_eq!(record(&kit, 100), first);
    assert_eq!(check_store(&kit.store()).unfinished.len(), 0);
}

#[test]
fn only_of_what_was_adopted() {
    let kit = Kit::new();
    let files: Vec<String> = (100..104).map(|id| archive(&kit, "lxc", id, ".tar.zst", 3000)).collect();
    scan(&kit, &[]).clean();
    // Written to since, in its size; cut off; pruned by Proxmox.
    fs::write(path(&kit, &files[0]), noise(9, 3000)).unwrap();
    written(&kit, &files[0], BEGAN + 86_400);
    fs::write(path(&kit, &files[1]), noise(9, 2000)).unwrap();
    fs::remove_file(path(&kit, &files[2])).unwrap();
    let ran = scan(&kit, &["--hash", "--explain"]).expect(1).says("100@20261120T020002Z: cannot be hashed");
    assert!(ran.err.contains("was changed after it was adopted") && ran.err.lines().count() == 2, "{}", ran.err);
    let ids: Vec<Value> = ran.records().into_iter().filter(|one| one["type"] == "dump").collect();
    assert_eq!((ids.len(), &ids[0]["id"]), (1, &json!(id(103))));
    scan(&kit, &["--hash", &id(101)]).expect(1).says("has 2000 bytes instead of 3000");
    scan(&kit, &["--hash", "102"]).expect(1).says("is missing");
    for vm in 100..103 {
        assert_eq!(record(&kit, vm)["files"][0]["sha256"], Value::Null, "{vm}");
    }
}

/// What was sent before it had its sums is the same dump afterwards.
#[test]
fn sent_before() {
    let kit = Kit::new();
    archive(&kit, "lxc", 102, ".tar.zst", 3000);
    kit.write("bak.toml", "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"far\"\n");
    fs::create_dir(kit.path("far")).unwrap();
    kit.sh("bak-sync --config bak.toml --init").clean();
    let now = format!("--config bak.toml --now {NOW}");
    kit.sh(&format!("bak-scan {now} | bak-link {now} - | bak-sync {now} -")).clean();
    assert_eq!(scan(&kit, &["--hash"]).clean().column("id"), [id(102)]);
    assert_eq!(kit.sh(&format!("bak-link {now}; bak-sync {now}; bak-sync {now} --reconcile")).clean().out, "");
    let listed = kit.sh("bak-list --config bak.toml").clean().records();
    assert!(listed[0]["sent"]["box"]["at"].is_string() && listed[0]["files"][0]["sha256"].is_string(), "{listed:?}");
    assert_eq!(check_store(&kit.path("far")).whole, [id(102)]);
}

#[test]
fn killed_while_they_are_added() {
    let scene = || {
        let kit = Kit::new_in(Path::new("/dev/shm"));
        let file = archive(&kit, "lxc", 100, ".tar.zst", 300);
        scan(&kit, &[]).clean();
        let store = kit.store().into_os_string();
        let argv: Vec<OsString> =
            [bin("bak-scan").into(), "--store".into(), store, "--hash".into(), "--now".into(), NOW.into()].into();
        let sum = sha256_file(&path(&kit, &file));
        (kit, argv, sum)
    };
    let (kit, argv, _) = scene();
    let calls = strace::count(&kit, &argv, &kit.path("trace"));
    assert!(calls["fsync"] >= 2 && calls.contains_key("renameat"), "{calls:?}");
    for name in ["fsync", "renameat", "openat", "unlinkat", "write", "mkdirat"] {
        for when in 1..=*calls.get(name).unwrap_or(&0) {
            let (kit, argv, sum) = scene();
            strace::inject(&kit, &argv, name, "signal=KILL", when);
            let point = format!("killed at {name} {when}");
            let found = &record(&kit, 100)["files"][0]["sha256"];
            assert!(found.is_null() || *found == json!(sum), "{point}: {found}");
            scan(&kit, &["--hash"]).clean();
            assert_eq!(record(&kit, 100)["files"][0]["sha256"], json!(sum), "{point}");
            assert_eq!(check_store(&kit.store()).whole.len(), 1, "{point}");
        }
    }
}
