//! A move killed at every system call, and with calls that fail: each dump is whole in at least one of the two places, the
//! database holds the old or the new status, and the same call finishes it.

use super::*;
use bak_tests::Seen;
use bak_tests::rig::{self, Rig};

const FILES: usize = 6;

/// Two dumps, one of them with companions, on the file system of the archive or not, and the database.
struct Small {
    kit: Kit,
    far: Option<Kit>,
    way: &'static str,
}

impl Small {
    fn new(way: &'static str, across: bool) -> Self {
        let kit = Kit::in_memory();
        let small = Self { kit, far: across.then(Kit::new), way };
        let (from, _) = small.places();
        for (day, stem) in DAYS.iter().zip(["web-20261118T010000Z", "web-20261119T010000Z"]) {
            put_dump(&from, "web", day, 3000, json!({}));
            fs::write(from.join(format!("web/{stem}.log")), "log").unwrap();
        }
        fs::create_dir_all(small.archive()).unwrap();
        small.kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
        let old = small.statuses().0;
        small.kit.write("db/vmtool-statedb", old);
        small
    }

    fn archive(&self) -> PathBuf {
        self.far.as_ref().unwrap_or(&self.kit).path("archive")
    }

    /// Where the dumps are, and where they go.
    fn places(&self) -> (PathBuf, PathBuf) {
        let (store, archive) = (self.kit.store(), self.archive());
        if self.way == "archive" { (store, archive) } else { (archive, store) }
    }

    fn statuses(&self) -> (&'static str, &'static str) {
        match self.way {
            "archive" => ("web:CLEAN\nother:NEW\n", "web:ARCHIVED\nother:NEW\n"),
            _ => ("web:ARCHIVED\nother:NEW\n", "web:BACKUP_NECESSARY\nother:NEW\n"),
        }
    }

    fn argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![bin("bak-state").into()];
        argv.extend([self.way, "web", "--db", "db", "--store", "store", "--archive-dir"].map(OsString::from));
        argv.push(self.archive().into());
        argv
    }

    /// What must hold at any moment; whether all is done.
    fn look(&self) -> bool {
        let text = fs::read_to_string(self.kit.path("db/vmtool-statedb")).unwrap();
        let (old, new) = self.statuses();
        assert!(text == old || text == new, "{text}");
        let (from, to) = self.places();
        let (left, there) = (check_store(&from), check_store(&to));
        assert!(left.broken.is_empty() && there.broken.is_empty(), "{left:?} {there:?}");
        for id in IDS.map(str::to_owned) {
            assert!(left.whole.contains(&id) || there.whole.contains(&id), "{id} is lost: {left:?} {there:?}");
        }
        let moved = there.whole.len() == 2 && left.whole.is_empty();
        assert!(self.way == "archive" || text == old || moved, "the status comes last");
        assert!(self.way == "activate" || text == new || there.whole.is_empty(), "the status comes first");
        moved && text == new
    }
}

impl rig::Scene for Small {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-state"));
        command.args(&self.argv()[1..]);
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        <[PathBuf; 2]>::from(self.places()).into()
    }

    fn database(&self) -> Option<PathBuf> {
        Some(self.kit.path("db"))
    }

    fn always(&self) {
        self.look();
    }

    fn again(&self, _: &[Seen]) {
        let ran = self.kit.run("bak-state", &self.argv()[1..]);
        // An activate that was killed when all was done finds nothing to do.
        let done = self.way == "activate" && ran.status == 4 && ran.err.contains("it is not ARCHIVED");
        assert!(done || (ran.status == 0 && ran.err.is_empty()), "{ran:?}");
    }

    fn done(&self) {
        assert!(self.look());
        let (from, to) = self.places();
        assert!(tree(&from).is_empty() && tree(&to).len() == FILES, "{:?} {:?}", tree(&from), tree(&to));
        assert_eq!(self.kit.run("bak-state", ["list", "--db", "db"]).clean().records().len(), 2);
    }
}

/// Reading may fail, too.
const MORE: &[(&str, &[&str])] = &[("pread64", &["EIO"]), ("lseek", &["EIO"]), ("flock", &["EIO"])];

#[test]
fn an_archive_across_file_systems() {
    Rig::new("bak-state, archive across").errors(MORE).run(|| Small::new("archive", true));
}

#[test]
fn an_activate_across_file_systems() {
    Rig::new("bak-state, activate across").errors(MORE).run(|| Small::new("activate", true));
}

#[test]
fn an_archive_by_links() {
    Rig::new("bak-state, archive").errors(MORE).run(|| Small::new("archive", false));
}

/// A flush of the copy that fails, and a target that runs full: said, and the source is as it was.
#[test]
fn the_source_is_untouched_until_the_copy_is_proved() {
    for (name, error, says) in [
        ("fsync", "EIO", "Input/output error"),
        ("pwrite64", "ENOSPC", "No space left on device"),
        ("pread64", "EIO", "Input/output error"),
    ] {
        let small = Small::new("archive", true);
        let (from, to) = small.places();
        let before = tree(&from);
        let copy = to.canonicalize().unwrap().join(".bak/work/web-20261118T010000Z/web-20261118T010000Z.raw");
        let mut command = small.kit.command("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={name}"), "-P"]).arg(copy);
        command.args(["-e", &format!("inject={name}:error={error}"), "--"]).args(small.argv());
        let ran = bak_tests::finish(command, "").expect(1);
        let ran = ran.says("bak-state: web@20261118T010000Z: cannot move it to the archive: ").says(says);
        assert_eq!(moved(&ran.records(), "copied"), IDS[1..], "{name}: the other dump goes");
        let left: BTreeMap<_, _> =
            before.into_iter().filter(|(path, _)| path.to_str().unwrap().contains("20261118")).collect();
        assert_eq!((tree(&from), check_store(&to).whole), (left, vec![IDS[1].to_owned()]), "{name}");
        rig::Scene::again(&small, &[]);
        rig::Scene::done(&small);
    }
}
