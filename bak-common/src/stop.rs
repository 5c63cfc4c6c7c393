//! Being asked to end: by Ctrl-C, by `kill`, by a terminal or a session that goes away. The first time all is put in order
//! and the program then dies by that very signal, as whoever runs it expects (128 + signal in a shell); the second time,
//! or when order takes too long, at once. Nothing is lost by that either, it is what a crash does.
//!
//! The signals are blocked, and a thread waits for them, so that they interrupt nothing: who works looks here, at least a
//! few times a second. Programs that are started find them as our caller left them: see [`crate::command`].

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::signals::heeded;

const STOPS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// How long putting in order may take, whatever hangs.
const ORDER_MAX: Duration = Duration::from_millis(4500);

/// What comes so soon after the first is the same order once more: `timeout` sends it to us and to our group.
const TOGETHER: Duration = Duration::from_millis(500);

/// How often those look who wait for something else.
const LOOK: Duration = Duration::from_millis(50);

/// The signal that came first; 0 for none. A process is asked to end as a whole, so this is one for all of it.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
static HEEDING: AtomicBool = AtomicBool::new(false);

/// We were asked to end by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped(Signal);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stopped by {}", self.0)
    }
}

impl std::error::Error for Stopped {}

/// From here on the signals that end programs are heeded in order. To be called before any other thread there is, and not
/// while something is waited for that does not look here, as for standard input.
pub fn heed() -> Result<()> {
    if HEEDING.swap(true, SeqCst) {
        return Ok(());
    }
    let set = heeded(&STOPS);
    set.thread_block().context("cannot block signals")?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    let fd = fd.context("cannot wait for signals")?;
    std::thread::spawn(move || {
        let Some(first) = next(&fd, None) else { return };
        CAUGHT.store(first as i32, SeqCst);
        let came = Instant::now();
        loop {
            match next(&fd, Some(ORDER_MAX.saturating_sub(came.elapsed()))) {
                Some(_) if came.elapsed() < TOGETHER => {}
                again => die_by(again.unwrap_or(first)),
            };
        }
    });
    Ok(())
}

/// The next signal; `None` if none came in time, or if that cannot be told.
fn next(fd: &SignalFd, within: Option<Duration>) -> Option<Signal> {
    let until = within.map(|within| Instant::now() + within);
    loop {
        if let Some(info) = fd.read_signal().ok()? {
            return i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return None;
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Ends this process by a signal.
fn die_by(signal: Signal) -> ! {
    let set: SigSet = [signal].into_iter().collect();
    let _ = set.thread_unblock().and_then(|()| raise(signal));
    // Still here: the first process of a container does not die by signals.
    std::process::exit(128 + signal as i32)
}

/// The end of a program that heeds: dies by the signal if one came, all being in order now.
pub fn end(status: ExitCode) -> ExitCode {
    match caught() {
        Some(Stopped(signal)) => die_by(signal),
        None => status,
    }
}

/// Whether we were asked to end.
pub fn caught() -> Option<Stopped> {
    Signal::try_from(CAUGHT.load(SeqCst)).ok().map(Stopped)
}

/// The same where another program has just ended that may have been asked together with us: a moment is waited.
pub fn caught_soon() -> Option<Stopped> {
    let until = Instant::now() + Duration::from_millis(100);
    while HEEDING.load(SeqCst) && caught().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    caught()
}

/// A [`Stopped`] if we were asked to end.
pub fn check() -> Result<()> {
    caught().map_or(Ok(()), |stopped| Err(stopped.into()))
}

/// Sleeps, and looks meanwhile whether `check` has an end to it.
pub fn sleep(time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
    }
}
