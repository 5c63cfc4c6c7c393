//! The rules: the tables of Proxmox's documentation, edges judged by hand, and a reference written from the description
//! of the rules alone. More random cases: `PROPTEST_CASES=100000 cargo test --release -p bak-prune --test policy`.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::units::Span;
use bak_prune::policy::{Moment, Verdict, judge};
use proptest::prelude::*;

fn keep(text: &str) -> Keep {
    let mut keep = Keep::default();
    for part in text.split_whitespace() {
        let (rule, number) = part.split_once('=').unwrap();
        let count = || Some(number.parse().unwrap());
        match rule {
            "last" => keep.last = count(),
            "hourly" => keep.hourly = count(),
            "daily" => keep.daily = count(),
            "weekly" => keep.weekly = count(),
            "monthly" => keep.monthly = count(),
            "yearly" => keep.yearly = count(),
            "within" => keep.within = Some(number.parse().unwrap()),
            "all" => keep.all = Some(number == "true"),
            _ => panic!("{rule}"),
        }
    }
    keep
}

fn zone(name: &str) -> Zone {
    name.parse().unwrap()
}

fn moments(zone: Zone, starts: &[&str]) -> Vec<Moment> {
    let moment = |start: &&str| {
        let started: Time = start.parse().unwrap();
        Moment { started, local: zone.local(started) }
    };
    starts.iter().map(moment).collect()
}

const NOW: &str = "2026-11-20T12:00:00Z";

fn judged(zone_name: &str, starts: &[&str], rules: &str) -> Vec<Verdict> {
    judge(&moments(zone(zone_name), starts), &keep(rules), NOW.parse().unwrap())
}

/// `k` for what is kept and `-` for what goes, in the order given.
fn marks(zone_name: &str, starts: &[&str], rules: &str) -> String {
    let mark = |verdict: &Verdict| if matches!(verdict, Verdict::Keep(_)) { 'k' } else { '-' };
    judged(zone_name, starts, rules).iter().map(mark).collect()
}

/// The reasons of one dump, as people read them; dumps are called by their place.
fn reasons(zone_name: &str, starts: &[&str], rules: &str, at: usize) -> String {
    let names: Vec<String> = (0..starts.len()).map(|n| format!("#{n}")).collect();
    let dumps = moments(zone(zone_name), starts);
    match &judged(zone_name, starts, rules)[at] {
        Verdict::Keep(hold) => hold.say(&dumps[at]),
        Verdict::Remove(misses) => {
            misses.iter().map(|miss| miss.say(|n| (dumps[n], names[n].as_str()))).collect::<Vec<_>>().join("; ")
        }
    }
}

#[test]
fn proxmox_examples() {
    // a, b, c, d, e of the documentation; P is protected and is not given to the rules.
    let abcde = [
        "2018-05-26T11:18:21Z",
        "2019-12-31T11:18:21Z",
        "2019-12-31T11:19:21Z",
        "2020-01-01T11:18:21Z",
        "2020-01-01T12:18:21Z",
    ];
    for (rules, expected) in [
        ("last=3", "--kkk"),
        ("weekly=2", "k---k"),
        ("daily=1 weekly=1 monthly=1", "k-k-k"),
        ("hourly=4", "k-kkk"),
        ("yearly=2", "--k-k"),
        ("last=1 monthly=2", "k-k-k"),
    ] {
        assert_eq!(marks("UTC", &abcde, rules), expected, "{rules}");
    }
    let turn = ["2019-12-25T00:00:00Z", "2019-12-31T00:00:00Z", "2020-01-01T00:00:00Z"];
    assert_eq!(marks("UTC", &turn, "daily=1 weekly=1 monthly=1"), "k-k");
}

#[test]
fn each_rule_alone_and_in_pairs() {
    // Two dumps a day, at 01:00 and 13:00, over three days; the middle day is a Sunday, the last one a Monday.
    let days = [
        "2026-11-14T01:00:00Z",
        "2026-11-14T13:00:00Z",
        "2026-11-15T01:00:00Z",
        "2026-11-15T13:00:00Z",
        "2026-11-16T01:00:00Z",
        "2026-11-16T13:00:00Z",
    ];
    for (rules, expected) in [
        ("last=2", "----kk"),
        ("hourly=3", "---kkk"),
        ("daily=2", "---k-k"),
        ("daily=9", "-k-k-k"),
        ("weekly=1", "-----k"),
        ("weekly=2", "---k-k"),
        // The walk goes on for as long as it finds periods: one month, so one dump.
        ("monthly=9", "-----k"),
        ("yearly=1", "-----k"),
        // The day of what `last` keeps is covered, so `daily` keeps two more days.
        ("last=1 daily=2", "-k-k-k"),
        ("last=3 daily=1", "-k-kkk"),
        ("last=3 hourly=1", "--kkkk"),
        ("last=2 weekly=1", "---kkk"),
        ("daily=1 weekly=1", "---k-k"),
        ("daily=1 weekly=1 monthly=1 yearly=1", "---k-k"),
        ("hourly=1 daily=1", "---k-k"),
        ("daily=2 monthly=1", "---k-k"),
    ] {
        assert_eq!(marks("UTC", &days, rules), expected, "{rules}");
    }
}

#[test]
fn pairs_of_rules_over_years() {
    // By year, month and ISO week: 2024-12 W01 of 2025; 2025-12 W52; 2026-01 W05; 2026-02 W05 twice; 2026-02 W06.
    let years = [
        "2024-12-30T01:00:00Z",
        "2025-12-28T01:00:00Z",
        "2026-01-31T01:00:00Z",
        "2026-02-01T01:00:00Z",
        "2026-02-01T13:00:00Z",
        "2026-02-02T01:00:00Z",
    ];
    for (rules, expected) in [
        ("last=1 hourly=1", "----kk"),
        ("last=3 weekly=1", "-k-kkk"),
        ("last=2 monthly=1", "--k-kk"),
        ("last=1 yearly=1", "-k---k"),
        ("hourly=1 weekly=3", "kk--kk"),
        ("hourly=2 monthly=2", "-kk-kk"),
        ("hourly=1 yearly=1", "-k---k"),
        ("daily=2 weekly=1", "-k--kk"),
        ("daily=1 monthly=1", "--k--k"),
        ("daily=1 yearly=2", "kk---k"),
        ("weekly=2 monthly=1", "-k--kk"),
        ("weekly=1 yearly=3", "kk---k"),
        ("monthly=2 yearly=1", "-kk--k"),
    ] {
        assert_eq!(marks("UTC", &years, rules), expected, "{rules}");
    }
}

#[test]
fn zones_that_changed() {
    // Samoa left out 2011-12-30: half past eleven on the 29th, and an hour later half past midnight on the 31st.
    let apia = ["2011-12-30T09:30:00Z", "2011-12-30T10:30:00Z"];
    assert_eq!(marks("Pacific/Apia", &apia, "daily=9"), "kk");
    assert_eq!(reasons("Pacific/Apia", &apia, "daily=9", 0), "daily #2, 2011-12-29");
    assert_eq!(reasons("Pacific/Apia", &apia, "daily=9", 1), "daily #1, 2011-12-31");
    // Moscow went from +4 to +3 for good in the night to 2014-10-26: half past one came twice.
    let moscow = ["2014-10-25T21:30:00Z", "2014-10-25T22:30:00Z", "2014-10-25T23:30:00Z"];
    assert_eq!(marks("Europe/Moscow", &moscow, "hourly=9"), "-kk");
    assert_eq!(reasons("Europe/Moscow", &moscow, "hourly=9", 1), "hourly #2, 2014-10-26 01h");
}

#[test]
fn weeks_are_those_of_iso() {
    // 2026-12-28 to 2027-01-03 is week 53 of 2026; 2027-01-04 begins week 1 of 2027.
    let turn = ["2026-12-27T12:00:00Z", "2026-12-28T12:00:00Z", "2027-01-03T12:00:00Z", "2027-01-04T12:00:00Z"];
    assert_eq!(marks("UTC", &turn, "weekly=2"), "--kk");
    assert_eq!(marks("UTC", &turn, "weekly=3"), "k-kk");
    assert_eq!(reasons("UTC", &turn, "weekly=3", 2), "weekly #2, 2026-W53");
    assert_eq!(reasons("UTC", &turn, "weekly=3", 3), "weekly #1, 2027-W01");
    // 2025-12-29 is in week 1 of 2026: with the calendar's year it would be taken for week 1 of 2025.
    assert_eq!(marks("UTC", &["2025-01-01T12:00:00Z", "2025-12-29T12:00:00Z"], "weekly=2"), "kk");
    // Week 1 and month 1 of a year are different things.
    assert_eq!(marks("UTC", &["2026-01-01T12:00:00Z", "2026-01-31T12:00:00Z"], "weekly=2 monthly=1"), "kk");
}

#[test]
fn the_nights_in_which_the_clock_is_moved() {
    // 2026-10-25: 02:30 comes twice, and is one hour; the night before midnight is another day.
    let autumn = ["2026-10-24T21:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"];
    assert_eq!(marks("Europe/Berlin", &autumn, "hourly=9"), "k-kk");
    assert_eq!(reasons("Europe/Berlin", &autumn, "hourly=9", 1), "hourly 2026-10-25 02h is held by #2");
    assert_eq!(marks("UTC", &autumn, "hourly=9"), "kkkk");
    assert_eq!(marks("Europe/Berlin", &autumn, "daily=9"), "k--k");
    // That day has 25 hours: 22:30 and 23:30 UTC fall on different days.
    let end = ["2026-10-24T22:30:00Z", "2026-10-25T22:30:00Z", "2026-10-25T23:30:00Z"];
    assert_eq!(marks("Europe/Berlin", &end, "daily=9"), "-kk");
    // 2026-03-29: from 02:00 to 03:00 in no time.
    let spring = ["2026-03-28T22:30:00Z", "2026-03-28T23:30:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"];
    assert_eq!(marks("Europe/Berlin", &spring, "hourly=9"), "kkkk");
    assert_eq!(reasons("Europe/Berlin", &spring, "hourly=9", 3), "hourly #1, 2026-03-29 03h");
    assert_eq!(marks("Europe/Berlin", &spring, "daily=9"), "k--k");
}

#[test]
fn equal_times_gaps_and_rules_that_are_off() {
    let twins = ["2026-11-18T01:00:00Z", "2026-11-19T01:00:00Z", "2026-11-19T01:00:00Z"];
    assert_eq!(marks("UTC", &twins, "last=2"), "kk-");
    assert_eq!(reasons("UTC", &twins, "last=2", 2), "last 2026-11-19 01:00 is held by #1");
    let gap = ["1999-01-01T01:00:00Z", "2026-11-18T01:00:00Z", "2026-11-19T01:00:00Z"];
    assert_eq!(marks("UTC", &gap, "daily=3"), "kkk", "days without a dump do not count");
    for rules in ["", "last=0", "last=0 daily=0 within=0", "all=true", "all=true last=1"] {
        assert_eq!(marks("UTC", &gap, rules), "kkk", "{rules}");
    }
    assert_eq!(marks("UTC", &gap, "last=1 daily=0 all=false"), "--k");
    assert_eq!(reasons("UTC", &gap, "last=0", 0), "no rule says what to keep: everything is kept");
    assert_eq!(reasons("UTC", &gap, "all=true", 0), "all are kept");
    assert!(judged("UTC", &[], "last=1").is_empty());
}

#[test]
fn within_keeps_what_is_younger() {
    // Now is 2026-11-20 12:00.
    let starts = ["2026-11-17T12:00:00Z", "2026-11-18T12:00:00Z", "2026-11-18T12:00:01Z", "2026-11-20T11:00:00Z"];
    assert_eq!(marks("UTC", &starts, "within=2d"), "--kk");
    assert_eq!(marks("UTC", &starts, "within=30m"), "----");
    assert_eq!(reasons("UTC", &starts, "within=2d", 0), "within 2 d: too old by 24 h");
    // `last` takes its number first; what is young is kept beside it; periods they hold are covered.
    assert_eq!(marks("UTC", &starts, "last=1 within=2d daily=1"), "k-kk");
    assert_eq!(reasons("UTC", &starts, "last=1 within=2d", 2), "within #1, 2026-11-18 12:00");
    assert_eq!(reasons("UTC", &starts, "last=1 within=2d daily=1", 0), "daily #1, 2026-11-17");
}

#[test]
fn reasons_for_people() {
    let starts = [
        "2026-08-01T01:00:00Z", // 0
        "2026-10-26T01:00:00Z", // 1: Monday of week 44
        "2026-11-02T01:00:00Z", // 2: week 45
        "2026-11-09T01:00:00Z", // 3: week 46
        "2026-11-18T01:00:00Z", // 4: week 47
        "2026-11-18T13:00:00Z", // 5
        "2026-11-19T01:00:00Z", // 6
        "2026-11-20T01:00:00Z", // 7
    ];
    let rules = "daily=3 weekly=3";
    assert_eq!(reasons("UTC", &starts, rules, 7), "daily #1, 2026-11-20");
    assert_eq!(reasons("UTC", &starts, rules, 5), "daily #3, 2026-11-18");
    assert_eq!(reasons("UTC", &starts, rules, 4), "daily 2026-11-18 is held by #5");
    assert_eq!(reasons("UTC", &starts, rules, 1), "weekly #3, 2026-W44");
    assert_eq!(
        reasons("UTC", &starts, rules, 0),
        "weekly: 3 of 3 used, oldest 2026-10-26; daily: 3 of 3 used, oldest 2026-11-18",
        "what came closest is first"
    );
    assert_eq!(reasons("UTC", &starts, "monthly=3", 0), "monthly #3, 2026-08");
    assert_eq!(reasons("UTC", &starts, "yearly=3", 0), "yearly 2026 is held by #7");
    assert_eq!(reasons("UTC", &starts, "last=1", 6), "last: 1 of 1 used, oldest 2026-11-20 01:00");
}

/// The description of the rules, spelled out on text as slowly as it pleases.
fn reference(dumps: &[Moment], keep: &Keep, now: Time) -> Vec<bool> {
    let counts = [keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly].map(|n| n.unwrap_or(0));
    let within = keep.within.map_or(0, |span| span.0);
    if keep.all == Some(true) || (within == 0 && counts == [0; 6]) {
        return vec![true; dumps.len()];
    }
    let formats = ["%s", "%Y %m %d %H", "%Y %m %d", "%G week %V", "%Y %m", "%Y"];
    let mut newest_first: Vec<usize> = (0..dumps.len()).collect();
    newest_first.sort_by(|a, b| dumps[*b].started.cmp(&dumps[*a].started).then(a.cmp(b)));
    let mut mark = vec![' '; dumps.len()];
    for (rule, format) in formats.iter().enumerate() {
        let period = |at: usize| match rule {
            0 => dumps[at].started.to_string(),
            _ => dumps[at].local.format(format).to_string(),
        };
        let already: Vec<String> = (0..dumps.len()).filter(|at| mark[*at] == 'k').map(period).collect();
        let mut new: Vec<String> = Vec::new();
        for at in newest_first.iter().copied() {
            if counts[rule] == 0 || mark[at] != ' ' || already.contains(&period(at)) {
                continue;
            }
            if new.contains(&period(at)) {
                mark[at] = 'r';
            } else if new.len() as u64 == counts[rule] {
                break;
            } else {
                new.push(period(at));
                mark[at] = 'k';
            }
        }
        if rule == 0 && within > 0 {
            for at in 0..dumps.len() {
                if mark[at] == ' ' && i128::from(now.unix() - dumps[at].started.unix()) < i128::from(within) {
                    mark[at] = 'k';
                }
            }
        }
    }
    mark.iter().map(|mark| *mark == 'k').collect()
}

fn rules() -> impl Strategy<Value = Keep> {
    let count =
        || prop_oneof![2 => Just(None), 1 => Just(Some(0)), 4 => (1u64..5).prop_map(Some), 1 => Just(Some(u64::MAX))];
    let within = prop_oneof![3 => Just(None), 1 => (0u64..400_000).prop_map(|s| Some(Span(s)))];
    let all = prop_oneof![9 => Just(None), 1 => any::<bool>().prop_map(Some)];
    (count(), count(), count(), count(), count(), count(), within, all).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within, all)| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            all,
            failed: None,
        },
    )
}

/// Starts around the turn of a year, the nights in which the clock moves, and anywhere in eight years.
fn starts() -> impl Strategy<Value = Vec<i64>> {
    let t = |text: &str| text.parse::<Time>().unwrap().unix();
    let (year, spring, autumn, now) =
        (t("2027-01-01T00:00:00Z"), t("2026-03-29T01:00:00Z"), t("2026-10-25T01:00:00Z"), t(NOW));
    let start = prop_oneof![
        (-20i64..20).prop_map(move |n| year + n * 43_200),
        (-16i64..16).prop_map(move |n| spring + n * 1800),
        (-16i64..16).prop_map(move |n| autumn + n * 1800),
        (-300_000i64..3600).prop_map(move |n| now + n),
        (-126_000_000i64..126_000_000).prop_map(move |n| now + n),
    ];
    prop::collection::vec(start, 0..40)
}

fn zones() -> impl Strategy<Value = Zone> {
    prop::sample::select(vec!["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"])
        .prop_map(zone)
}

fn at(zone: Zone, starts: &[i64]) -> Vec<Moment> {
    let moment = |start: &i64| {
        let started = Time::from_unix(*start).unwrap();
        Moment { started, local: zone.local(started) }
    };
    starts.iter().map(moment).collect()
}

fn kept(verdicts: &[Verdict]) -> Vec<bool> {
    verdicts.iter().map(|verdict| matches!(verdict, Verdict::Keep(_))).collect()
}

proptest! {
    #[test]
    fn as_the_reference_says(starts in starts(), keep in rules(), zone in zones()) {
        let (dumps, now) = (at(zone, &starts), NOW.parse().unwrap());
        prop_assert_eq!(kept(&judge(&dumps, &keep, now)), reference(&dumps, &keep, now));
    }

    #[test]
    fn what_is_kept_is_kept_again(starts in starts(), keep in rules(), zone in zones()) {
        let (dumps, now) = (at(zone, &starts), NOW.parse().unwrap());
        let first = kept(&judge(&dumps, &keep, now));
        let left: Vec<Moment> = dumps.iter().zip(&first).filter(|(_, kept)| **kept).map(|(dump, _)| *dump).collect();
        prop_assert!(kept(&judge(&left, &keep, now)).iter().all(|kept| *kept));
    }

    #[test]
    fn the_newest_is_kept_by_any_rule_that_counts(starts in starts(), keep in rules(), zone in zones()) {
        let counts = [keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly];
        let dumps = at(zone, &starts);
        // Of equal ones the first.
        let newest = (0..dumps.len()).rev().max_by_key(|at| dumps[*at].started);
        if let Some(newest) = newest.filter(|_| counts.iter().any(|count| count.is_some_and(|n| n > 0))) {
            prop_assert!(kept(&judge(&dumps, &keep, NOW.parse().unwrap()))[newest]);
        }
    }

    #[test]
    fn everything_that_goes_has_a_reason(starts in starts(), keep in rules(), zone in zones()) {
        for verdict in judge(&at(zone, &starts), &keep, NOW.parse().unwrap()) {
            prop_assert!(!matches!(verdict, Verdict::Remove(misses) if misses.is_empty()));
        }
    }
}
