//! SIGKILL at every system call of a move, counted per name: each dump is whole in at least one of the two places, the
//! database holds the old or the new status, and the same call finishes it. And the same with calls that fail.

use super::*;
use bak_tests::strace;
use std::sync::Mutex;

const FILES: usize = 6;

/// Two dumps, one of them with companions, on the file system of the archive or not, and the database.
struct Small {
    kit: Kit,
    far: Option<Kit>,
    way: &'static str,
}

impl Small {
    fn new(way: &'static str, across: bool) -> Self {
        let kit = Kit::new_in(Path::new("/dev/shm"));
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
    fn always(&self, point: &str) -> bool {
        let text = fs::read_to_string(self.kit.path("db/vmtool-statedb")).unwrap();
        let (old, new) = self.statuses();
        assert!(text == old || text == new, "{point}: {text}");
        let (from, to) = self.places();
        let (left, there) = (check_store(&from), check_store(&to));
        assert!(left.broken.is_empty() && there.broken.is_empty(), "{point}: {left:?} {there:?}");
        for id in IDS.map(str::to_owned) {
            assert!(left.whole.contains(&id) || there.whole.contains(&id), "{point}: {id} is lost: {left:?} {there:?}");
        }
        let moved = there.whole.len() == 2 && left.whole.is_empty();
        assert!(self.way == "archive" || text == old || moved, "{point}: the status comes last");
        assert!(self.way == "activate" || text == new || there.whole.is_empty(), "{point}: the status comes first");
        moved && text == new
    }

    /// The same call again does what is left.
    fn finish(&self, point: &str) {
        let ran = self.kit.run("bak-state", &self.argv()[1..]);
        // An activate that was killed when all was done finds nothing to do.
        let done = self.way == "activate" && ran.status == 4 && ran.err.contains("it is not ARCHIVED");
        assert!(done || (ran.status == 0 && ran.err.is_empty()), "{point}: {ran:?}");
        assert!(self.always(point), "{point}: {ran:?}");
        let (from, to) = self.places();
        let (left, there) = (check_store(&from), check_store(&to));
        assert!(left.unfinished.is_empty() && there.unfinished.is_empty(), "{point}: {left:?} {there:?}");
        assert!(tree(&from).is_empty() && tree(&to).len() == FILES, "{point}: {left:?} {there:?}");
        assert_eq!(self.kit.run("bak-state", ["list", "--db", "db"]).clean().records().len(), 2, "{point}");
    }
}

/// Runs `what` for every call of every name that `takes` it, on all processors.
fn at_every_call(way: &'static str, across: bool, takes: fn(&str) -> Option<&'static str>) -> usize {
    let counting = Small::new(way, across);
    let calls = strace::count(&counting.kit, &counting.argv(), &counting.kit.path("trace"));
    let all = calls.iter().filter_map(|(name, count)| Some((name.as_str(), *count, takes(name)?)));
    let points: Vec<(&str, usize, &str)> =
        all.flat_map(|(name, count, what)| (1..=count).map(move |when| (name, when, what))).collect();
    let next = Mutex::new(points.iter());
    let work = || {
        loop {
            let Some((name, when, what)) = next.lock().unwrap().next() else { break };
            let small = Small::new(way, across);
            let point = format!("{way}, across: {across}, {name} {when}: {what}");
            strace::inject(&small.kit, &small.argv(), name, what, *when);
            small.always(&point);
            small.finish(&point);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    println!("{} points", points.len());
    points.len()
}

#[test]
fn an_archive_across_file_systems_is_killed() {
    assert!(at_every_call("archive", true, |_| Some("signal=KILL")) > 300);
}

#[test]
fn an_activate_across_file_systems_is_killed() {
    assert!(at_every_call("activate", true, |_| Some("signal=KILL")) > 300);
}

#[test]
fn an_archive_by_links_is_killed() {
    assert!(at_every_call("archive", false, |_| Some("signal=KILL")) > 300);
}

/// Nothing is lost by any call that fails, and the next run, with a sound disk, does the rest.
#[test]
fn failing_calls() {
    fn failure(name: &str) -> Option<&'static str> {
        match name {
            "fsync" | "pread64" | "renameat2" | "unlinkat" | "lseek" | "flock" => Some("error=EIO"),
            "write" | "pwrite64" | "ftruncate" | "mkdirat" | "linkat" => Some("error=ENOSPC"),
            "fchmod" | "utimensat" | "openat" => Some("error=EACCES"),
            _ => None,
        }
    }
    assert!(at_every_call("archive", true, failure) > 100);
    assert!(at_every_call("activate", true, failure) > 100);
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
        small.finish(name);
    }
}
