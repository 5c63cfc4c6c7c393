//! Rules 4 to 7: walks the queue and takes what fits.
//!
//! A second run must link nothing new, and more room must never keep the head waiting. So replacements that cost less than
//! what they replace go first: they fit under any limit, and only make room. Then the queue is walked, and the budget
//! shrinks with every dump taken but one: where a dump that a pass can carry replaces an oversized one, it may grow, and the
//! walk begins anew.

use bak_common::calendar::Time;

use super::queue::Candidate;
use super::{Decision, Facts, Guest, Item, Options, Pending, consider, why};
use crate::budget::{Ask, Budget, Left, Over, Share, Taken};

/// Whether an oversized dump is on its way, so that others have to share what it leaves.
pub fn is_crowded(facts: &Facts, options: &Options) -> bool {
    let budget = Budget::new(&facts.caps, options.oversize, options.overdraft);
    on_their_way(facts).iter().any(|(_, dump)| budget.is_oversized(dump.expected))
}

/// An item for each candidate, in order, and what is left of the limits.
pub fn spend(queue: &[Candidate], facts: &Facts, passes: &[Time], options: &Options) -> (Vec<Item>, Vec<Left>) {
    let mut budget = Budget::new(&facts.caps, options.oversize, options.overdraft);
    let mut pending = on_their_way(facts);
    for (_, dump) in &pending {
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
        budget.share(share(queue, &pending, facts, passes, &budget));
        let mut grown = false;
        waiting.retain(|at| {
            let (candidate, item) = (&queue[*at], &mut items[*at]);
            let cheaper = candidate.replaces.is_some_and(|old| is_cheaper(candidate, old, &budget));
            if grown || (cheaper_only && !cheaper) {
                return true;
            }
            let verdict = take(candidate, &mut budget);
            item.remaining = budget.remaining();
            item.stuck = verdict.as_ref().is_err_and(Over::is_hopeless);
            let taken = verdict.is_ok();
            (item.decision, item.why) = match verdict {
                Ok(taken) => (Decision::Linked, why::linked(candidate, taken, item.rank, &due, options)),
                Err(over) => (Decision::OverLimit, why::over_limit(candidate, over, options)),
            };
            if let Some(old) = candidate.replaces.filter(|_| taken) {
                item.place = Some((old.since, old.rank));
                if budget.is_oversized(old.expected) && !budget.is_oversized(candidate.dump.cost) {
                    pending.retain(|(_, dump)| dump.id != old.id);
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

/// What uses the budget up, and whose it is. What a crash left beside its replacement leaves in this run.
fn on_their_way(facts: &Facts) -> Vec<(&Guest, &Pending)> {
    let each = facts.guests.iter().flat_map(|guest| guest.pending.iter().map(move |dump| (guest, dump)));
    each.filter(|(guest, dump)| dump.counts() && consider::left_over(guest, dump).is_none()).collect()
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

/// What an oversized dump is charged of a pass: half of it; all of it if nothing else is due; and nothing in the passes that
/// belong to dumps which fit into a whole pass but not beside its half. In such a pass it gets what the others leave.
///
/// Theirs is every second pass since it is on its way. Those that waited before it came have all passes until they are
/// gone, but no more than there were guests then: it has nothing to ask of who was there first.
fn share(
    queue: &[Candidate],
    pending: &[(&Guest, &Pending)],
    facts: &Facts,
    passes: &[Time],
    budget: &Budget,
) -> Share {
    let oversized = pending.iter().filter(|(_, dump)| budget.is_oversized(dump.expected));
    let Some((owner, large)) = oversized.min_by_key(|(_, dump)| (dump.since, &dump.id)) else {
        // What `force` lets in counts as well: else a second run would find room that the first did not.
        return if queue.len() > 1 { Share::Half } else { Share::Whole };
    };
    let carried_on_in = passes.len() - passes.partition_point(|pass| *pass <= large.since);
    let mut needing = queue.iter().filter(|candidate| budget.needs_more_than_half(candidate.dump.cost)).peekable();
    let needed = needing.peek().is_some();
    let waited = needing.any(|c| c.due_since <= large.since && c.guest.priority >= owner.priority);
    let first = waited && (1..=known(facts, owner.priority, large.since)).contains(&carried_on_in);
    if needed && (carried_on_in % 2 == 1 || first) { Share::Nothing } else { Share::Half }
}

/// How many guests of at least this priority had a dump by `then`.
fn known(facts: &Facts, priority: i64, then: Time) -> usize {
    let by_then = |guest: &&Guest| {
        let here = guest.local.iter().map(|dump| dump.started).chain(guest.pending.iter().map(|dump| dump.started));
        let mut starts = here.chain(guest.sent.iter().map(|dump| dump.started));
        guest.priority >= priority && starts.any(|started| started <= then)
    };
    facts.guests.iter().filter(by_then).count()
}
