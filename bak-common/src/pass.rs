//! What every run that works on a far side shares: the lock of the pass, its temporary files, its limits and its lines in
//! the ledger.

use anyhow::{Context, Result, anyhow};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::args::{Destination, Session};
use crate::ledger::{Attempt, Ledger};
use crate::lock::{Hold, Holder, Lock};
use crate::meter::Wire;
use crate::outbox::Outbox;
use crate::period::{self, Cap};
use crate::record::Dump;
use crate::store::BAK;

/// Takes the lock of a whole pass: one at a time works on a destination.
pub fn lock(session: &Session, outbox: &Outbox) -> Result<Lock> {
    let bak = outbox.store.make_bak()?;
    let lock =
        Lock::take(bak.as_fd(), "pass", Hold::Exclusive, session.wait, &format!("the outbox of {}", outbox.dest))?;
    lock.sign(&Holder::me())?;
    Ok(lock)
}

/// A directory for one pass in the outbox's `.bak`, gone with it; what a crash left of the last one is swept first. Only
/// for who holds the pass's lock.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(outbox: &Outbox, _lock: &Lock) -> Result<Self> {
        let path = outbox.store.path().join(BAK).join("scratch");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear {}", path.display()));
            }
            _ => fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?,
        }
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next pass sweeps it if this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The limits of a destination, and what the ledger has counted of them.
pub fn caps(session: &Session, dest: &Destination, outbox: &Outbox) -> Result<Vec<Cap>> {
    if dest.limits.is_empty() {
        return Ok(Vec::new());
    }
    let ledger = Ledger::read(&outbox.ledger(), &dest.name)?;
    for damage in &ledger.damaged {
        session.report.fail("ledger", &anyhow!("cannot read {damage}"));
    }
    Ok(period::caps(&dest.limits, &ledger, session.clock(), session.zone))
}

/// A line of the ledger.
pub fn attempt(
    session: &Session,
    dest: &Destination,
    id: &str,
    dump: Option<&Dump>,
    wire: Wire,
    begun: Instant,
    result: &str,
) -> Attempt {
    Attempt {
        id: id.to_owned(),
        at: session.clock(),
        dest: dest.name.clone(),
        dump: dump.map(|dump| dump.id.clone()),
        wire_out: wire.out,
        wire_in: wire.into,
        seconds: begun.elapsed().as_secs(),
        result: result.to_owned(),
        why: None,
    }
}
