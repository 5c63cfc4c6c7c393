//! The file that a disk is restored to, and the hidden file beside it that becomes it.
//!
//! What could be lost here is somebody's disk. So the directory is opened once and everything happens below it; the
//! hidden file is made anew (never opened if it is there), locked while it is written, and moved by a call that does not
//! replace, unless replacing was asked for; and what a machine uses is never replaced.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::fsio;
use bak_common::name::{Stem, printable};
use bak_common::report::Kind;
use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::{Errno, retry_on_intr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// File systems (NFS, SMB, CIFS) where flock is a lock on bytes that would keep QEMU, or even us, from writing.
const REMOTE: [u32; 3] = [0x6969, 0xfe53_4d42, 0xff53_4d42];

/// A file to be written or replaced.
pub struct Target {
    path: PathBuf,
    dir: OwnedFd,
    name: String,
    force: bool,
}

impl Target {
    /// Looks at `path` and refuses what must not be written.
    pub fn open(path: &Path, force: bool) -> Result<Self> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|_| !path.as_os_str().as_encoded_bytes().ends_with(b"/"));
        let name = name
            .ok_or_else(|| Kind::Usage.says(format!("{} is no existing directory and no file name", path.display())))?;
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = parent.canonicalize().with_context(|| format!("cannot write into {}", parent.display()))?;
        let dir = File::open(&parent).with_context(|| format!("cannot open {}", parent.display()))?;
        let target = Self { path: parent.join(name), dir: dir.into(), name: name.to_owned(), force };
        target.check()?;
        Ok(target)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file system it is on.
    pub fn device(&self) -> u64 {
        rustix::fs::fstat(&self.dir).map_or(0, |stat| stat.st_dev)
    }

    /// Bytes that may still be written there.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.dir)
            .with_context(|| format!("cannot see how much is free beside {}", self.path.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Refuses what must not be written, as things are now.
    pub fn check(&self) -> Result<()> {
        let shown = self.path.display();
        let refuse = |why: String| Err(Kind::Refused.says(format!("{shown} {why}")));
        if let Some(stem) = self.dump()? {
            return refuse(format!("would be a file of the dump {stem}: nothing is written into dumps"));
        }
        let Some(there) = self.there()? else { return Ok(()) };
        match FileType::from_raw_mode(there.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return refuse("is a symbolic link: name the file that is meant, by --to".into()),
            _ => return refuse("is there already, and is not a regular file".into()),
        }
        if !self.force {
            return refuse("is there already: --force would replace it".into());
        }
        if self.in_use()? {
            return refuse("is in use, and is not replaced even with --force: stop what has it open".into());
        }
        Ok(())
    }

    fn there(&self) -> Result<Option<Stat>> {
        fsio::stat(self.dir.as_fd(), &self.name)
    }

    /// The dump beside whose sidecar it lies, and whose file it would be.
    fn dump(&self) -> Result<Option<Stem>> {
        let names = fsio::names(self.dir.as_fd())
            .with_context(|| format!("cannot list the directory of {}", self.path.display()))?;
        let stems = names.iter().filter_map(|(name, _)| Stem::of_sidecar(name));
        Ok(stems.into_iter().find(|stem| stem.owns(&self.name) || stem.sidecar() == self.name))
    }

    /// Whether another process has it open under QEMU's image lock. `qemu-img info` tells that of some formats only, so
    /// the bytes that QEMU locks are tried: a lock on the whole file fails if any of them is held. It is free again when
    /// this returns.
    fn in_use(&self) -> Result<bool> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let whether = || format!("cannot tell whether {} is in use", self.path.display());
        let fd = match retry_on_intr(|| rustix::fs::openat(&self.dir, self.name.as_str(), flags, Mode::empty())) {
            Ok(fd) => fd,
            Err(Errno::TXTBSY) => return Ok(true),
            Err(error) => return Err(error).with_context(whether),
        };
        match retry_on_intr(|| rustix::fs::fcntl_lock(&fd, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(false),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
            Err(error) => Err(error).with_context(whether),
        }
    }
}

/// The hidden file that becomes a target. Dropped before [`Hidden::publish`], it is removed.
pub struct Hidden<'a> {
    target: &'a Target,
    name: String,
    file: File,
    moved: bool,
}

impl<'a> Hidden<'a> {
    /// Makes it. One that a crash left is removed first; one that another bak-restore writes is exit 3.
    pub fn create(target: &'a Target) -> Result<Self> {
        let name = format!(".{}.bak-restore", target.name);
        let shown = || target.path.with_file_name(&name).display().to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..10 {
            let mode = Mode::RUSR | Mode::WUSR;
            match retry_on_intr(|| rustix::fs::openat(&target.dir, name.as_str(), flags, mode)) {
                Ok(fd) => {
                    let file = File::from(fd);
                    // Somebody who is clearing up may have taken it for a leftover between the two calls.
                    if lock(target, &file)? && same(target, &name, &file)? {
                        return Ok(Self { target, name, file, moved: false });
                    }
                }
                Err(Errno::EXIST) => clear(target, &name).with_context(|| format!("cannot use {}", shown()))?,
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", shown())),
            }
        }
        Err(busy(&shown()))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn flush(&self) -> Result<()> {
        fsio::sync(self.file.as_fd()).with_context(|| format!("cannot write {}", self.target.path.display()))
    }

    /// Moves it to its place, for good.
    pub fn publish(mut self) -> Result<()> {
        let target = self.target;
        let shown = target.path.display();
        ensure!(same(target, &self.name, &self.file)?, "somebody replaced the hidden file beside {shown}");
        target.check()?;
        let (dir, from, to) = (&target.dir, self.name.as_str(), target.name.as_str());
        let moved = match target.there()? {
            Some(old) => {
                take_after(&self.file, &old)?;
                retry_on_intr(|| rustix::fs::renameat(dir, from, dir, to))
            }
            None => match retry_on_intr(|| rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE)) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())
                        .and_then(|()| rustix::fs::unlinkat(dir, from, AtFlags::empty()))
                }
                other => other,
            },
        };
        match moved {
            Ok(()) => self.moved = true,
            Err(Errno::EXIST) => return Err(Kind::Refused.says(format!("{shown} appeared meanwhile"))),
            Err(error) => return Err(error).with_context(|| format!("cannot move the restored image to {shown}")),
        }
        fsio::sync(dir.as_fd()).with_context(|| format!("cannot flush the directory of {shown}"))
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        if !self.moved && same(self.target, &self.name, &self.file).unwrap_or(false) {
            let _ = fsio::unlink(self.target.dir.as_fd(), &self.name);
        }
    }
}

/// Gives the new file the owner and the rights of the one that it replaces: the machine must be able to open it.
fn take_after(new: &File, old: &Stat) -> Result<()> {
    match rustix::fs::fchown(new, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid))) {
        // Who is not root cannot; the rights still count for the group that it has.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error).context("cannot give the restored image its owner"),
    }
    rustix::fs::fchmod(new, Mode::from_raw_mode(old.st_mode & 0o777))
        .context("cannot give the restored image its rights")?;
    fsio::sync(new.as_fd())
}

/// Whether the name still means this file.
fn same(target: &Target, name: &str, file: &File) -> Result<bool> {
    let held = rustix::fs::fstat(file).context("cannot look at an open file")?;
    let there = fsio::stat(target.dir.as_fd(), name)?;
    Ok(there.is_some_and(|there| (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)))
}

fn busy(shown: &str) -> anyhow::Error {
    Kind::Locked.says(format!("another bak-restore writes {shown}"))
}

/// Locks a hidden file; false if another holds it.
fn lock(target: &Target, file: &File) -> Result<bool> {
    let kind = rustix::fs::fstatfs(&target.dir).context("cannot look at the file system")?.f_type;
    if REMOTE.contains(&(kind as u32)) {
        return Ok(true);
    }
    match retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(anyhow!("cannot lock a file beside {}: {error}", target.path.display())),
    }
}

/// Removes what a crash left under a hidden file's name; anything else there is left alone.
fn clear(target: &Target, name: &str) -> Result<()> {
    let Some(file) = fsio::open_file(target.dir.as_fd(), name)? else { return Ok(()) };
    if !lock(target, &file)? {
        return Err(busy(&target.path.with_file_name(name).display().to_string()));
    }
    if same(target, name, &file)? {
        if rustix::fs::fstat(&file).context("cannot look at an open file")?.st_nlink > 1 {
            bail!("{} has another name too, so bak did not make it; move it away", printable(name));
        }
        fsio::unlink(target.dir.as_fd(), name)?;
    }
    Ok(())
}
