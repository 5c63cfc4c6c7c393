//! The space that dumps may take: forecast before each, watched while it is made.

use anyhow::{Result, bail};
use bak_common::store::Store;
use bak_common::units::show_size;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is promised to the dumps that are being made.
#[derive(Debug)]
pub struct Space<'a> {
    store: &'a Store,
    reserve: u64,
    promised: Mutex<BTreeMap<usize, Promise>>,
}

#[derive(Clone, Debug, Default)]
struct Promise {
    forecast: u64,
    /// Where it is being used up.
    dir: Option<PathBuf>,
}

/// One promise, until it is dropped.
pub struct Booking<'a> {
    space: &'a Space<'a>,
    number: usize,
}

impl<'a> Space<'a> {
    pub fn new(store: &'a Store, reserve: u64) -> Self {
        Self { store, reserve, promised: Mutex::default() }
    }

    fn promised(&self) -> MutexGuard<'_, BTreeMap<usize, Promise>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises `forecast` bytes to the guest with this number, if they are there.
    pub fn book(&'a self, number: usize, forecast: u64) -> Result<Booking<'a>> {
        let mut promised = self.promised();
        let free = self.store.free()?;
        let others = promised.values().map(Promise::rest).fold(0, u64::saturating_add);
        if let Some(short) = short(free, forecast, self.reserve, others) {
            bail!("{short} in {}", self.store.path().display());
        }
        promised.insert(number, Promise { forecast, dir: None });
        Ok(Booking { space: self, number })
    }

    /// An error once less is free than the reserve: the store's file system must not run full.
    pub fn watch(&self) -> Result<()> {
        let free = self.store.free()?;
        if free < self.reserve {
            bail!(
                "stopped: only {} are left free in {}, and {} must stay free (--reserve)",
                show_size(free),
                self.store.path().display(),
                show_size(self.reserve)
            );
        }
        Ok(())
    }
}

impl Promise {
    /// What is still to be written.
    fn rest(&self) -> u64 {
        self.forecast.saturating_sub(self.dir.as_deref().map_or(0, used))
    }
}

/// Bytes on disk of the files in `dir`.
fn used(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

impl Booking<'_> {
    /// What is written into `dir` uses up the promise.
    pub fn used_in(&self, dir: &Path) {
        if let Some(promise) = self.space.promised().get_mut(&self.number) {
            promise.dir = Some(dir.to_owned());
        }
    }

    /// Keeps the promise for the rest of the run: a plan adds up.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Booking<'_> {
    fn drop(&mut self) {
        self.space.promised().remove(&self.number);
    }
}

/// Why it does not fit, if it does not. An exact fit fits.
fn short(free: u64, forecast: u64, reserve: u64, others: u64) -> Option<String> {
    let need = forecast.saturating_add(reserve).saturating_add(others);
    if need <= free {
        return None;
    }
    let running =
        if others > 0 { format!(", and {} for those being made now", show_size(others)) } else { String::new() };
    Some(format!(
        "there is no room: it needs {} by its last dump, {} must stay free (--reserve){running}, but only {} are free",
        show_size(forecast),
        show_size(reserve),
        show_size(free)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_fit_fits() {
        assert_eq!(short(10, 5, 3, 2), None);
        assert!(short(10, 5, 3, 3).is_some() && short(10, 11, 0, 0).is_some() && short(10, 0, 11, 0).is_some());
        assert_eq!(short(0, 0, 0, 0), None);
        assert!(short(u64::MAX - 1, u64::MAX, u64::MAX, u64::MAX).is_some());
    }

    #[test]
    fn promises_add_up_until_they_are_used_or_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let space = Space::new(&store, 0);
        let half = store.free().unwrap() / 5 * 3;
        let first = space.book(0, half).unwrap();
        let error = space.book(1, half).err().unwrap().to_string();
        assert!(error.contains("for those being made now"), "{error}");
        drop(first);
        space.book(1, half).unwrap().keep();
        assert!(space.book(2, half).is_err());
    }
}
