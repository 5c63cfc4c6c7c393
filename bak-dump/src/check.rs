//! Compares a dump's files with its record: sizes, then SHA-256.

use anyhow::{Context, Result};
use bak_common::store::{Entry, Store};
use sha2::{Digest, Sha256};
use std::io::Read;

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
        let (_, found) = hash(input, &|now| tick(Progress { done: (done + now) as f64 / all }))
            .with_context(|| format!("cannot read {}", file.name))?;
        done += size;
        if found != *expected {
            let why = format!("{} is damaged: its SHA-256 is {found} instead of {expected}", file.name);
            return Ok(Compared::Differs(why));
        }
    }
    Ok(Compared::Same { unhashed })
}

/// Reads to the end: bytes, and SHA-256 in hexadecimal. `tick` is told how many were read so far; its error ends the work.
pub fn hash(mut input: impl Read, tick: &dyn Fn(u64) -> Result<()>) -> Result<(u64, String)> {
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        bytes += count as u64;
        tick(bytes)?;
    }
    Ok((bytes, hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
