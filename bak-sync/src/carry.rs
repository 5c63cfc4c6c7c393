//! One dump on its way: data, then sidecar, then a listing that shows all of it.
//!
//! Whatever ends this, it may end anywhere, and the next attempt goes on from what it finds over there. A limit ends it in
//! order: what has arrived is kept there as a partial file. A line that drops is tried again a few times.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::far::{Bounds, DELTA, FarFile, Fetched, LimitReached, Ran, TimeIsUp, refused};
use bak_common::meter::Wire;
use bak_common::outbox::Outbox;
pub use bak_common::pass::Noted;
use bak_common::record::{Dump, FileEntry};
use bak_common::report::Kind;
use bak_common::stop::{self, Stopped};
use bak_common::store::Entry;
use bak_common::units::total;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::apply::{Pass, attempt, cost};
use crate::identity;
use crate::plan::{self, PARTIAL, There};
use crate::progress::Bar;
use crate::share::LEAST;
use crate::until;
use crate::way::{Way, at_once, block_size, enough, sums, way};

/// Waits before the line is tried again: this long, then twice as long each time, up to a minute.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A dump this large goes so that what has arrived is kept, also where that takes something, in bytes.
const WORTH_KEEPING: u64 = 16 << 20;

/// Under a limit, what a dump costs in checksums of its basis is saved where deltas can be made here: from so many bytes on,
/// and if they are more than an eighth of what it is expected to cost. It takes processor time: 85 MB a second were measured.
const DEAR: u64 = 16 << 10;

/// Why a dump was not sent, and whether the line is to blame.
pub struct Trouble {
    pub error: anyhow::Error,
    pub line_down: bool,
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self { error, line_down: false }
    }
}

/// Why a dump has not arrived; all but trouble is in order.
pub enum Stop {
    Limit,
    /// The time is up.
    Time,
    /// We were asked to end, which may look like any other trouble.
    Signal(Stopped),
    Trouble(Trouble),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        match stop::caught() {
            Some(stopped) => Stop::Signal(stopped),
            None if error.is::<LimitReached>() => Stop::Limit,
            None if error.is::<TimeIsUp>() => Stop::Time,
            None => Stop::Trouble(error.into()),
        }
    }
}

/// Whether rsync did what it should; else the trouble it met.
pub fn went_well(ran: &Ran) -> Result<(), Stop> {
    ran.in_limit()?;
    ran.check().map_err(|error| Stop::Trouble(Trouble { error, line_down: ran.line_down() }))
}

/// An attempt at a dump: its name in the ledger, and when it began.
#[derive(Clone, Copy, Debug)]
pub struct Try<'a> {
    pub dump: &'a Dump,
    pub id: &'a str,
    pub begun: Instant,
}

/// How a dump goes in this attempt.
#[derive(Clone, Copy, Debug)]
pub struct Journey {
    pub way: Way,
    /// What it may cost in all, in both directions.
    share: Option<u64>,
    /// What of that its data may cost.
    pub room: Option<u64>,
    /// Something of it is there from an earlier attempt.
    pub resumed: bool,
    /// It goes as deltas that are made here.
    pub deltas: bool,
}

impl Pass<'_> {
    /// How the dump goes if it may cost `share`; `None` if that is too little to get anywhere.
    pub fn journey(&self, dump: &Dump, share: Option<u64>) -> Option<Journey> {
        let place = Outbox::place(&dump.vm);
        let there = plan::there(dump, &place, &self.basis, &self.listing);
        let part = |name: &str| {
            let names = [name.to_owned(), format!("{name}{DELTA}")];
            names.iter().any(|name| plan::find(&self.listing, &format!("{place}/{PARTIAL}/{name}")).is_some())
        };
        let left = |file: &FileEntry| plan::leftover(dump, file, &place, &self.history, &self.listing).is_some();
        let resumed = there == There::Begun || dump.files.iter().any(|file| part(&file.name) || left(file));
        // What must follow the data: the sidecar, and a listing of about 100 bytes a file.
        let below = format!("{place}/");
        let near = self.listing.iter().filter(|file| file.name.starts_with(&below)).count();
        let closing = dump.bare().to_sidecar().len() + 100 * (near + dump.files.len() + 1) + 2048;
        let room = share.map(|share| share.saturating_sub(closing as u64));
        let mut deltas = false;
        let way = match there {
            // Nothing of it will be sent.
            There::Sidecar | There::InTheWay(_) => {
                share.is_none_or(|share| share >= LEAST).then_some(Way { sliced: false, block: 0 })
            }
            There::Begun | There::Nothing => {
                let largest = dump.files.iter().map(|file| file.bytes).max().unwrap_or(0);
                let basis = self.bases(dump, &place);
                let again = resumed || self.may_cut(dump.bytes, largest, basis);
                let usual = way(dump.bytes, largest, basis, room, again);
                let sums = sums(basis, block_size(largest));
                let dear = self.far.is_limited() && sums >= DEAR.max(cost(dump, &self.dest.name) / 8);
                deltas = (dear || usual.is_none_or(|way| way.sliced)) && self.may_go_as_deltas(dump, &place);
                let way = if deltas { enough(largest, room) } else { usual };
                // If the line drops what has arrived should be there.
                let sliced = |way: Way| way.sliced || self.far.loses_partials() && dump.bytes >= WORTH_KEEPING;
                way.map(|way| Way { sliced: sliced(way), ..way })
            }
        };
        Some(Journey { way: way?, share, room, resumed, deltas })
    }

    /// Whether the clock may end the dump on its way. To a mounted path that costs nothing to be ready for.
    fn may_cut(&self, bytes: u64, largest: u64, basis: u64) -> bool {
        let Some(until) = self.options.until.filter(|_| self.far.is_remote()) else { return false };
        let now = self.session.clock();
        let speed = self.options.bwlimit.at(self.session.zone.local(now));
        until::may_cut(at_once(bytes, basis, block_size(largest)), until.since(now), self.rate, speed)
    }

    /// How many bytes over there the dump's files are compared with.
    fn bases(&self, dump: &Dump, place: &str) -> u64 {
        if !self.far.is_remote() {
            return 0;
        }
        let of = |file: &FileEntry| {
            let names = [format!("{place}/{PARTIAL}/{}", file.name), format!("{place}/{}", file.name)];
            let there = names.iter().find_map(|name| plan::find(&self.listing, name)).map(|there| there.bytes);
            let old = || plan::basis(dump, file, place, &self.history, &self.listing).map(|basis| basis.there.bytes);
            there.or_else(old).unwrap_or(0)
        };
        total(dump.files.iter().map(of))
    }

    /// Carries the dump, and tries again where the line drops.
    pub fn carry_on(&mut self, now: Try, first: Journey) -> Result<(), Stop> {
        let dump = now.dump;
        let (mut journey, mut wait) = (first, FIRST_WAIT);
        for left in (0..=self.options.retries).rev() {
            let trouble = match self.carry(now, &journey) {
                Err(Stop::Trouble(trouble)) if trouble.line_down && left > 0 => trouble,
                end => return end,
            };
            self.unsure = true;
            let up = || if self.far.time_is_up() { Err(TimeIsUp.into()) } else { stop::check() };
            stop::sleep(wait, up)?;
            wait = (wait * 2).min(LONGEST_WAIT);
            match self.look_again(dump) {
                Err(error) if stop::caught().is_some() || refused(&format!("{error:#}")) => return Err(error.into()),
                // The next round meets the same trouble, and says it.
                Err(_) if left > 1 => continue,
                Err(_) => return Err(Stop::Trouble(trouble)),
                Ok(()) => {}
            }
            let share = first.share.map(|share| share.saturating_sub(self.far.wire().both()));
            journey = self.journey(dump, share).ok_or(Stop::Limit)?;
        }
        Ok(())
    }

    /// Connects anew if need be, and sees what is there of the dump's guest now.
    fn look_again(&mut self, dump: &Dump) -> Result<()> {
        self.far.connect()?;
        let places = [Outbox::place(&dump.vm), self.basis.clone()];
        let listing = self.list(&places)?;
        let below = |file: &str, place: &str| {
            file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.listing.retain(|file| !places.iter().any(|place| below(&file.name, place)));
        self.listing.extend(listing);
        Ok(())
    }

    /// Data, then sidecar, then a listing that shows all of it.
    fn carry(&mut self, now: Try, journey: &Journey) -> Result<(), Stop> {
        let dump = now.dump;
        let place = Outbox::place(&dump.vm);
        match plan::there(dump, &place, &self.basis, &self.listing) {
            There::Sidecar => {
                self.recognise(dump, &place)?;
                self.sweep(dump, &place);
                return Ok(());
            }
            There::InTheWay(name) => {
                return Err(anyhow!("{name} over there is not a directory: nothing is overwritten").into());
            }
            There::Begun | There::Nothing => {}
        }
        let entry = self.outbox.store.look(&place, &dump.stem)?.context("it is no longer in the outbox")?;
        if let Some(why) = &entry.fault {
            return Err(anyhow!("it was changed here since it was linked: {why}").into());
        }
        let mut all_proved = false;
        if self.far.is_remote() {
            if self.unsure {
                self.renew(dump, &place)?;
                self.unsure = false;
            }
            self.take_over(dump, &place);
            self.sweep(dump, &place);
            let whole = if journey.deltas { self.as_deltas(now, journey)? } else { HashSet::new() };
            all_proved = whole.len() == dump.files.len();
            if !all_proved {
                let laid = self.lay(dump, &place, journey, &whole);
                let sent = self.data(now, &entry, journey, &whole, !laid.is_empty());
                self.take_up(dump, &laid);
                sent?;
            }
        } else {
            self.mounted(now, &entry, journey)?;
        }
        if journey.resumed && self.far.is_remote() && !all_proved {
            self.last_look(dump, &place)?;
        }
        self.unchanged(&entry)?;
        self.close(dump, &place)
    }

    /// Makes sure that what has gone over is what the record says: somebody may have put other files in the place of a dump's
    /// while it was sent, and with its sidecar they would count as that dump.
    pub fn unchanged(&self, entry: &Entry) -> Result<()> {
        let now = self.outbox.store.look(&entry.place, &entry.dump.stem)?.context("it is no longer in the outbox")?;
        if let Some(why) = &now.fault {
            bail!("it was changed here while it was sent: {why}");
        }
        ensure!(now.inodes == entry.inodes, "its files here were replaced while they were sent");
        Ok(())
    }

    /// Reads back what came in several attempts: each of them proves only what it sent itself.
    fn last_look(&self, dump: &Dump, place: &str) -> Result<(), Stop> {
        let names: Vec<String> = dump.files.iter().map(|file| format!("{place}/{}", file.name)).collect();
        let different = self.far.differences(self.outbox.store.path(), &names, dump.bytes, self.lock)?;
        match different.first() {
            Some(line) => Err(anyhow!("was sent, but reads differently over there ({line}): it will be mended").into()),
            None => Ok(()),
        }
    }

    /// The sidecar, then the listing.
    fn close(&mut self, dump: &Dump, place: &str) -> Result<(), Stop> {
        let sidecar = dump.bare().to_sidecar();
        let dir = self.scratch.path().join("sidecar");
        let path = dir.join(place);
        fs::create_dir_all(&path).context("cannot make a temporary directory")?;
        fs::write(path.join(dump.stem.sidecar()), &sidecar).context("cannot write a temporary file")?;
        let names = [format!("{place}/{}", dump.stem.sidecar())];
        went_well(&self.far.send(&dir, "", &names, &[], Bounds::under(self.lock), &mut |_| Ok(()))?)?;
        let place = place.to_owned();
        let listing = self.list(std::slice::from_ref(&place))?;
        let missing = plan::missing(dump, &place, sidecar.len(), &listing);
        self.listing.retain(|file| file.name != place && !file.name.starts_with(&format!("{place}/")));
        self.listing.extend(listing);
        match missing {
            Some(why) => Err(anyhow!("was sent, but the listing says: {why}").into()),
            None => {
                // What a run of its has left whose rsync was killed, at either end: nobody asks for it again.
                self.sweep(dump, &place);
                Ok(())
            }
        }
    }

    /// Says what went wrong and does no harm. That a limit, the clock or a signal ended it is said by what it ends.
    pub fn warn_of(&self, of: &str, what: &str, result: Result<()>) {
        if let Err(error) = result
            && !error.is::<LimitReached>()
            && !error.is::<TimeIsUp>()
            && stop::caught().is_none()
        {
            self.session.report.warn(of, &format!("{what}: {error:#}"));
        }
    }

    /// Lists these places over there, if it still is the far side that it was when the pass began: its mount may have gone
    /// away since, and what was written has gone elsewhere then.
    pub fn list(&self, places: &[String]) -> Result<Vec<FarFile>> {
        let identity = identity::FILE.to_owned();
        let mut listing = self.far.list(&[places, std::slice::from_ref(&identity)].concat())?;
        let now = listing.extract_if(.., |file| file.name == identity).next();
        if now.as_ref() != plan::find(&self.listing, &identity) {
            let why = format!("the {identity} over there is gone, or another: was it unmounted meanwhile?");
            return Err(Kind::Refused.says(why));
        }
        Ok(listing)
    }

    /// A sidecar is there already. If it is this dump's, and all its files are there, the dump has arrived; else it is an
    /// error, as nothing over there is ever overwritten.
    fn recognise(&self, dump: &Dump, place: &str) -> Result<()> {
        let name = format!("{place}/{}", dump.stem.sidecar());
        let Fetched::Here(text) = self.far.fetch(&name)? else { bail!("its sidecar over there has vanished") };
        let there = Dump::from_sidecar(&dump.stem, &text).context("cannot read its sidecar over there")?;
        if !there.same(dump) {
            bail!("another dump is there under its name: nothing is overwritten");
        }
        if let Some(why) = there.verdict() {
            bail!(
                "its copy over there is no good: {why}; `bak-prune --dest {} {}` removes that, and then it is sent again",
                self.dest.name,
                dump.id
            );
        }
        match plan::missing(dump, place, text.len(), &self.listing) {
            Some(why) => {
                bail!(
                    "its sidecar is over there, but {why}; `bak-prune --dest {} {}` removes that, and then it is sent again",
                    self.dest.name,
                    dump.id
                )
            }
            None => Ok(()),
        }
    }

    /// The data of what is not `whole` over there, as rsync sends it; `based` if bases are laid in our directory.
    pub fn data(
        &mut self,
        now: Try,
        entry: &Entry,
        journey: &Journey,
        whole: &HashSet<String>,
        based: bool,
    ) -> Result<(), Stop> {
        let place = &entry.place;
        let names = self.outbox.store.names(entry)?;
        let files: Vec<String> =
            names.iter().filter(|name| !whole.contains(*name)).map(|name| format!("{place}/{name}")).collect();
        let sparse = holes(&self.outbox.store.path().join(place), now.dump);
        let options = self.data_options(Some(place), journey.way.block, based, sparse);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let spent = self.far.wire().both();
        let bounds = Bounds {
            at_most: journey.room.map(|room| room.saturating_sub(spent)),
            long: true,
            ..Bounds::under(self.lock)
        };
        let mut watch = self.noting(now);
        let outbox = self.outbox.store.path();
        let ran = self.far.send(outbox, "", &files, &options, bounds, &mut |wire| watch(&mut self.ledger, wire))?;
        went_well(&ran)
    }

    /// How rsync sends data: in blocks of this size, `based` if bases are laid in our directory.
    /// `place` is where all of them lie, if that is one place.
    pub fn data_options(&self, place: Option<&str>, block: u64, based: bool, sparse: bool) -> Vec<String> {
        // The same size and time is no proof of the same content, neither of what is there nor of a basis, which rsync would
        // then take for the file itself and send nothing.
        let mut options = vec!["--ignore-times".to_owned()];
        match place {
            Some(place) => options.push(self.far.partial_dir(place, PARTIAL)),
            // There it would have to be one directory for all.
            None if self.far.loses_partials() => {}
            None => options.push(format!("--partial-dir={PARTIAL}")),
        }
        if self.far.is_remote() {
            let block = format!("--block-size={block}");
            options.extend(["-z", "--zl=1", "--no-whole-file", block.as_str()].map(str::to_owned));
        } else {
            options.push("--whole-file".into());
        }
        if based {
            options.push(self.far.compare_dest(&self.basis));
        } else if self.far.forbids_removal() {
            // No basis can be laid: rsync looks for one by itself.
            options.push("--fuzzy".into());
        }
        if sparse {
            options.push("--sparse".into());
        }
        options
    }

    /// What watches a running attempt: shows it, and notes it in the ledger.
    pub fn noting(
        &self,
        Try { dump, id, begun }: Try,
    ) -> impl FnMut(&mut bak_common::ledger::Writer, Wire) -> Result<()> + use<> {
        let mut bar = Bar::new(self.session, dump, &self.turn, self.far.position());
        let line = attempt(self.session, self.dest, id, Some(dump), Wire::default(), begun, "running");
        let mut noted = Noted::new(line, begun);
        move |ledger, wire| {
            bar.at(wire);
            noted.at(ledger, wire)
        }
    }
}

/// Whether so much of a file of the dump is holes that rsync should look for them, which takes time: a sixteenth.
pub fn holes(dir: &Path, dump: &Dump) -> bool {
    let much = |meta: fs::Metadata| meta.blocks() * 512 < meta.len() - meta.len() / 16;
    dump.files.iter().any(|file| fs::symlink_metadata(dir.join(&file.name)).is_ok_and(much))
}
