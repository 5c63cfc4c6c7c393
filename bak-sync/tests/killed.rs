//! bak-sync, rsync and ssh are killed while they send. An independent counter stands between the meter and ssh.

mod common;

use bak_tests::process::{about, below, kill, wait_for, words};
use bak_tests::{bin, check_store, noise, sha256_file};
use common::Place;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const DAY1: &str = "2026-11-18T01:00:00Z";
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

    /// Waits until all programs of a killed pass are gone, on both sides.
    fn settle(&self) {
        let listener = self.place.sshd.as_ref().unwrap().pid();
        let left = || about(&self.place.kit.path("")).into_iter().filter(|pid| *pid != listener).collect::<Vec<u32>>();
        wait_for("programs outlive their pass", || left().is_empty());
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

/// Kills the ssh that holds the connection of a pass once `bytes` have crossed.
fn drop_line(counted: &Counted, pass: &mut Child, bytes: u64) {
    wait_for("nothing crosses", || counted.seen() > bytes || pass.try_wait().unwrap().is_some());
    assert!(pass.try_wait().unwrap().is_none(), "it was over too soon");
    let master =
        |pid: &u32| words(*pid).first().is_some_and(|name| name == "ssh") && words(*pid).contains(&"-M".to_owned());
    kill(below(pass.id()).into_iter().find(master).expect("no master"));
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

/// Who can be killed in a running pass, by name: here, and over there.
fn victims(pass: &Child, listener: u32) -> BTreeMap<&'static str, Vec<u32>> {
    let mut victims: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let (here, there) = (below(pass.id()), below(listener));
    for (pid, far) in here.iter().map(|pid| (*pid, false)).chain(there[1..].iter().map(|pid| (*pid, true))) {
        let words = words(pid);
        let first = words.first().map(String::as_str).unwrap_or_default();
        let name = match (first.rsplit('/').next().unwrap_or_default(), far) {
            _ if pid == pass.id() => "bak-sync",
            ("rsync", false) => "rsync here",
            ("rsync", true) => "rsync over there",
            ("ssh", false) => "ssh",
            ("bak-test-count", false) => continue,
            (_, false) => "the meter",
            (session, true) if session.starts_with("sshd") => "sshd",
            (_, true) => continue,
        };
        victims.entry(name).or_default().push(pid);
    }
    victims
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Begins passes, with limits up to `limit`, and in each kills one of its programs at any moment: once up to `bytes` have
/// crossed, or after up to a second. Whoever that is, nothing is lost, nothing that has arrived is sent again, and what has
/// a sidecar is whole. Eight times; `BAK_KILLS=100` in the long run. `BAK_SEED` makes it other moments. `more` puts dumps
/// into the outbox whenever all have arrived; the ids of all of these are returned.
fn kill_at_random(
    counted: &Counted,
    limit: u64,
    bytes: u64,
    mut more: impl FnMut(&Place, u64) -> Vec<String>,
) -> Vec<String> {
    let kills = number("BAK_KILLS").unwrap_or(8);
    let place = &counted.place;
    let listener = place.sshd.as_ref().unwrap().pid();
    let mut random =
        noise(number("BAK_SEED").unwrap_or(kills), 64 * usize::try_from(kills).unwrap()).into_iter().map(u64::from);
    let mut next = |below: u64| (random.next().unwrap() << 8 | random.next().unwrap()) % below;
    let (mut killed, mut ids) = (BTreeMap::<&str, u64>::new(), Vec::new());
    let mut round = 0;
    while killed.values().sum::<u64>() < kills {
        assert!(round < 4 * kills, "passes are over before anyone is killed: {killed:?}");
        if check_store(&place.outbox()).whole.is_empty() {
            ids.extend(more(place, round));
        }
        let (seen, noted) = (counted.seen(), place.counted());
        let arrived = arrived(place);
        let limit = (next(40) * (limit / 40) + 100_000).to_string();
        let mut pass = counted.start(&["--limit", &limit, "--retries", "1"]);
        let (begun, by_bytes) = (Instant::now(), next(3) > 0);
        let (end, after) = (seen + next(800) * (bytes / 800), Duration::from_millis(next(1000)));
        let now = || if by_bytes { counted.seen() >= end } else { begun.elapsed() >= after };
        wait_for("a pass hangs", || now() || pass.try_wait().unwrap().is_some());
        // Of a pass that has ended the number may belong to another process by now.
        let mut victim = "";
        if pass.try_wait().unwrap().is_none() {
            let victims = victims(&pass, listener);
            let (name, pids) = victims.iter().nth(usize::try_from(next(victims.len() as u64)).unwrap()).unwrap();
            kill(pids[usize::try_from(next(pids.len() as u64)).unwrap()]);
            victim = name;
            *killed.entry(victim).or_default() += 1;
        }
        wait_for("a pass hangs whose program was killed", || pass.try_wait().unwrap().is_some());
        counted.settle();
        let whole = check_store(&place.far());
        assert!(whole.broken.is_empty(), "{whole:?} after {victim} was killed");
        let known: Vec<String> = [whole.whole, check_store(&place.outbox()).whole].concat();
        assert!(ids.iter().all(|id| known.contains(id)), "lost after {victim} was killed: {known:?}");
        // Only who notes can forget; of what comes back a little may be on its way to who counts.
        let forgotten = if victim == "bak-sync" { FORGOTTEN } else { 128 << 10 };
        let (seen, noted) = (counted.seen() - seen, place.counted() - noted);
        assert!(noted + forgotten > seen, "{noted} of {seen} noted after {victim} was killed");
        for (id, (sent, bytes)) in arrived {
            let again = sent_of(place, &id) - sent;
            assert!(again < 20_000 + bytes / 10, "{id}: {again} of {bytes} sent again when all was there");
        }
        round += 1;
    }
    assert!(counted.start(&[]).wait().unwrap().success());
    println!("killed: {killed:?}; {} dumps", ids.len());
    assert!(check_store(&place.outbox()).whole.is_empty());
    // Whatever the killed have left over there was hidden, and is gone.
    let left = place.kit.sh("find far -name '.*.??????' -o -path '*/.part/*' -o -path '*/.basis-*/*' -type f");
    assert_eq!(left.clean().out, "");
    ids
}

/// A start of its own for each round.
fn start_of(round: u64) -> String {
    format!("2026-11-19T{:02}:{:02}:00Z", round / 60, round % 60)
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
    let ids = kill_at_random(&counted, 4_000_000, 800_000, |place, round| {
        vec![
            place.wait_with("web", &start_of(round), &new, json!({"rank": 1})),
            place.wait_with(&format!("db{round}"), DAY1, &random_bytes(2 << 20), json!({"rank": 2})),
            place.wait_there(&format!("tiny{round}"), DAY1, 5000, json!({"rank": 3})),
        ]
    });
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (ids.len() + 1, 0, 0));
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
    let ids = kill_at_random(&counted, 1_500_000, 800_000, |place, round| {
        let new = |at: u64| [&content(at)[..20_000], &noise(100 + at + 1000 * round, 12_000)].concat();
        let one = |at: u64| place.wait_with(&format!("g{at:02}"), &start_of(round), &new(at), json!({"rank": at}));
        (0..40).map(one).collect()
    });
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (ids.len() + 10, 0, 0));
}

/// Dumps that wait and whose data is over there, whole: what was sent of each so far, and its size.
fn arrived(place: &Place) -> BTreeMap<String, (u64, u64)> {
    let mut arrived = BTreeMap::new();
    for id in check_store(&place.outbox()).whole {
        let name = format!("{}/{}.raw", id.split_once('@').unwrap().0, id.replace('@', "-"));
        let (here, there) = (place.outbox().join(&name), place.far().join(&name));
        if there.exists() && sha256_file(&here) == sha256_file(&there) {
            let bytes = fs::metadata(here).unwrap().len();
            arrived.insert(id.clone(), (sent_of(place, &id), bytes));
        }
    }
    arrived
}

/// What the ledger says was sent of a dump in all attempts.
fn sent_of(place: &Place, id: &str) -> u64 {
    let lines = place.ledger().into_iter().filter(|line| line["dump"] == id);
    let last: BTreeMap<String, u64> =
        lines.map(|line| (line["id"].to_string(), line["wire_out"].as_u64().unwrap())).collect();
    last.values().sum()
}
