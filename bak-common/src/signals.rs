//! Signals that would end us while something must still be put right: they wait, are passed on to the program that works,
//! and are remembered.
//!
//! They are blocked, not handled, so that a program started meanwhile finds them as our caller left them; what the caller
//! has us ignore (`nohup`) stays ignored by both.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use rustix::event::{PollFd, PollFlags, poll};
use std::process::{Child, ExitStatus};

const STOPS: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Of these signals those that our caller does not have us ignore.
pub fn heeded(signals: &[Signal]) -> SigSet {
    let ignored = ignored();
    signals.iter().copied().filter(|signal| ignored & (1 << (*signal as i32 - 1)) == 0).collect()
}

/// `si_code` of what the kernel itself sent: for these signals a terminal's, which sends it to all of its foreground.
const SI_KERNEL: i32 = 0x80;

/// From here on the signals that stop programs wait to be asked for.
pub struct Signals {
    fd: SignalFd,
    caught: Option<Signal>,
}

impl Signals {
    /// To be called in the thread that starts and awaits the programs, before any other thread there is.
    pub fn block() -> Result<Self> {
        let mut set = heeded(&STOPS);
        set.add(Signal::SIGCHLD);
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        Ok(Self { fd: fd.context("cannot wait for signals")?, caught: None })
    }

    fn next(&mut self) -> Result<Option<(Signal, siginfo)>> {
        while let Some(info) = self.fd.read_signal().context("cannot read a signal")? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) {
                self.caught.get_or_insert(signal);
                return Ok(Some((signal, info)));
            }
        }
        Ok(None)
    }

    /// The first signal that was to stop us.
    pub fn caught(&mut self) -> Result<Option<Signal>> {
        while self.next()?.is_some() {}
        Ok(self.caught)
    }

    /// Waits for the end of `child`, passing on what was to stop us.
    pub fn wait(&mut self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            // Whoever has ended is noticed here before a signal could go to another process with its number.
            if let Some(status) = child.try_wait().context("cannot wait for a program")? {
                return Ok(status);
            }
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for signals"),
            }
            while let Some((signal, info)) = self.next()? {
                // A terminal has sent it to the program, too, and some take a second one for impatience.
                if info.ssi_code != SI_KERNEL {
                    send(child, signal);
                }
            }
        }
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some((pid, signal)) = pid.zip(rustix::process::Signal::from_named_raw(signal as i32)) {
        // It may have ended just now.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The signals that our caller has us ignore, as a set of bits; none where that cannot be told.
fn ignored() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = text.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}
