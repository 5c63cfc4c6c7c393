//! What a pass comes to: in the ledger, in the log, and for people.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::ledger::{Ended, LimitUse, Line, Pass as Figures};
use bak_common::meter::Wire;
use bak_common::period::show_limit;
use bak_common::units::{Limit, show_duration, show_size};
use std::time::Instant;

use crate::apply::Pass;

/// What came of the dumps of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    pub sent: u64,
    pub failed: u64,
    /// Begun, and to go on in the next pass.
    pub cut: u64,
    /// Bytes of data of those that were sent.
    pub bytes: u64,
    pub ended: Ended,
}

impl Default for Tally {
    fn default() -> Self {
        Self { sent: 0, failed: 0, cut: 0, bytes: 0, ended: Ended::Done }
    }
}

impl Pass<'_> {
    /// Notes the pass in the ledger and in the log.
    pub fn finish(mut self, begun: Instant, tally: Tally) -> Result<Figures> {
        let use_of = |(limit, left): &(Limit, i128)| LimitUse {
            limit: limit.to_string(),
            bytes: limit.bytes,
            used: u64::try_from((i128::from(limit.bytes) - left).max(0)).unwrap_or(u64::MAX),
        };
        let figures = Figures {
            id: self.id,
            at: self.session.clock(),
            dest: self.dest.name.clone(),
            wire_out: self.sum.out,
            wire_in: self.sum.into,
            seconds: begun.elapsed().as_secs(),
            sent: tally.sent,
            failed: tally.failed,
            pending: self.outbox.store.list().dumps.len() as u64,
            limited: tally.ended == Ended::Limit,
            ended: Some(tally.ended),
            bytes: tally.bytes,
            cut: tally.cut,
            limits: self.budget.lines().iter().map(use_of).collect(),
        };
        log(self.session, &figures);
        self.ledger.append(&Line::Pass(figures.clone()))?;
        Ok(figures)
    }
}

fn log(session: &Session, figures: &Figures) {
    if let Ok(serde_json::Value::Object(mut line)) = serde_json::to_value(Line::Pass(figures.clone())) {
        line.insert("v".to_owned(), 1.into());
        line.insert("program".to_owned(), "bak-sync".into());
        session.report.decided(&serde_json::Value::Object(line).to_string());
    }
}

/// A pass for people, in a few lines: what came of the dumps, what that cost, and what is left of the limits.
pub fn lines(figures: &Figures) -> Vec<String> {
    let mut parts = vec![format!("{} sent ({})", figures.sent, show_size(figures.bytes))];
    let waiting = figures.pending.saturating_sub(figures.failed + figures.cut);
    for (count, what) in [(figures.failed, "failed"), (figures.cut, "cut"), (waiting, "waiting")] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let how = match figures.ended {
        Some(Ended::Limit) => "; ended by its limit",
        Some(Ended::Until) => "; ended by the clock",
        Some(Ended::Stopped) => "; stopped",
        Some(Ended::Failed) => "; broken off",
        Some(Ended::Done) | None => "",
    };
    let wire = Wire { out: figures.wire_out, into: figures.wire_in };
    let rate = show_size(wire.both() / figures.seconds.max(1));
    let time = show_duration(i64::try_from(figures.seconds).unwrap_or(i64::MAX));
    let (out, into) = (show_size(wire.out), show_size(wire.into));
    let mut lines = vec![
        format!("{}: {}{how}", figures.dest, parts.join(", ")),
        format!("  {out} out, {into} in, {time}, {rate}/s"),
    ];
    lines.extend(figures.limits.iter().filter_map(|limit| {
        let known = bak_common::units::limit(&limit.limit).ok()??;
        let left = show_size(limit.bytes.saturating_sub(limit.used));
        Some(format!("  {} used of {}, {left} left", show_size(limit.used), show_limit(known)))
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_for_people() {
        let figures = |text: &str| match serde_json::from_str(text) {
            Ok(Line::Pass(figures)) => figures,
            other => panic!("{other:?}"),
        };
        let begin = r#"{"type":"pass","id":"x","at":"2026-11-20T06:00:00Z","dest":"box","#;
        for (rest, expected) in [
            // A line of before.
            (
                r#""wire_out":2048,"wire_in":0,"seconds":0,"sent":1,"failed":0,"pending":0}"#,
                "box: 1 sent (0 B)\n  2 KiB out, 0 B in, 0 s, 2 KiB/s",
            ),
            (
                r#""wire_out":1073741824,"wire_in":1048576,"seconds":1024,"sent":3,"failed":1,"pending":4,"limited":true,
                "ended":"limit","bytes":5368709120,"cut":1,"limits":[{"limit":"10G/day","bytes":10737418240,"used":10737418239},
                {"limit":"200G/month","bytes":214748364800,"used":300000000000}]}"#,
                "box: 3 sent (5 GiB), 1 failed, 1 cut, 2 waiting; ended by its limit\n  1 GiB out, 1 MiB in, 17.1 min, 1.0 MiB/s\n  \
                 10.0 GiB used of 10 GiB a day, 1 B left\n  279.4 GiB used of 200 GiB a month, 0 B left",
            ),
        ] {
            assert_eq!(lines(&figures(&format!("{begin}{rest}"))).join("\n"), expected);
        }
    }
}
