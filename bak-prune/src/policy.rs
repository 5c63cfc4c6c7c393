//! Proxmox's retention rules over the dumps of one guest. Pure.
//!
//! The dumps are walked newest first, once for each rule, in the order of [`RULES`]. A rule passes over what is decided,
//! and over every period that holds a dump kept by an earlier rule; of the other periods it keeps the newest dump, up to
//! its number, and lets the rest of those periods go. What no rule keeps goes. Periods without a dump do not count.
//!
//! Periods are those of the wall clock. So the hour that comes twice when summer time ends is one hour, and a week is
//! ISO's, with ISO's year. `within` is bak's own: it keeps whatever is younger, after `last` has taken its number and
//! before periods are counted.

use bak_common::calendar::Time;
use bak_common::config::Keep;
use bak_common::units::show_duration;
use chrono::{Datelike, NaiveDate, NaiveDateTime, Timelike};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

/// A rule that keeps dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Last,
    Within,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// The order in which the rules take their turn.
pub const RULES: [Rule; 7] =
    [Rule::Last, Rule::Within, Rule::Hourly, Rule::Daily, Rule::Weekly, Rule::Monthly, Rule::Yearly];

/// When a dump began: the moment, and what the clock on the wall showed.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub started: Time,
    pub local: NaiveDateTime,
}

/// What a rule keeps one dump of. Each kind is a type of its own: week 1 and month 1 must not be taken for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    Moment(Time, NaiveDateTime),
    Hour(NaiveDate, u32),
    Day(NaiveDate),
    Week(i32, u32),
    Month(i32, u32),
    Year(i32),
}

/// What becomes of a dump, by the rules alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep(Hold),
    /// Why each rule did not keep it; what came closest is first.
    Remove(Vec<Miss>),
}

/// Why a dump is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// There is no rule at all.
    NoRule,
    All,
    /// By this rule, as its `ordinal`th.
    Rule {
        rule: Rule,
        ordinal: usize,
    },
}

/// Why a rule did not keep a dump. The numbers are places in the slice given to [`judge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Another dump is kept in the same period.
    Held { rule: Rule, by: usize },
    /// The rule had kept its number before it came to this dump.
    Used { rule: Rule, of: u32, oldest: usize },
    /// It is older than `within` by so much.
    Older { within_s: u64, by_s: i64 },
}

impl Rule {
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Within => "within",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// Its number in `keep`; for `within` its seconds. 0 is off.
    fn setting(self, keep: &Keep) -> u64 {
        let number = match self {
            Self::Last => keep.last,
            Self::Within => keep.within.map(|span| span.0),
            Self::Hourly => keep.hourly,
            Self::Daily => keep.daily,
            Self::Weekly => keep.weekly,
            Self::Monthly => keep.monthly,
            Self::Yearly => keep.yearly,
        };
        number.unwrap_or(0)
    }

    pub fn period(self, moment: &Moment) -> Period {
        let local = moment.local;
        match self {
            Self::Last | Self::Within => Period::Moment(moment.started, local),
            Self::Hourly => Period::Hour(local.date(), local.hour()),
            Self::Daily => Period::Day(local.date()),
            Self::Weekly => Period::Week(local.iso_week().year(), local.iso_week().week()),
            Self::Monthly => Period::Month(local.year(), local.month()),
            Self::Yearly => Period::Year(local.year()),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moment(_, local) => write!(f, "{}", local.format("%Y-%m-%d %H:%M")),
            Self::Hour(day, hour) => write!(f, "{day} {hour:02}h"),
            Self::Day(day) => write!(f, "{day}"),
            Self::Week(year, week) => write!(f, "{year}-W{week:02}"),
            Self::Month(year, month) => write!(f, "{year}-{month:02}"),
            Self::Year(year) => write!(f, "{year}"),
        }
    }
}

impl Hold {
    /// This for people, about the dump begun at `moment`.
    pub fn say(&self, moment: &Moment) -> String {
        match self {
            Self::NoRule => "no rule says what to keep: everything is kept".to_owned(),
            Self::All => "all are kept".to_owned(),
            Self::Rule { rule, ordinal } => format!("{} #{ordinal}, {}", rule.name(), rule.period(moment)),
        }
    }
}

impl Miss {
    /// This for people; `dump` tells when the dump at a place of the slice began, and what to call it.
    pub fn say<'a>(&self, dump: impl Fn(usize) -> (Moment, &'a str)) -> String {
        match self {
            Self::Held { rule, by } => {
                let (moment, id) = dump(*by);
                format!("{} {} is held by {id}", rule.name(), rule.period(&moment))
            }
            Self::Used { rule, of, oldest } => {
                let local = dump(*oldest).0.local;
                let oldest = match rule {
                    Rule::Last | Rule::Within | Rule::Hourly => local.format("%Y-%m-%d %H:%M"),
                    _ => local.format("%Y-%m-%d"),
                };
                format!("{}: {of} of {of} used, oldest {oldest}", rule.name())
            }
            Self::Older { within_s, by_s } => {
                let within = show_duration(i64::try_from(*within_s).unwrap_or(i64::MAX));
                format!("within {within}: too old by {}", show_duration(*by_s))
            }
        }
    }

    /// The same with other numbers for the dumps.
    pub fn renumbered(self, number: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Held { rule, by } => Self::Held { rule, by: number(by) },
            Self::Used { rule, of, oldest } => Self::Used { rule, of, oldest: number(oldest) },
            older @ Self::Older { .. } => older,
        }
    }

    /// How much later the dump should have begun for this rule to keep it, in seconds.
    fn distance(&self, dump: &Moment, dumps: &[Moment]) -> i64 {
        match self {
            Self::Held { .. } => 0,
            Self::Used { oldest, .. } => dumps[*oldest].started.since(dump.started),
            Self::Older { by_s, .. } => *by_s,
        }
    }
}

/// Whether there is a rule that could let anything go.
pub fn removes(keep: &Keep) -> bool {
    keep.all != Some(true) && RULES.iter().any(|rule| rule.setting(keep) > 0)
}

/// One verdict for each dump of a guest, in their order. Of dumps that began in the same second the first is the newest.
pub fn judge(dumps: &[Moment], keep: &Keep, now: Time) -> Vec<Verdict> {
    if !removes(keep) {
        let hold = if keep.all == Some(true) { Hold::All } else { Hold::NoRule };
        return vec![Verdict::Keep(hold); dumps.len()];
    }
    let mut walk = Walk::over(dumps);
    for rule in RULES {
        match (rule, rule.setting(keep)) {
            (_, 0) => {}
            (Rule::Within, seconds) => walk.keep_within(seconds, now),
            (rule, number) => walk.keep_periods(rule, number),
        }
    }
    walk.verdicts()
}

/// Which dump holds each period.
#[derive(Default)]
struct Holders {
    by_period: HashMap<Period, usize>,
    /// The earliest on the wall clock, and its period.
    earliest: Option<(NaiveDateTime, Period)>,
}

impl Holders {
    /// The first to hold a period keeps it.
    fn add(&mut self, rule: Rule, at: usize, moment: &Moment) {
        let period = rule.period(moment);
        self.by_period.entry(period).or_insert(at);
        if self.earliest.is_none_or(|(earliest, _)| moment.local < earliest) {
            self.earliest = Some((moment.local, period));
        }
    }

    /// Who holds this period. Most dumps are older than all holders, and then only the earliest can hold theirs, as periods
    /// follow each other on the wall clock.
    fn of(&self, local: NaiveDateTime, period: &Period) -> Option<usize> {
        let (earliest, held) = self.earliest?;
        if local < earliest && *period != held {
            return None;
        }
        self.by_period.get(period).copied()
    }

    fn count(&self) -> usize {
        self.by_period.len()
    }
}

/// How far the rules have come.
struct Walk<'a> {
    dumps: &'a [Moment],
    /// Places of the dumps, newest first.
    order: Vec<usize>,
    kept: Vec<Option<Hold>>,
    removed: Vec<bool>,
    misses: Vec<Vec<Miss>>,
}

impl<'a> Walk<'a> {
    fn over(dumps: &'a [Moment]) -> Self {
        let mut order: Vec<usize> = (0..dumps.len()).collect();
        order.sort_by_key(|at| Reverse(dumps[*at].started));
        let count = dumps.len();
        Self { dumps, order, kept: vec![None; count], removed: vec![false; count], misses: vec![Vec::new(); count] }
    }

    fn open(&self) -> Vec<usize> {
        self.order.iter().copied().filter(|at| self.kept[*at].is_none() && !self.removed[*at]).collect()
    }

    fn keep_within(&mut self, seconds: u64, now: Time) {
        let mut ordinal = 0;
        for at in self.open() {
            let by_s = now.since(self.dumps[at].started).saturating_sub(i64::try_from(seconds).unwrap_or(i64::MAX));
            if by_s < 0 {
                ordinal += 1;
                self.kept[at] = Some(Hold::Rule { rule: Rule::Within, ordinal });
            } else {
                self.misses[at].push(Miss::Older { within_s: seconds, by_s });
            }
        }
    }

    fn keep_periods(&mut self, rule: Rule, number: u64) {
        // Whoever holds a period already, by an earlier rule; and by this one.
        let mut already = Holders::default();
        for at in self.order.iter().copied().filter(|at| self.kept[*at].is_some()) {
            already.add(rule, at, &self.dumps[at]);
        }
        let mut new = Holders::default();
        let mut oldest = None;
        let mut ended = false;
        // Said only where the rule has kept its number, which no dumps in memory are too many for.
        let of = u32::try_from(number).unwrap_or(u32::MAX);
        for at in self.open() {
            let (local, period) = (self.dumps[at].local, rule.period(&self.dumps[at]));
            if let Some(by) = already.of(local, &period) {
                self.miss(at, Miss::Held { rule, by });
            } else if let Some(by) = new.of(local, &period) {
                self.miss(at, Miss::Held { rule, by });
                // Beyond its end the walk decides nothing any more; it only says why.
                self.removed[at] |= !ended;
            } else if let Some(oldest) = oldest.filter(|_| new.count() as u64 >= number) {
                self.miss(at, Miss::Used { rule, of, oldest });
                ended = true;
            } else {
                new.add(rule, at, &self.dumps[at]);
                oldest = Some(at);
                self.kept[at] = Some(Hold::Rule { rule, ordinal: new.count() });
            }
        }
    }

    /// Notes why a rule passed over a dump. That a coarser period is held by the same dump says nothing new.
    fn miss(&mut self, at: usize, miss: Miss) {
        let holder = |miss: &Miss| if let Miss::Held { by, .. } = miss { Some(*by) } else { None };
        let said = holder(&miss).is_some_and(|by| self.misses[at].iter().any(|old| holder(old) == Some(by)));
        if !said {
            self.misses[at].push(miss);
        }
    }

    fn verdicts(self) -> Vec<Verdict> {
        let Self { dumps, kept, misses, .. } = self;
        let verdict = |(at, (kept, mut misses)): (usize, (Option<Hold>, Vec<Miss>))| match kept {
            Some(hold) => Verdict::Keep(hold),
            None => {
                misses.sort_by_key(|miss| miss.distance(&dumps[at], dumps));
                misses.shrink_to_fit();
                Verdict::Remove(misses)
            }
        };
        kept.into_iter().zip(misses).enumerate().map(verdict).collect()
    }
}
