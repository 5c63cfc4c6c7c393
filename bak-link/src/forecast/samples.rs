//! Guests with a past, made by hand, for the tests. It is Friday, the 20th of November 2026, 05:00 UTC; a pass began at
//! 06:00 on each day from the 10th.

use super::*;
use bak_common::name::GuestName;
use bak_common::record::GuestKey;
use bak_common::units::limit;

/// An hour of a day of November (or, beyond the 30th, of December).
pub fn at(day: i64, hour: i64) -> Time {
    "2026-11-01T00:00:00Z".parse::<Time>().unwrap().plus((day - 1) * 86_400 + hour * 3600)
}

/// A guest that was dumped at `hour` of those days, ten minutes each; nothing of it was sent.
pub fn guest(vm: &str, hour: i64, days: impl Iterator<Item = i64>, bytes: u64) -> Guest {
    let key = GuestKey { vm: GuestName::new(vm).unwrap(), kind: "qemu".into(), uid: None };
    let one = |day: i64| {
        let (started, finished) = (at(day, hour), at(day, hour).plus(600));
        Known { id: DumpId::of(&key.vm, started), started, finished, bytes, good: true }
    };
    let known: Vec<Known> = days.map(one).collect();
    let local = |dump: &Known| {
        let (id, started, finished) = (dump.id.clone(), dump.started, dump.finished);
        let (size, cost, source) = (bytes, bytes, Default::default());
        plan::Local { id, started, finished, size, cost, source, fault: None, selected: true }
    };
    let local = known.iter().map(local).collect();
    let (pending, sent) = (Vec::new(), Vec::new());
    let plan = plan::Guest { key, priority: 0, stale_after_s: 0, sync: true, local, pending, sent };
    Guest { plan, known, wire: Vec::new(), past: None, begun: HashMap::new(), target_s: 7 * 86_400 }
}

/// A guest that is dumped every night at 02:00.
pub fn nightly(vm: &str, bytes: u64) -> Guest {
    guest(vm, 2, 10..=20, bytes).sent_to(19)
}

impl Guest {
    /// Its dumps up to that day were sent, in the pass of their day.
    pub fn sent_to(mut self, day: i64) -> Self {
        for dump in self.known.iter().filter(|dump| dump.started < at(day + 1, 0)) {
            let pass = at(1, 6).plus(dump.started.since(at(1, 0)).div_euclid(86_400) * 86_400);
            self.plan.sent.push(plan::Sent { id: dump.id.clone(), started: dump.started, at: pass });
        }
        self
    }

    /// Its newest dump was linked for the last pass, which carried so much of it.
    pub fn begun(mut self, carried: u64) -> Self {
        let dump = self.plan.local.last().unwrap();
        let (id, started, cost) = (dump.id.clone(), dump.started, dump.cost);
        self.begun.insert(id.clone(), Begun { linked: at(19, 6), rank: 1, carried });
        let (size, expected, since, rank) = (cost, cost, started, None);
        let (tries, error, fault) = (1, None, None);
        let pending = plan::Pending { id, started, size, expected, cost, since, rank, tries, error, fault };
        self.plan.pending.push(pending);
        self
    }

    pub fn stale_after(mut self, days: u64) -> Self {
        self.plan.stale_after_s = days * 86_400;
        self
    }

    pub fn priority(mut self, priority: i64) -> Self {
        self.plan.priority = priority;
        self
    }

    pub fn target(mut self, days: u64) -> Self {
        self.target_s = days * 86_400;
        self
    }

    /// What each of its dumps that were sent took on the wire.
    pub fn took(mut self, wire: u64) -> Self {
        let carried = |dump: &Known| Carried { started: dump.started, bytes: dump.bytes, wire };
        self.wire = self
            .known
            .iter()
            .filter(|dump| self.plan.sent.iter().any(|sent| sent.id == dump.id))
            .map(carried)
            .collect();
        self
    }
}

pub fn facts(guests: Vec<Guest>, limits: &[&str]) -> Facts {
    let limits = limits.iter().map(|text| limit(text).unwrap().unwrap()).collect();
    let passes = (10..20).map(|day| (at(day, 6), at(day, 6).plus(60))).collect();
    Facts { guests, limits, passes, traffic: Vec::new(), overhead: 0 }
}

pub fn options(days: i64) -> Options {
    let plan = plan::Options { now: at(20, 5), skew_s: 3600, force: false, oversize: true, overdraft: false };
    Options { plan, zone: "UTC".parse().unwrap(), horizon_s: days * 86_400, passes_s: None }
}
