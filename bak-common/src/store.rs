//! A store: a directory tree of dumps. The hazard is a crash at any moment, by us or by the machine.
//!
//! The invariant: **a dump exists in a store if and only if its sidecar does.** What keeps it is one order of operations
//! for adding, one for removing, and one recovery for both; nothing else creates, links, moves or deletes a dump's files.
//!
//! *Add.* The files are made in `.bak/work/<stem>/`, whose lock their maker (and the programs it started) hold, and are
//! flushed there. Then, under the store's lock, the sidecar is flushed there too: that is the decision. Then the files
//! move to their place by a call that never replaces, the directory is flushed, and the sidecar follows likewise.
//!
//! *Remove.* Under the store's lock the sidecar moves to the same place below `.bak/drop/`, and both directories are
//! flushed: that is the decision. Then the files go, the directory is flushed, and last the dropped sidecar goes.
//!
//! *Recover.* Whoever takes the store's lock finishes what was decided and discards what was not: a work directory
//! without a sidecar whose lock is free. Nothing else is ever swept.

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fsio;
use crate::lock::{Hold, Holder, Lock, holder};
use crate::name::{DumpId, GuestName, Stem, is_component, printable};
use crate::record::Dump;
use crate::report::{Kind, Report};

/// Where a store keeps what is not yet, or no longer, a dump.
pub const BAK: &str = ".bak";
const WORK: &str = "work";
const DROP: &str = "drop";
const LOCK: &str = "lock";
const WORK_LOCK: &str = ".lock";
const TEMP: &str = ".sidecar.new";
const SIDECAR_MAX: u64 = 16 << 20;
const DEPTH_MAX: usize = 32;

/// A store that was opened. All access goes through its open top directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    top: OwnedFd,
}

/// A dump that a store holds.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As its sidecar says; `dir` is set.
    pub dump: Dump,
    /// Its directory below the store's top; empty for the top itself.
    pub place: String,
    /// Why it is not good, if it is not: such a dump counts for nothing.
    pub fault: Option<String>,
}

/// A sidecar, or a directory, that cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    pub place: String,
    /// The stem of the sidecar; absent for a directory.
    pub stem: Option<Stem>,
    pub error: anyhow::Error,
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// By start time, then id.
    pub dumps: Vec<Entry>,
    pub unreadable: Vec<Unreadable>,
}

/// The store's lock, held for moments: to publish, to remove, to recover.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    bak: OwnedFd,
    _lock: Lock,
}

/// A dump in the making. Dropped without [`Locked::publish`], it is discarded.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    base: OwnedFd,
    dir: OwnedFd,
    stem: Stem,
    lock: Lock,
    decided: bool,
}

impl Entry {
    pub fn is_good(&self) -> bool {
        self.fault.is_none()
    }
}

impl Unreadable {
    /// What to call it in a message.
    pub fn path(&self) -> String {
        let slash = if self.place.is_empty() { "" } else { "/" };
        format!("{}{slash}{}", self.place, self.stem.as_ref().map(Stem::sidecar).unwrap_or_default())
    }

    /// Whether this sidecar may be one of the guest's: if so, what is done by counting that guest's dumps must wait.
    pub fn may_concern(&self, vm: &GuestName) -> bool {
        let encoded = vm.encoded();
        match &self.stem {
            None => true,
            Some(_) if self.place.split('/').next_back() == Some(encoded.as_str()) => true,
            Some(stem) => {
                stem.as_str().split('-').any(|part| part == encoded)
                    || stem.as_str().starts_with(&format!("{encoded}-"))
            }
        }
    }
}

impl Listing {
    /// Brings the dumps into their order.
    pub fn sort(&mut self) {
        self.dumps.sort_by(|a, b| (a.dump.started, &a.dump.id).cmp(&(b.dump.started, &b.dump.id)));
    }

    /// The dump with this id; good ones first.
    pub fn find(&self, id: &DumpId) -> Option<&Entry> {
        let of_id = |good| self.dumps.iter().find(move |entry| entry.dump.id == *id && entry.is_good() == good);
        of_id(true).or_else(|| of_id(false))
    }

    pub fn good(&self) -> impl Iterator<Item = &Entry> {
        self.dumps.iter().filter(|entry| entry.is_good())
    }

    /// Reports every sidecar that cannot be read.
    pub fn report(&self, store: &Store, report: &Report) {
        self.report_at(&store.path, report);
    }

    /// The same for a store that is called `top`.
    pub fn report_at(&self, top: &Path, report: &Report) {
        for bad in &self.unreadable {
            report.fail(&top.join(bad.path()).display().to_string(), &anyhow!("{:#}", bad.error));
        }
    }
}

impl Store {
    /// Opens an existing store. Its top must belong to root or us.
    pub fn open(path: &Path) -> Result<Self> {
        let missing = || {
            Kind::Usage.says(format!(
                "there is no store at {}: make the directory, or name another by --store or in the configuration",
                path.display()
            ))
        };
        let full = match path.canonicalize() {
            Ok(full) => full,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(Kind::Usage.says(format!("cannot open the store {}: {error}", path.display()))),
        };
        let top = File::open(&full)
            .map_err(|error| Kind::Usage.says(format!("cannot open the store {}: {error}", path.display())))?;
        let stat = rustix::fs::fstat(&top).context("cannot look at the store")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Kind::Usage.says(format!("the store {} is not a directory", path.display())));
        }
        if let Some(why) = fsio::foreign(&stat) {
            return Err(Kind::Refused.says(format!("the store {} {why}", path.display())));
        }
        Ok(Self { path: full, top: top.into() })
    }

    /// Opens a store, made (0700) if it is not there; its parent must be.
    pub fn create(path: &Path) -> Result<Self> {
        match std::fs::create_dir(path) {
            Ok(()) => {
                if let Some(parent) = path.parent() {
                    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                    File::open(parent)
                        .and_then(|dir| dir.sync_all())
                        .with_context(|| format!("cannot flush {}", parent.display()))?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Kind::Usage.says(format!("cannot make the directory {}: {error}", path.display())));
            }
        }
        Self::open(path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// Opens `.bak` for reading; `None` where nothing has been done yet.
    pub fn bak(&self) -> Result<Option<OwnedFd>> {
        match fsio::open_dir(self.top(), BAK) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", self.path.join(BAK).display())),
        }
    }

    /// Opens `.bak`, made if it is not there.
    pub fn make_bak(&self) -> Result<OwnedFd> {
        fsio::make_dir(self.top(), BAK).with_context(|| format!("cannot use the store {}", self.path.display()))
    }

    /// Bytes that may still be written here.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.top)
            .with_context(|| format!("cannot see how much is free in {}", self.path.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether both lie on one file system, so that hard links can be made between them.
    pub fn same_file_system(&self, other: &Store) -> Result<bool> {
        let device =
            |store: &Store| rustix::fs::fstat(&store.top).map(|stat| stat.st_dev).context("cannot look at a store");
        Ok(device(self)? == device(other)?)
    }

    /// Everything that the store holds now. Takes no lock: what is added or removed meanwhile may or may not be seen,
    /// but is never seen in part.
    pub fn list(&self) -> Listing {
        let mut listing = Listing::default();
        match self.top.try_clone() {
            Ok(top) => self.walk(top, "", 0, &mut listing),
            Err(error) => listing.unreadable.push(Unreadable { place: String::new(), stem: None, error: error.into() }),
        }
        listing.sort();
        listing
    }

    fn walk(&self, dir: OwnedFd, place: &str, depth: usize, listing: &mut Listing) {
        let mut lost =
            |error: anyhow::Error| listing.unreadable.push(Unreadable { place: place.into(), stem: None, error });
        if depth > DEPTH_MAX {
            return lost(anyhow!("directories are nested too deeply"));
        }
        let names = match fsio::names(dir.as_fd()) {
            Ok(names) => names,
            Err(error) => return lost(anyhow!("cannot list the directory: {error}")),
        };
        for (name, kind) in names.into_iter().filter(|(name, _)| is_component(name)) {
            let below = || if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
            if let Some(stem) = Stem::of_sidecar(&name) {
                match self.entry(dir.as_fd(), place, &stem) {
                    Ok(Some(entry)) => listing.dumps.push(entry),
                    Ok(None) => {}
                    Err(error) => listing.unreadable.push(Unreadable { place: place.into(), stem: Some(stem), error }),
                }
            } else if matches!(kind, FileType::Directory | FileType::Unknown) {
                match fsio::open_dir(dir.as_fd(), &name) {
                    Ok(sub) => self.walk(sub, &below(), depth + 1, listing),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => listing.unreadable.push(Unreadable {
                        place: below(),
                        stem: None,
                        error: anyhow!("cannot open the directory: {error}"),
                    }),
                }
            }
        }
    }

    /// The dump with this stem at this place, as it is now; `None` if it is not there.
    pub fn look(&self, place: &str, stem: &Stem) -> Result<Option<Entry>> {
        match fsio::open_place(self.top(), place) {
            Ok(dir) => self.entry(dir.as_fd(), place, stem),
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn entry(&self, dir: BorrowedFd, place: &str, stem: &Stem) -> Result<Option<Entry>> {
        let Some(text) = fsio::read_file(dir, &stem.sidecar(), SIDECAR_MAX)? else { return Ok(None) };
        let mut dump = Dump::from_sidecar(stem, &text).context("cannot read the sidecar")?;
        let fault = fault(dir, &dump)?;
        dump.dir = Some(self.path.join(place).to_string_lossy().into_owned());
        Ok(Some(Entry { dump, place: place.to_owned(), fault }))
    }

    /// Opens a data file of a dump for reading.
    pub fn open_file(&self, entry: &Entry, name: &str) -> Result<File> {
        ensure!(entry.dump.stem.owns(name), "{} is no file of {}", printable(name), entry.dump.id);
        let dir = fsio::open_place(self.top(), &entry.place)?;
        fsio::open_file(dir.as_fd(), name)?.with_context(|| format!("{} is gone", printable(name)))
    }

    /// Whether nothing but its owner's word may remove the dump: its sidecar says so, or Proxmox's mark lies beside it.
    pub fn is_protected(&self, entry: &Entry) -> Result<bool> {
        if entry.dump.protected {
            return Ok(true);
        }
        let dir = fsio::open_place(self.top(), &entry.place)?;
        for file in &entry.dump.files {
            if fsio::stat(dir.as_fd(), &format!("{}.protected", file.name))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the dump had files and not one of them is there any more.
    pub fn is_gone(&self, entry: &Entry) -> Result<bool> {
        let dir = fsio::open_place(self.top(), &entry.place)?;
        for file in &entry.dump.files {
            if fsio::stat(dir.as_fd(), &file.name)?.is_some() {
                return Ok(false);
            }
        }
        Ok(!entry.dump.files.is_empty())
    }

    /// Takes the store's lock and recovers; what cannot be recovered goes to `report` and stays for the next time.
    pub fn lock(&self, wait: Duration, report: &Report) -> Result<Locked<'_>> {
        let bak = self.make_bak()?;
        let what = format!("the store {}", self.path.display());
        let mut lock = Lock::take(bak.as_fd(), LOCK, Hold::Exclusive, wait, &what)?;
        lock.sign(&Holder::me())?;
        let locked = Locked { store: self, bak, _lock: lock };
        locked.recover(report)?;
        Ok(locked)
    }
}

/// Why a dump is not good.
fn fault(dir: BorrowedFd, dump: &Dump) -> Result<Option<String>> {
    match dump.verdict() {
        None => incomplete(dir, dump),
        bad => Ok(bad),
    }
}

/// Which of a dump's files is not there as its sidecar says.
fn incomplete(dir: BorrowedFd, dump: &Dump) -> Result<Option<String>> {
    for file in &dump.files {
        let Some(stat) = fsio::stat(dir, &file.name)? else {
            return Ok(Some(format!("its file {} is missing", file.name)));
        };
        if let Some(why) = fsio::distrust(&stat) {
            return Ok(Some(format!("its file {} {why}", file.name)));
        }
        if stat.st_size as u64 != file.bytes {
            return Ok(Some(format!("its file {} has {} bytes instead of {}", file.name, stat.st_size, file.bytes)));
        }
    }
    Ok(None)
}

/// Whether `name` is a companion of the dump: carried and removed with it, never hashed.
pub fn is_companion(dump: &Dump, name: &str) -> bool {
    let log = dump.stem.extension(name) == Some("log");
    let of_file =
        |ending: &str| name.strip_suffix(ending).is_some_and(|file| dump.files.iter().any(|f| f.name == file));
    (log || of_file(".notes") || of_file(".protected")) && !dump.files.iter().any(|f| f.name == name)
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
                let who = holder(dir.as_fd(), WORK_LOCK)
                    .map_or_else(String::new, |h| format!(" by {} (pid {} on {})", h.program, h.pid, h.node));
                return Err(Kind::Locked.says(format!("{stem} is being made already{who}")));
            }
            Err(error) => return Err(error).context("cannot make a work directory"),
        }
        let dir = fsio::open_dir(base.as_fd(), stem.as_str()).context("cannot open the work directory")?;
        let lock = Lock::try_take(dir.as_fd(), WORK_LOCK, Hold::Exclusive)?;
        let mut lock = lock.context("somebody else took the lock of a new work directory")?;
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
        if let Some(why) = incomplete(work.dir.as_fd(), dump)? {
            bail!("{why}");
        }
        // The work directory, its lock (which holds the place) and the files' names must outlast a power cut before the
        // sidecar's name does: from then on recovery needs them.
        work.lock.sync()?;
        fsio::sync(work.dir.as_fd())?;
        fsio::sync(work.base.as_fd())?;
        let written = fsio::write_whole(work.dir.as_fd(), TEMP, &dump.stem.sidecar(), &dump.to_sidecar());
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

    /// Removes dumps. One result each, in order; what is gone already is fine.
    pub fn remove(&self, entries: &[&Entry]) -> Vec<Result<()>> {
        let decide = |entry: &&Entry| -> Result<()> {
            let from = fsio::open_place(self.store.top(), &entry.place)?;
            let name = entry.dump.stem.sidecar();
            if fsio::stat(from.as_fd(), &name)?.is_none() {
                return Ok(());
            }
            let drop = fsio::make_place(fsio::make_dir(self.bak.as_fd(), DROP)?.as_fd(), &entry.place)?;
            fsio::move_file(from.as_fd(), drop.as_fd(), &name)?;
            fsio::unlink(from.as_fd(), &name)
        };
        let mut results: Vec<Result<()>> = entries.iter().map(decide).collect();
        // One flush a directory for the whole batch. Flushing the new place first never leaves a dump in neither.
        let places: BTreeSet<&str> = entries.iter().map(|entry| entry.place.as_str()).collect();
        for place in places {
            if let Err(error) = self.flush_drop(place) {
                for (entry, result) in entries.iter().zip(&mut results) {
                    if entry.place == place && result.is_ok() {
                        *result = Err(anyhow!("{error:#}"));
                    }
                }
            }
        }
        for (entry, result) in entries.iter().zip(&mut results) {
            if result.is_ok() {
                *result = self.finish_remove(&entry.place, &entry.dump.stem);
            }
        }
        results
    }

    fn flush_drop(&self, place: &str) -> Result<()> {
        if let Ok(drop) = fsio::open_dir(self.bak.as_fd(), DROP)
            && let Ok(dir) = fsio::open_place(drop.as_fd(), place)
        {
            fsio::sync(dir.as_fd())?;
        }
        match fsio::open_place(self.store.top(), place) {
            Ok(dir) => fsio::sync(dir.as_fd()),
            Err(_) => Ok(()),
        }
    }

    /// Removes the files of a dropped sidecar, then the sidecar.
    fn finish_remove(&self, place: &str, stem: &Stem) -> Result<()> {
        let Ok(drop) = fsio::open_dir(self.bak.as_fd(), DROP) else { return Ok(()) };
        let Ok(dropped) = fsio::open_place(drop.as_fd(), place) else { return Ok(()) };
        let Some(text) = fsio::read_file(dropped.as_fd(), &stem.sidecar(), SIDECAR_MAX)? else { return Ok(()) };
        let dump = Dump::from_sidecar(stem, &text).context("cannot read the dropped sidecar")?;
        if let Ok(dir) = fsio::open_place(self.store.top(), place) {
            match (fsio::stat(dir.as_fd(), &stem.sidecar())?, fsio::stat(dropped.as_fd(), &stem.sidecar())?) {
                // Where moving means linking and unlinking, a crash in between leaves both.
                (Some(here), Some(gone)) if (here.st_dev, here.st_ino) == (gone.st_dev, gone.st_ino) => {
                    fsio::unlink(dir.as_fd(), &stem.sidecar())?;
                    fsio::sync(dir.as_fd())?;
                }
                (Some(_), _) => bail!("{stem} was dropped and is there again; remove one of its two sidecars"),
                (None, _) => {}
            }
            let companions = fsio::names(dir.as_fd())
                .context("cannot list a directory")?
                .into_iter()
                .map(|(name, _)| name)
                .filter(|name| is_companion(&dump, name));
            for name in dump.files.iter().map(|file| file.name.clone()).chain(companions) {
                fsio::unlink(dir.as_fd(), &name)?;
            }
            // Else a power cut could bring files back that no sidecar names any more.
            fsio::sync(dir.as_fd())?;
        }
        fsio::unlink(dropped.as_fd(), &stem.sidecar())?;
        if let Some(name) = fsio::components(place)?.first() {
            // Empty directories of guests are ours to tidy; a directory with anything in it stays.
            if !place.contains('/') {
                fsio::remove_empty_dir(self.store.top(), name);
                fsio::remove_empty_dir(drop.as_fd(), name);
            }
        }
        Ok(())
    }

    /// Replaces a dump's sidecar by one with other annotations. The dump itself must stay the same.
    pub fn annotate(&self, entry: &Entry, dump: &Dump) -> Result<()> {
        ensure!(entry.dump.same(dump), "an annotation would change the dump {}", entry.dump.id);
        let dir = fsio::open_place(self.store.top(), &entry.place)?;
        let name = dump.stem.sidecar();
        ensure!(fsio::stat(dir.as_fd(), &name)?.is_some(), "{} is gone", dump.id);
        // Written in `.bak`, under the lock, so that a crash leaves nothing beside the dumps.
        let bytes = dump.to_sidecar();
        fsio::write_flushed(self.bak.as_fd(), TEMP, &bytes)?;
        rustix::io::retry_on_intr(|| rustix::fs::renameat(&self.bak, TEMP, &dir, name.as_str()))
            .context("cannot put the sidecar in its place")?;
        fsio::sync(dir.as_fd())
    }

    fn recover(&self, report: &Report) -> Result<()> {
        if let Ok(drop) = fsio::open_dir(self.bak.as_fd(), DROP) {
            self.recover_drops(drop.as_fd(), "", report)?;
        }
        let Ok(base) = fsio::open_dir(self.bak.as_fd(), WORK) else { return Ok(()) };
        for (name, _) in fsio::names(base.as_fd()).context("cannot list the work directories")? {
            if let Err(error) = self.recover_work(base.as_fd(), &name) {
                report.fail(&self.store.path.join(BAK).join(WORK).join(&name).display().to_string(), &error);
            }
        }
        Ok(())
    }

    fn recover_drops(&self, dir: BorrowedFd, place: &str, report: &Report) -> Result<()> {
        for (name, kind) in fsio::names(dir).context("cannot list the dropped sidecars")? {
            let below = if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
            if let Some(stem) = Stem::of_sidecar(&name) {
                // Its move may not have reached the disk yet.
                let finished = self.flush_drop(place).and_then(|()| self.finish_remove(place, &stem));
                if let Err(error) = finished {
                    report.fail(&self.store.path.join(BAK).join(DROP).join(&below).display().to_string(), &error);
                }
            } else if kind != FileType::RegularFile
                && let Ok(sub) = fsio::open_dir(dir, &name)
            {
                self.recover_drops(sub.as_fd(), &below, report)?;
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
    let target = fsio::make_place(top, place)?;
    let companions = fsio::names(work)
        .context("cannot list the work directory")?
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| is_companion(&dump, name));
    for name in dump.files.iter().map(|file| file.name.clone()).chain(companions) {
        fsio::move_file(work, target.as_fd(), &name)?;
    }
    if let Some(why) = incomplete(target.as_fd(), &dump)? {
        bail!("{why}");
    }
    fsio::sync(target.as_fd())?;
    fsio::move_file(work, target.as_fd(), &stem.sidecar())?;
    fsio::sync(target.as_fd())?;
    discard(base, stem.as_str())
}

/// Removes a work directory: its sidecar first, its lock last, so that whoever comes in between sees what it is.
fn discard(base: BorrowedFd, name: &str) -> Result<()> {
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

    /// Hard-links all files and companions of `entry`, a dump of another store on the same file system, and makes sure
    /// that what was linked is what its sidecar says: it may have been replaced since it was read.
    pub fn link(&self, from: &Store, entry: &Entry) -> Result<()> {
        let source = fsio::open_place(from.top(), &entry.place)?;
        let names = fsio::names(source.as_fd()).context("cannot list a directory")?;
        let companions = names.into_iter().map(|(name, _)| name).filter(|name| is_companion(&entry.dump, name));
        for name in entry.dump.files.iter().map(|file| file.name.clone()).chain(companions) {
            match rustix::fs::linkat(&source, name.as_str(), &self.dir, name.as_str(), AtFlags::empty()) {
                Ok(()) => {}
                // NFS may say so of a link that it has just made itself; the check below tells.
                Err(Errno::EXIST) => {}
                Err(Errno::XDEV) => {
                    return Err(Kind::Refused.says(format!(
                        "{name} lies on another file system than {}: hard links cannot be made",
                        self.path.display()
                    )));
                }
                Err(Errno::NOENT) => bail!("its file {name} is missing"),
                Err(Errno::MLINK) => bail!("{name} has as many hard links as the file system allows"),
                Err(Errno::PERM) => {
                    bail!("cannot link {name}: not permitted (is it another user's? see fs.protected_hardlinks)")
                }
                Err(error) => return Err(error).with_context(|| format!("cannot link {name}")),
            }
        }
        match incomplete(self.dir.as_fd(), &entry.dump)? {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
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
