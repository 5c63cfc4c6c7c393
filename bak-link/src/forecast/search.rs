//! The smallest limit that keeps every guest within its target. Pure.
//!
//! Limits are tried as people write them, in steps of at most a tenth ([`grid`]). More room does not help everybody at
//! every moment (what fits in after another may be pushed out by it), so what is found is enough, and a step less, and a
//! tenth less, is not; that nothing much smaller would be is likely, not certain.

use bak_common::calendar::Time;
use bak_common::units::{Limit, Period, size};

use super::play::play;
use super::stage::Stage;

/// How far below all that is to go together the search first looks: most often that is not enough, and quickly found so.
const FIRST_LOOK: u64 = 4096;

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
    let one = |period: Period| {
        let over = |until| play(stage, &[], until, true).over;
        if let Some((guest, at)) = over(stage.glance) {
            return Smallest::Never { period, guest, at };
        }
        let others: Vec<Limit> = limits.iter().filter(|limit| limit.period != period).copied().collect();
        let alone = !others.is_empty() && !enough(stage, &others, stage.search_until);
        let beside = if alone { &[][..] } else { &others };
        let search = Search { stage, period, beside, grid: grid() };
        let high = search.step_of(stage.everything());
        let near = search.between(stage.glance, search.step_of(stage.everything() / FIRST_LOOK), high);
        if stage.glance == stage.search_until || search.enough(near, stage.search_until) {
            return Smallest::Enough { limit: search.limit(near), alone };
        }
        match over(stage.search_until) {
            Some((guest, at)) => Smallest::Never { period, guest, at },
            None => Smallest::Enough { limit: search.limit(search.between(stage.search_until, near, high)), alone },
        }
    };
    periods.into_iter().map(one).collect()
}

/// Whether everybody is within their target under these limits.
pub fn enough(stage: &Stage, limits: &[Limit], until: Time) -> bool {
    let fits = |at: usize| stage.never(at, limits).is_none() || stage.never(at, &[]).is_some();
    (0..stage.guests.len()).all(fits) && play(stage, limits, until, true).over.is_none()
}

/// The search for the limit of one period beside those of others.
struct Search<'a> {
    stage: &'a Stage,
    period: Period,
    beside: &'a [Limit],
    grid: Vec<u64>,
}

impl Search<'_> {
    fn limit(&self, step: usize) -> Limit {
        Limit { bytes: self.grid[step], period: self.period }
    }

    /// The first step that is not less.
    fn step_of(&self, bytes: u64) -> usize {
        self.grid.partition_point(|size| *size < bytes).min(self.grid.len() - 1)
    }

    fn enough(&self, step: usize, until: Time) -> bool {
        let limits: Vec<Limit> = self.beside.iter().copied().chain([self.limit(step)]).collect();
        enough(self.stage, &limits, until)
    }

    /// The smallest step that is enough; `high` is. Looked for first from `low` on.
    fn between(&self, until: Time, mut low: usize, mut high: usize) -> usize {
        if self.enough(low, until) {
            (low, high) = (0, low);
            if self.enough(low, until) {
                return low;
            }
        }
        loop {
            while high - low > 1 {
                let middle = usize::midpoint(low, high);
                if self.enough(middle, until) {
                    high = middle;
                } else {
                    low = middle;
                }
            }
            let tenth_less = self.step_of(tenth_less(self.grid[high]));
            if tenth_less >= low || !self.enough(tenth_less, until) {
                return high;
            }
            (low, high) = (0, tenth_less);
        }
    }
}

fn tenth_less(bytes: u64) -> u64 {
    bytes - bytes / 10
}

/// The limits that a search shows not to be enough, if that one is the smallest: a step less, and a tenth less, rounded up
/// to a step.
#[cfg(test)]
pub fn too_small(limit: Limit) -> Vec<Limit> {
    let grid = grid();
    let step = |bytes: u64| grid.partition_point(|size| *size < bytes);
    let less = [step(limit.bytes).checked_sub(1), Some(step(tenth_less(limit.bytes)))];
    let less = less.into_iter().flatten().map(|step| Limit { bytes: grid[step], ..limit });
    less.filter(|less| less.bytes < limit.bytes).collect()
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
