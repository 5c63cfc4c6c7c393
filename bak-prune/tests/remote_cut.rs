//! Lines that break and programs that are killed while bak-prune removes over there. At any moment each sidecar over there
//! has all of its files; and the next run finishes what was begun, so that the end is the same as without any of it.

mod common;

use bak_tests::process::wait_for;
use bak_tests::{bin, check_store, noise};
use common::{Box, RULES, Way, copy, files, fill};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};

/// Dumps to begin with, and what must be left of them.
struct Scenario {
    there: Box,
    end: BTreeMap<String, Vec<u8>>,
}

impl Scenario {
    fn new() -> Self {
        let there = Box::new(Way::Ssh);
        let made = there.kit.path("made");
        fs::create_dir(&made).unwrap();
        fill(&made);
        // What was broken before is none of this test's business.
        fs::remove_dir_all(made.join("lost")).unwrap();
        copy(&made, &there.kit.store());
        there.prune(&[&["store"][..], &RULES].concat());
        let end = files(&there.kit.store());
        Self { there, end }
    }

    /// All is over there again as it was made.
    fn begin(&self) {
        let far = self.there.far();
        for place in ["web", "db", "only"] {
            let _ = fs::remove_dir_all(far.join(place));
        }
        copy(&self.there.kit.path("made"), &far);
    }

    fn args(&self) -> Vec<String> {
        let url = self.there.url();
        std::iter::once(url).chain(RULES.map(str::to_owned)).collect()
    }

    /// What must hold at any moment.
    fn check(&self) {
        let seen = check_store(&self.there.far());
        assert!(seen.broken.is_empty(), "{:?}", seen.broken);
        let there = files(&self.there.far());
        let lost: Vec<&String> = self.end.keys().filter(|name| !there.contains_key(*name)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    /// A run without mishaps.
    fn finish(&self) {
        let args = self.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.there.prune(&args).expect(0);
        let (there, end) = (files(&self.there.far()), &self.end);
        let left: Vec<&String> = there.keys().filter(|name| !end.contains_key(*name)).collect();
        assert_eq!((left, there == *end), (Vec::new(), true));
        assert!(!self.there.kit.path("cache/bak/the-box/drop.json").exists());
    }
}

/// rsync over there is killed as it is about to remove its first, fourth … file of a run: sidecars and data alike.
#[test]
fn a_line_that_breaks_in_the_middle_of_a_removal_leaves_whole_dumps_or_what_the_next_run_finishes() {
    let scenario = Scenario::new();
    let there = &scenario.there;
    let sshd = there.sshd.as_ref().unwrap();
    let script = there.kit.path("killing");
    let force = |line: &str| {
        fs::write(&script, format!("#!/bin/sh\n{line}\n")).unwrap();
        there.kit.sh("chmod +x killing").clean();
    };
    sshd.force(&script.display().to_string());
    let url = sshd.url(&there.far());
    let mut half_done = 0;
    for when in [1, 4, 9, 15, 16, 30] {
        scenario.begin();
        force(&format!(
            "exec strace -f -qq -o /dev/null -e trace=unlink,unlinkat -e inject=unlink,unlinkat:signal=KILL:when={when} \
             $SSH_ORIGINAL_COMMAND"
        ));
        let ran = there.prune(&[&[url.as_str()][..], &RULES].concat()).expect(1).says("the next run goes on");
        scenario.check();
        let whole = check_store(&there.far()).whole;
        let told = ran.column("id");
        assert!(told.iter().all(|id| !whole.contains(id)), "{told:?} {whole:?}");
        assert_eq!(told.len() + whole.len(), check_store(&there.kit.path("made")).whole.len(), "{}", ran.err);
        half_done += usize::from(check_store(&there.far()).strange.iter().any(|name| name.ends_with(".raw")));
        force("exec $SSH_ORIGINAL_COMMAND");
        there.prune(&[&[url.as_str()][..], &RULES].concat()).expect(0);
        assert!(files(&there.far()) == scenario.end, "{when}");
    }
    assert!(half_done >= 4, "{half_done}");
}

/// The processes below `top`: rsync, the meter, ssh.
fn below(top: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-e", "-o", "pid=,ppid="]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let number = |word: &str| word.parse::<u32>().unwrap();
    let pairs: Vec<Vec<u32>> =
        text.lines().map(|line| line.split_whitespace().map(number).collect::<Vec<u32>>()).collect();
    let mut found = vec![top];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|pair| pair[1] == parent).map(|pair| pair[0]));
        at += 1;
    }
    found
}

/// Bytes that independent counters before ssh have seen, and whether any of these is alive.
struct Counters<'a>(&'a Scenario);

impl Counters<'_> {
    fn paths(&self) -> Vec<std::path::PathBuf> {
        fs::read_dir(self.0.there.kit.path("counts")).unwrap().map(|name| name.unwrap().path()).collect()
    }

    fn seen(&self) -> u64 {
        let sum = |bytes: Vec<u8>| bytes.chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap())).sum::<u64>();
        self.paths().iter().map(|name| sum(fs::read(name).unwrap_or_default())).sum()
    }

    fn start(&self) -> Child {
        let there = &self.0.there;
        let counter = format!("{} {}", bin("bak-test-count").display(), there.kit.path("counts").display());
        let mut command = there.kit.command(bin("bak-prune"));
        command.args(self.0.args()).args(["--tz", "UTC", "--now", common::NOW]);
        command.args(["--ssh", &format!("{counter} {}", there.sshd.as_ref().unwrap().command())]);
        command.env("XDG_CACHE_HOME", there.kit.path("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn settle(&self) {
        let alive = |path: &std::path::PathBuf| {
            fs::read(format!("/proc/{}/comm", path.file_name().unwrap().to_str().unwrap()))
                .is_ok_and(|name| name.starts_with(b"bak-test-count"))
        };
        wait_for("counters outlive their run", || !self.paths().iter().any(alive));
    }
}

/// Four times here; `BAK_KILLS=100` for the nightly run.
#[test]
fn whoever_is_killed_at_any_moment_the_next_run_finishes_it() {
    let kills: usize = std::env::var("BAK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let scenario = Scenario::new();
    fs::create_dir(scenario.there.kit.path("counts")).unwrap();
    let counters = Counters(&scenario);
    scenario.begin();
    // What a whole run takes; the sidecars are cached then, so the next one takes less.
    assert!(counters.start().wait().unwrap().success());
    scenario.begin();
    let before = counters.seen();
    assert!(counters.start().wait().unwrap().success());
    let whole = counters.seen() - before;
    let mut random = noise(1, 4 * kills).into_iter().map(u64::from);
    let mut killed = 0;
    for _ in 0..kills {
        scenario.begin();
        let mut number = |below: u64| (random.next().unwrap() << 8 | random.next().unwrap()) % below;
        let end = counters.seen() + number(whole);
        let mut run = counters.start();
        wait_for("a run hangs", || counters.seen() >= end || run.try_wait().unwrap().is_some());
        // Of a run that has ended the number may belong to another process by now.
        if run.try_wait().unwrap().is_none() {
            let family = below(run.id());
            let victim = family[usize::try_from(number(family.len() as u64)).unwrap()];
            let _ = Command::new("kill").args(["-KILL", &victim.to_string()]).stderr(Stdio::null()).status();
            killed += 1;
        }
        wait_for("a run hangs whose program was killed", || run.try_wait().unwrap().is_some());
        counters.settle();
        scenario.check();
        scenario.finish();
    }
    assert!(killed * 2 >= kills, "{killed} of {kills} were still at work");
}
