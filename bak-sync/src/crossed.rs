//! What dumps have cost so far that were begun and have not arrived, from the ledger: a note in their records.

use bak_common::ledger::{Attempt, Ledger};
use bak_common::name::DumpId;
use bak_common::record::Dump;
use serde_json::{Value, json};
use std::path::Path;

/// The key of the note in a record; in it, the destination's name.
const KEY: &str = "begun";

/// What all attempts at one dump have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    pub wire_out: u64,
    pub wire_in: u64,
    pub seconds: u64,
    pub passes: u64,
}

impl Crossed {
    /// By what the ledger has of it.
    pub fn of(attempts: &[Attempt], id: &DumpId) -> Self {
        let of_it = attempts.iter().filter(|attempt| attempt.dump.as_ref() == Some(id));
        of_it.fold(Self::default(), |sum, attempt| Self {
            wire_out: sum.wire_out.saturating_add(attempt.wire_out),
            wire_in: sum.wire_in.saturating_add(attempt.wire_in),
            seconds: sum.seconds.saturating_add(attempt.seconds),
            passes: sum.passes.saturating_add(1),
        })
    }

    /// As a record's note tells.
    pub fn noted(dump: &Dump, dest: &str) -> Option<Self> {
        let note = dump.extra.get(KEY)?.get(dest)?;
        let number = |key: &str| note.get(key).and_then(Value::as_u64);
        Some(Self {
            wire_out: number("wire_out")?,
            wire_in: number("wire_in")?,
            seconds: number("seconds")?,
            passes: number("passes")?,
        })
    }
}

/// Puts the note into the record of a dump that was begun before. The ledger is read only for such; what it can't tell is
/// left out.
pub fn note(dump: &mut Dump, dest: &str, ledger: &Path) {
    if dump.link.get(dest).and_then(|note| note.tries).is_none() {
        return;
    }
    let Ok(ledger) = Ledger::read(ledger, dest) else { return };
    let sum = Crossed::of(&ledger.attempts, &dump.id);
    if sum.passes > 0 {
        let note = json!({dest: {"wire_out": sum.wire_out, "wire_in": sum.wire_in, "seconds": sum.seconds, "passes": sum.passes}});
        dump.extra.insert(KEY.to_owned(), note);
    }
}
