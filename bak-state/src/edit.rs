//! `set` and `forget`: a batch is one lock and one rewrite.
//!
//! A guest that cannot be moved is a failure of its own and leaves the others alone.

use anyhow::{Result, anyhow};
use bak_common::args::Session;
use bak_common::name::GuestName;
use bak_common::report::Kind;
use std::path::Path;

use crate::batch::{Answer, Done, Request};
use crate::db::{First, Mode, Step, Turn};
use crate::format::{Details, Table};
use crate::print::{Printer, Row};
use crate::show::{Chooser, Chosen, GLOB};
use crate::status::{Status, legal};

/// What `set` was told.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub to: Status,
    /// Only from this one.
    pub from: Option<Status>,
    /// Against the table of moves, and against a claim.
    pub force: bool,
}

struct Move {
    vm: String,
    was: Option<Status>,
    to: Option<Status>,
}

fn mode(session: &Session) -> Mode {
    if session.dry_run { Mode::Plan } else { Mode::Write }
}

pub fn set(session: &Session, path: &Path, chooser: &Chooser, order: Order) -> Result<u8> {
    let step = match request(session, chooser, order) {
        None => Step::begin(path, session.wait, mode(session))?,
        Some(request) => match Step::begin_or_done(path, session.wait, &request)? {
            Turn::Ours(step) => step,
            Turn::Done(answer) => return report(session, answer, order.to),
        },
    };
    let statedb = step.statedb()?;
    let mut table = step.table(&statedb)?;
    step.sound(&table.damage)?;
    let Chosen { mut named, found, missing } = choose(&step, chooser, &table)?;
    for word in missing {
        // A pattern that fits nothing must not become a guest.
        if word.contains(GLOB) {
            session.report.fail(&word, &anyhow!("no guest in the database fits"));
        } else {
            named.push(word);
        }
    }
    // A pattern asks for those that are as `--from` says; a name says that this one is.
    let found = found.into_iter().filter(|vm| order.from.is_none() || table.get(vm) == order.from);
    let all: Vec<String> = named.into_iter().chain(found).collect();
    let ours = carry_out(&step, &mut table, all, order);
    let orders = step.orders()?;
    let mut answers = Vec::new();
    for (token, Request { to, force, vms }) in &orders.waiting {
        // Other words may be patterns: whoever wrote them looks for himself.
        if vms.iter().all(|vm| table.get(vm).is_some()) {
            let order = Order { to: *to, from: None, force: *force };
            answers.push((token.clone(), carry_out(&step, &mut table, vms.clone(), order)));
        }
    }
    step.commit(&table, None, First::Details)?;
    orders.answer(&answers);
    drop(step);
    report(session, ours, order.to)
}

/// What somebody else may do for us: an order that does not depend on who carries it out.
fn request(session: &Session, chooser: &Chooser, order: Order) -> Option<Request> {
    let vms = chooser.plain_words().filter(|_| order.from.is_none() && !session.dry_run)?;
    Some(Request { to: order.to, force: order.force, vms })
}

/// Moves the guests that may be moved so.
fn carry_out(step: &Step, table: &mut Table, vms: Vec<String>, order: Order) -> Answer {
    let one = |vm: String| {
        let was = table.get(&vm);
        let result = judge(step, &vm, was, order);
        if result.is_ok() {
            table.set(&vm, order.to);
        }
        Done::new(vm, was, &result)
    };
    Answer(vms.into_iter().map(one).collect())
}

fn report(session: &Session, answer: Answer, to: Status) -> Result<u8> {
    let mut moves = Vec::new();
    for done in answer.0 {
        match done.result() {
            Ok(()) => moves.push(Move { vm: done.vm, was: done.was, to: Some(to) }),
            Err(error) => session.report.fail(&done.vm, &error),
        }
    }
    print(session, &moves)
}

fn choose(step: &Step, chooser: &Chooser, table: &Table) -> Result<Chosen> {
    if chooser.is_plain(table) {
        return chooser.choose(table, &Details::default());
    }
    let text = step.details()?;
    let details = Details::parse(&text);
    step.sound(&details.damage)?;
    chooser.choose(table, &details)
}

/// Whether the guest may be moved as ordered.
fn judge(step: &Step, vm: &str, was: Option<Status>, order: Order) -> Result<()> {
    let name = GuestName::new(vm)?;
    let to = order.to;
    if let Some(from) = order.from.filter(|from| was != Some(*from)) {
        return Err(anyhow!("it is {}, not {from}", text(was)));
    }
    if order.force {
        return Ok(());
    }
    if !legal(was, to) {
        let hint = if was.is_none() { "; `set NEW` puts it there" } else { "" };
        return Err(Kind::Refused.says(format!("it is {} and may not become {to} (--force){hint}", text(was))));
    }
    unclaimed(step, &name, was.filter(|was| *was != to))
}

fn unclaimed(step: &Step, name: &GuestName, was: Option<Status>) -> Result<()> {
    if was == Some(Status::BackupInProgress) && step.held(&name.encoded())? {
        return Err(Kind::Refused.says("it is being dumped: its claim is held (--force)"));
    }
    Ok(())
}

fn text(status: Option<Status>) -> &'static str {
    status.map_or("not in the database", Status::as_str)
}

/// Drops guests from the database. Their dumps stay.
pub fn forget(session: &Session, path: &Path, chooser: &Chooser, force: bool) -> Result<u8> {
    let step = Step::begin(path, session.wait, mode(session))?;
    let statedb = step.statedb()?;
    let mut table = step.table(&statedb)?;
    step.sound(&table.damage)?;
    let text = step.details()?;
    let details = Details::parse(&text);
    step.sound(&details.damage)?;
    let chosen = chooser.choose(&table, &details)?;
    let mut moves = Vec::new();
    for vm in chosen.named.into_iter().chain(chosen.found).chain(chosen.missing) {
        let was = table.get(&vm);
        let may = match was {
            None => Err(anyhow!("no such guest is in the database")),
            Some(_) if force => Ok(()),
            Some(_) => GuestName::new(vm.as_str()).and_then(|name| unclaimed(&step, &name, was)),
        };
        match may {
            Ok(()) => {
                table.remove(&vm);
                moves.push(Move { vm, was, to: None });
            }
            Err(error) => session.report.fail(&vm, &error),
        }
    }
    if !moves.is_empty() {
        step.commit(&table, Some(details.to_text(&table)?), First::Details)?;
    }
    drop(step);
    print(session, &moves)
}

fn print(session: &Session, moves: &[Move]) -> Result<u8> {
    let mut out = Printer::new(session, &["vm", "was", "status"]);
    for Move { vm, was, to } in moves.iter().filter(|moved| session.explain || moved.was != moved.to) {
        let row = Row::moved(vm, *was, *to).planned(session.dry_run);
        let row = if was == to { row.because("it is so already") } else { row };
        let line = serde_json::to_string(&row)?;
        session.report.decided(&line);
        let cell = |status: &Option<Status>| status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        out.add(|| Ok(line), || vec![vm.clone(), cell(was), cell(to)])?;
    }
    out.end()?;
    Ok(session.report.finish(|failed| format!("{failed} of what was asked for was not done")))
}
