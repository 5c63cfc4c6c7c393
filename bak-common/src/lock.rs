//! flock on files that are never unlinked while anyone may wait for them.
//!
//! A lock is a descriptor, so a dead program holds none. Where an outside program works under a lock it inherits the
//! descriptor: the lock is free only when the last of them is gone.

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::fsio::{FileMark, open_at};
use crate::name::printable;
use crate::report::Kind;
use crate::stop;

/// No signature is longer.
const SIGN_MAX: usize = 64 << 10;

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
    /// How often the lock was taken to write, this time included; 0 where nobody counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// Tells this holding of the lock from every other, whatever machines and programs are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Which running kernel, whatever its machine is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// The file that was written last under this lock and is known to be sound, as long as it is that very file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrote: Option<FileMark>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Holder {
    pub fn me() -> Self {
        let program = std::env::args_os().next().unwrap_or_default();
        let program = std::path::Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { program, pid: std::process::id(), node: node_name(), ..Self::default() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {} on {})", printable(&self.program), self.pid, printable(&self.node))
    }
}

/// Tells this running kernel from every other.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned())
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
        Self::attempt(dir, name, mode, |file| match mode {
            Hold::Shared => (fs2::FileExt::try_lock_shared(&file), Some(file)),
            Hold::Exclusive => (fs2::FileExt::try_lock_exclusive(&file), Some(file)),
        })
    }

    /// Opens the file and locks it by `lock`, again where the file was removed meanwhile; `None` if another has it.
    fn attempt(
        dir: BorrowedFd,
        name: &str,
        mode: Hold,
        mut lock: impl FnMut(File) -> (std::io::Result<()>, Option<File>),
    ) -> Result<Option<Self>> {
        loop {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = open_at(dir, name, flags | OFlags::RDWR | OFlags::CREATE, Mode::RUSR | Mode::WUSR);
            let fd = match fd {
                // Who only reads may share a lock where nothing can be written.
                Err(rustix::io::Errno::ROFS | rustix::io::Errno::ACCESS) if mode == Hold::Shared => {
                    open_at(dir, name, flags | OFlags::RDONLY, Mode::empty())
                }
                fd => fd,
            };
            let file = File::from(fd.with_context(|| format!("cannot open the lock {name}"))?);
            let (file, held) = match lock(file) {
                (Ok(()), Some(file)) => {
                    let stat = rustix::fs::fstat(&file).context("cannot look at a lock")?;
                    (file, stat)
                }
                (Ok(()), None) => return Ok(None),
                (Err(error), _) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                (Err(error), _) if error.kind() == ErrorKind::Interrupted => continue,
                (Err(error), _) => bail!("cannot lock {name}: does this file system support locks? {error}"),
            };
            // A lock taken on a file that was removed meanwhile is nobody else's lock: take the new one.
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
        if let Some(lock) = Self::try_take(dir, name, mode)? {
            return Ok(lock);
        }
        let until = Instant::now() + wait;
        let waited = Self::attempt(dir, name, mode, |file| wait_for(file, mode, until))?;
        if waited.is_none() {
            stop::check()?;
        }
        waited.ok_or_else(|| {
            let holder = living_holder(dir, name).map_or_else(|| "another program".to_owned(), |h| h.to_string());
            Kind::Locked.says(format!("{what} is locked by {holder}; waited {} s (--wait)", wait.as_secs()))
        })
    }

    /// Writes who holds it. Not flushed: see [`Lock::sync`].
    pub fn sign(&self, holder: &Holder) -> Result<()> {
        self.write(&serde_json::to_vec(holder).context("cannot describe the holder of a lock")?)
    }

    /// Makes `json` the content of the lock's file. Not flushed.
    pub fn write(&self, json: &[u8]) -> Result<()> {
        let mut file = &self.file;
        let mut write = || {
            let there = usize::try_from(file.metadata()?.len()).unwrap_or_default().min(SIGN_MAX);
            // Spaces over what was longer: whoever dies before it is cut to size has written it, and lost no generation.
            let mut bytes = json.to_vec();
            bytes.resize(json.len().max(there), b' ');
            file.rewind()?;
            file.write_all(&bytes)?;
            // Only now: on a full disk the block that it has must not be given away first.
            file.set_len(json.len() as u64)
        };
        write().context("cannot write into a lock")
    }

    /// Flushes what [`Lock::sign`] wrote.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().context("cannot flush a lock")
    }

    /// Makes sure that the lock `name` in `dir`, signed as `me`, is still ours, and signs it so. A client that was cut off
    /// from its file server loses its locks, and learns of it only by a write on the locked descriptor; two machines that
    /// the server takes for one may both be given a lock, and whoever signs last has it.
    pub fn prove(&self, dir: BorrowedFd, name: &str, me: &Holder) -> Result<()> {
        let lost = |why: String| Kind::Locked.says(format!("our lock {name} was lost: {why}; nothing is written"));
        let ours = |there: &Holder| Holder { wrote: me.wrote, ..there.clone() } == *me;
        if let Some(other) = holder(dir, name).filter(|there| !ours(there)) {
            return Err(lost(format!(
                "{other} has it. If this goes on: do two machines have the same host name, or the same /etc/machine-id?"
            )));
        }
        self.sign(me).and_then(|()| self.sync()).map_err(|error| lost(format!("{error:#}")))
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

/// Locks `file`, waiting until `until`; neither result nor file if that was not long enough. A waiting flock cannot be
/// given up, so another thread waits; what it gets too late it lets go.
fn wait_for(file: File, mode: Hold, until: Instant) -> (std::io::Result<()>, Option<File>) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let locked = match mode {
            Hold::Shared => fs2::FileExt::lock_shared(&file),
            Hold::Exclusive => fs2::FileExt::lock_exclusive(&file),
        };
        let _ = sender.send((locked, Some(file)));
    });
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(Duration::from_millis(100))) {
            Ok(locked) => return locked,
            Err(RecvTimeoutError::Timeout) if !left.is_zero() && stop::caught().is_none() => {}
            Err(_) => return (Ok(()), None),
        }
    }
}

/// Who signed the lock last.
pub fn holder(dir: BorrowedFd, name: &str) -> Option<Holder> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = open_at(dir, name, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(fd).take(SIGN_MAX as u64).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// As [`holder`], unless that was a program of this machine which has ended: then others hold the lock, who do not sign.
pub fn living_holder(dir: BorrowedFd, name: &str) -> Option<Holder> {
    let ended = |holder: &Holder| {
        let pid = i32::try_from(holder.pid).ok().and_then(rustix::process::Pid::from_raw);
        let gone = |pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
        holder.node == node_name() && pid.is_none_or(gone)
    };
    holder(dir, name).filter(|holder| !ended(holder))
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
        let first = take(Hold::Exclusive).unwrap();
        first.sign(&Holder { program: "bak-test".into(), pid: 7, node: "n1".into(), ..Holder::default() }).unwrap();
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
