//! Killing a program at each of its system calls, one after the other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// How often a program makes each system call, by running it once.
pub fn count(kit: &crate::Kit, argv: &[OsString], log: &Path) -> BTreeMap<String, usize> {
    let mut command = kit.command("strace");
    command.args(["-f", "-qq", "-o"]).arg(log).arg("--").args(argv);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "the scenario itself must succeed: {argv:?}");
    let mut calls = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    // The program itself is started by it, and it does not return.
    calls.remove("execve");
    calls.remove("exit_group");
    assert!(calls.len() > 5, "{calls:?}");
    calls
}

/// Runs a program and does `what` (`signal=KILL`, `error=EIO`) at the `when`-th call of `name`.
pub fn inject(kit: &crate::Kit, argv: &[OsString], name: &str, what: &str, when: usize) {
    let mut command: Command = kit.command("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={name}"),
        "-e",
        &format!("inject={name}:{what}:when={when}"),
        "--",
    ]);
    command.args(argv).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap();
}
