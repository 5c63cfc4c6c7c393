//! How one dump goes: at once, or in a way that bears being cut; and in blocks of which size. Pure.
//!
//! What is cut and resumed sends the checksums of its basis anew each time. Up to two thirds of a slice that is cheaper
//! than larger blocks, which send more; beyond, the blocks are larger. Where that does not help the slice is not begun.

/// How a dump goes over the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// It may be cut, so the far side must first hold a copy of its basis as its partial file.
    pub sliced: bool,
    /// rsync's block size in bytes.
    pub block: u64,
}

/// rsync's largest block, in bytes.
const LARGEST: u64 = 128 << 10;

/// A slice below this gets nowhere, in bytes.
const SLICE_LEAST: u64 = 16 << 10;

/// The block size for a delta of a file of this size, in bytes.
///
/// Small blocks send least: 4 KiB is what disk images change in. Each block costs about 8 bytes of checksums on the way
/// back and about 100 bytes of memory here, so there are at most 2 Mi of them, up to rsync's largest block, 128 KiB: 4 KiB
/// up to 8 GiB, then in proportion, 128 KiB from 256 GiB on.
pub fn block_size(bytes: u64) -> u64 {
    const SMALLEST: u64 = 4096;
    const BLOCKS: u64 = 2 << 20;
    (SMALLEST * bytes.div_ceil(SMALLEST * BLOCKS)).clamp(SMALLEST, LARGEST)
}

/// About so many bytes of checksums come back for a basis of this size: 7 to 10 a block were measured.
pub fn sums(basis: u64, block: u64) -> u64 {
    basis.div_ceil(block).saturating_mul(9)
}

/// The most that data of this size can cost in one go: what can't be compressed, and the checksums of its basis.
pub fn at_once(bytes: u64, basis: u64, block: u64) -> u64 {
    bytes.saturating_add(bytes / 128).saturating_add(sums(basis, block)).saturating_add(4 << 10)
}

/// The way of a dump that costs no checksums and may be cut.
pub fn enough(largest: u64, room: Option<u64>) -> Option<Way> {
    room.is_none_or(|room| room >= SLICE_LEAST).then(|| Way { sliced: true, block: block_size(largest) })
}

/// The way of a dump of which all files have `bytes`, the largest `largest`, and what deltas are made against `basis`.
/// `room` is what it may cost, `again` whether it was begun before, or may be cut all the same. `None` if the room is too small to get anywhere.
pub fn way(bytes: u64, largest: u64, basis: u64, room: Option<u64>, again: bool) -> Option<Way> {
    let block = block_size(largest);
    let Some(room) = room else { return Some(Way { sliced: again, block }) };
    if room >= at_once(bytes, basis, block) {
        return Some(Way { sliced: again, block });
    }
    // What has arrived is a basis, too, when it is resumed.
    let summed = basis.max(bytes);
    let sizes = std::iter::successors(Some(block), |size| (*size < LARGEST).then(|| (*size * 2).min(LARGEST)));
    let mut fitting = sizes.filter(|size| room >= SLICE_LEAST && sums(summed, *size) <= room / 4 * 3);
    fitting.next().map(|block| Way { sliced: true, block })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn block_sizes() {
        for (bytes, block) in [
            (0, 4096),
            (1, 4096),
            (8 << 30, 4096),
            ((8 << 30) + 1, 8192),
            (100 << 30, 13 * 4096),
            (256 << 30, 128 << 10),
            (2 << 40, 128 << 10),
        ] {
            assert_eq!(block_size(bytes), block, "{bytes}");
        }
    }

    #[test]
    fn ways() {
        const M: u64 = 1 << 20;
        const G: u64 = 1 << 30;
        let go = |block| Some(Way { sliced: false, block });
        let slice = |block| Some(Way { sliced: true, block });
        for (bytes, basis, room, again, expected) in [
            // Without a limit, at once; what was begun before must keep what has arrived.
            (2 * G, 2 * G, None, false, go(4096)),
            (2 * G, 2 * G, None, true, slice(4096)),
            // It fits whatever it costs.
            (10 * M, 0, Some(11 * M), false, go(4096)),
            (10 * M, 10 * M, Some(10 * M), false, slice(4096)),
            // 2 GiB are 4.5 MiB of checksums at 4 KiB.
            (2 * G, 2 * G, Some(6 * M), false, slice(4096)),
            (2 * G, 2 * G, Some(6 * M - 4), false, slice(8 << 10)),
            (2 * G, 2 * G, Some(M / 4), false, slice(128 << 10)),
            // Nearly all of it would be checksums, or nearly nothing would be left.
            (2 * G, 2 * G, Some(M / 8), false, None),
            (M, 0, Some(16 << 10), false, slice(4096)),
            (M, 0, Some((16 << 10) - 1), false, None),
            // Very small ones fit all the same.
            (1000, 0, Some(6000), false, go(4096)),
        ] {
            assert_eq!(way(bytes, bytes, basis, room, again), expected, "{bytes} {basis} {room:?}");
        }
    }

    proptest! {
        #[test]
        fn most_of_a_slice_is_data(bytes in 0_u64..(1 << 42), basis in 0_u64..(1 << 42), room in 0_u64..(1 << 40), again: bool) {
            if let Some(way) = way(bytes, bytes, basis, Some(room), again) {
                prop_assert!(sums(basis, way.block) <= room / 4 * 3 || room >= at_once(bytes, basis, way.block));
                prop_assert!((4096..=LARGEST).contains(&way.block));
            } else {
                prop_assert!(room < at_once(bytes, basis, block_size(bytes)));
            }
        }
    }
}
