//! Processes, for tests that kill some, or look whether any are left; and waiting for a condition.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Waits until `done`; fails with `what` after two minutes.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nobody works in `store` any more: whatever a program that was killed had started holds the locks of the
/// work directories, until it has ended too.
#[track_caller]
pub fn wait_for_workers(store: &Path) {
    wait_for("the end of all who work in the store", || {
        let works = std::fs::read_dir(store.join(".bak/work")).into_iter().flatten().flatten();
        // Locked, and freed at once again.
        works.filter_map(|work| File::open(work.path().join(".lock")).ok()).all(|lock| lock.try_lock().is_ok())
    });
}

/// A process and all below it, itself first.
pub fn below(top: u32) -> Vec<u32> {
    let pairs = parents();
    let mut found = vec![top];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
        at += 1;
    }
    found
}

/// All processes with their parents.
fn parents() -> Vec<(u32, u32)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|name| name.file_name().to_str()?.parse().ok());
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may hold anything.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

/// The words that a process was started with; none of one that is gone.
pub fn words(pid: u32) -> Vec<String> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = words.strip_suffix(b"\0").unwrap_or(&words);
    words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Those that have `dir` in one of their words.
pub fn about(dir: &Path) -> Vec<u32> {
    let dir = dir.to_str().unwrap();
    let all = parents().into_iter().map(|pair| pair.0);
    all.filter(|pid| *pid != std::process::id() && words(*pid).iter().any(|word| word.contains(dir))).collect()
}

/// Kills a process at once; it may be gone already.
pub fn kill(pid: u32) {
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
}
