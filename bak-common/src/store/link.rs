//! Hard links of another store's dumps: how an outbox is filled.
//!
//! What can go wrong is that a file is not any more what it was when it was chosen: removed, replaced, become a symbolic
//! link. So every link is looked at once it is made, and it, not its name, must be what was chosen.
//!
//! Thousands of dumps may be linked at once, and one after the other each would cost eight flushes. So they are added
//! together, under the store's lock, which is held all the time: in `.bak/work/.adding/` all files are linked and all
//! sidecars written; these and the directory are flushed; then the directory is renamed to `.added-1`, flushed too. That
//! one name is the decision for all of them. Then the dumps are put in their places: the files of all, flushed, then the
//! sidecars of all, flushed. Each dump goes to the directory of its guest, which is how recovery knows where.

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::change::{DROP, Locked, WORK, Work, discard};
use super::place::{Placing, put_in_place};
use super::{Entry, SIDECAR_MAX, Store, companions};
use crate::fsio;
use crate::name::{Stem, printable};
use crate::record::Dump;
use crate::report::Kind;

const ADDING: &str = ".adding";
const ADDED: &str = ".added-";
/// So many are added at once: of each, a file and a directory are open.
const BATCH: usize = 100;

/// A dump of another store that is to be linked.
#[derive(Debug)]
pub struct Wanted {
    /// As it was when that was decided.
    pub entry: Entry,
    /// What its sidecar will say here; the same dump.
    pub dump: Dump,
}

/// Whether a work directory holds dumps that were decided together.
pub(super) fn is_decided(name: &str) -> bool {
    name.starts_with(ADDED)
}

impl Locked<'_> {
    /// Adds hard links of dumps of the store `from`, each in the directory of its guest. One result each, in order: when
    /// this returns, those that went well exist, and of the others nothing remains.
    pub fn link(&self, from: &Store, wanted: &[Wanted]) -> Vec<Result<()>> {
        wanted.chunks(BATCH).flat_map(|batch| self.link_batch(from, batch)).collect()
    }

    fn link_batch(&self, from: &Store, batch: &[Wanted]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let put = self.decide(from, batch, &mut results).and_then(|decided| {
            let Some(Decided { base, dir, name, placings }) = decided else { return Ok(()) };
            let at = results.iter().enumerate().filter(|(_, result)| result.is_ok());
            let at: Vec<usize> = at.map(|(at, _)| at).collect();
            let put = put_in_place(dir.as_fd(), placings);
            let all = put.iter().all(Result::is_ok);
            for (at, put) in at.into_iter().zip(put) {
                results[at] = put.context("it is complete but not in its place; the next run will try again");
            }
            if all { discard(base.as_fd(), &name) } else { Ok(()) }
        });
        if let Err(error) = put {
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(anyhow!("{error:#}"));
            }
        }
        results
    }

    /// Makes all that is wanted, up to the decision; `None` if nothing could be made. Failures of single dumps go to
    /// `results`.
    fn decide<'a>(&self, from: &Store, batch: &'a [Wanted], results: &mut [Result<()>]) -> Result<Option<Decided<'a>>> {
        let base = fsio::make_dir(self.bak.as_fd(), WORK)?;
        let drop = fsio::make_dir(self.bak.as_fd(), DROP)?;
        discard(base.as_fd(), ADDING)?;
        fsio::make_dir_unflushed(base.as_fd(), ADDING)?;
        let dir = fsio::open_dir(base.as_fd(), ADDING).context("cannot open a work directory")?;
        let others = fsio::names(base.as_fd()).context("cannot list the work directories")?;
        let others = others.into_iter().map(|(name, _)| name).collect();
        let placings = match self.make(from, batch, results, &Dirs { others, drop: &drop, dir: &dir }) {
            Ok(placings) if !placings.is_empty() => placings,
            made => {
                discard(base.as_fd(), ADDING)?;
                return made.map(|_| None);
            }
        };
        let name = free_name(base.as_fd())?;
        let decided = rustix::fs::renameat(&base, ADDING, &base, name.as_str()).context("cannot decide it");
        if let Err(error) = decided.and_then(|()| fsio::sync(base.as_fd())) {
            // Undecided or half decided; the decision must not outlive this failure.
            let _ = rustix::fs::renameat(&base, name.as_str(), &base, ADDING);
            discard(base.as_fd(), ADDING)?;
            return Err(error);
        }
        Ok(Some(Decided { base, dir, name, placings }))
    }

    /// Everything but the decision, flushed; what there is to decide.
    fn make<'a>(
        &self,
        from: &Store,
        batch: &'a [Wanted],
        results: &mut [Result<()>],
        dirs: &Dirs,
    ) -> Result<Vec<Placing<'a>>> {
        let mut sidecars = Vec::new();
        let mut stems = HashSet::new();
        for (one, result) in batch.iter().zip(results.iter_mut()) {
            // Two guests may be called the same and have been dumped in the same second.
            if !stems.insert(&one.dump.stem) {
                *result = Err(anyhow!("another dump is called {}, too", one.dump.stem));
                sidecars.push(None);
                continue;
            }
            let made = self.make_one(from, one, dirs);
            sidecars.push(keep(made, result, dirs, one)?);
        }
        // All are written out before the first is waited for.
        for (sidecar, _) in sidecars.iter().flatten() {
            let _ = rustix::fs::fadvise(sidecar, 0, None, rustix::fs::Advice::DontNeed);
        }
        let mut placings = Vec::new();
        for ((one, result), sidecar) in batch.iter().zip(results.iter_mut()).zip(sidecars) {
            if let Some((sidecar, placing)) = sidecar
                && keep(fsio::sync(sidecar.as_fd()), result, dirs, one)?.is_some()
            {
                placings.push(placing);
            }
        }
        if !placings.is_empty() {
            for dir in [self.store.top(), dirs.drop.as_fd(), dirs.dir.as_fd()] {
                fsio::sync(dir)?;
            }
        }
        Ok(placings)
    }

    /// Links one dump's files and writes its sidecar, which is returned, not flushed.
    fn make_one<'a>(&self, from: &Store, one: &'a Wanted, dirs: &Dirs) -> Result<(File, Placing<'a>)> {
        let (entry, dump) = (&one.entry, &one.dump);
        ensure!(entry.dump.same(dump), "{} is not {}", dump.id, entry.dump.id);
        if dirs.others.contains(dump.stem.as_str()) {
            return Err(Kind::Locked.says(format!("{} is being made already", dump.stem)));
        }
        let companions = link_files(from, entry, dirs.dir.as_fd())?;
        let place = place(dump);
        let is_new = fsio::make_dir_unflushed(self.store.top(), &place)?;
        let target = fsio::open_place(self.store.top(), &place)?;
        let names = dump.files.iter().map(|file| file.name.clone()).chain([dump.stem.sidecar()]);
        for name in names.chain(companions.clone()).filter(|_| !is_new) {
            ensure!(
                fsio::stat(target.as_fd(), &name)?.is_none(),
                "{} is there already: nothing is overwritten; move that file away",
                printable(&name)
            );
        }
        // As for any dump: removing must not need room.
        fsio::make_dir_unflushed(dirs.drop.as_fd(), &place)?;
        let text = dump.to_sidecar();
        Dump::from_sidecar(&dump.stem, &text).context("its sidecar could not be read back")?;
        let sidecar = fsio::write_unflushed(dirs.dir.as_fd(), &dump.stem.sidecar(), &text)?;
        Ok((sidecar, Placing { dump, target, companions }))
    }

    /// Puts dumps that were decided together in their places, and clears their work directory away once all are there.
    pub(super) fn finish_links(&self, base: BorrowedFd, name: &str) -> Result<()> {
        let dir = fsio::open_dir(base, name).context("cannot open a work directory")?;
        let mut dumps = Vec::new();
        for (file, _) in fsio::names(dir.as_fd()).context("cannot list a work directory")? {
            let Some(stem) = Stem::of_sidecar(&file) else { continue };
            let Some(text) = fsio::read_file(dir.as_fd(), &file, SIDECAR_MAX)? else { continue };
            dumps.push(Dump::from_sidecar(&stem, &text).with_context(|| format!("cannot read {}", printable(&file)))?);
        }
        let placing = |dump| Placing::of(self.store.top(), dir.as_fd(), dump, &place(dump));
        let placings = dumps.iter().map(placing).collect::<Result<Vec<_>>>()?;
        for (dump, result) in dumps.iter().zip(put_in_place(dir.as_fd(), placings)) {
            result.with_context(|| format!("{} is complete but not in its place", dump.id))?;
        }
        discard(base, name)
    }
}

/// The directories in which dumps are added together.
struct Dirs<'a> {
    /// Names of other work directories.
    others: HashSet<String>,
    drop: &'a OwnedFd,
    dir: &'a OwnedFd,
}

/// Dumps that were decided together, in their work directory.
struct Decided<'a> {
    base: OwnedFd,
    dir: OwnedFd,
    name: String,
    placings: Vec<Placing<'a>>,
}

fn place(dump: &Dump) -> String {
    dump.vm.encoded()
}

/// What was made of one dump; if it failed, that goes to `result`, and it must not be decided with the others: its sidecar
/// goes. Its links go with the work directory.
fn keep<T>(made: Result<T>, result: &mut Result<()>, dirs: &Dirs, one: &Wanted) -> Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) => {
            *result = Err(error);
            fsio::unlink(dirs.dir.as_fd(), &one.dump.stem.sidecar())?;
            Ok(None)
        }
    }
}

/// A name for what was decided together that nothing has. What could not be put in its place may still be there.
fn free_name(base: BorrowedFd) -> Result<String> {
    for number in 1_u32.. {
        let name = format!("{ADDED}{number}");
        if fsio::stat(base, &name)?.is_none() {
            return Ok(name);
        }
    }
    bail!("there are too many work directories")
}

impl Work {
    /// Hard-links all files and companions of `entry`, a dump of another store on the same file system, and makes sure
    /// that what was linked is what was chosen: it may have been replaced since it was read.
    pub fn link(&self, from: &Store, entry: &Entry) -> Result<()> {
        link_files(from, entry, self.dir.as_fd()).map(drop)
    }
}

/// Links the files and companions of a dump into `dir`; the names of these. The links, not the names they were made of,
/// are looked at.
fn link_files(from: &Store, entry: &Entry, dir: BorrowedFd) -> Result<Vec<String>> {
    let source = fsio::open_place(from.top(), &entry.place)?;
    let source = source.as_fd();
    if entry.inodes.len() < entry.dump.files.len() {
        bail!("{}", entry.fault.as_deref().unwrap_or("its files could not be looked at"));
    }
    for (file, inode) in entry.dump.files.iter().zip(&entry.inodes) {
        let linked = link_file(source, dir, &file.name, *inode)?;
        ensure!(linked.st_size as u64 == file.bytes, "its file {} changed meanwhile", file.name);
    }
    let companions = companions(source, &entry.dump)?;
    for name in &companions {
        let Some(there) = fsio::stat(source, name)? else { bail!("{name} has vanished") };
        link_file(source, dir, name, (there.st_dev, there.st_ino))?;
    }
    Ok(companions)
}

/// Links one file, which must be this inode.
fn link_file(source: BorrowedFd, dir: BorrowedFd, name: &str, inode: super::Inode) -> Result<Stat> {
    let linked = rustix::io::retry_on_intr(|| rustix::fs::linkat(source, name, dir, name, AtFlags::empty()));
    // NFS may say "exists" of a link that it has just made itself; the look below tells.
    if let Err(error) = linked
        && error != Errno::EXIST
    {
        return Err(why_not(source, name, error));
    }
    let Some(there) = fsio::stat(dir, name)? else { bail!("the link {name} has vanished") };
    if let Some(why) = fsio::distrust(&there) {
        bail!("its file {name} {why}");
    }
    ensure!((there.st_dev, there.st_ino) == inode, "its file {name} was replaced meanwhile");
    Ok(there)
}

/// No hard link can be made, but perhaps a copy.
#[derive(Debug)]
pub struct NoLink(String);

impl fmt::Display for NoLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoLink {}

/// Why a hard link could not be made, and what can be done about it.
fn why_not(source: BorrowedFd, name: &str, error: Errno) -> Error {
    let owner = fsio::stat(source, name).ok().flatten().map(|stat| stat.st_uid);
    let me = rustix::process::geteuid().as_raw();
    let why = match error {
        Errno::NOENT => return anyhow!("its file {name} is missing"),
        Errno::XDEV => "it lies on another file system or below another mount; --copy copies it instead".to_owned(),
        Errno::MLINK => "it has as many as its file system allows; remove some, or --copy copies it instead".to_owned(),
        Errno::PERM => match owner {
            Some(owner) if owner != me && me != 0 => format!(
                "it belongs to the user {owner}, we are {me}, and here nobody may link what is another's \
                 (/proc/sys/fs/protected_hardlinks); run as its owner or as root, or --copy copies it instead"
            ),
            _ => "not permitted: is it immutable (lsattr), or on a file system without hard links? --copy copies it \
                  instead"
                .to_owned(),
        },
        error => return anyhow!(error).context(format!("no hard link of {name} can be made")),
    };
    Error::new(NoLink(format!("no hard link of {name} can be made: {why}")))
}
