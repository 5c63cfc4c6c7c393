//! How programs are ended.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Ends a program: asks first, and insists after three seconds. It is gone when this returns.
pub fn stop(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(3) {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Whether a program has ended. It is not taken leave of: its number stays its own.
pub fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        Some(pid) => !matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None)),
        None => true,
    }
}

/// Asks a program to end, unless it has, and waits for that. It is not taken leave of.
pub(super) fn ask(child: &Child, patience: Duration) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    if !has_ended(child) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    let asked = Instant::now();
    while asked.elapsed() < patience && !has_ended(child) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How long a program that has its own group may take to end if nobody says.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Ends a program that has its own group ([`Program::own_group`]): asks it first; after a second, or when it has ended, all
/// that is left of its group is ended. It is gone when this returns.
pub fn stop_group(child: &mut Child) {
    // How it ended does not matter here.
    let _ = stop_group_within(child, PATIENCE);
}

/// The same with another patience, and how it ended. Nobody may have waited for it before: as long as nobody has, its
/// number, which is the group's, is nobody else's.
pub fn stop_group_within(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        ask(child, patience);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    child.wait().context("cannot wait for a program")
}
