//! bak-link as its users run it, on real stores and outboxes.

mod common;

use bak_tests::{Kit, Ran, check_store, put_dump};
use common::{Link, NOW, day};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The history says that this dump of the store was sent; the outbox needn't have held it.
fn sent(kit: &Kit, vm: &str, started: &str, at: &str) {
    let note = json!({"at": at, "wire_out": 1, "wire_in": 1, "seconds": 1, "passes": 1});
    put_dump(&kit.outbox().join(".bak/sent"), vm, started, 10, json!({"sent": {"box": note}}));
}

/// By id: decision and reason at the destination `box`.
fn decisions(ran: &Ran) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |r: &Value| (text(&r["id"]), text(&r["link"]["box"]["decision"]), text(&r["link"]["box"]["why"]));
    ran.records().iter().map(one).collect()
}

#[test]
fn the_newest_dump_of_each_guest_is_linked_and_a_second_run_does_nothing() {
    let kit = Kit::new();
    kit.dump("web", &day(18), 100);
    let web = kit.dump("web", &day(19), 100);
    let db = kit.dump("db", &day(19), 50);
    let ran = kit.link(&[]).clean();
    assert_eq!(ran.column("id"), [db.as_str(), web.as_str()]);
    assert_eq!(kit.pending(), [db.as_str(), web.as_str()]);
    let file = "web/web-20261119T020000Z.raw";
    assert_eq!(ino(&kit.store().join(file)), ino(&kit.outbox().join(file)), "a hard link, no copy");
    let sidecar = "web/web-20261119T020000Z.dump.json";
    assert_ne!(ino(&kit.store().join(sidecar)), ino(&kit.outbox().join(sidecar)));
    let own: Value = serde_json::from_slice(&fs::read(kit.outbox().join(sidecar)).unwrap()).unwrap();
    let expected = json!({"decision": "linked", "why": "never sent, 2 of 2 due", "at": NOW, "rank": 2, "cost": 100,
        "size": 100});
    assert_eq!(own["link"]["box"], expected);
    assert_eq!(ran.records()[1]["link"]["box"], expected);
    let again = kit.link(&[]).clean();
    assert_eq!(again.out, "");
    assert_eq!(check_store(&kit.store()).whole.len(), 3, "the store is as it was");
}

#[test]
fn companions_go_along() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    for name in ["web-20261119T020000Z.log", "web-20261119T020000Z.raw.notes"] {
        kit.write(&format!("store/web/{name}"), "x");
    }
    kit.link(&[]).clean();
    assert!(kit.outbox().join("web/web-20261119T020000Z.log").is_file());
    assert!(kit.outbox().join("web/web-20261119T020000Z.raw.notes").is_file());
}

#[test]
fn a_dump_flat_in_the_store_lies_by_guest_in_the_outbox() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    for name in ["web-20261119T020000Z.raw", "web-20261119T020000Z.dump.json"] {
        fs::rename(kit.store().join("web").join(name), kit.store().join(name)).unwrap();
    }
    kit.link(&[]).clean();
    assert!(kit.outbox().join("web/web-20261119T020000Z.raw").is_file());
}

#[test]
fn explain_gives_every_dump_a_reason() {
    let kit = Kit::new();
    kit.dump("big", &day(19), 5000);
    kit.dump("db", &day(17), 700);
    kit.dump("db", &day(19), 700);
    kit.dump("fresh", &day(20), 5);
    kit.dump("late", "2026-11-23T12:00:00Z", 5);
    kit.dump("lost", &day(19), 5);
    fs::remove_file(kit.store().join("lost/lost-20261119T020000Z.raw")).unwrap();
    kit.dump("scratch-1", &day(19), 5);
    kit.dump("web", &day(19), 400);
    sent(&kit, "big", &day(18), &day(18));
    sent(&kit, "db", &day(15), &day(15));
    sent(&kit, "fresh", &day(19), &day(19));
    let config = kit.write(
        "bak.toml",
        "[[guest]]\nmatch = [\"scratch-*\"]\nsync = []\n[[guest]]\nmatch = [\"fresh\"]\nstale_after = \"2d\"\n",
    );
    let args = ["--explain", "--limit", "1000", "--config", config.to_str().unwrap()];
    let ran = kit.link(&args).clean();
    let expected = [
        ("web@20261119T020000Z", "linked", "never sent, 1 of 3 due"),
        (
            "db@20261119T020000Z",
            "over limit",
            "over the limit of 1000 B a pass by 100 B; in full, as it is of another format or size than what was sent",
        ),
        (
            "big@20261119T020000Z",
            "over limit",
            "over the limit of 1000 B a pass by 4.3 KiB; larger than any pass, it goes when it is first and nothing is pending; \
             in full, as it is of another format or size than what was sent",
        ),
        ("db@20261117T020000Z", "superseded", "superseded by db@20261119T020000Z"),
        ("fresh@20261120T020000Z", "not due", "not due: 1 d of 2 d"),
        ("late@20261123T120000Z", "future", "dated 3 d in the future: was a clock wrong?"),
        ("lost@20261119T020000Z", "not good", "its file lost-20261119T020000Z.raw is missing"),
        (
            "scratch-1@20261119T020000Z",
            "not synced",
            "this guest does not go to this destination (configuration or --list)",
        ),
    ];
    for ((id, decision, why), expected) in decisions(&ran).iter().zip(expected) {
        // 4.3 KiB is spelled as the units are; all else is judged by hand.
        assert_eq!((id.as_str(), decision.as_str()), (expected.0, expected.1));
        assert_eq!(why, expected.2);
    }
    assert_eq!(ran.records().len(), expected.len());
    assert_eq!(kit.pending(), ["web@20261119T020000Z"]);
}

#[test]
fn a_dry_run_prints_the_same_plan_and_changes_nothing() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 100);
    kit.dump("db", &day(19), 2000);
    let args = ["--limit", "1000", "--explain"];
    let dry = kit.link(&[&args[..], &["-n"]].concat()).clean();
    assert!(!kit.outbox().exists());
    assert!(dry.records().iter().all(|record| record["planned"] == true));
    let wet = kit.link(&args).clean();
    assert_eq!(decisions(&dry), decisions(&wet));
    let again = kit.link(&[&args[..], &["-n"]].concat()).clean();
    assert_eq!(decisions(&again)[1].1, "pending");
}

#[test]
fn only_restricts_by_name_by_id_and_by_standard_input() {
    let fresh = || {
        let kit = Kit::new();
        for vm in ["db-1", "db-2", "web"] {
            kit.dump(vm, &day(19), 10);
        }
        kit
    };
    let linked = |args: &[&str]| fresh().link(args).clean().column("vm");
    assert_eq!(linked(&["--only", "db-*"]), ["db-1", "db-2"]);
    assert_eq!(linked(&["--only", "web", "--only", "db-1@20261119T020000Z"]), ["db-1", "web"]);
    assert_eq!(linked(&["--kind", "lxc"]), [""; 0]);
    let kit = fresh();
    let input = fs::read_to_string(kit.store().join("db-2/db-2-20261119T020000Z.dump.json")).unwrap();
    assert_eq!(kit.link_with(&["--only", "-"], &input).clean().column("vm"), ["db-2"]);
    let ran = kit.link(&["--only", "wbe", "--only", "db-1"]).expect(1).says("bak-link: wbe: no dump is called so");
    assert_eq!(ran.column("vm"), ["db-1"]);
    let ran = kit.link(&["--only", "db-*", "--explain"]).clean();
    assert_eq!(decisions(&ran)[2].1, "not selected");
}

#[test]
fn force_links_what_is_not_due() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    sent(&kit, "web", &day(18), &day(18));
    let config = kit.write("bak.toml", "stale_after = \"7d\"\n");
    let config = config.to_str().unwrap();
    assert_eq!(kit.link(&["--config", config]).clean().out, "");
    let ran = kit.link(&["--config", config, "--force"]).clean();
    assert_eq!(decisions(&ran)[0].2, "forced; not due: 1 d of 7 d; in full, as no change was carried yet");
    assert_eq!(kit.link(&["--config", config, "--force"]).clean().out, "", "pending: never twice");
}

#[test]
fn a_dash_passes_records_on_and_the_plan_sees_the_whole_disk() {
    let kit = Kit::new();
    let web = kit.dump("web", &day(19), 10);
    let db = kit.dump("db", &day(19), 10);
    let guest = r#"{"v":1,"type":"guest","vm":"off","kind":"qemu","driver":"image","x-mine":1}"#;
    let mut record: Value =
        serde_json::from_slice(&fs::read(kit.store().join("web/web-20261119T020000Z.dump.json")).unwrap()).unwrap();
    // What is known comes from disk, whatever the pipe says; what is not known stays.
    record["name"] = json!("a lie");
    record["x-ticket"] = json!(17);
    record["dir"] = json!("/etc");
    let ran = kit.link_with(&["-"], &format!("{guest}\n{record}\n")).clean();
    let records = ran.records();
    assert_eq!(ran.out.lines().next(), Some(guest));
    assert_eq!(ran.column("id"), ["", web.as_str(), db.as_str()]);
    assert_eq!(records[1]["link"]["box"]["decision"], "linked");
    assert_eq!((&records[1]["x-ticket"], records[1].get("name")), (&json!(17), None));
    assert_eq!(records[1]["dir"].as_str().unwrap(), kit.store().join("web").to_str().unwrap());
    let again = kit.link_with(&["-"], &format!("{record}\n")).clean();
    assert_eq!(decisions(&again)[0].1, "pending");
}

#[test]
fn a_chain_with_jq_between_the_stages() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    kit.dump("db", &day(19), 10);
    let link = format!("bak-link --store store --now {NOW}");
    let line =
        format!("cat store/*/*.dump.json | jq -c . | {link} --dest a=/a - | jq -c . | {link} --dest b=/b - | jq -c .");
    let ran = kit.sh(&line).clean();
    let records = ran.records();
    assert_eq!(records.len(), 2);
    for record in records {
        assert_eq!(
            (&record["link"]["a"]["decision"], &record["link"]["b"]["decision"]),
            (&json!("linked"), &json!("linked"))
        );
    }
}

#[test]
fn destinations_are_independent() {
    let kit = Kit::new();
    let web = kit.dump("web", &day(19), 10);
    let config = kit.write(
        "bak.toml",
        "[[dest]]\nname = \"a\"\n[[dest]]\nname = \"b\"\noutbox = \"/proc/no\"\n[[dest]]\nname = \"c\"\n\
         [[guest]]\nmatch = [\"web\"]\nsync = [\"a\", \"b\"]\n",
    );
    let args = ["--store", "store", "--now", NOW, "--config", config.to_str().unwrap()];
    let ran = kit.run("bak-link", args).expect(4).says("bak-link: b: ");
    assert_eq!(ran.records()[0]["link"]["a"]["decision"], "linked");
    assert_eq!(check_store(&kit.store().join(".outbox-a")).whole, [web]);
    assert!(check_store(&kit.store().join(".outbox-c")).whole.is_empty());
}

#[test]
fn limits_are_read_from_the_ledger_in_the_calendar_of_the_zone() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 400);
    // 23:30 in UTC of the day before is half past midnight in Berlin: today there.
    let attempt = |id: &str, at: &str, out: u64| {
        json!({"type": "attempt", "id": id, "at": at, "dest": "box", "wire_out": out, "wire_in": 100, "seconds": 1,
            "result": "cut"})
    };
    let lines =
        format!("{}\n{}\n", attempt("a", "2026-11-19T23:30:00Z", 400), attempt("b", "2026-11-18T10:00:00Z", 500));
    kit.write("store/.outbox-box/.bak/ledger/n1.jsonl", &lines);
    let left = |args: &[&str]| {
        let ran = kit.link(&[&["-n", "--explain"], args].concat()).clean();
        let note = ran.records()[0]["link"]["box"].clone();
        (note["decision"].as_str().unwrap().to_owned(), note["remaining"].as_i64())
    };
    let decided = |decision: &str, remaining| (decision.to_owned(), Some(remaining));
    assert_eq!(left(&["--limit", "800/day", "--tz", "UTC"]), decided("linked", 400));
    assert_eq!(left(&["--limit", "800/day", "--tz", "Europe/Berlin"]), decided("over limit", 300));
    assert_eq!(left(&["--limit", "1500/week", "--tz", "UTC"]), decided("linked", 0));
    assert_eq!(left(&["--limit", "1499/week", "--limit", "10K", "--tz", "UTC"]), decided("over limit", 399));
    assert_eq!(left(&["--limit", "none"]), ("linked".to_owned(), None));
    // What a crash cut off is survived; what is damaged is said.
    kit.write("store/.outbox-box/.bak/ledger/n2.jsonl", "{\"type\":\"att");
    kit.link(&["-n"]).clean();
    kit.write("store/.outbox-box/.bak/ledger/n3.jsonl", "{\"type\":\"attempt\"}\n");
    kit.link(&[]).expect(1).says("bak-link: ledger: cannot read ");
    assert_eq!(kit.pending().len(), 1);
}

#[test]
fn oversized_first_or_never_and_with_an_overdraft() {
    let decided = |args: &[&str]| {
        let kit = Kit::new();
        kit.dump("big", &day(10), 5000);
        sent(&kit, "big", &day(1), &day(1));
        kit.dump("web", &day(19), 500);
        sent(&kit, "web", &day(18), &day(18));
        let ran = kit.link(&[&["--limit", "1000", "--explain"], args].concat()).clean();
        let decision = |r: &Value| r["link"]["box"]["decision"].as_str().unwrap().to_owned();
        ran.records().iter().map(decision).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(decided(&[]), "linked, linked");
    assert_eq!(decided(&["--overdraft"]), "linked, over limit");
    assert_eq!(decided(&["--oversize", "never"]), "linked, over limit");
}

#[test]
fn the_configuration_as_it_holds_for_each_guest() {
    let kit = Kit::new();
    kit.dump("db-1", &day(18), 10);
    kit.dump("db-1", &day(19), 10);
    let config = kit.write("bak.toml", "[[dest]]\nname = \"box\"\n[[guest]]\nmatch = [\"db-*\"]\npriority = 7\n");
    let ran = kit.link(&["--check-config", "--config", config.to_str().unwrap()]).clean();
    assert_eq!(ran.records().len(), 1);
    assert_eq!((&ran.records()[0]["vm"], &ran.records()[0]["priority"]), (&json!("db-1"), &json!(7)));
    assert!(!kit.outbox().exists());
}
