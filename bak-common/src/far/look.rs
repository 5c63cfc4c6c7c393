//! Looking at what is over there: one small file, a listing, all dumps, and whether content is the same.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

use super::listing::{self, listed};
use super::{Bounds, Far, FarFile, Ran, Url, mounted, with_slash};
use crate::lock::Lock;
use crate::name::printable;
use crate::store::Listing;

/// The far side was reached and answered, or it was not.
#[derive(Debug)]
pub enum Fetched {
    Here(Vec<u8>),
    /// rsync says that there is no such file.
    Missing,
}

impl Far {
    /// Compares the content of files of the directory `from` with those of the same names over there, all of which both
    /// sides read. What differs, as rsync says it; nothing if all is well.
    pub fn differences(&self, from: &Path, files: &[String], bytes: u64, lock: &Lock) -> Result<Vec<String>> {
        let options = ["-n", "-t", "--checksum", "--itemize-changes"];
        let bounds = Bounds { silent: bytes, long: true, ..Bounds::under(lock) };
        let places = [with_slash(from.to_owned()), self.place("")];
        let ran = self.rsync(&options, files, places, bounds, &mut |_| Ok(()))?;
        ran.check()?;
        let text = String::from_utf8_lossy(&ran.finished.stdout);
        // Of a file that is sent the second letter says what it is; the others change attributes only.
        Ok(text.lines().filter(|line| line.starts_with("<f")).map(str::to_owned).collect())
    }

    /// Fetches one small file.
    pub fn fetch(&self, name: &str) -> Result<Fetched> {
        if let Url::Path(top) = &self.url {
            return mounted::fetch(top, name);
        }
        let to = self.scratch_file("fetched");
        fs::create_dir(&to).context("cannot make a temporary directory")?;
        let (ran, got) = self.pull(&["--max-size=16M"], &[name.to_owned()], &to)?;
        ran.in_limit()?;
        let result = match fs::read(got.join(name)) {
            Ok(bytes) if ran.finished.status.success() => Ok(Fetched::Here(bytes)),
            // Only a clear "no such file" is an absence; any other trouble is trouble.
            // (Where the directory itself is missing, rsync may end with 23, or break off with 12, or 3 locally.)
            _ if matches!(ran.finished.status.code(), Some(3 | 12 | 23))
                && ran.finished.stderr.contains("No such file or directory (2)") =>
            {
                Ok(Fetched::Missing)
            }
            _ if ran.no_directory() => Ok(Fetched::Missing),
            Ok(_) => Err(ran.error()),
            // A directory, a symbolic link, or far too large: rsync passes over it. No file of ours is like that.
            Err(_) if ran.finished.status.success() => Ok(Fetched::Missing),
            Err(_) => Err(ran.error()),
        };
        let _ = fs::remove_dir_all(&to);
        result
    }

    /// Lists these names and what lies below them; one that is not there lists as nothing. An error if the
    /// listing is not whole.
    pub fn list(&self, names: &[String]) -> Result<Vec<FarFile>> {
        if let Url::Path(top) = &self.url {
            return mounted::list(top, names).context("cannot list the far side");
        }
        let (ran, _) =
            self.pull(&["--list-only", "-r", "--ignore-missing-args"], names, &self.scratch.join("empty"))?;
        ran.check().context("cannot list the far side")?;
        let text = String::from_utf8_lossy(&ran.finished.stdout);
        let files: Vec<FarFile> = text
            .lines()
            .filter(|line| !line.ends_with(" ."))
            .map(|line| listed(line).with_context(|| format!("cannot read rsync's listing: `{}`", printable(line))))
            .collect::<Result<_>>()?;
        let (_, prefix) = self.top();
        if prefix.is_empty() {
            return Ok(files);
        }
        if files.is_empty() {
            // Nothing of it is there, or not even our directory.
            let (ran, _) = self.pull(&["--list-only", "-d"], &[String::new()], &self.scratch.join("empty"))?;
            ran.check().context("cannot list the far side")?;
        }
        let below = |file: FarFile| Some(FarFile { name: file.name.strip_prefix(&prefix)?.to_owned(), ..file });
        Ok(files.into_iter().filter_map(below).collect())
    }

    /// Has rsync fetch, or list, these names: what it fetches comes to lie in the directory that is returned, in `to`.
    ///
    /// They are named from the top: a daemon of rsync 3.5.0 without chroot that is asked for names in a directory below its
    /// module sends the content of those of the same names in the module itself.
    pub(super) fn pull(&self, options: &[&str], names: &[String], to: &Path) -> Result<(Ran, PathBuf)> {
        let (top, prefix) = self.top();
        let names: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
        let places = [top, to.to_owned().into_os_string()];
        let ran = self.rsync(options, &names, places, Bounds::default(), &mut |_| Ok(()))?;
        Ok((Ran { pulls: true, ..ran }, to.join(prefix)))
    }

    /// All dumps over there. Their sidecars are fetched anew, in one run; an error if the listing is not whole.
    pub fn dumps(&self, top: &str) -> Result<Listing> {
        Ok(self.whole(top)?.1)
    }

    /// All files over there, and the dumps that they make up: see [`Far::dumps`].
    pub fn whole(&self, top: &str) -> Result<(Vec<FarFile>, Listing)> {
        let files = self.list(&[".".to_owned()])?;
        let names: Vec<String> = listing::sidecars(&files).into_iter().map(|(_, _, name)| name).collect();
        let texts = self.texts(&names)?.into_iter().map(|(name, text)| (name, text.bytes)).collect();
        let dumps = listing::dumps(top, &files, &texts);
        Ok((files, dumps))
    }
}
