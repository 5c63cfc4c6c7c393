//! bak-list as users run it.

use bak_tests::{Kit, Ran, put_dump};
use serde_json::json;
use std::fs;

fn list(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-list", args)
}

/// Puts a dump's sidecar where bak-link (`dir` = "web") or bak-sync (".bak/sent/web") leaves it in an outbox.
fn copy_sidecar(kit: &Kit, outbox: &str, dir: &str, stem: &str, key: &str, note: serde_json::Value) {
    let vm = stem.rsplit_once('-').unwrap().0;
    let from = kit.store().join(vm).join(format!("{stem}.dump.json"));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(from).unwrap()).unwrap();
    record[key] = json!({"box": note});
    kit.write(&format!("{outbox}/{dir}/{stem}.dump.json"), format!("{record}\n"));
}

#[test]
fn dumps_by_guest_and_start_with_their_fields() {
    let kit = Kit::new();
    for (vm, day) in [("web", 20), ("100", 18), ("99", 19), ("web", 18)] {
        kit.dump(vm, &format!("2026-11-{day}T01:00:00Z"), 100);
    }
    put_dump(&kit.store(), "db", "2026-11-19T01:00:00Z", 7, json!({"x-mine": [1], "tags": ["prod"], "name": "base"}));
    let ran = list(&kit, &["--store", "store"]).clean();
    assert_eq!(
        ran.column("id"),
        [
            "99@20261119T010000Z",
            "100@20261118T010000Z",
            "db@20261119T010000Z",
            "web@20261118T010000Z",
            "web@20261120T010000Z"
        ]
    );
    let records = ran.records();
    assert_eq!((&records[2]["x-mine"], &records[2]["bytes"]), (&json!([1]), &json!(7)));
    assert_eq!(records[2]["dir"], kit.store().canonicalize().unwrap().join("db").to_str().unwrap());
    assert!(records.iter().all(|record| record.get("fault").is_none() && record.get("planned").is_none()));
    // What selects.
    for (args, ids) in [
        (&["--guest", "w*", "--latest"][..], &["web@20261120T010000Z"][..]),
        (&["--guest", "base"], &["db@20261119T010000Z"]),
        (&["--tag", "prod"], &["db@20261119T010000Z"]),
        (
            &["--id", "web@20261118T010000Z", "--id", "100@20261118T010000Z"],
            &["100@20261118T010000Z", "web@20261118T010000Z"],
        ),
        (&["--kind", "lxc"], &[]),
    ] {
        assert_eq!(list(&kit, &[&["store"], args].concat()).clean().column("id"), ids, "{args:?}");
    }
    list(&kit, &["store", "--guest", "wbe"]).expect(1).says("bak-list: wbe: no dump matches it");
    assert_eq!(list(&kit, &["store", "-q"]).clean().out, "");
    assert!(list(&kit, &["store", "-n"]).clean().records().iter().all(|record| record["planned"] == true));
}

#[test]
fn what_is_not_good_is_shown_and_counts_for_nothing() {
    let kit = Kit::new();
    kit.dump("web", "2026-11-18T01:00:00Z", 100);
    kit.dump("web", "2026-11-19T01:00:00Z", 100);
    put_dump(&kit.store(), "web", "2026-11-20T01:00:00Z", 100, json!({"result": "failed", "fault": "none at all"}));
    fs::remove_file(kit.path("store/web/web-20261119T010000Z.raw")).unwrap();
    let records = list(&kit, &["store"]).clean().records();
    let faults: Vec<&str> = records.iter().map(|record| record["fault"].as_str().unwrap_or("-")).collect();
    assert_eq!(faults, ["-", "its file web-20261119T010000Z.raw is missing", "its result is failed"]);
    assert_eq!(list(&kit, &["store", "--latest"]).clean().column("id"), ["web@20261118T010000Z"]);
}

#[test]
fn destinations_tell_what_waits_and_what_has_arrived() {
    let kit = Kit::new();
    for day in [18, 19, 20] {
        kit.dump("web", &format!("2026-11-{day}T01:00:00Z"), 100);
    }
    let outbox = "store/.outbox-box";
    let sent = json!({"at": "2026-11-18T05:00:00Z", "wire_out": 5, "wire_in": 6, "seconds": 7, "passes": 1});
    copy_sidecar(&kit, outbox, ".bak/sent/web", "web-20261118T010000Z", "sent", sent.clone());
    let link = json!({"decision": "linked", "why": "due", "at": "2026-11-19T02:00:00Z"});
    copy_sidecar(&kit, outbox, "web", "web-20261119T010000Z", "link", link.clone());
    fs::copy(
        kit.path("store/web/web-20261119T010000Z.raw"),
        kit.path("store/.outbox-box/web/web-20261119T010000Z.raw"),
    )
    .unwrap();
    // The same id, but another dump: nothing of it is taken over.
    let stem = "web-20261120T010000Z";
    copy_sidecar(&kit, outbox, ".bak/sent/web", stem, "sent", sent.clone());
    let path = kit.path(&format!("{outbox}/.bak/sent/web/{stem}.dump.json"));
    let text = fs::read_to_string(&path).unwrap().replace("\"kind\":\"qemu\"", "\"kind\":\"lxc\"");
    fs::write(&path, text).unwrap();
    kit.write("bak.toml", "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"far\"\n[[dest]]\nname = \"other\"\n");
    let records = list(&kit, &["--config", "bak.toml"]).clean().records();
    assert_eq!(records[0]["sent"], json!({"box": sent}));
    assert_eq!(records[1]["link"], json!({"box": link}));
    for (record, key) in [(0, "link"), (1, "sent"), (2, "sent"), (2, "link")] {
        assert!(records[record].get(key).is_none(), "{record} {key}");
    }
    // The outbox and the far side are stores like any other; the far side also by its destination's name.
    assert_eq!(list(&kit, &[outbox]).clean().column("id"), ["web@20261119T010000Z"]);
    put_dump(&kit.path("far"), "web", "2026-11-18T01:00:00Z", 100, json!({}));
    for name in ["far", "box"] {
        let records = list(&kit, &[name, "--config", "bak.toml"]).clean().records();
        assert_eq!((records.len(), &records[0]["sent"]["box"]["wire_out"]), (1, &json!(5)));
    }
    kit.write("remote.toml", "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"me@host:/srv\"\n");
    list(&kit, &["box", "--config", "remote.toml", "--ssh", "false"]).expect(1).says("cannot list me@host:/srv");
}

#[test]
fn what_cannot_be_read_is_a_failure_and_hides_nothing_else() {
    let kit = Kit::new();
    kit.dump("web", "2026-11-18T01:00:00Z", 100);
    kit.write("store/db/db-20261118T010000Z.dump.json", "{\"v\":1,");
    kit.write("store/.outbox-box/.bak/sent/web/web-20261118T010000Z.dump.json", "nonsense");
    let ran = list(&kit, &["store", "--dest", "box=far"]).expect(1);
    assert_eq!(ran.column("id"), ["web@20261118T010000Z"]);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("db/db-20261118T010000Z.dump.json: cannot read the sidecar"), "{}", lines[0]);
    assert!(lines[1].contains(".bak/sent/web/web-20261118T010000Z.dump.json"), "{}", lines[1]);
}

#[test]
fn wrong_use() {
    let kit = Kit::new();
    list(&kit, &["nowhere"]).expect(2).says("there is no store at nowhere");
    list(&kit, &[]).expect(2).says("no store");
    list(&kit, &["-"]).expect(2).says("standard input");
    list(&kit, &["store", "--id", "web"]).expect(2).says("no dump id");
    list(&kit, &["store", "--dest", "box"]).expect(2).says("no destination `box`");
    // One store that is not there, and nothing is printed of the other.
    kit.dump("web", "2026-11-18T01:00:00Z", 100);
    assert_eq!(list(&kit, &["store", "nowhere"]).expect(2).out, "");
    assert!(list(&kit, &["--help"]).clean().out.contains("Exit status"));
    assert!(list(&kit, &["-V"]).clean().out.starts_with("bak-list "));
}

#[test]
fn the_configuration_is_shown_for_each_guest() {
    let kit = Kit::new();
    kit.dump("db-1", "2026-11-18T01:00:00Z", 1);
    kit.dump("db-1", "2026-11-19T01:00:00Z", 1);
    kit.dump("web", "2026-11-18T01:00:00Z", 1);
    kit.write("bak.toml", "store = \"store\"\n[[guest]]\nmatch = [\"db-*\"]\npriority = 10\n");
    for program in ["bak-list", "bak-restore"] {
        let records = kit.run(program, ["--config", "bak.toml", "--check-config"]).clean().records();
        let mut seen: Vec<_> = records.iter().map(|r| (r["vm"].as_str().unwrap(), r["priority"].as_i64())).collect();
        seen.sort();
        assert_eq!(seen, [("db-1", Some(10)), ("web", Some(0))], "{program}");
    }
    kit.write("bad.toml", "store = \"store\"\nstroe = 1\n");
    kit.run("bak-list", ["--config", "bad.toml"]).expect(2).says("bad.toml:2:1: unknown field `stroe`");
}

#[test]
fn a_reader_that_goes_away_is_no_noise() {
    let kit = Kit::new();
    for day in 10..20 {
        kit.dump("web", &format!("2026-11-{day}T01:00:00Z"), 1);
    }
    let ran = kit.sh("bak-list store | head -n 1 | jq -r .id");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("web@20261110T010000Z\n", ""));
}

#[test]
fn a_terminal_gets_a_table_in_which_names_are_escaped() {
    let kit = Kit::new();
    put_dump(&kit.store(), "db", "2026-11-18T01:00:00Z", 3 << 20, json!({"name": "\u{1b}[31mred\u{1b}[2J"}));
    put_dump(&kit.store(), "db", "2026-11-19T01:00:00Z", 10, json!({"result": "\u{1b}]0;owned\u{7}"}));
    let stem = "web-20261118T010000Z";
    kit.dump("web", "2026-11-18T01:00:00Z", 10);
    let link = json!({"decision": "linked", "why": "due", "at": "2026-11-19T02:00:00Z", "error": "host is down"});
    copy_sidecar(&kit, "store/.outbox-box", "web", stem, "link", link);
    fs::copy(kit.path(&format!("store/web/{stem}.raw")), kit.path(&format!("store/.outbox-box/web/{stem}.raw")))
        .unwrap();
    let line = "stty cols 200; bak-list store --dest box=far --now 2026-11-20T01:00:00Z -n";
    let ran = kit.sh(&format!("script -qec '{line}' /dev/null")).expect(0);
    let lines: Vec<&str> = ran.out.lines().map(str::trim_end).collect();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(lines[0]), "DUMP NAME STARTED AGE SIZE STATE BOX");
    assert_eq!(words(lines[1]), "db@20261118T010000Z \\u{1b}[31mred\\u{1b}[2J 2026-11-18 01:00 2 d 3 MiB good");
    assert_eq!(words(lines[2]), "db@20261119T010000Z 2026-11-19 01:00 24 h 10 B its result is \\u{1b}]0;owned\\u{7}");
    assert_eq!(words(lines[3]), "web@20261118T010000Z 2026-11-18 01:00 2 d 10 B good pending: host is down");
    assert!(!ran.out.contains('\u{1b}') && !ran.out.contains('\u{7}'), "{:?}", ran.out);
    let ran = kit.sh(&format!("script -qec '{line} --json' /dev/null")).expect(0);
    assert!(ran.out.starts_with("{\"v\":1"), "{}", ran.out);
}

#[test]
fn an_off_site_copy_is_listed_over_ssh_with_nothing_but_rsync_there() {
    let kit = Kit::new();
    let sshd = bak_tests::sshd::Sshd::start(&kit.path("sshd"));
    let far = kit.path("far");
    let web = bak_tests::put_dump(&far, "web", "2026-11-18T01:00:00Z", 1000, json!({}));
    let lost = bak_tests::put_dump(&far, "lost", "2026-11-18T01:00:00Z", 1000, json!({}));
    fs::write(far.join("lost/lost-20261118T010000Z.raw"), "short").unwrap();
    fs::create_dir(far.join(".hidden")).unwrap();
    fs::write(far.join(".hidden/x-20261118T010000Z.dump.json"), "{}").unwrap();
    fs::write(far.join("web/torn-20261118T010000Z.dump.json"), "{").unwrap();
    let list = |url: &str| kit.run("bak-list", [url, "--ssh", &sshd.command()]);
    let ran = list(&sshd.url(&far)).expect(1).says("web/torn-20261118T010000Z.dump.json");
    assert_eq!(ran.column("id"), [lost, web]);
    assert_eq!(ran.column("fault"), ["its file lost-20261118T010000Z.raw has 5 bytes instead of 1000", ""]);
    list(&sshd.url(&kit.path("nowhere"))).expect(1).says("cannot list");
}

/// The lines of the table on a terminal of so many columns.
fn drawn(kit: &Kit, columns: usize, line: &str) -> Vec<String> {
    let ran = kit.sh(&format!("script -qec 'stty cols {columns}; {line}' /dev/null")).expect(0);
    ran.out.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn a_table_has_a_line_for_each_dump_on_a_terminal_of_80_columns() {
    let kit = Kit::new();
    let web = kit.dump("web-server-1", "2026-11-18T01:00:00Z", 5 << 20);
    let sent = json!({"at": "2026-11-18T06:00:00Z", "wire_out": 1, "wire_in": 1, "seconds": 1, "passes": 1});
    copy_sidecar(&kit, "store/.outbox-box/.bak/sent", "web-server-1", "web-server-1-20261118T010000Z", "sent", sent);
    let line = "bak-list store --dest box=far --now 2026-11-20T01:00:00Z";
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let wide = drawn(&kit, 120, line);
    assert_eq!(words(&wide[0]), "DUMP STARTED AGE SIZE STATE BOX", "no guest has a name");
    let narrow = drawn(&kit, 80, line);
    assert_eq!(words(&narrow[0]), "DUMP AGE SIZE STATE BOX");
    assert_eq!(words(&narrow[1]), format!("{web} 2 d 5 MiB good sent 2026-11-18 06:00"));
    assert!(narrow.len() == 2 && narrow.iter().all(|line| line.chars().count() <= 80), "{narrow:#?}");
}

#[test]
fn what_was_removed_over_there_since_is_not_called_sent() {
    let kit = Kit::new();
    for vm in ["web", "db"] {
        kit.dump(vm, "2026-11-18T01:00:00Z", 10);
        let mut sent = json!({"at": "2026-11-18T06:00:00Z", "wire_out": 1, "wire_in": 1, "seconds": 1, "passes": 1});
        if vm == "web" {
            sent["pruned"] = "2026-11-19T06:00:00Z".into();
        }
        copy_sidecar(&kit, "store/.outbox-box/.bak/sent", vm, &format!("{vm}-20261118T010000Z"), "sent", sent);
    }
    let lines = drawn(&kit, 120, "bak-list store --dest box=far --now 2026-11-20T01:00:00Z");
    assert!(lines[1].ends_with("good   sent 2026-11-18 06:00"), "{lines:#?}");
    assert!(lines[2].ends_with("good   removed there 2026-11-19 06:00"), "{lines:#?}");
}

#[test]
fn a_guest_or_an_id_where_a_store_should_be_gets_a_hint() {
    let kit = Kit::new();
    kit.dump("web", "2026-11-18T01:00:00Z", 10);
    let why = "bak-list: there is no store at web, nor a destination web; for a guest: --guest web\n";
    assert_eq!(kit.run("bak-list", ["web", "--store", "store"]).expect(2).err, why);
    kit.run("bak-list", ["web@20261118T010000Z"]).expect(2).says("for the dump of this id: --id web@20261118T010000Z");
    kit.run("bak-list", ["./web"]).expect(2);
    kit.run("bak-list", ["store", "--guest", "web"]).clean();
}
