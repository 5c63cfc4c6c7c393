//! What the black-box tests of bak-link share.

#[allow(unused_imports, reason = "not every test file needs all of it")]
pub use bak_tests::disk::{Disk, root, tool};
use bak_tests::{Kit, Ran, check_store};
use std::path::PathBuf;

pub const NOW: &str = "2026-11-20T12:00:00Z";

/// Two o'clock of a day of November 2026.
pub fn day(day: u32) -> String {
    format!("2026-11-{day:02}T02:00:00Z")
}

#[allow(dead_code, reason = "not every test file needs all of it")]
pub trait Link {
    fn link(&self, args: &[&str]) -> Ran;
    fn link_with(&self, args: &[&str], input: &str) -> Ran;
    fn outbox(&self) -> PathBuf;
    fn pending(&self) -> Vec<String>;
}

impl Link for Kit {
    fn link(&self, args: &[&str]) -> Ran {
        self.link_with(args, "")
    }

    fn link_with(&self, args: &[&str], input: &str) -> Ran {
        let store = self.store();
        let mut fixed = vec!["--store", store.to_str().unwrap(), "--dest", "box=/far"];
        if !args.contains(&"--now") {
            fixed.extend(["--now", NOW]);
        }
        self.run_with("bak-link", fixed.iter().chain(args), input)
    }

    fn outbox(&self) -> PathBuf {
        self.store().join(".outbox-box")
    }

    /// Ids of the outbox, which is right in every way.
    fn pending(&self) -> Vec<String> {
        let seen = check_store(&self.outbox());
        assert_eq!((seen.broken, seen.unfinished), (vec![], vec![]));
        seen.whole
    }
}
