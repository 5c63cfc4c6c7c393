//! The smallest limit that keeps every guest within its target. Pure.
//!
//! Limits are tried as people write them, in steps of at most a tenth ([`grid`]). More room does not help everybody at
//! every moment (what fits in after another may be pushed out by it), so what is found is enough, and a step less, and a
//! tenth less, is not; that nothing much smaller would be is likely, not certain.

use bak_common::calendar::Time;
use bak_common::units::{Limit, Period};

use super::play::play;
use super::stage::Stage;

/// How far below the limit that is surely enough the search first looks: most often that is not enough, and found so
/// quickly.
const FIRST_LOOK: u64 = 64;

/// For the limits of one period, taken by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Smallest {
    Enough(Limit),
    /// Without any limit this guest is staler than it may be after the pass at that time.
    Never { period: Period, guest: usize, at: Time },
}

/// For each limit in force the smallest that would do alone; for a pass if there is none.
pub fn smallest(stage: &Stage, limits: &[Limit]) -> Vec<Smallest> {
    let mut periods: Vec<Period> = limits.iter().map(|limit| limit.period).collect();
    periods.sort_unstable();
    periods.dedup();
    if periods.is_empty() {
        periods.push(Period::Pass);
    }
    let free = play(stage, &[], stage.search_until, false);
    let sent = free.sends.iter().map(|sent| sent.cost.max(sent.wire));
    let counted = stage.traffic.iter().map(|(_, bytes)| *bytes);
    let overhead = stage.overhead.saturating_mul(stage.passes.len() as u64);
    let most = sent.chain(counted).fold(overhead, u64::saturating_add);
    let one = |period: Period| match free.over {
        Some((guest, at)) => Smallest::Never { period, guest, at },
        None => Smallest::Enough(Limit { bytes: search(stage, period, most), period }),
    };
    periods.into_iter().map(one).collect()
}

/// Whether everybody is within their target under this limit alone.
pub fn enough(stage: &Stage, limit: Limit) -> bool {
    let fits = |at: usize| stage.never(at, &[limit]).is_none() || stage.never(at, &[]).is_some();
    (0..stage.guests.len()).all(fits) && play(stage, &[limit], stage.search_until, true).over.is_none()
}

/// `most` bytes are enough.
fn search(stage: &Stage, period: Period, most: u64) -> u64 {
    let grid = grid();
    let is_enough = |step: usize| enough(stage, Limit { bytes: grid[step], period });
    let step_of = |bytes: u64| grid.partition_point(|size| *size < bytes).min(grid.len() - 1);
    let mut high = step_of(most.saturating_mul(2));
    let mut low = step_of(most / FIRST_LOOK);
    if is_enough(low) {
        (low, high) = (0, low);
    }
    if low == 0 && is_enough(0) {
        return grid[0];
    }
    loop {
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if is_enough(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        let tenth_less = step_of(grid[high] - grid[high] / 10);
        if tenth_less >= low || !is_enough(tenth_less) {
            return grid[high];
        }
        (low, high) = (0, tenth_less);
    }
}

/// Sizes of two digits, or three that end in 0, in binary units: `1.1G`, `12G`, `130G`.
fn grid() -> Vec<u64> {
    let units = (0..6).map(|power| 1_u64 << (10 * power));
    let of = |unit: u64| {
        let tenths = (10..100).map(move |tenths| (u128::from(unit) * tenths).div_ceil(10) as u64);
        let ones = (10..100).map(move |ones| unit * ones);
        let tens = (10..=102).map(move |tens| unit * tens * 10);
        tenths.chain(ones).chain(tens)
    };
    let mut sizes: Vec<u64> = units.flat_map(of).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_tenth_at_most_and_are_written_in_two_digits() {
        let grid = grid();
        assert_eq!((grid[0], grid.contains(&(12 << 30)), grid.contains(&(13 << 34))), (1, true, false));
        for pair in grid.windows(2).filter(|pair| pair[0] >= 10) {
            assert!(pair[1] * 10 <= pair[0] * 11 + 10, "{pair:?}");
        }
    }
}
