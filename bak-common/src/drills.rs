//! The history of drills: dumps that were brought back on trial, checked, and removed again. One JSON line each in
//! `<store>/.bak/drill/history`, appended and flushed.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

use crate::calendar::Time;
use crate::far::home;
use crate::fsio;
use crate::name::{DumpId, GuestName};
use crate::record::{Dump, GuestKey};
use std::os::fd::{AsFd, BorrowedFd};

/// The directory in a store's `.bak`.
pub const DIR: &str = "drill";
const HISTORY: &str = "history";

/// The decision on one that a limit ended.
pub const SKIPPED: &str = "skipped";

/// The longest history that is read, in bytes.
const MAX: u64 = 64 << 20;

/// One drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    pub v: u32,
    /// Which dump.
    pub id: DumpId,
    pub vm: GuestName,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// When it ended.
    pub at: Time,
    pub seconds: u64,
    /// What the dump holds.
    pub bytes: u64,
    /// Where the dump lay, as users write it.
    pub from: String,
    /// `good`; `bad`: it could not be brought back, or is not what was dumped; `unknown`: it came back, and nothing shows what it
    /// should hold; `failed`: something was wrong here, which says nothing of the dump; `skipped`: a limit ended it.
    pub decision: String,
    pub why: String,
}

impl Drill {
    /// A drill of this dump, of which nothing is known yet.
    pub fn of(dump: &Dump, from: &str, at: Time) -> Self {
        Self {
            v: 1,
            id: dump.id.clone(),
            vm: dump.vm.clone(),
            kind: dump.kind.clone(),
            uid: dump.uid.clone(),
            at,
            seconds: 0,
            bytes: dump.bytes,
            from: from.to_owned(),
            decision: String::new(),
            why: String::new(),
        }
    }

    /// Whether the dump was not tried to its end, by a limit that it is to go on behind.
    pub fn is_skipped(&self) -> bool {
        self.decision == SKIPPED
    }

    pub fn key(&self) -> GuestKey {
        GuestKey { vm: self.vm.clone(), kind: self.kind.clone(), uid: self.uid.clone() }
    }
}

/// All drills that are noted in `dir`, oldest first; none where it is not there. Lines that cannot be read are left out: what they
/// told will be drilled again.
pub fn read(dir: &Path) -> Result<Vec<Drill>> {
    let Some(top) = home::look(dir)? else { return Ok(Vec::new()) };
    let text = fsio::read_file(top.as_fd(), HISTORY, MAX);
    let text = text.with_context(|| format!("cannot read the history of drills in {}", dir.display()))?;
    Ok(parse(&text.unwrap_or_default()))
}

/// What a history says.
pub fn parse(text: &[u8]) -> Vec<Drill> {
    let mut drills: Vec<Drill> =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    drills.sort_by_key(|drill| drill.at);
    drills
}

/// Notes a drill in `dir`, which is open. Only for who holds its lock.
pub fn append(dir: BorrowedFd, drill: &Drill) -> Result<()> {
    // A line that a crash cut off must not swallow this one; empty lines are none.
    let line = format!("\n{}\n", serde_json::to_string(drill).context("cannot describe a drill")?);
    let mut file = fsio::open_append(dir, HISTORY).context("cannot write the history of drills")?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).context("cannot write the history of drills")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Stem;
    use crate::record::Guest;

    #[test]
    fn a_torn_line_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("nowhere")).unwrap(), []);
        let guest = Guest::new(GuestName::new("web").unwrap(), "qemu", "image");
        let time: Time = "2026-11-20T01:00:00Z".parse().unwrap();
        let dump = Dump::of(&guest, time, Stem::of(&guest.vm, time));
        let drill = Drill { decision: "good".into(), ..Drill::of(&dump, "box", time) };
        let top = std::fs::File::open(dir.path()).unwrap();
        append(top.as_fd(), &drill).unwrap();
        let path = dir.path().join(HISTORY);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.clone() + &text[..text.len() / 2]).unwrap();
        append(top.as_fd(), &drill).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [drill.clone(), drill]);
    }
}
