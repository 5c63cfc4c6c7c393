//! `archive` and `activate`: the status ARCHIVED, and the guest's dumps moved between the store and the archive.
//!
//! The hazards are a crash half-way and a dump that is in neither place. So the order is: the guest's claim, held to the
//! end, so that nobody dumps it meanwhile; everything that may refuse; to archive, the status; then dump by dump, made and
//! proved in the target, published there, and only then removed from where it was; to activate, the status last. What
//! was cut off the same call finishes: a dump that is in both places only has to be removed from the first.
//!
//! The database and the stores are locked for moments, never two at a time, and none of them while a dump is copied.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::lock::{Holder, Lock};
use bak_common::name::GuestName;
use bak_common::record::{Dump, Record, Skipped, to_line};
use bak_common::report::{Kind, status};
use bak_common::store::{Entry, Listing, Store};
use bak_common::units::show_size;
use serde_json::json;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::db::{Db, First, Mode, Step};
use crate::format::{Details, Table};
use crate::print::{Printer, Row};
use crate::show::{Chooser, Chosen};
use crate::status::{Detail, Status};

mod places;
mod plan;

pub use places::Order;
use places::{Target, in_the_way, open, there};
pub use plan::Way;
use plan::{Action, Candidate, Known, Plan, plan, route};

/// So many guests are claimed, and the stores listed for them, at a time: each claim is an open file.
const BATCH: usize = 64;

struct Run<'a> {
    session: &'a Session,
    way: Way,
    db: Db,
    from: Store,
    to: Target,
    out: Printer<'a>,
    /// Sidecars that were reported: once is enough.
    reported: HashSet<String>,
}

/// A guest whose claim we hold, but in a dry run.
struct Held {
    vm: GuestName,
    named: bool,
    status: Status,
    detail: Option<Detail>,
    claim: Option<Lock>,
}

/// A guest that passed every check.
struct Job<'a> {
    held: Held,
    entries: Vec<&'a Entry>,
    plan: Plan,
    /// A sidecar that cannot be read may be one of its own.
    unsure: bool,
}

/// Archives or activates the guests that `chooser` chooses; the exit status.
pub fn run(session: &Session, path: &Path, chooser: &Chooser, order: &Order) -> Result<u8> {
    let guests = choose(session, path, chooser)?;
    let db = Db::existing(path, session.wait)?.with_context(|| format!("{} has vanished", path.display()))?;
    let (from, to) = open(session, order)?;
    let out = Printer::new(session, &["what", "from", "to", "size", "note"]);
    let mut run = Run { session, way: order.way, db, from, to, out, reported: HashSet::new() };
    for batch in guests.chunks(BATCH) {
        run.batch(batch)?;
    }
    run.out.end()?;
    Ok(session.report.finish(|failed| format!("{failed} of what was asked for was not done")))
}

/// The guests chosen, and whether each was named.
fn choose(session: &Session, path: &Path, chooser: &Chooser) -> Result<Vec<(String, bool)>> {
    let step = Step::begin(path, session.wait, Mode::Read)?;
    let (statedb, text) = (step.statedb()?, step.details()?);
    let (table, details) = (step.table(&statedb)?, Details::parse(&text));
    step.sound(&table.damage)?;
    step.sound(&details.damage)?;
    drop(step);
    let Chosen { named, found, missing } = chooser.choose(&table, &details)?;
    for word in missing {
        let error = match word.contains(['*', '?', '[', '{']) {
            true => anyhow!("no guest in the database fits"),
            false => unknown(),
        };
        session.report.fail(&word, &error);
    }
    Ok(named.into_iter().map(|vm| (vm, true)).chain(found.into_iter().map(|vm| (vm, false))).collect())
}

fn unknown() -> anyhow::Error {
    Kind::Refused.says("no such guest is in the database")
}

impl Run<'_> {
    fn batch(&mut self, guests: &[(String, bool)]) -> Result<()> {
        let held = self.hold(guests)?;
        if held.is_empty() {
            return Ok(());
        }
        if !self.session.dry_run {
            // What was decided before a crash must lie in its place before anything is listed.
            drop(self.from.lock(self.session.wait, &self.session.report)?);
            drop(self.to.store()?.lock(self.session.wait, &self.session.report)?);
        }
        self.to.look()?;
        let source = self.from.list();
        let target = self.to.store.as_ref().map(Store::list).unwrap_or_default();
        let mut jobs = Vec::new();
        for held in held {
            let vm = held.vm.clone();
            match self.prepare(held, &source, &target) {
                Ok(job) => jobs.push(job),
                Err(error) => self.session.report.fail(vm.as_str(), &error),
            }
        }
        if self.way == Way::Archive {
            jobs = self.set_statuses(jobs)?;
        }
        for job in jobs {
            self.carry_out(job)?;
        }
        Ok(())
    }

    /// Takes the claims, in one step, and reads what is known of the guests. Whoever has no claim to give is refused.
    fn hold(&self, guests: &[(String, bool)]) -> Result<Vec<Held>> {
        let step = self.db.step(if self.session.dry_run { Mode::Plan } else { Mode::Write })?;
        let (statedb, text) = (step.statedb()?, step.details()?);
        let wanted: HashSet<&str> = guests.iter().map(|(vm, _)| vm.as_str()).collect();
        let (table, details) = (step.table(&statedb)?, Details::parse_some(&text, |vm| wanted.contains(vm)));
        step.sound(&table.damage)?;
        step.sound(&details.damage)?;
        let mut all = Vec::new();
        for (vm, named) in guests {
            let one = || -> Result<Held> {
                let name = GuestName::new(vm.as_str())?;
                let status = table.get(vm).ok_or_else(unknown)?;
                let claim = self.claim(&name, &step)?;
                Ok(Held { vm: name, named: *named, status, detail: details.get(vm).cloned(), claim })
            };
            match one() {
                Ok(held) => all.push(held),
                Err(error) => self.session.report.fail(vm, &error),
            }
        }
        Ok(all)
    }

    fn claim(&self, vm: &GuestName, step: &Step) -> Result<Option<Lock>> {
        let claim = match self.session.dry_run {
            true => step.held_by(vm)?.map_or(Ok(None), Err),
            false => self.db.take(vm).map(Some),
        };
        let claim = claim.map_err(|error| match status(&error) == Kind::Locked as u8 {
            true => Kind::Refused.of(error),
            false => error,
        })?;
        let Some((lock, me)) = claim else { return Ok(None) };
        lock.sign(&Holder { program: format!("bak-state {}", self.way.name()), ..me })?;
        Ok(Some(lock))
    }

    /// Everything that may refuse the guest.
    fn prepare<'e>(&mut self, held: Held, source: &'e Listing, target: &Listing) -> Result<Job<'e>> {
        let entries: Vec<&Entry> = source.dumps.iter().filter(|entry| entry.dump.vm == held.vm).collect();
        let mut ways = Vec::new();
        for entry in &entries {
            let in_the_way = in_the_way(&self.from, self.to.store.as_ref(), entry);
            ways.push(in_the_way.with_context(|| format!("cannot look where {} would go", entry.dump.id))?);
        }
        let candidates: Vec<Candidate> = entries
            .iter()
            .zip(&ways)
            .map(|(entry, in_the_way)| Candidate {
                dump: &entry.dump,
                fault: entry.fault.as_deref(),
                there: there(target, &entry.dump),
                in_the_way: in_the_way.as_deref(),
            })
            .collect();
        let known = Known { status: held.status, detail: held.detail.as_ref(), named: held.named };
        let plan = plan(self.way, known, &candidates).map_err(|why| Kind::Refused.says(why))?;
        self.book(&entries, &plan)?;
        let unsure = self.report_unreadable(source, &held.vm);
        Ok(Job { held, entries, plan, unsure })
    }

    /// Books room for what will be copied, if it is there.
    fn book(&mut self, entries: &[&Entry], plan: &Plan) -> Result<()> {
        let mut need: u64 = 0;
        for (entry, _) in entries.iter().zip(&plan.actions).filter(|(_, action)| **action == Action::Move) {
            if !self.linkable(entry) {
                need = need.saturating_add(self.from.allocated(entry)?);
            }
        }
        let room = self.to.room;
        ensure!(
            need <= room,
            "there is no room in {}: its dumps need {}, and {} are free",
            self.to.path.display(),
            show_size(need),
            show_size(room)
        );
        self.to.room -= need;
        Ok(())
    }

    /// Whether the dump lies on the target's file system.
    fn linkable(&self, entry: &Entry) -> bool {
        let file = entry.dump.files.first().and_then(|file| self.from.open_file(entry, &file.name).ok());
        file.and_then(|file| file.metadata().ok()).is_some_and(|meta| meta.dev() == self.to.device)
    }

    /// Reports the sidecars that cannot be read and may be this guest's; whether there are any.
    fn report_unreadable(&mut self, source: &Listing, vm: &GuestName) -> bool {
        let mut any = false;
        for bad in source.unreadable.iter().filter(|bad| bad.may_concern(vm)) {
            any = true;
            let path = self.from.path().join(bad.path()).display().to_string();
            if self.reported.insert(path.clone()) {
                self.session.report.fail(&path, &anyhow!("{:#}; it stays in {}", bad.error, self.way.source()));
            }
        }
        any
    }

    /// ARCHIVED, for all in one step. Who was moved or forgotten meanwhile is judged anew.
    fn set_statuses<'e>(&mut self, jobs: Vec<Job<'e>>) -> Result<Vec<Job<'e>>> {
        let mut kept = Vec::new();
        if self.session.dry_run {
            kept = jobs;
        } else {
            let step = self.db.step(Mode::Write)?;
            let statedb = step.statedb()?;
            let mut table = step.table(&statedb)?;
            step.sound(&table.damage)?;
            for mut job in jobs {
                let vm = job.held.vm.as_str();
                let now = table.get(vm).ok_or_else(unknown);
                let routed = now.and_then(|now| {
                    let statuses = route(now, Status::Archived).map_err(|why| Kind::Refused.says(why))?;
                    Ok((now, statuses))
                });
                match routed {
                    Ok((now, statuses)) => {
                        table.set(vm, Status::Archived);
                        (job.held.status, job.plan.statuses) = (now, statuses);
                        kept.push(job);
                    }
                    Err(error) => self.session.report.fail(vm, &error),
                }
            }
            step.commit(&table, None, First::Details)?;
        }
        for job in &kept {
            self.print_statuses(&job.held, &job.plan.statuses)?;
        }
        Ok(kept)
    }

    fn carry_out(&mut self, job: Job) -> Result<()> {
        let Job { held, entries, plan, unsure } = job;
        let mut whole = !unsure;
        for (entry, action) in entries.into_iter().zip(&plan.actions) {
            let id = entry.dump.id.as_str();
            match action {
                Action::Stay => self.print_stayed(entry, "another guest's of that name: its kind or uid differs")?,
                Action::Leave(fault) => {
                    let why = format!("it stays in {}, as it is not good: {fault}", self.way.source());
                    self.session.report.fail(id, &anyhow!("{why}"));
                    self.print_stayed(entry, &why)?;
                }
                Action::Move | Action::Finish => match self.transfer(entry, *action == Action::Finish) {
                    Ok(how) => self.print_moved(entry, how)?,
                    Err(error) => {
                        whole = false;
                        let error = error.context(format!("cannot move it to {}", self.way.target()));
                        self.session.report.fail(id, &error);
                        self.print_stayed(entry, &format!("{error:#}"))?;
                    }
                },
            }
        }
        if self.way == Way::Activate && whole { self.activated(held, &plan.statuses) } else { Ok(()) }
    }

    /// Moves one dump; how. When this returns, it is in the target alone; if it fails, it is still where it was.
    fn transfer(&self, entry: &Entry, there: bool) -> Result<&'static str> {
        let linkable = self.linkable(entry);
        if self.session.dry_run {
            return Ok(if there { "found" } else { how(linkable) });
        }
        let to = self.to.store()?;
        let how = if there {
            let listing = to.list();
            let ours = listing.good().find(|ours| ours.dump.same(&entry.dump)).context("it has vanished there")?;
            to.covers(ours, &self.from, entry)?;
            "found"
        } else {
            how(self.add(to, entry, linkable)?)
        };
        let locked = self.from.lock(self.session.wait, &self.session.report)?;
        match self.from.look(&entry.place, &entry.dump.stem)? {
            Some(now) if now.dump.same(&entry.dump) => locked.remove(&[&now]).into_iter().collect::<Result<()>>()?,
            Some(_) => bail!("it was replaced meanwhile"),
            None => {}
        }
        Ok(how)
    }

    /// Makes the dump in `to`; whether by links. Where they cannot be made, although it lies on the same file system, it
    /// is copied: not all file systems have them, and not across mount points.
    fn add(&self, to: &Store, entry: &Entry, linkable: bool) -> Result<bool> {
        self.add_it(to, entry, linkable).map_err(|error| to.where_full(error))
    }

    fn add_it(&self, to: &Store, entry: &Entry, linkable: bool) -> Result<bool> {
        let report = &self.session.report;
        let begin = || to.lock(self.session.wait, report)?.begin(&entry.dump.stem, &entry.place);
        let fresh = self.from.look(&entry.place, &entry.dump.stem)?.context("it was removed meanwhile")?;
        ensure!(fresh.dump.same(&entry.dump), "it was replaced meanwhile");
        let mut work = begin()?;
        let linked = linkable && work.link(&self.from, &fresh).is_ok();
        if !linked {
            if linkable {
                drop(work);
                work = begin()?;
            }
            work.copy(&self.from, &fresh, &mut |_| ())?;
        }
        let made = to.lock(self.session.wait, report)?.publish(work, &fresh.dump)?;
        match made.fault {
            None => Ok(linked),
            Some(fault) => bail!("it is not good there: {fault}"),
        }
    }

    /// All is back: the status, and the claim goes while the database is still locked.
    fn activated(&mut self, held: Held, statuses: &[Status]) -> Result<()> {
        let mut statuses = statuses;
        if let Some(claim) = held.claim {
            let step = self.db.step(Mode::Write)?;
            let statedb = step.statedb()?;
            let mut table = step.table(&statedb)?;
            step.sound(&table.damage)?;
            let mut details = None;
            match (table.get(held.vm.as_str()), statuses.last()) {
                (Some(Status::Archived), Some(last)) => {
                    table.set(held.vm.as_str(), *last);
                    details = due_again(&step, &table, &held.vm, self.session.clock())?;
                }
                // Somebody has set another one meanwhile, and that one stays.
                _ => statuses = &[],
            }
            step.commit(&table, details, First::Details)?;
            claim.release()?;
        }
        self.print_statuses(&Held { claim: None, ..held }, statuses)
    }

    fn print_statuses(&mut self, held: &Held, statuses: &[Status]) -> Result<()> {
        let mut was = held.status;
        for status in statuses {
            let worker = was == Status::BackupInProgress;
            self.print_status(held, was, *status, worker.then_some("whoever dumped it is gone"))?;
            was = *status;
        }
        if statuses.is_empty() && self.session.explain {
            self.print_status(held, was, was, Some("its status stays"))?;
        }
        Ok(())
    }

    fn print_status(&mut self, held: &Held, was: Status, now: Status, why: Option<&str>) -> Result<()> {
        let vm = held.vm.as_str();
        let row = Row::moved(vm, Some(was), Some(now)).planned(self.session.dry_run);
        let row = match why {
            Some(why) => row.because(why),
            None => row,
        };
        let line = serde_json::to_string(&row)?;
        self.session.report.decided(&line);
        let cells =
            || vec![vm.to_owned(), was.to_string(), now.to_string(), String::new(), why.unwrap_or_default().to_owned()];
        self.out.add(|| Ok(line), cells)
    }

    fn print_moved(&mut self, entry: &Entry, how: &'static str) -> Result<()> {
        let mut dump = entry.dump.clone();
        let from = dump.dir.take().unwrap_or_default();
        let to = self.to.path.join(&entry.place).display().to_string();
        let note = json!({"from": from, "to": to, "how": how, "at": self.session.clock()});
        dump.extra.insert("moved".into(), note);
        dump.dir = Some(to.clone());
        self.print_dump(dump, from, to, how)
    }

    fn print_stayed(&mut self, entry: &Entry, why: &str) -> Result<()> {
        if !self.session.explain {
            return Ok(());
        }
        let mut dump = entry.dump.clone();
        dump.skipped = Some(Skipped { why: why.to_owned() });
        let from = dump.dir.clone().unwrap_or_default();
        self.print_dump(dump, from, "-".to_owned(), why)
    }

    fn print_dump(&mut self, mut dump: Dump, from: String, to: String, note: &str) -> Result<()> {
        dump.planned = self.session.dry_run;
        let cells = vec![dump.id.to_string(), from, to, show_size(dump.bytes), note.to_owned()];
        let done = dump.skipped.is_none();
        let line = to_line(&Record::Dump(Box::new(dump)));
        if done {
            self.session.report.decided(&line);
        }
        self.out.add(|| Ok(line), || cells)
    }
}

/// The details once the guest `vm` is due from `now` on, however old its last dump is; `None` if nothing is known of it.
fn due_again(step: &Step, table: &Table, vm: &GuestName, now: Time) -> Result<Option<Vec<u8>>> {
    let text = step.details()?;
    let mut details = Details::parse(&text);
    step.sound(&details.damage)?;
    let Some(mut detail) = details.get(vm.as_str()).cloned() else { return Ok(None) };
    detail.settle();
    detail.due = Some(now);
    details.set(detail);
    details.to_text(table).map(Some)
}

fn how(linked: bool) -> &'static str {
    if linked { "linked" } else { "copied" }
}
