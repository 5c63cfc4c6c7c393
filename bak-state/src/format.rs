//! How the database's files read. Pure.
//!
//! `vmtool-statedb` is a [`Table`]. `vmtool-details` has one JSON object a line, sorted by `vm`. The first decides which
//! guests exist: after a crash the second may know more, or less.
//!
//! A line that cannot be read is kept as damage: reading goes on without it, writing must not.

use anyhow::{Result, ensure};
use bak_common::name::printable;
use std::collections::btree_map::{BTreeMap, Entry};

use crate::status::Detail;

pub use crate::table::Table;

pub const STATEDB: &str = "vmtool-statedb";
pub const DETAILS: &str = "vmtool-details";
pub const VERSION: &str = "vmtool-db-version";
pub const LOCK: &str = "vmtool-dblock";

const DB_VERSION: &str = "1.0";

/// What a new database's version file says.
pub fn version_text() -> String {
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    format!("TOOL_VERSION: {major}.{minor}\nDB_VERSION: {DB_VERSION}\n")
}

/// Refuses every version of the database but the one that this program knows.
pub fn check_version(text: &str) -> Result<()> {
    let version = text.lines().find_map(|line| Some(line.strip_prefix("DB_VERSION:")?.trim()));
    let version = version.unwrap_or("no DB_VERSION");
    ensure!(version == DB_VERSION, "it says `{}`, and this program knows {DB_VERSION} only", printable(version));
    Ok(())
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: &'static str,
    pub line: usize,
    pub why: String,
}

/// What `vmtool-details` says, by guest.
#[derive(Debug, Default)]
pub struct Details {
    pub by_vm: BTreeMap<String, Detail>,
    pub damage: Vec<Damage>,
}

impl Details {
    pub fn parse(text: &[u8]) -> Self {
        Self::parse_some(text, |_| true)
    }

    /// Reads the lines of those guests only that are `wanted`.
    pub fn parse_some(text: &[u8], wanted: impl Fn(&str) -> bool) -> Self {
        let mut details = Self::default();
        let mut from = 0;
        for (at, end) in memchr::memchr_iter(b'\n', text).chain([text.len()]).enumerate() {
            let line = &text[from..end];
            from = end + 1;
            if line.is_empty() {
                continue;
            }
            if plain_name(line).is_some_and(|vm| !wanted(vm)) {
                continue;
            }
            let mut damaged = |why| details.damage.push(Damage { file: DETAILS, line: at + 1, why });
            match serde_json::from_slice::<Detail>(line) {
                Ok(detail) => {
                    let vm = detail.vm.as_str().to_owned();
                    if !wanted(&vm) {
                        continue;
                    }
                    match details.by_vm.entry(vm) {
                        Entry::Occupied(known) => damaged(format!("it describes {} once more", printable(known.key()))),
                        Entry::Vacant(free) => _ = free.insert(detail),
                    }
                }
                // Its own words end with a line number, which is always 1.
                Err(error) => damaged(error.to_string().split(" at line ").next().unwrap_or_default().to_owned()),
            }
        }
        details
    }

    pub fn get(&self, vm: &str) -> Option<&Detail> {
        self.by_vm.get(vm)
    }

    pub fn set(&mut self, detail: Detail) {
        self.by_vm.insert(detail.vm.as_str().to_owned(), detail);
    }

    /// The text of the file, of the guests that `table` has.
    pub fn to_text(&self, table: &Table) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(self.by_vm.len() * 200);
        for detail in self.by_vm.values().filter(|detail| table.get(detail.vm.as_str()).is_some()) {
            serde_json::to_writer(&mut text, detail)?;
            text.push(b'\n');
        }
        Ok(text)
    }
}

/// Finds what the details say of `vm` without reading all of them: `read` gives so many bytes from there on of the `len`
/// that there are. `None` if it is not found so: it may be missing, or the lines may be damaged or out of order.
pub fn find(len: u64, vm: &str, mut read: impl FnMut(u64, usize) -> Result<Vec<u8>>) -> Result<Option<Detail>> {
    // Lines that begin from `low` on and before `high` may be the one; the last of them ends at `end`.
    let (mut low, mut high, mut end) = (0, len, len);
    while high - low > WINDOW {
        let middle = low + (high - low) / 2;
        let bytes = read(middle, NAME_SPAN)?;
        let Some(newline) = memchr::memchr(b'\n', &bytes) else { return Ok(None) };
        let start = middle + newline as u64 + 1;
        if start >= high {
            (high, end) = (middle, start.min(end));
            continue;
        }
        match name_of(&bytes[newline + 1..]) {
            Some(name) if vm < name.as_str() => (high, end) = (start, start),
            Some(_) => low = start,
            None => return Ok(None),
        }
    }
    let Ok(span) = usize::try_from(end - low) else { return Ok(None) };
    let found = Details::parse_some(&read(low, span)?, |name| name == vm);
    Ok(found.by_vm.into_values().next().filter(|_| found.damage.is_empty()))
}

/// So few bytes are read at once.
const WINDOW: u64 = 32 << 10;
/// More than the rest of a line and the name in the next one, as a rule.
const NAME_SPAN: usize = 8 << 10;

/// The name that a line begins with; there may be more, or less, than the line.
fn name_of(line: &[u8]) -> Option<String> {
    let mut values = serde_json::Deserializer::from_slice(line.strip_prefix(br#"{"vm":"#)?).into_iter::<String>();
    values.next()?.ok()
}

/// The name that a line of the details begins with, where it needs no decoding.
fn plain_name(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(br#"{"vm":""#)?;
    let end = memchr::memchr2(b'"', b'\\', rest)?;
    let plain = rest.get(end) == Some(&b'"');
    std::str::from_utf8(rest.get(..end)?).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found_line_by_line() {
        let details = Details::parse(b"{\"vm\":\"a\"}\n{\"vm\":\"b\"\n{\"vm\":\"a\"}\n{}\n");
        let lines: Vec<usize> = details.damage.iter().map(|damage| damage.line).collect();
        assert_eq!(lines, [2, 3, 4]);
    }

    #[test]
    fn one_guest_is_found_among_many() {
        let mut details = Details::default();
        let mut table = Table::default();
        for at in 0..3000 {
            let vm = if at % 5 == 0 { format!("\"{at}\\ 東") } else { format!("vm {at}") };
            table.set(&vm, crate::status::Status::New);
            let text =
                format!("{{\"vm\":{},\"tags\":[\"{}\"]}}", serde_json::to_string(&vm).unwrap(), "x".repeat(at % 400));
            details.set(serde_json::from_str(&text).unwrap());
        }
        let text = details.to_text(&table).unwrap();
        let mut most = 0;
        let mut look = |vm: &str| {
            let mut sum = 0;
            let found = find(text.len() as u64, vm, |at, len| {
                let at = at as usize;
                sum += len;
                Ok(text[at..text.len().min(at + len)].to_vec())
            });
            most = most.max(sum);
            found.unwrap()
        };
        for (vm, detail) in &details.by_vm {
            assert_eq!(look(vm).as_ref(), Some(detail));
        }
        for vm in ["", "a", "vm", "vm 3000", "zz", "\"7\\ 東"] {
            assert_eq!(look(vm), None, "{vm}");
        }
        assert!(text.len() > 500_000 && most < 150_000, "{most} of {}", text.len());
    }

    #[test]
    fn versions() {
        assert!(check_version(&version_text()).is_ok());
        assert!(check_version("TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n").is_ok());
        for bad in ["", "DB_VERSION: 1.1\n", "TOOL_VERSION: 1.0\n", "DB_VERSION: 1.0x\n"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
