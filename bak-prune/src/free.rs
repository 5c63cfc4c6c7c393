//! `--free`: beyond the rules, what they would let go first. Pure.
//!
//! Each guest is played forward, a dump a day, and what its rules let go on the first day goes first, then what they let
//! go on the second, and so on, until enough is free. What is kept for a look goes before all of it. The last good dump of
//! a guest, what is spared and what a date of its own decides about never go; nor does what would free nothing, because
//! other hard links hold its blocks.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::DumpId;
use std::collections::HashMap;

use crate::plan::{Candidate, Decision, Item, Ruling};
use crate::policy::{self, Hold, Moment, Verdict};

const DAY_S: i64 = 86_400;
/// What no rule lets go within forty years stays.
const DAYS_MAX: i64 = 40 * 366;

/// What the choice depends on. Dumps are asked about by their place among the candidates.
pub struct Space<'a> {
    pub now: Time,
    pub zone: Zone,
    /// Bytes still wanted, after what the rules remove.
    pub wanted: u64,
    /// Bytes that removing a dump frees.
    pub frees: &'a dyn Fn(usize) -> u64,
    /// Why a dump must stay that the rules would let go.
    pub stays: &'a dyn Fn(usize) -> Option<String>,
    /// The rules of a dump's guest.
    pub keep: &'a dyn Fn(usize) -> Keep,
}

/// One guest: the dumps that its rules keep, newest first, and made-up ones of days to come.
struct Guest {
    keep: Keep,
    moments: Vec<(Option<usize>, Moment)>,
    newest: Time,
}

/// Has more of `items` go, until enough is free. Returns the bytes that are still missing.
pub fn free(all: &[Candidate], items: &mut [Item], space: &Space) -> u64 {
    let mut missing = space.wanted;
    let mut by_id: HashMap<&DumpId, Vec<usize>> = HashMap::new();
    for (number, item) in items.iter().enumerate() {
        by_id.entry(all[item.at].id).or_default().push(number);
    }
    let mut let_go = |items: &mut [Item], at: usize, why: &str| {
        for number in by_id.get(all[at].id).into_iter().flatten() {
            let item = &mut items[*number];
            let frees = (space.frees)(item.at);
            let free = item.decision == Decision::Keep && !item.last && frees > 0 && (space.stays)(item.at).is_none();
            if missing > 0 && free {
                item.decision = Decision::Remove;
                item.why.insert(0, why.to_owned());
                missing = missing.saturating_sub(frees);
            }
        }
        missing == 0
    };
    let mut looks: Vec<usize> = items.iter().map(|item| item.at).collect();
    looks.retain(|at| all[*at].fault.is_some() && all[*at].expires.is_none());
    looks.sort_by_key(|at| all[*at].started);
    if space.wanted == 0 || looks.into_iter().any(|at| let_go(items, at, "to free space")) {
        return 0;
    }
    let mut guests = guests(all, items, space);
    for day in 1..=DAYS_MAX {
        let mut going: Vec<usize> = guests.iter_mut().flat_map(|guest| guest.step(day, space)).collect();
        going.sort_by_key(|at| (all[*at].started, all[*at].id));
        let why = format!("to free space: the rules would let it go in {day} d");
        if going.into_iter().any(|at| let_go(items, at, &why)) {
            return 0;
        }
        guests.retain(|guest| guest.moments.iter().filter(|(at, _)| at.is_some()).count() > 0);
        if guests.is_empty() {
            break;
        }
    }
    missing
}

/// The guests with dumps that a rule keeps.
fn guests(all: &[Candidate], items: &[Item], space: &Space) -> Vec<Guest> {
    let mut groups: HashMap<_, Vec<usize>> = HashMap::new();
    for item in items {
        let ruled = matches!(item.ruling, Ruling::Keep(Hold::Rule { .. })) && item.decision == Decision::Keep;
        let dump = &all[item.at];
        if ruled {
            groups.entry((dump.vm, dump.kind, dump.uid)).or_default().push(item.at);
        }
    }
    let guest = |mut members: Vec<usize>| {
        members.sort_by_key(|at| (all[*at].started, all[*at].id));
        members.dedup_by_key(|at| all[*at].id);
        members.reverse();
        let moment = |at: usize| Moment { started: all[at].started, local: space.zone.local(all[at].started) };
        let newest = members.first().map_or(space.now, |at| all[*at].started);
        let keep = members.first().map_or_else(Keep::default, |at| (space.keep)(*at));
        Guest { keep, newest, moments: members.into_iter().map(|at| (Some(at), moment(at))).collect() }
    };
    groups.into_values().map(guest).collect()
}

impl Guest {
    /// What the rules let go when another dump is made and another day has passed.
    fn step(&mut self, day: i64, space: &Space) -> Vec<usize> {
        let started = self.newest.plus(day * DAY_S);
        self.moments.insert(0, (None, Moment { started, local: space.zone.local(started) }));
        let moments: Vec<Moment> = self.moments.iter().map(|(_, moment)| *moment).collect();
        let now = space.now.plus(day * DAY_S);
        let mut going = Vec::new();
        let mut verdicts = policy::judge(&moments, &self.keep, now).into_iter();
        self.moments.retain(|(at, _)| {
            let kept = matches!(verdicts.next(), Some(Verdict::Keep(_)));
            if !kept {
                going.extend(*at);
            }
            kept
        });
        going
    }
}
