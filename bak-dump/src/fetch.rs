//! Dumps that lie on a far side: what is there, and bringing their files here.
//!
//! What can go wrong: the line breaks, again and again; the disk here fills up; what has come is not what was dumped; it is
//! another far side than was meant. So it must be the one that its outbox belongs to, where that is known; what has arrived
//! stays and is gone on from; space is looked at first; and nothing is used before every file has the SHA-256 of the record.
//!
//! What was fetched lies in a directory of ours, as it lies over there, sidecar last, so that it is read like any store. It
//! is nobody's backup: it goes as soon as it has been used. Its lock is held by rsync, too.
//!
//! Every byte is counted and noted in the ledger, where there is one. Whether the limits hold is the caller's to say:
//! what is needed to bring a machine back is never refused.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::args::{Destination, Reach, Session};
use bak_common::far::{Bounds, Cache, Far, LimitReached, home, identity};
use bak_common::ledger::{self, Attempt, Line};
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::meter::Wire;
use bak_common::outbox::{Identity, Outbox};
use bak_common::pass::{self, Noted};
use bak_common::report::Kind;
use bak_common::stop::{self, Stopped};
use bak_common::store::{Entry, Listing, Store};
use bak_common::timetable::Timetable;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::check::{Compared, compare};
use crate::driver::Progress;
use crate::origin::FarPlace;

mod local;
mod mark;

pub use local::Copy;
use local::{remove, what_is_there};

/// How often a line that drops is tried again, and how long is waited before, the first time.
const RETRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The directory of ours in one that the user names.
const OURS: &str = ".bak-fetched";
const LOCK: &str = ".lock";

/// How to fetch.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Fetching from a far side")]
pub struct FetchArgs {
    #[command(flatten)]
    pub reach: Reach,
    /// Put what is fetched here, until it is used; what a broken line leaves is gone on from [default: with the outbox of the
    /// destination; without one /var/cache/bak, ~/.cache/bak or $XDG_CACHE_HOME/bak]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Fetch so fast at most: 5M, 20Mbit, or by the hour, '08:00,512K 19:00,off'
    #[arg(long, value_name = "RATE|TIMETABLE")]
    pub bwlimit: Option<String>,
}

/// Whether limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// What crosses is counted, and nothing is refused.
    Counted,
    /// What crosses keeps to the destination's limits, and to its timetable if none was given.
    Within,
}

/// A far side that was reached and listed.
pub struct Source<'a> {
    session: &'a Session,
    budget: Budget,
    dest: Destination,
    shown: String,
    outbox: Option<Outbox>,
    far: Far,
    ledger: Option<ledger::Writer>,
    /// Of this run, in the ledger.
    id: String,
    /// What is known of it here.
    home: PathBuf,
    /// Where its files come to lie.
    work: PathBuf,
    lock: Option<Lock>,
    sums: OnceCell<bool>,
    /// The line was down to the last try.
    lost: bool,
    /// What the last try has left is gone on from by the next.
    goes_on: bool,
    pub listing: Listing,
    scratch: tempfile::TempDir,
}

impl<'a> Source<'a> {
    /// Reaches the far side, makes sure that it is the right one, and lists all of it.
    pub fn open(session: &'a Session, place: FarPlace, args: &FetchArgs, budget: Budget) -> Result<Self> {
        let FarPlace { url, shown, dest, sure } = place;
        if let Some(work) = &args.work {
            home::look(work).context("--work")?;
        }
        let open = |path: &Path| Outbox::open(path, &dest.name, dest.ledger.as_deref());
        let mut outbox = dest.outbox.exists().then(|| open(&dest.outbox)).transpose()?;
        let left = match budget {
            Budget::Counted => None,
            Budget::Within => pass::left(session, &dest, outbox.as_ref())?,
        };
        let pace = pace(args, &dest, budget)?;
        let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
        let mut far = Far::open(url, &args.reach.access(&dest.access), scratch.path())?;
        if let Some(table) = pace.filter(|table| !table.is_free()) {
            let (waits, zone, clock) = (table.ever_waits(), session.zone, session.clock_of_its_own());
            far.keep_pace(move || table.at(zone.local(clock())), waits);
        }
        far.limit(left);
        let begun = Instant::now();
        let there = identity::fetch(&far)?;
        let expected = outbox.as_ref().map(Outbox::identity).transpose()?.flatten();
        if there != expected && expected.is_some() && !sure {
            // An outbox of the same name, and another place.
            outbox = None;
        } else if expected.is_some() {
            identity::is_right(there.clone(), expected.as_ref())?;
        }
        let ledger = match ledger(session, &dest, outbox.as_ref()) {
            Err(error) if budget == Budget::Counted => {
                unnoted(session, &dest, &error);
                None
            }
            ledger => ledger?,
        };
        let home = home::dir(outbox.as_ref(), &there.unwrap_or_else(|| unnamed(&shown)))?;
        let id = home.file_name().unwrap_or_default().to_owned();
        let work = args.work.as_ref().map_or_else(|| home.join("fetched"), |dir| dir.join(OURS).join(id));
        let mut source = Self {
            session,
            budget,
            dest,
            shown,
            outbox,
            far,
            ledger,
            id: uuid::Uuid::new_v4().to_string(),
            home,
            work: std::path::absolute(work).context("cannot tell where --work is")?,
            lock: None,
            sums: OnceCell::new(),
            lost: false,
            goes_on: false,
            listing: Listing::default(),
            scratch,
        };
        let cache = Cache::new(source.home.join("sidecars"), true);
        let listed = source.far.whole_with(&source.shown, &cache);
        // What the look has cost is noted whether or not it went well.
        source.note("look", begun, if listed.is_ok() { "done" } else { "failed" })?;
        source.listing = listed?.1;
        Ok(source)
    }

    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Where what was fetched lies.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Whether so little is left of the limits that nothing should be begun.
    pub fn is_spent(&self) -> bool {
        self.far.is_spent()
    }

    /// Whether the line was down to the last try, so that nothing else will come either.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether a dump that was listed is no longer there.
    pub fn is_gone(&mut self, entry: &Entry) -> bool {
        let begun = Instant::now();
        let listed = self.far.list(&[name_of(entry, &entry.dump.stem.sidecar())]);
        // Noted or not, that is how it is.
        let _ = self.note("look", begun, "done");
        listed.is_ok_and(|files| files.is_empty())
    }

    /// The SHA-256 of the files of these dumps, made over there in one run; `None` where that cannot be done. What could not be
    /// read has none.
    pub fn sums(&mut self, entries: &[&Entry]) -> Result<Option<HashMap<String, String>>> {
        let begun = Instant::now();
        let can = match self.sums.get() {
            Some(can) => *can,
            None => *self.sums.get_or_init(|| self.far.makes_sums().unwrap_or(false)),
        };
        let names = entries.iter().flat_map(|entry| entry.dump.files.iter().map(|file| name_of(entry, &file.name)));
        let sums = if can { Some(self.far.sums(&names.collect::<Vec<_>>())) } else { None };
        self.note("sums", begun, "done")?;
        sums.transpose()
    }

    /// Notes in the ledger what has crossed since the last time.
    fn note(&mut self, what: &str, begun: Instant, result: &str) -> Result<()> {
        let wire = self.far.take_wire();
        let line = self.attempt(what, wire, begun, result);
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        let noted = ledger.append(&Line::Attempt(line));
        self.noted(noted)
    }

    /// A ledger that cannot be written, as on a full disk, is no reason not to bring a machine back.
    fn noted(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if self.budget == Budget::Counted => {
                self.ledger = None;
                unnoted(self.session, &self.dest, &error);
                Ok(())
            }
            result => result,
        }
    }

    /// Of no dump, as by dumps the ledger tells what sending them has cost.
    fn attempt(&self, what: &str, wire: Wire, begun: Instant, result: &str) -> Attempt {
        let id = Attempt::fetch_id(&self.id, what);
        let line = pass::attempt(self.session, &self.dest, &id, None, wire, begun, result);
        Attempt { why: Some(format!("fetched: {what}")), ..line }
    }

    /// Brings all files of a dump here, or what lacks of them, and compares them with its record. An error leaves what has
    /// arrived, to be gone on from.
    pub fn fetch(&mut self, entry: &Entry, tick: &dyn Fn(Progress) -> Result<()>) -> Result<Copy> {
        self.goes_on = false;
        if let Some(why) = &entry.unfit {
            bail!("{why}");
        }
        self.prepare()?;
        let landed = self.far.lands(&self.work);
        let place = landed.join(&entry.place);
        home::make(&place)?;
        let sidecar = place.join(entry.dump.stem.sidecar());
        loop {
            remove(&sidecar)?;
            let before = what_is_there(&place, entry)?;
            self.room(entry, before)?;
            self.receive(entry, before > 0, tick)?;
            fs::write(&sidecar, entry.dump.to_sidecar())
                .with_context(|| format!("cannot write {}", sidecar.display()))?;
            let store = Store::open(&landed)?;
            let found = store.look(&entry.place, &entry.dump.stem)?.context("what was fetched has vanished")?;
            let compared = match found.unfit.as_ref() {
                Some(why) => Compared::Differs(why.clone()),
                None => compare(&store, &found, true, tick)?,
            };
            let copy = Copy { store, entry: found, compared };
            // What lay here may have been damaged since: then all of it comes once more.
            if before == 0 || !matches!(copy.compared, Compared::Differs(_)) {
                return Ok(copy);
            }
            copy.remove();
        }
    }

    /// Makes the directory of what is fetched, ours alone.
    fn prepare(&mut self) -> Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        if let Some(parent) = self.work.parent() {
            home::make(parent)?;
        }
        let top = home::make(&self.work)?;
        let what = format!("what is fetched from {}", self.shown);
        let lock = Lock::take(top.as_fd(), LOCK, Hold::Exclusive, self.session.wait, &what)?;
        lock.sign(&Holder::me())?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Has rsync bring what lacks; again where the line drops.
    fn receive(&mut self, entry: &Entry, mut go_on: bool, tick: &dyn Fn(Progress) -> Result<()>) -> Result<()> {
        let names: Vec<String> = entry.dump.files.iter().map(|file| name_of(entry, &file.name)).collect();
        // There may be more over there than the record says, and than there is room for.
        let most = entry.dump.files.iter().map(|file| file.bytes).max().unwrap_or(0);
        let (what, begun) = (entry.dump.id.as_str(), Instant::now());
        let mut noted = Noted::new(self.attempt(what, Wire::default(), begun, "running"), begun);
        let (position, all) = (self.far.position(), entry.dump.bytes.max(1) as f64);
        let mut wait = FIRST_WAIT;
        let (mut left, budget) = (RETRIES, self.budget);
        let mut full;
        let fetched = loop {
            let Self { far, ledger, lock, work, .. } = &mut *self;
            let mut unnoted = Ok(());
            let bounds = lock.as_ref().map_or_else(Bounds::default, Bounds::under);
            let mut watch = |wire| {
                if let Some(ledger) = ledger.as_mut().filter(|_| unnoted.is_ok()) {
                    unnoted = noted.at(ledger, wire);
                }
                if budget == Budget::Within && unnoted.is_err() {
                    bail!("what crosses cannot be noted in the ledger");
                }
                let done = position.load(std::sync::atomic::Ordering::Relaxed) as f64 / all;
                tick(Progress { done: done.min(1.0) })
            };
            let ran = far.receive(&names, work, most, go_on, bounds, &mut watch);
            self.noted(unnoted)?;
            // What the limit has cut looks like a line that broke.
            let down = matches!(&ran, Ok(ran) if !ran.cut && ran.line_down());
            self.lost = down;
            full = matches!(&ran, Ok(ran) if ran.is_full_here());
            match ran.and_then(|ran| ran.check()) {
                Err(_) if down && left > 0 && stop::caught().is_none() => {}
                end => break end,
            }
            if let Err(error) = stop::sleep(wait, stop::check).and_then(|()| self.far.connect())
                && left == 1
            {
                break Err(error);
            }
            (left, wait, go_on) = (left - 1, wait * 2, true);
        };
        let result = match &fetched {
            Ok(()) => "done",
            Err(error) if error.is::<LimitReached>() => "cut",
            Err(error) if error.is::<Stopped>() => "stopped",
            Err(_) => "failed",
        };
        self.goes_on = full || self.lost || matches!(result, "cut" | "stopped");
        self.note(what, begun, result)?;
        let room = || format!("free some room in {}, or name another place by --work", self.work.display());
        let fetched = if full { fetched.map_err(|error| anyhow!("{error:#}: {}", room())) } else { fetched };
        fetched.context("cannot be fetched")
    }
}

/// What a file beside a dump's is called from the top.
pub fn name_of(entry: &Entry, name: &str) -> String {
    if entry.place.is_empty() { name.to_owned() } else { format!("{}/{name}", entry.place) }
}

/// How fast to fetch, if that is bounded.
fn pace(args: &FetchArgs, dest: &Destination, budget: Budget) -> Result<Option<Timetable>> {
    // The destination's own is that of a line on which others work by day: a machine that is down does not wait for the night.
    let own = dest.bwlimit.as_deref().filter(|_| budget == Budget::Within);
    let text = args.bwlimit.as_deref().or(own);
    text.map(Timetable::parse).transpose().map_err(|error| Kind::Usage.says(format!("bwlimit: {error:#}")))
}

fn ledger(session: &Session, dest: &Destination, outbox: Option<&Outbox>) -> Result<Option<ledger::Writer>> {
    let path = outbox.map(Outbox::ledger).or_else(|| dest.ledger.clone().filter(|path| path.is_dir()));
    path.map(|path| ledger::Writer::open(&path, &session.config.node(), session.clock())).transpose()
}

fn unnoted(session: &Session, dest: &Destination, error: &anyhow::Error) {
    session.report.warn(&dest.name, &format!("what is fetched is not in the ledger: {error:#}"));
}

/// What a far side is called here that says nothing of what it is.
fn unnamed(shown: &str) -> Identity {
    let sum = bak_common::hash::hex(&<sha2::Sha256 as sha2::Digest>::digest(shown));
    Identity { v: 1, id: format!("url-{}", &sum[..16]) }
}
