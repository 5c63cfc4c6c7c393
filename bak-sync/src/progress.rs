//! Two lines while a dump is on its way, one of it and one of the pass; on a terminal only: cron mails what it sees.

use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::meter::Wire;
use bak_common::name::printable;
use bak_common::period::show_limit;
use bak_common::record::Dump;
use bak_common::units::{Limit, show_duration, show_size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Where a pass stands when a dump begins.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    pub dest: String,
    /// Which dump of the pass it is, from 1 on, and of how many.
    pub nth: usize,
    pub of: usize,
    /// What the dumps after it are expected to cost, in bytes.
    pub later: u64,
    /// What the dumps before it have cost.
    pub spent: u64,
    /// The limit of which least is left, and what is used of it.
    pub limit: Option<(Limit, u64)>,
    pub until: Option<Time>,
}

/// What is shown of a dump on its way.
#[derive(Clone, Debug, Default)]
struct Shown {
    id: String,
    bytes: u64,
    /// How many of these it has dealt with.
    position: u64,
    /// What it has cost so far.
    crossed: u64,
    /// Bytes a second on the line, lately; and how many of its bytes it deals with.
    rate: u64,
    pace: u64,
}

impl Shown {
    /// Seconds until the dump is over there; `None` as long as that cannot be told.
    fn left(&self) -> Option<u64> {
        (self.position > 0).then(|| self.bytes.saturating_sub(self.position).checked_div(self.pace)).flatten()
    }
}

/// The line of the dump and the line of the pass, each no longer than `width`. `until` is the seconds until the pass ends.
fn lines(shown: &Shown, turn: &Turn, until: Option<(String, u64)>, width: usize) -> [String; 2] {
    let percent = |part: u64, of: u64| (u128::from(part) * 100).checked_div(u128::from(of)).unwrap_or(100).min(100);
    let time = |seconds: u64| format!("{} left", show_duration(i64::try_from(seconds).unwrap_or(i64::MAX)));
    // In the order in which they stand; the greater the number, the sooner a part is left out.
    let mut dump = vec![(0, format!("{}:", shown.id))];
    if shown.position > 0 {
        dump.push((1, format!("{} %", percent(shown.position, shown.bytes))));
        dump.push((4, format!("of {}", show_size(shown.bytes))));
    } else {
        dump.push((4, show_size(shown.bytes)));
    }
    dump.push((3, format!("{} crossed", show_size(shown.crossed))));
    if shown.rate > 0 {
        dump.push((2, format!("{}/s", show_size(shown.rate))));
    }
    dump.extend(shown.left().filter(|left| *left > 0).map(|left| (1, time(left))));
    let mut pass = vec![(0, format!("{}:", turn.dest)), (0, format!("{} of {}", turn.nth, turn.of))];
    let spent = turn.spent.saturating_add(shown.crossed);
    let mut left = Vec::new();
    match &turn.limit {
        Some((limit, used)) => {
            let used = used.saturating_add(shown.crossed);
            let share = percent(used, limit.bytes);
            pass.push((2, show_size(used).to_string()));
            pass.push((1, format!("{share} % of {}", show_limit(*limit))));
            left.extend(limit.bytes.saturating_sub(used).checked_div(shown.rate));
        }
        None => pass.push((2, format!("{} crossed", show_size(spent)))),
    }
    if let Some((when, seconds)) = until {
        pass.push((3, format!("until {when}")));
        left.push(seconds);
    }
    let all = shown.left().and_then(|left| Some(left.saturating_add(turn.later.checked_div(shown.rate)?)));
    // The first of these ends the pass.
    let first = all.into_iter().chain(left).min().filter(|left| *left > 0 && shown.rate > 0);
    pass.extend(first.map(|left| (1, format!("about {}", time(left)))));
    [fit(dump, width), fit(pass, width)]
}

/// Joins the parts of a line, without those that have no room; if even the first ones have none, it is cut.
fn fit(mut parts: Vec<(u32, String)>, width: usize) -> String {
    loop {
        let text = parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join("  ");
        let Some(last) = parts.iter().map(|(rank, _)| *rank).max().filter(|rank| *rank > 0) else {
            return text.chars().take(width).collect();
        };
        if text.chars().count() <= width {
            return text;
        }
        parts.retain(|(rank, _)| *rank < last);
    }
}

/// How fast a number has grown lately.
#[derive(Debug, Default)]
struct Pace(VecDeque<(Instant, u64)>);

const LATELY: Duration = Duration::from_secs(15);

impl Pace {
    /// A second, from the numbers of the last quarter of a minute.
    fn at(&mut self, now: Instant, number: u64) -> u64 {
        self.0.push_back((now, number));
        while self.0.len() > 2 && self.0.front().is_some_and(|(then, _)| now.duration_since(*then) > LATELY) {
            self.0.pop_front();
        }
        let (then, before) = self.0.front().copied().unwrap_or((now, number));
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds < 0.5 { 0 } else { (number.saturating_sub(before) as f64 / seconds) as u64 }
    }
}

/// The lines as they stand on the terminal; taken off when dropped.
pub struct Bar {
    bar: Option<ProgressBar>,
    shown: Shown,
    turn: Turn,
    until: Option<(String, Instant)>,
    position: Arc<AtomicU64>,
    drawn: Instant,
    rate: Pace,
    pace: Pace,
}

/// How often they are drawn.
const DRAWN: Duration = Duration::from_millis(250);

impl Bar {
    /// `position` tells how many bytes of the dump have been dealt with.
    pub fn new(session: &Session, dump: &Dump, turn: &Turn, position: Arc<AtomicU64>) -> Self {
        let bar = (std::io::stderr().is_terminal() && !session.quiet).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        let until = turn.until.map(|until| {
            let left = u64::try_from(until.since(session.clock())).unwrap_or(0);
            let clock = session.zone.local(until).format("%H:%M").to_string();
            (clock, Instant::now() + Duration::from_secs(left))
        });
        let shown = Shown { id: printable(dump.id.as_str()), bytes: dump.bytes, ..Shown::default() };
        let (rate, pace) = (Pace::default(), Pace::default());
        Self { bar, shown, turn: turn.clone(), until, position, drawn: Instant::now(), rate, pace }
    }

    pub fn at(&mut self, wire: Wire) {
        let now = Instant::now();
        let Some(bar) = self.bar.as_ref().filter(|_| now.duration_since(self.drawn) >= DRAWN) else { return };
        self.drawn = now;
        self.shown.crossed = wire.both();
        self.shown.position = self.position.load(Relaxed).min(self.shown.bytes);
        self.shown.rate = self.rate.at(now, self.shown.crossed);
        self.shown.pace = self.pace.at(now, self.shown.position);
        let until = self.until.as_ref();
        let until = until.map(|(clock, end)| (clock.clone(), end.saturating_duration_since(now).as_secs()));
        bar.set_message(lines(&self.shown, &self.turn, until, width()).join("\n"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many columns a line may have: one less than the terminal, as some break a line that is full.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 1).unwrap_or(80) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::units::limit;

    #[test]
    fn what_has_no_room_is_left_out() {
        let shown = Shown {
            id: "web@20261118T010000Z".into(),
            bytes: 3 << 30,
            position: 1 << 30,
            crossed: 300 << 20,
            rate: 4 << 20,
            pace: 16 << 20,
        };
        let limited = limit("10G").unwrap().map(|limit| (limit, 1 << 30));
        let turn = Turn { dest: "box".into(), nth: 3, of: 12, later: 2 << 30, limit: limited, ..Turn::default() };
        let until = Some(("06:00".to_owned(), 7200));
        for (width, dump, pass) in [
            (
                99,
                "web@20261118T010000Z:  33 %  of 3 GiB  300 MiB crossed  4 MiB/s  2.1 min left",
                "box:  3 of 12  1.3 GiB  12 % of 10 GiB a pass  until 06:00  about 10.7 min left",
            ),
            (
                79,
                "web@20261118T010000Z:  33 %  of 3 GiB  300 MiB crossed  4 MiB/s  2.1 min left",
                "box:  3 of 12  1.3 GiB  12 % of 10 GiB a pass  until 06:00  about 10.7 min left",
            ),
            (
                59,
                "web@20261118T010000Z:  33 %  4 MiB/s  2.1 min left",
                "box:  3 of 12  12 % of 10 GiB a pass  about 10.7 min left",
            ),
            (30, "web@20261118T010000Z:", "box:  3 of 12"),
            (10, "web@202611", "box:  3 of"),
        ] {
            assert_eq!(lines(&shown, &turn, until.clone(), width), [dump, pass], "{width}");
        }
        // Whatever comes first ends the pass.
        let soon = Some(("06:00".to_owned(), 60));
        assert!(lines(&shown, &turn, soon, 99)[1].ends_with("about 60 s left"));
        let full = Turn { limit: limit("1400M").unwrap().map(|limit| (limit, 1 << 30)), ..turn.clone() };
        assert!(lines(&shown, &full, None, 99)[1].ends_with("94 % of 1.4 GiB a pass  about 19 s left"));
        // Nothing is known yet.
        let new = Shown { id: "a".into(), bytes: 5, ..Shown::default() };
        let turn = Turn { dest: "box".into(), nth: 1, of: 1, ..Turn::default() };
        assert_eq!(lines(&new, &turn, None, 79), ["a:  5 B  0 B crossed", "box:  1 of 1  0 B crossed"]);
    }

    #[test]
    fn the_pace_is_that_of_late() {
        let (begin, mut pace) = (Instant::now(), Pace::default());
        let mut at = |seconds: u64, number| pace.at(begin + Duration::from_secs(seconds), number);
        assert_eq!((at(0, 0), at(10, 1000)), (0, 100));
        assert_eq!((at(20, 1000), at(40, 1000)), (0, 0));
        assert_eq!(at(50, 2000), 100);
    }
}
