//! `--simulate`: reads what is needed, and prints what [`crate::simulate`] finds.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::config::Keep;
use bak_common::jsonl::Writer;
use bak_common::record::Dump;
use chrono::NaiveDate;
use serde_json::json;

use crate::apply::rules;
use crate::calendar::calendar;
use crate::held;
use crate::plan::{self, Terms};
use crate::request::Request;
use crate::simulate::{Day, Schedule, play};

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Simulate {
    /// For how long, in seconds.
    pub span_s: i64,
    /// Absent: as the guests were dumped so far; nightly at 02:00 for a made-up one.
    pub schedule: Option<Schedule>,
    /// The day that the calendar shows; the last if absent.
    pub on: Option<NaiveDate>,
}

/// The guest of a simulation without a store.
const MADE_UP: &str = "example";

/// Plays the rules forward for each guest selected, or for a made-up one where no store is named.
pub fn run(session: &Session, request: &Request, simulate: &Simulate) -> Result<u8> {
    let mut writer = Writer::stdout();
    if request.places.is_empty() {
        let mut keep = request.rules.clone().unwrap_or_else(|| session.config.keep.clone());
        keep.failed = None;
        let nightly = || "1d@02:00".parse::<Schedule>();
        let schedule = simulate.schedule.map_or_else(nightly, Ok)?;
        show(session, &mut writer, MADE_UP, &days(session, simulate, &[], schedule, &keep)?, simulate)?;
    }
    for place in &request.places {
        let (_, view) = held::open(session, place, false)?;
        let (candidates, terms) = (view.candidates(), Terms::at(session.now, session.zone));
        for face in plan::faces(&candidates, &terms) {
            let dump: &Dump = &view.entries[face].dump;
            if !request.guests.matches(dump) {
                continue;
            }
            let own = |entry: &&bak_common::store::Entry| entry.is_good() && entry.dump.key() == dump.key();
            let mut starts: Vec<Time> = view.entries.iter().filter(own).map(|entry| entry.dump.started).collect();
            starts.retain(|started| *started <= session.now.plus(request.skew_s));
            starts.dedup();
            let schedule = simulate.schedule.unwrap_or_else(|| Schedule::of(&starts, session.zone));
            let keep = rules(session, request, place, dump);
            show(
                session,
                &mut writer,
                dump.vm.as_str(),
                &days(session, simulate, &starts, schedule, &keep)?,
                simulate,
            )?;
        }
        view.report(session, |_| true);
    }
    Ok(session.report.finish(|count| format!("{count} could not be read")))
}

fn days(session: &Session, simulate: &Simulate, exist: &[Time], schedule: Schedule, keep: &Keep) -> Result<Vec<Day>> {
    let until = session.now.plus(simulate.span_s);
    let coming = schedule.times(session.zone, session.now, until)?;
    Ok(play(exist, coming, keep, session.zone, session.now, until))
}

/// Records for a pipe; for people the calendar of one day, and how many there would be.
fn show(
    session: &Session,
    writer: &mut Writer<std::io::Stdout>,
    vm: &str,
    days: &[Day],
    simulate: &Simulate,
) -> Result<()> {
    if session.quiet {
        return Ok(());
    }
    if !session.table {
        for Day { day, exists } in days.iter().filter(|day| simulate.on.is_none_or(|on| on == day.day)) {
            let record = json!({"v": 1, "type": "day", "vm": vm, "day": day.to_string(), "count": exists.len(), "exists": exists});
            writer.line(&record.to_string())?;
        }
        return Ok(());
    }
    let shown = days.iter().find(|day| Some(day.day) == simulate.on).or_else(|| match simulate.on {
        None => days.last(),
        Some(_) => None,
    });
    let Some(Day { day, exists }) = shown else { return Ok(()) };
    let most = days.iter().map(|day| day.exists.len()).max().unwrap_or(0);
    writer.line(&calendar(exists, session.zone))?;
    let since = exists.first().map_or_else(String::new, |oldest| format!(" since {}", session.zone.minute(*oldest)));
    let plural = if exists.len() == 1 { "dump" } else { "dumps" };
    writer.line(&format!("\n{vm}, {day}: {} {plural}{since}; at most {most} on any day\n", exists.len()))
}
