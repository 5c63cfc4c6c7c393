//! What `vmtool-statedb` says: one `<vm>:<STATUS>` a line. Pure.
//!
//! A line is split at its *last* colon. In names only `%` and ASCII control characters are percent-encoded, so that
//! ordinary names stay as they are, and only such codes are decoded, so that an old database's `50%41` stays what it is.
//!
//! With 100,000 guests and one to be set, reading the lines is the work. So they stay in the text that was read. Where it is
//! nothing but whole lines in the order of their bytes, as all that bak-state begins are, guests are found by halving, no
//! name can be there twice, and a text that is known to be so need not be read through at all. An old database in another
//! order keeps it, and has an index.

use anyhow::{Context, Result, anyhow};
use bak_common::name::{GuestName, NAME_MAX, printable};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};

use crate::format::{Damage, STATEDB};
use crate::status::Status;

/// What `vmtool-statedb` says, in its order.
#[derive(Debug, Default)]
pub struct Table<'a> {
    /// Whole lines that can be read, each of another guest.
    text: Cow<'a, str>,
    /// Where the line of a guest begins, by its name; absent where they are in order.
    index: Option<HashMap<String, usize>>,
    /// Where a guest was found last: those who ask for many ask in order, as a rule.
    last: Cell<usize>,
    /// What becomes of lines, by where they begin; `None` for those that go.
    edits: BTreeMap<usize, Option<Status>>,
    /// Guests that the text does not have, by their encoded name.
    added: BTreeMap<String, Status>,
    pub damage: Vec<Damage>,
    was_empty: bool,
    changed: bool,
}

/// A line of the text.
#[derive(Clone, Copy, Debug)]
struct Row<'t> {
    /// As it is written.
    name: &'t str,
    status: Status,
    /// Where the next one begins.
    end: usize,
}

impl<'a> Table<'a> {
    pub fn parse(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if in_order(text) => Self::ordered(text),
            _ => Self::indexed(bytes),
        }
    }

    /// Takes the text for what [`Table::keeps_order`] said of it when it was written, without reading it through.
    pub fn known(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(|_| Self::indexed(bytes), Self::ordered)
    }

    fn ordered(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text), was_empty: text.is_empty(), ..Self::default() }
    }

    /// Reads lines in any order; what cannot be read, or names a guest once more, is damage.
    fn indexed(bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(bytes.len() + 1);
        let (mut index, mut damage) = (HashMap::new(), Vec::new());
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let read = std::str::from_utf8(line).map_err(|_| anyhow!("it is not UTF-8"));
            let read = read.and_then(|line| {
                let (name, _) = row(line)?;
                match index.entry(decode(name).into_owned()) {
                    Entry::Vacant(free) => _ = free.insert(text.len()),
                    Entry::Occupied(known) => return Err(anyhow!("it names {} once more", printable(known.key()))),
                }
                text.push_str(line);
                text.push('\n');
                Ok(())
            });
            if let Err(error) = read {
                damage.push(Damage { file: STATEDB, line: at + 1, why: format!("{error:#}") });
            }
        }
        let (text, index) = (Cow::Owned(text), Some(index));
        Self { text, index, damage, was_empty: bytes.is_empty(), ..Self::default() }
    }

    /// The line that begins at `start`.
    fn row(&self, start: usize) -> Option<Row<'_>> {
        let rest = self.text.get(start..)?;
        let line = &rest[..memchr::memchr(b'\n', rest.as_bytes())?];
        let (name, status) = row(line).ok()?;
        Some(Row { name, status, end: start + line.len() + 1 })
    }

    /// Where the line of `vm` begins, or else, where there is an order, would begin.
    fn find(&self, vm: &str) -> Result<usize, usize> {
        if let Some(index) = &self.index {
            return index.get(vm).copied().ok_or(self.text.len());
        }
        let last = self.last.get();
        let next = self.row(last).map_or(0, |row| row.end);
        let near = [last, next].into_iter().find(|start| self.row(*start).is_some_and(|row| row.name == vm));
        let found = near.map_or_else(|| self.halve(vm), Ok);
        self.last.set(found.unwrap_or(last));
        found
    }

    fn halve(&self, vm: &str) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.text.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let start = memchr::memrchr(b'\n', &self.text.as_bytes()[low..middle]).map_or(low, |at| low + at + 1);
            let Some(row) = self.row(start) else { return Err(start) };
            match row.name.cmp(vm) {
                std::cmp::Ordering::Equal => return Ok(start),
                std::cmp::Ordering::Less => low = row.end,
                std::cmp::Ordering::Greater => high = start,
            }
        }
        Err(low)
    }

    /// What the line that begins at `start` is to say.
    fn status(&self, start: usize) -> Option<Status> {
        self.edits.get(&start).copied().unwrap_or_else(|| self.row(start).map(|row| row.status))
    }

    pub fn get(&self, vm: &str) -> Option<Status> {
        match self.find(vm) {
            Ok(start) => self.status(start),
            Err(_) if self.added.is_empty() => None,
            Err(_) => self.added.get(encode(vm).as_ref()).copied(),
        }
    }

    #[cfg(test)]
    fn to_text(&self) -> Option<String> {
        self.to_pieces().map(|pieces| pieces.concat())
    }

    pub fn set(&mut self, vm: &str, status: Status) {
        let old = match self.find(vm) {
            Ok(start) => {
                let old = self.status(start);
                if old != Some(status) {
                    self.edits.insert(start, Some(status));
                }
                old
            }
            Err(_) => self.added.insert(encode(vm).into_owned(), status),
        };
        self.changed |= old != Some(status);
    }

    pub fn remove(&mut self, vm: &str) {
        let old = match self.find(vm) {
            Ok(start) => {
                let old = self.status(start);
                self.edits.insert(start, None);
                old
            }
            Err(_) => self.added.remove(encode(vm).as_ref()),
        };
        self.changed |= old.is_some();
    }

    /// Whether nothing was read.
    pub fn was_empty(&self) -> bool {
        self.was_empty
    }

    /// Whether the text to be written is whole lines in order, by names that need no decoding, if the one read was.
    pub fn keeps_order(&self) -> bool {
        self.index.is_none() && !self.added.keys().any(|name| name.contains('%'))
    }

    /// Gives up the lines that could not be read: the text is to be written without them.
    pub fn mend(&mut self) -> Vec<Damage> {
        self.changed |= !self.damage.is_empty();
        std::mem::take(&mut self.damage)
    }

    /// All guests, in the order in which they are written.
    pub fn rows(&self) -> impl Iterator<Item = (Cow<'_, str>, Status)> {
        let mut start = 0;
        let mut old = std::iter::from_fn(move || {
            let row = self.row(start)?;
            let status = self.edits.get(&start).copied().unwrap_or(Some(row.status));
            start = row.end;
            Some((row.name, status))
        })
        .filter_map(|(name, status)| Some((name, status?)))
        .peekable();
        let mut added = self.added.iter().map(|(name, status)| (name.as_str(), *status)).peekable();
        let ordered = self.index.is_none();
        std::iter::from_fn(move || {
            let new_first = match (old.peek(), added.peek()) {
                (Some((old, _)), Some((new, _))) => ordered && new < old,
                (old, _) => old.is_none(),
            };
            let (name, status) = if new_first { added.next()? } else { old.next()? };
            Some((decode(name), status))
        })
    }

    /// The text of the file in pieces, if it is no longer what was read. Many lines that stay are one piece, not copied.
    pub fn to_pieces(&self) -> Option<Vec<Cow<'_, str>>> {
        if !self.changed {
            return None;
        }
        let ordered = self.index.is_none();
        let place = |name: &str| if ordered { self.halve(name).unwrap_or_else(|at| at) } else { self.text.len() };
        let mut added = self.added.iter().map(|(name, status)| (place(name), name, *status)).peekable();
        let mut pieces = Vec::new();
        let mut at = 0;
        let edits = self.edits.iter().map(|(start, status)| (*start, *status));
        for (start, status) in edits.chain([(self.text.len(), None)]) {
            while let Some((place, name, status)) = added.next_if(|(place, ..)| *place <= start) {
                keep(&mut pieces, self.text.get(at..place).unwrap_or_default());
                at = place;
                keep_line(&mut pieces, name, status);
            }
            keep(&mut pieces, self.text.get(at..start).unwrap_or_default());
            let row = self.row(start);
            if let Some((row, status)) = row.zip(status) {
                keep_line(&mut pieces, row.name, status);
            }
            at = row.map_or(start, |row| row.end);
        }
        Some(pieces)
    }
}

fn keep_line<'a>(pieces: &mut Vec<Cow<'a, str>>, name: &'a str, status: Status) {
    for part in [name, ":", status.as_str(), "\n"] {
        keep(pieces, part);
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

/// Whether a text is nothing but whole lines in the order of their names, which are what they stand for.
fn in_order(text: &str) -> bool {
    let (mut start, mut last) = (0, "");
    for end in memchr::memchr_iter(b'\n', text.as_bytes()) {
        match row(&text[start..end]) {
            Ok((name, _)) if last < name => last = name,
            _ => return false,
        }
        start = end + 1;
    }
    start == text.len() && !text.contains('%')
}

/// Reads a line: the name as it is written, and the status.
fn row(line: &str) -> Result<(&str, Status)> {
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
        fn what_is_known_to_be_in_order_need_not_be_read_through(
            names in proptest::collection::btree_set("[a-d:]{1,3}", 0..12),
            edits in proptest::collection::vec(("[a-d:%\n]{1,3}", 0..7usize), 0..12),
        ) {
            let text: String = names.iter().map(|name| format!("{name}:NEW\n")).collect();
            let (mut known, mut read) = (Table::known(text.as_bytes()), Table::parse(text.as_bytes()));
            prop_assert!(read.keeps_order());
            let mut model: BTreeMap<String, Status> = names.into_iter().map(|name| (name, Status::New)).collect();
            for (vm, edit) in &edits {
                for table in [&mut known, &mut read] {
                    match Status::ALL.get(*edit) {
                        Some(status) => table.set(vm, *status),
                        None => table.remove(vm),
                    }
                }
                match Status::ALL.get(*edit) {
                    Some(status) => _ = model.insert(vm.clone(), *status),
                    None => _ = model.remove(vm),
                }
                prop_assert_eq!(known.get(vm), model.get(vm).copied());
            }
            prop_assert_eq!(known.to_text(), read.to_text());
            let rows: BTreeMap<String, Status> = known.rows().map(|(name, status)| (name.into_owned(), status)).collect();
            prop_assert_eq!(&rows, &model);
            let after = known.to_text().unwrap_or(text.clone());
            prop_assert_eq!(known.keeps_order(), in_order(&after), "{:?}", after);
            let again = Table::parse(after.as_bytes());
            let rows: BTreeMap<String, Status> = again.rows().map(|(name, status)| (name.into_owned(), status)).collect();
            prop_assert_eq!(&rows, &model);
        }

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
