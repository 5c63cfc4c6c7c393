//! How fast a pass may send, by the hour and the day of the week. Pure.
//!
//! `5M` at any time; `08:00,512K 19:00,off`: each entry holds from its time on until the next one's, across midnight, too;
//! `mon-fri 08:00,1M sat-sun 00:00,off`: words for days say when the entries behind them begin, and a rate holds until the
//! next entry of whichever day. Times are those of the wall clock, so on the nights when that is set an entry that it
//! leaves out holds from the change on, and one that it shows twice from the first time on.

use crate::meter::Speed;
use crate::units::{self, minute};
use anyhow::{Context, Result, bail, ensure};
use chrono::{Datelike, NaiveDateTime, Timelike};

/// A speed for each moment of a week.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timetable {
    /// From this minute of the week on, Monday 00:00 being 0; in order, never empty.
    entries: Vec<(u32, Speed)>,
}

const DAY: u32 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Timetable {
    /// Reads a rate, `off`, or a timetable.
    pub fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        // `200 kbit` is one rate, as is `5M`; a timetable has times in it.
        let first = words.first().and_then(|word| word.chars().next());
        let one = words.len() == 1 || first.is_some_and(|letter| letter.is_ascii_digit());
        if one && !text.contains([',', ':']) {
            let speed = speed(text.trim())?;
            ensure!(speed != Speed::Wait, "at a rate of 0 nothing would ever be sent");
            return Ok(Self { entries: vec![(0, speed)] });
        }
        let mut days: Vec<u32> = (0..7).collect();
        let (mut entries, mut bare) = (Vec::new(), None);
        for word in words {
            if word.contains(':') {
                let (time, rate) = word.split_once(',').with_context(|| wrong(word))?;
                let (minute, speed) = (minute(time)?, speed(rate)?);
                entries.extend(days.iter().map(|day| (day * DAY + minute, speed)));
                bare = None;
            } else {
                days = these_days(word)?;
                bare = Some(word);
            }
        }
        if let Some(word) = bare {
            bail!("`{}` has no time behind it, as in `mon-fri 08:00,1M`", word.escape_debug());
        }
        entries.sort_by_key(|(minute, _)| *minute);
        ensure!(!entries.is_empty(), "it is empty: a rate like 5M, off, or `08:00,512K 19:00,off`");
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let minute = twice[0].0;
            let (day, hour) = (DAYS[(minute / DAY) as usize % 7], minute % DAY / 60);
            bail!("it says twice what holds from {day} {hour:02}:{:02} on", minute % 60);
        }
        ensure!(entries.iter().any(|(_, speed)| *speed != Speed::Wait), "by it nothing would ever be sent");
        Ok(Self { entries })
    }

    /// What holds when the wall clock shows `wall`.
    pub fn at(&self, wall: NaiveDateTime) -> Speed {
        let minute = wall.weekday().num_days_from_monday() * DAY + wall.hour() * 60 + wall.minute();
        let before = self.entries.partition_point(|(from, _)| *from <= minute);
        // Before the first entry of the week the last one of the week before holds. Never empty, see `parse`.
        self.entries[before.checked_sub(1).unwrap_or(self.entries.len() - 1)].1
    }

    /// Whether all is sent as fast as it can, always.
    pub fn is_free(&self) -> bool {
        self.entries.iter().all(|(_, speed)| *speed == Speed::Free)
    }

    /// Whether there are times when nothing is sent.
    pub fn ever_waits(&self) -> bool {
        self.entries.iter().any(|(_, speed)| *speed == Speed::Wait)
    }
}

fn wrong(word: &str) -> String {
    format!("`{}` is neither a time and a rate like 08:00,512K nor days like mon-fri", word.escape_debug())
}

fn speed(text: &str) -> Result<Speed> {
    Ok(match text {
        "off" => Speed::Free,
        _ => match units::rate(text)? {
            0 => Speed::Wait,
            rate => Speed::Rate(rate),
        },
    })
}

/// Days, `mon`, `mon-fri`, `sat-mon`, `mon,wed,fri`: numbers from Monday, 0, on.
fn these_days(word: &str) -> Result<Vec<u32>> {
    let day = |name: &str| {
        let at = DAYS.iter().position(|known| known.eq_ignore_ascii_case(name));
        at.and_then(|at| u32::try_from(at).ok()).with_context(|| wrong(word))
    };
    let mut days = Vec::new();
    for part in word.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        days.extend((0..=(last + 7 - first) % 7).map(|more| (first + more) % 7));
    }
    Ok(days)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(table: &str, wall: &str) -> Speed {
        Timetable::parse(table).unwrap().at(wall.parse().unwrap())
    }

    #[test]
    fn what_holds_when() {
        let (k512, m1) = (Speed::Rate(512 << 10), Speed::Rate(1 << 20));
        // 2026-11-20 is a Friday.
        let table = [
            ("5M", "2026-11-20T03:00:00", Speed::Rate(5 << 20)),
            ("20Mbit", "2026-11-20T03:00:00", Speed::Rate(2_500_000)),
            ("200 kbit", "2026-11-20T03:00:00", Speed::Rate(25_000)),
            (" 200 kbit/s ", "2026-11-20T03:00:00", Speed::Rate(25_000)),
            ("off", "2026-11-20T03:00:00", Speed::Free),
            ("08:00,512K 19:00,off", "2026-11-20T07:59:59", Speed::Free),
            ("08:00,512K 19:00,off", "2026-11-20T08:00:00", k512),
            ("08:00,512K 19:00,off", "2026-11-20T18:59:59", k512),
            ("19:00,off 8:00,512K", "2026-11-20T19:00:00", Speed::Free),
            ("22:00,0 06:00,off", "2026-11-20T23:00:00", Speed::Wait),
            // Nothing is said of the night before Saturday: Friday's entry holds on.
            ("mon-fri 08:00,1M sat-sun 00:00,off", "2026-11-20T23:59:59", m1),
            ("mon-fri 08:00,1M sat-sun 00:00,off", "2026-11-21T00:00:00", Speed::Free),
            ("mon-fri 08:00,1M sat-sun 00:00,off", "2026-11-23T07:59:00", Speed::Free),
            ("mon-fri 08:00,1M sat-sun 00:00,off", "2026-11-23T08:00:00", m1),
            ("mon-fri 08:00,512K 19:00,off", "2026-11-22T12:00:00", Speed::Free),
            ("SAT-mon 10:00,512K tue,Thu 10:00,off", "2026-11-23T10:00:00", k512),
            ("SAT-mon 10:00,512K tue,Thu 10:00,off", "2026-11-25T10:00:00", Speed::Free),
        ];
        for (table, wall, speed) in table {
            assert_eq!(at(table, wall), speed, "{table} at {wall}");
        }
        assert!(Timetable::parse("22:00,0 06:00,off").unwrap().ever_waits());
        assert!(!Timetable::parse("22:00,1 06:00,off").unwrap().ever_waits());
    }

    #[test]
    fn what_is_no_timetable() {
        for (text, why) in [
            ("", "empty"),
            ("0", "nothing would ever be sent"),
            ("22:00,0", "nothing would ever be sent"),
            ("5X", "5X"),
            ("08:00", "08:00"),
            ("08:00,", "no rate"),
            ("8:0,1M", "no time of the day"),
            ("24:00,1M", "no time of the day"),
            ("+8:00,1M", "no time of the day"),
            ("08:60,1M", "no time of the day"),
            ("08:00,1M 8:00,2M", "twice what holds from mon 08:00"),
            ("mon-fri 08:00,1M fri 08:00,off", "twice what holds from fri 08:00"),
            ("mon-fri", "mon-fri"),
            ("08:00,1M sat-sun", "has no time behind it"),
            ("mon-fry 08:00,1M", "mon-fry"),
            ("5M 6M", "`5M 6M` is no rate like 512K or 5M (bytes a second) or 20Mbit"),
            ("200 kbps", "no rate like"),
        ] {
            let error = format!("{:#}", Timetable::parse(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        /// Against the rule read out loud: go back minute by minute until one is found at which an entry begins.
        #[test]
        fn it_is_what_going_back_minute_by_minute_finds(
            entries in proptest::collection::btree_map((0..7u32, 0..24u32, 0..60u32), 1..1000u64, 1..6),
            (day, hour, minute) in (0..7u32, 0..24u32, 0..60u32),
        ) {
            let text: Vec<String> =
                entries.iter().map(|((d, h, m), rate)| format!("{} {h:02}:{m:02},{rate}", DAYS[*d as usize])).collect();
            let table = Timetable::parse(&text.join(" ")).unwrap();
            let monday = chrono::NaiveDate::from_ymd_opt(2026, 11, 16).unwrap().and_hms_opt(hour, minute, 59).unwrap();
            let wall = monday + chrono::TimeDelta::days(i64::from(day));
            let found = (0..=7 * i64::from(DAY)).find_map(|back| {
                let then = wall - chrono::TimeDelta::minutes(back);
                entries.get(&(then.weekday().num_days_from_monday(), then.hour(), then.minute()))
            });
            prop_assert_eq!(table.at(wall), Speed::Rate(*found.unwrap()));
        }
    }
}
