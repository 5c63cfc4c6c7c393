//! How an rsync ended, in words.

use anyhow::{Result, anyhow};

use super::end::End;
use super::{daemon, rrsync};
use crate::command::Finished;
use crate::meter::Wire;

/// How one rsync went.
#[derive(Debug)]
pub struct Ran {
    pub finished: Finished,
    pub wire: Wire,
    /// The limit ended it, in order.
    pub cut: bool,
    /// It was ended before it was done.
    pub end: Option<End>,
    /// It was ended as nothing crossed for too long.
    pub silent: bool,
    /// It brings files here, so what cannot be written is here.
    pub pulls: bool,
}

/// What was asked for would have gone beyond the limit.
#[derive(Debug)]
pub struct LimitReached;

impl std::fmt::Display for LimitReached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the limit is reached")
    }
}

impl std::error::Error for LimitReached {}

/// What rsync's exit status means.
pub fn words(code: Option<i32>) -> &'static str {
    match code {
        Some(1) => "rsync does not know an option: is it older than 3.1 over there?",
        Some(3) => "files could not be chosen",
        Some(5) => "the rsync over there could not start",
        Some(10 | 12) => "the connection broke",
        Some(11) => "a file could not be written or read (is the disk full over there?)",
        Some(20) => "it was interrupted",
        Some(22) => "out of memory",
        Some(23) => "some files could not be transferred",
        Some(24) => "files vanished while they were sent",
        Some(30 | 35) => "the far side did not answer in time",
        Some(127) => "rsync is not installed over there",
        Some(255) => "the ssh connection broke",
        _ => "rsync failed",
    }
}

/// That there is no room where files are written, if that is what rsync says: it ends with 11, 12 or 23 then.
fn full(said: &str, pulls: bool) -> Option<&'static str> {
    let (space, quota) = ("No space left on device", "Disk quota exceeded");
    match (said.contains(space), said.contains(quota), pulls) {
        (true, _, false) => Some("the disk over there is full"),
        (true, _, true) => Some("the disk here is full"),
        (_, true, false) => Some("the quota over there is used up"),
        (_, true, true) => Some("the quota here is used up"),
        (false, false, _) => None,
    }
}

/// What the code says of the files where they come here: rsync names the end that had trouble.
fn file_trouble(said: &str) -> &'static str {
    if said.contains("[sender]") { "a file could not be read over there" } else { "a file could not be written here" }
}

/// Whether rsync could not enter the directory over there as there is none.
fn no_place(said: &str) -> bool {
    said.lines().any(|line| line.contains("change_dir") && line.contains("No such file or directory (2)"))
}

/// Whether these words of ssh's or a daemon's say that we will not be let in next time either.
pub fn refused(said: &str) -> bool {
    [
        "Permission denied",
        "Host key verification failed",
        "IDENTIFICATION HAS CHANGED",
        "Too many authentication failures",
        "@ERROR: auth failed",
        "@ERROR: Unknown module",
        "@ERROR: access denied",
    ]
    .iter()
    .any(|words| said.contains(words))
}

impl Ran {
    /// Whether the line, and not this file, is the trouble.
    pub fn line_down(&self) -> bool {
        let code = self.finished.status.code();
        self.end.is_none()
            && (self.silent || matches!(code, Some(5 | 10 | 12 | 30 | 35 | 255)) && !self.hopeless() || self.busy())
    }

    /// Whether there was no room over there.
    pub fn is_full(&self) -> bool {
        !self.pulls && self.full().is_some()
    }

    /// Whether there was no room here.
    pub fn is_full_here(&self) -> bool {
        self.pulls && self.full().is_some()
    }

    /// That there was no room, and at which end.
    pub(super) fn full(&self) -> Option<&'static str> {
        full(&self.finished.stderr, self.pulls)
    }

    /// Whether a next try can only end the same way.
    fn hopeless(&self) -> bool {
        let said = &self.finished.stderr;
        self.full().is_some()
            || daemon::words(said).is_some()
            || rrsync::words(said).is_some()
            || (self.pulls && no_place(said))
    }

    /// Whether somebody else is served over there just now, and only so many at a time.
    pub(super) fn busy(&self) -> bool {
        !self.finished.status.success() && (daemon::busy(&self.finished.stderr) || rrsync::busy(&self.finished.stderr))
    }

    /// Whether the far side does not know this option, or forbids it.
    pub(super) fn denies(&self, option: &str) -> bool {
        let said = &self.finished.stderr;
        !self.finished.status.success()
            && (said.contains(&format!("{option}: unknown option"))
                || daemon::refuses(said) == Some(option)
                || (option == "--fsync" && said.contains(rrsync::UNKNOWN)))
    }

    /// Whether the far side lets nobody remove anything.
    pub(super) fn forbids_removal(&self) -> bool {
        let said = &self.finished.stderr;
        !self.finished.status.success()
            && (matches!(daemon::refuses(said), Some("--delete" | "--remove-source-files"))
                || said.contains("--remove-source-files has been disabled"))
    }

    /// Whether the directory that a daemon or rrsync serves is not there.
    pub(super) fn no_directory(&self) -> bool {
        let said = &self.finished.stderr;
        !self.finished.status.success()
            && (said.contains(daemon::NO_DIRECTORY) || rrsync::NO_DIRECTORY.iter().any(|text| said.contains(text)))
    }

    /// An error if the limit ended it, which is a [`LimitReached`]; or what else did.
    pub fn in_limit(&self) -> Result<()> {
        match self.end {
            _ if self.finished.status.success() => Ok(()),
            Some(end) => Err(end.error()),
            None if self.cut => Err(LimitReached.into()),
            None => Ok(()),
        }
    }

    pub fn check(&self) -> Result<()> {
        self.in_limit()?;
        if self.finished.status.success() { Ok(()) } else { Err(self.error()) }
    }

    pub fn error(&self) -> anyhow::Error {
        let code = self.finished.status.code();
        let status = code.map_or_else(|| "killed".to_owned(), |code| code.to_string());
        let stderr = &self.finished.stderr;
        if self.full().is_none()
            && let Some((meaning, line)) = daemon::words(stderr).or_else(|| rrsync::words(stderr))
        {
            let line = line.split_once("error: ").map_or(line, |(_, line)| line).trim_start_matches("rsync: ");
            return anyhow!("{meaning} (rsync {status}): {line}");
        }
        if self.silent {
            return anyhow!("{} (rsync {status})", words(Some(30)));
        }
        if let Some(line) = daemon::unreachable(stderr) {
            return anyhow!("{line} (rsync {status})");
        }
        if self.busy() {
            return anyhow!("others are served over there, and only so many at a time (rsync {status})");
        }
        // rsync's own last line repeats its status; what matters stands before.
        let said: Vec<&str> = self
            .finished
            .stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("rsync error:"))
            .collect();
        let said = said.first().map_or(String::new(), |line| format!(": {}", line.trim_start_matches("rsync: ")));
        let meaning = match code {
            Some(11) if self.pulls => file_trouble(stderr),
            _ if self.pulls && no_place(stderr) => "there is no such directory over there",
            _ => words(code),
        };
        anyhow!("{} (rsync {status}){said}", self.full().unwrap_or(meaning))
    }
}
