//! What holds for every plan. `PROPTEST_CASES` asks for more cases.

use super::samples::*;
use super::*;
use bak_common::units::{Period, limit};
use proptest::prelude::*;

/// So many cases in a debug build, unless `PROPTEST_CASES` says otherwise.
pub fn cases(few: u32) -> ProptestConfig {
    // What fails is printed whole; nothing is left beside the sources.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: if cfg!(debug_assertions) { few } else { 20_000 }, ..config },
    }
}

fn options(now: Time) -> Options {
    Options { now, skew_s: 3600, force: false, oversize: true, overdraft: false }
}

/// What happened to one dump, drawn: day, size, how much less it costs, and where it lies.
type Drawn = (i64, u64, u64, u8);

fn drawn_guest((i, (dumps, priority, stale_days, known)): (usize, (Vec<Drawn>, u8, u64, bool))) -> Guest {
    let mut guest = guest(&format!("g{i}"));
    guest.priority = i64::from(priority) / 2;
    guest.stale_after_s = stale_days * 86_400;
    guest.sync = known || i % 4 != 0;
    for (on, size, cheaper, fate) in dumps {
        let dump = Local { size, cost: size / cheaper, ..local(guest.vm(), on, size) };
        let there = pending(&dump, day(on).plus(i64::from(fate) * 3600));
        // The same dump twice in a store; it is pending or sent once at most.
        let known = guest.local.iter().any(|there| there.id == dump.id);
        match fate {
            _ if known => {}
            0 => guest.sent.push(Sent { id: dump.id.clone(), started: dump.started, at: dump.started.plus(86_400) }),
            1 => guest.pending.push(Pending { error: Some("cut".into()), tries: 1, ..there }),
            2 => guest.pending.push(Pending { cost: there.cost / 2, tries: 1, ..there }),
            3 => guest.pending.push(Pending { fault: Some("missing".into()), ..there }),
            4 | 5 => guest.pending.push(there),
            _ => {}
        }
        guest.local.push(Local { fault: (fate == 6).then(|| "missing".to_owned()), ..dump });
    }
    guest
}

fn guests() -> impl Strategy<Value = Vec<Guest>> {
    let dump = (1..30i64, 0..60u64, 1..3u64, 0..12u8);
    let guest = (prop::collection::vec(dump, 0..5), 0..3u8, 0..3u64, any::<bool>());
    prop::collection::vec(guest, 0..8).prop_map(|drawn| drawn.into_iter().enumerate().map(drawn_guest).collect())
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

pub fn linked(plan: &Plan) -> Vec<&Item> {
    plan.items.iter().filter(|item| item.decision == Decision::Linked).collect()
}

/// Does with `facts` what carrying out the plan would do: links, then drops what was replaced.
pub fn carry_out(facts: &mut Facts, plan: &Plan, now: Time) {
    for item in linked(plan) {
        let note = item.note(now);
        for guest in &mut facts.guests {
            let good = guest.local.iter().find(|dump| dump.id == item.id && dump.fault.is_none());
            let Some(dump) = good else { continue };
            let linked = Local { cost: item.cost.unwrap(), ..dump.clone() };
            guest.pending.push(Pending { rank: note.rank, ..pending(&linked, note.at) });
        }
    }
    for item in plan.items.iter().filter(|item| item.decision == Decision::Replaced) {
        for guest in &mut facts.guests {
            guest.pending.retain(|dump| dump.id != item.id);
        }
    }
}

/// What is on its way: what of it is not oversized, what is, and of how many dumps.
fn load(facts: &Facts, tightest: Option<u64>) -> (u64, u64, usize) {
    let counts = facts.guests.iter().flat_map(|g| &g.pending).filter(|d| d.error.is_none() && d.fault.is_none());
    let (large, fitting): (Vec<&Pending>, Vec<&Pending>) =
        counts.partition(|dump| tightest.is_some_and(|limit| dump.expected > limit));
    let sum = |dumps: &[&Pending]| dumps.iter().map(|dump| dump.cost).sum::<u64>();
    (sum(&fitting), sum(&large), large.len())
}

proptest! {
    #![proptest_config(cases(300))]

    /// With what is pending, what was linked, and what was dropped. What was over before may stay so, but not get worse.
    #[test]
    fn never_over_a_limit_but_for_one_oversized_dump(facts in facts(), overdraft: bool) {
        let plan = plan(&facts, &Options { overdraft, ..options(day(31)) });
        let mut after = facts.clone();
        carry_out(&mut after, &plan, day(31));
        let passes = facts.caps.iter().filter(|cap| cap.limit.period == Period::Pass);
        let tightest = passes.map(|cap| cap.limit.bytes).min();
        let ((fitting, slices, many), was) = (load(&after, tightest), load(&facts, tightest));
        for cap in &facts.caps {
            let is_pass = cap.limit.period == Period::Pass;
            if !is_pass || overdraft {
                // The first dump of a pass may finish beyond its limit, and what replaces it too.
                let on_their_way = after.guests.iter().flat_map(|guest| &guest.pending).filter(|dump| dump.counts());
                let alone = is_pass && on_their_way.count() == 1;
                let sum = fitting + slices;
                prop_assert!(alone || sum + cap.used <= cap.limit.bytes || sum <= was.0 + was.1, "{sum} {:?}", cap);
            } else {
                prop_assert!(fitting <= cap.limit.bytes || fitting <= was.0, "{fitting} over {:?}", cap.limit);
                prop_assert!(many <= was.2.max(1), "{many} oversized at once");
            }
        }
        // Where an oversized dump has its half of the pass, there is room for that half. (Two, after one failed, share it.)
        let since = after.guests.iter().flat_map(|g| &g.pending)
            .filter(|d| d.counts() && tightest.is_some_and(|limit| d.expected > limit)).map(|d| d.since).min();
        if let (Some(limit), Some(since), false, 0..=1) = (tightest, since, overdraft, was.2) {
            let half = slices.min(limit / 2);
            let carried = facts.passes.iter().filter(|pass| **pass > since).count();
            let known = |guest: &&Guest| {
                let (local, sent) = (guest.local.iter().map(|d| d.started), guest.sent.iter().map(|d| d.started));
                local.chain(sent).chain(guest.pending.iter().map(|d| d.started)).any(|on| on <= since)
            };
            // Who waited before it came, for a pass of which it would leave too little, has the first passes.
            let waited = facts.guests.iter().filter(|guest| guest.local.iter().any(|d| d.finished <= since));
            let waited = waited.flat_map(|guest| &guest.local).any(|d| d.cost > limit - limit / 2 && d.cost <= limit);
            let first = waited && (1..=facts.guests.iter().filter(known).count()).contains(&carried);
            let its_half = carried % 2 == 0 && !first;
            prop_assert!(!its_half || fitting + half <= limit || fitting <= was.0, "{fitting} beside {half} of {limit}");
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
        prop_assert_eq!(plan(&facts, &options(day(31))), plan(&turned, &options(day(31))));
    }

    #[test]
    fn a_second_run_does_nothing(facts in facts(), overdraft: bool, force: bool) {
        let options = Options { overdraft, force, ..options(day(31)) };
        let mut facts = facts;
        let first = plan(&facts, &options);
        carry_out(&mut facts, &first, options.now);
        let second = plan(&facts, &options);
        let changes = |item: &&Item| matches!(item.decision, Decision::Linked | Decision::Replaced);
        prop_assert_eq!(second.items.iter().filter(changes).count(), 0, "{:?}", second.items);
    }

    #[test]
    fn every_dump_is_decided_once_and_no_guest_gets_two(facts in facts(), force: bool) {
        let plan = plan(&facts, &Options { force, ..options(day(31)) });
        let mut known: Vec<&DumpId> = facts.guests.iter().flat_map(|guest| guest.local.iter().map(|d| &d.id)).collect();
        known.sort();
        known.dedup();
        let mut decided: Vec<&DumpId> = plan.items.iter().map(|item| &item.id).collect();
        decided.sort();
        prop_assert_eq!(known, decided);
        for guest in &facts.guests {
            let of = |decision| plan.items.iter().filter(|item| item.decision == decision)
                .filter(|item| guest.local.iter().any(|dump| dump.id == item.id)).count();
            prop_assert!(of(Decision::Linked) <= 1);
            let held = guest.pending.iter().filter(|dump| dump.fault.is_none() && !dump.begun()).count();
            prop_assert!(of(Decision::Linked) == 0 || held == of(Decision::Replaced), "{} with one pending", guest.vm());
        }
    }

    /// Between linking and dropping, and after it, the guest has something newer in the outbox.
    #[test]
    fn only_what_was_not_begun_is_replaced_and_by_something_newer_that_is_there(facts in facts(), overdraft: bool) {
        let plan = plan(&facts, &Options { overdraft, ..options(day(31)) });
        for item in plan.items.iter().filter(|item| item.decision == Decision::Replaced) {
            let guest = facts.guests.iter().find(|g| g.pending.iter().any(|d| d.id == item.id)).unwrap();
            let old = guest.pending.iter().find(|dump| dump.id == item.id).unwrap();
            prop_assert!(old.tries == 0 && old.error.is_none() && old.fault.is_none());
            let by = item.replaced_by.as_ref().unwrap();
            let newer = guest.local.iter().find(|dump| dump.id == *by).map(|dump| dump.started);
            prop_assert!(newer > Some(old.started));
            let stays = guest.pending.iter().any(|dump| dump.id == *by && dump.counts());
            prop_assert!(stays || linked(&plan).iter().any(|linked| linked.id == *by));
        }
    }

    /// Promised where nothing pending is larger than a pass under the smaller limit: such a dump gives way in every second
    /// pass, and under the larger limit it might not be one.
    #[test]
    fn the_head_goes_under_a_larger_limit_if_it_does_under_a_smaller(
        facts in facts(),
        more in prop::collection::vec(0..40u64, 5),
        overdraft: bool,
    ) {
        let options = Options { overdraft, ..options(day(31)) };
        let smallest = facts.caps.iter().filter(|cap| cap.limit.period == Period::Pass).map(|cap| cap.limit.bytes).min();
        let mut facts = facts;
        for dump in facts.guests.iter_mut().flat_map(|guest| &mut guest.pending) {
            dump.expected = dump.expected.min(smallest.unwrap_or(u64::MAX));
            dump.cost = dump.cost.min(dump.expected);
        }
        let mut larger = facts.clone();
        for (cap, more) in larger.caps.iter_mut().zip(more) {
            cap.limit.bytes += more;
        }
        let goes = |facts: &Facts| linked(&plan(facts, &options)).iter().any(|item| item.rank == Some(1));
        prop_assert!(!goes(&facts) || goes(&larger));
    }
}
