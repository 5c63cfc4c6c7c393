//! The dumps that the guests have: read once for the whole run, and then, for each guest in its turn, what has come since
//! where its dumps lie. So a run over a large store does not read all of it again for every guest.

use bak_common::calendar::Time;
use bak_common::name::{DumpId, Stem};
use bak_common::record::GuestKey;
use bak_common::store::{Entry, Store};
use std::collections::{HashMap, HashSet};

/// What matters of a dump.
#[derive(Clone, Debug)]
pub struct Past {
    pub id: DumpId,
    pub started: Time,
    pub bytes: u64,
    pub good: bool,
}

/// The dumps of all guests.
#[derive(Debug)]
pub struct Pasts {
    of: HashMap<GuestKey, Vec<Past>>,
    /// Sidecars that were read, by their directories.
    read: HashMap<String, HashSet<Stem>>,
}

impl Past {
    fn of(entry: &Entry) -> Self {
        let dump = &entry.dump;
        Self { id: dump.id.clone(), started: dump.started, bytes: dump.bytes, good: entry.is_good() }
    }
}

impl Pasts {
    /// All that `store` holds now, of whichever guest.
    pub fn read(store: &Store) -> Self {
        let mut pasts = Self { of: HashMap::new(), read: HashMap::new() };
        store.visit(&mut |seen| {
            // What cannot be read is told by those who count dumps.
            let Ok(entry) = seen else { return };
            pasts.of.entry(entry.dump.key()).or_default().push(Past::of(&entry));
            pasts.read.entry(entry.place).or_default().insert(entry.dump.stem);
        });
        pasts
    }

    /// The dumps of the guest that were there when all was read, in no order.
    pub fn known(&self, key: &GuestKey) -> &[Past] {
        self.of.get(key).map_or(&[], Vec::as_slice)
    }

    /// The same and those that `place`, where its dumps are put, holds now; to be called under the store's lock. What was
    /// removed meanwhile still counts: a start later than its own is later than those of all others as well.
    pub fn now(&self, store: &Store, place: &str, key: &GuestKey) -> anyhow::Result<Vec<Past>> {
        let read = self.read.get(place);
        let new = store.list_in(place, &|stem| read.is_none_or(|read| !read.contains(stem)))?;
        let new = new.iter().filter(|entry| entry.dump.key() == *key).map(Past::of);
        Ok(self.known(key).iter().cloned().chain(new).collect())
    }
}

/// The newest good one.
pub fn last(pasts: &[Past]) -> Option<&Past> {
    pasts.iter().filter(|past| past.good).max_by_key(|past| past.started)
}
