//! The smallest limit that keeps every guest within its target. Pure.
//!
//! Limits are tried as people write them, in steps of at most a tenth ([`grid`]). More room does not help everybody at
//! every moment (what fits in after another may be pushed out by it), so what is found is enough, and a step less, and a
//! tenth less, is not; that nothing much smaller would be is likely, not certain.

use bak_common::calendar::Time;
use bak_common::units::{Limit, Period, size};

use super::play::play;
use super::stage::Stage;

/// How far below the limit that is surely enough the search first looks: most often that is not enough, and found so
/// quickly.
const FIRST_LOOK: u64 = 64;

/// For the limits of one period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Smallest {
    /// `alone`: it would do without the limits of other periods, with which none does.
    Enough { limit: Limit, alone: bool },
    /// Without any limit this guest is staler than it may be after the pass at that time.
    Never { period: Period, guest: usize, at: Time },
}

/// For each period with a limit in force the smallest that is enough beside the limits of the others; for a pass if there
/// is none.
pub fn smallest(stage: &Stage, limits: &[Limit]) -> Vec<Smallest> {
    let mut periods: Vec<Period> = limits.iter().map(|limit| limit.period).collect();
    periods.sort_unstable();
    periods.dedup();
    if periods.is_empty() {
        periods.push(Period::Pass);
    }
    let free = play(stage, &[], stage.search_until, false);
    if let Some((guest, at)) = free.over {
        return periods.into_iter().map(|period| Smallest::Never { period, guest, at }).collect();
    }
    let sent = free.sends.iter().map(|sent| sent.cost.max(sent.wire));
    let counted = stage.traffic.iter().map(|(_, bytes)| *bytes);
    let overhead = stage.overhead.saturating_mul(stage.passes.len() as u64);
    let most = sent.chain(counted).fold(overhead, u64::saturating_add);
    let one = |period: Period| {
        let others: Vec<Limit> = limits.iter().filter(|limit| limit.period != period).copied().collect();
        let alone = !others.is_empty() && !enough(stage, &others);
        let beside = if alone { &[][..] } else { &others };
        Smallest::Enough { limit: Limit { bytes: search(stage, period, beside, most), period }, alone }
    };
    periods.into_iter().map(one).collect()
}

/// Whether everybody is within their target under these limits.
pub fn enough(stage: &Stage, limits: &[Limit]) -> bool {
    let fits = |at: usize| stage.never(at, limits).is_none() || stage.never(at, &[]).is_some();
    (0..stage.guests.len()).all(fits) && play(stage, limits, stage.search_until, true).over.is_none()
}

/// The smallest limit that is enough beside `others`; `most` bytes are.
fn search(stage: &Stage, period: Period, others: &[Limit], most: u64) -> u64 {
    let grid = grid();
    let is_enough = |step: usize| {
        let limit = Limit { bytes: grid[step], period };
        enough(stage, &others.iter().copied().chain([limit]).collect::<Vec<_>>())
    };
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

/// A limit as people write it, `1.1G/day`, where that says it exactly.
pub fn spell(limit: Limit) -> String {
    let text = limit.to_string();
    let digits = limit.bytes.to_string();
    let written = |(power, letter): (i32, char)| {
        let number = limit.bytes as f64 / 1024_f64.powi(power);
        let short = format!("{number:.1}");
        let spelled = format!("{}{letter}", short.strip_suffix(".0").unwrap_or(&short));
        (number >= 1.0 && size(&spelled).is_ok_and(|bytes| bytes == limit.bytes)).then_some(spelled)
    };
    let units = [(5, 'P'), (4, 'T'), (3, 'G'), (2, 'M'), (1, 'K')];
    units.into_iter().find_map(written).map_or(text.clone(), |spelled| text.replacen(&digits, &spelled, 1))
}

/// Sizes of two digits, or three that end in 0, in binary units: `1.1G`, `12G`, `130G`.
fn grid() -> Vec<u64> {
    // A petabyte is the end.
    let units = (0..5).map(|power| 1_u64 << (10 * power));
    let of = |unit: u64| {
        let tenths = (10..100).map(move |tenths| (unit * tenths + 5) / 10);
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
    fn sizes_are_spelled_as_they_are_read() {
        for bytes in grid().into_iter().chain([12_345, (13 << 30) / 10 + 7]) {
            for period in [Period::Pass, Period::Month(15)] {
                let text = spell(Limit { bytes, period });
                assert_eq!(bak_common::units::limit(&text).unwrap(), Some(Limit { bytes, period }), "{text}");
            }
        }
        let spelled = |bytes| spell(Limit { bytes, period: Period::Day });
        assert_eq!([1181116006, 12 << 30, 130 << 20, 7].map(spelled), ["1.1G/day", "12G/day", "130M/day", "7/day"]);
    }

    #[test]
    fn steps_are_a_tenth_at_most_and_are_written_in_two_digits() {
        let grid = grid();
        assert_eq!((grid[0], grid.contains(&(12 << 30)), grid.contains(&(13 << 34))), (1, true, false));
        for pair in grid.windows(2).filter(|pair| pair[0] >= 10) {
            assert!(pair[1] * 10 <= pair[0] * 11 + 10, "{pair:?}");
        }
    }
}
