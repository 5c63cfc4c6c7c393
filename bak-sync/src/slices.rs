//! What is laid ready over there before the data of a dump goes, so that it crosses as a delta, also in slices.
//!
//! In one go, a hard link of the guest's previous dump under the new name, in a directory of our own, is enough. But once
//! rsync has a partial file it forgets every other basis, so a dump that may be cut first gets a copy of the previous one
//! *as* its partial file: then each slice has both, what has arrived and what is still old, and writes the one over the
//! other in place. Where the content shifts (compressed images, archives) that would overrun what later blocks still need:
//! there the copy begins with a gap. Whatever can't be laid makes the transfer dearer, never wrong.

use anyhow::{Context, Result, anyhow, ensure};
use bak_common::far::{DELTA, FarFile, Slice};
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, FileEntry};
use bak_common::stop;
use bak_common::store::{Entry, Store};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::apply::Pass;
use crate::carry::{Journey, Stop, Try};
use crate::plan::{self, Basis, PARTIAL};

/// How far ahead of what is written the old content begins, beside by how much the new file is longer: more than most
/// changes shift it. A gap as long as the old file is never overrun.
const GAP: u64 = 16 << 20;

/// The gap is whole blocks of any size that rsync may use.
const BLOCK: u64 = 128 << 10;

/// What is copied at once, in bytes: between two of them a signal is heeded.
const COPIED: u64 = 64 << 20;

impl Pass<'_> {
    /// Makes the dump's partial files over there new ones. The last attempt did not end in order, and its other end may still
    /// have them open: what a line that died delivers late would be written into a dump that has long been finished.
    pub fn renew(&mut self, dump: &Dump, place: &str) -> Result<()> {
        // Where nothing may be removed the last look is all there is.
        if !self.far.may_discard()? {
            return Ok(());
        }
        for name in dump.files.iter().flat_map(|file| [file.name.clone(), format!("{}{DELTA}", file.name)]) {
            let name = format!("{place}/{PARTIAL}/{name}");
            let Some(there) = plan::find(&self.listing, &name).cloned() else { continue };
            if !self.far.renew_partial(place, PARTIAL, &there, &self.basis)? {
                self.listing.retain(|file| file.name != name);
                self.session
                    .report
                    .warn(dump.id.as_str(), "what has arrived of it can't be copied there, and is sent again");
            }
        }
        Ok(())
    }

    /// Makes what a dead line has left of the dump's files their partial files, as copies that the far side makes by itself:
    /// its rsync may not know yet that nobody is there, and still have the temporary file open.
    pub fn take_over(&mut self, dump: &Dump, place: &str) {
        for file in &dump.files {
            let Some(there) = plan::leftover(dump, file, place, &self.history, &self.listing).cloned() else {
                continue;
            };
            if !self.far.may_discard().unwrap_or(false) {
                return;
            }
            let copied = self.far.seed_partial(place, PARTIAL, &there, &file.name);
            if copied.is_ok() {
                self.listing.push(FarFile { name: format!("{place}/{PARTIAL}/{}", file.name), ..there });
            }
            self.warn(dump, "what has arrived of it is sent again", copied);
        }
    }

    /// Removes what killed passes have left.
    pub fn sweep(&mut self, dump: &Dump, place: &str) {
        let litter = plan::litter(dump, place, &self.basis, &self.history, &self.listing);
        if litter.is_empty() || self.far.may_discard().is_ok_and(|may| !may) {
            return;
        }
        let swept = self.far.discard("", &litter).and_then(|ran| ran.check());
        if swept.is_ok() {
            self.listing.retain(|file| !litter.contains(file));
        }
        self.warn(dump, "cannot clean up over there", swept);
    }

    /// Says what went wrong with this dump and does no harm.
    fn warn(&self, dump: &Dump, what: &str, result: Result<()>) {
        self.warn_of(dump.id.as_str(), what, result);
    }

    /// Lays the bases of a dump's files, but of those that are `whole` there. Returns the hard links to take up again.
    pub fn lay(&self, dump: &Dump, place: &str, journey: &Journey, whole: &HashSet<String>) -> Vec<(FarFile, String)> {
        let mut links = Vec::new();
        let files: Vec<&FileEntry> = dump.files.iter().filter(|file| !whole.contains(&file.name)).collect();
        let basis = |file: &&FileEntry| plan::basis(dump, file, place, &self.history, &self.listing);
        let mut bases: Vec<Option<Basis>> = files.iter().map(basis).collect();
        if bases.iter().any(Option::is_some) {
            let may = self.far.may_discard();
            // What could never be taken up again is not laid.
            if !may.as_ref().is_ok_and(|may| *may) {
                bases.fill(None);
            }
            self.warn(dump, "goes without a basis", may.map(|_| ()));
        }
        for (file, basis) in files.into_iter().zip(bases) {
            let laid = match basis {
                Some(basis) if journey.way.sliced => self.lay_partial(dump, place, file, &basis),
                Some(basis) => {
                    let pair = [(basis.there.clone(), format!("{place}/{}", file.name))];
                    self.far.seed_bases(&self.basis, &pair).and_then(|ran| ran.check()).map(|()| links.extend(pair))
                }
                None if journey.way.sliced && (self.far.loses_partials() || self.far.may_hide_partials()) => {
                    self.warn(dump, "cannot be sent in slices", self.lay_empty(place, file));
                    Ok(())
                }
                None => Ok(()),
            };
            self.warn(dump, "goes without a basis", laid);
        }
        links
    }

    /// Makes an empty partial file of `file`, unless something of it is there.
    fn lay_empty(&self, place: &str, file: &FileEntry) -> Result<()> {
        let names = [format!("{place}/{}", file.name), format!("{place}/{PARTIAL}/{}", file.name)];
        if names.iter().any(|name| plan::find(&self.listing, name).is_some()) {
            return Ok(());
        }
        self.far.seed_empty(place, PARTIAL, &file.name)
    }

    /// Takes up what was laid. What stays there costs no traffic and hides from listings, but it holds blocks: worth a line.
    pub fn take_up(&self, dump: &Dump, links: &[(FarFile, String)]) {
        for link in links {
            let dropped = self.far.drop_bases(&self.basis, std::slice::from_ref(link)).and_then(|ran| ran.check());
            self.warn(dump, &format!("cannot remove {}/{} over there", self.basis, link.1), dropped);
        }
    }

    /// Makes a copy of `basis` the partial file of `file`, unless one with something in it is there.
    fn lay_partial(&self, dump: &Dump, place: &str, file: &FileEntry, basis: &Basis) -> Result<()> {
        if plan::find(&self.listing, &format!("{place}/{}", file.name)).is_some() {
            // All of it was there once, and is compared with.
            return Ok(());
        }
        if let Some(there) = plan::find(&self.listing, &format!("{place}/{PARTIAL}/{}", file.name)) {
            let tries = dump.link.get(&self.dest.name).and_then(|note| note.tries).unwrap_or(0);
            // Shorter than its basis: what a transfer in one go has left when the line dropped. Once only, as an rsync over
            // there that is older than 3.2 makes all of them so.
            if there.bytes >= basis.there.bytes.min(file.bytes) || tries > 1 {
                return Ok(());
            }
            self.far.discard("", std::slice::from_ref(there))?.check()?;
        }
        let here = self.outbox.store.path().join(place).join(&file.name);
        if let Some(local) = self.local(basis)? {
            if shifts(&here)? {
                let (old, new) = (basis.file.bytes, file.bytes);
                let gap = (GAP.min(old) + new.saturating_sub(old)).next_multiple_of(BLOCK);
                if self.outbox.store.free()? / 2 > basis.file.bytes {
                    return self.lay_copy(place, file, basis, local, gap);
                }
            } else if sparse(&local)? && self.outbox.store.free()? / 2 > basis.file.bytes {
                return self.lay_copy(place, file, basis, local, 0);
            }
        }
        self.far.seed_partial(place, PARTIAL, &basis.there, &file.name)
    }

    /// Lays a copy of `old`, a local file with the content of `basis`, after a gap; holes stay holes.
    fn lay_copy(&self, place: &str, file: &FileEntry, basis: &Basis, mut old: File, gap: u64) -> Result<()> {
        let dir = self.scratch.path().join("shifted");
        fs::create_dir_all(&dir).context("cannot make a temporary directory")?;
        let path = dir.join(&file.name);
        let made = copy_after(&mut old, &path, gap).context("cannot make a temporary file");
        let pair = [(basis.there.clone(), format!("{place}/{}", file.name))];
        let laid = made.and_then(|bytes| {
            self.far.seed_bases(&self.basis, &pair)?.check()?;
            let laid = self.far.seed_from(&dir, place, PARTIAL, &file.name, &self.basis, bytes);
            self.far.drop_bases(&self.basis, &pair)?.check()?;
            laid
        });
        fs::remove_file(&path).context("cannot remove a temporary file")?;
        laid
    }

    /// The local file that a basis was sent from, if the store is known and still has it.
    pub fn local(&self, basis: &Basis) -> Result<Option<File>> {
        let Some(path) = self.dest.store.as_ref().filter(|path| path.exists()) else { return Ok(None) };
        let store = Store::open(path)?;
        for place in [Outbox::place(&basis.dump.vm), String::new()] {
            if let Some(entry) = store.look(&place, &basis.dump.stem)?
                && entry.is_good()
                && entry.dump.same(&basis.dump)
            {
                return Ok(Some(store.open_file(&entry, &basis.file.name)?));
            }
        }
        Ok(None)
    }

    /// To a mounted path: whole files, by rsync where they surely fit, else appended to, slice by slice.
    pub fn mounted(&mut self, now: Try, entry: &Entry, journey: &Journey) -> Result<(), Stop> {
        if !journey.way.sliced {
            return self.data(now, entry, journey, &HashSet::new(), false);
        }
        let mut watch = self.noting(now);
        for name in self.outbox.store.names(entry)? {
            let from = self.outbox.store.path().join(&entry.place).join(&name);
            let room = journey.room.map(|room| room.saturating_sub(self.far.wire().both()));
            let slice = Slice { from: &from, place: &entry.place, partial: PARTIAL, name: &name, room };
            let whole = self.far.append(slice, &mut |wire| watch(&mut self.ledger, wire))?;
            if !whole {
                return Err(Stop::Limit);
            }
        }
        Ok(())
    }
}

/// Whether content of the file at `path` moves when something before it changes: all but raw images, and qcow2 images
/// whose clusters are not compressed (compressed ones have zstd in their header, as bak-dump makes them).
fn shifts(path: &Path) -> Result<bool> {
    const COMPRESSION_TYPE: u8 = 1 << 3;
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("raw" | "img") => Ok(false),
        Some("qcow2") => {
            // Big-endian: magic, version; the incompatible features are 8 bytes from 72 on.
            let mut header = [0; 80];
            let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            let plain = file.read_exact(&mut header).is_ok() && header[79] & COMPRESSION_TYPE == 0;
            Ok(!plain)
        }
        _ => Ok(true),
    }
}

/// Whether more than a sixteenth of a file is holes, which a copy made over there would fill.
fn sparse(file: &File) -> Result<bool> {
    let meta = file.metadata().context("cannot look at a file")?;
    Ok(meta.blocks() * 512 < meta.len() - meta.len() / 16)
}

/// Copies what `old` holds to a new file at `path`, after a gap, data by data, so that holes stay. Returns its size.
fn copy_after(old: &mut File, path: &Path, gap: u64) -> Result<u64> {
    let mut new = File::create(path)?;
    let end = old.metadata()?.len();
    new.set_len(gap + end)?;
    let mut at = 0;
    while at < end {
        at = match rustix::fs::seek(&*old, rustix::fs::SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(anyhow!(error)),
        };
        let hole = rustix::fs::seek(&*old, rustix::fs::SeekFrom::Hole(at))?;
        old.seek(SeekFrom::Start(at))?;
        new.seek(SeekFrom::Start(gap + at))?;
        while at < hole {
            stop::check()?;
            let copied = std::io::copy(&mut old.by_ref().take((hole - at).min(COPIED)), &mut new)?;
            ensure!(copied > 0, "a file became shorter while it was copied");
            at += copied;
        }
    }
    Ok(gap + end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_copy_after_a_gap_keeps_content_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = File::create_new(dir.path().join("old")).unwrap();
        old.write_all(&[7; 5000]).unwrap();
        old.seek(SeekFrom::Start(3 << 20)).unwrap();
        old.write_all(&[8; 5000]).unwrap();
        old.set_len(5 << 20).unwrap();
        let content = fs::read(dir.path().join("old")).unwrap();
        let mut old = File::open(dir.path().join("old")).unwrap();
        let path = dir.path().join("new");
        assert_eq!(copy_after(&mut old, &path, 1 << 20).unwrap(), 6 << 20);
        let copied = fs::read(&path).unwrap();
        assert!(copied[..1 << 20].iter().all(|byte| *byte == 0) && copied[1 << 20..] == content);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn what_shifts() {
        let dir = tempfile::tempdir().unwrap();
        let header = |features: u8| {
            let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
            header.resize(200, 0);
            header[79] = features;
            header
        };
        for (name, content, expected) in [
            ("a.raw", vec![], false),
            ("b.qcow2", header(0), false),
            ("c.qcow2", header(1 << 3), true),
            ("d.qcow2", vec![1, 2, 3], true),
            ("e.vma.zst", vec![], true),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
            assert_eq!(shifts(&dir.path().join(name)).unwrap(), expected, "{name}");
        }
    }
}
