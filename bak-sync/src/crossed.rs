//! What dumps have cost so far that were begun and have not arrived, from the ledger: a note in their records.

use bak_common::ledger::Ledger;
use bak_common::name::DumpId;
use bak_common::record::Dump;
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::PathBuf;

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

/// What the ledger of a destination tells of all dumps; it is read when it is first asked, and what it can't tell is left
/// out.
#[derive(Debug)]
pub struct Known {
    ledger: PathBuf,
    dest: String,
    sums: OnceCell<HashMap<DumpId, Crossed>>,
}

impl Known {
    pub fn new(ledger: PathBuf, dest: &str) -> Self {
        Self { ledger, dest: dest.to_owned(), sums: OnceCell::new() }
    }

    fn sums(&self) -> &HashMap<DumpId, Crossed> {
        self.sums.get_or_init(|| {
            let mut sums: HashMap<DumpId, Crossed> = HashMap::new();
            for attempt in Ledger::read(&self.ledger, &self.dest).unwrap_or_default().attempts {
                let Some(id) = attempt.dump else { continue };
                let sum = sums.entry(id).or_default();
                sum.wire_out = sum.wire_out.saturating_add(attempt.wire_out);
                sum.wire_in = sum.wire_in.saturating_add(attempt.wire_in);
                sum.seconds = sum.seconds.saturating_add(attempt.seconds);
                sum.passes = sum.passes.saturating_add(1);
            }
            sums
        })
    }

    /// Puts the note into the record of a dump that was begun before.
    pub fn note(&self, dump: &mut Dump) {
        if dump.link.get(&self.dest).and_then(|note| note.tries).is_none() {
            return;
        }
        if let Some(sum) = self.sums().get(&dump.id) {
            let Crossed { wire_out, wire_in, seconds, passes } = sum;
            let note = json!({"wire_out": wire_out, "wire_in": wire_in, "seconds": seconds, "passes": passes});
            dump.extra.insert(KEY.to_owned(), json!({&self.dest: note}));
        }
    }
}
