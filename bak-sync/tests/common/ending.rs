//! Passes that are ended, and what may be left of them.

use super::{DAY1, DAY2, Place};
use bak_tests::process::wait_for;
use bak_tests::{Ran, check_store, noise};
use serde_json::json;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a pass.
pub fn start<const N: usize>(place: &Place, more: [&str; N]) -> Child {
    let (program, args) = place.command(more);
    let mut command = place.kit.command(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What runs for this place, here and over there, but for its sshd and the rsync daemon: all of it is called with a path of the place.
pub fn running(place: &Place) -> Vec<String> {
    let top = place.kit.path("").display().to_string();
    let of = |entry: fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).replace('\0', " ")
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(of);
    let served = |words: &String| words.starts_with("sshd: ") || words.starts_with("rsync --daemon ");
    all.filter(|words| words.contains(top.trim_end_matches('/')) && !served(words)).collect()
}

#[track_caller]
pub fn nothing_runs(place: &Place, what: &str) {
    let begun = Instant::now();
    while !running(place).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: {:?}", running(place));
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(rsyncd) = &place.rsyncd {
        wait_for(&format!("{what}: the daemon still serves us"), || rsyncd.serves() == 0);
    }
}

/// One dump has arrived, and the next of its guest waits, half of which is new: its id.
pub fn half_changed(place: &Place) -> String {
    let old = noise(1, 2_000_000);
    place.wait_with("web", DAY1, &old, json!({}));
    place.sync([]).clean();
    let mut new = old;
    new[1_000_000..].copy_from_slice(&noise(2, 1_000_000));
    place.wait_with("web", DAY2, &new, json!({}))
}

/// Kills a pass: nothing of it runs on, and nothing over there is wrong.
#[track_caller]
pub fn killed(place: &Place, mut pass: Child, what: &str) {
    let _ = pass.kill();
    pass.wait().unwrap();
    nothing_runs(place, what);
    let seen = check_store(&place.far());
    assert!(seen.broken.is_empty(), "{what}: {seen:?}");
}

/// Something of the dump has arrived.
pub fn arrives(place: &Place) {
    wait_for("nothing arrives", || {
        place.kit.sh("find far -type f -size +64k 2>/dev/null; true").out.lines().any(|line| line.contains("web"))
    });
}

pub fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Ends it by a signal, within five seconds.
#[track_caller]
pub fn ended(child: Child, signal: &str) -> Ran {
    let asked = Instant::now();
    kill(signal, child.id());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}: {ran:?}", asked.elapsed());
    ran
}
