//! How the database's files read. Pure.
//!
//! `vmtool-statedb` has one `<vm>:<STATUS>` a line, split at the *last* colon. In names only `%` and ASCII control
//! characters are percent-encoded, so that ordinary names stay as they are, and only such codes are decoded, so that an
//! old database's `50%41` stays what it is. `vmtool-details` has one JSON object a line, sorted by `vm`. The first
//! decides which guests exist: after a crash the second may know more, or less.
//!
//! A line that cannot be read is kept as damage: reading goes on without it, writing must not.

use anyhow::{Result, ensure};
use bak_common::name::{GuestName, printable};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};

use crate::status::{Detail, Status};

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

/// What `vmtool-statedb` says, in its order.
#[derive(Debug, Default)]
pub struct Table<'a> {
    rows: Vec<(Cow<'a, str>, Option<Status>)>,
    index: HashMap<Cow<'a, str>, usize>,
    pub damage: Vec<Damage>,
    changed: bool,
}

impl<'a> Table<'a> {
    pub fn parse(text: &'a [u8]) -> Self {
        // About the length of a line; a wrong guess costs little.
        let mut table = Self { index: HashMap::with_capacity(text.len() / 24), ..Self::default() };
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let read = row(line).and_then(|(name, status)| {
                let known = table.index.insert(name.clone(), table.rows.len());
                ensure!(known.is_none(), "it names {} once more", printable(&name));
                Ok((name, Some(status)))
            });
            match read {
                Ok(row) => table.rows.push(row),
                Err(error) => table.damage.push(Damage { file: STATEDB, line: at + 1, why: format!("{error:#}") }),
            }
        }
        table
    }

    pub fn get(&self, vm: &str) -> Option<Status> {
        self.index.get(vm).and_then(|at| self.rows.get(*at)).and_then(|(_, status)| *status)
    }

    pub fn set(&mut self, vm: &str, status: Status) {
        match self.index.get(vm).and_then(|at| self.rows.get_mut(*at)) {
            Some((_, old)) => {
                self.changed |= *old != Some(status);
                *old = Some(status);
            }
            None => {
                let name: Cow<str> = Cow::Owned(vm.to_owned());
                self.index.insert(name.clone(), self.rows.len());
                self.rows.push((name, Some(status)));
                self.changed = true;
            }
        }
    }

    pub fn remove(&mut self, vm: &str) {
        if let Some((_, status)) = self.index.get(vm).and_then(|at| self.rows.get_mut(*at)) {
            self.changed |= status.is_some();
            *status = None;
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = (&str, Status)> {
        self.rows.iter().filter_map(|(name, status)| Some((name.as_ref(), (*status)?)))
    }

    /// The text of the file, if it is no longer what was read.
    pub fn to_text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.rows.len() * 32);
        for (name, status) in self.rows() {
            text.push_str(&encode(name));
            text.push(':');
            text.push_str(status.as_str());
            text.push('\n');
        }
        self.changed.then_some(text)
    }
}

fn row(line: &[u8]) -> Result<(Cow<'_, str>, Status)> {
    let Ok(line) = std::str::from_utf8(line) else { anyhow::bail!("it is not UTF-8") };
    let Some((name, status)) = line.rsplit_once(':') else { anyhow::bail!("it is not `<vm>:<STATUS>`") };
    let status = status.parse()?;
    let name = decode(name);
    // A byte takes three when it is encoded: shorter names need no closer look.
    if name.is_empty() || name.len() > bak_common::name::NAME_MAX / 3 || name.contains('\0') {
        GuestName::new(name.as_ref())?;
    }
    Ok((name, status))
}

fn coded(byte: u8) -> bool {
    byte == b'%' || byte.is_ascii_control()
}

fn encode(name: &str) -> Cow<'_, str> {
    if !name.bytes().any(coded) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        match u8::try_from(c) {
            Ok(byte) if coded(byte) => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).filter(|code| !code.contains(|c: char| !matches!(c, '0'..='9' | 'A'..='F')));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|byte| coded(*byte)) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[2..]);
            }
            None => {
                out.push('%');
                out.push_str(part);
            }
        }
    }
    Cow::Owned(out)
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
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
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

/// The name that a line of the details begins with, where it needs no decoding.
fn plain_name(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(br#"{"vm":""#)?;
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    let plain = rest.get(end) == Some(&b'"');
    std::str::from_utf8(rest.get(..end)?).ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_old_database_reads_as_it_is() {
        let text = b"vm1:RUNNING\nmy vm:CLEAN\na:b:NEW\n50%:ARCHIVED\n50%41:NEW\n";
        let table = Table::parse(text);
        assert_eq!(table.damage, []);
        let rows: Vec<_> = table.rows().map(|(name, status)| (name, status.as_str())).collect();
        let expected = [("vm1", "RUNNING"), ("my vm", "CLEAN"), ("a:b", "NEW"), ("50%", "ARCHIVED"), ("50%41", "NEW")];
        assert_eq!(rows, expected);
        assert_eq!(table.to_text(), None);
    }

    #[test]
    fn damage_is_found_line_by_line() {
        let text = b"a:NEW\nb\n\n:NEW\nc:FINE\n\xff:NEW\na:CLEAN\nd:CLEA";
        let table = Table::parse(text);
        let lines: Vec<usize> = table.damage.iter().map(|damage| damage.line).collect();
        assert_eq!(lines, [2, 4, 5, 6, 7, 8]);
        let details = Details::parse(b"{\"vm\":\"a\"}\n{\"vm\":\"b\"\n{\"vm\":\"a\"}\n{}\n");
        let lines: Vec<usize> = details.damage.iter().map(|damage| damage.line).collect();
        assert_eq!(lines, [2, 3, 4]);
    }

    #[test]
    fn versions() {
        assert!(check_version(&version_text()).is_ok());
        assert!(check_version("TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n").is_ok());
        for bad in ["", "DB_VERSION: 1.1\n", "TOOL_VERSION: 1.0\n", "DB_VERSION: 1.0x\n"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_name_survives(names in proptest::collection::hash_set("[^\0]{1,20}|(%|:|[0-9A-F]|\n){1,9}", 1..20)) {
            let mut table = Table::default();
            for (at, name) in names.iter().enumerate() {
                table.set(name, Status::ALL[at % 6]);
            }
            let text = table.to_text().unwrap();
            prop_assert_eq!(text.lines().count(), names.len());
            let again = Table::parse(text.as_bytes());
            prop_assert_eq!(&again.damage, &[]);
            for (at, name) in names.iter().enumerate() {
                prop_assert_eq!(again.get(name), Some(Status::ALL[at % 6]));
            }
        }
    }
}
