//! What system calls a program makes; and one of them that fails, or at which it stops. All points of a program: see `rig`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Ran;

/// The system calls that a program makes when it is run once, in order: name and the whole line.
pub fn calls(kit: &crate::Kit, argv: &[OsString], log: &Path) -> Vec<(String, String)> {
    let mut command = kit.command("strace");
    command.args(["-f", "-qq", "-s", "200", "-o"]).arg(log).arg("--").args(argv);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "the scenario itself must succeed: {argv:?}");
    let mut calls = Vec::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            calls.push((name.to_owned(), call.to_owned()));
        }
    }
    calls
}

/// How often a program makes each system call, by running it once.
pub fn count(kit: &crate::Kit, argv: &[OsString], log: &Path) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for (name, _) in calls(kit, argv, log) {
        *counted.entry(name).or_default() += 1;
    }
    // The program itself is started by it, and it does not return.
    counted.remove("execve");
    counted.remove("exit_group");
    assert!(counted.len() > 5, "{counted:?}");
    counted
}

/// Runs a program, stops it when the `when`-th call of `name` is done, does `meanwhile`, and lets it go on.
pub fn stopped_after(
    kit: &crate::Kit,
    argv: &[OsString],
    (name, when): (&str, usize),
    meanwhile: impl FnOnce(),
) -> Ran {
    let log = kit.path("stopped");
    let mut command = kit.command("strace");
    command.args(["-f", "-qq", "-o"]).arg(&log).args(["-e", &format!("trace={name}")]);
    command.args(["-e", &format!("inject={name}:signal=STOP:when={when}"), "--"]).args(argv);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let pid = loop {
        let seen = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(line) = seen.lines().find(|line| line.contains("--- stopped by SIGSTOP")) {
            break line.split_whitespace().next().unwrap().to_owned();
        }
        assert!(Instant::now() < until, "it did not stop at {name} {when}: {seen}");
        std::thread::sleep(Duration::from_millis(1));
    };
    // Goes on also where `meanwhile` panics: nothing stays stopped.
    let going_on = Continue(pid);
    meanwhile();
    drop(going_on);
    Ran::of(child.wait_with_output().unwrap())
}

struct Continue(String);

impl Drop for Continue {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

/// Runs a program and does `what` (`signal=KILL`, `error=EIO`) at the `when`-th call of `name`.
pub fn inject(kit: &crate::Kit, argv: &[OsString], name: &str, what: &str, when: usize) -> Ran {
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
    Ran::of(command.args(argv).stdin(Stdio::null()).output().unwrap())
}
