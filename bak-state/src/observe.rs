//! `observe`: guest records in, the database updated in one locked step, the same records out with what it knows.
//!
//! The store is looked at before the lock is taken, as that may take long. A guest that was dumped in between is CLEAN
//! and has no dump in that listing; so before any guest is demoted for lack of a dump, the store is looked at once more.

use anyhow::{Result, anyhow};
use bak_common::args::{Places, Session};
use bak_common::calendar::Time;
use bak_common::jsonl;
use bak_common::record::{Guest, GuestKey, Record, Skipped, to_line};
use bak_common::select::Subject;
use std::collections::HashSet;
use std::path::Path;

use crate::db::{First, Mode, Step};
use crate::evidence::Evidence;
use crate::format::{Details, Table};
use crate::print::Printer;
use crate::show::state_text;
use crate::status::{Detail, Facts, InStore, Observed, Status, Why, observe, runs, unsent};

fn in_store(evidence: &Evidence, key: &GuestKey) -> InStore {
    match evidence.local(key) {
        None => InStore::Unknown,
        Some(starts) => starts.iter().max().map_or(InStore::Nothing, |started| InStore::Newest(*started)),
    }
}

/// Which guests are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    All,
    /// Those to dump now.
    Due,
    /// And those to dump once they are stopped.
    DueOrRunning,
}

impl Shown {
    pub fn of(due: bool, running: bool) -> Self {
        match (due, running) {
            (false, _) => Self::All,
            (true, false) => Self::Due,
            (true, true) => Self::DueOrRunning,
        }
    }

    fn has(self, status: Status) -> bool {
        match self {
            Self::All => true,
            Self::Due => status == Status::BackupNecessary,
            Self::DueOrRunning => matches!(status, Status::BackupNecessary | Status::Running),
        }
    }
}

pub fn run(session: &Session, path: &Path, places: &Places, shown: Shown) -> Result<u8> {
    let records = jsonl::read_all(&session.report, session.dry_run)?;
    let evidence = Evidence::gather(session, places)?;
    let (mut guests, mut dumps) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    for record in records {
        match record {
            Record::Guest(guest) if names.insert(guest.vm.clone()) => guests.push(*guest),
            Record::Guest(guest) => {
                let twice = anyhow!("two records in one run have this name: the first one counts (see `prefix`)");
                session.report.fail(guest.vm.as_str(), &twice);
            }
            Record::Dump(dump) => dumps.push(Record::Dump(dump)),
        }
    }
    // Nothing listed is no news of anybody.
    let observed =
        if guests.is_empty() { Vec::new() } else { update(session, path, evidence, &mut guests, Look::AtAll)? };
    print(session, dumps, guests, &observed, shown)
}

/// Brings the database up to date with what `guest` says, as `observe` without a store does.
pub fn one(session: &Session, path: &Path, guest: Guest) -> Result<()> {
    update(session, path, Evidence::default(), &mut [guest], Look::AtOne).map(drop)
}

/// Whose absence a look says something about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    AtAll,
    /// Of the others it says nothing, not even that somebody looks for them.
    AtOne,
}

/// Brings the database up to date and annotates `guests`.
fn update(
    session: &Session,
    path: &Path,
    mut evidence: Evidence,
    guests: &mut [Guest],
    scope: Look,
) -> Result<Vec<Observed>> {
    let mode = if session.dry_run { Mode::Plan } else { Mode::Write };
    let step = Step::begin(path, session.wait, mode)?;
    let (statedb, text) = (step.statedb()?, step.details()?);
    let mut table = Table::parse(&statedb);
    let mut details = Details::parse(&text);
    step.sound(&table.damage)?;
    step.sound(&details.damage)?;
    let now = session.clock();
    let mut held = HashSet::new();
    for guest in guests.iter().filter(|guest| table.get(guest.vm.as_str()) == Some(Status::BackupInProgress)) {
        if step.held(&guest.vm.encoded())? {
            held.insert(guest.vm.clone());
        }
    }
    let look = |evidence: &Evidence| -> Vec<Observed> {
        let one = |guest: &Guest| {
            let vm = guest.vm.as_str();
            let known = table.get(vm).map(|status| (status, details.get(vm)));
            let store = in_store(evidence, &guest.key());
            observe(known, guest, Facts { held: held.contains(&guest.vm), store, now })
        };
        guests.iter().map(one).collect()
    };
    let mut observed = look(&evidence);
    if observed.iter().any(|observed| observed.why == Why::NoDump) {
        evidence.look_again();
        observed = look(&evidence);
    }
    for (guest, observed) in guests.iter_mut().zip(&mut observed) {
        remember_unsent(session, guest, &evidence, &mut observed.detail, now);
        let vm = guest.vm.as_str();
        let was = table.get(vm);
        if scope == Look::AtOne {
            let before = details.get(vm).filter(|_| !observed.replaces).and_then(|old| old.seen);
            (observed.detail.seen, observed.detail.claimed) = (before, Some(now));
        }
        table.set(vm, observed.status);
        details.set(observed.detail.clone());
        annotate(session, guest, observed, &evidence);
        if was != Some(observed.status) || observed.replaces {
            session.report.decided(&line(guest));
        }
    }
    let first = if observed.iter().any(|observed| observed.replaces) { First::Statuses } else { First::Details };
    step.commit(&table, Some(details.to_text(&table)?), first)?;
    Ok(observed)
}

/// Retention may remove dumps that were never sent; how long that has gone on must be known all the same.
fn remember_unsent(session: &Session, guest: &Guest, evidence: &Evidence, detail: &mut Detail, now: Time) {
    let subject = Subject::from(guest);
    let goes = |dest: &str| session.config.syncs(&subject, dest);
    if detail.same_guest(guest)
        && let Some((local, sent)) = evidence.backlog(&guest.key(), now, goes)
    {
        detail.unsent = unsent(detail.unsent, &local, sent);
    }
}

fn line(guest: &Guest) -> String {
    to_line(&Record::Guest(Box::new(guest.clone())))
}

fn annotate(session: &Session, guest: &mut Guest, observed: &Observed, evidence: &Evidence) {
    let key = guest.key();
    guest.status = Some(observed.status.to_string());
    guest.changed = Some(observed.changed);
    guest.last_dump = match in_store(evidence, &key) {
        InStore::Unknown => observed.detail.dump.as_ref().map(|dump| dump.started),
        InStore::Nothing => None,
        InStore::Newest(started) => Some(started),
    };
    guest.last_sent = evidence.last_sent(&key);
    guest.planned = session.dry_run;
    if session.explain {
        guest.extra.insert("why".into(), observed.why.as_str().into());
    }
}

fn print(session: &Session, dumps: Vec<Record>, guests: Vec<Guest>, observed: &[Observed], shown: Shown) -> Result<u8> {
    let headings = &["vm", "name", "status", "state", "changed", "last dump", "last sent"];
    let mut out = Printer::new(session, headings);
    for record in dumps {
        out.add(|| Ok(to_line(&record)), Vec::new)?;
    }
    let mut rows: Vec<(Guest, &Observed)> = guests.into_iter().zip(observed).collect();
    if shown != Shown::All {
        rows.retain(|(_, observed)| session.explain || shown.has(observed.status));
        rows.sort_by_key(|(guest, observed)| (!shown.has(observed.status), runs(guest)));
    }
    for (mut guest, observed) in rows {
        if !shown.has(observed.status) {
            guest.skipped = Some(Skipped { why: format!("not due: {}", observed.why.as_str()) });
        }
        let times = (out.minute(guest.last_dump), out.minute(guest.last_sent));
        let cells = || {
            let changed = if observed.changed { "yes" } else { "no" };
            vec![
                guest.vm.to_string(),
                guest.name.clone().unwrap_or_default(),
                observed.status.to_string(),
                state_text(guest.state).to_owned(),
                changed.to_owned(),
                times.0,
                times.1,
            ]
        };
        out.add(|| Ok(line(&guest)), cells)?;
    }
    out.end()?;
    Ok(session.report.finish(|failed| format!("{failed} of what was read could not be used")))
}
