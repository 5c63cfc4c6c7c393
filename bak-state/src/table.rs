//! What `vmtool-statedb` says: one `<vm>:<STATUS>` a line. Pure.
//!
//! A line is split at its *last* colon. In names only `%` and ASCII control characters are percent-encoded, so that
//! ordinary names stay as they are, and only such codes are decoded, so that an old database's `50%41` stays what it is.
//!
//! With 100,000 guests and one to be set, reading the lines is the work. So they stay in the text that was read; where
//! they are in the order of their bytes, as all that bak-state begins are, guests are found by halving and no name can be
//! there twice. An old database in another order keeps it, and has an index.

use anyhow::{Context, Result, anyhow};
use bak_common::name::{GuestName, NAME_MAX, printable};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::format::{Damage, STATEDB};
use crate::status::Status;

/// What `vmtool-statedb` says, in its order.
#[derive(Debug, Default)]
pub struct Table<'a> {
    /// What was read, but for lines that are no text.
    text: Cow<'a, str>,
    rows: Vec<Row>,
    /// Where a guest is in `rows`, by its name; absent where they are in order.
    index: Option<HashMap<String, usize>>,
    /// Where a guest was found last: those who ask for many ask in order, as a rule.
    last: Cell<usize>,
    /// Guests that the text does not have, by their encoded name.
    added: BTreeMap<String, Status>,
    pub damage: Vec<Damage>,
    changed: bool,
}

/// A line of the text. Small, as there are many.
#[derive(Clone, Copy, Debug)]
struct Row {
    start: u32,
    /// The length of the name as it is written.
    name: u16,
    /// Absent once it was removed.
    status: Option<Status>,
    /// Whether the line still says so.
    written: bool,
}

impl Row {
    fn name<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start as usize..self.start as usize + usize::from(self.name)).unwrap_or_default()
    }
}

impl<'a> Table<'a> {
    pub fn parse(text: &'a [u8]) -> Self {
        let mut table = Self::default();
        let text = table.text_of(text);
        // About the length of a line; a wrong guess costs little.
        table.rows.reserve(text.len() / 24);
        // Names without a code are what they stand for.
        let mut ordered = !text.contains('%');
        let (mut start, mut last) = (0, "");
        for (line, end) in memchr::memchr_iter(b'\n', text.as_bytes()).chain([text.len()]).enumerate() {
            match text.get(start..end).filter(|line| !line.is_empty()).map(|line| row(line, start)) {
                None => {}
                Some(Ok(row)) => {
                    let name = row.name(&text);
                    ordered = ordered && last < name;
                    last = name;
                    table.rows.push(row);
                }
                Some(Err(error)) => table.damaged(line, format!("{error:#}")),
            }
            start = end + 1;
        }
        table.text = text;
        if !ordered {
            table.index();
        }
        table.damage.sort_by_key(|damage| damage.line);
        table
    }

    fn damaged(&mut self, line: usize, why: String) {
        self.damage.push(Damage { file: STATEDB, line: line + 1, why });
    }

    /// The text; lines that are none are damage, and empty in it.
    fn text_of(&mut self, bytes: &'a [u8]) -> Cow<'a, str> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Cow::Borrowed(text);
        }
        let mut text = String::with_capacity(bytes.len());
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            match std::str::from_utf8(line) {
                Ok(line) => text.push_str(line),
                Err(_) => self.damaged(at, "it is not UTF-8".to_owned()),
            }
            text.push('\n');
        }
        Cow::Owned(text)
    }

    /// Gives the rows an index, and takes out those that name a guest once more.
    fn index(&mut self) {
        let mut index = HashMap::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            match index.entry(decode(row.name(&self.text)).into_owned()) {
                Entry::Vacant(free) => {
                    free.insert(self.rows.len());
                    self.rows.push(row);
                }
                Entry::Occupied(known) => {
                    let line = memchr::memchr_iter(b'\n', &self.text.as_bytes()[..row.start as usize]).count();
                    self.damaged(line, format!("it names {} once more", printable(known.key())));
                }
            }
        }
        self.index = Some(index);
    }

    fn find(&self, vm: &str) -> Option<usize> {
        let last = self.last.get();
        let near = [last, last + 1]
            .into_iter()
            .find(|at| self.index.is_none() && self.rows.get(*at).is_some_and(|row| row.name(&self.text) == vm));
        let found = match &self.index {
            _ if near.is_some() => near,
            Some(index) => index.get(vm).copied(),
            None => self.rows.binary_search_by(|row| row.name(&self.text).cmp(vm)).ok(),
        };
        self.last.set(found.unwrap_or(last));
        found
    }

    pub fn get(&self, vm: &str) -> Option<Status> {
        match self.find(vm) {
            Some(at) => self.rows.get(at)?.status,
            None if self.added.is_empty() => None,
            None => self.added.get(encode(vm).as_ref()).copied(),
        }
    }

    #[cfg(test)]
    fn to_text(&self) -> Option<String> {
        self.to_pieces().map(|pieces| pieces.concat())
    }

    pub fn set(&mut self, vm: &str, status: Status) {
        let old = match self.find(vm).and_then(|at| self.rows.get_mut(at)) {
            Some(row) => {
                row.written &= row.status == Some(status);
                row.status.replace(status)
            }
            None => self.added.insert(encode(vm).into_owned(), status),
        };
        self.changed |= old != Some(status);
    }

    pub fn remove(&mut self, vm: &str) {
        let old = match self.find(vm).and_then(|at| self.rows.get_mut(at)) {
            Some(row) => row.status.take(),
            None => self.added.remove(encode(vm).as_ref()),
        };
        self.changed |= old.is_some();
    }

    /// Whether nothing was read.
    pub fn was_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Gives up the lines that could not be read: the text is to be written without them.
    pub fn mend(&mut self) -> Vec<Damage> {
        self.changed |= !self.damage.is_empty();
        std::mem::take(&mut self.damage)
    }

    /// All guests, in the order in which they are written.
    pub fn rows(&self) -> impl Iterator<Item = (Cow<'_, str>, Status)> {
        self.merged().filter_map(|line| match line {
            Line::Old(row) => Some((decode(row.name(&self.text)), row.status?)),
            Line::New(name, status) => Some((decode(name), status)),
        })
    }

    /// The lines: new ones in their places where there is an order, else last.
    fn merged(&self) -> impl Iterator<Item = Line<'_>> {
        let mut old = self.rows.iter().peekable();
        let mut added = self.added.iter().peekable();
        let ordered = self.index.is_none();
        std::iter::from_fn(move || {
            let new_first = match (old.peek(), added.peek()) {
                (Some(row), Some((name, _))) => ordered && name.as_str() < row.name(&self.text),
                (old, _) => old.is_none(),
            };
            if new_first {
                added.next().map(|(name, status)| Line::New(name, *status))
            } else {
                old.next().map(Line::Old)
            }
        })
    }

    /// The text of the file in pieces, if it is no longer what was read. Many lines that stay are one piece, not copied.
    pub fn to_pieces(&self) -> Option<Vec<Cow<'_, str>>> {
        if !self.changed {
            return None;
        }
        let mut pieces = Vec::new();
        // Lines that stay as they are and follow each other.
        let mut span = 0..0;
        for line in self.merged() {
            let (name, status) = match line {
                Line::Old(row) if row.written && row.status.is_some() => {
                    let start = row.start as usize;
                    if span.end != start {
                        keep(&mut pieces, self.text.get(span).unwrap_or_default());
                        span = start..start;
                    }
                    // With its colon, status and newline.
                    span.end = start + usize::from(row.name) + 2 + row.status.map_or(0, |status| status.as_str().len());
                    continue;
                }
                Line::Old(row) => (row.name(&self.text), row.status),
                Line::New(name, status) => (name, Some(status)),
            };
            keep(&mut pieces, self.text.get(std::mem::take(&mut span)).unwrap_or_default());
            if let Some(status) = status {
                for part in [name, ":", status.as_str(), "\n"] {
                    keep(&mut pieces, part);
                }
            }
        }
        // The last line that was read may lack its newline.
        let end = span.end.min(self.text.len());
        keep(&mut pieces, self.text.get(span.start..end).unwrap_or_default());
        if end < span.end {
            keep(&mut pieces, "\n");
        }
        Some(pieces)
    }
}

/// Adds lines as they are.
fn keep<'a>(pieces: &mut Vec<Cow<'a, str>>, text: &'a str) {
    const LONG: usize = 4 << 10;
    match pieces.last_mut() {
        _ if text.len() >= LONG => pieces.push(Cow::Borrowed(text)),
        Some(Cow::Owned(last)) => last.push_str(text),
        _ => pieces.push(Cow::Owned(text.to_owned())),
    }
}

#[derive(Clone, Copy)]
enum Line<'a> {
    Old(&'a Row),
    New(&'a str, Status),
}

/// Reads the line that begins at `start`.
fn row(line: &str, start: usize) -> Result<Row> {
    let last = line.as_bytes().last();
    let found = Status::ALL
        .into_iter()
        .filter(|status| status.as_str().as_bytes().last() == last)
        .find_map(|status| Some((line.strip_suffix(status.as_str())?.strip_suffix(':')?, status)));
    let Some((name, status)) = found else {
        let (_, status) = line.rsplit_once(':').context("it is not `<vm>:<STATUS>`")?;
        return Err(status.parse::<Status>().err().unwrap_or_else(|| anyhow!("it cannot be read")));
    };
    // A byte takes three when it is encoded: shorter names need no closer look.
    if name.is_empty() || name.len() > NAME_MAX / 3 || name.contains('\0') {
        GuestName::new(decode(name).as_ref())?;
    }
    let (start, name) = (u32::try_from(start)?, u16::try_from(name.len())?);
    Ok(Row { start, name, status: Some(status), written: true })
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
        // No name holds a NUL, so an old database's `%00` stands for itself.
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|byte| *byte != 0 && coded(*byte)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_old_database_reads_as_it_is() {
        let text = b"vm1:RUNNING\nmy vm:CLEAN\na:b:NEW\n50%:ARCHIVED\n50%41:NEW\na%00b:NEW\n";
        let mut table = Table::parse(text);
        assert_eq!(table.damage, []);
        let rows: Vec<_> = table.rows().map(|(name, status)| (name.into_owned(), status.as_str())).collect();
        let expected = [
            ("vm1", "RUNNING"),
            ("my vm", "CLEAN"),
            ("a:b", "NEW"),
            ("50%", "ARCHIVED"),
            ("50%41", "NEW"),
            ("a%00b", "NEW"),
        ];
        assert_eq!(rows, expected.map(|(name, status)| (name.to_owned(), status)));
        assert_eq!(table.to_text(), None);
        table.set("a\nb", Status::New);
        table.set("a:b", Status::Clean);
        let text = "vm1:RUNNING\nmy vm:CLEAN\na:b:CLEAN\n50%:ARCHIVED\n50%41:NEW\na%00b:NEW\na%0Ab:NEW\n";
        assert_eq!(table.to_text().as_deref(), Some(text), "its order stays, and so does how it writes names");
    }

    #[test]
    fn what_is_in_order_stays_in_order() {
        let mut table = Table::parse(b"b:NEW\nd:NEW\n");
        for vm in ["e", "a", "c"] {
            table.set(vm, Status::Clean);
        }
        table.remove("b");
        assert_eq!(table.to_text().as_deref(), Some("a:CLEAN\nc:CLEAN\nd:NEW\ne:CLEAN\n"));
        table.remove("c");
        assert_eq!((table.get("b"), table.get("c"), table.get("d")), (None, None, Some(Status::New)));
    }

    #[test]
    fn damage_is_found_line_by_line() {
        let lines =
            |text: &[u8]| -> Vec<usize> { Table::parse(text).damage.iter().map(|damage| damage.line).collect() };
        assert_eq!(lines(b"a:NEW\nb\n\n:NEW\nc:FINE\n\xff:NEW\na:CLEAN\nd:CLEA"), [2, 4, 5, 6, 7, 8]);
        assert_eq!(lines(b"a:NEW\na:NEW\nb:NEW\n"), [2]);
        assert_eq!(lines(b"a%0Ab:NEW\na\x0ab:NEW\na%0Ab:CLEAN\n"), [2, 4], "a newline ends a line");
    }

    proptest! {
        #[test]
        fn every_name_survives(
            names in proptest::collection::hash_set("[^\0]{1,20}|(%|:|[0-9A-F]|\n){1,9}", 1..20),
            plain in proptest::collection::hash_set("[a-c]{1,3}", 1..20),
            seed in 0..6usize,
        ) {
            for names in [names, plain] {
                let mut table = Table::default();
                for (at, name) in names.iter().enumerate() {
                    table.set(name, Status::ALL[(at + seed) % 6]);
                }
                let text = table.to_text().unwrap();
                prop_assert_eq!(text.lines().count(), names.len());
                let mut again = Table::parse(text.as_bytes());
                prop_assert_eq!(&again.damage, &[]);
                for (at, name) in names.iter().enumerate() {
                    prop_assert_eq!(again.get(name), Some(Status::ALL[(at + seed) % 6]));
                    again.set(name, Status::New);
                    if at % 3 == 0 {
                        again.remove(name);
                    }
                }
                let left: std::collections::HashSet<String> = again.rows().map(|(name, _)| name.into_owned()).collect();
                let kept = names.iter().enumerate().filter(|(at, _)| at % 3 != 0).map(|(_, name)| name.clone());
                prop_assert_eq!(left, kept.collect());
            }
        }
    }
}
