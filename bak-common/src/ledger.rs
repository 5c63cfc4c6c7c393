//! The ledger: how many bytes went over the wire to a destination, and when a pass was finished.
//!
//! Append-only JSON lines, one file a node (`<node>.jsonl`), so that several nodes may share the directory, and so a
//! budget, without a lock. bak-sync writes it; bak-link reads it. An attempt has one `id`; while it runs its line is
//! written anew with higher counts, and the last line with that id holds, so a crash forgets at most what came after.
//!
//! A file that has grown is written anew, without what no limit and no forecast looks at any more, when a pass begins. That
//! is done by renaming, so nobody may have the old one open to append to it: whoever writes holds a shared lock on the
//! file, and it is trimmed under an exclusive one, or not at all.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::calendar::Time;
use crate::fsio;
use crate::lock::{Hold, Lock};
use crate::name::{DumpId, is_component};

/// One attempt to send one dump; also what listings and checks of a pass cost, which have no dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub id: String,
    /// When it was begun; decides which day it counts for.
    pub at: Time,
    pub dest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<DumpId>,
    pub wire_out: u64,
    pub wire_in: u64,
    pub seconds: u64,
    /// `running`, `sent`, `failed`, `cut` (by a limit, or by the clock), `stopped` (by a signal), or `done` for what is no dump.
    pub result: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What the second part of such attempts' ids is.
const FETCH: &str = "fetch";

impl Attempt {
    /// The id of an attempt to bring something back, or to look at it: no pass's, and no dump's that is to be sent.
    pub fn fetch_id(run: &str, what: &str) -> String {
        format!("{run}/{FETCH}/{what}")
    }

    pub fn is_fetch(&self) -> bool {
        self.id.split('/').nth(1) == Some(FETCH)
    }
}

/// One finished pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    pub id: String,
    pub at: Time,
    pub dest: String,
    pub wire_out: u64,
    pub wire_in: u64,
    pub seconds: u64,
    pub sent: u64,
    pub failed: u64,
    /// Dumps that were still pending when it ended.
    pub pending: u64,
    /// A limit ended it, or kept dumps from being begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// How it ended; absent in lines of before this was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// Bytes of data of the dumps that were sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// Dumps that were begun and go on in the next pass.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut: u64,
    /// Each limit, when it ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitUse>,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// All that waited has been tried.
    Done,
    /// A limit was reached, or too little was left of one.
    Limit,
    /// It was told to last until then.
    Until,
    /// By a signal.
    Stopped,
    /// The line is down.
    Failed,
}

/// How much of a limit is used, this pass included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitUse {
    /// As users write it: `10G/day`.
    pub limit: String,
    pub bytes: u64,
    pub used: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    Attempt(Attempt),
    Pass(Pass),
}

/// What the ledgers of all nodes say of one destination.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub attempts: Vec<Attempt>,
    /// By time.
    pub passes: Vec<Pass>,
    /// Lines that could not be read, as `file:line: why`.
    pub damaged: Vec<String>,
}

impl Ledger {
    /// Bytes in both directions of all attempts begun at or after `from`.
    pub fn used_since(&self, from: Time) -> u64 {
        self.attempts
            .iter()
            .filter(|a| a.at >= from)
            .map(|a| a.wire_out.saturating_add(a.wire_in))
            .fold(0, u64::saturating_add)
    }

    /// The attempts at each dump.
    pub fn by_dump(&self) -> HashMap<&DumpId, Vec<&Attempt>> {
        let mut found: HashMap<&DumpId, Vec<&Attempt>> = HashMap::new();
        for attempt in &self.attempts {
            if let Some(dump) = &attempt.dump {
                found.entry(dump).or_default().push(attempt);
            }
        }
        found
    }

    /// How many passes were finished after `time`.
    pub fn passes_since(&self, time: Time) -> usize {
        self.passes.iter().filter(|pass| pass.at > time).count()
    }

    /// Reads all files of `dir` for the destination `dest`; a directory that is not there is an empty ledger.
    pub fn read(dir: &Path, dest: &str) -> Result<Self> {
        let names = match std::fs::read_dir(dir) {
            Ok(names) => names,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read the ledger {}", dir.display())),
        };
        let top = OwnedFd::from(File::open(dir).with_context(|| format!("cannot open the ledger {}", dir.display()))?);
        let mut texts = Vec::new();
        for name in names {
            let name = name.with_context(|| format!("cannot read the ledger {}", dir.display()))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".jsonl")) else { continue };
            let Some(mut file) = fsio::open_file(top.as_fd(), name)? else { continue };
            let mut text = Vec::new();
            file.read_to_end(&mut text).with_context(|| format!("cannot read the ledger {name}"))?;
            texts.push((dir.join(name), text));
        }
        Ok(Self::parse(&texts, dest))
    }

    /// What these files, by their paths, say of the destination `dest`.
    pub fn parse(files: &[(PathBuf, Vec<u8>)], dest: &str) -> Self {
        let mut ledger = Self::default();
        let mut attempts: HashMap<String, Attempt> = HashMap::new();
        for (path, text) in files {
            for (i, line) in text.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
                match serde_json::from_slice(line) {
                    Ok(Line::Attempt(attempt)) if attempt.dest == dest => {
                        _ = attempts.insert(attempt.id.clone(), attempt)
                    }
                    Ok(Line::Pass(pass)) if pass.dest == dest => ledger.passes.push(pass),
                    Ok(_) => {}
                    // Cut off by a crash; what it would have said is in the running line before it.
                    Err(error) if error.is_eof() => {}
                    Err(error) => ledger.damaged.push(format!("{}:{}: {error}", path.display(), i + 1)),
                }
            }
        }
        ledger.attempts = attempts.into_values().collect();
        ledger.attempts.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        ledger.passes.sort_by_key(|pass| pass.at);
        ledger
    }
}

/// What is older than this is forgotten: the longest limit is a month, and passes of a year show how a place is used.
const KEPT_S: i64 = 400 * 86_400;
/// A smaller file is left as it is.
const TRIMMED_FROM: u64 = 1 << 20;

/// Another pass, to another destination, may be trimming it.
const TRIMMING_MAX: Duration = Duration::from_secs(60);

/// What is left of a file's `text`: of each attempt its last line, and nothing from before `from`. What cannot be read
/// stays. Pure.
pub fn trimmed(text: &[u8], from: Time) -> Vec<u8> {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let mut later = HashSet::new();
    let mut kept: Vec<&[u8]> = Vec::new();
    for line in lines.into_iter().rev() {
        let keep = match serde_json::from_slice(line) {
            Ok(Line::Attempt(attempt)) => attempt.at >= from && later.insert((attempt.dest, attempt.id)),
            Ok(Line::Pass(pass)) => pass.at >= from,
            Err(error) => !error.is_eof(),
        };
        if keep {
            kept.push(line);
        }
    }
    kept.iter().rev().flat_map(|line| line.iter().copied().chain([b'\n'])).collect()
}

/// Writes the file `name` anew if most of it is no longer needed, and nobody is writing to it.
fn trim(top: BorrowedFd, name: &str, now: Time) -> Result<()> {
    let large = fsio::stat(top, name)?.is_some_and(|stat| u64::try_from(stat.st_size).unwrap_or(0) >= TRIMMED_FROM);
    let Some(_alone) = large.then(|| Lock::try_take(top, name, Hold::Exclusive)).transpose()?.flatten() else {
        return Ok(());
    };
    let Some(text) = fsio::read_file(top, name, u64::MAX - 1)? else { return Ok(()) };
    let left = trimmed(&text, now.plus(-KEPT_S));
    if left.len() > text.len() / 2 {
        return Ok(());
    }
    fsio::write_whole(top, &format!(".{name}.new"), name, &left)
}

/// This node's file of a ledger, open for appending.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    _lock: Option<Lock>,
}

impl Writer {
    /// Opens the file of `node` in `dir`, made if it is not there, and trimmed if it has grown.
    pub fn open(dir: &Path, node: &str, now: Time) -> Result<Self> {
        anyhow::ensure!(is_component(node), "`{}` cannot be the name of a ledger file", node.escape_debug());
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make the ledger {}", dir.display()));
            }
            _ => {}
        }
        let top = File::open(dir).with_context(|| format!("cannot open the ledger {}", dir.display()))?;
        let name = format!("{node}.jsonl");
        if trim(top.as_fd(), &name, now).is_err() {
            // As on a full disk: it only grows on.
            let _ = fsio::unlink(top.as_fd(), &format!(".{name}.new"));
        }
        // Where there are no locks nobody trims.
        let lock = Lock::take(top.as_fd(), &name, Hold::Shared, TRIMMING_MAX, "the ledger").ok();
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&top, name.as_str(), flags, Mode::RUSR | Mode::WUSR);
        let path = dir.join(&name);
        let mut file = File::from(fd.with_context(|| format!("cannot open {}", path.display()))?);
        fsio::sync(top.as_fd())?;
        // What a crash cut off must not swallow the next line.
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file, path, _lock: lock })
    }

    /// Appends one line, flushed.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        self.append_all(std::slice::from_ref(line))
    }

    /// Appends lines in their order, flushed once.
    pub fn append_all(&mut self, lines: &[Line]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(line).context("cannot describe an attempt")?);
            text.push('\n');
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write the ledger {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(id: &str, at: &str, out: u64) -> Line {
        Line::Attempt(Attempt {
            id: id.into(),
            at: at.parse().unwrap(),
            dest: "box".into(),
            dump: None,
            wire_out: out,
            wire_in: 1,
            seconds: 1,
            result: "running".into(),
            why: None,
        })
    }

    #[test]
    fn the_last_line_of_an_attempt_counts_and_a_torn_one_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ledger");
        let now = "2026-11-22T01:00:00Z".parse().unwrap();
        let mut one = Writer::open(&dir, "pve1", now).unwrap();
        one.append(&attempt("a", "2026-11-20T01:00:00Z", 10)).unwrap();
        one.append(&attempt("a", "2026-11-20T01:00:00Z", 30)).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.join("pve1.jsonl"))
            .unwrap()
            .write_all(b"{\"type\":\"att")
            .unwrap();
        let mut again = Writer::open(&dir, "pve1", now).unwrap();
        again.append(&attempt("b", "2026-11-21T01:00:00Z", 5)).unwrap();
        Writer::open(&dir, "pve2", now).unwrap().append(&attempt("c", "2026-11-21T01:00:00Z", 5)).unwrap();
        let ledger = Ledger::read(&dir, "box").unwrap();
        assert_eq!(ledger.attempts.len(), 3);
        assert_eq!(ledger.used_since("2026-11-20T01:00:00Z".parse().unwrap()), 43);
        assert_eq!(ledger.used_since("2026-11-20T01:00:01Z".parse().unwrap()), 12);
        assert_eq!(ledger.damaged.len(), 0);
        std::fs::write(dir.join("pve3.jsonl"), "{\"type\":7}\n").unwrap();
        let damaged = Ledger::read(&dir, "box").unwrap().damaged;
        assert!(damaged.len() == 1 && damaged[0].contains("pve3.jsonl:1: "), "{damaged:?}");
        assert!(Ledger::read(&dir, "other").unwrap().attempts.is_empty());
    }

    #[test]
    fn what_nobody_needs_any_more_goes_once_the_file_has_grown() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ledger");
        let path = dir.join("pve1.jsonl");
        let (old, now) = ("2025-10-01T00:00:00Z", "2026-11-20T01:00:00Z");
        let mut text = String::new();
        let mut add = |line: Line| text.push_str(&(serde_json::to_string(&line).unwrap() + "\n"));
        for at in 0..6000 {
            add(attempt(&format!("old {at}"), old, 1));
            add(attempt("new", now, at));
        }
        text.push_str("{\"type\":\"later\"}\n{\"type\":\"att");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert!(text.len() as u64 > TRIMMED_FROM);
        let now: Time = now.parse().unwrap();
        // Somebody writes: then it stays. Unlocked by name, as other tests' programs may hold the descriptor a little longer.
        let writer = Writer::open(&dir, "pve1", old.parse().unwrap()).unwrap();
        let second = Writer::open(&dir, "pve1", now).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text.clone() + "\n");
        for writer in [writer, second] {
            writer._lock.unwrap().release().unwrap();
        }
        let mut writer = Writer::open(&dir, "pve1", now).unwrap();
        let left = std::fs::read_to_string(&path).unwrap();
        assert_eq!(left.lines().count(), 2, "{left}");
        assert!(left.contains("\"wire_out\":5999") && left.ends_with("{\"type\":\"later\"}\n"), "{left}");
        writer.append(&attempt("more", "2026-11-20T01:00:00Z", 7)).unwrap();
        assert_eq!(Ledger::read(&dir, "box").unwrap().used_since(now), 5999 + 1 + 7 + 1);
    }
}
