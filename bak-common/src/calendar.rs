//! Times as records carry them, and the zone in which days and weeks are counted.

use anyhow::{Context, Result};
use chrono::{
    DateTime, Datelike, FixedOffset, Local, NaiveDateTime, SecondsFormat, TimeDelta, TimeZone, Timelike, Utc,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A moment in whole seconds of UTC. Written `2026-11-20T01:00:02Z`, which sorts as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(DateTime<Utc>);

/// How far ahead of us, in seconds, another clock may be before its dumps are dated in the future.
pub const SKEW_S: i64 = 3600;

const COMPACT: &str = "%Y%m%dT%H%M%SZ";

impl Time {
    /// `moment` with its fraction of a second cut off.
    pub fn new(moment: DateTime<Utc>) -> Self {
        Self(DateTime::from_timestamp(moment.timestamp(), 0).unwrap_or(DateTime::UNIX_EPOCH))
    }

    pub fn from_unix(seconds: i64) -> Option<Self> {
        DateTime::from_timestamp(seconds, 0).map(Self)
    }

    pub fn unix(self) -> i64 {
        self.0.timestamp()
    }

    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }

    /// As in ids and stems: `20261120T010002Z`.
    pub fn compact(self) -> String {
        self.0.format(COMPACT).to_string()
    }

    pub fn from_compact(text: &str) -> Result<Self> {
        let parsed = NaiveDateTime::parse_from_str(text, COMPACT).ok().map(|t| Self(t.and_utc()));
        parsed
            .filter(|t| t.compact() == text)
            .with_context(|| format!("`{}` is no time like 20261120T010002Z", text.escape_debug()))
    }

    /// Seconds from `earlier` to this; negative where `earlier` is later.
    pub fn since(self, earlier: Time) -> i64 {
        self.unix() - earlier.unix()
    }

    /// This moment moved by `seconds`, held at the ends of the calendar.
    pub fn plus(self, seconds: i64) -> Self {
        let delta =
            TimeDelta::try_seconds(seconds).unwrap_or(if seconds < 0 { TimeDelta::MIN } else { TimeDelta::MAX });
        let end = if seconds < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
        Self::new(self.0.checked_add_signed(delta).unwrap_or(end))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        time.to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = anyhow::Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// Reads RFC 3339 in any offset; a fraction of a second is cut off. In UTC, too, its year must have four digits, or what is
/// printed of it could not be read.
impl FromStr for Time {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let parsed = DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
        let parsed = parsed.filter(|time| (0..=9999).contains(&time.year()));
        let time = parsed.with_context(|| format!("`{}` is no time like 2026-11-20T01:00:02Z", text.escape_debug()))?;
        Ok(Self::new(time))
    }
}

/// The zone in which calendar periods are counted: this machine's, or one named by `--tz`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    #[default]
    Local,
    Named(&'static jiff::tz::TimeZone),
}

impl Zone {
    /// The wall clock of this zone at `time`; that of UTC before year -9999 and after 9999.
    pub fn local(self, time: Time) -> NaiveDateTime {
        let utc = time.utc();
        match self {
            Zone::Local => Local.from_utc_datetime(&utc.naive_utc()).naive_local(),
            Zone::Named(zone) => jiff::Timestamp::from_second(time.unix())
                .ok()
                .and_then(|moment| utc.naive_utc().checked_add_offset(offset(zone.to_offset(moment))?))
                .unwrap_or(utc.naive_utc()),
        }
    }

    /// The first moment at which this zone's wall clock shows `wall`; where a change to summer time leaves it out, the
    /// moment at which the clock before the change, gone on counting, would have shown it. `None` at the ends of the
    /// calendar.
    pub fn moment(self, wall: NaiveDateTime) -> Option<Time> {
        match self {
            Zone::Local => first_moment(&Local, wall),
            Zone::Named(zone) => {
                // `compatible`, of RFC 5545: the first of two, and for none what the clock before the change says.
                let moment = zone.to_ambiguous_timestamp(civil(wall)?).compatible().ok()?;
                Time::from_unix(moment.as_second())
            }
        }
    }

    /// `2026-11-20 02:00` on this zone's wall clock.
    pub fn minute(self, time: Time) -> String {
        self.local(time).format("%Y-%m-%d %H:%M").to_string()
    }
}

fn offset(offset: jiff::tz::Offset) -> Option<FixedOffset> {
    FixedOffset::east_opt(offset.seconds())
}

fn civil(wall: NaiveDateTime) -> Option<jiff::civil::DateTime> {
    let small = |number: u32| i8::try_from(number).ok();
    let (year, month, day) = (i16::try_from(wall.year()).ok()?, small(wall.month())?, small(wall.day())?);
    let (hour, minute, second) = (small(wall.hour())?, small(wall.minute())?, small(wall.second())?);
    jiff::civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()
}

fn first_moment<Z: TimeZone>(zone: &Z, wall: NaiveDateTime) -> Option<Time> {
    // Of an hour that comes twice chrono names the later one first, and at its very end one that does not show this at all.
    let first = |wall: &NaiveDateTime| {
        let both = zone.from_local_datetime(wall);
        let shown = [both.clone().earliest(), both.latest()].into_iter().flatten();
        shown.filter(|time| zone.from_utc_datetime(&time.naive_utc()).naive_local() == *wall).min()
    };
    if let Some(moment) = first(&wall) {
        return Some(Time::new(moment.to_utc()));
    }
    // Left out: the clock before the change, gone on counting, shows it at the change.
    let day_before = first(&wall.checked_sub_signed(TimeDelta::days(1))?)?;
    Some(Time::new(day_before.to_utc()).plus(86_400))
}

/// Finds a zone by its name, in this machine's `zoneinfo` or else in the copy that bak carries.
impl FromStr for Zone {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let zone = jiff::tz::TimeZone::get(text)
            .map_err(|_| anyhow::anyhow!("`{}` is no time zone like Europe/Berlin or UTC", text.escape_debug()))?;
        // A program reads one or two of them, and has them to its end.
        Ok(Zone::Named(Box::leak(Box::new(zone))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_and_write() {
        let time: Time = "2026-11-20T01:00:02Z".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-20T01:00:02Z");
        assert_eq!(time.compact(), "20261120T010002Z");
        assert_eq!(Time::from_compact("20261120T010002Z").unwrap(), time);
        assert_eq!("2026-11-20T02:00:02.9+01:00".parse::<Time>().unwrap(), time);
        for bad in
            ["", "2026-11-20", "2026-11-20 01:00:02", "now", "9999-12-31T23:59:59-01:00", "0000-01-01T00:59:59+01:00"]
        {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
        for bad in ["20261120T010002", "2026112T010002Z", "20261120T0100020Z", "+0261120T010002Z"] {
            assert!(Time::from_compact(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_clock_in_a_zone_knows_summer_time() {
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        assert_eq!(zone.minute("2026-10-25T00:30:00Z".parse().unwrap()), "2026-10-25 02:30");
        assert_eq!(zone.minute("2026-10-25T01:30:00Z".parse().unwrap()), "2026-10-25 02:30");
    }

    #[test]
    fn a_wall_clock_has_a_first_moment_also_where_summer_time_begins_and_ends() {
        let table = [
            ("Europe/Berlin", "2026-11-20T00:00:00", "2026-11-19T23:00:00Z"),
            // Shown twice: the first time. Left out: when the clock jumps over it.
            ("Europe/Berlin", "2026-10-25T02:30:00", "2026-10-25T00:30:00Z"),
            ("America/Havana", "2026-03-08T00:00:00", "2026-03-08T05:00:00Z"),
            ("America/Havana", "2026-03-08T00:30:00", "2026-03-08T05:30:00Z"),
            ("America/Havana", "2026-11-01T00:00:00", "2026-11-01T04:00:00Z"),
            // A zone that left out a whole day.
            ("Pacific/Apia", "2011-12-30T12:00:00", "2011-12-30T22:00:00Z"),
        ];
        for (zone, wall, moment) in table {
            let zone: Zone = zone.parse().unwrap();
            assert_eq!(zone.moment(wall.parse().unwrap()), Some(moment.parse().unwrap()), "{wall}");
        }
    }

    #[test]
    fn moving_a_time_never_overflows() {
        let time: Time = "2026-11-20T01:00:02Z".parse().unwrap();
        assert!(time.plus(i64::MAX) > time && time.plus(i64::MIN) < time);
    }
}
