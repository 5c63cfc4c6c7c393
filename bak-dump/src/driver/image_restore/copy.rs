//! Copies a file as it is: by sharing its blocks where the file system can, else data only, so that holes stay holes.

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

/// So much at once, between two looks at whether to stop.
const CHUNK: u64 = 16 << 20;

fn open(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Bytes of data in a file, holes left out.
pub fn size(path: &Path) -> Result<u64> {
    let file = open(path)?;
    let len = file.metadata().context("cannot look at an open file")?.len();
    let (mut sum, mut at) = (0, 0);
    while let Some((start, end)) = data(&file, at, len)? {
        sum += end - start;
        at = end;
    }
    Ok(sum)
}

/// Makes `to`, an empty file, like the one at `from`.
pub fn copy(from: &Path, to: &File, tick: &dyn Fn(f64) -> Result<()>) -> Result<()> {
    let from = open(from)?;
    if rustix::fs::ioctl_ficlone(to, &from).is_ok() {
        return Ok(());
    }
    let len = from.metadata().context("cannot look at an open file")?.len();
    to.set_len(len).context("cannot set its size")?;
    let mut at = 0;
    while let Some((start, end)) = data(&from, at, len)? {
        at = start;
        while at < end {
            let count = CHUNK.min(end - at);
            (&from).seek(std::io::SeekFrom::Start(at)).context("cannot read the dump")?;
            let mut output = to;
            output.seek(std::io::SeekFrom::Start(at))?;
            // In the kernel, where it can.
            let copied = std::io::copy(&mut (&from).take(count), &mut output)?;
            ensure!(copied == count, "the dump's file ends at byte {} instead of {len}", at + copied);
            at += count;
            tick(at as f64 / len as f64)?;
        }
    }
    Ok(())
}

/// The next stretch of data at or after `at`. Where the file system does not tell, all that is left is data.
fn data(file: &File, at: u64, len: u64) -> Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some((at, len))),
        Err(error) => return Err(error).context("cannot look for data in the dump"),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).context("cannot look for holes in the dump")?;
    Ok(Some((start.min(len), end.min(len))).filter(|(start, end)| start < end))
}
