//! `observe` and claims.

use bak_common::lock::Holder;
use bak_common::name::{DumpId, GuestName};
use bak_common::record::Guest;
use bak_common::report::status;
use bak_state::{Db, Outcome};
use bak_tests::{Kit, Ran, put_dump};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

fn guest(vm: &str, more: Value) -> String {
    let mut record = json!({"v": 1, "type": "guest", "vm": vm, "kind": "qemu", "driver": "image", "x-mine": [1, 2]});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    format!("{record}\n")
}

fn observe(kit: &Kit, more: &str, input: &str) -> Ran {
    let more = more.split(' ').filter(|word| !word.is_empty());
    kit.run_with("bak-state", ["observe", "-", "--db", "db"].into_iter().chain(more), input)
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

fn db(kit: &Kit) -> Db {
    Db::open(&kit.path("db"), Duration::from_secs(10)).unwrap()
}

fn record(vm: &str, fingerprint: &str) -> Guest {
    let mut guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
    guest.fingerprint = Some(fingerprint.into());
    guest
}

const STARTED: &str = "2026-11-20T01:00:02Z";

fn clean(vm: &str, fingerprint: &str) -> Outcome {
    let started = STARTED.parse().unwrap();
    let id = DumpId::of(&GuestName::new(vm).unwrap(), started);
    Outcome::Clean { fingerprint: Some(fingerprint.into()), started, id }
}

/// A dump of `vm` as bak-dump would make it: claimed, and finished.
fn dump(kit: &Kit, vm: &str, fingerprint: &str) {
    let now = "2026-11-20T01:00:00Z".parse().unwrap();
    db(kit).claim(&record(vm, fingerprint), now).unwrap().finish(clean(vm, fingerprint), now).unwrap();
}

#[test]
fn a_guest_through_its_nights() {
    let kit = Kit::new();
    let a = guest("web", json!({"fingerprint": "a", "state": "stopped"}));
    let ran = observe(&kit, "", &a).clean();
    let mut expected: Value = serde_json::from_str(&a).unwrap();
    expected["status"] = "BACKUP_NECESSARY".into();
    expected["changed"] = true.into();
    assert_eq!(ran.records(), [expected.clone()]);
    assert_eq!(statedb(&kit), "web:BACKUP_NECESSARY\n");
    dump(&kit, "web", "a");
    assert_eq!(statedb(&kit), "web:CLEAN\n");
    expected["status"] = "CLEAN".into();
    expected["changed"] = false.into();
    expected["last_dump"] = STARTED.into();
    assert_eq!(observe(&kit, "", &a).clean().records(), [expected]);
    assert_eq!(observe(&kit, "--due", &a).clean().out, "");
    let b = guest("web", json!({"fingerprint": "0", "state": "running"}));
    assert_eq!(observe(&kit, "--due", &b).clean().out, "", "it runs");
    assert_eq!(statedb(&kit), "web:RUNNING\n");
    assert_eq!(observe(&kit, "--due", &a).clean().column("status"), ["BACKUP_NECESSARY"]);
}

#[test]
fn the_store_and_the_outboxes_are_evidence() {
    let kit = Kit::new();
    let a = guest("web", json!({"fingerprint": "a"}));
    dump(&kit, "web", "a");
    let ran = observe(&kit, "--store store", &a).clean();
    assert_eq!((ran.column("status")[0].as_str(), &ran.records()[0]["last_dump"]), ("BACKUP_NECESSARY", &Value::Null));
    dump(&kit, "web", "a");
    kit.dump("web", "2026-11-19T01:00:02Z", 100);
    kit.dump("web", STARTED, 100);
    put_dump(&kit.store(), "web", "2026-11-20T02:00:02Z", 100, json!({"uid": "another"}));
    put_dump(&kit.store(), "web", "2026-11-20T03:00:02Z", 100, json!({"result": "failed"}));
    let sent = kit.path("outbox/.bak/sent");
    put_dump(&sent, "web", "2026-11-18T01:00:02Z", 100, json!({}));
    put_dump(&sent, "web", "2026-11-17T01:00:02Z", 100, json!({}));
    let ran = observe(&kit, "--store store --outbox outbox", &a).clean();
    assert_eq!(ran.column("status"), ["CLEAN"]);
    assert_eq!(ran.column("last_dump"), [STARTED]);
    assert_eq!(ran.column("last_sent"), ["2026-11-18T01:00:02Z"]);
    kit.write("bak.toml", format!("db = {:?}\nstore = {:?}\n", kit.path("db"), kit.store()));
    fs::remove_dir_all(kit.store().join("web")).unwrap();
    let ran = kit.run_with("bak-state", ["observe", "--due", "-", "--config", "bak.toml"], &a).clean();
    assert_eq!(ran.column("status"), ["BACKUP_NECESSARY"]);
    observe(&kit, "--store nowhere", &a).expect(2).says("no store");
}

#[test]
fn due_guests_stopped_first_and_dumps_pass() {
    let kit = Kit::new();
    let id = kit.dump("old", STARTED, 10);
    let sidecar = fs::read_to_string(kit.store().join("old/old-20261120T010002Z.dump.json")).unwrap();
    let input = [
        guest("live", json!({"state": "running", "live": true})),
        sidecar.clone(),
        guest("runs", json!({"state": "running"})),
        guest("b", json!({"state": "stopped"})),
        guest("a", json!({})),
    ];
    let ran = observe(&kit, "--due", &input.concat()).clean();
    assert_eq!(ran.column("vm"), ["old", "b", "a", "live"]);
    assert_eq!(ran.records()[0], serde_json::from_str::<Value>(&sidecar).unwrap());
    assert_eq!(ran.records()[0]["id"], id.as_str());
    let ran = observe(&kit, "--due --explain", &input.concat()).clean();
    assert_eq!(ran.column("vm"), ["old", "b", "a", "live", "runs"]);
    assert!(ran.records()[4]["skipped"]["why"].as_str().unwrap().contains("it runs"));
    let ran = observe(&kit, "--due --running", &input.concat()).clean();
    assert_eq!(ran.column("vm"), ["old", "b", "a", "live", "runs"]);
    assert!(ran.records()[4].get("skipped").is_none(), "{}", ran.out);
    let ran = observe(&kit, "", &input.concat()).clean();
    assert_eq!(ran.column("vm"), ["old", "live", "runs", "b", "a"]);
}

#[test]
fn nothing_listed_is_no_news() {
    let kit = Kit::new();
    let then = "--now 2026-08-01T00:00:00Z";
    observe(&kit, then, &(guest("web", json!({})) + &guest("db", json!({})))).clean();
    let before = (statedb(&kit), fs::read(kit.path("db/vmtool-details")).unwrap());
    observe(&kit, "", "").clean();
    assert_eq!((statedb(&kit), fs::read(kit.path("db/vmtool-details")).unwrap()), before);
    // One that is not listed any more stays, and can be asked for.
    observe(&kit, "--now 2026-11-20T00:00:00Z", &guest("web", json!({}))).clean();
    let gone = |span: &str| {
        let args = ["list", "--db", "db", "--now", "2026-11-20T00:00:00Z", "--gone", "--for", span];
        kit.run("bak-state", args).clean().column("vm")
    };
    assert_eq!(gone("90d"), ["db"]);
    assert_eq!(gone("112d"), [""; 0]);
}

#[test]
fn a_known_name_with_another_uid_is_a_new_guest() {
    let kit = Kit::new();
    observe(&kit, "", &guest("web", json!({"uid": "u1", "fingerprint": "a"}))).clean();
    kit.run("bak-state", ["set", "ARCHIVED", "web", "--db", "db"]).clean();
    let same = observe(&kit, "", &guest("web", json!({"uid": "u1", "fingerprint": "b"}))).clean();
    assert_eq!(same.column("status"), ["ARCHIVED"]);
    let other = observe(&kit, "--explain", &guest("web", json!({"uid": "u2", "fingerprint": "a"}))).clean();
    assert_eq!(other.column("status"), ["BACKUP_NECESSARY"]);
    assert!(other.column("why")[0].contains("new guest"));
    assert_eq!(kit.run("bak-state", ["get", "web", "--db", "db"]).clean().column("uid"), ["u2"]);
    // Both at once cannot be told apart by a line of the database.
    let both = guest("web", json!({"uid": "u2"})) + &guest("web", json!({"uid": "u1"})) + &guest("db", json!({}));
    let ran = observe(&kit, "", &both).expect(1).says("bak-state: web: two records");
    assert_eq!(ran.column("vm"), ["web", "db"]);
    assert_eq!(kit.run("bak-state", ["get", "web", "--db", "db"]).clean().column("uid"), ["u2"]);
}

#[test]
fn a_bad_line_is_reported_and_the_others_work() {
    let kit = Kit::new();
    let input = format!("not json\n{}{}", guest("web", json!({})), guest("../x", json!({})));
    let ran = observe(&kit, "", &(input + "{\"v\":1,\"ty")).expect(1);
    assert_eq!(ran.column("vm"), ["web", "../x"]);
    ran.says("standard input, line 1").says("standard input, line 4");
    assert_eq!(statedb(&kit), "../x:BACKUP_NECESSARY\nweb:BACKUP_NECESSARY\n");
}

#[test]
fn a_claim_is_held_by_one() {
    let kit = Kit::new();
    let now = STARTED.parse().unwrap();
    let web = record("a/b", "a");
    let claim = db(&kit).claim(&web, now).unwrap();
    assert_eq!(statedb(&kit), "a/b:BACKUP_IN_PROGRESS\n");
    let error = db(&kit).claim(&web, now).unwrap_err();
    assert_eq!(status(&error), 3);
    assert!(error.to_string().contains(&format!("pid {}", Holder::me().pid)), "{error}");
    // Its status is not to be moved under its holder.
    for line in ["set CLEAN", "set BACKUP_NECESSARY", "forget"] {
        let args = line.split(' ').chain(["a/b", "--db", "db"]);
        kit.run("bak-state", args).expect(4).says("its claim is held");
    }
    assert_eq!(observe(&kit, "", &guest("a/b", json!({}))).clean().column("status"), ["BACKUP_IN_PROGRESS"]);
    claim.finish(Outcome::Necessary, now).unwrap();
    assert_eq!(statedb(&kit), "a/b:BACKUP_NECESSARY\n");
    db(&kit).claim(&web, now).unwrap().finish(clean("a/b", "a"), now).unwrap();
    assert_eq!(statedb(&kit), "a/b:CLEAN\n");
    kit.run("bak-state", ["set", "ARCHIVED", "a/b", "--db", "db"]).clean();
    assert_eq!(status(&db(&kit).claim(&web, now).unwrap_err()), 4);
    assert_eq!(statedb(&kit), "a/b:ARCHIVED\n");
}

#[test]
fn what_was_forced_under_a_claim_stays() {
    let kit = Kit::new();
    let now = STARTED.parse().unwrap();
    let claim = db(&kit).claim(&record("web", "a"), now).unwrap();
    kit.run("bak-state", ["set", "--force", "ARCHIVED", "web", "--db", "db"]).clean();
    claim.finish(clean("web", "a"), now).unwrap();
    assert_eq!(statedb(&kit), "web:ARCHIVED\n");
    kit.run("bak-state", ["set", "BACKUP_NECESSARY", "web", "--db", "db"]).clean();
    let claim = db(&kit).claim(&record("web", "a"), now).unwrap();
    kit.run("bak-state", ["forget", "--force", "web", "--db", "db"]).clean();
    claim.finish(clean("web", "a"), now).unwrap();
    assert_eq!(statedb(&kit), "");
}

#[test]
fn a_dead_workers_guest_is_due_when_the_last_of_them_is_gone() {
    let kit = Kit::new();
    let now = STARTED.parse().unwrap();
    let seen = || observe(&kit, "", &guest("web", json!({"fingerprint": "a"}))).clean().column("status");
    let claim = db(&kit).claim(&record("web", "a"), now).unwrap();
    // `cat` lives until its other input ends, whatever becomes of this test.
    let (end, input) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
    let mut child =
        std::process::Command::new("cat").stdin(input).stdout(claim.lock().share().unwrap()).spawn().unwrap();
    drop(claim);
    assert_eq!(seen(), ["BACKUP_IN_PROGRESS"], "its program still works");
    assert_eq!(status(&db(&kit).claim(&record("web", "a"), now).unwrap_err()), 3);
    drop(end);
    child.wait().unwrap();
    assert_eq!(seen(), ["BACKUP_NECESSARY"]);
    // A status that somebody set by hand has no worker either.
    kit.run("bak-state", ["set", "BACKUP_IN_PROGRESS", "web", "--db", "db"]).clean();
    assert_eq!(seen(), ["BACKUP_NECESSARY"]);
}

#[test]
fn many_claim_and_none_is_held_twice() {
    let kit = Kit::new();
    let now = STARTED.parse().unwrap();
    let wait = Duration::from_secs(30);
    let inside: Vec<std::sync::atomic::AtomicU32> = (0..10).map(|_| 0.into()).collect();
    let work = || {
        let db = Db::open(&kit.path("db"), wait).unwrap();
        for (at, inside) in inside.iter().enumerate() {
            let vm = format!("g{at}");
            let Ok(claim) = db.claim(&record(&vm, "a"), now) else { continue };
            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            claim.finish(clean(&vm, "a"), now).unwrap();
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| _ = scope.spawn(work)));
    assert_eq!(statedb(&kit).matches(":CLEAN\n").count(), 10);
    assert_eq!(statedb(&kit).lines().count(), 10);
}

#[test]
fn a_line_of_list_says_what_the_manual_says() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Dumped {
        id: String,
        started: String,
        fingerprint: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        v: u32,
        r#type: String,
        vm: String,
        kind: String,
        driver: String,
        state: String,
        status: String,
        seen: String,
        last_dump: String,
        dump: Dumped,
    }
    let kit = Kit::new();
    dump(&kit, "web", "a");
    let input = guest("web", json!({"fingerprint": "a", "state": "stopped"}));
    observe(&kit, "--now 2026-11-21T00:00:00Z", &input).clean();
    let line: Line = serde_json::from_str(&kit.run("bak-state", ["list", "--db", "db"]).clean().out).unwrap();
    assert_eq!((line.v, line.r#type.as_str(), line.vm.as_str(), line.status.as_str()), (1, "guest", "web", "CLEAN"));
    assert_eq!((line.kind.as_str(), line.driver.as_str(), line.state.as_str()), ("qemu", "image", "stopped"));
    assert_eq!((line.seen.as_str(), line.last_dump.as_str()), ("2026-11-21T00:00:00Z", STARTED));
    let dump = line.dump;
    assert_eq!(
        (dump.id.as_str(), dump.started.as_str(), dump.fingerprint.as_str()),
        ("web@20261120T010002Z", STARTED, "a")
    );
}
