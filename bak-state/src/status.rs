//! The states of a guest, the legal moves between them, and what an observation makes of a guest. Pure.
//!
//! The rules err on one side: without proof that a guest is as it was at its last dump's start, and that this dump is
//! still there, the guest is to be dumped.

use bak_common::calendar::Time;
use bak_common::name::{DumpId, GuestName};
use bak_common::record::{Guest, State};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is due for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Found, and nothing known of it yet.
    New,
    /// To be dumped.
    BackupNecessary,
    /// Somebody claimed it and dumps it.
    BackupInProgress,
    /// Unchanged since its last dump.
    Clean,
    /// It runs and cannot be dumped while it does.
    Running,
    /// Left alone until somebody says otherwise.
    Archived,
}

use Status::{Archived, BackupInProgress, BackupNecessary, Clean, New, Running};

/// From which state (`None`: not in the database) to which others a guest may move. A claim of a guest that is not
/// BACKUP_NECESSARY goes through that state; staying where it is is no move.
pub const MOVES: [(Option<Status>, &[Status]); 7] = [
    (None, &[New]),
    (Some(New), &[BackupNecessary, Archived]),
    (Some(BackupNecessary), &[BackupInProgress, Running, Archived]),
    (Some(BackupInProgress), &[Clean, BackupNecessary]),
    (Some(Clean), &[BackupNecessary, Running, Archived]),
    (Some(Running), &[BackupNecessary, Archived]),
    (Some(Archived), &[BackupNecessary]),
];

impl Status {
    pub const ALL: [Status; 6] = [New, BackupNecessary, BackupInProgress, Clean, Running, Archived];

    pub fn as_str(self) -> &'static str {
        match self {
            New => "NEW",
            BackupNecessary => "BACKUP_NECESSARY",
            BackupInProgress => "BACKUP_IN_PROGRESS",
            Clean => "CLEAN",
            Running => "RUNNING",
            Archived => "ARCHIVED",
        }
    }

    /// Whether a guest in this state needs a dump that it has not got.
    pub fn is_due(self) -> bool {
        match self {
            New | BackupNecessary | BackupInProgress | Running => true,
            Clean | Archived => false,
        }
    }
}

/// Whether the table of moves has this one, or it is none.
pub fn legal(from: Option<Status>, to: Status) -> bool {
    from == Some(to) || MOVES.iter().any(|(state, next)| *state == from && next.contains(&to))
}

/// The table of moves, for people.
pub fn moves_text() -> String {
    let line = |(from, next): &(Option<Status>, &[Status])| {
        let next: Vec<&str> = next.iter().map(|status| status.as_str()).collect();
        format!("  {:<19} -> {}\n", from.map_or("(unknown guest)", Status::as_str), next.join(", "))
    };
    MOVES.iter().map(line).collect()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Status::as_str).join(", ");
            anyhow::anyhow!("`{}` is no status: {names}", text.escape_debug())
        })
    }
}

/// What the database knows of a guest beside its status. Unknown is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    // First, so that a line is found without reading all of it.
    pub vm: GuestName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Whether it ran when it was last seen.
    #[serde(default, skip_serializing_if = "unknown")]
    pub state: State,
    /// Whether it could be dumped running when it was last seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// Its fingerprint when it was last seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What an observation saw that spoils the work of who has it claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoilt: Option<String>,
    /// When it was last observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Time>,
    /// When a claim of it last ended, if that was after it was last observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Time>,
    /// The last dump that made it CLEAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<LastDump>,
    /// Since when it is to be dumped, through all attempts that failed; unknown where its status was set by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Time>,
    /// How many attempts to dump it have failed in a row.
    #[serde(default, skip_serializing_if = "none")]
    pub failures: u32,
    /// Start of the first dump since everything of it was known to be sent. Retention may have removed that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsent: Option<Time>,
}

fn none(count: &u32) -> bool {
    *count == 0
}

fn unknown(state: &State) -> bool {
    *state == State::Unknown
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDump {
    pub id: DumpId,
    pub started: Time,
    /// What the guest's fingerprint was when this dump began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl Detail {
    /// What `guest` says of itself, and what is known from before if that is the same guest.
    pub fn of(guest: &Guest, old: Option<&Detail>, now: Time) -> Self {
        let old = old.filter(|old| old.same_guest(guest));
        Self {
            vm: guest.vm.clone(),
            uid: guest.uid.clone().or_else(|| old?.uid.clone()),
            kind: Some(guest.kind.clone()),
            driver: Some(guest.driver.clone()),
            name: guest.name.clone(),
            node: guest.node.clone(),
            tags: guest.tags.clone(),
            pool: guest.pool.clone(),
            state: guest.state,
            live: guest.live,
            fingerprint: guest.fingerprint.clone(),
            spoilt: None,
            seen: Some(now),
            claimed: None,
            dump: old.and_then(|old| old.dump.clone()),
            due: old.and_then(|old| old.due),
            failures: old.map_or(0, |old| old.failures),
            unsent: old.and_then(|old| old.unsent),
        }
    }

    /// When anything was last heard of it: an observation, or the end of a claim.
    pub fn heard(&self) -> Option<Time> {
        self.seen.max(self.claimed)
    }

    /// It is CLEAN, or nobody wants it dumped.
    pub fn settle(&mut self) {
        (self.due, self.failures) = (None, 0);
    }

    /// A dump of it was made that is good and makes it CLEAN.
    pub fn dumped(&mut self, dump: LastDump, now: Time) {
        self.settle();
        self.claimed = Some(now);
        self.unsent.get_or_insert(dump.started);
        self.dump = Some(dump);
    }

    /// So many attempts to dump it failed, the last one just now; it was due since `due` at the latest.
    pub fn failed(&mut self, attempts: u32, due: Time, now: Time) {
        self.due.get_or_insert(due);
        self.failures = self.failures.saturating_add(attempts);
        self.claimed = Some(now);
    }

    /// Nothing but its name.
    pub fn named(vm: GuestName) -> Self {
        let (uid, kind, driver, name, node, pool) = Default::default();
        let (tags, state, live, fingerprint, spoilt, seen, dump) = Default::default();
        let (claimed, due, failures, unsent) = Default::default();
        Self {
            vm,
            uid,
            kind,
            driver,
            name,
            node,
            tags,
            pool,
            state,
            live,
            fingerprint,
            spoilt,
            seen,
            claimed,
            dump,
            due,
            failures,
            unsent,
        }
    }

    /// Whether nothing says that `guest` is another one under the same name. What is absent contradicts nothing.
    pub fn same_guest(&self, guest: &Guest) -> bool {
        self.same(guest.uid.as_ref(), Some(&guest.kind))
    }

    pub fn same(&self, uid: Option<&String>, kind: Option<&String>) -> bool {
        let differ = |ours: &Option<String>, theirs: Option<&String>| {
            ours.as_ref().zip(theirs).is_some_and(|(ours, theirs)| ours != theirs)
        };
        !differ(&self.uid, uid) && !differ(&self.kind, kind)
    }

    /// The same after a look at `guest` while somebody has it claimed. What spoils that work is kept until the next claim,
    /// so that a second look, which may see nothing, does not hide it; and so is a fingerprint, to compare with.
    fn while_claimed(mut self, old: Option<&Detail>, guest: &Guest) -> Self {
        let known = old.and_then(|old| old.fingerprint.as_ref());
        let news = if guest.changed == Some(true) {
            Some("it was seen to be changed")
        } else if known.zip(guest.fingerprint.as_ref()).is_some_and(|(known, now)| known != now) {
            Some("its fingerprint is not what it was when the work began")
        } else if runs(guest) && !guest.live && !old.is_some_and(|old| running(old.state)) {
            Some("it was started, and cannot be dumped while it runs")
        } else {
            None
        };
        self.fingerprint = self.fingerprint.or_else(|| known.cloned());
        self.spoilt = old.and_then(|old| old.spoilt.clone()).or_else(|| news.map(str::to_owned));
        self
    }
}

/// Since when a guest is due that is found to be so `now`. `status` and `old` are what was known of this very guest. Where
/// the status says that it was due before and nothing tells since when, it may have been so since its last dump; a claim
/// is made of guests that are not due as well, so it says nothing about the time before it.
pub fn due_since(status: Option<Status>, old: Option<&Detail>, now: Time) -> Time {
    let last = || old.and_then(|old| old.dump.as_ref()).map(|dump| dump.started);
    let since = match status {
        None | Some(Clean | Archived) => None,
        Some(BackupInProgress) => old.and_then(|old| old.due),
        Some(New | BackupNecessary | Running) => old.and_then(|old| old.due).or_else(last),
    };
    // A clock that went wrong once must not keep a guest from ever being overdue.
    since.map_or(now, |since| since.min(now))
}

/// Start of the first dump since everything was sent: from what was remembered, the good dumps that are there, and the
/// newest of those that were sent everywhere.
pub fn unsent(old: Option<Time>, local: &[Time], sent: Option<Time>) -> Option<Time> {
    let behind = |start: &Time| sent.is_none_or(|sent| *start > sent);
    match local.iter().max() {
        Some(newest) if !behind(newest) => None,
        _ => old.iter().chain(local).copied().filter(behind).min(),
    }
}

/// What is known of a guest from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether somebody holds its claim.
    pub held: bool,
    pub store: InStore,
    pub now: Time,
}

/// The newest good dump of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InStore {
    /// No store was looked at.
    Unknown,
    Nothing,
    Newest(Time),
}

/// Why an observation ended as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Unknown,
    OtherGuest,
    NotYetDumped,
    Changed,
    NoProof,
    NoDump,
    Unchanged,
    Runs,
    Stopped,
    DeadWorker,
    Claimed,
    Archived,
}

impl Why {
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Unknown => "it is new here",
            Why::OtherGuest => "its uid or kind is another: a new guest under an old name",
            Why::NotYetDumped => "not dumped since that was found necessary",
            Why::Changed => "it differs from what it was when its last dump began",
            Why::NoProof => "nothing proves that it is unchanged",
            Why::NoDump => "the store has no good dump of it as it is",
            Why::Unchanged => "it is as it was when its last dump began",
            Why::Runs => "it runs and cannot be dumped while it does",
            Why::Stopped => "it has run since",
            Why::DeadWorker => "its dump was begun, and whoever made it is gone",
            Why::Claimed => "it is being dumped",
            Why::Archived => "it is archived",
        }
    }
}

/// What an observation makes of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub status: Status,
    pub detail: Detail,
    pub changed: bool,
    pub why: Why,
    /// What was known under this name belonged to another guest.
    pub replaces: bool,
}

/// What a look at `guest` makes of what is known of it, its status and details.
pub fn observe(known: Option<(Status, Option<&Detail>)>, guest: &Guest, facts: Facts) -> Observed {
    let old = known.and_then(|(_, detail)| detail);
    let status = known.map(|(status, _)| status);
    let other = old.is_some_and(|old| !old.same_guest(guest));
    let (changed, proof) = changed(old.filter(|_| !other), guest);
    if status == Some(BackupInProgress)
        && facts.held
        && let Some(old) = old.filter(|_| other)
    {
        // Whoever works there works on the guest of before; the new one is found when they are done.
        let news = "another guest was seen under its name: uid or kind differ".to_owned();
        let detail = Detail { spoilt: Some(old.spoilt.clone().unwrap_or(news)), ..old.clone() };
        return Observed { status: BackupInProgress, detail, changed, why: Why::Claimed, replaces: false };
    }
    let mut detail = Detail::of(guest, old, facts.now);
    if status == Some(BackupInProgress) && facts.held {
        detail = detail.while_claimed(old, guest);
    }
    let (was, old) = (status.filter(|_| !other), old.filter(|_| !other));
    let recorded = old.and_then(|old| old.dump.as_ref()).map(|dump| dump.started);
    // What made it CLEAN is gone, or damaged, though an older dump may be there.
    let lost = match facts.store {
        InStore::Unknown => false,
        InStore::Nothing => true,
        InStore::Newest(newest) => recorded.is_some_and(|recorded| newest < recorded),
    };
    let (status, why) = match was {
        None => (BackupNecessary, if other { Why::OtherGuest } else { Why::Unknown }),
        Some(Archived) => (Archived, Why::Archived),
        Some(BackupInProgress) if facts.held => (BackupInProgress, Why::Claimed),
        Some(BackupInProgress) => (BackupNecessary, Why::DeadWorker),
        Some(Clean) if changed => (BackupNecessary, proof),
        Some(Clean) if lost => (BackupNecessary, Why::NoDump),
        Some(Clean) => (Clean, Why::Unchanged),
        Some(Running) => (BackupNecessary, Why::Stopped),
        Some(New) => (BackupNecessary, Why::Unknown),
        Some(BackupNecessary) => (BackupNecessary, Why::NotYetDumped),
    };
    let (status, why) = match status {
        BackupNecessary | Clean if runs(guest) && !guest.live => (Running, Why::Runs),
        _ => (status, why),
    };
    match status {
        Clean | Archived => detail.settle(),
        // Since when it is due, or whether it is at all, whoever claimed it has to know.
        BackupInProgress => {}
        // Nothing covers what came after the newest good dump: that is no news of today.
        New | BackupNecessary | Running if was == Some(Clean) && lost => {
            let since = match facts.store {
                InStore::Newest(newest) => Some(newest),
                _ => recorded,
            };
            detail.due = Some(since.map_or(facts.now, |since| since.min(facts.now)));
        }
        New | BackupNecessary | Running => detail.due = Some(due_since(was, old, facts.now)),
    }
    if was == Some(BackupInProgress) && !facts.held {
        detail.failures = detail.failures.saturating_add(1);
    }
    Observed { status, detail, changed, why, replaces: other }
}

/// Whether a hypervisor has its disks open. A paused guest still does.
pub fn runs(guest: &Guest) -> bool {
    running(guest.state)
}

fn running(state: State) -> bool {
    matches!(state, State::Running | State::Paused)
}

fn changed(old: Option<&Detail>, guest: &Guest) -> (bool, Why) {
    let then = old.and_then(|old| old.dump.as_ref()).and_then(|dump| dump.fingerprint.as_ref());
    match (then, &guest.fingerprint) {
        _ if guest.changed == Some(true) => (true, Why::Changed),
        (Some(then), Some(now)) if then == now => (false, Why::Unchanged),
        (Some(_), Some(_)) => (true, Why::Changed),
        _ => (true, Why::NoProof),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
