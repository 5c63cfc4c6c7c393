//! What bak-link plans by: what earlier dumps cost, what waits and may be replaced, lists of guests, limits.

mod common;

use bak_tests::{Kit, Ran, check_store, put_dump};
use common::{Link, NOW, day};
use serde_json::{Value, json};
use std::fs;

/// The history says that a dump of this size was sent for so many bytes, both ways.
fn carried(kit: &Kit, vm: &str, on: u32, bytes: usize, wire: u64) {
    let note = json!({"at": day(on), "wire_out": wire - 1, "wire_in": 1, "seconds": 1, "passes": 1});
    put_dump(&kit.outbox().join(".bak/sent"), vm, &day(on), bytes, json!({"sent": {"box": note}}));
}

/// What the destination `dest` says of the dump of `vm` that was made on `on`.
fn note(ran: &Ran, dest: &str, vm: &str, on: u32) -> Value {
    let id = format!("{vm}@{}", bak_tests::compact(&day(on)));
    let records = ran.records();
    let record = records.iter().find(|record| record["id"] == id.as_str()).unwrap_or_else(|| panic!("{id}: {ran:?}"));
    record["link"][dest].clone()
}

/// Sets fields of the note of a dump that waits, as bak-sync would.
fn annotate(kit: &Kit, vm: &str, on: u32, change: Value) {
    let path = kit.outbox().join(format!("{vm}/{vm}-{}.dump.json", bak_tests::compact(&day(on))));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in change.as_object().unwrap() {
        record["link"]["box"][key] = value.clone();
    }
    fs::write(&path, format!("{record}\n")).unwrap();
}

#[test]
fn a_dump_costs_what_the_dearest_of_the_last_changes_did_and_a_quarter() {
    let kit = Kit::new();
    carried(&kit, "web", 16, 4000, 4100);
    carried(&kit, "web", 17, 4000, 400);
    carried(&kit, "web", 18, 4000, 100);
    kit.dump("web", &day(19), 4000);
    kit.dump("db", &day(19), 900);
    let ran = kit.link(&["-n", "--limit", "1500"]).clean();
    let web = note(&ran, "box", "web", 19);
    assert_eq!((&web["cost"], &web["size"]), (&json!(500), &json!(4000)));
    assert!(
        web["why"].as_str().unwrap().ends_with("; costs 500 B, judged by the dearest of the last 2 changes"),
        "{web}"
    );
    assert_eq!(note(&ran, "box", "db", 19)["remaining"], 600);
    // By its size it is larger than a pass.
    let ran = kit.link(&["-n", "--limit", "1500", "--cost", "size", "--explain"]).clean();
    let web = note(&ran, "box", "web", 19);
    assert_eq!((&web["cost"], &web["decision"]), (&json!(4000), &json!("over limit")));
}

#[test]
fn what_was_begun_costs_what_it_still_needs_and_what_failed_counts_in_its_day() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 800);
    kit.link(&["--limit", "1000"]).clean();
    annotate(&kit, "web", 19, json!({"tries": 1}));
    kit.write(
        "store/.outbox-box/.bak/ledger/n1.jsonl",
        json!({"type": "attempt", "id": "a", "at": "2026-11-20T09:00:00Z", "dest": "box", "dump": "web@20261119T020000Z",
            "wire_out": 290, "wire_in": 10, "seconds": 1, "result": "failed"})
        .to_string()
            + "\n",
    );
    kit.dump("db", &day(19), 500);
    let ran = kit.link(&["-n", "--explain", "--limit", "1000"]).clean();
    let web = note(&ran, "box", "web", 19);
    let why = "is being sent: 500 B of 800 B are left; attempts so far: 1";
    assert_eq!((&web["cost"], &web["size"], &web["why"]), (&json!(500), &json!(800), &json!(why)));
    assert_eq!(note(&ran, "box", "db", 19)["decision"], "linked");
    let ran = kit.link(&["-n", "--explain", "--limit", "1299/day"]).clean();
    assert_eq!(note(&ran, "box", "db", 19)["why"], "over the limit of 1.3 KiB a day by 1 B");
}

/// Nobody would ever know else: limits of periods don't yield.
#[test]
fn what_no_day_can_carry_is_a_failure_that_only_a_person_can_mend() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 1500);
    kit.dump("db", &day(19), 100);
    let ran = kit.link(&["--limit", "500", "--limit", "1000/day"]).expect(1);
    assert_eq!(kit.pending(), ["db@20261119T020000Z"]);
    ran.says("web@20261119T020000Z: over the limit of 1000 B a day by ")
        .says("larger than the whole limit, so it stays here");
    kit.link(&["--limit", "1700/day"]).clean();
    assert_eq!(kit.pending().len(), 2);
}

#[test]
fn a_newer_dump_replaces_one_that_was_not_begun_and_takes_its_place() {
    let kit = Kit::new();
    kit.dump("web", &day(18), 300);
    kit.dump("db", &day(18), 300);
    kit.link(&["--limit", "1000", "--now", "2026-11-19T00:00:00Z"]).clean();
    let old = note(&kit.link(&["--explain", "-n", "--now", "2026-11-19T00:00:00Z"]).clean(), "box", "web", 18);
    assert_eq!(old["decision"], "pending");
    kit.dump("web", &day(19), 600);
    // On its own day a dry run says what a real one does, and does nothing.
    let dry = kit.link(&["-n", "--explain", "--limit", "1000"]).clean();
    assert_eq!(kit.pending(), ["db@20261118T020000Z", "web@20261118T020000Z"]);
    let ran = kit.link(&["--explain", "--limit", "1000"]).clean();
    for ran in [&dry, &ran] {
        let new = note(ran, "box", "web", 19);
        let why = "never sent, 1 of 1 due; replaces web@20261118T020000Z, of which nothing was sent";
        assert_eq!((&new["decision"], &new["why"]), (&json!("linked"), &json!(why)));
        // bak-sync goes by time and rank: they are those of the older one. 300 for db, 600 for web.
        assert_eq!((&new["at"], &new["rank"]), (&json!("2026-11-19T00:00:00Z"), &json!(2)));
        assert_eq!(new["remaining"], 100);
        let old = note(ran, "box", "web", 18);
        assert_eq!(old["decision"], "replaced");
        assert_eq!(old["why"], "replaced by web@20261119T020000Z before anything of it was sent");
    }
    assert_eq!(kit.pending(), ["db@20261118T020000Z", "web@20261119T020000Z"]);
    assert_eq!(check_store(&kit.store()).whole.len(), 3, "the store keeps what was replaced");
    assert_eq!(kit.link(&["--limit", "1000"]).clean().out, "");
}

#[test]
fn what_does_not_fit_or_was_begun_is_not_replaced() {
    let kit = Kit::new();
    kit.dump("web", &day(18), 300);
    kit.dump("db", &day(18), 300);
    kit.link(&["--limit", "1000"]).clean();
    kit.dump("web", &day(19), 701);
    let web = note(&kit.link(&["--limit", "1000", "--explain"]).clean(), "box", "web", 19);
    assert_eq!(web["why"], "over the limit of 1000 B a pass by 1 B; web@20261118T020000Z stays pending");
    assert_eq!(kit.pending(), ["db@20261118T020000Z", "web@20261118T020000Z"]);
    annotate(&kit, "db", 18, json!({"tries": 1}));
    kit.dump("db", &day(19), 10);
    let db = note(&kit.link(&["--limit", "1000", "--explain"]).clean(), "box", "db", 19);
    assert_eq!(db["decision"], "pending");
    assert_eq!(db["why"], "waits until db@20261118T020000Z, of which something was sent, has arrived");
    assert_eq!(kit.pending(), ["db@20261118T020000Z", "web@20261118T020000Z"]);
}

#[test]
fn a_replacement_that_cannot_be_linked_leaves_the_older_one() {
    let kit = Kit::new();
    kit.dump("web", &day(18), 300);
    kit.link(&[]).clean();
    kit.dump("web", &day(19), 300);
    kit.write("store/.outbox-box/web/web-20261119T020000Z.raw", "somebody's");
    let ran = kit.link(&["--explain"]).expect(1).says("is there already");
    assert_eq!(note(&ran, "box", "web", 18)["decision"], "pending");
    assert_eq!(check_store(&kit.outbox()).whole, ["web@20261118T020000Z"]);
}

#[test]
fn a_replacement_that_a_crash_cut_short_is_finished() {
    let kit = Kit::new();
    kit.dump("web", &day(18), 300);
    kit.link(&[]).clean();
    let older = kit.path("older");
    kit.sh(&format!("cp -al '{}/web' '{}'", kit.outbox().display(), older.display())).clean();
    kit.dump("web", &day(19), 300);
    kit.link(&[]).clean();
    // Both are there, as after a crash between the two steps.
    kit.sh(&format!("cp -al '{}'/* '{}/web/'", older.display(), kit.outbox().display())).clean();
    assert_eq!(kit.pending().len(), 2);
    kit.link(&[]).clean();
    assert_eq!(kit.pending(), ["web@20261119T020000Z"]);
}

#[test]
fn the_old_list_says_who_is_synced() {
    let kit = Kit::new();
    for vm in ["web", "db", "mail"] {
        kit.dump(vm, &day(19), 10);
    }
    let config = kit.write("bak.toml", "[[dest]]\nname = \"box\"\n[[guest]]\nmatch = [\"web\"]\nsync = []\n");
    let config = ["--config", config.to_str().unwrap()];
    kit.write("vms", "\u{feff}# who goes\n\nweb sync\ndb nosync\n");
    let ran = kit.link(&[&config[..], &["-n", "--explain", "--list", "vms"]].concat()).clean();
    let decision = |vm: &str| note(&ran, "box", vm, 19)["decision"].as_str().unwrap().to_owned();
    assert_eq!(["web", "db", "mail"].map(decision), ["linked", "not synced", "not synced"]);
    let ran = kit.link(&[&config[..], &["--check-config", "--list", "vms"]].concat()).clean();
    assert_eq!(ran.records().iter().filter(|record| record["sync"] == json!(["box"])).count(), 1);

    // What was sent long ago is no guest any more.
    carried(&kit, "lost", 1, 10, 10);
    kit.write("vms", "web sync\ngone sync\nlost nosync\n");
    let ran = kit.link(&["--list", "vms"]).expect(1);
    assert_eq!(ran.column("vm"), ["web"]);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(
        lines,
        [
            "bak-link: gone: vms:2 names it, and there is no dump of such a guest",
            "bak-link: lost: vms:3 names it, and there is no dump of such a guest",
            "bak-link: 2 failed, 1 linked",
        ]
    );
    for (text, says) in
        [("web sync\nweb\n", "vms:2: `web` is not `NAME sync` or `NAME nosync`"), ("a sync\na nosync", "vms:2: ")]
    {
        kit.write("vms", text);
        kit.link(&["--list", "vms"]).expect(2).says(says);
    }
    kit.link(&["--list", "nowhere"]).expect(2).says("cannot read the list nowhere: ");
}

#[test]
fn a_billing_day_that_a_month_lacks_is_its_last() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 400);
    let line = |id: &str, at: &str| {
        json!({"type": "attempt", "id": id, "at": at, "dest": "box", "wire_out": 300, "wire_in": 0, "seconds": 1, "result": "cut"})
            .to_string() + "\n"
    };
    let ledger = line("a", "2026-11-29T12:00:00Z") + &line("b", "2026-11-30T12:00:00Z");
    kit.write("store/.outbox-box/.bak/ledger/n1.jsonl", ledger);
    let remaining = |now: &str| {
        let ran = kit.link(&["-n", "--explain", "--limit", "10K/month@31", "--tz", "UTC", "--now", now]).clean();
        note(&ran, "box", "web", 19)["remaining"].as_i64().unwrap()
    };
    assert_eq!(remaining("2026-11-29T23:00:00Z"), 10_240 - 400 - 600);
    assert_eq!(remaining("2026-11-30T23:00:00Z"), 10_240 - 400 - 300);
    assert_eq!(remaining("2026-12-30T23:00:00Z"), 10_240 - 400 - 300);
    assert_eq!(remaining("2026-12-31T23:00:00Z"), 10_240 - 400);
}

#[test]
fn each_guest_by_its_own_rules_and_each_destination_by_its_own_limits_and_history() {
    let kit = Kit::new();
    for vm in ["db-1", "scratch-1", "slow", "web"] {
        kit.dump(vm, &day(19), 400);
    }
    let config = kit.write(
        "bak.toml",
        "stale_after = \"1h\"\n[[dest]]\nname = \"box\"\nlimit = \"900\"\n[[dest]]\nname = \"other\"\nlimit = [\"5K\", \"600/day\"]\n\
         [[guest]]\nmatch = [\"db-*\"]\npriority = 10\n[[guest]]\nmatch = [\"scratch-*\"]\nsync = [\"other\"]\npriority = -1\n\
         [[guest]]\nmatch = [\"slow\"]\nstale_after = \"7d\"\n",
    );
    // To box, slow was sent the day before and web two days before; of the other destination nobody knows anything.
    carried(&kit, "slow", 18, 400, 400);
    carried(&kit, "web", 17, 400, 400);
    let args = ["--store", "store", "--now", NOW, "--explain", "--config", config.to_str().unwrap()];
    let ran = kit.run("bak-link", args).clean();
    let of = |dest: &str| {
        ["db-1", "scratch-1", "slow", "web"].map(|vm| note(&ran, dest, vm, 19)["decision"].as_str().unwrap().to_owned())
    };
    assert_eq!(of("box"), ["linked", "not synced", "not due", "linked"]);
    assert_eq!(of("other"), ["linked", "over limit", "over limit", "over limit"]);
    let why = |dest: &str, vm: &str| note(&ran, dest, vm, 19)["why"].as_str().unwrap().to_owned();
    assert_eq!(why("box", "db-1"), "never sent, 1 of 2 due; priority 10");
    assert_eq!(why("box", "slow"), "not due: 1 d of 7 d");
    assert_eq!(why("other", "web"), "over the limit of 600 B a day by 200 B");
    assert_eq!(check_store(&kit.store().join(".outbox-other")).whole, ["db-1@20261119T020000Z"]);
}

/// What a terminal of so many columns shows, line by line.
fn shown(kit: &Kit, columns: u32, args: &str) -> Vec<String> {
    let line = format!(
        "SHELL=/bin/sh script -qec 'stty cols {columns} && bak-link --store store --dest box=/far --now {NOW} {args}' /dev/null"
    );
    let ran = kit.sh(&line).clean();
    ran.out.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn a_terminal_shows_whole_ids_with_the_reasons_broken_and_what_is_left_of_each_limit() {
    let kit = Kit::new();
    for (vm, bytes) in [("web", 1024), ("large-one", 9000)] {
        kit.dump(vm, &day(18), bytes);
        carried(&kit, vm, 17, bytes, bytes as u64);
    }
    kit.link(&["--only", "web"]).clean();
    let args = "-n --explain --limit 2K --limit 100K/day";
    for (columns, headings) in [(80, "SIZE DECISION WHY"), (130, "SIZE COST STALE BY DECISION WHY")] {
        let lines = shown(&kit, columns, args);
        assert!(lines.iter().all(|line| line.chars().count() <= columns as usize), "{lines:#?}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&lines[0]), format!("DUMP {headings}"));
        for (id, decision) in [("web@20261118T020000Z", "pending"), ("large-one@20261118T020000Z", "over limit")] {
            assert!(lines.iter().any(|line| line.contains(id) && line.contains(decision)), "{id}: {lines:#?}");
        }
        let limits: Vec<String> = lines[lines.len() - 3..].iter().map(|line| words(line)).collect();
        assert_eq!(
            limits,
            [
                "DESTINATION LIMIT USED PENDING LINKED LEFT",
                "box 2 KiB a pass 0 B 1 KiB 0 B 1 KiB",
                "box 100 KiB a day 0 B 1 KiB 0 B 99 KiB",
            ]
        );
    }
    let brief = shown(&kit, 80, "-n --limit 2K");
    assert_eq!(brief, ["box: 0 linked, 1 over the limit (--explain says why)"]);
}
