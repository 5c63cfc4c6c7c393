//! `get` and `list`: what the database says. And the choice of guests, for those and for `set` and `forget`.

use anyhow::{Result, anyhow};
use bak_common::args::{Picks, Session};
use bak_common::jsonl;
use bak_common::select::Subject;
use bak_common::units::Span;
use std::collections::HashSet;
use std::path::Path;

use crate::db::{Mode, Step};
use crate::format::{Details, Table};
use crate::print::{Printer, Row};
use crate::status::{Detail, Status};

/// What makes a word a pattern.
pub const GLOB: [char; 4] = ['*', '?', '[', '{'];

/// What to select guests of the database by.
#[derive(Debug)]
pub struct Chooser<'a> {
    picks: &'a Picks,
    operands: &'a [String],
    /// Named by the records of standard input.
    listed: Vec<String>,
}

/// The guests chosen, each once, in the order in which they were named.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Named as they are: they need not be in the database.
    pub named: Vec<String>,
    /// Found by a pattern, a name or a filter.
    pub found: Vec<String>,
    /// Operands that fit nothing: names, or patterns.
    pub missing: Vec<String>,
}

impl<'a> Chooser<'a> {
    /// Reads standard input if the operands say so. Without anything to choose by it is a mistake (exit status 2).
    pub fn explicit(session: &Session, picks: &'a Picks, operands: &'a [String]) -> Result<Self> {
        if operands.is_empty() {
            picks.explicit(operands)?;
        }
        Self::any(session, picks, operands)
    }

    /// Without anything to choose by: all.
    pub fn any(session: &Session, picks: &'a Picks, operands: &'a [String]) -> Result<Self> {
        // Which words are patterns shows when it is known which guests there are.
        picks.selector(&[])?;
        Self::new(session, picks, operands, operands.iter().any(|word| word == "-"))
    }

    fn new(session: &Session, picks: &'a Picks, operands: &'a [String], stdin: bool) -> Result<Self> {
        let heads = if stdin { jsonl::read_heads(&session.report, session.dry_run)? } else { Vec::new() };
        let listed = heads.into_iter().map(|head| head.vm.as_str().to_owned()).collect();
        Ok(Self { picks, operands, listed })
    }

    fn filters(&self) -> bool {
        let picks = self.picks;
        ![&picks.tag, &picks.pool, &picks.node, &picks.kind].iter().all(|texts| texts.is_empty())
    }

    fn words(&self) -> impl Iterator<Item = &'a String> {
        self.operands.iter().filter(|text| *text != "-")
    }

    /// The words, if there is nothing else to choose by and none of them is a pattern.
    pub fn plain_words(&self) -> Option<Vec<String>> {
        let pattern = |word: &String| word == "-" || word.contains(GLOB);
        let plain = !self.filters() && !self.picks.all && !self.operands.iter().any(pattern);
        plain.then(|| self.operands.to_vec())
    }

    /// Whether only names of guests that `table` has were given, so that the details need not be read to choose.
    pub fn is_plain(&self, table: &Table) -> bool {
        let nothing = self.words().next().is_none() && self.listed.is_empty();
        !nothing && !self.filters() && !self.picks.all && self.words().all(|word| table.get(word).is_some())
    }

    /// A guest's own name means that guest; any other word is a pattern for `vm` and `name`.
    pub fn choose(&self, table: &Table, details: &Details) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        let mut taken = HashSet::new();
        let (names, patterns): (Vec<&String>, Vec<&String>) =
            self.words().partition(|word| !self.filters() && table.get(word).is_some());
        for name in names.into_iter().chain(&self.listed) {
            if taken.insert(name.clone()) {
                chosen.named.push(name.clone());
            }
        }
        if self.filters() {
            let (filter, _) = self.picks.selector(&[])?;
            chosen.named.retain(|vm| filter.matches(subject(vm, details.get(vm))));
        }
        let listed_only = self.operands.iter().any(|text| text == "-") && !self.picks.all;
        let named_only = !chosen.named.is_empty() && !self.filters();
        if patterns.is_empty() && (listed_only || named_only) {
            return Ok(chosen);
        }
        let patterns: Vec<String> = patterns.into_iter().cloned().collect();
        let (selector, _) = self.picks.selector(&patterns)?;
        for (vm, _) in table.rows() {
            if selector.matches(subject(&vm, details.get(&vm))) && taken.insert(vm.clone().into_owned()) {
                chosen.found.push(vm.into_owned());
            }
        }
        chosen.missing = selector.unmatched().into_iter().map(str::to_owned).collect();
        Ok(chosen)
    }
}

pub fn subject<'a>(vm: &'a str, detail: Option<&'a Detail>) -> Subject<'a> {
    Subject {
        vm,
        name: detail.and_then(|detail| detail.name.as_deref()),
        tags: detail.map_or(&[], |detail| &detail.tags),
        pool: detail.and_then(|detail| detail.pool.as_deref()),
        node: detail.and_then(|detail| detail.node.as_deref()),
        kind: detail.and_then(|detail| detail.kind.as_deref()).unwrap_or_default(),
        id: None,
    }
}

/// What `list` shows of what it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Only {
    pub status: Vec<Status>,
    /// Not seen for so long.
    pub gone: Option<Span>,
}

impl Only {
    fn takes(&self, session: &Session, status: Status, detail: Option<&Detail>) -> bool {
        let seen = detail.and_then(Detail::heard);
        let gone =
            |span: Span| seen.is_none_or(|seen| session.now.since(seen) >= i64::try_from(span.0).unwrap_or(i64::MAX));
        (self.status.is_empty() || self.status.contains(&status)) && self.gone.is_none_or(gone)
    }
}

/// Prints what is known of the guests that `chooser` chooses.
pub fn show(session: &Session, path: &Path, chooser: &Chooser, only: &Only) -> Result<u8> {
    let step = Step::begin(path, session.wait, Mode::Read)?;
    let statedb = step.statedb()?;
    let table = step.table(&statedb)?;
    let details = if chooser.is_plain(&table) {
        let wanted: HashSet<&str> = chooser.words().chain(&chooser.listed).map(String::as_str).collect();
        step.details_of(&wanted)?
    } else {
        Details::parse(&step.details()?)
    };
    step.report(&table.damage, &session.report);
    step.report(&details.damage, &session.report);
    drop(step);
    let mut chosen = chooser.choose(&table, &details)?;
    chosen.found.sort_unstable();
    let mut out = Printer::new(session, &["vm", "name", "status", "state", "last dump", "seen"]);
    for vm in chosen.named.iter().chain(&chosen.found) {
        let Some(status) = table.get(vm) else {
            chosen.missing.push(vm.clone());
            continue;
        };
        let detail = details.get(vm);
        if only.takes(session, status, detail) {
            let times = (
                out.minute(detail.and_then(|d| Some(d.dump.as_ref()?.started))),
                out.minute(detail.and_then(Detail::heard)),
            );
            out.add(
                || Ok(serde_json::to_string(&Row::known(vm, status, detail))?),
                || cells(vm, status, detail, times),
            )?;
        }
    }
    for missing in &chosen.missing {
        session.report.fail(missing, &anyhow!("no such guest is in the database"));
    }
    out.end()?;
    Ok(session.report.finish(|failed| format!("{failed} of what was asked for cannot be shown")))
}

fn cells(vm: &str, status: Status, detail: Option<&Detail>, (dumped, seen): (String, String)) -> Vec<String> {
    let state = detail.map_or("unknown", |detail| state_text(detail.state)).to_owned();
    let name = detail.and_then(|detail| detail.name.clone()).unwrap_or_default();
    vec![vm.to_owned(), name, status.to_string(), state, dumped, seen]
}

pub fn state_text(state: bak_common::record::State) -> &'static str {
    use bak_common::record::State;
    match state {
        State::Running => "running",
        State::Stopped => "stopped",
        State::Paused => "paused",
        State::Unknown => "unknown",
    }
}

/// Prints what the configuration says for every guest of the database.
pub fn check_config(session: &Session, path: &Path) -> Result<u8> {
    let step = Step::begin(path, session.wait, Mode::Plan)?;
    let (statedb, text) = (step.statedb()?, step.details()?);
    let (table, details) = (step.table(&statedb)?, Details::parse(&text));
    let mut out = jsonl::Writer::stdout();
    for (vm, _) in table.rows() {
        let effective = session.config.effective(subject(&vm, details.get(&vm)));
        out.line(&serde_json::to_string(&effective)?)?;
    }
    Ok(0)
}
