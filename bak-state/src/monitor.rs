//! `check`: what monitoring asks. Gathers, judges, and says so as Nagios wants it, as records, and as a textfile.
//!
//! The exit statuses are those of a Nagios plugin and not those of the other commands: 0 OK, 1 WARNING, 2 CRITICAL,
//! 3 UNKNOWN. Whatever keeps it from judging is UNKNOWN, with a line on standard output, where monitoring looks, as well as
//! on standard error: a wrong option, an unreadable database, a lock that is held.

use anyhow::{Error, Result, anyhow};
use bak_common::args::{Picks, Places, Session};
use bak_common::jsonl::Writer;
use bak_common::report::{Kind, PipeClosed};
use bak_common::units::Span;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

use crate::check::{self, Judgement, Level, Problem, Verdict};
use crate::cli::Base;
use crate::gather::{Facts, gather};
use crate::show::{self, Chooser};
use crate::{nagios, prometheus};

const HELP: &str = "\
Examples:
  bak-state check --db /var/lib/bak --store /srv/dumps --max-age 3d
  bak-state check --db /var/lib/bak --json | jq -r .why

A guest alarms when it has needed a dump for longer than --max-age. One that is unchanged since
its last dump never does, nor does one that is archived, or gone: not seen for that long while
others of its node and driver were. So observe at least that often: that nobody looks alarms, too.

An off-site copy alarms when it has lacked a dump for longer than --sent-max-age. Retention may have
removed the first one that it lacks: the database remembers it, if observe is given the store and
the destinations too, as bak-cron-dump does. Where it cannot tell, that is a warning.

The configuration has both as max_age and sent_max_age: at the top, the second also in [[dest]], and
in [[guest]]. These options beat all but what a [[guest]] says. Nodes that share the database and
not the store check their own guests, by --node.

Beyond a limit is critical. So are a guest that is CLEAN and has no good dump, a date in the future,
and that nobody looks. A failed attempt within the limit is a warning, and so is what cannot be read.

The textfile is not written where nothing can be judged, nor with -n: watch how old its
bak_check_timestamp_seconds is.

Exit status, as Nagios plugins have it and unlike all other commands: 0 OK; 1 WARNING; 2 CRITICAL;
3 UNKNOWN: it cannot be judged (usage, configuration, an unreadable or locked database).";

/// The arguments of `check`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct Check {
    /// Names or patterns; `-`: records on standard input [default: all]
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    /// For how long a guest may need a dump [default: max_age of the configuration, or 26h]
    #[arg(long, value_name = "DUR")]
    max_age: Option<Span>,
    /// For how long an off-site copy may lack a dump [default: sent_max_age of the configuration, or 7d]
    #[arg(long, value_name = "DUR")]
    sent_max_age: Option<Span>,
    /// Also write a textfile for node_exporter
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<T> {
    v: u32,
    r#type: &'static str,
    #[serde(flatten)]
    what: T,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    planned: bool,
}

#[derive(Serialize)]
struct Unknown {
    level: &'static str,
    why: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    General(&'a Problem),
    Guest(&'a Verdict),
    Unknown(Unknown),
}

fn record(what: What, planned: bool) -> Result<String> {
    Ok(serde_json::to_string(&Line { v: 1, r#type: "check", what, planned })?)
}

/// Runs it; the exit status.
pub fn run(args: &Check) -> Result<u8> {
    let common = &args.base.common;
    checked(args).map_err(|error| {
        if error.is::<PipeClosed>() {
            return error;
        }
        unknown(&error, common.json, common.quiet);
        // The status of a held lock happens to be that of UNKNOWN.
        Kind::Locked.of(error)
    })
}

/// Says on standard output that nothing could be judged.
fn unknown(error: &Error, json: bool, quiet: bool) {
    let why = format!("{error:#}");
    let line =
        if json { record(What::Unknown(Unknown { level: "unknown", why }), false) } else { Ok(nagios::unknown(&why)) };
    if let Ok(line) = line
        && !quiet
    {
        // Where standard output is gone there is still the exit status.
        let _ = Writer::stdout().line(&line);
    }
}

fn checked(args: &Check) -> Result<u8> {
    let mut session = args.base.session()?;
    limits(&mut session, args);
    let session = &session;
    let path = &args.base.db(session)?;
    if args.base.common.check_config {
        return show::check_config(session, path);
    }
    if args.base.repair {
        crate::repair::run(session, path)?;
    }
    let chooser = Chooser::any(session, &args.picks, &args.guests)?;
    if session.report.failed() > 0 {
        return Err(Kind::Usage.says("not all of standard input can be read"));
    }
    let facts = gather(session, path, &chooser, &args.places)?;
    let mut judgement = check::judge(&facts.guests, session.now);
    judgement.general.extend(facts.problems.iter().cloned());
    if let Some(file) = args.prometheus.as_deref().filter(|_| !session.dry_run)
        && let Err(error) = textfile(session, file, &facts, &judgement)
    {
        // What is known to be critical stays so.
        if judgement.level() < Level::Critical {
            return Err(error);
        }
        session.report.fail("prometheus", &error);
    }
    print(session, args, &facts, &judgement)?;
    Ok(nagios::word(judgement.level()).1)
}

/// The options stand above the configuration, but for what that says of some guests.
fn limits(session: &mut Session, args: &Check) {
    let config = &mut session.config;
    config.max_age = args.max_age.or(config.max_age);
    if args.sent_max_age.is_some() {
        config.sent_max_age = args.sent_max_age;
        config.dest.iter_mut().for_each(|dest| dest.sent_max_age = None);
    }
}

fn textfile(session: &Session, file: &Path, facts: &Facts, judgement: &Judgement) -> Result<()> {
    prometheus::write(file, &prometheus::render(facts, judgement, session.now))
}

fn print(session: &Session, args: &Check, facts: &Facts, judgement: &Judgement) -> Result<()> {
    let mut out = Writer::stdout();
    if session.quiet {
        return Ok(());
    }
    if args.base.common.json {
        let general = judgement.general.iter().map(What::General);
        for what in general.chain(judgement.guests.iter().map(What::Guest)) {
            out.line(&record(what, session.dry_run)?)?;
        }
        return Ok(());
    }
    out.line(&nagios::line(judgement, &facts.totals, session.now))?;
    if session.explain {
        for line in nagios::details(judgement) {
            out.line(&line)?;
        }
    }
    Ok(())
}

/// Says what is wrong with the command line of a `check`; the exit status.
pub fn usage(error: &clap::Error) -> u8 {
    // In full on standard error, as usual; its first line where monitoring looks.
    let _ = error.print();
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    unknown(&anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first)), false, false);
    nagios::UNKNOWN.1
}
