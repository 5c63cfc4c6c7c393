//! Rules 4 to 7: walks the queue and takes what fits.
//!
//! A second run must link nothing new, and more room must never keep the head waiting. So replacements that cost less than
//! what they replace go first: they fit under any limit, and only make room. Then the queue is walked, and the budget
//! shrinks with every dump taken but one: where a dump that a pass can carry replaces an oversized one, it may grow, and the
//! walk begins anew.

use bak_common::calendar::Time;

use super::queue::Candidate;
use super::{Decision, Facts, Item, Options, Pending, consider, why};
use crate::budget::{Ask, Budget, Left, Over, Share, Taken};

/// An item for each candidate, in order, and what is left of the limits.
pub fn spend(queue: &[Candidate], facts: &Facts, passes: &[Time], options: &Options) -> (Vec<Item>, Vec<Left>) {
    let mut budget = Budget::new(&facts.caps, options.oversize, options.overdraft);
    let mut pending = on_their_way(facts);
    for dump in &pending {
        budget.pending(dump.expected, dump.cost);
    }
    let mut items: Vec<Item> = queue.iter().map(unselected).collect();
    let mut waiting: Vec<usize> = (0..queue.len()).filter(|at| queue[*at].dump.selected).collect();
    for (rank, at) in waiting.iter().enumerate() {
        items[*at].rank = Some(rank as u64 + 1);
    }
    let due = why::Due::of(waiting.iter().map(|at| &queue[*at]));
    let mut cheaper_only = true;
    loop {
        budget.share(share(queue, &pending, passes, &budget));
        let mut grown = false;
        waiting.retain(|at| {
            let (candidate, item) = (&queue[*at], &mut items[*at]);
            let cheaper = candidate.replaces.is_some_and(|old| is_cheaper(candidate, old, &budget));
            if grown || (cheaper_only && !cheaper) {
                return true;
            }
            let verdict = take(candidate, &mut budget);
            item.remaining = budget.remaining();
            let taken = verdict.is_ok();
            (item.decision, item.why) = match verdict {
                Ok(taken) => (Decision::Linked, why::linked(candidate, taken, item.rank, &due, options)),
                Err(over) => (Decision::OverLimit, why::over_limit(candidate, over, options)),
            };
            if let Some(old) = candidate.replaces.filter(|_| taken) {
                item.place = Some((old.since, old.rank));
                if budget.is_oversized(old.expected) && !budget.is_oversized(candidate.dump.cost) {
                    pending.retain(|dump| dump.id != old.id);
                    grown = true;
                }
            }
            !taken
        });
        if !cheaper_only && !grown {
            return (items, budget.left());
        }
        cheaper_only = false;
    }
}

/// What uses the budget up. What a crash left beside its replacement leaves in this run.
fn on_their_way(facts: &Facts) -> Vec<&Pending> {
    let each = facts.guests.iter().flat_map(|guest| guest.pending.iter().map(move |dump| (guest, dump)));
    let there = each.filter(|(guest, dump)| dump.counts() && consider::left_over(guest, dump).is_none());
    there.map(|(_, dump)| dump).collect()
}

fn unselected(candidate: &Candidate) -> Item {
    Item {
        staleness_s: candidate.staleness,
        cost: Some(candidate.dump.cost),
        size: Some(candidate.dump.size),
        ..Item::new(&candidate.dump.id, Decision::NotSelected, "left out by the selection")
    }
}

/// Whether a dump only makes room when it replaces `old`. One that a pass can carry and an oversized one, of which a pass
/// carries a share, do not compare.
fn is_cheaper(candidate: &Candidate, old: &Pending, budget: &Budget) -> bool {
    let alike = budget.is_oversized(old.expected) == budget.is_oversized(candidate.dump.cost);
    alike && candidate.dump.cost <= old.cost
}

fn take(candidate: &Candidate, budget: &mut Budget) -> Result<Taken, Over> {
    let replaces = candidate.replaces.map(|older| (older.expected, older.cost));
    budget.take(&Ask { cost: candidate.dump.cost, replaces, priority: candidate.guest.priority })
}

/// What an oversized dump is charged of a pass: half of it; all of it if nothing else is due; and in every second pass
/// since it is on its way nothing, where a dump is due that fits into a whole pass but not beside its half. In such a pass
/// it gets what the others leave.
fn share(queue: &[Candidate], pending: &[&Pending], passes: &[Time], budget: &Budget) -> Share {
    let oversized = pending.iter().filter(|dump| budget.is_oversized(dump.expected));
    let Some(since) = oversized.map(|dump| dump.since).min() else {
        // What `force` lets in counts as well: else a second run would find room that the first did not.
        return if queue.len() > 1 { Share::Half } else { Share::Whole };
    };
    let carried_on_in = passes.len() - passes.partition_point(|pass| *pass <= since);
    let needed = queue.iter().any(|candidate| budget.needs_more_than_half(candidate.dump.cost));
    if carried_on_in % 2 == 1 && needed { Share::Nothing } else { Share::Half }
}
