//! A forecast as records, one JSON object a line: `forecast.dump` for each dump that goes, by time; `forecast.pass` for
//! each pass; `forecast.guest` for each guest; `forecast` last, for the destination. All carry `dest`, and `planned`, as
//! nothing of it has happened. No other program of bak takes them.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::jsonl::Writer;
use bak_common::name::DumpId;
use bak_common::record::VERSION;
use bak_common::units::Limit;
use serde::Serialize;

use super::{Subject, Told};
use crate::forecast::{Forecast, Outlook, Sending, Smallest};

#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    r#type: &'static str,
    dest: &'a str,
    planned: bool,
    #[serde(flatten)]
    body: T,
}

/// Which guest.
#[derive(Serialize)]
struct Of<'a> {
    vm: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

/// A dump that goes.
#[derive(Serialize)]
struct Goes<'a> {
    id: &'a DumpId,
    #[serde(flatten)]
    of: Of<'a>,
    /// Of the pass that it arrives in, on the local calendar.
    day: String,
    at: Time,
    /// The pass that it is linked for; earlier than the forecast if it is pending now.
    linked: Time,
    /// When it is linked; absent if nothing of the guest was sent before, or if it is pending now.
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_s: Option<i64>,
    /// Bytes that the planner charges, and bytes on the wire, both ways.
    cost: u64,
    wire: u64,
    /// That carry some of it.
    passes: u64,
}

#[derive(Serialize)]
struct Passes {
    at: Time,
    /// Dumps that arrive, and bytes on the wire.
    sent: u64,
    carried: u64,
    /// Dumps and bytes that are due or pending when it ends.
    waiting_dumps: u64,
    waiting: u64,
}

#[derive(Serialize)]
struct GuestLine<'a> {
    #[serde(flatten)]
    of: Of<'a>,
    rhythm: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    never: Option<&'a str>,
    bytes: u64,
    cost: u64,
    made: u64,
    sent: u64,
    superseded: u64,
    waiting: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_median_s: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness_worst_s: Option<i64>,
    target_s: u64,
    target: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<bool>,
}

#[derive(Serialize)]
struct Summary<'a> {
    from: Time,
    until: Time,
    judged_from: Time,
    rhythm: &'a str,
    passes: u64,
    limits: &'a [Limit],
    made: u64,
    sent: u64,
    superseded: u64,
    waiting: u64,
    carried: u64,
    waiting_most: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stable: Option<bool>,
    smallest: Vec<SmallestLine>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum SmallestLine {
    Enough { limit: Limit, alone: bool },
    Never { period: &'static str, never: String },
}

/// Prints all lines of one destination.
pub fn print(session: &Session, told: &Told) -> Result<()> {
    let mut writer = Writer::stdout();
    let forecast = &told.forecast;
    for sending in &forecast.sends {
        write(&mut writer, told, "forecast.dump", goes(session, &told.subjects[sending.guest], sending))?;
    }
    for pass in &forecast.passes {
        let (at, sent, carried, waiting_dumps, waiting) =
            (pass.at, pass.sent, pass.carried, pass.waiting_dumps, pass.waiting);
        write(&mut writer, told, "forecast.pass", Passes { at, sent, carried, waiting_dumps, waiting })?;
    }
    for (subject, outlook) in told.subjects.iter().zip(&forecast.guests).filter(|(subject, _)| subject.concerned) {
        write(&mut writer, told, "forecast.guest", guest(subject, outlook))?;
    }
    write(&mut writer, told, "forecast", summary(told, forecast))
}

fn write<T: Serialize>(writer: &mut Writer<std::io::Stdout>, told: &Told, r#type: &'static str, body: T) -> Result<()> {
    let line = Line { v: VERSION, r#type, dest: &told.dest.name, planned: true, body };
    writer.line(&serde_json::to_string(&line)?)
}

fn of(subject: &Subject) -> Of<'_> {
    let key = &subject.key;
    Of { vm: key.vm.as_str(), kind: &key.kind, uid: key.uid.as_deref(), name: subject.name.as_deref() }
}

fn goes<'a>(session: &Session, subject: &'a Subject, sending: &'a Sending) -> Goes<'a> {
    Goes {
        id: &sending.id,
        of: of(subject),
        day: session.zone.local(sending.at).date().to_string(),
        at: sending.at,
        linked: sending.linked,
        staleness_s: sending.staleness_s,
        cost: sending.cost,
        wire: sending.wire,
        passes: sending.passes,
    }
}

fn guest<'a>(subject: &'a Subject, outlook: &'a Outlook) -> GuestLine<'a> {
    GuestLine {
        of: of(subject),
        rhythm: &outlook.rhythm,
        stopped: outlook.stopped.as_deref(),
        never: outlook.never.as_deref(),
        bytes: outlook.bytes,
        cost: outlook.cost,
        made: outlook.made,
        sent: outlook.sent,
        superseded: outlook.superseded,
        waiting: outlook.waiting,
        staleness_median_s: outlook.median_s,
        staleness_worst_s: outlook.worst_s,
        target_s: outlook.target_s,
        target: subject.target,
        kept: outlook.kept(),
    }
}

fn summary<'a>(told: &'a Told, forecast: &'a Forecast) -> Summary<'a> {
    let sum = |count: fn(&Outlook) -> u64| told.concerned().map(count).sum();
    Summary {
        from: forecast.from,
        until: forecast.until,
        judged_from: forecast.judged_from,
        rhythm: &forecast.rhythm,
        passes: forecast.passes.len() as u64,
        limits: &told.dest.limits,
        made: sum(|one| one.made),
        sent: sum(|one| one.sent),
        superseded: sum(|one| one.superseded),
        waiting: sum(|one| one.waiting),
        carried: forecast.passes.iter().fold(0, |sum, pass| sum.saturating_add(pass.carried)),
        waiting_most: forecast.passes.iter().map(|pass| pass.waiting).max().unwrap_or(0),
        stable: forecast.stable,
        smallest: forecast.smallest.iter().map(|one| smallest(told, one)).collect(),
    }
}

fn smallest(told: &Told, found: &Smallest) -> SmallestLine {
    match found {
        Smallest::Enough { limit, alone } => SmallestLine::Enough { limit: *limit, alone: *alone },
        Smallest::Never { period, guest, at } => {
            SmallestLine::Never { period: period_name(*period), never: never(told, *guest, *at) }
        }
    }
}

pub fn period_name(period: bak_common::units::Period) -> &'static str {
    use bak_common::units::Period;
    match period {
        Period::Pass => "pass",
        Period::Day => "day",
        Period::Week => "week",
        Period::Month(_) => "month",
    }
}

/// Why no limit is enough.
pub fn never(told: &Told, guest: usize, at: Time) -> String {
    format!("{} is staler than it may be after the pass at {at} even without a limit", told.subjects[guest].key.vm)
}
