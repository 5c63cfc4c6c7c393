//! Guests made by hand, for the tests. It is day 10.

use super::*;
use bak_common::name::GuestName;

/// Six o'clock UTC of a day of November 2026.
pub fn day(day: i64) -> Time {
    "2026-11-01T06:00:00Z".parse::<Time>().unwrap().plus((day - 1) * 86_400)
}

pub fn id(vm: &str, on: i64) -> DumpId {
    DumpId::of(&GuestName::new(vm).unwrap(), day(on))
}

/// A dump in the store, which costs its size.
pub fn local(vm: &str, on: i64, cost: u64) -> Local {
    let (started, finished, size) = (day(on), day(on).plus(600), cost);
    Local { id: id(vm, on), started, finished, size, cost, source: Source::Size, fault: None, selected: true }
}

/// The same dump, linked at `since`.
pub fn pending(dump: &Local, since: Time) -> Pending {
    let (id, started, size, expected) = (dump.id.clone(), dump.started, dump.size, dump.cost);
    Pending { id, started, size, expected, cost: expected, since, rank: None, tries: 0, error: None, fault: None }
}

/// A guest without dumps.
pub fn guest(vm: &str) -> Guest {
    let key = GuestKey { vm: GuestName::new(vm).unwrap(), kind: "qemu".into(), uid: None };
    Guest { key, priority: 0, stale_after_s: 0, sync: true, local: vec![], pending: vec![], sent: vec![] }
}

impl Guest {
    pub fn vm(&self) -> &str {
        self.key.vm.as_str()
    }

    pub fn dumped(mut self, on: i64, cost: u64) -> Self {
        self.local.push(local(self.vm(), on, cost));
        self
    }

    pub fn sent(mut self, on: i64) -> Self {
        self.sent.push(Sent { id: id(self.vm(), on), started: day(on), at: day(on).plus(3600) });
        self
    }

    pub fn pending(mut self, on: i64, cost: u64) -> Self {
        let dump = local(self.vm(), on, cost);
        self.pending.push(pending(&dump, day(on).plus(1800)));
        self
    }

    /// Something of what is pending was sent.
    pub fn begun(mut self) -> Self {
        for dump in &mut self.pending {
            dump.tries = 1;
        }
        self
    }

    /// What is pending failed to be sent.
    pub fn failing(mut self) -> Self {
        for dump in &mut self.pending {
            dump.tries = 2;
            dump.error = Some("rsync exited with status 12".into());
        }
        self
    }

    pub fn priority(mut self, priority: i64) -> Self {
        self.priority = priority;
        self
    }

    pub fn stale_after(mut self, days: u64) -> Self {
        self.stale_after_s = days * 86_400;
        self
    }
}

/// Dumped on day 10, never sent.
pub fn new(vm: &str, cost: u64) -> Guest {
    guest(vm).dumped(10, cost)
}

/// Dumped on day 10; the dump of so many days before was sent.
pub fn stale(vm: &str, days: i64, cost: u64) -> Guest {
    guest(vm).sent(10 - days).dumped(10, cost)
}
