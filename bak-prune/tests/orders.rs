//! Explicit orders: protection, purges, guests that are gone.

use bak_tests::{Kit, Ran, check_store, put_dump};
use serde_json::{Value, json};
use std::fs;

const NOW: &str = "2026-11-20T12:00:00Z";

fn prune<'a>(kit: &Kit, args: impl IntoIterator<Item = &'a str>) -> Ran {
    prune_with(kit, args, "")
}

fn prune_with<'a>(kit: &Kit, args: impl IntoIterator<Item = &'a str>, input: &str) -> Ran {
    kit.run_with("bak-prune", args.into_iter().chain(["--tz", "UTC", "--now", NOW]), input)
}

fn days(kit: &Kit, vm: &str, days: impl IntoIterator<Item = u32>) -> Vec<String> {
    days.into_iter().map(|day| kit.dump(vm, &format!("2026-11-{day:02}T01:00:00Z"), 100)).collect()
}

fn sidecar(kit: &Kit, name: &str) -> Value {
    serde_json::from_slice(&fs::read(kit.path(&format!("store/{name}.dump.json"))).unwrap()).unwrap()
}

#[test]
fn protection_comes_and_goes() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    let ran = prune(&kit, ["store", "--protect", &web[0], "-n"]).clean();
    assert_eq!(
        (ran.records()[0]["planned"].as_bool(), sidecar(&kit, "web/web-20261110T010000Z")["protected"].as_bool()),
        (Some(true), None)
    );
    let ran = prune(&kit, ["store", "--protect", &web[0], "--protect", &web[1]]).clean();
    assert_eq!((ran.column("id"), ran.records()[0]["protected"].as_bool()), (web[..2].to_vec(), Some(true)));
    assert_eq!(prune(&kit, ["store", "--protect", &web[0]]).clean().out, "", "again, it changes nothing");
    assert_eq!(prune(&kit, ["store", "--keep-last", "1"]).clean().out, "");
    prune(&kit, ["store", &web[0], "--force"]).expect(4).says("it is protected");
    prune(&kit, ["store", "--purge", "web", "--yes-purge", "web"]).expect(4).says("it is protected");
    let ran = prune(&kit, ["store", "--unprotect", &web[0], "--unprotect", "web@20200101T000000Z"]).expect(1);
    assert_eq!(ran.column("id"), [web[0].clone()]);
    assert_eq!(ran.records()[0]["prune"]["reasons"][0], "no longer protected: the rules decide");
    assert!(ran.err.contains("web@20200101T000000Z: there is no such dump in "), "{}", ran.err);
    assert_eq!(sidecar(&kit, "web/web-20261110T010000Z").get("protected"), None);
    assert_eq!(prune(&kit, ["store", "--keep-last", "1"]).clean().column("id"), [web[0].clone()]);
    let seen = check_store(&kit.store());
    assert!(seen.whole == web[1..] && seen.strange.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
}

#[test]
fn dumps_of_proxmox_carry_its_own_mark() {
    let kit = Kit::new();
    let stem = "vzdump-qemu-100-2026_11_10-02_00_00";
    let record = json!({"v": 1, "type": "dump", "id": "100@20261110T010000Z", "vm": "100", "kind": "qemu", "driver": "vzdump",
        "started": "2026-11-10T01:00:00Z", "finished": "2026-11-10T01:00:00Z", "stem": stem, "bytes": 4,
        "files": [{"name": format!("{stem}.vma.zst"), "bytes": 4}]});
    kit.write(&format!("store/{stem}.vma.zst"), "data");
    kit.write(&format!("store/{stem}.dump.json"), record.to_string());
    let mark = kit.path(&format!("store/{stem}.vma.zst.protected"));
    prune(&kit, ["store", "--protect", "100@20261110T010000Z"]).clean();
    assert!(mark.exists() && sidecar(&kit, stem)["protected"] == true);
    // Its web interface took the mark away: the sidecar still protects, and the next call sets both right.
    fs::remove_file(&mark).unwrap();
    assert_eq!(prune(&kit, ["store", "--protect", "100@20261110T010000Z"]).clean().records().len(), 1);
    assert!(mark.exists());
    prune(&kit, ["store", "--unprotect", "100@20261110T010000Z"]).clean();
    assert!(!mark.exists() && sidecar(&kit, stem).get("protected").is_none());
    // What Proxmox protected, we can unprotect.
    fs::write(&mark, "").unwrap();
    assert_eq!(prune(&kit, ["store", "--unprotect", "100@20261110T010000Z"]).clean().records().len(), 1);
    assert!(!mark.exists());
}

#[test]
fn a_purge_is_said_twice_and_takes_everything() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11]);
    let other = days(&kit, "web-2", [10]);
    let ahead = kit.dump("web", "2036-01-01T00:00:00Z", 5);
    put_dump(&kit.store(), "web", "2026-11-12T01:00:00Z", 5, json!({"result": "failed"}));
    let all = ["store", "--purge", "web"];
    let ran = prune(&kit, all).expect(4).says("all its 4 dumps would go").says("--yes-purge web");
    assert_eq!(ran.out, "");
    prune(&kit, ["store", "--purge", "web", "--yes-purge", "web-2"]).expect(4).says("name two guests");
    assert_eq!(prune(&kit, all.into_iter().chain(["-n"])).clean().out.lines().count(), 4);
    prune(&kit, ["store", "--purge", "web", "--yes-purge", "web", "--max-remove", "3"]).expect(4);
    prune(&kit, ["--purge", "web", "--yes-purge", "web"]).expect(2).says("wants its stores named");
    prune(&kit, ["store", "--purge", "web", "--keep-last", "1"]).expect(2);
    prune(&kit, ["store", "--purge", "we*", "--yes-purge", "we*"]).expect(1).says("there is no dump of it");
    assert_eq!(check_store(&kit.store()).whole.len(), 5);
    let ran = prune(&kit, ["store", "--purge", "web", "--yes-purge", "web"]).clean();
    assert_eq!(ran.column("id"), [web[0].as_str(), &web[1], "web@20261112T010000Z", &ahead]);
    assert_eq!(check_store(&kit.store()).whole, other);
    // What cannot be read stays, and is said.
    days(&kit, "web", [10]);
    kit.write("store/web/web-20261119T010000Z.dump.json", "{");
    let ran = prune(&kit, ["store", "--purge", "web", "--yes-purge", "web"]).expect(1).says("web-20261119T010000Z");
    assert_eq!(ran.column("id"), [web[0].as_str()]);
}

#[test]
fn the_last_dumps_of_guests_that_are_gone_age_out() {
    let kit = Kit::new();
    for vm in ["gone", "here"] {
        for day in ["2026-07-31", "2026-08-30", "2026-08-31"] {
            kit.dump(vm, &format!("{day}T01:00:00Z"), 10);
        }
    }
    let rules = ["--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "3"];
    let gone = "{\"v\":1,\"type\":\"guest\",\"vm\":\"gone\",\"status\":\"CLEAN\"}\n";
    let run = |more: &[&str], now: &str, input: &str| {
        let args = rules.iter().chain(more).copied().chain(["--tz", "UTC", "--now", now]);
        kit.run_with("bak-prune", args, input)
    };
    // Without a store or a selection: only theirs. On 20 November the days and weeks reach back into October, so the three
    // months are September, August, July.
    let only = ["--store", "store", "--expire-gone", "-"];
    let ran = run(&only, NOW, gone).clean();
    assert_eq!(ran.column("id"), ["gone@20260830T010000Z"]);
    let reasons = ran.records()[0]["prune"]["reasons"].to_string();
    assert!(reasons.contains("its guest is gone") && reasons.contains("monthly 2026-08 is held by"), "{reasons}");
    assert_eq!(run(&only, NOW, gone).clean().out, "");
    assert_eq!(run(&only, "2027-01-01T00:00:00Z", gone).clean().column("id"), ["gone@20260731T010000Z"]);
    assert_eq!(run(&only, "2027-02-01T00:00:00Z", gone).clean().column("id"), ["gone@20260831T010000Z"]);
    assert_eq!(check_store(&kit.store()).whole.len(), 3);
    assert_eq!(run(&only, "2030-01-01T00:00:00Z", "").clean().out, "", "nobody said that anyone is gone");
    let other = "{\"v\":1,\"vm\":\"here\",\"uid\":\"another\"}\n";
    assert_eq!(run(&only, "2030-01-01T00:00:00Z", other).clean().out, "", "a number that was used again");
    // With a store all guests are pruned, and of the others the last ones stay.
    kit.dump("gone", "2026-08-31T01:00:00Z", 10);
    let args = ["store", "--keep-last", "1", "--expire-gone", "-", "--tz", "UTC", "--now", "2030-01-01T00:00:00Z"];
    let ran = kit.run_with("bak-prune", args, gone).clean();
    assert_eq!(ran.column("id"), ["gone@20260831T010000Z", "here@20260731T010000Z", "here@20260830T010000Z"]);
}

#[test]
fn that_all_guests_are_gone_is_not_believed() {
    let kit = Kit::new();
    days(&kit, "web", [1, 2]);
    days(&kit, "db", [1, 2]);
    let all = "{\"v\":1,\"vm\":\"web\"}\n{\"v\":1,\"vm\":\"db\"}\n";
    let args = ["store", "--keep-daily", "1", "--expire-gone", "-"];
    let ran = prune_with(&kit, args, all).expect(4).says("all 2 guests here are said to be gone");
    assert_eq!((ran.out.as_str(), check_store(&kit.store()).whole.len()), ("", 4));
    let planned = "{\"v\":1,\"vm\":\"web\",\"planned\":true}\n";
    prune_with(&kit, args, planned).expect(2).says("dry run");
}
