//! Rules 1, 2 and 7: which dump of a guest stands in the queue, and why every other does not.

use bak_common::calendar::Time;
use bak_common::name::DumpId;
use bak_common::units::show_duration;
use std::collections::HashMap;

use super::queue::Candidate;
use super::{Decision, Guest, Item, Local, Options, Pending, Sent, why};

/// Decides every dump of one guest but its candidate.
pub fn consider<'a>(guest: &'a Guest, options: &Options, items: &mut Vec<Item>) -> Option<Candidate<'a>> {
    let horizon = options.now.plus(options.skew_s);
    let pending: HashMap<&DumpId, &Pending> = guest.pending.iter().map(|dump| (&dump.id, dump)).collect();
    let sent: HashMap<&DumpId, &Sent> = guest.sent.iter().map(|dump| (&dump.id, dump)).collect();
    let mut local: Vec<&Local> = guest.local.iter().collect();
    // Two copies of one dump in one store are one dump; the good one counts.
    local.sort_by_key(|dump| (dump.started, &dump.id, dump.fault.is_some(), dump.cost, dump.size, dump.finished));
    local.dedup_by_key(|dump| &dump.id);
    let newest = local.iter().rev().find(|dump| dump.fault.is_none() && dump.started <= horizon).copied();
    let mut candidate = None;
    for dump in &local {
        let item = |decision, why: String| Item::new(&dump.id, decision, why);
        let decided = if let Some(there) = pending.get(&dump.id).filter(|there| there.fault.is_none()) {
            pending_item(guest, there)
        } else if let Some(why) = &dump.fault {
            item(Decision::NotGood, why.clone())
        } else if let Some(there) = sent.get(&dump.id) {
            item(Decision::Sent, format!("sent at {}", there.at))
        } else if !guest.sync {
            item(Decision::NotSynced, "this guest does not go to this destination (configuration or --list)".into())
        } else if dump.started > horizon {
            let ahead = show_duration(dump.started.since(options.now));
            item(Decision::Future, format!("dated {ahead} in the future: was a clock wrong?"))
        } else if let Some(newer) = newest.filter(|newer| newer.id != dump.id) {
            item(Decision::Superseded, format!("superseded by {}", newer.id))
        } else {
            match candidacy(guest, dump, pending.get(&dump.id).copied(), horizon, options.force) {
                Ok(found) => {
                    candidate = Some(found);
                    continue;
                }
                Err(item) => *item,
            }
        };
        items.push(decided);
    }
    for dump in guest.pending.iter().filter(|dump| !local.iter().any(|here| here.id == dump.id)) {
        items.push(match &dump.fault {
            None => pending_item(guest, dump),
            Some(why) => Item::new(&dump.id, Decision::NotGood, format!("in the outbox, {why}")),
        });
    }
    candidate
}

/// The newest good dump of a guest in the outbox.
fn on_its_way(guest: &Guest) -> Option<&Pending> {
    guest.pending.iter().filter(|there| there.fault.is_none()).max_by_key(|there| (there.started, &there.id))
}

/// The dump whose place `dump`, which waits too, should have lost: a crash between linking the newer and dropping the
/// older leaves both.
pub fn left_over<'a>(guest: &'a Guest, dump: &Pending) -> Option<&'a Pending> {
    on_its_way(guest).filter(|newer| newer.counts() && newer.id != dump.id && dump.fault.is_none() && !dump.begun())
}

fn pending_item(guest: &Guest, dump: &Pending) -> Item {
    let item = match left_over(guest, dump) {
        Some(newer) => replaced(&dump.id, &newer.id),
        None => Item::new(&dump.id, Decision::Pending, why::pending(dump)),
    };
    Item { cost: Some(dump.cost), size: Some(dump.size), ..item }
}

/// What leaves the outbox.
pub fn replaced(id: &DumpId, newer: &DumpId) -> Item {
    let why = format!("replaced by {newer} before anything of it was sent");
    Item { replaced_by: Some(newer.clone()), ..Item::new(id, Decision::Replaced, why) }
}

/// Whether the newest good dump of a guest, neither pending nor sent, stands in the queue; else why not.
fn candidacy<'a>(
    guest: &'a Guest,
    dump: &'a Local,
    broken: Option<&Pending>,
    horizon: Time,
    force: bool,
) -> Result<Candidate<'a>, Box<Item>> {
    if let Some(broken) = broken {
        // Linked anew it would have to replace what lies there, and nothing is ever overwritten.
        let fault = broken.fault.as_deref().unwrap_or_default();
        let why = format!("its copy in the outbox is not good ({fault}): remove that one to have it linked again");
        return Err(Box::new(Item { stuck: true, ..Item::new(&dump.id, Decision::NotGood, why) }));
    }
    let replaces = on_its_way(guest);
    if let Some(there) = replaces.filter(|there| there.begun() || there.started >= dump.started) {
        return Err(Box::new(if there.started < dump.started {
            let why = format!("waits until {}, of which something was sent, has arrived", there.id);
            Item::new(&dump.id, Decision::Pending, why)
        } else {
            Item::new(&dump.id, Decision::Superseded, format!("superseded by {}, which is pending", there.id))
        }));
    }
    // A sent dump dated in the future would make every later one look old for years.
    let last = guest.sent.iter().filter(|sent| sent.started <= horizon).max_by_key(|sent| (sent.started, &sent.id));
    if let Some(last) = last.filter(|last| last.started >= dump.started) {
        let why = format!("superseded by {}, which was sent", last.id);
        return Err(Box::new(Item::new(&dump.id, Decision::Superseded, why)));
    }
    let staleness = |dump: &Local| last.map(|last| dump.started.since(last.started));
    let is_due = |dump: &Local| staleness(dump).is_none_or(|s| u64::try_from(s).unwrap_or(0) > guest.stale_after_s);
    let stale = staleness(dump);
    if !is_due(dump) && !force {
        let item = Item::new(&dump.id, Decision::NotDue, why::not_due(stale, guest.stale_after_s));
        return Err(Box::new(Item { staleness_s: stale, cost: Some(dump.cost), size: Some(dump.size), ..item }));
    }
    let good = || guest.local.iter().filter(|dump| dump.fault.is_none() && dump.started <= horizon);
    let due_since = good().filter(|dump| is_due(dump)).map(|dump| dump.finished).min();
    let known = good().map(|dump| dump.started).chain(guest.sent.iter().map(|sent| sent.started)).min();
    Ok(Candidate {
        guest,
        dump,
        replaces,
        staleness: stale,
        due: is_due(dump),
        sent_at: last.map(|last| last.at),
        due_since: due_since.unwrap_or(dump.finished),
        known_since: known.unwrap_or(dump.started),
        aged: None,
    })
}
