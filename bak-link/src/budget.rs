//! What may still be carried: limits for a pass and for calendar periods, and how each dump is charged to them. Pure.
//!
//! The hazard is the dump larger than a pass may carry: refused, it starves for ever; let through every time, there is no
//! limit. So it is let through only where nothing else is on its way, and a period's limit never yields.

pub use bak_common::period::{Cap, show_limit};
use bak_common::units::{Limit, Period};
use serde::Serialize;

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

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::units::limit;

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
