//! Logs of dumps that failed. A dump takes its log with it; one that comes to nothing leaves its log here, and nothing else.

use anyhow::{Context, Result};
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::{BAK, Store, Work};
use crate::fsio;

const LOGS: &str = "log";

/// How many are kept.
const KEPT: usize = 50;

impl Work {
    /// Keeps the log that lies here, unless it is empty: where to. For a dump that has failed.
    pub fn keep_log(&self, store: &Store) -> Result<Option<PathBuf>> {
        let name = self.stem().log();
        if fsio::stat(self.dir.as_fd(), &name)?.is_none_or(|stat| stat.st_size == 0) {
            return Ok(None);
        }
        let logs = fsio::make_dir(store.make_bak()?.as_fd(), LOGS)?;
        fsio::move_file(self.dir.as_fd(), logs.as_fd(), &name)?;
        let mut old = Vec::new();
        for (name, _) in fsio::names(logs.as_fd()).context("cannot list the logs")? {
            if let Some(stat) = fsio::stat(logs.as_fd(), &name)?.filter(|_| name.ends_with(".log")) {
                old.push(((stat.st_mtime, stat.st_mtime_nsec), name));
            }
        }
        old.sort();
        for (_, name) in old.iter().rev().skip(KEPT) {
            fsio::unlink(logs.as_fd(), name)?;
        }
        Ok(Some(store.path().join(BAK).join(LOGS).join(name)))
    }
}
