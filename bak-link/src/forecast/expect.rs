//! What is to come of one guest: when it will be dumped, how large the dumps will be, what they will cost. Pure.
//!
//! Wrong either way is bad, so each rule is as simple as it can be, and conservative where it must guess: sizes grow as
//! they grew, but never shrink, and for no longer than they were seen to; who was dumped once, lately, goes on daily; and
//! a guest counts as stopped only after more than three dumps that did not come.

use bak_common::calendar::{Time, Zone};
use bak_common::name::DumpId;
use bak_common::units::show_duration;

use super::rhythm::{Rhythm, every, rhythm};
use super::{Guest, Known};

const DAY_S: i64 = 86_400;
/// Dumps that must be missing, in a row, before a guest counts as stopped; and days, where one dump shows no rhythm.
const MISSING: usize = 3;
/// How much history it takes to believe in growth, and how many of the newest dumps it is taken from.
const GROWTH_DUMPS: usize = 7;
const GROWTH_S: i64 = 7 * DAY_S;
const GROWTH_WINDOW: usize = 16;
/// How many of the newest dumps say how long a dump takes and what it takes on the wire.
const RECENT: usize = 5;
/// From this share of its size on, what a dump took on the wire is taken for a whole copy, which grows with the guest.
const WHOLE: f64 = 0.9;

/// A dump that is to come, or one that is there and was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coming {
    pub id: DumpId,
    pub started: Time,
    pub finished: Time,
    pub bytes: u64,
    /// What the planner expects it to cost, as things are now.
    pub cost: u64,
    /// What it will take on the wire, both ways.
    pub wire: u64,
}

/// What is expected of one guest.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// By start.
    pub coming: Vec<Coming>,
    /// When it is dumped, for people.
    pub rhythm: String,
    /// Why no more dumps are expected.
    pub stopped: Option<String>,
}

/// What is expected of a guest from `now` to `until`.
pub fn expect(guest: &Guest, now: Time, until: Time, zone: Zone) -> Expected {
    let mut known: Vec<&Known> = guest.known.iter().filter(|dump| dump.started <= now).collect();
    known.sort_by_key(|dump| (dump.started, !dump.good));
    known.dedup_by_key(|dump| &dump.id);
    let Some(newest) = known.last() else { return stopped("its dumps are all dated in the future") };
    let Some(sizes) = Sizes::of(guest, &known) else { return stopped("it has no good dump to go by") };
    let times: Vec<Time> = known.iter().map(|dump| dump.started).collect();
    let age = now.since(newest.started);
    let Some(rhythm) = rhythm(&times, zone) else {
        if age > MISSING as i64 * DAY_S {
            return stopped(&format!("was dumped once only, {} ago", show_duration(age)));
        }
        let assumed = every(DAY_S, newest.started, zone);
        return Expected {
            rhythm: format!("{assumed} (assumed)"),
            ..sizes.dumps(guest, &assumed, newest.started, now, until)
        };
    };
    let missing = rhythm.between(newest.started.plus(rhythm.spacing() / 2), now).len();
    let recent = &times[times.len().saturating_sub(8)..];
    let longest = recent.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap_or(0);
    if missing > MISSING && age > longest + longest / 2 {
        return stopped(&format!("{rhythm} until {} ago", show_duration(age)));
    }
    Expected { rhythm: rhythm.to_string(), ..sizes.dumps(guest, &rhythm, newest.started, now, until) }
}

fn stopped(why: &str) -> Expected {
    Expected { coming: Vec::new(), rhythm: "stopped".into(), stopped: Some(why.to_owned()) }
}

/// What a dump of this guest that exists already will take on the wire.
pub fn wire(guest: &Guest, bytes: u64, cost: u64) -> u64 {
    let mut sent: Vec<_> = guest.wire.iter().filter(|sent| sent.bytes > 0).collect();
    sent.sort_by_key(|sent| std::cmp::Reverse(sent.started));
    let middle = |mut shares: Vec<f64>| {
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() / 2).copied()
    };
    let recent = || sent.iter().take(RECENT);
    let Some(share) = middle(recent().map(|sent| sent.wire as f64 / sent.bytes as f64).collect()) else { return cost };
    if share >= WHOLE {
        return (bytes as f64 * share).round() as u64;
    }
    middle(recent().map(|sent| sent.wire as f64).collect()).map_or(cost, |wire| wire as u64)
}

/// The time between two dumps that went as changes, in seconds, the middle one of the last few; none where they go whole.
/// What goes after a longer time takes more in proportion, as much as has changed meanwhile.
pub fn pace(guest: &Guest) -> Option<i64> {
    let mut sent: Vec<_> = guest.wire.iter().filter(|sent| sent.bytes > 0).collect();
    sent.sort_by_key(|sent| std::cmp::Reverse(sent.started));
    sent.truncate(RECENT + 1);
    let mut shares: Vec<f64> = sent.iter().take(RECENT).map(|sent| sent.wire as f64 / sent.bytes as f64).collect();
    shares.sort_by(f64::total_cmp);
    let mut gaps: Vec<i64> = sent.windows(2).map(|pair| pair[0].started.since(pair[1].started).max(1)).collect();
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied().filter(|_| shares[shares.len() / 2] < WHOLE)
}

/// What a dump takes that begins at `started`, where one after `pace` seconds takes `wire`, and the last one that was
/// sent began at `last`.
pub fn after(wire: u64, bytes: u64, pace: Option<i64>, started: Time, last: Option<Time>) -> u64 {
    let (Some(pace), Some(last)) = (pace, last) else { return wire };
    let longer = started.since(last) as f64 / pace as f64;
    if longer <= 1.0 { wire } else { ((wire as f64 * longer) as u64).min(bytes.max(wire)) }
}

/// How the sizes of a guest's dumps go on.
struct Sizes {
    newest: Time,
    bytes: u64,
    /// What the planner expects of a dump of `bytes`.
    cost: u64,
    /// Bytes a second, for so many seconds.
    growth: f64,
    growing_s: i64,
    /// How long a dump takes.
    seconds: i64,
}

impl Sizes {
    fn of(guest: &Guest, known: &[&Known]) -> Option<Self> {
        let good: Vec<&Known> = known.iter().filter(|dump| dump.good).copied().collect();
        let newest = good.last()?;
        let recent = &good[good.len().saturating_sub(GROWTH_WINDOW)..];
        let growing_s = newest.started.since(recent[0].started);
        let believed = recent.len() >= GROWTH_DUMPS && growing_s >= GROWTH_S;
        let mut seconds: Vec<i64> =
            good.iter().rev().take(RECENT).map(|dump| dump.finished.since(dump.started).max(0)).collect();
        seconds.sort_unstable();
        let local = guest.plan.local.iter().find(|dump| dump.id == newest.id);
        Some(Self {
            newest: newest.started,
            bytes: newest.bytes,
            cost: local.map_or(newest.bytes, |dump| dump.cost),
            growth: if believed { growth(recent) } else { 0.0 },
            growing_s,
            seconds: seconds[seconds.len() / 2],
        })
    }

    fn at(&self, time: Time) -> u64 {
        let seconds = time.since(self.newest).clamp(0, self.growing_s);
        self.bytes.saturating_add((self.growth * seconds as f64) as u64)
    }

    fn dumps(&self, guest: &Guest, rhythm: &Rhythm, newest: Time, now: Time, until: Time) -> Expected {
        let after = now.max(newest.plus(rhythm.spacing() / 2));
        let one = |started: Time| {
            let bytes = self.at(started);
            // What is charged at its size grows with it; deltas don't.
            let cost = if self.cost == self.bytes { bytes } else { self.cost };
            Coming {
                id: DumpId::of(&guest.plan.key.vm, started),
                started,
                finished: started.plus(self.seconds),
                bytes,
                cost,
                wire: wire(guest, bytes, cost),
            }
        };
        Expected { coming: rhythm.between(after, until).into_iter().map(one).collect(), ..Expected::default() }
    }
}

/// Bytes a second by which dumps grow: the middle one of the slopes between any two of them, which no single odd dump
/// can move far (Theil and Sen); nothing if they shrink.
fn growth(dumps: &[&Known]) -> f64 {
    let mut slopes = Vec::new();
    for (i, later) in dumps.iter().enumerate() {
        for earlier in &dumps[..i] {
            let seconds = later.started.since(earlier.started).max(1);
            slopes.push((later.bytes as f64 - earlier.bytes as f64) / seconds as f64);
        }
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::{Carried, samples};
    use super::*;

    #[test]
    fn what_goes_after_a_longer_time_takes_more() {
        let mut guest = samples::nightly("a", 1000);
        assert_eq!(pace(&guest), None, "nothing was counted");
        let sent = |day, wire| Carried { started: samples::at(day, 2), bytes: 1000, wire };
        // The first in full, then changes, one of them after two days.
        guest.wire = vec![sent(10, 1000), sent(11, 40), sent(12, 50), sent(14, 60), sent(15, 50)];
        assert_eq!(pace(&guest), Some(DAY_S));
        let after = |days: i64| after(50, 1000, pace(&guest), samples::at(15 + days, 2), Some(samples::at(15, 2)));
        assert_eq!([after(1), after(3), after(30)], [50, 150, 1000]);
        guest.wire.iter_mut().for_each(|sent| sent.wire = 990);
        assert_eq!(pace(&guest), None, "they go whole");
    }
}
