//! A policy played forward, in records and on a terminal.

use bak_tests::{Kit, Ran, bin, check_store};

const NOW: &str = "2026-11-20T12:00:00Z";

fn simulate(kit: &Kit, args: &str) -> Ran {
    kit.sh(&format!("bak-prune --tz UTC --now {NOW} --simulate {args}"))
}

/// What exists at the end of a day: the days on which it was made.
fn on(ran: &Ran, day: &str) -> Vec<String> {
    let record = ran.records().into_iter().find(|record| record["day"] == day).unwrap_or_else(|| panic!("{day}"));
    let exists: Vec<String> =
        record["exists"].as_array().unwrap().iter().map(|time| time.as_str().unwrap().to_owned()).collect();
    assert_eq!(record["count"], exists.len());
    exists
}

#[test]
fn a_made_up_schedule() {
    let kit = Kit::new();
    let ran = simulate(&kit, "60d --every 1d@02:00 --keep-daily 3 --keep-weekly 2 --keep-monthly 1").clean();
    assert_eq!(ran.records().len(), 61);
    assert_eq!(on(&ran, "2026-11-20").len(), 0, "at noon, tonight is still to come");
    assert_eq!(on(&ran, "2026-11-21"), ["2026-11-21T02:00:00Z"]);
    // The 13th of January is a Wednesday: three days; the Sundays of the two weeks before; and of December its last Sunday,
    // as the week of New Year's Eve is held by a Sunday of January.
    assert_eq!(
        on(&ran, "2027-01-13"),
        [
            "2026-12-27T02:00:00Z",
            "2027-01-03T02:00:00Z",
            "2027-01-10T02:00:00Z",
            "2027-01-11T02:00:00Z",
            "2027-01-12T02:00:00Z",
            "2027-01-13T02:00:00Z"
        ]
    );
    let only = simulate(&kit, "60d --keep-daily 3 --keep-weekly 2 --keep-monthly 1 --on 2027-01-13").clean();
    assert_eq!(on(&only, "2027-01-13"), on(&ran, "2027-01-13"));
    assert_eq!(only.out.lines().count(), 1);
    // Without rules everything stays; every six hours that is four a day, the first at noon and a second.
    assert_eq!(on(&simulate(&kit, "10d --every 6h").clean(), "2026-11-29").len(), 1 + 9 * 4);
    assert_eq!(on(&simulate(&kit, "10d --every 6h --keep-within 1d").clean(), "2026-11-29").len(), 4);
    // Through the night in which summer time ends, the wall clock holds.
    let ran =
        kit.sh("bak-prune --tz Europe/Berlin --now 2026-10-24T00:00:00Z -n --simulate 3d --every 1d@02:30").clean();
    assert_eq!(on(&ran, "2026-10-26"), ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
}

#[test]
fn the_real_schedule() {
    let kit = Kit::new();
    for day in [1, 4, 7, 10, 13, 16, 19] {
        kit.dump("web", &format!("2026-11-{day:02}T01:17:03Z"), 10);
    }
    kit.dump("db", "2026-11-19T03:00:00Z", 10);
    let ran = simulate(&kit, "30d --store store --guest web --keep-last 3").clean();
    assert_eq!(on(&ran, "2026-11-20"), ["2026-11-13T01:17:03Z", "2026-11-16T01:17:03Z", "2026-11-19T01:17:03Z"]);
    assert!(on(&ran, "2026-12-20").iter().all(|time| time.ends_with("T01:17:03Z") && time.starts_with("2026-12-")));
    assert_eq!(simulate(&kit, "2d store --keep-last 1").clean().records().len(), 6, "both guests");
    assert_eq!(check_store(&kit.store()).whole.len(), 8, "nothing is removed");
}

#[test]
fn what_does_not_go_with_a_simulation() {
    let kit = Kit::new();
    for (args, why) in [
        ("30d --every 2s", "more often than every minute"),
        ("30d --every 1d@25:00", "is no schedule like"),
        ("9000y --every 1h", "more than 1000000 dumps"),
        ("30d --free 1G", "--simulate goes with"),
        ("30d --purge web", "orders of their own"),
    ] {
        simulate(&kit, args).expect(2).says(why);
    }
    assert_eq!(kit.sh("bak-prune --every 1d").status, 2);
}

#[test]
fn a_calendar_on_a_terminal() {
    let kit = Kit::new();
    let line = format!(
        "{} --tz UTC --now {NOW} -n --simulate 1y --every 1d@02:00 --keep-daily 7 --keep-weekly 4 --keep-monthly 6",
        bin("bak-prune").display()
    );
    let ran = kit.sh(&format!("script -qec 'stty cols 80; {line}' /dev/null")).expect(0);
    // Six days and a Sunday; the Sundays of four weeks before; the last Sundays of six months before October.
    for text in [
        "    October 2027           November 2027",
        " ·  ·  ·  ·  ·  · 17    15 16 17 18 19 20  ·",
        " ·  ·  ·  ·  ·  · 24     ·  ·  ·  ·  ·  ·  ·",
        "example, 2027-11-20: 17 dumps since 2027-04-25 02:00; at most 17 on any day",
    ] {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }
    assert!(!ran.out.contains("March"), "{}", ran.out);
    assert!(ran.out.lines().all(|line| line.chars().count() <= 80), "{}", ran.out);
}
