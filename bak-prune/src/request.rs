//! What a run is asked to do.

use anyhow::{Result, ensure};
use bak_common::args::Destination;
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName};
use bak_common::outbox::Outbox;
use bak_common::select::Selector;
use bak_common::store::Store;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::forecast::Simulate;
use crate::offsite::OnlySent;
use crate::protect::Protect;
use crate::remote::Remote;

#[derive(Debug)]
pub struct Request {
    /// In the order in which they are locked.
    pub places: Vec<Place>,
    pub task: Task,
    pub guests: Selector,
    /// The rules of the command line; else the configuration's hold.
    pub rules: Option<Keep>,
    /// How many dumps that are not good are kept, whoever makes the rules.
    pub keep_failed: Option<u64>,
    /// By how much a dump may be dated ahead of our clock, in seconds.
    pub skew_s: i64,
    /// If the plan removes more, nothing is removed.
    pub max_remove: Option<MaxRemove>,
    /// By name, also what is dated wrongly.
    pub force: bool,
    /// Beyond the rules, remove until so many bytes are free.
    pub free: Option<u64>,
    pub only_sent: Option<OnlySent>,
    /// Guests that are gone come by standard input: their last dumps may go, too.
    pub gone: GoneGuests,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneGuests {
    No,
    /// Beside the guests selected.
    Too,
    /// These and no others.
    Only,
}

#[derive(Debug)]
pub enum Task {
    /// Remove what no rule keeps.
    Rules,
    /// Remove exactly these.
    Named(Order),
    /// Remove nothing, but say what may be removed.
    Protect(Protect),
    /// Remove all dumps of this guest.
    Purge(Purge),
    /// Remove nothing, but show what would be removed in time to come.
    Simulate(Simulate),
}

#[derive(Debug)]
pub struct Purge {
    pub vm: GuestName,
    /// It was named a second time.
    pub confirmed: bool,
}

/// A store to prune.
#[derive(Debug)]
pub struct Place {
    pub at: At,
    /// The destination whose copy this is.
    pub dest: Option<Destination>,
}

/// Where a store is.
#[derive(Debug)]
pub enum At {
    Here(Store),
    There(Remote),
}

impl Place {
    /// What it is called in messages.
    pub fn name(&self) -> String {
        match &self.at {
            At::Here(store) => store.path().display().to_string(),
            At::There(remote) => remote.shown.clone(),
        }
    }

    /// Its directory, if it is on this machine.
    pub fn path(&self) -> Option<&Path> {
        match &self.at {
            At::Here(store) => Some(store.path()),
            At::There(_) => None,
        }
    }

    pub fn dest_name(&self) -> Option<&str> {
        self.dest.as_ref().map(|dest| dest.name.as_str())
    }

    /// The outbox of its destination, if there is one.
    pub fn outbox(&self) -> Result<Option<Outbox>> {
        let dest = self.dest.as_ref().filter(|dest| dest.outbox.exists());
        dest.map(|dest| Outbox::open(&dest.outbox, &dest.name, dest.ledger.as_deref())).transpose()
    }
}

#[derive(Debug)]
pub struct Order {
    pub ids: BTreeSet<DumpId>,
    /// More ids come by standard input.
    pub stdin: bool,
}

/// How many dumps a run may remove.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxRemove {
    Count(u64),
    /// Of the dumps of the guests selected.
    Percent(f64),
}

impl MaxRemove {
    pub fn allows(self, removed: usize, of: usize) -> bool {
        match self {
            Self::Count(count) => removed as u64 <= count,
            Self::Percent(percent) => removed as f64 * 100.0 <= percent * of as f64,
        }
    }
}

impl FromStr for MaxRemove {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow::anyhow!("`{}` is neither a number nor a share like 20%", text.escape_debug());
        let Some(percent) = text.strip_suffix('%') else {
            return Ok(Self::Count(text.parse().map_err(|_| wrong())?));
        };
        let percent: f64 = percent.parse().map_err(|_| wrong())?;
        ensure!((0.0..=100.0).contains(&percent), wrong());
        Ok(Self::Percent(percent))
    }
}

impl fmt::Display for MaxRemove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_may_go() {
        let table =
            [("0", 0, 9, true), ("0", 1, 9, false), ("2", 2, 9, true), ("20%", 2, 10, true), ("20%", 3, 10, false)];
        for (text, removed, of, allowed) in table {
            assert_eq!(text.parse::<MaxRemove>().unwrap().allows(removed, of), allowed, "{text} {removed} {of}");
        }
        assert!("0%".parse::<MaxRemove>().unwrap().allows(0, 0));
        for bad in ["", "-1", "%", "101%", "NaN%", "-1%", "5 %x", "1.5"] {
            assert!(bad.parse::<MaxRemove>().is_err(), "{bad}");
        }
    }
}
