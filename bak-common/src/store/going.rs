//! Decided dumps on their way out of a store.

use anyhow::{Context, Result, bail};
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use super::{SIDECAR_MAX, companion_names, companions};
use crate::fsio;
use crate::name::Stem;
use crate::record::Dump;

/// From so many dumps of a directory on it is listed once, instead of asked for each companion that a dump may have.
const MANY: usize = 32;

/// A dump that is going.
#[derive(Clone, Copy)]
pub(super) enum Going<'a> {
    /// Its sidecar, which says this, was just moved, or is to be.
    Known(&'a Dump),
    /// Its sidecar may lie among the dropped ones, and is there again perhaps.
    Stem(&'a Stem),
}

/// What lies beside dumps that are going.
pub(super) enum Beside {
    Listed(HashSet<String>),
    Unknown,
}

impl Beside {
    /// What lies in `dir`, if that is worth knowing for so many dumps.
    pub fn of(dir: BorrowedFd, dumps: usize) -> Self {
        if dumps < MANY {
            return Self::Unknown;
        }
        let listed = |names: Vec<(String, _)>| Self::Listed(names.into_iter().map(|(name, _)| name).collect());
        fsio::names(dir).map_or(Self::Unknown, listed)
    }

    fn companions(&self, dir: BorrowedFd, dump: &Dump) -> Result<Vec<String>> {
        match self {
            Self::Listed(names) => Ok(companion_names(dump).filter(|name| names.contains(name)).collect()),
            Self::Unknown => companions(dir, dump),
        }
    }
}

impl<'a> Going<'a> {
    /// The decision to remove the dump; not flushed yet. What is known of it from then on: nothing, where its sidecar had
    /// gone already, or could not be moved by one call.
    pub fn drop_sidecar(&self, from: BorrowedFd, drop: BorrowedFd) -> Result<Going<'a>> {
        let (Self::Known(Dump { stem, .. }) | Self::Stem(stem)) = *self;
        let name = stem.sidecar();
        let moved = || rustix::fs::renameat_with(from, name.as_str(), drop, name.as_str(), RenameFlags::NOREPLACE);
        match rustix::io::retry_on_intr(moved) {
            Ok(()) => return Ok(*self),
            Err(Errno::NOENT) => return Ok(Going::Stem(stem)),
            Err(_) => {}
        }
        if fsio::stat(from, &name)?.is_some() {
            fsio::move_file(from, drop, &name)?;
            fsio::unlink(from, &name)?;
        }
        Ok(Going::Stem(stem))
    }

    pub fn stem(&self) -> &Stem {
        match self {
            Self::Known(dump) => &dump.stem,
            Self::Stem(stem) => stem,
        }
    }

    /// Removes the files of the dump, whose dropped sidecar lies in `dropped`. What has none there is done.
    pub fn remove_files(&self, dir: BorrowedFd, dropped: BorrowedFd, beside: &Beside) -> Result<()> {
        let remove = |dump: &Dump| {
            let companions = beside.companions(dir, dump)?;
            let mut names = dump.files.iter().map(|file| &file.name).chain(&companions);
            names.try_for_each(|name| fsio::unlink(dir, name))
        };
        let stem = match self {
            Self::Known(dump) => return remove(dump),
            Self::Stem(stem) => stem,
        };
        let name = stem.sidecar();
        let Some(text) = fsio::read_file(dropped, &name, SIDECAR_MAX)? else { return Ok(()) };
        let dump = Dump::from_sidecar(stem, &text).context("cannot read the dropped sidecar")?;
        match (fsio::stat(dir, &name)?, fsio::stat(dropped, &name)?) {
            // Where moving means linking and unlinking, a crash in between leaves both.
            (Some(here), Some(gone)) if (here.st_dev, here.st_ino) == (gone.st_dev, gone.st_ino) => {
                fsio::unlink(dir, &name)?;
                fsio::sync(dir)?;
            }
            (Some(_), _) => bail!("{stem} was dropped and is there again; remove one of its two sidecars"),
            (None, _) => {}
        }
        remove(&dump)
    }
}
