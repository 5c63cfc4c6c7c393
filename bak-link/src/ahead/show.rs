//! A forecast for a person on a terminal: a summary, a row for each guest, what is assumed, and a plot. No line is wider
//! than the terminal.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::jsonl::Writer;
use bak_common::name::printable;
use bak_common::table::{table, width};
use bak_common::units::{show_duration, show_size};

use super::plot::{Canvas, plot};
use super::{Subject, Told, lines};
use crate::budget::show_limit;
use crate::forecast::{Forecast, Outlook, Smallest, spell};

/// Where a terminal does not say how wide it is.
const WIDTH: usize = 80;
/// What the columns but the first two take at most, with the spaces between.
const FIGURES: usize = 52;
const PLOT_HEIGHT: usize = 6;
/// How much of a guest's name is shown where many stand in a row.
const NAME: usize = 24;

struct Paper {
    width: usize,
    /// Whether the locale has more than ASCII.
    unicode: bool,
}

impl Paper {
    fn new() -> Self {
        let set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(set).and_then(|name| std::env::var(name).ok());
        let locale = locale.unwrap_or_default().to_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        // Narrower ones are not designed for, and 0 says that it is unknown.
        Self { width: width().filter(|width| *width >= 40).unwrap_or(WIDTH), unicode }
    }

    fn cut(&self, text: &str, width: usize) -> String {
        let text = printable(text).to_string();
        if text.chars().count() <= width {
            return text;
        }
        let kept: String = text.chars().take(width.saturating_sub(1)).collect();
        format!("{kept}{}", if self.unicode { '…' } else { '~' })
    }

    /// Lines no wider than the terminal; all but the first are indented.
    fn fold(&self, text: &str) -> Vec<String> {
        let mut lines = vec![String::new()];
        for word in text.split(' ') {
            let last = lines.len() - 1;
            let fits = lines[last].chars().count() + 1 + word.chars().count() <= self.width;
            if lines[last].is_empty() {
                lines[last].push_str(word);
            } else if fits {
                lines[last].push(' ');
                lines[last].push_str(word);
            } else {
                lines.push(self.cut(&format!("  {word}"), self.width));
            }
        }
        lines
    }
}

pub fn print(session: &Session, told: &Told) -> Result<()> {
    let paper = Paper::new();
    let mut writer = Writer::stdout();
    let forecast = &told.forecast;
    let concerned = || told.subjects.iter().zip(&forecast.guests).filter(|(subject, _)| subject.concerned);
    let mut text = vec![head(session, told)];
    let rows: Vec<Vec<String>> =
        concerned().map(|(subject, outlook)| row(session, &paper, forecast, told, subject, outlook)).collect();
    if !rows.is_empty() {
        let headings = ["guest", "dumped", "size", "first", "sent", "median", "worst", "target"];
        text.extend(table(&headings, &[2, 4, 5, 6, 7], rows).lines().map(str::to_owned));
    }
    let shown = text.len();
    text.extend(concerned().flat_map(|(subject, outlook)| remarks(subject, outlook)));
    text.extend(verdicts(session, told));
    let mut lines: Vec<String> = paper.fold(&text[0]);
    lines.extend_from_slice(&text[1..shown]);
    lines.extend(text[shown..].iter().flat_map(|line| paper.fold(line)));
    lines.extend(backlog(session, &paper, forecast));
    if session.explain {
        lines.extend(days(session, &paper, told));
    }
    lines.iter().try_for_each(|line| writer.line(line))
}

fn head(session: &Session, told: &Told) -> String {
    let (forecast, zone) = (&told.forecast, session.zone);
    let limits: Vec<String> = told.dest.limits.iter().map(|limit| show_limit(*limit)).collect();
    let limits = if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") };
    let (from, until) = (zone.minute(forecast.from), zone.minute(forecast.until));
    format!("{}: {from} to {until}, {} passes, {}; {limits}", told.dest.name, forecast.passes.len(), forecast.rhythm)
}

fn row(
    session: &Session,
    paper: &Paper,
    forecast: &Forecast,
    told: &Told,
    subject: &Subject,
    outlook: &Outlook,
) -> Vec<String> {
    let room = paper.width.saturating_sub(FIGURES).max(12);
    let rhythm = paper.cut(&outlook.rhythm, (room / 2).min(28));
    let guest = subject.name.as_deref().filter(|name| *name != subject.key.vm.as_str());
    let guest = guest.map_or_else(|| subject.key.vm.to_string(), |name| format!("{} {name}", subject.key.vm));
    let first = forecast.sends.iter().find(|sending| told.subjects[sending.guest].key == subject.key);
    let first = first.map_or_else(|| "-".into(), |sending| session.zone.local(sending.at).format("%m-%d").to_string());
    let over = if outlook.kept() == Some(false) { "!" } else { "" };
    vec![
        paper.cut(&guest, room - (room / 2).min(28)),
        rhythm,
        show_size(outlook.bytes).replace(' ', ""),
        first,
        format!("{}/{}", outlook.sent, outlook.made),
        outlook.median_s.map_or_else(|| "-".into(), brief),
        outlook.worst_s.map_or_else(|| "-".into(), |worst| format!("{over}{}", brief(worst))),
        brief(i64::try_from(outlook.target_s).unwrap_or(i64::MAX)),
    ]
}

/// A duration in few characters: `0`, `36h`, `1.5d`.
fn brief(seconds: i64) -> String {
    if seconds == 0 { "0".into() } else { show_duration(seconds).replace(' ', "").replace("min", "m") }
}

fn remarks(subject: &Subject, outlook: &Outlook) -> Vec<String> {
    let vm = printable(subject.key.vm.as_str()).to_string();
    let never = outlook.never.as_ref().map(|why| format!("{vm} never goes: {why}."));
    let stopped = outlook.stopped.as_ref().map(|why| format!("{vm} is taken to be dumped no more: {why}."));
    never.into_iter().chain(stopped).collect()
}

/// What it comes to.
fn verdicts(session: &Session, told: &Told) -> Vec<String> {
    let forecast = &told.forecast;
    let sum = |count: fn(&Outlook) -> u64| told.concerned().map(count).sum::<u64>();
    let mut text = vec![format!(
        "{} dumps: {} go, {} are superseded by newer ones, {} wait at the end.",
        sum(|one| one.made),
        sum(|one| one.sent),
        sum(|one| one.superseded),
        sum(|one| one.waiting)
    )];
    if forecast.judged_from > forecast.from {
        let from = session.zone.minute(forecast.judged_from);
        text.push(format!("Somebody is staler now than they may be, so staleness counts from {from} on."));
    }
    let assumed = told.subjects.iter().filter(|subject| subject.concerned && subject.target == "assumed").count();
    if assumed > 0 {
        text.push(format!(
            "Target 7 d is assumed for {assumed}: neither stale_after nor sent_max_age is set (--target)."
        ));
    }
    text.push(match forecast.stable {
        Some(true) => "Stable: what waits does not grow.".into(),
        Some(false) => "Not stable: what waits grows.".into(),
        None => "Too few passes to tell whether it is stable.".into(),
    });
    text.extend(forecast.smallest.iter().map(|found| match found {
        Smallest::Enough { limit, alone } => {
            let beside = match (alone, forecast.smallest.len()) {
                (true, _) => " by itself (with the others, none does)",
                (false, 1) => "",
                (false, _) => " beside the others",
            };
            format!(
                "The smallest limit a {} that keeps all within target{beside}: {}.",
                lines::period_name(limit.period),
                spell(*limit)
            )
        }
        Smallest::Never { period, guest, at } => {
            format!("No limit a {} is enough: {}.", lines::period_name(*period), lines::never(told, *guest, *at))
        }
    }));
    text
}

fn backlog(session: &Session, paper: &Paper, forecast: &Forecast) -> Vec<String> {
    let waiting: Vec<u64> = forecast.passes.iter().map(|pass| pass.waiting).collect();
    let date = |pass: Option<&crate::forecast::PassPlayed>| {
        pass.map_or_else(String::new, |pass| session.zone.local(pass.at).format("%m-%d").to_string())
    };
    let top = show_size(waiting.iter().copied().max().unwrap_or(0));
    let canvas = Canvas { width: paper.width, height: PLOT_HEIGHT, blocks: paper.unicode };
    let ends = (date(forecast.passes.first()), date(forecast.passes.last()));
    let drawn = plot(&waiting, &top, (&ends.0, &ends.1), canvas);
    let title = if drawn.is_empty() { "Nothing waits after any pass." } else { "What waits after each pass:" };
    std::iter::once(title.to_owned()).chain(drawn).collect()
}

/// Which guests go on which day.
fn days(session: &Session, paper: &Paper, told: &Told) -> Vec<String> {
    let day = |sending: &crate::forecast::Sending| session.zone.local(sending.at).date();
    let groups = told.forecast.sends.chunk_by(|a, b| day(a) == day(b));
    let line = |group: &[crate::forecast::Sending]| {
        let vms = group.iter().map(|sending| paper.cut(told.subjects[sending.guest].key.vm.as_str(), NAME));
        format!("{}: {}", day(&group[0]), vms.collect::<Vec<_>>().join(" "))
    };
    groups.flat_map(|group| paper.fold(&line(group))).collect()
}
