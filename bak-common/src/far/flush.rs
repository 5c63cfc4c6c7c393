//! Names on a mounted far side. rsync flushes what files hold, but not the directories that name them: after a power cut
//! what counts as sent could be gone.

use anyhow::{Context, Result};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use super::Far;
use crate::fsio;

impl Far {
    /// Flushes the directories of these files below `below`, and those above them. Over ssh or a daemon nothing can: there
    /// names follow when the kernel over there writes them, within seconds.
    pub(super) fn flush_names(&self, below: &str, files: &[String]) -> Result<()> {
        let Some(top) = &self.opened else { return Ok(()) };
        let mut places = BTreeSet::from([""]);
        let paths: Vec<String> = files.iter().map(|file| format!("{below}/{file}")).collect();
        for path in &paths {
            let mut path = path.trim_start_matches('/');
            while let Some((place, _)) = path.rsplit_once('/') {
                places.insert(place);
                path = place;
            }
        }
        let opened = places.iter().filter_map(|place| match fsio::open_place(top.as_fd(), place) {
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => None,
            opened => Some(opened),
        });
        let dirs: Vec<OwnedFd> = opened.collect::<Result<_>>()?;
        let flushed = fsio::sync_all(&dirs.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        // Some mounts cannot flush directories: then the listing that follows is all the proof there is.
        let cannot = |error: &anyhow::Error| {
            matches!(error.downcast_ref(), Some(&(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF)))
        };
        let failed = flushed.into_iter().filter_map(Result::err).find(|error| !cannot(error));
        failed.map_or(Ok(()), Err).context("cannot flush a directory over there")
    }
}
