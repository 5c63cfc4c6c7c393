//! Which stores are meant: directories, off-site copies, destinations.

use anyhow::Result;
use bak_common::args::{Destination, Limits, Places, Reach, Session};
use bak_common::far::Url;
use bak_common::name::printable;
use bak_common::report::Kind;
use bak_common::store::Store;
use bak_common::units::Period;
use std::path::{Path, PathBuf};

use crate::remote::Remote;
use crate::request::{At, Place};

/// What the command line says about places.
pub struct Asked<'a> {
    /// Operands.
    pub stores: &'a [PathBuf],
    pub store: Option<&'a Path>,
    pub dests: &'a [String],
    pub outbox: Option<&'a Path>,
    pub reach: &'a Reach,
    pub limits: &'a Limits,
    /// The destination that `--only-sent` names: the outbox is its.
    pub only_sent: Option<&'a str>,
    /// Where none is named, none is meant.
    pub none_will_do: bool,
}

impl Asked<'_> {
    /// The places, each once, in the order in which they are locked.
    pub fn resolve(&self, session: &Session) -> Result<Vec<Place>> {
        if !self.stores.is_empty() && self.store.is_some() {
            return Err(Kind::Usage.says("name stores as operands or by --store, not both"));
        }
        let mut places = Vec::new();
        for text in self.dests {
            places.push(self.at(session, self.destination(session, text)?)?);
        }
        for path in self.stores {
            places.push(self.operand(session, path)?);
        }
        if places.is_empty() && !self.none_will_do {
            let named = Places { store: self.store.map(Path::to_owned), ..Places::default() };
            places.push(self.here(session, &named.store(&session.config)?)?);
        }
        if places.iter().filter(|place| place.dest.is_some()).count() > 1 && self.outbox.is_some() {
            return Err(Kind::Usage.says("--outbox goes with one destination, and there are several"));
        }
        // Whoever locks several stores at once must always do so in the same order.
        places.sort_by_key(|place| {
            let outbox = place.dest.as_ref().map(|dest| dest.outbox.clone());
            (outbox.is_none(), outbox, place.name())
        });
        places.dedup_by_key(|place| place.name());
        Ok(places)
    }

    fn operand(&self, session: &Session, path: &Path) -> Result<Place> {
        let Some(text) = path.to_str().filter(|_| !path.exists()) else { return self.here(session, path) };
        match Url::parse(text)? {
            Url::Path(_) => self.here(session, path),
            url => {
                let known = session.config.dest.iter().find(|dest| parsed(dest.url.as_deref()) == Some(url.clone()));
                let text = known.map_or_else(|| format!("default={text}"), |dest| dest.name.clone());
                self.at(session, self.destination(session, &text)?)
            }
        }
    }

    /// A directory of this machine; if it is a destination's copy, that one's own rules hold there.
    fn here(&self, session: &Session, path: &Path) -> Result<Place> {
        let store = Store::open(path)?;
        let is_here = |url: &str| Path::new(url).canonicalize().is_ok_and(|path| path == store.path());
        let known = session.config.dest.iter().find(|dest| dest.url.as_deref().is_some_and(is_here));
        let dest = known.map(|dest| self.destination(session, &dest.name)).transpose()?;
        Ok(Place { at: At::Here(store), dest })
    }

    fn at(&self, session: &Session, dest: Destination) -> Result<Place> {
        let Some(text) = &dest.url else {
            return Err(Kind::Usage.says(format!("the destination {} has no url: --dest {0}=URL", dest.name)));
        };
        let url = match Url::parse(text)? {
            Url::Path(path) => return Ok(Place { at: At::Here(Store::open(&path)?), dest: Some(dest) }),
            url => url,
        };
        let calendar = dest.limits.iter().any(|limit| limit.period != Period::Pass);
        if calendar && !dest.outbox.exists() && !session.dry_run {
            return Err(Kind::Usage.says(format!(
                "nothing tells what was used of the limits of {}: name its outbox by --outbox, or --limit none",
                printable(text)
            )));
        }
        let access = self.reach.access(&dest.access);
        Ok(Place { at: At::There(Remote { url, shown: text.clone(), access }), dest: Some(dest) })
    }

    /// A destination as `--dest` names it. Its outbox may be nowhere.
    fn destination(&self, session: &Session, text: &str) -> Result<Destination> {
        let name = text.split_once('=').map_or(text, |(name, _)| name);
        let own = self.outbox.filter(|_| self.only_sent.is_none_or(|dest| dest == name));
        let nowhere = || Some(PathBuf::new());
        let has_outbox = session.config.dest.iter().any(|dest| dest.name == name && dest.outbox.is_some());
        let store = self.store.or(session.config.store.as_deref());
        let places = Places {
            store: store.map(Path::to_owned),
            outbox: own.map(Path::to_owned).or_else(|| if has_outbox || store.is_some() { None } else { nowhere() }),
            dest: vec![text.to_owned()],
        };
        let mut found = places.destinations(&session.config, &[])?;
        self.limits.apply(&mut found)?;
        // One was named.
        found.pop().ok_or_else(|| Kind::Usage.says(format!("there is no destination {}", printable(text))))
    }
}

fn parsed(url: Option<&str>) -> Option<Url> {
    Url::parse(url?).ok()
}
