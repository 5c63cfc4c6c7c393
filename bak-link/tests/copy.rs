//! `--copy`: outboxes where no hard links can be made, on real file systems.

mod common;

use bak_tests::{Kit, Ran, bin, check_store, put_dump, sha256_file, strace};
use common::{Disk, Link, NOW, day, root, tool};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const RAW: &str = "web/web-20261119T020000Z.raw";
const WEB: &str = "web@20261119T020000Z";

/// Memory: another file system than the store's.
fn memory(kit: &Kit) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("bak-test-").tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(dir.path()), device(&kit.store()), "this test needs /dev/shm to be another file system");
    dir
}

fn pending(outbox: &Path) -> Vec<String> {
    let seen = check_store(outbox);
    assert_eq!((seen.broken, seen.unfinished), (vec![], vec![]));
    seen.whole
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_cannot_be_linked_is_copied_if_asked() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 3_000_000);
    kit.write("store/web/web-20261119T020000Z.log", "log");
    let shm = memory(&kit);
    let outbox = shm.path().join("outbox");
    kit.link(&["--outbox", text(&outbox)]).expect(4).says("--copy");
    assert!(!outbox.exists());
    let dry = kit.link(&["-n", "--copy", "--outbox", text(&outbox)]).clean();
    assert_eq!((dry.column("id"), outbox.exists()), (vec![WEB.to_owned()], false));
    let ran = kit.link(&["--copy", "--outbox", text(&outbox)]).clean();
    assert_eq!(ran.column("id"), [WEB]);
    assert_eq!(ran.records()[0]["link"]["box"]["decision"], "linked");
    assert_eq!(pending(&outbox), [WEB]);
    let (here, there) = (kit.store().join(RAW), outbox.join(RAW));
    assert_eq!(sha256_file(&here), sha256_file(&there));
    let look = |path: &Path| fs::metadata(path).map(|meta| (meta.mode(), meta.uid(), meta.mtime())).unwrap();
    assert_eq!(look(&here), look(&there));
    assert!(outbox.join("web/web-20261119T020000Z.log").is_file());
    assert_eq!(kit.link(&["--copy", "--outbox", text(&outbox)]).clean().out, "");
}

#[test]
fn the_configuration_may_ask_for_it() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    let shm = memory(&kit);
    let outbox = shm.path().join("outbox");
    let config = format!("[[dest]]\nname = \"box\"\noutbox = \"{}\"\ncopy = true\n", outbox.display());
    let config = kit.write("bak.toml", config);
    let args = ["--store", "store", "--now", NOW, "--config", text(&config)];
    assert_eq!(kit.run("bak-link", args).clean().column("id"), [WEB]);
    assert_eq!(pending(&outbox), [WEB]);
}

#[test]
fn where_links_can_be_made_they_are() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    kit.link(&["--copy"]).clean();
    let ino = |top: PathBuf| fs::metadata(top.join(RAW)).unwrap().ino();
    assert_eq!(ino(kit.store()), ino(kit.outbox()));
}

#[test]
fn holes_stay_holes() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 0);
    let size = 64 << 20;
    fs::File::options().write(true).open(kit.store().join(RAW)).unwrap().set_len(size).unwrap();
    describe(&kit.store());
    let shm = memory(&kit);
    kit.link(&["--copy", "--outbox", text(shm.path())]).clean();
    let copy = fs::metadata(shm.path().join(RAW)).unwrap();
    assert_eq!(copy.len(), size);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
}

/// Makes the sidecar of `web` say what its file is now.
fn describe(store: &Path) {
    let sidecar = store.join("web/web-20261119T020000Z.dump.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    let file = store.join(RAW);
    record["bytes"] = json!(fs::metadata(&file).unwrap().len());
    record["files"][0]["bytes"] = record["bytes"].clone();
    record["files"][0]["sha256"] = json!(sha256_file(&file));
    fs::write(sidecar, format!("{record}\n")).unwrap();
}

#[test]
fn a_damaged_original_is_found_out_and_the_others_go() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 2_000_000);
    let zoo = kit.dump("zoo", &day(19), 10);
    let mut bytes = fs::read(kit.store().join(RAW)).unwrap();
    bytes[1_234_567] ^= 1;
    fs::write(kit.store().join(RAW), bytes).unwrap();
    let shm = memory(&kit);
    let ran = kit.link(&["--copy", "--outbox", text(shm.path())]).expect(1);
    let ran = ran.says(&format!("bak-link: {WEB}: cannot put it into the outbox ")).says("is damaged: the SHA-256 of");
    assert_eq!(ran.column("id"), [zoo.as_str()]);
    assert_eq!(pending(shm.path()), [zoo]);
}

/// Every block of the copy is one of the original's.
fn shared(kit: &Kit, file: &Path) -> bool {
    let extents = tool(kit, &["filefrag", "-v", text(file)]);
    let extents: Vec<&str> = extents.lines().filter(|line| line.contains(": ") && line.contains("..")).collect();
    assert!(!extents.is_empty());
    extents.iter().all(|line| line.contains("shared"))
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    if !root() {
        return;
    }
    // Two subvolumes of a btrfs, and two mounts of an XFS: neither takes hard links across.
    for (mkfs, mib, divide) in [
        (&["mkfs.btrfs", "-q"][..], 200, &["btrfs", "-q", "subvolume", "create", "other"][..]),
        (&["mkfs.xfs", "-q"], 400, &["sh", "-c", "mkdir other && mount --bind other other"]),
    ] {
        let kit = Kit::new();
        let disk = Disk::new(&kit, mkfs, mib);
        let mut command = kit.command(divide[0]);
        let path = std::env::var("PATH").unwrap();
        command.args(&divide[1..]).current_dir(disk.path()).env("PATH", format!("{path}:/usr/sbin:/sbin"));
        bak_tests::finish(command, "").expect(0);
        let (store, outbox) = (disk.path().join("store"), disk.path().join("other/outbox"));
        fs::create_dir(&store).unwrap();
        put_dump(&store, "web", &day(19), 8_000_000, json!({}));
        tool(&kit, &["sync", "-f", text(&store)]);
        let args = ["--store", text(&store), "--outbox", text(&outbox), "--dest", "box=/far", "--now", NOW];
        let refused = kit.run("bak-link", args);
        assert!(refused.status == 4 || refused.status == 1, "{}", refused.err);
        refused.says("--copy");
        kit.run("bak-link", args.iter().chain(&["--copy"])).clean();
        assert_eq!(pending(&outbox), [WEB], "{mkfs:?}");
        let (here, there) = (store.join(RAW), outbox.join(RAW));
        assert_ne!(fs::metadata(&here).unwrap().ino(), fs::metadata(&there).unwrap().ino());
        assert!(shared(&kit, &there), "{mkfs:?}: {}", tool(&kit, &["filefrag", "-v", text(&there)]));
        let plain = disk.path().join("plain");
        tool(&kit, &["cp", "--reflink=never", text(&here), text(&plain)]);
        tool(&kit, &["sync", "-f", text(&store)]);
        assert!(!shared(&kit, &plain), "this test can fail");
    }
}

#[test]
fn what_has_no_room_fails_alone_and_leaves_nothing() {
    if !root() {
        return;
    }
    let kit = Kit::new();
    let disk = Disk::new(&kit, &["mkfs.ext4", "-q", "-m", "0"], 16);
    kit.dump("web", &day(19), 20_000_000);
    let zoo = kit.dump("zoo", &day(19), 100_000);
    let outbox = disk.path().join("outbox");
    let ran = kit.link(&["--copy", "--outbox", text(&outbox)]).expect(1);
    let ran = ran.says(&format!("bak-link: {WEB}: ")).says("there is no room: it needs 19.1 MiB, and ");
    assert_eq!(ran.column("id"), [zoo.as_str()]);
    assert_eq!(pending(&outbox), [zoo]);
    assert!(!outbox.join("web").exists());
}

fn argv(kit: &Kit, outbox: &Path) -> Vec<OsString> {
    let words = ["--store", text(&kit.store()), "--outbox", text(outbox), "--dest", "box=/far", "--now", NOW, "--copy"]
        .map(OsString::from);
    [bin("bak-link").into_os_string()].into_iter().chain(words).collect()
}

/// What may happen while hours are spent on copying: the outbox is free for others, and everything is looked at again.
#[test]
fn the_outbox_is_free_meanwhile_and_looked_at_again() {
    type Meanwhile = fn(&Kit, &Path);
    let table: [(Meanwhile, Option<&str>); 6] = [
        (|_, _| (), None),
        (
            |kit, outbox| {
                let lock = outbox.join(".bak/lock");
                tool(kit, &["flock", "-n", text(&lock), "true"]);
                let second = kit.link(&["--copy", "--wait", "0s", "--outbox", text(outbox)]).expect(3);
                second.says("copying into the outbox").says("is locked by bak-link");
            },
            None,
        ),
        (|kit, _| fs::remove_dir_all(kit.store().join("web")).unwrap(), Some("it was removed meanwhile")),
        (
            |kit, _| {
                let sidecar = kit.store().join("web/web-20261119T020000Z.dump.json");
                let text = fs::read_to_string(&sidecar).unwrap();
                fs::write(sidecar, text.replace("\"vm\"", "\"result\":\"failed\",\"vm\"")).unwrap();
            },
            Some("its result is failed"),
        ),
        (
            |_, outbox| {
                put_dump(outbox, "web", &day(20), 10, json!({}));
            },
            Some("it or a newer one was linked meanwhile"),
        ),
        (
            |_, outbox| {
                let note = json!({"at": day(20), "wire_out": 1, "wire_in": 1, "seconds": 1, "passes": 1});
                put_dump(&outbox.join(".bak/sent"), "web", &day(19), 1_500_000, json!({"sent": {"box": note}}));
            },
            Some("it or a newer one was sent meanwhile"),
        ),
    ];
    for (at, (meanwhile, why)) in table.into_iter().enumerate() {
        println!("case {at}");
        let kit = Kit::new();
        kit.dump("web", &day(19), 1_500_000);
        let shm = memory(&kit);
        let outbox = shm.path();
        let ran = strace::stopped_after(&kit, &argv(&kit, outbox), ("pwrite64", 1), || meanwhile(&kit, outbox));
        match why {
            None => assert_eq!(ran.clean().column("id"), [WEB]),
            Some(why) => assert_eq!(ran.expect(1).says(why).out, ""),
        }
        assert_eq!(outbox.join("web/web-20261119T020000Z.raw").exists(), why.is_none());
        assert_eq!(check_store(outbox).unfinished, [""; 0]);
    }
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 1_500_000);
    let seen = |quiet: &str| -> Ran {
        let shm = memory(&kit);
        let line =
            format!("bak-link --store store --outbox {} --dest box=/far --now {NOW} --copy{quiet}", text(shm.path()));
        kit.sh(&format!("script -qec '{line}' /dev/null")).expect(0)
    };
    assert!(seen("").out.contains("copied and checked"));
    assert!(!seen(" -q").out.contains("copied and checked"));
    let shm = memory(&kit);
    kit.link(&["--copy", "--outbox", text(shm.path())]).clean();
}
