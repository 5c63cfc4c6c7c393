//! Decided dumps on their way from a work directory to their places.

use anyhow::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{companions, complete};
use crate::fsio;
use crate::record::Dump;

/// A decided dump in a work directory, and where it goes.
pub(super) struct Placing<'a> {
    pub dump: &'a Dump,
    pub target: OwnedFd,
    pub companions: Vec<String>,
}

impl<'a> Placing<'a> {
    pub fn of(top: BorrowedFd, work: BorrowedFd, dump: &'a Dump, place: &str) -> Result<Self> {
        Ok(Self { dump, target: fsio::make_place(top, place)?, companions: companions(work, dump)? })
    }

    fn move_files(&self, work: BorrowedFd) -> Result<()> {
        for name in self.dump.files.iter().map(|file| &file.name).chain(&self.companions) {
            fsio::move_file(work, self.target.as_fd(), name)?;
        }
        complete(self.target.as_fd(), self.dump)
    }

    fn move_sidecar(&self, work: BorrowedFd) -> Result<()> {
        fsio::move_file(work, self.target.as_fd(), &self.dump.stem.sidecar())
    }
}

/// Moves decided dumps from `work` to their places: files, flush, sidecars, flush, each for all of them before the next,
/// so that flushes share what they cost. One result each, in order. Idempotent.
pub(super) fn put_in_place(work: BorrowedFd, dumps: Vec<Placing>) -> Vec<Result<()>> {
    let mut results: Vec<Result<()>> = dumps.iter().map(|_| Ok(())).collect();
    let mut step = |step: &dyn Fn(&Placing) -> Result<()>| {
        for (one, result) in dumps.iter().zip(&mut results).filter(|(_, result)| result.is_ok()) {
            *result = step(one);
        }
    };
    step(&|one| one.move_files(work));
    step(&|one| fsio::sync(one.target.as_fd()));
    step(&|one| one.move_sidecar(work));
    step(&|one| fsio::sync(one.target.as_fd()));
    results
}
