//! Claims: whoever dumps a guest holds a lock of its own for it, and so do the programs that do the work.
//!
//! A claim is a file `claims/<vm>`, never unlinked. It is taken, and looked at, under the database's lock only, so that
//! status and claim always agree: BACKUP_IN_PROGRESS with a free claim means that whoever dumped is dead.

use anyhow::Result;
use bak_common::calendar::Time;
use bak_common::lock::{Hold, Holder, Lock, holder};
use bak_common::name::{DumpId, printable};
use bak_common::record::Guest;
use bak_common::report::Kind;
use std::os::fd::AsFd;

use crate::db::{Db, First, Mode};
use crate::format::{Details, Table};
use crate::status::{Detail, LastDump, Status};

/// A guest that is being dumped. Dropped without [`Claim::finish`] it stays BACKUP_IN_PROGRESS, which the next
/// observation finds out.
#[derive(Debug)]
pub struct Claim {
    db: Db,
    lock: Lock,
    guest: Guest,
}

/// How the work under a claim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A good dump was made; `fingerprint` is what the guest's was when that began.
    Clean { fingerprint: Option<String>, started: Time, id: DumpId },
    /// It is still to be dumped: the dump failed, or the guest changed or was started meanwhile.
    Necessary,
}

impl Db {
    /// Takes `guest` to be dumped: BACKUP_IN_PROGRESS, whatever it was but ARCHIVED (exit status 4). Held by another:
    /// exit status 3, naming the holder.
    pub fn claim(&self, guest: &Guest, now: Time) -> Result<Claim> {
        let vm = guest.vm.as_str();
        let step = self.step(Mode::Write)?;
        let statedb = step.statedb()?;
        let mut table = Table::parse(&statedb);
        step.sound(&table.damage)?;
        let text = step.details()?;
        let known = Details::parse_some(&text, |name| name == vm);
        step.sound(&known.damage)?;
        let old = known.get(vm);
        let other = old.is_some_and(|old| !old.same_guest(guest));
        if table.get(vm) == Some(Status::Archived) && !other {
            return Err(Kind::Refused.says("it is ARCHIVED: `bak-state set BACKUP_NECESSARY` brings it back"));
        }
        let lock = self.take(guest)?;
        let mut details = None;
        if table.get(vm).is_none() || old.is_none() || other {
            let mut all = Details::parse(&text);
            step.sound(&all.damage)?;
            let old = old.filter(|_| table.get(vm).is_some());
            all.set(Detail::of(guest, old, now));
            details = Some(all);
        }
        table.set(vm, Status::BackupInProgress);
        let details = details.map(|details| details.to_text(&table)).transpose()?;
        step.commit(&table, details, if other { First::Statuses } else { First::Details })?;
        Ok(Claim { db: self.clone(), lock, guest: guest.clone() })
    }

    fn take(&self, guest: &Guest) -> Result<Lock> {
        let claims = self.make_claims()?;
        let name = guest.vm.encoded();
        let Some(mut lock) = Lock::try_take(claims.as_fd(), &name, Hold::Exclusive)? else {
            let by = holder(claims.as_fd(), &name).map_or_else(
                || "another program".to_owned(),
                |h| format!("{} (pid {} on {})", printable(&h.program), h.pid, printable(&h.node)),
            );
            return Err(Kind::Locked.says(format!("it is being dumped by {by}")));
        };
        lock.sign(&Holder::me())?;
        Ok(lock)
    }
}

impl Claim {
    /// For the programs that do the work to hold too.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Says how it ended, and gives the claim back. Where somebody has set another status meanwhile, that one stays.
    pub fn finish(self, outcome: Outcome, now: Time) -> Result<()> {
        let vm = self.guest.vm.as_str();
        let step = self.db.step(Mode::Write)?;
        let statedb = step.statedb()?;
        let mut table = Table::parse(&statedb);
        step.sound(&table.damage)?;
        let status = match &outcome {
            Outcome::Clean { .. } => Status::Clean,
            Outcome::Necessary => Status::BackupNecessary,
        };
        let ours = table.get(vm) == Some(Status::BackupInProgress);
        let mut details = None;
        if let Outcome::Clean { fingerprint, started, id } = outcome
            && table.get(vm).is_some()
        {
            let text = step.details()?;
            let mut all = Details::parse(&text);
            step.sound(&all.damage)?;
            let known = all.get(vm).filter(|old| old.same_guest(&self.guest)).cloned();
            let mut detail = known.unwrap_or_else(|| Detail::of(&self.guest, None, now));
            detail.seen = Some(now);
            detail.dump = Some(LastDump { id, started, fingerprint });
            all.set(detail);
            details = Some(all.to_text(&table)?);
        }
        if ours {
            table.set(vm, status);
        }
        step.commit(&table, details, First::Details)?;
        // The claim goes while the database is still locked, so that nobody sees it held beside a status that is done.
        let released = self.lock.release();
        drop(step);
        released
    }
}
