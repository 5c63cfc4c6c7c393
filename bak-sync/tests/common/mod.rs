//! A place for bak-sync to work in.

// Each of the tests that share this uses a part of it.
#![allow(dead_code)]

pub mod ending;

use bak_tests::rsyncd::Rsyncd;
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, bin, put_dump};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub const DAY1: &str = "2026-11-18T01:00:00Z";
pub const DAY2: &str = "2026-11-19T01:00:00Z";

/// An outbox, a far side, and dumps that wait, put there by hand.
pub struct Place {
    pub kit: Kit,
    pub sshd: Option<Sshd>,
    pub rsyncd: Option<Rsyncd>,
}

impl Place {
    pub fn new(ssh: bool) -> Self {
        let kit = Kit::new();
        fs::create_dir(kit.path("far")).unwrap();
        let sshd = ssh.then(|| Sshd::start(&kit.path("sshd")));
        let place = Self { kit, sshd, rsyncd: None };
        place.sync(["--init"]).clean();
        place
    }

    /// The far side is the module `bak` of a daemon; `more` are further lines of its configuration.
    pub fn daemon(more: &str) -> Self {
        let place = Self::daemon_without_identity(more);
        place.sync(["--init"]).clean();
        place
    }

    pub fn daemon_without_identity(more: &str) -> Self {
        let kit = Kit::new();
        fs::create_dir(kit.path("far")).unwrap();
        let rsyncd = Some(Rsyncd::start(&kit.path("rsyncd"), &kit.path("far"), more));
        Self { kit, sshd: None, rsyncd }
    }

    /// The far side is all that a key may reach by rrsync with these options.
    pub fn rrsync(options: &str) -> Self {
        let kit = Kit::new();
        fs::create_dir(kit.path("far")).unwrap();
        let sshd = Sshd::start(&kit.path("sshd"));
        sshd.force(&format!("/usr/bin/rrsync {options} {}", kit.path("far").display()));
        Self { kit, sshd: Some(sshd), rsyncd: None }
    }

    pub fn outbox(&self) -> PathBuf {
        self.kit.path("outbox")
    }

    pub fn far(&self) -> PathBuf {
        self.kit.path("far")
    }

    pub fn sync<const N: usize>(&self, more: [&str; N]) -> Ran {
        self.kit.run("bak-sync", self.command(more).1)
    }

    /// The program and its arguments.
    pub fn command<const N: usize>(&self, more: [&str; N]) -> (PathBuf, Vec<String>) {
        let url = match (&self.sshd, &self.rsyncd) {
            (Some(sshd), _) if sshd.forced() => sshd.url(Path::new("/")),
            (Some(sshd), _) => sshd.url(&self.far()),
            (None, Some(rsyncd)) => rsyncd.url(),
            (None, None) => self.far().display().to_string(),
        };
        let mut args = vec!["--outbox".to_owned(), "outbox".into(), "--dest".into(), format!("box={url}")];
        if let Some(sshd) = &self.sshd {
            args.extend(["--ssh".into(), sshd.command()]);
        }
        args.extend(more.iter().map(|text| (*text).to_owned()));
        (bin("bak-sync"), args)
    }

    pub fn wait_there(&self, vm: &str, started: &str, bytes: usize, note: Value) -> String {
        put_dump(&self.outbox(), vm, started, bytes, linked(note))
    }

    /// The same with this content.
    pub fn wait_with(&self, vm: &str, started: &str, content: &[u8], note: Value) -> String {
        put_content(&self.outbox(), vm, started, "raw", content, linked(note))
    }

    pub fn ledger(&self) -> Vec<Value> {
        let dir = self.outbox().join(".bak/ledger");
        let Some(file) = fs::read_dir(dir).ok().and_then(|mut names| names.next()) else { return Vec::new() };
        let file = file.unwrap().path();
        fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What the ledger has counted in both directions: of each attempt, its last line.
    pub fn counted(&self) -> u64 {
        let mut attempts = std::collections::BTreeMap::new();
        for line in self.ledger().into_iter().filter(|line| line["type"] == "attempt") {
            let bytes = line["wire_out"].as_u64().unwrap() + line["wire_in"].as_u64().unwrap();
            attempts.insert(line["id"].as_str().unwrap().to_owned(), bytes);
        }
        attempts.values().sum()
    }
}

/// The note of bak-link, with the fields of `note` laid over it.
pub fn linked(note: Value) -> Value {
    let mut link = json!({"decision": "linked", "why": "test", "at": "2026-11-20T02:00:00Z", "rank": 1});
    for (key, value) in note.as_object().unwrap() {
        link[key] = value.clone();
    }
    json!({"link": {"box": link}})
}

/// Puts a dump of one file with this ending and content into a store.
pub fn put_content(store: &Path, vm: &str, started: &str, ending: &str, content: &[u8], more: Value) -> String {
    let id = put_dump(store, vm, started, 1, more);
    let stem = format!("{vm}-{}", bak_tests::compact(started));
    let (dir, name) = (store.join(vm), format!("{stem}.{ending}"));
    fs::remove_file(dir.join(format!("{stem}.raw"))).unwrap();
    fs::write(dir.join(&name), content).unwrap();
    let path = dir.join(format!("{stem}.dump.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let sha256 = bak_tests::sha256_file(&dir.join(&name));
    record["files"][0] = json!({"name": name, "bytes": content.len(), "sha256": sha256});
    record["bytes"] = content.len().into();
    fs::write(&path, record.to_string()).unwrap();
    id
}
