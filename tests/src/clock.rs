//! A wall clock that a test sets while programs run by it, so that no machine is too slow for what is to happen by it.

use crate::Kit;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The full hour so many hours from the true time, in UTC, as in `06:00`: for what must not be now, whenever the tests run.
pub fn hour(from_now: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600;
    format!("{:02}:00", (now + from_now) % 24)
}

pub struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    /// Stands still at `time`, as in `2026-11-20 05:59:50`, in the zone of the programs.
    pub fn new(kit: &Kit, time: &str) -> Self {
        let library = kit.sh("faketime -f +0s printenv LD_PRELOAD").clean().out.trim().to_owned();
        let clock = Self { file: kit.path("clock"), library };
        clock.set(time);
        clock
    }

    /// Sets it while programs look at it: they see the old time or this one. `+` or `-` and seconds: the true time, and so
    /// much later or earlier; then it goes on.
    pub fn set(&self, time: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, time).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// The command's clock is this one. Monotonic clocks, and so waits and rates, stay true.
    pub fn govern(&self, command: &mut Command) {
        // The library reads the file anew each time.
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// The same for all clocks of the command, monotonic ones too. Sleeps stay true; who waits for an event until a time
    /// waits without end (the kernel has another idea of that time), so what is tested must end by other means.
    pub fn govern_all(&self, command: &mut Command) {
        self.govern(command);
        command.env_remove("FAKETIME_DONT_FAKE_MONOTONIC");
    }
}
