//! Commands over there, where ssh lets us run more than rsync.
//!
//! What is run is a script of ours, always the same; the names that it works on come by standard input, a line each, so that
//! none is ever a word of a shell. That stays open until the script has ended: one that runs long can tell by it that we are
//! gone.

use anyhow::{Context, Result};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use super::{Bounds, Far, Url};
use crate::command::{Event, Finished, Program};
use crate::meter::Wire;

/// What a script may be given to read, in bytes: a pipe holds it, so that nobody has to wait for who reads.
pub(super) const LINES_MAX: usize = 60_000;

impl Far {
    /// Whether commands may be run over there, as far as is known.
    pub(super) fn runs_commands(&self) -> bool {
        matches!(self.url, Url::Ssh { .. }) && self.restricted != Some(true)
    }

    /// The directory `place` over there, as a script reads it.
    pub(super) fn dir_there(&self, place: &str) -> String {
        let Url::Ssh { path, .. } = &self.url else { return place.to_owned() };
        // `~/` is where a command begins, and a shell would not see it in what it reads.
        let dir = format!("{}{place}", path.strip_prefix("~/").unwrap_or(path));
        if dir.is_empty() { ".".to_owned() } else { dir }
    }

    /// Runs a script over there, of which each of `lines` is one line of input; `None` where that can't be: no commands, a
    /// line that is none, or too many of them.
    pub(super) fn over_there(
        &self,
        script: &str,
        lines: &[String],
        timeout: Option<Duration>,
        bounds: &Bounds,
    ) -> Result<Option<Finished>> {
        let Url::Ssh { host, .. } = &self.url else { return Ok(None) };
        let input: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let sayable = input.len() <= LINES_MAX && !lines.iter().any(|line| line.contains(char::is_control));
        if !self.runs_commands() || !sayable {
            return Ok(None);
        }
        self.check(bounds)?;
        let (reader, mut held) = std::io::pipe().context("cannot make a pipe")?;
        held.write_all(input.as_bytes()).context("cannot write to a pipe")?;
        // The user's shell over there may be any: it sees one quoted word.
        let command = format!("exec sh -c '{script}'");
        let mut program = Program::new(&self.ssh[0])?.args(self.ssh[1..].iter().cloned());
        program = program.args(["--", host.as_str(), &command]).stdin(Stdio::from(reader));
        program = program.guarded().ticking(Duration::from_millis(50));
        if let Some(limit) = timeout {
            program = program.timeout(limit);
        }
        let mut said = Vec::new();
        let ran = program.run_with(|event| {
            if let Event::Output(bytes) = event {
                said.extend_from_slice(bytes);
            }
            self.check(bounds)
        });
        let came = said.len() + ran.as_ref().map_or(0, |ran| ran.stderr.len());
        self.spent(Wire { out: (command.len() + input.len()) as u64, into: came as u64 });
        ran.map(|ran| Some(Finished { stdout: said, ..ran }))
    }
}

/// Between single quotes, for sh, csh and fish as login shells; `!` is history only for a csh that is interactive.
#[cfg(test)]
pub(super) fn is_one_word(script: &str) -> bool {
    !script.contains(['\'', '\n', '\\'])
}
