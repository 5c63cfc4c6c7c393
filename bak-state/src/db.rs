//! The database's files: opened, locked, read, and written all or nothing.
//!
//! The hazards are writers at the same time, and a crash between the renames of two files. All reading happens under a
//! shared lock, all writing under an exclusive one, on `vmtool-dblock`, which is never unlinked. The details are renamed
//! into place first, and `vmtool-statedb` last, as the commit: whatever a crash leaves between the two, a status never
//! runs ahead of its evidence. There is one exception. Where a name passes to another guest the statuses go first: new
//! details beside the old guest's ARCHIVED would hide the new one for good, while old details beside the new one's
//! BACKUP_NECESSARY are noticed again.
//!
//! The order of locks is database, then claim. Who holds a claim may wait for the database, because whoever has the
//! database never waits for a claim.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::fsio;
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::report::{Kind, Report};
use rustix::io::Errno;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::format::{DETAILS, Damage, LOCK, STATEDB, Table, VERSION, check_version, version_text};

const CLAIMS: &str = "claims";
const TEMP: &str = ".vmtool-new";
const FILE_MAX: u64 = 1 << 30;

/// A database that was opened. All access goes through its open directory.
#[derive(Clone, Debug)]
pub struct Db {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    dir: OwnedFd,
    wait: Duration,
}

/// What a locked step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Read,
    /// As a write, but nothing is written.
    Plan,
    Write,
}

/// Which file is renamed into place first: see the head of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    Details,
    Statuses,
}

/// The database while it is locked.
#[derive(Debug)]
pub struct Step {
    /// Absent in the plan for a database that is not there yet.
    db: Option<Db>,
    path: PathBuf,
    write: bool,
    _lock: Option<Lock>,
}

impl Db {
    /// Opens the database in `dir`, made if it is not there; its parent must be. Every step waits up to `wait` for its
    /// lock.
    pub fn open(dir: &Path, wait: Duration) -> Result<Self> {
        match std::fs::create_dir(dir) {
            Ok(()) => {
                let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let flushed = File::open(parent).and_then(|parent| parent.sync_all());
                flushed.with_context(|| format!("cannot flush {}", parent.display()))?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Kind::Usage.says(format!("cannot make the database {}: {error}", dir.display())));
            }
        }
        let db = Self::existing(dir, wait)?.with_context(|| format!("{} has vanished", dir.display()))?;
        if fsio::stat(db.dir(), STATEDB)?.is_none() {
            db.found()?;
        }
        Ok(db)
    }

    /// Opens a database without making anything; `None` if its directory is not there.
    pub fn existing(path: &Path, wait: Duration) -> Result<Option<Self>> {
        let wrong = |why: String| Kind::Usage.says(format!("cannot open the database {}: {why}", path.display()));
        let dir = match File::open(path) {
            Ok(dir) => dir,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let stat = rustix::fs::fstat(&dir).context("cannot look at the database")?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
            return Err(wrong("it is not a directory".into()));
        }
        if let Some(why) = fsio::foreign(&stat) {
            return Err(Kind::Refused.says(format!("the database {} {why}", path.display())));
        }
        Ok(Some(Self { inner: Arc::new(Inner { path: path.to_owned(), dir: dir.into(), wait }) }))
    }

    /// Makes the files of a new database: the version first, so that there is never a list without one.
    fn found(&self) -> Result<()> {
        let _lock = self.lock(Hold::Exclusive)?;
        if fsio::stat(self.dir(), STATEDB)?.is_some() {
            return Ok(());
        }
        self.refuse_lost_list()?;
        if fsio::stat(self.dir(), VERSION)?.is_none() {
            fsio::write_whole(self.dir(), TEMP, VERSION, version_text().as_bytes())?;
        }
        fsio::write_whole(self.dir(), TEMP, STATEDB, b"")
    }

    fn refuse_lost_list(&self) -> Result<()> {
        match fsio::stat(self.dir(), DETAILS)? {
            None => Ok(()),
            Some(_) => Err(Kind::Refused
                .says(format!("{} is missing, and {DETAILS} beside it is not: was it deleted?", self.file(STATEDB)))),
        }
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.inner.dir.as_fd()
    }

    fn file(&self, name: &str) -> String {
        self.inner.path.join(name).display().to_string()
    }

    fn lock(&self, hold: Hold) -> Result<Lock> {
        let what = format!("the database {}", self.inner.path.display());
        let mut lock = Lock::take(self.dir(), LOCK, hold, self.inner.wait, &what)?;
        if hold == Hold::Exclusive {
            lock.sign(&Holder::me())?;
        }
        Ok(lock)
    }

    /// Locks this database for one step.
    pub(crate) fn step(&self, mode: Mode) -> Result<Step> {
        let lock = self.lock(if mode == Mode::Write { Hold::Exclusive } else { Hold::Shared })?;
        if let Some(text) = fsio::read_file(self.dir(), VERSION, 1 << 16)? {
            check_version(&String::from_utf8_lossy(&text))
                .map_err(|error| Kind::Refused.says(format!("{}: {error:#}", self.file(VERSION))))?;
        } else if fsio::stat(self.dir(), STATEDB)?.is_some() {
            return Err(Kind::Refused.says(format!(
                "{} is missing: if this is a database of version 1.0, put the line `DB_VERSION: 1.0` there",
                self.file(VERSION)
            )));
        }
        if fsio::stat(self.dir(), STATEDB)?.is_none() {
            self.refuse_lost_list()?;
        }
        Ok(Step {
            db: Some(self.clone()),
            path: self.inner.path.clone(),
            write: mode == Mode::Write,
            _lock: Some(lock),
        })
    }

    /// The directory of the claims, if there are any.
    fn claims(&self) -> Result<Option<OwnedFd>> {
        match fsio::open_dir(self.dir(), CLAIMS) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).context("cannot open the directory of claims"),
        }
    }

    pub(crate) fn make_claims(&self) -> Result<OwnedFd> {
        fsio::make_dir(self.dir(), CLAIMS)
    }
}

impl Step {
    /// Locks the database at `path`: which must be there to be read, is made to be written, and may be missing in a plan.
    pub fn begin(path: &Path, wait: Duration, mode: Mode) -> Result<Self> {
        let db = match mode {
            Mode::Write => Some(Db::open(path, wait)?),
            Mode::Read | Mode::Plan => Db::existing(path, wait)?,
        };
        match db {
            Some(db) => db.step(mode),
            None if mode == Mode::Plan => Ok(Self { db: None, path: path.to_owned(), write: false, _lock: None }),
            None => Err(Kind::Usage.says(format!(
                "there is no database at {}: `bak-state observe` makes it, or name another by --db",
                path.display()
            ))),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let Some(db) = &self.db else { return Ok(Vec::new()) };
        let read = fsio::read_file(db.dir(), name, FILE_MAX);
        Ok(read.with_context(|| format!("cannot read the database {}", self.path.display()))?.unwrap_or_default())
    }

    pub fn statedb(&self) -> Result<Vec<u8>> {
        self.read(STATEDB)
    }

    pub fn details(&self) -> Result<Vec<u8>> {
        self.read(DETAILS)
    }

    fn damage(&self, damage: &Damage) -> String {
        format!("{}:{}", self.path.join(damage.file).display(), damage.line)
    }

    /// Refuses to go on where a line could not be read: writing would lose it.
    pub fn sound(&self, damage: &[Damage]) -> Result<()> {
        let Some(first) = damage.first() else { return Ok(()) };
        let place = self.damage(first);
        Err(Kind::Refused.says(format!("{place}: {}; nothing is written until that line is mended", first.why)))
    }

    /// Reports what could not be read.
    pub fn report(&self, damage: &[Damage], report: &Report) {
        for damage in damage {
            report.fail(&self.damage(damage), &anyhow!("{}", damage.why));
        }
    }

    /// Whether somebody holds the claim of `vm`, by its encoded name. A shared lock tells, so that two who look do not
    /// see each other.
    pub fn held(&self, encoded: &str) -> Result<bool> {
        let Some(db) = &self.db else { return Ok(false) };
        let Some(claims) = db.claims()? else { return Ok(false) };
        if fsio::stat(claims.as_fd(), encoded)?.is_none() {
            return Ok(false);
        }
        Ok(Lock::try_take(claims.as_fd(), encoded, Hold::Shared)?.is_none())
    }

    /// Writes what has changed: the statuses, and the details if there are any.
    pub fn commit(&self, table: &Table, details: Option<Vec<u8>>, first: First) -> Result<()> {
        let Some(db) = self.db.as_ref().filter(|_| self.write) else { return Ok(()) };
        if !table.damage.is_empty() {
            bail!("a damaged list of guests must not be written");
        }
        let statuses = table.to_text().map(String::into_bytes);
        let files = [(DETAILS, details), (STATEDB, statuses)];
        let write = |(name, bytes): &(&str, Option<Vec<u8>>)| match bytes {
            Some(bytes) => fsio::write_whole(db.dir(), TEMP, name, bytes),
            None => Ok(()),
        };
        match first {
            First::Details => files.iter().try_for_each(write),
            First::Statuses => files.iter().rev().try_for_each(write),
        }
    }
}
