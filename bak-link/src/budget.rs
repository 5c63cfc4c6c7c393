//! What may still be carried: limits for a pass and for calendar periods, and how each dump is charged to them. Pure.
//!
//! The hazard is the dump larger than a pass may carry: refused, it starves for ever; let through every time, there is no
//! limit. So it is let through only where nothing else is on its way, and a period's limit never yields.

use bak_common::calendar::{Time, Zone};
use bak_common::units::{Limit, Period, show_size};
use chrono::{Datelike, Days, NaiveDate, NaiveTime};
use serde::Serialize;

/// When the calendar period that holds `now` began in `zone`; `None` for a pass, which is no calendar's.
pub fn period_start(period: Period, now: Time, zone: Zone) -> Option<Time> {
    let today = zone.local(now).date();
    let first = match period {
        Period::Pass => return None,
        Period::Day => today,
        Period::Week => today.checked_sub_days(Days::new(u64::from(today.weekday().num_days_from_monday())))?,
        Period::Month(day) => billing_day(today, day)?,
    };
    zone.moment(first.and_time(NaiveTime::MIN))
}

/// The last day number `day` (1 to 28) of a month that is not after `today`.
fn billing_day(today: NaiveDate, day: u32) -> Option<NaiveDate> {
    let this_month = today.with_day(day)?;
    if this_month <= today { Some(this_month) } else { this_month.checked_sub_months(chrono::Months::new(1)) }
}

/// A limit, and what the ledger has already counted in its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    pub limit: Limit,
    pub used: u64,
}

/// A limit, and what is left of it; less than nothing after an overdraft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    pub limit: Limit,
    pub bytes: i64,
}

/// How a dump that was let through was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Fits,
    /// It is larger than this limit of a pass, and goes because nothing else does.
    Oversize(Limit),
}

/// The limit that a dump doesn't fit into, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    pub limit: Limit,
    pub by: u64,
    /// Larger than the whole limit, so that it never fits.
    pub never: bool,
}

/// The limits of one plan, and what is left of them as dumps are charged.
#[derive(Debug)]
pub struct Budget {
    lines: Vec<(Limit, i128)>,
    /// Charge a dump larger than a pass in full, as it is carried at once.
    overdraft: bool,
    /// Something was charged: only the first may be larger than a pass.
    begun: bool,
}

impl Budget {
    pub fn new(caps: &[Cap], overdraft: bool) -> Self {
        let line = |cap: &Cap| (cap.limit, i128::from(cap.limit.bytes) - i128::from(cap.used));
        Self { lines: caps.iter().map(line).collect(), overdraft, begun: false }
    }

    /// The tightest limit of a pass.
    fn pass(&self) -> Option<Limit> {
        let passes = self.lines.iter().map(|(limit, _)| *limit).filter(|limit| limit.period == Period::Pass);
        passes.min_by_key(|limit| limit.bytes)
    }

    /// Charges what is pending already.
    pub fn pending(&mut self, cost: u64) {
        self.charge(cost, true);
    }

    /// Charges `cost` if every limit bears it, or if the rule for oversized dumps (`oversize`) lets it through.
    pub fn take(&mut self, cost: u64, others_due: bool, oversize: bool) -> Result<Taken, Over> {
        let needed = i128::from(cost);
        let over = self.lines.iter().filter(|(_, left)| needed > *left);
        // Of several limits the one to name is that which it misses by most.
        let worst = |pass: bool| {
            over.clone()
                .filter(|(limit, _)| pass || limit.period != Period::Pass)
                .max_by_key(|(limit, left)| (needed - left, limit.period))
        };
        let first_oversize = oversize && !self.begun;
        if let Some((limit, left)) = worst(!first_oversize) {
            let by = u64::try_from(needed - left).unwrap_or(u64::MAX);
            return Err(Over { limit: *limit, by, never: cost > limit.bytes });
        }
        let taken = match self.pass() {
            Some(limit) if cost > limit.bytes => Taken::Oversize(limit),
            _ => Taken::Fits,
        };
        self.charge(cost, others_due);
        Ok(taken)
    }

    /// A dump larger than a pass is carried in slices: of a pass it takes half while others are due, else all. Of a
    /// calendar period it takes what it costs.
    fn charge(&mut self, cost: u64, others_due: bool) {
        self.begun = true;
        let slice = match self.pass() {
            Some(limit) if cost > limit.bytes && !self.overdraft => {
                if others_due {
                    limit.bytes / 2
                } else {
                    limit.bytes
                }
            }
            _ => cost,
        };
        for (limit, left) in &mut self.lines {
            *left -= i128::from(if limit.period == Period::Pass { slice } else { cost });
        }
    }

    /// What is left of each limit.
    pub fn left(&self) -> Vec<Left> {
        let clamp = |bytes: i128| bytes.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        // In range: it was clamped.
        let left = |(limit, bytes): &(Limit, i128)| Left { limit: *limit, bytes: clamp(*bytes) as i64 };
        self.lines.iter().map(left).collect()
    }

    /// What is left of the tightest limit; `None` without any.
    pub fn remaining(&self) -> Option<i64> {
        self.left().iter().map(|left| left.bytes).min()
    }
}

/// A limit for people: `10 GiB a day`.
pub fn show_limit(limit: Limit) -> String {
    let period = match limit.period {
        Period::Pass => "pass",
        Period::Day => "day",
        Period::Week => "week",
        Period::Month(_) => "month",
    };
    format!("{} a {period}", show_size(limit.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::units::limit;

    fn time(text: &str) -> Time {
        text.parse().unwrap()
    }

    #[test]
    fn periods_begin_at_local_midnight_also_on_the_nights_of_the_change() {
        let month = |day| Period::Month(day);
        let berlin = "Europe/Berlin";
        let table = [
            // An ordinary Friday; the week began on Monday, the month on its first.
            (berlin, Period::Day, "2026-11-20T18:00:00Z", "2026-11-19T23:00:00Z"),
            (berlin, Period::Week, "2026-11-20T18:00:00Z", "2026-11-15T23:00:00Z"),
            (berlin, month(1), "2026-11-20T18:00:00Z", "2026-10-31T23:00:00Z"),
            // The billing day: before it, on it.
            (berlin, month(15), "2026-11-14T22:59:59Z", "2026-10-14T22:00:00Z"),
            (berlin, month(15), "2026-11-14T23:00:00Z", "2026-11-14T23:00:00Z"),
            (berlin, month(28), "2026-01-05T12:00:00Z", "2025-12-27T23:00:00Z"),
            // Summer time ends: this day has 25 hours, and belongs to itself through all of them.
            (berlin, Period::Day, "2026-10-25T00:30:00Z", "2026-10-24T22:00:00Z"),
            (berlin, Period::Day, "2026-10-25T22:59:59Z", "2026-10-24T22:00:00Z"),
            (berlin, Period::Day, "2026-10-25T23:00:00Z", "2026-10-25T23:00:00Z"),
            // Summer time begins: 23 hours.
            (berlin, Period::Day, "2026-03-29T21:59:59Z", "2026-03-28T23:00:00Z"),
            (berlin, Period::Day, "2026-03-29T22:00:00Z", "2026-03-29T22:00:00Z"),
            (berlin, Period::Week, "2026-03-29T21:59:59Z", "2026-03-22T23:00:00Z"),
            // The clock jumps over midnight itself.
            ("America/Havana", Period::Day, "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z"),
            // ISO week 53 holds the new year.
            ("UTC", Period::Week, "2027-01-03T12:00:00Z", "2026-12-28T00:00:00Z"),
            ("UTC", Period::Week, "2027-01-04T00:00:00Z", "2027-01-04T00:00:00Z"),
        ];
        for (zone, period, now, start) in table {
            let zone: Zone = zone.parse().unwrap();
            assert_eq!(period_start(period, time(now), zone), Some(time(start)), "{period:?} {now}");
        }
        assert_eq!(period_start(Period::Pass, time("2026-11-20T18:00:00Z"), Zone::Local), None);
    }

    fn budget(caps: &[(&str, u64)], overdraft: bool) -> Budget {
        let caps: Vec<Cap> =
            caps.iter().map(|(text, used)| Cap { limit: limit(text).unwrap().unwrap(), used: *used }).collect();
        Budget::new(&caps, overdraft)
    }

    #[test]
    fn an_exact_fit_fits_and_a_byte_more_does_not() {
        let mut budget = budget(&[("100", 0)], false);
        assert_eq!(budget.take(60, true, true), Ok(Taken::Fits));
        assert_eq!(budget.take(41, true, true).unwrap_err().by, 1);
        assert_eq!(budget.take(40, true, true), Ok(Taken::Fits));
        assert_eq!(budget.remaining(), Some(0));
        assert!(budget.take(1, true, true).is_err());
    }

    #[test]
    fn of_several_limits_each_holds_and_the_tightest_remains() {
        let mut budget = budget(&[("100", 0), ("150/day", 100), ("1000/month", 10)], false);
        let over = budget.take(70, true, true).unwrap_err();
        assert_eq!((over.limit.period, over.by, over.never), (Period::Day, 20, false));
        assert_eq!(budget.take(30, true, true), Ok(Taken::Fits));
        assert_eq!(budget.remaining(), Some(20));
        let bytes: Vec<i64> = budget.left().iter().map(|left| left.bytes).collect();
        assert_eq!(bytes, [70, 20, 960]);
    }

    #[test]
    fn larger_than_a_pass_goes_first_and_alone_may_be_charged_in_three_ways() {
        for (overdraft, others_due, left) in [(false, true, 50), (false, false, 0), (true, true, -200)] {
            let mut budget = budget(&[("100", 0)], overdraft);
            assert!(matches!(budget.take(300, others_due, true), Ok(Taken::Oversize(_))));
            assert_eq!(budget.remaining(), Some(left));
            assert!(budget.take(300, others_due, true).is_err(), "only the first");
        }
        assert!(budget(&[("100", 0)], false).take(300, true, false).unwrap_err().never);
    }

    #[test]
    fn a_period_does_not_yield_to_an_oversized_dump() {
        let mut budget = budget(&[("100", 0), ("250/day", 0)], false);
        assert!(budget.take(300, true, true).unwrap_err().never);
        // It was not charged, so the next is still the first.
        assert!(matches!(budget.take(200, true, true), Ok(Taken::Oversize(_))));
        let bytes: Vec<i64> = budget.left().iter().map(|left| left.bytes).collect();
        assert_eq!(bytes, [50, 50]);
    }

    #[test]
    fn what_the_ledger_counted_may_exceed_the_limit() {
        let mut budget = budget(&[("100/day", u64::MAX)], true);
        assert!(budget.take(0, true, true).is_err());
        assert!(budget.remaining().unwrap() < 0);
    }
}
