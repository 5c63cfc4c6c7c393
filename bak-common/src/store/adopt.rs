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
//! flushed by one call for their whole file system, where that is known to flush all of it and to tell of errors. A disk that is
//! full would fail each of them alike: it stops the work, and is told once.

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
/// And so many where the whole file system is flushed,
const PART: usize = 2_500;
/// in so many threads.
const THREADS: usize = 4;

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
    /// Something stopped the work before it was its turn: nothing has changed.
    Undecided,
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
        if self.removing.is_empty() {
            return None;
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

/// What became of all.
#[derive(Debug)]
pub struct Adoption {
    /// One each, in order.
    pub results: Vec<Result<Adopted>>,
    /// What ended it for those that are [`Adopted::Undecided`], such as a full disk.
    pub stopped: Option<anyhow::Error>,
}

/// What is the same for all that are adopted under one lock.
struct Scene<'a> {
    dirs: HashMap<&'a str, OwnedFd>,
    /// The stems of all dumps, each with its place.
    there: HashMap<Stem, String>,
    busy: Busy,
    base: OwnedFd,
    work: OwnedFd,
    whole: bool,
    stopped: Mutex<Option<anyhow::Error>>,
}

impl Scene<'_> {
    /// The directory of one, every one of which was opened when this was made.
    fn dir(&self, one: &Found) -> BorrowedFd<'_> {
        self.dirs[one.place.as_str()].as_fd()
    }

    fn stop(&self, error: anyhow::Error) {
        self.lock().get_or_insert(error);
    }

    fn is_stopped(&self) -> bool {
        self.lock().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<anyhow::Error>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A result, but that what hits one because the disk is full would hit all.
    fn settle(&self, result: Result<Adopted>) -> Result<Adopted> {
        match result {
            Err(error) if fsio::is_full(&error) => {
                self.stop(anyhow!("{}", error.root_cause()));
                Ok(Adopted::Undecided)
            }
            other => other,
        }
    }

    /// Does `step` for all that nothing has stopped yet.
    fn each(&self, found: &[Found], results: &mut Results, mut step: impl FnMut(usize, &Found) -> Result<Adopted>) {
        for (at, (one, result)) in found.iter().zip(results).enumerate() {
            if matches!(result, Ok(Adopted::Yes)) {
                *result = self.settle(step(at, one));
            }
        }
    }
}

impl Locked<'_> {
    /// Gives sidecars to dumps whose files lie at their places. When this returns, those that went well exist, and nothing
    /// else has changed.
    pub fn adopt(&self, found: &[Found]) -> Adoption {
        let Adoption { results, stopped } = self.adopt_all(found);
        let results = results.into_iter().map(|one| one.map_err(|error| self.store.where_full(error))).collect();
        Adoption { results, stopped: stopped.map(|error| self.store.where_full(error)) }
    }

    fn adopt_all(&self, found: &[Found]) -> Adoption {
        let scene = match self.scene(found) {
            Ok(scene) => scene,
            Err(error) => return Adoption { results: undecided(found.len()), stopped: Some(error) },
        };
        let parts: Vec<&[Found]> = found.chunks(if scene.whole { PART } else { BATCH }).collect();
        let mut results: Results = adopt_parts(&scene, &parts).into_iter().flatten().collect();
        let flushed: HashMap<&str, Result<()>> =
            scene.dirs.iter().map(|(place, dir)| (*place, fsio::sync(dir.as_fd()))).collect();
        for (one, result) in found.iter().zip(&mut results).filter(|(_, result)| matches!(result, Ok(Adopted::Yes))) {
            if let Err(error) = &flushed[one.place.as_str()] {
                *result = Err(anyhow!("it is adopted, but a power cut may undo that: {error:#}"));
            }
        }
        // What cannot be removed now is discarded by whoever takes the lock next.
        let _ = discard(scene.base.as_fd(), ADOPTING);
        Adoption { results, stopped: scene.stopped.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    fn scene<'a>(&self, found: &'a [Found]) -> Result<Scene<'a>> {
        let base = fsio::make_dir(self.bak.as_fd(), WORK)?;
        discard(base.as_fd(), ADOPTING)?;
        fsio::make_dir_unflushed(base.as_fd(), ADOPTING)?;
        let work = fsio::open_dir(base.as_fd(), ADOPTING).context("cannot open a work directory")?;
        let drop = fsio::make_dir(self.bak.as_fd(), DROP)?;
        let mut scene = Scene {
            dirs: HashMap::new(),
            there: HashMap::new(),
            busy: self.store.busy()?,
            base,
            work,
            whole: found.len() >= MANY && flushes_whole(self.store.top()),
            stopped: Mutex::new(None),
        };
        self.store.visit_stems(&mut |place, stem| {
            scene.there.insert(stem, place.to_owned());
        });
        for one in found {
            if !scene.dirs.contains_key(one.place.as_str()) {
                let dir = fsio::open_place(self.store.top(), &one.place)?;
                scene.dirs.insert(&one.place, dir);
                // As for any dump: removing must not need room.
                fsio::make_place(drop.as_fd(), &one.place)?;
            }
        }
        Ok(scene)
    }
}

fn undecided(count: usize) -> Results {
    (0..count).map(|_| Ok(Adopted::Undecided)).collect()
}

/// Adopts part after part, several at a time: while one waits for the disk others write.
fn adopt_parts(scene: &Scene, parts: &[&[Found]]) -> Vec<Results> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS)).min(parts.len());
    if threads <= 1 {
        return parts.iter().enumerate().map(|(number, part)| adopt_part(scene, number, part)).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(number) else { return done };
            done.push((number, adopt_part(scene, number, part)));
        }
    };
    let mut all: Vec<Results> = parts.iter().map(|part| undecided(part.len())).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(done) => done.into_iter().for_each(|(number, results)| all[number] = results),
                Err(_) => scene.stop(anyhow!("a thread has ended")),
            }
        }
    });
    all
}

fn adopt_part(scene: &Scene, number: usize, found: &[Found]) -> Results {
    let mut results: Results = found.iter().map(|_| Ok(Adopted::Yes)).collect();
    let work = match write(scene, number, found, &mut results) {
        Ok(work) => work,
        Err(error) => {
            scene.stop(if fsio::is_full(&error) { anyhow!("{}", error.root_cause()) } else { error });
            let undecided = |result| if matches!(result, Ok(Adopted::Yes)) { Ok(Adopted::Undecided) } else { result };
            return results.into_iter().map(undecided).collect();
        }
    };
    scene.each(found, &mut results, |at, one| {
        if let Some(why) = one.changed(scene.dir(one))? {
            return Ok(Adopted::Left(why));
        }
        let name = one.dump.stem.sidecar();
        fsio::move_as(work.as_fd(), &at.to_string(), scene.dir(one), &name).map(|()| Adopted::Yes)
    });
    results
}

/// Writes the sidecars into a work directory, and flushes them and the files. An error ends it for all.
fn write(scene: &Scene, number: usize, found: &[Found], results: &mut Results) -> Result<OwnedFd> {
    let name = number.to_string();
    fsio::make_dir_unflushed(scene.work.as_fd(), &name)?;
    let work = fsio::open_dir(scene.work.as_fd(), &name).context("cannot open a work directory")?;
    let mut sidecars = Vec::new();
    scene.each(found, results, |at, one| {
        if scene.is_stopped() {
            return Ok(Adopted::Undecided);
        }
        if let Some(why) = scene.busy.why(&one.place, &one.dump.stem) {
            return Ok(Adopted::Left(why));
        }
        match scene.there.get(&one.dump.stem) {
            Some(place) if *place == one.place => return Ok(Adopted::Left("it is a dump already".into())),
            // As somebody else may have found just before we took the lock.
            Some(place) => {
                let slash = if place.is_empty() { "" } else { "/" };
                return Ok(Adopted::Left(format!("{place}{slash}{} is a dump already", one.dump.stem)));
            }
            None => {}
        }
        let file = fsio::write_unflushed(work.as_fd(), &at.to_string(), &one.sidecar)?;
        if !scene.whole {
            sidecars.push((at, file));
        }
        Ok(Adopted::Yes)
    });
    match scene.whole {
        true => rustix::fs::syncfs(&work).context("cannot flush to disk")?,
        false => flush(scene, found, results, &sidecars),
    }
    Ok(work)
}

/// Flushes the files and the sidecars of all, each by itself.
fn flush(scene: &Scene, found: &[Found], results: &mut Results, sidecars: &[(usize, std::fs::File)]) {
    let mut files = Vec::new();
    scene.each(found, results, |at, one| {
        for file in &one.dump.files {
            match fsio::open_file(scene.dir(one), &file.name)? {
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
            results[*at] = scene.settle(Err(error));
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
