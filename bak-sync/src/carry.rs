//! One dump on its way: data, then sidecar, then a listing that shows all of it.
//!
//! Whatever ends this, it may end anywhere, and the next attempt goes on from what it finds over there. A limit ends it in
//! order: what has arrived is kept there as a partial file. A line that drops is tried again a few times.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::far::{Bounds, Fetched, LimitReached, Ran, refused};
use bak_common::ledger::Line;
use bak_common::meter::Wire;
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, FileEntry};
use bak_common::store::Entry;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::apply::{Pass, attempt};
use crate::plan::{self, PARTIAL, There};
use crate::progress::Bar;
use crate::share::LEAST;
use crate::way::{Way, way};

/// A running attempt is noted in the ledger after so many bytes, or so much time, whichever comes first. With the meter's
/// own lead (47 MiB) a crash forgets less than 64 MiB.
const NOTED_EVERY: u64 = 16 << 20;
const NOTED_AFTER: Duration = Duration::from_secs(2);

/// Waits before the line is tried again: this long, then twice as long each time, up to a minute.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A dump this large goes so that what has arrived is kept, also where that takes something, in bytes.
const WORTH_KEEPING: u64 = 16 << 20;

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

/// Why a dump has not arrived.
pub enum Stop {
    /// The limit, in order.
    Limit,
    Trouble(Trouble),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        if error.is::<LimitReached>() { Stop::Limit } else { Stop::Trouble(error.into()) }
    }
}

/// Whether rsync did what it should; else the trouble it met.
fn went_well(ran: &Ran) -> Result<(), Stop> {
    match ran.check() {
        Err(error) if !error.is::<LimitReached>() => Err(Stop::Trouble(Trouble { error, line_down: ran.line_down() })),
        other => Ok(other?),
    }
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
}

impl Pass<'_> {
    /// How the dump goes if it may cost `share`; `None` if that is too little to get anywhere.
    pub fn journey(&self, dump: &Dump, share: Option<u64>) -> Option<Journey> {
        let place = Outbox::place(&dump.vm);
        let there = plan::there(dump, &place, &self.basis, &self.listing);
        let part = |name: &str| plan::find(&self.listing, &format!("{place}/{PARTIAL}/{name}"));
        let resumed = there == There::Begun || dump.files.iter().any(|file| part(&file.name).is_some());
        // What must follow the data: the sidecar, and a listing of about 100 bytes a file.
        let below = format!("{place}/");
        let near = self.listing.iter().filter(|file| file.name.starts_with(&below)).count();
        let closing = dump.bare().to_sidecar().len() + 100 * (near + dump.files.len() + 1) + 2048;
        let room = share.map(|share| share.saturating_sub(closing as u64));
        let way = match there {
            // Nothing of it will be sent.
            There::Sidecar | There::InTheWay(_) => {
                share.is_none_or(|share| share >= LEAST).then_some(Way { sliced: false, block: 0 })
            }
            There::Begun | There::Nothing => {
                let largest = dump.files.iter().map(|file| file.bytes).max().unwrap_or(0);
                let way = way(dump.bytes, largest, self.bases(dump, &place), room, resumed);
                // If the line drops what has arrived should be there.
                let sliced = |way: Way| way.sliced || self.far.loses_partials() && dump.bytes >= WORTH_KEEPING;
                way.map(|way| Way { sliced: sliced(way), ..way })
            }
        };
        Some(Journey { way: way?, share, room, resumed })
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
        dump.files.iter().map(of).sum()
    }

    /// Carries the dump, and tries again where the line drops.
    pub fn carry_on(&mut self, dump: &Dump, first: Journey, id: &str, begun: Instant) -> Result<(), Stop> {
        let (mut journey, mut wait) = (first, FIRST_WAIT);
        for left in (0..=self.options.retries).rev() {
            let trouble = match self.carry(dump, &journey, id, begun) {
                Err(Stop::Trouble(trouble)) if trouble.line_down && left > 0 => trouble,
                end => return end,
            };
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            match self.look_again(dump) {
                Err(error) if refused(&format!("{error:#}")) => return Err(error.into()),
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
        let listing = self.far.list(&places)?;
        let below = |file: &str, place: &str| {
            file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.listing.retain(|file| !places.iter().any(|place| below(&file.name, place)));
        self.listing.extend(listing);
        Ok(())
    }

    /// Data, then sidecar, then a listing that shows all of it.
    fn carry(&mut self, dump: &Dump, journey: &Journey, id: &str, begun: Instant) -> Result<(), Stop> {
        let place = Outbox::place(&dump.vm);
        match plan::there(dump, &place, &self.basis, &self.listing) {
            There::Sidecar => return Ok(self.recognise(dump, &place)?),
            There::InTheWay(name) => {
                return Err(anyhow!("{name} over there is not a directory: nothing is overwritten").into());
            }
            There::Begun | There::Nothing => {}
        }
        let entry = self.outbox.store.look(&place, &dump.stem)?.context("it is no longer in the outbox")?;
        if self.far.is_remote() {
            self.sweep(dump, &place);
            let laid = self.lay(dump, &place, journey);
            let sent = self.data(dump, &entry, journey, !laid.is_empty(), id, begun);
            self.take_up(dump, &laid);
            sent?;
        } else {
            self.mounted(dump, &entry, journey, id, begun)?;
        }
        if journey.resumed && self.far.is_remote() {
            self.last_look(dump, &place)?;
        }
        self.close(dump, &place)
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
        let listing = self.far.list(std::slice::from_ref(&place))?;
        let missing = plan::missing(dump, &place, sidecar.len(), &listing);
        self.listing.retain(|file| file.name != place && !file.name.starts_with(&format!("{place}/")));
        self.listing.extend(listing);
        match missing {
            Some(why) => Err(anyhow!("was sent, but the listing says: {why}").into()),
            None => Ok(()),
        }
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
        match plan::missing(dump, place, text.len(), &self.listing) {
            Some(why) => {
                bail!("its sidecar is over there, but {why}: remove that sidecar there, and it will be sent again")
            }
            None => Ok(()),
        }
    }

    /// The data, as rsync sends it; `based` if bases are laid in our directory.
    pub fn data(
        &mut self,
        dump: &Dump,
        entry: &Entry,
        journey: &Journey,
        based: bool,
        id: &str,
        begun: Instant,
    ) -> Result<(), Stop> {
        let place = &entry.place;
        let files: Vec<String> = self.outbox.store.names(entry)?.iter().map(|name| format!("{place}/{name}")).collect();
        let block = format!("--block-size={}", journey.way.block);
        let (compare, partial) = (self.far.compare_dest(&self.basis), self.far.partial_dir(place, PARTIAL));
        // The same size and time is no proof of the same content, neither of what is there nor of a basis, which rsync would
        // then take for the file itself and send nothing.
        let mut options = vec![partial.as_str(), "--ignore-times"];
        if self.far.is_remote() {
            options.extend(["-z", "--zl=1", "--no-whole-file", block.as_str()]);
        } else {
            options.push("--whole-file");
        }
        if based {
            options.push(&compare);
        } else if self.far.forbids_removal() {
            // No basis can be laid: rsync looks for one by itself.
            options.push("--fuzzy");
        }
        if holes(&self.outbox.store.path().join(place), dump) {
            options.push("--sparse");
        }
        let spent = self.far.wire().both();
        let bounds =
            Bounds { at_most: journey.room.map(|room| room.saturating_sub(spent)), ..Bounds::under(self.lock) };
        let mut watch = self.noting(dump, id, begun);
        let outbox = self.outbox.store.path();
        let ran = self.far.send(outbox, "", &files, &options, bounds, &mut |wire| watch(&mut self.ledger, wire))?;
        went_well(&ran)
    }

    /// What watches a running attempt: shows it, and notes it in the ledger.
    pub fn noting(
        &self,
        dump: &Dump,
        id: &str,
        begun: Instant,
    ) -> impl FnMut(&mut bak_common::ledger::Writer, Wire) -> Result<()> + use<> {
        let bar = Bar::new(self.session, dump);
        let mut line = attempt(self.session, self.dest, id, Some(dump), Wire::default(), begun, "running");
        let (mut noted, mut when) = (0, Instant::now());
        move |ledger, wire| {
            bar.at(wire);
            let so_far = wire.both();
            if so_far >= noted + NOTED_EVERY || (so_far > noted && when.elapsed() >= NOTED_AFTER) {
                (noted, when) = (so_far, Instant::now());
                (line.wire_out, line.wire_in, line.seconds) = (wire.out, wire.into, begun.elapsed().as_secs());
                ledger.append(&Line::Attempt(line.clone()))?;
            }
            Ok(())
        }
    }
}

/// Whether so much of a file of the dump is holes that rsync should look for them, which takes time: a sixteenth.
fn holes(dir: &Path, dump: &Dump) -> bool {
    let much = |meta: fs::Metadata| meta.blocks() * 512 < meta.len() - meta.len() / 16;
    dump.files.iter().any(|file| fs::symlink_metadata(dir.join(&file.name)).is_ok_and(much))
}
