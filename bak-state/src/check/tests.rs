//! Golden judgements, made by hand. Now is 2026-11-20T12:00; the limits are 26 hours and 7 days.

use super::*;
use crate::status::LastDump;
use bak_common::name::{DumpId, GuestName};

fn time(text: &str) -> Time {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn now() -> Time {
    time("2026-11-20T12:00:00Z")
}

/// So many hours and seconds ago.
fn back(hours: i64, seconds: i64) -> Time {
    now().plus(-3600 * hours - seconds)
}

/// A guest that was seen an hour ago.
fn guest(status: Status) -> Guest {
    let detail = Detail {
        kind: Some("qemu".into()),
        driver: Some("image".into()),
        node: Some("n1".into()),
        seen: Some(back(1, 0)),
        ..Detail::named(GuestName::new("web").unwrap())
    };
    Guest {
        vm: "web".into(),
        status,
        detail: Some(detail),
        chosen: true,
        held: false,
        claimed_at: None,
        max_age_s: 26 * 3600,
        local: Some(Vec::new()),
        sync: Vec::new(),
    }
}

impl Guest {
    fn with(mut self, change: impl FnOnce(&mut Detail)) -> Self {
        change(self.detail.as_mut().unwrap());
        self
    }

    fn due(self, since: Time) -> Self {
        self.with(|detail| detail.due = Some(since))
    }

    /// Dumped at these times, the last of which the database knows.
    fn dumped(mut self, starts: &[Time]) -> Self {
        self.local = Some(starts.to_vec());
        let started = *starts.last().unwrap();
        let id = DumpId::of(&GuestName::new("web").unwrap(), started);
        self.with(|detail| detail.dump = Some(LastDump { id, started, fingerprint: None }))
    }

    fn sent(mut self, sent: &[Time]) -> Self {
        self.sync.push(Sync { dest: "box".into(), max_age_s: 7 * 86_400, sent: sent.to_vec(), pending: false });
        self
    }

    fn named(mut self, vm: &str) -> Self {
        self.vm = vm.into();
        self
    }
}

use Level::{Critical, Ok as Fine, Warning};
use Status::{Archived, BackupInProgress as Working, BackupNecessary as Necessary, Clean, New, Running};

/// What is said of a guest beside one that was seen just now.
fn judged(guest: Guest) -> (Level, Vec<What>, Verdict) {
    let other = self::guest(Clean).named("other").dumped(&[back(1, 0)]).with(|detail| detail.seen = Some(now()));
    let judgement = judge(&[guest, Guest { chosen: false, ..other }], now());
    let verdict = judgement.guests[0].clone();
    let what = judgement.general.iter().chain(&verdict.problems).map(|problem| problem.what).collect();
    (judgement.level(), what, verdict)
}

#[track_caller]
fn table(rows: Vec<(&str, Guest, Level, &[What])>) {
    for (row, guest, level, what) in rows {
        let (found, why, verdict) = judged(guest);
        assert_eq!((found, why.as_slice()), (level, what), "{row}: {verdict:?}");
    }
}

#[test]
fn overdue_or_not() {
    use What::{Failed, Overdue};
    let long = [back(720, 0)];
    let failed = |n: u32| move |detail: &mut Detail| detail.failures = n;
    table(vec![
        ("due for the limit", guest(Necessary).due(back(26, 0)), Fine, &[]),
        ("due for a second more", guest(Necessary).due(back(26, 1)), Critical, &[Overdue]),
        ("new for the limit", guest(New).due(back(26, 0)), Fine, &[]),
        ("new for a second more", guest(New).due(back(26, 1)), Critical, &[Overdue]),
        ("runs for the limit", guest(Running).due(back(26, 0)), Fine, &[]),
        ("runs for a second more", guest(Running).due(back(26, 1)), Critical, &[Overdue]),
        ("30 days old, changed an hour ago", guest(Necessary).dumped(&long).due(back(1, 0)), Fine, &[]),
        ("30 days old and unchanged", guest(Clean).dumped(&long), Fine, &[]),
        ("due since nobody knows when", guest(Necessary).dumped(&[back(26, 1)]), Critical, &[Overdue]),
        ("the same within the limit", guest(Necessary).dumped(&[back(26, 0)]), Fine, &[]),
        ("the same and never dumped", guest(New), Critical, &[Overdue]),
        ("dumped since without the database", guest(Necessary).dumped(&[back(2, 0)]).due(back(90, 0)), Fine, &[]),
        ("one failed", guest(Necessary).due(back(2, 0)).with(failed(1)), Warning, &[Failed]),
        (
            "five failed",
            guest(Necessary).dumped(&[back(120, 0)]).due(back(96, 0)).with(failed(5)),
            Critical,
            &[Overdue],
        ),
        ("failed before it was CLEAN", guest(Clean).dumped(&long).with(failed(2)), Fine, &[]),
        ("archived", guest(Archived).due(back(500, 0)), Fine, &[]),
    ]);
    let verdict = judged(guest(Necessary).dumped(&[back(120, 0)]).due(back(96, 0)).with(failed(5))).2;
    assert_eq!(verdict.problems[0].why, "due for 4 d (limit 26 h), last good dump 5 d old, 5 failed attempts in a row");
    let verdict = judged(guest(Necessary).dumped(&[back(120, 0)])).2;
    assert_eq!(verdict.problems[0].why, "last good dump 5 d old (limit 26 h)");
}

#[test]
fn in_progress() {
    use What::{Failed, Overdue};
    let held = |hours: i64, seconds: i64, detail: Guest| Guest {
        held: true,
        claimed_at: Some(back(hours, seconds)),
        ..detail
    };
    let long = [back(720, 0)];
    table(vec![
        ("an unchanged guest, dumped all the same", held(1, 0, guest(Working).dumped(&long)), Fine, &[]),
        ("for the limit", held(26, 0, guest(Working).dumped(&long)), Fine, &[]),
        ("for too long", held(26, 1, guest(Working).dumped(&long)), Critical, &[Overdue]),
        ("due for too long before it was claimed", held(1, 0, guest(Working).due(back(26, 1))), Critical, &[Overdue]),
        ("died", guest(Working).due(back(1, 0)), Warning, &[Failed]),
        ("died long ago", guest(Working).due(back(26, 1)), Critical, &[Overdue]),
        ("by hand", guest(Working).dumped(&[back(26, 1)]), Critical, &[Overdue]),
    ]);
    assert_eq!(judged(guest(Working).due(back(1, 0)).with(|detail| detail.failures = 2)).2.failures, 3);
}

#[test]
fn clean_and_yet_not_well() {
    use What::{Future, Lost, Missing};
    let lost = guest(Clean).dumped(&[back(50, 0), back(1, 0)]);
    let lost = Guest { local: Some(vec![back(50, 0)]), ..lost };
    let missing = Guest { local: Some(vec![]), ..guest(Clean).dumped(&[back(1, 0)]) };
    let no_store = Guest { local: None, ..guest(Clean).dumped(&[back(720, 0)]) };
    let horizon = now().plus(3600);
    let beyond = now().plus(3601);
    table(vec![
        ("no good dump", missing, Critical, &[Missing]),
        ("the newest is not good", lost, Warning, &[Lost]),
        ("no store looked at", no_store, Fine, &[]),
        ("a clock a little ahead", guest(Clean).dumped(&[horizon]), Fine, &[]),
        ("a dump in the future", guest(Clean).dumped(&[back(1, 0), beyond]), Critical, &[Future]),
        ("only a dump in the future", guest(Clean).dumped(&[beyond]), Critical, &[Future, Missing]),
        (
            "seen in the future",
            guest(Clean).dumped(&[back(1, 0)]).with(|d| d.claimed = Some(beyond)),
            Critical,
            &[Future],
        ),
        ("due in the future", guest(Necessary).due(beyond).dumped(&[back(1, 0)]), Critical, &[Future]),
        ("archived with one in the future", guest(Archived).dumped(&[beyond]), Fine, &[]),
    ]);
    // It is no proof of freshness either.
    let verdict = judged(guest(Necessary).dumped(&[back(90, 0), beyond])).2;
    assert_eq!(verdict.last_dump, Some(back(90, 0)));
    assert_eq!(verdict.problems.iter().map(|p| p.what).collect::<Vec<_>>(), [Future, What::Overdue]);
}

#[test]
fn gone_or_nobody_looks() {
    use What::{Overdue, Unobserved};
    let seen = |at: Time| move |detail: &mut Detail| detail.seen = Some(at);
    let old = || guest(Necessary).due(back(200, 0)).dumped(&[back(300, 0)]);
    table(vec![
        ("overdue and still seen", old().with(seen(back(26, 0))), Critical, &[Overdue]),
        ("gone", old().with(seen(back(26, 1))), Fine, &[]),
        (
            "gone, and its last dumps had failed",
            old().with(seen(back(26, 1))).with(|d| d.failures = 5),
            Warning,
            &[What::Failed],
        ),
        (
            "its worker died, and nobody sees it",
            Guest { status: Working, ..old() }.with(seen(back(50, 0))),
            Critical,
            &[Overdue],
        ),
        (
            "its worker hangs, and nobody sees it",
            Guest { status: Working, held: true, claimed_at: Some(back(50, 0)), ..old() }.with(seen(back(50, 0))),
            Critical,
            &[Overdue],
        ),
        ("gone and CLEAN, its dumps removed", guest(Clean).with(seen(back(90, 0))), Fine, &[]),
        ("never seen, put there by hand", Guest { detail: None, ..guest(New) }, Critical, &[Overdue]),
        (
            "dumped but not observed",
            old().with(seen(back(99, 0))).with(|d| d.claimed = Some(back(2, 0))),
            Critical,
            &[Overdue],
        ),
    ]);
    assert!(judged(old().with(seen(back(26, 1)))).2.gone);
    // That another one was claimed proves nothing of this one.
    let claimed = |vm: &str, at: Time| {
        guest(Clean).named(vm).dumped(&[back(300, 0)]).with(|d| (d.seen, d.claimed) = (None, Some(at)))
    };
    let judgement = judge(&[claimed("a", back(1, 0)), claimed("b", back(50, 0))], now());
    assert_eq!((judgement.level(), judgement.guests[1].gone), (Critical, false));
    assert!(judgement.general[0].why.starts_with("1 guest on n1 by the driver image never observed"));
    // Without others that were seen nobody looks; it is said once.
    let unseen = |vm: &str| guest(Clean).named(vm).dumped(&[back(300, 0)]).with(seen(back(26, 1)));
    let judgement = judge(&[unseen("a"), unseen("b")], now());
    let what: Vec<What> = judgement.general.iter().map(|problem| problem.what).collect();
    assert_eq!((judgement.level(), what.as_slice(), judgement.count(Fine)), (Critical, &[Unobserved][..], 2));
    assert!(judgement.general[0].why.starts_with("2 guests on n1 by the driver image not observed for"));
    let one = |at| judge(&[guest(Clean).dumped(&[back(300, 0)]).with(seen(at))], now()).level();
    assert_eq!((one(back(26, 0)), one(back(26, 1))), (Fine, Critical));
    // Another node's observation is none of this one's, and neither is a claim of one of its guests.
    let on = |node: &str| guest(Clean).named(node).dumped(&[back(1, 0)]).with(|detail| detail.node = Some(node.into()));
    assert_eq!(judge(&[unseen("a"), on("n2")], now()).level(), Critical);
    assert_eq!(judge(&[unseen("a"), on("n1")], now()).level(), Fine);
    let claimed = unseen("b").with(|detail| detail.claimed = Some(back(1, 0)));
    assert_eq!(judge(&[unseen("a"), claimed.clone()], now()).level(), Critical);
    // Where all are claimed each night nobody need look.
    assert_eq!(judge(&[claimed], now()).level(), Fine);
    // An old database, of which nothing is known.
    let bare = |status| Guest { detail: None, local: None, ..guest(status) };
    assert_eq!(judge(&[bare(Clean)], now()).level(), Critical);
    assert_eq!(judge(&[bare(Archived)], now()).level(), Fine);
}

#[test]
fn off_site() {
    use What::Behind;
    let week = |seconds: i64| back(7 * 24, seconds);
    let unsent = |at: Time| move |detail: &mut Detail| detail.unsent = Some(at);
    let clean = |starts: &[Time]| guest(Clean).dumped(starts);
    table(vec![
        ("all sent, however old", clean(&[back(9999, 0)]).sent(&[back(9999, 0)]), Fine, &[]),
        ("never sent, for the limit", clean(&[week(0)]).sent(&[]), Fine, &[]),
        ("never sent, for a second more", clean(&[week(1)]).sent(&[]), Critical, &[Behind]),
        ("an old one sent, a new one not yet", clean(&[back(999, 0), back(3, 0)]).sent(&[back(999, 0)]), Fine, &[]),
        ("behind for the limit", clean(&[back(999, 0), week(0), back(3, 0)]).sent(&[back(999, 0)]), Fine, &[]),
        ("behind for more", clean(&[back(999, 0), week(1), back(3, 0)]).sent(&[back(999, 0)]), Critical, &[Behind]),
        ("pruned unsent", clean(&[back(3, 0)]).with(unsent(week(1))).sent(&[]), Critical, &[Behind]),
        ("pruned unsent since", clean(&[back(3, 0)]).with(unsent(week(1))).sent(&[week(2)]), Critical, &[Behind]),
        (
            "what is remembered is stale",
            clean(&[back(3, 0)]).with(unsent(week(1))).sent(&[week(1)]),
            Warning,
            &[Behind],
        ),
        ("sent from the future", clean(&[week(1)]).sent(&[now().plus(3601)]), Critical, &[Behind]),
        ("archived", guest(Archived).dumped(&[week(1)]).sent(&[]), Fine, &[]),
        ("goes nowhere", clean(&[week(1)]), Fine, &[]),
        ("no dump at all", guest(Necessary).due(back(1, 0)).sent(&[]), Fine, &[]),
        ("no store looked at", Guest { local: None, ..clean(&[week(1)]).sent(&[]) }, Critical, &[Behind]),
        ("gone, and never sent", clean(&[week(1)]).sent(&[]).with(|d| d.seen = Some(back(99, 0))), Critical, &[Behind]),
    ]);
    let verdict = judged(clean(&[week(86_400)]).sent(&[])).2;
    let problem = &verdict.problems[0];
    assert_eq!(problem.dest.as_deref(), Some("box"));
    assert_eq!(problem.why, "never sent to box for 8 d (limit 7 d); nothing waits in the outbox");
}
