//! What is printed: records, or a table for people, or nothing.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::jsonl::Writer;
use bak_common::record::State;
use bak_common::table::table;
use serde::Serialize;

use crate::status::{Detail, LastDump, Status};

/// One line about a guest of the database. Absent is unknown.
#[derive(Debug, Default, Serialize)]
pub struct Row<'a> {
    v: u32,
    r#type: &'static str,
    vm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    /// Absent once the guest was dropped from the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    /// The status before, where it was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_dump: Option<Time>,
    /// The last dump that made it CLEAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    dump: Option<&'a LastDump>,
    /// Since when it is to be dumped.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Time>,
    /// Attempts in a row that failed.
    #[serde(skip_serializing_if = "none")]
    failures: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    planned: bool,
}

fn none(count: &u32) -> bool {
    *count == 0
}

impl<'a> Row<'a> {
    pub fn known(vm: &'a str, status: Status, detail: Option<&'a Detail>) -> Self {
        let row = Self { v: 1, r#type: "guest", vm, status: Some(status.as_str()), ..Self::default() };
        let Some(detail) = detail else { return row };
        Self {
            name: detail.name.as_deref(),
            uid: detail.uid.as_deref(),
            kind: detail.kind.as_deref(),
            driver: detail.driver.as_deref(),
            node: detail.node.as_deref(),
            tags: &detail.tags,
            pool: detail.pool.as_deref(),
            state: Some(detail.state).filter(|state| *state != State::Unknown),
            seen: detail.heard(),
            due: detail.due.filter(|_| status.is_due()),
            failures: detail.failures,
            last_dump: detail.dump.as_ref().map(|dump| dump.started),
            dump: detail.dump.as_ref(),
            ..row
        }
    }

    /// A guest whose status was set, or that was dropped.
    pub fn moved(vm: &'a str, was: Option<Status>, status: Option<Status>) -> Self {
        let text = |status: Option<Status>| status.map(Status::as_str);
        Self { v: 1, r#type: "guest", vm, status: text(status), was: text(was), ..Self::default() }
    }

    pub fn vm(&self) -> &'a str {
        self.vm
    }

    pub fn because(self, why: &'a str) -> Self {
        Self { why: Some(why), ..self }
    }

    pub fn planned(self, planned: bool) -> Self {
        Self { planned, ..self }
    }
}

/// Prints as the session asks: columns for a table, lines otherwise.
pub struct Printer<'a> {
    session: &'a Session,
    headings: &'static [&'static str],
    rows: Vec<Vec<String>>,
    writer: Writer<std::io::Stdout>,
}

impl<'a> Printer<'a> {
    pub fn new(session: &'a Session, headings: &'static [&'static str]) -> Self {
        Self { session, headings, rows: Vec::new(), writer: Writer::stdout() }
    }

    pub fn add(&mut self, line: impl FnOnce() -> Result<String>, cells: impl FnOnce() -> Vec<String>) -> Result<()> {
        if self.session.quiet {
            return Ok(());
        }
        if self.session.table {
            self.rows.push(cells());
            return Ok(());
        }
        self.writer.line(&line()?)
    }

    pub fn end(mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.writer.line(&table(self.headings, &[], self.rows))
    }

    /// A time for a table.
    pub fn minute(&self, time: Option<Time>) -> String {
        time.map_or_else(|| "-".to_owned(), |time| self.session.zone.minute(time))
    }
}
