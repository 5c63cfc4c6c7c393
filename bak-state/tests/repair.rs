//! A damaged database is mended by leaving out what cannot be read, and nothing of it is lost.

use bak_tests::{Kit, Ran};
use std::fs;

const NOW: &str = "2026-11-20T12:00:00Z";
const COPY: &str = "damaged-20261120T120000Z";

fn state(kit: &Kit, line: &str) -> Ran {
    kit.run("bak-state", line.split(' ').chain(["--db", "db", "--now", NOW]))
}

fn read(kit: &Kit, name: &str) -> Vec<u8> {
    fs::read(kit.path("db").join(name)).unwrap()
}

fn damaged(kit: &Kit) -> (&'static [u8], &'static str) {
    let list: &[u8] = b"web:CLEAN\nhalf\n\xff\xfe:NEW\ndb:ARCHIVED\nweb:NEW\nmail:BACKUP_NECE";
    let details = "{\"vm\":\"db\",\"uid\":\"u1\"}\n{\"vm\":\"web\",\"ui\n{\"vm\":\"web\",\"uid\":\"u2\"}\n";
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", list);
    kit.write("db/vmtool-details", details);
    (list, details)
}

#[test]
fn it_says_what_it_drops_and_keeps_a_copy() {
    let kit = Kit::new();
    let (list, details) = damaged(&kit);
    let plan = state(&kit, "list -n --repair").expect(1);
    plan.says("db/vmtool-statedb:2: would be dropped, as it is not `<vm>:<STATUS>`: `half`");
    assert_eq!((read(&kit, "vmtool-statedb"), fs::read_dir(kit.path("db")).unwrap().count()), (list.to_vec(), 4));

    let ran = state(&kit, "set ARCHIVED web --repair").expect(0);
    assert_eq!(ran.column("status"), ["ARCHIVED"]);
    for line in [
        "2: dropped",
        "3: dropped, as it is not UTF-8",
        "5: dropped, as it names web once more: `web:NEW`",
        "6: dropped",
    ] {
        assert!(ran.err.contains(&format!("bak-state: db/vmtool-statedb:{line}")), "{line}: {}", ran.err);
    }
    let ran = ran.says("bak-state: db/vmtool-details:2: dropped");
    let ran = ran.says(&format!("as it was it is kept as db/vmtool-statedb.{COPY}"));
    assert_eq!(ran.err.lines().count(), 7, "{}", ran.err);
    assert_eq!(read(&kit, "vmtool-statedb"), b"web:ARCHIVED\ndb:ARCHIVED\n");
    assert_eq!(read(&kit, &format!("vmtool-statedb.{COPY}")), list);
    assert_eq!(read(&kit, &format!("vmtool-details.{COPY}")), details.as_bytes());
    assert_eq!(state(&kit, "get db web").clean().column("uid"), ["u1", "u2"]);

    // Once more in the same second: no copy is overwritten.
    kit.write("db/vmtool-statedb", "web\n");
    state(&kit, "list --repair").expect(0).says(&format!("kept as db/vmtool-statedb.{COPY}-2"));
    assert_eq!(read(&kit, &format!("vmtool-statedb.{COPY}")), list);
    state(&kit, "list --repair").clean();
}

#[test]
fn a_list_that_is_gone_is_made_anew() {
    let kit = Kit::new();
    damaged(&kit);
    fs::remove_file(kit.path("db/vmtool-statedb")).unwrap();
    state(&kit, "list").expect(4).says("--repair");
    let ran = state(&kit, "list --repair").expect(0).says("vmtool-statedb: it was missing or empty: made anew");
    let ran = ran.says("bak-state: db: its status is lost: BACKUP_NECESSARY, even if it was ARCHIVED");
    assert_eq!(ran.column("vm"), ["db", "web"]);
    assert_eq!(read(&kit, "vmtool-statedb"), b"db:BACKUP_NECESSARY\nweb:BACKUP_NECESSARY\n");
}

#[test]
fn a_list_that_was_emptied_is_no_new_database() {
    let kit = Kit::new();
    kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", "");
    kit.write("db/vmtool-details", "{\"vm\":\"db\",\"uid\":\"u1\"}\n");
    for line in ["list", "set NEW web", "set -n NEW web"] {
        state(&kit, line).expect(4).says("vmtool-statedb is missing or empty");
    }
    assert_eq!(state(&kit, "list --repair").expect(0).column("status"), ["BACKUP_NECESSARY"]);
    // Whereas one that was emptied by order is empty.
    state(&kit, "forget db").clean();
    state(&kit, "list").clean();
    state(&kit, "set NEW web").clean();
}

#[test]
fn a_guest_whose_line_is_damaged_is_to_be_dumped() {
    let kit = Kit::new();
    kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", "db:CLEAN\nweb:ARCH\n");
    kit.write("db/vmtool-details", "{\"vm\":\"db\"}\n{\"vm\":\"web\",\"uid\":\"u2\"}\n");
    state(&kit, "check --repair").says("bak-state: web: its status is lost: BACKUP_NECESSARY");
    assert_eq!(read(&kit, "vmtool-statedb"), b"db:CLEAN\nweb:BACKUP_NECESSARY\n");
    assert_eq!(state(&kit, "get web").clean().column("uid"), ["u2"]);
}

#[test]
fn a_full_disk_leaves_no_part_of_a_copy() {
    let kit = Kit::new();
    damaged(&kit);
    let strace = "strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=ENOSPC:when=1";
    let ran = kit.sh(&format!("{strace} bak-state list --repair --db db --now {NOW}"));
    assert_eq!(ran.status, 1, "{}", ran.err);
    ran.says(&format!("cannot keep a copy as db/vmtool-statedb.{COPY}"));
    let names = fs::read_dir(kit.path("db")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("damaged")).count(), 0);
}

#[test]
fn a_version_that_is_gone_is_made_anew_but_an_unknown_one_is_never_touched() {
    let kit = Kit::new();
    kit.write("db/vmtool-statedb", "web:CLEAN\n");
    state(&kit, "list").expect(4).says("--repair");
    assert_eq!(state(&kit, "list --repair").clean().column("status"), ["CLEAN"]);
    assert!(String::from_utf8(read(&kit, "vmtool-db-version")).unwrap().contains("DB_VERSION: 1.0\n"));
    kit.write("db/vmtool-db-version", "DB_VERSION: 2.0\n");
    kit.write("db/vmtool-statedb", "web\n");
    state(&kit, "list --repair").expect(4).says("vmtool-db-version");
    assert_eq!(read(&kit, "vmtool-statedb"), b"web\n");
}
