//! What a pass does, as functions of what is pending, what was sent and what is over there. Pure.

use bak_common::far::{DELTA, FarFile, FarKind};
use bak_common::record::{Dump, FileEntry};
use std::collections::{HashMap, HashSet};

/// Where rsync keeps what has arrived of a file, beside it.
pub const PARTIAL: &str = ".part";

/// What arrived of a file is taken up from this size on, in bytes: it costs some runs and about 1 KB.
const WORTHWHILE: u64 = 256 << 10;

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

/// A listing by the directories of guests, so that what a guest has is found without going through all of it: what lies
/// there, and what in our directory of bases is about it.
pub fn by_place<'a>(listing: &'a [FarFile], basis: &str) -> HashMap<&'a str, Vec<&'a FarFile>> {
    let mut places: HashMap<&str, Vec<&FarFile>> = HashMap::new();
    for file in listing {
        let below = file.name.strip_prefix(basis).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&file.name);
        let place = below.split_once('/').map_or(below, |(place, _)| place);
        places.entry(place).or_default().push(file);
    }
    places
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

/// What a file is likely to share most with: the same part of an older dump of its guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    pub dump: Dump,
    pub file: FileEntry,
    pub there: FarFile,
}

/// For one file of a dump, the file over there that it is likely to share most with: the same part of this guest's newest
/// dump that was sent and is there whole.
pub fn basis(dump: &Dump, file: &FileEntry, place: &str, history: &[Dump], listing: &[FarFile]) -> Option<Basis> {
    let part = dump.stem.extension(&file.name)?;
    let mut older: Vec<&Dump> = others(dump, history).collect();
    older.sort_by_key(|old| std::cmp::Reverse(old.started));
    older.iter().find_map(|old| {
        let same = old.files.iter().find(|f| old.stem.extension(&f.name) == Some(part))?;
        let path = format!("{place}/{}", same.name);
        let there = listing.iter().find(|there| {
            there.name == path && there.kind == FarKind::File && there.bytes == same.bytes && there.bytes > 0
        })?;
        Some(Basis { dump: (*old).clone(), file: same.clone(), there: there.clone() })
    })
}

/// What else of the dump's guest was sent.
fn others<'a>(dump: &'a Dump, history: &'a [Dump]) -> impl Iterator<Item = &'a Dump> {
    history.iter().filter(|old| old.vm == dump.vm && old.key() == dump.key() && old.id != dump.id)
}

/// A file over there by its name.
pub fn find<'a>(listing: &'a [FarFile], name: &str) -> Option<&'a FarFile> {
    listing.iter().find(|file| file.name == name && file.kind == FarKind::File)
}

/// What killed passes of this outbox have left over there and nobody needs: temporary files of rsync for names of this
/// dump or its bases, second names of bases, and copies of partial files. Nothing else is ever touched.
pub fn litter(dump: &Dump, place: &str, basis: &str, history: &[Dump], listing: &[FarFile]) -> Vec<FarFile> {
    let own: HashSet<&str> = dump.files.iter().map(|file| file.name.as_str()).collect();
    let bases: HashSet<&str> =
        others(dump, history).flat_map(|old| &old.files).map(|file| file.name.as_str()).collect();
    let sidecar = dump.stem.sidecar();
    let ours = |file: &&FarFile| {
        let Some((dir, name)) = file.name.rsplit_once('/') else { return false };
        let temp = temporary(name);
        if dir == place {
            temp.is_some_and(|of| own.contains(of) || of == sidecar)
        } else if dir == format!("{place}/{PARTIAL}") {
            let of = name.strip_suffix(DELTA);
            let applied = |of: &str| own.contains(of) && find(listing, &format!("{place}/{of}")).is_some();
            of.is_some_and(|of| bases.contains(of) || applied(of))
                || bases.contains(name)
                || temp.is_some_and(|of| own.contains(of) || bases.contains(of))
        } else {
            dir == format!("{basis}/{place}") || (dir == basis && own.contains(temp.unwrap_or(name)))
        }
    };
    listing.iter().filter(|file| file.kind == FarKind::File).filter(ours).cloned().collect()
}

/// What a transfer of `file` in one go has left over there as rsync's temporary file when nobody told its other end that the
/// line is dead, the largest if there are several; nothing where a basis or a partial file is better.
pub fn leftover<'a>(
    dump: &Dump,
    file: &FileEntry,
    place: &str,
    history: &[Dump],
    listing: &'a [FarFile],
) -> Option<&'a FarFile> {
    let better = [format!("{place}/{}", file.name), format!("{place}/{PARTIAL}/{}", file.name)];
    if better.iter().any(|name| find(listing, name).is_some()) || basis(dump, file, place, history, listing).is_some() {
        return None;
    }
    let temp = |there: &&FarFile| {
        let name = there.name.strip_prefix(place).and_then(|name| name.strip_prefix('/'));
        there.kind == FarKind::File
            && (WORTHWHILE..=file.bytes).contains(&there.bytes)
            && name.and_then(temporary) == Some(file.name.as_str())
    };
    listing.iter().filter(temp).max_by_key(|there| there.bytes)
}

/// What there is over there of a dump that has no sidecar there: its files, what is partial of them, and rsync's temporary
/// files for them.
pub fn rest(dump: &Dump, place: &str, listing: &[FarFile]) -> Vec<FarFile> {
    let own = |name: &str| dump.files.iter().any(|file| file.name == name);
    let ours = |file: &&FarFile| {
        let Some((dir, name)) = file.name.rsplit_once('/') else { return false };
        let here = dir == place || dir == format!("{place}/{PARTIAL}");
        here && (own(name.strip_suffix(DELTA).unwrap_or(name)) || temporary(name).is_some_and(own))
    };
    listing.iter().filter(|file| file.kind == FarKind::File).filter(ours).cloned().collect()
}

/// The name of which `name` is rsync's temporary file: `.NAME.XXXXXX`.
fn temporary(name: &str) -> Option<&str> {
    let (of, random) = name.strip_prefix('.')?.rsplit_once('.')?;
    (random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(of)
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
            basis(&new, &new.files[0], "web", &history, &listing).unwrap().there.name,
            "web/web-20261118T010000Z.qcow2"
        );
        assert!(basis(&new, &new.files[0], "web", &history[3..], &listing).is_none());
    }

    #[test]
    fn only_our_own_litter_is_swept() {
        let new = dump("web", "2026-11-20T01:00:00Z", None);
        let old = dump("web", "2026-11-19T01:00:00Z", None);
        let (data, older) = ("web-20261120T010000Z.qcow2", "web-20261119T010000Z.qcow2");
        let table = [
            (format!("web/.{data}.aZ09bc"), true),
            ("web/.web-20261120T010000Z.dump.json.aZ09bc".into(), true),
            (format!("web/.part/.{data}.aZ09bc"), true),
            (format!("web/.part/.{older}.aZ09bc"), true),
            (format!("web/.part/{older}"), true),
            (format!(".basis/web/{data}"), true),
            (format!(".basis/{data}"), true),
            (format!(".basis/.{data}.aZ09bc"), true),
            // What has arrived, what is being sent, and what belongs to others.
            (format!("web/.part/{data}"), false),
            (format!("web/{data}"), false),
            (format!("web/{older}"), false),
            (format!(".basis/{older}"), false),
            (format!("web/.{older}.aZ09bc"), false),
            (format!("web/.{data}.aZ09b"), false),
            (format!("web/.{data}.aZ09b!"), false),
            ("web/.part/db-20261120T010000Z.qcow2".into(), false),
            ("web/.web-20261118T010000Z.qcow2.aZ09bc".into(), false),
            (format!("db/.{data}.aZ09bc"), false),
            (format!(".basis-other/web/{data}"), false),
        ];
        let listing: Vec<FarFile> = table.iter().map(|(name, _)| far(name, 10)).collect();
        let swept: Vec<String> =
            litter(&new, "web", ".basis", &[old], &listing).into_iter().map(|file| file.name).collect();
        let expected: Vec<String> = table.into_iter().filter(|(_, ours)| *ours).map(|(name, _)| name).collect();
        assert_eq!(swept, expected);
    }

    #[test]
    fn what_a_dead_line_has_left_is_taken_up_where_nothing_better_is_there() {
        let (new, old) = (big("2026-11-20T01:00:00Z"), big("2026-11-19T01:00:00Z"));
        let data = "web-20261120T010000Z.qcow2";
        let temp = |name: &str, bytes| far(&format!("web/.{name}"), bytes);
        let found = |history: &[Dump], listing: &[FarFile]| {
            leftover(&new, &new.files[0], "web", history, listing).map(|file| file.bytes)
        };
        let (small, large) = (temp(&format!("{data}.aaaaaa"), 300_000), temp(&format!("{data}.bbbbbb"), 400_000));
        assert_eq!(found(&[], &[small.clone(), large.clone()]), Some(400_000));
        for (better, history) in [
            (far(&format!("web/{data}"), 1), vec![]),
            (far(&format!("web/.part/{data}"), 1), vec![]),
            (far("web/web-20261119T010000Z.qcow2", 1 << 20), vec![old]),
        ] {
            assert_eq!(found(&history, &[large.clone(), better]), None);
        }
        for not in [
            temp(&format!("{data}.aaaaaa"), 1000),
            temp(&format!("{data}.aaaaaa"), 2 << 20),
            temp("web-20261119T010000Z.qcow2.aaaaaa", 300_000),
            far(&format!("db/.{data}.aaaaaa"), 300_000),
            far(&format!("web/.part/.{data}.aaaaaa"), 300_000),
            FarFile { kind: FarKind::Other, ..small },
        ] {
            assert_eq!(found(&[], std::slice::from_ref(&not)), None, "{not:?}");
        }
    }

    /// A dump of one file of 1 MiB.
    fn big(started: &str) -> Dump {
        let mut dump = dump("web", started, None);
        dump.files[0].bytes = 1 << 20;
        dump
    }

    #[test]
    fn the_rest_of_a_dump_is_what_bears_its_names() {
        let new = dump("web", "2026-11-20T01:00:00Z", None);
        let (data, other) = ("web-20261120T010000Z.qcow2", "web-20261119T010000Z.qcow2");
        let table = [
            (format!("web/{data}"), true),
            (format!("web/.part/{data}"), true),
            (format!("web/.{data}.aZ09bc"), true),
            (format!("web/.part/.{data}.aZ09bc"), true),
            (format!("web/{other}"), false),
            (format!("web/.part/{other}"), false),
            (format!("web/.{other}.aZ09bc"), false),
            (format!("web/{data}.old"), false),
            (format!("web/mine/{data}"), false),
            (format!("db/{data}"), false),
            (data.to_owned(), false),
        ];
        let mut listing: Vec<FarFile> = table.iter().map(|(name, _)| far(name, 10)).collect();
        listing.push(FarFile { kind: FarKind::Dir, ..far(&format!("web/{data}"), 10) });
        let rest: Vec<String> = rest(&new, "web", &listing).into_iter().map(|file| file.name).collect();
        let expected: Vec<String> = table.into_iter().filter(|(_, ours)| *ours).map(|(name, _)| name).collect();
        assert_eq!(rest, expected);
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
