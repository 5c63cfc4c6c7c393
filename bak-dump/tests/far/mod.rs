//! A far side that bak-restore and bak-verify reach over a real sshd or rsync daemon.

// Each of the tests that share this uses a part of it.
#![allow(dead_code)]

use bak_tests::process::{about, wait_for};
use bak_tests::rsyncd::Rsyncd;
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, bin, check_store, compact, finish, put_dump};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const DAY: &str = "2026-11-20T01:00:00Z";
pub const SIZE: usize = 1_000_000;

/// What is between the far side and us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Ssh,
    Rrsync,
    /// A key that runs rsync and nothing else, without rrsync.
    RsyncOnly,
    Daemon,
    /// A directory of a daemon's module, not all of it.
    Below,
}

pub const WAYS: [Way; 5] = [Way::Ssh, Way::Rrsync, Way::RsyncOnly, Way::Daemon, Way::Below];

/// The destination `box`, its outbox here, and a configuration that names both.
pub struct Far {
    pub kit: Kit,
    pub sshd: Option<Sshd>,
    pub rsyncd: Option<Rsyncd>,
    way: Way,
}

impl Far {
    pub fn new(way: Way) -> Self {
        Self::with(way, "", "")
    }

    /// With these lines of the daemon's configuration, and these of the destination's.
    pub fn with(way: Way, daemon: &str, dest: &str) -> Self {
        let kit = Kit::new();
        let far = kit.path("far");
        fs::create_dir(&far).unwrap();
        let ssh = matches!(way, Way::Ssh | Way::Rrsync | Way::RsyncOnly);
        let sshd = ssh.then(|| Sshd::start(&kit.path("sshd")));
        let rsyncd = match way {
            Way::Daemon => Some(Rsyncd::start(&kit.path("rsyncd"), &far, daemon)),
            Way::Below => Some(Rsyncd::start(&kit.path("rsyncd"), &kit.path(""), daemon)),
            _ => None,
        };
        let words = sshd.as_ref().map(Sshd::command).unwrap_or_default();
        let words: Vec<String> = words.split_whitespace().map(|word| format!("{word:?}")).collect();
        let all = Self { kit, sshd, rsyncd, way };
        // Not for the first run, which writes the identity.
        let config = format!(
            "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"{}\"\nssh = [{}]\n{dest}\n",
            all.url(),
            words.join(", ")
        );
        all.kit.write("bak.toml", config);
        if let Some(sshd) = &all.sshd {
            match way {
                Way::Rrsync => sshd.force(&format!("/usr/bin/rrsync {}", far.display())),
                Way::RsyncOnly => {
                    let only = "case $SSH_ORIGINAL_COMMAND in rsync*) exec $SSH_ORIGINAL_COMMAND;; *) exit 1;; esac";
                    sshd.force(only);
                }
                _ => {}
            }
        }
        all
    }

    /// The same, and `bak-sync --init` was run.
    pub fn ready(way: Way) -> Self {
        let far = Self::new(way);
        far.run("bak-sync", &["--init"]).clean();
        far
    }

    pub fn far(&self) -> PathBuf {
        self.kit.path("far")
    }

    pub fn url(&self) -> String {
        match (&self.sshd, &self.rsyncd) {
            (Some(sshd), _) if self.way == Way::Rrsync => sshd.url(Path::new("/")),
            (Some(sshd), _) => sshd.url(&self.far()),
            (None, Some(rsyncd)) => rsyncd.url() + if self.way == Way::Below { "/far" } else { "" },
            (None, None) => unreachable!("one of them is there"),
        }
    }

    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.kit.command(bin(name));
        command.args(["--config", "bak.toml"]).args(args).env("XDG_CACHE_HOME", self.kit.path("cache"));
        command
    }

    pub fn run(&self, name: &str, args: &[&str]) -> Ran {
        finish(self.command(name, args), "")
    }

    pub fn restore(&self, args: &[&str]) -> Ran {
        self.run("bak-restore", args)
    }

    pub fn verify(&self, args: &[&str]) -> Ran {
        self.run("bak-verify", &[&["--from", "box"], args].concat())
    }

    /// Puts a dump of one raw image over there; its file.
    pub fn dump(&self, vm: &str) -> PathBuf {
        self.dump_of(vm, SIZE, json!({}))
    }

    pub fn dump_of(&self, vm: &str, bytes: usize, more: Value) -> PathBuf {
        put_dump(&self.far(), vm, DAY, bytes, more);
        self.file(vm)
    }

    pub fn file(&self, vm: &str) -> PathBuf {
        self.far().join(format!("{vm}/{vm}-{}.raw", compact(DAY)))
    }

    pub fn sidecar(&self, vm: &str) -> PathBuf {
        self.far().join(format!("{vm}/{vm}-{}.dump.json", compact(DAY)))
    }

    pub fn record(&self, vm: &str) -> Value {
        serde_json::from_slice(&fs::read(self.sidecar(vm)).unwrap()).unwrap()
    }

    pub fn outbox(&self) -> PathBuf {
        self.kit.path("store/.outbox-box")
    }

    /// Of each attempt in the ledger the last line.
    pub fn attempts(&self) -> Vec<Value> {
        let mut last = BTreeMap::new();
        let mut number = 0;
        for file in fs::read_dir(self.outbox().join(".bak/ledger")).into_iter().flatten().flatten() {
            for line in fs::read_to_string(file.path()).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                if line["type"] == "attempt" {
                    number += 1;
                    last.insert(line["id"].as_str().unwrap().to_owned(), (number, line));
                }
            }
        }
        let mut lines: Vec<_> = last.into_values().collect();
        lines.sort_by_key(|line| line.0);
        lines.into_iter().map(|line| line.1).collect()
    }

    /// What the ledger has counted, both ways.
    pub fn counted(&self) -> u64 {
        self.attempts().iter().map(bytes).sum()
    }

    /// The attempts at fetching this dump, in their order.
    pub fn fetches(&self, vm: &str) -> Vec<Value> {
        let end = format!("/fetch/{vm}@{}", compact(DAY));
        self.attempts().into_iter().filter(|line| line["id"].as_str().unwrap().ends_with(&end)).collect()
    }

    /// Data files that were fetched and not removed.
    pub fn left(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.outbox().join(".bak/far"), self.kit.path("cache"), self.kit.path("work")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|end| end == "raw" || end == "json")
                    && !path.to_str().unwrap().contains("/sidecars/")
                {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Nobody works in the temporary directory any more, but the servers.
    pub fn settled(&self, of: &Path) {
        wait_for("all programs to end", || about(of).is_empty());
    }

    /// The far side has all that it had, and is sound.
    pub fn is_sound(&self, dumps: usize) {
        let seen = check_store(&self.far());
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (dumps, 0, 0), "{seen:?}");
    }
}

pub fn bytes(line: &Value) -> u64 {
    line["wire_out"].as_u64().unwrap() + line["wire_in"].as_u64().unwrap()
}

/// Changes one bit in the middle of a file, and leaves its time.
pub fn flip(path: &Path) {
    let time = path.metadata().unwrap().modified().unwrap();
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
    fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
}
