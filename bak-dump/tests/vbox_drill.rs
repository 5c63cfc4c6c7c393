//! bak-restore --drill of VirtualBox's guests, with a stand-in for VBoxManage: they come back under a name of the drill's, without
//! network cards, and go again; no other guest is touched.

use bak_tests::process::{about, wait_for};
use bak_tests::vbox::Host;
use bak_tests::{Ran, bin};
use serde_json::Value;
use std::fs;
use std::process::Stdio;

/// Two stopped machines, dumped.
fn host() -> Host {
    let host = Host::new();
    host.machine(1, "web", 200_000).machine(2, "db", 100_000);
    host.run("bak-dump", &["--now", "2026-11-20T01:00:02Z", "--all", "-q"]).clean();
    host
}

fn drill(host: &Host, args: &[&str]) -> Ran {
    host.run("bak-restore", &[&["--drill"], args].concat())
}

/// All that VirtualBox knows of its guests.
fn guests(host: &Host) -> String {
    host.kit.sh("cat vbox/order && cd vbox/machines && find . -type f | sort | xargs sha256sum").clean().out
}

/// The history, and that nothing else is left of drills.
#[track_caller]
fn history(host: &Host) -> Vec<Value> {
    let dir = host.kit.store().join(".bak/drill");
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".lock", "history"], "something is left");
    let text = fs::read_to_string(dir.join("history")).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn guests_come_back_without_network_and_go_again() {
    let host = host();
    let (before, called) = (guests(&host), host.called().len());
    let ran = drill(&host, &["web"]).clean();
    let note = &ran.records()[0]["drill"];
    assert_eq!(note["decision"], "good");
    let why = "SHA-256 as recorded; imported with 1 disk and 1 network card out, never started, removed";
    assert_eq!(note["why"], why);
    assert_eq!(guests(&host), before);
    assert_eq!(history(&host).len(), 1);
    // What was asked of VirtualBox, but for looks.
    let orders: Vec<String> = host.called()[called..]
        .iter()
        .filter(|line| !line.starts_with("list ") && !line.starts_with("showvminfo "))
        .cloned()
        .collect();
    let [import, modify, remove] = &orders[..] else { panic!("{orders:?}") };
    let store = host.kit.store().canonicalize().unwrap();
    let ova = store.join("web/web-20261120T010002Z.ova");
    let rest = import.strip_prefix(&format!("import {} --vsys 0 --vmname bak-drill-", ova.display())).unwrap();
    let (token, folder) = rest.split_once(" --basefolder ").unwrap();
    assert_eq!(folder, store.join(".bak/drill").join(token).display().to_string());
    let uuid = modify.strip_prefix("modifyvm ").unwrap().strip_suffix(" --nic1 none").unwrap();
    assert_eq!(remove, &format!("unregistervm {uuid} --delete"));
    // In a directory that was named.
    fs::create_dir(host.kit.path("vms")).unwrap();
    drill(&host, &["db", "--to", "vms"]).clean();
    assert!(
        host.called().iter().any(|line| line.ends_with(&format!("--basefolder {}", host.kit.path("vms").display())))
    );
    assert_eq!(guests(&host), before);
}

#[test]
fn what_goes_wrong_leaves_nothing() {
    let host = host();
    let before = guests(&host);
    for (how, decision, why) in [
        ("fails", "failed", "VERR_DISK_FULL"),
        ("nothing", "bad", "VBoxManage import ended well, and there is no guest `bak-drill-"),
        ("stubborn", "failed", "its network cards could not be taken out: 1"),
    ] {
        host.kit.write("vbox/import", how);
        drill(&host, &["web"]).expect(1).says(why);
        assert_eq!(guests(&host), before, "{how}");
        assert_eq!(history(&host).last().unwrap()["decision"], decision, "{how}");
    }
}

/// A drill that was killed: the next removes what has its name, unless somebody has started it.
#[test]
fn what_a_killed_drill_left() {
    let host = host();
    let before = guests(&host);
    host.kit.write("vbox/import", "waits");
    let mut command = host.command(&bin("bak-restore"));
    command.args(["--config", "bak.toml", "--drill", "web"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_for("the guest is there", || host.kit.path("vbox/waiting").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("what it started to end", || about(&host.kit.path("")).is_empty());
    host.kit.write("vbox/import", "");
    let left = guests(&host);
    assert_ne!(left, before);
    let uuid = left.lines().nth(2).unwrap();
    let state = host.kit.path("vbox/machines").join(uuid).join("state");
    fs::write(&state, "running").unwrap();
    drill(&host, &["web"]).expect(4).says("left of a drill that was killed, is in use (running");
    assert_eq!(guests(&host).lines().count(), left.lines().count());
    fs::write(&state, "poweroff").unwrap();
    drill(&host, &["web"]).clean();
    assert_eq!(guests(&host), before);
    assert_eq!(history(&host).len(), 2);
}
