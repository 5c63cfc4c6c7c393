//! What `archive` and `activate` make of one guest and its dumps. Pure.
//!
//! A plan is made before anything of the guest is changed. A refusal is for the whole guest: half of its dumps moved would
//! be worse than none.

use bak_common::name::printable;
use bak_common::record::Dump;

use crate::status::{Detail, Status, legal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the store to the archive; the status first.
    Archive,
    /// From the archive to the store; the status last.
    Activate,
}

/// What the database says of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub status: Status,
    pub detail: Option<&'a Detail>,
    /// Named as it is, and not merely found by a pattern.
    pub named: bool,
}

/// A dump under the guest's name, in the store that it is to leave.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub dump: &'a Dump,
    /// Why it is not good.
    pub fault: Option<&'a str>,
    /// Those of the target that have its id or its stem.
    pub there: Vec<There<'a>>,
    /// What else lies where one of its files must go.
    pub in_the_way: Option<&'a str>,
}

#[derive(Clone, Copy, Debug)]
pub struct There<'a> {
    pub dump: &'a Dump,
    pub fault: Option<&'a str>,
}

/// What is to happen to a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Move,
    /// The target has it: an interrupted move is finished by removing it here.
    Finish,
    /// It is none of this guest's.
    Stay,
    /// It cannot be moved whole: why.
    Leave(String),
}

/// What is to happen to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One a candidate, in their order.
    pub actions: Vec<Action>,
    /// The statuses that it goes through, the last of them to stay.
    pub statuses: Vec<Status>,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Archive => "archive",
            Way::Activate => "activate",
        }
    }

    /// What the dumps are moved to.
    pub fn target(self) -> &'static str {
        match self {
            Way::Archive => "the archive",
            Way::Activate => "the store",
        }
    }

    pub fn source(self) -> &'static str {
        match self {
            Way::Archive => "the store",
            Way::Activate => "the archive",
        }
    }
}

/// Makes the plan, or says why the guest is refused.
pub fn plan(way: Way, known: Known, candidates: &[Candidate]) -> Result<Plan, String> {
    let actions: Vec<Action> =
        candidates.iter().map(|candidate| judge(way, known.detail, candidate)).collect::<Result<_, _>>()?;
    let moves = actions.iter().any(|action| matches!(action, Action::Move | Action::Finish));
    let statuses = match (way, known.status) {
        (Way::Archive, status) => route(status, Status::Archived)?,
        (Way::Activate, Status::Archived) => route(Status::Archived, Status::BackupNecessary)?,
        // Its status was set by hand, or the last run was cut off: its dumps are to come back all the same.
        (Way::Activate, _) if moves || !known.named => Vec::new(),
        (Way::Activate, status) => {
            return Err(format!("it is not ARCHIVED: it is {status}, and the archive has no dump of it to bring back"));
        }
    };
    Ok(Plan { actions, statuses })
}

/// The legal moves from one status to another. A BACKUP_IN_PROGRESS whose claim is free, as ours is, was left by a dead
/// worker and goes by way of BACKUP_NECESSARY.
pub fn route(from: Status, to: Status) -> Result<Vec<Status>, String> {
    let by_way = Status::BackupNecessary;
    if from == to {
        Ok(Vec::new())
    } else if legal(Some(from), to) {
        Ok(vec![to])
    } else if legal(Some(from), by_way) && legal(Some(by_way), to) {
        Ok(vec![by_way, to])
    } else {
        Err(format!("it is {from} and may not become {to}"))
    }
}

fn judge(way: Way, detail: Option<&Detail>, candidate: &Candidate) -> Result<Action, String> {
    let Candidate { dump, fault, there, in_the_way } = candidate;
    if detail.is_some_and(|detail| !detail.same(dump.uid.as_ref(), Some(&dump.kind))) {
        return Ok(Action::Stay);
    }
    let target = way.target();
    let other = there.iter().find(|there| !there.dump.same(dump));
    if other.is_none() && there.iter().any(|there| there.fault.is_none()) {
        return Ok(Action::Finish);
    }
    if let Some(fault) = fault {
        return Ok(Action::Leave((*fault).to_owned()));
    }
    match (other, there.first(), in_the_way) {
        (Some(other), _, _) if other.dump.id == dump.id => {
            Err(format!("{target} has another dump called {}", printable(dump.id.as_str())))
        }
        (Some(other), _, _) => {
            let (theirs, stem) = (printable(other.dump.id.as_str()), printable(dump.stem.as_str()));
            Err(format!("{target} has another dump, {theirs}, under the file name {stem}"))
        }
        (None, Some(there), _) => {
            let fault = there.fault.unwrap_or_default();
            Err(format!("{target} has {}, but not good: {fault}", printable(dump.id.as_str())))
        }
        (None, None, Some(name)) => {
            let name = printable(name);
            Err(format!("{name} is in {target} already: nothing is overwritten; move that file away"))
        }
        (None, None, None) => Ok(Action::Move),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::name::{GuestName, Stem};
    use bak_common::record::{FileEntry, Guest};
    use proptest::prelude::*;

    fn guest(uid: Option<&str>, kind: &str) -> Guest {
        let mut guest = Guest::new(GuestName::new("web").unwrap(), kind, "image");
        guest.uid = uid.map(str::to_owned);
        guest
    }

    fn dump(uid: Option<&str>, kind: &str, bytes: u64) -> Dump {
        let guest = guest(uid, kind);
        let started = "2026-11-20T01:00:02Z".parse().unwrap();
        let stem = Stem::of(&guest.vm, started);
        let mut dump = Dump::of(&guest, started, stem.clone());
        dump.files.push(FileEntry { name: format!("{stem}.raw"), bytes, sha256: None, extra: Default::default() });
        dump.bytes = bytes;
        dump
    }

    fn detail(uid: Option<&str>) -> Detail {
        Detail::of(&guest(uid, "qemu"), None, "2026-11-20T01:00:02Z".parse().unwrap())
    }

    fn candidate(dump: &Dump) -> Candidate<'_> {
        Candidate { dump, fault: None, there: Vec::new(), in_the_way: None }
    }

    fn known(status: Status, detail: Option<&Detail>) -> Known<'_> {
        Known { status, detail, named: true }
    }

    #[test]
    fn statuses() {
        use Status::{Archived, BackupInProgress, BackupNecessary, Clean, New, Running};
        let ours = dump(None, "qemu", 1);
        // What it goes through, and whether also if no dump is to be moved.
        let table: [(Way, Status, &[Status], bool); 12] = [
            (Way::Archive, New, &[Archived], true),
            (Way::Archive, BackupNecessary, &[Archived], true),
            (Way::Archive, BackupInProgress, &[BackupNecessary, Archived], true),
            (Way::Archive, Clean, &[Archived], true),
            (Way::Archive, Running, &[Archived], true),
            (Way::Archive, Archived, &[], true),
            (Way::Activate, Archived, &[BackupNecessary], true),
            (Way::Activate, New, &[], false),
            (Way::Activate, BackupNecessary, &[], false),
            (Way::Activate, BackupInProgress, &[], false),
            (Way::Activate, Clean, &[], false),
            (Way::Activate, Running, &[], false),
        ];
        for (way, status, through, alone) in table {
            let done = plan(way, known(status, None), &[candidate(&ours)]).unwrap();
            assert_eq!((&done.actions[..], &done.statuses[..]), (&[Action::Move][..], through), "{way:?} {status}");
            match plan(way, known(status, None), &[]) {
                Ok(plan) => assert!(alone && plan.statuses == through, "{way:?} {status}"),
                Err(why) => assert!(!alone && why.contains("not ARCHIVED"), "{way:?} {status}: {why}"),
            }
            let found = Known { named: false, ..known(status, None) };
            assert_eq!(plan(way, found, &[]).unwrap().statuses, through, "a pattern passes over");
        }
    }

    #[test]
    fn whose_dump_it_is() {
        // The database's uid, the dump's, its kind; and whether it is moved.
        for (ours, theirs, kind, moves) in [
            (None, None, "qemu", true),
            (Some("u1"), Some("u1"), "qemu", true),
            (Some("u1"), None, "qemu", true),
            (None, Some("u1"), "qemu", true),
            (Some("u1"), Some("u2"), "qemu", false),
            (None, None, "lxc", false),
            (Some("u1"), Some("u1"), "lxc", false),
        ] {
            let (detail, dump) = (detail(ours), dump(theirs, kind, 1));
            let expected = if moves { Action::Move } else { Action::Stay };
            let found = plan(Way::Archive, known(Status::Clean, Some(&detail)), &[candidate(&dump)]).unwrap();
            assert_eq!(found.actions, [expected], "{ours:?} {theirs:?} {kind}");
            // Of an old database nobody knows more than the name.
            let found = plan(Way::Archive, known(Status::Clean, None), &[candidate(&dump)]).unwrap();
            assert_eq!(found.actions, [Action::Move]);
        }
    }

    #[test]
    fn what_the_target_has_already() {
        let (ours, other) = (dump(None, "qemu", 1), dump(None, "qemu", 2));
        let leave = || Some(Action::Leave("cut".into()));
        let fine = |dump| There { dump, fault: None };
        let bad = |dump| There { dump, fault: Some("torn") };
        // Its own fault, what is there, what is in the way; and what comes of it, `None` a refusal.
        let table = [
            (None, vec![], None, Some(Action::Move)),
            (None, vec![], Some("x"), None),
            (None, vec![fine(&ours)], None, Some(Action::Finish)),
            (None, vec![bad(&ours)], None, None),
            (None, vec![bad(&ours), fine(&ours)], None, Some(Action::Finish)),
            (None, vec![fine(&other)], None, None),
            (None, vec![fine(&ours), fine(&other)], None, None),
            (Some("cut"), vec![], None, leave()),
            (Some("cut"), vec![fine(&other)], None, leave()),
            (Some("cut"), vec![fine(&ours)], None, Some(Action::Finish)),
        ];
        for (row, (fault, there, in_the_way, expected)) in table.into_iter().enumerate() {
            let candidate = Candidate { dump: &ours, fault, there, in_the_way };
            let found = plan(Way::Archive, known(Status::Clean, None), &[candidate]);
            match expected {
                None => assert!(found.is_err(), "row {row}: {found:?}"),
                Some(expected) => assert_eq!(found.unwrap().actions, [expected], "row {row}"),
            }
        }
    }

    proptest! {
        /// Whatever the database holds: every route goes by legal moves to its end, and to archive is never illegal.
        #[test]
        fn routes_are_legal(from in 0usize..6, to in 0usize..6) {
            let (from, to) = (Status::ALL[from], Status::ALL[to]);
            if let Ok(route) = route(from, to) {
                let mut at = from;
                for next in route {
                    prop_assert!(at != next && legal(Some(at), next));
                    at = next;
                }
                prop_assert_eq!(at, to);
            } else {
                prop_assert!(to != Status::Archived);
            }
        }
    }
}
