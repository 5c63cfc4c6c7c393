//! The records that the tools pass to each other, one JSON object a line, and keep on disk as sidecars.
//!
//! This module alone knows the format. Its rules of evolution: a stage adds annotations and never renames or drops what
//! it does not know, so every struct that others may extend keeps unknown fields in `extra`; an absent field means
//! unknown or never, and nothing is ever written as null. `v` changes only when a reader of the old version would be
//! wrong. Sizes are bytes, durations seconds (names end in `_s`), times RFC 3339 UTC.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};

use crate::calendar::Time;
use crate::name::{DumpId, GuestName, Stem, printable};

/// The version of the format that this program reads and writes.
pub const VERSION: u32 = 1;

mod notes;

pub use notes::{ALLOCATED, Failed, FileEntry, LinkNote, PruneNote, SentNote, Skipped, Verify};

type Extra = Map<String, Value>;

/// Any line of a pipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Guest(Box<Guest>),
    Dump(Box<Dump>),
}

/// What tells one guest from another in everything that shares a store, a destination or a database. A number that was
/// used again belongs to another guest: the `uid` differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestKey {
    pub vm: GuestName,
    pub kind: String,
    pub uid: Option<String>,
}

/// Whether a guest runs, as its hypervisor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Stopped,
    Paused,
    #[default]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum GuestType {
    #[serde(rename = "guest")]
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DumpType {
    #[serde(rename = "dump")]
    Dump,
}

macro_rules! is_default {
    ($name:ident, $type:ty) => {
        fn $name(value: &$type) -> bool {
            *value == <$type>::default()
        }
    };
}
is_default!(no, bool);
is_default!(unknown, State);

/// What is backed up: a VM, a container, a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    pub v: u32,
    r#type: GuestType,
    pub vm: GuestName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    pub kind: String,
    pub driver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(default, skip_serializing_if = "unknown")]
    pub state: State,
    /// Whether this guest can be dumped while it runs.
    #[serde(default, skip_serializing_if = "no")]
    pub live: bool,
    /// Whether it was used since its last dump; absent where nothing tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Any text that differs when the guest was used or configured anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Bytes that its disks hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Why its manager has it locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<String>,
    /// Its state in the database, as bak-state spells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Start of its newest good dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_dump: Option<Time>,
    /// Start of its newest dump that was sent, over all destinations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sent: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    #[serde(default, skip_serializing_if = "no")]
    pub planned: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The finished, immutable files of one guest at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    pub v: u32,
    r#type: DumpType,
    pub id: DumpId,
    pub vm: GuestName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    pub kind: String,
    pub driver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    pub started: Time,
    pub finished: Time,
    /// Where the dump's files lie: for readers. No tool believes it of its input; each sets it of what it finds itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    pub stem: Stem,
    /// The sum of its files' sizes.
    pub bytes: u64,
    pub files: Vec<FileEntry>,
    /// Until when it is kept, whatever the retention rules say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    #[serde(default, skip_serializing_if = "no")]
    pub protected: bool,
    /// `partial` or `failed`: such a dump is kept for a look and counts for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// By destination: why it was linked or passed over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub link: BTreeMap<String, LinkNote>,
    /// By destination: when it arrived there and what that took.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sent: BTreeMap<String, SentNote>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<PruneNote>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// Set on everything that a dry run prints; no real run accepts it.
    #[serde(default, skip_serializing_if = "no")]
    pub planned: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Guest {
    pub fn new(vm: GuestName, kind: &str, driver: &str) -> Self {
        Self {
            v: VERSION,
            r#type: GuestType::Guest,
            vm,
            name: None,
            uid: None,
            kind: kind.into(),
            driver: driver.into(),
            node: None,
            tags: Vec::new(),
            pool: None,
            state: State::Unknown,
            live: false,
            changed: None,
            fingerprint: None,
            size: None,
            locked: None,
            status: None,
            last_dump: None,
            last_sent: None,
            failed: None,
            skipped: None,
            planned: false,
            extra: Extra::new(),
        }
    }

    pub fn key(&self) -> GuestKey {
        GuestKey { vm: self.vm.clone(), kind: self.kind.clone(), uid: self.uid.clone() }
    }
}

impl Dump {
    /// The dump of `guest` begun at `started`, without files as yet; it carries over what the guest is, not how it was.
    pub fn of(guest: &Guest, started: Time, stem: Stem) -> Self {
        Self {
            v: VERSION,
            r#type: DumpType::Dump,
            id: DumpId::of(&guest.vm, started),
            vm: guest.vm.clone(),
            name: guest.name.clone(),
            uid: guest.uid.clone(),
            kind: guest.kind.clone(),
            driver: guest.driver.clone(),
            node: guest.node.clone(),
            tags: guest.tags.clone(),
            pool: guest.pool.clone(),
            mode: None,
            started,
            finished: started,
            dir: None,
            stem,
            bytes: 0,
            files: Vec::new(),
            expires: None,
            annotation: None,
            protected: false,
            result: None,
            verify: None,
            link: BTreeMap::new(),
            sent: BTreeMap::new(),
            prune: None,
            failed: None,
            skipped: None,
            planned: false,
            extra: Extra::new(),
        }
    }

    pub fn key(&self) -> GuestKey {
        GuestKey { vm: self.vm.clone(), kind: self.kind.clone(), uid: self.uid.clone() }
    }

    /// Reads a sidecar called `<stem>.dump.json`. The file's own name decides which stem it has.
    pub fn from_sidecar(stem: &Stem, text: &[u8]) -> Result<Self> {
        let mut dump: Self = parse(text)?;
        dump.dir = None;
        dump.check()?;
        ensure!(dump.stem == *stem, "it is called {stem} but describes {}: was it renamed?", dump.stem);
        Ok(dump)
    }

    /// The bytes of this dump's sidecar: what is true of the dump wherever it lies, without the notes of one place.
    pub fn to_sidecar(&self) -> Vec<u8> {
        let mut dump = self.clone();
        dump.dir = None;
        let mut text = to_line(&Record::Dump(Box::new(dump))).into_bytes();
        text.push(b'\n');
        text
    }

    /// Without what only holds in one place or for one run: the notes of bak-link, bak-sync, bak-prune.
    pub fn bare(&self) -> Self {
        self.clone().into_bare()
    }

    /// The same, without keeping the original.
    pub fn into_bare(self) -> Self {
        Self {
            dir: None,
            link: BTreeMap::new(),
            sent: BTreeMap::new(),
            prune: None,
            failed: None,
            skipped: None,
            ..self
        }
    }

    /// Takes over fields that others added to the guest's record, as far as no field of a dump is called so.
    pub fn adopt(&mut self, extra: &Map<String, Value>) {
        for (key, value) in extra {
            // What a record without any other unknown field reads as unknown is unknown.
            let mut text = to_value(&Self { extra: Extra::new(), ..self.clone() });
            let known = text.insert(key.clone(), value.clone()).is_some();
            let read = (!known).then(|| serde_json::from_value::<Self>(Value::Object(text)).ok()).flatten();
            if read.is_some_and(|dump| dump.extra.contains_key(key)) {
                self.extra.insert(key.clone(), value.clone());
            }
        }
    }

    /// What no sound record breaks: the id is the guest's at its start; every file belongs to the stem, once.
    fn check(&self) -> Result<()> {
        check_version(Some(self.v))?;
        ensure!(
            self.id == DumpId::of(&self.vm, self.started),
            "its id `{}` is not <vm>@<started>",
            self.id.as_str().escape_debug()
        );
        let mut seen = HashSet::new();
        for file in &self.files {
            ensure!(self.stem.owns(&file.name), "its file `{}` does not belong to it", file.name.escape_debug());
            ensure!(seen.insert(&file.name), "it names {} twice", file.name);
            if let Some(sha) = &file.sha256 {
                let hex = sha.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                ensure!(sha.len() == 64 && hex, "the sha256 of {} is none", file.name);
            }
        }
        let sum = self.files.iter().map(|f| u128::from(f.bytes)).sum::<u128>();
        ensure!(sum == u128::from(self.bytes), "its bytes are not the sum of its files");
        Ok(())
    }

    /// Why its own sidecar calls it not good, if it does.
    pub fn verdict(&self) -> Option<String> {
        self.unfit().or_else(|| self.found_bad())
    }

    /// The same, but for what bak-verify has found.
    pub fn unfit(&self) -> Option<String> {
        if let Some(result) = &self.result {
            return Some(format!("its result is {}", printable(result)));
        }
        if self.files.is_empty() {
            return Some("it has no files".into());
        }
        None
    }

    /// What bak-verify has found, if that is bad.
    pub fn found_bad(&self) -> Option<String> {
        let bad = self.verify.as_ref().filter(|verify| verify.decision == "bad")?;
        Some(format!("bak-verify found it bad: {}", printable(&bad.why)))
    }

    /// Whether `other` is the same dump: id and files agree; annotations may differ, and one may lack SHA-256 that the other
    /// has, as these can be added to what was adopted without.
    pub fn same(&self, other: &Self) -> bool {
        let files = || self.files.iter().zip(&other.files).all(|(one, other)| one.same(other));
        self.id == other.id
            && self.stem == other.stem
            && self.key() == other.key()
            && self.files.len() == other.files.len()
            && files()
    }

    /// Whether each SHA-256 of this is one of `other`, too.
    pub fn keeps_sums(&self, other: &Self) -> bool {
        let mut files = self.files.iter().zip(&other.files);
        files.all(|(one, other)| one.sha256.is_none() || one.sha256 == other.sha256)
    }
}

impl Record {
    /// Reads one line.
    pub fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            v: Option<u32>,
            r#type: Option<String>,
        }
        let head: Kind = parse(text)?;
        check_version(head.v)?;
        match head.r#type.as_deref() {
            Some("guest") => Ok(Record::Guest(Box::new(parse(text)?))),
            Some("dump") => {
                let dump: Dump = parse(text)?;
                dump.check()?;
                Ok(Record::Dump(Box::new(dump)))
            }
            Some(other) => bail!("its type is `{}`: neither guest nor dump", other.escape_debug()),
            None => bail!("it has no `type`"),
        }
    }

    pub fn planned(&self) -> bool {
        match self {
            Record::Guest(guest) => guest.planned,
            Record::Dump(dump) => dump.planned,
        }
    }
}

/// Which guest a record is about: the least that any line of ours says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Head {
    v: Option<u32>,
    pub vm: GuestName,
    pub uid: Option<String>,
    pub kind: Option<String>,
    #[serde(default)]
    pub planned: bool,
}

impl Head {
    pub fn parse(text: &[u8]) -> Result<Self> {
        let head: Self = parse(text)?;
        check_version(head.v)?;
        Ok(head)
    }
}

fn check_version(v: Option<u32>) -> Result<()> {
    match v {
        Some(VERSION) => Ok(()),
        Some(v) if v > VERSION => bail!("it has version {v}, which a newer bak wrote; this one reads {VERSION}"),
        _ => bail!("it has no `v`: is it a record of bak?"),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T> {
    serde_json::from_slice(text)
        .map_err(|error| {
            // serde_json ends its message with a place in the line, which for one-line records is only noise to most;
            // the column is kept, the line (always 1) is not.
            let column = error.column();
            let text = error.to_string();
            let cause = text.split(" at line ").next().unwrap_or_default().to_owned();
            anyhow::anyhow!("{cause} (column {column})")
        })
        .context("not a record")
}

fn to_value(dump: &Dump) -> Map<String, Value> {
    match serde_json::to_value(dump) {
        Ok(Value::Object(map)) => map,
        // Cannot be: see `to_line`.
        _ => Map::new(),
    }
}

/// One line of JSON, without its newline.
pub fn to_line(record: &Record) -> String {
    let text = match record {
        Record::Guest(guest) => serde_json::to_string(guest),
        Record::Dump(dump) => serde_json::to_string(dump),
    };
    // Proof that this cannot fail: serde_json refuses only maps whose keys are no strings, and values that report an
    // error themselves; these structs have neither.
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Dump {
        let guest = Guest::new(GuestName::new("web").unwrap(), "qemu", "image");
        let started: Time = "2026-11-20T01:00:02Z".parse().unwrap();
        Dump::of(&guest, started, Stem::of(&guest.vm, started))
    }

    #[test]
    fn only_what_no_field_is_called_is_adopted() {
        let hostile = r#"{"x-mine":1,"result":"failed","expires":"2020-01-01T00:00:00Z","files":[],"dir":"/etc","id":"x",
            "protected":true,"link":{},"planned":true,"verify":7,"stem":"../x","state":"running"}"#;
        let Ok(Value::Object(extra)) = serde_json::from_str(hostile) else { panic!() };
        let mut adopted = dump();
        adopted.adopt(&extra);
        let keys: Vec<_> = adopted.extra.keys().map(String::as_str).collect();
        assert_eq!(keys, ["x-mine", "state"]);
        assert_eq!(Dump { extra: Extra::new(), ..adopted.clone() }, dump());
        assert_eq!(Dump::from_sidecar(&adopted.stem, &adopted.to_sidecar()).unwrap(), adopted);
    }

    #[test]
    fn the_directory_is_written_once_and_never_into_a_sidecar() {
        let there = Dump { dir: Some("/there".into()), ..dump() };
        let line = to_line(&Record::Dump(Box::new(there)));
        let Record::Dump(mut read) = Record::parse(line.as_bytes()).unwrap() else { panic!() };
        assert!(read.extra.is_empty());
        assert!(!String::from_utf8(read.to_sidecar()).unwrap().contains("there"));
        read.dir = Some("/here".into());
        assert_eq!(to_line(&Record::Dump(read)).matches("\"dir\"").count(), 1);
        let forged = line.replace("\n", "");
        assert_eq!(Dump::from_sidecar(&dump().stem, forged.as_bytes()).unwrap(), dump());
    }
}
