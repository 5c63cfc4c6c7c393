//! Cases judged by hand, of dumps that are in the outbox already: what is replaced, and what an oversized one leaves.

use super::golden::{caps, find, options, planned, which};
use super::samples::*;
use super::*;

/// Rule 7: what is pending and was not begun makes room for a newer dump of its guest.
#[test]
fn what_waits_is_replaced_by_something_newer() {
    let linked_at = |on: i64, guest: Guest| {
        let pending = guest.pending.into_iter().map(|dump| Pending { since: day(on), rank: Some(7), ..dump }).collect();
        Guest { pending, ..guest }
    };
    let both = |old, new| guest("a").pending(9, old).dumped(9, old).dumped(10, new);
    let table = [
        // What there is; what goes, what is dropped, and what then is left of 10.
        ("its cost is charged instead of the older one's", vec![both(4, 10)], "a", "a", 0),
        ("it does not fit: the older stays", vec![both(4, 11)], "", "", 6),
        ("nor beside others", vec![guest("b").pending(9, 5), both(4, 6)], "", "", 1),
        ("it goes in its place in the queue", vec![both(4, 5), stale("b", 3, 5)], "a b", "a", 0),
        ("and not before the head", vec![guest("a").sent(8).pending(9, 4).dumped(10, 5), stale("b", 3, 6)], "b", "", 0),
        (
            "smaller, it makes room for others",
            vec![guest("a").sent(8).pending(9, 8).dumped(10, 2), stale("b", 3, 6)],
            "b a",
            "a",
            2,
        ),
        (
            "in an oversized one's place it makes room for the head, too",
            vec![guest("a").sent(8).pending(9, 26).dumped(10, 3), stale("b", 3, 6)],
            "b a",
            "a",
            1,
        ),
        (
            "and for the head first",
            vec![guest("a").sent(8).pending(9, 10).dumped(10, 4), stale("b", 3, 6), stale("c", 1, 6)],
            "b a",
            "a",
            0,
        ),
        (
            "beside what fills the pass, an oversized one's share is no room",
            vec![both(26, 1), guest("b").pending(9, 5), guest("c").pending(9, 5)],
            "",
            "",
            -5,
        ),
        ("begun, it stays", vec![both(4, 5).begun()], "", "", 6),
        ("and so does what failed", vec![both(4, 5).failing()], "", "", 10),
        ("larger than a pass, it is no match for what fits", vec![both(4, 25)], "", "", 6),
        ("but for its like", vec![both(30, 25), stale("b", 1, 5)], "a b", "a", 0),
    ];
    for (what, guests, linked, dropped, left) in table {
        let guests: Vec<Guest> = guests.into_iter().map(|guest| linked_at(9, guest)).collect();
        let plan = planned(&guests, &["10"], &options());
        assert_eq!(which(&plan, Decision::Linked), linked, "{what}: linked");
        assert_eq!(which(&plan, Decision::Replaced), dropped, "{what}: dropped");
        assert_eq!(plan.left[0].bytes, left, "{what}: left");
        for old in plan.items.iter().filter(|item| item.decision == Decision::Replaced) {
            let new = find(&plan, old.replaced_by.as_ref().unwrap()).note(day(10));
            assert_eq!((new.at, new.rank), (day(9), Some(7)), "{what}: bak-sync's order");
        }
    }
}

#[test]
fn what_a_crash_left_beside_its_replacement_is_dropped() {
    let twice = || guest("a").pending(8, 4).pending(9, 4).dumped(8, 4).dumped(9, 4);
    let plan = planned(&[twice()], &["10"], &options());
    assert_eq!((which(&plan, Decision::Replaced).as_str(), plan.left[0].bytes), ("a", 6));
    assert_eq!(find(&plan, &id("a", 8)).why, "replaced by a@20261109T060000Z before anything of it was sent");
    assert_eq!(find(&plan, &id("a", 9)).decision, Decision::Pending);
    // What was begun since goes on; and where the newer one has failed, the older is worth having.
    for begun in [0, 1] {
        let mut guest = twice();
        guest.pending[begun].tries = 1;
        guest.pending[begun].error = (begun == 1).then(|| "cut".into());
        assert_eq!(which(&planned(&[guest], &["10"], &options()), Decision::Replaced), "");
    }
}

/// An oversized dump that was linked on day 7, and others beside it, after so many passes.
#[test]
fn every_second_pass_belongs_to_those_that_need_more_than_an_oversized_dump_leaves() {
    let table = [
        // Passes since; who is due; who goes; what is left of 10.
        (0, vec![stale("b", 2, 8), stale("c", 1, 3)], "c", 2),
        (1, vec![stale("b", 2, 8), stale("c", 1, 3)], "b", 2),
        (2, vec![stale("b", 2, 8), stale("c", 1, 3)], "c", 2),
        // Nobody needs more than half: it keeps its own.
        (1, vec![stale("b", 2, 5), stale("c", 1, 3)], "b", 0),
        // What is oversized itself does not count: it has to wait in any case.
        (1, vec![stale("b", 2, 80), stale("c", 1, 3)], "c", 2),
    ];
    for (passes, mut guests, linked, left) in table {
        guests.push(guest("a").pending(7, 200).begun());
        let passes = (0..passes).map(|on| day(8).plus(on * 3600)).collect();
        let plan = plan(&Facts { guests, caps: caps(&["10"]), passes }, &options());
        // Nobody has waited: what is due was dumped today.
        assert_eq!((which(&plan, Decision::Linked).as_str(), plan.left[0].bytes), (linked, left));
    }
}

/// The oversized one was linked on day 7; `old` has waited since the day before. Three guests were there by then.
#[test]
fn who_waited_before_an_oversized_dump_came_has_all_passes_until_it_is_gone() {
    let goes = |old: Guest, passes: i64| {
        let guests = vec![guest("a").pending(7, 200).begun(), old, guest("other").sent(5), stale("new", 2, 5)];
        let passes = (0..passes).map(|on| day(8).plus(on * 3600)).collect();
        which(&plan(&Facts { guests, caps: caps(&["10"]), passes }, &options()), Decision::Linked)
    };
    let old = || guest("old").sent(5).dumped(6, 8);
    // The pass in which it was linked is shared; the next are not, but no more than as many as there were guests.
    assert_eq!([0, 1, 2, 3, 4, 5].map(|passes| goes(old(), passes)), ["new", "old", "old", "old", "new", "old"]);
    // Not for what came later, nor for what is of lower priority than the oversized one.
    assert_eq!(goes(guest("old").sent(5).dumped(8, 8), 2), "new");
    assert_eq!(goes(old().priority(-1), 2), "new");
}

#[test]
fn first_come_first_served_while_an_oversized_dump_is_on_its_way() {
    let goes = |large: bool| {
        let mut guests = vec![guest("waits").sent(6).dumped(7, 5), stale("b", 6, 5), stale("c", 6, 5)];
        guests.extend(large.then(|| guest("a").pending(7, 200).begun()));
        let caps = caps(&[if large { "10" } else { "5" }]);
        which(&plan(&Facts { guests, caps, passes: vec![day(8)] }, &options()), Decision::Linked)
    };
    assert_eq!((goes(true), goes(false)), ("waits".into(), "b".into()));
}

#[test]
fn an_oversized_dump_of_low_priority_goes_beside_a_light_load_of_higher_ones() {
    let goes = |load, overdraft| {
        let guests = [new("high", load).priority(1), new("large", 25), new("other", 26)];
        which(&planned(&guests, &["10"], &Options { overdraft, ..options() }), Decision::Linked)
    };
    assert_eq!(goes(5, false), "high large");
    assert_eq!(goes(6, false), "high");
    assert_eq!(goes(5, true), "high");
}

/// The one linked on day 1 leaves in this run; the other has been on its way for one pass, so this one belongs to others.
#[test]
fn what_a_crash_left_does_not_say_whose_pass_it_is() {
    let left_over = guest("a").pending(1, 52).pending(9, 0).dumped(1, 52).dumped(9, 0);
    let guests = vec![left_over, guest("b").pending(7, 200).begun(), stale("c", 1, 6)];
    let passes = vec![day(2), day(8)];
    let plan = plan(&Facts { guests, caps: caps(&["10"]), passes }, &options());
    assert_eq!((which(&plan, Decision::Linked), which(&plan, Decision::Replaced)), ("c".into(), "a".into()));
}
