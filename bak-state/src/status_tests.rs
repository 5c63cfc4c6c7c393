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
    assert_eq!((seen.status, &seen.detail), (BackupInProgress, &old));
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
