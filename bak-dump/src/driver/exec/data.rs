//! The stream that a driver's program writes to descriptor 3, packed into a file while it runs.
//!
//! Its end is the hazard: a pipe ends when the last program that holds it has closed it, be that the driver, or something it
//! left running. The stream counts as whole only if that end came, and the driver ended well.

use anyhow::Result;
use bak_common::fsio;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Error, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::frames::{self, LEVEL, Written};

/// How often to look whether all is over.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long after the end of the program the end of its stream may come, and of what it left running with its files.
pub const GRACE: Duration = Duration::from_secs(2);

/// No pipe holds more.
const PIPE_MAX: usize = 1 << 20;

/// What the thread that runs the program and the one that packs its stream tell each other.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes of the stream so far.
    pub bytes: AtomicU64,
    /// The program ended well, and when.
    pub ended: OnceLock<Instant>,
    /// The program failed: the stream is worth nothing.
    pub over: AtomicBool,
    /// The stream could not be kept: the program need not go on.
    pub broken: AtomicBool,
}

struct Stream<'a> {
    pipe: File,
    flow: &'a Flow,
    /// Bytes that came after the end of the program.
    late: usize,
}

/// Packs what comes by `pipe` into `file`, and flushes that.
pub fn pack(pipe: OwnedFd, file: &File, flow: &Flow) -> Result<Written> {
    frames::widen(&pipe);
    let tick = |bytes: u64| {
        flow.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    };
    let stream = Stream { pipe: pipe.into(), flow, late: 0 };
    let abort = || flow.broken.store(true, Ordering::Relaxed);
    let written = frames::write(stream, file, (LEVEL, frames::threads()), &tick, abort).and_then(|written| {
        if written.stream > 0 {
            fsio::sync(file.as_fd())?;
        }
        Ok(written)
    });
    if written.is_err() && !flow.over.load(Ordering::Relaxed) {
        flow.broken.store(true, Ordering::Relaxed);
    }
    written
}

impl Stream<'_> {
    fn left_running() -> Error {
        Error::other("the driver has ended, and left a program running that holds descriptor 3")
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.flow.over.load(Ordering::Relaxed) || self.flow.broken.load(Ordering::Relaxed) {
                return Err(Error::other("it was ended"));
            }
            // Looked at before the pipe is: what is read then was in it when the program ended, or came later.
            let ended = self.flow.ended.get().is_some();
            let mut pipe = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut pipe, Some(&LOOK)) {
                Ok(0) => {}
                Ok(_) => {
                    let count = self.pipe.read(buffer)?;
                    if ended {
                        self.late += count;
                        if self.late > PIPE_MAX {
                            return Err(Self::left_running());
                        }
                    }
                    return Ok(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.flow.ended.get().is_some_and(|ended| ended.elapsed() > GRACE) {
                return Err(Self::left_running());
            }
        }
    }
}
