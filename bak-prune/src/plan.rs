//! What a prune does to the dumps of one store, and why. Pure: records, rules and the time go in, decisions come out.
//!
//! Guests never influence each other. For each dump the first of these decides:
//!
//! 1. a guest of which a sidecar cannot be read: everything stays, for nobody knows what it hides;
//! 2. protected: spared;
//! 3. none of its files is left: removed, for there is nothing to keep;
//! 4. dated in the future: spared. It never counts, or one wrong clock would let all real dumps go;
//! 5. the last good dump of its guest: never removed, whatever the rules or its own `expires` say;
//! 6. `expires`: kept until then, removed after;
//! 7. not good: kept for a look as long as it is newer than the oldest dump that the rules keep, then removed;
//! 8. the rules of [`crate::policy`], over the good dumps that none of the above has decided.
//!
//! By name (an explicit order) only 1, 2, 4 and 5 stand against removal.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName};
use bak_common::record::{Dump, GuestKey, PruneNote};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use crate::policy::{self, Moment, Verdict};

pub use bak_common::calendar::SKEW_S;

/// A dump of the store, and what looking at its files told.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub dump: &'a Dump,
    /// Its directory in the store: sets dumps apart that have one id.
    pub place: &'a str,
    /// Why it is not good, if it is not.
    pub fault: Option<&'a str>,
    /// None of its files is left.
    pub gone: bool,
    pub protected: bool,
}

/// What the decisions depend on, beside the dumps.
pub struct Terms<'a> {
    pub now: Time,
    pub zone: Zone,
    pub skew_s: i64,
    /// Whether a guest is selected; it is asked about the dump that stands for it.
    pub select: &'a dyn Fn(&Dump) -> bool,
    /// The rules for a guest, likewise.
    pub keep: &'a dyn Fn(&Dump) -> Keep,
    /// What keeps this guest's dumps from being counted.
    pub blocked: &'a dyn Fn(&GuestName) -> Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Keep,
    Remove,
    Spared,
    /// Nothing can be said, because something could not be read.
    Blocked,
}

/// What becomes of one dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its place among the candidates.
    pub at: usize,
    pub id: DumpId,
    pub decision: Decision,
    pub reasons: Vec<String>,
    /// It is dated in the future, which somebody should look into.
    pub future: bool,
}

impl Item {
    /// The note that the dump's record carries.
    pub fn note(&self) -> PruneNote {
        let decision = match self.decision {
            Decision::Keep => "keep",
            Decision::Remove => "remove",
            Decision::Spared | Decision::Blocked => "spared",
        };
        PruneNote { decision: decision.to_owned(), reasons: self.reasons.clone() }
    }
}

/// Whether the rules keep a dump, and their reasons, by its place among the candidates.
type Ruled = BTreeMap<usize, (bool, Vec<String>)>;

/// One guest's dumps, oldest first.
struct Group<'a> {
    all: &'a [Candidate<'a>],
    members: Vec<usize>,
    /// Its newest good dump that is not dated in the future.
    last: Option<usize>,
    terms: &'a Terms<'a>,
}

/// The decision about every dump of the selected guests: by guest, then by start.
pub fn by_policy(all: &[Candidate], terms: &Terms) -> Vec<Item> {
    let selected = |group: &Group| (terms.select)(group.face());
    groups(all, terms).into_iter().filter(selected).flat_map(|group| group.by_policy()).collect()
}

/// The decision about every dump that was named.
pub fn by_name(all: &[Candidate], ids: &BTreeSet<DumpId>, terms: &Terms) -> Vec<Item> {
    let named = |group: &Group| {
        group
            .members
            .iter()
            .filter(|at| ids.contains(&all[**at].dump.id))
            .map(|at| group.ordered(*at))
            .collect::<Vec<_>>()
    };
    groups(all, terms).iter().flat_map(named).collect()
}

/// The dump that says what each guest is.
pub fn faces<'a>(all: &'a [Candidate<'a>], terms: &'a Terms<'a>) -> Vec<&'a Dump> {
    groups(all, terms).iter().map(Group::face).collect()
}

fn groups<'a>(all: &'a [Candidate<'a>], terms: &'a Terms<'a>) -> Vec<Group<'a>> {
    let mut members: BTreeMap<GuestKey, Vec<usize>> = BTreeMap::new();
    for (at, candidate) in all.iter().enumerate() {
        members.entry(candidate.dump.key()).or_default().push(at);
    }
    let group = |mut members: Vec<usize>| {
        members.sort_by_key(|at| {
            let candidate = &all[*at];
            (candidate.dump.started, &candidate.dump.id, candidate.place, &candidate.dump.stem)
        });
        let mut group = Group { all, members, last: None, terms };
        let last = group.members.iter().rev().find(|at| all[**at].fault.is_none() && !group.is_future(**at));
        group.last = last.copied();
        group
    };
    members.into_values().map(group).collect()
}

impl<'a> Group<'a> {
    /// The dump that says what the guest is called, which tags it has and so on: the last good one, else the newest.
    fn face(&self) -> &'a Dump {
        // A group is made of at least one member, so the second choice is there.
        self.all[self.last.unwrap_or(self.members[self.members.len() - 1])].dump
    }

    fn is_future(&self, at: usize) -> bool {
        self.all[at].dump.started > self.terms.now.plus(self.terms.skew_s)
    }

    fn item(&self, at: usize, decision: Decision, reasons: Vec<String>) -> Item {
        Item { at, id: self.all[at].dump.id.clone(), decision, reasons, future: self.is_future(at) }
    }

    fn block(&self, at: usize) -> Option<Item> {
        let what = (self.terms.blocked)(&self.all[at].dump.vm)?;
        Some(self.item(at, Decision::Blocked, vec![format!("{what} cannot be read: nothing of its guest is removed")]))
    }

    /// Why nothing may remove a dump, not even an order.
    fn spared(&self, at: usize) -> Option<&'static str> {
        let candidate = &self.all[at];
        if candidate.protected {
            Some("it is protected")
        } else if candidate.gone {
            None
        } else if self.is_future(at) {
            Some("it is dated in the future: not counted")
        } else {
            (self.last == Some(at)).then_some("it is the last good dump of its guest")
        }
    }

    fn ordered(&self, at: usize) -> Item {
        if let Some(item) = self.block(at) {
            return item;
        }
        match self.spared(at) {
            Some(why) => self.item(at, Decision::Spared, vec![why.to_owned()]),
            None => self.item(at, Decision::Remove, vec!["removed by name".to_owned()]),
        }
    }

    fn by_policy(&self) -> Vec<Item> {
        let keep = (self.terms.keep)(self.face());
        let ruled = self.ruled(&keep);
        let floor = self.floor(&keep, &ruled);
        self.members.iter().map(|at| self.decide(*at, &ruled, floor)).collect()
    }

    /// What the rules say of the dumps that count.
    fn ruled(&self, keep: &Keep) -> Ruled {
        let counts = |at: &usize| {
            let candidate = &self.all[*at];
            let decided = candidate.protected || self.is_future(*at) || candidate.dump.expires.is_some();
            candidate.fault.is_none() && !decided
        };
        // Newest first, as the rules take the first of two that began in the same second.
        let counted: Vec<usize> = self.members.iter().rev().copied().filter(counts).collect();
        let moment = |at: &usize| {
            let started = self.all[*at].dump.started;
            Moment { started, local: self.terms.zone.local(started) }
        };
        let moments: Vec<Moment> = counted.iter().map(moment).collect();
        let id = |n: usize| self.all[counted[n]].dump.id.as_str();
        let say = |verdict: Verdict| match verdict {
            Verdict::Keep(hold) => (true, vec![hold.to_string()]),
            Verdict::Remove(misses) => (false, misses.iter().map(|miss| miss.say(&moments, id)).collect()),
        };
        let verdicts = policy::judge(&moments, keep, self.terms.now);
        counted.iter().copied().zip(verdicts.into_iter().map(say)).collect()
    }

    /// The dump before which the guest's history has ended, so that no dump that is not good is worth a look.
    fn floor(&self, keep: &Keep, ruled: &Ruled) -> Option<usize> {
        if !policy::removes(keep) {
            return None;
        }
        let kept = |at: &&usize| ruled.get(at).is_some_and(|(kept, _)| *kept);
        self.members.iter().find(kept).copied().or(self.last)
    }

    fn decide(&self, at: usize, ruled: &Ruled, floor: Option<usize>) -> Item {
        if let Some(item) = self.block(at) {
            return item;
        }
        let candidate = &self.all[at];
        let wanted = self.wanted(at, ruled, floor);
        match (self.spared(at), wanted) {
            // That the last good dump is also kept by the rules is the normal case, and the better reason.
            (Some(_), (Decision::Keep, reasons)) if self.last == Some(at) && !candidate.protected => {
                self.item(at, Decision::Keep, reasons)
            }
            (Some(why), (Decision::Remove, reasons)) if self.last == Some(at) => {
                let mut all = vec![why.to_owned()];
                all.extend(reasons);
                self.item(at, Decision::Spared, all)
            }
            (Some(why), _) => self.item(at, Decision::Spared, vec![why.to_owned()]),
            (None, (decision, reasons)) => self.item(at, decision, reasons),
        }
    }

    /// What would become of a dump if it were not for what is spared.
    fn wanted(&self, at: usize, ruled: &Ruled, floor: Option<usize>) -> (Decision, Vec<String>) {
        let candidate = &self.all[at];
        let says = |decision, text: String| (decision, vec![text]);
        if candidate.gone {
            return says(Decision::Remove, "its files are gone".to_owned());
        }
        if let Some(expires) = candidate.dump.expires {
            return if self.terms.now > expires {
                says(Decision::Remove, format!("expired {expires}"))
            } else {
                says(Decision::Keep, format!("kept until it expires, {expires}"))
            };
        }
        if let Some(fault) = candidate.fault {
            let older = floor.filter(|floor| candidate.dump.started < self.all[*floor].dump.started);
            return match older {
                Some(floor) => {
                    let oldest = &self.all[floor].dump.id;
                    says(Decision::Remove, format!("{fault}, and it is older than all that is kept ({oldest})"))
                }
                None => says(Decision::Keep, format!("for a look: {fault}")),
            };
        }
        match ruled.get(&at) {
            Some((true, reasons)) => (Decision::Keep, reasons.clone()),
            Some((false, reasons)) => (Decision::Remove, reasons.clone()),
            // Protected or dated in the future: spared, whatever is said here.
            None => (Decision::Keep, Vec::new()),
        }
    }
}
