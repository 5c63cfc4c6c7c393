//! `bak-link --forecast` as its users run it; what its records mean is decoded here anew, strictly.

mod common;

use bak_tests::{Kit, put_dump};
use common::{Link, day};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Line {
    #[serde(rename = "forecast.dump")]
    Dump(Dump),
    #[serde(rename = "forecast.pass")]
    Pass(Pass),
    #[serde(rename = "forecast.guest")]
    Guest(Guest),
    #[serde(rename = "forecast")]
    Summary(Summary),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they are there is what counts")]
struct Dump {
    v: u32,
    dest: String,
    planned: bool,
    id: String,
    vm: String,
    kind: String,
    uid: Option<String>,
    name: Option<String>,
    day: String,
    at: String,
    linked: String,
    staleness_s: Option<i64>,
    cost: u64,
    wire: u64,
    passes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they are there is what counts")]
struct Pass {
    v: u32,
    dest: String,
    planned: bool,
    at: String,
    sent: u64,
    carried: u64,
    waiting_dumps: u64,
    waiting: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they are there is what counts")]
struct Guest {
    v: u32,
    dest: String,
    planned: bool,
    vm: String,
    kind: String,
    uid: Option<String>,
    name: Option<String>,
    rhythm: String,
    stopped: Option<String>,
    never: Option<String>,
    bytes: u64,
    cost: u64,
    made: u64,
    sent: u64,
    superseded: u64,
    waiting: u64,
    staleness_median_s: Option<i64>,
    staleness_worst_s: Option<i64>,
    target_s: u64,
    target: String,
    kept: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they are there is what counts")]
struct Summary {
    v: u32,
    dest: String,
    planned: bool,
    from: String,
    until: String,
    judged_from: String,
    rhythm: String,
    passes: u64,
    limits: Vec<String>,
    made: u64,
    sent: u64,
    superseded: u64,
    waiting: u64,
    carried: u64,
    waiting_most: u64,
    stable: Option<bool>,
    smallest: Vec<Smallest>,
}

#[derive(Clone, Deserialize, PartialEq, Debug)]
#[serde(untagged, deny_unknown_fields)]
enum Smallest {
    Enough { limit: String, alone: bool },
    Never { period: String, never: String },
}

/// Two guests, dumped each night from the 10th to the 20th; those up to the 19th were sent.
fn scene() -> Kit {
    let kit = Kit::new();
    for (vm, hour, bytes) in [("web", "02", 600), ("db", "03", 500)] {
        for on in 10..=20 {
            let started = format!("2026-11-{on}T{hour}:00:00Z");
            kit.dump(vm, &started, bytes);
            if on < 20 {
                let at = format!("2026-11-{on}T06:00:00Z");
                let note = json!({"at": at, "wire_out": bytes, "wire_in": 0, "seconds": 1, "passes": 1});
                put_dump(&kit.outbox().join(".bak/sent"), vm, &started, bytes, json!({"sent": {"box": note}}));
            }
        }
    }
    let pass = |on: u32| {
        json!({"type": "pass", "id": format!("p{on}"), "at": format!("2026-11-{on}T06:00:00Z"), "dest": "box", "wire_out": 1100,
            "wire_in": 0, "seconds": 0, "sent": 2, "failed": 0, "pending": 0})
    };
    let passes: String = (10..20).map(|on| format!("{}\n", pass(on))).collect();
    kit.write("store/.outbox-box/.bak/ledger/test.jsonl", passes);
    kit
}

fn lines(kit: &Kit, args: &[&str]) -> Vec<Line> {
    let fixed = ["--now", "2026-11-20T05:00:00Z", "--store", "store", "--dest", "box=/far"];
    let ran = kit.run("bak-link", fixed.iter().chain(args)).clean();
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// `20 web db, 21 db`.
fn days(lines: &[Line]) -> String {
    let mut days: Vec<String> = Vec::new();
    for line in lines {
        let Line::Dump(dump) = line else { continue };
        let day = dump.day.rsplit('-').next().unwrap();
        match days.last_mut().filter(|last| last.starts_with(day)) {
            Some(last) => *last = format!("{last} {}", dump.vm),
            None => days.push(format!("{day} {}", dump.vm)),
        }
    }
    days.join(", ")
}

fn summary(lines: &[Line]) -> &Summary {
    match lines.last() {
        Some(Line::Summary(summary)) => summary,
        _ => panic!("the last line sums up"),
    }
}

#[test]
fn records_say_when_who_goes_and_what_it_comes_to() {
    let kit = scene();
    let lines = lines(&kit, &["--forecast", "6d", "--limit", "1000"]);
    assert_eq!(days(&lines), "20 db, 21 web, 22 db, 23 web, 24 db, 25 web");
    let passes =
        lines.iter().filter(|line| matches!(line, Line::Pass(pass) if pass.carried > 0 && pass.waiting_dumps == 1));
    assert_eq!(passes.count(), 6);
    let guest = |vm: &str| {
        lines.iter().find_map(|line| match line {
            Line::Guest(guest) if guest.vm == vm => Some(guest),
            _ => None,
        })
    };
    let web = guest("web").unwrap();
    assert_eq!((web.rhythm.as_str(), web.target.as_str(), web.target_s), ("daily 02:00", "assumed", 7 * 86_400));
    assert_eq!((web.made, web.sent, web.superseded, web.waiting), (7, 3, 3, 1));
    assert_eq!((web.staleness_worst_s, web.kept, web.cost), (Some(86_400), Some(true), 600));
    let summary = summary(&lines);
    assert_eq!((summary.passes, summary.made, summary.sent, summary.stable), (6, 14, 6, Some(true)));
    assert_eq!((summary.from.as_str(), summary.rhythm.as_str()), ("2026-11-20T05:00:00Z", "daily 06:00 (as so far)"));
}

#[test]
fn the_target_is_given_or_configured() {
    let kit = scene();
    let target = |args: &[&str]| -> Vec<(u64, String)> {
        let lines = lines(&kit, &[&["--forecast", "5d"], args].concat());
        let of = |line: &Line| match line {
            Line::Guest(guest) => Some((guest.target_s / 3600, guest.target.clone())),
            _ => None,
        };
        lines.iter().filter_map(of).collect()
    };
    kit.write(
        "bak.toml",
        "[[guest]]\nmatch = \"db\"\nstale_after = \"36h\"\n[[dest]]\nname = \"box\"\nsent_max_age = \"3d\"\n",
    );
    let config = ["--config", "bak.toml"];
    assert_eq!(target(&config), [(36, "stale_after".into()), (72, "sent_max_age".into())]);
    assert_eq!(target(&["--target", "1d"]), [(24, "--target".into()), (24, "--target".into())]);
}

#[test]
fn the_smallest_limit_is_one_that_bak_link_takes() {
    let kit = scene();
    let smallest = |args: &[&str]| {
        let lines = lines(&kit, &[&["--forecast", "30d"], args].concat());
        match &summary(&lines).smallest[..] {
            [Smallest::Enough { limit, alone: false }] => limit.clone(),
            other => panic!("{other:?}"),
        }
    };
    // Each goes every other night: 600, then 500. Both go every night: 1100, or 1.1K.
    let limit = smallest(&["--target", "1d", "--limit", "5000"]);
    assert_eq!((limit.as_str(), smallest(&["--target", "1h", "--limit", "5000"]).as_str()), ("600", "1126"));
    let again = lines(&kit, &["--forecast", "30d", "--target", "1d", "--limit", &limit]);
    let kept = again.iter().filter(|line| matches!(line, Line::Guest(guest) if guest.kept == Some(true)));
    assert_eq!(kept.count(), 2);
}

#[test]
fn nothing_is_changed_and_no_lock_is_waited_for() {
    let kit = scene();
    let listing = || kit.sh("find . -printf '%p %T@ %s\\n' | sort").clean().out;
    let before = listing();
    // Without leave to take another time for the present: nothing real comes of it.
    kit.sh("unset BAK_ALLOW_NOW; bak-link --store store --dest box=/far --dest new=/far --now 2026-11-20T05:00:00Z --forecast 3d").clean();
    assert_eq!(listing(), before);
    // While a bak-link works it waits for nothing.
    kit.write("store/.outbox-box/.bak/lock", "");
    kit.sh("flock store/.outbox-box/.bak/lock bak-link --store store --dest box=/far --forecast 3d --wait 0").clean();
}

#[test]
fn no_program_takes_its_records() {
    let kit = scene();
    let forecast = "bak-link --store store --dest box=/far --now 2026-11-20T05:00:00Z --forecast 3d";
    let ran = kit.sh(&format!("{forecast} | bak-link - --store store --dest box=/far --now 2026-11-20T05:00:00Z"));
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("neither guest nor dump"), "{}", ran.err);
}

#[test]
fn what_cannot_be_read_is_reported_and_the_rest_is_forecast() {
    let kit = scene();
    fs::write(kit.path("store/web/web-20261120T020000Z.dump.json"), "{").unwrap();
    let ran = kit.link(&["--forecast", "3d"]);
    let ran = ran.expect(1).says("web-20261120T020000Z");
    assert!(ran.records().iter().any(|line: &Value| line["type"] == "forecast"));
}

#[test]
fn an_empty_store_has_an_empty_forecast() {
    let kit = Kit::new();
    let lines = lines(&kit, &["--forecast", "3d"]);
    assert_eq!((summary(&lines).made, summary(&lines).passes), (0, 4));
    assert_eq!(summary(&lines).rhythm, "daily 05:00 (assumed)");
}

#[test]
fn passes_that_came_every_few_seconds_are_not_played_forward_for_minutes() {
    let kit = scene();
    let pass = |on: u32| {
        let at = format!("2026-11-20T04:{:02}:{:02}Z", on / 60, on % 60);
        json!({"type": "pass", "id": format!("q{on}"), "at": at, "dest": "box", "wire_out": 1, "wire_in": 0, "seconds": 0,
            "sent": 0, "failed": 0, "pending": 0})
    };
    let passes: String = (0..20).map(|on| format!("{}\n", pass(on * 16))).collect();
    kit.write("store/.outbox-box/.bak/ledger/often.jsonl", passes);
    let ran = kit.link(&["--forecast", "30d"]).expect(2);
    ran.says("box: passes came every 16 s so far").says("say how often they will come, as by --passes 1h");
    assert_eq!(summary(&lines(&kit, &["--forecast", "30d", "--passes", "24h"])).passes, 30);
}

#[test]
fn usage() {
    let kit = scene();
    for (args, says) in [
        (&["--forecast", "soon"][..], "no duration"),
        (&["--forecast", "0s"], "from 1s to 3660d"),
        (&["--forecast", "3661d"], "from 1s to 3660d"),
        (&["--forecast", "3d", "--passes", "1s"], "at least 60s"),
        (&["--forecast", "30d", "--passes", "60s"], "more than 10000 passes"),
        (&["--target", "3d"], "--forecast"),
        (&["--forecast", "3d", "--only", "web"], "cannot be used with"),
        (&["--forecast", "3d", "--force"], "cannot be used with"),
        (&["--forecast", "3d", "--tag", "x"], "cannot be used with"),
        (&["--forecast", "3d", "-"], "cannot be used with"),
    ] {
        kit.link(args).expect(2).says(says);
    }
    assert_eq!(kit.link(&["--forecast", "3d", "-q"]).clean().out, "");
}

#[test]
fn on_a_terminal_a_table_and_a_plot_that_do_not_wrap() {
    let kit = scene();
    let long = "a-guest-with-a-name-that-is-longer-than-anybody-would-like-it-to-be-on-a-terminal";
    for on in 10..=20 {
        kit.dump(long, &day(on), 700);
    }
    let line = "bak-link --store store --dest box=/far --limit 1000 --limit 9000/week --now 2026-11-20T05:00:00Z --forecast 90d";
    for (columns, locale, mark) in [(80, "C.UTF-8", "█"), (120, "C.UTF-8", "█"), (60, "C", "#")] {
        let ran = kit.sh(&format!(
            "SHELL=/bin/sh LC_ALL={locale} script -qec 'stty cols {columns} rows 40; {line} --explain' /dev/null"
        ));
        let text = ran.expect(0).out.replace('\r', "");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= columns, "{widest} of {columns}:\n{text}");
        assert_eq!(text.is_ascii(), locale == "C", "{text}");
        for part in [
            mark,
            "GUEST",
            if columns < 80 { "daily" } else { "daily 02:00" },
            "What waits after each pass",
            "The smallest limit",
            "2026-11-21: db",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}
