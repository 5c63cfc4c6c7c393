//! What was fetched of a dump, as it lies here: how much of it, whether the rest has room, and removing it.

use anyhow::{Context, Result, ensure};
use bak_common::record::FileEntry;
use bak_common::store::{Entry, Store};
use bak_common::units::show_size;
use std::fs;
use std::path::Path;

use super::Source;
use crate::check::Compared;

/// A dump that was fetched, all of it, and what its comparison with the record has shown.
pub struct Copy {
    pub store: Store,
    pub entry: Entry,
    pub compared: Compared,
}

impl Source<'_> {
    /// How many bytes of a dump are still to come.
    pub fn lacks(&self, entry: &Entry) -> u64 {
        let place = self.far.lands(&self.work).join(&entry.place);
        let here = |file: &FileEntry| fs::symlink_metadata(place.join(&file.name)).map_or(0, |meta| meta.len());
        entry.dump.files.iter().map(|file| file.bytes.saturating_sub(here(file))).sum()
    }

    /// Whether something has come of a dump that could not be fetched, and the next try goes on from there.
    pub fn goes_on(&self, entry: &Entry) -> bool {
        self.goes_on && self.has_begun(entry)
    }

    /// Whether something of a dump has been fetched, and lies here.
    pub fn has_begun(&self, entry: &Entry) -> bool {
        let place = self.far.lands(&self.work).join(&entry.place);
        entry.dump.files.iter().any(|file| place.join(&file.name).is_file())
    }

    /// Fails with numbers if what lacks of a dump cannot fit.
    pub(super) fn room(&self, entry: &Entry, before: u64) -> Result<()> {
        // Holes are made only where all of a file comes at once.
        let need = if before == 0 {
            entry.dump.files.iter().map(FileEntry::room).sum()
        } else {
            entry.dump.bytes.saturating_sub(before)
        };
        let shown = self.work.display();
        let stat =
            rustix::fs::statvfs(&self.work).with_context(|| format!("cannot see how much is free in {shown}"))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        ensure!(
            need <= free,
            "to be fetched it needs {} ({need} bytes) in {shown}, where only {} ({free} bytes) are free: name another place by --work",
            show_size(need),
            show_size(free)
        );
        Ok(())
    }
}

impl Copy {
    /// Removes what was fetched. What cannot be removed is in nobody's way but takes its space.
    pub fn remove(&self) {
        let place = self.store.path().join(&self.entry.place);
        let files = self.entry.dump.files.iter().map(|file| file.name.clone());
        for name in [self.entry.dump.stem.sidecar()].into_iter().chain(files) {
            let _ = fs::remove_file(place.join(name));
        }
        if !self.entry.place.is_empty() {
            let _ = fs::remove_dir(place);
        }
    }
}

/// How many bytes of a dump's files are here already. One that is longer than it should be is removed.
pub(super) fn what_is_there(place: &Path, entry: &Entry) -> Result<u64> {
    let mut sum = 0;
    for file in &entry.dump.files {
        let path = place.join(&file.name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() <= file.bytes => sum += meta.len(),
            Ok(_) => remove(&path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
        }
    }
    Ok(sum)
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
