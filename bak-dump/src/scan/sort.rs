//! Which files of a directory may be dumps, by their names alone. Pure.

use bak_common::name::{SIDECAR, Stem, is_component};
use rustix::fs::FileType;
use std::collections::{BTreeMap, HashSet};

use super::name::{self, Archive, Match, Of, Pattern, Vzdump};
use super::names::Listed;

/// Files that may be a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The directory below the store's top.
    pub place: String,
    pub stem: Stem,
    pub files: Vec<String>,
    pub by: By,
    /// Whether a log, notes or Proxmox's mark lie beside.
    pub log: bool,
    pub notes: bool,
    pub protected: bool,
}

/// What its names were read by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    Vzdump(Archive),
    /// And the pattern.
    Pattern(Match, String),
}

/// What was made of a directory.
#[derive(Clone, Debug, Default)]
pub struct Sorted {
    pub candidates: Vec<Candidate>,
    /// Files that are none, and why. Those of dumps that are there already are not among them.
    pub left: Vec<(String, String)>,
    /// The same for those that look like archives and that only their owner can help.
    pub barred: Vec<(String, String)>,
}

/// Sorts the names in the directory `place`. `of_bak` says why bak itself has to do with a stem.
pub fn sort(place: &str, listed: &Listed, patterns: &[Pattern], of_bak: &dyn Fn(&Stem) -> Option<String>) -> Sorted {
    let mut sorted = Sorted::default();
    let visible = || listed.names.iter().filter(|(name, _)| is_component(name));
    let all: HashSet<&str> = visible().map(|(name, _)| name.as_str()).collect();
    let stems = all.iter().filter_map(|name| name.strip_suffix(SIDECAR));
    let dumps: HashSet<&str> = stems.filter(|stem| !listed.taken.contains_key(*stem)).collect();
    for (file, why) in &listed.odd {
        let is_archive = name::beside(file).is_none() && !name::is_unfinished(file);
        let like = file.starts_with("vzdump-") || by_pattern(file, patterns).is_ok();
        let side = if is_archive && like { &mut sorted.barred } else { &mut sorted.left };
        side.push((file.clone(), (*why).to_owned()));
    }
    let mut groups: BTreeMap<String, (By, Vec<String>)> = BTreeMap::new();
    let mut beside: Vec<(String, Of)> = Vec::new();
    for (file, kind) in visible().filter(|(_, kind)| *kind != FileType::Directory) {
        if file.ends_with(SIDECAR) || is_of(&dumps, file) {
            continue;
        }
        if *kind != FileType::RegularFile {
            sorted.left.push((file.clone(), "is not a regular file".into()));
            continue;
        }
        let logged = |archive: &Archive| all.contains(format!("{}.log", archive.stem).as_str());
        let found = match name::vzdump(file) {
            Some(Vzdump::Unfinished) => Err("vzdump is writing it, or died while it did".into()),
            // Its log decides; a pattern only where there is none.
            Some(Vzdump::Archive(archive)) if logged(&archive) => Ok((archive.stem.clone(), By::Vzdump(archive))),
            Some(Vzdump::Archive(_)) => by_pattern(file, patterns)
                .map_err(|_| "there is no log beside it that would prove it whole (--pattern does without)".into()),
            None => match name::beside(file) {
                Some(of) => {
                    beside.push((file.clone(), of));
                    continue;
                }
                None => by_pattern(file, patterns),
            },
        };
        match found {
            Ok((stem, by)) => groups.entry(stem).or_insert_with(|| (by, Vec::new())).1.push(file.clone()),
            Err(why) => sorted.left.push((file.clone(), why)),
        }
    }
    for (file, of) in beside {
        let there = match &of {
            Of::File(name) => all.contains(name.as_str()),
            Of::Stem(stem) => groups.contains_key(stem),
        };
        if !there {
            sorted.left.push((file, "what it would belong to is not here".into()));
        }
    }
    for (stem, why) in &listed.taken {
        let of_other = || (format!("{stem}{SIDECAR}"), format!("it is called like a record of bak: {why}"));
        let in_the_way =
            |file: String| (file, format!("another file is where its record would go: {why}; move that away"));
        match groups.remove(stem) {
            Some((_, files)) => sorted.barred.extend(files.into_iter().map(in_the_way)),
            None => sorted.left.push(of_other()),
        }
    }
    for (stem, (by, files)) in groups {
        match candidate(place, &stem, (by, files.clone()), &all, of_bak) {
            Ok(candidate) => sorted.candidates.push(candidate),
            Err(why) => sorted.left.extend(files.into_iter().map(|file| (file, why.clone()))),
        }
    }
    sorted
}

/// Whether a file is one of a dump that has a sidecar.
fn is_of(dumps: &HashSet<&str>, file: &str) -> bool {
    !dumps.is_empty() && file.match_indices('.').any(|(at, _)| dumps.contains(&file[..at]))
}

/// What the first pattern that fits says of a file, or why none will do.
fn by_pattern(file: &str, patterns: &[Pattern]) -> Result<(String, By), String> {
    let found = patterns.iter().find_map(|pattern| Some((pattern.read(file)?, pattern.text())));
    let Some((found, pattern)) = found else {
        return Err(match patterns {
            [] => "is not called like an archive of Proxmox".into(),
            _ => "is called neither like an archive of Proxmox nor as a --pattern says".into(),
        });
    };
    if name::is_unfinished(file) {
        return Err("is called like something that is not finished".into());
    }
    Ok((found.stem.clone(), By::Pattern(found, pattern.to_owned())))
}

fn candidate(
    place: &str,
    stem: &str,
    (by, mut files): (By, Vec<String>),
    all: &HashSet<&str>,
    of_bak: &dyn Fn(&Stem) -> Option<String>,
) -> Result<Candidate, String> {
    let stem = Stem::new(stem).map_err(|error| error.to_string())?;
    if let Some(why) = of_bak(&stem) {
        return Err(why);
    }
    if let Some(odd) = files.iter().find(|file| !stem.owns(file)) {
        return Err(match stem.extension(odd) {
            None => "its name has no extension".into(),
            Some(_) => "its extension has other characters than letters, digits and _".into(),
        });
    }
    if matches!(by, By::Vzdump(_)) && files.len() > 1 {
        return Err("several archives have this name, and which one its log proves nobody knows".into());
    }
    files.sort();
    let beside = |ending: &str| files.iter().any(|file| all.contains(format!("{file}{ending}").as_str()));
    Ok(Candidate {
        place: place.to_owned(),
        log: all.contains(stem.log().as_str()),
        notes: beside(".notes"),
        protected: beside(".protected"),
        stem,
        files,
        by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEM: &str = "vzdump-qemu-100-2026_11_20-02_00_02";

    fn sorted(names: &[&str], patterns: &[&str]) -> (Vec<Vec<String>>, Vec<(String, String)>) {
        let names: Vec<_> = names.iter().map(|name| ((*name).to_owned(), FileType::RegularFile)).collect();
        let patterns: Vec<Pattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
        let listed = Listed { names, ..Listed::default() };
        let sorted = sort("", &listed, &patterns, &|stem| (stem.as_str() == "bak-20200101").then(|| "busy".into()));
        (sorted.candidates.into_iter().map(|candidate| candidate.files).collect(), sorted.left)
    }

    #[test]
    fn by_names_alone() {
        let of = |ending: &str| format!("{STEM}{ending}");
        let (archive, log) = (of(".vma.zst"), of(".log"));
        assert_eq!(sorted(&[&archive, &log], &[]), (vec![vec![archive.clone()]], vec![]));
        // What belongs to a dump is not even looked at.
        let (sidecar, notes) = (of(".dump.json"), of(".vma.zst.notes"));
        assert_eq!(sorted(&[&archive, &log, &sidecar, &notes], &[]), (vec![], vec![]));
        let why = |names: &[&str], patterns: &[&str]| {
            let (candidates, left) = sorted(names, patterns);
            assert!(candidates.is_empty(), "{candidates:?}");
            left.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; ")
        };
        assert!(why(&[&archive], &[]).contains("no log"));
        assert!(why(&[&log], &[]).contains("not here"));
        assert!(why(&[&of(".vma.zst.notes")], &[]).contains("not here"));
        assert!(why(&[&of(".vma.dat"), ".hidden"], &[]).contains("vzdump is writing"));
        assert!(why(&["web-20200101.lzo"], &[]).contains("like an archive of Proxmox"));
        assert!(why(&[&archive, &of(".vma.gz"), &log], &[]).contains("several archives"));
        let all = ["{vm}-{started}*"];
        assert!(why(&["web-20200101.lzo.part"], &all).contains("not finished"));
        assert!(why(&["web-20200101"], &all).contains("no extension"));
        assert!(why(&["web-20200101.a b"], &all).contains("other characters"));
        assert_eq!(why(&["bak-20200101.lzo"], &all), "busy");
        assert!(why(&["notes.txt"], &all).contains("nor as a --pattern"));
    }

    #[test]
    fn by_patterns() {
        // One dump of two files, its log left out; a log decides over a pattern, but one that is not there does not.
        let names = ["db-20200101.disk0.raw", "db-20200101.disk1.raw", "db-20200101.log"];
        let (candidates, left) = sorted(&names, &["{vm}-{started}*"]);
        assert_eq!(candidates, [[names[0], names[1]]]);
        assert_eq!(left, []);
        let archive = format!("{STEM}.vma.zst");
        let pattern = "vzdump-*-{vm}-{started}.*";
        assert_eq!(sorted(&[&archive, &format!("{archive}.notes")], &[pattern]), (vec![vec![archive.clone()]], vec![]));
    }
}
