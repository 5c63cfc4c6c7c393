//! File operations below a directory that is held open: nothing follows a symbolic link, and what is not a regular file
//! of root's or ours is not read.

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::name::{is_component, printable};
use crate::report::Kind;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Splits a path below a store's top (`""` is the top itself) into its components; refuses what could leave it.
pub fn components(place: &str) -> Result<Vec<&str>> {
    if place.is_empty() {
        return Ok(Vec::new());
    }
    place
        .split('/')
        .map(|part| {
            ensure!(is_component(part), "`{}` is no place in a store", printable(place));
            Ok(part)
        })
        .collect()
}

/// Opens the directory `name` in `dir`.
pub fn open_dir(dir: BorrowedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::fs::openat(dir, name, DIR, Mode::empty()))
}

/// Opens the directory `name` in `dir`, made (0700) and flushed into `dir` if it was not there. It must be root's or ours:
/// whoever else had made it could put other things in the place of what is made in it.
pub fn make_dir(dir: BorrowedFd, name: &str) -> Result<OwnedFd> {
    let opened = match open_dir(dir, name) {
        Err(Errno::NOENT) => {
            if make_dir_unflushed(dir, name)? {
                sync(dir)?;
            }
            open_dir(dir, name)
        }
        other => other,
    };
    own(opened.with_context(|| format!("cannot open the directory {}", printable(name)))?, name)
}

/// The directory `name`, if it is root's or ours.
pub fn own(dir: OwnedFd, name: &str) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&dir).context("cannot look at an open directory")?;
    match foreign(&stat) {
        Some(why) => Err(Kind::Refused.says(format!("the directory {} {why}", printable(name)))),
        None => Ok(dir),
    }
}

/// Makes the directory `name` (0700) in `dir`; whether it was not there before.
pub fn make_dir_unflushed(dir: BorrowedFd, name: &str) -> Result<bool> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot make the directory {}", printable(name))),
    }
}

/// Opens the directory at `place`, a path below `top`.
pub fn open_place(top: BorrowedFd, place: &str) -> Result<OwnedFd> {
    let mut dir = top.try_clone_to_owned().context("cannot open a directory once more")?;
    for part in components(place)? {
        dir = open_dir(dir.as_fd(), part).with_context(|| format!("cannot open the directory {}", printable(place)))?;
    }
    Ok(dir)
}

/// Like [`open_place`], making what is missing.
pub fn make_place(top: BorrowedFd, place: &str) -> Result<OwnedFd> {
    let mut dir = top.try_clone_to_owned().context("cannot open a directory once more")?;
    for part in components(place)? {
        dir = make_dir(dir.as_fd(), part)?;
    }
    Ok(dir)
}

/// What `name` in `dir` is; `None` if it is not there.
pub fn stat(dir: BorrowedFd, name: &str) -> Result<Option<Stat>> {
    match rustix::io::retry_on_intr(|| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", printable(name))),
    }
}

/// Whether `name`, a symbolic link, leads to a directory. Only to tell: nothing is opened through it.
pub fn leads_to_dir(dir: BorrowedFd, name: &str) -> bool {
    let stat = rustix::io::retry_on_intr(|| rustix::fs::statat(dir, name, AtFlags::empty()));
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Tells a file from every other, and from itself once it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    inode: u64,
    bytes: i64,
    /// When it was last written to: seconds of the epoch, nanoseconds.
    written: (i64, u64),
}

impl FileMark {
    /// The mark of `name` in `dir`; `None` if it is not there.
    pub fn of(dir: BorrowedFd, name: &str) -> Result<Option<Self>> {
        Ok(stat(dir, name)?.as_ref().map(Self::of_stat))
    }

    /// The mark of what was looked at.
    pub fn of_stat(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, bytes: stat.st_size, written: (stat.st_mtime, stat.st_mtime_nsec) }
    }

    /// Gives `name` in `dir`, just written, a mark that no later writing can leave it. Kernels date what is written by the
    /// last tick of a clock, so that two writes may have one date; by a date between ticks the first is told from all.
    /// `None` where files cannot have such dates.
    pub fn set(dir: BorrowedFd, name: &str) -> Result<Option<Self>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timespec { tv_sec: i64::try_from(now.as_secs())?, tv_nsec: i64::from(now.subsec_nanos()) };
        let times = Timestamps { last_access: now, last_modification: now };
        match rustix::io::retry_on_intr(|| rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(()) => Ok(Self::of(dir, name)?.filter(|mark| mark.written.1 != 0)),
            Err(_) => Ok(None),
        }
    }
}

/// Why something cannot be taken for a file of bak's: not regular, or somebody else's.
pub fn distrust(stat: &Stat) -> Option<String> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Some("is not a regular file".into());
    }
    foreign(stat)
}

/// Why something is not owned by those whom we trust.
pub fn foreign(stat: &Stat) -> Option<String> {
    static ME: OnceLock<u32> = OnceLock::new();
    let me = *ME.get_or_init(|| rustix::process::geteuid().as_raw());
    (stat.st_uid != 0 && stat.st_uid != me)
        .then(|| format!("belongs to the user {}, neither root nor us ({me})", stat.st_uid))
}

/// Opens without waiting, as what may be a FIFO must be. A file that a client of this machine's file server was promised
/// for itself cannot be opened at once: then again, until the kernel has taken the promise back (at the latest after
/// /proc/sys/fs/lease-break-time).
pub(crate) fn open_at(dir: BorrowedFd, name: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat(dir, name, flags | OFlags::NONBLOCK, mode) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
}

/// Opens the regular file `name` for reading; `None` if it is not there.
pub fn open_file(dir: BorrowedFd, name: &str) -> Result<Option<File>> {
    Ok(open_stat(dir, name)?.map(|(file, _)| file))
}

/// The same, with what it is.
pub fn open_stat(dir: BorrowedFd, name: &str) -> Result<Option<(File, Stat)>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match open_at(dir, name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => bail!("{} is a symbolic link", printable(name)),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", printable(name))),
    };
    let stat = rustix::fs::fstat(&file).context("cannot look at an open file")?;
    if let Some(why) = distrust(&stat) {
        bail!("{} {why}", printable(name));
    }
    Ok(Some((file, stat)))
}

/// Opens the regular file `name`, made if it was not there, so that what is written follows what it holds.
pub fn open_append(dir: BorrowedFd, name: &str) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match open_at(dir, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd),
        Err(Errno::LOOP) => bail!("{} is a symbolic link", printable(name)),
        // A FIFO that nobody reads.
        Err(Errno::NXIO) => bail!("{} is not a regular file", printable(name)),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", printable(name))),
    };
    match distrust(&rustix::fs::fstat(&file).context("cannot look at an open file")?) {
        Some(why) => bail!("{} {why}", printable(name)),
        None => Ok(file),
    }
}

/// The content of a regular file of at most `max` bytes; `None` if it is not there.
pub fn read_file(dir: BorrowedFd, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
    let Some((mut file, stat)) = open_stat(dir, name)? else { return Ok(None) };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    ensure!(size <= max, "{} is larger than {max} bytes", printable(name));
    let mut read = |bytes: &mut Vec<u8>| -> std::io::Result<()> {
        // What it had when it was opened, which for nearly all files takes one call; it may shrink meanwhile.
        let mut got = 0;
        while got < bytes.len() {
            match file.read(&mut bytes[got..]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(got);
        Ok(())
    };
    let mut bytes = vec![0; usize::try_from(size).context("a file is larger than memory")?];
    read(&mut bytes).with_context(|| format!("cannot read {}", printable(name)))?;
    Ok(Some(bytes))
}

/// Makes `name` hold `bytes`, flushed, all or nothing, replacing what it held. Written as `temp` first; what a crash left
/// there is overwritten.
pub fn write_whole(dir: BorrowedFd, temp: &str, name: &str, bytes: &[u8]) -> Result<()> {
    write_flushed(dir, temp, bytes)?;
    replace(dir, temp, name)?;
    sync(dir)
}

/// Renames `temp` to `name`, replacing that. The directory is not flushed.
pub fn replace(dir: BorrowedFd, temp: &str, name: &str) -> Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::renameat(dir, temp, dir, name))
        .with_context(|| format!("cannot put {} in its place", printable(name)))
}

/// Makes `name` hold `bytes`, flushed. A crash leaves it in any state, so it is for names that nobody reads. If it fails,
/// as on a full disk, nothing stays.
pub fn write_flushed(dir: BorrowedFd, name: &str, bytes: &[u8]) -> Result<()> {
    let written = write(create(dir, name, OFlags::TRUNC)?, name, &[bytes]);
    if written.is_err() {
        let _ = unlink(dir, name);
    }
    written
}

/// Makes `name`, which is not there yet, hold all of `pieces`, flushed.
pub fn write_new(dir: BorrowedFd, name: &str, pieces: &[&[u8]]) -> Result<()> {
    write(create(dir, name, OFlags::EXCL)?, name, pieces)
}

/// Makes `name`, which is not there yet, hold `bytes`. Not flushed: a crash may lose it.
pub fn write_unflushed(dir: BorrowedFd, name: &str, bytes: &[u8]) -> Result<File> {
    let mut file = create(dir, name, OFlags::EXCL)?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", printable(name)))?;
    Ok(file)
}

/// Makes sure that something is called `name`.
pub fn touch(dir: BorrowedFd, name: &str) -> Result<()> {
    create(dir, name, OFlags::empty()).map(drop)
}

fn create(dir: BorrowedFd, name: &str, how: OFlags) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | how;
    let fd = open_at(dir, name, flags, Mode::RUSR | Mode::WUSR);
    Ok(File::from(fd.with_context(|| format!("cannot create {}", printable(name)))?))
}

fn write(mut file: File, name: &str, pieces: &[&[u8]]) -> Result<()> {
    let written = pieces.iter().try_for_each(|bytes| file.write_all(bytes)).and_then(|()| file.sync_all());
    written.with_context(|| format!("cannot write {}", printable(name)))
}

/// Whether an error says that no more can be written: the disk is full, or what we may use of it. By its words, which are the
/// same of system calls and of the programs that we start.
pub fn is_full(error: &anyhow::Error) -> bool {
    const SAID: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
    let text = format!("{error:#}");
    SAID.iter().any(|said| text.contains(said))
}

/// Flushes a directory or a file. Never tried again: after a failed flush the pages are marked clean.
pub fn sync(fd: BorrowedFd) -> Result<()> {
    rustix::fs::fsync(fd).context("cannot flush to disk")
}

/// So many flushes are asked for at the same time: file systems with a journal serve those that wait with one write.
const FLUSHES: usize = 8;

/// Flushes directories or files, each of them; one result each. Five to eight times faster than one after the other.
pub fn sync_all(fds: &[BorrowedFd]) -> Vec<Result<()>> {
    if fds.len() < FLUSHES {
        return fds.iter().map(|fd| sync(*fd)).collect();
    }
    std::thread::scope(|scope| {
        let some = fds.chunks(fds.len().div_ceil(FLUSHES));
        let flush = |some: &'_ [BorrowedFd]| some.iter().map(|fd| sync(*fd)).collect::<Vec<_>>();
        let threads: Vec<_> = some.map(|some| (some.len(), scope.spawn(move || flush(some)))).collect();
        let ended = |(count, thread): (usize, std::thread::ScopedJoinHandle<'_, Vec<Result<()>>>)| {
            let lost = |_| (0..count).map(|_| Err(anyhow!("cannot flush to disk"))).collect();
            thread.join().unwrap_or_else(lost)
        };
        threads.into_iter().flat_map(ended).collect()
    })
}

/// The same for what may have failed before: that stays as it is.
pub fn sync_good<T>(made: Vec<Result<T>>, fd: impl Fn(&T) -> BorrowedFd<'_>) -> Vec<Result<T>> {
    let flushed = sync_all(&made.iter().flatten().map(fd).collect::<Vec<_>>());
    let mut flushed = flushed.into_iter();
    // As many results as there are good ones.
    let one = |made: Result<T>| made.and_then(|made| flushed.next().unwrap_or(Ok(())).map(|()| made));
    made.into_iter().map(one).collect()
}

/// Moves `name` from one directory to another, never replacing. Idempotent: what has been moved already is fine. Where
/// the file system cannot rename without replacing, `name` is linked and stays in `from` too.
pub fn move_file(from: BorrowedFd, to: BorrowedFd, name: &str) -> Result<()> {
    move_as(from, name, to, name)
}

/// The same for `old`, which is called `new` there.
pub fn move_as(from: BorrowedFd, old: &str, to: BorrowedFd, new: &str) -> Result<()> {
    let shown = printable(new);
    let there = |what: &str| -> Result<()> {
        let (Some(new), old) = (stat(to, new)?, stat(from, old)?) else {
            bail!("{shown} has vanished");
        };
        match old {
            None => Ok(()),
            Some(old) if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino) => Ok(()),
            Some(_) => bail!("{shown} {what}"),
        }
    };
    match rustix::io::retry_on_intr(|| rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE)) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => there("is there already: nothing is overwritten; move that file away"),
        Err(Errno::NOENT) => there("is there already"),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::linkat(from, old, to, new, AtFlags::empty()) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => there("is there already: nothing is overwritten; move that file away"),
                Err(error) => Err(error).with_context(|| format!("cannot put {shown} in its place")),
            }
        }
        Err(error) => Err(error).with_context(|| format!("cannot move {shown} to its place")),
    }
}

/// Removes `name`; it need not be there.
pub fn unlink(dir: BorrowedFd, name: &str) -> Result<()> {
    match rustix::io::retry_on_intr(|| rustix::fs::unlinkat(dir, name, AtFlags::empty())) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", printable(name))),
    }
}

/// Removes the directory `name` if it is empty; whether it did.
pub fn remove_empty_dir(dir: BorrowedFd, name: &str) -> bool {
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).is_ok()
}

/// Names, and what their directory says they are.
pub type Names = Vec<(String, FileType)>;

/// The names in a directory with what the directory says they are; those that are no UTF-8 are left out.
pub fn names(dir: BorrowedFd) -> rustix::io::Result<Names> {
    names_and_odd(dir).map(|(names, _)| names)
}

/// The same; and apart those that are no UTF-8, escaped.
pub fn names_and_odd(dir: BorrowedFd) -> rustix::io::Result<(Names, Vec<String>)> {
    let (mut found, mut odd) = (Vec::new(), Vec::new());
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => found.push((name.to_owned(), entry.file_type())),
            Err(_) => odd.push(entry.file_name().to_bytes().escape_ascii().to_string()),
        }
    }
    Ok((found, odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_of_many_end_as_those_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = rustix::pipe::pipe().unwrap().0;
        for count in [3, FLUSHES, 21] {
            let mut made: Vec<Result<OwnedFd>> =
                (0..count).map(|at| Ok(File::create(dir.path().join(at.to_string())).unwrap().into())).collect();
            made[0] = Err(anyhow!("before"));
            // A pipe cannot be flushed.
            made[2] = Ok(pipe.try_clone().unwrap());
            let flushed = sync_good(made, |fd| fd.as_fd());
            let failed: Vec<usize> = (0..count).filter(|at| flushed[*at].is_err()).collect();
            assert_eq!(failed, [0, 2]);
            assert_eq!(flushed[0].as_ref().unwrap_err().to_string(), "before");
        }
    }
}
