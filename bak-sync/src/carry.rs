//! One dump on its way: data, then sidecar, then a listing that shows all of it.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::far::{FarFile, Fetched, Ran};
use bak_common::ledger::Line;
use bak_common::outbox::Outbox;
use bak_common::record::Dump;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::apply::{Pass, attempt};
use crate::plan::{self, There};
use crate::progress::Bar;

/// A running attempt is noted in the ledger after so many bytes, or so much time, whichever comes first: a crash forgets
/// at most that.
const NOTED_EVERY: u64 = 64 << 20;
const NOTED_AFTER: Duration = Duration::from_secs(2);

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

/// Whether rsync did what it should; else the trouble it met.
fn went_well(ran: &Ran) -> Result<(), Trouble> {
    ran.check().map_err(|error| Trouble { error, line_down: ran.line_down() })
}

impl Pass<'_> {
    /// Data, then sidecar, then a listing that shows all of it.
    pub fn carry(&mut self, dump: &Dump, id: &str, begun: Instant) -> Result<(), Trouble> {
        let place = Outbox::place(&dump.vm);
        let sidecar = dump.bare().to_sidecar();
        let there = plan::there(dump, &place, &self.basis, &self.listing);
        match &there {
            There::Sidecar => return Ok(self.recognise(dump, &place)?),
            There::InTheWay(name) => {
                return Err(anyhow!("{name} over there is not a directory: nothing is overwritten").into());
            }
            There::Begun | There::Nothing => {}
        }
        let seeded = self.seed(dump, &place);
        let sent = self.data(dump, &place, &there, !seeded.is_empty(), id, begun);
        for (old, new) in &seeded {
            // What stays there costs no traffic and hides from listings, but it holds blocks: worth a line.
            if let Err(error) = self.far.drop_basis(&self.basis, old, new).and_then(|ran| ran.check()) {
                self.session
                    .report
                    .warn(dump.id.as_str(), &format!("cannot remove {}/{new} over there: {error:#}", self.basis));
            }
        }
        sent?;
        let dir = self.scratch.path().join("sidecar");
        let path = dir.join(&place);
        fs::create_dir_all(&path).context("cannot make a temporary directory")?;
        fs::write(path.join(dump.stem.sidecar()), &sidecar).context("cannot write a temporary file")?;
        went_well(&self.far.send(
            &dir,
            "",
            &[format!("{place}/{}", dump.stem.sidecar())],
            &[],
            Some(self.lock),
            &mut |_| Ok(()),
        )?)?;
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

    /// Makes this guest's previous dump over there the basis of this one, where there is one. Returns what was made; a
    /// basis that cannot be made only makes the transfer dearer.
    fn seed(&self, dump: &Dump, place: &str) -> Vec<(FarFile, String)> {
        if !self.far.is_remote() {
            return Vec::new();
        }
        let mut seeded = Vec::new();
        for file in &dump.files {
            let Some(old) = plan::basis(dump, file, place, &self.history, &self.listing) else { continue };
            let new = format!("{place}/{}", file.name);
            match self.far.seed_basis(&self.basis, old, &new).and_then(|ran| ran.check()) {
                Ok(()) => seeded.push((old.clone(), new)),
                Err(error) => self.session.report.warn(dump.id.as_str(), &format!("goes without a basis: {error:#}")),
            }
        }
        seeded
    }

    fn data(
        &mut self,
        dump: &Dump,
        place: &str,
        there: &There,
        delta: bool,
        id: &str,
        begun: Instant,
    ) -> Result<(), Trouble> {
        let entry = self.outbox.store.look(place, &dump.stem)?.context("it is no longer in the outbox")?;
        let names = self.outbox.store.names(&entry)?;
        let files: Vec<String> = names.iter().map(|name| format!("{place}/{name}")).collect();
        let dir = self.outbox.store.path().join(place);
        let largest = dump.files.iter().map(|file| file.bytes).max().unwrap_or(0);
        let block = format!("--block-size={}", plan::block_size(largest));
        let compare = format!("--compare-dest={}", self.basis);
        let partial = format!("--partial-dir={}", plan::PARTIAL);
        let mut options = vec![partial.as_str()];
        if delta || *there == There::Begun {
            // The same size and time is no proof of the same content, neither of what is there nor of a basis, which rsync
            // would then take for the file itself and send nothing.
            options.push("--ignore-times");
        }
        if self.far.is_remote() {
            options.extend(["-z", "--zl=1", "--no-whole-file", block.as_str()]);
        } else {
            options.push("--whole-file");
        }
        if delta {
            options.push(&compare);
        }
        if holes(&dir, dump) {
            options.push("--sparse");
        }
        let bar = Bar::new(self.session, dump);
        let (mut noted, mut when) = (0, Instant::now());
        let (session, dest, ledger) = (self.session, self.dest, &mut self.ledger);
        let ran = self.far.send(self.outbox.store.path(), "", &files, &options, Some(self.lock), &mut |wire| {
            bar.at(wire);
            let so_far = wire.out + wire.into;
            if so_far >= noted + NOTED_EVERY || (so_far > noted && when.elapsed() >= NOTED_AFTER) {
                (noted, when) = (so_far, Instant::now());
                ledger.append(&Line::Attempt(attempt(session, dest, id, Some(dump), wire, begun, "running")))?;
            }
            Ok(())
        })?;
        went_well(&ran)
    }
}

/// Whether so much of a file of the dump is holes that rsync should look for them, which takes time: a sixteenth.
fn holes(dir: &Path, dump: &Dump) -> bool {
    let much = |meta: fs::Metadata| meta.blocks() * 512 < meta.len() - meta.len() / 16;
    dump.files.iter().any(|file| fs::symlink_metadata(dir.join(&file.name)).is_ok_and(much))
}
