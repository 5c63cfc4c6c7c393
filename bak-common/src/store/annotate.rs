//! New annotations in the sidecars of dumps that are there: one file replaced by another, flushed before and after.

use anyhow::{Context, Result, anyhow, ensure};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::change::{Locked, WORK, discard};
use super::{Entry, Store};
use crate::fsio;
use crate::record::Dump;

const TEMP: &str = ".sidecar.new";
const NOTING: &str = ".noting";
/// So many are written at once: of each, a file and a directory are open.
const MANY: usize = 100;

/// A sidecar that was written, and the directory that it goes to.
type Written = Result<(File, OwnedFd)>;

/// A dump's directory, if `dump` differs from what is there in annotations only, or has SHA-256 that were not there.
fn target(store: &Store, entry: &Entry, dump: &Dump) -> Result<OwnedFd> {
    let same = entry.dump.same(dump) && entry.dump.keeps_sums(dump);
    ensure!(same, "an annotation would change the dump {}", entry.dump.id);
    let dir = fsio::open_place(store.top(), &entry.place)?;
    ensure!(fsio::stat(dir.as_fd(), &dump.stem.sidecar())?.is_some(), "{} is gone", dump.id);
    Ok(dir)
}

/// Gives a new sidecar, in `work` as `temp`, its place in the directory of its dump.
fn put(work: BorrowedFd, temp: &str, dir: &OwnedFd, dump: &Dump) -> Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::renameat(work, temp, dir, dump.stem.sidecar().as_str()))
        .context("cannot put the sidecar in its place")
}

impl Locked<'_> {
    /// Replaces a dump's sidecar by one with other annotations. The dump itself must stay the same.
    pub fn annotate(&self, entry: &Entry, dump: &Dump) -> Result<()> {
        let dir = target(self.store, entry, dump)?;
        // Written in `.bak`, under the lock, so that a crash leaves nothing beside the dumps.
        let written = fsio::write_flushed(self.bak.as_fd(), TEMP, &dump.to_sidecar());
        written.map_err(|error| self.store.where_full(error))?;
        put(self.bak.as_fd(), TEMP, &dir, dump)?;
        fsio::sync(dir.as_fd())
    }

    /// The same for many dumps, in the same order for all of them, so that flushes share what they cost. One result each.
    /// A crash leaves some of them annotated, each of them whole.
    pub fn annotate_all(&self, changes: &[(&Entry, Dump)]) -> Vec<Result<()>> {
        let noted = changes.chunks(MANY).flat_map(|some| self.annotate_some(some));
        noted.map(|one| one.map_err(|error| self.store.where_full(error))).collect()
    }

    fn annotate_some(&self, changes: &[(&Entry, Dump)]) -> Vec<Result<()>> {
        // What a crash leaves there, recovery discards.
        let made = fsio::make_dir(self.bak.as_fd(), WORK).and_then(|base| {
            discard(base.as_fd(), NOTING)?;
            fsio::make_dir_unflushed(base.as_fd(), NOTING)?;
            let dir = fsio::open_dir(base.as_fd(), NOTING).context("cannot open a work directory")?;
            Ok((base, dir))
        });
        let (base, work) = match made {
            Ok(made) => made,
            Err(error) => return changes.iter().map(|_| Err(anyhow!("{error:#}"))).collect(),
        };
        let write = |(at, (entry, dump)): (usize, &(&Entry, Dump))| {
            let dir = target(self.store, entry, dump)?;
            let file = fsio::write_unflushed(work.as_fd(), &at.to_string(), &dump.to_sidecar())?;
            Ok((file, dir))
        };
        let written: Vec<Written> = changes.iter().enumerate().map(write).collect();
        let flushed = fsio::sync_good(written, |(file, _)| file.as_fd());
        let mut placed = Vec::new();
        for (at, (made, (_, dump))) in flushed.into_iter().zip(changes).enumerate() {
            placed.push(made.and_then(|(_, dir)| put(work.as_fd(), &at.to_string(), &dir, dump).map(|()| dir)));
        }
        let results = fsio::sync_good(placed, |dir: &OwnedFd| dir.as_fd()).into_iter().map(|done| done.map(drop));
        let results = results.collect();
        // What cannot be removed now is overwritten or discarded later.
        let _ = discard(base.as_fd(), NOTING);
        results
    }
}
