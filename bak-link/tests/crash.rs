//! SIGKILL at every system call of a run that links, and of one that copies; and system calls that fail. The outbox is
//! right at any moment, and the next run finishes the job. `BAK_EVERY_CALL=1` kills also where the disk stays the same.

mod common;

use bak_tests::{Kit, Ran, bin, check_store, strace};
use common::{NOW, day};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const BOTH: [&str; 2] = ["db@20261119T020000Z", "web@20261119T020000Z"];
const FOREIGN: [&str; 2] = ["web/readme.txt", "lost.raw"];

/// A store with two guests in memory, and an outbox: there, or in a directory on another file system.
struct Scene {
    kit: Kit,
    outbox: PathBuf,
    _elsewhere: Option<tempfile::TempDir>,
}

impl Scene {
    fn new(copy: bool) -> Self {
        let kit = Kit::new_in(Path::new("/dev/shm"));
        kit.dump("web", &day(18), 500);
        kit.dump("web", &day(19), 3000);
        kit.write("store/web/web-20261119T020000Z.log", "log");
        kit.dump("db", &day(19), 2000);
        let elsewhere = copy.then(|| tempfile::Builder::new().prefix("bak-test-").tempdir().unwrap());
        let outbox = elsewhere.as_ref().map_or(kit.path("outbox"), |dir| dir.path().join("outbox"));
        for name in FOREIGN {
            let file = outbox.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        Self { kit, outbox, _elsewhere: elsewhere }
    }

    fn argv(&self) -> Vec<OsString> {
        let fixed = ["--dest", "box=/far", "--copy", "--now", NOW, "--outbox"].map(OsString::from);
        let store = ["--store".into(), self.kit.store().into_os_string()];
        let program = bin("bak-link").into_os_string();
        [program].into_iter().chain(store).chain(fixed).chain([self.outbox.clone().into()]).collect()
    }

    fn run(&self) -> Ran {
        self.kit.run("bak-link", &self.argv()[1..])
    }

    /// What must hold at any moment; which dumps are whole.
    fn always(&self, point: &str) -> Vec<String> {
        let seen = check_store(&self.outbox);
        assert!(seen.broken.is_empty(), "{point}: {seen:?}");
        for name in FOREIGN {
            assert_eq!(fs::read_to_string(self.outbox.join(name)).ok().as_deref(), Some(name), "{point}: {name}");
        }
        let store = check_store(&self.kit.store());
        assert_eq!((store.whole.len(), store.broken.len(), store.strange.len()), (3, 0, 1), "{point}: {store:?}");
        seen.whole
    }

    /// The next run finishes the job, and the one after that has nothing to do. What the first of them linked.
    fn finishes(&self, point: &str) -> Vec<String> {
        let before = self.always(point);
        let ran = self.run();
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{point}");
        assert_eq!(self.always(point), BOTH, "{point}");
        let linked = ran.column("id");
        assert!(before.iter().all(|id| !linked.contains(id)), "{point}: {before:?} were there, and {linked:?} are new");
        let seen = check_store(&self.outbox);
        assert!(seen.unfinished.is_empty(), "{point}: {seen:?}");
        // The foreign files, and the companion.
        assert_eq!(seen.strange.len(), FOREIGN.len() + 1, "{point}: {seen:?}");
        assert!(self.run().clean().out.is_empty(), "{point}");
        linked
    }
}

fn killed_at_every_call(copy: bool) {
    let counting = Scene::new(copy);
    let points = strace::points(&strace::calls(&counting.kit, &counting.argv(), &counting.kit.path("trace")));
    assert_eq!(counting.always("counted"), BOTH);
    println!("{} points", points.len());
    assert!(points.len() > 40, "{points:?}");
    for (name, when) in points {
        let scene = Scene::new(copy);
        strace::inject(&scene.kit, &scene.argv(), &name, "signal=KILL", when);
        scene.finishes(&format!("killed at {name} {when}"));
    }
}

#[test]
fn killed_at_every_call_while_it_links() {
    killed_at_every_call(false);
}

#[test]
fn killed_at_every_call_while_it_copies() {
    killed_at_every_call(true);
}

/// Each of these calls fails once, at each of its turns. What was said to be linked is, and the rest follows.
fn failing(copy: bool, table: &[(&str, &[&str])]) {
    let counting = Scene::new(copy);
    let calls = strace::count(&counting.kit, &counting.argv(), &counting.kit.path("trace"));
    for (name, errors) in table {
        let count = *calls.get(*name).unwrap_or_else(|| panic!("{name} is not called: {calls:?}"));
        for when in 1..=count {
            for error in *errors {
                let scene = Scene::new(copy);
                let point = format!("{name} {when} of {count} fails with {error}");
                let ran = strace::inject(&scene.kit, &scene.argv(), name, &format!("error={error}"), when);
                let whole = scene.always(&point);
                // A run that broke off as a whole has printed nothing.
                let said = ran.column("id");
                assert!(said.iter().all(|id| whole.contains(id)), "{point}: {said:?} but {whole:?}: {}", ran.err);
                assert!(ran.status == 0 || !ran.err.is_empty(), "{point}: it fails silently");
                assert!(ran.status != 0 || whole == BOTH, "{point}: all is well, it says: {whole:?}");
                let linked = scene.finishes(&point);
                let sum = whole.len() + linked.len();
                // A failure is one: what failed does not appear by itself, but where it was said.
                assert!(sum == BOTH.len() || ran.err.contains("the next run will"), "{point}: {whole:?}, {linked:?}");
            }
        }
    }
}

#[test]
fn a_failing_disk_while_it_links() {
    failing(
        false,
        &[
            ("fsync", &["EIO"]),
            ("linkat", &["EIO", "ENOSPC", "EDQUOT"]),
            ("mkdirat", &["ENOSPC"]),
            ("renameat", &["EIO"]),
            ("renameat2", &["EIO", "EINVAL"]),
            ("unlinkat", &["EIO"]),
            ("write", &["ENOSPC", "EDQUOT"]),
        ],
    );
}

#[test]
fn a_failing_disk_while_it_copies() {
    failing(
        true,
        &[
            ("fsync", &["EIO"]),
            ("pwrite64", &["ENOSPC", "EIO"]),
            ("pread64", &["EIO"]),
            ("renameat2", &["EIO"]),
            ("ftruncate", &["ENOSPC"]),
            ("write", &["ENOSPC"]),
        ],
    );
}
