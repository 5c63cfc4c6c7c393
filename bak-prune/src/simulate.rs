//! A policy played forward: which dumps would exist on any day. Pure.
//!
//! Each dump is followed by a prune, as every night has one; a day without a dump is pruned at its end. As in a real prune
//! the last dump stays whatever the rules say.

use anyhow::{Context, Result, ensure};
use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::report::Kind;
use bak_common::units::duration;
use chrono::{Days, NaiveDate, NaiveTime};
use std::collections::VecDeque;
use std::str::FromStr;

use crate::policy::{self, Moment, Verdict};

const DAY_S: u64 = 86_400;
/// More than anybody would look at.
const DUMPS_MAX: u64 = 1_000_000;

/// When dumps are made: every so often, from a time of the day on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub every_s: u64,
    /// On the wall clock.
    pub at: NaiveTime,
}

impl FromStr for Schedule {
    type Err = anyhow::Error;
    /// `1d@02:00`, `6h`, `12h@01:30`.
    fn from_str(text: &str) -> Result<Self> {
        let (every, at) = text.split_once('@').unwrap_or((text, "00:00"));
        let at = NaiveTime::parse_from_str(at, "%H:%M").ok();
        let at = at.with_context(|| format!("`{}` is no schedule like 1d@02:00 or 6h", text.escape_debug()))?;
        let every_s = duration(every)?;
        ensure!(every_s >= 60, "dumps more often than every minute are not simulated");
        Ok(Self { every_s, at })
    }
}

impl Schedule {
    /// The schedule that a guest was dumped by, judged by its last dumps (oldest first); nightly if there are too few.
    pub fn of(starts: &[Time], zone: Zone) -> Self {
        let tail = &starts[starts.len().saturating_sub(15)..];
        let mut gaps: Vec<i64> = tail.windows(2).map(|pair| pair[1].since(pair[0])).collect();
        gaps.sort_unstable();
        let gap = gaps.get(gaps.len() / 2).map_or(DAY_S, |gap| u64::try_from(*gap).unwrap_or(DAY_S).max(60));
        // A night's dump begins at about the same time, not at the same second.
        let every_s = if gap > DAY_S * 3 / 4 { (gap + DAY_S / 2) / DAY_S * DAY_S } else { gap };
        Self { every_s, at: starts.last().map_or(NaiveTime::MIN, |last| zone.local(*last).time()) }
    }

    /// The starts after `from` and up to `until`.
    pub fn times(self, zone: Zone, from: Time, until: Time) -> Result<VecDeque<Time>> {
        let span = u64::try_from(until.since(from)).unwrap_or(0);
        if span / self.every_s > DUMPS_MAX {
            return Err(Kind::Usage.says(format!("that is more than {DUMPS_MAX} dumps: simulate a shorter time")));
        }
        let first = zone.local(from).date();
        let wall = |day: u64| zone.moment(first.checked_add_days(Days::new(day))?.and_time(self.at));
        let times: VecDeque<Time> = if self.every_s.is_multiple_of(DAY_S) {
            // Whole days are counted on the wall clock, through summer time.
            let days = (0..=span / DAY_S + 1).step_by(usize::try_from(self.every_s / DAY_S).unwrap_or(usize::MAX));
            days.filter_map(wall).collect()
        } else {
            let begin = wall(0).unwrap_or(from);
            let step = |n: u64| begin.plus(i64::try_from(n * self.every_s).unwrap_or(i64::MAX));
            (0..=span / self.every_s + 1 + DAY_S / self.every_s).map(step).collect()
        };
        Ok(times.into_iter().filter(|time| *time > from && *time <= until).collect())
    }
}

/// What exists at the end of a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    pub day: NaiveDate,
    /// Starts, oldest first.
    pub exists: Vec<Time>,
}

/// Plays `keep` forward over `coming`, from the dumps that `exist` (oldest first) at `now`, until `until`.
pub fn play(exist: &[Time], mut coming: VecDeque<Time>, keep: &Keep, zone: Zone, now: Time, until: Time) -> Vec<Day> {
    let moment = |started: Time| Moment { started, local: zone.local(started) };
    let mut kept: Vec<Moment> = exist.iter().map(|started| moment(*started)).collect();
    let mut days = Vec::new();
    let mut day = zone.local(now).date();
    let last = zone.local(until).date();
    while day <= last {
        let Some(next) = day.checked_add_days(Days::new(1)) else { break };
        let end = zone.moment(next.and_time(NaiveTime::MIN)).unwrap_or(until);
        let before = kept.len();
        while let Some(started) = coming.front().copied().filter(|started| *started < end) {
            coming.pop_front();
            kept.push(moment(started));
            prune(&mut kept, keep, started);
        }
        if kept.len() == before || keep.within.is_some() {
            prune(&mut kept, keep, end.plus(-1).min(until));
        }
        days.push(Day { day, exists: kept.iter().map(|moment| moment.started).collect() });
        day = next;
    }
    days
}

fn prune(kept: &mut Vec<Moment>, keep: &Keep, now: Time) {
    let verdicts = policy::judge(kept, keep, now);
    let newest = kept.iter().map(|moment| moment.started).max();
    let mut verdicts = verdicts.into_iter();
    kept.retain(|moment| matches!(verdicts.next(), Some(Verdict::Keep(_))) || Some(moment.started) == newest);
}
