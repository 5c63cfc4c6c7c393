//! A dump copied from one store to another, where hard links cannot be made.
//!
//! The hazard is a copy that looks whole and is not: its original goes as soon as it counts. So what was written is
//! flushed, taken out of the cache where the kernel lets go of it, and read back; the sidecar's SHA-256 decides, and where
//! there is none every byte of the original. Where the file system can share blocks between files the copy is such a
//! clone, and needs no room; else holes stay holes.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, Mode, OFlags};
use std::fs::{File, FileTimes};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::{Entry, Store, Work, complete};
use crate::fsio;
use crate::hash::{data, hash};
use crate::units::show_size;

const BLOCK: usize = 1 << 20;

impl Work {
    /// Copies all files and companions of `entry`, a dump of another store, with their times and modes; they are flushed
    /// and proved when this returns. `progress` is told of bytes that were copied, and again of each that was read back.
    pub fn copy(&self, from: &Store, entry: &Entry, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let source = fsio::open_place(from.top(), &entry.place)?;
        for name in from.names(entry)? {
            let Some(original) = fsio::open_file(source.as_fd(), &name)? else { bail!("its file {name} is missing") };
            copy_file(&original, self.dir.as_fd(), &name, progress).with_context(|| format!("cannot copy {name}"))?;
            prove(entry, &name, &original, &self.open_file(&name)?, progress)?;
        }
        complete(self.dir.as_fd(), &entry.dump)
    }
}

impl Store {
    /// Makes sure that nothing is lost with `entry`, the same dump in the store `from`: that every file of it, companions
    /// too, lies here as well, with the same content.
    pub fn covers(&self, ours: &Entry, from: &Store, entry: &Entry) -> Result<()> {
        ensure!(ours.dump.same(&entry.dump), "{} is another dump here", entry.dump.id);
        let here = fsio::open_place(self.top(), &ours.place)?;
        let there = fsio::open_place(from.top(), &entry.place)?;
        for name in from.names(entry)? {
            let Some(original) = fsio::open_file(there.as_fd(), &name)? else { continue };
            let copy = fsio::open_file(here.as_fd(), &name)?;
            let copy = copy.with_context(|| format!("{name} is missing in {}", self.path().display()))?;
            let inode = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
            if inode(&original).context("cannot look at a file")? != inode(&copy).context("cannot look at a file")? {
                prove(entry, &name, &original, &copy, &mut |_| ())?;
            }
        }
        Ok(())
    }

    /// Bytes on disk of a dump's files and companions: what a copy of them needs.
    pub fn allocated(&self, entry: &Entry) -> Result<u64> {
        let dir = fsio::open_place(self.top(), &entry.place)?;
        let mut sum: u64 = 0;
        for name in self.names(entry)? {
            let blocks = fsio::stat(dir.as_fd(), &name)?.map_or(0, |stat| stat.st_blocks);
            sum = sum.saturating_add(u64::try_from(blocks).unwrap_or(0).saturating_mul(512));
        }
        Ok(sum)
    }
}

fn copy_file(from: &File, dir: BorrowedFd, name: &str, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    let meta = from.metadata()?;
    // Any failure only means that the blocks cannot be shared.
    if rustix::fs::ioctl_ficlone(&to, from).is_ok() {
        progress(meta.len());
    } else {
        room(&to, meta.blocks().saturating_mul(512))?;
        copy_data(from, &to, meta.len(), progress)?;
    }
    // Only root may give files away; for others the copy is theirs.
    let _ = std::os::unix::fs::fchown(&to, Some(meta.uid()), Some(meta.gid()));
    to.set_permissions(meta.permissions())?;
    to.set_times(FileTimes::new().set_modified(meta.modified()?))?;
    fsio::sync(to.as_fd())
}

/// Makes sure that a file which needs `need` bytes can be written: better said before than after hours.
fn room(to: &File, need: u64) -> Result<()> {
    let stat = rustix::fs::fstatvfs(to).context("cannot see how much is free")?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(need <= free, "there is no room: it needs {}, and {} are free", show_size(need), show_size(free));
    Ok(())
}

fn copy_data(from: &File, to: &File, size: u64, progress: &mut dyn FnMut(u64)) -> Result<()> {
    to.set_len(size)?;
    let mut block = vec![0; BLOCK];
    let (mut at, mut told) = (0, 0);
    while let Some((start, end)) = data(from, at, size)? {
        at = start;
        while at < end {
            // In bounds, and so no truncation: at most BLOCK.
            let want = (end - at).min(BLOCK as u64) as usize;
            let got = from.read_at(&mut block[..want], at).context("cannot read it")?;
            ensure!(got > 0, "it became shorter meanwhile");
            let part = &block[..got];
            // Some file systems, as old NFS, do not tell where the holes are.
            if part.iter().any(|byte| *byte != 0) {
                to.write_all_at(part, at).context("cannot write it")?;
            }
            at += got as u64;
            progress(at - told);
            told = at;
        }
    }
    progress(size - told);
    Ok(())
}

/// Whether `copy` holds what the file `name` of the dump must hold.
fn prove(entry: &Entry, name: &str, original: &File, copy: &File, progress: &mut dyn FnMut(u64)) -> Result<()> {
    // Where this does nothing, the cache is believed.
    let _ = rustix::fs::fadvise(copy, 0, None, Advice::DontNeed);
    let file = entry.dump.files.iter().find(|file| file.name == name);
    match file.and_then(|file| file.sha256.as_ref()) {
        Some(expected) => {
            let (_, found) = hash(copy, &mut told(progress)).with_context(|| format!("cannot read {name} back"))?;
            ensure!(found == *expected, "{name} is damaged: the SHA-256 of its copy is {found} instead of {expected}");
        }
        None => ensure!(equal(original, copy, progress)?, "the copy of {name} differs from it"),
    }
    Ok(())
}

/// Progress, for who may stop the work by an error: nobody does.
fn told(progress: &mut dyn FnMut(u64)) -> impl FnMut(u64) -> Result<()> {
    |bytes| {
        progress(bytes);
        Ok(())
    }
}

fn equal(one: &File, other: &File, progress: &mut dyn FnMut(u64)) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        let got = one.read_at(&mut ours, at).context("cannot read a file")?;
        if got == 0 {
            return Ok(other.read_at(&mut theirs[..1], at).context("cannot read a file back")? == 0);
        }
        match other.read_exact_at(&mut theirs[..got], at) {
            Ok(()) if ours[..got] == theirs[..got] => {
                at += got as u64;
                progress(got as u64);
            }
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error).context("cannot read a file back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hex;
    use sha2::{Digest, Sha256};
    use std::io::Write;

    fn file(parts: &[(u64, &[u8])], size: u64) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.set_len(size).unwrap();
        file.flush().unwrap();
        file
    }

    fn same(one: &File, other: &File) -> bool {
        equal(one, other, &mut |_| ()).unwrap()
    }

    #[test]
    fn copies_are_equal_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let top = File::open(dir.path()).unwrap();
        let many = vec![7; 3 << 20];
        let empty: &[(u64, &[u8])] = &[];
        let table = [
            ("empty", empty, 0),
            ("byte", &[(0, b"x")], 1),
            ("hole", &[], 40 << 20),
            ("first", &[(0, b"x")], 40 << 20),
            ("last", &[((40 << 20) - 1, b"x")], 40 << 20),
            ("middle", &[(5 << 20, &many), (20 << 20, b"y")], 40 << 20),
            ("zeros", &[(0, &[0; 1 << 16]), (1 << 20, &many)], 4 << 20),
        ];
        for (name, parts, size) in table {
            let original = file(parts, size);
            let mut told = 0;
            copy_file(&original, top.as_fd(), name, &mut |bytes| told += bytes).unwrap();
            assert_eq!(told, size, "{name}: progress");
            let copy = File::open(dir.path().join(name)).unwrap();
            assert!(same(&original, &copy) && same(&copy, &original), "{name}");
            assert_eq!(copy.metadata().unwrap().len(), size, "{name}");
            let blocks = |file: &File| file.metadata().unwrap().blocks();
            assert!(blocks(&copy) <= blocks(&original) + 64, "{name}");
            let whole = std::fs::read(dir.path().join(name)).unwrap();
            let expected = (whole.len() as u64, hex(&Sha256::digest(&whole)));
            assert_eq!(hash(&copy, &mut |_| Ok(())).unwrap(), expected, "{name}");
            assert!(copy_file(&original, top.as_fd(), name, &mut |_| ()).is_err(), "{name} must not be overwritten");
        }
    }

    #[test]
    fn what_differs_is_seen() {
        let base = file(&[(3 << 20, b"abc")], 5 << 20);
        for other in [
            file(&[(3 << 20, b"abd")], 5 << 20),
            file(&[(3 << 20, b"abc")], (5 << 20) - 1),
            file(&[(3 << 20, b"abc")], (5 << 20) + 1),
            file(&[], 5 << 20),
            file(&[], 0),
        ] {
            assert!(!same(&base, &other) && !same(&other, &base));
            let hash = |file| hash(file, &mut |_| Ok(())).unwrap();
            assert_ne!(hash(&base), hash(&other));
        }
    }
}
