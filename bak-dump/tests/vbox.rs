//! The guests of a VirtualBox host, with a stand-in for VBoxManage: who is listed, what an export is, when a guest counts as
//! used, and everything that goes wrong with one guest while the others go on.

use bak_tests::vbox::Host;
use bak_tests::{Ran, bin, check_store, noise, process};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

const NOW: &str = "2026-11-20T01:00:02Z";
const LATER: &str = "2026-11-21T01:00:02Z";

/// Two stopped machines.
fn host() -> Host {
    let host = Host::new();
    host.machine(1, "web", 200_000).machine(2, "db", 100_000);
    host
}

fn dump(host: &Host, args: &[&str]) -> Ran {
    host.run("bak-dump", &[&["--now", NOW], args].concat())
}

/// Nothing half-made is left: the whole dumps.
#[track_caller]
fn no_debris(host: &Host) -> Vec<String> {
    let seen = check_store(&host.kit.store());
    assert!(seen.broken.is_empty() && seen.unfinished.is_empty() && seen.strange.is_empty(), "{seen:?}");
    seen.whole
}

/// Starts a program of bak's on this host.
fn start(host: &Host, name: &str, args: &[&str]) -> Child {
    let mut command = host.command(&bin(name));
    command.args(["--config", "bak.toml"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> Ran {
    Ran::of(child.wait_with_output().unwrap())
}

fn guest(number: u32, name: &str) -> Value {
    let path = format!("/vm/{}.vdi", Host::uuid(number));
    json!({"v": 1, "type": "guest", "vm": name, "uid": Host::uuid(number), "kind": "vbox", "driver": "vbox", "node": "host",
        "state": "stopped", "disks": [{"path": path, "uuid": format!("{number:08x}-1111-4000-8000-00000000000d")}]})
}

/// Guests without their fingerprints.
fn plain(ran: &Ran) -> Vec<Value> {
    let mut records = ran.records();
    for record in &mut records {
        let fingerprint = record.as_object_mut().unwrap().remove("fingerprint").unwrap();
        assert_eq!(fingerprint.as_str().unwrap().len(), 64);
    }
    records
}

#[test]
fn the_guests_of_this_host() {
    let names = ["VM of \"two\" words", "a} {b\\", "Köln 東京", "two\nlines", "-x", "a/b:c", "{x}\" {y"];
    let host = Host::new();
    for (number, name) in (1..).zip(names) {
        host.machine(number, name, 1);
    }
    host.turn(2, "running", "2026-11-20T00:00:00.000000000").turn(3, "saved", "2026-11-20T00:00:00.000000000");
    host.turn(4, "paused", "2026-11-20T00:00:00.000000000").set(5, "groups", "/prod,/lab/old");
    host.set(6, "description", "as it was:\nVMState=\"running\"\nname=\"x\"\n");
    let mut expected: Vec<Value> = (1..).zip(names).map(|(number, name)| guest(number, name)).collect();
    expected[1]["state"] = "running".into();
    expected[3]["state"] = "paused".into();
    expected[4]["tags"] = json!(["prod", "lab/old"]);
    expected.sort_by_key(|guest| guest["vm"].as_str().unwrap().to_owned());
    assert_eq!(json!(plain(&host.run("bak-guests", &[]).clean())), json!(expected));
    assert!(
        host.called().iter().all(|line| line == "list vms" || line.starts_with("showvminfo 0000000")),
        "{:?}",
        host.called()
    );
    assert_eq!(host.run("bak-guests", &["--tag", "prod"]).clean().column("vm"), ["-x"]);
    // The kernel module is not loaded, and the version is another.
    host.kit.write("vbox/warns", "");
    host.kit.write("vbox/version", "7.1\n");
    assert_eq!(json!(plain(&host.run("bak-guests", &[]).clean())), json!(expected));
}

#[test]
fn guests_that_cannot_be_told() {
    let host = host();
    host.machine(3, "web", 1).machine(4, &"x".repeat(201), 1).machine(5, "gone", 1).set(5, "state", "inaccessible");
    let ran = host.run("bak-guests", &[]).expect(1);
    assert_eq!(ran.column("vm"), ["db"]);
    let (one, two, five) = (Host::uuid(1), Host::uuid(3), Host::uuid(5));
    let ran = ran.says(&format!("web: several guests have this name: {one}, {two}; rename all but one of them"));
    let ran = ran.says("the guest's name is too long for a file name: 201 of at most 200 bytes");
    let ran =
        ran.says(&format!("{five}: VirtualBox cannot read its settings: `VBoxManage showvminfo {five}` says why"));
    assert_eq!(ran.err.lines().count(), 4, "{}", ran.err);
    // By name, what else is wrong does not matter.
    assert_eq!(host.run("bak-guests", &["db"]).clean().column("vm"), ["db"]);
    host.kit.write("vbox/lists", "fails");
    let why = "bak-guests: VBoxManage list vms failed: Failed to create the VirtualBox object! (NS_ERROR_SOCKET_FAIL)";
    host.run("bak-guests", &[]).expect(1).says(why);
    host.kit.write("vbox/lists", "garbage");
    host.run("bak-guests", &[]).expect(1).says("cannot read what VBoxManage list vms prints: Segmentation something");
    // A prefix makes names of several hosts differ.
    let other = Host::new();
    let config = fs::read_to_string(other.kit.path("bak.toml")).unwrap();
    other.kit.write("bak.toml", format!("prefix = \"h1-\"\n{config}"));
    other.machine(1, "web", 1);
    let record = &other.run("bak-guests", &[]).clean().records()[0];
    assert_eq!((&record["vm"], &record["name"]), (&json!("h1-web"), &json!("web")));
}

#[test]
fn no_virtualbox_here() {
    let ran = Host::new().kit.run("bak-guests", ["--driver", "vbox"]).expect(2);
    assert_eq!(ran.err, "bak-guests: cannot find VBoxManage: install the package virtualbox\n");
    // Or none of this user's.
    let host = Host::new();
    assert_eq!(host.run("bak-guests", &[]).clean().out, "");
    dump(&host, &["--all"]).expect(2).says("do they belong to the user who runs this?");
}

#[test]
fn a_dump_is_an_ova() {
    let host = host();
    host.machine(3, "Köln \"東京\"", 50_000).turn(3, "saved", "2026-11-19T00:00:00.000000000");
    let ran = dump(&host, &["--all"]).clean();
    let ids = ["Köln \"東京\"@20261120T010002Z", "db@20261120T010002Z", "web@20261120T010002Z"];
    assert_eq!(ran.column("id"), ids);
    assert_eq!(no_debris(&host), ids);
    let records = ran.records();
    let web = &records[2];
    assert_eq!((&web["uid"], &web["mode"], &web["kind"]), (&json!(Host::uuid(1)), &json!("stop"), &json!("vbox")));
    assert_eq!((&web["vbox"], &records[0]["vbox"]), (&Value::Null, &json!({"state": "saved"})));
    // By UUID, into the work directory, under a name that fits into an OVA.
    let store = host.kit.store().canonicalize().unwrap();
    let work = store.join(".bak/work/web-20261120T010002Z");
    let expected = format!("export {} --output {}/machine.ova --ovf20 --manifest", Host::uuid(1), work.display());
    assert!(host.called().contains(&expected), "{:?}", host.called());
    // Plain tar reads it; nothing lies beside it.
    let dir = store.join("web");
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["web-20261120T010002Z.dump.json", "web-20261120T010002Z.ova"]);
    for name in names {
        assert_eq!(fs::metadata(dir.join(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    host.sh("tar -xO -f store/web/web-20261120T010002Z.ova machine-disk001.vmdk >back").clean();
    assert!(fs::read(host.kit.path("back")).unwrap() == noise(1, 200_000));
    let verdicts = host.run("bak-verify", &["--all"]).clean();
    for record in verdicts.records() {
        assert_eq!(record["verify"]["why"], "SHA-256 as recorded, its manifest");
    }
    assert_eq!(host.run("bak-list", &[]).clean().column("id").len(), 3);
}

#[test]
fn options_come_from_the_configuration() {
    let host = host();
    let config = fs::read_to_string(host.kit.path("bak.toml")).unwrap();
    host.kit.write("bak.toml", format!("{config}[vbox]\novf = \"1.0\"\noptions = [\"iso\", \"nomacs\"]\n"));
    dump(&host, &["web"]).clean();
    let called = host.called();
    let export = called.iter().find(|line| line.starts_with("export ")).unwrap();
    assert!(export.ends_with("/machine.ova --ovf10 --manifest --options iso,nomacs"), "{export}");
    host.kit.write("bak.toml", format!("{config}[vbox]\ntimeout = \"1s\"\n"));
    host.set(2, "behave", "hangs");
    dump(&host, &["db"]).expect(1).says("VBoxManage took longer than 1 s and was stopped");
    host.kit.write("bak.toml", format!("{config}[vbox]\nformat = \"ovf\"\n"));
    dump(&host, &["web"]).expect(2).says("bak.toml:6:1: unknown field `format`");
}

/// Each in turn: one clear failure, no debris, the other guest's dump is made, and the last good one stays.
#[test]
fn what_goes_wrong_with_one_guest() {
    let not_whole = "what VBoxManage export made is no whole OVA: its end is not the end of a tar archive";
    let used = "was used while it was exported (it was poweroff since 2026-11-19T08:45:16, and now it is ";
    let table = [
        (
            "fails",
            "VBoxManage export failed: Appliance write failed: Could not open the medium \
             '/vm/00000001-0000-4000-8000-00000000000a.vdi' (VBOX_E_FILE_ERROR)",
        ),
        ("nothing", "VBoxManage export ended well and made no file"),
        ("garbage", not_whole),
        ("empty", not_whole),
        ("link", "machine.ova is a symbolic link"),
        ("cut", not_whole),
        ("endless", not_whole),
        ("odd", not_whole),
        ("bare", "what VBoxManage export made proves nothing: it has only a tar archive without a manifest"),
        ("damaged", "what VBoxManage export made is no good: machine-disk001.vmdk in it is damaged: its SHA256 is "),
        ("dies", "VBoxManage was killed by signal 9"),
        ("hangs", "VBoxManage took longer than 10 s and was stopped"),
        ("starts", &format!("{used}running since 2027-01-01T00:00:02)")),
        ("blinks", &format!("{used}poweroff since 2027-01-01T00:00:03)")),
        ("grows", "was changed while it was exported (its memory)"),
    ];
    for (behave, why) in table {
        let host = host();
        dump(&host, &["web"]).clean();
        host.set(1, "behave", behave);
        let limit = if behave == "hangs" { "10s" } else { "1h" };
        let ran = host.run("bak-dump", &["--now", LATER, "--all", "--timeout", limit]).expect(1);
        assert_eq!(ran.column("id"), ["db@20261121T010002Z"], "{behave}");
        let lines: Vec<&str> = ran.err.lines().collect();
        assert_eq!((lines.len(), lines[1]), (2, "bak-dump: 1 dumped, 1 failed"), "{behave}: {}", ran.err);
        assert!(lines[0].starts_with(&format!("bak-dump: web: {why}")), "{behave}: {}", lines[0]);
        assert!(lines[0].len() < 800, "{behave}: {}", lines[0]);
        // What VBoxManage said is kept.
        let log = host.kit.store().join(".bak/log/web-20261121T010002Z.log");
        assert!(lines[0].ends_with(&format!("; its log is {}", log.display())), "{behave}: {}", lines[0]);
        assert!(fs::read(&log).unwrap().starts_with(b"0%..."), "{behave}");
        assert_eq!(no_debris(&host), ["db@20261121T010002Z", "web@20261120T010002Z"], "{behave}");
        assert_eq!(host.kit.path("vbox/canceled").exists(), behave == "hangs", "{behave}");
    }
}

/// The store's file system runs full, with and without a reserve.
#[test]
fn a_full_disk() {
    for (behave, reserve, why) in [
        ("eats", "4M", "stopped: only "),
        ("fills", "0", "VBoxManage export failed: Appliance write failed: Could not write to "),
    ] {
        let host = host();
        host.set(2, "behave", behave);
        let line = format!(
            "bak-dump --config bak.toml --now {NOW} --reserve {reserve} --all; echo $? >status; ls -A store store/.bak/work >left"
        );
        let ran = host.sh(&format!("unshare -m sh -c 'mount -t tmpfs -o size=16M none store && {{ {line}; }}'"));
        assert_eq!(fs::read_to_string(host.kit.path("status")).unwrap(), "1\n", "{}", ran.err);
        assert!(ran.err.starts_with(&format!("bak-dump: db: {why}")), "{}", ran.err);
        assert_eq!(ran.column("id"), ["web@20261120T010002Z"], "room was made for the others");
        let left = fs::read_to_string(host.kit.path("left")).unwrap();
        assert!(!left.contains("db"), "{left}");
    }
}

#[test]
fn running_guests_go_last_and_are_waited_for() {
    let host = host();
    host.turn(1, "running", "2026-11-20T00:00:00.000000000");
    let why = "bak-dump: web: is running; it can be dumped only while it is stopped\n";
    let ran = dump(&host, &["--all"]).expect(1);
    assert_eq!(
        (ran.column("id"), ran.err.starts_with(why)),
        (vec!["db@20261120T010002Z".to_owned()], true),
        "{}",
        ran.err
    );
    assert!(!host.called().iter().any(|line| line.starts_with(&format!("export {}", Host::uuid(1)))));
    // As the configuration says.
    let config = fs::read_to_string(host.kit.path("bak.toml")).unwrap();
    host.kit.write("bak.toml", format!("{config}[vbox]\nretry_wait = \"1s\"\nretry_for = \"1h\"\n"));
    let run = start(&host, "bak-dump", &["--now", LATER, "--all"]);
    let about = format!("showvminfo {} --machinereadable", Host::uuid(1));
    let before = host.called().len();
    process::wait_for("bak-dump looks again and again", || {
        host.called()[before..].iter().filter(|line| **line == about).count() > 3
    });
    host.turn(1, "poweroff", "2026-11-20T02:00:00.000000000");
    assert_eq!(end(run).clean().column("id"), ["db@20261121T010002Z", "web@20261121T010002Z"]);
    // Flags beat it; and nobody is ever stopped.
    host.turn(1, "running", "2026-11-22T00:00:00.000000000");
    host.run("bak-dump", &["--now", "2026-11-22T01:00:02Z", "web", "--retry-for", "0"]).expect(1).says("is running");
    assert!(
        host.called().iter().all(|line| ["list ", "showvminfo ", "export "].iter().any(|word| line.starts_with(word)))
    );
    no_debris(&host);
}

/// Started between the listing and its turn, or its turn and its export, it is a running guest like any other.
#[test]
fn somebody_is_quicker() {
    let host = host();
    let why = "bak-dump: web: is running; it can be dumped only while it is stopped\n";
    let exported =
        |number: u32| host.called().iter().any(|line| line.starts_with(&format!("export {}", Host::uuid(number))));
    host.set(2, "behave", "waits");
    let run = start(&host, "bak-dump", &["--now", NOW, "--all"]);
    process::wait_for("the other one is exported", || host.kit.path("vbox/waiting").exists());
    host.turn(1, "running", "2026-11-20T01:00:00.000000000");
    host.kit.write("vbox/go", "");
    let ran = end(run).expect(1);
    assert_eq!((ran.column("vm"), ran.err.starts_with(why)), (vec!["db".to_owned()], true), "{}", ran.err);
    assert!(!exported(1));
    // VBoxManage refuses.
    host.turn(1, "poweroff", "2026-11-20T02:00:00.000000000").set(1, "behave", "quick");
    let ran = host.run("bak-dump", &["--now", LATER, "web"]).expect(1);
    assert_eq!((ran.err.starts_with(why), ran.err.lines().count()), (true, 2), "{}", ran.err);
    assert!(exported(1));
    assert_eq!(no_debris(&host), ["db@20261120T010002Z"]);
}

#[test]
fn gone_renamed_and_registered_anew() {
    let host = host();
    let line = host.run("bak-guests", &["web"]).clean().out;
    host.set(1, "name", "other");
    host.run_with("bak-dump", &["-"], &line).expect(1).says("web: there is no such guest");
    // Its name belongs to another machine by now.
    host.machine(3, "web", 1);
    host.run_with("bak-dump", &["-"], &line)
        .expect(1)
        .says("there is no such guest: no vbox called so with the uid 00000001-");
    assert!(no_debris(&host).is_empty());
}

fn statuses(host: &Host) -> String {
    fs::read_to_string(host.kit.path("db/vmtool-statedb")).unwrap()
}

/// The records of the guests with their statuses, as the database has them then.
fn observe(host: &Host, now: &str) -> Ran {
    host.sh(&format!("bak-guests --config bak.toml | bak-state observe --config bak.toml --db db --now {now} -"))
        .clean()
}

/// The database of seed 004 sees the use of guests by their fingerprints.
#[test]
fn what_was_used_is_dumped_again() {
    let host = host();
    host.machine(3, "a b:c", 1000);
    fs::create_dir(host.kit.path("db")).unwrap();
    observe(&host, NOW);
    let due = "bak-guests --config bak.toml | bak-state observe --config bak.toml --db db --due --now ";
    let dump_due =
        |now: &str| host.sh(&format!("{due}{now} - | bak-dump --config bak.toml --db db --now {now} -")).clean();
    assert_eq!(dump_due("2026-11-20T02:00:00Z").column("vm"), ["a b:c", "db", "web"]);
    assert_eq!(statuses(&host).matches(":CLEAN\n").count(), 3, "{}", statuses(&host));
    // An upgrade, which prints more, a service that was started anew, and what moves by itself.
    host.kit.write("vbox/version", "7.1\n");
    host.turn(1, "poweroff", "2026-11-19T08:45:16.000000000");
    assert_eq!(dump_due("2026-11-21T02:00:00Z").out, "");
    // Used, and used now.
    host.turn(1, "poweroff", "2026-11-21T03:00:00.000000000").turn(2, "running", "2026-11-21T03:00:00.000000000");
    let ran = observe(&host, "2026-11-22T02:00:00Z");
    assert_eq!(ran.column("status"), ["CLEAN", "RUNNING", "BACKUP_NECESSARY"]);
    host.turn(2, "aborted", "2026-11-22T03:00:00.000000000");
    assert_eq!(dump_due("2026-11-23T02:00:00Z").column("vm"), ["db", "web"]);
    assert_eq!(no_debris(&host).len(), 5);
}

/// A guest that was started while it was exported is not CLEAN, although VBoxManage ended well.
#[test]
fn started_during_its_export() {
    for (behave, status) in [("starts", "RUNNING"), ("blinks", "BACKUP_NECESSARY")] {
        let host = host();
        fs::create_dir(host.kit.path("db")).unwrap();
        dump(&host, &["--db", "db", "web"]).clean();
        observe(&host, "2026-11-20T02:00:00Z");
        assert!(statuses(&host).contains("web:CLEAN\n"), "{}", statuses(&host));
        host.set(1, "behave", behave);
        host.run("bak-dump", &["--db", "db", "--now", LATER, "web"]).expect(1).says("was used while it was exported");
        assert!(statuses(&host).contains("web:BACKUP_NECESSARY\n"), "{}", statuses(&host));
        let ran = observe(&host, "2026-11-21T02:00:00Z");
        assert_eq!(ran.column("status"), ["BACKUP_NECESSARY", status]);
        assert_eq!(no_debris(&host), ["web@20261120T010002Z"], "the old one stays");
    }
}

/// The old export is there and good while the new one is made; and VBoxManage is asked to end when bak-dump is killed.
#[test]
fn the_old_one_stays_until_the_new_one_is_there() {
    let host = host();
    dump(&host, &["web"]).clean();
    host.set(1, "behave", "waits");
    let mut killed = start(&host, "bak-dump", &["--now", LATER, "web"]);
    process::wait_for("the export runs", || host.kit.path("vbox/waiting").exists());
    assert_eq!(host.run("bak-verify", &["--all"]).clean().column("id"), ["web@20261120T010002Z"]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    process::wait_for("the export is given up", || host.kit.path("vbox/canceled").exists());
    process::wait_for_workers(&host.kit.store());
    // Again, to its end.
    fs::remove_file(host.kit.path("vbox/waiting")).unwrap();
    let run = start(&host, "bak-dump", &["--now", "2026-11-22T01:00:02Z", "web"]);
    process::wait_for("the export runs", || host.kit.path("vbox/waiting").exists());
    assert_eq!(host.run("bak-list", &[]).clean().column("id"), ["web@20261120T010002Z"]);
    host.kit.write("vbox/go", "");
    end(run).clean();
    assert_eq!(no_debris(&host), ["web@20261120T010002Z", "web@20261122T010002Z"]);
}

fn restore(host: &Host, args: &[&str]) -> Ran {
    host.run("bak-restore", args)
}

fn to(ran: &Ran) -> Vec<String> {
    ran.records()[0]["restored"]["to"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// The UUIDs of the machines, as they were registered.
fn registered(host: &Host) -> Vec<String> {
    fs::read_to_string(host.kit.path("vbox/order")).unwrap().lines().map(str::to_owned).collect()
}

fn of_machine(host: &Host, uuid: &str, what: &str) -> Vec<u8> {
    fs::read(host.kit.path("vbox/machines").join(uuid).join(what)).unwrap()
}

#[test]
fn brought_back_by_virtualbox() {
    let host = host();
    dump(&host, &["--all"]).clean();
    let store = host.kit.store().canonicalize().unwrap();
    let ova = store.join("web/web-20261120T010002Z.ova").display().to_string();
    let before = host.called().len();
    restore(&host, &["web"]).expect(4).says("there is a guest `web` already").says("--as").says("--force");
    restore(&host, &["web", "--as", "new", "--format", "raw"]).expect(2).says("--format is for disk images");
    restore(&host, &["web", "--as", "new", "--to", "nowhere"]).expect(2).says("goes into a directory that is there");
    // The plan is the command.
    let kit = host.kit.path("").canonicalize().unwrap();
    fs::create_dir(kit.join("my vms")).unwrap();
    let planned = restore(&host, &["web", "--as", "the new", "--to", "my vms", "-n"]).clean();
    let folder = kit.join("my vms").display().to_string();
    let command = format!("VBoxManage import {ova} --vsys 0 --vmname 'the new' --basefolder '{folder}'");
    assert_eq!(to(&planned).join(" ; "), command);
    assert!(!host.called()[before..].iter().any(|line| line.starts_with("import")));
    // A new one gets addresses of its own.
    let ran = restore(&host, &["web", "--as", "the new", "--to", "my vms"]).clean();
    assert_eq!(
        host.called().iter().find(|line| line.starts_with("import")).unwrap().as_str(),
        command.replace(['\''], "").trim_start_matches("VBoxManage ")
    );
    let uuid = registered(&host).pop().unwrap();
    assert_eq!(to(&ran), [format!("the new {{{uuid}}}")]);
    assert!(of_machine(&host, &uuid, "content") == noise(1, 200_000));
    assert_eq!(of_machine(&host, &uuid, "imported"), format!("{folder} ").as_bytes());
    // One that is gone comes back as it was, from anywhere.
    host.sh(&format!("VBoxManage unregistervm {} --delete", Host::uuid(2))).clean();
    restore(&host, &["db", "--from", "store"]).clean();
    let uuid = registered(&host).pop().unwrap();
    assert_eq!(
        (of_machine(&host, &uuid, "name"), of_machine(&host, &uuid, "content") == noise(2, 100_000)),
        (b"db".to_vec(), true)
    );
    assert!(of_machine(&host, &uuid, "imported").ends_with(b" keepallmacs"));
    assert_eq!(registered(&host).len(), 3);
}

/// The old guest goes only when the new one is there.
#[test]
fn in_the_place_of_what_is_there() {
    let host = host();
    dump(&host, &["web"]).clean();
    let (one, first) = (Host::uuid(1), "bak-restore-20261120T010002Z");
    let ova = host.kit.store().canonicalize().unwrap().join("web/web-20261120T010002Z.ova").display().to_string();
    let planned = to(&restore(&host, &["web", "--force", "-n"]).clean());
    let commands = [
        format!("VBoxManage import {ova} --options keepallmacs --vsys 0 --vmname {first}"),
        format!("VBoxManage unregistervm {one} --delete"),
        format!("VBoxManage modifyvm {first} --name web"),
    ];
    assert_eq!(planned, commands);
    host.turn(1, "running", "2026-11-20T02:00:00.000000000");
    restore(&host, &["web", "--force"])
        .expect(4)
        .says("`web` is in use (running since 2026-11-20T02:00:00): shut it down first");
    host.turn(1, "poweroff", "2026-11-20T03:00:00.000000000");
    // Imports that fail, and one that only says that it did not.
    for (how, why) in [
        (
            "fails",
            "VBoxManage import failed: Appliance import failed: Could not create the imported medium (VERR_DISK_FULL)",
        ),
        ("nothing", "VBoxManage import ended well, and there is no guest `bak-restore-20261120T010002Z`"),
    ] {
        host.kit.write("vbox/import", how);
        restore(&host, &["web", "--force"]).expect(1).says(why);
        assert_eq!(registered(&host), [one.clone(), Host::uuid(2)], "{how}");
    }
    // Started while the new one was imported: both are kept.
    host.kit.write("vbox/import", format!("starts {one}"));
    let ran = restore(&host, &["web", "--force"]).expect(1);
    let both = registered(&host);
    let why = format!(
        "is back as the guest `{first}` {{{}}}, but not in its place: the old one is in use by now (running",
        both[2]
    );
    assert!(ran.err.contains(&why) && both[0] == one, "{}", ran.err);
    host.sh(&format!("VBoxManage unregistervm {} --delete", both[2])).clean();
    host.turn(1, "poweroff", "2026-11-20T03:00:00.000000000").kit.write("vbox/import", "");
    restore(&host, &["web", "--force"]).clean();
    let [two, new] = &registered(&host)[..] else { panic!("{:?}", registered(&host)) };
    assert_eq!((two, of_machine(&host, new, "name")), (&Host::uuid(2), b"web".to_vec()));
    assert!(of_machine(&host, new, "content") == noise(1, 200_000));
    // What an interrupted one left; and damage, which is seen before anything is touched.
    host.machine(7, first, 1);
    restore(&host, &["web", "--force"])
        .expect(4)
        .says(&format!("`VBoxManage unregistervm {} --delete`", Host::uuid(7)));
    let mut bytes = fs::read(&ova).unwrap();
    bytes[5000] ^= 1;
    fs::write(&ova, bytes).unwrap();
    let imports = |host: &Host| host.called().iter().filter(|line| line.starts_with("import")).count();
    let before = imports(&host);
    restore(&host, &["web", "--as", "x"]).expect(1).says("is damaged");
    assert_eq!(imports(&host), before);
    assert!(Path::new(&ova).exists());
}
