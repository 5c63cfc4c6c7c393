//! What a pass did, for people.

use bak_common::args::{Destination, Session};
use bak_common::name::printable;
use bak_common::record::Dump;
use bak_common::table::{width, with_prose};
use bak_common::units::{show_duration, show_size};

use crate::crossed::Crossed;

/// One dump of a table.
#[derive(Debug)]
pub struct Row {
    dest: String,
    guest: String,
    started: String,
    size: String,
    /// What crossed the line for it, out and in, and how long that took.
    wire: [String; 3],
    state: String,
}

impl Row {
    pub fn of(session: &Session, dest: &Destination, dump: &Dump) -> Self {
        let begun = Crossed::noted(dump, &dest.name);
        let sent = dump.sent.get(&dest.name).map(|note| (note.wire_out, note.wire_in, note.seconds));
        let wire = sent.or(begun.map(|begun| (begun.wire_out, begun.wire_in, begun.seconds)));
        let wire = wire.map(|(out, into, seconds)| {
            [show_size(out), show_size(into), show_duration(i64::try_from(seconds).unwrap_or(i64::MAX))]
        });
        Self {
            dest: dest.name.clone(),
            guest: printable(dump.vm.as_str()),
            started: session.zone.minute(dump.started),
            size: show_size(dump.bytes),
            wire: wire.unwrap_or_default(),
            state: state(dest, dump),
        }
    }
}

fn state(dest: &Destination, dump: &Dump) -> String {
    let settled = dump.extra.get("reconcile").and_then(|note| note.get(&dest.name));
    let word = |key: &str| settled.and_then(|note| note.get(key)?.as_str()).unwrap_or_default();
    match (dump.sent.get(&dest.name), dump.link.get(&dest.name)) {
        _ if settled.is_some() => format!("{}: {}", word("decision"), word("why")),
        (Some(_), _) => "sent".to_owned(),
        (None, _) if dump.skipped.is_some() => {
            dump.skipped.as_ref().map_or_else(String::new, |skipped| skipped.why.clone())
        }
        (None, Some(note)) => {
            let begun = Crossed::noted(dump, &dest.name).is_some();
            let pending = if begun { "pending, begun" } else { "pending" };
            note.error.as_ref().map_or_else(|| pending.to_owned(), |error| format!("{pending}; last: {error}"))
        }
        (None, None) => String::new(),
    }
}

/// A table of these, with as many columns as have room beside what is said of each.
pub fn table(rows: &[Row]) -> String {
    const READABLE: usize = 24;
    let wide = |cell: &dyn Fn(&Row) -> &str, least: usize| {
        rows.iter().map(|row| cell(row).chars().count()).fold(least, usize::max) + 2
    };
    let dests = rows.windows(2).any(|pair| pair[0].dest != pair[1].dest);
    let base = wide(&|row| &row.guest, 5)
        + wide(&|row| &row.started, 7)
        + wide(&|row| &row.size, 4)
        + if dests { wide(&|row| &row.dest, 4) } else { 0 };
    let out = wide(&|row| &row.wire[0], 3);
    let others = wide(&|row| &row.wire[1], 2) + wide(&|row| &row.wire[2], 4);
    let room = width().unwrap_or(usize::MAX).saturating_sub(READABLE);
    // In, and the time, go first; then what went out.
    let wires = if base + out + others <= room { 3 } else { usize::from(base + out <= room) };
    let mut headings = vec!["guest", "started", "size", "out", "in", "time"];
    headings.truncate(3 + wires);
    headings.push("state");
    if dests {
        headings.insert(0, "dest");
    }
    let first = usize::from(dests);
    let right: Vec<usize> = (2..3 + wires).map(|column| first + column).collect();
    let cells = rows.iter().map(|row| {
        let mut cells = vec![row.guest.clone(), row.started.clone(), row.size.clone()];
        cells.extend(row.wire.iter().take(wires).cloned());
        cells.push(row.state.clone());
        if dests {
            cells.insert(0, row.dest.clone());
        }
        cells
    });
    with_prose(&headings, &right, cells)
}
