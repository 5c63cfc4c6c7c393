//! Small dumps on their way together: the data of all in one run, then the sidecars of those whose data is there, then one
//! listing; which dumps these are says [`crate::batch`].
//!
//! For each of them the order is that of a dump that goes alone, each step taken for all before the next. What did not
//! arrive, for whatever reason, holds nobody: it goes alone afterwards, and there its trouble is met again, and told.

use anyhow::{Context, Result};
use bak_common::far::{Bounds, FarFile, FarKind, Ran};
use bak_common::ledger::{Attempt, Ended};
use bak_common::meter::Wire;
use bak_common::name::DumpId;
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, FileEntry};
use bak_common::report::status;
use bak_common::store::Entry;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::apply::{Pass, attempt, caps, cost, stays};
use crate::batch::{self, Candidate, together};
use crate::carry::{Noted, Stop, Trouble, holes, went_well};
use crate::plan::{self, PARTIAL, There};
use crate::turns::{self, Fate, OPEN};
use crate::way::{at_once, block_size};

mod settle;

/// A delta of a smaller file saves less than laying its basis costs, in bytes.
const BASIS_LEAST: u64 = 16 << 10;

/// What the runs of a batch cost beside what each dump adds, in bytes: a few hundred each were measured.
const RUNS: u64 = 16 << 10;

/// A dump of a batch.
struct One {
    /// With its note of this try.
    dump: Dump,
    entry: Entry,
    place: String,
    /// What the last listing shows of its guest.
    near: Vec<FarFile>,
    /// Some of it is there from an earlier attempt.
    resumed: bool,
    came: Came,
    /// In which proportion it is charged with what all have cost.
    weight: u64,
}

/// How far a dump has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// It is still well on its way; at the end: it has arrived.
    Along,
    /// It has not arrived, and may go with others again.
    Again,
    /// It has not arrived, and must go alone.
    Alone,
    /// It was ended in order, by this.
    Cut(Ended),
}

impl One {
    fn names(&self) -> impl Iterator<Item = String> {
        self.dump.files.iter().map(|file| format!("{}/{}", self.place, file.name))
    }

    fn sidecar(&self) -> String {
        format!("{}/{}", self.place, self.dump.stem.sidecar())
    }
}

impl Pass<'_> {
    /// How many of those that are next share their runs; 1 if the first goes alone. `alone` are those that must.
    pub fn batch(&mut self, next: &[&Dump], alone: &HashSet<DumpId>) -> usize {
        let Some((first, after)) = next.split_first() else { return 0 };
        if first.bytes > batch::EACH || alone.contains(&first.id) || self.budget.exempts() {
            return 1;
        }
        if self.budget.shared()
            && let Ok(caps) = caps(self.session, self.dest, self.outbox)
        {
            self.budget.refresh(&caps);
        }
        let name = &self.dest.name;
        let after: Vec<u64> = after.iter().map(|dump| cost(dump, name)).collect();
        let share = self.budget.share(cost(first, name), &after).map(|share| share.saturating_sub(RUNS));
        let places = plan::by_place(&self.listing, &self.basis);
        let candidate = |dump: &&Dump| {
            let place = Outbox::place(&dump.vm);
            let near = near(&places, &place, &self.basis);
            let there = plan::there(dump, &place, &self.basis, &near);
            let bases: u64 = near.iter().map(|file| file.bytes).max().unwrap_or(0).min(2 * batch::EACH);
            let sidecar = dump.bare().to_sidecar().len() as u64;
            let most = at_once(dump.bytes, bases, block_size(dump.bytes))
                + sidecar
                + 100 * (near.len() + 4 * dump.files.len() + 1) as u64;
            let failed = dump.link.get(name).is_some_and(|note| note.error.is_some());
            let part = |file: &FileEntry| plan::find(&near, &format!("{place}/{PARTIAL}/{}", file.name)).is_some();
            let alone = alone.contains(&dump.id)
                // Its partial file must be made another one first.
                || (turns::open(dump, name) && dump.files.iter().any(part))
                || matches!(there, There::Sidecar | There::InTheWay(_))
                || self.budget.is_oversized(cost(dump, name));
            Candidate { place, bytes: dump.bytes, most, failed, alone }
        };
        together(next.iter().map(candidate), share)
    }

    /// Sends these dumps together. What became of each, in their order; what they cost is noted whatever happens.
    pub fn together(&mut self, dumps: Vec<Dump>) -> Result<Vec<(Dump, Result<Fate, Trouble>)>> {
        let (at, begun) = (self.session.clock(), Instant::now());
        let id = format!("{}/with-{}", self.id, dumps.first().context("a batch of nothing")?.id);
        let share = self.budget.left();
        self.far.limit(share);
        let mut all = self.begin(&dumps);
        let mut why = None;
        if !all.is_empty() {
            self.budget.begin();
            why = self.cross(&mut all, &id, begun).err();
            if let Some(stop) = &why {
                stop_at(stop, &mut all);
                // So that what goes alone knows what is there now; where the line is down it finds out itself.
                if matches!(stop, Stop::Trouble(trouble) if !trouble.line_down) {
                    let _ = self.look_at(&all);
                }
            }
        }
        let wire = self.far.take_wire();
        self.sum = self.sum + wire;
        self.budget.spend(wire.both());
        let said = match &why {
            Some(Stop::Trouble(trouble)) => Some(format!("{:#}", trouble.error)),
            Some(Stop::Time) => Some(self.why_cut(Ended::Until)),
            Some(Stop::Signal(stopped)) => Some(stopped.to_string()),
            Some(Stop::Limit) | None => None,
        };
        self.charge(
            &all,
            &id,
            Attempt { at, why: said, ..attempt(self.session, self.dest, &id, None, wire, begun, "done") },
        )?;
        // Not the far side that it was: nothing more goes there, not even alone.
        if let Some(Stop::Trouble(trouble)) = why
            && status(&trouble.error) == 4
        {
            return Err(stays(trouble.error, dumps.len()));
        }
        let mut fates = self.settle(all);
        Ok(dumps
            .into_iter()
            .map(|dump| {
                let fate = fates.remove(&dump.id).unwrap_or(Ok(Fate::Alone));
                (dump, fate)
            })
            .collect())
    }

    /// Notes that these are tried; those that can go. The others go alone, which says why.
    fn begin(&self, dumps: &[Dump]) -> Vec<One> {
        let Ok(locked) = self.outbox.store.lock(self.session.wait, &self.session.report) else { return Vec::new() };
        let places = plan::by_place(&self.listing, &self.basis);
        let mut found: Vec<(Entry, Dump)> = Vec::new();
        for dump in dumps {
            let entry = self.outbox.store.look(&Outbox::place(&dump.vm), &dump.stem);
            if let (Ok(Some(entry)), Ok(None)) = (entry, self.outbox.sent(dump))
                && entry.is_good()
            {
                let mut noted = entry.dump.clone();
                if let Some(note) = noted.link.get_mut(&self.dest.name) {
                    note.tries = Some(note.tries.unwrap_or(0).saturating_add(1));
                    note.extra.insert(OPEN.to_owned(), true.into());
                }
                found.push((entry, noted));
            }
        }
        let changes: Vec<(&Entry, Dump)> = found.iter().map(|(entry, noted)| (entry, noted.clone())).collect();
        let noted = locked.annotate_all(&changes);
        let one = |((entry, dump), noted): ((Entry, Dump), Result<()>)| {
            noted.ok()?;
            let place = Outbox::place(&dump.vm);
            let near = near(&places, &place, &self.basis);
            let part = |name: &str| plan::find(&near, &format!("{place}/{PARTIAL}/{name}")).is_some();
            let resumed = plan::there(&dump, &place, &self.basis, &near) == There::Begun
                || dump.files.iter().any(|file| part(&file.name));
            let weight = dump.bytes;
            Some(One { dump, entry, place, near, resumed, came: Came::Along, weight })
        };
        found.into_iter().zip(noted).filter_map(one).collect()
    }

    /// Data, then sidecars, then the listing. An error is the end for all that are still along.
    fn cross(&mut self, all: &mut [One], id: &str, begun: Instant) -> Result<(), Stop> {
        let mut bases = Vec::new();
        if self.far.is_remote() {
            self.sweep_all(all);
            bases = self.lay_all(all);
        }
        let sent = self.send_all(all, !bases.is_empty(), id, begun);
        if !bases.is_empty() {
            let dropped = self.far.drop_bases(&self.basis, &bases).and_then(|ran| ran.check());
            self.warn_all("cannot remove what was laid for deltas over there", dropped);
        }
        let ran = sent?;
        if partial(&ran) {
            self.look_at(all)?;
            self.sort_out(all, ran.is_full());
        } else {
            went_well(&ran)?;
        }
        self.last_looks(all)?;
        self.close_all(all)
    }

    /// After a run that did not carry all: those whose files are not all there go alone. rsync gives a file its name only
    /// once it is whole and flushed. Where the disk is `full` over there, what it has kept of the others makes room for the
    /// sidecars of those that are whole.
    fn sort_out(&self, all: &mut [One], full: bool) {
        let places = plan::by_place(&self.listing, &self.basis);
        let mut parts = Vec::new();
        for one in all.iter_mut() {
            let near = near(&places, &one.place, &self.basis);
            let whole = one
                .dump
                .files
                .iter()
                .zip(one.names())
                .all(|(file, name)| plan::find(&near, &name).is_some_and(|there| there.bytes == file.bytes));
            // What was there before tells nothing by its size.
            if !whole || one.resumed {
                one.came = Came::Alone;
                let part = |file: &FileEntry| format!("{}/{PARTIAL}/{}", one.place, file.name);
                parts.extend(one.dump.files.iter().filter_map(|file| plan::find(&near, &part(file)).cloned()));
            }
        }
        if full && !parts.is_empty() {
            let dropped = self.far.discard("", &parts).and_then(|ran| ran.check());
            self.warn_all("cannot make room over there", dropped);
        }
    }

    /// Removes what killed runs have left of these dumps, as far as the last listing shows it.
    fn sweep_all(&mut self, all: &[One]) {
        let places = plan::by_place(&self.listing, &self.basis);
        let of = |one: &One| {
            let near = near(&places, &one.place, &self.basis);
            plan::litter(&one.dump, &one.place, &self.basis, &self.history, &near)
        };
        let litter: Vec<FarFile> = all.iter().flat_map(of).collect();
        if !litter.is_empty() && self.far.may_discard().unwrap_or(true) {
            let swept = self.far.discard("", &litter).and_then(|ran| ran.check());
            self.warn_all("cannot clean up over there", swept);
        }
    }

    /// Lays the bases of their files, as hard links; those that are to be taken up again.
    fn lay_all(&self, all: &[One]) -> Vec<(FarFile, String)> {
        let mut pairs = Vec::new();
        for one in all.iter().filter(|one| !one.resumed) {
            for file in one.dump.files.iter().filter(|file| file.bytes >= BASIS_LEAST) {
                let basis = plan::basis(&one.dump, file, &one.place, &self.history, &one.near);
                pairs.extend(basis.map(|basis| (basis.there, format!("{}/{}", one.place, file.name))));
            }
        }
        if !pairs.is_empty() {
            let may = self.far.may_discard();
            // What could never be taken up again is not laid.
            if !may.as_ref().is_ok_and(|may| *may) {
                self.warn_all("small dumps go without a basis", may.map(|_| ()));
                return Vec::new();
            }
            let laid = self.far.seed_bases(&self.basis, &pairs).and_then(|ran| ran.check());
            self.warn_all("small dumps go without a basis", laid);
        }
        pairs
    }

    /// The data of all, and what of it each has cost.
    fn send_all(&mut self, all: &mut [One], based: bool, id: &str, begun: Instant) -> Result<Ran, Stop> {
        let mut names = Vec::new();
        for one in all.iter() {
            names.extend(self.outbox.store.names(&one.entry)?.iter().map(|name| format!("{}/{name}", one.place)));
        }
        let outbox = self.outbox.store.path();
        let sparse = all.iter().any(|one| holes(&outbox.join(&one.place), &one.dump));
        let mut options = self.data_options(None, block_size(batch::EACH), based, sparse);
        if self.far.is_remote() {
            options.extend(["--info=progress0".into(), format!("--out-format={COSTS}")]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let line = attempt(self.session, self.dest, id, None, Wire::default(), begun, "running");
        let mut noted = Noted::new(line, begun);
        let bounds = Bounds { long: true, ..Bounds::under(self.lock) };
        let ledger = &mut self.ledger;
        let mut watch = |wire| noted.at(ledger, wire);
        let ran = self.far.send(outbox, "", &names, &options, bounds, &mut watch)?;
        let costs = costs(&ran.finished.stdout);
        for one in all.iter_mut() {
            let of_files: Option<u64> = one.names().map(|name| costs.get(&name).copied()).sum();
            one.weight = of_files.unwrap_or(one.dump.bytes) + one.dump.bare().to_sidecar().len() as u64;
        }
        Ok(ran)
    }

    /// Reads back what came in several attempts, as each of them proves only what it sent itself.
    fn last_looks(&mut self, all: &mut [One]) -> Result<(), Stop> {
        let again = |one: &&mut One| one.resumed && one.came == Came::Along;
        let names: Vec<String> = all.iter_mut().filter(again).flat_map(|one| one.names().collect::<Vec<_>>()).collect();
        if names.is_empty() || !self.far.is_remote() {
            return Ok(());
        }
        if !self.far.differences(self.outbox.store.path(), &names, batch::ALL, self.lock)?.is_empty() {
            all.iter_mut().filter(again).for_each(|one| one.came = Came::Alone);
        }
        Ok(())
    }

    /// The sidecars of those whose data is there, then the listing.
    fn close_all(&mut self, all: &mut [One]) -> Result<(), Stop> {
        let along = |one: &&One| one.came == Came::Along;
        for one in all.iter_mut().filter(|one| one.came == Came::Along) {
            if self.unchanged(&one.entry).is_err() {
                // Why is told there.
                one.came = Came::Alone;
            }
        }
        let dir = self.sidecars(all)?;
        let names: Vec<String> = all.iter().filter(along).map(One::sidecar).collect();
        if names.is_empty() {
            return Ok(());
        }
        let ran = self.far.send(&dir, "", &names, &[], Bounds::under(self.lock), &mut |_| Ok(()))?;
        if !partial(&ran) {
            went_well(&ran)?;
        }
        self.look_at(all)?;
        let places = plan::by_place(&self.listing, &self.basis);
        for one in all.iter_mut().filter(|one| one.came == Came::Along) {
            let listing = near(&places, &one.place, &self.basis);
            if plan::missing(&one.dump, &one.place, one.dump.bare().to_sidecar().len(), &listing).is_some() {
                one.came = Came::Alone;
            }
        }
        // What a run of this very pass has left, whose other end was killed: nobody asks for these dumps again.
        self.sweep_all(all);
        Ok(())
    }

    /// Writes the sidecars as they will be over there into a temporary directory.
    fn sidecars(&self, all: &[One]) -> Result<PathBuf> {
        let dir = self.scratch.path().join("sidecars");
        for one in all.iter().filter(|one| one.came == Came::Along) {
            fs::create_dir_all(dir.join(&one.place)).context("cannot make a temporary directory")?;
            fs::write(dir.join(one.sidecar()), one.dump.bare().to_sidecar())
                .context("cannot write a temporary file")?;
        }
        Ok(dir)
    }

    /// Lists anew what is there of these guests.
    fn look_at(&mut self, all: &[One]) -> Result<()> {
        let places: Vec<String> = all.iter().map(|one| one.place.clone()).collect();
        let seen = self.list(&places)?;
        let old: HashSet<&str> = places.iter().map(String::as_str).collect();
        let place = |name: &str| name.split_once('/').map_or(name, |(place, _)| place).to_owned();
        self.listing.retain(|file| !old.contains(place(&file.name).as_str()));
        self.listing.extend(seen);
        Ok(())
    }

    /// Says what went wrong with many of them and does no harm.
    fn warn_all(&self, what: &str, result: Result<()>) {
        self.warn_of(&self.dest.name, what, result);
    }
}

/// What a listing shows of a guest, by its place.
fn near(places: &HashMap<&str, Vec<&FarFile>>, place: &str, basis: &str) -> Vec<FarFile> {
    let of = |name: &str| places.get(name).into_iter().flatten().map(|file| (*file).clone()).collect::<Vec<_>>();
    let mut found = of(place);
    found.extend(of(basis).into_iter().filter(|file| file.kind != FarKind::Dir));
    found
}

/// Whether rsync has carried some of the files, and not all, and a look tells which: it went on after what concerned
/// single ones, or ended where the disk is full over there.
fn partial(ran: &Ran) -> bool {
    !ran.cut && ran.end.is_none() && (matches!(ran.finished.status.code(), Some(23 | 24)) || ran.is_full())
}

/// What `stop` means for those that were still along.
fn stop_at(stop: &Stop, all: &mut [One]) {
    let mut first = true;
    for one in all.iter_mut().filter(|one| one.came == Came::Along) {
        one.came = match stop {
            Stop::Limit => Came::Cut(Ended::Limit),
            Stop::Time => Came::Cut(Ended::Until),
            Stop::Signal(_) => Came::Cut(Ended::Stopped),
            // One of them tries the line, again and again if need be.
            Stop::Trouble(trouble) if trouble.line_down && !first => Came::Again,
            Stop::Trouble(_) => Came::Alone,
        };
        first = false;
    }
}

/// What rsync is to say of each file: the bytes that it sent, those of the checksums that came for it, and its name.
const COSTS: &str = "%b %c %n";

/// What it has said: bytes by name.
fn costs(said: &[u8]) -> HashMap<String, u64> {
    let text = String::from_utf8_lossy(said);
    let line = |line: &str| {
        let (out, rest) = line.split_once(' ')?;
        let (into, name) = rest.split_once(' ')?;
        Some((name.to_owned(), out.parse::<u64>().ok()?.saturating_add(into.parse().ok()?)))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_have_cost() {
        let said = costs(b"50053 0 web/a b\n4140 166 x/n1\nskipping it\n 3 c\n");
        assert_eq!(said, HashMap::from([("web/a b".to_owned(), 50053), ("x/n1".to_owned(), 4306)]));
    }
}
