//! SIGKILL at every system call of one add and one remove of the store, counted per name: after recovery the dump is
//! whole or absent, the scenario can be run again, and nothing that is not bak's was touched.

use bak_tests::{Kit, bin, check_store, put_dump, strace};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const OLD: &str = "2026-11-18T01:00:00Z";
const NEW: &str = "2026-11-19T01:00:00Z";
const FOREIGN: [&str; 5] =
    ["web/readme.txt", "web/web-20261119T010000Z-copy.raw", "lost.qcow2", "web/.hidden", ".other/x"];

fn shm() -> &'static Path {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm } else { Path::new("/tmp") }
}

/// A store with one good dump, and foreign files between them.
fn scene() -> Kit {
    let kit = Kit::new_in(shm());
    put_dump(&kit.store(), "web", OLD, 3000, json!({}));
    for name in FOREIGN {
        kit.write(&format!("store/{name}"), name);
    }
    kit
}

fn argv(kit: &Kit, args: &[&str]) -> Vec<OsString> {
    let mut argv = vec![bin("bak-test-store").into_os_string(), args[0].into(), kit.store().into_os_string()];
    argv.extend(args[1..].iter().map(OsString::from));
    argv
}

/// What must hold at any moment, before and after recovery.
fn always(kit: &Kit, point: &str) {
    let seen = check_store(&kit.store());
    assert!(seen.broken.is_empty(), "{point}: {seen:?}");
    for name in FOREIGN {
        assert_eq!(fs::read_to_string(kit.store().join(name)).ok().as_deref(), Some(name), "{point}: {name}");
    }
}

/// Kills `args` at every call; `settled` is given what is whole after recovery, and after running it once more.
fn at_every_call(args: &[&str], settled: impl Fn(&str, &[String], &[String])) {
    let counting = scene();
    let calls = strace::count(&counting, &argv(&counting, args), &counting.path("trace"));
    let mut points = 0;
    for (name, count) in calls {
        for when in 1..=count {
            let kit = scene();
            let point = format!("{args:?}, killed at {name} {when} of {count}");
            strace::inject(&kit, &argv(&kit, args), &name, "signal=KILL", when);
            always(&kit, &point);
            kit.run("bak-test-store", &argv(&kit, &["recover"])[1..]).clean();
            always(&kit, &point);
            let recovered = check_store(&kit.store());
            assert!(recovered.unfinished.is_empty(), "{point}: {recovered:?}");
            assert_eq!(recovered.strange.len(), 3, "{point}: {recovered:?}");
            kit.run("bak-test-store", &argv(&kit, args)[1..]);
            always(&kit, &point);
            settled(&point, &recovered.whole, &check_store(&kit.store()).whole);
            points += 1;
        }
    }
    println!("{points} points");
    assert!(points > 50, "only {points} points were tried");
}

#[test]
fn an_add_is_whole_or_absent() {
    let (old, new) = ("web@20261118T010000Z", "web@20261119T010000Z");
    at_every_call(&["add", "web", NEW, "5000"], |point, recovered, after| {
        assert!(recovered == [old] || recovered == [old, new], "{point}: {recovered:?}");
        assert_eq!(after, [old, new], "{point}");
    });
}

#[test]
fn a_remove_is_whole_or_absent() {
    at_every_call(&["remove", "web@20261118T010000Z"], |point, recovered, after| {
        assert!(recovered.len() <= 1, "{point}: {recovered:?}");
        assert!(after.is_empty(), "{point}: {after:?}");
    });
}

/// The same with flushes and renames that fail: an error is said, and the store is right and usable.
#[test]
fn a_failing_disk_is_said_and_survived() {
    for (name, error) in [
        ("fsync", "EIO"),
        ("renameat2", "EIO"),
        ("write", "ENOSPC"),
        ("mkdirat", "ENOSPC"),
        ("linkat", "EIO"),
        ("renameat2", "EINVAL"),
    ] {
        for when in 1..=12 {
            let kit = scene();
            let point = format!("{name} fails with {error}, call {when}");
            let args = ["add", "web", NEW, "5000"];
            strace::inject(&kit, &argv(&kit, &args), name, &format!("error={error}"), when);
            always(&kit, &point);
            kit.run("bak-test-store", &argv(&kit, &["recover"])[1..]).clean();
            kit.run("bak-test-store", &argv(&kit, &args)[1..]);
            always(&kit, &point);
            let seen = check_store(&kit.store());
            assert_eq!((seen.whole.len(), seen.unfinished.len()), (2, 0), "{point}: {seen:?}");
        }
    }
}
