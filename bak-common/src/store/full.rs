//! What is said where there is no room: programs and system calls say that there is none, but not where.

use super::Store;

/// As system calls, outside programs and we ourselves say it.
const SAID: [&str; 3] = ["No space left on device", "Disk quota exceeded", "there is no room"];

impl Store {
    /// An error of work on this store: if it is that there is no room, with where that was, and what may help.
    pub fn where_full(&self, error: anyhow::Error) -> anyhow::Error {
        let (text, place) = (format!("{error:#}"), self.path.display().to_string());
        if !SAID.iter().any(|said| text.contains(said)) || text.contains(&place) {
            return error;
        }
        error.context(format!("the disk of {place} is full, make room there (bak-prune does)"))
    }
}
