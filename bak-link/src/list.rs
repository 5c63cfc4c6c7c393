//! The old list of guests: `name sync` or `name nosync`, one a line. Pure.

use bak_common::name::printable;
use bak_common::record::Dump;
use bak_common::report::Kind;
use std::cell::Cell;

/// A line of the list.
#[derive(Debug)]
struct Named {
    name: String,
    sync: bool,
    line: usize,
    /// Whether a guest is called so.
    found: Cell<bool>,
}

/// Which guests are synced; who is not named is not.
#[derive(Debug)]
pub struct List {
    file: String,
    names: Vec<Named>,
}

impl List {
    /// Reads the text of a list; `file` is what to call it in messages. Empty lines and those that begin with `#` are
    /// skipped. A name may contain spaces; the last word says what holds.
    pub fn parse(file: &str, text: &str) -> anyhow::Result<Self> {
        let mut names: Vec<Named> = Vec::new();
        for (line, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text.trim())) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |why: String| Kind::Usage.says(format!("{file}:{line}: {why}"));
            let sync = |word: &str| match word {
                "sync" => Some(true),
                "nosync" => Some(false),
                _ => None,
            };
            let read = text.rsplit_once(char::is_whitespace);
            let Some((name, sync)) = read.and_then(|(name, word)| Some((name.trim_end(), sync(word)?))) else {
                return Err(wrong(format!("`{}` is not `NAME sync` or `NAME nosync`", printable(text))));
            };
            if let Some(other) = names.iter().find(|other| other.name == name && other.sync != sync) {
                return Err(wrong(format!("line {} says otherwise of {}", other.line, printable(name))));
            }
            names.push(Named { name: name.to_owned(), sync, line, found: Cell::new(false) });
        }
        Ok(Self { file: file.to_owned(), names })
    }

    /// Whether the guest of this dump is synced. What names its `vm` beats what names its `name`.
    pub fn syncs(&self, dump: &Dump) -> bool {
        let named = |text: Option<&str>| {
            let lines = self.names.iter().filter(|named| Some(named.name.as_str()) == text);
            lines.inspect(|named| named.found.set(true)).last().map(|named| named.sync)
        };
        let (vm, name) = (named(Some(dump.vm.as_str())), named(dump.name.as_deref()));
        vm.or(name).unwrap_or(false)
    }

    /// The names that no guest has, each with its `file:line`.
    pub fn unknown(&self) -> Vec<(&str, String)> {
        let lost = self.names.iter().filter(|named| !named.found.get());
        lost.map(|named| (named.name.as_str(), format!("{}:{}", self.file, named.line))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::calendar::Time;
    use bak_common::name::{GuestName, Stem};
    use bak_common::record::Guest;

    fn dump(vm: &str, name: Option<&str>) -> Dump {
        let mut guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
        guest.name = name.map(str::to_owned);
        let started: Time = "2026-11-20T01:00:00Z".parse().unwrap();
        Dump::of(&guest, started, Stem::of(&guest.vm, started))
    }

    #[test]
    fn the_old_format() {
        let text = "# guests of pve1\n\nweb sync\n  db\tnosync  \n100   sync\nbig box sync\nweb sync\ngone nosync\r\n";
        let list = List::parse("vms", text).unwrap();
        for (vm, name, sync) in [
            ("web", None, true),
            ("db", None, false),
            ("100", Some("db"), true),
            ("101", Some("web"), true),
            ("102", Some("big box"), true),
            ("103", Some("other"), false),
            ("we", None, false),
        ] {
            assert_eq!(list.syncs(&dump(vm, name)), sync, "{vm} {name:?}");
        }
        assert_eq!(list.unknown(), [("gone", "vms:8".to_owned())]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, says) in [
            ("web sync\nweb\n", "vms:2: `web` is not `NAME sync` or `NAME nosync`"),
            ("web yes\n", "vms:1: `web yes` is not"),
            ("sync\n", "vms:1: `sync` is not"),
            ("web sync # the shop\n", "vms:1: "),
            ("web sync\n\nweb nosync\n", "vms:3: line 1 says otherwise of web"),
        ] {
            let error = List::parse("vms", text).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(bak_common::report::status(&error), 2);
        }
    }
}
