//! What every run that works on a far side shares: the lock of the pass, its temporary files, its limits and its lines in
//! the ledger.

use anyhow::{Context, Result, anyhow};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::args::{Destination, Session};
use crate::far::LimitReached;
use crate::ledger::{self, Attempt, Ledger, Line};
use crate::lock::{Hold, Holder, Lock};
use crate::meter::Wire;
use crate::outbox::Outbox;
use crate::period::{self, Cap, show_limit};
use crate::record::Dump;
use crate::store::BAK;

/// Takes the lock of a whole pass: one at a time works on a destination.
pub fn lock(session: &Session, outbox: &Outbox) -> Result<Lock> {
    let take = || {
        let bak = outbox.store.make_bak()?;
        let what = format!("the outbox of {}", outbox.dest);
        let lock = Lock::take(bak.as_fd(), "pass", Hold::Exclusive, session.wait, &what)?;
        lock.sign(&Holder::me())?;
        Ok(lock)
    };
    take().map_err(|error| outbox.store.where_full(error))
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

/// What must be left of a limit for a look at the far side, in bytes.
const LEAST: i128 = 8 << 10;

/// How much may cross to or from a destination now, in both directions; `None` without a limit. Where there is no outbox no
/// ledger tells what was used before. An error, a [`LimitReached`], if that is too little for a look.
pub fn left(session: &Session, dest: &Destination, outbox: Option<&Outbox>) -> Result<Option<i128>> {
    let Some(outbox) = outbox else {
        return Ok(dest.limits.iter().map(|limit| i128::from(limit.bytes)).min());
    };
    let caps = caps(session, dest, outbox)?;
    let tightest = caps.iter().map(|cap| (i128::from(cap.limit.bytes) - i128::from(cap.used), cap.limit));
    match tightest.min_by_key(|(left, _)| *left) {
        Some((left, limit)) if left < LEAST => {
            Err(LimitReached).context(format!("too little is left of {}", show_limit(limit)))
        }
        tightest => Ok(tightest.map(|(left, _)| left)),
    }
}

/// A running attempt is noted in the ledger after so many bytes, or so much time, whichever comes first. With the meter's
/// own lead (47 MiB) a crash forgets less than 64 MiB.
const NOTED_EVERY: u64 = 16 << 20;
const NOTED_AFTER: Duration = Duration::from_secs(2);

/// A running attempt's line in the ledger, written anew as it goes on.
#[derive(Debug)]
pub struct Noted {
    line: Attempt,
    begun: Instant,
    /// How much was noted last, and when.
    bytes: u64,
    when: Instant,
}

impl Noted {
    pub fn new(line: Attempt, begun: Instant) -> Self {
        Self { line, begun, bytes: 0, when: Instant::now() }
    }

    /// So much has crossed.
    pub fn at(&mut self, ledger: &mut ledger::Writer, wire: Wire) -> Result<()> {
        let so_far = wire.both();
        if so_far >= self.bytes + NOTED_EVERY || (so_far > self.bytes && self.when.elapsed() >= NOTED_AFTER) {
            (self.bytes, self.when) = (so_far, Instant::now());
            let line = &mut self.line;
            (line.wire_out, line.wire_in, line.seconds) = (wire.out, wire.into, self.begun.elapsed().as_secs());
            ledger.append(&Line::Attempt(line.clone()))?;
        }
        Ok(())
    }
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
