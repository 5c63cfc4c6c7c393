//! How a store is changed: adding and recovering; removing is beside. The order of the steps is everything; see the parent module.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::place::{Placing, put_in_place};
use super::{BAK, DEPTH_MAX, Entry, SIDECAR_MAX, Store, complete, link};
use crate::fsio;
use crate::lock::{Hold, Holder, Lock, holder};
use crate::name::{Stem, printable};
use crate::record::Dump;
use crate::report::{Kind, Report};

pub(super) const WORK: &str = "work";
pub(super) const DROP: &str = "drop";
const WORK_LOCK: &str = ".lock";
const TEMP: &str = ".sidecar.new";

/// The store's lock, held for moments: to publish, to remove, to recover.
#[derive(Debug)]
pub struct Locked<'a> {
    pub(super) store: &'a Store,
    pub(super) bak: OwnedFd,
    pub(super) _lock: Lock,
}

/// A dump in the making. Dropped without [`Locked::publish`], it is discarded.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    base: OwnedFd,
    pub(super) dir: OwnedFd,
    stem: Stem,
    lock: Lock,
    decided: bool,
}

impl Locked<'_> {
    /// Begins a dump called `stem` that will lie at `place`. Its work directory is locked until the result is dropped.
    pub fn begin(&self, stem: &Stem, place: &str) -> Result<Work> {
        fsio::components(place)?;
        if let Ok(dir) = fsio::open_place(self.store.top(), place) {
            ensure!(fsio::stat(dir.as_fd(), &stem.sidecar())?.is_none(), "{stem} is there already");
        }
        let base = fsio::make_dir(self.bak.as_fd(), WORK)?;
        match rustix::fs::mkdirat(&base, stem.as_str(), rustix::fs::Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // Recovery, just now, left it: somebody works there, or it cannot be published.
                let dir = fsio::open_dir(base.as_fd(), stem.as_str()).context("cannot open a work directory")?;
                let who = holder(dir.as_fd(), WORK_LOCK).map_or_else(String::new, |h| format!(" by {h}"));
                return Err(Kind::Locked.says(format!("{stem} is being made already{who}")));
            }
            Err(error) => return Err(error).context("cannot make a work directory"),
        }
        let dir = fsio::open_dir(base.as_fd(), stem.as_str()).context("cannot open the work directory")?;
        let lock = Lock::try_take(dir.as_fd(), WORK_LOCK, Hold::Exclusive)?;
        let lock = lock.context("somebody else took the lock of a new work directory")?;
        lock.sign(&Holder { place: Some(place.to_owned()), ..Holder::me() })?;
        let path = self.store.path.join(BAK).join(WORK).join(stem.as_str());
        Ok(Work { path, base, dir, stem: stem.clone(), lock, decided: false })
    }

    /// Publishes a dump whose files lie flushed in `work`. When this returns, it exists; if it fails before the decision,
    /// nothing remains.
    pub fn publish(&self, mut work: Work, dump: &Dump) -> Result<Entry> {
        ensure!(dump.stem == work.stem, "the dump {} was begun as {}", dump.stem, work.stem);
        let signed = holder(work.dir.as_fd(), WORK_LOCK).and_then(|h| h.place);
        let place = signed.context("a work directory does not say where its dump goes")?;
        let target = fsio::make_place(self.store.top(), &place)?;
        for name in dump.files.iter().map(|file| file.name.clone()).chain([dump.stem.sidecar()]) {
            ensure!(fsio::stat(target.as_fd(), &name)?.is_none(), "{name} is there already: nothing is overwritten");
        }
        complete(work.dir.as_fd(), dump)?;
        let sidecar = dump.to_sidecar();
        Dump::from_sidecar(&dump.stem, &sidecar).context("its sidecar could not be read back")?;
        // Made now, as a disk may be full when the dump is to be removed, and removing must not need room.
        fsio::make_place(fsio::make_dir(self.bak.as_fd(), DROP)?.as_fd(), &place)?;
        // The work directory, its lock (which holds the place) and the files' names must outlast a power cut before the
        // sidecar's name does: from then on recovery needs them.
        work.lock.sync()?;
        fsio::sync(work.dir.as_fd())?;
        fsio::sync(work.base.as_fd())?;
        let written = fsio::write_whole(work.dir.as_fd(), TEMP, &dump.stem.sidecar(), &sidecar);
        if let Err(error) = written {
            // Undecided or half decided; the sidecar must not outlive this failure.
            fsio::unlink(work.dir.as_fd(), &dump.stem.sidecar())?;
            return Err(error);
        }
        work.decided = true;
        finish_add(self.store.top(), work.base.as_fd(), work.dir.as_fd(), &work.stem, &place)
            .with_context(|| format!("{} is complete but not in its place; the next run will try again", work.stem))?;
        self.store
            .look(&place, &dump.stem)?
            .with_context(|| format!("{} vanished as soon as it was published", dump.stem))
    }

    pub(super) fn recover(&self, report: &Report) -> Result<()> {
        match fsio::open_dir(self.bak.as_fd(), DROP) {
            Ok(drop) => self.recover_drops(drop.as_fd(), "", report)?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context("cannot open the directory of dropped sidecars"),
        }
        let base = match fsio::open_dir(self.bak.as_fd(), WORK) {
            Ok(base) => base,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).context("cannot open the work directories"),
        };
        for (name, _) in fsio::names(base.as_fd()).context("cannot list the work directories")? {
            let recovered = match link::is_decided(&name) {
                true => self.finish_links(base.as_fd(), &name),
                false => self.recover_work(base.as_fd(), &name),
            };
            if let Err(error) = recovered {
                let what = "cannot finish what was begun there (if its files are gone for good, remove that directory)";
                let path = self.store.path.join(BAK).join(WORK).join(&name).display().to_string();
                report.fail(&path, &error.context(what));
            }
        }
        Ok(())
    }

    fn recover_work(&self, base: BorrowedFd, name: &str) -> Result<()> {
        let dir = match fsio::open_dir(base, name) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error).context("cannot open a work directory"),
        };
        // Holding the lock, if it has one yet, keeps whoever is still at work there out of our way, and us out of theirs.
        let mut _lock = None;
        if fsio::stat(dir.as_fd(), WORK_LOCK)?.is_some() {
            _lock = Lock::try_take(dir.as_fd(), WORK_LOCK, Hold::Exclusive)?;
            if _lock.is_none() {
                return Ok(());
            }
        }
        let decided = match Stem::new(name) {
            Ok(stem) if fsio::stat(dir.as_fd(), &stem.sidecar())?.is_some() => Some(stem),
            _ => None,
        };
        let Some(stem) = decided else { return discard(base, name) };
        let place = holder(dir.as_fd(), WORK_LOCK).and_then(|h| h.place);
        let place =
            place.context("a finished dump does not say where it goes; move its files to their place by hand")?;
        finish_add(self.store.top(), base, dir.as_fd(), &stem, &place)
    }
}

/// Moves a decided dump to its place: files, flush, sidecar, flush; then the work directory goes. Idempotent.
fn finish_add(top: BorrowedFd, base: BorrowedFd, work: BorrowedFd, stem: &Stem, place: &str) -> Result<()> {
    let Some(text) = fsio::read_file(work, &stem.sidecar(), SIDECAR_MAX)? else { bail!("the sidecar has vanished") };
    let dump = Dump::from_sidecar(stem, &text)?;
    put_in_place(work, vec![Placing::of(top, work, &dump, place)?]).into_iter().collect::<Result<()>>()?;
    discard(base, stem.as_str())
}

/// Removes a work directory: its sidecar first, its lock last, so that whoever comes in between sees what it is.
pub(super) fn discard(base: BorrowedFd, name: &str) -> Result<()> {
    let dir = match fsio::open_dir(base, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).context("cannot open a work directory"),
    };
    if let Ok(stem) = Stem::new(name) {
        fsio::unlink(dir.as_fd(), &stem.sidecar())?;
    }
    empty(dir.as_fd(), &[WORK_LOCK], 0)?;
    fsio::unlink(dir.as_fd(), WORK_LOCK)?;
    match rustix::fs::unlinkat(base, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context("cannot remove a work directory"),
    }
}

fn empty(dir: BorrowedFd, keep: &[&str], depth: usize) -> Result<()> {
    ensure!(depth <= DEPTH_MAX, "directories are nested too deeply");
    // Names that are no UTF-8 count here, unlike anywhere else.
    for entry in rustix::fs::Dir::read_from(dir).context("cannot list a work directory")? {
        let entry = entry.context("cannot list a work directory")?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || keep.iter().any(|kept| kept.as_bytes() == name.to_bytes()) {
            continue;
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                let sub = rustix::fs::openat(
                    dir,
                    name,
                    rustix::fs::OFlags::RDONLY
                        | rustix::fs::OFlags::DIRECTORY
                        | rustix::fs::OFlags::NOFOLLOW
                        | rustix::fs::OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                );
                empty(sub.context("cannot open a directory")?.as_fd(), &[], depth + 1)?;
                rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).context("cannot remove a directory")?;
            }
            Err(error) => return Err(error).context("cannot remove a file of an unfinished dump"),
        }
    }
    Ok(())
}

impl Work {
    /// Where programs put the dump's files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn stem(&self) -> &Stem {
        &self.stem
    }

    /// The work directory's lock, for the programs that work there to hold.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Opens one of the files made here, by name.
    pub fn open_file(&self, name: &str) -> Result<File> {
        fsio::open_file(self.dir.as_fd(), name)?.with_context(|| format!("{} was not made", printable(name)))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.decided {
            // What cannot be removed now, recovery removes later.
            let _ = discard(self.base.as_fd(), self.stem.as_str());
        }
    }
}
