//! Rule 3: the order in which candidates go.

use bak_common::calendar::Time;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{Guest, Local, Pending};

/// The dump that a guest would send.
pub struct Candidate<'a> {
    pub guest: &'a Guest,
    pub dump: &'a Local,
    /// What it would replace in the outbox.
    pub replaces: Option<&'a Pending>,
    /// In seconds; absent if no dump of the guest was ever sent.
    pub staleness: Option<i64>,
    pub due: bool,
    /// When something of this guest was sent last.
    pub sent_at: Option<Time>,
    /// When the dump was finished that first made the guest due.
    pub due_since: Time,
    /// Start of the oldest dump that is known of this guest.
    pub known_since: Time,
    /// Passes finished since `due_since`, if it goes ahead for them.
    pub aged: Option<usize>,
}

/// Brings the candidates into their order. `passes`: when passes were finished, the earliest first. `crowded`: an oversized
/// dump is on its way.
pub fn sort(queue: &mut [Candidate], passes: &[Time], crowded: bool) {
    age(queue, passes, crowded);
    queue.sort_by(|a, b| order(a).cmp(&order(b)));
}

/// Rule 3, ageing: a due guest that has waited through at least as many finished passes as guests are due goes ahead
/// within its priority. The guests that count are those of equal or higher priority that were known when its wait began:
/// else a stream of new guests, each ahead because it was never sent, could outrun the ageing for ever.
///
/// Where an oversized dump takes half of what can be carried, one pass is enough: first come, first served. Who had to wait
/// through as many passes as guests are due at half the speed, and then for as many others, would wait three times as long.
fn age(queue: &mut [Candidate], passes: &[Time], crowded: bool) {
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
        let enough = if crowded { 1 } else { rivals.max(1) };
        candidate.aged = (waited >= enough).then_some(waited);
    }
}

/// Rule 3, the order of the queue.
fn order<'a>(c: &Candidate<'a>) -> impl Ord + use<'a> {
    // `None` is less than `Some`: never sent goes first, and so does what was never sent at any time.
    (
        Reverse(c.guest.priority),
        // Longest wait first; of two that have waited through the same passes, who was there first.
        Reverse(c.aged.map(|passes| (passes, Reverse(c.due_since)))),
        c.staleness.map(Reverse),
        c.sent_at,
        c.dump.cost,
        &c.dump.id,
        &c.guest.key,
    )
}
