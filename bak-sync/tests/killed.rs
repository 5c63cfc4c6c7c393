//! bak-sync, rsync and ssh are killed while they send. An independent counter stands between the meter and ssh.

mod common;

use bak_tests::{bin, check_store, noise};
use common::Place;
use serde_json::json;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DAY1: &str = "2026-11-18T01:00:00Z";
const DAY2: &str = "2026-11-19T01:00:00Z";
const FORGOTTEN: u64 = 64 << 20;

/// A place whose ssh is counted.
struct Counted {
    place: Place,
}

impl Counted {
    fn new() -> Self {
        let place = Place::new(true);
        fs::create_dir(place.kit.path("counts")).unwrap();
        Self { place }
    }

    fn start(&self, more: &[&str]) -> Child {
        let sshd = self.place.sshd.as_ref().unwrap();
        let counter = format!("{} {}", bin("bak-test-count").display(), self.place.kit.path("counts").display());
        let mut command = self.place.kit.command(bin("bak-sync"));
        command.args(["--outbox", "outbox", "--dest", &format!("box={}", sshd.url(&self.place.far()))]);
        command.args(["--ssh", &format!("{counter} {}", sshd.command())]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What the counter has seen, both ways.
    fn seen(&self) -> u64 {
        let sum = |bytes: Vec<u8>| bytes.chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap())).sum::<u64>();
        self.counters().iter().map(|name| sum(fs::read(name).unwrap_or_default())).sum()
    }

    fn counters(&self) -> Vec<std::path::PathBuf> {
        fs::read_dir(self.place.kit.path("counts")).unwrap().map(|name| name.unwrap().path()).collect()
    }

    /// Waits until all programs of a killed pass are gone.
    fn settle(&self) {
        let alive = |path: &std::path::PathBuf| {
            fs::read(format!("/proc/{}/comm", path.file_name().unwrap().to_str().unwrap()))
                .is_ok_and(|name| name.starts_with(b"bak-test-count"))
        };
        wait_for("counters outlive their pass", || !self.counters().iter().any(alive));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn random_bytes(bytes: usize) -> Vec<u8> {
    use std::io::Read;
    let mut content = vec![0; bytes];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
    content
}

#[test]
fn a_killed_pass_forgets_less_than_64_mib_and_the_next_one_goes_on() {
    let counted = Counted::new();
    let web = counted.place.wait_with("web", DAY1, &random_bytes(120 << 20), json!({}));
    let mut pass = counted.start(&[]);
    wait_for("100 MiB never crossed", || counted.seen() > 100 << 20);
    pass.kill().unwrap();
    pass.wait().unwrap();
    counted.settle();
    let (seen, noted) = (counted.seen(), counted.place.counted());
    assert!(noted + FORGOTTEN > seen, "{noted} of {seen}");
    assert!(counted.place.ledger().iter().any(|line| line["result"] == "running"));
    assert!(counted.start(&[]).wait().unwrap().success());
    let again = counted.seen() - seen;
    assert!(again < 60 << 20, "{again} bytes were sent again");
    assert!(counted.place.counted() + FORGOTTEN > counted.seen());
    assert_eq!(check_store(&counted.place.far()).whole, [web]);
}

/// The processes below `top`: rsync, the meter, ssh.
fn below(top: u32) -> Vec<u32> {
    let listed = Command::new("ps").args(["-e", "-o", "pid=,ppid="]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let number = |word: &str| word.parse::<u32>().unwrap();
    let pair = |line: &str| line.split_whitespace().map(number).collect::<Vec<u32>>();
    let pairs: Vec<Vec<u32>> = text.lines().map(pair).collect();
    let mut found = vec![top];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pairs.iter().filter(|pair| pair[1] == parent).map(|pair| pair[0]));
        at += 1;
    }
    found
}

/// Kills the ssh that holds the connection of a pass once `bytes` have crossed.
fn drop_line(counted: &Counted, pass: &mut Child, bytes: u64) {
    wait_for("nothing crosses", || counted.seen() > bytes || pass.try_wait().unwrap().is_some());
    assert!(pass.try_wait().unwrap().is_none(), "it was over too soon");
    let master = below(pass.id()).into_iter().find(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.starts_with(b"ssh\0") && words.split(|byte| *byte == 0).any(|word| word == b"-M")
    });
    Command::new("kill").args(["-KILL", &master.expect("no master").to_string()]).status().unwrap();
}

#[test]
fn a_line_that_drops_is_tried_again_in_the_same_pass_but_not_where_the_door_is_shut() {
    let counted = Counted::new();
    let place = &counted.place;
    let web = place.wait_with("web", DAY1, &random_bytes(40 << 20), json!({}));
    // Slowly enough that it is not over before the line is cut.
    let mut pass = counted.start(&["--bwlimit", "20M"]);
    drop_line(&counted, &mut pass, 10 << 20);
    assert!(pass.wait().unwrap().success());
    assert_eq!(check_store(&place.far()).whole, [web]);
    assert!(counted.seen() < 48 << 20, "{}: what had arrived was sent again", counted.seen());
    let attempts: Vec<_> = place.ledger().into_iter().filter(|line| line["result"] == "sent").collect();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    place.wait_with("db", DAY1, &random_bytes(40 << 20), json!({}));
    let mut pass = counted.start(&["--bwlimit", "20M", "--retries", "1000"]);
    wait_for("nothing crosses", || counted.seen() > 50 << 20);
    fs::write(place.kit.path("sshd/known"), "").unwrap();
    drop_line(&counted, &mut pass, 0);
    // Waiting a thousand times would take a day.
    wait_for("it tries on", || pass.try_wait().unwrap().is_some());
    assert_eq!(pass.wait().unwrap().code(), Some(1));
}

/// How often something is killed: eight times here; `BAK_KILLS=100` for the nightly run.
fn kills() -> u64 {
    std::env::var("BAK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

/// Begins passes, with limits below `limit`, and in each kills one of its programs once up to `bytes` have crossed. Whatever
/// that is, nothing is lost and what has a sidecar is whole.
fn kill_at_random(counted: &Counted, dumps: &[String], kills: u64, limit: u64, bytes: u64) {
    let place = &counted.place;
    let mut random = noise(kills, 64 * usize::try_from(kills).unwrap()).into_iter().map(u64::from);
    let before = place.counted();
    for _ in 0..kills {
        let mut number = |below: u64| (random.next().unwrap() << 8 | random.next().unwrap()) % below;
        let limit = (number(40) * (limit / 40) + 100_000).to_string();
        let mut pass = counted.start(&["--limit", &limit, "--retries", "1"]);
        let end = counted.seen() + ((number(1 << 16) * bytes) >> 16);
        wait_for("a pass hangs", || counted.seen() >= end || pass.try_wait().unwrap().is_some());
        // Of a pass that has ended the number may belong to another process by now.
        if pass.try_wait().unwrap().is_none() {
            let family = below(pass.id());
            let victim = family[usize::try_from(number(family.len() as u64)).unwrap()];
            let _ = Command::new("kill").args(["-KILL", &victim.to_string()]).stderr(Stdio::null()).status();
        }
        wait_for("a pass hangs whose program was killed", || pass.try_wait().unwrap().is_some());
        counted.settle();
        let seen = check_store(&place.far());
        assert!(seen.broken.is_empty(), "{seen:?}");
        let known: Vec<String> = [seen.whole, check_store(&place.outbox()).whole].concat();
        assert!(dumps.iter().all(|id| known.contains(id)), "lost: {known:?}");
        assert!(place.counted() - before + FORGOTTEN > counted.seen());
    }
}

#[test]
fn whoever_is_killed_at_any_moment_nothing_is_lost_and_what_has_a_sidecar_is_whole() {
    let counted = Counted::new();
    let place = &counted.place;
    let old = random_bytes(3 << 20);
    let mut new = old.clone();
    for at in (0..new.len()).step_by(16 << 10) {
        new[at..at + 4096].copy_from_slice(&noise(at as u64, 4096));
    }
    place.wait_with("web", DAY1, &old, json!({}));
    place.sync([]).clean();
    let dumps = [
        place.wait_with("web", DAY2, &new, json!({"rank": 1})),
        place.wait_with("db", DAY1, &random_bytes(2 << 20), json!({"rank": 2})),
        place.wait_there("tiny", DAY1, 5000, json!({"rank": 3})),
    ];
    kill_at_random(&counted, &dumps, kills(), 4_000_000, 2_000_000);
    assert!(counted.start(&[]).wait().unwrap().success());
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (4, 0, 0));
    assert!(check_store(&place.outbox()).whole.is_empty());
    // Whatever the killed have left over there was hidden, and is gone.
    let left = place.kit.sh("find far -name '.*.??????' -o -path '*/.part/*' -o -path '*/.basis-*/*' -type f");
    assert_eq!(left.clean().out, "");
}

#[test]
fn small_dumps_that_go_together_bear_it_too() {
    let counted = Counted::new();
    let place = &counted.place;
    // Some of them have a basis over there.
    let content = |at: u64| noise(at, 30_000);
    for at in 0..10 {
        place.wait_with(&format!("g{at:02}"), DAY1, &content(at), json!({"rank": at}));
    }
    place.sync([]).clean();
    let new = |at: u64| [&content(at)[..20_000], &noise(100 + at, 12_000)].concat();
    let one = |at: u64| place.wait_with(&format!("g{at:02}"), DAY2, &new(at), json!({"rank": at}));
    let dumps: Vec<String> = (0..40).map(one).collect();
    kill_at_random(&counted, &dumps, kills(), 1_500_000, 1_200_000);
    assert!(counted.start(&[]).wait().unwrap().success());
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (50, 0, 0), "{seen:?}");
    assert!(check_store(&place.outbox()).whole.is_empty());
    let left =
        place.kit.sh("find far -name '*.??????' -name '.*' -o -path '*/.part/*' -o -path '*/.basis-*/*' -type f");
    assert_eq!(left.clean().out, "");
}
