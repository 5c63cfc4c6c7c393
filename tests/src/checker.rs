//! Looks at stores and databases as the design describes them, with none of bak's own code.

use crate::sha256_file;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What an independent look at a store found.
#[derive(Debug, Default)]
pub struct Seen {
    /// Ids of dumps that are whole: sidecar there, every file there with its size and SHA-256.
    pub whole: Vec<String>,
    /// What the invariant forbids: a sidecar without whole files.
    pub broken: Vec<String>,
    /// Visible files that no sidecar names, below the top.
    pub strange: Vec<String>,
    /// What lies in `.bak/work` and `.bak/drop`.
    pub unfinished: Vec<String>,
}

/// Looks at a store as the design describes it, hashing everything.
pub fn check_store(store: &Path) -> Seen {
    let mut seen = Seen::default();
    let mut files = BTreeMap::new();
    collect(store, store, &mut files);
    let mut named = Vec::new();
    for path in files.keys().filter(|name| name.ends_with(".dump.json")) {
        let full = store.join(path);
        let dir = Path::new(path).parent().unwrap();
        let stem = full.file_name().unwrap().to_str().unwrap().strip_suffix(".dump.json").unwrap().to_owned();
        let Ok(record) = serde_json::from_slice::<Value>(&fs::read(&full).unwrap_or_default()) else {
            seen.broken.push(format!("{path}: unreadable"));
            continue;
        };
        let mut whole = record["files"].is_array();
        for file in record["files"].as_array().into_iter().flatten() {
            let name = file["name"].as_str().unwrap();
            assert!(name.starts_with(&format!("{stem}.")) && !name.contains('/'), "{path} names {name}");
            let there = store.join(dir).join(name);
            // What was adopted may have been left unread.
            whole &= there.is_file()
                && match file["sha256"].as_str() {
                    Some(sha256) => sha256_file(&there) == sha256,
                    None => there.metadata().unwrap().len() == file["bytes"].as_u64().unwrap(),
                };
            named.push(dir.join(name).to_str().unwrap().to_owned());
        }
        let list = if whole { &mut seen.whole } else { &mut seen.broken };
        list.push(record["id"].as_str().unwrap().to_owned());
    }
    seen.strange =
        files.keys().filter(|name| !name.ends_with(".dump.json") && !named.contains(name)).cloned().collect();
    let bak = store.join(".bak");
    let mut dropped = BTreeMap::new();
    collect(store, &bak.join("drop"), &mut dropped);
    seen.unfinished.extend(dropped.into_keys());
    // Also hidden ones, and empty ones.
    let works = fs::read_dir(bak.join("work")).into_iter().flatten().flatten();
    seen.unfinished.extend(works.map(|work| format!(".bak/work/{}", work.file_name().display())));
    seen.whole.sort();
    seen
}

/// All files below `dir` that are not hidden, by their path below `top`.
fn collect(top: &Path, dir: &Path, into: &mut BTreeMap<String, ()>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| name.starts_with('.')) {
            continue;
        }
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            collect(top, &path, into);
        } else {
            into.insert(path.strip_prefix(top).unwrap().to_str().unwrap().to_owned(), ());
        }
    }
}

/// What lies in some stores at one moment, to see later that what is none of bak's business was left alone.
pub struct Before {
    tops: Vec<PathBuf>,
    /// Of everything but directories: what it looks like, and what it holds.
    foreign: BTreeMap<PathBuf, (String, String)>,
    known: BTreeSet<(u64, u64)>,
}

impl Before {
    /// Dumps that a test made are first made private, as bak's are: copies take their rights over.
    pub fn of(tops: &[PathBuf]) -> Self {
        let mut before = Self { tops: tops.to_vec(), foreign: BTreeMap::new(), known: BTreeSet::new() };
        for top in tops {
            let stems = stems(top);
            for (path, meta) in everything(top) {
                before.known.insert((meta.dev(), meta.ino()));
                if meta.is_dir() || path.starts_with(top.join(".bak")) || nested(&path, top, tops) {
                    continue;
                }
                if belongs(&path, &stems) {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
                } else {
                    before.foreign.insert(path.clone(), looks(&path, &meta));
                }
            }
        }
        before
    }

    /// Foreign files are as they were, to inode and time; and nothing that has come can be read by others.
    #[track_caller]
    pub fn check(&self) {
        for (path, then) in &self.foreign {
            let now = path.symlink_metadata().map(|meta| looks(path, &meta));
            assert!(now.as_ref().ok() == Some(then), "{} was touched: {then:?}, now {now:?}", path.display());
        }
        for (path, meta) in self.tops.iter().flat_map(|top| everything(top)) {
            let old = self.known.contains(&(meta.dev(), meta.ino())) || meta.is_symlink();
            assert!(old || meta.mode() & 0o077 == 0, "others may read {}: {:o}", path.display(), meta.mode());
        }
    }
}

/// Whether it lies in another of these, such as an outbox below its store.
fn nested(path: &Path, top: &Path, tops: &[PathBuf]) -> bool {
    tops.iter().any(|other| other != top && other.starts_with(top) && path.starts_with(other))
}

/// What the sidecars below `top` are called, without their ending, by their place.
fn stems(top: &Path) -> Vec<PathBuf> {
    let sidecar = |(path, _): (PathBuf, _)| Some(PathBuf::from(path.to_str()?.strip_suffix(".dump.json")?));
    everything(top).into_iter().filter_map(sidecar).collect()
}

/// A sidecar, a file that one names, or a companion of these.
fn belongs(path: &Path, stems: &[PathBuf]) -> bool {
    let text = path.to_str().unwrap();
    stems.iter().any(|stem| {
        let Some(rest) = text.strip_prefix(stem.to_str().unwrap()) else { return false };
        let sidecar = fs::read(stem.with_file_name(format!("{}.dump.json", stem.file_name().unwrap().display())));
        let record: Value = serde_json::from_slice(&sidecar.unwrap()).unwrap_or_default();
        let named = |name: &str| {
            let files = record["files"].as_array();
            files.into_iter().flatten().any(|file| file["name"].as_str() == Some(name))
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        let data = [".notes", ".protected"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
        rest == ".dump.json" || rest == ".log" || named(data)
    })
}

fn looks(path: &Path, meta: &fs::Metadata) -> (String, String) {
    let looks = format!("{} {:o} {} {}", meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec());
    (looks, if meta.is_file() { sha256_file(path) } else { String::new() })
}

/// All below `top`, hidden or not.
fn everything(top: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let mut found = Vec::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                dirs.push(entry.path());
            }
            found.push((entry.path(), meta));
        }
    }
    found
}

/// Looks at a database: whole lines of known forms, no guest twice. How often it was locked to be written.
#[track_caller]
pub fn check_database(db: &Path) -> u64 {
    const STATUSES: [&str; 6] = ["NEW", "BACKUP_NECESSARY", "BACKUP_IN_PROGRESS", "CLEAN", "RUNNING", "ARCHIVED"];
    let text = |name: &str| fs::read_to_string(db.join(name)).unwrap_or_default();
    let (list, details) = (text("vmtool-statedb"), text("vmtool-details"));
    let mut guests = BTreeSet::new();
    for line in list.split_inclusive('\n') {
        let entry = line.strip_suffix('\n').and_then(|line| line.rsplit_once(':'));
        let (vm, status) = entry.unwrap_or_else(|| panic!("no whole line in {list:?}"));
        assert!(!vm.is_empty() && STATUSES.contains(&status) && guests.insert(vm), "{line:?} in {list:?}");
    }
    let mut described = BTreeSet::new();
    for line in details.split_inclusive('\n') {
        let detail: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let vm = detail["vm"].as_str().unwrap_or_else(|| panic!("of whom? {line:?}")).to_owned();
        assert!(line.ends_with('\n') && described.insert(vm), "{line:?} in {details:?}");
    }
    let version = text("vmtool-db-version");
    assert!(version.is_empty() || version.ends_with("DB_VERSION: 1.0\n"), "{version:?}");
    assert!(!version.is_empty() || list.is_empty(), "a list of no version: {list:?}");
    let lock = text("vmtool-dblock");
    if lock.is_empty() {
        return 0;
    }
    let holder: Value = serde_json::from_str(&lock).unwrap_or_else(|error| panic!("the lock says {lock:?}: {error}"));
    holder["generation"].as_u64().unwrap_or(0)
}
