//! What went wrong, said once, and turned into the exit status.
//!
//! 0 done · 1 finished, but some guests or dumps failed · 2 usage, configuration or unreadable input · 3 a lock is held
//! · 4 a guard refused an explicit order. One line a failure, and one that sums up; nothing at all when all went well.

use anyhow::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;

use crate::name::printable;

/// Errors that end a run with a status of their own. Attached to an error with [`Kind::says`]; anything else is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Usage = 2,
    Locked = 3,
    Refused = 4,
}

#[derive(Debug)]
struct Fault {
    kind: Kind,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Kind {
    /// An error with this exit status.
    pub fn says(self, message: impl Into<String>) -> Error {
        Error::new(Fault { kind: self, message: message.into() })
    }

    /// `error` with this exit status; its causes are kept in the text.
    pub fn of(self, error: Error) -> Error {
        self.says(format!("{error:#}"))
    }
}

/// The exit status that `error` asks for.
pub fn status(error: &Error) -> u8 {
    error.downcast_ref::<Fault>().map_or(1, |fault| fault.kind as u8)
}

/// The reader of our output has gone: end quietly, non-zero.
#[derive(Debug)]
pub struct PipeClosed;

impl fmt::Display for PipeClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output has gone")
    }
}

impl std::error::Error for PipeClosed {}

/// Collects the failures of one run. Shared by the threads of `bak-dump --jobs`.
#[derive(Debug)]
pub struct Report {
    program: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failed: usize,
    status: u8,
    log: Option<std::fs::File>,
}

impl Report {
    pub fn new(program: &'static str) -> Self {
        Self { program, state: Mutex::default() }
    }

    /// Also appends every decision and failure to `file`, as records.
    pub fn log_to(&self, file: std::fs::File) {
        self.state().log = Some(file);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `id` failed; the run goes on.
    pub fn fail(&self, id: &str, error: &Error) {
        let mut state = self.state();
        state.failed += 1;
        // Status 1 says "some failed"; a refusal or a lock that hit a single dump is one of these, unless nothing else was.
        state.status = match (state.failed, status(error)) {
            (1, status) => status,
            (_, status) if status == state.status => status,
            _ => 1,
        };
        let text = format!("{error:#}");
        say(self.program, id, &text);
        let line = serde_json::json!({"program": self.program, "id": id, "failed": text, "at": now_text()});
        log(&mut state, &line.to_string());
    }

    /// Worth a line, but not a failure.
    pub fn warn(&self, id: &str, text: &str) {
        say(self.program, id, text);
        let line = serde_json::json!({"program": self.program, "id": id, "warning": text, "at": now_text()});
        log(&mut self.state(), &line.to_string());
    }

    /// Whether decisions are written anywhere.
    pub fn is_logged(&self) -> bool {
        self.state().log.is_some()
    }

    /// A decision, as the record that says it.
    pub fn decided(&self, record: &str) {
        log(&mut self.state(), record);
    }

    pub fn failed(&self) -> usize {
        self.state().failed
    }

    /// The exit status; says how many of what failed, if any did.
    pub fn finish(&self, summary: impl FnOnce(usize) -> String) -> u8 {
        let (failed, status) = {
            let state = self.state();
            (state.failed, state.status)
        };
        if failed > 0 {
            say(self.program, "", &summary(failed));
        }
        status
    }
}

fn log(state: &mut State, line: &str) {
    if let Some(file) = &mut state.log {
        // One write a line, so that lines of several programs do not mix. A log that cannot be written must not stop a
        // backup; it is said once.
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            state.log = None;
            say("bak", "log", &format!("cannot write the log, going on without it: {error}"));
        }
    }
}

fn now_text() -> String {
    crate::calendar::Time::new(chrono::Utc::now()).to_string()
}

fn say(program: &str, id: &str, text: &str) {
    let colon = if id.is_empty() { "" } else { ": " };
    let line = format!("{program}: {}{colon}{}\n", printable(id), printable(&text.replace('\n', " ")));
    // Nobody is left to tell if standard error is closed.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Runs a program: all of `main`. Sets the umask, so that nothing bak writes can be read by others.
pub fn main(program: &'static str, run: impl FnOnce() -> anyhow::Result<u8>) -> ExitCode {
    if let Some(error) = crate::command::trampoline() {
        say(program, "", &format!("{error:#}"));
        // As env(1) has them.
        let missing = error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        return ExitCode::from(if missing { 127 } else { 126 });
    }
    if let Some(result) = crate::meter::run().or_else(crate::command::guard::run) {
        return result.map_or_else(
            |error| {
                say(program, "", &format!("{error:#}"));
                ExitCode::from(255)
            },
            ExitCode::from,
        );
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let status = match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.downcast_ref::<PipeClosed>().is_some() => ExitCode::from(1),
        Err(error) => {
            say(program, "", &format!("{error:#}"));
            ExitCode::from(status(&error))
        }
    };
    crate::stop::end(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn statuses() {
        assert_eq!(status(&anyhow!("x")), 1);
        assert_eq!(status(&Kind::Refused.says("x")), 4);
        let wrapped = Err::<(), _>(Kind::Locked.says("held")).context("while linking").unwrap_err();
        assert_eq!(status(&wrapped), 3);
        let report = Report::new("test");
        report.fail("a", &Kind::Refused.says("no"));
        assert_eq!(report.finish(|_| String::new()), 4);
        report.fail("b", &anyhow!("no"));
        assert_eq!(report.finish(|_| String::new()), 1);
    }
}
