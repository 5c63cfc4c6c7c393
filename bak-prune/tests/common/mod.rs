//! A far side for bak-prune to work on, and how it is reached.

// Each of the tests that share this uses a part of it.
#![allow(dead_code)]

use bak_tests::rsyncd::Rsyncd;
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, put_dump};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const NOW: &str = "2026-11-20T12:00:00Z";

/// What is between the far side and us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Ssh,
    /// With these options.
    Rrsync(&'static str),
    /// With these lines of its configuration.
    Daemon(&'static str),
    /// A directory of a daemon's module, not all of it.
    Below,
}

pub struct Box {
    pub kit: Kit,
    pub sshd: Option<Sshd>,
    pub rsyncd: Option<Rsyncd>,
    below: &'static str,
}

impl Box {
    /// An empty far side with an identity.
    pub fn new(way: Way) -> Self {
        let kit = Kit::new();
        let far = kit.path("far");
        fs::create_dir(&far).unwrap();
        kit.write("far/.bak-store", "{\"v\":1,\"id\":\"the-box\"}\n");
        let sshd = matches!(way, Way::Ssh | Way::Rrsync(_)).then(|| Sshd::start(&kit.path("sshd")));
        if let (Way::Rrsync(options), Some(sshd)) = (way, &sshd) {
            sshd.force(&format!("/usr/bin/rrsync {options} {}", far.display()));
        }
        let rsyncd = match way {
            Way::Daemon(more) => Some(Rsyncd::start(&kit.path("rsyncd"), &far, more)),
            Way::Below => Some(Rsyncd::start(&kit.path("rsyncd"), &kit.path(""), "")),
            _ => None,
        };
        let below = if way == Way::Below { "/far" } else { "" };
        Self { kit, sshd, rsyncd, below }
    }

    pub fn far(&self) -> PathBuf {
        self.kit.path("far")
    }

    pub fn url(&self) -> String {
        match (&self.sshd, &self.rsyncd) {
            (Some(sshd), _) if sshd.forced() => sshd.url(Path::new("/")),
            (Some(sshd), _) => sshd.url(&self.far()),
            (None, Some(rsyncd)) => rsyncd.url() + self.below,
            (None, None) => unreachable!("one of them is there"),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.kit.command(bak_tests::bin("bak-prune"));
        command.args(args).args(["--tz", "UTC", "--now", NOW]);
        if let Some(sshd) = &self.sshd {
            command.args(["--ssh", &sshd.command()]);
        }
        command.env("XDG_CACHE_HOME", self.kit.path("cache"));
        command
    }

    pub fn prune(&self, args: &[&str]) -> Ran {
        bak_tests::finish(self.command(args), "")
    }

    /// The same of this far side by its URL.
    pub fn there(&self, args: &[&str]) -> Ran {
        self.prune(&[&[self.url().as_str()][..], args].concat())
    }

    /// A dump of `vm` over there at 01:00 of a day of November.
    pub fn dump(&self, vm: &str, day: u32) -> String {
        put_dump(&self.far(), vm, &format!("2026-11-{day:02}T01:00:00Z"), 1000, json!({}))
    }
}

/// All files below `dir` with their content, by path; without what is hidden.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match path.is_dir() {
                true => todo.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// Copies a tree with its times.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("cp").arg("-a").arg(format!("{}/.", from.display())).arg(to).status().unwrap();
    assert!(status.success());
}

/// A store with something of everything that a policy decides about.
pub fn fill(store: &Path) {
    let put = |vm: &str, started: &str, more: Value| put_dump(store, vm, started, 500, more);
    for day in 1..=20 {
        put("web", &format!("2026-11-{day:02}T01:00:00Z"), json!({"name": "www", "tags": ["prod"]}));
    }
    for day in [2, 9, 16] {
        put("db", &format!("2026-11-{day:02}T03:00:00Z"), json!({}));
    }
    put("db", "2026-11-17T03:00:00Z", json!({"result": "partial"}));
    put("db", "2026-11-01T03:00:00Z", json!({"result": "failed"}));
    put("db", "2026-10-01T03:00:00Z", json!({"protected": true}));
    put("db", "2026-10-02T03:00:00Z", json!({"expires": "2026-11-20T11:00:00Z"}));
    put("db", "2026-10-03T03:00:00Z", json!({"expires": "2026-12-20T11:00:00Z"}));
    put("db", "2027-01-01T03:00:00Z", json!({}));
    put("only", "2026-01-01T03:00:00Z", json!({}));
    for day in [4, 5, 6] {
        put("lost", &format!("2026-11-{day:02}T03:00:00Z"), json!({}));
    }
    let at = |name: &str| store.join(name);
    // One without its data, one whose data is short, one that Proxmox protects, and companions of others.
    fs::remove_file(at("lost/lost-20261104T030000Z.raw")).unwrap();
    fs::write(at("lost/lost-20261105T030000Z.raw"), "short").unwrap();
    fs::write(at("web/web-20261103T010000Z.raw.protected"), "").unwrap();
    for day in 1..=20 {
        fs::write(at(&format!("web/web-202611{day:02}T010000Z.log")), "said something\n").unwrap();
    }
    fs::write(at("web/web-20261102T010000Z.raw.notes"), "a note\n").unwrap();
    // What is none of bak's business.
    for foreign in ["web/web-20261101T010000Z.txt", "web/notes", "readme", "web/web-20261101T010000Z.raw.bak"] {
        fs::write(at(foreign), "mine\n").unwrap();
    }
}

pub const RULES: [&str; 4] = ["--keep-last", "2", "--keep-weekly", "2"];

/// The records without the place that they tell of.
pub fn records(ran: &Ran) -> Vec<Value> {
    let mut records = ran.records();
    for record in &mut records {
        record.as_object_mut().unwrap().remove("dir");
    }
    records
}
