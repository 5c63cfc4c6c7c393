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

    /// Fetches files of the far side to the same names below [`Far::lands`] of `to`, which is ours alone. A file that is there
    /// already is taken for the first part of the one over there: rsync checks that, and only what lacks crosses; one that is as
    /// long is taken as it is. So the caller must compare what has come with the dump's record.
    pub fn receive(
        &self,
        names: &[String],
        to: &Path,
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let (top, prefix) = self.top();
        let names: Vec<String> = names.iter().map(|name| format!("{prefix}{name}")).collect();
        let places = [top, to.to_owned().into_os_string()];
        let options = [
            "-t",
            "--append-verify",
            "-z",
            "--zl=1",
            "--chmod=Dgo=,Fu+rw,Fgo=",
            "--info=progress2",
            "--no-implied-dirs",
        ];
        self.rsync(&options, &names, places, Bounds { long: true, inward: true, ..bounds }, watch)
    }
}
