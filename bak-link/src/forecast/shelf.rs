//! A guest's dumps in a play, as far as a plan can still ask for them. Pure.
//!
//! A year of a thousand guests is quick only if the planner is not shown every dump that ever was. It is shown the newest
//! one, which says when it was *finished* in the name of all that wait: from the first that made the guest due its wait
//! counts. Of a guest that nothing was sent of it is shown the oldest, too, as that says since when the guest is known;
//! else the oldest of those sent says that. That the plans are the same as of all dumps is a property of the tests.

use bak_common::calendar::Time;
use std::collections::HashSet;

use super::play::Count;
use crate::plan::{Guest, Local, Sent};

/// The good dumps of a guest that are newer than what was sent, by start.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Vec<Local>);

impl Shelf {
    /// Takes over the dumps of a guest, of which those that are not good count for nothing, nor do those dated after
    /// `horizon`, now and later.
    pub fn new(guest: &mut Guest, horizon: Time) -> Self {
        guest.sent.retain(|dump| dump.started <= horizon);
        guest.sent.sort_by_key(|dump| dump.started);
        let mut dumps = std::mem::take(&mut guest.local);
        dumps.retain(|dump| dump.fault.is_none() && dump.started <= horizon);
        dumps.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        dumps.dedup_by(|a, b| a.id == b.id);
        if let (Some(oldest), Some(first)) = (dumps.first(), guest.sent.first())
            && oldest.started < first.started
        {
            let known = Sent { id: oldest.id.clone(), started: oldest.started, at: first.at };
            guest.sent.insert(0, known);
        }
        let sent: HashSet<_> = guest.sent.iter().map(|dump| &dump.id).collect();
        dumps.retain(|dump| !sent.contains(&dump.id));
        let mut shelf = Self(dumps);
        shelf.gone(guest);
        shelf
    }

    /// What has come of the dumps so far; those that were sent are not counted.
    pub fn count(&self, guest: &Guest) -> Count {
        let pending = sound(guest);
        let loose = self
            .0
            .iter()
            .filter(|dump| !guest.pending.iter().any(|there| there.id == dump.id && there.fault.is_none()));
        let loose = loose.count() as u64;
        let superseded = loose - u64::from(self.unsent(guest).is_some());
        Count { made: loose + pending, superseded, ..Count::default() }
    }

    /// How many dumps wait, pending or not.
    pub fn waiting(&self, guest: &Guest) -> u64 {
        sound(guest) + u64::from(self.unsent(guest).is_some())
    }

    /// The dump that the guest would send, were it due: newer than all that was sent or is pending.
    pub fn unsent(&self, guest: &Guest) -> Option<&Local> {
        let going =
            |dump: &&Local| guest.pending.iter().any(|there| there.fault.is_none() && there.started >= dump.started);
        self.0.last().filter(|dump| !going(dump))
    }

    /// Staleness; of a guest that nothing was sent of the time since its first dump. `None` if it has no dump.
    pub fn lag(&self, guest: &Guest, now: Time) -> Option<i64> {
        let (first, newest) = (self.0.first(), self.0.last());
        match guest.sent.last() {
            Some(last) => Some(newest.map_or(0, |newest| newest.started.since(last.started).max(0))),
            None => first.map(|first| now.since(first.started)),
        }
    }

    /// A new dump, later than all others, is there.
    pub fn add(&mut self, guest: &mut Guest, dump: Local) {
        self.0.push(dump);
        self.show(guest);
    }

    /// Something was sent, the last in the guest's list.
    pub fn gone(&mut self, guest: &mut Guest) {
        // Since when the guest is known its oldest dump says, also once that is forgotten.
        if let ([first], Some(oldest)) = (guest.sent.as_slice(), self.0.first())
            && oldest.started < first.started
        {
            let known = Sent { id: oldest.id.clone(), started: oldest.started, at: first.at };
            guest.sent.insert(0, known);
        }
        if guest.sent.len() > 2 {
            guest.sent.drain(1..guest.sent.len() - 1);
        }
        if let Some(last) = guest.sent.last() {
            self.0.retain(|dump| dump.started > last.started);
        }
        self.show(guest);
    }

    /// Shows the planner what it will ask for, and forgets what nobody will.
    fn show(&mut self, guest: &mut Guest) {
        guest.local.clear();
        let Some(newest) = self.0.last() else { return };
        let last = guest.sent.last().map(|dump| dump.started);
        let due = |dump: &Local| {
            last.is_none_or(|last| u64::try_from(dump.started.since(last)).unwrap_or(0) > guest.stale_after_s)
        };
        let first_due = self.0.iter().filter(|dump| due(dump)).min_by_key(|dump| dump.finished);
        let finished = first_due.map_or(newest.finished, |dump| dump.finished);
        let newest_started = newest.started;
        guest.local.extend(self.0.first().filter(|dump| last.is_none() && dump.started < newest_started).cloned());
        guest.local.push(Local { finished, ..newest.clone() });
        // While one is pending those after it are needed when it has gone, as the wait counts anew from them.
        if guest.pending.is_empty() && self.0.len() > 3 {
            let first = if last.is_none() { self.0.first().map(|dump| dump.started) } else { None };
            let kept = [Some(newest_started), first_due.map(|dump| dump.started), first];
            self.0.retain(|dump| kept.contains(&Some(dump.started)));
        }
    }
}

fn sound(guest: &Guest) -> u64 {
    guest.pending.iter().filter(|dump| dump.fault.is_none()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn since_when_a_guest_is_known_is_not_forgotten_when_its_first_dump_goes() {
        let mut guest = samples::guest("a", 2, 1..=3, 10).plan;
        let oldest = guest.local[0].started;
        let mut shelf = Shelf::new(&mut guest, samples::at(9, 0));
        let newest = guest.local.last().unwrap().clone();
        guest.sent.push(Sent { id: newest.id, started: newest.started, at: samples::at(3, 6) });
        shelf.gone(&mut guest);
        assert_eq!(guest.sent.iter().map(|dump| dump.started).min(), Some(oldest));
        assert_eq!((guest.sent.len(), guest.local.len()), (2, 0));
    }
}
