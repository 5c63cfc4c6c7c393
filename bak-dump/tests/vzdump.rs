//! The guests of a Proxmox node, with stand-ins for its programs: who is listed, what a dump is, and everything that goes wrong
//! with one guest while the others go on.

use bak_tests::process::wait_for_workers;
use bak_tests::pve::Node;
use bak_tests::{Ran, check_store, noise};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const WEB: &str = "boot: order=scsi0\nname: web\nsmbios1: uuid=6d0c1c5e-0000-4000-8000-000000000001\ntags: prod;web\n";
const NOW: &str = "2026-11-20T01:00:02Z";
const STEM: &str = "vzdump-qemu-100-2026_11_20-01_00_02";

fn node() -> Node {
    let node = Node::new();
    node.machine(100, WEB, 300_000).container(102, "hostname: ct\n", 100_000);
    node.set("state/100", "running").set("pool/100", "web");
    node
}

fn dump(node: &Node, args: &[&str]) -> Ran {
    node.run("bak-dump", &[&["--now", NOW], args].concat())
}

fn names(node: &Node) -> Vec<String> {
    let entries =
        fs::read_dir(node.kit.store()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

fn file(node: &Node, name: &str) -> PathBuf {
    node.kit.store().join(name)
}

/// Nothing half-made is left, and nobody is locked.
fn no_debris(node: &Node) {
    let seen = check_store(&node.kit.store());
    assert!(seen.broken.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
    assert!(!node.conf("qemu-server/100.conf").contains("lock:"));
}

#[test]
fn the_guests_of_this_node() {
    let node = node();
    node.machine(101, "name: VM of two words\ntags: a,b c\n\n[snap]\nname: old\n", 1).machine(
        900,
        "name: base\ntemplate: 1\n",
        1,
    );
    node.machine(103, "lock: migrate\n", 1);
    fs::write(node.kit.path("pve/nodes/pve2/qemu-server/200.conf"), "name: elsewhere\n").unwrap();
    let expected = json!([
        {"v": 1, "type": "guest", "vm": "100", "name": "web", "uid": "6d0c1c5e-0000-4000-8000-000000000001", "kind": "qemu",
            "driver": "vzdump", "node": "pve1", "tags": ["prod", "web"], "pool": "web", "state": "running", "live": true},
        {"v": 1, "type": "guest", "vm": "101", "name": "VM of two words", "kind": "qemu", "driver": "vzdump", "node": "pve1",
            "tags": ["a", "b", "c"], "state": "stopped", "live": true},
        {"v": 1, "type": "guest", "vm": "102", "name": "ct", "kind": "lxc", "driver": "vzdump", "node": "pve1",
            "state": "stopped", "live": true},
        {"v": 1, "type": "guest", "vm": "103", "kind": "qemu", "driver": "vzdump", "node": "pve1", "state": "stopped",
            "live": true, "locked": "migrate"},
    ]);
    let clean = |mut record: Value| {
        let map = record.as_object_mut().unwrap();
        map.retain(|key, value| key != "name" || value != "");
        record
    };
    let by_interface: Vec<Value> = node.run("bak-guests", &[]).clean().records().into_iter().map(clean).collect();
    assert_eq!(json!(by_interface), expected);
    // The same without the interface, but for the pool, which nothing else knows.
    node.set("pvesh.fails", "");
    let mut by_tools: Vec<Value> = node.run("bak-guests", &[]).clean().records().into_iter().map(clean).collect();
    by_tools[0]["pool"] = "web".into();
    assert_eq!(json!(by_tools), expected);
    assert_eq!(node.run("bak-guests", &["--tag", "prod"]).clean().column("vm"), ["100"]);
}

#[test]
fn one_guest_that_cannot_be_read_is_told_and_keeps_no_other_from_being_listed() {
    let node = node();
    let before = node.run("bak-guests", &[]).clean().column("vm");
    node.set("pvesh.more", r#"{"id":"qemu/150","vmid":150,"node":"pve1","type":"qemu","status":7}"#);
    let ran =
        node.run("bak-guests", &[]).expect(1).says("bak-guests: 150: cannot read what pvesh prints of this guest");
    assert_eq!((ran.column("vm"), ran.err.lines().count()), (before, 2));
    // Nor from being dumped.
    dump(&node, &["100"]).clean();
    dump(&node, &["150"]).expect(1).says("150: cannot read what pvesh prints of this guest");
}

#[test]
fn not_a_proxmox_node() {
    let node = Node::new();
    let ran = node.kit.run("bak-guests", ["--driver", "vzdump"]).expect(2);
    assert_eq!(ran.err, "bak-guests: this is no Proxmox node: neither pvesh nor qm and pct are on PATH\n");
}

#[test]
fn a_dump_is_what_proxmox_would_have_made() {
    let node = node();
    let ran = dump(&node, &["--all"]).clean();
    assert_eq!(ran.column("id"), ["100@20261120T010002Z", "102@20261120T010002Z"]);
    let web = &ran.records()[0];
    assert_eq!((&web["mode"], &web["node"], &web["stem"]), (&json!("snapshot"), &json!("pve1"), &json!(STEM)));
    assert_eq!(ran.records()[1]["mode"], "stop");
    let archive = format!("{STEM}.vma.zst");
    let lxc = "vzdump-lxc-102-2026_11_20-01_00_02";
    let mut expected: Vec<String> =
        [".vma.zst", ".vma.zst.notes", ".log", ".dump.json"].iter().map(|end| format!("{STEM}{end}")).collect();
    expected.extend([".tar.zst", ".tar.zst.notes", ".log", ".dump.json"].iter().map(|end| format!("{lxc}{end}")));
    expected.sort();
    assert_eq!(names(&node), expected);
    // Plain zstd reads it back.
    node.kit.sh(&format!("zstd -q -t store/{archive} && zstd -qdc store/{archive} >back")).clean();
    let content = [b"VMA\0".to_vec(), noise(100, 300_000)].concat();
    assert!(fs::read(node.kit.path("back")).unwrap() == content);
    node.kit.sh(&format!("zstd -qdc store/{lxc}.tar.zst | tar -xO 102/data | cmp - pve/content/102/data")).clean();
    let log = fs::read_to_string(file(&node, &format!("{STEM}.log"))).unwrap();
    let last = log.lines().rfind(|line| line.contains("VM 100")).unwrap();
    assert!(last.ends_with("INFO: Finished Backup of VM 100 (00:01:00)"), "{last}");
    assert_eq!(fs::read_to_string(file(&node, &format!("{archive}.notes"))).unwrap(), "web");
    for name in names(&node) {
        assert_eq!(fs::metadata(file(&node, &name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    let verdicts = node.run("bak-verify", &["--all"]).clean();
    assert!(verdicts.records().iter().all(|record| record["verify"]["decision"] == "good"), "{}", verdicts.out);
    no_debris(&node);
}

#[test]
fn options_come_from_flags_and_configuration() {
    let node = node();
    let config = format!(
        "{}ionice = 7\nmode = \"stop\"\n[[guest]]\nmatch = \"ct\"\nvzdump = {{ exclude_path = \"/tmp\", protected = true }}\n",
        fs::read_to_string(node.kit.path("bak.toml")).unwrap()
    );
    node.kit.write("bak.toml", config);
    let flags = ["--bwlimit", "50M", "--lockwait", "15m", "--fleecing", "enabled=1", "--mode", "suspend"];
    dump(&node, &[&["--all"][..], &flags].concat()).clean();
    let common = "--bwlimit 51200 --ionice 7 --lockwait 15 --fleecing enabled=1";
    let expected = format!(
        "100 --mode suspend {common} --compress 0 --stdout\n102 --mode suspend {common} --exclude-path /tmp --compress 0 --stdout\n"
    );
    assert_eq!(node.conf("vzdump.args"), expected);
    let lxc = "vzdump-lxc-102-2026_11_20-01_00_02.tar.zst.protected";
    assert_eq!(names(&node).iter().filter(|name| name.ends_with(".protected")).collect::<Vec<_>>(), [lxc]);
    let protected: Vec<Value> = node.run("bak-list", &[]).clean().records();
    assert_eq!((&protected[0]["protected"], &protected[1]["protected"]), (&Value::Null, &json!(true)));
    for (flag, value) in [("--mode", "live"), ("--writer", "me"), ("--ionice", "9")] {
        dump(&node, &["--all", flag, value]).expect(2);
    }
}

#[test]
fn the_mode_is_the_one_that_really_was() {
    let node = node();
    node.set("behave/100", "suspends");
    assert_eq!(dump(&node, &["100"]).clean().records()[0]["mode"], "suspend");
}

#[test]
fn written_by_vzdump_itself() {
    let node = node();
    let ran = dump(&node, &["--all", "--writer", "vzdump", "--protected"]).clean();
    assert_eq!(ran.column("stem")[0], STEM);
    assert_eq!(ran.records()[0]["files"][0]["name"], format!("{STEM}.vma.zst"));
    node.kit.sh(&format!("zstd -qdc store/{STEM}.vma.zst | tail -c +5 | cmp - pve/content/100")).clean();
    assert_eq!(names(&node).len(), 10);
    assert!(
        node.run("bak-verify", &["--all"])
            .clean()
            .records()
            .iter()
            .all(|record| record["verify"]["decision"] == "good")
    );
    no_debris(&node);
    for behave in ["fails", "elsewhere", "dies", "nothing", "unfinished"] {
        node.set("behave/100", behave);
        let ran = node.run("bak-dump", &["--now", "2026-11-21T01:00:02Z", "--writer", "vzdump", "100"]).expect(1);
        assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 2), "{behave}: {}", ran.err);
        assert_eq!(names(&node).len(), 10, "{behave}");
    }
}

/// Each in turn: one clear failure, no debris, the container's dump is made.
#[test]
fn what_goes_wrong_with_one_guest() {
    let table = [
        ("fails", "vzdump failed: command 'qmp' failed: got timeout"),
        ("elsewhere", "vzdump ended without having finished this guest (is it on another node?): it said nothing"),
        ("unfinished", "vzdump ended without having finished this guest (is it on another node?): "),
        ("garbage", "vzdump ended without having finished this guest"),
        ("nothing", "what vzdump sent is no vma archive"),
        ("dies", "vzdump was killed"),
        ("cut", "vzdump was killed"),
        ("hangs", "vzdump took longer than 2 s and was stopped"),
    ];
    for (behave, why) in table {
        let node = node();
        node.set("behave/100", behave);
        let ran = dump(&node, &["--all", "--timeout", "2s"]).expect(1);
        assert_eq!(ran.column("id"), ["102@20261120T010002Z"], "{behave}");
        let lines: Vec<&str> = ran.err.lines().collect();
        assert_eq!(lines.len(), 2, "{behave}: {}", ran.err);
        assert!(lines[0].starts_with(&format!("bak-dump: 100: {why}")), "{behave}: {}", lines[0]);
        assert!(lines[0].len() < 800, "{behave}: {}", lines[0]);
        assert_eq!(names(&node).len(), 4, "{behave}: {:?}", names(&node));
        if !matches!(behave, "dies" | "cut") {
            no_debris(&node);
        }
    }
}

#[test]
fn locked_gone_and_replaced_guests() {
    let node = node();
    node.set("qemu-server/100.conf", &format!("{WEB}lock: backup\n"));
    let why = "bak-dump: 100: is locked (backup): if nothing works on it any more, clear that by `qm unlock 100`";
    dump(&node, &["100"]).expect(1).says(why);
    node.set("lxc/102.conf", "hostname: ct\nlock: snapshot\n");
    dump(&node, &["102"]).expect(1).says("`pct unlock 102`");
    // The number was used again between the listing and the dump.
    let line = node.run("bak-guests", &["web"]).clean().out.replace("6d0c1c5e", "7d0c1c5e");
    node.set("qemu-server/100.conf", WEB);
    node.run_with("bak-dump", &["-"], &line).expect(1);
    assert_eq!(names(&node).len(), 0);
    no_debris(&node);
}

/// The store's file system runs full while vzdump sends, with and without a reserve.
#[test]
fn a_full_disk() {
    for (reserve, why) in [("4M", "stopped: only "), ("0", "cannot write the archive: No space left on device")] {
        let node = node();
        node.set("behave/100", "fills");
        let line = format!(
            "bak-dump --config bak.toml --now {NOW} --reserve {reserve} --all; echo $? >status; ls -A store store/.bak/work >left"
        );
        let line = format!("unshare -m sh -c 'mount -t tmpfs -o size=16M none store && {{ {line}; }}'");
        let ran = node.sh(&line);
        assert_eq!(fs::read_to_string(node.kit.path("status")).unwrap(), "1\n");
        assert!(ran.err.starts_with(&format!("bak-dump: 100: {why}")), "{}", ran.err);
        assert_eq!(ran.column("id"), ["102@20261120T010002Z"], "room was made for the others");
        let left = fs::read_to_string(node.kit.path("left")).unwrap();
        assert!(!left.contains("qemu"), "{left}");
        no_debris(&node);
    }
}

/// vzdump is told when bak-dump dies, however it dies, so that its guest does not stay locked.
#[test]
fn killed_in_the_middle() {
    let node = node();
    node.set("behave/100", "hangs");
    let line = format!(
        "bak-dump --config bak.toml --now {NOW} 100 & pid=$!; until grep -q ^lock: pve/qemu-server/100.conf; do :; done; kill -9 $pid; wait"
    );
    node.sh(&line);
    wait_for_workers(&node.kit.store());
    assert!(!node.conf("qemu-server/100.conf").contains("lock:"));
    assert_eq!(names(&node).len(), 0);
    node.set("behave/100", "well");
    node.run("bak-dump", &["--now", "2026-11-20T01:00:03Z", "100"]).clean();
    no_debris(&node);
}

#[test]
fn brought_back_by_proxmox() {
    let node = node();
    dump(&node, &["--all"]).clean();
    let restore = |args: &[&str]| node.run("bak-restore", args);
    let archive = node.kit.store().canonicalize().unwrap().join(format!("{STEM}.vma.zst")).display().to_string();
    let to = |ran: &Ran| ran.records()[0]["restored"]["to"][0].as_str().unwrap().to_owned();
    // A number of this node, of another one, and one that is none.
    restore(&["100"]).expect(4).says("there is a guest 100 already").says("--as").says("--force");
    fs::write(node.kit.path("pve/nodes/pve2/lxc/200.conf"), "").unwrap();
    let ran = restore(&["100", "--as", "200", "--force"]).expect(4).says("belongs to a guest of the node pve2");
    assert!(
        ran.err.contains("/nodes/pve2/lxc/200.conf ") && ran.err.contains("/nodes/pve1/lxc/200.conf"),
        "{}",
        ran.err
    );
    restore(&["100", "--as", "web"]).expect(2).says("a number from 100");
    restore(&["100", "--as", "201", "--to", "/tmp"]).expect(2).says("goes to a storage, by its name");
    restore(&["100", "--as", "201", "--format", "raw"]).expect(2).says("--format is for disk images");
    // The plan is the command.
    let planned = restore(&["100", "--as", "201", "--to", "local-lvm", "-n"]).clean();
    assert_eq!(to(&planned), format!("qmrestore {archive} 201 --storage local-lvm --unique 1"));
    assert!(!node.kit.path("pve/qmrestore.args").exists());
    assert_eq!(to(&restore(&["100", "--as", "201", "--to", "local-lvm"]).clean()), "qemu 201 on pve1");
    node.sh("cmp pve/content/201 pve/content/100").clean();
    // Over what is there; and containers.
    fs::write(node.content(100), "broken").unwrap();
    restore(&["web", "--force"]).clean();
    node.sh("cmp pve/content/201 pve/content/100").clean();
    assert_eq!(node.conf("qmrestore.args"), "201 --storage local-lvm --unique 1\n100 --force 1\n");
    fs::remove_file(node.kit.path("pve/lxc/102.conf")).unwrap();
    fs::remove_dir_all(node.content(102)).unwrap();
    assert_eq!(to(&restore(&["102", "--from", "store"]).clean()), "lxc 102 on pve1");
    assert_eq!(fs::read(node.content(102).join("data")).unwrap(), noise(102, 100_000));
    // Said to be done, and not done; and damaged, which is seen before anything is touched.
    node.set("behave/300", "nothing");
    restore(&["100", "--as", "300"]).expect(1).says("qmrestore ended well, and there is no guest 300");
    let path = file(&node, &format!("{STEM}.vma.zst"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    restore(&["100", "--as", "301"]).expect(1).says("is damaged");
    assert_eq!(node.conf("qmrestore.args").lines().count(), 3);
}
