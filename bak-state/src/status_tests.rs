use super::*;
use proptest::prelude::*;

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

fn guest(state: State, live: bool, fingerprint: Option<&str>) -> Guest {
    let mut guest = Guest::new(GuestName::new("web").unwrap(), "qemu", "image");
    (guest.state, guest.live, guest.fingerprint) = (state, live, fingerprint.map(str::to_owned));
    guest.uid = Some("u1".into());
    guest
}

fn facts(held: bool, store: InStore) -> Facts {
    Facts { held, store, now: time("2026-11-21T00:00:00Z") }
}

/// Details of the guest above after a dump with this fingerprint.
fn dumped(fingerprint: Option<&str>) -> Detail {
    let started = time("2026-11-20T01:00:02Z");
    let name = GuestName::new("web").unwrap();
    let dump = LastDump { id: DumpId::of(&name, started), started, fingerprint: fingerprint.map(str::to_owned) };
    let mut detail = Detail::of(&guest(State::Stopped, false, None), None, started);
    detail.dump = Some(dump);
    detail
}

#[test]
fn an_older_dump_does_not_stand_for_the_one_that_was_lost() {
    let (detail, same) = (dumped(Some("a")), guest(State::Stopped, false, Some("a")));
    let see = |store| observe(Some((Clean, Some(&detail))), &same, facts(false, store));
    let newest = |text| InStore::Newest(time(text));
    for there in ["2026-11-20T01:00:02Z", "2026-11-20T02:00:00Z"] {
        assert_eq!(see(newest(there)).status, Clean);
    }
    assert_eq!(see(InStore::Unknown).status, Clean);
    // Due since what is covered, not since somebody noticed.
    let lost = see(newest("2026-11-13T01:00:00Z"));
    assert_eq!((lost.status, lost.why), (BackupNecessary, Why::NoDump));
    assert_eq!(lost.detail.due, Some(time("2026-11-13T01:00:00Z")));
    let nothing = see(InStore::Nothing);
    assert_eq!((nothing.status, nothing.detail.due), (BackupNecessary, Some(time("2026-11-20T01:00:02Z"))));
}

#[test]
fn golden_observations() {
    use InStore::{Nothing, Unknown};
    use State::{Paused, Running as Runs, Stopped};
    let there = InStore::Newest(time("2026-11-20T01:00:02Z"));
    // Status, its state, live, fingerprint then and now, claim held, store; and what must come of it.
    let table = [
        (None, Stopped, false, None, Some("a"), false, Unknown, BackupNecessary, Why::Unknown),
        (None, Runs, false, None, Some("a"), false, Unknown, Running, Why::Runs),
        (None, Runs, true, None, Some("a"), false, Unknown, BackupNecessary, Why::Unknown),
        (Some(New), Stopped, false, None, None, false, Unknown, BackupNecessary, Why::Unknown),
        (Some(Clean), Stopped, false, Some("a"), Some("a"), false, there, Clean, Why::Unchanged),
        (Some(Clean), Stopped, false, Some("a"), Some("a"), false, Unknown, Clean, Why::Unchanged),
        (Some(Clean), Stopped, false, Some("a"), Some("b"), false, there, BackupNecessary, Why::Changed),
        // A restored image: its fingerprint is an older one.
        (Some(Clean), Stopped, false, Some("b"), Some("a"), false, there, BackupNecessary, Why::Changed),
        (Some(Clean), Stopped, false, Some("a"), None, false, there, BackupNecessary, Why::NoProof),
        (Some(Clean), Stopped, false, None, Some("a"), false, there, BackupNecessary, Why::NoProof),
        (Some(Clean), Stopped, false, None, None, false, there, BackupNecessary, Why::NoProof),
        (Some(Clean), Stopped, false, Some("a"), Some("a"), false, Nothing, BackupNecessary, Why::NoDump),
        (Some(Clean), Runs, false, Some("a"), Some("a"), false, there, Running, Why::Runs),
        (Some(Clean), Paused, false, Some("a"), Some("a"), false, there, Running, Why::Runs),
        (Some(Clean), Runs, true, Some("a"), Some("a"), false, there, Clean, Why::Unchanged),
        (Some(Clean), Runs, true, Some("a"), Some("b"), false, there, BackupNecessary, Why::Changed),
        (Some(Running), Runs, false, Some("a"), Some("a"), false, there, Running, Why::Runs),
        (Some(Running), Stopped, false, Some("a"), Some("a"), false, there, BackupNecessary, Why::Stopped),
        (Some(Running), Runs, true, Some("a"), Some("a"), false, there, BackupNecessary, Why::Stopped),
        (Some(BackupNecessary), Stopped, false, Some("a"), Some("a"), false, there, BackupNecessary, Why::NotYetDumped),
        (Some(BackupNecessary), Runs, false, Some("a"), Some("a"), false, there, Running, Why::Runs),
        (Some(BackupInProgress), Stopped, false, Some("a"), Some("a"), true, there, BackupInProgress, Why::Claimed),
        (Some(BackupInProgress), Runs, false, Some("a"), Some("a"), true, there, BackupInProgress, Why::Claimed),
        (Some(BackupInProgress), Stopped, false, Some("a"), Some("a"), false, there, BackupNecessary, Why::DeadWorker),
        (Some(BackupInProgress), Runs, false, Some("a"), Some("a"), false, there, Running, Why::Runs),
        (Some(Archived), Stopped, false, Some("a"), Some("b"), false, Nothing, Archived, Why::Archived),
        (Some(Archived), Runs, false, Some("a"), Some("b"), false, Nothing, Archived, Why::Archived),
    ];
    for (row, (status, state, live, then, now, held, store, expected, why)) in table.into_iter().enumerate() {
        let detail = dumped(then);
        let seen = observe(status.map(|s| (s, Some(&detail))), &guest(state, live, now), facts(held, store));
        assert_eq!((seen.status, seen.why), (expected, why), "row {row}");
        assert_eq!(seen.detail.seen, Some(time("2026-11-21T00:00:00Z")), "row {row}");
    }
}

#[test]
fn a_known_name_with_another_uid_is_a_new_guest() {
    let old = dumped(Some("a"));
    let mut other = guest(State::Stopped, false, Some("a"));
    other.uid = Some("u2".into());
    for status in Status::ALL {
        let seen = observe(Some((status, Some(&old))), &other, facts(false, InStore::Unknown));
        assert_eq!((seen.status, seen.why, seen.changed), (BackupNecessary, Why::OtherGuest, true), "{status}");
        assert!(seen.replaces && seen.detail.dump.is_none() && seen.detail.uid.as_deref() == Some("u2"));
    }
    // Its worker is still at work on the old one, which must be found again when it ends.
    let seen = observe(Some((BackupInProgress, Some(&old))), &other, facts(true, InStore::Unknown));
    assert!(seen.detail.spoilt.as_deref().is_some_and(|why| why.contains("another guest")));
    assert_eq!((seen.status, Detail { spoilt: None, ..seen.detail }), (BackupInProgress, old.clone()));
    // A uid that nobody says contradicts nothing, and is not forgotten.
    other.uid = None;
    let seen = observe(Some((Clean, Some(&old))), &other, facts(false, InStore::Unknown));
    assert_eq!((seen.status, seen.detail.uid.as_deref()), (Clean, Some("u1")));
    // A container took the number of a VM.
    other.kind = "lxc".into();
    assert!(observe(Some((Clean, Some(&old))), &other, facts(false, InStore::Unknown)).replaces);
}

#[test]
fn an_old_database_has_no_proof() {
    let seen = observe(Some((Clean, None)), &guest(State::Stopped, false, Some("a")), facts(false, InStore::Unknown));
    assert_eq!((seen.status, seen.why, seen.replaces), (BackupNecessary, Why::NoProof, false));
}

#[test]
fn a_driver_that_saw_a_change_is_believed() {
    let mut guest = guest(State::Stopped, false, Some("a"));
    guest.changed = Some(true);
    let seen = observe(Some((Clean, Some(&dumped(Some("a"))))), &guest, facts(false, InStore::Unknown));
    assert_eq!(seen.status, BackupNecessary);
    guest.changed = Some(false);
    guest.fingerprint = None;
    let seen = observe(Some((Clean, Some(&dumped(Some("a"))))), &guest, facts(false, InStore::Unknown));
    assert_eq!(seen.status, BackupNecessary, "what it says for unchanged is no proof");
}

#[test]
fn statuses_read_as_they_are_written() {
    for status in Status::ALL {
        assert_eq!(status.as_str().parse::<Status>().unwrap(), status);
    }
    for bad in ["", "clean", "CLEAN ", "CLEAN\r", "DIRTY", "BACKUP"] {
        assert!(bad.parse::<Status>().is_err(), "{bad:?}");
    }
}

#[test]
fn since_when_it_is_due_is_remembered_through_failures() {
    let (before, first, later) =
        (time("2026-11-01T01:00:02Z"), time("2026-11-21T00:00:00Z"), time("2026-11-24T00:00:00Z"));
    let see = |status: Status, detail: &Detail, now: &str, held: bool, at: Time| {
        let guest = guest(State::Stopped, false, Some(now));
        let seen = observe(Some((status, Some(detail))), &guest, Facts { now: at, ..facts(held, InStore::Unknown) });
        (seen.detail.due, seen.detail.failures, seen.detail)
    };
    let mut clean = dumped(Some("a"));
    clean.dump.as_mut().unwrap().started = before;
    assert_eq!(see(Clean, &clean, "a", false, first).0, None);
    let (due, failures, mut detail) = see(Clean, &clean, "b", false, first);
    assert_eq!((due, failures), (Some(first), 0));
    detail.failed(1, later, later);
    assert_eq!((detail.due, detail.failures, detail.heard()), (Some(first), 1, Some(later)));
    let (due, failures, detail) = see(BackupNecessary, &detail, "b", false, later);
    assert_eq!((due, failures, detail.claimed), (Some(first), 1, None));
    // One that is at work has not failed; one that died has, once.
    assert_eq!(see(BackupInProgress, &detail, "b", true, later).1, 1);
    let (due, failures, mut detail) = see(BackupInProgress, &detail, "b", false, later);
    assert_eq!((due, failures), (Some(first), 2));
    detail.dumped(clean.dump.clone().unwrap(), later);
    assert_eq!((detail.due, detail.failures), (None, 0));
    // Set by hand: it may have been due since its last dump. A clock that ran ahead is not believed.
    assert_eq!(see(BackupNecessary, &clean, "a", false, first).0, Some(before));
    clean.due = Some(time("2027-01-01T00:00:00Z"));
    assert_eq!(see(BackupNecessary, &clean, "a", false, first).0, Some(first));
    assert_eq!(see(Archived, &clean, "b", false, first).0, None);
}

#[test]
fn what_was_never_sent_is_remembered() {
    let at = |day: u32| time(&format!("2026-11-{day:02}T01:00:00Z"));
    // Remembered, dumps here, newest that was sent; and what is remembered then.
    let table = [
        (None, &[][..], None, None),
        (None, &[3, 4], None, Some(3)),
        // Retention took the third.
        (Some(3), &[4], None, Some(3)),
        (Some(3), &[4], Some(2), Some(3)),
        (Some(3), &[4], Some(3), Some(4)),
        (Some(3), &[4], Some(4), None),
        (Some(3), &[4], Some(5), None),
        (Some(3), &[], Some(2), Some(3)),
        (Some(3), &[], Some(3), None),
        (Some(3), &[2, 4], Some(1), Some(2)),
    ];
    for (row, (old, local, sent, expected)) in table.into_iter().enumerate() {
        let local: Vec<Time> = local.iter().copied().map(at).collect();
        assert_eq!(unsent(old.map(at), &local, sent.map(at)), expected.map(at), "row {row}");
    }
}

/// Where legal moves lead that an observation may make by itself.
fn reachable(from: Option<Status>) -> Vec<Status> {
    let mut found: Vec<Status> = from.into_iter().collect();
    let mut ends = vec![from];
    while let Some(end) = ends.pop() {
        for to in [New, BackupNecessary, Running] {
            if legal(end, to) && !found.contains(&to) {
                found.push(to);
                ends.push(Some(to));
            }
        }
    }
    found
}

fn any_guest() -> impl Strategy<Value = Guest> {
    let state = prop_oneof![Just(State::Running), Just(State::Stopped), Just(State::Paused), Just(State::Unknown)];
    (state, any::<bool>(), proptest::option::of("[ab]")).prop_map(|(s, l, f)| guest(s, l, f.as_deref()))
}

proptest! {
    #[test]
    fn observations_make_legal_moves_only_and_come_to_rest(
        at in 0usize..7, guest in any_guest(), then in proptest::option::of("[ab]"), held: bool, none: bool,
    ) {
        let status = Status::ALL.get(at).copied();
        let detail = dumped(then.as_deref());
        let facts = facts(held, if none { InStore::Nothing } else { InStore::Unknown });
        let first = observe(status.map(|status| (status, Some(&detail))), &guest, facts);
        prop_assert!(reachable(status).contains(&first.status), "{:?} -> {}", status, first.status);
        prop_assert!(first.status != Clean || (status == Some(Clean) && !first.changed));
        prop_assert!(first.status != BackupNecessary || guest.live || !runs(&guest));
        let again = observe(Some((first.status, Some(&first.detail))), &guest, facts);
        prop_assert_eq!(again.status, first.status);
        prop_assert_eq!(again.detail, first.detail);
    }
}
