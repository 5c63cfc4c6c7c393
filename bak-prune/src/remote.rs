//! An off-site copy that only rsync reaches.
//!
//! What can go wrong is to believe too much, and to leave too much. So: the far side must carry its identity; a listing that
//! is not whole ends the matter; sidecars fetched earlier are believed only if they are listed as they were; and what is to
//! be removed is noted here before the first sidecar goes, so that a later run can finish it.
//!
//! The order over there is that of DESIGN: the sidecars in one run, which is the decision; a listing that shows them gone;
//! then files and companions. The lock of the pass keeps bak-sync of this machine away meanwhile.

pub mod drop;
mod remove;

pub use remove::Outcome;

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::far::home;
use bak_common::far::identity::right_one;
use bak_common::far::{Access, Cache, Far, Url};
use bak_common::ledger::{self, Line};
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::name::Stem;
use bak_common::outbox::{Identity, Outbox};
use bak_common::pass::{self, Scratch};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::look::View;
use crate::request::Place;
use drop::Files;

/// How an off-site copy is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub url: Url,
    /// As the user writes it.
    pub shown: String,
    /// How to get in.
    pub access: Access,
}

/// A directory for temporary files.
#[derive(Debug)]
enum Temporary {
    /// In the outbox: the next pass sweeps what a crash leaves.
    Pass(Scratch),
    Own(tempfile::TempDir),
}

impl Temporary {
    fn path(&self) -> &Path {
        match self {
            Self::Pass(scratch) => scratch.path(),
            Self::Own(dir) => dir.path(),
        }
    }
}

/// A far side that was reached and looked at.
#[derive(Debug)]
pub struct Visit<'a> {
    session: &'a Session,
    place: &'a Place,
    shown: &'a str,
    outbox: Option<Outbox>,
    far: Far,
    ledger: Option<ledger::Writer>,
    id: String,
    begun: Instant,
    /// Where it is noted what was decided, and sidecars are kept.
    state: PathBuf,
    files: Files,
    // Last, in the order in which they end: the temporary files go before the lock.
    _scratch: Temporary,
    _locks: Vec<Lock>,
}

impl<'a> Visit<'a> {
    /// Reaches the far side, makes sure that it is the right one and lists all of it; with `change` what was begun there is
    /// finished, too, and nobody else on this machine works on it meanwhile.
    pub fn open(session: &'a Session, place: &'a Place, remote: &'a Remote, change: bool) -> Result<(Self, View)> {
        let outbox = place.outbox()?;
        let expected = outbox.as_ref().map(Outbox::identity).transpose()?.flatten();
        let lock = match &outbox {
            Some(outbox) if change => Some(pass::lock(session, outbox)?),
            _ => None,
        };
        let left = match &place.dest {
            Some(dest) => pass::left(session, dest, outbox.as_ref())?,
            None => None,
        };
        let scratch = match (&outbox, &lock) {
            (Some(outbox), Some(lock)) => Temporary::Pass(Scratch::new(outbox, lock)?),
            _ => Temporary::Own(tempfile::tempdir().context("cannot make a temporary directory")?),
        };
        let open = |outbox: &Outbox| ledger::Writer::open(&outbox.ledger(), &session.config.node(), session.clock());
        let ledger = outbox.as_ref().map(open).transpose()?;
        let far = Far::open(remote.url.clone(), &remote.access, scratch.path())?;
        far.limit(left);
        let mut visit = Self {
            session,
            place,
            shown: &remote.shown,
            outbox,
            far,
            ledger,
            id: uuid::Uuid::new_v4().to_string(),
            begun: Instant::now(),
            state: PathBuf::new(),
            files: Files::new(),
            _scratch: scratch,
            _locks: lock.into_iter().collect(),
        };
        let looked = visit.look(expected.as_ref(), change);
        // What the look has cost is noted whether or not it went well.
        visit.note("look")?;
        let view = looked.context("nothing was removed")?;
        Ok((visit, view))
    }

    fn look(&mut self, expected: Option<&Identity>, change: bool) -> Result<View> {
        let identity = right_one(&self.far, expected)?;
        self.state = home::dir(self.outbox.as_ref(), &identity)?;
        if change {
            let top = home::make(&self.state)?;
            if self.outbox.is_none() {
                let lock = Lock::take(top.as_fd(), "lock", Hold::Exclusive, self.session.wait, self.shown)?;
                lock.sign(&Holder::me())?;
                self._locks.push(lock);
            }
        }
        let cache = Cache::new(self.state.join("sidecars"), !change);
        let (files, listing) = self.far.whole_with(self.shown, &cache)?;
        self.files = files.into_iter().map(|file| (file.name.clone(), file)).collect();
        if change {
            self.recover()?;
        }
        Ok(View::there(self.shown, &self.files, listing))
    }

    /// Notes in the ledger what has crossed since the last time.
    fn note(&mut self, what: &str) -> Result<()> {
        let wire = self.far.take_wire();
        let (Some(ledger), Some(dest)) = (&mut self.ledger, &self.place.dest) else { return Ok(()) };
        let id = format!("{}/prune/{what}", self.id);
        ledger.append(&Line::Attempt(pass::attempt(self.session, dest, &id, None, wire, self.begun, "done")))
    }

    /// What waits here to be sent there.
    fn pending(&self) -> Result<HashSet<Stem>> {
        let Some(outbox) = &self.outbox else { return Ok(HashSet::new()) };
        let listing = outbox.store.list();
        if let Some(bad) = listing.unreadable.first() {
            return Err(anyhow!("{}: {:#}", bad.path(), bad.error).context("cannot tell what waits to be sent there"));
        }
        Ok(listing.dumps.into_iter().map(|entry| entry.dump.stem).collect())
    }
}
