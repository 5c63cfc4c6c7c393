//! The work itself: workers take turns from the queue and make one dump each.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::args::Session;
use bak_common::calendar::{SKEW_S, Time};
use bak_common::record::{Dump, Failed, Guest, Record, State};
use bak_common::store::{Store, Work};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Plan;
use super::choose::{Chosen, Subject};
use super::past::{Past, Pasts, last};
use super::show::Show;
use super::space::Space;
use crate::claim::{Claims, Held};
use crate::driver::{Driver, Job, Made, Running};
use crate::queue::{Candidate, Next, Queue};

/// Hours of work are not thrown away because somebody prunes just now.
const PUBLISH_WAIT: Duration = Duration::from_secs(600);

/// One run, shared by its workers.
pub struct Run<'a> {
    session: &'a Session,
    store: &'a Store,
    driver: &'a dyn Driver,
    claims: &'a Claims,
    plan: &'a Plan,
    space: Space<'a>,
    show: Show<'a>,
    queue: Mutex<Queue>,
    turn: Condvar,
    begun: Instant,
    done: AtomicUsize,
    /// What ends the whole run: nobody reads our output any more.
    fatal: Mutex<Option<anyhow::Error>>,
    pasts: Pasts,
}

/// What came of one guest.
enum Came {
    Dumped(Box<Dump>),
    /// It would be; when its last dump was begun.
    Planned(Option<Time>),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Run<'a> {
    pub fn new(
        session: &'a Session,
        store: &'a Store,
        driver: &'a dyn Driver,
        claims: &'a Claims,
        plan: &'a Plan,
        chosen: &Chosen,
    ) -> Self {
        let pasts = Pasts::read(store);
        let candidate = |subject: &Subject| Candidate {
            key: subject.guest.key(),
            late: runs(&subject.guest),
            last: last(pasts.known(&subject.guest.key())).map(|past| past.started),
        };
        let candidates: Vec<Candidate> = chosen.subjects.iter().map(candidate).collect();
        Self {
            session,
            store,
            driver,
            claims,
            plan,
            space: Space::new(store, plan.reserve),
            show: Show::new(session),
            queue: Mutex::new(Queue::new(&candidates, plan.retry_wait, plan.retry_for)),
            turn: Condvar::new(),
            begun: Instant::now(),
            done: AtomicUsize::new(0),
            fatal: Mutex::new(None),
            pasts,
        }
    }

    /// Dumps everything chosen; says how many were.
    pub fn work(self, chosen: &Chosen) -> Result<usize> {
        for dump in &chosen.passed {
            self.show.pass(dump.clone())?;
        }
        for guest in &chosen.left {
            self.show.explain(guest.clone())?;
        }
        // A worker starts the programs of its dump and outlives them, which they need: see bak_common::command.
        std::thread::scope(|scope| {
            for _ in 0..self.plan.jobs.min(chosen.subjects.len()) {
                scope.spawn(|| self.worker(&chosen.subjects));
            }
        });
        self.show.end();
        match locked(&self.fatal).take() {
            Some(error) => Err(error),
            None => Ok(self.done.load(Ordering::Relaxed)),
        }
    }

    fn worker(&self, subjects: &[Subject]) {
        while let Some((number, late)) = self.turn() {
            let subject = &subjects[number];
            let ended = if late { self.look(number, subject) } else { self.dump(number, subject) };
            if let Err(error) = ended {
                locked(&self.fatal).get_or_insert(error);
            }
            self.turn.notify_all();
        }
        self.turn.notify_all();
    }

    /// Waits for something to do: a guest, and whether it ran when it was last seen.
    fn turn(&self) -> Option<(usize, bool)> {
        let mut queue = locked(&self.queue);
        loop {
            if locked(&self.fatal).is_some() {
                return None;
            }
            match queue.next(self.begun.elapsed()) {
                Next::Dump(number) => return Some((number, false)),
                Next::Look(number) => return Some((number, true)),
                Next::Done => return None,
                Next::Wait(time) => {
                    // Whoever is done notifies; the limit only keeps a mistake from lasting.
                    let time = time.unwrap_or(Duration::from_secs(3600));
                    queue = self.turn.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Sees whether a guest that ran has stopped, and dumps it then.
    fn look(&self, number: usize, subject: &Subject) -> Result<()> {
        match self.driver.look(&subject.guest) {
            Ok(guest) if runs(&guest) => {
                if locked(&self.queue).still_runs(number, self.begun.elapsed()) {
                    return Ok(());
                }
                self.fail(&guest, &Running.into())
            }
            Ok(guest) => {
                locked(&self.queue).freed();
                self.dump(number, &Subject { guest, carried: subject.carried.clone() })
            }
            Err(error) => {
                locked(&self.queue).lost();
                self.fail(&subject.guest, &error)
            }
        }
    }

    /// One guest, from its turn to its end. An error ends the run; the guest's own go to the report.
    fn dump(&self, number: usize, subject: &Subject) -> Result<()> {
        let came = if self.session.dry_run { self.would(number, subject) } else { self.claimed(number, subject) };
        let printed = match came {
            Ok(Came::Dumped(dump)) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                self.show.record(Record::Dump(dump))
            }
            Ok(Came::Planned(last)) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                let mut guest = subject.guest.clone();
                guest.extra.extend(subject.carried.clone());
                guest.last_dump = last;
                guest.planned = true;
                self.show.record(Record::Guest(Box::new(guest)))
            }
            Err(error) if error.downcast_ref::<Running>().is_some() => {
                if locked(&self.queue).put_back(number, self.begun.elapsed()) {
                    return Ok(());
                }
                return self.fail(&subject.guest, &error);
            }
            Err(error) => self.fail(&subject.guest, &error),
        };
        locked(&self.queue).done();
        printed
    }

    fn fail(&self, guest: &Guest, error: &anyhow::Error) -> Result<()> {
        self.show.fail(guest.vm.as_str(), error);
        let mut guest = guest.clone();
        guest.failed = Some(Failed { stage: "dump".into(), why: format!("{error:#}") });
        self.show.explain(guest)
    }

    /// The plan for one guest: what [`Run::make`] checks before it begins.
    fn would(&self, number: usize, subject: &Subject) -> Result<Came> {
        let pasts = self.pasts.known(&subject.guest.key());
        self.started(pasts, &subject.guest)?;
        self.space.book(number, forecast(pasts))?.keep();
        Ok(Came::Planned(last(pasts).map(|past| past.started)))
    }

    fn claimed(&self, number: usize, subject: &Subject) -> Result<Came> {
        let held = self.claims.claim(&subject.guest, self.session.clock())?;
        match self.make(number, subject, &held) {
            Ok((dump, fingerprint)) => {
                if let Err(error) = held.dumped(&dump, fingerprint, self.session.clock()) {
                    // The dump is there all the same, and is printed.
                    self.show.fail(dump.vm.as_str(), &error.context("is dumped, but the database does not know"));
                }
                Ok(Came::Dumped(dump))
            }
            Err(error) => {
                if let Err(second) = held.failed(self.session.clock()) {
                    self.show.fail(subject.guest.vm.as_str(), &second.context("cannot give its claim back"));
                }
                Err(error)
            }
        }
    }

    fn make(&self, number: usize, subject: &Subject, held: &Held) -> Result<(Box<Dump>, Option<String>)> {
        self.dump_it(number, subject, held).map_err(|error| self.store.where_full(error))
    }

    fn dump_it(&self, number: usize, subject: &Subject, held: &Held) -> Result<(Box<Dump>, Option<String>)> {
        let guest = &subject.guest;
        // Recovery comes with the lock, so what it frees or finishes is counted.
        let store = self.store.lock(self.session.wait, &self.session.report)?;
        let place = self.driver.place(guest);
        let pasts = self.pasts.now(self.store, &place, &guest.key())?;
        let started = self.started(&pasts, guest)?;
        let booking = self.space.book(number, forecast(&pasts))?;
        let stem = self.driver.stem(guest, started);
        let work = store.begin(&stem, &place)?;
        drop(store);
        booking.used_in(work.path());
        let bar = self.show.bar(guest);
        let tick = |progress: crate::driver::Progress| {
            bar.set(progress.done);
            self.space.watch()
        };
        let locks: Vec<_> = std::iter::once(work.lock()).chain(held.lock()).collect();
        let job = Job { guest, stem: &stem, dir: work.path(), locks: &locks, tick: &tick };
        let made = self.driver.dump(&job).map_err(|error| self.with_log(error, &work))?;
        let fingerprint = made.fingerprint.clone();
        let mut dump = Dump::of(guest, started, stem);
        self.fill(&mut dump, made, subject);
        let store = self.store.lock(self.session.wait.max(PUBLISH_WAIT), &self.session.report);
        let entry = store.context("is complete, but cannot be published")?.publish(work, &dump)?;
        Ok((Box::new(entry.dump), fingerprint))
    }

    /// A failure that says where the log is, which is kept.
    fn with_log(&self, error: anyhow::Error, work: &Work) -> anyhow::Error {
        if error.is::<Running>() {
            return error;
        }
        match work.keep_log(self.store) {
            Ok(Some(path)) => anyhow!("{error:#}; its log is {}", path.display()),
            Ok(None) => error,
            Err(second) => anyhow!("{error:#}; its log cannot be kept: {second:#}"),
        }
    }

    /// The start of a dump that is begun now: later than all others of its guest, good or not. One that is dated in the
    /// future was made under a wrong clock, or the clock is wrong now; either way a dump is better than none.
    fn started(&self, pasts: &[Past], guest: &Guest) -> Result<Time> {
        let now = self.session.clock();
        let (future, past): (Vec<&Past>, Vec<&Past>) = pasts.iter().partition(|past| past.started > now.plus(SKEW_S));
        if let Some(newest) = future.iter().max_by_key(|past| past.started) {
            let text = format!("{} is dated in the future: was a clock wrong?", newest.id);
            self.session.report.warn(guest.vm.as_str(), &text);
        }
        match past.iter().map(|past| past.started).max() {
            Some(newest) if newest == now => bail!("its newest dump was begun in this very second: try again"),
            Some(newest) if newest > now => {
                bail!("the clock ran backwards: its newest dump is of {newest}, and now it is {now}")
            }
            _ => Ok(now),
        }
    }

    fn fill(&self, dump: &mut Dump, made: Made, subject: &Subject) {
        dump.bytes = made.files.iter().map(|file| file.bytes).sum();
        dump.files = made.files;
        dump.mode = made.mode;
        dump.protected = made.protected;
        dump.expires = self.plan.expire.map(|seconds| dump.started.plus(seconds));
        dump.annotation.clone_from(&self.plan.annotation);
        dump.finished = self.session.clock().max(dump.started);
        dump.adopt(&subject.carried);
        dump.adopt(&made.extra);
    }
}

/// Whether a guest has to wait because it runs.
fn runs(guest: &Guest) -> bool {
    matches!(guest.state, State::Running | State::Paused) && !guest.live
}

fn forecast(pasts: &[Past]) -> u64 {
    last(pasts).map_or(0, |past| past.bytes)
}
