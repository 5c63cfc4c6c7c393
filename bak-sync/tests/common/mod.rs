//! What the tests of bak-sync share.
#![allow(dead_code, reason = "each test uses its part")]

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, bin, put_dump};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

pub const DAY1: &str = "2026-11-18T01:00:00Z";
pub const DAY2: &str = "2026-11-19T01:00:00Z";

/// An outbox, a far side, and dumps that wait, put there by hand.
pub struct Place {
    pub kit: Kit,
    pub sshd: Option<Sshd>,
}

impl Place {
    pub fn new(ssh: bool) -> Self {
        let kit = Kit::new();
        fs::create_dir(kit.path("far")).unwrap();
        let sshd = ssh.then(|| Sshd::start(&kit.path("sshd")));
        let place = Self { kit, sshd };
        place.sync(["--init"]).clean();
        place
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

    pub fn command<const N: usize>(&self, more: [&str; N]) -> (PathBuf, Vec<String>) {
        let url = self.sshd.as_ref().map_or_else(|| self.far().display().to_string(), |sshd| sshd.url(&self.far()));
        let mut args = vec!["--outbox".to_owned(), "outbox".into(), "--dest".into(), format!("box={url}")];
        if let Some(sshd) = &self.sshd {
            args.extend(["--ssh".into(), sshd.command()]);
        }
        args.extend(more.iter().map(|text| (*text).to_owned()));
        (bin("bak-sync"), args)
    }

    pub fn wait_there(&self, vm: &str, started: &str, bytes: usize, note: Value) -> String {
        let mut link = json!({"decision": "linked", "why": "test", "at": "2026-11-20T02:00:00Z", "rank": 1});
        for (key, value) in note.as_object().unwrap() {
            link[key] = value.clone();
        }
        put_dump(&self.outbox(), vm, started, bytes, json!({"link": {"box": link}}))
    }

    pub fn ledger(&self) -> Vec<Value> {
        let dir = self.outbox().join(".bak/ledger");
        let file = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
        fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
