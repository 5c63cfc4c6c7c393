//! What a pass does, as functions of what is pending, what was sent and what is over there. Pure.

use bak_common::far::{FarFile, FarKind};
use bak_common::record::{Dump, FileEntry};

/// Where rsync keeps what has arrived of a file, beside it.
pub const PARTIAL: &str = ".part";

/// Dumps in the order in which they go: those whose last attempt failed go last, so that one bad dump never holds the
/// others; then as bak-link ranked them, older runs of it first.
pub fn order(mut pending: Vec<Dump>, dest: &str) -> Vec<Dump> {
    pending.sort_by_cached_key(|dump| {
        let note = dump.link.get(dest);
        let failed = note.is_some_and(|note| note.error.is_some());
        (failed, note.map(|note| note.at), note.and_then(|note| note.rank), dump.started, dump.id.clone())
    });
    pending
}

/// What is known of a dump over there before it is sent.
#[derive(Debug, PartialEq, Eq)]
pub enum There {
    Nothing,
    /// Its sidecar is there: it may have arrived already.
    Sidecar,
    /// Something there is not the directory that it should be: rsync would replace it, or write through it.
    InTheWay(String),
    /// Data without a sidecar: our own unfinished work. It is compared, never believed.
    Begun,
}

pub fn there(dump: &Dump, place: &str, basis: &str, listing: &[FarFile]) -> There {
    let dirs = [place.to_owned(), format!("{place}/{PARTIAL}"), basis.to_owned(), format!("{basis}/{place}")];
    if let Some(file) = listing.iter().find(|file| file.kind != FarKind::Dir && dirs.contains(&file.name)) {
        return There::InTheWay(file.name.clone());
    }
    let has = |name: &str| listing.iter().any(|file| file.name == format!("{place}/{name}"));
    if has(&dump.stem.sidecar()) {
        There::Sidecar
    } else if dump.files.iter().any(|file| has(&file.name)) {
        There::Begun
    } else {
        There::Nothing
    }
}

/// What of a dump a listing does not show as it should be; `None` if all of it has arrived.
pub fn missing(dump: &Dump, place: &str, sidecar_bytes: usize, listing: &[FarFile]) -> Option<String> {
    let sidecar = (dump.stem.sidecar(), sidecar_bytes as u64);
    let files = dump.files.iter().map(|file| (file.name.clone(), file.bytes));
    files.chain([sidecar]).find_map(|(name, bytes)| {
        let path = format!("{place}/{name}");
        match listing.iter().find(|file| file.name == path) {
            None => Some(format!("{name} is not there")),
            Some(file) if file.kind != FarKind::File => Some(format!("{name} is not a regular file there")),
            Some(file) if file.bytes != bytes => {
                Some(format!("{name} has {} bytes there instead of {bytes}", file.bytes))
            }
            Some(_) => None,
        }
    })
}

/// For one file of a dump, the file over there that it is likely to share most with: the same part of this guest's newest
/// dump that was sent and is there whole.
pub fn basis<'a>(
    dump: &Dump,
    file: &FileEntry,
    place: &str,
    history: &[Dump],
    listing: &'a [FarFile],
) -> Option<&'a FarFile> {
    let part = dump.stem.extension(&file.name)?;
    let mut older: Vec<&Dump> = history.iter().filter(|old| old.key() == dump.key() && old.id != dump.id).collect();
    older.sort_by_key(|old| std::cmp::Reverse(old.started));
    older.iter().find_map(|old| {
        let same = old.files.iter().find(|f| old.stem.extension(&f.name) == Some(part))?;
        let path = format!("{place}/{}", same.name);
        listing.iter().find(|there| {
            there.name == path && there.kind == FarKind::File && there.bytes == same.bytes && there.bytes > 0
        })
    })
}

/// The block size for a delta of a file of this size, in bytes.
///
/// Small blocks send least: 4 KiB is what disk images change in. Each block costs about 8 bytes of checksums on the way
/// back and about 100 bytes of memory here, so there are at most 2 Mi of them, up to rsync's largest block, 128 KiB: 4 KiB
/// up to 8 GiB, then in proportion, 128 KiB from 256 GiB on.
pub fn block_size(bytes: u64) -> u64 {
    const SMALLEST: u64 = 4096;
    const LARGEST: u64 = 128 << 10;
    const BLOCKS: u64 = 2 << 20;
    (SMALLEST * bytes.div_ceil(SMALLEST * BLOCKS)).clamp(SMALLEST, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::calendar::Time;
    use bak_common::name::{GuestName, Stem};
    use bak_common::record::{Guest, LinkNote};
    use proptest::prelude::*;

    fn dump(vm: &str, started: &str, note: Option<(&str, u64, Option<&str>)>) -> Dump {
        let guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
        let started: Time = started.parse().unwrap();
        let mut dump = Dump::of(&guest, started, Stem::of(&guest.vm, started));
        dump.files = vec![FileEntry {
            name: format!("{}.qcow2", dump.stem),
            bytes: 10,
            sha256: None,
            extra: Default::default(),
        }];
        dump.bytes = 10;
        if let Some((at, rank, error)) = note {
            let note = LinkNote {
                decision: "linked".into(),
                why: String::new(),
                at: at.parse().unwrap(),
                rank: Some(rank),
                staleness_s: None,
                cost: None,
                size: None,
                remaining: None,
                tries: None,
                error: error.map(str::to_owned),
                extra: Default::default(),
            };
            dump.link.insert("box".into(), note);
        }
        dump
    }

    fn far(name: &str, bytes: u64) -> FarFile {
        FarFile { name: name.into(), bytes, modified: "2026-01-01T00:00:00Z".parse().unwrap(), kind: FarKind::File }
    }

    #[test]
    fn who_failed_goes_last_the_others_by_rank() {
        let (one, two) = ("2026-11-20T01:00:00Z", "2026-11-21T01:00:00Z");
        let pending = vec![
            dump("a", one, Some((one, 1, Some("disk full")))),
            dump("b", one, Some((two, 1, None))),
            dump("c", one, Some((one, 3, None))),
            dump("d", one, Some((one, 2, None))),
        ];
        let order: Vec<String> = order(pending, "box").iter().map(|d| d.vm.to_string()).collect();
        assert_eq!(order, ["d", "c", "b", "a"]);
    }

    #[test]
    fn arrival_needs_every_file_in_its_size() {
        let dump = dump("web", "2026-11-20T01:00:00Z", None);
        let (data, sidecar) = ("web/web-20261120T010000Z.qcow2", "web/web-20261120T010000Z.dump.json");
        assert_eq!(missing(&dump, "web", 99, &[far(data, 10), far(sidecar, 99)]), None);
        for (listing, why) in [
            (vec![far(sidecar, 99)], "is not there"),
            (vec![far(data, 9), far(sidecar, 99)], "9 bytes there instead of 10"),
            (vec![far(data, 10)], "dump.json is not there"),
            (vec![far(data, 10), FarFile { kind: FarKind::Other, ..far(sidecar, 99) }], "not a regular file"),
        ] {
            assert!(missing(&dump, "web", 99, &listing).unwrap().contains(why), "{why}");
        }
        assert_eq!(there(&dump, "web", ".basis", &[]), There::Nothing);
        assert_eq!(there(&dump, "web", ".basis", &[far(data, 10)]), There::Begun);
        assert_eq!(there(&dump, "web", ".basis", &[far(sidecar, 1)]), There::Sidecar);
        for name in ["web", "web/.part", ".basis", ".basis/web"] {
            assert_eq!(there(&dump, "web", ".basis", &[far(name, 1), far(sidecar, 1)]), There::InTheWay(name.into()));
        }
    }

    #[test]
    fn the_basis_is_the_newest_of_this_guest_that_is_there() {
        let new = dump("web", "2026-11-20T01:00:00Z", None);
        let history = [
            dump("web", "2026-11-17T01:00:00Z", None),
            dump("web", "2026-11-18T01:00:00Z", None),
            dump("web", "2026-11-19T01:00:00Z", None),
            dump("web-2", "2026-11-19T01:00:00Z", None),
        ];
        let listing = [
            far("web/web-20261117T010000Z.qcow2", 10),
            far("web/web-20261118T010000Z.qcow2", 10),
            far("web/web-20261119T010000Z.qcow2", 9),
        ];
        assert_eq!(
            basis(&new, &new.files[0], "web", &history, &listing).unwrap().name,
            "web/web-20261118T010000Z.qcow2"
        );
        assert!(basis(&new, &new.files[0], "web", &history[3..], &listing).is_none());
    }

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

    proptest! {
        #[test]
        fn the_order_does_not_depend_on_the_input(seed in prop::collection::vec((0_u8..5, 0_u64..5, any::<bool>()), 1..20)) {
            let at = "2026-11-20T01:00:00Z";
            let pending: Vec<Dump> = seed.iter().enumerate().map(|(i, (day, rank, failed))| {
                dump(&format!("g{i}"), &format!("2026-11-1{day}T01:00:00Z"), Some((at, *rank, failed.then_some("x"))))
            }).collect();
            let mut reversed = pending.clone();
            reversed.reverse();
            let ids = |dumps: Vec<Dump>| dumps.into_iter().map(|d| d.id).collect::<Vec<_>>();
            prop_assert_eq!(ids(order(pending, "box")), ids(order(reversed, "box")));
        }
    }
}
