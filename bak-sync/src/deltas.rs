//! A dump that may be cut, or whose limit the checksums of its basis would eat up, goes as deltas that are made here, where
//! what it is compared with is at hand here, too, and the host over there runs commands: see [`bak_common::far::Delta`].
//!
//! A delta arrives as a file of its own, which grows slice by slice; the same dump and basis always give the same one, so it
//! is made anew in each pass. Whatever goes wrong with that, the dump goes as if there were no such thing.

use anyhow::{Context, Result};
use bak_common::far::{Asked, Bounds, Delta};
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, FileEntry};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::apply::Pass;
use crate::carry::{Journey, Stop, Trouble, Try, went_well};
use crate::plan::{self, Basis, PARTIAL};
use crate::way::block_size;

/// In the note of a dump: false once a delta of it could not be applied over there. It goes without from then on.
const NOTE: &str = "deltas";

/// A file below this goes by itself, whether or not it has a basis, in bytes.
const SMALL: u64 = 1 << 20;

impl Pass<'_> {
    /// Whether all of the dump that is not small can go as deltas, as far as is known before one is made.
    pub fn may_go_as_deltas(&self, dump: &Dump, place: &str) -> bool {
        let refused = || {
            dump.link.get(&self.dest.name).is_some_and(|note| note.extra.get(NOTE).is_some_and(|value| value == false))
        };
        let may = |file: &FileEntry| {
            let there = plan::find(&self.listing, &format!("{place}/{}", file.name)).is_some();
            file.bytes < SMALL || there || matches!(self.old(dump, file, place), Ok(Some(_)))
        };
        self.far.applies_deltas()
            && !self.without_deltas.contains(&dump.id)
            && !refused()
            && dump.files.iter().any(|file| file.bytes >= SMALL)
            && dump.files.iter().all(may)
    }

    /// What the file's delta is made against: over there, and here. None where some of the file itself has arrived.
    fn old(&self, dump: &Dump, file: &FileEntry, place: &str) -> Result<Option<(Basis, File)>> {
        if plan::find(&self.listing, &format!("{place}/{PARTIAL}/{}", file.name)).is_some() {
            return Ok(None);
        }
        let Some(basis) = plan::basis(dump, file, place, &self.history, &self.listing) else { return Ok(None) };
        Ok(self.local(&basis)?.map(|old| (basis, old)))
    }

    /// Sends what can go as deltas. Returns the names of those files that are over there now, whole and proved.
    pub fn as_deltas(&mut self, now: Try, journey: &Journey) -> Result<HashSet<String>, Stop> {
        let dump = now.dump;
        let place = Outbox::place(&dump.vm);
        let mut whole = HashSet::new();
        for file in &dump.files {
            let name = format!("{place}/{}", file.name);
            if plan::find(&self.listing, &name).is_some_and(|there| there.bytes == file.bytes) {
                let different = self.far.differences(self.outbox.store.path(), &[name], file.bytes, self.lock)?;
                if different.is_empty() {
                    whole.insert(file.name.clone());
                }
            } else if file.bytes >= SMALL
                && let Some((basis, old)) = self.old(dump, file, &place)?
            {
                if !self.as_delta(now, file, (&basis, &old), journey)? {
                    self.without_deltas.insert(dump.id.clone());
                    break;
                }
                whole.insert(file.name.clone());
            }
        }
        Ok(whole)
    }

    /// Sends one file as a delta; false if it can't go like that.
    fn as_delta(
        &mut self,
        now: Try,
        file: &FileEntry,
        (basis, old): (&Basis, &File),
        journey: &Journey,
    ) -> Result<bool, Stop> {
        let dump = now.dump;
        let (place, ours) = (Outbox::place(&dump.vm), self.basis.clone());
        let delta = Delta {
            place: &place,
            partial: PARTIAL,
            basis: &ours,
            old: &basis.file.name,
            old_bytes: basis.there.bytes,
            new: &file.name,
            new_bytes: file.bytes,
        };
        match self.far.try_delta(&delta)? {
            Asked::Done => {}
            Asked::Refused(_) => return Ok(false),
            Asked::LineDown(why) => return Err(line_down(why)),
        }
        let dir = self.scratch.path().join("deltas");
        let made = self.make(&delta, old, &dir);
        let sent = match made {
            Ok(Some(bytes)) => self.ship(now, &delta, (&dir, bytes), journey),
            Ok(None) => Ok(false),
            Err(error) => match Stop::from(error) {
                Stop::Trouble(trouble) => {
                    self.warn_of(dump.id.as_str(), "goes without a delta made here", Err(trouble.error));
                    Ok(false)
                }
                stop => Err(stop),
            },
        };
        let _ = fs::remove_dir_all(&dir);
        sent
    }

    /// Makes the delta in the new directory `dir`. Its size; none where there is no room for it.
    fn make(&self, delta: &Delta, old: &File, dir: &Path) -> Result<Option<u64>> {
        let olds = dir.join("old");
        fs::create_dir_all(&olds).context("cannot make a temporary directory")?;
        let from = format!("/proc/self/fd/{}", old.as_raw_fd());
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        if rustix::fs::linkat(rustix::fs::CWD, &from, rustix::fs::CWD, olds.join(delta.new), follow).is_err() {
            // On another file system.
            return Ok(None);
        }
        let most = delta.new_bytes.min(self.outbox.store.free()? / 2);
        let outbox = std::path::absolute(self.outbox.store.path()).context("cannot tell where the outbox is")?;
        let new = outbox.join(delta.place).join(delta.new);
        self.far.make_delta(&olds, &new, block_size(delta.new_bytes), &dir.join(delta.name()), most)
    }

    /// Sends the delta of this size that lies in `dir`, as far as the limit goes, and has it applied.
    fn ship(&mut self, now: Try, delta: &Delta, (dir, bytes): (&Path, u64), journey: &Journey) -> Result<bool, Stop> {
        let dump = now.dump;
        let below = format!("{}/{PARTIAL}", delta.place);
        let arrived = plan::find(&self.listing, &format!("{below}/{}", delta.name())).cloned();
        // rsync appends to nothing that is longer. It was made against another basis.
        if let Some(longer) = arrived.filter(|there| there.bytes > bytes) {
            self.far.discard("", &[longer])?.check()?;
        }
        let spent = self.far.wire().both();
        let at_most = journey.room.map(|room| in_pieces(room.saturating_sub(spent)));
        let bounds = Bounds { at_most, long: true, ..Bounds::under(self.lock) };
        let mut watch = self.noting(now);
        let mut watch = |wire| watch(&mut self.ledger, wire);
        went_well(&self.far.send(dir, &below, &[delta.name()], &["--append-verify"], bounds, &mut watch)?)?;
        match self.far.apply_delta(delta, bytes)? {
            Asked::Done => Ok(true),
            Asked::LineDown(why) => Err(line_down(why)),
            Asked::Refused(why) => {
                let what = "its changes can't be put together over there, and it is sent in the usual way";
                self.session.report.warn(dump.id.as_str(), &format!("{what}: {why}"));
                self.note(dump, |note| {
                    note.extra.insert(NOTE.to_owned(), false.into());
                })?;
                let place = self.list(&[delta.place.to_owned()])?;
                let gone: Vec<_> =
                    place.into_iter().filter(|there| there.name == format!("{below}/{}", delta.name())).collect();
                self.far.discard("", &gone)?.check()?;
                Ok(false)
            }
        }
    }
}

/// How much of the `room` to take: whole pieces, as the far side keeps none that has not all arrived.
fn in_pieces(room: u64) -> u64 {
    // rsync sends a file in pieces of 32 KiB, each with a few bytes of its own, after some hundred bytes for all.
    const PIECE: u64 = (32 << 10) + 16;
    const FIRST: u64 = 1 << 10;
    if room < FIRST + PIECE { room } else { (room - FIRST) / PIECE * PIECE + FIRST }
}

fn line_down(why: String) -> Stop {
    Stop::Trouble(Trouble { error: anyhow::anyhow!("the ssh connection broke: {why}"), line_down: true })
}
