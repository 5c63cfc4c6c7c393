//! Compares a dump's files with its record: sizes, then SHA-256.

use anyhow::{Context, Result};
use bak_common::hash::hash;
use bak_common::store::{Entry, Store};

use crate::driver::Progress;

/// What the comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// Every file is as it was when the dump was made. These have no SHA-256 in the record, so only their sizes tell.
    Same { unhashed: Vec<String> },
    /// A file is not what it was: why.
    Differs(String),
}

/// Compares every file; with `content` all of it, else its size. An error says what could not be read, which proves
/// nothing.
pub fn compare(store: &Store, entry: &Entry, content: bool, tick: &dyn Fn(Progress) -> Result<()>) -> Result<Compared> {
    let mut done = 0;
    let mut unhashed = Vec::new();
    for file in &entry.dump.files {
        let input = store.open_file(entry, &file.name)?;
        let size = input.metadata().with_context(|| format!("cannot look at {}", file.name))?.len();
        if size != file.bytes {
            return Ok(Compared::Differs(format!("{} has {size} bytes instead of {}", file.name, file.bytes)));
        }
        let Some(expected) = file.sha256.as_ref().filter(|_| content) else {
            unhashed.push(file.name.clone());
            continue;
        };
        let all = entry.dump.bytes.max(1) as f64;
        let mut each = |bytes| {
            done += bytes;
            tick(Progress { done: done as f64 / all })
        };
        let (_, found) = hash(&input, &mut each).with_context(|| format!("cannot read {}", file.name))?;
        if found != *expected {
            let why = format!("{} is damaged: its SHA-256 is {found} instead of {expected}", file.name);
            return Ok(Compared::Differs(why));
        }
    }
    Ok(Compared::Same { unhashed })
}
