//! What deltas are made against, laid ready over there without sending any of it: hard links and copies of what is there,
//! and removing them again. All by rsync alone.
//!
//! The means is a stub: an empty sparse file here that has name, size and time of a file over there, so that rsync takes
//! the two for the same. A stub that did not match would be sent as if it were data; each of these runs is bounded so that
//! this ends at once.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::{Bounds, Far, FarFile, FarKind, Ran, Url, with_slash};
use crate::calendar::Time;

/// What a run that sends no content may cost at most, in bytes.
pub(super) const STUB_MAX: u64 = 64 << 10;

const STILL_WRITTEN: &str = "what has arrived of it is still being written over there: it goes on in the next pass";

impl Far {
    /// Makes each old one of `pairs`, a file over there, also the basis of the new one: both names in the directory `basis`
    /// over there, as hard links, without sending any of it. The old ones must be there just as said. Sends about 100 bytes
    /// for each.
    pub fn seed_bases(&self, basis: &str, pairs: &[(FarFile, String)]) -> Result<Ran> {
        let stub = self.stub(pairs.iter().map(|(old, _)| old), pairs)?;
        let bounds = Bounds { at_most: Some(stub_max(pairs.len())), ..Bounds::default() };
        let names: Vec<String> = pairs.iter().flat_map(|(old, new)| [old.name.clone(), new.clone()]).collect();
        let link = format!("--link-dest={}", self.option_dir("", ".."));
        let options = ["-tH", "-z", link.as_str()];
        self.rsync(&options, &names, [with_slash(stub), self.place(basis)], bounds, &mut |_| Ok(()))
    }

    /// Removes what [`Far::seed_bases`] made.
    pub fn drop_bases(&self, basis: &str, pairs: &[(FarFile, String)]) -> Result<Ran> {
        let both = |(old, new): &(FarFile, String)| [old.clone(), FarFile { name: new.clone(), ..old.clone() }];
        self.discard(basis, &pairs.iter().flat_map(both).collect::<Vec<_>>())
    }

    /// Copies `old`, a file in the directory `place` over there, to be the partial file of `new`: the far side copies it by
    /// itself, whole, holes filled. A transfer that is cut then has both: what has arrived, and what is still old. For
    /// files whose content stays where it is; what shifts overruns what is still needed. Sends about 1 KB.
    pub fn seed_partial(&self, place: &str, partial: &str, old: &FarFile, new: &str) -> Result<()> {
        let below = format!("{place}/{partial}");
        let name = old.name.rsplit_once('/').map_or(old.name.as_str(), |(_, name)| name);
        let old = FarFile { name: name.to_owned(), ..old.clone() };
        let stub = self.stub([&old], &[(old.clone(), new.to_owned())])?;
        let bounds = Bounds { at_most: Some(STUB_MAX), silent: old.bytes, long: true, ..Bounds::default() };
        let copy = format!("--copy-dest={}", self.option_dir(place, ".."));
        let options = ["-tH", copy.as_str(), "--chmod=Dgo=,Fgo="];
        let names = [old.name.clone(), new.to_owned()];
        let seeded = self.rsync(&options, &names, [with_slash(stub), self.place(&below)], bounds, &mut |_| Ok(()))?;
        // Under its old name it is the same inode as what will be published: it must never be written by that name.
        let dropped = self.discard(&below, std::slice::from_ref(&old));
        seeded.check()?;
        dropped?.check()
    }

    /// Whether what has arrived of a file is lost when a transfer is cut, unless its partial file is there before. So it is
    /// with the rrsync of rsync 3.5.0.
    pub fn loses_partials(&self) -> bool {
        self.restricted == Some(true)
    }

    /// Whether the far side may have been told to take no partial files, which only shows when one is laid: a daemon's
    /// filters can hide them, and then each slice would begin anew.
    pub fn may_hide_partials(&self) -> bool {
        matches!(self.url, Url::Daemon(_))
    }

    /// Makes an empty partial file of `name` over there. Sends about 150 bytes.
    pub fn seed_empty(&self, place: &str, partial: &str, name: &str) -> Result<()> {
        let empty = FarFile {
            name: format!("{place}/{partial}/{name}"),
            bytes: 0,
            modified: Time::from_unix(0).context("no time")?,
            kind: FarKind::File,
        };
        let stub = self.stub([&empty], &[])?;
        let bounds = Bounds { at_most: Some(STUB_MAX), ..Bounds::default() };
        let places = [with_slash(stub), self.place("")];
        self.rsync(&["--chmod=Dgo=,Fgo="], &[empty.name], places, bounds, &mut |_| Ok(()))?.check()
    }

    /// Makes a partial file over there from `dir/name` here, of which [`Far::seed_bases`] has laid a basis in `basis`: as
    /// a delta, a few bytes for each block of 128 KiB. `bytes` is its size.
    pub fn seed_from(&self, dir: &Path, place: &str, partial: &str, name: &str, basis: &str, bytes: u64) -> Result<()> {
        let basis = format!("{basis}/{place}");
        let compare = format!("--compare-dest={}", self.option_dir(&basis, &format!("../../{basis}")));
        let options = [
            "-t",
            "-S",
            "-z",
            "--zl=1",
            "-B131072",
            "--no-whole-file",
            "--ignore-times",
            "--chmod=Dgo=,Fgo=",
            &compare,
        ];
        let sums = bytes.div_ceil(128 << 10).saturating_mul(10);
        let bounds = Bounds { at_most: Some(sums + STUB_MAX), silent: bytes, long: true, ..Bounds::default() };
        let places = [with_slash(dir.to_owned()), self.place(&format!("{place}/{partial}"))];
        self.rsync(&options, &[name.to_owned()], places, bounds, &mut |_| Ok(()))?.check()
    }

    /// Makes a partial file over there another file with the same content, which the far side copies by itself, whole, holes
    /// filled. Who still has the old one open, as the other end of a line that died may, then writes into nothing. `there`
    /// is the file as it was listed, in the directory `place/partial`; the copy comes by way of the directory `basis`. Where
    /// it can't be copied it is only removed, and false is returned; an error if it may still be there. Sends about 2 KB.
    pub fn renew_partial(&self, place: &str, partial: &str, there: &FarFile, basis: &str) -> Result<bool> {
        let below = format!("{place}/{partial}");
        let name = there.name.rsplit_once('/').map_or(there.name.as_str(), |(_, name)| name);
        let file = FarFile { name: name.to_owned(), ..there.clone() };
        let names = [file.name.clone()];
        let stub = self.stub(std::slice::from_ref(&file), &[])?;
        let bounds = Bounds { at_most: Some(STUB_MAX), silent: file.bytes, ..Bounds::default() };
        let run = |dest: &str, to: &str| {
            let places = [with_slash(stub.clone()), self.place(to)];
            self.rsync(&["-t", dest, "--chmod=Dgo=,Fgo="], &names, places, bounds, &mut |_| Ok(()))
        };
        let copied = run(&format!("--copy-dest={}", self.option_dir(&below, &format!("../{below}"))), basis)?;
        if copied.line_down() {
            copied.check()?;
        }
        // What has changed since it was listed is not removed, but fetched: too much of it, or it is done with.
        ensure!(self.discard(&below, std::slice::from_ref(&file))?.finished.status.success(), STILL_WRITTEN);
        if copied.check().is_err() {
            return Ok(false);
        }
        let linked = run(&format!("--link-dest={}", self.option_dir(basis, &format!("../../{basis}"))), &below)?;
        self.discard(basis, std::slice::from_ref(&file))?.check()?;
        linked.check()?;
        Ok(true)
    }

    /// Whether files may be removed over there: what can't be taken up again must not be laid. Asked once; only daemons
    /// and rrsync forbid it.
    pub fn may_discard(&self) -> Result<bool> {
        if matches!(self.url, Url::Path(_)) || matches!(self.url, Url::Ssh { .. }) && self.restricted != Some(true) {
            return Ok(true);
        }
        if let Some(known) = self.removal.get() {
            return Ok(*known);
        }
        let ran = self.discard("", &[])?;
        if !ran.forbids_removal() {
            ran.check()?;
        }
        Ok(*self.removal.get_or_init(|| !ran.forbids_removal()))
    }

    /// Whether it is known that nothing may be removed over there.
    pub fn forbids_removal(&self) -> bool {
        self.removal.get() == Some(&false)
    }

    /// A directory with an empty sparse file of the name, size and time of each of `files`; those of `links` also under a
    /// second name.
    pub(super) fn stub<'a>(
        &self,
        files: impl IntoIterator<Item = &'a FarFile>,
        links: &[(FarFile, String)],
    ) -> Result<PathBuf> {
        let dir = self.scratch_file("stub");
        fs::create_dir(&dir).context("cannot make a temporary directory")?;
        for file in files {
            let path = below(&dir, &file.name)?;
            let stub = fs::File::create_new(&path).context("cannot make a temporary file")?;
            let modified =
                UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(file.modified.unix()).unwrap_or(0)));
            stub.set_len(file.bytes)
                .and_then(|()| stub.set_modified(modified.unwrap_or(UNIX_EPOCH)))
                .context("cannot make a temporary file")?;
        }
        for (old, new) in links {
            fs::hard_link(dir.join(&old.name), below(&dir, new)?).context("cannot make a temporary file")?;
        }
        Ok(dir)
    }
}

/// The same for a run of so many files: about 100 bytes each were measured.
fn stub_max(files: usize) -> u64 {
    STUB_MAX + 512 * files as u64
}

/// The path of `name` below `dir`, whose directory is made.
fn below(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap_or(dir)).context("cannot make a temporary directory")?;
    Ok(path)
}
