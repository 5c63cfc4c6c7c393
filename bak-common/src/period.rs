//! When the calendar periods of limits begin, and what is used of each limit. Pure.

use chrono::{Datelike, Days, NaiveDate, NaiveTime};

use crate::calendar::{Time, Zone};
use crate::ledger::Ledger;
use crate::units::{Limit, Period};

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

/// The last day number `day` (1 to 31) of a month that is not after `today`. A month without such a day has its last one
/// instead.
fn billing_day(today: NaiveDate, day: u32) -> Option<NaiveDate> {
    let of_month = |first: NaiveDate| (1..=day).rev().find_map(|day| first.with_day(day));
    let this_month = today.with_day(1)?;
    let begun = of_month(this_month).filter(|begin| *begin <= today);
    begun.or_else(|| of_month(this_month.checked_sub_months(chrono::Months::new(1))?))
}

/// A limit, and what the ledger has already counted in its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    pub limit: Limit,
    pub used: u64,
}

/// These limits with what `ledger` has counted at `now`; of a pass, which is about to begin, nothing.
pub fn caps(limits: &[Limit], ledger: &Ledger, now: Time, zone: Zone) -> Vec<Cap> {
    let used = |limit: &Limit| period_start(limit.period, now, zone).map_or(0, |start| ledger.used_since(start));
    limits.iter().map(|limit| Cap { limit: *limit, used: used(limit) }).collect()
}

/// A limit for people: `10 GiB a day`.
pub fn show_limit(limit: Limit) -> String {
    let period = match limit.period {
        Period::Pass => "pass",
        Period::Day => "day",
        Period::Week => "week",
        Period::Month(_) => "month",
    };
    format!("{} a {period}", crate::units::show_size(limit.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            // A day that a month lacks is its last one, in a leap year too.
            ("UTC", month(31), "2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z"),
            ("UTC", month(31), "2026-11-29T23:59:59Z", "2026-10-31T00:00:00Z"),
            ("UTC", month(29), "2028-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
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
}
