//! What a dump is expected to cost on the wire, judged by what this guest's earlier dumps cost at the same destination. Pure.
//!
//! Too low an estimate fills a pass with more than it can carry, too high a one wastes room, so it errs on the high side:
//! of the last [`LOOK_BACK`] dumps that went as changes against the one before, the dearest counts. Where more time has
//! passed since the last dump than there was before that one, its cost grows in proportion; where less has, it stays, as
//! much the same blocks change every day. A quarter is added. What the dump has grown by must be sent in any case, and so
//! must the checksums of all blocks. It never costs more than its size, and costs its size where nothing tells more: the
//! first time, the second (a first dump, sent whole, says nothing of changes), and when the format changes.

use bak_common::calendar::Time;
use bak_common::record::Dump;
use bak_common::units::show_size;

/// So many changes are looked at.
pub const LOOK_BACK: usize = 5;

/// For each block of 4 KiB the far side sends about 8 bytes of checksums, for at most 2 Mi blocks: see `block_size` of
/// bak-sync.
const CHECKSUMS: (u64, u64) = (512, 16 << 20);

/// What a cost was judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The size was asked for.
    #[default]
    Size,
    /// Nothing of this guest was sent.
    First,
    /// What was sent of this guest has another format, or is so much larger or smaller that it must have.
    Format,
    /// Only one dump was sent, in full: nothing is known of what changes.
    Second,
    /// So many dumps that went as changes, of which one is the dearest.
    Changes(usize),
}

impl Source {
    /// In words, to follow a semicolon; `None` where the cost is the size as a matter of course.
    pub fn explain(self, cost: u64) -> Option<String> {
        match self {
            Source::Size | Source::First => None,
            Source::Format => Some("in full, as it is of another format or size than what was sent".into()),
            Source::Second => Some("in full, as no change was carried yet".into()),
            Source::Changes(1) => Some(format!("costs {}, judged by the last change", show_size(cost))),
            Source::Changes(count) => {
                Some(format!("costs {}, judged by the dearest of the last {count} changes", show_size(cost)))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub bytes: u64,
    pub source: Source,
}

/// A dump of a guest that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    pub started: Time,
    pub size: u64,
    /// Bytes both ways, of all attempts; 0 if nobody counted them.
    pub wire: u64,
    pub format: String,
}

/// Driver and kinds of files: a dump that differs in these shares nothing with the one before.
pub fn format(dump: &Dump) -> String {
    let mut parts: Vec<&str> = dump.files.iter().filter_map(|file| dump.stem.extension(&file.name)).collect();
    parts.sort_unstable();
    format!("{} {}", dump.driver, parts.join(" "))
}

/// What was sent of one guest.
#[derive(Clone, Debug, Default)]
pub struct Past(Vec<Carried>);

impl Past {
    pub fn new(mut carried: Vec<Carried>) -> Self {
        carried.sort_by(|a, b| (&a.format, a.started, a.size, a.wire).cmp(&(&b.format, b.started, b.size, b.wire)));
        Self(carried)
    }

    /// One more was sent; those that no estimate looks at any more are forgotten.
    pub fn add(&mut self, carried: Carried) {
        self.0.retain(|old| old.format == carried.format);
        self.0.push(carried);
        self.0.sort_by_key(|old| old.started);
        let over = self.0.len().saturating_sub(2 * LOOK_BACK);
        self.0.drain(..over);
    }

    /// What a dump of `size` bytes in this format, begun at `started`, is expected to cost.
    pub fn expect(&self, format: &str, started: Time, size: u64) -> Expected {
        let full = |source| Expected { bytes: size, source };
        let begin = self.0.partition_point(|old| old.format.as_str() < format);
        let end = self.0.partition_point(|old| (old.format.as_str(), old.started) < (format, started));
        let Some((last, _)) = self.0[begin..end.max(begin)].split_last() else {
            return full(if self.0.is_empty() { Source::First } else { Source::Format });
        };
        if !alike(last.size, size) {
            return full(Source::Format);
        }
        let gap = |new: Time, old: Time| u128::try_from(new.since(old)).unwrap_or(0).max(1);
        let change = |pair: &[Carried]| {
            let (old, new) = (&pair[0], &pair[1]);
            let known = new.wire > 0 && alike(old.size, new.size);
            let (now, then) = (gap(started, last.started), gap(new.started, old.started));
            known.then(|| u128::from(new.wire) * now.max(then) / then)
        };
        let changes: Vec<u128> = self.0[begin..end].windows(2).rev().filter_map(change).take(LOOK_BACK).collect();
        let Some(dearest) = changes.iter().max() else { return full(Source::Second) };
        let margin = u64::try_from(dearest + dearest / 4).unwrap_or(u64::MAX);
        let bytes = margin.max(size.saturating_sub(last.size)).max(checksums(size)).min(size);
        Expected { bytes, source: Source::Changes(changes.len()) }
    }
}

/// Whether two sizes may be those of two dumps of one format: neither half as large again as the other. Compressed images
/// and plain ones are called alike, and share nothing.
fn alike(a: u64, b: u64) -> bool {
    let (small, large) = (u128::from(a.min(b)), u128::from(a.max(b)));
    large * 2 <= small * 3
}

fn checksums(size: u64) -> u64 {
    (size / CHECKSUMS.0).min(CHECKSUMS.1)
}

/// What a dump that was begun still needs, after `spent` bytes of the `expected` ones. Where more was spent than that, all
/// that is known is its size.
pub fn still(expected: u64, spent: u64, size: u64) -> u64 {
    let left = if spent < expected { expected - spent } else { size.saturating_sub(spent) };
    left.max(checksums(size).min(expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn day(day: i64) -> Time {
        "2026-11-01T06:00:00Z".parse::<Time>().unwrap().plus((day - 1) * 86_400)
    }

    /// `day:size:wire`, in the format `q` unless another follows.
    fn past(text: &str) -> Past {
        let one = |word: &str| {
            let parts: Vec<&str> = word.split(':').collect();
            let number = |at: usize| parts[at].parse().unwrap();
            let format = (*parts.get(3).unwrap_or(&"q")).to_owned();
            Carried { started: day(number(0) as i64), size: number(1), wire: number(2), format }
        };
        Past::new(text.split_whitespace().map(one).collect())
    }

    #[test]
    fn what_a_dump_is_expected_to_cost() {
        use Source::*;
        // What was sent: on which day, how large, for how many bytes; the next dump; what it should cost, and why.
        let table = [
            ("nothing is known", "", (10, 1000), (1000, First)),
            ("one full dump says nothing of changes", "9:1000:1000", (10, 1000), (1000, Second)),
            ("a change, and a quarter", "8:1000:1000 9:1000:40", (10, 1000), (50, Changes(1))),
            ("the dearest counts, not the last", "7:1000:1000 8:1000:80 9:1000:40", (10, 1000), (100, Changes(2))),
            (
                "older than five changes is forgotten",
                "2:1000:1000 3:1000:900 4:1000:40 5:1000:40 6:1000:40 7:1000:40 8:1000:40",
                (9, 1000),
                (50, Changes(5)),
            ),
            ("three days cost three times as much as one", "8:1000:1000 9:1000:40", (12, 1000), (150, Changes(1))),
            ("one day costs as much as three did", "6:1000:1000 9:1000:40", (10, 1000), (50, Changes(1))),
            ("never more than the size", "8:1000:1000 9:1000:900", (10, 1000), (1000, Changes(1))),
            ("at least what it has grown by", "8:1000:1000 9:1000:40", (10, 1200), (200, Changes(1))),
            ("at least the checksums", "8:100000:100000 9:100000:1", (10, 100_000), (195, Changes(1))),
            ("another format", "8:1000:1000:raw 9:1000:40:raw", (10, 1000), (1000, Format)),
            (
                "the format of long ago is known again",
                "6:1000:1000 7:1000:40 9:1000:900:raw",
                (10, 1000),
                (150, Changes(1)),
            ),
            ("half as large again: compressed no more", "8:1000:1000 9:1000:40", (10, 1501), (1501, Format)),
            ("a third smaller: compressed now", "8:1000:1000 9:1000:40", (10, 666), (666, Format)),
            ("what jumped in size was no change", "8:400:400 9:1000:1000", (10, 1000), (1000, Second)),
            ("what nobody counted says nothing", "8:1000:1000 9:1000:0", (10, 1000), (1000, Second)),
            ("later ones are not looked at", "8:1000:1000 11:1000:40", (10, 1000), (1000, Second)),
        ];
        for (what, sent, (on, size), (bytes, source)) in table {
            assert_eq!(past(sent).expect("q", day(on), size), Expected { bytes, source }, "{what}");
        }
    }

    #[test]
    fn what_was_begun_costs_what_it_still_needs() {
        for (expected, spent, size, needs) in [
            (100, 0, 1000, 100),
            (100, 60, 1000, 40),
            // It turned out dearer than expected: now anything up to the size may come.
            (100, 100, 1000, 900),
            (100, 999, 1000, 1),
            (100, 5000, 1000, 1),
            (1, 0, 1, 1),
        ] {
            assert_eq!(still(expected, spent, size), needs, "{expected} {spent} {size}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_estimate_is_never_below_what_is_sure_nor_above_the_size(
            sent in prop::collection::vec((1..40i64, 0..5000u64, 0..5000u64, any::<bool>()), 0..12),
            on in 1..60i64,
            size in 0..6000u64,
        ) {
            let carried = |(on, size, wire, raw): &(i64, u64, u64, bool)| {
                Carried { started: day(*on), size: *size, wire: *wire, format: if *raw { "raw" } else { "q" }.into() }
            };
            let mut all: Vec<Carried> = sent.iter().map(carried).collect();
            let expected = Past::new(all.clone()).expect("q", day(on), size);
            prop_assert!(expected.bytes <= size && expected.bytes >= checksums(size));
            if let Source::Changes(count) = expected.source {
                prop_assert!((1..=LOOK_BACK).contains(&count));
                let mut chain: Vec<&Carried> = all.iter().filter(|c| c.format == "q" && c.started < day(on)).collect();
                chain.sort_by_key(|c| (c.started, c.size, c.wire));
                let last = chain.last().unwrap();
                prop_assert!(expected.bytes >= size.saturating_sub(last.size).min(size));
            } else {
                prop_assert_eq!(expected.bytes, size);
            }
            all.reverse();
            prop_assert_eq!(Past::new(all).expect("q", day(on), size), expected);
        }
    }
}
