//! Cases judged by hand. It is day 10; sizes are plain numbers, limits too.

use super::samples::*;
use super::*;
use bak_common::units::limit;

pub fn options() -> Options {
    Options { now: day(10).plus(7200), skew_s: 3600, force: false, oversize: true, overdraft: false }
}

pub fn caps(limits: &[&str]) -> Vec<Cap> {
    limits.iter().map(|text| Cap { limit: limit(text).unwrap().unwrap(), used: 0 }).collect()
}

pub fn planned(guests: &[Guest], limits: &[&str], options: &Options) -> Plan {
    plan(&Facts { guests: guests.to_vec(), caps: caps(limits), passes: vec![] }, options)
}

/// The guests of the items that were decided so, in order: `a b`.
pub fn which(plan: &Plan, decision: Decision) -> String {
    let items = plan.items.iter().filter(|item| item.decision == decision);
    items.map(|item| item.id.as_str().split('@').next().unwrap()).collect::<Vec<_>>().join(" ")
}

pub fn find<'a>(plan: &'a Plan, id: &DumpId) -> &'a Item {
    plan.items.iter().find(|item| item.id == *id).unwrap()
}

struct Case {
    what: &'static str,
    guests: Vec<Guest>,
    linked: &'static str,
    over: &'static str,
    left: i64,
}

fn own_rules() -> Vec<Case> {
    let case = |what, guests, linked, over, left| Case { what, guests, linked, over, left };
    vec![
        case(
            "oversized at the head takes half while others are due",
            vec![stale("a", 3, 25), stale("b", 2, 5), stale("c", 1, 1)],
            "a b",
            "c",
            0,
        ),
        case("oversized and alone takes the whole pass", vec![stale("a", 3, 25)], "a", "", 0),
        case("a pending oversized one takes half", vec![guest("a").pending(9, 25), stale("b", 1, 5)], "b", "", 0),
        case(
            "with anything pending the oversized head waits",
            vec![guest("a").pending(9, 1), stale("b", 3, 25), stale("c", 1, 2)],
            "c",
            "b",
            7,
        ),
        case(
            "a pending one that failed isn't counted",
            vec![guest("a").pending(9, 8).failing(), stale("b", 1, 10)],
            "b",
            "",
            0,
        ),
        case(
            "nor does it keep the oversized head back",
            vec![guest("a").pending(9, 8).failing(), stale("b", 1, 25)],
            "b",
            "",
            0,
        ),
        case(
            "priority beats staleness and never sent",
            vec![new("a", 4), stale("b", 1, 4).priority(5), stale("c", 8, 4)],
            "b a",
            "c",
            2,
        ),
        case(
            "a negative priority goes last",
            vec![new("a", 4).priority(-1), stale("b", 1, 4), stale("c", 1, 4)],
            "b c",
            "a",
            2,
        ),
        case(
            "equally stale: sent longest ago, then smaller, then id",
            vec![
                Guest {
                    sent: vec![Sent { at: day(9).plus(60), ..guest("b").sent(9).sent.remove(0) }],
                    ..stale("b", 1, 3)
                },
                stale("d", 1, 2),
                stale("c", 1, 1),
                stale("a", 1, 2),
            ],
            "b c a d",
            "",
            2,
        ),
        case(
            "an empty dump fits into what is left of nothing",
            vec![stale("a", 2, 10), stale("b", 1, 0)],
            "a b",
            "",
            0,
        ),
    ]
}

#[test]
fn the_queue_and_the_budget() {
    for case in own_rules() {
        let plan = planned(&case.guests, &["10"], &options());
        assert_eq!(which(&plan, Decision::Linked), case.linked, "{}: linked", case.what);
        assert_eq!(which(&plan, Decision::OverLimit), case.over, "{}: over the limit", case.what);
        assert_eq!(plan.left[0].bytes, case.left, "{}: left", case.what);
    }
}

#[test]
fn without_a_limit_everything_due_goes() {
    let plan = planned(&[new("a", 1 << 40), stale("b", 1, 1)], &[], &options());
    assert_eq!(which(&plan, Decision::Linked), "a b");
    assert!(plan.items.iter().all(|item| item.remaining.is_none()));
}

#[test]
fn several_limits_hold_at_once_and_a_period_does_not_yield() {
    let guests = [stale("a", 3, 25), stale("b", 2, 4), stale("c", 1, 2)];
    let day_used = |used| {
        let mut caps = caps(&["10", "20/day"]);
        caps[1].used = used;
        plan(&Facts { guests: guests.to_vec(), caps, passes: vec![] }, &options())
    };
    let free = day_used(0);
    assert_eq!((which(&free, Decision::Linked).as_str(), free.left[1].bytes), ("b c", 14));
    let never = find(&free, &id("a", 10));
    let why =
        "over the limit of 20 B a day by 5 B; it is larger than the whole limit, so it stays here until that is raised";
    assert_eq!((never.why.as_str(), never.stuck), (why, true));
    let used = day_used(17);
    assert_eq!((which(&used, Decision::Linked).as_str(), which(&used, Decision::OverLimit).as_str()), ("c", "a b"));
    let later = find(&used, &id("b", 10));
    assert_eq!((later.why.as_str(), later.stuck), ("over the limit of 20 B a day by 1 B", false));
}

#[test]
fn oversize_never_refuses_the_head() {
    let never = Options { oversize: false, ..options() };
    let plan = planned(&[stale("a", 3, 25), stale("b", 2, 4)], &["10"], &never);
    assert_eq!(which(&plan, Decision::Linked), "b");
    assert_eq!(
        find(&plan, &id("a", 10)).why,
        "over the limit of 10 B a pass by 15 B; it is larger than the whole limit"
    );
}

#[test]
fn who_waited_through_as_many_passes_as_guests_are_due_goes_ahead() {
    // `old` was dumped once, on day 4, one day after what was sent; the others are dumped daily and staler.
    let old = || guest("old").sent(3).dumped(4, 6);
    let daily = |vm| guest(vm).sent(2).dumped(9, 6).dumped(10, 6);
    let guests = [old(), daily("x"), daily("y")];
    let after = |passes: &[i64]| {
        let passes = passes.iter().map(|d| day(*d).plus(3600)).collect();
        plan(&Facts { guests: guests.to_vec(), caps: caps(&["10"]), passes }, &options())
    };
    // Passes before its dump do not count; three are due, so two are not enough.
    assert_eq!(which(&after(&[1, 2, 3, 7, 8]), Decision::Linked), "x");
    let aged = after(&[6, 7, 8]);
    assert_eq!(which(&aged, Decision::Linked), "old");
    assert_eq!(find(&aged, &id("old", 4)).why, "has waited for 3 passes, 1 of 3 due");
}

#[test]
fn ageing_does_not_cross_priorities_and_the_longest_wait_goes_first() {
    let once = |vm, on| guest(vm).sent(3).dumped(on, 6);
    let passes = (4..10).map(|d| day(d).plus(3600)).collect();
    let guests = vec![once("b", 5), once("a", 6), stale("high", 1, 2).priority(1)];
    let plan = plan(&Facts { guests, caps: caps(&["100"]), passes }, &options());
    assert_eq!(which(&plan, Decision::Linked), "high b a");
}

#[test]
fn new_guests_cannot_outrun_the_ageing() {
    // Ten guests that were first dumped today, and one that has waited for two passes and is the only one from before.
    let mut guests: Vec<Guest> = (0..10).map(|i| new(&format!("n{i}"), 6)).collect();
    guests.push(guest("old").sent(3).dumped(8, 6));
    let passes = vec![day(8).plus(3600), day(9).plus(3600)];
    let plan = plan(&Facts { guests, caps: caps(&["10"]), passes }, &options());
    assert_eq!(which(&plan, Decision::Linked), "old");
}

#[test]
fn every_dump_considered_says_why() {
    let mut fuzzy = stale("fuzzy", 3, 1);
    fuzzy.local[0].fault = Some("its file fuzzy.raw is missing".into());
    let mut away = new("away", 1);
    away.sync = false;
    let mut unselected = new("unselected", 1);
    unselected.local[0].selected = false;
    let mut broken = new("broken", 1).pending(10, 1);
    broken.pending[0].fault = Some("its file b.raw is missing".into());
    let young = |mut guest: Guest, hours: i64| {
        guest.sent[0].started = guest.local[0].started.plus(-hours * 3600);
        guest
    };
    let guests = [
        new("first", 1),
        stale("most", 4, 1).dumped(8, 1),
        stale("other", 3, 1),
        guest("done").sent(10).dumped(10, 1),
        guest("waits").pending(9, 1).begun().dumped(10, 1),
        guest("tried").pending(9, 1).failing(),
        guest("back").sent(9).dumped(8, 1),
        young(stale("young", 1, 1).stale_after(1), 10),
        stale("ahead", 1, 1).dumped(12, 1),
        fuzzy,
        away,
        unselected,
        broken,
    ];
    let plan = planned(&guests, &["100"], &options());
    let table = [
        ("first", 10, "linked", "never sent, 1 of 4 due"),
        ("most", 10, "linked", "stale by 4 d, 2 of 4 due"),
        ("other", 10, "linked", "stale by 3 d, 3 of 4 due"),
        ("most", 8, "superseded", "superseded by most@20261110T060000Z"),
        ("done", 10, "sent", "sent at 2026-11-10T07:00:00Z"),
        ("waits", 9, "pending", "is being sent: 1 B of 1 B are left; attempts so far: 1"),
        ("waits", 10, "pending", "waits until waits@20261109T060000Z, of which something was sent, has arrived"),
        ("tried", 9, "pending", "waits for the next pass; the last attempt (2) failed: rsync exited with status 12"),
        ("back", 8, "superseded", "superseded by back@20261109T060000Z, which was sent"),
        ("young", 10, "not due", "not due: 0.4 d of 1 d"),
        ("ahead", 10, "linked", "stale by 24 h, 4 of 4 due"),
        ("ahead", 12, "future", "dated 46 h in the future: was a clock wrong?"),
        ("fuzzy", 10, "not good", "its file fuzzy.raw is missing"),
        ("away", 10, "not synced", "this guest does not go to this destination (configuration or --list)"),
        ("unselected", 10, "not selected", "left out by the selection"),
        (
            "broken",
            10,
            "not good",
            "its copy in the outbox is not good (its file b.raw is missing): remove that one to have it linked again",
        ),
    ];
    for (vm, on, decision, why) in table {
        let item = find(&plan, &id(vm, on));
        assert_eq!((item.decision.as_str(), item.why.as_str()), (decision, why), "{vm}");
        assert_eq!(item.stuck, vm == "broken");
    }
    assert_eq!(plan.items.len(), table.len());
}

#[test]
fn the_figures_of_what_was_linked() {
    let plan = planned(&[new("a", 3), stale("b", 2, 4), stale("c", 1, 9), stale("d", 1, 10)], &["10"], &options());
    let figures = |vm| {
        let item = find(&plan, &id(vm, 10));
        (item.rank, item.staleness_s, item.cost, item.remaining)
    };
    assert_eq!(figures("a"), (Some(1), None, Some(3), Some(7)));
    assert_eq!(figures("b"), (Some(2), Some(2 * 86_400), Some(4), Some(3)));
    assert_eq!(figures("c"), (Some(3), Some(86_400), Some(9), Some(3)));
    assert_eq!(find(&plan, &id("c", 10)).why, "over the limit of 10 B a pass by 6 B");
}

#[test]
fn force_ignores_due_and_nothing_else() {
    let force = Options { force: true, ..options() };
    let guests = [
        stale("young", 1, 1).stale_after(2),
        guest("done").sent(10).dumped(10, 1),
        guest("going").pending(10, 1).dumped(10, 1),
        guest("back").sent(9).dumped(8, 1),
    ];
    let plan = planned(&guests, &[], &force);
    assert_eq!(which(&plan, Decision::Linked), "young");
    assert_eq!(find(&plan, &id("young", 10)).why, "forced; not due: 1 d of 2 d");
}

#[test]
fn a_clock_that_was_wrong_once_does_not_stop_a_guest() {
    // Sent from the future, and dumped in it: the newest sound dump is the candidate, its staleness counted from the
    // newest sound one that was sent.
    let guests = [guest("a").sent(400).sent(8).dumped(9, 1).dumped(10, 1).dumped(300, 1)];
    let plan = planned(&guests, &[], &options());
    assert_eq!(find(&plan, &id("a", 10)).decision, Decision::Linked);
    assert_eq!(find(&plan, &id("a", 10)).staleness_s, Some(2 * 86_400));
    // Up to the skew it is no future.
    let soon = Options { now: day(10).plus(-3600), ..options() };
    assert_eq!(which(&planned(&[new("b", 1)], &[], &soon), Decision::Linked), "b");
    let too_soon = Options { now: day(10).plus(-3601), ..options() };
    assert_eq!(which(&planned(&[new("b", 1)], &[], &too_soon), Decision::Future), "b");
}

#[test]
fn a_number_used_again_is_another_guest() {
    let mut again = new("a", 1);
    again.key.uid = Some("6d0c".into());
    let plan = planned(&[guest("a").sent(9), again], &[], &options());
    assert_eq!(find(&plan, &id("a", 10)).staleness_s, None);
}

#[test]
fn the_plan_as_it_is_written() {
    let mut items = planned(&[new("a", 1)], &["10"], &options()).items;
    let text = serde_json::to_string(&items.remove(0)).unwrap();
    let expected = r#"{"id":"a@20261110T060000Z","decision":"linked","why":"never sent, 1 of 1 due","rank":1,"cost":1,"size":1,"remaining":9}"#;
    assert_eq!(text, expected);
    for decision in [Decision::OverLimit, Decision::NotSynced, Decision::NotGood, Decision::Future, Decision::NotDue] {
        assert_eq!(serde_json::to_string(&decision).unwrap(), format!("\"{}\"", decision.as_str()));
    }
}
