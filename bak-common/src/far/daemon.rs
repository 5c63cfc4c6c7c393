//! What is particular to a far side that an rsync daemon serves: its password, and what it says when it refuses.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Access, Daemon, Url};
use crate::report::Kind;

impl Daemon {
    /// A directory of the module, as rsync wants it. The host is for the meter alone.
    pub(super) fn place(&self, below: &str) -> OsString {
        let user = self.user.as_ref().map_or_else(String::new, |user| format!("{user}@"));
        format!("{user}daemon::{}/{below}", self.module).into()
    }
}

/// Refuses a password file that rsync would not take, or that stands where there is nobody to give it to.
pub fn check(url: &Url, access: &Access) -> Result<()> {
    let Some(path) = &access.password_file else { return Ok(()) };
    let usage = |why: &str| Err(Kind::Usage.says(format!("the password file {}: {why}", path.display())));
    match url {
        Url::Daemon(Daemon { user: Some(_), .. }) => {}
        Url::Daemon(_) => return usage("say whose password it is: rsync://USER@host/module"),
        _ => return usage("only rsync:// takes one"),
    }
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return usage(&error.to_string()),
    };
    let us = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        usage("it is not a file")
    } else if meta.mode() & 0o007 != 0 {
        usage("other users may read it: chmod 600")
    } else if us == 0 && meta.uid() != 0 {
        usage("it does not belong to root: chown root")
    } else if fs::read(path).context("cannot read it").map(|text| !text.starts_with(b"\n") && !text.is_empty())? {
        Ok(())
    } else {
        usage("its first line is empty")
    }
}

/// What a daemon means by a line of what rsync has said, and the line, if it is one that the next try would meet, too.
pub fn words(said: &str) -> Option<(&'static str, &str)> {
    const TABLE: [(&str, &str); 12] = [
        ("@ERROR: auth failed", "the daemon does not let us in: are the user and the password_file right?"),
        ("@ERROR: Unknown module", "the daemon has no such module"),
        ("@ERROR: access denied", "the daemon takes no connections from here"),
        (NO_DIRECTORY, "the module's directory is not there, or may not be entered"),
        ("@ERROR: ", "the daemon refused"),
        ("ERROR: module is read only", "the module is read only: it needs `read only = no`"),
        ("cannot be used with a read-only module", "the module is read only: it needs `read only = no`"),
        ("ERROR: module is write only", "what has arrived could not be looked at: the module needs `write only = no`"),
        (REFUSES, "the module's `refuse options` has one that is needed"),
        ("Your options have been rejected by the server", "the module's filters exclude a hidden name that is needed"),
        ("ERROR: daemon refused to receive", "the module's filters exclude a file"),
        ("ERROR: daemon has excluded", "the module's filters exclude a directory"),
    ];
    TABLE.iter().find_map(|(text, meaning)| {
        let line = said.lines().find(|line| line.contains(text) && !busy(line))?;
        Some((*meaning, line.trim()))
    })
}

/// What a daemon says if it cannot enter the directory of a module.
pub const NO_DIRECTORY: &str = "@ERROR: chdir failed";
const REFUSES: &str = "The server is configured to refuse ";

/// The option that a daemon is told to refuse.
pub fn refuses(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once(REFUSES)?;
    rest.split_whitespace().next()
}

/// What the meter says if it could not reach the daemon, or hears nothing from it.
pub fn unreachable(said: &str) -> Option<&str> {
    const BEGINS: [&str; 3] = ["cannot connect to ", "cannot find the host ", "the daemon at "];
    said.lines().find_map(|line| BEGINS.iter().find_map(|text| line.find(text)).map(|at| &line[at..]))
}

/// Whether as many are served as may be, just now.
pub fn busy(said: &str) -> bool {
    said.contains("@ERROR: max connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As rsync 3.5.0 said it.
    #[test]
    fn refusals() {
        let said = "rsync: [sender] read error: Connection reset by peer (104)\nrsync: The server is configured to refuse --compress (-z)\n\
                    rsync error: requested action not supported (code 4) at clientserver.c(1267) [Receiver=3.5.0]\n";
        assert_eq!(refuses(said), Some("--compress"));
        assert_eq!(words(said).unwrap().1, "rsync: The server is configured to refuse --compress (-z)");
        let said = "@ERROR: max connections (2) reached -- try again later\n";
        assert!(busy(said) && words(said).is_none());
        assert!(words("@ERROR: auth failed on module bak\n").unwrap().0.contains("password_file"));
        assert!(words("rsync: [sender] link_stat \"x\" (in bak) failed: No such file or directory (2)\n").is_none());
    }
}
