//! What the plan does around the rules: who is spared, what is not good, and that guests keep out of each other's way.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName, Stem};
use bak_common::record::{Dump, Guest};
use bak_common::units::Span;
use bak_prune::plan::{Candidate, Decision, Item, ODD_S, SKEW_S, Terms, by_name, by_policy};
use proptest::prelude::*;
use std::collections::BTreeSet;

const NOW: &str = "2026-11-20T12:00:00Z";

/// A dump and what its files look like.
#[derive(Clone, Debug)]
struct Have {
    dump: Dump,
    place: String,
    fault: Option<String>,
    gone: bool,
    protected: bool,
    written: Option<Time>,
}

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

/// A good dump of the guest `vm`, begun at `start`.
fn have(vm: &str, start: Time) -> Have {
    let guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
    let dump = Dump::of(&guest, start, Stem::of(&guest.vm, start));
    Have { dump, place: vm.to_owned(), fault: None, gone: false, protected: false, written: Some(start) }
}

fn day(day: u32) -> Have {
    have("web", time(&format!("2026-11-{day:02}T01:00:00Z")))
}

impl Have {
    fn fault(mut self, fault: &str) -> Self {
        self.fault = Some(fault.to_owned());
        self
    }

    fn gone(mut self) -> Self {
        self.gone = true;
        self.fault("its file x is missing")
    }

    fn protected(mut self) -> Self {
        self.protected = true;
        self
    }

    fn expires(mut self, text: &str) -> Self {
        self.dump.expires = Some(time(text));
        self
    }
}

fn last(number: u64) -> Keep {
    Keep { last: Some(number), ..Keep::default() }
}

fn within(seconds: u64) -> Keep {
    Keep { within: Some(Span(seconds)), ..Keep::default() }
}

fn with_terms<T>(keep: &Keep, block: Option<&str>, run: impl FnOnce(&Terms) -> T) -> T {
    let zone: Zone = "UTC".parse().unwrap();
    run(&Terms {
        keep: &|_| keep.clone(),
        blocked: &|vm| (block == Some(vm.as_str())).then(|| "a sidecar".to_owned()),
        ..Terms::at(time(NOW), zone)
    })
}

fn candidates(have: &[Have]) -> Vec<Candidate<'_>> {
    have.iter()
        .map(|have| Candidate {
            id: &have.dump.id,
            vm: &have.dump.vm,
            kind: &have.dump.kind,
            uid: have.dump.uid.as_deref(),
            started: have.dump.started,
            finished: have.dump.finished,
            expires: have.dump.expires,
            place: &have.place,
            fault: have.fault.as_deref(),
            gone: have.gone,
            protected: have.protected,
            written: have.written,
        })
        .collect()
}

/// An item's reasons, as people read them.
fn reasons(have: &[Have], items: &[Item], at: usize) -> Vec<String> {
    items[at].reasons(&candidates(have), "UTC".parse().unwrap())
}

/// The items by their place among what was given.
fn plan(have: &[Have], keep: &Keep) -> Vec<Item> {
    let mut items = with_terms(keep, None, |terms| by_policy(&candidates(have), terms));
    items.sort_by_key(|item| item.at);
    items
}

/// `k`eep, `-` remove, `s`pared, `b`locked.
fn marks(items: &[Item]) -> String {
    let mark = |item: &Item| match item.decision {
        Decision::Keep => 'k',
        Decision::Remove => '-',
        Decision::Spared => 's',
        Decision::Blocked => 'b',
    };
    items.iter().map(mark).collect()
}

#[test]
fn the_last_good_dump_stays_whatever_the_rules_say() {
    let all = [day(1), day(2)];
    let items = plan(&all, &within(3600));
    assert_eq!(marks(&items), "-s");
    assert_eq!(reasons(&all, &items, 1), ["it is the last good dump of its guest", "within 60 min: too old by 18.4 d"]);
    // Its own `expires` does not matter either, nor newer dumps that are not good.
    let all = [day(1), day(2).expires("2026-11-03T00:00:00Z"), day(3).fault("its result is failed")];
    let items = plan(&all, &last(1));
    assert_eq!(marks(&items), "ksk");
    assert_eq!(reasons(&all, &items, 1), ["it is the last good dump of its guest", "expired 2026-11-03T00:00:00Z"]);
}

#[test]
fn protected_dumps_neither_count_nor_cover() {
    // P of Proxmox's table, between b and c on the same day.
    let table = [
        have("web", time("2018-05-26T11:18:21Z")),
        have("web", time("2019-12-31T11:18:21Z")),
        have("web", time("2019-12-31T11:18:51Z")).protected(),
        have("web", time("2019-12-31T11:19:21Z")),
        have("web", time("2020-01-01T11:18:21Z")),
        have("web", time("2020-01-01T12:18:21Z")),
    ];
    assert_eq!(marks(&plan(&table, &last(3))), "--skkk");
    let weekly = Keep { weekly: Some(2), ..Keep::default() };
    assert_eq!(marks(&plan(&table, &weekly)), "k-s--k");
    assert_eq!(reasons(&table, &plan(&table, &last(3)), 2), ["it is protected"]);
    assert_eq!(
        marks(&plan(&[day(1), day(2), day(3).protected()], &last(1))),
        "-ks",
        "the newest does not count either"
    );
    let daily = Keep { daily: Some(1), ..Keep::default() };
    let noon = have("web", time("2026-11-02T12:00:00Z")).protected();
    assert_eq!(marks(&plan(&[day(1), day(2), noon], &daily)), "-ks", "its day is not covered");
}

#[test]
fn dates_in_the_future_never_let_real_dumps_go() {
    let ahead = |text| have("web", time(text));
    let all = [day(18), day(19), ahead("2036-01-01T00:00:00Z"), ahead("2037-01-01T00:00:00Z")];
    let items = plan(&all, &last(1));
    assert_eq!(marks(&items), "-kss");
    assert_eq!(reasons(&all, &items, 2), ["it is dated in the future: not counted"]);
    assert!(items[2].misdated && !items[1].misdated);
    // Clocks differ a little: an hour ahead still counts.
    assert_eq!(marks(&plan(&[day(19), ahead("2026-11-20T13:00:00Z")], &last(1))), "-k");
    assert_eq!(marks(&plan(&[day(19), ahead("2026-11-20T13:00:01Z")], &last(1))), "ks");
}

#[test]
fn files_much_newer_than_their_dump_are_no_reason_to_let_it_go() {
    // Its clock said 2010; when its files were written it had been set right.
    let mut odd = have("web", time("2010-01-01T00:00:00Z"));
    odd.written = Some(time("2026-11-20T02:00:00Z"));
    let all = [odd.clone(), day(18), day(19)];
    let items = plan(&all, &last(1));
    assert_eq!(marks(&items), "s-k");
    assert!(items[0].misdated);
    assert_eq!(
        reasons(&all, &items, 0),
        ["it is dated oddly, its files were written 2026-11-20T02:00:00Z: not counted"]
    );
    assert_eq!(marks(&plan(&[odd.clone()], &within(60))), "s");
    // Up to 30 days later is a slow dump, or a slow copy; and where the files seem to be of the future, our clock is wrong.
    let written = |after: i64| {
        let mut have = day(1);
        have.written = Some(have.dump.finished.plus(after));
        marks(&plan(&[have, day(19)], &last(1)))
    };
    assert_eq!(written(ODD_S), "-k", "in the future of our clock, as it happens");
    odd.written = Some(odd.dump.finished.plus(ODD_S));
    assert_eq!(marks(&plan(&[odd.clone(), day(19)], &last(1))), "-k");
    odd.written = Some(odd.dump.finished.plus(ODD_S + 1));
    assert_eq!(marks(&plan(&[odd.clone(), day(19)], &last(1))), "sk");
    odd.written = Some(time("2026-11-20T13:00:01Z"));
    assert_eq!(marks(&plan(&[odd, day(19)], &last(1))), "-k");
}

#[test]
fn an_order_with_force_removes_what_is_dated_wrongly_but_never_the_last_good_dump() {
    let ahead = || have("web", time("2036-01-01T00:00:00Z"));
    let mut odd = have("web", time("2010-01-01T00:00:00Z"));
    odd.written = Some(time(NOW));
    let order = |have: &[Have], force: bool| {
        let ids: BTreeSet<DumpId> = have.iter().map(|have| have.dump.id.clone()).collect();
        with_terms(&last(9), None, |terms| by_name(&candidates(have), &ids, &Terms { force, ..*terms }))
    };
    assert_eq!(marks(&order(&[odd.clone(), day(19), ahead()], false)), "sss");
    assert_eq!(marks(&order(&[odd.clone(), day(19), ahead()], true)), "-s-");
    assert_eq!(marks(&order(&[odd, ahead()], true)), "-s", "one of them is all that there is");
    assert_eq!(marks(&order(&[day(19), ahead().protected()], true)), "ss");
}

#[test]
fn the_same_dump_in_two_directories_counts_once() {
    let mut copy = day(18);
    copy.place = "copies".to_owned();
    let all = [day(17), day(18), copy.clone(), day(19)];
    let items = plan(&all, &last(3));
    assert_eq!(marks(&items), "kkkk", "counted twice, it would have cost the oldest");
    assert_eq!(reasons(&all, &items, 2), ["last #2, 2026-11-18 01:00"]);
    assert_eq!(reasons(&all, &items, 1), ["a copy of the one in copies", "last #2, 2026-11-18 01:00"]);
    assert_eq!(marks(&plan(&all, &last(1))), "---k", "what goes, goes from both");
    assert_eq!(marks(&plan(&all[..3], &within(60))), "-ss");
    let all = [day(17), day(18), copy.clone().fault("its result is failed"), day(19)];
    assert_eq!(marks(&plan(&all, &last(2))), "-kkk", "the copy that is good counts");
    let all = [day(17), day(18), copy.protected(), day(19)];
    assert_eq!(marks(&plan(&all, &last(2))), "-ksk");
}

#[test]
fn so_many_that_are_not_good_are_kept() {
    let bad = |n| day(n).fault("its result is failed");
    let all = [bad(1), day(2), bad(3), day(4), bad(5), day(6), bad(7)];
    let failed = |failed: u64, keep: Keep| Keep { failed: Some(failed), ..keep };
    assert_eq!(marks(&plan(&all, &failed(2, last(1)))), "----kkk");
    assert_eq!(marks(&plan(&all, &failed(0, last(1)))), "-----k-");
    assert_eq!(marks(&plan(&all, &failed(3, Keep::default()))), "-kkkkkk", "also without any other rule");
    assert_eq!(marks(&plan(&all, &failed(0, Keep { all: Some(true), ..Keep::default() }))), "kkkkkkk");
    assert_eq!(marks(&plan(&[bad(1), bad(2)], &failed(0, last(1)))), "kk", "there is nothing better");
    let items = plan(&all, &failed(1, last(1)));
    assert_eq!(reasons(&all, &items, 6), ["for a look #1: its result is failed"]);
    assert_eq!(reasons(&all, &items, 4), ["its result is failed, and 1 newer of that kind are kept for a look"]);
}

#[test]
fn expires_alone_decides() {
    let kept = day(1).expires("2026-11-20T12:00:00Z");
    let past = day(20).expires("2026-11-20T11:59:59Z");
    let all = [kept, day(18), day(19), past, have("web", time("2026-11-20T02:00:00Z"))];
    let items = plan(&all, &last(2));
    assert_eq!(marks(&items), "k-k-k", "it counts for nothing, so two others are kept");
    assert_eq!(reasons(&all, &items, 0), ["kept until it expires, 2026-11-20T12:00:00Z"]);
    assert_eq!(reasons(&all, &items, 3), ["expired 2026-11-20T11:59:59Z"]);
}

#[test]
fn what_is_not_good_counts_for_nothing() {
    let bad = |n| day(n).fault("its result is failed");
    let all = [bad(1), day(2), bad(3), day(4), bad(5), day(6), bad(7)];
    let items = plan(&all, &last(2));
    assert_eq!(marks(&items), "---kkkk");
    assert_eq!(
        reasons(&all, &items, 2),
        ["its result is failed, and it is older than all that is kept (web@20261104T010000Z)"]
    );
    assert_eq!(reasons(&all, &items, 4), ["for a look: its result is failed"]);
    assert_eq!(marks(&plan(&[bad(1), bad(2)], &last(1))), "kk", "there is nothing better");
    assert_eq!(marks(&plan(&[bad(1), day(2)], &Keep::default())), "kk", "no rule, so everything is kept");
    assert_eq!(marks(&plan(&[bad(1), day(2)], &within(60))), "-s");
}

#[test]
fn a_sidecar_without_files_goes_unless_it_is_protected() {
    let all = [day(1), day(2).gone(), day(3).gone().protected()];
    let items = plan(&all, &Keep::default());
    assert_eq!(marks(&items), "k-s");
    assert_eq!(reasons(&all, &items, 0), ["no rule says what to keep: everything is kept"]);
    assert_eq!(reasons(&all, &items, 1), ["its files are gone"]);
    let kept = day(2).gone().expires("2030-01-01T00:00:00Z");
    assert_eq!(marks(&plan(&[day(1), kept], &last(1))), "k-", "there is nothing to keep until then");
}

#[test]
fn blocked_guests_keep_everything_and_others_do_not_care() {
    let all = [day(1), day(2), have("db", time("2026-11-01T01:00:00Z")), have("db", time("2026-11-02T01:00:00Z"))];
    let mut items = with_terms(&last(1), Some("web"), |terms| by_policy(&candidates(&all), terms));
    items.sort_by_key(|item| item.at);
    assert_eq!(marks(&items), "bb-k");
    let note = items[0].note(&candidates(&all), "UTC".parse().unwrap());
    assert_eq!(note.decision, "spared");
}

#[test]
fn a_number_used_again_is_another_guest() {
    let mut old = day(1);
    old.dump.uid = Some("old".to_owned());
    let mut new = day(2);
    new.dump.uid = Some("new".to_owned());
    assert_eq!(marks(&plan(&[old, new], &last(1))), "kk");
}

#[test]
fn an_order_by_name_removes_exactly_that() {
    let order = |have: &[Have], at: &[usize]| {
        let ids: BTreeSet<DumpId> = at.iter().map(|at| have[*at].dump.id.clone()).collect();
        with_terms(&last(9), Some("db"), |terms| by_name(&candidates(have), &ids, terms))
    };
    let all = [day(1), day(2).fault("x"), day(3).protected(), day(4).expires("2030-01-01T00:00:00Z"), day(5)];
    assert_eq!(marks(&order(&all, &[0, 1, 3])), "---");
    assert_eq!(marks(&order(&all, &[0, 2, 4])), "-ss");
    assert_eq!(marks(&order(&[have("db", time(NOW))], &[0])), "b");
}

#[test]
fn a_guest_is_what_its_last_good_dump_says() {
    let mut old = day(1);
    old.dump.node = Some("pve1".to_owned());
    let mut new = day(2);
    new.dump.node = Some("pve2".to_owned());
    let all = [old, new];
    let on = |node: &str| {
        with_terms(&last(1), None, |terms| {
            let select = |at: usize| all[at].dump.node.as_deref() == Some(node);
            by_policy(&candidates(&all), &Terms { select: &select, ..*terms }).len()
        })
    };
    assert_eq!((on("pve1"), on("pve2")), (0, 2), "a guest that has moved is pruned from where it is now");
}

fn rules() -> impl Strategy<Value = Keep> {
    let count = || prop_oneof![2 => Just(None), 3 => (0u64..4).prop_map(Some)];
    let within = prop_oneof![2 => Just(None), 1 => (0u64..900_000).prop_map(|s| Some(Span(s)))];
    (count(), count(), count(), count(), within).prop_map(|(last, daily, weekly, monthly, within)| Keep {
        last,
        daily,
        weekly,
        monthly,
        within,
        ..Keep::default()
    })
}

/// Any dump of any of two guests, its start up to a year back or ten years ahead.
fn any_dump() -> impl Strategy<Value = Have> {
    let start = prop_oneof![8 => -400i64..0, 1 => 0i64..4, 1 => 0i64..40_000].prop_map(|n| n * 7200);
    let expires = prop_oneof![3 => Just(None), 1 => (-40i64..40).prop_map(|n| Some(n * 7200))];
    let looks = prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2)];
    (any::<bool>(), start, expires, looks, prop::bool::weighted(0.1)).prop_map(
        |(web, start, expires, looks, protected)| {
            let mut made = have(if web { "web" } else { "web-2" }, time(NOW).plus(start));
            made.dump.expires = expires.map(|after| time(NOW).plus(after));
            made.protected = protected;
            match looks {
                1 => made.fault("its result is partial"),
                2 => made.gone(),
                _ => made,
            }
        },
    )
}

/// A store's content; every dump has a place of its own, even where start and guest are the same.
fn any_store() -> impl Strategy<Value = Vec<Have>> {
    prop::collection::vec(any_dump(), 0..30).prop_map(|mut all| {
        for (n, have) in all.iter_mut().enumerate() {
            have.place = format!("{}/{n:02}", have.place);
        }
        all
    })
}

/// What is decided about each dump, by its place in the store.
fn decided(all: &[Have], keep: &Keep) -> Vec<(String, Decision, Vec<String>)> {
    let items = plan(all, keep);
    let say = |(n, item): (usize, &Item)| (all[item.at].place.clone(), item.decision, reasons(all, &items, n));
    let mut decided: Vec<_> = items.iter().enumerate().map(say).collect();
    decided.sort_by(|a, b| a.0.cmp(&b.0));
    decided
}

fn left(all: &[Have], keep: &Keep) -> Vec<Have> {
    plan(all, keep).iter().filter(|item| item.decision != Decision::Remove).map(|item| all[item.at].clone()).collect()
}

/// The newest good dump of a guest that is not dated in the future.
fn newest<'a>(all: &'a [Have], vm: &str) -> Option<&'a Have> {
    let counts = |have: &&Have| {
        have.dump.vm.as_str() == vm && have.fault.is_none() && have.dump.started.since(time(NOW)) <= SKEW_S
    };
    all.iter().filter(counts).max_by_key(|have| have.dump.started)
}

proptest! {
    #[test]
    fn the_last_good_dump_of_a_guest_is_never_removed(all in any_store(), keep in rules()) {
        let rest = left(&all, &keep);
        for vm in ["web", "web-2"] {
            prop_assert_eq!(newest(&all, vm).map(|h| h.dump.started), newest(&rest, vm).map(|h| h.dump.started));
        }
        for have in &all {
            let spared = have.protected || (have.dump.started.since(time(NOW)) > SKEW_S && !have.gone);
            prop_assert!(!spared || rest.iter().any(|left| left.place == have.place));
        }
    }

    #[test]
    fn planning_again_removes_nothing_more(all in any_store(), keep in rules()) {
        let rest = left(&all, &keep);
        prop_assert_eq!(left(&rest, &keep).len(), rest.len());
    }

    #[test]
    fn the_order_of_the_listing_does_not_matter(
        (all, mixed) in any_store().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        keep in rules(),
    ) {
        prop_assert_eq!(decided(&all, &keep), decided(&mixed, &keep));
    }

    #[test]
    fn guests_do_not_influence_each_other(all in any_store(), keep in rules()) {
        let alone = |vm: &str| {
            let own: Vec<Have> = all.iter().filter(|have| have.dump.vm.as_str() == vm).cloned().collect();
            decided(&own, &keep)
        };
        let mut apart = [alone("web"), alone("web-2")].concat();
        apart.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(decided(&all, &keep), apart);
    }

    #[test]
    fn no_order_removes_the_last_good_dump(all in any_store(), pick in any::<u32>()) {
        let ids: BTreeSet<DumpId> =
            all.iter().enumerate().filter(|(n, _)| pick >> (n % 32) & 1 == 1).map(|(_, h)| h.dump.id.clone()).collect();
        let items = with_terms(&Keep::default(), None, |terms| by_name(&candidates(&all), &ids, terms));
        let going: Vec<usize> =
            items.iter().filter(|item| item.decision == Decision::Remove).map(|item| item.at).collect();
        let rest: Vec<Have> =
            all.iter().enumerate().filter(|(n, _)| !going.contains(n)).map(|(_, have)| have.clone()).collect();
        for vm in ["web", "web-2"] {
            prop_assert_eq!(newest(&all, vm).map(|h| h.dump.started), newest(&rest, vm).map(|h| h.dump.started));
        }
    }
}
