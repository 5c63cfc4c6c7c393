//! Forecasts judged by hand. Sizes are plain numbers, limits too; see [`samples`](super::samples) for what day it is.

use super::samples::*;
use super::*;
use bak_common::units::Period;

/// Which guests go on which day, in the order in which they arrive: `20 a b, 21 c`.
fn days(facts: &Facts, forecast: &Forecast) -> String {
    let mut days: Vec<String> = Vec::new();
    for group in forecast.sends.chunk_by(|a, b| a.at == b.at) {
        let day = group[0].at.since(at(1, 0)).div_euclid(86_400) + 1;
        let vms = group.iter().map(|sending| facts.guests[sending.guest].plan.key.vm.as_str());
        days.push(format!("{day} {}", vms.collect::<Vec<_>>().join(" ")));
    }
    days.join(", ")
}

fn sundays(vm: &str, bytes: u64) -> Guest {
    guest(vm, 4, [1, 8, 15].into_iter(), bytes).sent_to(15)
}

struct Case {
    what: &'static str,
    guests: Vec<Guest>,
    limits: &'static [&'static str],
    days: i64,
    goes: &'static str,
    /// Bytes that wait after each pass.
    waits: &'static [u64],
}

fn cases() -> Vec<Case> {
    let case = |what, guests, limits, days, goes, waits| Case { what, guests, limits, days, goes, waits };
    vec![
        case(
            "no limit: each dump in the first pass after it",
            vec![nightly("a", 5)],
            &[],
            3,
            "20 a, 21 a, 22 a",
            &[0, 0, 0],
        ),
        case(
            "room for two of three: who waited goes first, then who is called first",
            vec![nightly("a", 5), nightly("b", 5), nightly("c", 5)],
            &["10"],
            5,
            "20 a b, 21 c a, 22 b a, 23 c a, 24 b a",
            &[5, 5, 5, 5, 5],
        ),
        case(
            "a priority goes first every day",
            vec![nightly("a", 5), nightly("b", 5).priority(1)],
            &["5"],
            3,
            "20 b, 21 b, 22 b",
            &[5, 5, 5],
        ),
        case(
            "a week of which 4 were used: Friday, Saturday, then from Monday on",
            vec![nightly("a", 3)],
            &["10/week"],
            11,
            "20 a, 21 a, 23 a, 24 a, 25 a, 30 a",
            &[0, 0, 3, 0, 0, 0, 3, 3, 3, 3, 0],
        ),
        case(
            "larger than a pass and alone: three whole passes from Sunday on",
            vec![sundays("big", 25)],
            &["10"],
            5,
            "24 big",
            &[0, 0, 15, 5, 0],
        ),
        case(
            "larger than a pass, beside another: half, and what that leaves",
            vec![sundays("big", 25), nightly("a", 2)],
            &["10"],
            6,
            "20 a, 21 a, 22 a, 23 a, 24 a, 25 big a",
            &[0, 0, 17, 9, 1, 0],
        ),
        case(
            "larger than a day's limit: never",
            vec![sundays("big", 25), nightly("a", 2)],
            &["20/day"],
            4,
            "20 a, 21 a, 22 a, 23 a",
            &[0, 0, 25, 25],
        ),
        case(
            "dumped no more since the 10th, the last one not sent",
            vec![guest("old", 2, 1..=10, 4).sent_to(9)],
            &["10"],
            4,
            "20 old",
            &[0, 0, 0, 0],
        ),
        case(
            "not due before it is staler than two days",
            vec![nightly("a", 5).stale_after(2)],
            &["10"],
            9,
            "22 a, 25 a, 28 a",
            &[0; 9],
        ),
        case(
            "on its way: 4 of 15 were carried, and its newer dump waits for it",
            vec![nightly("a", 15).begun(4)],
            &["10"],
            3,
            "21 a",
            &[1, 0, 5],
        ),
    ]
}

#[test]
fn which_guest_goes_on_which_day() {
    for case in cases() {
        let mut facts = facts(case.guests, case.limits);
        facts.traffic = vec![(at(12, 6), 100), (at(17, 6), 4)];
        let forecast = forecast(&facts, &options(case.days));
        assert_eq!(days(&facts, &forecast), case.goes, "{}", case.what);
        let waits: Vec<u64> = forecast.passes.iter().map(|pass| pass.waiting).collect();
        assert_eq!(waits, case.waits, "{}: what waits", case.what);
    }
}

#[test]
fn an_overdraft_is_carried_at_once_and_blocks_the_others() {
    let facts = facts(vec![sundays("big", 25), nightly("a", 2)], &["10"]);
    let mut options = options(4);
    options.plan.overdraft = true;
    let forecast = forecast(&facts, &options);
    assert_eq!(days(&facts, &forecast), "20 a, 21 a, 22 big, 23 a");
}

#[test]
fn what_is_said_of_a_dump_that_goes() {
    let facts = facts(vec![sundays("big", 25), guest("new", 2, 20..21, 3)], &["10"]);
    let forecast = forecast(&facts, &options(6));
    let said = |id: &str| {
        let sending = forecast.sends.iter().find(|sending| sending.id.as_str() == id).unwrap();
        (sending.linked, sending.at, sending.staleness_s, sending.cost, sending.passes)
    };
    assert_eq!(said("new@20261120T020000Z"), (at(20, 6), at(20, 6), None, 3, 1));
    assert_eq!(said("new@20261121T020000Z"), (at(21, 6), at(21, 6), Some(86_400), 3, 1));
    // 7, then 7 and 7 beside the other guest's, and the rest.
    assert_eq!(said("big@20261122T040000Z"), (at(22, 6), at(25, 6), Some(7 * 86_400), 25, 4));
}

#[test]
fn what_was_measured_on_the_wire_is_what_a_period_counts() {
    // Planned at 5 each, but 2 on the wire, and 1 for each pass: 3 a day of 10 a week, from Friday on.
    let mut facts = facts(vec![nightly("a", 5).took(2)], &["10/week"]);
    facts.overhead = 1;
    let forecast = forecast(&facts, &options(4));
    assert_eq!(days(&facts, &forecast), "20 a, 21 a, 23 a");
    let sunday = &forecast.passes[2];
    assert_eq!((sunday.carried, sunday.waiting), (0, 5), "4 are left, which 5 don't fit into");
}

#[test]
fn passes_happen_as_they_did_or_as_the_user_says_or_daily_from_now_on() {
    let times = |facts: &Facts, options: &Options| -> (String, Vec<Time>) {
        let forecast = forecast(facts, options);
        (forecast.rhythm, forecast.passes.iter().map(|pass| pass.at).collect())
    };
    let mut facts = facts(vec![], &[]);
    let as_so_far = times(&facts, &options(2));
    assert_eq!(as_so_far, ("daily 06:00 (as so far)".into(), vec![at(20, 6), at(21, 6)]));
    let given = Options { passes_s: Some(12 * 3600), ..options(1) };
    assert_eq!(times(&facts, &given), ("every 12 h (as given)".into(), vec![at(20, 5), at(20, 17), at(21, 5)]));
    facts.passes.clear();
    assert_eq!(times(&facts, &options(1)), ("daily 05:00 (assumed)".into(), vec![at(20, 5), at(21, 5)]));
}

#[test]
fn figures_of_a_guest() {
    // Two nightly guests of 5, room for one: they take turns, and each second dump is superseded.
    let facts = facts(vec![nightly("a", 5).target(1), nightly("b", 5).target(0)], &["5"]);
    let forecast = forecast(&facts, &options(10));
    let figures = |at: usize| {
        let one = &forecast.guests[at];
        (one.made, one.sent, one.superseded, one.waiting, one.median_s, one.worst_s, one.kept())
    };
    assert_eq!(days(&facts, &forecast), "20 a, 21 b, 22 a, 23 b, 24 a, 25 b, 26 a, 27 b, 28 a, 29 b");
    // The last dumps are made on the 30th, after the last pass: one that b had nothing waiting for, one that a had.
    assert_eq!(figures(0), (11, 5, 5, 1, Some(86_400), Some(86_400), Some(true)));
    assert_eq!(figures(1), (11, 5, 5, 1, Some(86_400), Some(86_400), Some(false)));
    assert_eq!((forecast.guests[0].rhythm.as_str(), forecast.stable), ("daily 02:00", Some(true)));
}

#[test]
fn the_smallest_limit() {
    let found = |guests: &[Guest], limits: &[&str]| forecast(&facts(guests.to_vec(), limits), &options(30)).smallest;
    let enough = |bytes, period, alone| Smallest::Enough { limit: Limit { bytes, period }, alone };
    let two = |days: u64| [nightly("a", 50).target(days), nightly("b", 50).target(days)];
    // Both every night; or one each night, in turns.
    assert_eq!(found(&two(0), &["10"]), [enough(100, Period::Pass, false)]);
    assert_eq!(found(&two(1), &["10"]), [enough(50, Period::Pass, false)]);
    assert_eq!(found(&two(1), &[]), [enough(50, Period::Pass, false)], "where none is set, of a pass");
    assert_eq!(found(&two(0), &["10/day"]), [enough(100, Period::Day, false)]);
    // Seven nights of 100, and no day more than that.
    assert_eq!(found(&two(0), &["10/week"]), [enough(700, Period::Week, false)]);
    let both = found(&two(0), &["120", "10/week"]);
    assert_eq!(both, [enough(100, Period::Pass, true), enough(700, Period::Week, false)]);
    // It is not even due before the third day.
    let never = found(&[nightly("a", 5).stale_after(2).target(1)], &["10"]);
    assert_eq!(never, [Smallest::Never { period: Period::Pass, guest: 0, at: at(21, 6) }]);
}

#[test]
fn who_is_too_stale_now_has_half_of_the_time_to_recover() {
    // Nothing of a and b was ever sent: for ten days. From the fifteenth day on each must go once in seven nights.
    let guests = || vec![guest("a", 2, 10..=20, 50).target(7), guest("b", 2, 10..=20, 50).target(7)];
    let forecast = forecast(&facts(guests(), &["200"]), &options(30));
    assert_eq!(forecast.judged_from, at(35, 5));
    let [Smallest::Enough { limit, .. }] = forecast.smallest[..] else { panic!("{:?}", forecast.smallest) };
    // Each takes three passes: linked on one day it arrives two days later, and the other one three days after that. When
    // the next one is linked six days after the first, that one is still the last until two days later: seven days stale.
    assert_eq!(limit.bytes, 17);
}

#[test]
fn what_can_never_go_and_why() {
    let facts = facts(vec![sundays("big", 25), nightly("a", 2)], &["20/day", "10"]);
    let seen = forecast(&facts, &options(10));
    assert_eq!(seen.guests[0].never.as_deref(), Some("25 B never fit into 20 B a day"));
    assert_eq!((seen.guests[0].kept(), &seen.guests[1].never), (Some(false), &None));
    let mut refused = options(10);
    refused.plan.oversize = false;
    let seen = forecast(&self::facts(vec![sundays("big", 25)], &["10"]), &refused);
    assert_eq!(seen.guests[0].never.as_deref(), Some("25 B never fit into 10 B a pass"));
}

#[test]
fn what_is_said_of_guests_without_a_rhythm() {
    // Nightly for a while, twice with a week's pause, and now for five nights not: it may well go on.
    let pauses = guest("pauses", 3, [2, 3, 4, 11, 12, 13, 14, 15].into_iter(), 4).sent_to(15);
    let once_lately = guest("new", 3, 19..20, 4);
    let once_long_ago = guest("old", 3, 12..13, 4).sent_to(12);
    let stopped = guest("gone", 3, 5..12, 4).sent_to(12);
    let mut broken = guest("broken", 3, 10..20, 4);
    broken.known.iter_mut().for_each(|dump| dump.good = false);
    broken.plan.local.clear();
    let mut elsewhere = nightly("elsewhere", 4);
    elsewhere.plan.sync = false;
    let facts = facts(vec![pauses, once_lately, once_long_ago, stopped, broken, elsewhere], &[]);
    let forecast = forecast(&facts, &options(3));
    let said: Vec<(&str, Option<&str>, u64)> =
        forecast.guests.iter().map(|one| (one.rhythm.as_str(), one.stopped.as_deref(), one.sent)).collect();
    let table = [
        ("daily 03:00", None, 2),
        ("daily 03:00 (assumed)", None, 3),
        ("stopped", Some("was dumped once only, 8.1 d ago"), 0),
        ("stopped", Some("daily 03:00 until 9.1 d ago"), 0),
        ("stopped", Some("it has no good dump to go by"), 0),
        ("not synced", None, 0),
    ];
    assert_eq!(said, table);
}

#[test]
fn sizes_grow_as_they_grew_and_no_longer_than_that() {
    let mut growing = nightly("a", 100);
    for (i, dump) in (0..).zip(&mut growing.known) {
        dump.bytes = 1000 + i * 10;
    }
    // One odd dump, and the newest one as the planner sees it.
    growing.known[4].bytes = 5000;
    growing.plan.local.last_mut().unwrap().cost = 1100;
    let seen = forecast(&facts(vec![growing.clone()], &[]), &options(30));
    let costs: Vec<u64> = seen.sends.iter().map(|sending| sending.cost).collect();
    assert_eq!((costs[0], costs[1], costs[10], costs[11], costs[29]), (1100, 1110, 1200, 1200, 1200));
    // Deltas don't grow with the guest; and what shrinks is not taken to go on so.
    growing.plan.local.last_mut().unwrap().cost = 7;
    let seen = forecast(&facts(vec![growing.clone()], &[]), &options(30));
    assert!(seen.sends.iter().all(|sending| sending.cost == 7));
    growing.known.iter_mut().for_each(|dump| dump.bytes = 10_000 - dump.bytes);
    let newest = growing.known.last().unwrap().bytes;
    growing.plan.local.last_mut().unwrap().cost = newest;
    let seen = forecast(&facts(vec![growing], &[]), &options(30));
    assert!(seen.sends.iter().all(|sending| sending.cost == newest));
}
