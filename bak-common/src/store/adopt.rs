//! Dumps that others made, taken in where they lie.
//!
//! The hazard: their files belong to a program that knows nothing of us, that may remove them at any moment, and that has
//! flushed none of them. So a file never leaves its name, and what gives it a sidecar is one call:
//!
//! Under the store's lock the sidecars are written in `.bak/work/.adopting/`. These and the files are flushed. Then each
//! file must still be the one that was looked at; then the sidecar moves to its place by a call that never replaces: that is
//! the decision, and all there is of it. Last the directories are flushed. A crash before the decision leaves a work
//! directory that recovery discards.
//!
//! Thousands may be adopted at once, and to flush each file by itself would take longer than all the rest. So many are
//! flushed by one call for their whole file system, where that is known to flush all of it and to tell of errors.

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::change::{DROP, Locked, WORK, discard};
use super::{Store, link};
use crate::fsio::{self, FileMark};
use crate::name::Stem;
use crate::record::Dump;

const ADOPTING: &str = ".adopting";
/// From so many on the whole file system is flushed.
const MANY: usize = 32;
/// So many are adopted at once: each file and sidecar that is flushed by itself is open.
const BATCH: usize = 100;
/// And so many where the whole file system is flushed.
const BATCH_WHOLE: usize = 10_000;

/// A dump without a sidecar, whose files lie at their place already.
#[derive(Clone, Debug)]
pub struct Found {
    dump: Dump,
    sidecar: Vec<u8>,
    place: String,
    marks: Vec<FileMark>,
}

impl Found {
    /// `place` is its directory below the store's top; `marks` are what its files were when they were judged, in their order.
    pub fn new(dump: Dump, place: &str, marks: Vec<FileMark>) -> Result<Self> {
        let sidecar = dump.to_sidecar();
        Dump::from_sidecar(&dump.stem, &sidecar).context("its sidecar could not be read back")?;
        anyhow::ensure!(marks.len() == dump.files.len(), "its files were not all looked at");
        Ok(Self { dump, sidecar, place: place.to_owned(), marks })
    }

    /// Its place, and the dump.
    pub fn into_parts(self) -> (String, Dump) {
        (self.place, self.dump)
    }

    /// Why its files are not what they were.
    fn changed(&self, dir: BorrowedFd) -> Result<Option<String>> {
        for (file, mark) in self.dump.files.iter().zip(&self.marks) {
            match FileMark::of(dir, &file.name)? {
                Some(now) if now == *mark => {}
                Some(_) => return Ok(Some(format!("{} was changed meanwhile", file.name))),
                None => return Ok(Some(format!("{} was removed meanwhile", file.name))),
            }
        }
        Ok(None)
    }
}

/// What became of a dump that was to be adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopted {
    Yes,
    /// It is not what it was when that was decided, which is nobody's fault: why.
    Left(String),
}

/// What bak itself is making or removing in a store.
#[derive(Debug, Default)]
pub struct Busy {
    making: HashSet<String>,
    /// Below `.bak/drop`: a place and the stem of a dropped sidecar there.
    removing: HashSet<(String, String)>,
}

impl Busy {
    /// Why this stem is not free for others.
    pub fn why(&self, place: &str, stem: &Stem) -> Option<String> {
        if self.making.contains(stem.as_str()) {
            return Some("bak is making it".into());
        }
        let key = (place.to_owned(), stem.as_str().to_owned());
        self.removing.contains(&key).then(|| "bak is removing it".into())
    }
}

impl Store {
    /// What is being made and removed now.
    pub fn busy(&self) -> Result<Busy> {
        let mut busy = Busy::default();
        let Some(bak) = self.bak()? else { return Ok(busy) };
        if let Some(base) = open(bak.as_fd(), WORK)? {
            for (name, _) in fsio::names(base.as_fd()).context("cannot list the work directories")? {
                if link::is_decided(&name)
                    && let Some(dir) = open(base.as_fd(), &name)?
                {
                    busy.making.extend(stems(dir.as_fd())?);
                }
                busy.making.insert(name);
            }
        }
        if let Some(drop) = open(bak.as_fd(), DROP)? {
            dropped(drop.as_fd(), "", &mut busy.removing)?;
        }
        Ok(busy)
    }
}

/// Opens a directory; `None` if it is not there.
fn open(dir: BorrowedFd, name: &str) -> Result<Option<OwnedFd>> {
    match fsio::open_dir(dir, name) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open the directory {name}")),
    }
}

/// The stems of the sidecars in a directory.
fn stems(dir: BorrowedFd) -> Result<Vec<String>> {
    let names = fsio::names(dir).context("cannot list a directory of bak's own")?;
    Ok(names.iter().filter_map(|(name, _)| Stem::of_sidecar(name)).map(String::from).collect())
}

fn dropped(dir: BorrowedFd, place: &str, into: &mut HashSet<(String, String)>) -> Result<()> {
    into.extend(stems(dir)?.into_iter().map(|stem| (place.to_owned(), stem)));
    for (name, kind) in fsio::names(dir).context("cannot list the dropped sidecars")? {
        if kind != rustix::fs::FileType::RegularFile
            && let Some(sub) = open(dir, &name)?
        {
            let below = if place.is_empty() { name } else { format!("{place}/{name}") };
            dropped(sub.as_fd(), &below, into)?;
        }
    }
    Ok(())
}

/// One result each, as far as the work has come.
type Results = Vec<Result<Adopted>>;

/// Does `step` for all that nothing has stopped yet.
fn each(found: &[Found], results: &mut Results, mut step: impl FnMut(usize, &Found) -> Result<Adopted>) {
    for (at, (one, result)) in found.iter().zip(results).enumerate() {
        if matches!(result, Ok(Adopted::Yes)) {
            *result = step(at, one);
        }
    }
}

impl Locked<'_> {
    /// Gives sidecars to dumps whose files lie at their places. One result each, in order: when this returns, those that went
    /// well exist, and nothing else has changed.
    pub fn adopt(&self, found: &[Found]) -> Vec<Result<Adopted>> {
        let whole = found.len() >= MANY && flushes_whole(self.store.top());
        let size = if whole { BATCH_WHOLE } else { BATCH };
        let adopted = found.chunks(size).flat_map(|batch| self.adopt_batch(batch, whole));
        adopted.map(|one| one.map_err(|error| self.store.where_full(error))).collect()
    }

    fn adopt_batch(&self, found: &[Found], whole: bool) -> Results {
        let mut results: Results = found.iter().map(|_| Ok(Adopted::Yes)).collect();
        if let Err(error) = self.adopt_all(found, whole, &mut results) {
            each(found, &mut results, |_, _| Err(anyhow!("{error:#}")));
        }
        results
    }

    /// An error ends it for all of which nothing has been decided.
    fn adopt_all(&self, found: &[Found], whole: bool, results: &mut Results) -> Result<()> {
        let base = fsio::make_dir(self.bak.as_fd(), WORK)?;
        discard(base.as_fd(), ADOPTING)?;
        fsio::make_dir_unflushed(base.as_fd(), ADOPTING)?;
        let work = fsio::open_dir(base.as_fd(), ADOPTING).context("cannot open a work directory")?;
        let drop = fsio::make_dir(self.bak.as_fd(), DROP)?;
        let busy = self.store.busy()?;
        let mut dirs: HashMap<&str, OwnedFd> = HashMap::new();
        let mut there: HashSet<(&str, Stem)> = HashSet::new();
        for one in found {
            if !dirs.contains_key(one.place.as_str()) {
                let dir = fsio::open_place(self.store.top(), &one.place)?;
                let names = fsio::names(dir.as_fd()).context("cannot list the directory")?;
                let sidecars = names.iter().filter_map(|(name, _)| Stem::of_sidecar(name));
                there.extend(sidecars.map(|stem| (one.place.as_str(), stem)));
                dirs.insert(&one.place, dir);
                // As for any dump: removing must not need room.
                fsio::make_place(drop.as_fd(), &one.place)?;
            }
        }
        // Every place was opened just now.
        let dir = |one: &Found| dirs[one.place.as_str()].as_fd();
        let mut sidecars = Vec::new();
        each(found, results, |at, one| {
            if let Some(why) = busy.why(&one.place, &one.dump.stem) {
                return Ok(Adopted::Left(why));
            }
            if there.contains(&(one.place.as_str(), one.dump.stem.clone())) {
                return Ok(Adopted::Left("it is a dump already".into()));
            }
            let file = fsio::write_unflushed(work.as_fd(), &at.to_string(), &one.sidecar)?;
            if !whole {
                sidecars.push((at, file));
            }
            Ok(Adopted::Yes)
        });
        match whole {
            true => rustix::fs::syncfs(self.store.top()).context("cannot flush to disk")?,
            false => flush(found, results, &sidecars, dir),
        }
        each(found, results, |at, one| {
            if let Some(why) = one.changed(dir(one))? {
                return Ok(Adopted::Left(why));
            }
            let name = one.dump.stem.sidecar();
            fsio::move_as(work.as_fd(), &at.to_string(), dir(one), &name).map(|()| Adopted::Yes)
        });
        let flushed: HashMap<&str, Result<()>> =
            dirs.iter().map(|(place, dir)| (*place, fsio::sync(dir.as_fd()))).collect();
        each(found, results, |_, one| match &flushed[one.place.as_str()] {
            Ok(()) => Ok(Adopted::Yes),
            Err(error) => Err(anyhow!("it is adopted, but a power cut may undo that: {error:#}")),
        });
        // What cannot be removed now is discarded by whoever takes the lock next.
        let _ = discard(base.as_fd(), ADOPTING);
        Ok(())
    }
}

/// Flushes the files and the sidecars of all, each by itself.
fn flush<'a>(
    found: &[Found],
    results: &mut Results,
    sidecars: &[(usize, std::fs::File)],
    dir: impl Fn(&Found) -> BorrowedFd<'a>,
) {
    let mut files = Vec::new();
    each(found, results, |at, one| {
        for file in &one.dump.files {
            match fsio::open_file(dir(one), &file.name)? {
                Some(file) => files.push((at, file)),
                None => return Ok(Adopted::Left(format!("{} was removed meanwhile", file.name))),
            }
        }
        Ok(Adopted::Yes)
    });
    let all: Vec<&(usize, std::fs::File)> = sidecars.iter().chain(&files).collect();
    let flushed = fsio::sync_all(&all.iter().map(|(_, file)| file.as_fd()).collect::<Vec<_>>());
    for ((at, _), flushed) in all.into_iter().zip(flushed) {
        if let (Err(error), Ok(Adopted::Yes)) = (flushed, &results[*at]) {
            results[*at] = Err(error);
        }
    }
}

/// Whether one call flushes all of this file system, names and data, and tells of what could not be written. FUSE passes it
/// on to nobody, and of others nothing is known.
fn flushes_whole(dir: BorrowedFd) -> bool {
    // ext2 to ext4, XFS, Btrfs, tmpfs, F2FS, ZFS: f_type of statfs(2).
    const KNOWN: [u64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x2fc1_2fc1];
    rustix::fs::fstatfs(dir).is_ok_and(|stat| KNOWN.contains(&(stat.f_type as u64)))
}
