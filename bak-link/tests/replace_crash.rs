//! SIGKILL at every system call by which bak-link changes anything while a newer dump replaces one that waits: at any
//! moment the guest has one of the two in the outbox, whole, and the next run finishes the job. `BAK_EVERY_CALL=1` kills
//! also where the disk stays the same.

mod common;

use bak_tests::{Kit, bin, check_store, strace};
use common::{Link, day};
use std::ffi::OsString;
use std::path::Path;

fn scene() -> Kit {
    let shm = Path::new("/dev/shm");
    let kit = Kit::new_in(if shm.is_dir() { shm } else { Path::new("/tmp") });
    kit.dump("web", &day(18), 300);
    kit.link(&[]).clean();
    kit.dump("web", &day(19), 300);
    kit
}

fn argv(kit: &Kit) -> Vec<OsString> {
    let mut argv = vec![bin("bak-link").into_os_string(), "--store".into(), kit.store().into_os_string()];
    argv.extend(["--dest", "box=/far", "--now", common::NOW].map(OsString::from));
    argv
}

#[test]
fn a_guest_is_never_without_a_dump_in_the_outbox() {
    let (old, new) = ("web@20261118T020000Z", "web@20261119T020000Z");
    let counting = scene();
    let points = strace::points(&strace::calls(&counting, &argv(&counting), &counting.path("trace")));
    println!("{} points", points.len());
    assert!(points.len() > 20, "{points:?}");
    let mut both = 0;
    for (name, when) in points {
        let kit = scene();
        let point = format!("killed at {name} {when}");
        strace::inject(&kit, &argv(&kit), &name, "signal=KILL", when);
        let seen = check_store(&kit.outbox());
        assert!(seen.broken.is_empty(), "{point}: {seen:?}");
        assert!(seen.whole.iter().any(|id| id == old || id == new), "{point}: {seen:?}");
        both += usize::from(seen.whole.len() == 2);
        kit.link(&[]).clean();
        assert_eq!(kit.pending(), [new], "{point}");
        assert_eq!(check_store(&kit.store()).whole, [old, new], "{point}");
    }
    assert!(both > 0, "the newer one is linked before the older one is dropped");
}
