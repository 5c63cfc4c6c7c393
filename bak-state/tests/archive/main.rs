//! `archive` and `activate` as their users see them, on one file system and across two.

use bak_tests::{Kit, Ran, bin, check_store, put_dump, sha256_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod crash;
mod disks;
mod refused;

const DAYS: [&str; 2] = ["2026-11-18T01:00:00Z", "2026-11-19T01:00:00Z"];
const IDS: [&str; 2] = ["web@20261118T010000Z", "web@20261119T010000Z"];
const NEWEST: &str = "store/web/web-20261119T010000Z";

/// Store and database in one directory, the archive beside them or on another file system.
struct Scene {
    kit: Kit,
    far: Option<Kit>,
}

impl Scene {
    /// Two guests with two dumps each, all of them CLEAN; one dump has companions.
    fn new(far: bool) -> Self {
        let kit = Kit::new();
        let far = far.then(|| Kit::new_in(Path::new("/dev/shm")));
        if let Some(far) = &far {
            let device = |kit: &Kit| fs::metadata(kit.store()).unwrap().dev();
            assert_ne!(device(&kit), device(far), "/dev/shm must be another file system than the temporary directory");
        }
        for day in DAYS {
            put(&kit, "web", day, 300_000);
            put(&kit, "db", day, 2000);
        }
        for (ending, text) in [("raw.notes", "notes"), ("raw.protected", ""), ("log", "log")] {
            kit.write(&format!("{NEWEST}.{ending}"), text);
        }
        kit.write("store/web/readme.txt", "mine");
        let scene = Self { kit, far };
        scene.statuses("web:CLEAN\ndb:CLEAN\n");
        scene
    }

    fn statuses(&self, text: &str) {
        self.kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
        self.kit.write("db/vmtool-statedb", text);
    }

    fn statedb(&self) -> String {
        fs::read_to_string(self.kit.path("db/vmtool-statedb")).unwrap()
    }

    fn archive(&self) -> PathBuf {
        self.far.as_ref().unwrap_or(&self.kit).path("archive")
    }

    fn argv(&self, line: &str) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![bin("bak-state").into()];
        argv.extend(line.split(' ').map(OsString::from));
        argv.extend(["--db", "db", "--store", "store", "--archive-dir"].map(OsString::from));
        argv.push(self.archive().into());
        argv
    }

    /// `line` is split at spaces.
    fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }

    fn run_with(&self, line: &str, input: &str) -> Ran {
        self.kit.run_with("bak-state", &self.argv(line)[1..], input)
    }

    /// The ids of the whole dumps in the store and in the archive, where nothing is broken or unfinished.
    #[track_caller]
    fn whole(&self) -> (Vec<String>, Vec<String>) {
        let look = |path: &Path| {
            let seen = check_store(path);
            assert!(seen.broken.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
            seen.whole
        };
        (look(&self.kit.store()), look(&self.archive()))
    }
}

/// A dump whose sidecar is written as bak itself writes it.
fn put(kit: &Kit, vm: &str, started: &str, bytes: usize) {
    put_dump(&kit.store(), vm, started, bytes, json!({}));
    let stem = format!("{vm}-{}", started.replace(['-', ':'], ""));
    let path = kit.store().join(vm).join(format!("{stem}.dump.json"));
    let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let order = ["v", "type", "id", "vm", "kind", "driver", "node", "started", "finished", "stem", "bytes", "files"];
    let ordered: serde_json::Map<String, Value> =
        order.iter().map(|key| ((*key).to_owned(), record[*key].clone())).collect();
    fs::write(&path, format!("{}\n", Value::Object(ordered))).unwrap();
}

/// Every visible file below `dir` with its mode, its time and its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, i64, String)> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if entry.file_name().to_str().unwrap().starts_with('.') {
                continue;
            }
            if meta.is_dir() {
                left.push(path);
            } else {
                let is_sidecar = path.to_str().unwrap().ends_with(".dump.json");
                let (mode, time) = if is_sidecar { (0, 0) } else { (meta.mode(), meta.mtime()) };
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), (mode, time, sha256_file(&path)));
            }
        }
    }
    found
}

fn moved<'r>(records: &'r [Value], how: &str) -> Vec<&'r str> {
    records.iter().filter(|r| r["moved"]["how"] == how).map(|r| r["id"].as_str().unwrap()).collect()
}

#[test]
fn there_and_back_again() {
    for (far, how) in [(false, "linked"), (true, "copied")] {
        let scene = Scene::new(far);
        let data = scene.kit.path(&format!("{NEWEST}.raw"));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o640)).unwrap();
        fs::File::open(&data)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1e9 as u64))
            .unwrap();
        let before = tree(&scene.kit.store());
        let inode = fs::metadata(&data).unwrap().ino();

        let ran = scene.run("archive web --now 2026-11-20T12:00:00Z").clean();
        let records = ran.records();
        assert_eq!(records.len(), 3);
        assert_eq!(records[0], json!({"v": 1, "type": "guest", "vm": "web", "status": "ARCHIVED", "was": "CLEAN"}));
        assert_eq!(moved(&records, how), IDS);
        let store = scene.kit.store().canonicalize().unwrap().join("web");
        let archive = scene.archive().canonicalize().unwrap().join("web");
        let note = json!({"from": store, "to": archive, "how": how, "at": "2026-11-20T12:00:00Z"});
        assert_eq!((&records[1]["moved"], &records[1]["dir"]), (&note, &json!(archive)));
        assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
        let (left, there) = scene.whole();
        assert_eq!((left.len(), &there[..]), (2, &IDS.map(str::to_owned)[..]));
        let mut split = tree(&scene.archive());
        assert_eq!(split.len(), 7, "two dumps, two sidecars, three companions");
        split.extend(tree(&scene.kit.store()));
        assert_eq!(split, before, "modes, times and contents go along");
        let there = scene.archive().join("web/web-20261119T010000Z.raw");
        assert_eq!(fs::metadata(&there).unwrap().ino() == inode, !far);
        assert_eq!(fs::metadata(scene.archive()).unwrap().mode() & 0o777, 0o700);

        // Done is done.
        assert_eq!(scene.run("archive web").clean().out, "");
        let records = scene.run("activate web").clean().records();
        assert_eq!(moved(&records, how), IDS);
        let back = json!({"v": 1, "type": "guest", "vm": "web", "status": "BACKUP_NECESSARY", "was": "ARCHIVED"});
        assert_eq!(records[2], back, "the status comes last");
        assert_eq!(scene.statedb(), "web:BACKUP_NECESSARY\ndb:CLEAN\n");
        assert_eq!(tree(&scene.kit.store()), before);
        assert_eq!(tree(&scene.archive()), BTreeMap::new());
        assert!(!scene.archive().join("web").exists(), "an empty directory of a guest goes");
        scene.run("activate web").expect(4).says("bak-state: web: it is not ARCHIVED: it is BACKUP_NECESSARY");
    }
}

#[test]
fn unknown_fields_of_a_sidecar_survive() {
    let scene = Scene::new(true);
    put_dump(&scene.kit.store(), "web", DAYS[0], 100, json!({"x-mine": [1, {"a": "b"}], "protected": true}));
    scene.run("archive web").clean();
    scene.run("activate web").clean();
    let text = fs::read(scene.kit.path("store/web/web-20261118T010000Z.dump.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&record["x-mine"], &record["protected"]), (&json!([1, {"a": "b"}]), &json!(true)));
    assert!(record["moved"].is_null() && record["dir"].is_null());
}

#[test]
fn a_plan_changes_nothing_and_is_what_happens() {
    for far in [false, true] {
        let scene = Scene::new(far);
        let before = tree(&scene.kit.store());
        let planned = scene.run("archive -n web --now 2026-11-20T12:00:00Z").clean();
        assert!(!scene.archive().exists() && !scene.kit.path("db/claims").exists());
        assert!(!scene.kit.path("store/.bak").exists());
        assert_eq!((tree(&scene.kit.store()), scene.statedb()), (before, "web:CLEAN\ndb:CLEAN\n".to_owned()));
        assert!(planned.records().iter().all(|record| record["planned"] == true));
        scene.run_with("archive -", &planned.out).expect(2).says("dry run");
        let done = scene.run("archive web --now 2026-11-20T12:00:00Z").clean();
        let strip = |ran: &Ran| -> Vec<Value> {
            let mut records = ran.records();
            for record in &mut records {
                let record = record.as_object_mut().unwrap();
                record.remove("planned");
                // The archive's path is made whole once it is there.
                if let Some(moved) = record.get_mut("moved") {
                    moved["to"] = json!(Path::new(moved["to"].as_str().unwrap()).canonicalize().unwrap());
                    record["dir"] = record["moved"]["to"].clone();
                }
            }
            records
        };
        assert_eq!(strip(&planned), strip(&done));
        let planned = scene.run("activate -n web").clean().records();
        assert_eq!((planned.len(), &planned[2]["planned"]), (3, &json!(true)));
        assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
        assert_eq!(scene.whole().1.len(), 2);
    }
}

#[test]
fn several_at_once_by_pattern_pipe_and_all() {
    let scene = Scene::new(false);
    let guest = |vm: &str| format!("{}\n", json!({"v": 1, "type": "guest", "vm": vm}));
    scene.run_with("archive -", &(guest("db") + &guest("web"))).clean();
    assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:ARCHIVED\n");
    assert_eq!(scene.whole().1.len(), 4);
    // A pattern passes over those that are not archived; a name does not.
    scene.statuses("web:ARCHIVED\ndb:ARCHIVED\nnew:NEW\n");
    assert_eq!(scene.run("activate -q w* n*").clean().out, "");
    scene.run("activate new").expect(4).says("new: it is not ARCHIVED");
    let ran = scene.run("activate --all").clean();
    assert_eq!(moved(&ran.records(), "linked").len(), 2);
    assert_eq!(scene.statedb(), "web:BACKUP_NECESSARY\ndb:BACKUP_NECESSARY\nnew:NEW\n");
    let ran = scene.run("archive web wbe db").expect(4).says("wbe: no such guest is in the database");
    assert_eq!(moved(&ran.records(), "linked").len(), 4, "the others are done");
    scene.run("archive x*").expect(1).says("no guest in the database fits");
    scene.run("archive").expect(2).says("say which");
}

/// More guests than are claimed at a time.
#[test]
fn many() {
    let scene = Scene::new(false);
    let names: Vec<String> = (0..150).map(|at| format!("g{at}")).collect();
    for name in &names {
        put(&scene.kit, name, DAYS[0], 10);
    }
    scene.statuses(&names.iter().map(|name| format!("{name}:CLEAN\n")).collect::<String>());
    let ran = scene.run("archive --all").clean();
    assert_eq!(moved(&ran.records(), "linked").len(), 150);
    assert_eq!(scene.statedb().matches(":ARCHIVED\n").count(), 150);
    assert_eq!(scene.whole().1.len(), 150);
}

#[test]
fn every_status_by_legal_moves() {
    let scene = Scene::new(false);
    for status in ["NEW", "BACKUP_NECESSARY", "CLEAN", "RUNNING"] {
        scene.statuses(&format!("web:{status}\n"));
        assert_eq!(scene.run("archive web").clean().column("was")[0], status);
        scene.run("activate web").clean();
    }
    // Nobody holds its claim: whoever began it is dead.
    scene.statuses("web:BACKUP_IN_PROGRESS\n");
    let records = scene.run("archive web").clean().records();
    assert_eq!((&records[0]["status"], &records[1]["status"]), (&json!("BACKUP_NECESSARY"), &json!("ARCHIVED")));
    assert_eq!(scene.statedb(), "web:ARCHIVED\n");
    // Its status was set by hand: what lies in the archive comes back all the same, and the status stays.
    scene.statuses("web:CLEAN\n");
    assert_eq!(moved(&scene.run("activate web").clean().records(), "linked"), IDS);
    assert_eq!(scene.statedb(), "web:CLEAN\n");
    for help in ["archive", "activate"] {
        let help = scene.kit.run("bak-state", [help, "--help"]).clean().out;
        assert!(help.contains("  ARCHIVED            -> BACKUP_NECESSARY\n"), "{help}");
    }
}

#[test]
fn a_table_and_nothing() {
    let scene = Scene::new(false);
    let line = "bak-state archive web --db db --store store --archive-dir archive";
    let ran = scene.kit.sh(&format!("script -qec 'stty cols 250; {line}' /dev/null"));
    let ran = ran.expect(0);
    assert!(ran.out.contains("WHAT") && ran.out.contains("linked") && ran.out.contains("ARCHIVED"), "{}", ran.out);
    assert_eq!(scene.run("activate -q web").clean().out, "");
    let log = scene.kit.path("log");
    scene.kit.write("bak.toml", format!("log = {:?}\n", log.display().to_string()));
    scene.run("archive -q web --config bak.toml").clean();
    assert_eq!(fs::read_to_string(log).unwrap().lines().count(), 3, "what was done is in the log");
}

/// bak-dump and bak-prune see the archive as the store that it is.
#[test]
fn the_other_programs_see_it() {
    let scene = Scene::new(false);
    scene.run("archive db").clean();
    let listed = |dir: &Path| scene.kit.run("bak-list", [dir]).clean().column("id");
    assert_eq!(listed(&scene.archive()), ["db@20261118T010000Z", "db@20261119T010000Z"]);
    assert_eq!(listed(&scene.kit.store()).len(), 2);
    let status =
        Command::new(bin("bak-prune")).arg(scene.archive()).args(["--keep-last", "1"]).stdout(Stdio::null()).status();
    assert!(status.unwrap().success());
    scene.run("activate db").clean();
    assert_eq!(scene.whole().0.len(), 3);
}
