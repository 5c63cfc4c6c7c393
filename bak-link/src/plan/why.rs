//! The reasons, in words.

use bak_common::units::{Period, show_duration, show_size};

use super::queue::Candidate;
use super::{Options, Pending};
use crate::budget::{Over, Taken, show_limit};

/// How many dumps are due, and how stale the most stale of them is; nothing is staler than what was never sent.
pub struct Due {
    count: usize,
    longest: Option<i64>,
}

impl Due {
    pub fn of<'a>(queue: impl Iterator<Item = &'a Candidate<'a>>) -> Self {
        let staleness: Vec<i64> = queue.map(|candidate| candidate.staleness.unwrap_or(i64::MAX)).collect();
        Self { count: staleness.len(), longest: staleness.into_iter().max() }
    }
}

/// Why a dump goes, and why in this place.
pub fn linked(c: &Candidate, taken: Taken, rank: Option<u64>, due: &Due, options: &Options) -> String {
    let place = format!("{} of {} due", rank.unwrap_or_default(), due.count);
    let mut why = match (c.due, c.aged, c.staleness) {
        (false, _, stale) => format!("forced; {}", not_due(stale, c.guest.stale_after_s)),
        (true, Some(1), _) => format!("has waited for a pass, {place}"),
        (true, Some(passes), _) => format!("has waited for {passes} passes, {place}"),
        (true, None, None) => format!("never sent, {place}"),
        (true, None, stale) if stale == due.longest && due.count > 1 => format!("most stale of {} due", due.count),
        (true, None, Some(stale)) => format!("stale by {}, {place}", show_duration(stale)),
    };
    if c.guest.priority != 0 {
        why.push_str(&format!("; priority {}", c.guest.priority));
    }
    if let Some(older) = c.replaces {
        why.push_str(&format!("; replaces {}, of which nothing was sent", older.id));
    }
    if let Taken::Oversize(limit) = taken {
        let how = if options.overdraft { "at once, as an overdraft" } else { "in slices" };
        why.push_str(&format!("; larger than {}: carried {how}", show_limit(limit)));
    }
    explain_cost(&mut why, c);
    why
}

fn explain_cost(why: &mut String, c: &Candidate) {
    if let Some(source) = c.dump.source.explain(c.dump.cost) {
        why.push_str("; ");
        why.push_str(&source);
    }
}

pub fn over_limit(c: &Candidate, over: Over, options: &Options) -> String {
    let never = match (over.never, over.limit.period) {
        (false, _) => "",
        (true, Period::Pass) if options.oversize => {
            "; larger than any pass, it goes when it is first and nothing is pending"
        }
        (true, Period::Pass) => "; it is larger than the whole limit",
        (true, _) => "; it is larger than the whole limit, so it stays here until that is raised",
    };
    let mut why = format!("over the limit of {} by {}{never}", show_limit(over.limit), show_size(over.by));
    if let Some(older) = c.replaces {
        why.push_str(&format!("; {} stays pending", older.id));
    }
    explain_cost(&mut why, c);
    why
}

/// `not due: 0.4 d of 1 d`.
pub fn not_due(staleness: Option<i64>, stale_after_s: u64) -> String {
    let (is, of) = (staleness.unwrap_or(0), i64::try_from(stale_after_s).unwrap_or(i64::MAX));
    let days = |seconds: i64| {
        let text = format!("{:.1}", seconds as f64 / 86_400.0);
        format!("{} d", text.strip_suffix(".0").unwrap_or(&text))
    };
    // Both in one unit, so that they compare at a glance.
    let (is, of) = if of >= 86_400 { (days(is), days(of)) } else { (show_duration(is), show_duration(of)) };
    format!("not due: {is} of {of}")
}

pub fn pending(dump: &Pending) -> String {
    match (&dump.error, dump.tries) {
        (Some(error), tries) => format!("waits for the next pass; the last attempt ({tries}) failed: {error}"),
        (None, 0) => "waits for bak-sync".to_owned(),
        (None, tries) if dump.cost > dump.expected => {
            format!(
                "is being sent and dearer than expected: up to {} are left; attempts so far: {tries}",
                show_size(dump.cost)
            )
        }
        (None, tries) => {
            let (left, all) = (show_size(dump.cost), show_size(dump.expected));
            format!("is being sent: {left} of {all} are left; attempts so far: {tries}")
        }
    }
}
