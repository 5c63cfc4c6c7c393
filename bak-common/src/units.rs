//! Sizes, rates, durations and limits as people write them.
//!
//! `10G` = `10GiB` = 10·1024³ bytes, `10GB` = 10·1000³; rates are bytes a second, or bits with `bit`: `20Mbit`
//! = 20·1000²/8; durations are sums of `s m h d w y`, `7d 36h`; a year is 365 days.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Splits `1.5GiB` into the number and what follows it.
fn number(text: &str) -> Result<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let value: f64 = digits.parse().map_err(|_| anyhow!("`{}` does not begin with a number", text.escape_debug()))?;
    Ok((value, unit.trim()))
}

fn whole(value: f64, text: &str) -> Result<u64> {
    // 2^63 as the end keeps every sum of a few sizes inside i64, where remainders live.
    ensure!(value.is_finite() && value < 9.2e18, "`{}` is too large", text.escape_debug());
    Ok(value.round() as u64)
}

fn prefix(letter: &str, base: f64) -> Option<f64> {
    let power = match letter {
        "" => 0,
        "k" | "K" => 1,
        "M" | "m" => 2,
        "G" | "g" => 3,
        "T" | "t" => 4,
        "P" | "p" => 5,
        _ => return None,
    };
    Some(base.powi(power))
}

/// A size in bytes: `500M`, `10G`, `10GiB`, `10GB`, `1.5T`, `4096`.
pub fn size(text: &str) -> Result<u64> {
    let text = text.trim();
    let (value, unit) = number(text)?;
    let factor = match unit.strip_suffix("iB") {
        Some(letter) => prefix(letter, 1024.0).filter(|_| !letter.is_empty()),
        None => match unit.strip_suffix('B') {
            Some(letter) => prefix(letter, 1000.0),
            None => prefix(unit, 1024.0),
        },
    };
    let factor = factor.with_context(|| format!("`{}` is no size like 500M, 10G or 10GB", text.escape_debug()))?;
    whole(value * factor, text)
}

/// A rate in bytes a second: `512K`, `5M`, `20Mbit`, `200 kbit/s`.
pub fn rate(text: &str) -> Result<u64> {
    let wrong = || format!("`{}` is no rate like 512K or 5M (bytes a second) or 20Mbit", text.escape_debug());
    let text = text.trim().trim_end_matches("/s");
    let Some(bits) = text.strip_suffix("bit") else {
        return size(text).map_err(|_| anyhow!(wrong()));
    };
    let (value, letter) = number(bits).map_err(|_| anyhow!(wrong()))?;
    let factor = prefix(letter, 1000.0).with_context(wrong)?;
    whole(value * factor / 8.0, text)
}

/// A time of the day, `08:00` or `8:00`, in minutes.
pub fn minute(text: &str) -> Result<u32> {
    let part = |text: &str, below: u32| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number: &u32| digits && *number < below)
    };
    let time = text.split_once(':').filter(|(_, minutes)| minutes.len() == 2);
    let time = time.and_then(|(hours, minutes)| Some(part(hours, 24)? * 60 + part(minutes, 60)?));
    time.with_context(|| format!("`{}` is no time of the day like 06:00", text.escape_debug()))
}

/// A duration in seconds: `90s`, `36h`, `7d`, `1d 12h`, `2w`.
pub fn duration(text: &str) -> Result<u64> {
    let wrong = || format!("`{}` is no duration like 90s, 36h or 7d", text.escape_debug());
    let mut rest = text.trim();
    ensure!(!rest.is_empty(), wrong());
    if rest == "0" {
        return Ok(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let (value, after) = number(rest).with_context(wrong)?;
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        total += value
            * match unit {
                "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                "w" => 7.0 * 86_400.0,
                "y" => 365.0 * 86_400.0,
                _ => bail!(wrong()),
            };
        rest = next.trim_start();
    }
    whole(total, text)
}

/// Over what a limit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    Pass,
    Day,
    Week,
    /// From this day of the month (1 to 31) on; a month that lacks the day has its last one instead.
    Month(u32),
}

/// So many bytes on the wire in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Limit {
    pub bytes: u64,
    pub period: Period,
}

/// A limit, `10G`, `10G/day`, `50G/week`, `200G/month`, `200G/month@15`; or `none`.
pub fn limit(text: &str) -> Result<Option<Limit>> {
    let text = text.trim();
    if text == "none" {
        return Ok(None);
    }
    let (bytes, period) = match text.split_once('/') {
        None => (text, Period::Pass),
        Some((bytes, "pass")) => (bytes, Period::Pass),
        Some((bytes, "day")) => (bytes, Period::Day),
        Some((bytes, "week")) => (bytes, Period::Week),
        Some((bytes, "month")) => (bytes, Period::Month(1)),
        Some((bytes, other)) => {
            let day = other.strip_prefix("month@").and_then(|d| d.parse().ok()).filter(|d| (1..=31).contains(d));
            let day = day.with_context(|| {
                format!(
                    "`{}` is no limit like 10G, 10G/day, 50G/week, 200G/month or 200G/month@15 (day 1 to 31)",
                    text.escape_debug()
                )
            })?;
            (bytes, Period::Month(day))
        }
    };
    Ok(Some(Limit { bytes: size(bytes)?, period }))
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes)?;
        match self.period {
            Period::Pass => Ok(()),
            Period::Day => write!(f, "/day"),
            Period::Week => write!(f, "/week"),
            Period::Month(1) => write!(f, "/month"),
            Period::Month(day) => write!(f, "/month@{day}"),
        }
    }
}

impl From<Limit> for String {
    fn from(limit: Limit) -> String {
        limit.to_string()
    }
}

impl TryFrom<String> for Limit {
    type Error = anyhow::Error;
    fn try_from(text: String) -> Result<Self> {
        limit(&text)?.context("`none` is no limit")
    }
}

macro_rules! written {
    ($(#[$doc:meta])* $name:ident, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "u64")]
        pub struct $name(pub u64);
        impl TryFrom<String> for $name {
            type Error = anyhow::Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
        impl std::str::FromStr for $name {
            type Err = anyhow::Error;
            fn from_str(text: &str) -> Result<Self> {
                $parse(text).map(Self)
            }
        }
        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                value.0
            }
        }
    };
}
written!(
    /// Bytes, written as [`size`] reads them.
    Size,
    size
);
written!(
    /// Seconds, written as [`duration`] reads them.
    Span,
    duration
);
written!(
    /// Bytes a second, written as [`rate`] reads them.
    Rate,
    rate
);

/// The sum of sizes, some of which may be no more than claimed: it stays at the end of the numbers.
pub fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// Bytes for people: `1.2 GiB`.
pub fn show_size(bytes: u64) -> String {
    humansize::format_size(bytes, humansize::BINARY.decimal_places(1).decimal_zeroes(0))
}

/// Seconds for people, in the unit that fits: `40 s`, `3.5 h`, `12 d`.
pub fn show_duration(seconds: i64) -> String {
    let size = seconds.unsigned_abs();
    let (value, unit) = match size {
        0..=119 => (seconds as f64, "s"),
        120..=7_199 => (seconds as f64 / 60.0, "min"),
        7_200..=172_799 => (seconds as f64 / 3600.0, "h"),
        _ => (seconds as f64 / 86_400.0, "d"),
    };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5M", 3 << 19),
            ("10k", 10_240),
            ("7B", 7),
            (" 1T ", 1 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "G", "-1", "10X", "10iB", "1e9", "10 G B", "99999999P", "1.2.3", "nan", "inf"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in
            [("5M", 5 << 20), ("20Mbit", 2_500_000), ("512K", 512 << 10), ("20Mbit/s", 2_500_000), ("8bit", 1)]
        {
            assert_eq!(rate(text).unwrap(), bytes, "{text}");
        }
        assert!(rate("20Xbit").is_err() && rate("bit").is_err());
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90s", 90),
            ("7d 36h", 9 * 86_400 - 43_200),
            ("1d12h", 129_600),
            ("2w", 1_209_600),
            ("0", 0),
            ("1.5h", 5400),
            ("1y", 31_536_000),
        ] {
            assert_eq!(duration(text).unwrap(), seconds, "{text}");
        }
        for bad in ["", "7", "7x", "d", "-1d", "7d 3"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits() {
        let month = |day| Period::Month(day);
        for (text, bytes, period) in [
            ("10G", 10 << 30, Period::Pass),
            ("10G/day", 10 << 30, Period::Day),
            ("5GB/week", 5_000_000_000, Period::Week),
            ("1K/month", 1024, month(1)),
            ("1K/month@15", 1024, month(15)),
            ("1K/month@31", 1024, month(31)),
        ] {
            let limit = limit(text).unwrap().unwrap();
            assert_eq!((limit.bytes, limit.period), (bytes, period), "{text}");
            assert_eq!(Limit::try_from(limit.to_string()).unwrap(), limit);
        }
        assert_eq!(limit("none").unwrap(), None);
        for bad in ["", "10G/year", "10G/month@32", "10G/month@0", "10G/month@", "/day"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(show_size(1_288_490_188), "1.2 GiB");
        assert_eq!(show_size(512), "512 B");
        assert_eq!(show_duration(86_400 * 3), "3 d");
        assert_eq!(show_duration(12_600), "3.5 h");
        assert_eq!(show_duration(40), "40 s");
    }
}
