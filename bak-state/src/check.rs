//! What is wrong with the backups of each guest: a judgement for monitoring. Pure.
//!
//! The worst failure is a monitor that stays silent, the second worst is one that nobody believes any more. So:
//!
//! - What counts is not how old a dump is, but for how long the guest has needed a newer one. A guest that is CLEAN is as it
//!   was at its last dump's start, and may be so for months.
//! - Where it is not known since when a guest is due, it is since its last good dump; without one, for ever.
//! - CLEAN is believed only while somebody looks. A guest that was not heard of for longer than it may need a dump is gone
//!   if others of its node and driver were seen since, and does not alarm; if none were, nobody looks any more, which does.
//! - A time in the future proves nothing, and is a fault of its own.
//! - An off-site copy lags behind since the oldest dump that it lacks, and retention here may have removed that one: the
//!   database remembers it, as long as somebody observes with the store and the outboxes at hand.
//!
//! Beyond a limit is critical. Within it a failed attempt is a warning, and so is what cannot be read.

use bak_common::calendar::{SKEW_S, Time};
use bak_common::units::show_duration;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use crate::status::{Detail, Status};
use case::Case;

mod case;
#[cfg(test)]
mod tests;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    #[default]
    Ok,
    Warning,
    Critical,
}

/// One guest of the database.
#[derive(Clone, Debug)]
pub struct Guest {
    pub vm: String,
    pub status: Status,
    pub detail: Option<Detail>,
    /// Whether it is judged; the others only show that somebody looks.
    pub chosen: bool,
    /// Whether its claim is held.
    pub held: bool,
    /// When its claim was last taken.
    pub claimed_at: Option<Time>,
    pub max_age_s: u64,
    /// Starts of its good dumps in the store, in any order; `None` if no store was looked at.
    pub local: Option<Vec<Time>>,
    /// Where its dumps go.
    pub sync: Vec<Sync>,
}

/// One destination of a guest.
#[derive(Clone, Debug)]
pub struct Sync {
    pub dest: String,
    pub max_age_s: u64,
    /// Starts of its dumps that were sent there, in any order.
    pub sent: Vec<Time>,
    /// Whether one of its dumps waits in the outbox.
    pub pending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It has needed a dump for too long.
    Overdue,
    /// The last attempts to dump it failed.
    Failed,
    /// It is CLEAN, and there is no good dump.
    Missing,
    /// It is CLEAN, and the dump that made it so is not good or gone.
    Lost,
    /// Something is dated in the future.
    Future,
    /// An off-site copy lags behind for too long.
    Behind,
    /// Nobody has looked for too long.
    Unobserved,
    /// Something could not be read.
    Unreadable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub level: Level,
    pub what: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest: Option<String>,
    pub why: String,
}

impl Problem {
    pub fn new(level: Level, what: What, why: impl Into<String>) -> Self {
        Self { level, what, dest: None, why: why.into() }
    }
}

/// The judgement on one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub vm: String,
    pub status: &'static str,
    pub level: Level,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Start of its newest good dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_dump: Option<Time>,
    /// Since when it needs a dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Time>,
    /// Start of its newest dump that was sent, by destination.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub last_sent: BTreeMap<String, Time>,
    /// Attempts in a row that failed.
    pub failures: u32,
    pub problems: Vec<Problem>,
    /// How it stands where nothing is wrong.
    pub why: String,
}

/// The judgement on all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What concerns no single guest.
    pub general: Vec<Problem>,
    /// Of the guests chosen, by name.
    pub guests: Vec<Verdict>,
}

impl Judgement {
    pub fn level(&self) -> Level {
        let all = self.general.iter().map(|problem| problem.level).chain(self.guests.iter().map(|guest| guest.level));
        all.max().unwrap_or_default()
    }

    pub fn count(&self, level: Level) -> usize {
        self.guests.iter().filter(|guest| guest.level == level).count()
    }
}

/// Those who are observed together: a node's guests of one driver.
type Group = (Option<String>, Option<String>);

fn group(guest: &Guest) -> Group {
    let detail = guest.detail.as_ref();
    (detail.and_then(|detail| detail.node.clone()), detail.and_then(|detail| detail.driver.clone()))
}

/// When somebody looked last.
#[derive(Default)]
struct Looks {
    observed: BTreeMap<Group, Time>,
    any: Option<Time>,
}

impl Looks {
    fn of(guests: &[Guest], now: Time) -> Self {
        let mut looks = Self::default();
        for guest in guests {
            let seen = guest.detail.as_ref().and_then(|detail| past(detail.seen, now));
            if let Some(seen) = seen {
                let newest = looks.observed.entry(group(guest)).or_insert(seen);
                *newest = seen.max(*newest);
                looks.any = looks.any.max(Some(seen));
            }
        }
        looks
    }

    /// Only observations count: that one guest was claimed says nothing of another.
    fn last(&self, guest: &Guest) -> Option<Time> {
        // Of a guest without details nobody knows whose it is.
        if guest.detail.is_some() { self.observed.get(&group(guest)).copied() } else { self.any }
    }
}

fn horizon(now: Time) -> Time {
    now.plus(SKEW_S)
}

fn past(time: Option<Time>, now: Time) -> Option<Time> {
    time.filter(|time| *time <= horizon(now))
}

fn newest(times: &[Time], now: Time) -> Option<Time> {
    times.iter().copied().filter(|time| *time <= horizon(now)).max()
}

fn over(since: Time, now: Time, limit_s: u64) -> bool {
    u64::try_from(now.since(since)).is_ok_and(|age| age > limit_s)
}

fn ago(since: Time, now: Time) -> String {
    show_duration(now.since(since).max(0))
}

fn limit(seconds: u64) -> String {
    format!("(limit {})", show_duration(i64::try_from(seconds).unwrap_or(i64::MAX)))
}

/// Judges all guests that are chosen.
pub fn judge(guests: &[Guest], now: Time) -> Judgement {
    let looks = Looks::of(guests, now);
    let mut unobserved: BTreeMap<Group, (Option<Time>, u64, BTreeSet<&str>)> = BTreeMap::new();
    let mut judgement = Judgement::default();
    for guest in guests.iter().filter(|guest| guest.chosen) {
        let mut case = Case::new(guest, now);
        if guest.status != Status::Archived {
            let unheard = case.heard.is_none_or(|heard| over(heard, now, guest.max_age_s));
            let last = looks.last(guest);
            let looked = last.is_some_and(|last| !over(last, now, guest.max_age_s));
            if unheard && !looked {
                let entry = unobserved.entry(group(guest)).or_insert((last, guest.max_age_s, BTreeSet::new()));
                entry.1 = entry.1.min(guest.max_age_s);
                entry.2.insert(&guest.vm);
            }
            // It stays gone when nobody looks any more.
            let passed = case.heard.zip(last).is_some_and(|(heard, last)| over(heard, last, guest.max_age_s));
            // One that was never seen and is to be dumped was put there by somebody who wants that.
            let wanted = case.heard.is_none() && guest.status.is_due();
            // Somebody dumps it, or died of that: it was there.
            let wanted = wanted || guest.status == Status::BackupInProgress;
            case.gone(unheard && (looked || passed) && !wanted);
            case.future();
            if guest.status.is_due() {
                case.due()
            } else {
                case.clean()
            }
            guest.sync.iter().for_each(|sync| case.sync(sync));
        }
        judgement.guests.push(case.verdict());
    }
    judgement.guests.sort_by(|a, b| a.vm.cmp(&b.vm));
    judgement.general =
        unobserved.iter().map(|(group, (last, limit_s, who))| stale(group, *last, *limit_s, who, now)).collect();
    judgement
}

fn stale(group: &Group, last: Option<Time>, limit_s: u64, who: &BTreeSet<&str>, now: Time) -> Problem {
    let place = match group {
        (None, None) => String::new(),
        (Some(node), None) => format!(" on {node}"),
        (None, Some(driver)) => format!(" by the driver {driver}"),
        (Some(node), Some(driver)) => format!(" on {node} by the driver {driver}"),
    };
    let guests = if who.len() == 1 { "guest" } else { "guests" };
    let why = match last {
        Some(last) => {
            let ago = ago(last, now);
            format!("{} {guests}{place} not observed for {ago} {}, last at {last}", who.len(), limit(limit_s))
        }
        None => format!("{} {guests}{place} never observed", who.len()),
    };
    Problem::new(Level::Critical, What::Unobserved, why)
}
