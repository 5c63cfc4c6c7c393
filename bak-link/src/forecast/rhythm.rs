//! When what happened again and again will happen next: the rhythm of a guest's dumps, and of the passes. Pure.
//!
//! The hazard is a history with holes: nights that were missed, old dumps that retention took away, a dump made by hand.
//! So holes count little against a pattern, a happening that the pattern does not explain counts double, and a pattern
//! that does not explain the newest ones counts for nothing. Times of the day are kept on the local clock, as cron does.

use bak_common::calendar::{Time, Zone};
use chrono::{Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike, Weekday};

const DAY_S: i64 = 86_400;
/// What comes closer together than this has no times of the day.
const OFTEN_S: i64 = 3 * 3600;
/// How many happenings in a row it takes to believe that.
const OFTEN_COUNT: usize = 6;
/// Times of the day that are no farther apart than this are one: a dump waits for those before it.
const SLOT_S: i64 = 45 * 60;
/// How many of the newest happenings, and days with one, are looked at.
const WINDOW: usize = 60;
const WINDOW_DAYS: usize = 21;
/// The shortest history, in days, that shows which days of the week are left out.
const WEEKS_DAYS: i64 = 13;

/// On which days.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// Every so many days, one of them this.
    Every(i64, NaiveDate),
    /// On these days of the week, from Monday.
    Week([bool; 7]),
    /// On this day of the month, or the last one of a shorter month.
    Month(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    /// So many seconds apart, the last one then.
    Steps(i64, Time),
    /// At these seconds of the days, which begin so many seconds after midnight.
    Days { pattern: Pattern, slots: Vec<i64>, begin: i64 },
}

/// A rhythm on a zone's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rhythm {
    when: When,
    zone: Zone,
}

impl Pattern {
    fn holds(&self, date: NaiveDate) -> bool {
        match self {
            Pattern::Every(days, anchor) => date.signed_duration_since(*anchor).num_days() % days == 0,
            Pattern::Week(days) => days[date.weekday().num_days_from_monday() as usize],
            Pattern::Month(day) => {
                let tomorrow = date.checked_add_days(Days::new(1));
                date.day() == *day || (date.day() < *day && tomorrow.is_none_or(|next| next.day() == 1))
            }
        }
    }

    /// How badly it describes `dates` (ascending, distinct); `None` if it does not explain the newest of them.
    fn misses(&self, dates: &[NaiveDate]) -> Option<i64> {
        let newest = &dates[dates.len().saturating_sub(3)..];
        let explained = newest.iter().filter(|date| self.holds(**date)).count();
        if explained + usize::from(newest.len() > 2) < newest.len() {
            return None;
        }
        let (first, last) = (*dates.first()?, *dates.last()?);
        let hits = dates.iter().filter(|date| self.holds(**date)).count() as i64;
        let expected = first.iter_days().take_while(|date| *date <= last).filter(|date| self.holds(*date)).count();
        Some(expected as i64 - hits + 2 * (dates.len() as i64 - hits))
    }
}

/// The rhythm of `times`, in any order; `None` if they show none: fewer than two, or all on one day.
pub fn rhythm(times: &[Time], zone: Zone) -> Option<Rhythm> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.dedup();
    let times = &times[times.len().saturating_sub(WINDOW)..];
    let mut gaps: Vec<i64> = times.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    gaps.sort_unstable();
    if times.len() >= OFTEN_COUNT && gaps[(gaps.len() - 1) / 3] < OFTEN_S {
        return Some(Rhythm { when: When::Steps(gaps[gaps.len() / 2], *times.last()?), zone });
    }
    let walls: Vec<NaiveDateTime> = times.iter().map(|time| zone.local(*time)).collect();
    let begin = day_begin(&walls);
    let shifted: Vec<NaiveDateTime> = walls.iter().map(|wall| moved(*wall, -begin)).collect();
    let mut dates: Vec<NaiveDate> = shifted.iter().map(|wall| wall.date()).collect();
    dates.dedup();
    let dates = &dates[dates.len().saturating_sub(WINDOW_DAYS)..];
    let pattern = pattern(dates)?;
    let seen: Vec<NaiveDateTime> = shifted.into_iter().filter(|wall| wall.date() >= dates[0]).collect();
    Some(Rhythm { when: When::Days { pattern, slots: slots(&seen, dates.len()), begin }, zone })
}

/// So many seconds apart, the next one at `first`; whole days keep their time of the day.
pub fn every(seconds: i64, first: Time, zone: Zone) -> Rhythm {
    let seconds = seconds.max(60);
    let wall = zone.local(first);
    let when = if seconds % DAY_S == 0 {
        let slots = vec![i64::from(wall.num_seconds_from_midnight())];
        When::Days { pattern: Pattern::Every(seconds / DAY_S, wall.date()), slots, begin: 0 }
    } else {
        When::Steps(seconds, first)
    };
    Rhythm { when, zone }
}

fn moved(wall: NaiveDateTime, seconds: i64) -> NaiveDateTime {
    wall.checked_add_signed(TimeDelta::seconds(seconds)).unwrap_or(wall)
}

/// Where the day is cut so that no time of the day is cut in two: at midnight unless that is between two that belong
/// together, else in the middle of the longest quiet time.
fn day_begin(walls: &[NaiveDateTime]) -> i64 {
    let mut times: Vec<i64> = walls.iter().map(|wall| i64::from(wall.num_seconds_from_midnight())).collect();
    times.sort_unstable();
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return 0 };
    if first + DAY_S - last > SLOT_S || last - first <= SLOT_S {
        return 0;
    }
    let quiet = times.windows(2).max_by_key(|pair| pair[1] - pair[0]);
    quiet.map_or(0, |pair| i64::midpoint(pair[0], pair[1]))
}

/// The pattern that describes `dates` best.
fn pattern(dates: &[NaiveDate]) -> Option<Pattern> {
    let (first, last) = (*dates.first()?, *dates.last()?);
    let mut steps: Vec<i64> = dates.windows(2).map(|pair| pair[1].signed_duration_since(pair[0]).num_days()).collect();
    steps.sort_unstable();
    let shortest = *steps.first()?;
    // What happened once where there is more to go by is a hole, or the seam between what was thinned out and what not.
    let repeated = steps.chunk_by(|a, b| a == b).filter(|same| same.len() > 1 || steps.len() < 3);
    let mut found: Vec<Pattern> = repeated.map(|same| Pattern::Every(same[0], last)).collect();
    if last.signed_duration_since(first).num_days() >= WEEKS_DAYS {
        found.push(Pattern::Week(week(dates, first, last)));
    }
    if dates.len() > 2 && shortest > 27 {
        // A month without such a day ends earlier.
        found.push(Pattern::Month(dates.iter().map(|date| date.day()).max().unwrap_or(1)));
    }
    let judged = found.into_iter().filter_map(|pattern| Some((pattern.misses(dates)?, pattern)));
    judged.min_by_key(|(misses, _)| *misses).map(|(_, pattern)| pattern).or(Some(Pattern::Every(shortest, last)))
}

/// The days of the week with something in at least half of the weeks.
fn week(dates: &[NaiveDate], first: NaiveDate, last: NaiveDate) -> [bool; 7] {
    let (mut had, mut all) = ([0; 7], [0; 7]);
    let index = |date: &NaiveDate| date.weekday().num_days_from_monday() as usize;
    dates.iter().for_each(|date| had[index(date)] += 1);
    first.iter_days().take_while(|date| *date <= last).for_each(|date| all[index(&date)] += 1);
    std::array::from_fn(|day| had[day] > 0 && had[day] * 2 >= all[day])
}

/// The times of the day that were used on at least half of so many days, each the middle one of those that belong
/// together.
fn slots(walls: &[NaiveDateTime], days: usize) -> Vec<i64> {
    let mut times: Vec<(i64, NaiveDate)> =
        walls.iter().map(|wall| (i64::from(wall.num_seconds_from_midnight()), wall.date())).collect();
    times.sort_unstable();
    let middle = |times: &[(i64, NaiveDate)]| times[times.len() / 2].0;
    let usual = |times: &&[(i64, NaiveDate)]| {
        let mut dates: Vec<NaiveDate> = times.iter().map(|(_, date)| *date).collect();
        dates.sort_unstable();
        dates.dedup();
        dates.len() * 2 >= days
    };
    let found: Vec<i64> = times.chunk_by(|a, b| b.0 - a.0 <= SLOT_S).filter(usual).map(middle).collect();
    if found.is_empty() { vec![middle(&times)] } else { found }
}

impl Rhythm {
    /// All that comes after `after`, up to and with `until`; ascending.
    pub fn between(&self, after: Time, until: Time) -> Vec<Time> {
        match &self.when {
            When::Steps(seconds, last) => {
                let skip = after.since(*last).max(-1).div_euclid(*seconds);
                let mut next = last.plus((skip + 1) * seconds);
                let mut found = Vec::new();
                while next <= until {
                    found.push(next);
                    next = next.plus(*seconds);
                }
                found
            }
            When::Days { pattern, slots, begin } => {
                let date = |time| moved(self.zone.local(time), -begin).date();
                // Around a change of the clock a day may begin earlier or end later.
                let first = date(after).pred_opt().unwrap_or(NaiveDate::MIN);
                let last = date(until).succ_opt().unwrap_or(NaiveDate::MAX);
                let days = first.iter_days().take_while(|date| *date <= last).filter(|date| pattern.holds(*date));
                let all = days.flat_map(|date| slots.iter().map(move |slot| (date, *slot)));
                let moments = all.filter_map(|(date, slot)| self.moment(date, slot + begin));
                moments.filter(|time| *time > after && *time <= until).collect()
            }
        }
    }

    fn moment(&self, date: NaiveDate, second: i64) -> Option<Time> {
        self.zone.moment(moved(date.and_time(NaiveTime::MIN), second))
    }

    /// The shortest time between two of one day; a day where there is one a day.
    pub fn spacing(&self) -> i64 {
        match &self.when {
            When::Steps(seconds, _) => *seconds,
            When::Days { slots, .. } => {
                let around = slots.first().zip(slots.last()).map(|(first, last)| first + DAY_S - last);
                slots.windows(2).map(|pair| pair[1] - pair[0]).chain(around).min().unwrap_or(DAY_S)
            }
        }
    }
}

/// For people: `daily 02:00`, `Sun 03:00`, `every 2 d 02:00`, `monthly on 15 02:00`, `every 60 min`.
impl std::fmt::Display for Rhythm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pattern, slots, begin) = match &self.when {
            When::Steps(seconds, _) => {
                return write!(f, "every {}", bak_common::units::show_duration(*seconds));
            }
            When::Days { pattern, slots, begin } => (pattern, slots, begin),
        };
        match pattern {
            Pattern::Every(1, _) => write!(f, "daily")?,
            Pattern::Every(7, date) => write!(f, "{}", self.weekday(date.weekday(), slots, *begin))?,
            Pattern::Every(days, _) => write!(f, "every {days} d")?,
            Pattern::Week(days) => {
                let named =
                    (0..7_u8).filter(|day| days[usize::from(*day)]).filter_map(|day| Weekday::try_from(day).ok());
                let named: Vec<String> = named.map(|day| self.weekday(day, slots, *begin).to_string()).collect();
                write!(f, "{}", if named.len() == 7 { "daily".to_owned() } else { named.join(",") })?;
            }
            Pattern::Month(day) => write!(f, "monthly on {day}")?,
        }
        let second = slots.first().map_or(0, |slot| (slot + begin).rem_euclid(DAY_S));
        match slots.len() {
            0 | 1 => write!(f, " {:02}:{:02}", second / 3600, second / 60 % 60),
            times => write!(f, ", {times} times"),
        }
    }
}

impl Rhythm {
    /// What the calendar calls a day that begins elsewhere than at midnight.
    fn weekday(&self, day: Weekday, slots: &[i64], begin: i64) -> Weekday {
        if slots.first().is_some_and(|slot| slot + begin >= DAY_S) { day.succ() } else { day }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "Europe/Berlin";

    fn time(text: &str) -> Time {
        text.parse().unwrap()
    }

    /// Moments on Berlin's clock, as `20 02:00` in November 2026 or `10-20 02:00`; several times after one day.
    fn walls(text: &str) -> Vec<Time> {
        let zone: Zone = BERLIN.parse().unwrap();
        let (mut day, mut found) = (String::new(), Vec::new());
        for word in text.split_whitespace() {
            if word.contains(':') {
                let wall = format!("2026-{day}T{word}:00");
                found.push(zone.moment(wall.parse().unwrap()).unwrap());
            } else {
                day = if word.contains('-') { word.to_owned() } else { format!("11-{word:0>2}") };
            }
        }
        found
    }

    fn nights(days: impl Iterator<Item = u32>) -> String {
        days.map(|day| format!("{day} 02:00 ")).collect()
    }

    /// November 2026: the 1st is a Sunday.
    #[test]
    fn patterns_judged_by_hand() {
        let table: &[(&str, String, &str, &str)] = &[
            ("two nights", nights(18..20), "daily 02:00", "21 02:00 22 02:00"),
            ("nights", nights(10..20), "daily 02:00", "21 02:00 22 02:00"),
            ("a night missed", nights((10..20).filter(|d| *d != 15)), "daily 02:00", "21 02:00 22 02:00"),
            ("the last night missed", nights(10..19), "daily 02:00", "21 02:00 22 02:00"),
            ("thinned to Sundays by retention", nights([1, 8, 15, 17, 18, 19].into_iter()), "daily 02:00", "21 02:00"),
            ("Sundays", "10-25 03:00 1 03:00 8 03:00 15 03:00".into(), "Sun 03:00", "22 03:00 29 03:00"),
            ("two Sundays", "8 03:00 15 03:00".into(), "Sun 03:00", "22 03:00 29 03:00"),
            ("a Sunday missed", "10-25 03:00 1 03:00 15 03:00".into(), "Sun 03:00", "22 03:00 29 03:00"),
            (
                "a Sunday guest, dumped by hand on a Wednesday",
                "10-25 03:00 1 03:00 8 03:00 15 03:00 18 14:00".into(),
                "Sun 03:00",
                "22 03:00 29 03:00",
            ),
            (
                "working days",
                nights((1..=20).filter(|d| ![1, 7, 8, 14, 15].contains(d))),
                "Mon,Tue,Wed,Thu,Fri 02:00",
                "23 02:00 24 02:00 25 02:00 26 02:00 27 02:00 30 02:00",
            ),
            ("every other day", nights((6..20).step_by(2)), "every 2 d 02:00", "22 02:00 24 02:00 26 02:00"),
            ("every other day, once missed", nights([6, 8, 12, 14, 16, 18].into_iter()), "every 2 d 02:00", "22 02:00"),
            ("Monday and Thursday", nights([2, 5, 9, 12, 16, 19].into_iter()), "Mon,Thu 02:00", "23 02:00 26 02:00"),
            (
                "twice a day",
                "17 08:00 12:00 18 08:00 12:00 19 08:00 12:00 20 08:00".into(),
                "daily, 2 times",
                "20 12:00 21 08:00 12:00",
            ),
            ("a dump by hand at noon", format!("{} 19 12:10", nights(12..20)), "daily 02:00", "21 02:00"),
            ("a start that wanders", "15 02:10 16 02:00 17 02:31 18 02:05 19 02:12".into(), "daily 02:10", "21 02:10"),
            (
                "around midnight",
                "15 23:55 17 00:05 18 00:02 18 23:58 20 00:01".into(),
                "daily 00:01",
                "21 00:01 22 00:01",
            ),
            ("monthly", "8-15 01:00 9-15 01:00 10-15 01:00 11-15 01:00".into(), "monthly on 15 01:00", "12-15 01:00"),
            ("at the end of months", "8-31 01:00 9-30 01:00 10-31 01:00".into(), "monthly on 31 01:00", "30 01:00"),
            ("hourly", "20 03:00 04:00 05:00 06:00 07:00 08:00 09:00".into(), "every 60 min", "20 10:00 11:00"),
            (
                "every six hours",
                "18 00:00 06:00 12:00 18:00 19 00:00 06:00 12:00 18:00 20 00:00 06:00".into(),
                "daily, 4 times",
                "20 12:00 18:00 21 00:00 06:00",
            ),
        ];
        let zone: Zone = BERLIN.parse().unwrap();
        for (what, history, text, next) in table {
            let found = rhythm(&walls(history), zone).unwrap();
            assert_eq!(found.to_string(), *text, "{what}");
            let next = walls(next);
            let coming = found.between(walls("20 09:30")[0], time("2027-01-01T00:00:00Z"));
            assert_eq!(coming[..next.len()], next, "{what}");
        }
    }

    #[test]
    fn the_time_of_the_day_is_kept_when_the_clock_changes() {
        let zone: Zone = BERLIN.parse().unwrap();
        let found = rhythm(&walls("10-21 02:30 10-22 02:30 10-23 02:30"), zone).unwrap();
        let coming = found.between(time("2026-10-23T12:00:00Z"), time("2026-10-27T00:00:00Z"));
        let expected = ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        assert_eq!(coming, expected.map(time));
    }

    #[test]
    fn what_shows_no_rhythm() {
        for history in ["", "20 02:00", "20 02:00 02:10", "20 02:00 20 02:00"] {
            assert_eq!(rhythm(&walls(history), Zone::Local), None, "{history}");
        }
    }

    #[test]
    fn every_so_often_begins_at_the_first() {
        let first = time("2026-11-20T06:00:00Z");
        let daily = every(DAY_S, first, "UTC".parse().unwrap());
        assert_eq!(daily.between(first.plus(-1), first.plus(DAY_S)), [first, first.plus(DAY_S)]);
        let hours = every(36 * 3600, first, "UTC".parse().unwrap());
        assert_eq!(hours.between(first.plus(-1), first.plus(2 * DAY_S)), [first, first.plus(36 * 3600)]);
    }
}
