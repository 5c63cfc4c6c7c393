//! bak-restore from a far side: over ssh, by rrsync, from a daemon.

mod far;

use bak_tests::process::{kill, wait_for};
use bak_tests::pve::Node;
use bak_tests::rsyncd::Relay;
use bak_tests::sshd::Sshd;
use bak_tests::{finish, noise, put_dump};
use far::*;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[track_caller]
fn same(a: &Path, b: &Path) {
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} differs from {}", a.display(), b.display());
}

#[test]
fn every_way_and_all_of_it_is_counted() {
    for way in WAYS {
        let far = Far::ready(way);
        let file = far.dump("web");
        let before = far.counted();
        // A limit that is used up is no reason not to bring a machine back.
        let text = fs::read_to_string(far.kit.path("bak.toml")).unwrap();
        far.kit.write("bak.toml", text + "limit = \"1K/day\"\n");
        let ran = far.restore(&["web", "--from", "box", "--to", "web.raw"]).clean();
        same(&far.kit.path("web.raw"), &file);
        assert_eq!(ran.records()[0]["restored"]["to"][0], json!(far.kit.path("web.raw").canonicalize().unwrap()));
        let fetches = far.fetches("web");
        assert_eq!(fetches.len(), 1, "{way:?}");
        assert_eq!((&fetches[0]["result"], &fetches[0]["dump"]), (&json!("done"), &Value::Null));
        let carried = bytes(&fetches[0]);
        assert!((SIZE as u64..SIZE as u64 * 11 / 10).contains(&carried), "{way:?}: {carried}");
        assert!(far.counted() - before > carried, "looking counts, too");
        assert!(far.left().is_empty(), "{way:?}: {:?}", far.left());
        far.is_sound(1);
    }
}

#[test]
fn by_its_url_with_nothing_known_of_it_here() {
    for way in [Way::Ssh, Way::Below] {
        let far = Far::new(way);
        let file = far.dump("web");
        fs::remove_dir_all(far.kit.store()).unwrap();
        let url = far.url();
        let mut args = vec!["web@latest", "--from", &url, "--to", "web.raw"];
        let ssh = far.sshd.as_ref().map(Sshd::command);
        if let Some(ssh) = &ssh {
            args.extend(["--ssh", ssh]);
        }
        // Without an identity over there, without a configuration, an outbox or a store here: a new machine.
        let mut command = far.kit.command(bak_tests::bin("bak-restore"));
        command.args(&args).env("XDG_CACHE_HOME", far.kit.path("cache"));
        finish(command, "").clean();
        same(&far.kit.path("web.raw"), &file);
        assert!(far.kit.path("cache/bak").is_dir() && far.left().is_empty());
    }
}

#[test]
fn the_store_first_then_the_destinations_in_their_order() {
    let far = Far::ready(Way::Ssh);
    fs::create_dir(far.kit.path("mounted")).unwrap();
    let text = fs::read_to_string(far.kit.path("bak.toml")).unwrap();
    far.kit.write("bak.toml", text + "[[dest]]\nname = \"near\"\nurl = \"mounted\"\n");
    put_dump(&far.kit.store(), "here", DAY, 1000, json!({}));
    for vm in ["here", "there", "both"] {
        far.dump(vm);
    }
    put_dump(&far.kit.path("mounted"), "both", DAY, 1000, json!({}));
    put_dump(&far.kit.path("mounted"), "mounted", DAY, 1000, json!({}));
    fs::create_dir(far.kit.path("out")).unwrap();
    let before = far.counted();
    far.restore(&["here", "--to", "out"]).clean();
    assert_eq!(far.counted(), before, "what is here is not looked for elsewhere");
    far.restore(&["there", "both", "mounted", "--to", "out"]).clean();
    for (vm, size) in [("here", 1000), ("there", SIZE), ("both", SIZE), ("mounted", 1000)] {
        assert_eq!(far.kit.path(&format!("out/{vm}.raw")).metadata().unwrap().len(), size as u64, "{vm}");
    }
    let ran = far.restore(&["nobody", "--to", "out"]).expect(1);
    assert!(
        ran.err.contains("nobody: there is no dump of a guest called so (in the store; nor at box, near)"),
        "{}",
        ran.err
    );
    // A destination that cannot be reached keeps nobody from the next one, and is said.
    kill(far.sshd.as_ref().unwrap().pid());
    let ran = far.restore(&["mounted", "--to", "again.raw"]).expect(1);
    assert!(ran.err.contains("bak-restore: box: "), "{}", ran.err);
    assert_eq!(far.kit.path("again.raw").metadata().unwrap().len(), 1000);
}

#[test]
fn a_copy_that_is_not_good_here_is_taken_from_there() {
    let far = Far::ready(Way::Daemon);
    let file = far.dump("web");
    let id = put_dump(&far.kit.store(), "web", DAY, SIZE, json!({}));
    fs::remove_file(far.kit.store().join("web").join(file.file_name().unwrap())).unwrap();
    let ran = far.restore(&[&id, "--to", "web.raw"]).expect(0);
    ran.says(&format!("{id}: this dump is not good: its file")).says("is missing (in the store); that of box is taken");
    same(&far.kit.path("web.raw"), &file);
}

/// Starts to fetch slowly, and waits until some of it has come.
fn begun(far: &Far, args: &[&str]) -> std::process::Child {
    let args = [&["web", "--from", "box", "--to", "web.raw", "--bwlimit", "100K", "--work", "work"], args].concat();
    let mut command = far.command("bak-restore", &args);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a part of the dump to come", || {
        far.left().iter().any(|path| path.metadata().is_ok_and(|meta| meta.len() >= 300_000))
    });
    child
}

fn fetched(far: &Far) -> u64 {
    far.left().iter().filter(|path| path.extension().unwrap() == "raw").map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn what_was_killed_goes_on() {
    for way in [Way::Ssh, Way::Rrsync, Way::Daemon] {
        let far = Far::ready(way);
        // Long enough that it is surely on its way.
        let file = far.dump_of("web", 6_000_000, json!({}));
        let mut child = begun(&far, &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        far.settled(&far.kit.path("work"));
        let there = fetched(&far);
        assert!((300_000..6_000_000).contains(&there), "{there}");
        assert!(!far.kit.path("web.raw").exists());
        far.restore(&["web", "--from", "box", "--to", "web.raw", "--work", "work"]).clean();
        same(&far.kit.path("web.raw"), &file);
        let carried = bytes(far.fetches("web").last().unwrap());
        assert!(carried < 6_000_000 - there + 100_000, "{way:?}: {carried} with {there} there");
        assert!(far.left().is_empty());
        // What the killed one has carried is in the ledger, but for what one may forget.
        assert!(far.fetches("web").len() <= 2);
        // The hidden directory is all that was made there.
        assert_eq!(fs::read_dir(far.kit.path("work")).unwrap().count(), 1);
    }
}

#[test]
fn a_signal_ends_it_in_order() {
    let far = Far::ready(Way::Ssh);
    far.dump_of("web", 6_000_000, json!({}));
    let child = begun(&far, &[]);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let ran = bak_tests::Ran::of(output);
    assert_eq!(ran.status, -2, "{}", ran.err);
    assert!(ran.err.contains("what was fetched is kept in"), "{}", ran.err);
    far.settled(&far.kit.path("work"));
    let line = far.fetches("web").pop().unwrap();
    assert_eq!(line["result"], "stopped");
    assert!(bytes(&line) >= 300_000, "{line}");
    assert!(fetched(&far) >= 300_000);
}

#[test]
fn a_line_that_drops_is_tried_again() {
    let far = Far::ready(Way::Daemon);
    let file = far.dump_of("web", 1_200_000, json!({}));
    let relay = Relay::start(far.rsyncd.as_ref().unwrap().port);
    let url = format!("box=rsync://127.0.0.1:{}/bak", relay.port);
    let mut child = begun(&far, &["--dest", &url]);
    relay.cut();
    assert!(child.wait().unwrap().success());
    same(&far.kit.path("web.raw"), &file);
    let carried = bytes(&far.fetches("web")[0]);
    assert!((1_200_000..1_500_000).contains(&carried), "{carried}");
}

#[test]
fn what_is_damaged_over_there_is_never_restored() {
    for way in [Way::Ssh, Way::Daemon] {
        let far = Far::ready(way);
        flip(&far.dump("web"));
        let ran = far.restore(&["web", "--from", "box", "--to", "web.raw"]).expect(1);
        assert!(ran.err.contains("is damaged: its SHA-256 is"), "{}", ran.err);
        assert!(!far.kit.path("web.raw").exists() && far.left().is_empty());
    }
}

#[test]
fn what_lies_here_from_before_is_not_believed() {
    let far = Far::ready(Way::Ssh);
    let file = far.dump("web");
    let args = ["web", "--from", "box", "--to", "web.raw", "--work", "work", "--force"];
    far.restore(&args).clean();
    let id: Value = serde_json::from_slice(&fs::read(far.far().join(".bak-store")).unwrap()).unwrap();
    let dir = far.kit.path("work/.bak-fetched").join(id["id"].as_str().unwrap()).join("web");
    for wrong in [noise(5, SIZE), noise(5, SIZE / 2), noise(5, SIZE * 2)] {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file.file_name().unwrap()), wrong).unwrap();
        far.restore(&args).clean();
        same(&far.kit.path("web.raw"), &file);
        assert!(far.left().is_empty());
    }
}

#[test]
fn another_far_side_is_refused() {
    let far = Far::ready(Way::Ssh);
    far.dump("web");
    let identity = fs::read(far.far().join(".bak-store")).unwrap();
    let args = ["web", "--from", "box", "--to", "web.raw"];
    fs::write(far.far().join(".bak-store"), "{\"v\":1,\"id\":\"another\"}").unwrap();
    far.restore(&args).expect(4).says("this is another far side: it says another");
    fs::write(far.far().join(".bak-store"), "{\"v\":9,\"id\":\"another\"}").unwrap();
    far.restore(&args).expect(4).says("is of version 9, and this bak knows 1");
    fs::write(far.far().join(".bak-store"), "{\"v\":1,\"id\":\"drill\"}").unwrap();
    far.restore(&args).expect(4).says("its id is `drill`");
    fs::remove_file(far.far().join(".bak-store")).unwrap();
    far.restore(&args).expect(4).says("has no .bak-store");
    assert!(!far.kit.path("web.raw").exists());
    fs::write(far.far().join(".bak-store"), identity).unwrap();
    far.restore(&args).clean();
}

#[test]
fn what_would_be_refused_is_refused_before_anything_crosses() {
    let far = Far::ready(Way::Ssh);
    far.dump("web");
    far.kit.write("web.raw", "mine");
    far.restore(&["web", "--from", "box", "--to", "web.raw"]).expect(4).says("is there already");
    far.restore(&["web", "--from", "box"]).expect(2).says("say where to write by --to");
    let planned = far.restore(&["web", "--from", "box", "--to", "new.raw", "-n"]).clean().records();
    assert_eq!(planned[0]["planned"], true);
    assert!(far.fetches("web").is_empty() && !far.kit.path("new.raw").exists());
    assert_eq!(fs::read(far.kit.path("web.raw")).unwrap(), b"mine");
    // A dump that is larger than any disk here.
    let file = fs::File::options().append(true).open(far.file("web")).unwrap();
    file.set_len(1 << 43).unwrap();
    let mut record = far.record("web");
    record["bytes"] = (1_u64 << 43).into();
    record["files"][0]["bytes"] = (1_u64 << 43).into();
    fs::write(far.sidecar("web"), record.to_string()).unwrap();
    let ran = far.restore(&["web", "--from", "box", "--to", "new.raw", "--work", "work"]).expect(1);
    assert!(ran.err.contains("bytes) are free"), "{}", ran.err);
    far.restore(&["web", "--from", "nowhere:", "--to", "x"]).expect(2);
    far.restore(&["web", "--from", "box", "--to", "x", "--bwlimit", "fast"]).expect(2).says("bwlimit");
}

#[test]
fn one_fetches_at_a_time() {
    let far = Far::ready(Way::Ssh);
    far.dump("web");
    let args = ["web", "--from", "box", "--to", "web.raw", "--work", "work", "--force", "--wait", "0s"];
    far.restore(&args).clean();
    let lock = far.kit.sh("find work -name .lock").clean().out.trim().to_owned();
    let held = fs::File::open(far.kit.path(&lock)).unwrap();
    held.lock().unwrap();
    let ran = far.restore(&args).expect(3).says("what is fetched from");
    assert!(!ran.err.contains("is kept"), "nothing came: {}", ran.err);
    drop(held);
    far.restore(&args).clean();
}

#[test]
fn a_guest_of_proxmox_on_another_node() {
    let node = Node::new();
    node.machine(100, "name: web\n", 300_000);
    node.run("bak-dump", &["100", "-q"]).clean();
    let sshd = Sshd::start(&node.kit.path("sshd"));
    fs::create_dir(node.kit.path("far")).unwrap();
    let url = format!("box={}", sshd.url(&node.kit.path("far")));
    let ssh = sshd.command();
    let to = ["--dest", &url, "--ssh", &ssh];
    node.run("bak-sync", &[&["--init"], &to[..]].concat()).clean();
    node.run("bak-link", &to[..2]).clean();
    node.run("bak-sync", &to).clean();
    let content = fs::read(node.content(100)).unwrap();
    // The node is dead; its number is still held by the cluster's configuration.
    fs::remove_dir_all(node.kit.store()).unwrap();
    fs::remove_file(node.content(100)).unwrap();
    let pve = node.kit.path("pve/nodes");
    fs::rename(pve.join("pve1/qemu-server/100.conf"), pve.join("pve2/qemu-server/100.conf")).unwrap();
    let from = [&["100", "--from", "box"], &to[..]].concat();
    let ran = node.run("bak-restore", &from).expect(4).says("belongs to a guest of the node pve2");
    assert!(ran.err.contains("mv ") && ran.err.contains("takes the number over"), "{}", ran.err);
    let planned = node.run("bak-restore", &[&from[..], &["--as", "200", "-n"]].concat()).clean().records();
    let command = planned[0]["restored"]["to"][0].as_str().unwrap();
    assert!(command.starts_with("qmrestore ") && command.ends_with(" 200 --unique 1"), "{command}");
    assert!(!node.kit.path("pve/qmrestore.args").exists());
    node.run("bak-restore", &[&from[..], &["--as", "200"]].concat()).clean();
    assert!(fs::read(node.content(200)).unwrap() == content);
}

/// To bring back, and to verify, it is enough to be let read.
#[test]
fn where_nothing_may_be_written() {
    for way in [Way::Rrsync, Way::Daemon] {
        let far = Far::ready(way);
        let file = far.dump("web");
        match &far.rsyncd {
            Some(daemon) => daemon.reconfigure("read only = no", "read only = yes"),
            None => far.sshd.as_ref().unwrap().force(&format!("/usr/bin/rrsync -ro {}", far.far().display())),
        }
        far.restore(&["web", "--from", "box", "--to", "web.raw"]).clean();
        same(&far.kit.path("web.raw"), &file);
        far.verify(&["--all"]).clean();
        assert!(far.left().is_empty());
    }
}

/// A machine comes back also where nothing can be counted; what keeps to limits needs the count.
#[test]
fn a_ledger_that_cannot_be_written() {
    let far = Far::ready(Way::Daemon);
    let file = far.dump("web");
    let ledger = far.outbox().join(".bak/ledger");
    assert!(!ledger.exists());
    fs::write(&ledger, "").unwrap();
    let ran = far.restore(&["web", "--from", "box", "--to", "web.raw"]).expect(0);
    assert!(ran.err.contains("box: what is fetched is not in the ledger: "), "{}", ran.err);
    same(&far.kit.path("web.raw"), &file);
    far.verify(&["--all"]).expect(1).says("ledger");
}

#[test]
fn holes_stay_holes() {
    let far = Far::ready(Way::Ssh);
    let file = far.dump("web");
    // Nothing but its first megabyte is there.
    fs::File::options().append(true).open(&file).unwrap().set_len(64 << 20).unwrap();
    let mut record = far.record("web");
    record["bytes"] = (64 << 20).into();
    record["files"][0]["bytes"] = (64 << 20).into();
    record["files"][0]["sha256"] = bak_tests::sha256_file(&file).into();
    fs::write(far.sidecar("web"), record.to_string()).unwrap();
    far.restore(&["web", "--from", "box", "--to", "web.raw"]).clean();
    same(&far.kit.path("web.raw"), &file);
    assert!(far.kit.path("web.raw").metadata().unwrap().blocks() * 512 < 4 << 20);
    assert!(bytes(&far.fetches("web")[0]) < 2 << 20);
}

#[test]
fn a_destination_that_is_none() {
    let far = Far::new(Way::Daemon);
    let args = ["web", "--to", "x.raw", "--from", "bx"];
    let file = "there is no store at bx, nor a destination bx: bak.toml has these: box";
    far.restore(&args).expect(2).says(file);
    far.run("bak-verify", &["--all", "--from", "bx"]).expect(2).says(file);
    if !Path::new("/etc/bak/bak.toml").exists() {
        let ran = far.kit.run("bak-restore", args).expect(2);
        assert!(
            ran.err.contains("nor a destination bx: no configuration was found at /etc/bak/bak.toml"),
            "{}",
            ran.err
        );
    }
}

/// What cannot be helped by trying again is not said to be.
#[test]
fn what_is_hopeless_is_not_kept() {
    let far = Far::ready(Way::Ssh);
    let url = format!("{}/nowhere", far.url());
    let ssh = far.sshd.as_ref().unwrap().command();
    let ran = far.run("bak-list", &[&url, "--ssh", &ssh]).expect(1);
    assert!(ran.err.contains("there is no such directory over there"), "{}", ran.err);
    // An image that needs another one: its SHA-256 is right, and it can never come back.
    let id = put_dump(&far.far(), "web", far::DAY, 10, json!({}));
    let name = format!("web-{}.qcow2", bak_tests::compact(far::DAY));
    fs::remove_file(far.file("web")).unwrap();
    far.kit.sh(&format!("qemu-img create -q -f qcow2 -b /etc/hostname -F raw far/web/{name}")).clean();
    let file = far.far().join("web").join(&name);
    let mut record = far.record("web");
    let bytes = file.metadata().unwrap().len();
    record["bytes"] = bytes.into();
    record["files"] = json!([{"name": name, "bytes": bytes, "sha256": bak_tests::sha256_file(&file)}]);
    fs::write(far.sidecar("web"), record.to_string()).unwrap();
    let ran = far.restore(&["web", "--from", "box", "--to", "web.qcow2"]).expect(1).says("needs another file");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert!(ran.err.contains(&id) && far.left().is_empty());
}
