//! bak-restore --drill: dumps brought back on trial, and nothing else touched.

mod far;
mod images;

use bak_tests::process::{about, wait_for};
use bak_tests::pve::Node;
use bak_tests::{Kit, Ran, bin, check_store, compact, finish, put_dump};
use far::{Far, Way};
use images::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Stdio;

const HOSTILE: &str = "onboot: 1\nprotection: 1\ntags: prod\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\n\
    net1: virtio=BC:24:11:00:00:02,bridge=vmbr1,link_down=0\nnetmask: none\n";

fn drill(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-restore", [&["--drill", "--store", "store"], args].concat())
}

/// The history, and that nothing else is left of drills.
#[track_caller]
fn history(store: &Path) -> Vec<Value> {
    let dir = store.join(".bak/drill");
    assert_eq!(names(&dir), [".lock", "history"], "something is left");
    let text = fs::read_to_string(dir.join("history")).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn images_come_back_and_go_again() {
    let kit = Kit::new();
    let (id, source) = web(&kit);
    let ran = drill(&kit, &["--now", "2026-11-21T00:00:00Z"]).clean();
    let record = &ran.records()[0];
    let drill_note = &record["drill"];
    assert_eq!((&record["id"], &drill_note["decision"]), (&json!(id), &json!("good")), "{record}");
    assert_eq!(drill_note["why"], "SHA-256 as recorded; 1 disk restored as raw, the same as in the dump, removed");
    assert!(!source.exists(), "nothing comes back to its place");
    let lines = history(&kit.store());
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["id"], &lines[0]["at"], &lines[0]["decision"]),
        (&json!(id), &json!("2026-11-21T00:00:00Z"), &json!("good"))
    );
    assert_eq!(lines[0]["bytes"], record["bytes"]);
    // The store is as it was.
    assert_eq!(check_store(&kit.store()).whole, [id]);
    // In a place that was named, too; several disks.
    let disks = [kit.path("vm/a.qcow2"), kit.path("vm/b.qcow2")];
    disks.iter().zip(1..).for_each(|(disk, seed)| image(disk, "qcow2", seed));
    dump(&kit.store(), "db", DAY, &[&disks[0], &disks[1]], "qcow2", "qcow2");
    let ran = drill(&kit, &["db", "--work", "work"]).clean();
    assert!(ran.out.contains("2 disks restored as qcow2"), "{}", ran.out);
    assert_eq!(names(kit.path("work/.bak-drill")), [""; 0]);
}

#[test]
fn who_was_not_drilled_for_longest_goes_first() {
    let kit = Kit::new();
    for vm in ["a", "b", "c"] {
        kit.dump(vm, "2026-11-19T01:00:00Z", 1024);
        kit.dump(vm, DAY, 1024);
    }
    put_dump(&kit.store(), "large", DAY, 4096, json!({}));
    put_dump(&kit.store(), "other", DAY, 10, json!({"driver": "postgres"}));
    let mut seen = Vec::new();
    for day in 21..=23 {
        let now = format!("2026-11-{day}T00:00:00Z");
        let planned = drill(&kit, &["--max-bytes", "2K", "--now", &now, "-n"]).clean();
        let ran = drill(&kit, &["--max-bytes", "2K", "--now", &now]).clean();
        assert_eq!(planned.column("id"), ran.column("id"));
        assert_eq!(planned.records()[0]["planned"], true);
        seen.extend(ran.column("id"));
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"].map(|vm| format!("{vm}@{}", compact(DAY))));
    let ran = drill(&kit, &["--max-bytes", "2K", "--explain", "-n"]).clean();
    let why = |vm: &str| {
        let record = ran.records().into_iter().find(|record| record["vm"] == vm).unwrap();
        record["skipped"]["why"].as_str().map(str::to_owned)
    };
    assert!(why("large").unwrap().contains("--max-bytes"));
    assert!(why("other").unwrap().contains("postgres cannot be drilled"));
    assert_eq!(drill(&kit, &["--sample", "2", "--max-bytes", "2K", "-n"]).clean().records().len(), 2);
    drill(&kit, &["large", "--max-bytes", "2K"]).expect(1).says("no dump could be drilled: large@");
    drill(&kit, &["nobody"]).expect(1).says("no dump matches it");
    for wrong in [&["--force"][..], &["--as", "x"], &["--format", "raw"], &["-"]] {
        drill(&kit, wrong).expect(2);
    }
    kit.run("bak-restore", ["a", "--store", "store", "--to", "x", "--sample", "2"]).expect(2);
    kit.run("bak-restore", ["a", "--store", "store", "--to", "x", "--limit", "1G"])
        .expect(2)
        .says("--limit is for --drill");
}

#[test]
fn what_does_not_come_back_is_found() {
    let kit = Kit::new();
    let (id, _) = web(&kit);
    let file = kit.store().join(format!("web/web-{}.qcow2", compact(DAY)));
    far::flip(&file);
    drill(&kit, &[]).expect(1).says("the drill failed: ").says("is damaged");
    let lines = history(&kit.store());
    assert_eq!((&lines[0]["id"], &lines[0]["decision"]), (&json!(id), &json!("bad")));
    assert!(lines[0]["why"].as_str().unwrap().contains("is damaged"));
    // Right by its sum, and no image: it was so when it was made.
    let other = kit.dump("odd", DAY, 1024);
    let odd = kit.store().join(format!("odd/odd-{}", compact(DAY)));
    fs::rename(odd.with_extension("raw"), odd.with_extension("qcow2")).unwrap();
    let sidecar = odd.with_extension("dump.json");
    fs::write(&sidecar, fs::read_to_string(&sidecar).unwrap().replace(".raw", ".qcow2")).unwrap();
    drill(&kit, &["odd"]).expect(1).says(&format!("{other}: the drill failed: "));
    assert_eq!(history(&kit.store()).len(), 2);
}

#[test]
fn from_a_far_side_within_its_limits() {
    let far = Far::ready(Way::Ssh);
    far.dump("web");
    let ran = far.restore(&["--drill", "--from", "box"]).clean();
    assert_eq!(ran.records()[0]["drill"]["decision"], "good", "{}", ran.out);
    assert!(ran.records()[0]["drill"]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(far::bytes(&far.fetches("web")[0]) >= far::SIZE as u64);
    assert!(far.left().is_empty());
    assert_eq!(history(&far.kit.store()).len(), 1);
    // It is no emergency: limits hold, and what they hold back is no failure.
    let ran = far.restore(&["--drill", "--from", "box", "--limit", "300K"]).clean();
    assert!(ran.records()[0]["skipped"]["why"].as_str().unwrap().contains("limit"), "{}", ran.out);
    let lines = history(&far.kit.store());
    assert_eq!((lines.len(), &lines[1]["decision"]), (2, &json!("skipped")));
    while far.restore(&["--drill", "--from", "box", "--limit", "300K"]).clean().records()[0].get("drill").is_none() {}
    assert!(far.left().is_empty());
}

/// A node with two guests, dumped, that hold what a drill must not do harm with.
fn node() -> Node {
    let node = Node::new();
    node.machine(100, "name: web\n", 200_000).container(101, "hostname: ct\n", 5000);
    node.run("bak-dump", &["--all", "-q"]).clean();
    node.kit.write("pve/inside", HOSTILE);
    node
}

/// All that makes up the guests of the node and of the other one.
fn guests(node: &Node) -> String {
    node.kit.sh("cd pve && find nodes content -type f | sort | xargs sha256sum").clean().out
}

fn orders(node: &Node) -> String {
    fs::read_to_string(node.kit.path("pve/guest.args")).unwrap_or_default()
}

#[test]
fn guests_of_proxmox_come_back_harmless_and_go_again() {
    for (vm, tool, kind) in [("100", "qm", "qemu"), ("101", "pct", "lxc")] {
        let node = node();
        // The highest number is taken, on the other node.
        node.kit.write("pve/nodes/pve2/lxc/999999999.conf", "hostname: far\n");
        let before = guests(&node);
        let ran = node.run("bak-restore", &["--drill", vm, "--to", "local-lvm"]).clean();
        let why = ran.records()[0]["drill"]["why"].as_str().unwrap().to_owned();
        assert_eq!(
            why,
            format!(
                "SHA-256 as recorded; restored as {kind} 999999998 with 2 network devices down, never started, removed"
            )
        );
        let restorer = if kind == "qemu" { "qmrestore.args" } else { "pct.args" };
        assert_eq!(
            fs::read_to_string(node.kit.path("pve").join(restorer)).unwrap(),
            "999999998 --storage local-lvm --unique 1\n"
        );
        let orders = orders(&node);
        let orders: Vec<&str> = orders.lines().collect();
        assert_eq!(orders.len(), 3, "{orders:?}");
        assert!(orders[0].starts_with(&format!("{tool} set 999999998 --tags bak-drill-")), "{orders:?}");
        assert!(orders[0].ends_with(" --onboot 0 --protection 0"), "{orders:?}");
        for part in [
            "--net0 virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,link_down=1",
            "--net1 virtio=BC:24:11:00:00:02,bridge=vmbr1,link_down=1",
        ] {
            assert!(orders[1].contains(part), "{orders:?}");
        }
        assert_eq!(orders[2], format!("{tool} destroy 999999998"));
        if kind == "qemu" {
            assert_eq!(guests(&node), before);
        } else {
            // (The stand-in unpacks a container under its old number.)
            assert!(!node.kit.path("pve/nodes/pve1/lxc/999999998.conf").exists());
        }
        assert_eq!(history(&node.kit.store()).len(), 1);
    }
}

#[test]
fn one_that_cannot_be_tamed_goes_at_once() {
    let node = node();
    let before = guests(&node);
    node.set("behave/999999999", "stubborn");
    node.run("bak-restore", &["--drill", "100"]).expect(1).says("unable to apply pending change");
    assert_eq!(guests(&node), before);
    // It came back: that it could not be tamed is no fault of the dump's.
    assert_eq!(history(&node.kit.store())[0]["decision"], "failed");
    node.set("behave/999999999", "nothing");
    node.run("bak-restore", &["--drill", "100"]).expect(1).says("there is no guest 999999999");
    assert_eq!(history(&node.kit.store()).len(), 2);
    // What does not even take a mark, and is protected, stays, and is told of until somebody has looked.
    node.set("behave/999999999", "deaf");
    let ran = node.run("bak-restore", &["--drill", "100"]).expect(1);
    assert!(ran.err.contains("protection mode") && ran.err.contains("999999999 on pve1 may be left"), "{}", ran.err);
    node.run("bak-restore", &["--drill", "100"]).expect(4).says("999999999 on pve1 may be left");
}

/// Starts a drill of the machine, waits until `reached`, and kills it.
fn killed(node: &Node, reached: impl Fn() -> bool) {
    let mut command = node.kit.command(bin("bak-restore"));
    let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/stand-ins");
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", stand_ins.display())).env("PVE", node.kit.path("pve"));
    let child =
        command.args(["--config", "bak.toml", "--drill", "100"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.unwrap();
    wait_for("the drill to come so far", reached);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("what it started to end", || about(&node.kit.path("")).is_empty());
}

#[test]
fn what_a_killed_drill_left_is_removed_by_the_next_if_it_surely_is_that() {
    let node = node();
    let before = guests(&node);
    // Killed when the guest is there and has its mark.
    node.set("behave/999999999", "lingers");
    killed(&node, || node.kit.path("pve/lingers").exists());
    assert!(node.conf("nodes/pve1/qemu-server/999999999.conf").contains("tags: bak-drill-"));
    node.set("behave/999999999", "");
    let ran = node.run("bak-restore", &["--drill", "100"]).clean();
    assert!(ran.out.contains("restored as qemu 999999999"), "{}", ran.out);
    assert_eq!(guests(&node), before);
    assert_eq!(history(&node.kit.store()).len(), 1);
    // Killed while qmrestore ran: nothing proves that what is there is the drill's.
    node.set("behave/999999999", "hangs");
    killed(&node, || node.kit.path("pve/nodes/pve1/qemu-server/999999999.conf").exists());
    node.set("behave/999999999", "");
    let left = guests(&node);
    let ran = node.run("bak-restore", &["--drill", "100"]).expect(4);
    assert!(ran.err.contains("the guest 999999999 on pve1 may be left of a drill that was killed"), "{}", ran.err);
    assert!(ran.out.contains("restored as qemu 999999998"), "the drill takes another number: {}", ran.out);
    assert_eq!(guests(&node), left);
    // Once it is gone nothing is said any more.
    node.sh("qm destroy 999999999").clean();
    node.run("bak-restore", &["--drill", "100"]).clean();
    assert_eq!(guests(&node), before);
    assert_eq!(history(&node.kit.store()).len(), 3);
}

/// A guest that somebody made under the number of a killed drill is nobody's to remove.
#[test]
fn somebody_elses_guest_stays() {
    let node = node();
    node.set("behave/999999999", "lingers");
    killed(&node, || node.kit.path("pve/lingers").exists());
    node.set("behave/999999999", "");
    node.kit.write("pve/nodes/pve1/qemu-server/999999999.conf", "name: mine\ntags: bak-drill-0123456789abcdef\n");
    let before = guests(&node);
    node.run("bak-restore", &["--drill", "100"]).expect(4).says("may be left of a drill");
    assert_eq!(guests(&node), before);
}

#[test]
fn images_that_a_killed_drill_left_are_removed_and_one_runs_at_a_time() {
    let kit = Kit::new();
    web(&kit);
    drill(&kit, &[]).clean();
    let dir = kit.store().join(".bak/drill");
    let token = "0123456789abcdef0123456789abcdef";
    let note = |dir: &Path| json!({"v": 1, "token": token, "driver": "image", "dir": dir, "made": {}}).to_string();
    kit.write(&format!("store/.bak/drill/{token}/.web.raw.bak-restore"), "half");
    fs::write(dir.join(format!("{token}.json")), note(&dir.join(token))).unwrap();
    // A note that would lead elsewhere leads nowhere.
    kit.write("precious/file", "mine");
    let other = "ffffffffffffffffffffffffffffffff";
    fs::write(dir.join(format!("{other}.json")), note(&kit.path("precious"))).unwrap();
    drill(&kit, &[]).clean();
    assert_eq!(history(&kit.store()).len(), 2);
    assert!(kit.path("precious/file").exists());
    let held = fs::File::open(dir.join(".lock")).unwrap();
    held.lock().unwrap();
    drill(&kit, &["--wait", "0s"]).expect(3).says("the drill is locked");
}

#[test]
fn a_terminal_gets_a_table() {
    let kit = Kit::new();
    web(&kit);
    let ran = kit.sh("script -qec 'stty cols 200; bak-restore --drill --store store' /dev/null").expect(0);
    assert!(ran.out.contains("TOOK") && ran.out.contains("good") && !ran.out.contains('{'), "{}", ran.out);
    // Where there is no store, the history is with what was fetched.
    let mut command = kit.command(bin("bak-restore"));
    command.args(["--drill", "--from", "store"]).env("XDG_CACHE_HOME", kit.path("cache"));
    finish(command, "").clean();
    assert!(kit.path("cache/bak/drill/history").exists());
}
