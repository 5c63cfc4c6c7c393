//! `--free`: how much is free, what other hard links hold, and what that leaves to be wanted of [`crate::free`].

use anyhow::{Result, anyhow};
use bak_common::args::Session;
use bak_common::name::DumpId;
use bak_common::store::Store;
use bak_common::units::{show_size, total};
use std::collections::BTreeMap;
use std::fs;

use crate::free::{Space, free};
use crate::look::View;
use crate::offsite::outbox;
use crate::plan::{Decision, Item, Terms};
use crate::request::{At, Place};

/// Has more go until `target` bytes will be free, and says so if that cannot be.
pub fn make_room(
    session: &Session,
    place: &Place,
    view: &View,
    items: &mut [Item],
    target: u64,
    terms: &Terms,
) -> Result<()> {
    let frees = |at: usize| view.looks[at].frees;
    let going = total(items.iter().filter(|item| item.decision == Decision::Remove).map(|item| frees(item.at)));
    // The command line has refused others.
    let At::Here(store) = &place.at else { return Ok(()) };
    let wanted = target.saturating_sub(store.free()?.saturating_add(going));
    let keep = |at: usize| (terms.keep)(at);
    let space = Space {
        now: session.now,
        zone: session.zone,
        wanted,
        frees: &frees,
        stays: &|at| (terms.unsent)(at),
        keep: &keep,
    };
    let missing = free(&view.candidates(), items, &space);
    if missing > 0 {
        let held = held(session, store, view, items);
        let text =
            format!("{} less than {} can be freed: the rest must stay{held}", show_size(missing), show_size(target));
        session.report.fail(&place.name(), &anyhow!(text));
    }
    Ok(())
}

/// What is said of blocks that removing dumps here does not free.
fn held(session: &Session, store: &Store, view: &View, items: &[Item]) -> String {
    let linked = || items.iter().filter(|item| view.looks[item.at].linked > 0 && !item.last);
    let sum = total(linked().map(|item| view.looks[item.at].linked));
    if sum == 0 {
        return String::new();
    }
    let waiting = waiting(session, store);
    let mut boxes: BTreeMap<&str, u64> = BTreeMap::new();
    for item in linked() {
        let id = &view.entries[item.at].dump.id;
        let name = waiting.get(id).map_or("other hard links", String::as_str);
        *boxes.entry(name).or_default() += view.looks[item.at].linked;
    }
    let boxes: Vec<String> =
        boxes.iter().map(|(name, bytes)| format!("{} held by {name}", show_size(*bytes))).collect();
    format!(", and {}", boxes.join(", "))
}

/// What waits in the outboxes of this store, with the name of each.
fn waiting(session: &Session, store: &Store) -> BTreeMap<DumpId, String> {
    let known = session.config.dest.iter().map(|dest| outbox(&session.config, Some(store.path()), &dest.name));
    let beside = fs::read_dir(store.path()).into_iter().flatten().flatten();
    let beside = beside.filter(|entry| entry.file_name().to_string_lossy().starts_with(".outbox-"));
    let mut waiting = BTreeMap::new();
    for path in known.chain(beside.map(|entry| entry.path())) {
        // One that is not there, or cannot be read, holds nothing that could be named.
        let Ok(store) = Store::open(&path) else { continue };
        for entry in store.list().dumps {
            waiting.insert(entry.dump.id, format!("the outbox {}", path.display()));
        }
    }
    waiting
}
