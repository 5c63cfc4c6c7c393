//! What changes between the plan and the link: the program is stopped in between, and let go on.

mod common;

use bak_tests::{Kit, Ran, bin, strace};
use common::{Link, NOW, day};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

const RAW: &str = "web-20261119T020000Z.raw";
const SIDECAR: &str = "web-20261119T020000Z.dump.json";

/// `web` is linked before `zoo`.
fn scene() -> Kit {
    let kit = Kit::new();
    kit.dump("web", &day(19), 100);
    kit.write("store/web/web-20261119T020000Z.log", "log");
    kit.dump("zoo", &day(19), 101);
    kit
}

fn argv(kit: &Kit) -> Vec<OsString> {
    let store = kit.store().into_os_string();
    let fixed = ["--dest", "box=/far", "--now", NOW].map(OsString::from);
    [bin("bak-link").into_os_string(), "--store".into(), store].into_iter().chain(fixed).collect()
}

/// The last call before the first, counted by its name, that `wanted` says so of.
fn before(wanted: impl Fn(&str) -> bool) -> (String, usize) {
    let kit = scene();
    let calls = strace::calls(&kit, &argv(&kit), &kit.path("trace"));
    let at = calls.iter().position(|(_, line)| wanted(line)).unwrap();
    let name = calls[at - 1].0.clone();
    let count = calls[..at].iter().filter(|call| call.0 == name).count();
    (name, count)
}

fn stopped(kit: &Kit, at: &(String, usize), meanwhile: impl FnOnce()) -> Ran {
    strace::stopped_after(kit, &argv(kit), (&at.0, at.1), meanwhile)
}

/// `web` fails with exactly one line that says `why`, `zoo` goes, and nothing of `web` is left over.
fn fails(kit: &Kit, ran: Ran, why: &str) {
    let line = format!("bak-link: web@20261119T020000Z: cannot put it into the outbox {}: ", kit.outbox().display());
    let ran = ran.expect(1).says(&line).says(why).says("bak-link: 1 failed, 1 linked\n");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert_eq!(ran.column("vm"), ["zoo"]);
    assert_eq!(kit.pending(), ["zoo@20261119T020000Z"]);
    assert!(!kit.outbox().join("web").exists());
}

type Change = (&'static str, fn(PathBuf), &'static str);

#[test]
fn files_that_are_replaced_just_before_they_are_linked() {
    let at = before(|call| call.starts_with("linkat("));
    let table: [Change; 6] = [
        (
            "a symbolic link",
            |file| replace(&file, |file| symlink("/etc/passwd", file).unwrap()),
            "is not a regular file",
        ),
        ("a FIFO", |file| replace(&file, fifo), "is not a regular file"),
        ("another file of that size", |file| replace(&file, |file| fs::write(file, [7; 100]).unwrap()), "was replaced"),
        ("nothing", |file| fs::remove_file(file).unwrap(), "is missing"),
        ("longer", |file| fs::write(file, [7; 101]).unwrap(), "changed meanwhile"),
        ("a directory", |file| replace(&file, |file| fs::create_dir(file).unwrap()), "no hard link of "),
    ];
    for (what, change, why) in table {
        let kit = scene();
        println!("{what}");
        let ran = stopped(&kit, &at, || change(kit.store().join("web").join(RAW)));
        fails(&kit, ran, why);
    }
}

fn replace(file: &PathBuf, by: impl FnOnce(&PathBuf)) {
    // Not removed first: its inode could be used again.
    fs::rename(file, file.with_extension("old")).unwrap();
    by(file);
}

fn fifo(file: &PathBuf) {
    assert!(std::process::Command::new("mkfifo").arg(file).status().unwrap().success());
}

#[test]
fn a_companion_that_becomes_a_symbolic_link_is_not_linked() {
    let at = before(|call| call.starts_with("linkat(") && call.contains(".log"));
    let kit = scene();
    let log = kit.store().join("web/web-20261119T020000Z.log");
    let ran = stopped(&kit, &at, || replace(&log, |log| symlink("/etc/passwd", log).unwrap()));
    fails(&kit, ran, "is not a regular file");
}

#[test]
fn dumps_that_change_after_they_were_planned() {
    // The second look at the sidecar is that of who links it.
    let seen = std::cell::Cell::new(0);
    let at = before(|call| {
        let look = call.contains(SIDECAR) && call.contains("O_RDONLY");
        seen.set(seen.get() + usize::from(look));
        look && seen.get() == 2
    });
    let table: [Change; 4] = [
        (
            "it is found to be bad",
            |dir| {
                let verify = r#","verify":{"decision":"bad","why":"rot","at":"2026-11-20T11:00:00Z"}}"#;
                let text = fs::read_to_string(dir.join(SIDECAR)).unwrap();
                fs::write(dir.join(SIDECAR), text.trim_end().strip_suffix('}').unwrap().to_owned() + verify).unwrap();
            },
            "bak-verify found it bad: rot",
        ),
        (
            "another dump has its name",
            |dir| {
                fs::rename(dir.join(RAW), dir.join("old")).unwrap();
                bak_tests::put_dump(dir.parent().unwrap(), "web", &day(19), 99, serde_json::json!({}));
            },
            "it was replaced meanwhile",
        ),
        (
            "it is gone",
            |dir| {
                fs::remove_file(dir.join(SIDECAR)).unwrap();
                fs::remove_file(dir.join(RAW)).unwrap();
            },
            "it was removed meanwhile",
        ),
        ("its guest is gone", |dir| fs::remove_dir_all(dir).unwrap(), "it was removed meanwhile"),
    ];
    for (what, change, why) in table {
        let kit = scene();
        println!("{what}");
        let ran = stopped(&kit, &at, || change(kit.store().join("web")));
        fails(&kit, ran, why);
    }
}

/// A newer dump arrives, and bak-prune takes the planned one away: before it is looked at again, or just before its file
/// is linked. A file that has a link already stays whole there, whatever happens to its name.
#[test]
fn a_dump_that_is_pruned_meanwhile() {
    let opened = |call: &str| call.contains(SIDECAR) && call.contains("O_RDONLY");
    let looks = std::cell::Cell::new(0);
    let second = before(|call| {
        looks.set(looks.get() + usize::from(opened(call)));
        looks.get() == 2
    });
    let link = before(|call| call.starts_with("linkat("));
    let linked = before(|call| call.starts_with("linkat(") && call.contains("zoo"));
    for (at, why) in [(second, Some("it was removed meanwhile")), (link, Some("is missing")), (linked, None)] {
        let kit = scene();
        let ran = stopped(&kit, &at, || {
            kit.dump("web", &day(20), 100);
            let args = ["store", "--all", "--keep-last", "1", "--now", NOW];
            assert_eq!(kit.run("bak-prune", args).clean().column("id"), ["web@20261119T020000Z"]);
        });
        match why {
            Some(why) => fails(&kit, ran, why),
            None => assert_eq!(ran.clean().column("vm"), ["web", "zoo"]),
        }
        kit.link(&[]).clean();
        assert_eq!(kit.pending().len(), 2);
    }
}

/// As NFS does when the answer to the first request was lost.
#[test]
fn a_link_that_exists_already_counts_if_it_is_ours() {
    let at = before(|call| call.starts_with("linkat("));
    let adding = |kit: &Kit| kit.outbox().join(".bak/work/.adding").join(RAW);
    let kit = scene();
    let ran = stopped(&kit, &at, || fs::hard_link(kit.store().join("web").join(RAW), adding(&kit)).unwrap());
    assert_eq!(ran.clean().column("vm"), ["web", "zoo"]);
    assert_eq!(kit.pending().len(), 2);
    let kit = scene();
    let ran = stopped(&kit, &at, || fs::write(adding(&kit), [7; 100]).unwrap());
    fails(&kit, ran, "was replaced meanwhile");
}

#[test]
fn a_dump_that_appears_after_the_plan_waits_for_the_next_run() {
    let at = before(|call| call.starts_with("linkat("));
    let kit = scene();
    let ran = stopped(&kit, &at, || _ = kit.dump("web", &day(20), 50));
    assert_eq!(ran.clean().column("id"), ["web@20261119T020000Z", "zoo@20261119T020000Z"]);
    assert_eq!(kit.pending().len(), 2);
    let ran = kit.link(&["-n", "--explain"]).clean();
    assert!(ran.out.contains("web@20261120T020000Z"), "{}", ran.out);
}
