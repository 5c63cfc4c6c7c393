//! `claim`: any command, run while its guest is claimed.
//!
//! The order: look, claim, command, look, status. What was last observed before the claim is what the command is taken to
//! have dumped, so a change that nobody saw before it counts as one that came after. The command holds the claim's lock
//! too, and what it leaves running does: the claim is free when the last of them is gone.

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::command::{Event, NotExecutable, Program};
use bak_common::jsonl::Reader;
use bak_common::name::{DumpId, GuestName};
use bak_common::record::{Guest, Record};
use bak_common::report::{Kind, status};
use bak_common::signals::Signals;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crate::claim::{Claim, Ended, Outcome, may_claim};
use crate::db::{self, Db, Mode, Step};
use crate::observe;
use crate::print::{Printer, Row};
use crate::status::Status;

const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Who lists guests opens their disks: that may take long, but not for ever.
const LOOK_MAX: Duration = Duration::from_secs(600);
const LISTED_MAX: usize = 16 << 20;

/// What `claim` was told.
#[derive(Debug)]
pub struct Order<'a> {
    pub vm: &'a str,
    /// A program and its arguments.
    pub command: &'a [OsString],
    /// Whether to run bak-guests before and after.
    pub look: bool,
    /// The configuration file, for bak-guests.
    pub config: Option<PathBuf>,
}

pub fn run(session: &Session, path: &Path, order: &Order) -> Result<u8> {
    let vm = GuestName::new(order.vm).map_err(|error| Kind::Usage.of(error))?;
    let (word, args) = order.command.split_first().ok_or_else(|| Kind::Usage.says("there is no command"))?;
    let failed = |error: &Error, status| {
        session.report.fail(order.vm, error);
        Ok(status)
    };
    let program = match Program::new(word) {
        Ok(program) => program.args(args),
        Err(error) if error.is::<NotExecutable>() => return failed(&error, NOT_EXECUTABLE),
        Err(error) => return failed(&error, NOT_FOUND),
    };
    if session.dry_run {
        return plan(session, path, &vm).or_else(|error| failed(&error, status(&error)));
    }
    let mut signals = Signals::block()?;
    let first = if order.look { look(session, path, order, &mut signals) } else { Ok(()) };
    if let Some(signal) = signals.caught()? {
        return failed(&anyhow!("stopped by {signal} before it began"), killed_by(signal as i32));
    }
    let claimed = Db::existing(path, session.wait).and_then(|db| match db {
        Some(db) => db.claim_known(&vm, session.clock()),
        None => Err(db::missing(path)),
    });
    let claim = match (claimed, &first) {
        (Ok(claim), _) => claim,
        // Unknown, perhaps because the look failed.
        (Err(error), Err(cause)) => return failed(&anyhow!("{error:#}; {cause:#}"), status(&error)),
        (Err(error), Ok(())) => return failed(&error, status(&error)),
    };
    let row = Row::moved(order.vm, claim.was(), Some(Status::BackupInProgress));
    session.report.decided(&serde_json::to_string(&row)?);
    let started = session.clock();
    let (code, ended) = work(program, &claim, started, &mut signals);
    let proof =
        ended.and(first).and_then(|()| if order.look { look(session, path, order, &mut signals) } else { Ok(()) });
    finish(session, order, claim, (started, code, proof))
}

/// Runs the command: the exit status to pass on, and whether it did what it was to do.
fn work(program: Program, claim: &Claim, started: Time, signals: &mut Signals) -> (u8, Result<()>) {
    match signals.caught() {
        Ok(None) => {}
        Ok(Some(signal)) => return (killed_by(signal as i32), Err(anyhow!("stopped by {signal} before it began"))),
        Err(error) => return (1, Err(error)),
    }
    let vm = &claim.detail().vm;
    let program = program
        .env("BAK_VM", vm.as_str())
        .env("BAK_ID", DumpId::of(vm, started).as_str())
        .env("BAK_STARTED", started.to_string())
        .own_locale()
        .on_our_death(rustix::process::Signal::TERM)
        .stdin(Stdio::inherit());
    let child = program.holding(claim.lock()).and_then(|program| program.spawn(Stdio::inherit(), Stdio::inherit()));
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return (NOT_EXECUTABLE, Err(error)),
    };
    match signals.wait(&mut child) {
        Ok(status) => (code(status), ended(status, signals)),
        Err(error) => (1, Err(error)),
    }
}

fn ended(status: ExitStatus, signals: &mut Signals) -> Result<()> {
    match (status.code(), status.signal()) {
        (Some(0), _) => match signals.caught()? {
            Some(signal) => bail!("{signal} was to stop it"),
            None => Ok(()),
        },
        (Some(code), _) => bail!("the command exited with status {code}"),
        (None, signal) => bail!("the command was killed by signal {}", signal.unwrap_or_default()),
    }
}

/// The exit status as a shell has it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.unwrap_or_else(|| killed_by(status.signal().unwrap_or_default()))
}

fn killed_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Sets the status that the guest has earned, and says why where that is not CLEAN.
fn finish(session: &Session, order: &Order, claim: Claim, work: (Time, u8, Result<()>)) -> Result<u8> {
    let (started, code, proof) = work;
    let was = claim.was();
    let outcome = match proof {
        Ok(()) => Outcome::Clean {
            fingerprint: claim.detail().fingerprint.clone(),
            started,
            id: DumpId::of(&claim.detail().vm, started),
        },
        Err(_) => Outcome::Necessary,
    };
    let Ended { status, spoilt } = match claim.leave(outcome, session.clock()) {
        Ok(ended) => ended,
        Err(error) => {
            let error = match proof {
                Ok(()) => error.context("cannot set its status"),
                Err(first) => anyhow!("{first:#}; and cannot set its status: {error:#}"),
            };
            session.report.fail(order.vm, &error);
            return Ok(if code == 0 { 1 } else { code });
        }
    };
    let why = proof.err().map(|error| format!("{error:#}")).or(spoilt);
    let now = status.map_or("no longer in the database", Status::as_str);
    match &why {
        Some(why) if code == 0 => session.report.warn(order.vm, &format!("it is {now}: {why}")),
        Some(why) => session.report.fail(order.vm, &anyhow!("it is {now}: {why}")),
        None if status != Some(Status::Clean) => {
            session.report.warn(order.vm, &format!("it is {now}: somebody set that"))
        }
        None => {}
    }
    let row = Row::moved(order.vm, was, status).because(why.as_deref().unwrap_or("the command ended well"));
    session.report.decided(&serde_json::to_string(&row)?);
    if session.explain {
        print(session, row, (was, status))?;
    }
    Ok(code)
}

/// `-n`: whether the guest could be claimed now.
fn plan(session: &Session, path: &Path, vm: &GuestName) -> Result<u8> {
    let step = Step::begin(path, session.wait, Mode::Plan)?;
    let statedb = step.statedb()?;
    let table = step.table(&statedb)?;
    step.sound(&table.damage)?;
    let was = table.get(vm.as_str());
    may_claim(was, true)?;
    if let Some(held) = step.held_by(vm)? {
        return Err(held);
    }
    let to = Some(Status::BackupInProgress);
    print(session, Row::moved(vm.as_str(), was, to).planned(true), (was, to))?;
    Ok(0)
}

fn print(session: &Session, row: Row, (was, status): (Option<Status>, Option<Status>)) -> Result<()> {
    let mut out = Printer::new(session, &["vm", "was", "status"]);
    let cell = |status: Option<Status>| status.map_or("-", Status::as_str).to_owned();
    out.add(|| Ok(serde_json::to_string(&row)?), || vec![row.vm().to_owned(), cell(was), cell(status)])?;
    out.end()
}

/// Has bak-guests look at the guest, and tells the database what it saw.
fn look(session: &Session, path: &Path, order: &Order, signals: &mut Signals) -> Result<()> {
    let seen = list(order, signals).and_then(|guest| observe::one(session, path, guest));
    seen.context("nothing proves that it is unchanged: cannot look at it")
}

fn list(order: &Order, signals: &mut Signals) -> Result<Guest> {
    let mut program = Program::new("bak-guests")?.timeout(LOOK_MAX).arg("--json");
    if let Some(config) = &order.config {
        program = program.arg("--config").arg(config);
    }
    let mut text = Vec::new();
    let finished = program.arg("--").arg(literal(order.vm)).run_with(|event| {
        if let Event::Output(bytes) = event {
            ensure!(text.len() + bytes.len() <= LISTED_MAX, "it printed too much");
            text.extend_from_slice(bytes);
        }
        match signals.caught()? {
            Some(signal) => bail!("stopped by {signal}"),
            None => Ok(()),
        }
    })?;
    finished.check()?;
    let ours = Reader::new(text.as_slice()).find_map(|record| match record {
        Ok(Record::Guest(guest)) if guest.vm.as_str() == order.vm && guest.failed.is_none() => Some(*guest),
        _ => None,
    });
    ours.context("bak-guests does not list it")
}

/// A pattern that only this name fits, and that is nothing else: no `-`, no dump's id.
fn literal(vm: &str) -> String {
    let quote = |c: char| match c {
        '\\' => "\\\\".to_owned(),
        '*' | '?' | '[' | '{' | '}' | '-' | '@' => format!("[{c}]"),
        _ => c.to_string(),
    };
    vm.chars().map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::literal;
    use bak_common::select::Pattern;

    #[test]
    fn a_name_is_no_pattern() {
        for vm in [
            "web",
            "-",
            "a*b",
            "a?",
            "[a]",
            "a]",
            "{a,b}",
            "a}",
            "a\\b",
            "a\\",
            "x@20261120T010002Z",
            "東京",
            "!a",
            "^",
        ] {
            let pattern = Pattern::new(&literal(vm)).unwrap();
            assert!(pattern.matches(vm), "{vm}: {}", literal(vm));
            assert!(!pattern.matches("aXb") && !pattern.matches("ab") && !pattern.matches("a"), "{vm}");
            assert!(vm == "web" || bak_common::name::DumpId::new(literal(vm)).is_err());
        }
    }
}
