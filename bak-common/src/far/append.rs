//! To a mounted path in slices: a file grows over there under its hidden name, is read back whole, and only then gets its
//! place. Deltas over a mount would cost more than they save.
//!
//! A slice that ends, or a crash, leaves what has arrived; the next slice goes on behind it. That the old part is still
//! right is not known before the end, where all of it is compared with the file here. What differs then is sent anew.

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::{Bounds, Far, Url};
use crate::fsio;
use crate::meter::{Throttle, Wire};

/// What is copied at once, in bytes: between two of them the limit, the rate and the watcher are looked at.
const CHUNK: usize = 256 << 10;

const LONG: Bounds = Bounds { lock: None, at_most: None, silent: 0, long: true, inward: false };

/// A slice of a file on its way to a mounted far side.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    pub from: &'a Path,
    /// The directory over there, and in it the one for what is not whole yet.
    pub place: &'a str,
    pub partial: &'a str,
    pub name: &'a str,
    /// How many bytes may go; none for all.
    pub room: Option<u64>,
}

impl Far {
    /// Appends to the partial file over there. Once all of it is there and reads back the same it gets its place; false if
    /// it was not all.
    pub fn append(&self, slice: Slice, watch: &mut dyn FnMut(Wire) -> Result<()>) -> Result<bool> {
        self.append_it(slice, watch).map_err(|error| match &self.url {
            Url::Path(path) if fsio::is_full(&error) => {
                error.context(format!("the disk over there is full ({})", path.display()))
            }
            _ => error,
        })
    }

    fn append_it(&self, slice: Slice, watch: &mut dyn FnMut(Wire) -> Result<()>) -> Result<bool> {
        let Slice { from, place, partial, name, .. } = slice;
        self.still_mounted()?;
        let Some(top) = &self.opened else { bail!("only a mounted path can be appended to") };
        let mut here = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        let dir = fsio::make_dir(top.as_fd(), place).context("cannot make a directory over there")?;
        let parts = fsio::make_dir(dir.as_fd(), partial).context("cannot make a directory over there")?;
        if fsio::stat(dir.as_fd(), name)?.is_some() {
            // Its sidecar is missing, so it is ours and unfinished, and only needs to be proved.
            fsio::move_file(dir.as_fd(), parts.as_fd(), name).context("cannot move a file over there")?;
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parts, name, flags, Mode::RUSR | Mode::WUSR);
        let mut there = File::from(fd.with_context(|| format!("cannot open {name} over there"))?);
        // What was there before may be anything: if it proves wrong, all of it goes once more.
        let before = self.wire().both();
        for round in 0..2 {
            let spent = self.wire().both() - before;
            let left = slice.room.map_or(u64::MAX, |room| room.saturating_sub(spent));
            let whole = self.grow(&mut here, &mut there, left, watch)?;
            there.sync_all().map_err(unwritten)?;
            if !whole {
                return Ok(false);
            }
            let read = same(&mut here, &mut there, || self.check(&LONG));
            if read.context("cannot read back a file over there")? {
                break;
            }
            there.set_len(0).context("cannot write a file over there")?;
            if round > 0 {
                bail!("{name} reads differently over there from what was sent: it is begun anew");
            }
        }
        let modified = here.metadata().and_then(|meta| meta.modified()).context("cannot look at a file")?;
        there.set_modified(modified).context("cannot date a file over there")?;
        fsio::move_file(parts.as_fd(), dir.as_fd(), name).context("cannot move a file over there")?;
        // Where a mount can only link it still has both names.
        fsio::unlink(parts.as_fd(), name)?;
        self.flush_names(place, &[name.to_owned()])?;
        // Not while another file of the guest is on its way.
        fsio::remove_empty_dir(dir.as_fd(), partial);
        Ok(true)
    }

    /// Copies at most `left` bytes from where `there` ends; whether all of it is there now.
    fn grow(
        &self,
        here: &mut File,
        there: &mut File,
        mut left: u64,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<bool> {
        let end = here.metadata().context("cannot look at a file")?.len();
        let mut at = there.seek(SeekFrom::End(0)).context("cannot read a file over there")?;
        if at > end {
            there.set_len(0).context("cannot write a file over there")?;
            at = there.seek(SeekFrom::Start(0)).context("cannot write a file over there")?;
        }
        here.seek(SeekFrom::Start(at)).context("cannot read a file")?;
        let mut throttle = Throttle::new();
        let mut buffer = vec![0; CHUNK];
        while at < end && left > 0 {
            self.check(&LONG)?;
            let most = match throttle.turn(self.speed(), CHUNK) {
                Ok(most) => most,
                Err(wait) => {
                    watch(self.wire())?;
                    std::thread::sleep(wait);
                    continue;
                }
            };
            let wanted = usize::try_from(left).unwrap_or(CHUNK).min(most);
            let count = here.read(&mut buffer[..wanted]).context("cannot read a file")?;
            if count == 0 {
                bail!("a file became shorter while it was sent");
            }
            // Counted before it is written: never less than what crossed.
            self.spent(Wire { out: count as u64, into: 0 });
            there.write_all(&buffer[..count]).map_err(unwritten)?;
            (at, left) = (at + count as u64, left - count as u64);
            throttle.passed(count);
            self.position.store(at, Relaxed);
            watch(self.wire())?;
        }
        Ok(at == end)
    }
}

/// Why nothing can be written, in the words that rsync's troubles have.
fn unwritten(error: std::io::Error) -> anyhow::Error {
    let what = match error.kind() {
        ErrorKind::QuotaExceeded => "the quota over there is used up",
        _ => "cannot write a file over there",
    };
    anyhow!(error).context(what)
}

/// Whether two files have the same content.
fn same(one: &mut File, other: &mut File, check: impl Fn() -> Result<()>) -> Result<bool> {
    let (mut a, mut b) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    one.rewind()?;
    other.rewind()?;
    loop {
        check()?;
        a.clear();
        b.clear();
        (&*one).take(CHUNK as u64).read_to_end(&mut a)?;
        (&*other).take(CHUNK as u64).read_to_end(&mut b)?;
        if a != b {
            return Ok(false);
        }
        if a.is_empty() {
            return Ok(true);
        }
    }
}
