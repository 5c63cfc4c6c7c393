//! What a play begins with, and what will happen in it whatever the limits: dumps and passes. Pure.

use bak_common::calendar::{Time, Zone};
use bak_common::units::{Limit, Period};
use std::collections::BTreeMap;

use super::carry::Way;
use super::expect::{Coming, Expected, after, expect, pace, wire};
use super::play::Count;
use super::rhythm::{every, rhythm};
use super::shelf::Shelf;
use super::{Facts, Options};
use crate::budget::show_limit;
use crate::cost::Past;
use crate::plan;

const DAY_S: i64 = 86_400;
/// The search for the smallest limit looks ahead by so many times what the most patient guest bears, so that a limit
/// under which everything waits a little longer each time does not pass for enough; at most by so much.
const PATIENCE: i64 = 4;
const PATIENCE_MAX_S: i64 = 400 * DAY_S;
/// Who is staler now than they may be has half of the time to recover, at most so much.
const RECOVERY_S: i64 = 28 * DAY_S;
/// How much of what counts a first look of that search takes in, at least.
const GLANCE_S: i64 = 60 * DAY_S;

impl Guest {
    /// What a dump takes on the wire if it goes after the one that began at `last`; `cost` where nothing else is known.
    pub fn wire(&self, dump: &plan::Local, last: Option<Time>, cost: u64) -> u64 {
        let wire = self.wires.get(&dump.started).copied().unwrap_or(cost);
        after(wire, dump.size, self.pace, dump.started, last)
    }
}

/// One guest as a play begins.
pub struct Guest {
    pub start: plan::Guest,
    pub shelf: Shelf,
    pub coming: Vec<Coming>,
    /// As it stands when the play begins.
    pub past: Option<(Past, String)>,
    /// Of each dump that may go, by start: what it will take on the wire.
    pub wires: BTreeMap<Time, u64>,
    /// Where they go as changes: after how many seconds they take that.
    pub pace: Option<i64>,
    pub rhythm: String,
    pub stopped: Option<String>,
    pub target_s: u64,
    /// What its next dump that goes is expected to cost, and the cheapest one; 0 if none is to go.
    pub costs: (u64, u64),
    /// Of the dumps that are there.
    pub count: Count,
}

pub struct Stage {
    pub guests: Vec<Guest>,
    /// What is on its way already.
    pub ways: Vec<Way>,
    /// When passes begin, up to `search_until`.
    pub passes: Vec<Time>,
    /// When those before finished.
    pub finished: Vec<Time>,
    pub traffic: Vec<(Time, u64)>,
    pub overhead: u64,
    pub options: plan::Options,
    pub zone: Zone,
    pub rhythm: String,
    pub until: Time,
    pub search_until: Time,
    /// How far its first look goes.
    pub glance: Time,
    pub judged_from: Time,
}

impl Stage {
    pub fn new(facts: &Facts, options: &Options) -> Self {
        let now = options.plan.now;
        let until = now.plus(options.horizon_s);
        let patience = patience(facts);
        let search_until = now.plus(options.horizon_s.max(patience));
        let (rhythm, passes) = passes(facts, options, search_until);
        let guests: Vec<Guest> = facts.guests.iter().map(|guest| stage(guest, options, search_until)).collect();
        let ways = facts.guests.iter().enumerate().flat_map(|(at, guest)| ways(at, guest, now)).collect();
        let behind = facts.guests.iter().any(|guest| behind(guest, facts, now));
        let judged_from = if behind { now.plus((options.horizon_s / 2).min(RECOVERY_S)) } else { now };
        Self {
            guests,
            ways,
            passes,
            finished: facts.passes.iter().map(|pass| pass.1).collect(),
            traffic: facts.traffic.clone(),
            overhead: facts.overhead,
            options: options.plan.clone(),
            zone: options.zone,
            rhythm,
            until,
            search_until,
            judged_from,
            glance: search_until.min(judged_from.plus(GLANCE_S.max(patience))),
        }
    }

    /// More than all that can be charged or carried, in all passes together.
    pub fn everything(&self) -> u64 {
        let coming = self.guests.iter().flat_map(|guest| &guest.coming);
        let coming = coming.map(|dump| dump.cost.max(dump.wire).max(dump.bytes));
        let local = self.guests.iter().flat_map(|guest| &guest.start.local).map(|dump| dump.size);
        let there = self.guests.iter().flat_map(|guest| guest.wires.values()).copied();
        let costs = self.guests.iter().map(|guest| guest.costs.0);
        let pending = self.ways.iter().map(|way| way.cost.max(way.wire));
        let counted = self.traffic.iter().map(|(_, bytes)| *bytes);
        let overhead = self.overhead.saturating_mul(self.passes.len() as u64 + 1);
        let all = coming.chain(local).chain(there).chain(costs).chain(pending).chain(counted);
        all.fold(overhead, u64::saturating_add)
    }

    /// Why nothing of the guest at `at` can ever go under these limits.
    pub fn never(&self, at: usize, limits: &[Limit]) -> Option<String> {
        let guest = &self.guests[at];
        let cheapest = guest.costs.1;
        let hard = |limit: &&Limit| limit.period != Period::Pass || !self.options.oversize;
        if let Some(limit) = limits.iter().filter(hard).find(|limit| cheapest > limit.bytes) {
            let size = bak_common::units::show_size(cheapest);
            return Some(format!("{size} never fit into {}", show_limit(*limit)));
        }
        let newest = guest.start.local.iter().max_by_key(|dump| dump.started)?;
        let broken = guest.start.pending.iter().find(|dump| dump.id == newest.id)?.fault.as_ref()?;
        let why = format!("its copy in the outbox is not good ({broken}), and no newer dump is to come");
        guest.coming.is_empty().then_some(why)
    }
}

/// How far the search for the smallest limit looks, in seconds, if the forecast doesn't go further.
fn patience(facts: &Facts) -> i64 {
    let patient = facts.guests.iter().map(|guest| i64::try_from(guest.target_s).unwrap_or(i64::MAX)).max();
    patient.unwrap_or(0).saturating_mul(PATIENCE).min(PATIENCE_MAX_S)
}

/// How many seconds are between two passes as they happened so far, and how many passes that makes, if these are more than
/// `most`: nobody would wait for such a forecast.
pub fn too_often(facts: &Facts, options: &Options, most: i64) -> Option<(i64, i64)> {
    let begun: Vec<Time> = facts.passes.iter().map(|pass| pass.0).collect();
    let spacing = rhythm(&begun, options.zone).filter(|_| options.passes_s.is_none())?.spacing().max(1);
    let passes = options.horizon_s.max(patience(facts)) / spacing;
    (passes > most).then_some((spacing, passes))
}

/// Whether the last pass left a guest staler than it may be.
fn behind(guest: &super::Guest, facts: &Facts, now: Time) -> bool {
    let last = facts.passes.iter().map(|pass| pass.0).max().unwrap_or(now);
    let mut then = guest.plan.clone();
    then.local.retain(|dump| dump.finished <= last);
    let shelf = Shelf::new(&mut then, last);
    then.sync && shelf.lag(&then, last).is_some_and(|lag| u64::try_from(lag).unwrap_or(0) > guest.target_s)
}

/// When passes happen: as the user says, as they did, or else daily from now on.
fn passes(facts: &Facts, options: &Options, until: Time) -> (String, Vec<Time>) {
    let now = options.plan.now;
    let begun: Vec<Time> = facts.passes.iter().map(|pass| pass.0).collect();
    let last = begun.iter().max();
    let (found, after, said) = match (options.passes_s, rhythm(&begun, options.zone)) {
        (None, Some(found)) => {
            let soonest = last.map_or(now, |last| last.plus(found.spacing() / 2));
            (found, soonest.max(now.plus(-1)), "as so far")
        }
        (given, _) => {
            let seconds = given.unwrap_or(DAY_S);
            let first = last.map(|last| last.plus(seconds)).filter(|next| *next >= now).unwrap_or(now);
            (every(seconds, first, options.zone), first.plus(-1), if given.is_some() { "as given" } else { "assumed" })
        }
    };
    (format!("{found} ({said})"), found.between(after, until))
}

fn stage(guest: &super::Guest, options: &Options, until: Time) -> Guest {
    let now = options.plan.now;
    let mut start = guest.plan.clone();
    let expected = if start.sync {
        expect(guest, now, until, options.zone)
    } else {
        Expected { rhythm: "not synced".into(), ..Expected::default() }
    };
    let of = |dump: &plan::Local| (dump.started, wire(guest, dump.size, dump.cost));
    let there = start.local.iter().filter(|dump| dump.fault.is_none()).map(of);
    let wires = expected.coming.iter().map(|dump| (dump.started, dump.wire)).chain(there).collect();
    let shelf = Shelf::new(&mut start, now.plus(options.plan.skew_s));
    let count = shelf.count(&start);
    let unsent = shelf.unsent(&start).map(|dump| dump.cost);
    let costs: Vec<u64> = unsent.into_iter().chain(expected.coming.iter().map(|dump| dump.cost)).collect();
    Guest {
        past: guest.past.clone(),
        pace: pace(guest),
        wires,
        count,
        costs: (costs.first().copied().unwrap_or(0), costs.iter().min().copied().unwrap_or(0)),
        start,
        shelf,
        coming: expected.coming,
        rhythm: expected.rhythm,
        stopped: expected.stopped,
        target_s: guest.target_s,
    }
}

/// The dumps of a guest that are on their way.
fn ways(at: usize, guest: &super::Guest, now: Time) -> Vec<Way> {
    let sound = guest.plan.pending.iter().filter(|dump| dump.fault.is_none());
    let way = |dump: &plan::Pending| {
        let begun = guest.begun.get(&dump.id);
        let last = guest.plan.sent.iter().map(|sent| sent.started).filter(|last| *last < dump.started).max();
        let wire = after(wire(guest, dump.size, dump.expected), dump.size, pace(guest), dump.started, last);
        Way {
            guest: at,
            id: dump.id.clone(),
            started: dump.started,
            linked: begun.map_or(now, |begun| begun.linked),
            rank: begun.map_or(0, |begun| begun.rank),
            failed: dump.error.is_some(),
            cost: dump.expected,
            bytes: dump.size,
            wire,
            left: wire.saturating_sub(begun.map_or(0, |begun| begun.carried)),
            passes: 0,
        }
    };
    sound.map(way).collect()
}
