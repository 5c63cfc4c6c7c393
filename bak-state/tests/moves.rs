//! Every move between two statuses, legal or not: by `set`, and by those whose moves they are.

use bak_tests::{Kit, Ran};
use serde_json::{Value, json};
use std::fs;

const ALL: [&str; 6] = ["NEW", "BACKUP_NECESSARY", "BACKUP_IN_PROGRESS", "CLEAN", "RUNNING", "ARCHIVED"];

/// The legal moves, written down by hand from what the states mean. The first row is a guest that nobody knows.
const LEGAL: [(&str, &[&str]); 7] = [
    ("(unknown guest)", &["NEW"]),
    ("NEW", &["BACKUP_NECESSARY", "ARCHIVED"]),
    ("BACKUP_NECESSARY", &["BACKUP_IN_PROGRESS", "RUNNING", "ARCHIVED"]),
    ("BACKUP_IN_PROGRESS", &["CLEAN", "BACKUP_NECESSARY"]),
    ("CLEAN", &["BACKUP_NECESSARY", "RUNNING", "ARCHIVED"]),
    ("RUNNING", &["BACKUP_NECESSARY", "ARCHIVED"]),
    ("ARCHIVED", &["BACKUP_NECESSARY"]),
];

/// `line` is split at spaces, and `--db db` added.
fn state_with(kit: &Kit, line: &str, input: &str) -> Ran {
    kit.run_with("bak-state", line.split(' ').chain(["--db", "db"]), input)
}

fn state(kit: &Kit, line: &str) -> Ran {
    state_with(kit, line, "")
}

fn put(kit: &Kit, statedb: &str) {
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", statedb);
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

fn line(status: Option<&str>) -> String {
    status.map(|status| format!("web:{status}\n")).unwrap_or_default() + "other:CLEAN\n"
}

/// The same guest line, wherever it stands.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn every_move_by_set() {
    let kit = Kit::new();
    let (mut legal, mut illegal) = (0, 0);
    for (row, next) in LEGAL {
        let from = ALL.into_iter().find(|status| *status == row);
        for to in ALL {
            let (before, after) = (line(from), sorted(&line(Some(to))));
            put(&kit, &before);
            let ran = state(&kit, &format!("set {to} web"));
            if from == Some(to) {
                // It is so already: no move, and nothing is printed.
                assert_eq!(ran.clean().out, "");
                assert_eq!(statedb(&kit), before);
                continue;
            }
            let mut record = json!({"v": 1, "type": "guest", "vm": "web", "status": to});
            if let Some(from) = from {
                record["was"] = from.into();
            }
            if next.contains(&to) {
                legal += 1;
                assert_eq!(ran.clean().records(), [record]);
                assert_eq!(sorted(&statedb(&kit)), after);
            } else {
                illegal += 1;
                let ran = ran.expect(4);
                let is = from.unwrap_or("not in the database");
                ran.says(&format!("bak-state: web: it is {is} and may not become {to}"));
                assert_eq!(statedb(&kit), before, "{from:?} -> {to}");
                let ran = state(&kit, &format!("set {to} web --force")).clean();
                assert_eq!(ran.records(), [record]);
                assert_eq!(sorted(&statedb(&kit)), after);
            }
        }
    }
    assert_eq!((legal, illegal), (14, 22));
}

#[test]
fn every_compare_and_swap() {
    let kit = Kit::new();
    for is in ALL {
        for from in ALL {
            for to in ALL {
                let before = line(Some(is));
                put(&kit, &before);
                let ran = state(&kit, &format!("set --from {from} {to} web"));
                let legal = from == to || LEGAL.iter().any(|(row, next)| *row == from && next.contains(&to));
                if from != is {
                    ran.expect(1).says(&format!("bak-state: web: it is {is}, not {from}"));
                } else if legal {
                    ran.clean();
                    assert_eq!(statedb(&kit), line(Some(to)));
                    continue;
                } else {
                    ran.expect(4).says("may not become");
                }
                assert_eq!(statedb(&kit), before, "{is}: {from} -> {to}");
            }
        }
    }
}

#[test]
fn the_manual_has_this_table() {
    let help = Kit::new().run("bak-state", ["set", "--help"]).clean().out;
    let rows: Vec<&str> = help.lines().filter(|line| line.contains(" -> ")).map(str::trim).collect();
    let expected = LEGAL.map(|(from, next)| format!("{from:<19} -> {}", next.join(", ")));
    assert_eq!(rows, expected);
}

/// An observation of the guest.
fn observed(more: Value) -> String {
    let mut record = json!({"v": 1, "type": "guest", "vm": "web", "kind": "qemu", "driver": "image", "fingerprint": "a", "state": "stopped"});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    format!("{record}\n")
}

#[test]
fn observations_and_claims_move_along_the_table() {
    let kit = Kit::new();
    let look = |more: Value, expected: &str| {
        assert_eq!(state_with(&kit, "observe -", &observed(more)).clean().column("status"), [expected]);
        assert_eq!(statedb(&kit), format!("web:{expected}\n"));
    };
    let claim = |vm: &str, script: &str| kit.run("bak-state", ["claim", "--db", "db", vm, "--", "sh", "-c", script]);
    let inside = |exit: &str, expected: &str| {
        // The command sees the status that others see meanwhile.
        let ran = claim("web", &format!("cat db/vmtool-statedb; {exit}"));
        assert_eq!((ran.out.as_str(), statedb(&kit)), ("web:BACKUP_IN_PROGRESS\n", format!("web:{expected}\n")));
        ran
    };
    kit.sh("bak-state set NEW web --db db").clean();
    look(json!({}), "BACKUP_NECESSARY");
    inside("true", "CLEAN").clean();
    look(json!({}), "CLEAN");
    look(json!({"fingerprint": "b"}), "BACKUP_NECESSARY");
    inside("false", "BACKUP_NECESSARY").expect(1);
    look(json!({"state": "running"}), "RUNNING");
    look(json!({}), "BACKUP_NECESSARY");
    inside("true", "CLEAN").clean();
    look(json!({"state": "running"}), "RUNNING");
    // A claim of a guest in any other status but ARCHIVED goes through BACKUP_NECESSARY, in one step.
    for from in ["NEW", "RUNNING", "CLEAN", "BACKUP_IN_PROGRESS"] {
        state(&kit, &format!("set --force {from} web")).clean();
        inside("true", "CLEAN").clean();
    }
    // What a dead worker left.
    state(&kit, "set --force BACKUP_IN_PROGRESS web").clean();
    look(json!({}), "BACKUP_NECESSARY");
    state(&kit, "set ARCHIVED web").clean();
    look(json!({"fingerprint": "c"}), "ARCHIVED");
    claim("web", "touch ran").expect(4).says("bak-state: web: it is ARCHIVED");
    claim("wbe", "touch ran").expect(4).says("bak-state: wbe: it is not in the database: `bak-state observe` it");
    assert!(!kit.path("ran").exists());
    assert_eq!(statedb(&kit), "web:ARCHIVED\n");
}
