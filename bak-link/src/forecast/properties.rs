//! What holds for every forecast.

use super::carry::{Room, Way, carry};
use super::samples::*;
use super::*;
use crate::budget::Cap;
use crate::plan::{Decision, Local, Pending, Sent, plan};
use bak_common::period::period_start;
use bak_common::units::{Period, limit};
use proptest::prelude::*;

/// So many cases, or as many as PROPTEST_CASES says.
fn cases(few: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: few, ..default } }
}

/// How a guest is dumped, drawn: hour, days between two dumps, first day of its history, bytes, up to which day it was sent.
type Drawn = (i64, i64, i64, u64, i64);

fn guests() -> impl Strategy<Value = Vec<Guest>> {
    let drawn = (0..5i64, 1..9i64, 1..12i64, 0..60u64, 0..21i64);
    let rules = (0..3u8, 0..3u64, 0..4u8, prop::option::of(1..60u64));
    prop::collection::vec((drawn, rules), 0..7).prop_map(|drawn| {
        let one = |(i, ((hour, step, first, bytes, sent), (priority, stale, fate, wire))): (usize, (Drawn, _))| {
            let days = (first..=20).step_by(step as usize);
            let mut guest = guest(&format!("g{i}"), hour, days, bytes).sent_to(sent);
            guest = guest.priority(i64::from(priority) / 2).stale_after(stale).target(2 + stale * 2);
            if let Some(wire) = wire {
                guest = guest.took(wire);
            }
            let newest = guest.plan.local.last().map(|dump| dump.started);
            if fate == 1 && guest.plan.sent.len() > 2 {
                // The history does not go back as far as the store.
                guest.plan.sent.drain(..2);
            }
            if fate == 0 && guest.plan.sent.iter().all(|sent| Some(sent.started) < newest) {
                guest = guest.begun(bytes / 3);
            }
            guest
        };
        drawn.into_iter().enumerate().map(one).collect()
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let limits = prop::sample::subsequence(vec!["12", "40", "70", "90/day", "300/week", "900/month@25"], 0..3);
    (guests(), limits, prop::collection::vec((15..20i64, 0..50u64), 0..4), 0..3u64).prop_map(
        |(guests, limits, traffic, overhead)| {
            let traffic = traffic.into_iter().map(|(day, bytes)| (at(day, 6), bytes)).collect();
            Facts { traffic, overhead, ..facts(guests, &limits) }
        },
    )
}

/// What goes, by name.
fn told(facts: &Facts, forecast: &Forecast) -> Vec<(String, Time)> {
    let told = |sending: &Sending| (facts.guests[sending.guest].plan.key.vm.to_string(), sending.at);
    forecast.sends.iter().map(told).collect()
}

/// The same, literally: every plan is bak-link's own, made of every dump there is and ever was.
fn literally(facts: &Facts, options: &Options) -> Vec<(DumpId, Time)> {
    let stage = Stage::new(facts, options);
    let mut world =
        plan::Facts { guests: facts.guests.iter().map(|guest| guest.plan.clone()).collect(), ..Default::default() };
    world.passes = facts.passes.iter().map(|pass| pass.1).collect();
    let (mut ways, mut traffic, mut went) = (stage.ways.clone(), facts.traffic.clone(), Vec::new());
    for now in stage.passes.iter().copied().take_while(|at| *at <= stage.until) {
        for (guest, staged) in world.guests.iter_mut().zip(&stage.guests) {
            for dump in staged.coming.iter().filter(|dump| dump.finished <= now) {
                if !guest.local.iter().any(|there| there.id == dump.id) {
                    let (id, started, finished, cost) = (dump.id.clone(), dump.started, dump.finished, dump.cost);
                    let (size, source) = (cost, Default::default());
                    guest.local.push(Local { id, started, finished, size, cost, source, fault: None, selected: true });
                }
            }
        }
        let used = |period: Period| {
            let start = period_start(period, now, options.zone)?;
            Some(traffic.iter().filter(|(at, _)| *at >= start).map(|(_, bytes)| *bytes).sum::<u64>())
        };
        world.caps =
            facts.limits.iter().map(|limit| Cap { limit: *limit, used: used(limit.period).unwrap_or(0) }).collect();
        let plan = plan(&world, &plan::Options { now, ..options.plan.clone() });
        for item in plan.items.iter().filter(|item| item.decision == Decision::Linked) {
            let of = |guest: &plan::Guest| guest.local.iter().any(|dump| dump.id == item.id);
            let at = world.guests.iter().position(of).unwrap();
            let (started, cost) = (item.id.as_str().rsplit_once('@').unwrap().1, item.cost.unwrap());
            let started = Time::from_compact(started).unwrap();
            let dump = world.guests[at].local.iter().find(|dump| dump.id == item.id).unwrap();
            let last = world.guests[at].sent.iter().map(|sent| sent.started).max();
            let wire = stage.guests[at].wire(dump, last, cost);
            let note = item.note(now);
            let (id, linked, rank, bytes) = (item.id.clone(), note.at, note.rank.unwrap(), cost);
            // What it replaces.
            ways.retain(|way| way.guest != at);
            world.guests[at].pending.clear();
            let way =
                Way { guest: at, id, started, linked, rank, failed: false, cost, bytes, wire, left: wire, passes: 0 };
            ways.push(way);
            let id = item.id.clone();
            let (since, rank, size, expected) = (note.at, note.rank, cost, cost);
            let pending =
                Pending { id, started, size, expected, cost, since, rank, tries: 0, error: None, fault: None };
            world.guests[at].pending.push(pending);
        }
        let left = |pass: bool| {
            let caps = world.caps.iter().filter(|cap| (cap.limit.period == Period::Pass) == pass);
            caps.map(|cap| cap.limit.bytes.saturating_sub(cap.used)).min().unwrap_or(u64::MAX)
        };
        let room = Room { pass: left(true), period: left(false).saturating_sub(facts.overhead) };
        traffic.push((now, carry(&mut ways, room, options.plan.overdraft) + facts.overhead));
        for way in ways.iter().filter(|way| way.passes > 0) {
            for dump in world.guests[way.guest].pending.iter_mut().filter(|dump| dump.id == way.id) {
                (dump.tries, dump.error) = (1, None);
                dump.cost = crate::cost::still(way.cost, way.wire - way.left, way.bytes);
            }
        }
        for way in ways.extract_if(.., |way| way.left == 0) {
            let guest = &mut world.guests[way.guest];
            guest.pending.retain(|dump| dump.id != way.id);
            guest.sent.push(Sent { id: way.id.clone(), started: way.started, at: now });
            went.push((way.id, now));
        }
        world.passes.push(now);
    }
    went
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn each_plan_is_the_one_that_bak_link_would_make(facts in any_facts(), overdraft: bool, oversize: bool) {
        let mut options = options(25);
        (options.plan.overdraft, options.plan.oversize) = (overdraft, oversize);
        let stage = Stage::new(&facts, &options);
        let played = play(&stage, &facts.limits, stage.until, false);
        let went: Vec<(DumpId, Time)> = played.sends.into_iter().map(|sending| (sending.id, sending.at)).collect();
        prop_assert_eq!(went, literally(&facts, &options));
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(facts in any_facts(), turn in 0..7usize) {
        let mut turned = facts.clone();
        turned.guests.reverse();
        let by = turn % facts.guests.len().max(1);
        turned.guests.rotate_left(by);
        turned.passes.reverse();
        turned.traffic.reverse();
        turned.limits.reverse();
        for guest in &mut turned.guests {
            guest.known.reverse();
            guest.wire.reverse();
            guest.plan.local.reverse();
            guest.plan.sent.reverse();
        }
        let options = Options { horizon_s: 10 * 86_400, ..options(10) };
        let (one, other) = (forecast(&facts, &options), forecast(&turned, &options));
        prop_assert_eq!(told(&facts, &one), told(&turned, &other));
        prop_assert_eq!((one.passes, one.stable), (other.passes, other.stable));
        for (guest, outlook) in facts.guests.iter().zip(&one.guests) {
            let at = turned.guests.iter().position(|there| there.plan.key == guest.plan.key).unwrap();
            prop_assert_eq!(outlook, &other.guests[at]);
        }
    }

    #[test]
    fn without_a_limit_each_dump_goes_in_the_first_pass_after_it(facts in any_facts()) {
        let mut facts = Facts { limits: vec![], ..facts };
        facts.guests.iter_mut().for_each(|guest| guest.plan.stale_after_s = 0);
        let options = options(25);
        let stage = Stage::new(&facts, &options);
        let played = play(&stage, &[], stage.until, false);
        for pass in &played.passes {
            prop_assert_eq!((pass.waiting, pass.waiting_dumps), (0, 0));
        }
        let passes: Vec<Time> = played.passes.iter().map(|pass| pass.at).collect();
        for (at, guest) in stage.guests.iter().enumerate() {
            // Of the dumps that one pass finds the newest goes.
            let first = |dump: &expect::Coming| passes.iter().find(|pass| **pass >= dump.finished).copied();
            let mut due: Vec<(Time, DumpId)> = guest.coming.iter().filter_map(|dump| Some((first(dump)?, dump.id.clone()))).collect();
            due.reverse();
            due.dedup_by_key(|one| one.0);
            due.reverse();
            let known = |id: &DumpId| guest.coming.iter().any(|dump| dump.id == *id);
            let went = played.sends.iter().filter(|sending| sending.guest == at && known(&sending.id));
            let went: Vec<(Time, DumpId)> = went.map(|sending| (sending.at, sending.id.clone())).collect();
            prop_assert_eq!(went, due);
        }
    }

    #[test]
    fn what_was_made_was_sent_or_superseded_or_waits(facts in any_facts()) {
        let options = options(25);
        let stage = Stage::new(&facts, &options);
        let played = play(&stage, &facts.limits, stage.until, false);
        for (at, count) in played.counts.iter().enumerate() {
            prop_assert_eq!(count.made, count.sent + count.superseded + count.waiting, "g{}: {:?}", at, count);
            let sent = played.sends.iter().filter(|sending| sending.guest == at).count() as u64;
            prop_assert_eq!(count.sent, sent);
        }
        let carried: u64 = played.passes.iter().map(|pass| pass.carried).sum();
        let arrived: u64 = played.sends.iter().map(|sending| sending.wire).sum();
        prop_assert!(carried + 60 * facts.guests.len() as u64 >= arrived, "but for what was carried before");
    }
}

proptest! {
    #![proptest_config(cases(25))]

    #[test]
    fn the_smallest_limit_is_enough_and_a_tenth_less_is_not(guests in guests(), period in 0..3usize) {
        let facts = facts(guests, &[["1", "1/day", "1/week"][period]]);
        let options = options(30);
        let stage = Stage::new(&facts, &options);
        match search::smallest(&stage, &facts.limits)[..] {
            [Smallest::Enough { limit, alone }] => {
                prop_assert!(!alone && search::enough(&stage, &[limit], stage.search_until), "{} is enough", limit);
                for less in search::too_small(limit) {
                    prop_assert!(!search::enough(&stage, &[less], stage.search_until), "{} is enough as well", less);
                }
            }
            [Smallest::Never { guest, at, .. }] => {
                let over = play(&stage, &[], stage.search_until, true).over;
                prop_assert_eq!(over, Some((guest, at)));
            }
            ref other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn a_limit_that_is_none_changes_nothing() {
    let guests = vec![nightly("a", 5), guest("b", 3, (1..=20).step_by(3), 9).sent_to(7)];
    let free = forecast(&facts(guests.clone(), &[]), &options(30));
    let wide = facts(guests, &["1000", "10000/week"]);
    assert_eq!(free.sends, forecast(&wide, &options(30)).sends);
    assert_eq!(limit("none").unwrap(), None);
}
