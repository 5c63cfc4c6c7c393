//! rrsync, which lets a key of ssh run nothing but rsync, in one directory: whether it is there, and what it says.
//!
//! It takes the paths of options for ones of its directory and refuses `..` in them, it lets in one at a time, and may be
//! told to remove nothing.

use anyhow::Result;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Far, Url};
use crate::command::Program;
use crate::meter::Wire;

/// What is run over there to see who answers: rsync itself would say its version.
const QUESTION: [&str; 2] = ["rsync", "--version"];

impl Far {
    /// Finds out whether rrsync answers. For who has just connected.
    pub(super) fn ask_who_answers(&mut self) -> Result<()> {
        let Url::Ssh { host, .. } = &self.url else { return Ok(()) };
        if self.restricted.is_some() {
            return Ok(());
        }
        let program = Program::new(&self.ssh[0])?.args(self.ssh[1..].iter().cloned());
        let program = program.args(["--", host.as_str()]).args(QUESTION).timeout(Duration::from_secs(60));
        let answer = program.guarded().heeding().run()?;
        let out = QUESTION.iter().map(|word| word.len() + 1).sum::<usize>() as u64;
        self.spent(Wire { out, into: (answer.stdout.len() + answer.stderr.len()) as u64 });
        let said = &answer.stderr;
        let restricted = !answer.status.success() && (said.contains("--server option is not") || busy(said));
        self.restricted = Some(restricted);
        if answer.status.success() {
            self.protocol = protocol(&String::from_utf8_lossy(&answer.stdout));
        }
        self.alone.store(restricted, Relaxed);
        Ok(())
    }
}

/// What `rsync --version` says of it: `rsync  version 3.5.0  protocol version 32`.
fn protocol(said: &str) -> Option<u32> {
    let (_, rest) = said.lines().find_map(|line| line.split_once("protocol version "))?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether another one is at work, just now.
pub fn busy(said: &str) -> bool {
    said.contains("Another instance of rrsync")
}

/// What rrsync means by a line of what was said, and the line, if it is one that the next try would meet, too.
pub fn words(said: &str) -> Option<(&'static str, &str)> {
    const TABLE: [(&str, &str); 9] = [
        ("sending to read-only server", "rrsync over there only lets us read (-ro)"),
        ("reading from write-only server", "what has arrived could not be looked at: rrsync only lets us write (-wo)"),
        (NO_DIRECTORY[0], "rrsync's directory is not there"),
        (NO_DIRECTORY[1], "rrsync's directory is not there"),
        ("has been disabled on this server", "rrsync over there does not allow an option that is needed"),
        (UNKNOWN, "rrsync over there does not know an option"),
        ("do not use .. in", "rrsync over there does not take this path"),
        ("unsafe arg:", "rrsync over there does not take this path"),
        ("SSH_ORIGINAL_COMMAND", "this key may not run rsync over there"),
    ];
    TABLE.iter().find_map(|(text, meaning)| Some((*meaning, said.lines().find(|line| line.contains(text))?.trim())))
}

/// What it says where its directory is missing: by itself, and by the way of its lock.
pub const NO_DIRECTORY: [&str; 2] = ["Restricted directory does not exist", "FileNotFoundError: [Errno 2]"];
/// What it says of an option that is newer than it.
pub const UNKNOWN: &str = "invalid rsync-command syntax or options";
