//! Verdicts written into sidecars, and disks brought back.

use super::foreign;
use bak_tests::rig::{Rig, Scene};
use bak_tests::{Kit, Ran, Seen, bin, finish, noise, put_dump};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const DAYS: [&str; 2] = ["2026-11-18T01:00:00Z", "2026-11-19T01:00:00Z"];
const NOW: &str = "2026-11-20T12:00:00Z";

/// Dumps of which one waits in the outbox too.
struct Mark {
    kit: Kit,
    sidecars: BTreeMap<PathBuf, Value>,
}

impl Mark {
    fn new() -> Self {
        let kit = Kit::in_memory();
        foreign(&kit);
        let mut sidecars = BTreeMap::new();
        for (day, store) in [(DAYS[0], kit.store()), (DAYS[1], kit.store()), (DAYS[1], kit.path("outbox"))] {
            put_dump(&store, "web", day, 3000, json!({"later": "kept"}));
            if store != kit.store() {
                let name = format!("web/web-{}.raw", bak_tests::compact(day));
                fs::remove_file(store.join(&name)).unwrap();
                fs::hard_link(kit.store().join(&name), store.join(&name)).unwrap();
            }
            let path = store.join(format!("web/web-{}.dump.json", bak_tests::compact(day)));
            sidecars.insert(path.clone(), serde_json::from_slice(&fs::read(path).unwrap()).unwrap());
        }
        Self { kit, sidecars }
    }
}

impl Scene for Mark {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-verify"));
        command.args(["--mark", "--reverify-after", "30d", "--all", "--now", NOW, "--store"]).arg(self.kit.store());
        command.arg("--dest").arg(format!("box={}", self.kit.path("far").display()));
        command.arg("--outbox").arg(self.kit.path("outbox"));
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        vec![self.kit.store(), self.kit.path("outbox")]
    }

    /// Nothing but the verdict changes.
    fn always(&self) {
        for (path, before) in &self.sidecars {
            let mut now: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            now.as_object_mut().unwrap().remove("verify");
            assert_eq!(now, *before, "{}", path.display());
        }
    }

    fn done(&self) {
        for path in self.sidecars.keys() {
            let now: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            // What waits is marked only so that it is not sent.
            let expected = if path.starts_with(self.kit.path("outbox")) { json!(null) } else { json!("good") };
            assert_eq!(now["verify"]["decision"], expected, "{}: {now}", path.display());
        }
    }
}

#[test]
fn verdicts() {
    Rig::new("bak-verify, marks").run(Mark::new);
}

/// A dump brought back to a directory with other files.
struct Restore {
    kit: Kit,
    args: &'static [&'static str],
    /// What it becomes, and what may be there before.
    made: PathBuf,
    old: Option<Vec<u8>>,
}

impl Restore {
    fn new(args: &'static [&'static str], made: &str, old: Option<Vec<u8>>) -> Self {
        let kit = Kit::in_memory();
        put_dump(&kit.store(), "web", DAYS[0], 300_000 - 300_000 % 512, json!({}));
        kit.write("out/other.qcow2", "mine");
        kit.write("out/.web.raw", "mine");
        let made = kit.path("out").join(made);
        if let Some(old) = &old {
            fs::write(&made, old).unwrap();
        }
        Self { kit, args, made, old }
    }

    fn content(&self) -> Option<Vec<u8>> {
        fs::read(&self.made).ok()
    }

    fn whole(&self) -> bool {
        let stored = self.kit.store().join(format!("web/web-{}.raw", bak_tests::compact(DAYS[0])));
        if self.made.extension().is_some_and(|ending| ending == "raw") {
            return self.content() == Some(fs::read(stored).unwrap());
        }
        let mut compare = self.kit.command("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", "qcow2"]).arg(stored).arg(&self.made);
        self.made.exists() && finish(compare, "").status == 0
    }
}

impl Scene for Restore {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-restore"));
        command.args(["web", "--store"]).arg(self.kit.store()).arg("--to").arg(self.kit.path("out")).args(self.args);
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        // The file that is replaced has no sidecar, but is meant.
        vec![self.kit.store()]
    }

    fn always(&self) {
        assert!(self.content() == self.old || self.whole(), "neither as before nor whole");
        for name in ["other.qcow2", ".web.raw"] {
            assert_eq!(fs::read(self.kit.path("out").join(name)).unwrap(), b"mine");
        }
    }

    /// Without force it is refused where it is done already.
    fn again(&self, _: &[Seen]) {
        let there = self.old.is_none() && self.made.exists();
        let ran: Ran = finish(self.command(), "");
        assert!(if there { ran.status == 4 } else { ran.status == 0 && ran.err.is_empty() }, "{ran:?}");
    }

    fn done(&self) {
        assert!(self.whole());
        let mut names: Vec<_> = fs::read_dir(self.kit.path("out")).unwrap().map(|name| name.unwrap().path()).collect();
        names.retain(|path| !["other.qcow2", ".web.raw"].iter().any(|name| path.ends_with(name)));
        assert_eq!(names, std::slice::from_ref(&self.made));
    }
}

#[test]
fn a_disk_as_stored() {
    Rig::new("bak-restore, as stored").run(|| Restore::new(&[], "web.raw", None));
}

#[test]
fn a_disk_in_another_format() {
    let rig = Rig::new("bak-restore, another format").tools(&["qemu-img"]);
    rig.run(|| Restore::new(&["--format", "qcow2"], "web.qcow2", None));
}

#[test]
fn a_disk_that_replaces_another() {
    Rig::new("bak-restore, replacing").run(|| Restore::new(&["--force"], "web.raw", Some(noise(1, 100_000))));
}
