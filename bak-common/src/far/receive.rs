//! Fetching files: resumably, as what has arrived stays under the file's own name.

use anyhow::Result;
use std::path::{Path, PathBuf};

use super::{Bounds, Far, Ran};
use crate::meter::Wire;

impl Far {
    /// Where below `to` the top of the far side comes to lie, if files are fetched into it: see [`Far::receive`].
    pub fn lands(&self, to: &Path) -> PathBuf {
        to.join(self.top().1)
    }

    /// Fetches files of the far side to the same names below [`Far::lands`] of `to`, which is ours alone. With `go_on` a file
    /// that is there already is taken for the first part of the one over there: rsync checks that, and only what lacks crosses; one
    /// that is as long is taken as it is. One of more than `most` bytes over there does not come. So the caller must compare
    /// what has come with the dump's record.
    pub fn receive(
        &self,
        names: &[String],
        to: &Path,
        most: u64,
        go_on: bool,
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let (top, prefix) = self.top();
        let names: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
        let places = [top, to.to_owned().into_os_string()];
        // Both ways a file under its own name is always the first part of what it becomes. Holes can be made only where rsync
        // writes the whole file.
        let ways: &[&str] = if go_on { &["--append-verify"] } else { &["--inplace", "--sparse", "--whole-file"] };
        let options = ["-t", "-z", "--zl=1", "--chmod=Dgo=,Fu+rw,Fgo=", "--info=progress2", "--no-implied-dirs"];
        let most = format!("--max-size={most}");
        let options = [&options[..], ways, &[most.as_str()]].concat();
        let ran = self.rsync(&options, &names, places, Bounds { long: true, inward: true, ..bounds }, watch)?;
        Ok(Ran { pulls: true, ..ran })
    }
}
