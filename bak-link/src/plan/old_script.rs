//! The choices of the old script: one limit a pass, the first dump of a session in full even beyond it, no priorities, no
//! ageing. First cases judged by hand; then a small model of the script, made from the description of how it behaved and
//! of nothing else, that must agree with the planner on whatever comes.

use super::properties::{carry_out, cases, linked};
use super::samples::*;
use super::*;
use bak_common::units::limit;
use proptest::prelude::*;

const DAY: i64 = 86_400;

fn options(on: i64) -> Options {
    Options { now: day(on).plus(7200), skew_s: 3600, force: false, oversize: true, overdraft: true }
}

fn facts(guests: Vec<Guest>, bytes: i64) -> Facts {
    Facts { guests, caps: vec![Cap { limit: limit(&bytes.to_string()).unwrap().unwrap(), used: 0 }], passes: vec![] }
}

/// Names of what goes, in order.
fn names(plan: &Plan) -> Vec<String> {
    linked(plan).iter().map(|item| item.id.as_str().split('@').next().unwrap().to_owned()).collect()
}

/// `web:3d:4` is stale by three days and has 4 GiB, `web:never:4` was never sent, `web:linked:4` waits in the outbox. It
/// is day 30; every guest was dumped today.
fn described(text: &str, retention: u64) -> Vec<Guest> {
    let one = |word: &str| {
        let [name, stale, size] = word.split(':').collect::<Vec<_>>()[..] else { panic!("{word}") };
        let size = size.parse().unwrap();
        let guest = guest(name).dumped(30, size).stale_after(retention);
        match stale {
            "never" => guest,
            "linked" => guest.pending(30, size),
            days => guest.sent(30 - days.strip_suffix('d').unwrap().parse::<i64>().unwrap()),
        }
    };
    text.split_whitespace().map(one).collect()
}

#[test]
fn golden() {
    #[rustfmt::skip]
    let table = [
        // guests: staleness, size               | remote retention | limit | what it linked, in order | what remained
        ("a:2d:4   b:never:4",                          0, 10, "b a",    2), // never linked counts as 9999 days
        ("a:1d:4   b:3d:4   c:2d:4",                    0, 10, "b c",    2), // the most stale first
        ("a:3d:6   b:2d:6   c:1d:4",                    0, 10, "a c",    0), // b is skipped, the next one tried
        ("a:1d:10",                                     0, 10, "a",      0), // an exact fit fits
        ("a:2d:6   b:1d:4   c:1d:1",                    0, 10, "a c",    3), // a byte too much does not; ties: the smaller
        ("a:3d:25  b:2d:1",                             0, 10, "a",    -15), // oversized at the head goes, and blocks
        ("a:3d:4   b:2d:25  c:1d:4",                    0, 10, "a c",    2), // oversized further down is skipped
        ("a:3d:25  b:2d:25  c:1d:0",                    0, 10, "a",    -15), // nothing passes below zero, not even 0
        ("a:linked:8  b:2d:3  c:1d:2",                  0, 10, "c",      0), // the counter lasts until the sync
        ("a:linked:25 b:1d:1",                          0, 10, "",     -15), // and so does an overdraft
        ("a:linked:1  b:9d:25 c:1d:2",                  0, 10, "c",      7), // the first of a session was a, so b waits
        ("a:7d:1   b:8d:1   c:never:1",                 7, 10, "c b",    8), // due is strictly more than the retention
        ("a:0d:1   b:0d:1",                             0, 10, "",      10), // linked already, nothing newer
        ("",                                            0, 10, "",      10),
    ];
    for (guests, retention, limit, chosen, remains) in table {
        let plan = plan(&facts(described(guests, retention), limit), &options(30));
        assert_eq!(names(&plan).join(" "), chosen, "{guests}");
        assert_eq!(plan.left[0].bytes, remains, "{guests}");
    }
}

/// A guest as the script saw it: days of dumps, and in the order of its list.
#[derive(Clone, Debug)]
struct Vm {
    name: String,
    sync: bool,
    local: Option<i64>,
    linked: Option<i64>,
    size: i64,
}

/// The script: what it keeps between its runs is the counter, from the first link to the end of the next sync.
#[derive(Debug)]
struct Script {
    limit: i64,
    retention: i64,
    counter: Option<i64>,
}

impl Script {
    /// `walk` decides between guests of the same staleness, which the script left to chance.
    fn provide(&mut self, vms: &mut [Vm], walk: &[usize]) -> Vec<String> {
        let mut due: Vec<(i64, usize)> = Vec::new();
        for i in walk.iter().copied().filter(|i| vms[*i].sync) {
            let Some(local) = vms[i].local else { continue };
            let staleness = vms[i].linked.map_or(9999, |linked| local - linked);
            if staleness > self.retention {
                due.push((staleness, i));
            }
        }
        due.sort_by_key(|(staleness, _)| -staleness);
        let mut chosen = Vec::new();
        for (_, i) in due {
            let vm = &mut vms[i];
            let first = self.counter.is_none();
            let remains = self.counter.unwrap_or(self.limit) - vm.size;
            if first || remains >= 0 {
                self.counter = Some(remains);
                vm.linked = vm.local;
                chosen.push(vm.name.clone());
            }
        }
        chosen
    }

    fn sync(&mut self) {
        self.counter = None;
    }
}

/// A day: who is dumped, with which size; whether there are two runs; whether the sync comes after them.
type Drawn = (Vec<(bool, i64)>, bool);

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn the_planner_chooses_as_the_script_did(
        syncs in prop::collection::vec(prop::bool::weighted(0.9), 1..8),
        days in prop::collection::vec((prop::collection::vec((any::<bool>(), 0..15i64), 8), any::<bool>()), 1..12),
        bytes in 1..30i64,
        retention in 0..4u64,
    ) {
        let mut vms: Vec<Vm> = syncs.iter().enumerate()
            .map(|(i, sync)| Vm { name: format!("g{i}"), sync: *sync, local: None, linked: None, size: 0 }).collect();
        let guests = vms.iter().map(|vm| Guest { sync: vm.sync, ..guest(&vm.name).stale_after(retention) }).collect();
        let mut facts = facts(guests, bytes);
        let mut script = Script { limit: bytes, retention: retention as i64, counter: None };
        for (on, (dumped, synced)) in (1i64..).zip::<Vec<Drawn>>(days) {
            for ((vm, guest), (dumped, size)) in vms.iter_mut().zip(&mut facts.guests).zip(dumped) {
                // What waits in the outbox is not dumped anew here: the planner replaces it, the script counted it twice.
                if dumped && guest.pending.is_empty() {
                    guest.local.push(local(&vm.name, on, size as u64));
                    (vm.local, vm.size) = (Some(on), size);
                }
            }
            // Equally stale: sent longest ago, then smaller, then by name.
            let mut walk: Vec<usize> = (0..vms.len()).collect();
            walk.sort_by_key(|i| (facts.guests[*i].sent.iter().map(|s| s.at).max(), vms[*i].size, vms[*i].name.clone()));
            let plan = plan(&facts, &options(on));
            prop_assert_eq!(names(&plan), script.provide(&mut vms, &walk), "day {}", on);
            prop_assert_eq!(plan.left[0].bytes, script.counter.unwrap_or(bytes), "day {}", on);
            carry_out(&mut facts, &plan, day(on).plus(7200));
            if synced {
                script.sync();
                for guest in &mut facts.guests {
                    for there in std::mem::take(&mut guest.pending) {
                        guest.sent.push(Sent { id: there.id, started: there.started, at: day(on).plus(DAY / 2) });
                    }
                }
            }
        }
    }
}
