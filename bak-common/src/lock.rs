//! flock on files that are never unlinked while anyone may wait for them.
//!
//! A lock is a descriptor, so a dead program holds none. Where an outside program works under a lock it inherits the
//! descriptor: the lock is free only when the last of them is gone.

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::report::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Shared,
    Exclusive,
}

/// A held lock; dropping it, or dying, frees it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds a lock, and anything the holder wants to be known: written into the lock's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub program: String,
    pub pid: u32,
    pub node: String,
    /// Where the files of a work directory go: a path below the store's top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl Holder {
    pub fn me() -> Self {
        let program = std::env::args_os().next().unwrap_or_default();
        let program = std::path::Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { program, pid: std::process::id(), node: node_name(), place: None }
    }
}

/// This machine's name.
pub fn node_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.split('.').next().unwrap_or("localhost").to_owned()
}

impl Lock {
    /// Takes the lock `name` in `dir` if it is free.
    pub fn try_take(dir: BorrowedFd, name: &str, mode: Hold) -> Result<Option<Self>> {
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
            let file = File::from(fd.with_context(|| format!("cannot open the lock {name}"))?);
            let taken = match mode {
                Hold::Shared => fs2::FileExt::try_lock_shared(&file),
                Hold::Exclusive => fs2::FileExt::try_lock_exclusive(&file),
            };
            match taken {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => bail!("cannot lock {name}: does this file system support locks? {error}"),
            }
            // A lock taken on a file that was removed meanwhile is nobody else's lock: take the new one.
            let held = rustix::fs::fstat(&file).context("cannot look at a lock")?;
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(there) if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) => {
                    return Ok(Some(Self { file }));
                }
                Ok(_) | Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot look at the lock {name}")),
            }
        }
    }

    /// Takes the lock, waiting up to `wait`; then exit status 3, naming the holder. `what` is what the lock is for.
    pub fn take(dir: BorrowedFd, name: &str, mode: Hold, wait: Duration, what: &str) -> Result<Self> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            if let Some(lock) = Self::try_take(dir, name, mode)? {
                return Ok(lock);
            }
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let holder = holder(dir, name).map_or_else(
                    || "another program".to_owned(),
                    |h| format!("{} (pid {} on {})", h.program, h.pid, h.node),
                );
                return Err(
                    Kind::Locked.says(format!("{what} is locked by {holder}; waited {} s (--wait)", wait.as_secs()))
                );
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Writes who holds it. Not flushed: see [`Lock::sync`].
    pub fn sign(&mut self, holder: &Holder) -> Result<()> {
        let text = serde_json::to_string(holder).context("cannot describe the holder of a lock")?;
        let write = |file: &mut File| {
            // Cut to size afterwards: on a full disk the block that it has must not be given away first.
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write(&mut self.file).context("cannot write into a lock")
    }

    /// Flushes what [`Lock::sign`] wrote.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().context("cannot flush a lock")
    }

    /// Frees the lock at once, whoever still has the descriptor: for when all work under it is known to be done. Merely
    /// dropped, it is held a moment longer if another thread is just then starting a program, which inherits everything
    /// until it begins.
    pub fn release(self) -> Result<()> {
        fs2::FileExt::unlock(&self.file).context("cannot free a lock")
    }

    /// The same lock once more: it is free only when all of these are gone.
    pub fn share(&self) -> Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned().context("cannot hand a lock on")
    }
}

/// Who signed the lock last.
pub fn holder(dir: BorrowedFd, name: &str) -> Option<Holder> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(fd).take(1 << 16).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_many_readers_and_a_child_holds_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let take = |mode| Lock::try_take(fd.as_fd(), "lock", mode).unwrap();
        let mut first = take(Hold::Exclusive).unwrap();
        first.sign(&Holder { program: "bak-test".into(), pid: 7, node: "n1".into(), place: None }).unwrap();
        assert!(take(Hold::Shared).is_none());
        let error = Lock::take(fd.as_fd(), "lock", Hold::Exclusive, Duration::ZERO, "the store").unwrap_err();
        assert_eq!(crate::report::status(&error), 3);
        assert!(error.to_string().contains("bak-test (pid 7 on n1)"), "{error}");
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::from(first.share().unwrap()))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // `cat` on a lock file ends at once; a `sleep` would need killing. Both hold it while they live.
        drop(first);
        child.wait().unwrap();
        let shared = (take(Hold::Shared), take(Hold::Shared));
        assert!(shared.0.is_some() && shared.1.is_some());
        assert!(take(Hold::Exclusive).is_none());
    }

    #[test]
    fn a_removed_lock_file_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let old = Lock::try_take(fd.as_fd(), "lock", Hold::Exclusive).unwrap().unwrap();
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        assert!(Lock::try_take(fd.as_fd(), "lock", Hold::Exclusive).unwrap().is_some());
        drop(old);
    }
}
