//! The ssh connection that all runs of a pass share.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::end::End;
use super::{Far, Url};
use crate::command::Program;
use crate::stop;

impl Far {
    /// Starts the ssh connection that the runs share, and waits until it stands; nothing is done where one stands, or none
    /// is needed.
    pub fn connect(&mut self) -> Result<()> {
        let Url::Ssh { host, .. } = &self.url else { return Ok(()) };
        if let Some(master) = &mut self.master {
            if master.try_wait().context("cannot wait for ssh")?.is_none() {
                return Ok(());
            }
            self.master = None;
        }
        // A socket's path holds 108 bytes, ours may be longer: this is the same directory under a short name.
        let socket = PathBuf::from(format!("/proc/{}/fd/{}/ssh", std::process::id(), self.scratch_dir.as_raw_fd()));
        // What a connection that died has left.
        let _ = std::fs::remove_file(&socket);
        let with_socket = |more: &[&str]| {
            let mut args: Vec<OsString> = self.shell[1..].to_vec();
            args.extend(["-S".into(), socket.clone().into_os_string()]);
            args.extend(more.iter().map(OsString::from));
            args
        };
        let program =
            Program::new(&self.shell[0])?.args(with_socket(&["-M", "-N", "-o", "ControlPersist=no", "--", host]));
        let program = program.guarded();
        let mut master = program.spawn(Stdio::null(), Stdio::piped())?;
        let said = master.stderr.take().map(last_words);
        let begun = Instant::now();
        loop {
            if let Some(status) = master.try_wait().context("cannot wait for ssh")? {
                let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
                End::soon().map_or(Ok(()), |end| Err(end.error()))?;
                bail!("ssh could not connect ({status}): {said}");
            }
            if socket.exists() {
                let check = Program::new(&self.shell[0])?
                    .args(with_socket(&["-O", "check", "--", host]))
                    .timeout(Duration::from_secs(10))
                    .own_group()
                    .heeding()
                    .run();
                let check = match check {
                    Ok(check) => check,
                    Err(error) => {
                        crate::command::stop_group(&mut master);
                        return Err(error);
                    }
                };
                if check.status.success() {
                    break;
                }
            }
            let late = begun.elapsed() > Duration::from_secs(60);
            if late || stop::caught().is_some() {
                crate::command::stop_group(&mut master);
                stop::check()?;
                bail!("ssh could not connect within 60 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.master = Some(master);
        self.ssh = self.shell.clone();
        self.ssh.extend(["-S".into(), socket.into_os_string(), "-o".into(), "ControlMaster=no".into()]);
        self.ask_who_answers()
    }
}

/// Reads what a program says to its end, and keeps the last line.
fn last_words(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..count]);
            let over = kept.len().saturating_sub(buffer.len());
            kept.drain(..over);
        }
        let text = String::from_utf8_lossy(&kept).into_owned();
        text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
    })
}

/// The words of a remote shell's command as `--ssh` takes it: split at spaces.
pub fn ssh_words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}
