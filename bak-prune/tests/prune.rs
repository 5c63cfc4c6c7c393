//! bak-prune as users run it, on real stores.

use bak_tests::{Kit, Ran, bin, check_store, finish, put_dump};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const NOW: &str = "2026-11-20T12:00:00Z";

/// What a line of the output may hold, and nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Line {
    v: u32,
    r#type: String,
    id: String,
    vm: String,
    #[serde(default)]
    tags: Vec<String>,
    kind: String,
    driver: String,
    node: String,
    started: String,
    finished: String,
    dir: String,
    stem: String,
    bytes: u64,
    files: Vec<Value>,
    prune: Note,
    #[serde(default)]
    planned: bool,
    expires: Option<String>,
    #[serde(default)]
    protected: bool,
    result: Option<String>,
    x_mine: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    decision: String,
    reasons: Vec<String>,
}

fn lines(ran: &Ran) -> Vec<Line> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// `id: decision: reasons` of each line.
fn told(ran: &Ran) -> Vec<String> {
    let tell = |line: Line| format!("{}: {}: {}", line.id, line.prune.decision, line.prune.reasons.join("; "));
    lines(ran).into_iter().map(tell).collect()
}

fn prune<'a>(kit: &Kit, args: impl IntoIterator<Item = &'a str>) -> Ran {
    prune_with(kit, args, "")
}

fn prune_with<'a>(kit: &Kit, args: impl IntoIterator<Item = &'a str>, input: &str) -> Ran {
    let args = args.into_iter().chain(["--tz", "UTC", "--now", NOW]);
    kit.run_with("bak-prune", args, input)
}

/// A store with a dump of `vm` at 01:00 on each of these days of November.
fn days(kit: &Kit, vm: &str, days: impl IntoIterator<Item = u32>) -> Vec<String> {
    days.into_iter().map(|day| kit.dump(vm, &format!("2026-11-{day:02}T01:00:00Z"), 100)).collect()
}

/// Every file below `dir`, hidden ones too, with its content; locks are not content.
fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => todo.push(path),
                false => _ = all.insert(path.to_str().unwrap().to_owned(), fs::read(&path).unwrap()),
            }
        }
    }
    all
}

#[test]
fn removes_what_no_rule_keeps_and_says_why() {
    let kit = Kit::new();
    let web = days(&kit, "web", [17, 18, 19, 20]);
    kit.dump("web", "2026-11-18T13:00:00Z", 5);
    let ran = prune(&kit, ["store", "--keep-daily", "3"]).clean();
    assert_eq!(
        told(&ran),
        [
            format!("{}: remove: daily: 3 of 3 used, oldest 2026-11-18", web[0]),
            format!("{}: remove: daily 2026-11-18 is held by web@20261118T130000Z", web[1]),
        ]
    );
    let seen = check_store(&kit.store());
    assert_eq!(seen.whole, ["web@20261118T130000Z", &web[2], &web[3]]);
    assert!(seen.strange.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
    let ran = prune(&kit, ["store", "--keep-daily", "3", "--explain"]).clean();
    assert_eq!(
        told(&ran),
        [
            "web@20261118T130000Z: keep: daily #3, 2026-11-18".to_owned(),
            format!("{}: keep: daily #2, 2026-11-19", web[2]),
            format!("{}: keep: daily #1, 2026-11-20", web[3]),
        ]
    );
}

#[test]
fn a_dry_run_says_what_the_real_one_does_and_changes_nothing() {
    let kit = Kit::new();
    days(&kit, "web", 10..20);
    put_dump(&kit.store(), "web", "2026-11-01T01:00:00Z", 9, json!({"result": "failed"}));
    put_dump(&kit.store(), "db", "2026-11-01T01:00:00Z", 9, json!({"protected": true, "x_mine": 7}));
    let before = snapshot(&kit.store());
    for more in [&["--explain"][..], &[]] {
        let args = ["store", "--keep-last", "2", "--keep-weekly", "1"].into_iter().chain(more.iter().copied());
        let planned = prune(&kit, args.clone().chain(["-n"])).clean();
        assert_eq!(snapshot(&kit.store()), before);
        assert!(lines(&planned).iter().all(|line| line.planned));
        if more.is_empty() {
            let done = prune(&kit, args).clean();
            assert!(lines(&done).len() == 8 && lines(&done).iter().all(|line| !line.planned));
            assert_eq!(planned.out.replace(r#","planned":true"#, ""), done.out);
            prune(&kit, ["-n", "store", "--keep-last", "2"]).clean();
            let again = prune(&kit, ["store", "--keep-last", "2", "--keep-weekly", "1"]).clean();
            assert_eq!(again.out, "", "it is idempotent");
        } else {
            assert!(planned.out.contains("\"x_mine\":7"), "unknown fields pass through");
        }
    }
    // What a dry run printed is refused by a real run, and taken by another dry run.
    let line = prune(&kit, ["store", "-n", "--explain", "--keep-last", "1"]).clean().out;
    prune_with(&kit, ["--store", "store", "-"], &line).expect(2).says("dry run");
}

#[test]
fn similar_names_foreign_files_and_other_stores_are_let_alone() {
    let kit = Kit::new();
    let web = days(&kit, "web", [18, 19]);
    let web2 = days(&kit, "web-2", [18, 19]);
    let foreign = [
        "store/web/web-20261118T010000Z.raw.bak",
        "store/web/web-20261118T010000Z",
        "store/web/notes.txt",
        "store/web-20261118T010000Z.raw",
        "store/.outbox-box/web/web-20261118T010000Z.raw",
        "store/stray.dump.json.tmp",
    ];
    for name in foreign {
        kit.write(name, "mine");
    }
    for name in ["raw.notes", "raw.protected.old", "log"] {
        kit.write(&format!("store/web/web-20261118T010000Z.{name}"), "companion or not");
    }
    let ran = prune(&kit, ["store", "--guest", "web", "--keep-last", "1"]).clean();
    assert_eq!(ran.column("id"), [web[0].as_str()]);
    for name in foreign {
        assert_eq!(fs::read(kit.path(name)).unwrap(), b"mine", "{name}");
    }
    assert!(kit.path("store/web/web-20261118T010000Z.raw.protected.old").exists());
    for companion in ["log", "raw.notes"] {
        assert!(!kit.path(&format!("store/web/web-20261118T010000Z.{companion}")).exists(), "{companion}");
    }
    assert_eq!(check_store(&kit.store()).whole, [&web2[0], &web2[1], &web[1]].map(String::as_str));
}

#[test]
fn spared_is_a_decision_by_rule_and_a_refusal_by_name() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    kit.write("store/web/web-20261110T010000Z.raw.protected", "");
    let ahead = kit.dump("web", "2027-01-01T01:00:00Z", 7);
    let expired = put_dump(&kit.store(), "db", "2026-11-02T01:00:00Z", 9, json!({"expires": "2026-11-03T00:00:00Z"}));
    let ran = prune(&kit, ["store", "--keep-within", "1d", "--explain"]).expect(0);
    assert_eq!(
        ran.err,
        format!("bak-prune: {ahead}: it is dated in the future: not counted; its id with --force removes it\n")
    );
    assert_eq!(
        told(&ran),
        [
            format!("{expired}: spared: it is the last good dump of its guest; expired 2026-11-03T00:00:00Z"),
            format!("{}: spared: it is protected", web[0]),
            format!("{}: remove: within 24 h: too old by 8.5 d", web[1]),
            format!("{}: spared: it is the last good dump of its guest; within 24 h: too old by 7.5 d", web[2]),
            format!("{ahead}: spared: it is dated in the future: not counted"),
        ]
    );
    let fresh = days(&kit, "web", [11])[0].clone();
    let before = snapshot(&kit.path("store/web"));
    for (spared, why) in [(&web[0], "protected"), (&web[2], "last good dump"), (&ahead, "future")] {
        let ran = prune(&kit, ["--store", "store", &fresh, spared]).expect(4).says(why);
        assert_eq!((ran.out.as_str(), snapshot(&kit.path("store/web"))), ("", before.clone()), "nothing is removed");
    }
    let ran = prune(&kit, ["store", &fresh]).clean();
    assert_eq!(told(&ran), [format!("{fresh}: remove: removed by name")]);
}

#[test]
fn by_name_from_a_pipe() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    let line = |id: &str, vm: &str, day: &str, more: &str| {
        format!(
            "{{\"v\":1,\"type\":\"dump\",\"id\":\"{id}\",\"vm\":\"{vm}\",\"kind\":\"nonsense\",\"driver\":\"x\",\
             \"started\":\"2026-11-{day}T01:00:00Z\",\"finished\":\"2026-11-12T01:00:00Z\",\"stem\":\"other\",\
             \"bytes\":0,\"files\":[]{more}}}\n"
        )
    };
    let input = [
        line(&web[0], "web", "10", ",\"x_mine\":5"),
        "no record\n".to_owned(),
        line("db@20261111T010000Z", "db", "11", ""),
        "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\",\"driver\":\"image\"}\n".to_owned(),
    ]
    .concat();
    let ran = prune_with(&kit, ["store", "-"], &input).expect(1);
    for text in ["standard input, line 2", "db@20261111T010000Z: there is no such dump in ", "web: this is a guest"] {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
    let told = lines(&ran);
    // Input selects, it never describes: what is known comes from disk, what is not from the pipe.
    assert_eq!((told.len(), told[0].kind.as_str(), told[0].x_mine), (1, "qemu", Some(5)));
    assert_eq!(check_store(&kit.store()).whole, [web[1].as_str(), &web[2]]);
    prune_with(&kit, ["--store", "store", "-"], "").clean();
    prune(&kit, ["--store", "store", &web[0]]).expect(1).says("there is no such dump");
}

#[test]
fn what_cannot_be_read_blocks_its_guest() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    let db = days(&kit, "db", [10, 11, 12]);
    kit.write("store/web/web-20261119T010000Z.dump.json", "{\"v\":1,");
    let ran = prune(&kit, ["store", "--keep-last", "1", "--explain"]).expect(1);
    assert!(ran.err.contains("web/web-20261119T010000Z.dump.json: ") && ran.err.lines().count() == 2, "{}", ran.err);
    assert_eq!(told(&ran)[0], format!("{}: remove: last: 1 of 1 used, oldest 2026-11-12 01:00", db[0]));
    assert!(told(&ran)[3].starts_with(&format!("{}: spared: {}", web[0], kit.store().display())), "{}", told(&ran)[3]);
    assert_eq!(check_store(&kit.store()).whole, [db[2].as_str(), &web[0], &web[1], &web[2]]);
    // Not even an order is carried out, and whom it does not concern is not told.
    prune(&kit, ["store", &web[0]]).expect(1).says("not removed");
    assert_eq!(check_store(&kit.store()).whole.len(), 4);
    prune(&kit, ["store", "--guest", "db", "--keep-last", "1"]).clean();
}

#[test]
fn a_directory_that_cannot_be_listed_blocks_the_store() {
    let kit = Kit::new();
    days(&kit, "web", [10, 11]);
    // Nested beyond what is followed: it stands for any directory that cannot be read, even by root.
    fs::create_dir_all(kit.store().join("deep/".repeat(40))).unwrap();
    let ran = prune(&kit, ["store", "--keep-last", "1"]).expect(1).says("nothing in this store is removed");
    assert_eq!((ran.out.as_str(), check_store(&kit.store()).whole.len()), ("", 2));
}

#[test]
fn dumps_that_lost_their_files() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    fs::remove_file(kit.path("store/web/web-20261112T010000Z.raw")).unwrap();
    kit.write("store/web/web-20261110T010000Z.raw", "short");
    let ran = prune(&kit, ["store", "--keep-last", "1"]).clean();
    let short = "its file web-20261110T010000Z.raw has 5 bytes instead of 100";
    assert_eq!(
        told(&ran),
        [
            format!("{}: remove: {short}, and it is older than all that is kept ({})", web[0], web[1]),
            format!("{}: remove: its files are gone", web[2]),
        ]
    );
    assert_eq!(check_store(&kit.store()).whole, [web[1].as_str()]);
}

#[test]
fn rules_of_the_configuration_and_of_a_destination() {
    let kit = Kit::new();
    let far = kit.path("far");
    for day in 10..16 {
        for (store, vm) in [(kit.store(), "web"), (kit.store(), "db"), (far.clone(), "web")] {
            put_dump(&store, vm, &format!("2026-11-{day}T01:00:00Z"), 10, json!({"tags": [vm]}));
        }
    }
    let config = format!(
        "store = \"{}\"\nkeep = {{ last = 2 }}\n[[dest]]\nname = \"box\"\nurl = \"{}/\"\nkeep = {{ last = 4 }}\n\
         [[guest]]\nmatch = [\"db\"]\nkeep = {{ last = 5 }}\n",
        kit.store().display(),
        far.display()
    );
    kit.write("bak.toml", config);
    let count = |args: &[&str]| {
        prune(&kit, args.iter().copied().chain(["--config", "bak.toml", "-n"])).clean().out.lines().count()
    };
    assert_eq!(count(&["--all"]), 4 + 1);
    assert_eq!(count(&["--guest", "w*"]), 4);
    assert_eq!(count(&["--tag", "db"]), 1);
    assert_eq!(count(&["far"]), 2, "the rules of the destination hold in its copy");
    assert_eq!(count(&["--all", "--keep-last", "3"]), 6, "the command line beats the configuration, all of it");
    assert_eq!(count(&["--all", "--keep-all"]), 0);
    let none = kit.write("none.toml", format!("store = \"{}\"\n", kit.store().display()));
    let ran = prune(&kit, ["--all", "--explain", "--config", none.to_str().unwrap()]).clean();
    assert!(told(&ran).iter().all(|line| line.ends_with("keep: no rule says what to keep: everything is kept")));
    let checked = prune(&kit, ["--check-config", "--config", "bak.toml"]).clean().records();
    assert_eq!((checked[0]["vm"].as_str(), checked[0]["keep"]["last"].as_u64()), (Some("db"), Some(5)));
    assert_eq!(checked[1]["keep_at"]["box"]["last"].as_u64(), Some(4));
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11]);
    let before = snapshot(&kit.store());
    for (args, why) in [
        (&["--keep-last", "1"][..], "say what to prune"),
        (&["--store", "store", "--keep-last", "1"], "say what to prune"),
        (&["--all"], "no store"),
        (&["missing", "--keep-last", "1"], "there is no store at missing"),
        (&["store", "missing", "--keep-last", "1"], "there is no store at missing"),
        (&["me@box:dumps", "--free", "1G"], "me@box:dumps cannot be known"),
        (&["me@box:dumps", "--protect", &web[0]], "nothing over there is ever overwritten"),
        (&["s3://box/dumps", "--keep-last", "1"], "`s3://box/dumps` is no destination"),
        (&["--dest", "box", "--keep-last", "1"], "there is no destination `box`"),
        (
            &["--dest", "box=me@box:dumps", "--limit", "1G/day"],
            "nothing tells what was used of the limits of me@box:dumps",
        ),
        (&["store", "--store", "store"], "not both"),
        (&["store", "--keep-last=-1"], "--keep-last"),
        (&["store", "--keep-all", "--keep-last", "1"], "cannot be used with"),
        (&["store", &web[0], "--keep-last", "1"], "do not apply"),
        (&["store", "-", "--guest", "web"], "do not apply"),
        (&["store", "--guest", "a["], "no name or pattern"),
        (&["store", "--force", "--keep-last", "1"], "--force goes with the ids"),
        (&["store", &web[0], "--keep-failed", "1"], "do not apply"),
        (&["store", "--keep-last", "1", "--max-remove", "101%"], "neither a number nor a share"),
    ] {
        prune(&kit, args.iter().copied()).expect(2).says(why);
        assert_eq!(snapshot(&kit.store()), before, "{args:?}");
    }
    prune(&kit, ["store", "--guest", "wbe", "--keep-last", "1"]).expect(1).says("wbe: no guest");
}

#[test]
fn more_than_may_go_is_refused_as_a_whole() {
    let kit = Kit::new();
    let web = days(&kit, "web", 10..20);
    let other = kit.path("other");
    for day in 10..20 {
        put_dump(&other, "db", &format!("2026-11-{day}T01:00:00Z"), 10, json!({}));
    }
    let state = || (snapshot(&kit.store().join("web")), snapshot(&other.join("db")));
    let before = state();
    let stores = ["store", "other", "--keep-last", "2"];
    for most in ["15", "79%", "0"] {
        for more in [&["-n"][..], &[]] {
            let most = ["--max-remove", most];
            let args = stores.iter().chain(&most).chain(more).copied();
            let ran = prune(&kit, args).expect(4).says("16 of 20 dumps would go").says("nothing was removed");
            assert!(ran.out.is_empty() && state() == before, "{}", ran.out);
        }
    }
    prune(&kit, ["store", &web[0], &web[1], "--max-remove", "1"]).expect(4);
    assert_eq!(prune(&kit, stores.iter().chain(&["--max-remove", "80%"]).copied()).clean().out.lines().count(), 16);
    // Nothing to do is never too much.
    prune(&kit, stores.iter().chain(&["--max-remove", "0"]).copied()).clean();
}

#[test]
fn dates_that_cannot_be_right() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11]);
    let odd = kit.dump("web", "2010-01-01T00:00:00Z", 10);
    let ahead = kit.dump("web", "2026-11-20T14:00:00Z", 10);
    let touched = |name: &str, time: &str| kit.sh(&format!("touch -d {time} store/web/{name}.raw")).clean();
    touched("web-20100101T000000Z", "2026-11-20T02:00:00Z");
    let ran =
        prune(&kit, ["store", "--keep-last", "1"]).expect(0).says("a dump is dated oddly, as web@20100101T000000Z");
    assert_eq!((ran.column("id"), ran.err.lines().count()), (vec![web[0].clone()], 2));
    prune(&kit, ["store", &odd]).expect(4).says("its files were written 2026-11-20T02:00:00Z");
    prune(&kit, ["store", &ahead]).expect(4).says("future");
    prune(&kit, ["store", &web[1], "--force"]).expect(4).says("last good dump");
    let ran = prune(&kit, ["store", "--force", &odd, &ahead]).clean();
    assert_eq!(ran.column("id"), [odd, ahead]);
    // With another allowance it is no more than a clock that is ahead.
    let ahead = kit.dump("web", "2026-11-20T14:00:00Z", 10);
    let ran = prune(&kit, ["store", "--keep-last", "1", "--skew", "2h", "--explain"]).clean();
    assert_eq!(told(&ran)[1], format!("{ahead}: keep: last #1, 2026-11-20 14:00"));
}

#[test]
fn copies_links_and_failures_in_a_store() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    kit.sh("mkdir store/old && cp -a store/web store/old/ && mkdir else && ln -s ../else store/else").clean();
    kit.sh("ln -s ../else/nothing store/web/broken && ln -s web-20261110T010000Z.raw store/web/file").clean();
    let ran = prune(&kit, ["store", "--keep-last", "2"]).expect(0);
    assert_eq!(ran.column("id"), [web[0].clone(), web[0].clone()], "{ran:?}");
    assert!(ran.err.lines().count() == 1 && ran.err.contains("store/else: a symbolic link to a directory"), "{ran:?}");
    kit.sh("rm store/else").clean();
    for day in [14, 15] {
        put_dump(&kit.store(), "web", &format!("2026-11-{day}T01:00:00Z"), 9, json!({"result": "failed"}));
    }
    let ran = prune(&kit, ["store", "--keep-last", "2", "--keep-failed", "1"]).clean();
    assert_eq!(ran.column("id"), ["web@20261114T010000Z"]);
    kit.write("bak.toml", "keep = { last = 2, failed = 0 }\n");
    let ran = prune(&kit, ["store", "--config", "bak.toml"]).clean();
    assert_eq!(ran.column("id"), ["web@20261115T010000Z"]);
}

#[test]
fn quiet_is_silent_and_helpful_is_complete() {
    let kit = Kit::new();
    days(&kit, "web", [10, 11]);
    kit.dump("web", "2030-01-01T00:00:00Z", 1);
    let ran = prune(&kit, ["-q", "store", "--keep-last", "1"]).clean();
    assert_eq!((ran.out.as_str(), check_store(&kit.store()).whole.len()), ("", 2));
    let help = prune(&kit, ["--help"]).clean().out;
    for text in ["Examples:", "Exit status:", "--keep-within", "--dry-run"] {
        assert!(help.contains(text), "{text}");
    }
    assert!(prune(&kit, ["-V"]).clean().out.starts_with("bak-prune "));
}

#[test]
fn a_table_on_a_terminal() {
    let kit = Kit::new();
    days(&kit, "web", [10, 11]);
    let line = format!("{} store --keep-last 1 --explain --now {NOW} --tz UTC", bin("bak-prune").display());
    let ran = kit.sh(&format!("script -qec 'stty cols 140; {line}' /dev/null")).expect(0);
    for text in ["DUMP", "DECISION", "web@20261110T010000Z", "last #1", "1 dump, 100 B, removed"] {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }
}

#[test]
fn decisions_go_into_the_log() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11]);
    kit.write("bak.toml", format!("log = \"{}\"\n", kit.path("log").display()));
    prune(&kit, ["-q", "store", "--keep-last", "1", "--config", "bak.toml"]).clean();
    let log = fs::read_to_string(kit.path("log")).unwrap();
    let record: Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!((record["id"].as_str(), record["prune"]["decision"].as_str()), (Some(web[0].as_str()), Some("remove")));
}

#[test]
fn a_dump_that_cannot_be_removed_is_named_and_the_next_run_tries_again() {
    let kit = Kit::new();
    let web = days(&kit, "web", [10, 11, 12]);
    let args = ["store", "--keep-last", "1", "--now", NOW];
    // The first unlink of a data file fails.
    let mut strace = kit.command("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat", "-e", "inject=unlinkat:error=EIO:when=3"]);
    let ran = finish_with(strace, &args);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let named = web.iter().filter(|id| ran.err.contains(&format!("bak-prune: {id}: cannot remove the dump: "))).count();
    assert_eq!(named, 1, "{}", ran.err);
    assert_eq!(ran.records().len(), 1, "the other is gone");
    kit.run("bak-prune", args).clean();
    let seen = check_store(&kit.store());
    assert_eq!(seen.whole, [web[2].as_str()]);
    assert!(seen.strange.is_empty() && seen.unfinished.is_empty() && seen.broken.is_empty(), "{seen:?}");
}

fn finish_with(mut command: std::process::Command, args: &[&str]) -> Ran {
    command.arg(bin("bak-prune")).args(args);
    finish(command, "")
}

#[test]
fn killed_at_any_moment_the_next_run_finishes() {
    for call in ["renameat2", "fsync", "unlinkat", "openat"] {
        // Until there is no such call left to be killed at.
        for when in (1..).step_by(if call == "openat" { 7 } else { 1 }) {
            let kit = Kit::new();
            let web = days(&kit, "web", [10, 11, 12]);
            kit.write("store/web/web-20261110T010000Z.log", "companion");
            kit.write("store/web/mine.txt", "foreign");
            let mut strace = kit.command("strace");
            let (trace, kill) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &kill]);
            let ran = finish_with(strace, &["store", "--keep-last", "1", "--now", NOW]);
            let seen = check_store(&kit.store());
            assert!(seen.broken.is_empty() && seen.whole.contains(&web[2]), "{call} {when}: {seen:?}");
            if ran.status == 0 {
                assert!(when > 1, "{call} is not called at all");
                break;
            }
            assert!(ran.status == -9 || ran.status == 137, "{call} {when}: {ran:?}");
            kit.run("bak-prune", ["store", "--keep-last", "1", "--now", NOW]).clean();
            let seen = check_store(&kit.store());
            assert_eq!(seen.whole, [web[2].as_str()], "{call} {when}");
            assert_eq!((seen.strange, seen.unfinished), (vec!["web/mine.txt".to_owned()], vec![]), "{call} {when}");
        }
    }
}

#[test]
fn two_prunes_at_once_and_a_store_that_is_locked() {
    let kit = Kit::new();
    let web = days(&kit, "web", 1..20);
    kit.sh(&format!(
        "bak-prune store --keep-last 3 --now {NOW} >a & bak-prune store --keep-daily 5 --now {NOW} >b & wait; wait"
    ))
    .clean();
    let mut removed: Vec<Value> = ["a", "b"]
        .iter()
        .flat_map(|name| {
            fs::read_to_string(kit.path(name))
                .unwrap()
                .lines()
                .map(|l| serde_json::from_str(l).unwrap())
                .collect::<Vec<Value>>()
        })
        .collect();
    removed.sort_by_key(|record| record["id"].as_str().unwrap().to_owned());
    let removed: Vec<&str> = removed.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(removed, &web[..16], "each dump is removed by one of them");
    assert_eq!(check_store(&kit.store()).whole, &web[16..]);
    kit.sh(&format!("flock store/.bak/lock bak-prune store --keep-last 1 --wait 0 --now {NOW}")).expect(3);
    kit.sh(&format!("flock store/.bak/lock bak-prune store --keep-last 1 --wait 0 --now {NOW} -n")).clean();
}

#[test]
fn a_dump_cannot_own_what_is_another_guests() {
    let kit = Kit::new();
    let prod = kit.dump("web.prod", "2026-11-03T01:00:00Z", 100);
    let file = "web.prod-20261103T010000Z";
    for name in [format!("{file}.raw"), format!("{file}.dump.json")] {
        let bytes = fs::metadata(kit.store().join("web.prod").join(&name)).unwrap().len();
        let record = serde_json::json!({"v": 1, "type": "dump", "id": "web@20251101T010000Z", "vm": "web", "kind": "qemu", "driver": "image",
            "started": "2025-11-01T01:00:00Z", "finished": "2025-11-01T01:00:00Z", "stem": "web", "bytes": bytes, "files": [{"name": name, "bytes": bytes}]});
        kit.write("store/web.prod/web.dump.json", record.to_string());
        kit.run("bak-prune", ["store", "--guest", "web", "--keep-last", "1"]).expect(1);
        fs::remove_file(kit.store().join("web.prod/web.dump.json")).unwrap();
    }
    assert_eq!(bak_tests::check_store(&kit.store()).whole, [prod]);
}

#[test]
fn a_dump_without_files_covers_nothing() {
    let kit = Kit::new();
    let real = kit.dump("web", "2026-11-18T01:00:00Z", 100);
    bak_tests::put_dump(&kit.store(), "web", "2026-11-19T01:00:00Z", 0, serde_json::json!({"files": []}));
    fs::remove_file(kit.store().join("web/web-20261119T010000Z.raw")).unwrap();
    kit.run("bak-prune", ["store", "--keep-last", "1"]).clean();
    assert!(kit.store().join("web/web-20261118T010000Z.raw").exists(), "{real}");
}

#[test]
fn a_full_disk_can_be_pruned() {
    let kit = Kit::new();
    if kit.sh("test $(id -u) = 0").status != 0 {
        eprintln!("not root: nothing is tested");
        return;
    }
    kit.sh("truncate -s 24M disk && mkfs.ext4 -q -m 0 disk && mkdir m && mount -o loop disk m && mountpoint -q m")
        .clean();
    // The dumps are made by the store itself, as a dump made by hand has no place to be dropped to.
    let made = kit.sh(
        "mkdir m/s && for day in 16 17 18 19; do bak-test-store add m/s web 2026-11-${day}T01:00:00Z 300000 || exit; done; \
         { cat /dev/zero >m/fill; } 2>/dev/null; sync; { cat /dev/zero >m/fill2; } 2>/dev/null; i=0; \
         while { echo x >m/f$i; } 2>/dev/null; do i=$((i+1)); done; sync; df --output=avail m | tail -n 1",
    );
    let ran = kit.run("bak-prune", ["m/s", "--keep-last", "1"]);
    let left = bak_tests::check_store(&kit.path("m/s"));
    kit.sh("umount m").expect(0);
    assert_eq!(made.out.trim(), "0", "{made:?}");
    ran.clean();
    assert_eq!((left.whole.len(), left.broken.len(), left.strange.len()), (1, 0, 0), "{left:?}");
}

/// From some number on their directory is listed once, instead of asked for each name.
#[test]
fn many_dumps_go_with_all_that_belongs_to_them_and_nothing_else() {
    let kit = Kit::new();
    for hour in 0..48 {
        let start = format!("2026-11-{:02}T{:02}:00:00Z", 10 + hour / 24, hour % 24);
        kit.dump("web", &start, 10);
        let stem = format!("store/web/web-{}", bak_tests::compact(&start));
        for (ending, text) in [("log", "said"), ("raw.notes", "note"), ("raw.txt", "mine"), ("raw.log", "mine")] {
            kit.write(&format!("{stem}.{ending}"), text);
        }
    }
    assert_eq!(prune(&kit, ["store", "--keep-last", "1"]).clean().out.lines().count(), 47);
    let left = snapshot(&kit.store());
    let ending = |ending: &str| left.keys().filter(|name| name.ends_with(ending)).count();
    assert_eq!([".raw", ".dump.json", "00Z.log", ".notes"].map(ending), [1; 4]);
    assert_eq!([".raw.txt", ".raw.log"].map(ending), [48; 2]);
}

#[test]
fn without_a_rule_everything_stays_and_a_terminal_says_so() {
    let kit = Kit::new();
    kit.dump("web", "2026-11-18T02:00:00Z", 10);
    let shown = |more: &str| kit.sh(&format!("script -qec 'bak-prune store --all {more}' /dev/null")).out;
    let text = shown("");
    assert!(text.contains("store: no rule says what to keep, so everything is kept"), "{text}");
    assert!(!shown("--keep-last 1").contains("no rule"));
    assert_eq!(check_store(&kit.store()).whole.len(), 1);
}

#[test]
fn the_last_line_says_what_was_done() {
    let kit = Kit::new();
    for day in 11..=15 {
        kit.dump("web", &format!("2026-11-{day}T01:00:00Z"), 10);
    }
    kit.write("store/db/db-20261118T010000Z.dump.json", "{");
    kit.write("other/file", "no store of dumps that was asked for");
    let last = |ran: Ran| ran.err.lines().last().unwrap_or_default().to_owned();
    let keep = ["store", "--keep-last", "3"];
    let all = [&keep[..], &["-n"]].concat();
    assert_eq!(last(prune(&kit, all).expect(1)), "bak-prune: 1 failed; the plan is made without them");
    assert_eq!(last(prune(&kit, keep).expect(1)), "bak-prune: 1 failed; 2 dumps were removed");
    assert_eq!(last(prune(&kit, keep).expect(1)), "bak-prune: 1 failed; nothing was removed");
    let named = ["--store", "store", "web@20261113T010000Z", "web@20260101T000000Z"];
    assert_eq!(last(prune(&kit, named).expect(1)), "bak-prune: 1 failed; 1 dump was removed");
    let last_one = ["--store", "store", "web@20261114T010000Z", "web@20261115T010000Z"];
    assert_eq!(last(prune(&kit, last_one).expect(4)), "bak-prune: nothing was removed");
}

#[test]
fn none_kept_for_a_look_is_said_so() {
    let kit = Kit::new();
    kit.dump("web", "2026-11-11T01:00:00Z", 10);
    put_dump(&kit.store(), "web", "2026-11-12T01:00:00Z", 10, json!({"result": "failed"}));
    kit.dump("web", "2026-11-13T01:00:00Z", 10);
    let ran = prune(&kit, ["store", "--keep-last", "2", "--keep-failed", "0"]).clean();
    assert_eq!(ran.records()[0]["prune"]["reasons"][0], "its result is failed, and none such is kept for a look");
}

/// Whatever a newer bak means by it: it counts for nothing, and keeps what would be judged by counting.
#[test]
fn a_sidecar_of_a_newer_version_is_not_counted() {
    let kit = Kit::new();
    let old = kit.dump("web", "2026-11-18T01:00:00Z", 100);
    kit.dump("web", "2026-11-19T01:00:00Z", 100);
    let newer = kit.store().join("web/web-20261119T010000Z.dump.json");
    let text = fs::read_to_string(&newer).unwrap();
    assert!(text.contains("\"v\":1"));
    fs::write(&newer, text.replace("\"v\":1", "\"v\":2")).unwrap();
    let ran = kit.run("bak-prune", ["store", "--keep-last", "1", "--now", NOW]).expect(1);
    ran.says("web-20261119T010000Z.dump.json").says("it has version 2, which a newer bak wrote");
    assert_eq!(check_store(&kit.store()).whole.iter().filter(|id| **id == old).count(), 1);
}
