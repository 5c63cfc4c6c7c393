//! A store that is held while it is listed, planned and pruned, wherever it is.

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::far::{Access, Far, Url};
use bak_common::lock::Lock;
use bak_common::outbox::Outbox;
use bak_common::pass;
use bak_common::store::{Entry, Locked, Store};

use crate::look::View;
use crate::remote::{Outcome, Visit};
use crate::request::{At, Place};
use bak_common::far::identity::right_one;

/// What keeps others away from a store, and removes from it.
#[derive(Debug)]
pub enum Held<'a> {
    /// Nobody: it is only looked at.
    Not,
    Here(Here<'a>),
    There(Box<Visit<'a>>),
}

/// A store on this machine. If it is a destination's mounted copy, bak-sync is kept away from it, too.
#[derive(Debug)]
pub struct Here<'a> {
    session: &'a Session,
    locked: Locked<'a>,
    outbox: Option<Outbox>,
    _pass: Option<Lock>,
}

/// Opens and lists a store; with `change` it is locked first, and what was begun there is finished.
pub fn open<'a>(session: &'a Session, place: &'a Place, change: bool) -> Result<(Held<'a>, View)> {
    match &place.at {
        At::Here(store) => here(session, place, store, change),
        At::There(remote) => {
            let (visit, view) = Visit::open(session, place, remote, change)?;
            Ok((Held::There(Box::new(visit)), view))
        }
    }
}

fn here<'a>(session: &'a Session, place: &'a Place, store: &'a Store, change: bool) -> Result<(Held<'a>, View)> {
    let outbox = place.outbox()?;
    if let Some(outbox) = &outbox {
        the_right_disk(outbox, store)?;
    }
    if !change {
        return Ok((Held::Not, View::of(store)));
    }
    let pass = outbox.as_ref().map(|outbox| pass::lock(session, outbox)).transpose()?;
    let locked = store.lock(session.wait, &session.report)?;
    Ok((Held::Here(Here { session, locked, outbox, _pass: pass }), View::of(store)))
}

/// Refuses (exit 4) a mounted copy that is not the one that its outbox belongs to.
fn the_right_disk(outbox: &Outbox, store: &Store) -> Result<()> {
    let Some(expected) = outbox.identity()? else { return Ok(()) };
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let far = Far::open(Url::Path(store.path().to_owned()), &Access::default(), scratch.path())?;
    right_one(&far, Some(&expected)).context("nothing was removed").map(drop)
}

impl Held<'_> {
    /// Removes dumps. One outcome each, in order.
    pub fn remove(&mut self, entries: &[&Entry]) -> Vec<Outcome> {
        match self {
            Self::Not => entries.iter().map(|_| Outcome::NotDone).collect(),
            Self::Here(here) => here.remove(entries),
            Self::There(visit) => visit.remove(entries),
        }
    }
}

impl Here<'_> {
    fn remove(&self, entries: &[&Entry]) -> Vec<Outcome> {
        let outcome = |(result, entry): (Result<()>, &&Entry)| match result {
            Ok(()) => {
                self.note(entry);
                Outcome::Removed
            }
            Err(error) => Outcome::Failed(error),
        };
        self.locked.remove(entries).into_iter().zip(entries).map(outcome).collect()
    }

    /// Has the history of the destination say that the dump was removed there. If that fails, `bak-sync --reconcile` will
    /// take it for lost, and it could be sent again.
    fn note(&self, entry: &Entry) {
        let Some(outbox) = &self.outbox else { return };
        if let Err(error) = outbox.set_pruned(&entry.dump, Some(self.session.clock())) {
            let text = anyhow!("was removed, but that cannot be noted in the history of {}: {error:#}", outbox.dest);
            self.session.report.fail(entry.dump.id.as_str(), &text);
        }
    }
}
