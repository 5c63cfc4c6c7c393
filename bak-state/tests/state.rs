//! The database as its users see it: get, set, list, forget, and its files.

use bak_tests::{Kit, Ran, finish};
use serde_json::json;
use std::fs;
use std::io::Write;

fn state(kit: &Kit, line: &str) -> Ran {
    state_with(kit, line, "")
}

/// `line` is split at spaces, and `--db db` added.
fn state_with(kit: &Kit, line: &str, input: &str) -> Ran {
    kit.run_with("bak-state", line.split(' ').chain(["--db", "db"]), input)
}

/// An old database.
fn put(kit: &Kit, statedb: impl AsRef<[u8]>) {
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", statedb);
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

#[test]
fn an_old_database_opens_as_it_is_and_stays_useful_to_cut() {
    let kit = Kit::new();
    let text = "win:CLEAN\nwin10:RUNNING\nmy vm:NEW\na:b:ARCHIVED\n50%:NEW\n東京:CLEAN";
    put(&kit, text);
    let ran = state(&kit, "list").clean();
    assert_eq!(ran.column("vm"), ["50%", "a:b", "my vm", "win", "win10", "東京"]);
    assert_eq!(ran.column("status"), ["NEW", "ARCHIVED", "NEW", "CLEAN", "RUNNING", "CLEAN"]);
    assert_eq!(statedb(&kit), text, "reading writes nothing");
    let record = &state(&kit, "get win").clean().records()[0];
    assert_eq!(*record, json!({"v": 1, "type": "guest", "vm": "win", "status": "CLEAN"}));
    state(&kit, "set BACKUP_NECESSARY win").clean();
    assert_eq!(kit.sh("grep '^win:' db/vmtool-statedb | cut -d: -f2").clean().out, "BACKUP_NECESSARY\n");
    assert_eq!(statedb(&kit).lines().next_back(), Some("東京:CLEAN"));
    let version = fs::read_to_string(kit.path("db/vmtool-db-version")).unwrap();
    assert_eq!(version, "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
}

#[test]
fn any_name_survives_a_round_trip() {
    let kit = Kit::new();
    let names =
        ["a:b", "a:CLEAN", ":", "my vm", " ", "a\nb", "\n", "a\r", "50%", "%0A", "%25", "-x", "*", "Köln", "\u{1b}[2J"];
    let input: String = names.iter().map(|vm| format!("{}\n", json!({"v": 1, "vm": vm}))).collect();
    let ran = state_with(&kit, "set NEW -", &input).clean();
    assert_eq!(ran.column("vm"), names);
    assert_eq!(statedb(&kit).lines().count(), names.len());
    assert!(statedb(&kit).contains("a%0Ab:NEW\n") && statedb(&kit).contains("Köln:NEW\n"));
    let ran = state_with(&kit, "get -", &input).clean();
    assert_eq!(ran.column("vm"), names);
    let listed = state(&kit, "list").clean().out;
    state_with(&kit, "forget -", &listed).clean();
    assert_eq!(statedb(&kit), "");
}

#[test]
fn unknown_guests_and_typing_errors() {
    let kit = Kit::new();
    state(&kit, "get web").expect(2).says("there is no database");
    put(&kit, "web:NEW\nweb2:CLEAN\n");
    let ran = state(&kit, "get web wbe").expect(1).says("bak-state: wbe: no such guest");
    assert_eq!(ran.column("vm"), ["web"]);
    assert_eq!(state(&kit, "get web*").clean().column("vm"), ["web", "web2"]);
    state(&kit, "get x*").expect(1).says("x*");
    state(&kit, "set NEW x*").expect(1).says("x*");
    state(&kit, "forget wbe").expect(1).says("wbe");
    state(&kit, "get").expect(2).says("say which");
    state(&kit, "set CLEAN").expect(2).says("say which");
    state(&kit, "set DIRTY web").expect(2).says("is no status");
    state(&kit, "observe").expect(2);
    kit.run("bak-state", ["list"]).expect(2).says("no database");
    assert_eq!(statedb(&kit), "web:NEW\nweb2:CLEAN\n");
}

#[test]
fn selection() {
    let kit = Kit::new();
    put(&kit, "web:NEW\nweb2:CLEAN\ndb:CLEAN\n");
    assert_eq!(state(&kit, "list --status CLEAN").clean().column("vm"), ["db", "web2"]);
    assert_eq!(state(&kit, "list web2 d*").clean().column("vm"), ["web2", "db"]);
    assert_eq!(state(&kit, "get web web web*").clean().column("vm"), ["web", "web2"]);
    assert_eq!(state(&kit, "set --from CLEAN BACKUP_NECESSARY --all").clean().column("vm"), ["web2", "db"]);
    assert_eq!(statedb(&kit), "web:NEW\nweb2:BACKUP_NECESSARY\ndb:BACKUP_NECESSARY\n");
    let guest = json!({"v": 1, "type": "guest", "vm": "100", "name": "mail", "kind": "lxc", "driver": "exec", "tags": ["prod"]});
    state_with(&kit, "observe -", &format!("{guest}\n")).clean();
    assert_eq!(state(&kit, "get mail").clean().column("vm"), ["100"]);
    assert_eq!(state(&kit, "list --tag prod").clean().column("vm"), ["100"]);
    assert_eq!(state(&kit, "list --kind lxc --kind qemu").clean().column("vm"), ["100"]);
    let all = state(&kit, "list").clean().out;
    assert_eq!(state_with(&kit, "get --tag p* -", &all).clean().column("vm"), ["100"]);
}

#[test]
fn a_batch_goes_on_past_what_it_may_not_do() {
    let kit = Kit::new();
    put(&kit, "a:BACKUP_NECESSARY\nb:CLEAN\nc:BACKUP_NECESSARY\n");
    let ran = state(&kit, "set BACKUP_IN_PROGRESS a b c").expect(4).says("bak-state: b: it is CLEAN");
    assert_eq!(ran.column("was"), ["BACKUP_NECESSARY", "BACKUP_NECESSARY"]);
    assert_eq!(statedb(&kit), "a:BACKUP_IN_PROGRESS\nb:CLEAN\nc:BACKUP_IN_PROGRESS\n");
    let ran = state(&kit, "set --from CLEAN BACKUP_NECESSARY a b").expect(1);
    ran.says("bak-state: a: it is BACKUP_IN_PROGRESS, not CLEAN");
    assert_eq!(statedb(&kit), "a:BACKUP_IN_PROGRESS\nb:BACKUP_NECESSARY\nc:BACKUP_IN_PROGRESS\n");
    assert_eq!(state(&kit, "set -q CLEAN c").clean().out, "");
}

#[test]
fn a_dry_run_changes_nothing_and_is_no_input() {
    let kit = Kit::new();
    let guest = "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\",\"driver\":\"image\"}\n";
    let planned = state_with(&kit, "observe -n -", guest).clean();
    assert_eq!(planned.records()[0]["planned"], true);
    assert_eq!(planned.column("status"), ["BACKUP_NECESSARY"]);
    assert!(!kit.path("db").exists());
    state_with(&kit, "observe -", &planned.out).expect(2).says("dry run");
    put(&kit, "web:CLEAN\n");
    let ran = state(&kit, "set -n ARCHIVED web").clean();
    assert_eq!(
        ran.records()[0],
        json!({"v": 1, "type": "guest", "vm": "web", "status": "ARCHIVED", "was": "CLEAN", "planned": true})
    );
    state(&kit, "forget -n web").clean();
    state_with(&kit, "set NEW -", &ran.out).expect(2).says("dry run");
    assert_eq!(statedb(&kit), "web:CLEAN\n");
}

#[test]
fn a_damaged_line_stops_every_write_and_is_named() {
    let kit = Kit::new();
    let guest = "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\",\"driver\":\"image\"}\n";
    for bad in ["web", "web:", "x:CLEA", ":NEW", "web:NEW", "x:\u{0}", "x:NEW\u{0}"] {
        let text = format!("web:CLEAN\n{bad}\ndb:NEW\n");
        put(&kit, &text);
        for line in ["set ARCHIVED db", "forget db", "set --force NEW x", "set -n ARCHIVED db"] {
            state(&kit, line).expect(4).says("db/vmtool-statedb:2: ");
        }
        state_with(&kit, "observe -", guest).expect(4).says("db/vmtool-statedb:2: ");
        assert_eq!(statedb(&kit), text);
        let ran = state(&kit, "get db web").expect(1).says("db/vmtool-statedb:2: ");
        assert_eq!(ran.column("vm"), ["db", "web"], "what can be read is shown");
    }
    put(&kit, "web:CLEAN\n");
    let text = "{\"vm\":\"db\"}\n{\"vm\":\"web\",\"ui\n";
    kit.write("db/vmtool-details", text);
    state(&kit, "forget web").expect(4).says("db/vmtool-details:2: ");
    state_with(&kit, "observe -", guest).expect(4).says("db/vmtool-details:2: ");
    state(&kit, "get web").expect(1).says("db/vmtool-details:2: ");
    assert_eq!(fs::read_to_string(kit.path("db/vmtool-details")).unwrap(), text);
}

#[test]
fn an_editors_line_is_read_even_if_the_list_was_in_order_before() {
    let kit = Kit::new();
    state(&kit, "set NEW a b c -q").clean();
    state(&kit, "set BACKUP_NECESSARY a -q").clean();
    // In place, of the same length, and out of order.
    let path = kit.path("db/vmtool-statedb");
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"z:").unwrap();
    let words: Vec<&str> = "set BACKUP_NECESSARY b z -q --db db".split(' ').collect();
    kit.run("bak-state", words).clean();
    assert_eq!(statedb(&kit), "z:BACKUP_NECESSARY\nb:BACKUP_NECESSARY\nc:NEW\n");
    // By another file in its place, with the times of the first.
    state(&kit, "set BACKUP_NECESSARY c -q").clean();
    kit.sh("sed s/^c:/:c/ db/vmtool-statedb >new && touch -r db/vmtool-statedb new && mv new db/vmtool-statedb")
        .clean();
    state(&kit, "set NEW d").expect(4).says("db/vmtool-statedb:3: ");
}

#[test]
fn an_unknown_version_is_refused() {
    let kit = Kit::new();
    for version in ["TOOL_VERSION: 9.0\nDB_VERSION: 2.0\n", "DB_VERSION: 1.00\n", ""] {
        put(&kit, "web:NEW\n");
        kit.write("db/vmtool-db-version", version);
        for line in ["list", "get web", "set ARCHIVED web", "forget web"] {
            state(&kit, line).expect(4).says("vmtool-db-version");
        }
    }
    fs::remove_file(kit.path("db/vmtool-db-version")).unwrap();
    state(&kit, "list").expect(4).says("vmtool-db-version is missing");
    assert_eq!(statedb(&kit), "web:NEW\n");
}

#[test]
fn a_new_database_says_which_it_is() {
    let kit = Kit::new();
    state(&kit, "set NEW web").clean();
    let version = fs::read_to_string(kit.path("db/vmtool-db-version")).unwrap();
    assert_eq!(version, "TOOL_VERSION: 0.1\nDB_VERSION: 1.0\n");
    assert!(kit.path("db/vmtool-dblock").exists());
    // Without its list it is not new.
    kit.write("db/vmtool-details", "{\"vm\":\"web\"}\n");
    fs::remove_file(kit.path("db/vmtool-statedb")).unwrap();
    for line in ["list", "set NEW web"] {
        state(&kit, line).expect(4).says("vmtool-statedb is missing");
    }
}

#[test]
fn a_held_lock_names_its_holder() {
    let kit = Kit::new();
    put(&kit, "web:NEW\n");
    let holder = r#"{"program":"bak-test","pid":4711,"node":"pve9"}"#;
    kit.write("db/vmtool-dblock", holder);
    let ran = kit.sh("exec 9<>db/vmtool-dblock; flock -x 9; bak-state get web --db db --wait 0 9<&-");
    ran.expect(3).says("db is locked by bak-test (pid 4711 on pve9)");
    // Readers do not keep each other out, but writers.
    kit.sh("exec 9<>db/vmtool-dblock; flock -s 9; bak-state get web --db db --wait 0 9<&-").clean();
    kit.sh("exec 9<>db/vmtool-dblock; flock -s 9; bak-state set ARCHIVED web --db db --wait 0 9<&-").expect(3);
}

#[test]
fn parallel_writers_lose_nothing() {
    let kit = Kit::new();
    let line = "for p in 1 2 3 4 5 6 7 8; do (for i in 1 2 3 4 5 6 7 8 9 10; do
        bak-state set -q NEW g$p-$i --db db || exit 1; bak-state set -q ARCHIVED g$p-$i --db db || exit 1
        done) & pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || exit 1; done";
    kit.sh(line).clean();
    assert_eq!(statedb(&kit).lines().count(), 80);
    assert!(statedb(&kit).lines().all(|line| line.ends_with(":ARCHIVED")));
}

#[test]
fn of_many_that_swap_one_wins() {
    let kit = Kit::new();
    put(&kit, "web:BACKUP_NECESSARY\n");
    let run = || {
        let mut command = kit.command(bak_tests::bin("bak-state"));
        command.args(["set", "--db", "db", "--from", "BACKUP_NECESSARY", "BACKUP_IN_PROGRESS", "web"]);
        finish(command, "").status
    };
    let mut all: Vec<i32> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert_eq!(all, [0, 1, 1, 1, 1, 1, 1, 1]);
}
