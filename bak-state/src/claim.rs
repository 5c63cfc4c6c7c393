//! Claims: whoever dumps a guest holds a lock of its own for it, and so do the programs that do the work.
//!
//! A claim is a file `claims/<vm>`, never unlinked. It is taken, and looked at, under the database's lock only, so that
//! status and claim always agree: BACKUP_IN_PROGRESS with a free claim means that whoever dumped is dead.
//!
//! The hazard is a claim that was lost without its holder's noticing: a client that its file server gave up on. So before
//! a status is set, the claim's file must still say that it is ours, and must still take a flushed write.

use anyhow::{Context, Result};
use bak_common::calendar::Time;
use bak_common::lock::{Hold, Holder, Lock, holder};
use bak_common::name::{DumpId, GuestName};
use bak_common::record::Guest;
use bak_common::report::Kind;
use std::os::fd::AsFd;

use crate::db::{Db, First, Mode, Step};
use crate::format::Details;
use crate::status::{Detail, LastDump, Status, due_since};

/// A guest that is being dumped. Dropped without an end it stays BACKUP_IN_PROGRESS, which the next observation finds out.
#[derive(Debug)]
pub struct Claim {
    db: Db,
    lock: Lock,
    /// How the lock is signed.
    me: Holder,
    /// As it was when it was claimed.
    detail: Detail,
    was: Option<Status>,
    /// Since when the guest is due at the latest.
    due: Time,
}

/// How the work under a claim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A good dump was made; `fingerprint` is what the guest's was when that began.
    Clean { fingerprint: Option<String>, started: Time, id: DumpId },
    /// It is still to be dumped: the dump failed, or the guest changed or was started meanwhile.
    Necessary,
}

/// What came of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its status now; `None` if it was dropped from the database meanwhile.
    pub status: Option<Status>,
    /// What others saw meanwhile, where that undid the outcome.
    pub spoilt: Option<String>,
}

/// What a claim is made from.
enum Of<'a> {
    /// A record of the guest as it is now, which the database need not know.
    Record(&'a Guest),
    /// What the database knows.
    Known(&'a GuestName),
}

impl Db {
    /// Takes `guest` to be dumped: BACKUP_IN_PROGRESS, whatever it was but ARCHIVED (exit status 4). Held by another:
    /// exit status 3, naming the holder.
    pub fn claim(&self, guest: &Guest, now: Time) -> Result<Claim> {
        self.claim_as(Of::Record(guest), now)
    }

    /// The same for a guest that the database must know already (exit status 4).
    pub(crate) fn claim_known(&self, vm: &GuestName, now: Time) -> Result<Claim> {
        self.claim_as(Of::Known(vm), now)
    }

    fn claim_as(&self, of: Of, now: Time) -> Result<Claim> {
        let (name, guest) = match of {
            Of::Record(guest) => (&guest.vm, Some(guest)),
            Of::Known(vm) => (vm, None),
        };
        let vm = name.as_str();
        let step = self.step(Mode::Write)?;
        let statedb = step.statedb()?;
        let mut table = step.table(&statedb)?;
        step.sound(&table.damage)?;
        let text = step.details()?;
        let known = Details::parse_some(&text, |name| name == vm);
        step.sound(&known.damage)?;
        let (was, old) = (table.get(vm), known.get(vm));
        let other = guest.is_some_and(|guest| old.is_some_and(|old| !old.same_guest(guest)));
        may_claim(was.filter(|_| !other), guest.is_none())?;
        let (lock, me) = self.take(name)?;
        let known = was.is_some() && old.is_some() && !other;
        let old = old.filter(|_| was.is_some());
        let due = due_since(was.filter(|_| !other), old.filter(|_| !other), now);
        let mut detail = match of {
            // A claim is no observation: it says nothing of the other guests.
            Of::Record(guest) => {
                Detail { seen: old.and_then(|old| old.seen), claimed: Some(now), ..Detail::of(guest, old, now) }
            }
            Of::Known(vm) => old.cloned().unwrap_or_else(|| Detail::named(vm.clone())),
        };
        let details = if (guest.is_some() && !known) || detail.spoilt.is_some() {
            let mut all = Details::parse(&text);
            step.sound(&all.damage)?;
            detail.spoilt = None;
            detail.due.get_or_insert(due);
            all.set(detail.clone());
            Some(all)
        } else {
            None
        };
        table.set(vm, Status::BackupInProgress);
        let details = details.map(|details| details.to_text(&table)).transpose()?;
        step.commit(&table, details, if other { First::Statuses } else { First::Details })?;
        Ok(Claim { db: self.clone(), lock, me, detail, was, due })
    }

    /// Takes the claim of `vm` and leaves its status alone. Only for who has the database locked.
    pub(crate) fn take(&self, vm: &GuestName) -> Result<(Lock, Holder)> {
        let claims = self.make_claims()?;
        let name = vm.encoded();
        let Some(lock) = Lock::try_take(claims.as_fd(), &name, Hold::Exclusive)? else {
            return Err(held(holder(claims.as_fd(), &name)));
        };
        let me = Holder { token: Some(uuid::Uuid::new_v4().simple().to_string()), ..Holder::me() };
        lock.sign(&me)?;
        lock.sync()?;
        Ok((lock, me))
    }
}

impl Step {
    /// The error that says who holds the claim of `vm`, if somebody does.
    pub(crate) fn held_by(&self, vm: &GuestName) -> Result<Option<anyhow::Error>> {
        let name = vm.encoded();
        if !self.held(&name)? {
            return Ok(None);
        }
        let claims = self.claims()?;
        Ok(Some(held(claims.and_then(|claims| holder(claims.as_fd(), &name)))))
    }
}

/// Refuses to claim what is not to be dumped, or must be known and is not.
pub(crate) fn may_claim(was: Option<Status>, must_be_known: bool) -> Result<()> {
    match was {
        Some(Status::Archived) => Err(Kind::Refused.says("it is ARCHIVED: `bak-state activate` brings it back")),
        None if must_be_known => Err(Kind::Refused.says("it is not in the database: `bak-state observe` it first")),
        _ => Ok(()),
    }
}

fn held(by: Option<Holder>) -> anyhow::Error {
    let by = by.map_or_else(|| "another program".to_owned(), |holder| holder.to_string());
    Kind::Locked.says(format!("it is being dumped by {by}"))
}

impl Claim {
    /// For the programs that do the work to hold too.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The guest as it was when it was claimed.
    pub(crate) fn detail(&self) -> &Detail {
        &self.detail
    }

    /// Its status before.
    pub(crate) fn was(&self) -> Option<Status> {
        self.was
    }

    /// Says how it ended, and gives the claim back. Where somebody has set another status meanwhile, that one stays.
    pub fn finish(self, outcome: Outcome, now: Time) -> Result<()> {
        let (step, _) = self.settle(outcome, now, false)?;
        // The claim goes while the database is still locked, so that nobody sees it held beside a status that is done.
        let released = self.lock.release();
        drop(step);
        released
    }

    /// The same where others may still work under the claim: it is free when the last of them is gone. CLEAN becomes
    /// BACKUP_NECESSARY where an observation meanwhile saw something that spoils the work.
    pub(crate) fn leave(self, outcome: Outcome, now: Time) -> Result<Ended> {
        let (step, ended) = self.settle(outcome, now, true)?;
        drop(self.lock);
        drop(step);
        Ok(ended)
    }

    /// Sets the status; the database is still locked.
    fn settle(&self, mut outcome: Outcome, now: Time, heed: bool) -> Result<(Step, Ended)> {
        let step = self.db.step(Mode::Write)?;
        let claims = self.db.make_claims()?;
        self.lock.prove(claims.as_fd(), &self.detail.vm.encoded(), &self.me).context("the claim cannot be proved")?;
        let vm = self.detail.vm.as_str();
        let statedb = step.statedb()?;
        let mut table = step.table(&statedb)?;
        step.sound(&table.damage)?;
        let ours = table.get(vm) == Some(Status::BackupInProgress);
        let (mut details, mut spoilt) = (None, None);
        if table.get(vm).is_some() && (ours || outcome != Outcome::Necessary) {
            let text = step.details()?;
            let mut all = Details::parse(&text);
            step.sound(&all.damage)?;
            let same = |old: &&Detail| old.same(self.detail.uid.as_ref(), self.detail.kind.as_ref());
            let known = all.get(vm).filter(same).cloned();
            let mut detail = known.unwrap_or_else(|| self.detail.clone());
            spoilt = detail.spoilt.take().filter(|_| heed && outcome != Outcome::Necessary);
            if spoilt.is_some() {
                outcome = Outcome::Necessary;
            }
            match &outcome {
                Outcome::Clean { fingerprint, started, id } => {
                    let (id, started, fingerprint) = (id.clone(), *started, fingerprint.clone());
                    detail.dumped(LastDump { id, started, fingerprint }, now);
                }
                // Whoever had claimed it before and died has failed as well.
                Outcome::Necessary => {
                    let attempts = if self.was == Some(Status::BackupInProgress) { 2 } else { 1 };
                    detail.failed(attempts, self.due, now);
                }
            }
            // That ours was not dumped says nothing of another guest that has its name by now.
            if outcome != Outcome::Necessary || all.get(vm).is_none_or(|there| same(&there)) {
                all.set(detail);
                details = Some(all.to_text(&table)?);
            }
        }
        if ours {
            let clean = outcome != Outcome::Necessary;
            table.set(vm, if clean { Status::Clean } else { Status::BackupNecessary });
        }
        let status = table.get(vm);
        step.commit(&table, details, First::Details)?;
        Ok((step, Ended { status, spoilt }))
    }
}
