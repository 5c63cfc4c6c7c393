//! Dumps that others made are taken in where they lie; everything else is left alone, with a reason.

mod archives;

use archives::{BEGAN, DATE, NOW, archive, archive_with, log, names, path, scan, vma, written};
use bak_tests::clock::Clock;
use bak_tests::pve::Node;
use bak_tests::{Kit, bin, check_store, finish, noise, sha256_file};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const WEB: &str = "boot: order=scsi0\nname: web\nsmbios1: uuid=6D0C1C5E-0000-4000-8000-000000000001\ntags: prod;web\n";

/// The reasons by file.
fn reasons(kit: &Kit, args: &[&str]) -> Vec<(String, String)> {
    let ran = scan(kit, &[&["-n", "--explain"], args].concat()).clean();
    let left = ran.records().into_iter().filter(|record| record["type"] == "scan.file");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    left.map(|record| (text(&record["file"]), text(&record["why"]))).collect()
}

#[test]
fn archives_of_proxmox_become_dumps_where_they_lie() {
    let kit = Kit::new();
    let endings = [".vma.zst", ".vma.gz", ".vma.lzo", ".vma", ".tar.zst", ".tar.bz2", ".tar", ".tgz"];
    let mut files = Vec::new();
    for (id, ending) in (100..).zip(endings) {
        let kind = if ending.starts_with(".vma") { "qemu" } else { "lxc" };
        files.push(archive(&kit, kind, id, ending, 5000));
    }
    files.push(archive(&kit, "openvz", 108, ".tgz", 5000));
    let inode = |name: &str| fs::metadata(path(&kit, name)).map(|file| (file.ino(), file.mtime())).unwrap();
    let before: Vec<_> = names(&kit).into_iter().map(|name| (inode(&name), name)).collect();
    let ran = scan(&kit, &[]).clean();
    let web = json!({"v": 1, "type": "dump", "id": "100@20261120T020002Z", "vm": "100", "name": "web", "kind": "qemu",
        "driver": "vzdump", "mode": "snapshot", "started": "2026-11-20T02:00:02Z", "finished": "2026-11-20T02:01:07Z",
        "dir": format!("{}/", kit.store().canonicalize().unwrap().display()), "stem": format!("vzdump-qemu-100-{DATE}"),
        "bytes": 5000, "files": [{"name": files[0], "bytes": 5000}], "adopted": {"at": NOW, "proof": ["log"]}});
    assert_eq!(ran.records().len(), 9);
    assert!(ran.records().contains(&web), "{}", ran.out);
    let kinds: Vec<String> = scan(&kit, &["-n"]).clean().column("kind");
    assert!(kinds.is_empty(), "the second run adopts nothing: {kinds:?}");
    // Nothing has moved or changed, and nothing but the sidecars has come.
    for (file, name) in &before {
        assert_eq!(inode(name), *file, "{name}");
    }
    assert_eq!(names(&kit).len(), before.len() + 9);
    let sidecar = path(&kit, &format!("vzdump-qemu-100-{DATE}.dump.json"));
    assert_eq!(fs::metadata(&sidecar).unwrap().permissions().mode() & 0o777, 0o600);
    let seen = check_store(&kit.store());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.unfinished.len()), (9, 0, 0), "{seen:?}");
    let listed = kit.run("bak-list", ["--store", "store"]).clean();
    assert!(listed.records().iter().all(|dump| dump["fault"].is_null()), "{}", listed.out);
    assert_eq!(listed.records()[8]["kind"], "lxc");
    assert_eq!((scan(&kit, &[]).clean().out, reasons(&kit, &[])), (String::new(), vec![]));
    assert_eq!(scan(&kit, &["-q"]).clean().out, "");
}

#[test]
fn who_it_is_stands_in_the_archive() {
    let kit = Kit::new();
    archive_with(&kit, ("qemu", 100, ".vma"), &vma(WEB), "INFO: Finished Backup of VM 100 (00:01:05)");
    let plain = path(&kit, &format!("vzdump-qemu-100-{DATE}.vma"));
    archive(&kit, "qemu", 101, ".vma.zst", 1);
    archive(&kit, "qemu", 102, ".vma.gz", 1);
    let packed =
        |id: u32, ending: &str| path(&kit, &format!("vzdump-qemu-{id}-{DATE}.vma{ending}")).display().to_string();
    kit.sh(&format!("zstd -qf {} -o {}; gzip -c {0} >{}", plain.display(), packed(101, ".zst"), packed(102, ".gz")))
        .clean();
    for (id, ending) in [(101, ".zst"), (102, ".gz")] {
        written(&kit, &format!("vzdump-qemu-{id}-{DATE}.vma{ending}"), BEGAN + 65);
    }
    let records = scan(&kit, &[]).clean().records();
    for record in &records[..2] {
        assert_eq!(record["uid"], "6d0c1c5e-0000-4000-8000-000000000001");
        assert_eq!((&record["tags"], &record["name"]), (&json!(["prod", "web"]), &json!("web")));
    }
    assert_eq!(records[2]["uid"], Value::Null);
}

#[test]
fn notes_and_marks_of_proxmox() {
    let kit = Kit::new();
    let name = archive(&kit, "lxc", 102, ".tar.zst", 1000);
    kit.write(&format!("store/{name}.notes"), "before the upgrade\n");
    kit.write(&format!("store/{name}.protected"), "");
    let record = &scan(&kit, &["--hash"]).clean().records()[0];
    assert_eq!((&record["protected"], &record["annotation"]), (&json!(true), &json!("before the upgrade")));
    assert_eq!(record["files"][0]["sha256"], sha256_file(&path(&kit, &name)));
    assert_eq!(fs::read_to_string(path(&kit, &format!("{name}.notes"))).unwrap(), "before the upgrade\n");
    let pruned =
        kit.run("bak-prune", ["store", "--now", "2027-11-20T12:00:00Z", "--keep-last", "1", "--explain"]).clean();
    assert_eq!(pruned.records()[0]["prune"]["decision"], "spared");
    assert!(path(&kit, &format!("{name}.protected")).exists());
}

#[test]
fn everything_else_is_left_alone_with_a_reason() {
    let kit = Kit::new();
    let finished = |id: u32| format!("INFO: Finished Backup of VM {id} (00:01:05)");
    let content = noise(1, 1000);
    let with = |id: u32, content: &[u8], end: &str| archive_with(&kit, ("qemu", id, ".vma.zst"), content, end);
    with(100, &content, "ERROR: Backup of VM 100 failed - job aborted");
    with(101, &content, "INFO: archive file size: 300MB");
    with(102, &content, &finished(1020));
    with(103, b"", &finished(103));
    let big = with(104, &content, &format!("INFO: archive file size: 300MB\n{}", finished(104)));
    let both = with(105, &content, &finished(105));
    fs::copy(path(&kit, &both), path(&kit, &both.replace(".zst", ".gz"))).unwrap();
    // Renamed together with its log; a link; somebody else's.
    let renamed = |to: u32| {
        let name = archive(&kit, "qemu", 106, ".vma.zst", 1000);
        for ending in [".vma.zst", ".log"] {
            let from = name.replace(".vma.zst", ending);
            fs::rename(path(&kit, &from), path(&kit, &from.replace("-106-", &format!("-{to}-")))).unwrap();
        }
        let log = path(&kit, &format!("vzdump-qemu-{to}-{DATE}.log"));
        fs::write(&log, fs::read_to_string(&log).unwrap().replace("VM 106", &format!("VM {to}"))).unwrap();
    };
    renamed(107);
    let link = archive(&kit, "qemu", 108, ".vma.zst", 1000);
    fs::rename(path(&kit, &link), kit.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(kit.path("elsewhere"), path(&kit, &link)).unwrap();
    fs::remove_file(path(&kit, &link.replace(".vma.zst", ".log"))).unwrap();
    let foreign = archive(&kit, "qemu", 109, ".vma.zst", 1000);
    let is_root = std::os::unix::fs::chown(path(&kit, &foreign), Some(12345), None).is_ok();
    // No log; in progress; not Proxmox's; what belongs to nothing.
    let lonely = archive(&kit, "lxc", 110, ".tar.zst", 1000);
    fs::remove_file(path(&kit, &lonely.replace(".tar.zst", ".log"))).unwrap();
    for name in
        ["vzdump-qemu-111-2026_11_20-02_00_02.vma.dat", "web-20260101.ova", "vzdump-qemu-1-x.vma", ".hidden.vma"]
    {
        kit.write(&format!("store/{name}"), "x");
    }
    kit.write("store/vzdump-qemu-112-2026_11_20-02_00_02.tmp/drive.conf", "x");
    kit.write("store/vzdump-qemu-113-2026_11_20-02_00_02.log", "x");
    let before = names(&kit);
    let expected = [
        (100, "its log says that it failed: job aborted"),
        (101, "its log does not end with its success (yet)"),
        (102, "its log is of another guest"),
        (103, "is empty"),
        (104, "it has 1000 B, which is not the size in its log"),
        (105, "several archives have this name"),
        (107, "its log is of vzdump-qemu-106-"),
        (108, "is not a regular file"),
        (109, if is_root { "belongs to the user 12345" } else { "" }),
        (110, "there is no log beside it"),
        (111, "vzdump is writing it"),
        (112, "vzdump is working in it"),
        (113, "what it would belong to is not here"),
    ];
    let reasons = reasons(&kit, &[]);
    for (id, why) in expected.iter().filter(|(_, why)| !why.is_empty()) {
        let found: Vec<_> = reasons.iter().filter(|(file, _)| file.contains(&format!("-{id}-"))).collect();
        assert!(!found.is_empty() && found.iter().all(|(_, said)| said.starts_with(why)), "{id}: {found:?}");
    }
    assert!(reasons.iter().any(|(file, why)| file == "web-20260101.ova" && why.contains("not called like an archive")));
    assert_eq!(reasons.len(), 16, "{reasons:#?}");
    let ran = scan(&kit, &["--explain"]).clean();
    assert_eq!(ran.records().len(), if is_root { 16 } else { 17 });
    if is_root {
        assert_eq!(names(&kit), before);
    }
    // In its own size it is believed, however that is rounded.
    fs::write(path(&kit, &big), noise(1, 1 << 20)).unwrap();
    written(&kit, &big, BEGAN + 65);
    let log = path(&kit, &big.replace(".vma.zst", ".log"));
    fs::write(&log, fs::read_to_string(&log).unwrap().replace("300MB", "1.00MB")).unwrap();
    let record = &scan(&kit, &["104"]).clean().records()[0];
    assert_eq!(record["adopted"]["proof"], json!(["log", "size"]));
}

#[test]
fn the_night_in_which_an_hour_comes_twice() {
    let kit = Kit::new();
    // 02:30 in Berlin, first in summer time, then again an hour later. Each began a minute before it was written.
    for (id, written_at) in [(100, 1_792_888_260), (101, 1_792_891_860)] {
        let name = format!("vzdump-lxc-{id}-2026_10_25-02_30_00.tar");
        let log_name = name.replace(".tar", ".log");
        kit.write(&format!("store/{name}"), "x");
        let end = format!("INFO: Finished Backup of VM {id} (00:01:00)");
        kit.write(&format!("store/{log_name}"), log("lxc", id, &name, &end));
        written(&kit, &name, written_at);
        written(&kit, &log_name, written_at + 1);
    }
    let mut command = kit.command(bin("bak-scan"));
    command.env("TZ", "Europe/Berlin").args(["--store", "store", "-n"]);
    let expected = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"];
    assert_eq!(finish(command, "").clean().column("started"), expected);
    assert_eq!(scan(&kit, &["-n", "--tz", "Europe/Berlin"]).clean().column("started"), expected);
    assert_eq!(scan(&kit, &["-n"]).clean().column("started"), ["2026-10-25T02:30:00Z"; 2]);
}

/// A directory as the old script left it: `vzdump --stdout | lzop`, by name and date, its links in `.rsync`.
#[test]
fn a_pattern_with_a_zone_is_refused() {
    let kit = Kit::new();
    for format in ["%Y%m%d%z", "%Y%m%d%Z", "%+"] {
        let pattern = format!("{{vm}}-{{started:{format}}}.raw");
        kit.run("bak-scan", ["--store", "store", "--pattern", &pattern]).expect(2).says("more than a local time");
    }
}

#[test]
fn files_without_a_log_by_a_pattern() {
    let kit = Kit::new();
    let files = ["web-2018-05-01_0200.vma.lzo", "web-2-2018-05-01_0230.vma.lzo", "ct-2018-05-02.tar.lzo"];
    for file in files {
        kit.write("plain", noise(7, 100_000));
        kit.sh(&format!("lzop -c plain >store/{file}")).clean();
    }
    fs::create_dir(path(&kit, ".rsync")).unwrap();
    fs::hard_link(path(&kit, files[0]), path(&kit, ".rsync/web-2018-05-01_0200.vma.lzo")).unwrap();
    // Cut off by a crash of the old script, which wrote to the final name at once.
    let cut = "db-2018-05-01_0200.vma.lzo";
    fs::write(path(&kit, cut), &fs::read(path(&kit, files[0])).unwrap()[..5000]).unwrap();
    kit.write("store/empty-2018-05-01.tar.lzo", "");
    kit.write("store/mail-2018-05-01.vma.lzo.part", "x");
    kit.write("store/readme.txt", "x");
    let pattern = ["--pattern", "{vm}-{started}*"];
    // Just written: nobody can know that it is finished.
    let clock = Clock::new(&kit, "+60");
    let run = |args: &[&str]| {
        let mut command = kit.command(bin("bak-scan"));
        clock.govern(&mut command);
        command.args(["--store", "store"]).args(pattern).args(args);
        finish(command, "").clean()
    };
    let early = run(&["--explain"]).records();
    let settled = |record: &Value| record["why"].as_str().unwrap().contains("(--settled 10 min)");
    assert_eq!(early.iter().filter(|record| settled(record)).count(), 4, "{early:#?}");
    assert!(early.iter().all(|record| record["type"] == "scan.file"));
    // Eleven minutes later, while somebody still writes one of them.
    clock.set("+660");
    let open = fs::File::options().append(true).open(path(&kit, files[2])).unwrap();
    let reader = fs::File::open(path(&kit, files[0])).unwrap();
    let ran = run(&["--explain"]);
    drop((open, reader));
    let records = ran.records();
    let dumps: Vec<&Value> = records.iter().filter(|record| record["type"] == "dump").collect();
    let ids: Vec<&str> = dumps.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["web-2@20180501T023000Z", "web@20180501T020000Z"]);
    assert_eq!(dumps[0]["kind"], "qemu");
    let proof = &dumps[0]["adopted"];
    assert_eq!((&proof["proof"], &proof["pattern"]), (&json!(["settled", "end", "closed"]), &json!("{vm}-{started}*")));
    let why = |file: &str| {
        let left =
            records.iter().find(|record| record["file"] == file).unwrap_or_else(|| panic!("{file}: {records:#?}"));
        left["why"].as_str().unwrap().to_owned()
    };
    assert!(why(files[2]).contains("open for writing"));
    assert!(why(cut).contains("does not end as lzop"));
    assert!(why("empty-2018-05-01.tar.lzo").contains("is empty"));
    assert!(why("mail-2018-05-01.vma.lzo.part").contains("not finished"));
    assert!(why("readme.txt").contains("nor as a --pattern says"));
    let later = run(&[]).records();
    assert_eq!((later.len(), &later[0]["id"], &later[0]["kind"]), (1, &json!("ct@20180502T000000Z"), &json!("lxc")));
    // Another of the same day, which a date alone cannot tell from it.
    fs::copy(path(&kit, files[2]), path(&kit, "ct-20180502.tar.lzo")).unwrap();
    clock.set("+1400");
    let why = run(&["--explain"]).records();
    let why = why.iter().find(|record| record["file"] == "ct-20180502.tar.lzo").unwrap();
    assert!(why["why"].as_str().unwrap().contains("ct-2018-05-02 has the same id"), "{why}");
    assert_eq!(check_store(&kit.store()).whole.len(), 3);
}

/// A copy under way: `cp` has brought the log, and not yet all of the archive.
#[test]
fn an_archive_that_is_newer_than_its_log() {
    let kit = Kit::new();
    let name = archive(&kit, "qemu", 100, ".vma.zst", 1000);
    fs::write(path(&kit, &name), noise(1, 500)).unwrap();
    let reasons = {
        let ran = kit.run("bak-scan", ["--store", "store", "--explain"]).clean();
        ran.records()[0]["why"].as_str().unwrap().to_owned()
    };
    assert!(reasons.starts_with("it is newer than its log, and was changed "), "{reasons}");
    let record = &kit.run("bak-scan", ["--store", "store", "--settled", "0"]).clean().records()[0];
    assert_eq!(record["adopted"]["proof"], json!(["log", "closed"]));
}

#[test]
fn who_is_meant_and_what_is_said() {
    let kit = Kit::new();
    archive(&kit, "qemu", 100, ".vma.zst", 1000);
    archive(&kit, "lxc", 102, ".tar.zst", 1000);
    assert_eq!(scan(&kit, &["-n", "--kind", "lxc"]).clean().column("vm"), ["102"]);
    assert_eq!(scan(&kit, &["-n", "web"]).clean().column("planned").len(), 1);
    scan(&kit, &["wbe"]).expect(1).says("bak-scan: wbe: nothing to adopt matches it, and no dump");
    scan(&kit, &["-"]).expect(2).says("reads no records");
    scan(&kit, &["--pattern", "*.lzo"]).expect(2).says("it needs one {vm}");
    kit.run("bak-scan", ["--store", "nowhere"]).expect(2);
    assert_eq!(names(&kit).len(), 4, "nothing was changed so far");
    let config = format!("store = {:?}\nprefix = \"pve1-\"\nnode = \"pve1\"\nlog = \"log\"\n", kit.store());
    kit.write("bak.toml", config);
    let record = &kit.run("bak-scan", ["--config", "bak.toml", "100", "pve1-100"]).expect(1).records()[0];
    assert_eq!((&record["vm"], &record["node"]), (&json!("pve1-100"), &json!("pve1")));
    assert!(fs::read_to_string(kit.path("log")).unwrap().contains("pve1-100@20261120T020002Z"));
    // Adopted before: that is no typing error.
    kit.run("bak-scan", ["--config", "bak.toml", "pve1-100"]).clean();
    let table = kit.sh(&format!("script -qec 'bak-scan --store store --explain --now {NOW}' /dev/null")).clean().out;
    assert!(table.contains(" 102@20261120T020002Z  ct    1000 B  log") && table.contains("1 adopted."), "{table}");
}

/// In a directory of the store, and never twice.
#[test]
fn directories_of_the_store() {
    let kit = Kit::new();
    let name = archive(&kit, "qemu", 100, ".vma.zst", 1000);
    let old = path(&kit, "old");
    fs::create_dir(&old).unwrap();
    for ending in [".vma.zst", ".log"] {
        let name = name.replace(".vma.zst", ending);
        fs::rename(path(&kit, &name), old.join(name)).unwrap();
    }
    let record = &scan(&kit, &[]).clean().records()[0];
    assert!(record["dir"].as_str().unwrap().ends_with("/store/old"), "{record}");
    kit.sh("cp -a store/old/*.vma.zst store/old/*.log store").clean();
    let reasons = reasons(&kit, &[]);
    assert_eq!(reasons[0].1, format!("old/vzdump-qemu-100-{DATE} is a dump already"));
    assert_eq!(check_store(&kit.store()).whole.len(), 1);
}

/// What was adopted by a name of its own comes back under a number that it is given.
#[test]
fn brought_back_by_proxmox() {
    let node = Node::new();
    let archive = vma(WEB);
    node.kit.write("plain", &archive);
    node.kit.sh("zstd -q plain -o store/web-20261120.vma.zst").clean();
    let record =
        &node.run("bak-scan", &["--hash", "--pattern", "{vm}-{started}*", "--settled", "0"]).clean().records()[0];
    assert_eq!((&record["kind"], &record["uid"]), (&json!("qemu"), &json!("6d0c1c5e-0000-4000-8000-000000000001")));
    node.run("bak-restore", &["web"]).expect(1).says("`web` is no number of a Proxmox guest: give it one by --as");
    node.run("bak-restore", &["web", "--as", "200"]).clean();
    assert_eq!(node.conf("qmrestore.args"), "200 --unique 1\n");
    // (The stand-in keeps what follows the magic.)
    assert_eq!(fs::read(node.content(200)).unwrap(), archive[4..]);
}
