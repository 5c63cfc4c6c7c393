//! The plan for one destination: which dumps go into its outbox, in which order, and for every other dump why not. Pure.
//!
//! Each guest has at most one candidate, its newest good dump. Candidates that are due form a queue; the queue is walked
//! once, and what doesn't fit the budget is passed over for the next. What can go wrong is starvation, and three rules
//! work against it: who has waited longest overtakes ([`age`]); the first in the queue goes even if it is larger than a
//! pass ([`Budget::take`]); and what fails to be sent doesn't use up the budget of the others.

use bak_common::calendar::Time;
use bak_common::name::DumpId;
use bak_common::record::{GuestKey, LinkNote};
use bak_common::units::show_duration;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::budget::{Budget, Cap, Left};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod speed;
mod why;

/// A dump of the store.
#[derive(Clone, Debug)]
pub struct Local {
    pub id: DumpId,
    pub started: Time,
    pub finished: Time,
    /// Expected bytes on the wire.
    pub cost: u64,
    /// Why it is not good.
    pub fault: Option<String>,
    /// Whether the user's selection holds it.
    pub selected: bool,
}

/// A dump of the outbox.
#[derive(Clone, Debug)]
pub struct Pending {
    pub id: DumpId,
    pub started: Time,
    pub cost: u64,
    pub tries: u64,
    /// Why the last attempt to send it failed, if it did.
    pub error: Option<String>,
    /// Why it is not good.
    pub fault: Option<String>,
}

/// A dump that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub id: DumpId,
    pub started: Time,
    pub at: Time,
}

/// One guest: what holds for it at this destination, and all its dumps, in any order.
#[derive(Clone, Debug)]
pub struct Guest {
    pub key: GuestKey,
    pub priority: i64,
    pub stale_after_s: u64,
    /// Whether its dumps go to this destination at all.
    pub sync: bool,
    pub local: Vec<Local>,
    pub pending: Vec<Pending>,
    pub sent: Vec<Sent>,
}

/// Everything that a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub guests: Vec<Guest>,
    pub caps: Vec<Cap>,
    /// When passes to this destination were finished.
    pub passes: Vec<Time>,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub now: Time,
    /// How far ahead of `now` a dump may be dated.
    pub skew_s: i64,
    /// Link also what is not due.
    pub force: bool,
    /// Let the first dump be larger than a pass may carry.
    pub oversize: bool,
    /// Charge such a dump in full.
    pub overdraft: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Linked,
    #[serde(rename = "over limit")]
    OverLimit,
    #[serde(rename = "not selected")]
    NotSelected,
    #[serde(rename = "not due")]
    NotDue,
    Pending,
    Sent,
    Superseded,
    #[serde(rename = "not synced")]
    NotSynced,
    Future,
    #[serde(rename = "not good")]
    NotGood,
}

impl Decision {
    /// As records spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Linked => "linked",
            Decision::OverLimit => "over limit",
            Decision::NotSelected => "not selected",
            Decision::NotDue => "not due",
            Decision::Pending => "pending",
            Decision::Sent => "sent",
            Decision::Superseded => "superseded",
            Decision::NotSynced => "not synced",
            Decision::Future => "future",
            Decision::NotGood => "not good",
        }
    }
}

/// What was decided for one dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    pub id: DumpId,
    pub decision: Decision,
    pub why: String,
    /// Its place among the selected dumps that are due; 1 goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u64>,
    /// Absent if no dump of the guest was ever sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_s: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Bytes left of the tightest limit after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
    /// It should go and can't, and only a person can help.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stuck: bool,
}

impl Item {
    fn new(id: &DumpId, decision: Decision, why: impl Into<String>) -> Self {
        let (id, why) = (id.clone(), why.into());
        Self { id, decision, why, rank: None, staleness_s: None, cost: None, remaining: None, stuck: false }
    }

    /// The annotation that a record carries.
    pub fn note(&self, at: Time) -> LinkNote {
        LinkNote {
            decision: self.decision.as_str().to_owned(),
            why: self.why.clone(),
            at,
            rank: self.rank,
            staleness_s: self.staleness_s,
            cost: self.cost,
            remaining: self.remaining,
            tries: None,
            error: None,
            extra: Default::default(),
        }
    }
}

/// The plan: what goes by rank, then what doesn't fit by rank, then everything else that was considered, by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub items: Vec<Item>,
    /// What is left of each limit when all of it is linked.
    pub left: Vec<Left>,
}

/// The dump that a guest would send.
struct Candidate<'a> {
    guest: &'a Guest,
    dump: &'a Local,
    staleness: Option<i64>,
    due: bool,
    /// When something of this guest was sent last.
    sent_at: Option<Time>,
    /// When the dump was finished that first made the guest due.
    due_since: Time,
    /// Start of the oldest dump that is known of this guest.
    known_since: Time,
    /// Passes finished since `due_since`, if it goes ahead for them.
    aged: Option<usize>,
}

/// Makes the plan.
pub fn plan(facts: &Facts, options: &Options) -> Plan {
    let mut items = Vec::new();
    let mut queue: Vec<Candidate> =
        facts.guests.iter().filter_map(|guest| consider(guest, options, &mut items)).collect();
    age(&mut queue, &facts.passes);
    queue.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut budget = Budget::new(&facts.caps, options.overdraft);
    let pending = facts.guests.iter().flat_map(|guest| &guest.pending);
    for dump in pending.filter(|dump| dump.fault.is_none() && dump.error.is_none()) {
        budget.pending(dump.cost);
    }
    spend(&queue, &mut budget, options, &mut items);
    items.sort_by(|a, b| {
        let place = |item: &Item| match item.decision {
            Decision::Linked => (0, item.rank),
            Decision::OverLimit => (1, item.rank),
            _ => (2, None),
        };
        place(a).cmp(&place(b)).then_with(|| a.id.cmp(&b.id))
    });
    Plan { items, left: budget.left() }
}

/// Rules 1 and 2: decides every dump of one guest but its candidate.
fn consider<'a>(guest: &'a Guest, options: &Options, items: &mut Vec<Item>) -> Option<Candidate<'a>> {
    let horizon = options.now.plus(options.skew_s);
    let pending: HashMap<&DumpId, &Pending> = guest.pending.iter().map(|dump| (&dump.id, dump)).collect();
    let sent: HashMap<&DumpId, &Sent> = guest.sent.iter().map(|dump| (&dump.id, dump)).collect();
    let mut local: Vec<&Local> = guest.local.iter().collect();
    // Two copies of one dump in one store are one dump; the good one counts.
    local.sort_by_key(|dump| (dump.started, &dump.id, dump.fault.is_some(), dump.cost, dump.finished));
    local.dedup_by_key(|dump| &dump.id);
    let newest = local.iter().rev().find(|dump| dump.fault.is_none() && dump.started <= horizon).copied();
    let mut candidate = None;
    for dump in &local {
        let item = |decision, why: String| Item::new(&dump.id, decision, why);
        let decided = if let Some(there) = pending.get(&dump.id).filter(|there| there.fault.is_none()) {
            pending_item(there)
        } else if let Some(why) = &dump.fault {
            item(Decision::NotGood, why.clone())
        } else if let Some(there) = sent.get(&dump.id) {
            item(Decision::Sent, format!("sent at {}", there.at))
        } else if !guest.sync {
            item(Decision::NotSynced, "the configuration sends this guest elsewhere or nowhere".into())
        } else if dump.started > horizon {
            let ahead = show_duration(dump.started.since(options.now));
            item(Decision::Future, format!("dated {ahead} in the future: was a clock wrong?"))
        } else if let Some(newer) = newest.filter(|newer| newer.id != dump.id) {
            item(Decision::Superseded, format!("superseded by {}", newer.id))
        } else {
            match candidacy(guest, dump, pending.get(&dump.id).copied(), horizon, options.force) {
                Ok(found) => {
                    candidate = Some(found);
                    continue;
                }
                Err(item) => item,
            }
        };
        items.push(decided);
    }
    for dump in guest.pending.iter().filter(|dump| !local.iter().any(|here| here.id == dump.id)) {
        items.push(match &dump.fault {
            None => pending_item(dump),
            Some(why) => Item::new(&dump.id, Decision::NotGood, format!("in the outbox, {why}")),
        });
    }
    candidate
}

fn pending_item(dump: &Pending) -> Item {
    Item { cost: Some(dump.cost), ..Item::new(&dump.id, Decision::Pending, why::pending(dump)) }
}

/// Whether the newest good dump of a guest, neither pending nor sent, stands in the queue; else why not.
fn candidacy<'a>(
    guest: &'a Guest,
    dump: &'a Local,
    broken: Option<&Pending>,
    horizon: Time,
    force: bool,
) -> Result<Candidate<'a>, Item> {
    if let Some(broken) = broken {
        // Linked anew it would have to replace what lies there, and nothing is ever overwritten.
        let fault = broken.fault.as_deref().unwrap_or_default();
        let why = format!("its copy in the outbox is not good ({fault}): remove that one to have it linked again");
        return Err(Item { stuck: true, ..Item::new(&dump.id, Decision::NotGood, why) });
    }
    let on_its_way = guest.pending.iter().filter(|there| there.fault.is_none()).max_by_key(|d| (d.started, &d.id));
    if let Some(there) = on_its_way {
        return Err(if there.started < dump.started {
            Item::new(&dump.id, Decision::Pending, format!("waits until {}, which is pending, is sent", there.id))
        } else {
            Item::new(&dump.id, Decision::Superseded, format!("superseded by {}, which is pending", there.id))
        });
    }
    // A sent dump dated in the future would make every later one look old for years.
    let last = guest.sent.iter().filter(|sent| sent.started <= horizon).max_by_key(|sent| (sent.started, &sent.id));
    if let Some(last) = last.filter(|last| last.started >= dump.started) {
        return Err(Item::new(&dump.id, Decision::Superseded, format!("superseded by {}, which was sent", last.id)));
    }
    let staleness = |dump: &Local| last.map(|last| dump.started.since(last.started));
    let is_due = |dump: &Local| staleness(dump).is_none_or(|s| u64::try_from(s).unwrap_or(0) > guest.stale_after_s);
    let stale = staleness(dump);
    if !is_due(dump) && !force {
        let item = Item::new(&dump.id, Decision::NotDue, why::not_due(stale, guest.stale_after_s));
        return Err(Item { staleness_s: stale, cost: Some(dump.cost), ..item });
    }
    let good = || guest.local.iter().filter(|dump| dump.fault.is_none() && dump.started <= horizon);
    let due_since = good().filter(|dump| is_due(dump)).map(|dump| dump.finished).min();
    let known = good().map(|dump| dump.started).chain(guest.sent.iter().map(|sent| sent.started)).min();
    Ok(Candidate {
        guest,
        dump,
        staleness: stale,
        due: is_due(dump),
        sent_at: last.map(|last| last.at),
        due_since: due_since.unwrap_or(dump.finished),
        known_since: known.unwrap_or(dump.started),
        aged: None,
    })
}

/// Rule 3, ageing: a due guest that has waited through at least as many finished passes as guests are due goes ahead
/// within its priority. The guests that count are those of equal or higher priority that were known when its wait began:
/// else a stream of new guests, each ahead because it was never sent, could outrun the ageing for ever.
fn age(queue: &mut [Candidate], passes: &[Time]) {
    let mut passes = passes.to_vec();
    passes.sort_unstable();
    let mut by_priority: BTreeMap<Reverse<i64>, Vec<Time>> = BTreeMap::new();
    for candidate in queue.iter().filter(|candidate| candidate.due) {
        by_priority.entry(Reverse(candidate.guest.priority)).or_default().push(candidate.known_since);
    }
    let mut rivals: Vec<Time> = Vec::new();
    let mut aged: HashMap<i64, Vec<Time>> = HashMap::new();
    for (Reverse(priority), known) in by_priority {
        rivals.extend(known);
        rivals.sort_unstable();
        aged.insert(priority, rivals.clone());
    }
    for candidate in queue.iter_mut().filter(|candidate| candidate.due) {
        let waited = passes.len() - passes.partition_point(|pass| *pass <= candidate.due_since);
        let rivals = aged
            .get(&candidate.guest.priority)
            .map_or(0, |known| known.partition_point(|known| *known <= candidate.due_since));
        candidate.aged = (waited >= rivals.max(1)).then_some(waited);
    }
}

/// Rule 3, the order of the queue.
fn order<'a>(c: &Candidate<'a>) -> impl Ord + use<'a> {
    // `None` is less than `Some`: never sent goes first, and so does what was never sent at any time.
    (
        Reverse(c.guest.priority),
        Reverse(c.aged),
        c.staleness.map(Reverse),
        c.sent_at,
        c.dump.cost,
        &c.dump.id,
        &c.guest.key,
    )
}

/// Rules 4 to 6: walks the queue and takes what fits.
fn spend(queue: &[Candidate], budget: &mut Budget, options: &Options, items: &mut Vec<Item>) {
    // What `force` lets in counts as well: else a second run would find room that the first did not.
    let others_due = queue.len() > 1;
    let selected = || queue.iter().filter(|c| c.dump.selected);
    let (count, longest) = (selected().count(), selected().map(|c| c.staleness.unwrap_or(i64::MAX)).max());
    let mut rank = 0;
    for candidate in queue {
        let mut item = Item::new(&candidate.dump.id, Decision::NotSelected, "left out by the selection");
        item.staleness_s = candidate.staleness;
        item.cost = Some(candidate.dump.cost);
        if candidate.dump.selected {
            rank += 1;
            item.rank = Some(rank);
            (item.decision, item.why) = match budget.take(candidate.dump.cost, others_due, options.oversize) {
                Ok(taken) => (Decision::Linked, why::linked(candidate, taken, rank, (count, longest), options)),
                Err(over) => (Decision::OverLimit, why::over_limit(over, options)),
            };
            item.remaining = budget.remaining();
        }
        items.push(item);
    }
}
