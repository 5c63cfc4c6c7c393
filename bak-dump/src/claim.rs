//! Claims on guests in bak-state's database, so that nobody uses or dumps a guest while it is being dumped. Without a
//! database there are none.

use anyhow::Result;
use bak_common::calendar::Time;
use bak_common::lock::Lock;
use bak_common::record::{Dump, Guest};
use std::path::PathBuf;
use std::time::Duration;

use stand_in as bak_state;

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

/// Stands in for the library bak_state until that is there.
mod stand_in {
    use anyhow::Result;
    use bak_common::calendar::Time;
    use bak_common::lock::Lock;
    use bak_common::name::DumpId;
    use bak_common::record::Guest;
    use bak_common::report::Kind;
    use std::path::Path;
    use std::time::Duration;

    pub struct Db(std::convert::Infallible);
    pub struct Claim(std::convert::Infallible);

    #[allow(dead_code)]
    pub enum Outcome {
        Clean { fingerprint: Option<String>, started: Time, id: DumpId },
        Necessary,
    }

    impl Db {
        pub fn open(_dir: &Path, _wait: Duration) -> Result<Db> {
            Err(Kind::Usage.says("this bak-dump was built without the database; leave --db and `db` out"))
        }
        pub fn claim(&self, _guest: &Guest, _now: Time) -> Result<Claim> {
            match self.0 {}
        }
    }

    impl Claim {
        pub fn lock(&self) -> &Lock {
            match self.0 {}
        }
        pub fn finish(self, _outcome: Outcome, _now: Time) -> Result<()> {
            match self.0 {}
        }
    }
}
