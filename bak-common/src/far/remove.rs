//! Removing files over there by rsync alone, by exact names, and only what is still as it was when it was listed.
//!
//! rsync takes a file here of the same size and time for a copy of the one over there, and removes that one on request: the
//! far side is the sender, whose own check before it removes says once more that the file has not changed. So an empty
//! sparse file of its name, size and time lies here for each that is to go. One that does not match would be fetched and
//! then removed, too: that is why rsync is to write what it fetches where nobody can make a file. Then it removes nothing.

use anyhow::Result;

use super::seed::STUB_MAX;
use super::{Bounds, Far, FarFile, Ran};

/// A directory that is everywhere, and in which not even root can make a file.
const NOWHERE: &str = "--temp-dir=/proc";
/// What a file costs on the wire beside its name, which crosses at most twice, in bytes.
const EACH: u64 = 100;

impl Far {
    /// Removes these files below the directory `below` over there, as far as they are still just as said: only these very
    /// names, and no directory is ever swept. That a file has gone, only a listing shows.
    ///
    /// The names are given from the top: a daemon of rsync 3.5.0 that is asked for names in a directory below its module
    /// looks at the right files, but removes those of the same names in the module itself.
    pub fn discard(&self, below: &str, files: &[FarFile]) -> Result<Ran> {
        let (top, mut prefix) = self.top();
        if !below.is_empty() {
            prefix = format!("{prefix}{}/", below.trim_end_matches('/'));
        }
        let from_top = |file: &FarFile| FarFile { name: format!("{prefix}{}", file.name), ..file.clone() };
        let files: Vec<FarFile> = files.iter().map(from_top).collect();
        let stub = self.stub(&files, &[])?;
        let options = ["-t", "--remove-source-files", "--ignore-missing-args", NOWHERE];
        let wire = |file: &FarFile| EACH + 2 * file.name.len() as u64;
        // What does not match any more must not be fetched.
        let at_most = STUB_MAX + files.iter().map(wire).sum::<u64>();
        let bounds = Bounds { at_most: Some(at_most), ..Bounds::default() };
        let names: Vec<String> = files.into_iter().map(|file| file.name).collect();
        self.rsync(&options, &names, [top, stub.into_os_string()], bounds, &mut |_| Ok(()))
    }
}
