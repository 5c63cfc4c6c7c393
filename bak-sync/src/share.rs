//! How what a pass may carry is shared among the dumps that wait. Pure.
//!
//! Dumps go in their order, each with all that is left. The exception is a dump expected to cost more than a whole pass,
//! which crosses in slices: it goes after the others, and half of a pass is kept for it, so that neither it nor they ever
//! starve. Nothing is kept for it where bak-link has let in a dump that needs more than the other half: it does so in every
//! second pass. With an overdraft the first dump of a pass may finish beyond the limits of a pass, and nothing is kept. Limits of
//! calendar periods hold always.

use bak_common::period::{Cap, show_limit};
use bak_common::units::{Limit, Period};

/// Less than this is not worth a look at the far side, nor a dump of any size, in bytes.
pub const LEAST: u64 = 8 << 10;

/// What is left of the limits in a running pass.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Less than nothing where more was used than is allowed.
    lines: Vec<(Limit, i128)>,
    overdraft: bool,
    /// A dump was begun: only the first has the overdraft.
    begun: bool,
    /// In this pass nothing is kept for an oversized dump.
    yields: bool,
}

impl Budget {
    pub fn new(caps: &[Cap], overdraft: bool) -> Self {
        let line = |cap: &Cap| (cap.limit, i128::from(cap.limit.bytes) - i128::from(cap.used));
        Self { lines: caps.iter().map(line).collect(), overdraft, begun: false, yields: false }
    }

    /// Takes over what others have used of the limits of calendar periods meanwhile. What is left of the pass stays.
    pub fn refresh(&mut self, caps: &[Cap]) {
        let now = Self::new(caps, self.overdraft);
        for ((limit, left), (_, there)) in self.lines.iter_mut().zip(now.lines) {
            if limit.period != Period::Pass {
                *left = (*left).min(there);
            }
        }
    }

    /// Each limit with what is left of it; less than nothing where more was used.
    pub fn lines(&self) -> &[(Limit, i128)] {
        &self.lines
    }

    /// Whether any limit is a calendar's, which others may use up.
    pub fn shared(&self) -> bool {
        self.lines.iter().any(|(limit, _)| limit.period != Period::Pass)
    }

    /// Charges what has crossed.
    pub fn spend(&mut self, bytes: u64) {
        for (_, left) in &mut self.lines {
            *left -= i128::from(bytes);
        }
    }

    /// A dump is begun.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Whether the next dump may finish beyond the limits of a pass.
    pub fn exempts(&self) -> bool {
        self.overdraft && !self.begun
    }

    fn binding(&self) -> impl Iterator<Item = &(Limit, i128)> {
        let exempt = self.exempts();
        self.lines.iter().filter(move |(limit, _)| !(exempt && limit.period == Period::Pass))
    }

    /// What may cross until the pass ends, or, before the first dump of one with an overdraft, until that has ended. None
    /// without a limit.
    pub fn left(&self) -> Option<i128> {
        self.binding().map(|(_, left)| *left).min()
    }

    /// The limit of which least is left.
    pub fn tightest(&self) -> Option<String> {
        self.binding().min_by_key(|(_, left)| *left).map(|(limit, _)| show_limit(*limit))
    }

    /// Whether a dump that is expected to cost so much is carried in slices, after the others.
    pub fn is_oversized(&self, cost: u64) -> bool {
        let passes = || self.lines.iter().filter(|(limit, _)| limit.period == Period::Pass);
        !self.overdraft && passes().any(|(limit, _)| cost > limit.bytes)
    }

    /// What the next dump may carry, where dumps with these expected costs come after it. None without a limit.
    pub fn share(&self, cost: u64, after: &[u64]) -> Option<u64> {
        let kept = !self.yields && !self.is_oversized(cost) && after.iter().any(|cost| self.is_oversized(*cost));
        let share = |(limit, left): &(Limit, i128)| match limit.period {
            Period::Pass if kept => left - i128::from(limit.bytes / 2),
            _ => *left,
        };
        self.binding().map(share).min().map(|left| u64::try_from(left.max(0)).unwrap_or(u64::MAX))
    }
}

/// Brings those into their order that cost more than a pass: after the others, else as they are.
pub fn arrange<T>(order: Vec<T>, budget: &mut Budget, cost: impl Fn(&T) -> u64) -> Vec<T> {
    let half = |cost: u64| {
        budget.lines.iter().any(|(limit, _)| limit.period == Period::Pass && cost > limit.bytes - limit.bytes / 2)
    };
    budget.yields = order.iter().map(&cost).any(|cost| !budget.is_oversized(cost) && half(cost));
    let budget = &*budget;
    let (oversized, mut arranged): (Vec<T>, Vec<T>) =
        order.into_iter().partition(|item| budget.is_oversized(cost(item)));
    arranged.extend(oversized);
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::units::limit;
    use proptest::prelude::*;

    fn budget(caps: &[(&str, u64)], overdraft: bool) -> Budget {
        let cap = |(text, used): &(&str, u64)| Cap { limit: limit(text).unwrap().unwrap(), used: *used };
        Budget::new(&caps.iter().map(cap).collect::<Vec<_>>(), overdraft)
    }

    #[test]
    fn the_share_of_the_next_dump() {
        type Row = (&'static [(&'static str, u64)], bool, u64, &'static [u64], Option<u64>);
        let table: [Row; 8] = [
            (&[], false, 50, &[500], None),
            (&[("100", 0)], false, 50, &[], Some(100)),
            // An oversized one waits: half is kept for it, and it gets all that is left.
            (&[("100", 0)], false, 50, &[20, 101], Some(50)),
            (&[("100", 0)], false, 101, &[], Some(100)),
            // What others used of the day; the tighter one holds.
            (&[("100", 0), ("1000/day", 930)], false, 50, &[101], Some(50)),
            (&[("100", 0), ("1000/day", 970)], false, 50, &[101], Some(30)),
            (&[("100", 0), ("1000/day", 2000)], false, 50, &[], Some(0)),
            // The overdraft is one of the pass alone.
            (&[("100", 0), ("1000/day", 100)], true, 500, &[500], Some(900)),
        ];
        for (caps, overdraft, cost, after, share) in table {
            assert_eq!(budget(caps, overdraft).share(cost, after), share, "{caps:?} {cost} {after:?}");
        }
    }

    #[test]
    fn an_oversized_one_yields_to_one_that_needs_more_than_the_other_half() {
        for (costs, order, first) in [([500, 50, 10], [50, 10, 500], 50), ([500, 10, 51], [10, 51, 500], 100)] {
            let mut budget = budget(&[("100", 0)], false);
            let order_is = arrange(costs.to_vec(), &mut budget, |cost| *cost);
            assert_eq!(order_is, order);
            assert_eq!(budget.share(order[0], &order[1..]), Some(first));
        }
    }

    #[test]
    fn only_the_first_has_the_overdraft() {
        let mut budget = budget(&[("100", 0)], true);
        assert_eq!((budget.left(), budget.share(500, &[])), (None, None));
        budget.begin();
        budget.spend(500);
        assert_eq!((budget.left(), budget.share(1, &[])), (Some(-400), Some(0)));
        assert_eq!(budget.tightest().unwrap(), "100 B a pass");
    }

    #[test]
    fn what_others_use_of_a_period_is_seen_and_what_is_left_of_the_pass_stays() {
        let mut ours = budget(&[("100", 0), ("1000/day", 0)], false);
        ours.spend(30);
        ours.refresh(&[Cap { limit: ours.lines[0].0, used: 0 }, Cap { limit: ours.lines[1].0, used: 980 }]);
        assert_eq!(ours.lines.iter().map(|line| line.1).collect::<Vec<_>>(), [70, 20]);
    }

    /// Plays passes until all has crossed: who sent how much in each.
    fn play(costs: &[u64], limit: u64) -> Vec<Vec<(usize, u64)>> {
        let mut waiting: Vec<(usize, u64, u64)> = costs.iter().enumerate().map(|(i, cost)| (i, *cost, *cost)).collect();
        let mut passes = Vec::new();
        while !waiting.is_empty() {
            let mut budget = budget(&[(&limit.to_string(), 0)], false);
            waiting = arrange(waiting, &mut budget, |(_, cost, _)| *cost);
            let mut sent = Vec::new();
            for at in 0..waiting.len() {
                let after: Vec<u64> = waiting[at + 1..].iter().map(|(_, cost, _)| *cost).collect();
                let share = budget.share(waiting[at].1, &after).unwrap().min(waiting[at].2);
                budget.spend(share);
                waiting[at].2 -= share;
                sent.push((waiting[at].0, share));
            }
            waiting.retain(|(_, _, left)| *left > 0);
            passes.push(sent);
            assert!(passes.len() < 10_000, "it does not end");
        }
        passes
    }

    proptest! {
        #[test]
        fn no_pass_exceeds_its_limit_and_the_oversized_get_their_half(
            costs in prop::collection::vec(1_u64..500, 1..12), limit in 10_u64..200
        ) {
            for (i, pass) in play(&costs, limit).into_iter().enumerate() {
                prop_assert!(pass.iter().map(|(_, bytes)| bytes).sum::<u64>() <= limit);
                let oversized: Vec<_> = pass.iter().filter(|(who, _)| costs[*who] > limit).collect();
                let sum: u64 = oversized.iter().map(|(_, bytes)| bytes).sum();
                // In the first pass each of them needs more than half.
                let yields = costs.iter().any(|cost| *cost <= limit && *cost > limit - limit / 2);
                prop_assert!(i > 0 || oversized.is_empty() || yields || sum >= limit / 2, "{pass:?}");
                // And nothing is left over while something waits.
                let waits = pass.iter().any(|(who, bytes)| *bytes == 0 && costs[*who] <= limit);
                prop_assert!(!waits || sum > 0 || pass.iter().map(|(_, b)| b).sum::<u64>() == limit);
            }
        }
    }
}
