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
    for guest in &facts.guests {
        for dump in guest.pending.iter().filter(|dump| dump.counts() && consider::left_over(guest, dump).is_none()) {
            budget.pending(dump.expected, dump.cost);
        }
    }
    budget.share(share(queue, facts, passes, &budget));
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
/// it gets what the others leave.
fn share(queue: &[Candidate], facts: &Facts, passes: &[Time], budget: &Budget) -> Share {
    let oversized = facts.guests.iter().flat_map(|guest| &guest.pending);
    let oversized = oversized.filter(|dump| dump.counts() && budget.is_oversized(dump.expected));
    let Some(since) = oversized.map(|dump| dump.since).min() else {
        // What `force` lets in counts as well: else a second run would find room that the first did not.
        return if queue.len() > 1 { Share::Half } else { Share::Whole };
    };
    let carried_on_in = passes.len() - passes.partition_point(|pass| *pass <= since);
    let needed = queue.iter().any(|candidate| budget.needs_more_than_half(candidate.dump.cost));
    if carried_on_in % 2 == 1 && needed { Share::Nothing } else { Share::Half }
}
