//! The remote shell that a meter has started, and how it ends.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, getppid, waitid};
use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LOOK, Line, Quiet};
use crate::command::guard::end_group;

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shell's input, which others than its writer may close.
#[derive(Clone)]
pub struct Input(Arc<Mutex<Option<ChildStdin>>>);

impl Input {
    pub fn new(input: ChildStdin) -> Self {
        Self(Arc::new(Mutex::new(Some(input))))
    }

    pub fn close(&self) {
        *hold(&self.0) = None;
    }

    /// Closes it unless somebody is just writing, who may be stuck; whether it is closed.
    fn try_close(&self) -> bool {
        self.0.try_lock().map(|mut input| *input = None).is_ok()
    }

    /// Holds it meanwhile, so that [`Input::try_close`] leaves it alone.
    pub fn with<T>(&self, write: impl FnOnce(&mut ChildStdin) -> std::io::Result<T>) -> std::io::Result<T> {
        write(hold(&self.0).as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?)
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.with(|input| input.write(bytes))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The shell that was started. It is there until it is waited for, so that a signal never reaches another process.
pub struct Shell(Mutex<Option<Child>>);

impl Shell {
    pub fn new(child: Child) -> Self {
        Self(Mutex::new(Some(child)))
    }

    pub fn signal(&self, signal: Signal) {
        let shell = hold(&self.0);
        let pid = shell.as_ref().and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends it: asks first.
    fn end(&self) {
        self.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
        self.signal(Signal::KILL);
    }

    /// Waits for its end: its exit status, as a shell has it.
    pub fn wait(&self) -> Result<u8> {
        let pid = hold(&self.0).as_ref().and_then(|child| i32::try_from(child.id()).ok()).and_then(Pid::from_raw);
        let pid = pid.context("cannot wait for the remote shell")?;
        let ended = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        rustix::io::retry_on_intr(ended).context("cannot wait for the remote shell")?;
        let status = hold(&self.0).take().map(|mut child| child.wait()).transpose();
        let status = status.context("cannot wait for the remote shell")?.and_then(|status| status.code());
        Ok(u8::try_from(status.unwrap_or(255)).unwrap_or(255))
    }
}

/// Sees to it that all ends when rsync is gone or the transfer is to end, also where both directions are stuck.
pub fn watch(line: &Line, input: &Input, shell: &Shell) {
    let (mut asked, mut quiet) = (None::<Instant>, Quiet::new());
    loop {
        std::thread::sleep(LOOK / 2);
        if quiet.is_too_long(line) {
            shell.end();
            return;
        }
        if getppid() != line.parent {
            shell.end();
            // What the shell has started is in our group, if that is rsync's own.
            if Some(getpgrp()) == line.parent {
                end_group(None);
            }
            std::process::exit(255);
        }
        if let Some(patience) = line.counts.stopped() {
            input.try_close();
            if asked.get_or_insert_with(Instant::now).elapsed() > patience {
                shell.end();
                return;
            }
        }
    }
}
