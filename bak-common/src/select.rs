//! Which guests or dumps a run is about: names or globs against `vm` or `name`, ids, tags, pools, nodes, kinds.

use anyhow::Result;
use globset::{GlobBuilder, GlobMatcher};
use std::cell::Cell;

use crate::name::{DumpId, printable};
use crate::record::{Dump, Guest};
use crate::report::Kind;

/// What can be selected by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub vm: &'a str,
    pub name: Option<&'a str>,
    pub tags: &'a [String],
    pub pool: Option<&'a str>,
    pub node: Option<&'a str>,
    pub kind: &'a str,
    pub id: Option<&'a DumpId>,
}

impl<'a> From<&'a Guest> for Subject<'a> {
    fn from(guest: &'a Guest) -> Self {
        Self {
            vm: guest.vm.as_str(),
            name: guest.name.as_deref(),
            tags: &guest.tags,
            pool: guest.pool.as_deref(),
            node: guest.node.as_deref(),
            kind: &guest.kind,
            id: None,
        }
    }
}

impl<'a> From<&'a Dump> for Subject<'a> {
    fn from(dump: &'a Dump) -> Self {
        Self {
            vm: dump.vm.as_str(),
            name: dump.name.as_deref(),
            tags: &dump.tags,
            pool: dump.pool.as_deref(),
            node: dump.node.as_deref(),
            kind: &dump.kind,
            id: Some(&dump.id),
        }
    }
}

/// A name or a glob (`*`, `?`, `[…]`, `{a,b}`). The literal text always matches itself.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: GlobMatcher,
}

impl Pattern {
    pub fn new(text: &str) -> Result<Self> {
        let glob = GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build();
        let glob = glob.map_err(|error| {
            Kind::Usage.says(format!("`{}` is no name or pattern: {}", printable(text), error.kind()))
        })?;
        Ok(Self { text: text.to_owned(), glob: glob.compile_matcher() })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.text == text || self.glob.is_match(text)
    }
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

/// Parts that must all hold; within a part any. An empty part holds.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub tag: Vec<Pattern>,
    pub pool: Vec<Pattern>,
    pub node: Vec<Pattern>,
    pub kind: Vec<Pattern>,
}

impl Filter {
    pub fn new(tag: &[String], pool: &[String], node: &[String], kind: &[String]) -> Result<Self> {
        Ok(Self { tag: patterns(tag)?, pool: patterns(pool)?, node: patterns(node)?, kind: patterns(kind)? })
    }

    pub fn matches(&self, subject: &Subject) -> bool {
        let any = |patterns: &[Pattern], text: Option<&str>| {
            patterns.is_empty() || text.is_some_and(|text| patterns.iter().any(|p| p.matches(text)))
        };
        (self.tag.is_empty() || subject.tags.iter().any(|tag| any(&self.tag, Some(tag))))
            && any(&self.pool, subject.pool)
            && any(&self.node, subject.node)
            && any(&self.kind, Some(subject.kind))
    }

    fn is_empty(&self) -> bool {
        self.tag.is_empty() && self.pool.is_empty() && self.node.is_empty() && self.kind.is_empty()
    }
}

#[derive(Debug)]
enum Operand {
    Id(DumpId),
    Name(Pattern),
}

/// What the user asked for on one command line; remembers which operands have matched something.
#[derive(Debug, Default)]
pub struct Selector {
    operands: Vec<(String, Operand, Cell<bool>)>,
    filter: Filter,
    all: bool,
}

impl Selector {
    /// `operands` are names, globs or dump ids (never `-`).
    pub fn new(operands: &[String], filter: Filter, all: bool) -> Result<Self> {
        let read = |text: &String| {
            let operand = match DumpId::new(text.as_str()) {
                Ok(id) => Operand::Id(id),
                Err(_) => Operand::Name(Pattern::new(text)?),
            };
            Ok((text.clone(), operand, Cell::new(false)))
        };
        Ok(Self { operands: operands.iter().map(read).collect::<Result<_>>()?, filter, all })
    }

    /// Nothing was asked for: neither a name, nor a filter, nor `--all`.
    pub fn is_empty(&self) -> bool {
        self.operands.is_empty() && self.filter.is_empty() && !self.all
    }

    /// Whether names, patterns or ids were given, beside filters.
    pub fn has_names(&self) -> bool {
        !self.operands.is_empty()
    }

    /// Whether it holds for every subject.
    pub fn takes_all(&self) -> bool {
        self.operands.is_empty() && self.filter.is_empty()
    }

    pub fn matches<'a>(&self, subject: impl Into<Subject<'a>>) -> bool {
        let subject = subject.into();
        if !self.filter.matches(&subject) {
            return false;
        }
        let mut hit = self.operands.is_empty();
        for (text, operand, used) in &self.operands {
            let matches = match operand {
                // A guest may be called like an id.
                Operand::Id(id) => subject.id == Some(id) || subject.vm == text || subject.name == Some(text),
                Operand::Name(pattern) => {
                    pattern.matches(subject.vm) || subject.name.is_some_and(|n| pattern.matches(n))
                }
            };
            if matches {
                used.set(true);
                hit = true;
            }
        }
        hit
    }

    /// The operands that nothing matched: each is a failure, as a typing error must not look like a success.
    pub fn unmatched(&self) -> Vec<&str> {
        self.operands.iter().filter(|(_, _, used)| !used.get()).map(|(text, _, _)| text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'a>(vm: &'a str, name: &'a str, tags: &'a [String]) -> Subject<'a> {
        Subject { vm, name: Some(name), tags, pool: None, node: Some("pve1"), kind: "qemu", id: None }
    }

    #[test]
    fn names_globs_and_filters() {
        let tags = ["prod".to_owned()];
        let select = |operands: &[&str], tag: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
            Selector::new(&own(operands), Filter::new(&own(tag), &[], &[], &[]).unwrap(), false).unwrap()
        };
        for (operand, yes) in [
            ("101", true),
            ("web", true),
            ("w*", true),
            ("{web,db}", true),
            ("10", false),
            ("we", false),
            ("*-2", false),
        ] {
            assert_eq!(select(&[operand], &[]).matches(subject("101", "web", &tags)), yes, "{operand}");
        }
        assert!(select(&[], &["p*"]).matches(subject("101", "web", &tags)));
        assert!(!select(&["101"], &["test"]).matches(subject("101", "web", &tags)));
        let literal = select(&["a[b]"], &[]);
        assert!(literal.matches(subject("a[b]", "x", &[])) && literal.matches(subject("ab", "x", &[])));
        let typo = select(&["101", "wbe"], &[]);
        assert!(typo.matches(subject("101", "web", &tags)));
        assert_eq!(typo.unmatched(), ["wbe"]);
        assert!(Selector::new(&["a[".to_owned()], Filter::default(), false).is_err());
    }
}
