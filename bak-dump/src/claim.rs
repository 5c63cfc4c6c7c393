//! Claims on guests in bak-state's database, so that nobody uses or dumps a guest while it is being dumped. Without a
//! database there are none.

use anyhow::Result;
use bak_common::calendar::Time;
use bak_common::lock::Lock;
use bak_common::record::{Dump, Guest};
use std::path::PathBuf;
use std::time::Duration;

/// How claims are made in this run.
#[derive(Debug)]
pub struct Claims {
    dir: Option<PathBuf>,
    wait: Duration,
}

/// The claim on one guest, or the absence of a database.
pub struct Held(Option<bak_state::Claim>);

impl Claims {
    /// Opens the database once, so that a wrong directory is said before anything is done.
    pub fn new(dir: Option<PathBuf>, wait: Duration) -> Result<Self> {
        if let Some(dir) = &dir {
            bak_state::Db::open(dir, wait)?;
        }
        Ok(Self { dir, wait })
    }

    pub fn claim(&self, guest: &Guest, now: Time) -> Result<Held> {
        let Some(dir) = &self.dir else { return Ok(Held(None)) };
        Ok(Held(Some(bak_state::Db::open(dir, self.wait)?.claim(guest, now)?)))
    }
}

impl Held {
    pub fn lock(&self) -> Option<&Lock> {
        self.0.as_ref().map(bak_state::Claim::lock)
    }

    /// The guest was dumped as `fingerprint` says it was.
    pub fn dumped(self, dump: &Dump, fingerprint: Option<String>, now: Time) -> Result<()> {
        let outcome = bak_state::Outcome::Clean { fingerprint, started: dump.started, id: dump.id.clone() };
        self.0.map_or(Ok(()), |claim| claim.finish(outcome, now))
    }

    /// It was not, and still has to be.
    pub fn failed(self, now: Time) -> Result<()> {
        self.0.map_or(Ok(()), |claim| claim.finish(bak_state::Outcome::Necessary, now))
    }
}
