//! What stores and outboxes say of guests, for `observe` and `check`.

use anyhow::Result;
use bak_common::args::{Destination, Places, Session};
use bak_common::calendar::{SKEW_S, Time};
use bak_common::outbox::{History, Outbox};
use bak_common::record::{Dump, GuestKey};
use bak_common::store::{Listing, Store};
use std::collections::HashMap;

/// Starts of dumps, by guest.
pub type Starts = HashMap<GuestKey, Vec<Time>>;

pub fn starts<'a>(dumps: impl Iterator<Item = &'a Dump>) -> Starts {
    let mut starts = Starts::new();
    for dump in dumps {
        starts.entry(dump.key()).or_default().push(dump.started);
    }
    starts
}

/// The store, if one is named.
pub fn store(session: &Session, places: &Places) -> Result<Option<Store>> {
    places.store.as_ref().or(session.config.store.as_ref()).map(|path| Store::open(path)).transpose()
}

/// The destinations, if any are named.
pub fn destinations(session: &Session, places: &Places) -> Result<Vec<Destination>> {
    let config = &session.config;
    let named = !config.dest.is_empty() || !places.dest.is_empty() || places.outbox.is_some();
    if named { places.destinations(config, &[]) } else { Ok(Vec::new()) }
}

/// Its outbox; `None` before anything was put there.
pub fn outbox(dest: &Destination) -> Result<Option<Outbox>> {
    if !dest.outbox.exists() {
        return Ok(None);
    }
    Outbox::open(&dest.outbox, &dest.name, dest.ledger.as_deref()).map(Some)
}

/// What `observe` knows beside the guests' own records.
#[derive(Default)]
pub struct Evidence {
    store: Option<Store>,
    dumps: Option<Starts>,
    /// By destination.
    sent: Vec<(String, Starts)>,
}

impl Evidence {
    /// What cannot be read is reported.
    pub fn gather(session: &Session, places: &Places) -> Result<Self> {
        let mut evidence = Self { store: store(session, places)?, dumps: None, sent: Vec::new() };
        for dest in destinations(session, places)? {
            let history = outbox(&dest)?.map_or(Ok(History::default()), |outbox| outbox.history())?;
            for bad in history.unreadable {
                session.report.fail(&format!("{}: sent/{}", dest.name, bad.path()), &bad.error);
            }
            evidence.sent.push((dest.name, starts(history.dumps.iter())));
        }
        if let Some(store) = &evidence.store {
            let listing = store.list();
            listing.report(store, &session.report);
            evidence.found(&listing);
        }
        Ok(evidence)
    }

    /// Lists the store once more.
    pub fn look_again(&mut self) {
        if let Some(listing) = self.store.as_ref().map(Store::list) {
            self.found(&listing);
        }
    }

    fn found(&mut self, listing: &Listing) {
        self.dumps = Some(starts(listing.good().map(|entry| &entry.dump)));
    }

    /// Starts of its good dumps; `None` if no store was looked at.
    pub fn local(&self, key: &GuestKey) -> Option<&[Time]> {
        self.dumps.as_ref().map(|dumps| dumps.get(key).map_or(&[][..], Vec::as_slice))
    }

    /// Start of its newest dump that was sent anywhere.
    pub fn last_sent(&self, key: &GuestKey) -> Option<Time> {
        self.sent.iter().filter_map(|(_, starts)| starts.get(key)?.iter().max().copied()).max()
    }

    /// What is known of its way off-site: starts of its good local dumps, and the newest that is at each destination for
    /// which `goes` holds. `None` without a store or without such a destination.
    pub fn backlog(&self, key: &GuestKey, now: Time, goes: impl Fn(&str) -> bool) -> Option<(Vec<Time>, Option<Time>)> {
        // What is dated in the future proves nothing.
        let past = |start: &&Time| **start <= now.plus(SKEW_S);
        let local = self.local(key)?.iter().filter(past).copied().collect();
        let newest = |starts: &Starts| starts.get(key).and_then(|starts| starts.iter().filter(past).max().copied());
        let sent = self.sent.iter().filter(|(dest, _)| goes(dest)).map(|(_, starts)| newest(starts)).min()?;
        Some((local, sent))
    }
}
