//! Many of each program at once, on two nodes that share the database, the far side and its ledger, by clocks that jump:
//! nothing that was acknowledged is lost, unless a program said that it removed it, and nothing is left by half.
//! `BAK_MANY=50 BAK_MANY_SECONDS=120` for more of it.

use bak_tests::power::Chance;
use bak_tests::{Kit, Ran, check_store, noise};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const NODES: [&str; 2] = ["one", "two"];
const GUESTS: [&str; 4] = ["db", "mail", "shop", "web"];

/// So often each works at least, however slow the machine is.
const ROUNDS: usize = 2;

/// Each as a line of `sh`: NODE, VM, NOW, WORKER and OWN stand for something.
const TOOLS: [&str; 14] = [
    "bak-dump --config NODE.toml --now NOW VM",
    "bak-guests --config NODE.toml --now NOW | bak-state observe --config NODE.toml --now NOW -",
    "bak-link --config NODE.toml --now NOW",
    "bak-link --config NODE.toml --now NOW --force --only VM",
    "bak-sync --config NODE.toml --now NOW",
    "bak-sync --config NODE.toml --now NOW --reconcile",
    "bak-prune --config NODE.toml --now NOW --all",
    "bak-prune --config NODE.toml --now NOW --all --dest box",
    "bak-state set --config NODE.toml --now NOW STATUS OWN",
    "bak-state archive --config NODE.toml --now NOW VM",
    "bak-state activate --config NODE.toml --now NOW VM",
    "bak-verify --config NODE.toml --now NOW --mark VM",
    "bak-scan --config NODE.toml --now NOW",
    "bak-restore --config NODE.toml --now NOW --force --to restored/WORKER VM",
];

/// What programs have said.
#[derive(Default)]
struct Said {
    dumped: BTreeSet<String>,
    removed: BTreeSet<String>,
    sent: BTreeSet<String>,
    removed_there: BTreeSet<String>,
    /// Of each guest that one worker alone has.
    own: BTreeMap<String, String>,
    statuses: BTreeMap<(String, i32), usize>,
    errors: BTreeMap<String, usize>,
    /// Ends that no program should come to.
    odd: Vec<String>,
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

fn scene() -> Kit {
    // Flushed thousands of times: where there is memory for files, there.
    let memory = Path::new("/dev/shm");
    let kit = if memory.is_dir() { Kit::new_in(memory) } else { Kit::new() };
    fs::create_dir(kit.path("far")).unwrap();
    for node in NODES {
        fs::create_dir(kit.path(node)).unwrap();
        fs::create_dir(kit.path(&format!("archive-{node}"))).unwrap();
        for (at, vm) in GUESTS.iter().enumerate() {
            kit.write(&format!("images-{node}/{node}-{vm}.raw"), noise(at as u64, 20_000 << at));
        }
        let config = format!(
            "node = \"{node}\"\nstore = \"{node}\"\ndb = \"db\"\narchive = \"archive-{node}\"\nreserve = \"0\"\nkeep = {{ last = 2 }}\n\
             [image]\nimages = [\"images-{node}\"]\nformat = \"raw\"\n\
             [[dest]]\nname = \"box\"\nurl = \"./far\"\nledger = \"ledger\"\nlimit = \"100M/day\"\nkeep = {{ last = 2 }}\n"
        );
        kit.write(&format!("{node}.toml"), config);
        kit.sh(&format!("bak-sync --config {node}.toml --init")).clean();
        let common = format!("--config {node}.toml --now 2026-11-04T01:00:00Z");
        kit.sh(&format!("bak-guests {common} | bak-state observe {common} - | bak-dump {common} -")).clean();
    }
    kit
}

/// A night of November 2026, of a clock that jumps by days.
fn now(chance: &mut Chance) -> String {
    let [day, hour, minute, second] = [20, 24, 60, 60].map(|end| chance.below(end));
    format!("2026-11-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 5)
}

fn work(kit: &Kit, worker: usize, tool: &str, until: Instant, said: &Mutex<Said>) {
    let mut chance = Chance(worker as u64);
    let own = format!("own-{worker}");
    fs::create_dir_all(kit.path(&format!("restored/{worker}"))).unwrap();
    let mut round = 0;
    while round < ROUNDS || Instant::now() < until {
        round += 1;
        let node = NODES[chance.below(2) as usize];
        let vm = format!("{node}-{}", GUESTS[chance.below(4) as usize]);
        let status = ["CLEAN", "BACKUP_NECESSARY", "ARCHIVED"][chance.below(3) as usize];
        let line = tool.replace("NODE", node).replace("VM", &vm).replace("NOW", &now(&mut chance));
        let line = line.replace("WORKER", &worker.to_string()).replace("OWN", &own).replace("STATUS", status);
        let line = if tool.contains(" set ") { line.replace(" set ", " set --force ") } else { line };
        let ran = kit.sh(&line);
        note(&mut said.lock().unwrap(), tool, &ran, (&own, status));
    }
}

fn note(said: &mut Said, tool: &str, ran: &Ran, (own, status): (&str, &str)) {
    *said.statuses.entry((tool.to_owned(), ran.status)).or_default() += 1;
    if ![0, 1, 3, 4].contains(&ran.status) || ran.err.contains("panicked") {
        said.odd.push(format!("{tool}: {ran:?}"));
    }
    for line in ran.err.lines() {
        let line: String = line.chars().map(|one| if one.is_ascii_digit() { '#' } else { one }).collect();
        *said.errors.entry(line).or_default() += 1;
    }
    let ids = ran.records().into_iter().filter(|one| one["type"] == "dump");
    let ids = ids.filter(|one| one["skipped"].is_null() && one["failed"].is_null());
    let ids = ids.filter_map(|one| one["id"].as_str().map(str::to_owned));
    match tool.split(' ').next().unwrap() {
        "bak-dump" => said.dumped.extend(ids),
        "bak-prune" if tool.contains("--dest") => said.removed_there.extend(ids),
        "bak-prune" => said.removed.extend(ids),
        "bak-sync" if !tool.contains("--reconcile") => said.sent.extend(ids),
        "bak-state" if tool.contains(" set ") && ran.status == 0 => {
            said.own.insert(own.to_owned(), status.to_owned());
        }
        _ => {}
    }
}

/// All dumps below these places, where nothing is by half.
fn whole(kit: &Kit, places: &[String]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for place in places {
        let seen = check_store(&kit.path(place));
        let left = [&seen.broken, &seen.strange, &seen.unfinished];
        assert!(left.iter().all(|left| left.is_empty()), "{place}: {seen:?}");
        all.extend(seen.whole);
    }
    all
}

#[test]
fn nothing_is_lost_where_many_work_at_once() {
    let kit = scene();
    let (many, seconds) = (number("BAK_MANY", 8), number("BAK_MANY_SECONDS", 5));
    let until = Instant::now() + Duration::from_secs(seconds);
    let said = Mutex::new(Said::default());
    std::thread::scope(|scope| {
        for worker in 0..many as usize * TOOLS.len() {
            let (kit, said) = (&kit, &said);
            scope.spawn(move || work(kit, worker, TOOLS[worker % TOOLS.len()], until, said));
        }
    });
    let said = said.into_inner().unwrap();
    for ((tool, status), count) in &said.statuses {
        println!("{count:6} times {status}: {tool}");
    }
    for (line, count) in &said.errors {
        println!("{count:6} times {line}");
    }
    assert!(said.odd.is_empty(), "{:#?}", said.odd);
    for tool in ["bak-dump", "bak-guests", "bak-link", "bak-sync", "bak-prune", "bak-state set", "bak-scan"] {
        let worked = said.statuses.keys().any(|(line, status)| line.starts_with(tool) && *status == 0);
        assert!(worked, "{tool} never did its work");
    }

    // Nobody has a lock or a claim any more, and all work is finished by whoever comes next.
    for node in NODES {
        let common = format!("--config {node}.toml --now 2026-12-01T01:00:00Z --wait 0s");
        kit.sh(&format!("bak-state set {common} --force -q BACKUP_NECESSARY '{node}-*'")).clean();
        kit.sh(&format!("bak-guests {common} | bak-state observe {common} - >/dev/null")).clean();
        let dumped = kit.sh(&format!("bak-dump {common} --all")).clean();
        assert_eq!(dumped.records().len(), GUESTS.len());
        for _ in 0..2 {
            kit.sh(&format!("bak-link {common} --limit none && bak-sync {common} --limit none")).clean();
        }
        kit.sh(&format!("bak-test-store recover archive-{node}")).clean();
    }
    let stores = NODES.map(|node| [node.to_owned(), format!("archive-{node}")]).concat();
    let here = whole(&kit, &stores);
    let lost: Vec<_> = said.dumped.iter().filter(|id| !here.contains(*id) && !said.removed.contains(*id)).collect();
    assert!(lost.is_empty(), "{lost:?} are gone, and nobody said so");
    let there = whole(&kit, &["far".to_owned()]);
    let lost: Vec<_> =
        said.sent.iter().filter(|id| !there.contains(*id) && !said.removed_there.contains(*id)).collect();
    assert!(lost.is_empty(), "{lost:?} are gone over there, and nobody said so");
    whole(&kit, &NODES.map(|node| format!("{node}/.outbox-box")));
    let states = fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap();
    for (own, status) in &said.own {
        assert!(states.lines().any(|line| line == format!("{own}:{status}")), "{own} is not {status}: {states}");
    }
    for ledger in fs::read_dir(kit.path("ledger")).unwrap() {
        let text = fs::read_to_string(ledger.unwrap().path()).unwrap();
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
    }
    println!(
        "{} dumped, {} removed, {} sent, {} removed there",
        said.dumped.len(),
        said.removed.len(),
        said.sent.len(),
        said.removed_there.len()
    );
}
