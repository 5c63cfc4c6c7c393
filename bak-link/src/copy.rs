//! Copies into an outbox what can't be linked there.
//!
//! A copy takes hours, and the outbox's lock must not: bak-sync wants it for every dump. So the work is begun under it,
//! the files are copied and proved without it, and it is taken again to publish them. What was true in between need not
//! be any more, so before that everything is looked at again. One bak-link at a time copies into an outbox: another
//! would plan without knowing what is being made.

use anyhow::{Context, Result, bail, ensure};
use bak_common::args::Session;
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::outbox::Outbox;
use bak_common::store::Wanted;
use std::os::fd::AsFd;

use crate::apply::Run;
use crate::progress::Bar;

/// Taken before the store's lock, and held while all is copied.
const LOCK: &str = "copying";

/// Takes the right to copy into this outbox.
pub fn lock(session: &Session, outbox: &Outbox) -> Result<Lock> {
    let take = || {
        let bak = outbox.store.make_bak()?;
        let what = format!("copying into the outbox {}", outbox.store.path().display());
        let lock = Lock::take(bak.as_fd(), LOCK, Hold::Exclusive, session.wait, &what)?;
        lock.sign(&Holder::me())?;
        Ok(lock)
    };
    take().map_err(|error| outbox.store.where_full(error))
}

/// Copies one dump.
pub fn copy(run: &Run, outbox: &Outbox, one: &Wanted) -> Result<()> {
    copy_it(run, outbox, one).map_err(|error| outbox.store.where_full(error))
}

fn copy_it(run: &Run, outbox: &Outbox, one: &Wanted) -> Result<()> {
    let session = run.session;
    let store = || outbox.store.lock(session.wait, &session.report);
    let work = store()?.begin(&one.dump.stem, &Outbox::place(&one.dump.vm))?;
    let bar = Bar::new(session, &one.dump);
    work.copy(run.store, &one.entry, &mut |bytes| bar.add(bytes))?;
    drop(bar);
    let locked = store()?;
    wanted_still(run, outbox, one)?;
    locked.publish(work, &one.dump)?;
    Ok(())
}

/// Whether what was true when the plan was made still is. A newer dump in the store doesn't matter: else a guest that is
/// dumped more often than it can be copied would never be sent.
fn wanted_still(run: &Run, outbox: &Outbox, one: &Wanted) -> Result<()> {
    let (entry, dump) = (&one.entry, &one.dump);
    let now = run.store.look(&entry.place, &dump.stem)?.context("it was removed meanwhile")?;
    if let Some(fault) = &now.fault {
        bail!("{fault}");
    }
    ensure!(now.dump.same(dump) && now.inodes == entry.inodes, "it was replaced meanwhile");
    let key = dump.key();
    let pending = outbox.store.list();
    let newer = pending.good().find(|there| there.dump.key() == key && there.dump.started >= dump.started);
    ensure!(newer.is_none(), "it or a newer one was linked meanwhile");
    let history = outbox.history_of(&dump.vm)?;
    let sent = history.dumps.iter().find(|sent| sent.key() == key && sent.started >= dump.started);
    ensure!(sent.is_none(), "it or a newer one was sent meanwhile");
    Ok(())
}
