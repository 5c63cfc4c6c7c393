//! What bak-scan leaves alone although it looks like an archive; what it says of that, and to whom; and a disk that is full.

mod archives;

use archives::{BEGAN, DATE, archive, archive_with, names, path, scan, written};
use bak_tests::{Kit, check_store, noise};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

/// Files that were left alone, and why.
fn left(records: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let files = records.iter().filter(|record| record["type"] == "scan.file");
    files.map(|record| (text(&record["file"]), text(&record["why"]))).collect()
}

#[test]
fn twins_of_two_runs() {
    let kit = Kit::new();
    let id = "100@20261120T020002Z";
    archive(&kit, "qemu", 100, ".vma.zst", 1000);
    assert_eq!(scan(&kit, &[]).clean().column("id"), [id]);
    // Another guest of the same number, at the same second.
    let twin = archive(&kit, "lxc", 100, ".tar.zst", 1000);
    let why = format!("vzdump-qemu-100-{DATE} has the same id, {id}");
    assert_eq!(left(&scan(&kit, &["--explain"]).clean().records()), [(twin.clone(), why)]);
    assert_eq!(scan(&kit, &[]).clean().out, "");
    assert_eq!((check_store(&kit.store()).whole.len(), path(&kit, &twin).exists()), (1, true));
}

#[test]
fn names_that_no_dump_can_have() {
    let kit = Kit::new();
    archive(&kit, "qemu", 100, ".vma.zst", 1000);
    let stem = "vzdump-lxc-101-2026_11_20-02_00_02";
    let odd: [Vec<u8>; 4] = [
        format!("{stem}\x07.tar").into(),
        [stem.as_bytes(), b"\xff.tar"].concat(),
        [stem.as_bytes(), b"\xff.log"].concat(),
        b"read\tme.txt".to_vec(),
    ];
    for name in &odd {
        fs::write(kit.store().join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let (controls, no_text) = ("its name holds control characters: rename it", "its name is no UTF-8: rename it");
    let expected = [
        ("read\\tme.txt".to_owned(), controls.to_owned()),
        (format!("{stem}\\u{{7}}.tar"), controls.to_owned()),
        (format!("{stem}\\xff.log"), no_text.to_owned()),
        (format!("{stem}\\xff.tar"), no_text.to_owned()),
    ];
    assert_eq!(left(&scan(&kit, &["-n", "--explain"]).clean().records()), expected);
    // Those that look like archives are told of in any case; that is no failure.
    let ran = scan(&kit, &[]).expect(0);
    assert_eq!((ran.column("vm"), ran.err.lines().count()), (vec!["100".to_owned()], 2));
    assert!(ran.err.contains(&format!("\\u{{7}}.tar: is left alone: {controls}")), "{}", ran.err);
    assert!(ran.err.contains(&format!("\\xff.tar: is left alone: {no_text}")), "{}", ran.err);
}

#[test]
fn something_else_is_where_the_record_would_go() {
    let kit = Kit::new();
    for id in 100..=105 {
        archive(&kit, "lxc", id, ".tar.zst", 1000);
    }
    let record = |id: u32| path(&kit, &format!("vzdump-lxc-{id}-{DATE}.dump.json"));
    fs::create_dir(record(100)).unwrap();
    fs::write(record(101), "mine").unwrap();
    std::os::unix::fs::symlink("readme", record(102)).unwrap();
    fs::write(record(103), "").unwrap();
    // A record in another order of fields is one.
    scan(&kit, &["104"]).clean();
    let text = fs::read_to_string(record(104)).unwrap();
    fs::write(record(104), text.replacen(r#"{"v":1,"#, "{", 1).replacen('{', r#"{ "v":1,"#, 1)).unwrap();
    kit.write("store/other.dump.json", "mine");
    let before = names(&kit);
    let ran = scan(&kit, &["-n", "--explain"]).clean();
    assert_eq!(ran.records()[0]["vm"], "105");
    let why = left(&ran.records());
    assert_eq!(why.len(), 5, "{why:#?}");
    assert!(why[0].0 == "other.dump.json" && why[0].1.contains("is no record of a dump"), "{why:#?}");
    for ((file, why), expected) in
        why[1..].iter().zip(["is a directory", "is no record of", "is a symbolic link", "is no record of"])
    {
        let begins = why.starts_with("another file is where its record would go: vzdump-lxc-");
        assert!(file.ends_with(".tar.zst") && begins && why.contains(expected), "{file}: {why}");
    }
    let ran = scan(&kit, &["-q"]).expect(0);
    assert_eq!(ran.err.matches("is left alone: another file").count(), 4, "{}", ran.err);
    assert_eq!(names(&kit).len(), before.len() + 1);
    assert_eq!(fs::read_to_string(record(101)).unwrap(), "mine");
}

#[test]
fn only_what_was_asked_for() {
    let kit = Kit::new();
    let failed = |kind: &str, id: u32, ending: &str| {
        let end = format!("ERROR: Backup of VM {id} failed - job aborted");
        archive_with(&kit, (kind, id, ending), &noise(1, 1000), &end)
    };
    let (web, ct) = (failed("qemu", 100, ".vma.zst"), failed("lxc", 101, ".tar.zst"));
    kit.write("store/readme.txt", "x");
    let files = |args: &[&str], status: i32| -> Vec<String> {
        let ran = scan(&kit, &[&["-n", "--explain"], args].concat()).expect(status);
        left(&ran.records()).into_iter().map(|(file, _)| file).collect()
    };
    assert_eq!(files(&[], 0).len(), 3);
    // (What is left alone is not found: 1.)
    assert_eq!(files(&["100"], 1), [web.as_str()]);
    assert_eq!(files(&["web"], 1), [web]);
    assert_eq!(files(&["101@20261120T020002Z"], 1), [ct.as_str()]);
    assert!(files(&["101@20261120T020003Z"], 1).is_empty());
    assert_eq!(files(&["--kind", "lxc"], 0), [ct]);
}

#[test]
fn times_that_there_are_not() {
    let kit = Kit::new();
    for time in ["2500", "0261", "02_00_61", "0230", "x"] {
        let name = format!("web-20261120-{time}.raw");
        kit.write(&format!("store/{name}"), "x");
        written(&kit, &name, BEGAN);
    }
    let ran = scan(&kit, &["--explain", "--settled", "0", "--pattern", "{vm}-{started}*"]).clean();
    let dumps = ran.records().into_iter().filter(|record| record["type"] == "dump");
    let mut started: Vec<String> = dumps.map(|dump| dump["started"].as_str().unwrap().to_owned()).collect();
    started.sort();
    assert_eq!(started, ["2026-11-20T00:00:00Z", "2026-11-20T02:30:00Z"]);
    let left = left(&ran.records());
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.iter().all(|(_, why)| why == "its name does not tell a time that there can be"), "{left:?}");
}

/// One line for all of them, nothing half done; and when there is room again, all of them.
#[test]
fn a_full_disk() {
    for archives in [3, 40] {
        let kit = Kit::new();
        for id in 100..100 + archives {
            archive(&kit, "lxc", id, ".tar.zst", 300);
        }
        kit.write(
            "steps",
            "mount -t tmpfs -o size=2m none room && cp -a store/. room && head -c 4M /dev/zero >room/.fill\n\
             bak-scan --store room; echo $? >&2; ls room/.bak/work; ls room/*.dump.json\n\
             rm room/.fill && bak-scan --store room | wc -l",
        );
        fs::create_dir(kit.path("room")).unwrap();
        let ran = kit.sh("unshare -m sh steps 2>said; grep ^bak-scan said >&2; grep ^[0-9] said").expect(0);
        let room = kit.path("room").canonicalize().unwrap();
        let room = room.display();
        let line =
            format!("{room}: {archives} archives could not be adopted: the disk of {room} is full, make room there");
        assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
        assert!(ran.err.starts_with(&format!("bak-scan: {line}")), "{}", ran.err);
        assert_eq!(ran.out, format!("{archives}\n1\n"), "{}", ran.err);
    }
}
