//! One play: pass by pass, dumps arrive, the planner decides, bak-sync carries. Pure.

use bak_common::calendar::Time;
use bak_common::name::DumpId;
use bak_common::period::period_start;
use bak_common::units::{Limit, Period};
use std::collections::HashMap;

use super::carry::{Room, Way, carry};
use super::shelf::Shelf;
use super::stage::Stage;
use crate::budget::Cap;
use crate::cost::{Carried, Past, Source, still};
use crate::plan::{self, Decision, Item, Local, Pending, Sent, plan};

/// A dump that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Its guest's place in the list.
    pub guest: usize,
    pub id: DumpId,
    /// The pass that it was linked for (earlier than the forecast if it was pending), and the one that it arrives in.
    pub linked: Time,
    pub at: Time,
    /// Staleness when it was linked; absent if nothing of the guest had been sent, or if it was pending.
    pub staleness_s: Option<i64>,
    pub cost: u64,
    pub wire: u64,
    /// Passes of the forecast that carried some of it.
    pub passes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassPlayed {
    pub at: Time,
    /// Dumps that arrived, and bytes on the wire.
    pub sent: u64,
    pub carried: u64,
    /// Dumps, and bytes, that are due or pending when it ends.
    pub waiting_dumps: u64,
    pub waiting: u64,
}

/// What became of a guest's dumps; those that were there and unsent when the play began count, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub made: u64,
    pub sent: u64,
    pub superseded: u64,
    pub waiting: u64,
}

#[derive(Debug, Default)]
pub struct Played {
    pub passes: Vec<PassPlayed>,
    pub sends: Vec<Sending>,
    /// By guest: staleness after each pass that counts.
    pub lags: Vec<Vec<i64>>,
    pub counts: Vec<Count>,
    /// The first guest that was staler than it may be, and after which pass.
    pub over: Option<(usize, Time)>,
}

/// Where a play has come to.
struct Scene<'a> {
    stage: &'a Stage,
    facts: plan::Facts,
    /// By guest: the dumps in the store.
    shelves: Vec<Shelf>,
    ways: Vec<Way>,
    /// By guest: what its dumps' costs are judged by.
    pasts: Vec<Option<(Past, String)>>,
    /// By guest: how many of its dumps to come have come.
    come: Vec<usize>,
    /// Guests by what they are called.
    named: HashMap<&'a str, Vec<usize>>,
    traffic: Vec<(Time, u64)>,
    /// Staleness of what is on its way, when it was linked.
    staleness: HashMap<DumpId, i64>,
    /// Only whether somebody is too stale is asked for.
    strict: bool,
    played: Played,
}

/// Gives a guest's dumps the costs that are expected of them now.
fn judge(guest: &mut plan::Guest, past: &Option<(Past, String)>) {
    let Some((past, format)) = past else { return };
    for dump in &mut guest.local {
        let expected = past.expect(format, dump.started, dump.size);
        (dump.cost, dump.source) = (expected.bytes, expected.source);
    }
}

/// Plays all passes up to `until` under `limits`. `strict` ends it as soon as somebody is staler than they may be.
pub fn play(stage: &Stage, limits: &[Limit], until: Time, strict: bool) -> Played {
    let mut scene = Scene::new(stage, limits, strict);
    for at in stage.passes.iter().take_while(|at| **at <= until) {
        scene.arrive(*at);
        scene.pass(*at);
        if scene.strict && scene.played.over.is_some() {
            return scene.played;
        }
    }
    scene.arrive(until);
    scene.finish()
}

impl<'a> Scene<'a> {
    fn new(stage: &'a Stage, limits: &[Limit], strict: bool) -> Self {
        let guests: Vec<plan::Guest> = stage.guests.iter().map(|guest| guest.start.clone()).collect();
        let mut named: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, guest) in stage.guests.iter().enumerate() {
            named.entry(guest.start.key.vm.as_str()).or_default().push(at);
        }
        let counts = stage.guests.iter().map(|guest| guest.count).collect();
        let caps = limits.iter().map(|limit| Cap { limit: *limit, used: 0 }).collect();
        Self {
            stage,
            facts: plan::Facts { guests, caps, passes: stage.finished.clone() },
            shelves: stage.guests.iter().map(|guest| guest.shelf.clone()).collect(),
            ways: stage.ways.clone(),
            pasts: stage.guests.iter().map(|guest| guest.past.clone()).collect(),
            come: vec![0; stage.guests.len()],
            named,
            traffic: stage.traffic.clone(),
            staleness: HashMap::new(),
            strict,
            played: Played { counts, lags: vec![Vec::new(); stage.guests.len()], ..Played::default() },
        }
    }

    /// Dumps that are finished by `now` are in the store.
    fn arrive(&mut self, now: Time) {
        for (at, (guest, shelf)) in self.facts.guests.iter_mut().zip(&mut self.shelves).enumerate() {
            let coming = &self.stage.guests[at].coming;
            while let Some(dump) = coming.get(self.come[at]).filter(|dump| dump.finished <= now) {
                self.come[at] += 1;
                let count = &mut self.played.counts[at];
                count.made += 1;
                count.superseded += u64::from(shelf.unsent(guest).is_some());
                let (id, started, finished, size) = (dump.id.clone(), dump.started, dump.finished, dump.bytes);
                let (cost, source) = (dump.cost, Source::default());
                shelf.add(guest, Local { id, started, finished, size, cost, source, fault: None, selected: true });
            }
            judge(guest, &self.pasts[at]);
        }
    }

    fn pass(&mut self, now: Time) {
        for cap in &mut self.facts.caps {
            let start = period_start(cap.limit.period, now, self.stage.zone);
            let counted = |start: Time| self.traffic.iter().filter(move |(at, _)| *at >= start).map(|(_, bytes)| bytes);
            cap.used = start.map_or(0, |start| counted(start).fold(0, |sum, bytes| sum.saturating_add(*bytes)));
        }
        let options = plan::Options { now, ..self.stage.options.clone() };
        let plan = plan(&self.facts, &options);
        let linked = plan.items.iter().take_while(|item| item.decision == Decision::Linked);
        linked.for_each(|item| self.link(item, now));
        let over = plan.items.iter().filter(|item| item.decision == Decision::OverLimit);
        let (dumps, bytes) =
            over.fold((0, 0_u64), |(n, sum), item| (n + 1, sum.saturating_add(item.cost.unwrap_or(0))));
        let room = self.room();
        let carried = carry(&mut self.ways, room, options.overdraft);
        self.traffic.push((now, carried.saturating_add(self.stage.overhead)));
        let (arrived, left) = std::mem::take(&mut self.ways).into_iter().partition(|way| way.left == 0);
        self.ways = left;
        let waiting = self.ways.iter().fold(bytes, |sum, way| sum.saturating_add(way.left));
        let waiting_dumps = dumps + self.ways.len() as u64;
        let sent = arrived.len() as u64;
        arrived.into_iter().for_each(|way| self.sent(way, now));
        self.begun();
        self.facts.passes.push(now);
        self.played.passes.push(PassPlayed { at: now, sent, carried, waiting_dumps, waiting });
        self.judge(now);
    }

    /// What limits leave for a pass; what it takes beside its dumps is taken off first.
    fn room(&self) -> Room {
        let left = |pass: bool| {
            let caps = self.facts.caps.iter().filter(|cap| (cap.limit.period == Period::Pass) == pass);
            caps.map(|cap| cap.limit.bytes.saturating_sub(cap.used)).min().unwrap_or(u64::MAX)
        };
        Room { pass: left(true), period: left(false).saturating_sub(self.stage.overhead) }
    }

    /// The guest that the dump called `id` is of.
    fn owner(&self, id: &DumpId) -> Option<usize> {
        let vm = id.as_str().rsplit_once('@')?.0;
        let holds = |at: &&usize| self.facts.guests[**at].local.iter().any(|dump| dump.id == *id);
        self.named.get(vm)?.iter().find(holds).copied()
    }

    fn link(&mut self, item: &Item, now: Time) {
        let Some(at) = self.owner(&item.id) else { return };
        let guest = &mut self.facts.guests[at];
        let Some(dump) = guest.local.iter().find(|dump| dump.id == item.id) else { return };
        // As bak-sync will read it in the outbox.
        let note = item.note(now);
        let cost = item.cost.unwrap_or(dump.cost);
        let last = guest.sent.iter().map(|sent| sent.started).max();
        let wire = self.stage.guests[at].wire(dump, last, cost);
        // What it replaces, where the planner lets it.
        let before = self.ways.len();
        self.ways.retain(|way| way.guest != at || way.id == item.id);
        self.played.counts[at].superseded += (before - self.ways.len()) as u64;
        guest.pending.retain(|dump| dump.fault.is_some());
        self.ways.push(Way {
            guest: at,
            id: item.id.clone(),
            started: dump.started,
            linked: note.at,
            rank: note.rank.unwrap_or(0),
            failed: false,
            cost,
            bytes: dump.size,
            wire,
            left: wire,
            passes: 0,
        });
        if let Some(staleness) = item.staleness_s {
            self.staleness.insert(item.id.clone(), staleness);
        }
        let (id, started, size, expected) = (dump.id.clone(), dump.started, dump.size, cost);
        let (since, rank, tries) = (note.at, note.rank, 0);
        let pending = Pending { id, started, size, expected, cost, since, rank, tries, error: None, fault: None };
        guest.pending.push(pending);
    }

    fn sent(&mut self, way: Way, at: Time) {
        let guest = &mut self.facts.guests[way.guest];
        guest.pending.retain(|dump| dump.id != way.id);
        guest.sent.push(Sent { id: way.id.clone(), started: way.started, at });
        self.shelves[way.guest].gone(guest);
        if let Some((past, format)) = &mut self.pasts[way.guest] {
            let (started, size, wire, format) = (way.started, way.bytes, way.wire, format.clone());
            past.add(Carried { started, size, wire, format });
        }
        judge(guest, &self.pasts[way.guest]);
        self.played.counts[way.guest].sent += 1;
        self.played.sends.push(Sending {
            guest: way.guest,
            staleness_s: self.staleness.remove(&way.id),
            id: way.id,
            linked: way.linked,
            at,
            cost: way.cost,
            wire: way.wire,
            passes: way.passes,
        });
    }

    /// What a pass began to carry is noted as such; a failure before is forgotten.
    fn begun(&mut self) {
        for way in self.ways.iter().filter(|way| way.passes > 0) {
            for dump in self.facts.guests[way.guest].pending.iter_mut().filter(|dump| dump.id == way.id) {
                dump.tries = dump.tries.max(way.passes);
                dump.cost = still(way.cost, way.wire.saturating_sub(way.left), way.bytes);
                dump.error = None;
            }
        }
    }

    fn judge(&mut self, now: Time) {
        if now < self.stage.judged_from {
            return;
        }
        let guests = self.facts.guests.iter().zip(&self.shelves).enumerate();
        for (at, (guest, shelf)) in guests.filter(|(_, (guest, _))| guest.sync) {
            let Some(lag) = shelf.lag(guest, now) else { continue };
            if !self.strict {
                self.played.lags[at].push(lag);
            }
            if u64::try_from(lag).unwrap_or(0) > self.stage.guests[at].target_s {
                self.played.over.get_or_insert((at, now));
            }
        }
    }

    fn finish(mut self) -> Played {
        for (at, count) in self.played.counts.iter_mut().enumerate() {
            count.waiting = self.shelves[at].waiting(&self.facts.guests[at]);
        }
        self.played
    }
}
