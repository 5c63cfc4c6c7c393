//! bak-restore --drill: how drills end that come to no verdict, and what they leave for the next; what lies where notes are kept.

mod far;
mod images;

use bak_tests::pve::Node;
use bak_tests::{Kit, Ran, bin, finish, put_dump};
use far::{DAY, Far, Way};
use images::{names, tool, web};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const NEXT: &str = "2026-11-21T01:00:00Z";

fn drill(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-restore", [&["--drill", "--store", "store"], args].concat())
}

fn history(store: &Path) -> Vec<Value> {
    let text = fs::read_to_string(store.join(".bak/drill/history")).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The last decision in the history, and why.
fn last(store: &Path) -> (String, String) {
    let last = history(store).pop().unwrap();
    (last["decision"].as_str().unwrap().into(), last["why"].as_str().unwrap().into())
}

/// What a limit cut off goes on before anything else is begun, though a newer dump has come meanwhile.
#[test]
fn what_was_begun_goes_first() {
    let far = Far::ready(Way::Ssh);
    ["a", "b", "c"].iter().for_each(|vm| _ = far.dump(vm));
    let run = |now: &str| far.restore(&["--drill", "--from", "box", "--limit", "400K", "--now", now]).clean().records();
    let first = run("2026-11-22T00:00:00Z").remove(0);
    let (vm, id) = (first["vm"].as_str().unwrap().to_owned(), first["id"].clone());
    let why = first["skipped"]["why"].as_str().unwrap();
    assert!(why.contains("the limit is reached: ") && why.contains(" of 976.6 KiB are still to come"), "{why}");
    assert_eq!(last(&far.kit.store()), ("skipped".into(), why.into()));
    put_dump(&far.far(), &vm, NEXT, far::SIZE, json!({}));
    let mut runs = 1;
    loop {
        runs += 1;
        assert!(runs < 6, "it does not get on");
        let record = run(&format!("2026-11-22T00:0{runs}:00Z")).remove(0);
        assert_eq!(record["id"], id, "another one was begun");
        if record["drill"]["decision"] == "good" {
            break;
        }
    }
    assert_eq!(last(&far.kit.store()).0, "good");
    assert!(far.left().is_empty());
    // Then another guest's turn has come.
    assert_ne!(run("2026-11-22T01:00:00Z")[0]["vm"], vm.as_str());
}

#[test]
fn a_limit_that_is_used_up_is_no_failure() {
    let far = Far::ready(Way::Daemon);
    far.dump("web");
    for program in ["bak-restore", "bak-verify"] {
        let drill: &[&str] = if program == "bak-restore" { &["--drill"] } else { &["--all"] };
        let ran = far.run(program, &[drill, &["--from", "box", "--limit", "1K/day"]].concat()).expect(0);
        let says = format!(
            "{program}: box: too little is left of 1 KiB a day: the limit is reached: nothing was looked at, and all of it \
             remains for the next run\n"
        );
        assert_eq!((ran.err.as_str(), ran.out.as_str()), (says.as_str(), ""));
    }
}

/// What is wrong here is no verdict on a dump.
#[test]
fn our_own_trouble_makes_no_dump_bad() {
    let kit = Kit::new();
    let (id, _) = web(&kit);
    // No qemu-img.
    let mut command = kit.command(bin("bak-restore"));
    command.args(["--drill", "--store", "store"]).env("PATH", kit.path("nothing"));
    finish(command, "")
        .expect(1)
        .says(&format!("{id}: the drill failed, which says nothing of the dump: cannot find qemu-img"));
    assert_eq!(last(&kit.store()).0, "failed");
    // No number.
    let node = Node::new();
    node.machine(100, "name: web\n", 200_000);
    node.run("bak-dump", &["--all", "-q"]).clean();
    for id in 999_999_000..=999_999_999 {
        fs::write(node.kit.path(&format!("pve/nodes/pve2/lxc/{id}.conf")), "").unwrap();
    }
    node.run("bak-restore", &["--drill", "100"]).expect(1).says("are taken");
    assert_eq!(last(&node.kit.store()).0, "failed");
}

#[test]
fn a_full_disk_here() {
    if tool("id", &["-u"]).trim() != "0" {
        eprintln!("left out: only root can mount a small file system");
        return;
    }
    let far = Far::ready(Way::Ssh);
    far.dump_of("web", 3_000_000, json!({}));
    fs::create_dir(far.kit.path("work")).unwrap();
    // Full while it comes: what free space says is more than there is, as somebody else writes, too.
    let run = |size: &str, meanwhile: &str, args: &str| {
        let line = format!(
            "mount -t tmpfs -o size={size} none work && {meanwhile} exec bak-restore --config bak.toml --from box --work work {args}"
        );
        let mut command = far.kit.command("unshare");
        command.args(["-m", "sh", "-c", &line]).env("XDG_CACHE_HOME", far.kit.path("cache"));
        finish(command, "")
    };
    let ran = run("2m", "", "--drill").expect(1);
    assert!(ran.err.contains("name another place by --work"), "{}", ran.err);
    assert_eq!(last(&far.kit.store()).0, "failed");
    // By its record it is small.
    let mut record = far.record("web");
    record["files"][0]["allocated"] = 1000.into();
    fs::write(far.sidecar("web"), record.to_string()).unwrap();
    let ran = run("2m", "", "--drill").expect(1);
    assert!(ran.err.contains("the disk here is full") && ran.err.contains("free some room in "), "{}", ran.err);
    assert!(!ran.err.contains("over there"), "{}", ran.err);
    assert_eq!(last(&far.kit.store()).0, "failed");
    let ran = run("2m", "", "web --to web.raw").expect(1).says("the disk here is full");
    let ran = ran.says("the same command goes on from there");
    assert_eq!(ran.err.lines().count(), 3, "{}", ran.err);
}

#[test]
fn what_lies_where_the_history_should_be() {
    for (make, why) in [
        ("mkfifo X", "history is not a regular file"),
        ("ln -s /etc/hostname X", "history is a symbolic link"),
        ("ln -s nowhere X", "history is a symbolic link"),
        ("mkdir X", "history"),
    ] {
        let kit = Kit::new();
        web(&kit);
        fs::create_dir_all(kit.store().join(".bak/drill")).unwrap();
        kit.sh(&make.replace('X', "store/.bak/drill/history")).clean();
        drill(&kit, &[]).expect(1).says(why);
    }
    // What a crash left of a note goes; the directory itself is no link.
    let kit = Kit::new();
    web(&kit);
    kit.write("store/.bak/drill/.0123456789abcdef.new", "half");
    drill(&kit, &[]).clean();
    assert_eq!(names(kit.store().join(".bak/drill")), [".lock", "history"]);
    fs::rename(kit.store().join(".bak/drill"), kit.path("elsewhere")).unwrap();
    symlink(kit.path("elsewhere"), kit.store().join(".bak/drill")).unwrap();
    drill(&kit, &[]).expect(4).says(".bak/drill is a symbolic link");
}

#[test]
fn a_place_for_work_that_is_somebody_elses() {
    let kit = Kit::new();
    web(&kit);
    fs::create_dir(kit.path("real")).unwrap();
    symlink("real", kit.path("link")).unwrap();
    drill(&kit, &["--work", "link"]).expect(4).says("--work: link is a symbolic link: name the directory itself");
    assert_eq!(names(kit.path("real")), [""; 0]);
    let far = Far::ready(Way::Daemon);
    far.dump("web");
    fs::create_dir(far.kit.path("real")).unwrap();
    symlink("real", far.kit.path("link")).unwrap();
    far.restore(&["web", "--from", "box", "--to", "x.raw", "--work", "link/"]).expect(4).says("is a symbolic link");
    if tool("id", &["-u"]).trim() == "0" {
        std::os::unix::fs::chown(far.kit.path("real"), Some(1234), None).unwrap();
        let ran = far.restore(&["web", "--from", "box", "--to", "x.raw", "--work", "real"]).expect(4);
        assert!(ran.err.contains("real belongs to the user 1234"), "{}", ran.err);
    }
    assert_eq!(names(far.kit.path("real")), [""; 0]);
}

/// Adopted without SHA-256: the format's own check comes before anything else.
#[test]
fn a_dump_without_sums_is_looked_at_first() {
    let node = Node::new();
    node.machine(100, "name: web\n", 200_000);
    node.run("bak-dump", &["--all", "-q"]).clean();
    let dir = node.kit.store();
    let name = names(&dir).into_iter().find(|name| name.ends_with(".dump.json")).unwrap();
    let mut record: Value = serde_json::from_slice(&fs::read(dir.join(&name)).unwrap()).unwrap();
    record["files"][0].as_object_mut().unwrap().remove("sha256");
    fs::write(dir.join(&name), record.to_string()).unwrap();
    let ran = node.run("bak-restore", &["--drill", "100"]).clean();
    let why = ran.records()[0]["drill"]["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("checksums in the files, zstd -"), "{why}");
    let restorer = node.kit.path("pve/qmrestore.args");
    fs::remove_file(&restorer).unwrap();
    let ran = node.run("bak-restore", &["100", "--as", "300", "-q"]).expect(0);
    assert!(
        ran.err.contains("has no SHA-256 in its record: checked by its size and checksums in the files"),
        "{}",
        ran.err
    );
    fs::remove_file(&restorer).unwrap();
    far::flip(&dir.join(record["files"][0]["name"].as_str().unwrap()));
    node.run("bak-restore", &["100", "--force"]).expect(1).says("zstd exited with status 1");
    node.run("bak-restore", &["--drill", "100"]).expect(1).says("zstd exited with status 1");
    assert_eq!(last(&dir).0, "bad");
    assert!(!restorer.exists(), "nothing was touched");
    // What nothing checks comes back, and is not called good.
    let kit = Kit::new();
    let id = kit.dump("raw", DAY, 4096);
    let sidecar = kit.store().join("raw").join(names(kit.store().join("raw")).remove(0));
    let mut record: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    record["files"][0].as_object_mut().unwrap().remove("sha256");
    fs::write(&sidecar, record.to_string()).unwrap();
    let ran = drill(&kit, &[]).clean();
    assert_eq!((&ran.records()[0]["id"], &ran.records()[0]["drill"]["decision"]), (&json!(id), &json!("unknown")));
    assert_eq!(last(&kit.store()).0, "unknown");
}
