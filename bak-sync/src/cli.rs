//! The command line of bak-sync.

use anyhow::Result;
use bak_common::args::{Common, Destination, Limits, Places, Reach, Session};
use bak_common::calendar::Time;
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::DumpId;
use bak_common::record::{Dump, Record};
use bak_common::report::{Kind, PipeClosed};
use bak_common::stop;
use bak_common::units::minute;
use clap::Parser;
use std::collections::HashMap;

use crate::apply::{self, Options};
use crate::identity;
use crate::reconcile;
use crate::show::{Row, table};
use crate::summary;
use crate::until;
use bak_common::timetable::Timetable;

const EXAMPLES: &str = "\
Examples:
  bak-sync --outbox /var/bak/.outbox-box --dest box=/mnt/box --init
      once: gives the far side its identity
  bak-sync --outbox /var/bak/.outbox-box --dest box=/mnt/box
      one pass: everything that bak-link put into this outbox
  bak-sync --outbox /var/bak/.outbox-box --dest box=/mnt/box --limit 10G --limit 200G/month
      no more than that: what is cut goes on in the next pass
  bak-sync --outbox /var/bak/.outbox-box --dest box=/mnt/box --until 06:00
      a pass of the night: it ends in order then
  bak-sync --outbox /var/bak/.outbox-box --dest box=rsync://me@box/bak --password-file /etc/box.pass
      to the module `bak` of an rsync daemon; over ssh it is --dest box=backup@box:/srv/bak
  bak-sync --outbox /var/bak/.outbox-box --dest box=/mnt/box --reconcile
      after work over there by hand, or when the history is lost: what is there counts as sent, what is not doesn't
  bak-link | bak-sync -
      with a configuration: what was linked now, and what was pending, to every destination

A dump counts as sent when its data, then its sidecar, have arrived and been flushed, and a listing shows all of it. \
What fails stays pending and goes last next time; the others go on. Small dumps (up to 1 MiB) go together. Nothing over there is ever overwritten or deleted, and \
nothing is sent to a place without the identity that --init gave it. Traffic is noted in the ledger, both ways, for every \
attempt.

A limit counts every byte of rsync's stream in both directions, looking at the far side included. When it is reached the \
transfer ends in order: exit 0, the dump stays pending and goes on in the next pass; its record and those of the dumps that \
were not begun say so in `skipped`. A dump that costs more than a pass goes after the others, with at least half of the pass.

Exit status:
  0  done
  1  some dumps failed and stay pending, or the far side could not be reached
  2  usage, configuration or unreadable input
  3  another pass is running
  4  the far side is not the one that --init was run on
SIGINT, SIGTERM and SIGHUP end a pass in order, within five seconds: what was begun goes on in the next pass. bak-sync then \
dies by that signal, which a shell shows as 130, 143 or 129. A second one ends it at once.";

/// Carry an outbox of dumps to off-site storage with rsync.
#[derive(Parser, Debug)]
#[command(name = "bak-sync", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Destinations, by name or as NAME=URL; `-` waits for the records of bak-link to end first [default: all configured]
    #[arg(value_name = "DEST")]
    operands: Vec<String>,
    /// Give the far side an identity, or learn the one it has; sends nothing else
    #[arg(long)]
    init: bool,
    /// List all of the far side: what is there, copies made by others too, counts as sent; what is not no longer does. Sends
    /// no dumps
    #[arg(long, conflicts_with = "init")]
    reconcile: bool,
    /// Bytes a second, 5M or 20Mbit; by the hour, '08:00,512K 19:00,off'; by the day, 'mon-fri 08:00,1M sat-sun 00:00,off'.
    /// off is no limit, 0 is to wait. Each holds until the next one, across midnight and the week's end, too
    #[arg(long, value_name = "RATE|TIMETABLE")]
    bwlimit: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// Let the first dump of a pass finish, even beyond the limits of a pass; those of days, weeks and months hold
    #[arg(long)]
    overdraft: bool,
    /// End in order when the clock next shows this time, 06:00, counted from when this program was started: no dump is begun
    /// after it, and what is on its way goes on in the next pass
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// How often a dump is tried again in a pass after the line has dropped, each time after a longer wait
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    common: Common,
}

pub fn run() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-sync")?;
    let mut places = cli.places.clone();
    places.dest.extend(cli.operands.iter().filter(|text| *text != "-").cloned());
    let mut destinations = places.destinations(&session.config, &[])?;
    cli.limits.apply(&mut destinations)?;
    if cli.common.check_config {
        return check_config(&session, &destinations);
    }
    let piped = if cli.operands.iter().any(|text| text == "-") { piped(&session)? } else { HashMap::new() };
    // Not before: whoever waits for standard input just ends.
    stop::heed()?;
    let mut out = Writer::stdout();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for dest in &destinations {
        let ran = options(&cli, &session, dest).and_then(|options| {
            if cli.init {
                return identity::init(&session, dest, &options);
            }
            let mut done = |mut dump: Dump| {
                // What others put into the record on its way here is theirs to find again.
                if let Some(record) = piped.get(&dump.id) {
                    for (key, value) in &record.extra {
                        dump.extra.entry(key).or_insert_with(|| value.clone());
                    }
                }
                if session.table {
                    rows.push(Row::of(&session, dest, &dump));
                } else if !session.quiet {
                    out.record(&Record::Dump(Box::new(dump)))?;
                }
                Ok(())
            };
            if cli.reconcile {
                lines.push(reconcile::run(&session, dest, &options, &mut done)?);
                return Ok(());
            }
            let figures = apply::pass(&session, dest, &options, &mut done)?;
            lines.extend(figures.iter().flat_map(summary::lines));
            Ok(())
        });
        // One destination that fails does not keep the others waiting.
        match ran {
            Err(error) if error.is::<PipeClosed>() => return Err(error),
            Err(_) if stop::caught().is_some() => {}
            Err(error) => session.report.fail(&dest.name, &error),
            Ok(()) => {}
        }
        if let Some(stopped) = stop::caught() {
            session.report.warn(&dest.name, &format!("{stopped}: {}", left(&cli)));
            break;
        }
    }
    if session.table && !rows.is_empty() {
        out.line(&table(&rows))?;
    }
    if session.table && !session.quiet {
        lines.iter().try_for_each(|line| out.line(line))?;
    }
    Ok(session.report.finish(|failed| format!("{failed} failed; {}", left(&cli))))
}

/// What it means that this did not go well, or not to its end.
fn left(cli: &Cli) -> &'static str {
    if cli.init {
        "run --init again when that is mended"
    } else if cli.reconcile {
        "what was not printed stays as it was"
    } else {
        "what is pending stays pending"
    }
}

/// The dump records of the pipe, once all of them are there.
fn piped(session: &Session) -> Result<HashMap<DumpId, Dump>> {
    let records = read_all(&session.report, session.dry_run)?;
    Ok(records
        .into_iter()
        .filter_map(|record| match record {
            Record::Dump(dump) => Some((dump.id.clone(), *dump)),
            Record::Guest(_) => None,
        })
        .collect())
}

/// When a pass ends that is to last until `text`. Counted from the start of the program: one that then waited for its
/// input, or for a lock, until that time has come does nothing any more.
fn until_next(session: &Session, text: &str) -> Result<Time> {
    let minute = minute(text).map_err(|error| Kind::Usage.says(format!("until: {error:#}")))?;
    until::next(minute, session.now, session.zone).ok_or_else(|| Kind::Usage.says("until: it never comes"))
}

fn options(cli: &Cli, session: &Session, dest: &Destination) -> Result<Options> {
    let bwlimit = cli.bwlimit.as_deref().or(dest.bwlimit.as_deref()).unwrap_or("off");
    let bwlimit = Timetable::parse(bwlimit).map_err(|error| Kind::Usage.says(format!("bwlimit: {error:#}")))?;
    let until = cli.until.as_deref().or(dest.until.as_deref());
    let until = until.map(|text| until_next(session, text)).transpose()?;
    let access = cli.reach.access(&dest.access);
    Ok(Options { bwlimit, access, overdraft: cli.overdraft || dest.overdraft, retries: cli.retries, until })
}

fn check_config(session: &Session, destinations: &[Destination]) -> Result<u8> {
    let mut out = Writer::stdout();
    for dest in destinations {
        let limits: Vec<String> = dest.limits.iter().map(ToString::to_string).collect();
        let line = serde_json::json!({"dest": dest.name, "url": dest.url, "outbox": dest.outbox, "limit": limits, "bwlimit": dest.bwlimit, "until": dest.until, "overdraft": dest.overdraft, "ssh": dest.access.ssh, "password_file": dest.access.password_file});
        out.line(&line.to_string())?;
    }
    Ok(session.report.finish(|_| String::new()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
