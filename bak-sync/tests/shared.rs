//! One budget for two nodes that send at the same moment, and clocks that jump while a pass runs.

mod common;

use bak_tests::clock::Clock;
use bak_tests::process::wait_for;
use bak_tests::{Kit, bin, check_store, put_dump};
use common::{DAY1, linked};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};

/// Small runs may go so far beyond a limit, in bytes.
const BEYOND: u64 = 64 << 10;
/// So large that each goes alone: nodes see each other's traffic only before what goes together.
const EACH: usize = 1_200_000;

/// A far side and a ledger of all nodes, each with an outbox and `dumps` dumps in it.
fn scene(nodes: &[&str], dumps: usize, limit: &str) -> Kit {
    let kit = Kit::new();
    fs::create_dir(kit.path("far")).unwrap();
    for node in nodes {
        let config = format!(
            "node = \"{node}\"\n[[dest]]\nname = \"box\"\nurl = \"./far\"\noutbox = \"{node}\"\nledger = \"ledger\"\nlimit = \"{limit}\"\nbwlimit = \"2M\"\n"
        );
        kit.write(&format!("{node}.toml"), config);
        kit.run("bak-sync", ["--config", &format!("{node}.toml"), "--init"]).clean();
        for i in 0..dumps {
            put_dump(&kit.path(node), &format!("{node}{i}"), DAY1, EACH, linked(json!({"rank": i + 1})));
        }
    }
    kit
}

fn start(kit: &Kit, node: &str, clock: Option<&Clock>) -> Child {
    let mut command = kit.command(bin("bak-sync"));
    if let Some(clock) = clock {
        clock.govern(&mut command);
    }
    command.args(["--config", &format!("{node}.toml")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn ended_well(pass: Child) {
    let ended = pass.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// The lines of all ledgers: of each attempt the last.
fn attempts(kit: &Kit) -> Vec<Value> {
    let mut last = BTreeMap::new();
    for file in fs::read_dir(kit.path("ledger")).into_iter().flatten() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            if line["type"] == "attempt" {
                last.insert(line["id"].as_str().unwrap().to_owned(), line);
            }
        }
    }
    last.into_values().collect()
}

fn bytes(attempts: &[Value]) -> u64 {
    attempts.iter().map(|line| line["wire_out"].as_u64().unwrap() + line["wire_in"].as_u64().unwrap()).sum()
}

#[test]
fn two_nodes_that_send_at_once_share_a_budget() {
    let nodes = ["a", "b"];
    let kit = scene(&nodes, 4, "5000K/month");
    let passes = nodes.map(|node| start(&kit, node, None));
    passes.into_iter().for_each(ended_well);
    // Each sees the other's traffic before each of its own dumps: it may miss one of them.
    let used = bytes(&attempts(&kit));
    assert!(used > 4_000_000, "{used}: both have stopped early");
    assert!(used < 5000 * 1024 + EACH as u64 + BEYOND, "{used}");
    let sent = check_store(&kit.path("far"));
    assert_eq!((sent.broken.len(), sent.strange.len()), (0, 0));
    for node in nodes {
        assert!(sent.whole.iter().any(|id| id.starts_with(node)), "{node} got nothing: {sent:?}");
        // Now both know.
        ended_well(start(&kit, node, None));
    }
    assert!(bytes(&attempts(&kit)) - used < BEYOND);
    let waiting = nodes.map(|node| check_store(&kit.path(node)).whole).concat();
    assert_eq!(sent.whole.len() + waiting.len(), 8, "lost or doubled");
}

#[test]
fn a_clock_that_jumps_in_mid_pass_gives_no_day_more_than_its_limit() {
    // At noon: no midnight comes between.
    let noon: chrono::DateTime<chrono::Utc> = "2026-11-20T12:00:00Z".parse().unwrap();
    let offset = |days: i64| format!("{:+}", noon.timestamp() - chrono::Utc::now().timestamp() + days * 86400);
    for jump in [-1, 1] {
        let kit = scene(&["a"], 5, "3000K/day");
        let clock = Clock::new(&kit, &offset(0));
        let mut pass = start(&kit, "a", Some(&clock));
        let arrived = || check_store(&kit.path("far")).whole.len();
        wait_for("nothing arrives", || arrived() > 0 || pass.try_wait().unwrap().is_some());
        clock.set(&offset(jump));
        ended_well(pass);
        let lines = attempts(&kit);
        let mut days: BTreeMap<&str, u64> = BTreeMap::new();
        for line in &lines {
            *days.entry(&line["at"].as_str().unwrap()[..10]).or_default() += bytes(std::slice::from_ref(line));
        }
        assert_eq!(days.len(), 2, "the clock did not jump: {lines:?}");
        assert!(days.values().all(|bytes| *bytes < 3000 * 1024 + BEYOND), "{jump}: {days:?}");
        if jump < 0 {
            // What seems to lie ahead counts, too.
            assert!(bytes(&lines) < 3000 * 1024 + BEYOND, "{days:?}");
        }
        // Back in the true time the budget of the day is what it was.
        clock.set(&offset(0));
        ended_well(start(&kit, "a", Some(&clock)));
        let seen = check_store(&kit.path("far"));
        assert_eq!((seen.broken.len(), seen.strange.len()), (0, 0));
        assert_eq!(seen.whole.len() + check_store(&kit.path("a")).whole.len(), 5, "lost or doubled");
    }
}
