//! The judgement on one guest. Pure.

use bak_common::calendar::Time;
use bak_common::units::show_duration;
use std::collections::BTreeSet;

use super::{Guest, Level, Problem, Sync, Verdict, What, ago, horizon, limit, newest, over, past};
use crate::status::{Detail, Status};

/// One guest while it is judged.
pub struct Case<'a> {
    guest: &'a Guest,
    now: Time,
    pub heard: Option<Time>,
    /// Start of its newest good dump: by the store, or where none was looked at by the database.
    last: Option<Time>,
    out: Verdict,
}

impl<'a> Case<'a> {
    pub fn new(guest: &'a Guest, now: Time) -> Self {
        let detail = guest.detail.as_ref();
        let heard = detail.and_then(|detail| past(detail.seen, now).max(past(detail.claimed, now)));
        let recorded = detail.and_then(|detail| Some(detail.dump.as_ref()?.started));
        let last = guest.local.as_ref().map_or(past(recorded, now), |local| newest(local, now));
        let sent = |sync: &Sync| Some((sync.dest.clone(), newest(&sync.sent, now)?));
        let out = Verdict {
            vm: guest.vm.clone(),
            status: guest.status.as_str(),
            level: Level::Ok,
            gone: false,
            last_dump: last,
            due: None,
            last_sent: guest.sync.iter().filter_map(sent).collect(),
            failures: 0,
            problems: Vec::new(),
            why: "archived: not judged".into(),
        };
        Self { guest, now, heard, last, out }
    }

    pub fn verdict(mut self) -> Verdict {
        self.out.problems.sort_by_key(|problem| std::cmp::Reverse(problem.level));
        self.out.level = self.out.problems.iter().map(|problem| problem.level).max().unwrap_or_default();
        self.out
    }

    fn problem(&mut self, level: Level, what: What, why: String) {
        self.out.problems.push(Problem::new(level, what, why));
    }

    fn detail(&self) -> Option<&'a Detail> {
        self.guest.detail.as_ref()
    }

    pub fn gone(&mut self, gone: bool) {
        self.out.gone = gone;
        if gone {
            let heard = self.heard.map_or_else(|| "never seen".into(), |heard| format!("not seen since {heard}"));
            self.out.why = format!("gone: {heard}, others were");
        }
    }

    pub fn future(&mut self) {
        let now = self.now;
        let ahead = |time: Time| show_duration(time.since(now));
        let local: BTreeSet<Time> = self.guest.local.iter().flatten().copied().collect();
        for time in local.iter().filter(|time| **time > horizon(now)) {
            let why = format!("its dump of {time} is dated {} in the future: was a clock wrong?", ahead(*time));
            self.problem(Level::Critical, What::Future, why);
        }
        let Some(detail) = self.detail() else { return };
        let recorded = detail.dump.as_ref().map(|dump| dump.started).filter(|time| !local.contains(time));
        let times = [
            ("was observed", detail.seen),
            ("was claimed", detail.claimed),
            ("is due since", detail.due),
            ("was dumped", recorded),
        ];
        for (what, time) in times {
            if let Some(time) = time.filter(|time| *time > horizon(now)) {
                let why = format!("the database says that it {what} at {time}, in {}: was a clock wrong?", ahead(time));
                self.problem(Level::Critical, What::Future, why);
            }
        }
    }

    /// It needs a dump: for how long?
    pub fn due(&mut self) {
        let (guest, now) = (self.guest, self.now);
        let working = guest.status == Status::BackupInProgress;
        let known = past(self.detail().and_then(|detail| detail.due), now);
        let claimed = past(guest.claimed_at, now).filter(|_| working);
        // A dump that was made since, without the database, is as good as any.
        let since = known.or(claimed).max(self.last);
        let died = working && !guest.held;
        self.out.due = since;
        self.out.failures = self.detail().map_or(0, |detail| detail.failures).saturating_add(u32::from(died));
        if self.out.gone {
            if self.out.failures > 0 {
                let why = format!("{}; {} attempts to dump it had failed", self.out.why, self.out.failures);
                self.problem(Level::Warning, What::Failed, why);
            }
            return;
        }
        let failures = match (self.out.failures, died) {
            (0, _) => String::new(),
            (1, true) => ", and whoever dumped it is gone".into(),
            (1, false) => ", the last attempt failed".into(),
            (n, _) => format!(", {n} failed attempts in a row"),
        };
        let dumped = match self.last {
            Some(last) => format!("last good dump {} old", ago(last, now)),
            None => "never dumped".into(),
        };
        let overdue = since.is_none_or(|since| over(since, now, guest.max_age_s));
        let why = match since {
            Some(since) if Some(since) == self.last => format!("{dumped} {}{failures}", limit(guest.max_age_s)),
            Some(since) => format!("due for {} {}, {dumped}{failures}", ago(since, now), limit(guest.max_age_s)),
            None => format!("{dumped}, and due since nobody knows when{failures}"),
        };
        if overdue {
            self.problem(Level::Critical, What::Overdue, why);
        } else if self.out.failures > 0 {
            self.problem(Level::Warning, What::Failed, why);
        } else {
            self.out.why = why;
        }
    }

    /// It needs none: is what it has there?
    pub fn clean(&mut self) {
        if self.out.gone {
            return;
        }
        let recorded = self.detail().and_then(|detail| detail.dump.as_ref()).map(|dump| dump.started);
        let recorded = past(recorded, self.now);
        match (self.last, recorded) {
            (None, _) if self.guest.local.is_some() => {
                self.problem(Level::Critical, What::Missing, "CLEAN, and there is no good dump in the store".into());
            }
            (Some(last), Some(recorded)) if last < recorded => {
                let why = format!("the dump of {recorded} is not good or gone, the newest good one is of {last}");
                // Within the limit the next observation makes it due; who has no such observation must hear of it.
                let level =
                    if over(recorded, self.now, self.guest.max_age_s) { Level::Critical } else { Level::Warning };
                self.problem(level, What::Lost, why);
            }
            (Some(last), _) => self.out.why = format!("unchanged since its dump {} ago", ago(last, self.now)),
            (None, _) => self.out.why = "CLEAN".into(),
        }
    }

    /// What the database remembers of dumps never sent is from before the newest that was, or from a clock gone wrong:
    /// so nobody looked who could see both, and retention may have removed older ones.
    fn forgotten(&mut self, sync: &Sync, sent: Option<Time>, stale: Option<Time>) {
        if let (Some(sent), Some(_)) = (sent, stale)
            && over(sent, self.now, sync.max_age_s)
        {
            let why = format!(
                "behind at {}, newest there is of {sent}, and nobody knows for how long: observe with --store and --dest",
                sync.dest
            );
            let problem = Problem::new(Level::Warning, What::Behind, why);
            self.out.problems.push(Problem { dest: Some(sync.dest.clone()), ..problem });
        }
    }

    /// Is it off-site, or on its way there?
    pub fn sync(&mut self, sync: &Sync) {
        let now = self.now;
        let Some(last) = self.last else { return };
        let sent = newest(&sync.sent, now);
        if sent.is_some_and(|sent| sent >= last) {
            return;
        }
        let lacking = |time: &Time| *time <= horizon(now) && sent.is_none_or(|sent| *time > sent);
        let local = self.guest.local.iter().flatten().copied().chain([last]);
        let remembered = self.detail().and_then(|detail| detail.unsent);
        let Some(since) = local.chain(remembered).filter(lacking).min() else { return };
        if !over(since, now, sync.max_age_s) {
            self.forgotten(sync, sent, remembered.filter(|time| !lacking(time)));
            return;
        }
        let behind = format!("for {} {}", ago(since, now), limit(sync.max_age_s));
        let waits = if sync.pending { "waits in the outbox" } else { "nothing waits in the outbox" };
        let why = match sent {
            None => format!("never sent to {} {behind}; {waits}", sync.dest),
            Some(sent) => format!("behind at {} {behind}, newest there is of {sent}; {waits}", sync.dest),
        };
        let problem = Problem::new(Level::Critical, What::Behind, why);
        self.out.problems.push(Problem { dest: Some(sync.dest.clone()), ..problem });
    }
}
