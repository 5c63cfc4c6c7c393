//! A store: a directory tree of dumps. The hazard is a crash at any moment, by us or by the machine.
//!
//! The invariant: **a dump exists in a store if and only if its sidecar does.** What keeps it is one order of operations
//! for adding, one for removing, and one recovery for both; nothing else creates, links, moves or deletes a dump's files.
//!
//! *Add.* The files are made in `.bak/work/<stem>/`, whose lock their maker (and the programs it started) hold, and are
//! flushed there. Then, under the store's lock, the sidecar is flushed there too: that is the decision. Then the files
//! move to their place by a call that never replaces, the directory is flushed, and the sidecar follows likewise.
//! Hard links of many dumps are added together, in the same order, with one decision for all of them: see [`link`]. Files
//! that others made stay where they are and get a sidecar: see [`adopt`].
//!
//! *Remove.* Under the store's lock the sidecar moves to the same place below `.bak/drop/`, and both directories are
//! flushed: that is the decision. Then the files go, the directory is flushed, and last the dropped sidecar goes.
//!
//! *Recover.* Whoever takes the store's lock finishes what was decided and discards what was not: a work directory
//! without a sidecar whose lock is free. Nothing else is ever swept.

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

mod adopt;
mod annotate;
mod change;
mod copy;
mod full;
mod going;
mod link;
mod log;
mod looks;
mod place;
mod remove;

pub use adopt::{Adopted, Adoption, Busy, Found};
pub use change::{Locked, Work};
pub use link::{NoLink, Wanted};
pub use looks::{Looks, PROTECTED};

use crate::fsio;
use crate::lock::{Hold, Holder, Lock};
use crate::name::{DumpId, GuestName, Stem, is_component, printable};
use crate::record::Dump;
use crate::report::{Kind, Report};

/// Where a store keeps what is not yet, or no longer, a dump.
pub const BAK: &str = ".bak";
const LOCK: &str = "lock";
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
    /// The same, but for what bak-verify has found: that may be asked anew, and hides nothing of this.
    pub unfit: Option<String>,
    /// What its files are, in their order, as far as they could be looked at: a file put in the place of another of the
    /// same size is told by it.
    pub inodes: Vec<Inode>,
}

/// Device and number.
pub type Inode = (u64, u64);

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
    /// Symbolic links to directories, by their path below the top: they are not followed.
    pub links: Vec<String>,
}

impl Entry {
    /// `incomplete` is why its files are not as its sidecar says, if they are not.
    pub fn new(dump: Dump, place: String, incomplete: Option<String>, inodes: Vec<Inode>) -> Self {
        let unfit = dump.unfit().or(incomplete);
        let fault = unfit.clone().or_else(|| dump.found_bad());
        Self { dump, place, fault, unfit, inodes }
    }

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
            let what = if bad.stem.is_some() { "; mend it or move it away" } else { "" };
            report.fail(&top.join(bad.path()).display().to_string(), &anyhow!("{:#}{what}", bad.error));
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
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
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
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                let text = format!("cannot make the directory {}: {error}", path.display());
                // A full disk is no fault of who called.
                let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
                return Err(if full { anyhow!(text) } else { Kind::Usage.says(text) });
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
            Ok(fd) => fsio::own(fd, &self.path.join(BAK).display().to_string()).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", self.path.join(BAK).display())),
        }
    }

    /// Opens `.bak`, made if it is not there.
    pub fn make_bak(&self) -> Result<OwnedFd> {
        let failed = || format!("cannot use the store {}", self.path.display());
        fsio::make_dir(self.top(), BAK).with_context(failed)
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
        self.walk_all(&mut |sight| match sight {
            Sight::Sidecar(dir, place, stem) => match self.entry_of(dir, place, stem) {
                Some(Ok(entry)) => listing.dumps.push(entry),
                Some(Err(bad)) => listing.unreadable.push(bad),
                None => {}
            },
            Sight::Lost(bad) => listing.unreadable.push(bad),
            Sight::Link(link) => listing.links.push(link),
        });
        listing.sort();
        listing
    }

    /// The same, one by one and in any order, for whoever cannot keep it all.
    pub fn visit(&self, each: &mut dyn FnMut(Result<Entry, Unreadable>)) {
        self.walk_all(&mut |sight| match sight {
            Sight::Sidecar(dir, place, stem) => self.entry_of(dir, place, stem).into_iter().for_each(&mut *each),
            Sight::Lost(bad) => each(Err(bad)),
            Sight::Link(_) => {}
        });
    }

    /// The place and the stem of each sidecar that has a name here; none is read.
    fn visit_stems(&self, each: &mut dyn FnMut(&str, Stem)) {
        self.walk_all(&mut |sight| {
            if let Sight::Sidecar(_, place, stem) = sight {
                each(place, stem);
            }
        });
    }

    fn entry_of(&self, dir: BorrowedFd, place: &str, stem: Stem) -> Option<Result<Entry, Unreadable>> {
        match self.entry(dir, place, &stem) {
            Ok(entry) => entry.map(Ok),
            Err(error) => Some(Err(Unreadable { place: place.into(), stem: Some(stem), error })),
        }
    }

    fn walk_all(&self, see: &mut dyn FnMut(Sight)) {
        match self.top.try_clone() {
            Ok(top) => walk((top, "", 0), see),
            Err(error) => see(Sight::Lost(Unreadable { place: String::new(), stem: None, error: error.into() })),
        }
    }

    /// The dumps at this place, not below it, whose stem is `wanted`, in any order; what cannot be read is not among them.
    pub fn list_in(&self, place: &str, wanted: &dyn Fn(&Stem) -> bool) -> Result<Vec<Entry>> {
        let dir = match fsio::open_place(self.top(), place) {
            Ok(dir) => dir,
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = fsio::names(dir.as_fd())
            .with_context(|| format!("cannot list the directory {}", self.path.join(place).display()))?;
        let stems = names.iter().filter_map(|(name, _)| Stem::of_sidecar(name)).filter(|stem| wanted(stem));
        Ok(stems.filter_map(|stem| self.entry(dir.as_fd(), place, &stem).ok().flatten()).collect())
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
        let mut inodes = Vec::new();
        let incomplete = incomplete(dir, &dump, &mut inodes)?;
        dump.dir = Some(self.path.join(place).to_string_lossy().into_owned());
        Ok(Some(Entry::new(dump, place.to_owned(), incomplete, inodes)))
    }

    /// Opens a data file of a dump for reading.
    pub fn open_file(&self, entry: &Entry, name: &str) -> Result<File> {
        ensure!(entry.dump.stem.owns(name), "{} is no file of {}", printable(name), entry.dump.id);
        let dir = fsio::open_place(self.top(), &entry.place)?;
        fsio::open_file(dir.as_fd(), name)?.with_context(|| format!("{} is gone", printable(name)))
    }

    /// The names of all files of a dump that are there, companions included: all but the sidecar.
    pub fn names(&self, entry: &Entry) -> Result<Vec<String>> {
        let dir = fsio::open_place(self.top(), &entry.place)?;
        let files = entry.dump.files.iter().map(|file| file.name.clone());
        Ok(files.chain(companions(dir.as_fd(), &entry.dump)?).collect())
    }

    /// Takes the store's lock and recovers; what cannot be recovered goes to `report` and stays for the next time.
    pub fn lock(&self, wait: Duration, report: &Report) -> Result<Locked<'_>> {
        let bak = self.make_bak()?;
        let what = format!("the store {}", self.path.display());
        let lock = Lock::take(bak.as_fd(), LOCK, Hold::Exclusive, wait, &what).map_err(|e| self.where_full(e))?;
        // Only so that others can say who holds it: a full disk must not keep bak-prune from making room.
        let _ = lock.sign(&Holder::me());
        let locked = Locked { store: self, bak, _lock: lock };
        locked.recover(report)?;
        Ok(locked)
    }
}

/// What is met on a walk through a store.
enum Sight<'a> {
    /// Its directory, that one's path below the top, and its stem.
    Sidecar(BorrowedFd<'a>, &'a str, Stem),
    /// A directory that cannot be read.
    Lost(Unreadable),
    /// A symbolic link to a directory, by its path below the top.
    Link(String),
}

fn walk((dir, place, depth): (OwnedFd, &str, usize), see: &mut dyn FnMut(Sight)) {
    let lost = |place: &str, error| Sight::Lost(Unreadable { place: place.into(), stem: None, error });
    if depth > DEPTH_MAX {
        return see(lost(place, anyhow!("directories are nested too deeply")));
    }
    let names = match fsio::names(dir.as_fd()) {
        Ok(names) => names,
        Err(error) => return see(lost(place, anyhow!("cannot list the directory: {error}"))),
    };
    for (name, kind) in names.into_iter().filter(|(name, _)| is_component(name)) {
        let below = || if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
        if let Some(stem) = Stem::of_sidecar(&name) {
            see(Sight::Sidecar(dir.as_fd(), place, stem));
        } else if matches!(kind, FileType::Directory | FileType::Unknown) {
            match fsio::open_dir(dir.as_fd(), &name) {
                Ok(sub) => walk((sub, &below(), depth + 1), see),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => see(lost(&below(), anyhow!("cannot open the directory: {error}"))),
            }
        } else if kind == FileType::Symlink && fsio::leads_to_dir(dir.as_fd(), &name) {
            see(Sight::Link(below()));
        }
    }
}

/// Which of a dump's files is not there as its sidecar says; what they are goes to `inodes`.
fn incomplete(dir: BorrowedFd, dump: &Dump, inodes: &mut Vec<Inode>) -> Result<Option<String>> {
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
        inodes.push((stat.st_dev, stat.st_ino));
    }
    Ok(None)
}

/// Makes sure that all of a dump's files are there as its sidecar says.
fn complete(dir: BorrowedFd, dump: &Dump) -> Result<()> {
    match incomplete(dir, dump, &mut Vec::new())? {
        Some(why) => bail!("{why}"),
        None => Ok(()),
    }
}

/// What lies beside a dump and belongs to it: its log, its notes, its marks. Carried and removed with it, never hashed.
fn companions(dir: BorrowedFd, dump: &Dump) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in companion_names(dump) {
        if fsio::stat(dir, &name)?.is_some() {
            found.push(name);
        }
    }
    Ok(found)
}

/// What companions of this dump would be called.
pub fn companion_names(dump: &Dump) -> impl Iterator<Item = String> {
    let of_files =
        dump.files.iter().flat_map(|file| [".notes", ".protected"].map(|ending| format!("{}{ending}", file.name)));
    let all = of_files.chain([dump.stem.log()]);
    // What a dump calls its own file is none.
    all.filter(|name| dump.files.iter().all(|file| file.name != *name))
}
