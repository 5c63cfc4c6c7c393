//! What a plan is made from, gathered from what lies on disk: the store, the outbox, the history of what was sent. Pure.

use bak_common::config::Effective;
use bak_common::name::DumpId;
use bak_common::record::{Dump, GuestKey};
use bak_common::store::{Entry, Listing};
use std::collections::{HashMap, HashSet};

use crate::cost::{self, Carried, Expected, Past};
use crate::plan::{Guest, Local, Pending, Sent};

/// What a dump's cost is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    History,
    Size,
}

/// What is done with each dump of the store.
pub type Each<'e> = dyn FnMut(&Entry) + 'e;

/// What is known of one destination.
pub struct Sources<'a> {
    pub dest: &'a str,
    /// Hands over the dumps of the store one by one, in any order: nobody can keep them all.
    pub store: &'a dyn Fn(&mut Each),
    pub outbox: &'a Listing,
    pub history: &'a [Dump],
    /// What the configuration says for the guest of a dump.
    pub effective: &'a dyn Fn(&Dump) -> Effective,
    pub selected: &'a dyn Fn(&Dump) -> bool,
    /// Whether the guest of a dump goes to this destination.
    pub syncs: &'a dyn Fn(&Dump, &Effective) -> bool,
    pub judge: Judge,
    /// Bytes that the ledger counted for a dump so far.
    pub spent: &'a HashMap<DumpId, u64>,
}

/// What was sent, by guest.
pub fn pasts(sources: &Sources) -> HashMap<GuestKey, Past> {
    let mut carried: HashMap<GuestKey, Vec<Carried>> = HashMap::new();
    for dump in sources.history.iter().filter(|_| sources.judge == Judge::History) {
        let counted = dump.sent.get(sources.dest).filter(|note| note.passes > 0);
        let wire = counted.map_or(0, |note| note.wire_out.saturating_add(note.wire_in));
        let (started, size, format) = (dump.started, dump.bytes, cost::format(dump));
        carried.entry(dump.key()).or_default().push(Carried { started, size, wire, format });
    }
    carried.into_iter().map(|(key, carried)| (key, Past::new(carried))).collect()
}

fn expect(sources: &Sources, past: Option<&Past>, dump: &Dump) -> Expected {
    match sources.judge {
        Judge::Size => Expected { bytes: dump.bytes, ..Expected::default() },
        Judge::History => past.unwrap_or(&Past::default()).expect(&cost::format(dump), dump.started, dump.bytes),
    }
}

/// All guests that have a dump anywhere.
#[derive(Default)]
struct Guests {
    guests: Vec<Guest>,
    /// The dump that speaks for each guest.
    speakers: Vec<Dump>,
    index: HashMap<GuestKey, usize>,
}

impl Guests {
    fn of(&mut self, dump: &Dump) -> &mut Guest {
        let key = dump.key();
        let at = *self.index.entry(key.clone()).or_insert_with(|| {
            let (local, pending, sent) = (Vec::new(), Vec::new(), Vec::new());
            self.guests.push(Guest { key, priority: 0, stale_after_s: 0, sync: false, local, pending, sent });
            self.speakers.push(dump.clone());
            self.guests.len() - 1
        });
        &mut self.guests[at]
    }

    /// Lets `dump` speak for its guest, if it is the newest so far.
    fn speak(&mut self, dump: &Dump) {
        if let Some(at) = self.index.get(&dump.key()) {
            let speaker = &mut self.speakers[*at];
            if (speaker.started, &speaker.id) < (dump.started, &dump.id) {
                speaker.clone_from(dump);
            }
        }
    }
}

/// Gathers the guests. The newest dump in the store, else the newest of all, says what a guest is called and tagged.
pub fn gather(sources: &Sources) -> Vec<Guest> {
    let mut guests = Guests::default();
    let pasts = pasts(sources);
    (sources.store)(&mut |entry| {
        let (dump, fault) = (&entry.dump, entry.fault.clone());
        let (id, started, finished, size) = (dump.id.clone(), dump.started, dump.finished, dump.bytes);
        let selected = (sources.selected)(dump);
        let Expected { bytes: cost, source } = expect(sources, pasts.get(&dump.key()), dump);
        guests.of(dump).local.push(Local { id, started, finished, size, cost, source, fault, selected });
        guests.speak(dump);
    });
    let known_locally = guests.guests.len();
    // What arrived and was not cleared away yet is sent, not pending; and a dump that lies there twice is pending once.
    let mut done: HashSet<_> = sources.history.iter().map(|dump| &dump.id).collect();
    let broken = sources.outbox.dumps.iter().filter(|entry| !entry.is_good());
    for entry in sources.outbox.good().chain(broken).filter(|entry| done.insert(&entry.dump.id)) {
        let note = entry.dump.link.get(sources.dest);
        let (size, expected) = (entry.dump.bytes, note.and_then(|note| note.cost).unwrap_or(entry.dump.bytes));
        let spent = sources.spent.get(&entry.dump.id).copied().unwrap_or(0);
        let pending = Pending {
            id: entry.dump.id.clone(),
            started: entry.dump.started,
            size,
            expected,
            cost: if spent > 0 { cost::still(expected, spent, size) } else { expected },
            since: note.map_or(entry.dump.finished, |note| note.at),
            rank: note.and_then(|note| note.rank),
            tries: note.and_then(|note| note.tries).unwrap_or(0),
            error: note.and_then(|note| note.error.clone()),
            fault: entry.fault.clone(),
        };
        guests.of(&entry.dump).pending.push(pending);
        // Asked for the selection too, so that a name which only stands here is not a typing error.
        (sources.selected)(&entry.dump);
    }
    for dump in sources.history {
        let at = dump.sent.get(sources.dest).map_or(dump.finished, |note| note.at);
        guests.of(dump).sent.push(Sent { id: dump.id.clone(), started: dump.started, at });
        if guests.index.get(&dump.key()).is_some_and(|at| *at >= known_locally) {
            guests.speak(dump);
        }
    }
    for (guest, speaker) in guests.guests.iter_mut().zip(&guests.speakers) {
        let effective = (sources.effective)(speaker);
        guest.priority = effective.priority;
        guest.stale_after_s = effective.stale_after_s;
        // Of a guest without dumps nothing can go; nor does it answer to its name in a list any more.
        guest.sync = !guest.local.is_empty() && (sources.syncs)(speaker, &effective);
    }
    guests.guests
}
