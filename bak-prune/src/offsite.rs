//! What is known to be off-site, as far as a prune must wait for it.
//!
//! A *sighting* of a dump at a destination is the moment when it was last seen there whole: when bak-sync sent it (which
//! ends with a listing that shows all of it), or when `bak-sync --reconcile` last listed the whole far side and found all
//! that counts as sent. Both stand in the outbox; nothing is asked over the wire. A sighting grows old, as somebody may
//! delete things over there. What no fresh sighting shows is kept until its grace has passed, counted from its end: so
//! while a line is broken everything of the last two weeks stays, and the disk still does not fill for ever.

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::config::Config;
use bak_common::name::DumpId;
use bak_common::outbox::Outbox;
use bak_common::record::Dump;
use bak_common::report::Kind;
use bak_common::select::Subject;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::look::View;
use crate::request::Place;

/// What must be off-site before it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlySent {
    /// Destinations, by name.
    pub dests: Vec<String>,
    /// The outbox, where it is not where it is expected.
    pub outbox: Option<PathBuf>,
    /// How old a sighting may be, in seconds.
    pub sighted_s: i64,
    /// For how long after its end an unseen dump is kept, in seconds.
    pub grace_s: i64,
}

/// What one destination is known to have.
#[derive(Debug, Default)]
pub struct Sightings {
    pub dest: String,
    pub seen: HashMap<DumpId, (Dump, Time)>,
}

impl OnlySent {
    /// Reads what each destination is known to have. What cannot be read is reported, and counts as not seen.
    pub fn sightings(&self, session: &Session, place: &Place) -> Result<Vec<Sightings>> {
        let dests = self.dests.iter().filter(|dest| place.dest_name() != Some(dest));
        dests.map(|dest| self.at(session, place, dest)).collect()
    }

    fn at(&self, session: &Session, place: &Place, dest: &str) -> Result<Sightings> {
        let path = self.outbox.clone().unwrap_or_else(|| outbox(&session.config, place.path(), dest));
        let outbox = Outbox::open(&path, dest, None).map_err(|error| {
            Kind::Usage.says(format!("cannot tell what is at {dest}: {error:#} (--outbox names another)"))
        })?;
        let history = outbox.history().with_context(|| format!("cannot tell what is at {dest}"))?;
        for bad in history.unreadable {
            let name = path.join(".bak/sent").join(bad.path());
            session.report.fail(&name.display().to_string(), &bad.error.context("counts as not sent"));
        }
        let listed = outbox.sighted().unwrap_or_else(|error| {
            session.report.fail(&path.display().to_string(), &error);
            None
        });
        let seen = |dump: Dump| {
            let note = dump.sent.get(dest);
            // A listing that shows all of what is there does not show what was removed.
            if note.is_some_and(|note| note.pruned.is_some()) {
                return None;
            }
            let at = note.map(|note| note.at).max(listed)?;
            Some((dump.id.clone(), (dump, at)))
        };
        Ok(Sightings { dest: dest.to_owned(), seen: history.dumps.into_iter().filter_map(seen).collect() })
    }

    /// Why a dump must wait. Pure but for the configuration that it is given.
    pub fn wait(
        &self,
        sightings: &[Sightings],
        dump: &Dump,
        config: &Config,
        now: Time,
        skew_s: i64,
    ) -> Option<String> {
        let until = dump.finished.plus(self.grace_s);
        if now > until {
            return None;
        }
        sightings.iter().filter(|at| config.syncs(&Subject::from(dump), &at.dest)).find_map(|at| {
            let seen = at.seen.get(&dump.id).filter(|(sent, _)| sent.same(dump)).map(|(_, seen)| *seen);
            // A sighting of the future says that a clock is wrong, and nothing else.
            let fresh = seen.is_some_and(|seen| (-skew_s..=self.sighted_s).contains(&now.since(seen)));
            let what = match seen {
                _ if fresh => return None,
                Some(seen) => format!("not seen at {} since {seen}", at.dest),
                None => format!("not known to be at {}", at.dest),
            };
            Some(format!("{what}: kept until {until}"))
        })
    }
}

/// Where the outbox of a destination is expected.
pub fn outbox(config: &Config, store: Option<&Path>, dest: &str) -> PathBuf {
    let known = config.dest.iter().find(|known| known.name == dest).and_then(|known| known.outbox.clone());
    let of = |store: &Path| store.join(format!(".outbox-{dest}"));
    known.unwrap_or_else(|| match (&config.store, store) {
        (Some(own), Some(store)) if !of(store).exists() => of(own),
        (_, Some(store)) => of(store),
        (Some(own), None) => of(own),
        (None, None) => of(Path::new(".")),
    })
}

/// In a destination's own copy: the dumps against which those that wait here will be sent as deltas, with why they stay.
pub fn bases(place: &Place, view: &View) -> Result<BTreeMap<DumpId, String>> {
    let mut bases = BTreeMap::new();
    let Some(outbox) = place.outbox()? else { return Ok(bases) };
    let listing = outbox.store.list();
    if let Some(bad) = listing.unreadable.first() {
        let path = outbox.store.path().join(bad.path());
        return Err(anyhow!("{}: {:#}", path.display(), bad.error).context("cannot tell what waits"));
    }
    let history = outbox.history().context("cannot tell what was sent")?.dumps;
    for pending in listing.good() {
        let older = history.iter().rev().filter(|old| old.key() == pending.dump.key() && old.id != pending.dump.id);
        let there = |old: &&Dump| view.entries.iter().any(|entry| entry.dump.same(old));
        if let Some(basis) = older.into_iter().find(there) {
            bases.insert(basis.id.clone(), format!("{}, which waits to be sent, needs it there", pending.dump.id));
        }
    }
    Ok(bases)
}
