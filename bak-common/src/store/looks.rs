//! What looking at a dump's files tells beside whether it is good; and Proxmox's mark of protection beside them.

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::FileType;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Entry, Locked, Store};
use crate::calendar::Time;
use crate::fsio;

/// The ending of Proxmox's mark, after the whole name of an archive.
pub const PROTECTED: &str = ".protected";
/// What `st_blocks` counts in, whatever the file system's blocks are.
const BLOCK: u64 = 512;

/// What a dump's files look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// It had files, and not one of them is there any more.
    pub gone: bool,
    /// Its sidecar says so, or Proxmox's mark lies beside it.
    pub protected: bool,
    /// When the newest of its files was last written to.
    pub written: Option<Time>,
    /// Bytes on the disk that removing it frees.
    pub frees: u64,
    /// Bytes on the disk that other hard links hold.
    pub linked: u64,
}

impl Store {
    /// Looks at the files of each dump; one result each, in order.
    pub fn looks(&self, entries: &[Entry]) -> Vec<Result<Looks>> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|at| &entries[*at].place);
        let mut looks: Vec<Result<Looks>> = entries.iter().map(|_| Ok(Looks::default())).collect();
        for at in order.chunk_by(|a, b| entries[*a].place == entries[*b].place) {
            let opened = fsio::open_place(self.top(), &entries[at[0]].place).and_then(|dir| {
                // Asked for once, not for each file that may have one.
                let marks = marks(dir.as_fd())?;
                Ok((dir, marks))
            });
            for at in at {
                looks[*at] = match &opened {
                    Ok((dir, marks)) => Looks::of(dir.as_fd(), &entries[*at], marks),
                    Err(error) => Err(anyhow!("{error:#}")),
                };
            }
        }
        looks
    }
}

/// Proxmox's marks in a directory.
fn marks(dir: BorrowedFd) -> Result<HashSet<String>> {
    let names = fsio::names(dir).context("cannot list the directory")?;
    Ok(names.into_iter().map(|(name, _)| name).filter(|name| name.ends_with(PROTECTED)).collect())
}

impl Looks {
    fn of(dir: BorrowedFd, entry: &Entry, marks: &HashSet<String>) -> Result<Self> {
        let mut looks = Looks { protected: entry.dump.protected, ..Looks::default() };
        let mut left = 0;
        for file in &entry.dump.files {
            looks.protected |= !marks.is_empty() && marks.contains(&format!("{}{PROTECTED}", file.name));
            let Some(stat) = fsio::stat(dir, &file.name)? else { continue };
            left += 1;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                looks.written = looks.written.max(Time::from_unix(stat.st_mtime));
                let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
                let side = if stat.st_nlink == 1 { &mut looks.frees } else { &mut looks.linked };
                *side = side.saturating_add(bytes);
            }
        }
        looks.gone = left == 0 && !entry.dump.files.is_empty();
        Ok(looks)
    }
}

impl Locked<'_> {
    /// Protects a dump, or ends that: in its sidecar, and for Proxmox's dumps by Proxmox's own mark, too. Either of them
    /// protects by itself, so a crash in between leaves it protected, and the same call finishes. Whether it changed.
    pub fn protect(&self, entry: &Entry, on: bool) -> Result<bool> {
        let marked = self.mark(entry, on && entry.dump.driver == "vzdump")?;
        if entry.dump.protected == on {
            return Ok(marked);
        }
        let mut dump = entry.dump.clone();
        dump.protected = on;
        self.annotate(entry, &dump)?;
        Ok(true)
    }

    /// Makes Proxmox's mark be there or not; whether that changed anything.
    fn mark(&self, entry: &Entry, on: bool) -> Result<bool> {
        let dir = fsio::open_place(self.store.top(), &entry.place)?;
        ensure!(fsio::stat(dir.as_fd(), &entry.dump.stem.sidecar())?.is_some(), "{} is gone", entry.dump.id);
        let mut changed = false;
        for file in &entry.dump.files {
            let name = format!("{}{PROTECTED}", file.name);
            let there = fsio::stat(dir.as_fd(), &name)?.is_some();
            let wanted = on && fsio::stat(dir.as_fd(), &file.name)?.is_some();
            // What a dump calls its own file is no mark.
            if there == wanted || entry.dump.files.iter().any(|file| file.name == name) {
                continue;
            }
            match wanted {
                true => fsio::touch(dir.as_fd(), &name)?,
                false => fsio::unlink(dir.as_fd(), &name)?,
            }
            changed = true;
        }
        if changed {
            fsio::sync(dir.as_fd())?;
        }
        Ok(changed)
    }
}
