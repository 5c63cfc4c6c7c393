//! A day of a simulation as a calendar of the months that hold dumps: three beside each other, in less than 80 columns.

use bak_common::calendar::{Time, Zone};
use chrono::{Datelike, Days, NaiveDate};
use std::collections::BTreeMap;

/// Months beside each other.
const ACROSS: usize = 3;
/// Seven days of three columns.
const WIDTH: usize = 21;

/// The calendar: days with a dump by their number (`+` behind it: several), other days as dots.
pub fn calendar(exists: &[Time], zone: Zone) -> String {
    let mut counts: BTreeMap<NaiveDate, usize> = BTreeMap::new();
    for time in exists {
        *counts.entry(zone.local(*time).date()).or_default() += 1;
    }
    let mut months: Vec<NaiveDate> = counts.keys().filter_map(|day| day.with_day(1)).collect();
    months.dedup();
    let mut text = String::new();
    for row in months.chunks(ACROSS) {
        let blocks: Vec<Vec<String>> = row.iter().map(|month| block(*month, &counts)).collect();
        for line in 0..blocks.iter().map(Vec::len).max().unwrap_or(0) {
            let cell = |block: &Vec<String>| format!("{:WIDTH$}", block.get(line).map_or("", String::as_str));
            let cells: Vec<String> = blocks.iter().map(cell).collect();
            text.push_str(cells.join("   ").trim_end());
            text.push('\n');
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// One month: its name, and a line for each of its weeks, which begin on Monday.
fn block(month: NaiveDate, counts: &BTreeMap<NaiveDate, usize>) -> Vec<String> {
    let mut lines = vec![format!("{:^20}", month.format("%B %Y").to_string()), "Mo Tu We Th Fr Sa Su".to_owned()];
    let mut line = " ".repeat(3 * month.weekday().num_days_from_monday() as usize);
    let days = (0..31).filter_map(|day| month.checked_add_days(Days::new(day)));
    for day in days.filter(|day| day.month() == month.month()) {
        line.push_str(&match counts.get(&day) {
            None => " · ".to_owned(),
            Some(1) => format!("{:2} ", day.day()),
            Some(_) => format!("{:2}+", day.day()),
        });
        if day.weekday().num_days_from_monday() == 6 {
            lines.push(std::mem::take(&mut line));
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_that_hold_dumps() {
        let times = ["2026-02-01T01:00:00Z", "2026-06-15T01:00:00Z", "2026-06-15T02:00:00Z", "2026-06-30T23:00:00Z"];
        let text = calendar(&times.map(|time| time.parse().unwrap()), "UTC".parse().unwrap());
        let expected = "   February 2026             June 2026
Mo Tu We Th Fr Sa Su    Mo Tu We Th Fr Sa Su
                   1     ·  ·  ·  ·  ·  ·  ·
 ·  ·  ·  ·  ·  ·  ·     ·  ·  ·  ·  ·  ·  ·
 ·  ·  ·  ·  ·  ·  ·    15+ ·  ·  ·  ·  ·  ·
 ·  ·  ·  ·  ·  ·  ·     ·  ·  ·  ·  ·  ·  ·
 ·  ·  ·  ·  ·  ·        · 30";
        assert_eq!(text, expected);
        assert_eq!(calendar(&[], "UTC".parse().unwrap()), "");
    }
}
