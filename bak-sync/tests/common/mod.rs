//! A place for bak-sync to work in.

// Each of the tests that share this uses a part of it.
#![allow(dead_code)]

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, put_dump};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

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
        let url = self.sshd.as_ref().map_or_else(|| self.far().display().to_string(), |sshd| sshd.url(&self.far()));
        let mut args = vec!["--outbox".to_owned(), "outbox".into(), "--dest".into(), format!("box={url}")];
        if let Some(sshd) = &self.sshd {
            args.extend(["--ssh".into(), sshd.command()]);
        }
        args.extend(more.iter().map(|text| (*text).to_owned()));
        self.kit.run("bak-sync", args)
    }

    pub fn wait_there(&self, vm: &str, started: &str, bytes: usize, note: Value) -> String {
        let mut link = json!({"decision": "linked", "why": "test", "at": "2026-11-20T02:00:00Z", "rank": 1});
        for (key, value) in note.as_object().unwrap() {
            link[key] = value.clone();
        }
        put_dump(&self.outbox(), vm, started, bytes, json!({"link": {"box": link}}))
    }

    /// The same with this content.
    pub fn wait_with(&self, vm: &str, started: &str, content: &[u8], note: Value) -> String {
        let id = self.wait_there(vm, started, content.len(), note);
        let stem = format!("{vm}-{}", bak_tests::compact(started));
        let data = self.outbox().join(format!("{vm}/{stem}.raw"));
        fs::write(&data, content).unwrap();
        let path = self.outbox().join(format!("{vm}/{stem}.dump.json"));
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["files"][0]["sha256"] = bak_tests::sha256_file(&data).into();
        fs::write(&path, record.to_string()).unwrap();
        id
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
