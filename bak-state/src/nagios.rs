//! A judgement as one line for Nagios and those who took over its plugin interface. Pure.
//!
//! `BAK <LEVEL> - <text> | <perfdata>`: a bar ends the text, a newline the line. Names come from outside, so neither may
//! stand in them.

use bak_common::calendar::Time;
use bak_common::name::printable;

use crate::check::{Judgement, Level, Problem, Verdict};
use crate::gather::Totals;

/// What the line has room for.
const SHOWN_MAX: usize = 10;

/// The word and exit status of an error of our own.
pub const UNKNOWN: (&str, u8) = ("UNKNOWN", 3);

pub fn word(level: Level) -> (&'static str, u8) {
    match level {
        Level::Ok => ("OK", 0),
        Level::Warning => ("WARNING", 1),
        Level::Critical => ("CRITICAL", 2),
    }
}

/// Text from outside, in one line and without a bar.
pub fn shown(text: &str) -> String {
    printable(text).replace('|', "\\u{7c}")
}

/// The line that says why nothing could be judged.
pub fn unknown(why: &str) -> String {
    format!("BAK {} - {}", UNKNOWN.0, shown(why))
}

/// The first line.
pub fn line(judgement: &Judgement, totals: &[Totals], now: Time) -> String {
    let (word, _) = word(judgement.level());
    format!("BAK {word} - {} | {}", shown(&summary(judgement)), perfdata(judgement, totals, now))
}

/// One more line for each guest.
pub fn details(judgement: &Judgement) -> impl Iterator<Item = String> {
    judgement.guests.iter().map(|guest| {
        let why = if guest.problems.is_empty() { guest.why.clone() } else { joined(&guest.problems) };
        shown(&format!("{}: {} {}: {why}", guest.vm, guest.status, word(guest.level).0))
    })
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.why.as_str()).collect::<Vec<_>>().join("; ")
}

fn summary(judgement: &Judgement) -> String {
    let all = judgement.guests.len();
    let guests = if all == 1 { "1 guest".to_owned() } else { format!("{all} guests") };
    let bad = all - judgement.count(Level::Ok);
    let mut said: Vec<(Level, String)> = Vec::new();
    said.extend(judgement.general.iter().map(|problem| (problem.level, problem.why.clone())));
    let of = |guest: &Verdict| (guest.level, format!("{}: {}", guest.vm, joined(&guest.problems)));
    said.extend(judgement.guests.iter().filter(|guest| guest.level > Level::Ok).map(of));
    if said.is_empty() {
        return guests + &aside(judgement);
    }
    said.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let more = said.len().saturating_sub(SHOWN_MAX);
    let mut said: Vec<String> = said.into_iter().take(SHOWN_MAX).map(|(_, why)| why).collect();
    if more > 0 {
        said.push(format!("and {more} more (--explain)"));
    }
    let head = if bad > 0 { format!("{bad} of {guests}") } else { guests };
    format!("{head}: {}", said.join("; "))
}

fn aside(judgement: &Judgement) -> String {
    let gone = judgement.guests.iter().filter(|guest| guest.gone).count();
    let archived = judgement.guests.iter().filter(|guest| guest.status == "ARCHIVED").count();
    let say = |count: usize, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
    say(gone, "gone") + &say(archived, "archived")
}

/// `'label'=value[unit];[warn];[crit];[min];[max]`, separated by spaces.
fn perfdata(judgement: &Judgement, totals: &[Totals], now: Time) -> String {
    let due = judgement.guests.iter().filter(|guest| !guest.gone).filter_map(|guest| guest.due);
    let longest = due.map(|due| now.since(due).max(0)).max().unwrap_or(0);
    let gone = judgement.guests.iter().filter(|guest| guest.gone).count();
    let mut parts = vec![
        format!("guests={};;;0", judgement.guests.len()),
        format!("critical={};;0;0", judgement.count(Level::Critical)),
        format!("warning={};0;;0", judgement.count(Level::Warning)),
        format!("gone={gone};;;0"),
        format!("due={longest}s;;;0"),
    ];
    for Totals { dest, pending, waiting } in totals {
        parts.push(format!("{}={pending}B;;;0", label(&format!("{dest}_pending"))));
        parts.push(format!("{}={waiting}B;;;0", label(&format!("{dest}_waiting"))));
    }
    parts.join(" ")
}

fn label(text: &str) -> String {
    let sound = |c: char| if c.is_control() || matches!(c, '=' | '|') { '_' } else { c };
    format!("'{}'", text.chars().map(sound).collect::<String>().replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::What;

    #[test]
    fn labels_and_text_stay_in_their_place() {
        assert_eq!(label("it's|a=b\n"), "'it''s_a_b_'");
        assert_eq!(shown("a|b\nc"), "a\\u{7c}b\\nc");
    }

    #[test]
    fn a_line_has_room_for_some() {
        let why = |n: usize| Problem::new(Level::Warning, What::Unreadable, format!("no {n}"));
        let mut judgement = Judgement { general: (0..12).map(why).collect(), guests: Vec::new() };
        judgement.general.push(Problem::new(Level::Critical, What::Unobserved, "nobody looks"));
        let now = "2026-11-20T12:00:00Z".parse().unwrap();
        let line = line(&judgement, &[], now);
        assert!(line.starts_with("BAK CRITICAL - 0 guests: nobody looks; no 0; "), "{line}");
        assert!(line.contains("; no 8; and 3 more (--explain) | guests=0;;;0 "), "{line}");
    }
}
