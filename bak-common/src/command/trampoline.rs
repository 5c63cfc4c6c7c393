//! The exec in between: see the parent module.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What makes this program the trampoline.
pub(super) const TRAMPOLINE: &str = "--bak-exec";

/// The second half of starting a program; does not return if this process was started for that. An error otherwise.
pub fn trampoline() -> Option<anyhow::Error> {
    let mut args = std::env::args_os();
    let own = args.next().unwrap_or_default();
    if args.next()? != TRAMPOLINE {
        return None;
    }
    let become_it = || -> Result<()> {
        let mut number =
            || args.next().and_then(|arg| arg.to_str()?.parse::<i32>().ok()).context("wrong use of an internal option");
        let parent = Pid::from_raw(number()?);
        let signal = Signal::from_named_raw(number()?).context("wrong use of an internal option")?;
        rustix::process::set_parent_process_death_signal(Some(signal)).context("cannot tie a program to this one")?;
        if rustix::process::getppid() != parent {
            bail!("the program that asked for this one is gone");
        }
        // Whoever started us may have blocked what is to stop it.
        nix::sys::signal::SigSet::all().thread_unblock().context("cannot unblock signals")?;
        let program = args.next().context("wrong use of an internal option")?;
        let error = Command::new(&program).arg0(own).args(args).exec();
        Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
    };
    become_it().err()
}
