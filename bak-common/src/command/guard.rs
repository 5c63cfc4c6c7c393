//! A guard between us and a program that may start others: when we are gone, the whole process group ends.
//!
//! The kernel ends only our own child with us. What that is called for (a script that calls ssh, `sudo`) would outlive it,
//! and a program like `ssh -N` would do so for ever. So we start ourselves as a guard, in a group of its own, which starts
//! the program in that group and waits for the end of either. What leaves the group, as by `setsid`, is still below the guard,
//! which takes in what loses its parent; so all of that ends, too. Only who kills the guard itself by SIGKILL lets it go.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Pid;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
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
    // Where that can't be, what leaves the group and loses its parent outlives us.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let program = Program::new(&path)?.args(args).own_locale().stdin(Stdio::inherit());
    let mut child = program.spawn(Stdio::inherit(), Stdio::inherit())?;
    loop {
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            // As a shell has it: a program that a signal ended has a status above 128.
            let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(255);
            return Ok(u8::try_from(code).unwrap_or(255));
        }
        while let Some(info) = fd.read_signal().context("cannot read a signal")? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                end_group(Some(&mut child));
            }
        }
    }
}

/// Asks all of our process group to end, and all that is below us, and then ends it, with ourselves. For who has blocked what
/// it is asked by.
pub fn end_group(mut child: Option<&mut Child>) -> ! {
    let group = rustix::process::getpgrp();
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
    end_below(rustix::process::Signal::TERM);
    let asked = Instant::now();
    let mut gone = || child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
    while asked.elapsed() < ASKED && !gone() {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Again and again, as one may have started another meanwhile.
    while end_below(rustix::process::Signal::KILL) && asked.elapsed() < ASKED * 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    std::process::exit(255)
}

/// Sends a signal to all that is below us; whether there is any. A process whose parent ends meanwhile comes to be right
/// below the guard.
fn end_below(signal: rustix::process::Signal) -> bool {
    let pairs = parents();
    let mut found = vec![rustix::process::getpid()];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
        at += 1;
    }
    for pid in &found[1..] {
        // Its number is its own as long as we, who would have to, do not wait for it; one that somebody else waits for is
        // looked up and killed within a blink.
        let _ = rustix::process::kill_process(*pid, signal);
    }
    found.len() > 1
}

/// All processes that live, with their parents.
fn parents() -> Vec<(Pid, Pid)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        Some((Pid::from_raw(pid)?, parent(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
    })
    .collect()
}

/// The parent of a process that lives, by its line in `/proc/PID/stat`.
fn parent(stat: &str) -> Option<Pid> {
    // The name, in brackets, may hold anything.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    let state = words.next()?;
    let parent = words.next()?.parse().ok()?;
    Pid::from_raw(parent).filter(|_| state != "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_by_their_lines() {
        let of = |stat: &str| parent(stat).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(of("70 (sleep) S 69 70 70 0 -1"), Some(69));
        assert_eq!(of("70 (a) Z (b) R 1 70 70"), Some(1));
        assert_eq!((of("70 (sleep) Z 69 70 70"), of("71 (kthreadd) S 0 0 0"), of("")), (None, None, None));
    }
}
