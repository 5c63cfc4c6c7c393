//! What is said where there is no room: programs and system calls say that there is none, but not where.

use super::Store;
use crate::fsio::is_full;

impl Store {
    /// An error of work on this store: if it is that there is no room, with where that was, and what may help.
    pub fn where_full(&self, error: anyhow::Error) -> anyhow::Error {
        let (text, place) = (format!("{error:#}"), self.path.display().to_string());
        let is_full = is_full(&error) || text.contains("there is no room");
        if !is_full || text.contains(&place) {
            return error;
        }
        error.context(format!("the disk of {place} is full, make room there (bak-prune does)"))
    }
}
