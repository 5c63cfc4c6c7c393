//! Sidecars that were fetched before. None is believed without a listing: only one of which size and time are those that
//! the far side shows now, and that can be read. Losing all of it costs traffic, and nothing else.

use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::listing::{self, sidecars};
use super::{Far, FarFile};
use crate::name::{Stem, is_component};
use crate::record::Dump;
use crate::store::Listing;

/// Where sidecars are kept that were fetched.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Nothing is written: somebody else may.
    read_only: bool,
}

/// What a file is called while it is written; no sidecar.
const TEMP: &str = ".new";

impl Cache {
    /// The one in `dir`, which is made, but for a reader. Who writes must be alone.
    pub fn new(dir: PathBuf, read_only: bool) -> Self {
        Self { dir, read_only }
    }

    /// The text of a sidecar, if it is certainly the one that was listed.
    fn get(&self, file: &FarFile, stem: &Stem) -> Option<Vec<u8>> {
        let path = self.dir.join(&file.name);
        if written(&path) != Some(file.modified.unix()) {
            return None;
        }
        let text = fs::read(&path).ok()?;
        // A power cut may have left zeros.
        (text.len() as u64 == file.bytes && Dump::from_sidecar(stem, &text).is_ok()).then_some(text)
    }

    fn put(&self, file: &FarFile, text: &[u8]) -> Result<()> {
        let path = self.dir.join(&file.name);
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir)?;
        let temp = dir.join(TEMP);
        fs::write(&temp, text)?;
        let seconds = u64::try_from(file.modified.unix())?;
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).context("a time beyond all times")?;
        fs::File::options().append(true).open(&temp)?.set_modified(time)?;
        fs::rename(&temp, &path)?;
        Ok(())
    }

    /// Removes what is not over there any more.
    fn sweep(&self, listed: &HashSet<&str>) {
        let mut dirs = vec![(self.dir.clone(), String::new())];
        while let Some((dir, place)) = dirs.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|name| is_component(name)) else { continue };
                let below = if place.is_empty() { name.to_owned() } else { format!("{place}/{name}") };
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push((entry.path(), below));
                } else if !listed.contains(below.as_str()) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

impl Far {
    /// All files over there, and the dumps that they make up; `top` is what it is called. Sidecars that `cache` has as they
    /// are listed are not fetched. An error if the listing is not whole, or the line breaks.
    pub fn whole_with(&self, top: &str, cache: &Cache) -> Result<(Vec<FarFile>, Listing)> {
        let files = self.list(&[".".to_owned()])?;
        let by_name: HashMap<&str, &FarFile> = files.iter().map(|file| (file.name.as_str(), file)).collect();
        let found = sidecars(&files);
        let (mut texts, mut wanted) = (HashMap::new(), Vec::new());
        for (_, stem, name) in &found {
            match by_name.get(name.as_str()).and_then(|file| cache.get(file, stem)) {
                Some(text) => _ = texts.insert(name.clone(), text),
                None => wanted.push(name.clone()),
            }
        }
        for (name, Text { bytes, modified }) in self.texts(&wanted)? {
            let listed = |file: &&&FarFile| file.bytes == bytes.len() as u64 && Some(file.modified.unix()) == modified;
            // What changed since it was listed is not what was listed.
            if let Some(file) = by_name.get(name.as_str()).filter(listed)
                && !cache.read_only
            {
                // If that fails it is fetched again next time.
                let _ = cache.put(file, &bytes);
            }
            texts.insert(name, bytes);
        }
        if !cache.read_only {
            cache.sweep(&found.iter().map(|(_, _, name)| name.as_str()).collect());
        }
        let dumps = listing::dumps(top, &files, &texts);
        Ok((files, dumps))
    }

    /// The texts of these small files, fetched in one run. One that vanishes meanwhile, or cannot be read, is left out.
    pub(super) fn texts(&self, names: &[String]) -> Result<HashMap<String, Text>> {
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let to = self.scratch_file("sidecars");
        fs::create_dir(&to).context("cannot make a temporary directory")?;
        let (ran, got) = self.pull(&["-t", "--max-size=16M", "--ignore-missing-args"], names, &to)?;
        let fetched = read(&got, names);
        let _ = fs::remove_dir_all(&to);
        ran.in_limit()?;
        if ran.line_down() || ran.full().is_some() {
            return Err(ran.error().context("cannot fetch the sidecars of the far side"));
        }
        Ok(fetched)
    }

    /// The texts of these small files, by name, in one run; one that is not there has none.
    pub fn read(&self, names: &[String]) -> Result<HashMap<String, Vec<u8>>> {
        Ok(self.texts(names)?.into_iter().map(|(name, text)| (name, text.bytes)).collect())
    }
}

/// A small file, and when it was last written to over there, in seconds of the epoch.
pub(super) struct Text {
    pub bytes: Vec<u8>,
    modified: Option<i64>,
}

fn read(dir: &Path, names: &[String]) -> HashMap<String, Text> {
    let text = |name: &String| {
        let path = dir.join(name);
        Some((name.clone(), Text { bytes: fs::read(&path).ok()?, modified: written(&path) }))
    };
    names.iter().filter_map(text).collect()
}

/// When a regular file was last written to, in seconds of the epoch.
fn written(path: &Path) -> Option<i64> {
    let time = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.modified().ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}
