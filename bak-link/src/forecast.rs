//! The planner run forward: when each dump will go, how stale each guest will be, how much will wait. Pure.
//!
//! It is the same [`plan`](crate::plan::plan) that decides each pass; what is guessed is only what it decides on: the
//! dumps that are to come ([`expect`]), the moments of the passes ([`rhythm`]), and what a pass carries ([`carry`]). The
//! same limits hold, with what the ledger counted. Nothing fails, dumps that wait stay in the store until they or newer
//! ones have gone, and limits stay as they are; every guess beyond that is stated where it is made.
//!
//! **Staleness** is taken at the end of each pass: what the pass left. A guest of which nothing was ever sent has none;
//! there the time since its first dump stands for it.

use bak_common::calendar::{Time, Zone};
use bak_common::name::DumpId;
use bak_common::units::Limit;
use std::collections::HashMap;

use crate::cost::Past;
use crate::plan;

mod carry;
mod expect;
#[cfg(test)]
mod golden;
mod play;
#[cfg(test)]
mod properties;
mod rhythm;
#[cfg(test)]
mod samples;
mod search;
mod shelf;
mod stage;

pub use play::{PassPlayed, Sending};
pub use search::{Smallest, spell};

use play::{Played, play};
use stage::Stage;
pub use stage::too_often;

/// A dump that is known of a guest, from wherever.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: DumpId,
    pub started: Time,
    pub finished: Time,
    pub bytes: u64,
    pub good: bool,
}

/// What one dump that was sent took on the wire, both ways.
#[derive(Clone, Debug)]
pub struct Carried {
    pub started: Time,
    pub bytes: u64,
    pub wire: u64,
}

/// How far a pending dump has come.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    pub linked: Time,
    pub rank: u64,
    pub carried: u64,
}

/// One guest: what the planner knows of it, and what tells of its future.
#[derive(Clone, Debug)]
pub struct Guest {
    pub plan: plan::Guest,
    /// Its dumps in the store, the outbox and the history, in any order.
    pub known: Vec<Known>,
    pub wire: Vec<Carried>,
    /// What costs are judged by, and the format of its dumps; none where they cost their size.
    pub past: Option<(Past, String)>,
    /// Of its pending dumps.
    pub begun: HashMap<DumpId, Begun>,
    /// How stale it may be.
    pub target_s: u64,
}

/// Everything that a forecast is made from.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub guests: Vec<Guest>,
    pub limits: Vec<Limit>,
    /// When the passes so far began and finished.
    pub passes: Vec<(Time, Time)>,
    /// What the ledger counted: when, and bytes both ways.
    pub traffic: Vec<(Time, u64)>,
    /// What a pass takes on the wire beside its dumps.
    pub overhead: u64,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// As for a plan now.
    pub plan: plan::Options,
    pub zone: Zone,
    /// How far ahead, in seconds.
    pub horizon_s: i64,
    /// Seconds between two passes, instead of what the ledger shows.
    pub passes_s: Option<i64>,
}

/// What is to come of one guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    pub rhythm: String,
    /// Why no more dumps of it are expected.
    pub stopped: Option<String>,
    /// Why its dumps can never go.
    pub never: Option<String>,
    /// Of its newest dump, and what the planner expects one of it to cost.
    pub bytes: u64,
    pub cost: u64,
    pub made: u64,
    pub sent: u64,
    pub superseded: u64,
    pub waiting: u64,
    /// Absent if there is no pass that counts.
    pub median_s: Option<i64>,
    pub worst_s: Option<i64>,
    pub target_s: u64,
}

impl Outlook {
    /// Whether it is never staler than it may be; `None` if no pass shows it.
    pub fn kept(&self) -> Option<bool> {
        let within = |worst: i64| u64::try_from(worst).unwrap_or(0) <= self.target_s;
        if self.never.is_some() { Some(false) } else { self.worst_s.map(within) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    pub from: Time,
    pub until: Time,
    /// From when on staleness counts: later than `from` if somebody is staler now than they may be.
    pub judged_from: Time,
    /// When passes happen, for people.
    pub rhythm: String,
    pub passes: Vec<PassPlayed>,
    /// In the order in which they arrive.
    pub sends: Vec<Sending>,
    /// As in the facts.
    pub guests: Vec<Outlook>,
    /// Whether what waits does not grow; `None` where there are too few passes to tell.
    pub stable: Option<bool>,
    /// For each period with a limit, the smallest that keeps everybody within their target.
    pub smallest: Vec<Smallest>,
}

/// Runs the planner forward from `options.plan.now`.
pub fn forecast(facts: &Facts, options: &Options) -> Forecast {
    let stage = Stage::new(facts, options);
    let played = play(&stage, &facts.limits, stage.until, false);
    let guests = (0..facts.guests.len()).map(|at| outlook(facts, &stage, &played, at)).collect();
    Forecast {
        from: options.plan.now,
        until: stage.until,
        judged_from: stage.judged_from,
        rhythm: stage.rhythm.clone(),
        stable: stable(&played.passes),
        smallest: search::smallest(&stage, &facts.limits),
        guests,
        passes: played.passes,
        sends: played.sends,
    }
}

fn outlook(facts: &Facts, stage: &Stage, played: &Played, at: usize) -> Outlook {
    let guest = &stage.guests[at];
    let count = &played.counts[at];
    let newest = facts.guests[at].known.iter().filter(|dump| dump.good).max_by_key(|dump| dump.started);
    let mut lags = played.lags[at].clone();
    lags.sort_unstable();
    Outlook {
        rhythm: guest.rhythm.clone(),
        stopped: guest.stopped.clone(),
        never: stage.never(at, &facts.limits),
        bytes: newest.map_or(0, |dump| dump.bytes),
        cost: guest.costs.0,
        made: count.made,
        sent: count.sent,
        superseded: count.superseded,
        waiting: count.waiting,
        median_s: lags.get(lags.len() / 2).copied(),
        worst_s: lags.last().copied(),
        target_s: guest.target_s,
    }
}

/// Whether what waits after a pass does not grow: its greatest amount in the last third of the passes is at most a
/// twentieth above that in the third before; the first third is for what waits today.
fn stable(passes: &[PassPlayed]) -> Option<bool> {
    let third = passes.len() / 3;
    if third < 2 {
        return None;
    }
    let most = |passes: &[PassPlayed]| passes.iter().map(|pass| pass.waiting).max().unwrap_or(0);
    let (second, last) =
        (most(&passes[passes.len() - 2 * third..passes.len() - third]), most(&passes[passes.len() - third..]));
    Some(last <= second.saturating_add(second / 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_grows_or_does_not() {
        let table: &[(&str, &[u64], Option<bool>)] = &[
            ("nothing waits", &[0; 6], Some(true)),
            ("less and less", &[90, 80, 40, 30, 10, 10], Some(true)),
            ("up to a level", &[0, 50, 90, 100, 100, 100], Some(true)),
            ("a little more is no more", &[0, 0, 100, 100, 105, 90], Some(true)),
            ("more and more", &[0, 10, 20, 30, 40, 50], Some(false)),
            ("from nothing", &[9, 9, 0, 0, 1, 0], Some(false)),
            ("waves", &[0, 50, 0, 50, 0, 50], Some(true)),
            ("too few", &[0, 1, 2, 3, 4], None),
        ];
        for (what, waits, expected) in table {
            let pass = |waiting: &u64| PassPlayed {
                at: samples::at(1, 0),
                sent: 0,
                carried: 0,
                waiting_dumps: 0,
                waiting: *waiting,
            };
            assert_eq!(stable(&waits.iter().map(pass).collect::<Vec<_>>()), *expected, "{what}");
        }
    }
}
