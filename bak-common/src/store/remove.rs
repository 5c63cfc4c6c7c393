//! How dumps leave a store, many at once: the order of the steps is that of one dump, each step taken for all of them
//! before the next, so that flushes share what they cost.

use anyhow::{Context, Result, anyhow};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::change::{DROP, Locked};
use super::going::{Beside, Going};
use super::{BAK, Entry};
use crate::fsio;
use crate::name::Stem;
use crate::record::Dump;
use crate::report::Report;

/// So many places are worked on at once: of each, three directories are open.
const PLACES: usize = 100;

/// Dumps of one place that are on their way out.
struct Leaving<'a> {
    place: &'a str,
    /// Each with its position among all that are to be removed.
    dumps: Vec<(usize, Going<'a>)>,
    /// `.bak/drop`, and the directory in it that stands for the place.
    drop: OwnedFd,
    dropped: OwnedFd,
    /// `None` if it is not there any more.
    dir: Option<OwnedFd>,
}

impl Leaving<'_> {
    /// Has all of them fail that have not yet.
    fn fail(&self, error: &anyhow::Error, results: &mut [Result<()>]) {
        for (at, _) in &self.dumps {
            if results[*at].is_ok() {
                results[*at] = Err(anyhow!("{error:#}"));
            }
        }
    }

    /// Whether any of them has not failed.
    fn goes_on(&self, results: &[Result<()>]) -> bool {
        self.dumps.iter().any(|(at, _)| results[*at].is_ok())
    }
}

impl Locked<'_> {
    /// Removes dumps. One result each, in order; what is gone already is fine.
    pub fn remove(&self, entries: &[&Entry]) -> Vec<Result<()>> {
        let mut places: BTreeMap<&str, Vec<(usize, &Dump)>> = BTreeMap::new();
        for (at, entry) in entries.iter().enumerate() {
            places.entry(&entry.place).or_default().push((at, &entry.dump));
        }
        let mut results: Vec<Result<()>> = entries.iter().map(|_| Ok(())).collect();
        let places: Vec<_> = places.into_iter().collect();
        for some in places.chunks(PLACES) {
            let mut leaving = Vec::new();
            for (place, dumps) in some {
                match self.open_to_drop(place, dumps) {
                    Ok(Some(one)) => leaving.push(one),
                    Ok(None) => {}
                    Err(error) => {
                        dumps.iter().for_each(|(at, _)| results[*at] = Err(anyhow!("{error:#}")));
                    }
                }
            }
            for one in &mut leaving {
                let Some(dir) = &one.dir else { continue };
                for (at, going) in &mut one.dumps {
                    match going.drop_sidecar(dir.as_fd(), one.dropped.as_fd()) {
                        Ok(next) => *going = next,
                        Err(error) => results[*at] = Err(error),
                    }
                }
                one.dumps.retain(|(at, _)| results[*at].is_ok());
            }
            self.finish_remove(leaving, &mut results);
        }
        results.into_iter().map(|result| result.map_err(|error| self.store.where_full(error))).collect()
    }

    /// Opens a directory of the store and where its dropped sidecars go; `None` if it is not there.
    fn open_to_drop<'a>(&self, place: &'a str, dumps: &[(usize, &'a Dump)]) -> Result<Option<Leaving<'a>>> {
        let Some(dir) = self.open(place)? else { return Ok(None) };
        let drop = fsio::make_dir(self.bak.as_fd(), DROP)?;
        let dropped = fsio::make_place(drop.as_fd(), place)?;
        let dumps = dumps.iter().map(|(at, dump)| (*at, Going::Known(dump))).collect();
        Ok(Some(Leaving { place, dumps, drop, dropped, dir: Some(dir) }))
    }

    /// Opens a directory of the store; `None` if it is not there.
    fn open(&self, place: &str) -> Result<Option<OwnedFd>> {
        match fsio::open_place(self.store.top(), place) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens `.bak/drop` and the directory in it that stands for `place`; `None` if nothing was ever dropped there.
    fn dropped(&self, place: &str) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let drop = match fsio::open_dir(self.bak.as_fd(), DROP) {
            Ok(drop) => drop,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).context("cannot open the directory of dropped sidecars"),
        };
        match fsio::open_place(drop.as_fd(), place) {
            Ok(dir) => Ok(Some((drop, dir))),
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Flushes the decision to remove these dumps; then removes their files, flushes that, and last removes the dropped
    /// sidecars. What has no dropped sidecar is done.
    fn finish_remove(&self, leaving: Vec<Leaving>, results: &mut [Result<()>]) {
        // The new places first: a power cut in between never leaves a sidecar in neither.
        flush(&leaving, results, |one| Some(&one.dropped));
        flush(&leaving, results, |one| one.dir.as_ref());
        for one in &leaving {
            let Some(dir) = &one.dir else { continue };
            let beside = Beside::of(dir.as_fd(), one.dumps.len());
            for (at, going) in &one.dumps {
                if results[*at].is_ok() {
                    results[*at] = going.remove_files(dir.as_fd(), one.dropped.as_fd(), &beside);
                }
            }
        }
        // Else a power cut could bring files back that no sidecar names any more.
        flush(&leaving, results, |one| one.dir.as_ref());
        for one in &leaving {
            for (at, going) in &one.dumps {
                if results[*at].is_ok() {
                    results[*at] = fsio::unlink(one.dropped.as_fd(), &going.stem().sidecar());
                }
            }
            // Empty directories of guests are ours to tidy; a directory with anything in it stays.
            if one.goes_on(results)
                && !one.place.is_empty()
                && !one.place.contains('/')
                && fsio::remove_empty_dir(self.store.top(), one.place)
            {
                fsio::remove_empty_dir(one.drop.as_fd(), one.place);
            }
        }
    }

    /// Finishes what was decided to be removed, at `place`, of which `dir` has the dropped sidecars, and below it.
    pub(super) fn recover_drops(&self, dir: BorrowedFd, place: &str, report: &Report) -> Result<()> {
        let mut stems = Vec::new();
        for (name, kind) in fsio::names(dir).context("cannot list the dropped sidecars")? {
            let below = if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
            if let Some(stem) = Stem::of_sidecar(&name) {
                stems.push(stem);
            } else if kind != FileType::RegularFile
                && let Ok(sub) = fsio::open_dir(dir, &name)
            {
                self.recover_drops(sub.as_fd(), &below, report)?;
            }
        }
        if stems.is_empty() {
            return Ok(());
        }
        let mut results: Vec<Result<()>> = stems.iter().map(|_| Ok(())).collect();
        let opened = self.dropped(place).and_then(|both| Ok((both, self.open(place)?)));
        match opened {
            Ok((Some((drop, dropped)), dir)) => {
                let dumps = stems.iter().map(Going::Stem).enumerate().collect();
                self.finish_remove(vec![Leaving { place, dumps, drop, dropped, dir }], &mut results);
            }
            Ok((None, _)) => {}
            Err(error) => results.iter_mut().for_each(|result| *result = Err(anyhow!("{error:#}"))),
        }
        for (stem, result) in stems.iter().zip(results) {
            if let Err(error) = result {
                report.fail(
                    &self.store.path.join(BAK).join(DROP).join(place).join(stem.sidecar()).display().to_string(),
                    &error,
                );
            }
        }
        Ok(())
    }
}

/// Flushes one directory of each place of which something has not failed.
fn flush(
    leaving: &[Leaving],
    results: &mut [Result<()>],
    dir: impl for<'a, 'b> Fn(&'a Leaving<'b>) -> Option<&'a OwnedFd>,
) {
    let places: Vec<&Leaving> = leaving.iter().filter(|one| one.goes_on(results) && dir(one).is_some()).collect();
    let dirs: Vec<BorrowedFd> = places.iter().filter_map(|one| dir(one)).map(AsFd::as_fd).collect();
    for (one, flushed) in places.iter().zip(fsio::sync_all(&dirs)) {
        if let Err(error) = flushed {
            one.fail(&error, results);
        }
    }
}
