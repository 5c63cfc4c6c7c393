//! What holds for every plan, and for passes in a row.

use super::*;
use bak_common::name::GuestName;
use bak_common::units::{Period, limit};
use proptest::prelude::*;

const DAY: i64 = 86_400;

fn day(day: i64) -> Time {
    Time::from_unix(1_800_000_000 + day * DAY).unwrap()
}

fn empty_guest(vm: &str) -> Guest {
    let key = GuestKey { vm: GuestName::new(vm).unwrap(), kind: "qemu".into(), uid: None };
    Guest { key, priority: 0, stale_after_s: 0, sync: true, local: vec![], pending: vec![], sent: vec![] }
}

fn local(guest: &Guest, on: i64, cost: u64) -> Local {
    let started = day(on);
    let id = DumpId::of(&guest.key.vm, started);
    Local { id, started, finished: started.plus(600), cost, fault: None, selected: true }
}

fn options(now: Time) -> Options {
    Options { now, skew_s: 3600, force: false, oversize: true, overdraft: false }
}

/// What happened to one dump, drawn: day, size, and where it lies.
type Drawn = (i64, u64, u8);

fn guests() -> impl Strategy<Value = Vec<Guest>> {
    let dump = (1..30i64, 0..60u64, 0..8u8);
    let guest = (prop::collection::vec(dump, 0..5), 0..3u8, 0..3u64, any::<bool>());
    prop::collection::vec(guest, 0..8).prop_map(|drawn| {
        let one = |(i, (dumps, priority, stale_days, known)): (usize, (Vec<Drawn>, u8, u64, bool))| {
            let mut guest = empty_guest(&format!("g{i}"));
            guest.priority = i64::from(priority) / 2;
            guest.stale_after_s = stale_days * DAY as u64;
            guest.sync = known || i % 4 != 0;
            for (on, cost, fate) in dumps {
                let dump = local(&guest, on, cost);
                let (id, started) = (dump.id.clone(), dump.started);
                let known = guest.local.iter().any(|there| there.id == id);
                match fate {
                    // The same dump twice in a store; it is pending or sent once at most.
                    _ if known => {}
                    0 => guest.sent.push(Sent { id, started, at: started.plus(DAY) }),
                    1 | 2 => {
                        let error = (fate == 2).then(|| "cut".to_owned());
                        guest.pending.push(Pending { id, started, cost, tries: 0, error, fault: None });
                    }
                    _ => {}
                }
                guest.local.push(Local { fault: (fate == 3).then(|| "missing".to_owned()), ..dump });
            }
            guest
        };
        drawn.into_iter().enumerate().map(one).collect()
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let limits = prop::sample::subsequence(vec!["40", "25", "80/day", "120/week", "150/month"], 0..4);
    (guests(), limits, prop::collection::vec(0..30u64, 5), prop::collection::vec(0..30i64, 0..12)).prop_map(
        |(guests, limits, used, passes)| {
            let cap = |(text, used): (&str, u64)| {
                let limit = limit(text).unwrap().unwrap();
                Cap { limit, used: if limit.period == Period::Pass { 0 } else { used } }
            };
            let caps = limits.into_iter().zip(used).map(cap).collect();
            Facts { guests, caps, passes: passes.into_iter().map(|d| day(d).plus(3600)).collect() }
        },
    )
}

fn linked(plan: &Plan) -> Vec<&Item> {
    plan.items.iter().filter(|item| item.decision == Decision::Linked).collect()
}

/// Does with `facts` what linking would do.
fn link(facts: &mut Facts, plan: &Plan) {
    for item in linked(plan) {
        for guest in &mut facts.guests {
            if let Some(dump) = guest.local.iter().find(|dump| dump.id == item.id) {
                let (id, started, cost) = (dump.id.clone(), dump.started, item.cost.unwrap());
                guest.pending.push(Pending { id, started, cost, tries: 0, error: None, fault: None });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 500 } else { 50_000 }))]

    #[test]
    fn never_over_a_limit_but_for_one_oversized_dump(facts in facts(), overdraft: bool) {
        let plan = plan(&facts, &Options { overdraft, ..options(day(30)) });
        let linked = linked(&plan);
        let counted: Vec<u64> = facts.guests.iter().flat_map(|guest| &guest.pending)
            .filter(|dump| dump.error.is_none()).map(|dump| dump.cost).collect();
        let sum = linked.iter().map(|item| item.cost.unwrap()).sum::<u64>() + counted.iter().sum::<u64>();
        let tightest = facts.caps.iter().filter(|cap| cap.limit.period == Period::Pass).map(|cap| cap.limit.bytes).min();
        for cap in facts.caps.iter().filter(|_| !linked.is_empty()) {
            let oversized = tightest.filter(|limit| linked[0].cost.unwrap() > *limit);
            let half_pending = tightest.is_some_and(|limit| counted.iter().any(|cost| *cost > limit));
            match (cap.limit.period, oversized) {
                (Period::Pass, Some(limit)) => {
                    prop_assert!(counted.is_empty(), "an oversized dump goes only where nothing is pending");
                    let rest: u64 = linked[1..].iter().map(|item| item.cost.unwrap()).sum();
                    let room = if overdraft { 0 } else { cap.limit.bytes - limit / 2 };
                    prop_assert!(rest <= room);
                }
                (Period::Pass, None) if half_pending => prop_assert!(!overdraft),
                _ => prop_assert!(sum + cap.used <= cap.limit.bytes, "{sum} over {:?}", cap.limit),
            }
        }
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(facts in facts(), turn in 0..8usize) {
        let mut turned = facts.clone();
        turned.guests.reverse();
        let by = turn % facts.guests.len().max(1);
        turned.guests.rotate_left(by);
        turned.passes.reverse();
        for guest in &mut turned.guests {
            guest.local.reverse();
            guest.pending.reverse();
            guest.sent.reverse();
        }
        prop_assert_eq!(plan(&facts, &options(day(30))), plan(&turned, &options(day(30))));
    }

    #[test]
    fn a_second_run_links_nothing_new(facts in facts(), overdraft: bool, force: bool) {
        let options = Options { overdraft, force, ..options(day(30)) };
        let mut facts = facts;
        let first = plan(&facts, &options);
        link(&mut facts, &first);
        let second = plan(&facts, &options);
        prop_assert_eq!(linked(&second).len(), 0, "{:?}", second.items);
    }

    #[test]
    fn every_dump_is_decided_once_and_no_guest_gets_two(facts in facts(), force: bool) {
        let plan = plan(&facts, &Options { force, ..options(day(30)) });
        let mut known: Vec<&DumpId> = facts.guests.iter().flat_map(|guest| guest.local.iter().map(|d| &d.id)).collect();
        known.sort();
        known.dedup();
        let mut decided: Vec<&DumpId> = plan.items.iter().map(|item| &item.id).collect();
        decided.sort();
        prop_assert_eq!(known, decided);
        for guest in &facts.guests {
            let on_its_way = guest.pending.iter().filter(|dump| dump.error.is_none()).count();
            let now = linked(&plan).iter().filter(|item| guest.local.iter().any(|dump| dump.id == item.id)).count();
            prop_assert!(now <= usize::from(guest.pending.is_empty()), "{on_its_way} pending, {now} more");
        }
    }

    /// An independent, literal model of the old script: sorted by staleness, never sent first (9999).
    #[test]
    fn the_old_scripts_choices(
        drawn in prop::collection::vec((0..15u64, prop::option::of(1..20i64)), 0..10),
        limit in 1..30i64,
    ) {
        // Distinct stalenesses: what the old script did with equal ones was chance.
        let mut seen = Vec::new();
        let fresh = |(_, stale): &(u64, Option<i64>)| {
            let known = seen.contains(stale);
            seen.push(*stale);
            !known
        };
        let drawn: Vec<_> = drawn.into_iter().filter(fresh).collect();
        let guests = drawn.iter().enumerate().map(|(i, (cost, stale))| {
            let mut guest = empty_guest(&format!("g{i}"));
            if let Some(days) = stale {
                let old = local(&guest, 20 - days, 1);
                guest.sent.push(Sent { id: old.id, started: old.started, at: old.finished });
            }
            guest.local.push(local(&guest, 20, *cost));
            guest
        });
        let caps = vec![Cap { limit: bak_common::units::limit(&limit.to_string()).unwrap().unwrap(), used: 0 }];
        let facts = Facts { guests: guests.collect(), caps, passes: vec![] };
        let plan = plan(&facts, &Options { overdraft: true, ..options(day(21)) });

        let mut list: Vec<(i64, usize, i64)> =
            drawn.iter().enumerate().map(|(i, (cost, stale))| (stale.unwrap_or(9999), i, *cost as i64)).collect();
        list.sort_by_key(|(stale, _, _)| std::cmp::Reverse(*stale));
        let (mut remains, mut first, mut chosen) = (limit, true, Vec::new());
        for (_, i, cost) in list {
            if first || remains - cost >= 0 {
                remains -= cost;
                first = false;
                chosen.push(format!("g{i}@{}", day(20).compact()));
            }
        }
        prop_assert_eq!(linked(&plan).iter().map(|item| item.id.to_string()).collect::<Vec<_>>(), chosen);
    }
}

/// Guests that are dumped and passes that carry what was linked, day by day.
struct World {
    facts: Facts,
    /// Days between two dumps of each guest; `None`: dumped once.
    cadence: Vec<Option<i64>>,
    since: Vec<i64>,
    /// Its dumps never arrive.
    fails: Vec<bool>,
    /// Since which pass each guest has had something to send, and how many guests were known then.
    waits: Vec<Option<(usize, usize)>>,
}

impl World {
    fn new(limit_text: &str) -> Self {
        let caps = vec![Cap { limit: limit(limit_text).unwrap().unwrap(), used: 0 }];
        let facts = Facts { guests: vec![], caps, passes: vec![] };
        Self { facts, cadence: vec![], since: vec![], fails: vec![], waits: vec![] }
    }

    fn arrive(&mut self, on: i64, cadence: Option<i64>, fails: bool) {
        self.facts.guests.push(empty_guest(&format!("g{}", self.cadence.len())));
        self.cadence.push(cadence);
        self.since.push(on);
        self.fails.push(fails);
        self.waits.push(None);
    }

    /// One night: dumps, then bak-link, then a pass. Fails if somebody has waited for more than 2 N passes.
    fn night(&mut self, on: i64, size: &dyn Fn(usize, i64) -> u64) -> Result<(), TestCaseError> {
        let known = self.facts.guests.len();
        for i in 0..known {
            let age = on - self.since[i];
            if age == 0 || self.cadence[i].is_some_and(|days| age % days == 0) {
                let dump = local(&self.facts.guests[i], on, size(i, on));
                self.facts.guests[i].local.push(dump);
                self.waits[i].get_or_insert((self.facts.passes.len(), known));
            }
        }
        let plan = plan(&self.facts, &options(day(on).plus(7200)));
        let tried: Vec<DumpId> = linked(&plan).iter().map(|item| item.id.clone()).collect();
        for i in 0..known {
            let Some((from, rivals)) = self.waits[i] else { continue };
            let guest = &mut self.facts.guests[i];
            let going = guest.local.iter().find(|dump| tried.contains(&dump.id)).cloned();
            let passes = self.facts.passes.len() + 1 - from;
            prop_assert!(
                going.is_some() || !guest.pending.is_empty() || passes < 2 * rivals,
                "g{} was not tried in {} passes, with {} guests known when it came",
                i,
                passes,
                rivals
            );
            let Some(dump) = going else { continue };
            let (id, started) = (dump.id.clone(), dump.started);
            if self.fails[i] {
                let error = Some("connection reset".into());
                guest.pending.push(Pending { id, started, cost: dump.cost, tries: 1, error, fault: None });
            } else {
                guest.sent.push(Sent { id, started, at: day(on).plus(7200) });
                self.waits[i] = None;
            }
        }
        self.facts.passes.push(day(on).plus(7300));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 5_000 }))]

    #[test]
    fn nobody_waits_for_more_than_twice_as_many_passes_as_there_are_guests(
        base in prop::collection::vec((prop::option::of(1..9i64), 0..8u8), 1..10),
        new_a_night in 0..4usize,
        new_cadence in prop::option::of(1..3i64),
        seed in 1..1000u64,
    ) {
        // All sizes fit a pass; most leave no room for a second dump.
        let size = |i: usize, on: i64| 40 + (seed * 31 + i as u64 * 17 + on as u64 * 7) % 61;
        let mut world = World::new("100");
        for (cadence, luck) in base {
            world.arrive(1, cadence, luck == 0);
        }
        for on in 1..60 {
            for _ in 0..if on > 1 { new_a_night } else { 0 } {
                world.arrive(on, new_cadence, false);
            }
            world.night(on, &size)?;
        }
    }
}

#[test]
fn one_old_dump_among_ten_guests_dumped_daily() {
    let mut world = World::new("100");
    for _ in 0..10 {
        world.arrive(1, Some(1), false);
    }
    world.arrive(1, None, false);
    for on in 1..80 {
        world.night(on, &|_, _| 100).unwrap();
    }
    assert_eq!(world.facts.guests[10].sent.len(), 1);
}

#[test]
fn a_stream_of_new_guests_past_one_that_waits() {
    let mut world = World::new("100");
    world.arrive(1, Some(3), false);
    for on in 1..60 {
        for _ in 0..2 {
            world.arrive(on, Some(1), false);
        }
        world.night(on, &|_, _| 100).unwrap();
    }
    assert!(world.facts.guests[0].sent.len() > 1);
}
