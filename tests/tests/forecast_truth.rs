//! The forecast against the truth: from a steady history, sixty days are played with the real programs, and each dump goes
//! on the day that the forecast made on the first of them says.

use bak_tests::{Kit, Ran, put_dump};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Days of history before the forecast, and days that it is held to.
const BEFORE: u32 = 16;
const AFTER: u32 = 60;

/// A guest: when it is dumped, and how large.
struct Guest {
    vm: &'static str,
    /// At this hour of the days for which this holds, counted from a Sunday.
    hour: u32,
    on: fn(u32) -> bool,
    bytes: usize,
}

const fn guest(vm: &'static str, hour: u32, on: fn(u32) -> bool, bytes: usize) -> Guest {
    Guest { vm, hour, on, bytes }
}

/// A time of the day so many days after Sunday, 2026-11-01.
fn at(day: u32, hour: u32) -> String {
    let (month, first) = [(11, 0), (12, 30), (1, 61), (2, 92)].into_iter().rfind(|(_, first)| day >= *first).unwrap();
    let year = if month > 10 { 2026 } else { 2027 };
    format!("{year}-{month:02}-{:02}T{hour:02}:00:00Z", day - first + 1)
}

struct Scene {
    kit: Kit,
    guests: Vec<Guest>,
    rules: &'static [&'static str],
}

impl Scene {
    fn new(guests: Vec<Guest>, rules: &'static [&'static str]) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let kit = if memory.is_dir() { Kit::new_in(memory) } else { Kit::new() };
        std::fs::create_dir(kit.path("far")).unwrap();
        let scene = Self { kit, guests, rules };
        scene.run("bak-sync", &at(0, 0), &["--init"]).clean();
        scene
    }

    fn run(&self, program: &str, now: &str, more: &[&str]) -> Ran {
        let common = ["--store", "store", "--dest", "box=far", "--tz", "UTC", "--now", now];
        self.kit.run(program, common.iter().chain(more))
    }

    fn dumps(&self, day: u32) {
        for guest in self.guests.iter().filter(|guest| (guest.on)(day)) {
            put_dump(&self.kit.store(), guest.vm, &at(day, guest.hour), guest.bytes, json!({}));
        }
    }

    /// A day's dumps, and its pass; returns what was linked and what was sent.
    fn day(&self, day: u32) -> (Vec<String>, Vec<String>) {
        self.dumps(day);
        let linked = self.run("bak-link", &at(day, 6), self.rules).clean().column("id");
        (linked, self.run("bak-sync", &at(day, 6), &[]).clean().column("id"))
    }

    /// The forecast's lines of one type, made before the pass of a day.
    fn forecast(&self, day: u32) -> Vec<Value> {
        let more = [self.rules, &["--forecast", "60d"]].concat();
        self.run("bak-link", &at(day, 5), &more).clean().records()
    }
}

/// Plays it all; every day must be as the forecast said. Returns the forecast.
fn comes_true(scene: &Scene) -> Vec<Value> {
    for day in 0..BEFORE {
        scene.day(day);
    }
    scene.dumps(BEFORE);
    let lines = scene.forecast(BEFORE);
    let said = |day: u32| -> BTreeSet<String> {
        let today = &at(day, 6)[..10];
        let of_day = lines.iter().filter(|line| line["type"] == "forecast.dump" && line["day"] == today);
        of_day.map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut sent = 0;
    for day in BEFORE..BEFORE + AFTER {
        let (linked, went) = scene.day(day);
        assert_eq!(linked, went, "bak-sync carries what was linked");
        assert_eq!(went.into_iter().collect::<BTreeSet<_>>(), said(day), "day {day}: went, and was said");
        sent += said(day).len();
    }
    let summary = lines.last().unwrap();
    assert_eq!((&summary["type"], &summary["sent"]), (&json!("forecast"), &json!(sent)));
    lines
}

fn nightly(_: u32) -> bool {
    true
}

fn sundays(day: u32) -> bool {
    day.is_multiple_of(7)
}

fn weekends(day: u32) -> bool {
    !working_days(day)
}

fn working_days(day: u32) -> bool {
    ![0, 6].contains(&(day % 7))
}

/// One night was missed, long before the forecast.
fn nightly_but_one(day: u32) -> bool {
    day != 9
}

#[test]
fn under_a_limit_for_a_pass() {
    let guests = vec![
        guest("mail", 1, nightly, 40_000),
        guest("web", 2, nightly_but_one, 25_000),
        guest("db", 3, nightly, 51_000),
        guest("shop", 2, working_days, 33_000),
        guest("files", 4, sundays, 90_000),
        // Its Sunday's dump is never very stale, and goes only as it has waited for long.
        guest("cups", 5, weekends, 45_000),
        // Larger than a pass.
        guest("archive", 4, sundays, 130_000),
    ];
    let scene = Scene::new(guests, &["--limit", "60000", "--overdraft"]);
    let lines = comes_true(&scene);
    let of = |vm: &str| lines.iter().find(|line| line["type"] == "forecast.guest" && line["vm"] == vm).unwrap();
    assert_eq!((&of("archive")["rhythm"], &of("archive")["sent"]), (&json!("Sun 04:00"), &json!(9)));
    assert_eq!(of("web")["rhythm"], "daily 02:00");
    assert!(of("mail")["superseded"].as_u64().unwrap() > 5, "there is a choice to be made: {}", of("mail"));
}

#[test]
fn under_a_limit_for_a_week() {
    let guests = vec![
        guest("mail", 1, nightly, 40_000),
        guest("web", 2, nightly_but_one, 25_000),
        guest("shop", 3, working_days, 51_000),
        guest("files", 4, sundays, 90_000),
    ];
    let scene = Scene::new(guests, &["--limit", "500000/week"]);
    let lines = comes_true(&scene);
    let summary = lines.last().unwrap();
    assert_eq!(summary["limits"], json!(["500000/week"]));
    assert!(summary["superseded"].as_u64().unwrap() > 50, "there is a choice to be made: {summary}");
}
