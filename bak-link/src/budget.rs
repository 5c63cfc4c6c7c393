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
    /// What the ledger counted.
    pub used: i64,
    /// What was charged for what was pending before.
    pub pending: i64,
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

impl Over {
    /// Whether it cannot go as long as the limits are what they are: those of periods don't yield.
    pub fn is_hopeless(&self) -> bool {
        self.never && self.limit.period != Period::Pass
    }
}

/// What an oversized dump on its way is charged of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Nothing,
    Half,
    Whole,
}

/// A dump that asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub cost: u64,
    /// What leaves when it is let in: what that was expected to cost, and what it still does.
    pub replaces: Option<(u64, u64)>,
    pub priority: i64,
}

/// What was charged.
#[derive(Clone, Copy, Debug, Default)]
struct Charged {
    /// Bytes of dumps that a pass can carry.
    fitting: i128,
    /// Bytes that oversized ones still need, and how many they are.
    slices: i128,
    oversized: usize,
    dumps: usize,
}

/// The limits of one plan, and what was charged to them.
#[derive(Debug)]
pub struct Budget {
    lines: Vec<(Limit, i128)>,
    /// Whether the first dump may be larger than a pass.
    oversize: bool,
    /// Charge a dump larger than a pass in full, as it is carried at once.
    overdraft: bool,
    share: Share,
    charged: Charged,
    /// What is pending of that.
    pending: Charged,
    /// The lowest priority of which something was taken.
    lowest: Option<i64>,
}

impl Budget {
    pub fn new(caps: &[Cap], oversize: bool, overdraft: bool) -> Self {
        let line = |cap: &Cap| (cap.limit, i128::from(cap.limit.bytes) - i128::from(cap.used));
        let (lines, charged, pending) = (caps.iter().map(line).collect(), Charged::default(), Charged::default());
        Self { lines, oversize, overdraft, share: Share::Half, charged, pending, lowest: None }
    }

    /// Sets what oversized dumps are charged together.
    pub fn share(&mut self, share: Share) {
        self.share = share;
    }

    /// The tightest limit of a pass.
    fn pass(&self) -> Option<Limit> {
        let passes = self.lines.iter().map(|(limit, _)| *limit).filter(|limit| limit.period == Period::Pass);
        passes.min_by_key(|limit| limit.bytes)
    }

    fn half(&self) -> Option<u64> {
        self.pass().map(|limit| limit.bytes / 2)
    }

    /// Whether a dump of this cost is carried in slices.
    pub fn is_oversized(&self, cost: u64) -> bool {
        !self.overdraft && self.pass().is_some_and(|limit| cost > limit.bytes)
    }

    /// Whether a dump of this cost fits into a pass, but not beside an oversized one's half.
    pub fn needs_more_than_half(&self, cost: u64) -> bool {
        !self.is_oversized(cost) && self.pass().is_some_and(|limit| cost > limit.bytes - limit.bytes / 2)
    }

    /// Charges what is pending already: what it was `expected` to cost, and what it still does.
    pub fn pending(&mut self, expected: u64, cost: u64) {
        self.charged = self.with(self.charged, expected, cost, 1);
        self.pending = self.charged;
    }

    /// Lets a dump in if every limit bears it, or if the rule for oversized dumps does.
    pub fn take(&mut self, ask: &Ask) -> Result<Taken, Over> {
        let mut then = self.charged;
        if let Some((expected, cost)) = ask.replaces {
            then = self.with(then, expected, cost, -1);
        }
        let pass = self.pass().filter(|limit| ask.cost > limit.bytes);
        let exempt = pass.is_some_and(|limit| {
            self.oversize
                && match ask.replaces {
                    // It has the place of one that was let through so.
                    Some((expected, _)) if !self.overdraft => expected > limit.bytes,
                    _ => then.dumps == 0 || self.leaves_half(ask, &then),
                }
        });
        then = self.with(then, ask.cost, ask.cost, 1);
        let over = self.lines.iter().filter_map(|line| {
            let (now, left) = (self.left_of(line, &self.charged), self.left_of(line, &then));
            // What replaces another may not fit either, but is no worse. (An oversized one's share is no room for others.)
            let no_worse = ask.replaces.is_some() && left >= now && then.fitting <= self.charged.fitting;
            let bears = left >= 0 || no_worse;
            let is_pass = line.0.period == Period::Pass;
            // An oversized dump is charged little of a pass, and yet must not be one of several.
            let (exempt, barred) = (is_pass && exempt, is_pass && pass.is_some() && !exempt);
            (!exempt && (!bears || barred)).then(|| (line.0, self.by(line, ask, left)))
        });
        // Of several limits the one to name is that which it never fits into, else that which it misses by most.
        let over = over.map(|(limit, by)| Over { limit, by, never: ask.cost > limit.bytes });
        if let Some(over) = over.max_by_key(|over| (over.is_hopeless(), over.by, over.limit.period)) {
            return Err(over);
        }
        self.charged = then;
        self.lowest = Some(self.lowest.map_or(ask.priority, |lowest| lowest.min(ask.priority)));
        Ok(pass.map_or(Taken::Fits, Taken::Oversize))
    }

    /// Whether, although something was taken before it, a dump larger than a pass may go: as the head of its priority, if
    /// those of higher ones leave it half of the pass. It is carried in slices, so that is all it needs.
    fn leaves_half(&self, ask: &Ask, then: &Charged) -> bool {
        let head = self.pending.dumps == 0 && self.lowest.is_none_or(|lowest| lowest > ask.priority);
        let room = self.lines.iter().filter(|(limit, _)| limit.period == Period::Pass);
        let half = self.half().map_or(0, i128::from);
        head && !self.overdraft
            && then.oversized == 0
            && room.map(|line| self.left_of(line, then)).all(|left| left >= half)
    }

    /// By how much a dump misses a limit.
    fn by(&self, line: &(Limit, i128), ask: &Ask, left: i128) -> u64 {
        let sliced = line.0.period == Period::Pass && self.is_oversized(ask.cost);
        let missing = if sliced { i128::from(ask.cost) - self.left_of(line, &self.charged) } else { -left };
        u64::try_from(missing.max(0)).unwrap_or(u64::MAX)
    }

    /// `charged`, and a dump more or (`count` is -1) less.
    fn with(&self, mut charged: Charged, expected: u64, cost: u64, count: i8) -> Charged {
        let bytes = i128::from(cost) * i128::from(count);
        charged.dumps = charged.dumps.saturating_add_signed(count.into());
        if self.is_oversized(expected) {
            charged.slices += bytes;
            charged.oversized = charged.oversized.saturating_add_signed(count.into());
        } else {
            charged.fitting += bytes;
        }
        charged
    }

    /// What is left of a limit. Dumps larger than a pass are carried in slices, one after the other, so all of them take no
    /// more than their share of a pass. Of a calendar period every dump takes what it costs.
    fn left_of(&self, (limit, bytes): &(Limit, i128), charged: &Charged) -> i128 {
        let slices = match (limit.period, self.share, self.pass()) {
            (Period::Pass, Share::Nothing, _) => 0,
            (Period::Pass, Share::Half, Some(pass)) => charged.slices.min((pass.bytes / 2).into()),
            (Period::Pass, Share::Whole, Some(pass)) => charged.slices.min(pass.bytes.into()),
            _ => charged.slices,
        };
        bytes - charged.fitting - slices
    }

    /// What is left of each limit.
    pub fn left(&self) -> Vec<Left> {
        // In range: it was clamped.
        let clamp = |bytes: i128| bytes.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        let left = |line: &(Limit, i128)| Left {
            limit: line.0,
            used: clamp(i128::from(line.0.bytes) - line.1),
            pending: clamp(line.1 - self.left_of(line, &self.pending)),
            bytes: clamp(self.left_of(line, &self.charged)),
        };
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
        Budget::new(&caps, true, overdraft)
    }

    fn ask(cost: u64) -> Ask {
        Ask { cost, replaces: None, priority: 0 }
    }

    fn left(budget: &Budget) -> Vec<i64> {
        budget.left().iter().map(|left| left.bytes).collect()
    }

    #[test]
    fn an_exact_fit_fits_and_a_byte_more_does_not() {
        let mut budget = budget(&[("100", 0)], false);
        assert_eq!(budget.take(&ask(60)), Ok(Taken::Fits));
        assert_eq!(budget.take(&ask(41)).unwrap_err().by, 1);
        assert_eq!(budget.take(&ask(40)), Ok(Taken::Fits));
        assert_eq!(budget.remaining(), Some(0));
        assert!(budget.take(&ask(1)).is_err());
    }

    #[test]
    fn of_several_limits_each_holds_and_the_tightest_remains() {
        let mut budget = budget(&[("100", 0), ("150/day", 100), ("1000/month", 10)], false);
        let over = budget.take(&ask(70)).unwrap_err();
        assert_eq!((over.limit.period, over.by, over.never), (Period::Day, 20, false));
        assert_eq!(budget.take(&ask(30)), Ok(Taken::Fits));
        assert_eq!(budget.remaining(), Some(20));
        assert_eq!(left(&budget), [70, 20, 960]);
    }

    #[test]
    fn larger_than_a_pass_goes_first_and_alone_may_be_charged_in_three_ways() {
        for (overdraft, share, remaining) in
            [(false, Share::Half, 50), (false, Share::Whole, 0), (true, Share::Half, -200)]
        {
            let mut budget = budget(&[("100", 0)], overdraft);
            budget.share(share);
            assert!(matches!(budget.take(&ask(300)), Ok(Taken::Oversize(_))));
            assert_eq!(budget.remaining(), Some(remaining));
            assert!(budget.take(&ask(300)).is_err(), "only the first");
        }
        let mut never = budget(&[("100", 0)], false);
        never.oversize = false;
        assert!(never.take(&ask(300)).unwrap_err().never);
    }

    #[test]
    fn a_period_does_not_yield_to_an_oversized_dump() {
        let mut budget = budget(&[("100", 0), ("250/day", 0)], false);
        assert!(budget.take(&ask(300)).unwrap_err().never);
        // It was not charged, so the next is still the first.
        assert!(matches!(budget.take(&ask(200)), Ok(Taken::Oversize(_))));
        assert_eq!(left(&budget), [50, 50]);
    }

    #[test]
    fn what_the_ledger_counted_may_exceed_the_limit() {
        let mut budget = budget(&[("100/day", u64::MAX)], true);
        assert!(budget.take(&ask(0)).is_err());
        assert!(budget.remaining().unwrap() < 0);
    }

    #[test]
    fn an_oversized_dump_on_its_way_takes_its_share_and_at_most_what_it_still_needs() {
        for (expected, cost, share, remaining) in [
            (300, 250, Share::Half, 50),
            (300, 250, Share::Nothing, 100),
            (300, 30, Share::Half, 70),
            // Not larger than a pass: it is charged what it needs.
            (90, 80, Share::Half, 20),
        ] {
            let mut budget = budget(&[("100", 0), ("1000/week", 0)], false);
            budget.pending(expected, cost);
            budget.share(share);
            assert_eq!(left(&budget), [remaining, 1000 - cost as i64]);
        }
        // Two of them, after one failed and was tried again, share one half.
        let mut budget = budget(&[("100", 0)], false);
        budget.pending(300, 300);
        budget.pending(400, 400);
        assert_eq!(budget.remaining(), Some(50));
    }

    #[test]
    fn what_replaces_another_is_charged_instead_of_it() {
        let replacing = |cost, old| Ask { cost, replaces: Some((old, old)), priority: 0 };
        let mut budget = budget(&[("100", 0)], false);
        budget.pending(40, 40);
        budget.pending(30, 30);
        assert_eq!(budget.take(&replacing(80, 40)).unwrap_err().by, 10);
        assert_eq!(budget.take(&replacing(70, 40)), Ok(Taken::Fits));
        assert_eq!(budget.remaining(), Some(0));
        // What is larger than a pass takes the place of its like only.
        assert!(budget.take(&replacing(300, 70)).is_err());
        budget.pending(200, 200);
        assert!(matches!(budget.take(&replacing(300, 200)), Ok(Taken::Oversize(_))));
        assert_eq!(budget.take(&replacing(20, 30)), Ok(Taken::Fits), "over the limit already, but less so");
    }

    #[test]
    fn an_overdraft_replaces_another_where_it_is_alone() {
        let replacing = Ask { cost: 310, replaces: Some((300, 300)), priority: 0 };
        for (beside, goes) in [(None, true), (Some(1), false)] {
            let mut budget = budget(&[("100", 0)], true);
            budget.pending(300, 300);
            beside.into_iter().for_each(|cost| budget.pending(cost, cost));
            assert_eq!(budget.take(&replacing).is_ok(), goes);
        }
    }

    #[test]
    fn the_head_of_a_lower_priority_goes_in_slices_if_half_is_left() {
        for (above, goes) in [(0, true), (50, true), (51, false)] {
            let mut budget = budget(&[("100", 0)], false);
            budget.take(&Ask { priority: 1, ..ask(above) }).unwrap();
            assert_eq!(budget.take(&ask(300)).is_ok(), goes);
            // Even if the first one leaves half, there is only one at a time.
            assert!(budget.take(&Ask { priority: -1, ..ask(300) }).is_err());
        }
        let mut same = budget(&[("100", 0)], false);
        same.take(&ask(1)).unwrap();
        assert!(same.take(&ask(300)).is_err(), "not the head");
    }
}
