//! Which dumps share their runs: small ones that follow each other. Pure.
//!
//! A dump that goes alone costs about a third of a second for runs of rsync that carry no data, so small ones go together:
//! one run for the data of all, one for their sidecars, one listing. None of them counts as sent before all have crossed,
//! and a batch surely fits into what it may cost: what might be cut goes alone.

use std::collections::HashSet;

/// A larger dump goes alone, in bytes: what a line of 20 Mbit/s carries in the time that its own runs would take.
pub const EACH: u64 = 1 << 20;

/// All dumps of a batch together, in bytes: 54 seconds of such a line, so that what is there already seldom waits longer than that for
/// its sidecar. Each batch costs three runs, and each of these a third of a second and more on a line with long ways or a slow login.
pub const ALL: u64 = 128 << 20;

/// So many dumps at most: names and listings are held in memory.
pub const COUNT: usize = 1000;

/// What decides whether a dump shares its runs with others.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The directory of its guest. A dump is the basis of the guest's next one, so there is one of each in a batch.
    pub place: String,
    pub bytes: u64,
    /// The most that it can cost, in both directions, with all that belongs to it.
    pub most: u64,
    /// Its last attempt failed: whatever was wrong with it must not meet those that are well.
    pub failed: bool,
    /// It goes alone in any case.
    pub alone: bool,
}

/// How many of those that are next, in their order, share their runs, if that may cost `share`; 1 for the first alone.
/// None of them for no limit.
pub fn together(next: impl IntoIterator<Item = Candidate>, share: Option<u64>) -> usize {
    let (mut bytes, mut most, mut count) = (0, 0_u64, 0);
    let (mut places, mut failed) = (HashSet::new(), None);
    for one in next {
        bytes += one.bytes;
        most = most.saturating_add(one.most);
        let fits = one.bytes <= EACH && bytes <= ALL && share.is_none_or(|share| most <= share) && count < COUNT;
        if one.alone || !fits || *failed.get_or_insert(one.failed) != one.failed || !places.insert(one.place) {
            break;
        }
        count += 1;
    }
    count.max(1)
}

/// Divides `sum` in proportion to `weights`, to the byte; evenly if these are all nothing.
pub fn divide(sum: u64, weights: &[u64]) -> Vec<u64> {
    let even = weights.iter().all(|weight| *weight == 0);
    let weight = |weight: &u64| u128::from(if even { 1 } else { *weight });
    let all: u128 = weights.iter().map(weight).sum();
    let (mut upto, mut given) = (0_u128, 0_u64);
    let part = |one: &u64| {
        upto += weight(one);
        // At most `sum`.
        let end = u64::try_from(u128::from(sum) * upto / all.max(1)).unwrap_or(sum);
        let part = end - given;
        given = end;
        part
    };
    weights.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small(place: usize) -> Candidate {
        Candidate { place: format!("g{place}"), bytes: 1000, most: 2000, failed: false, alone: false }
    }

    #[test]
    fn who_goes_together() {
        let four = || (0..4).map(small).collect::<Vec<_>>();
        let with = |at: usize, change: &dyn Fn(&mut Candidate)| {
            let mut all = four();
            change(&mut all[at]);
            all
        };
        for (what, next, share, count) in [
            ("all of them", four(), None, 4),
            ("nobody", vec![], None, 1),
            ("what surely fits", four(), Some(6000), 3),
            ("what surely fits, by a byte less", four(), Some(5999), 2),
            ("the first, even if it does not fit", four(), Some(10), 1),
            ("up to a large one", with(2, &|one| one.bytes = EACH + 1), None, 2),
            ("the largest small one", with(2, &|one| one.bytes = EACH), None, 4),
            ("a large one goes alone", with(0, &|one| one.bytes = EACH + 1), None, 1),
            ("up to one that goes alone", with(3, &|one| one.alone = true), None, 3),
            ("up to another dump of a guest", with(2, &|one| one.place = "g0".into()), None, 2),
            ("up to one that failed", with(1, &|one| one.failed = true), None, 1),
            ("those that failed", four().into_iter().map(|one| Candidate { failed: true, ..one }).collect(), None, 4),
        ] {
            assert_eq!(together(next, share), count, "{what}");
        }
        let many = |bytes: u64| (0..2000).map(move |at| Candidate { bytes, ..small(at) });
        assert_eq!(together(many(1), None), COUNT);
        assert_eq!(together(many(EACH), None), 128);
    }

    #[test]
    fn sums_are_divided() {
        assert_eq!(divide(10, &[1, 1, 2]), [2, 3, 5]);
        assert_eq!(divide(7, &[0, 0]), [3, 4]);
        assert_eq!(divide(7, &[0, 5]), [0, 7]);
        assert_eq!(divide(0, &[3, 5]), [0, 0]);
        assert!(divide(5, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_and_nobody_gets_more_than_a_byte_too_much(
            sum: u64, weights in prop::collection::vec(0_u64..(1 << 50), 1..50)
        ) {
            let parts = divide(sum, &weights);
            prop_assert_eq!(parts.iter().sum::<u64>(), sum);
            let all: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = (u128::from(sum) * u128::from(*weight)).checked_div(all).unwrap_or(u128::from(sum));
                prop_assert!(u128::from(*part).abs_diff(exact) <= 1);
            }
        }

        #[test]
        fn a_batch_never_goes_beyond_what_it_may_cost(
            sizes in prop::collection::vec((0_u64..2 * EACH, any::<bool>()), 0..60), share in 0..2 * ALL
        ) {
            let next: Vec<Candidate> = sizes.iter().enumerate().map(|(at, (bytes, failed))| {
                Candidate { bytes: *bytes, most: bytes + 500, failed: *failed, ..small(at) }
            }).collect();
            let count = together(next.clone(), Some(share));
            prop_assert!(count == 1 || next[..count].iter().map(|one| one.most).sum::<u64>() <= share);
            prop_assert!(count == 1 || next[..count].iter().all(|one| one.bytes <= EACH && one.failed == next[0].failed));
            // And it is as large as it may be.
            let more = &next[..next.len().min(count + 1)];
            let fits = more.iter().map(|one| one.most).sum::<u64>() <= share && more.iter().map(|one| one.bytes).sum::<u64>() <= ALL;
            let alike = more.iter().all(|one| one.bytes <= EACH && one.failed == next[0].failed);
            prop_assert!(more.len() <= count || !fits || !alike);
        }
    }
}
