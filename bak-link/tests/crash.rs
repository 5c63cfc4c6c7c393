//! bak-link while it links, while it copies, and while a newer dump replaces one that waits: killed at every system call, and
//! with calls that fail. The outbox is right at any moment, and the next run finishes the job.

mod common;

use bak_tests::rig::{Rig, Scene};
use bak_tests::{Kit, Ran, Seen, bin, check_store, finish};
use common::{Link, NOW, day};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const BOTH: [&str; 2] = ["db@20261119T020000Z", "web@20261119T020000Z"];

/// A store with two guests in memory, and an outbox: there, or in a directory on another file system.
struct Linking {
    kit: Kit,
    outbox: PathBuf,
    _elsewhere: Option<tempfile::TempDir>,
}

impl Linking {
    fn new(copy: bool) -> Self {
        let kit = Kit::in_memory();
        kit.dump("web", &day(18), 500);
        kit.dump("web", &day(19), 3000);
        kit.write("store/web/web-20261119T020000Z.log", "log");
        kit.dump("db", &day(19), 2000);
        let elsewhere = copy.then(|| tempfile::Builder::new().prefix("bak-test-").tempdir().unwrap());
        let outbox = elsewhere.as_ref().map_or(kit.path("outbox"), |dir| dir.path().join("outbox"));
        for name in ["web/readme.txt", "lost.raw"] {
            let file = outbox.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, name).unwrap();
        }
        Self { kit, outbox, _elsewhere: elsewhere }
    }

    fn waiting(&self) -> Vec<String> {
        check_store(&self.outbox).whole
    }
}

impl Scene for Linking {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-link"));
        command.arg("--store").arg(self.kit.store()).args(["--dest", "box=/far", "--copy", "--now", NOW]);
        command.arg("--outbox").arg(&self.outbox);
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        vec![self.kit.store(), self.outbox.clone()]
    }

    fn always(&self) {
        assert_eq!(check_store(&self.kit.store()).whole.len(), 3);
    }

    /// What is said to be linked is. A failure is one: what failed does not appear by itself, but where that was said.
    fn met(&self, ran: &Ran) {
        let (said, waiting) = (ran.column("id"), self.waiting());
        // A run that broke off as a whole has printed nothing.
        assert!(said.iter().all(|id| waiting.contains(id)), "{said:?} but {waiting:?}: {}", ran.err);
        if !ran.err.contains("the next run will") {
            let later = finish(self.command(), "").clean().column("id");
            assert_eq!(waiting.len() + later.len(), BOTH.len(), "{waiting:?}, then {later:?}");
        }
    }

    fn again(&self, before: &[Seen]) {
        let ran = finish(self.command(), "").clean();
        let linked = ran.column("id");
        assert!(before[1].whole.iter().all(|id| !linked.contains(id)), "they were there: {linked:?}");
    }

    fn done(&self) {
        assert_eq!(self.waiting(), BOTH);
        assert!(finish(self.command(), "").clean().out.is_empty(), "nothing is left to do");
    }
}

#[test]
fn while_it_links() {
    Rig::new("bak-link, links").run(|| Linking::new(false));
}

#[test]
fn while_it_copies() {
    Rig::new("bak-link, copies").errors(&[("pread64", &["EIO"])]).run(|| Linking::new(true));
}

/// A guest whose dump waits and has a newer one.
struct Replacing(Kit);

impl Scene for Replacing {
    fn kit(&self) -> &Kit {
        &self.0
    }

    fn command(&self) -> Command {
        let mut command = self.0.command(bin("bak-link"));
        command.arg("--store").arg(self.0.store()).args(["--dest", "box=/far", "--now", NOW]);
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        vec![self.0.store(), self.0.outbox()]
    }

    fn always(&self) {
        assert_eq!(check_store(&self.0.store()).whole.len(), 2);
        // The newer one is linked before the older one is dropped.
        assert!(!check_store(&self.0.outbox()).whole.is_empty(), "it has no dump in the outbox");
    }

    fn done(&self) {
        assert_eq!(self.0.pending(), ["web@20261119T020000Z"]);
    }
}

#[test]
fn while_a_newer_dump_replaces_one_that_waits() {
    Rig::new("bak-link, replaces").run(|| {
        let kit = Kit::in_memory();
        kit.dump("web", &day(18), 300);
        kit.link(&[]).clean();
        kit.dump("web", &day(19), 300);
        Replacing(kit)
    });
}
