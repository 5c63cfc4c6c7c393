//! Rules 4 to 7: walks the queue and takes what fits.
//!
//! A second run must link nothing new. What was passed over may fit only once a replacement has freed room, so the walk is
//! repeated until nothing is replaced any more; else the budget only ever shrinks.

use bak_common::calendar::Time;

use super::queue::Candidate;
use super::{Decision, Facts, Item, Options, consider, why};
use crate::budget::{Ask, Budget, Left, Over, Share, Taken};

/// An item for each candidate, in order, and what is left of the limits.
pub fn spend(queue: &[Candidate], facts: &Facts, passes: &[Time], options: &Options) -> (Vec<Item>, Vec<Left>) {
    let mut budget = Budget::new(&facts.caps, options.oversize, options.overdraft);
    let pending = || {
        let each = facts.guests.iter().flat_map(|guest| guest.pending.iter().map(move |dump| (guest, dump)));
        // What a crash left beside its replacement leaves in this run.
        each.filter(|(guest, dump)| dump.counts() && consider::left_over(guest, dump).is_none()).map(|(_, dump)| dump)
    };
    for dump in pending() {
        budget.pending(dump.expected, dump.cost);
    }
    let oversized = pending().filter(|dump| budget.is_oversized(dump.expected));
    budget.share(share(queue, oversized.map(|dump| dump.since).min(), passes, &budget));
    let mut items: Vec<Item> = queue.iter().map(unselected).collect();
    let mut waiting: Vec<usize> = (0..queue.len()).filter(|at| queue[*at].dump.selected).collect();
    for (rank, at) in waiting.iter().enumerate() {
        items[*at].rank = Some(rank as u64 + 1);
    }
    let due = why::Due::of(waiting.iter().map(|at| &queue[*at]));
    loop {
        let mut freed = false;
        waiting.retain(|at| {
            let (candidate, item) = (&queue[*at], &mut items[*at]);
            let verdict = take(candidate, &mut budget);
            item.remaining = budget.remaining();
            let (taken, replaces) = (verdict.is_ok(), candidate.replaces);
            (item.decision, item.why) = match verdict {
                Ok(taken) => (Decision::Linked, why::linked(candidate, taken, item.rank, &due, options)),
                Err(over) => (Decision::OverLimit, why::over_limit(candidate, over, options)),
            };
            item.place = replaces.filter(|_| taken).map(|older| (older.since, older.rank));
            freed |= taken && replaces.is_some();
            !taken
        });
        if !freed {
            return (items, budget.left());
        }
    }
}

fn unselected(candidate: &Candidate) -> Item {
    Item {
        staleness_s: candidate.staleness,
        cost: Some(candidate.dump.cost),
        size: Some(candidate.dump.size),
        ..Item::new(&candidate.dump.id, Decision::NotSelected, "left out by the selection")
    }
}

fn take(candidate: &Candidate, budget: &mut Budget) -> Result<Taken, Over> {
    let replaces = candidate.replaces.filter(|older| older.counts()).map(|older| (older.expected, older.cost));
    budget.take(&Ask { cost: candidate.dump.cost, replaces, priority: candidate.guest.priority })
}

/// What an oversized dump is charged of a pass: half of it; all of it if nothing else is due; and in every second pass
/// since it is on its way nothing, where a dump is due that fits into a whole pass but not beside its half. In such a pass
/// it gets what the others leave. `oversized_since`: since when one is on its way.
fn share(queue: &[Candidate], oversized_since: Option<Time>, passes: &[Time], budget: &Budget) -> Share {
    let Some(since) = oversized_since else {
        // What `force` lets in counts as well: else a second run would find room that the first did not.
        return if queue.len() > 1 { Share::Half } else { Share::Whole };
    };
    let carried_on_in = passes.len() - passes.partition_point(|pass| *pass <= since);
    let needed = queue.iter().any(|candidate| budget.needs_more_than_half(candidate.dump.cost));
    if carried_on_in % 2 == 1 && needed { Share::Nothing } else { Share::Half }
}
