//! The plan for one destination: which dumps go into its outbox, in which order, and for every other dump why not. Pure.
//!
//! Each guest has at most one candidate, its newest good dump. Candidates that are due form a queue; the queue is walked,
//! and what doesn't fit the budget is passed over for the next. [`consider`] finds the candidates, [`queue`] brings them
//! into order, [`spend`] walks.
//!
//! What can go wrong is starvation. What is promised, where each pass carries what it was given, at the cost expected:
//! with N guests of equal priority known when one of them begins to wait,
//! - a guest whose dumps are no larger than a pass has one tried within 2 N passes, whatever arrives meanwhile and whatever
//!   is on its way;
//! - an oversized dump is tried within 2 N passes in which no other oversized one is on its way: they go one after the
//!   other, and each is on its way for at most 2·⌈size / half a pass⌉ passes and one for each guest known when it was
//!   linked;
//! - the head of the queue goes under a larger limit wherever it goes under a smaller one, unless something pending is
//!   larger than a pass under the smaller one: under the larger it may be none, and so give way in no pass.
//!
//! Four rules see to it: who has waited longest overtakes, at once where an oversized dump is on its way ([`queue::age`]);
//! the head goes even if it is larger than a pass; an oversized dump on its way leaves half of each pass to others, and all
//! of it, if they need it, in every second one and to those that waited before it came ([`spend`]); and what fails to be sent doesn't use up the budget of the others. A higher priority comes first always:
//! guests of a lower one get what it leaves, if it leaves anything.

use bak_common::calendar::Time;
use bak_common::name::DumpId;
use bak_common::record::{GuestKey, LinkNote};
use serde::Serialize;
use std::collections::HashMap;

use crate::budget::{Cap, Left};
use crate::cost::Source;

mod consider;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod old_script;
#[cfg(test)]
mod on_the_way;
#[cfg(test)]
mod passes;
#[cfg(test)]
mod properties;
mod queue;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod speed;
mod spend;
mod why;

/// A dump of the store.
#[derive(Clone, Debug)]
pub struct Local {
    pub id: DumpId,
    pub started: Time,
    pub finished: Time,
    /// Bytes of its files.
    pub size: u64,
    /// Expected bytes on the wire.
    pub cost: u64,
    /// What the cost was judged by.
    pub source: Source,
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
    pub size: u64,
    /// What it was expected to cost when it was linked: decides whether it is larger than a pass.
    pub expected: u64,
    /// What it still needs of that.
    pub cost: u64,
    /// Since when it, or one that it replaced, is there; and its rank then. They are its place in bak-sync's order.
    pub since: Time,
    pub rank: Option<u64>,
    /// Attempts that were begun. 0: it may still be replaced.
    pub tries: u64,
    /// Why the last attempt to send it failed, if it did.
    pub error: Option<String>,
    /// Why it is not good.
    pub fault: Option<String>,
}

impl Pending {
    /// Whether it is on its way, and so uses the budget up: what failed goes last, and what is not good not at all.
    pub fn counts(&self) -> bool {
        self.fault.is_none() && self.error.is_none()
    }

    /// Whether bak-sync may have sent something of it.
    pub fn begun(&self) -> bool {
        self.tries > 0 || self.error.is_some()
    }
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
    /// It leaves the outbox, as a newer one takes its place.
    Replaced,
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
            Decision::Replaced => "replaced",
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes left of the tightest limit after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
    /// The dump that takes its place in the outbox. It leaves only once that one is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<DumpId>,
    /// The place in bak-sync's order that it takes over from what it replaces.
    #[serde(skip)]
    place: Option<(Time, Option<u64>)>,
    /// It should go and can't, and only a person can help.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stuck: bool,
}

impl Item {
    fn new(id: &DumpId, decision: Decision, why: impl Into<String>) -> Self {
        let (id, why) = (id.clone(), why.into());
        let (staleness_s, cost, size, remaining) = (None, None, None, None);
        let (rank, replaced_by, place, stuck) = (None, None, None, false);
        Self { id, decision, why, rank, staleness_s, cost, size, remaining, replaced_by, place, stuck }
    }

    /// The annotation that a record carries. What replaces another takes over its time and rank: else a guest that is
    /// dumped before every pass would be at the end of bak-sync's order in each.
    pub fn note(&self, now: Time) -> LinkNote {
        let (at, rank) = self.place.unwrap_or((now, self.rank));
        LinkNote {
            decision: self.decision.as_str().to_owned(),
            why: self.why.clone(),
            at,
            rank,
            staleness_s: self.staleness_s,
            cost: self.cost,
            size: self.size,
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

/// Makes the plan.
pub fn plan(facts: &Facts, options: &Options) -> Plan {
    let mut items = Vec::new();
    let mut queue: Vec<queue::Candidate> =
        facts.guests.iter().filter_map(|guest| consider::consider(guest, options, &mut items)).collect();
    let mut passes = facts.passes.clone();
    passes.sort_unstable();
    queue::sort(&mut queue, &passes, spend::is_crowded(facts, options));
    let (spent, left) = spend::spend(&queue, facts, &passes, options);
    let replaced: HashMap<&DumpId, &DumpId> = queue
        .iter()
        .zip(&spent)
        .filter(|(_, item)| item.decision == Decision::Linked)
        .filter_map(|(candidate, item)| Some((&candidate.replaces?.id, &item.id)))
        .collect();
    for item in &mut items {
        if let Some(newer) = replaced.get(&item.id) {
            *item = Item { cost: item.cost, size: item.size, ..consider::replaced(&item.id, newer) };
        }
    }
    items.extend(spent);
    items.sort_unstable_by(|a, b| {
        let place = |item: &Item| match item.decision {
            Decision::Linked => (0, item.rank),
            Decision::OverLimit => (1, item.rank),
            _ => (2, None),
        };
        place(a).cmp(&place(b)).then_with(|| (&a.id, &a.why).cmp(&(&b.id, &b.why)))
    });
    Plan { items, left }
}
