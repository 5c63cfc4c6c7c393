//! The database's files: opened, locked, read, and written all or nothing.
//!
//! The hazards are writers at the same time, and a crash between the renames of two files. All reading happens under a
//! shared lock, all writing under an exclusive one, on `vmtool-dblock`, which is never unlinked. The details are renamed
//! into place first, and `vmtool-statedb` last, as the commit: whatever a crash leaves between the two, a status never
//! runs ahead of its evidence. There is one exception. Where a name passes to another guest the statuses go first: new
//! details beside the old guest's ARCHIVED would hide the new one for good, while old details beside the new one's
//! BACKUP_NECESSARY are noticed again.
//!
//! A lock may be lost while it is held: a client that was cut off from its file server loses its locks and is not told,
//! and a server that takes two clients for one gives both of them the same lock. Therefore every holding has a number, the
//! generation, which is written into the lock's file when it is taken; the files to be renamed are called by it and are
//! never made twice; whoever comes next removes those of the generation before, *then* reads. So a rename that comes too
//! late finds nothing to rename. And just before the renames the lock is proved, see [`Lock::prove`].
//!
//! Who replaces a list that is in order says so in the lock's file, with a mark of that very file; whoever finds it unchanged
//! need not read it through, see [`Step::table`].
//!
//! The order of locks is database, then claim. Who holds a claim may wait for the database, because whoever has the
//! database never waits for a claim.

use anyhow::{Context, Error, Result, anyhow, bail};
use bak_common::calendar::Time;
use bak_common::fsio::{self, FileMark};
use bak_common::lock::{Hold, Holder, Lock, boot_id, holder};
use bak_common::report::{Kind, Report};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Answer, Orders, Request, Waiting};
use crate::format::{DETAILS, Damage, Details, LOCK, STATEDB, Table, VERSION, check_version, find, version_text};

const CLAIMS: &str = "claims";
/// All files that are ever replaced.
const FILES: [&str; 3] = [VERSION, DETAILS, STATEDB];
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
    held: Option<Held>,
}

/// The database's lock, and whether it is ours alone: then files may be replaced.
#[derive(Debug)]
pub(crate) enum Held {
    Shared { _lock: Lock },
    Exclusive { lock: Lock, me: Holder },
}

/// Whose turn it was.
#[derive(Debug)]
pub enum Turn {
    Ours(Step),
    Done(Answer),
}

/// What a file is called before it is renamed into its place.
fn temp(generation: u64, name: &str) -> String {
    format!(".{name}-{generation}")
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
        let held = self.lock(Hold::Exclusive)?;
        if fsio::stat(self.dir(), STATEDB)?.is_some() {
            return Ok(());
        }
        self.refuse_lost_list()?;
        let version = fsio::stat(self.dir(), VERSION)?.is_none().then(version_text);
        self.replace(
            &held,
            &[(VERSION, version.as_ref().map(|text| vec![text.as_bytes()])), (STATEDB, Some(Vec::new()))],
            false,
        )
    }

    fn refuse_lost_list(&self) -> Result<()> {
        match fsio::stat(self.dir(), DETAILS)?.filter(|stat| stat.st_size > 0) {
            None => Ok(()),
            Some(_) => Err(Kind::Refused.says(format!(
                "{} is missing or empty, and {DETAILS} beside it is not: was it deleted? --repair makes it anew",
                self.file(STATEDB)
            ))),
        }
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.inner.dir.as_fd()
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.inner.path.join(name).display().to_string()
    }

    pub(crate) fn what(&self) -> String {
        format!("the database {}", self.inner.path.display())
    }

    fn take_lock(&self, hold: Hold) -> Result<Lock> {
        Lock::take(self.dir(), LOCK, hold, self.inner.wait, &self.what())
    }

    pub(crate) fn lock(&self, hold: Hold) -> Result<Held> {
        let lock = self.take_lock(hold)?;
        match hold {
            Hold::Shared => Ok(Held::Shared { _lock: lock }),
            Hold::Exclusive => self.begin_writing(lock),
        }
    }

    /// Numbers this holding of the lock, and makes late renames of the one before fail.
    fn begin_writing(&self, lock: Lock) -> Result<Held> {
        let before = holder(self.dir(), LOCK).unwrap_or_default();
        let token = Some(uuid::Uuid::new_v4().simple().to_string());
        let (generation, wrote) = (before.generation.saturating_add(1), before.wrote);
        let me = Holder { generation, token, boot: boot_id(), wrote, ..Holder::me() };
        lock.sign(&me)?;
        lock.sync()?;
        for name in FILES {
            let temp = temp(before.generation, name);
            // What another client of a file server has made, this one may believe not to be there, and then does not
            // remove it: so it is made first.
            if before.boot.is_none() || before.boot != me.boot {
                fsio::touch(self.dir(), &temp)?;
            }
            fsio::unlink(self.dir(), &temp)?;
        }
        self.clear_older(before.generation)?;
        Ok(Held::Exclusive { lock, me })
    }

    /// Removes the files of generations before this one, left by a holder that died just as it was to do so.
    fn clear_older(&self, generation: u64) -> Result<()> {
        let old = |name: &str| {
            let (kind, number) = name.strip_prefix('.')?.rsplit_once('-')?;
            Some(FILES.contains(&kind) && number.parse::<u64>().ok()? < generation)
        };
        let names = fsio::names(self.dir()).with_context(|| format!("cannot list {}", self.what()))?;
        names
            .iter()
            .filter(|(name, _)| old(name) == Some(true))
            .try_for_each(|(name, _)| fsio::unlink(self.dir(), name))
    }

    /// Replaces those of the files that have new content, in this order, all or none but for a crash in between.
    /// `in_order`: the list of guests among them is as [`Table::keeps_order`] says.
    pub(crate) fn replace(
        &self,
        held: &Held,
        files: &[(&'static str, Option<Vec<&[u8]>>)],
        in_order: bool,
    ) -> Result<()> {
        let Held::Exclusive { lock, me } = held else { bail!("the database is locked for reading only") };
        let files = files.iter().filter_map(|(name, bytes)| Some((*name, temp(me.generation, name), bytes.as_ref()?)));
        let files: Vec<_> = files.collect();
        if files.is_empty() {
            return Ok(());
        }
        let replaced = files
            .iter()
            .try_for_each(|(_, temp, bytes)| fsio::write_new(self.dir(), temp, bytes))
            .and_then(|()| {
                let list = files.iter().find(|(name, ..)| *name == STATEDB);
                let wrote = match list {
                    Some((_, temp, _)) if in_order => FileMark::set(self.dir(), temp)?,
                    Some(_) => None,
                    None => me.wrote,
                };
                lock.prove(self.dir(), LOCK, &Holder { wrote, ..me.clone() })
            })
            .and_then(|()| files.iter().try_for_each(|(name, temp, _)| fsio::replace(self.dir(), temp, name)))
            .map_err(|error| match error.downcast_ref::<Errno>().copied() {
                // One of ours was there before us, or is no longer: somebody else has written as us, or cleared us away.
                Some(Errno::EXIST | Errno::NOENT) => {
                    Kind::Locked.of(error.context(format!("{} was taken over by another writer", self.what())))
                }
                _ => error,
            })
            .and_then(|()| fsio::sync(self.dir()))
            .with_context(|| format!("cannot write {}", self.what()));
        if replaced.is_err() {
            for (_, temp, _) in &files {
                // Whoever comes next removes what cannot be removed now.
                let _ = fsio::unlink(self.dir(), temp);
            }
        }
        replaced
    }

    /// Locks this database for one step.
    pub(crate) fn step(&self, mode: Mode) -> Result<Step> {
        self.step_with(self.lock(if mode == Mode::Write { Hold::Exclusive } else { Hold::Shared })?)
    }

    /// Locks this database to carry out `request`, unless somebody does so while we wait.
    pub(crate) fn turn(&self, request: &Request) -> Result<Turn> {
        if let Some(lock) = Lock::try_take(self.dir(), LOCK, Hold::Exclusive)? {
            return Ok(Turn::Ours(self.step_with(self.begin_writing(lock)?)?));
        }
        // Where no order can be left, as on a full disk, we wait like all others.
        let waiting = Waiting::leave(self.dir(), request).ok().flatten();
        let until = Instant::now() + self.inner.wait;
        // Those who wait for an answer wake up together, as all may look at once; only who has none waits to be alone.
        let looking = self.take_lock_for(Hold::Shared, until, waiting.as_ref())?;
        let answer = || Ok::<_, Error>(waiting.as_ref().map(Waiting::answer).transpose()?.flatten());
        if let Some(answer) = answer()? {
            return Ok(Turn::Done(answer));
        }
        drop(looking);
        let lock = self.take_lock_for(Hold::Exclusive, until, waiting.as_ref())?;
        if let Some(answer) = answer()? {
            return Ok(Turn::Done(answer));
        }
        drop(waiting);
        Ok(Turn::Ours(self.step_with(self.begin_writing(lock)?)?))
    }

    /// Takes the lock, waiting until `until`; longer where somebody is carrying out the order that we left.
    fn take_lock_for(&self, hold: Hold, until: Instant, waiting: Option<&Waiting>) -> Result<Lock> {
        let take = |wait| Lock::take(self.dir(), LOCK, hold, wait, &self.what());
        match (take(until.saturating_duration_since(Instant::now())), waiting) {
            (Err(error), Some(waiting)) if !waiting.withdraw() => take(self.inner.wait)
                .map_err(|_| Kind::Locked.of(error.context("another program is carrying this out, or died of it"))),
            (taken, _) => taken,
        }
    }

    fn step_with(&self, held: Held) -> Result<Step> {
        if !self.has_version()? && fsio::stat(self.dir(), STATEDB)?.is_some() {
            return Err(Kind::Refused.says(format!(
                "{} is missing: if this is a database of version 1.0, put the line `DB_VERSION: 1.0` there, or --repair",
                self.file(VERSION)
            )));
        }
        // Nothing of bak's leaves an empty list beside details: see `Step::commit`.
        if fsio::stat(self.dir(), STATEDB)?.is_none_or(|stat| stat.st_size == 0) {
            self.refuse_lost_list()?;
        }
        Ok(self.as_it_is(held))
    }

    pub(crate) fn as_it_is(&self, held: Held) -> Step {
        Step { db: Some(self.clone()), path: self.inner.path.clone(), held: Some(held) }
    }

    /// Whether there is a version; one that this program does not know is refused.
    pub(crate) fn has_version(&self) -> Result<bool> {
        let Some(text) = fsio::read_file(self.dir(), VERSION, 1 << 16)? else { return Ok(false) };
        check_version(&String::from_utf8_lossy(&text))
            .map_err(|error| Kind::Refused.says(format!("{}: {error:#}", self.file(VERSION))))?;
        Ok(true)
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

/// The error for a database that is to be used as it is, and is not there.
pub(crate) fn missing(path: &Path) -> anyhow::Error {
    Kind::Usage.says(format!(
        "there is no database at {}: `bak-state observe` makes it, or name another by --db",
        path.display()
    ))
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
            None if mode == Mode::Plan => Ok(Self { db: None, path: path.to_owned(), held: None }),
            None => Err(missing(path)),
        }
    }

    /// As [`Step::begin`], to write; unless somebody carries out `request` while we wait.
    pub fn begin_or_done(path: &Path, wait: Duration, request: &Request) -> Result<Turn> {
        Db::open(path, wait)?.turn(request)
    }

    /// What those who wait want to be done, if anything may be written.
    pub fn orders(&self) -> Result<Orders> {
        match (&self.db, &self.held) {
            (Some(db), Some(Held::Exclusive { .. })) => Orders::read(db.dir()),
            _ => Ok(Orders::default()),
        }
    }

    pub(crate) fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(db) = &self.db else { return Ok(None) };
        let read = fsio::read_file(db.dir(), name, FILE_MAX);
        read.with_context(|| format!("cannot read the database {}", self.path.display()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.read_if_there(name)?.unwrap_or_default())
    }

    pub fn statedb(&self) -> Result<Vec<u8>> {
        self.read(STATEDB)
    }

    /// What `statedb` says. Not read through if it is the very file that the last writer left, who knew it to be in order.
    pub fn table<'a>(&self, statedb: &'a [u8]) -> Result<Table<'a>> {
        let Some(db) = &self.db else { return Ok(Table::parse(statedb)) };
        let wrote = match &self.held {
            Some(Held::Exclusive { me, .. }) => me.wrote,
            _ => holder(db.dir(), LOCK).and_then(|last| last.wrote),
        };
        let known = wrote.is_some() && wrote == FileMark::of(db.dir(), STATEDB)?;
        Ok(if known { Table::known(statedb) } else { Table::parse(statedb) })
    }

    pub fn details(&self) -> Result<Vec<u8>> {
        self.read(DETAILS)
    }

    /// The details of a few guests, read without the others where that is possible.
    pub fn details_of(&self, wanted: &HashSet<&str>) -> Result<Details> {
        const FEW: usize = 16;
        let mut found = Details::default();
        let file = match &self.db {
            Some(db) if wanted.len() <= FEW => fsio::open_file(db.dir(), DETAILS)?,
            _ => None,
        };
        if let Some(file) = file {
            let len = file.metadata().context("cannot look at the details")?.len();
            let read = |at, len| -> Result<Vec<u8>> {
                let mut bytes = vec![0; len];
                let read = file.read_at(&mut bytes, at).context("cannot read the details")?;
                bytes.truncate(read);
                Ok(bytes)
            };
            for vm in wanted {
                if let Some(detail) = find(len, vm, read)? {
                    found.set(detail);
                }
            }
        }
        if found.by_vm.len() < wanted.len() {
            found = Details::parse_some(&self.details()?, |vm| wanted.contains(vm));
        }
        Ok(found)
    }

    fn damage(&self, damage: &Damage) -> String {
        format!("{}:{}", self.path.join(damage.file).display(), damage.line)
    }

    /// Refuses to go on where a line could not be read: writing would lose it.
    pub fn sound(&self, damage: &[Damage]) -> Result<()> {
        let Some(first) = damage.first() else { return Ok(()) };
        let place = self.damage(first);
        Err(Kind::Refused.says(format!(
            "{place}: {}; nothing is written until that line is mended (--repair leaves it out)",
            first.why
        )))
    }

    /// Reports what could not be read.
    pub fn report(&self, damage: &[Damage], report: &Report) {
        for damage in damage {
            report.fail(&self.damage(damage), &anyhow!("{}", damage.why));
        }
    }

    /// The directory of the claims, if there are any.
    pub(crate) fn claims(&self) -> Result<Option<OwnedFd>> {
        self.db.as_ref().map_or(Ok(None), Db::claims)
    }

    /// Whether somebody holds the claim of `vm`, by its encoded name. A shared lock tells, so that two who look do not
    /// see each other.
    pub fn held(&self, encoded: &str) -> Result<bool> {
        let Some(claims) = self.claims()? else { return Ok(false) };
        if fsio::stat(claims.as_fd(), encoded)?.is_none() {
            return Ok(false);
        }
        Ok(Lock::try_take(claims.as_fd(), encoded, Hold::Shared)?.is_none())
    }

    /// When the claim of `vm` was last taken, by its encoded name; `None` if it never was.
    pub fn claimed_at(&self, encoded: &str) -> Result<Option<Time>> {
        let Some(claims) = self.claims()? else { return Ok(None) };
        Ok(fsio::stat(claims.as_fd(), encoded)?.and_then(|stat| Time::from_unix(stat.st_mtime)))
    }

    /// Writes what has changed: the statuses, and the details if there are any. In a plan nothing.
    pub fn commit(&self, table: &Table, details: Option<Vec<u8>>, first: First) -> Result<()> {
        let (Some(db), Some(held @ Held::Exclusive { .. })) = (&self.db, &self.held) else { return Ok(()) };
        if !table.damage.is_empty() {
            bail!("a damaged list of guests must not be written");
        }
        let statuses = table.to_pieces();
        let statuses = statuses.as_ref().map(|pieces| pieces.iter().map(|piece| piece.as_bytes()).collect());
        let mut files = [(DETAILS, details.as_deref().map(|bytes| vec![bytes])), (STATEDB, statuses)];
        // Of the first guests, too: an empty list beside details is what is left where the list was lost.
        if first == First::Statuses || table.was_empty() {
            files.reverse();
        }
        db.replace(held, &files, table.keeps_order())
    }
}
