//! What was decided about dumps over there. Pure.
//!
//! Over there nothing can be renamed, so a dump's sidecar just goes, and what a crash leaves then are files that nothing
//! names any more. So before any sidecar goes it is noted here which files are its dump's, each with its size and time: a
//! later run removes these very files, or leaves alone what is not as it was noted.

use bak_common::calendar::Time;
use bak_common::far::{FarFile, FarKind};
use bak_common::name::Stem;
use bak_common::record::Dump;
use bak_common::store::{Entry, companion_names};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// All files over there, by name.
pub type Files = HashMap<String, FarFile>;

/// A file as it was listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Below the top.
    pub name: String,
    pub bytes: u64,
    pub modified: Time,
}

/// A dump that is being removed over there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Its record, without notes.
    pub dump: Dump,
    pub sidecar: Known,
    /// Its data, and its companions.
    pub files: Vec<Known>,
}

/// What is noted on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drops {
    pub v: u32,
    pub dumps: Vec<Dropped>,
}

/// What a later look tells of a dump that was being removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its sidecar is there, or it is to be sent again: it was not removed, or it is there once more.
    There,
    /// Nothing of it is left, or only what is another's by now.
    Done,
    /// Its sidecar has gone, and these of its files are left.
    Left(Vec<Known>),
}

impl Known {
    fn of(file: &FarFile) -> Self {
        Self { name: file.name.clone(), bytes: file.bytes, modified: file.modified }
    }

    /// As a listing shows it.
    pub fn listed(&self) -> FarFile {
        let Self { name, bytes, modified } = self.clone();
        FarFile { name, bytes, modified, kind: FarKind::File }
    }

    /// Whether it is still there as it was.
    pub fn is_in(&self, files: &Files) -> bool {
        files.get(&self.name).is_some_and(|file| *file == self.listed())
    }
}

impl Dropped {
    /// What removing this dump means, where these files are; `None` if its sidecar is not among them.
    pub fn of(entry: &Entry, files: &Files) -> Option<Self> {
        let at = |name: &str| below(&entry.place, name);
        let dump = entry.dump.bare();
        let sidecar = Known::of(files.get(&at(&dump.stem.sidecar()))?);
        let names = dump.files.iter().map(|file| file.name.clone()).chain(companion_names(&dump));
        let files = names.filter_map(|name| files.get(&at(&name)));
        let files = files.filter(|file| file.kind == FarKind::File).map(Known::of).collect();
        Some(Self { dump, sidecar, files })
    }

    /// What became of it, where these files are there now, and these stems wait here to be sent.
    pub fn fate(&self, files: &Files, pending: &HashSet<Stem>) -> Fate {
        if files.contains_key(&self.sidecar.name) || pending.contains(&self.dump.stem) {
            return Fate::There;
        }
        let left: Vec<Known> = self.files.iter().filter(|file| file.is_in(files)).cloned().collect();
        if left.is_empty() { Fate::Done } else { Fate::Left(left) }
    }
}

/// `name` in the directory `place`, which is empty for the top.
pub fn below(place: &str, name: &str) -> String {
    if place.is_empty() { name.to_owned() } else { format!("{place}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64) -> FarFile {
        let modified = "2026-11-18T01:00:00Z".parse().unwrap();
        FarFile { name: name.to_owned(), bytes, modified, kind: FarKind::File }
    }

    fn files(names: &[(&str, u64)]) -> Files {
        names.iter().map(|(name, bytes)| ((*name).to_owned(), file(name, *bytes))).collect()
    }

    fn entry() -> Entry {
        let text = br#"{"v":1,"type":"dump","id":"web@20261118T010000Z","vm":"web","kind":"qemu","driver":"image",
            "started":"2026-11-18T01:00:00Z","finished":"2026-11-18T01:00:00Z","stem":"web-20261118T010000Z","bytes":7,
            "files":[{"name":"web-20261118T010000Z.raw","bytes":7,
            "sha256":"0000000000000000000000000000000000000000000000000000000000000000"}]}"#;
        let stem = Stem::new("web-20261118T010000Z").unwrap();
        let dump = Dump::from_sidecar(&stem, text).unwrap();
        Entry { dump, place: "web".to_owned(), fault: None, unfit: None, inodes: Vec::new() }
    }

    const SIDECAR: (&str, u64) = ("web/web-20261118T010000Z.dump.json", 300);
    const DATA: (&str, u64) = ("web/web-20261118T010000Z.raw", 7);
    const LOG: (&str, u64) = ("web/web-20261118T010000Z.log", 5);
    const FOREIGN: (&str, u64) = ("web/web-20261118T010000Z.txt", 5);

    #[test]
    fn what_is_removed_with_a_dump_and_what_a_crash_means() {
        let dropped = Dropped::of(&entry(), &files(&[SIDECAR, DATA, LOG, FOREIGN])).unwrap();
        let names: Vec<&str> = dropped.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, [DATA.0, LOG.0]);
        assert!(Dropped::of(&entry(), &files(&[DATA])).is_none());
        let nothing = HashSet::new();
        let fate = |there: &[(&str, u64)]| dropped.fate(&files(there), &nothing);
        let left = |files: &[(&str, u64)]| Fate::Left(files.iter().map(|(n, b)| Known::of(&file(n, *b))).collect());
        assert_eq!(fate(&[SIDECAR, DATA, LOG]), Fate::There);
        assert_eq!(fate(&[(SIDECAR.0, 301)]), Fate::There, "another sidecar of that name");
        assert_eq!(fate(&[DATA, LOG, FOREIGN]), left(&[DATA, LOG]));
        assert_eq!(fate(&[LOG]), left(&[LOG]));
        assert_eq!(fate(&[FOREIGN]), Fate::Done);
        assert_eq!(fate(&[(DATA.0, 8)]), Fate::Done, "somebody else's file by now");
        let pending = HashSet::from([dropped.dump.stem.clone()]);
        assert_eq!(dropped.fate(&files(&[DATA]), &pending), Fate::There);
    }
}
