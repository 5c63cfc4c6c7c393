//! A guard between us and a program that may start others: when we are gone, the whole process group ends.
//!
//! The kernel ends only our own child with us. What that is called for (a script that calls ssh, `sudo`) would outlive it,
//! and a program like `ssh -N` would do so for ever. So we start ourselves as a guard, in a group of its own, which starts
//! the program in that group and waits for the end of either.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use std::ffi::OsString;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::Program;

const GUARD: &str = "--bak-guard";

/// How long the program has to end once it was asked to.
const ASKED: Duration = Duration::from_millis(700);

impl Program {
    /// Has it guarded: see [`super::guard`]. It gets a group of its own.
    pub fn guarded(mut self) -> Self {
        let words = [GUARD.into(), self.path.into_os_string()];
        self.args = words.into_iter().chain(self.args).collect();
        // The path stays ours even if this program is replaced by a newer one meanwhile.
        self.path = format!("/proc/{}/exe", std::process::id()).into();
        self.on_our_death = rustix::process::Signal::TERM;
        self.own_group()
    }
}

/// Is a guard, if this process was started as one: the status to exit with. `None` otherwise.
pub fn run() -> Option<Result<u8>> {
    let mut args = std::env::args_os().skip(1);
    (args.next()? == GUARD).then(|| guard(args))
}

fn guard(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let path = args.next().context("wrong use of an internal option")?;
    let stops = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD];
    let set: SigSet = stops.into_iter().collect();
    set.thread_block().context("cannot block signals")?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let fd = fd.context("cannot wait for signals")?;
    let program = Program::new(&path)?.args(args).own_locale().stdin(Stdio::inherit());
    let mut child = program.spawn(Stdio::inherit(), Stdio::inherit())?;
    loop {
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            return Ok(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255));
        }
        while let Some(info) = fd.read_signal().context("cannot read a signal")? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                end_group(Some(&mut child));
            }
        }
    }
}

/// Asks all of our process group to end, and then ends it, with ourselves. For who has blocked what it is asked by.
pub fn end_group(mut child: Option<&mut Child>) -> ! {
    let group = rustix::process::getpgrp();
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
    let asked = Instant::now();
    let mut gone = || child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
    while asked.elapsed() < ASKED && !gone() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    std::process::exit(255)
}
