//! When a pass ends by the clock, and which dumps that may cut. Pure.

use bak_common::calendar::{Time, Zone};
use bak_common::ledger::Attempt;
use bak_common::meter::Speed;
use chrono::{Days, NaiveTime};

/// The next moment after `from` at which the wall clock of `zone` shows this minute of the day. A clock that is set back
/// shows it twice, and the next of the two counts; where a clock that is set forward leaves it out, the moment that it
/// would have been.
pub fn next(minute: u32, from: Time, zone: Zone) -> Option<Time> {
    let time = NaiveTime::from_hms_opt(minute / 60, minute % 60, 0)?;
    // Clocks are set back by half an hour to two.
    const AGAIN: [i64; 5] = [0, 1800, 3600, 5400, 7200];
    let today = zone.local(from).date();
    // The day before: a clock set back at midnight shows its last hour after it.
    let days = [today.checked_sub_days(Days::new(1)), Some(today), today.checked_add_days(Days::new(1))];
    let shown = days.into_iter().flatten().filter_map(|day| {
        let wall = day.and_time(time);
        let first = zone.moment(wall)?;
        let moments = AGAIN.into_iter().map(|later| first.plus(later));
        moments.filter(|moment| *moment == first || zone.local(*moment) == wall).find(|moment| *moment > from)
    });
    shown.min()
}

/// Bytes a second where nothing was measured yet: a slow line.
const ASSUMED: u64 = 1 << 20;
/// What is smaller says nothing of a line's speed, in bytes.
const TELLING: u64 = 1 << 20;
const LAST: usize = 10;

/// How fast the last transfers of dumps were, in bytes a second.
pub fn rate(attempts: &[Attempt]) -> u64 {
    let bytes = |attempt: &Attempt| attempt.wire_out.saturating_add(attempt.wire_in);
    let telling = attempts.iter().rev().filter(|attempt| attempt.dump.is_some() && bytes(attempt) >= TELLING);
    let sum = telling.take(LAST).fold((0_u64, 0_u64), |sum, attempt| {
        (sum.0.saturating_add(bytes(attempt)), sum.1.saturating_add(attempt.seconds.max(1)))
    });
    sum.0.checked_div(sum.1).unwrap_or(ASSUMED).max(1)
}

/// Whether what costs `bytes` at most may still be on its way when the time is up, in `left` seconds, at the `rate` so far
/// and the `speed` that holds now: it is expected to take more than half of that.
pub fn may_cut(bytes: u64, left: i64, rate: u64, speed: Speed) -> bool {
    let rate = match speed {
        Speed::Free => rate,
        Speed::Rate(most) => rate.min(most),
        Speed::Wait => 0,
    };
    let left = u64::try_from(left.max(0)).unwrap_or(0);
    bytes > rate.saturating_mul(left) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_time_a_wall_clock_shows() {
        let (berlin, utc, havana, howe) = ("Europe/Berlin", "UTC", "America/Havana", "Australia/Lord_Howe");
        for (zone, at, from, expected) in [
            (utc, "06:00", "2026-11-20T22:00:00Z", "2026-11-21T06:00:00Z"),
            (utc, "06:00", "2026-11-20T05:59:59Z", "2026-11-20T06:00:00Z"),
            // Begun at the very time, or after it: the next day's.
            (utc, "06:00", "2026-11-20T06:00:00Z", "2026-11-21T06:00:00Z"),
            (utc, "06:00", "2026-11-20T06:00:01Z", "2026-11-21T06:00:00Z"),
            (utc, "00:00", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            (berlin, "06:00", "2026-11-20T22:00:00Z", "2026-11-21T05:00:00Z"),
            // The night that is an hour longer, and the one that is an hour shorter.
            (berlin, "06:00", "2026-10-24T20:00:00Z", "2026-10-25T05:00:00Z"),
            (berlin, "06:00", "2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"),
            // Shown twice: from before, between, and after.
            (berlin, "02:30", "2026-10-24T20:00:00Z", "2026-10-25T00:30:00Z"),
            (berlin, "02:30", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
            (berlin, "02:30", "2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z"),
            (berlin, "02:30", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"),
            // Left out.
            (berlin, "02:30", "2026-03-28T21:00:00Z", "2026-03-29T01:30:00Z"),
            (berlin, "02:30", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"),
            // Back at midnight, into the day before; and by half an hour.
            (havana, "00:30", "2026-11-01T04:40:00Z", "2026-11-01T05:30:00Z"),
            (howe, "01:45", "2026-04-04T14:50:00Z", "2026-04-04T15:15:00Z"),
        ] {
            let (zone, from): (Zone, Time) = (zone.parse().unwrap(), from.parse().unwrap());
            let minute = bak_common::units::minute(at).unwrap();
            assert_eq!(next(minute, from, zone), Some(expected.parse().unwrap()), "{at} after {from}");
        }
    }

    #[test]
    fn what_may_be_cut() {
        let attempt = |bytes, seconds, dump: bool| Attempt {
            id: String::new(),
            at: "2026-11-20T01:00:00Z".parse().unwrap(),
            dest: "box".into(),
            dump: dump.then(|| {
                bak_common::name::DumpId::of(
                    &bak_common::name::GuestName::new("web").unwrap(),
                    "2026-11-20T01:00:00Z".parse().unwrap(),
                )
            }),
            wire_out: bytes,
            wire_in: 0,
            seconds,
            result: "sent".into(),
            why: None,
        };
        assert_eq!(rate(&[]), 1 << 20);
        // A look at the far side, and small dumps, say nothing.
        let all =
            [attempt(100 << 20, 10, true), attempt(50 << 20, 0, true), attempt(9 << 20, 1, false), attempt(9, 9, true)];
        assert_eq!(rate(&all), (150 << 20) / 11);
        for (bytes, left, speed, expected) in [
            (500, 10, Speed::Free, false),
            (501, 10, Speed::Free, true),
            (500, 10, Speed::Rate(99), true),
            (1, 10, Speed::Wait, true),
            (0, -5, Speed::Free, false),
            (1, -5, Speed::Free, true),
        ] {
            assert_eq!(may_cut(bytes, left, 100, speed), expected, "{bytes} {left} {speed:?}");
        }
    }

    proptest! {
        /// Against the rule read out loud: go on minute by minute until the clock shows it.
        #[test]
        fn it_is_what_waiting_minute_by_minute_finds(minute in 0..1440_u32, hours in 0..17_520_i64, minutes in 0..60_i64) {
            let zone: Zone = "Europe/Berlin".parse().unwrap();
            let begin: Time = "2026-01-01T00:00:00Z".parse().unwrap();
            let from = begin.plus(hours * 3600 + minutes * 60);
            let time = NaiveTime::from_hms_opt(minute / 60, minute % 60, 0).unwrap();
            let found = (1..=2 * 1440).map(|on| from.plus(on * 60)).find(|moment| zone.local(*moment).time() == time).unwrap();
            let next = next(minute, from, zone).unwrap();
            // Only on the night that leaves it out it comes earlier.
            prop_assert!(next == found || (next < found && (120..180).contains(&minute)), "{from}: {next} {found}");
        }
    }
}
