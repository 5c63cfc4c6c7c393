//! What a prune does to the dumps of one store, and why. Pure: facts, rules and the time go in, decisions come out.
//!
//! Guests never influence each other. For each dump the first of these decides:
//!
//! 1. a guest of which a sidecar cannot be read: everything stays, for nobody knows what it hides;
//! 2. protected: spared;
//! 3. none of its files is left: removed, for there is nothing to keep;
//! 4. dated in the future, or its files are much newer than its date: spared. It never counts, or one wrong clock would
//!    let all real dumps go;
//! 5. the last good dump of its guest: never removed, whatever the rules or its own `expires` say, unless the guest was
//!    named as gone;
//! 6. the basis of a delta that waits to be sent: spared;
//! 7. `expires`: kept until then, removed after;
//! 8. not good: kept for a look as long as it is newer than the oldest dump that the rules keep, or as many as the rules
//!    say, then removed;
//! 9. the rules of [`crate::policy`], over the good dumps that none of the above has decided;
//! 10. what would go although nothing shows it off-site, where that is asked for: spared.
//!
//! A dump that lies in two directories of a store counts once, and what is decided of it holds for both. By name (an
//! explicit order) only 1, 2, 4, 5 and 6 stand against removal; `force` lifts 4 and 6.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName};
use bak_common::record::PruneNote;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::gone;
use crate::policy::{self, Hold, Miss, Moment, Verdict};

pub use bak_common::calendar::SKEW_S;

/// By how much a dump's files may be newer than its end. Copying a dump gives its files their times back everywhere in
/// bak; so files that are this much newer were made when the clock that dated the dump was wrong, or copied without.
pub const ODD_S: i64 = 30 * 86_400;

/// A dump of the store, and what looking at it told.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub id: &'a DumpId,
    pub vm: &'a GuestName,
    pub kind: &'a str,
    pub uid: Option<&'a str>,
    pub started: Time,
    pub finished: Time,
    pub expires: Option<Time>,
    /// Its directory in the store: sets dumps apart that have one id.
    pub place: &'a str,
    /// Why it is not good, if it is not.
    pub fault: Option<&'a str>,
    /// None of its files is left.
    pub gone: bool,
    pub protected: bool,
    /// When the newest of its files was last written to.
    pub written: Option<Time>,
}

/// What the decisions depend on, beside the dumps. Dumps are asked about by their place among the candidates.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub now: Time,
    pub zone: Zone,
    pub skew_s: i64,
    /// Whether a guest is selected; it is asked about the dump that stands for it.
    pub select: &'a dyn Fn(usize) -> bool,
    /// The rules for a guest, likewise.
    pub keep: &'a dyn Fn(usize) -> Keep,
    /// What keeps this guest's dumps from being counted.
    pub blocked: &'a dyn Fn(&GuestName) -> Option<String>,
    /// Whether somebody said that this guest is gone: then its last dumps may go, too.
    pub is_gone: &'a dyn Fn(&Candidate) -> bool,
    /// Why a dump must wait until it is off-site.
    pub unsent: &'a dyn Fn(usize) -> Option<String>,
    /// Why a dump is needed for sending another.
    pub basis: &'a dyn Fn(&DumpId) -> Option<String>,
    /// By name, also what is dated wrongly.
    pub force: bool,
}

impl Terms<'_> {
    /// The terms of a plain prune, in which everything is kept until rules are set.
    pub fn at(now: Time, zone: Zone) -> Self {
        Self {
            now,
            zone,
            skew_s: SKEW_S,
            select: &|_| true,
            keep: &|_| Keep::default(),
            blocked: &|_| None,
            is_gone: &|_| false,
            unsent: &|_| None,
            basis: &|_| None,
            force: false,
        }
    }

    fn moment(&self, started: Time) -> Moment {
        Moment { started, local: self.zone.local(started) }
    }
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

/// What the rules say of one dump; the numbers are places among the candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    Nothing,
    Keep(Hold),
    Remove(Vec<Miss>),
}

/// What becomes of one dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place among the candidates.
    pub at: usize,
    pub decision: Decision,
    /// What decides beside the rules, or before them.
    pub why: Vec<String>,
    pub ruling: Ruling,
    /// Its date cannot be right, which somebody should look into.
    pub misdated: bool,
    /// It is the last good dump of its guest, or its guest has nothing better: no want of space removes it.
    pub last: bool,
}

impl Item {
    fn new(at: usize, decision: Decision, why: Vec<String>) -> Self {
        Self { at, decision, why, ruling: Ruling::Nothing, misdated: false, last: false }
    }

    /// Why, for people. What came closest is first.
    pub fn reasons(&self, all: &[Candidate], zone: Zone) -> Vec<String> {
        let moment = |at: usize| Moment { started: all[at].started, local: zone.local(all[at].started) };
        let mut reasons = self.why.clone();
        match &self.ruling {
            Ruling::Nothing => {}
            Ruling::Keep(hold) => reasons.push(hold.say(&moment(self.at))),
            Ruling::Remove(misses) => {
                reasons.extend(misses.iter().map(|miss| miss.say(|at| (moment(at), all[at].id.as_str()))));
            }
        }
        reasons
    }

    /// The note that the dump's record carries.
    pub fn note(&self, all: &[Candidate], zone: Zone) -> PruneNote {
        let decision = match self.decision {
            Decision::Keep => "keep",
            Decision::Remove => "remove",
            Decision::Spared | Decision::Blocked => "spared",
        };
        PruneNote { decision: decision.to_owned(), reasons: self.reasons(all, zone) }
    }
}

/// One guest's dumps, oldest first.
struct Group<'a> {
    all: &'a [Candidate<'a>],
    members: Vec<usize>,
    /// Its newest good dump whose date may be right; if none is such, its newest good dump.
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
    let named = |group: &Group| -> Vec<Item> {
        let members = group.members.iter().copied();
        members.filter(|at| ids.contains(all[*at].id)).map(|at| group.ordered(at)).collect()
    };
    groups(all, terms).iter().flat_map(named).collect()
}

/// The decision about every dump of the guests called `vm`: all go but what is protected.
pub fn purge(all: &[Candidate], vm: &GuestName, terms: &Terms) -> Vec<Item> {
    let item = |at: usize| match all[at].protected {
        true => Item::new(at, Decision::Spared, vec!["it is protected".to_owned()]),
        false => Item::new(at, Decision::Remove, vec!["all of its guest is purged".to_owned()]),
    };
    let members = groups(all, terms).into_iter().flat_map(|group| group.members);
    members.filter(|at| all[*at].vm == vm).map(item).collect()
}

/// For each guest the dump that says what it is, by its place among the candidates.
pub fn faces(all: &[Candidate], terms: &Terms) -> Vec<usize> {
    groups(all, terms).iter().map(Group::face).collect()
}

fn groups<'a>(all: &'a [Candidate<'a>], terms: &'a Terms<'a>) -> Vec<Group<'a>> {
    let mut numbers: HashMap<(&GuestName, &str, Option<&str>), usize> = HashMap::new();
    let mut members: Vec<Vec<usize>> = Vec::new();
    for (at, candidate) in all.iter().enumerate() {
        let number = *numbers.entry((candidate.vm, candidate.kind, candidate.uid)).or_insert_with(|| {
            members.push(Vec::new());
            members.len() - 1
        });
        members[number].push(at);
    }
    let group = |mut members: Vec<usize>| {
        members.sort_by_key(|at| {
            let candidate = &all[*at];
            (candidate.started, candidate.id, candidate.fault.is_some(), candidate.place)
        });
        let mut group = Group { all, members, last: None, terms };
        let good = || group.members.iter().rev().copied().filter(|at| all[*at].fault.is_none());
        let last = good().find(|at| group.misdated(*at).is_none()).or_else(|| good().next());
        group.last = last;
        group
    };
    let order: BTreeMap<_, usize> = numbers.into_iter().collect();
    let mut sorted: Vec<Group> = Vec::with_capacity(order.len());
    sorted.extend(order.into_values().map(|number| group(std::mem::take(&mut members[number]))));
    sorted
}

impl<'a> Group<'a> {
    /// The dump that says what the guest is called, which tags it has and so on: the last good one, else the newest.
    fn face(&self) -> usize {
        // A group is made of at least one member, so the second choice is there.
        self.last.unwrap_or(self.members[self.members.len() - 1])
    }

    /// Why a dump's date cannot be right.
    fn misdated(&self, at: usize) -> Option<String> {
        let Candidate { started, finished, written, .. } = self.all[at];
        let latest = self.terms.now.plus(self.terms.skew_s);
        if started > latest {
            return Some("it is dated in the future: not counted".to_owned());
        }
        // Where the files seem to be of the future too, it is not the dump that is dated oddly.
        let written = written.filter(|written| *written <= latest && *written > finished.plus(ODD_S))?;
        Some(format!("it is dated oddly, its files were written {written}: not counted"))
    }

    /// Whether it is the last good dump of its guest, or another copy of that.
    fn is_last(&self, at: usize) -> bool {
        self.all[at].fault.is_none() && self.last.is_some_and(|last| self.all[last].id == self.all[at].id)
    }

    fn block(&self, at: usize) -> Option<Item> {
        let what = (self.terms.blocked)(self.all[at].vm)?;
        let why = format!("{what} cannot be read: nothing of its guest is removed");
        Some(Item::new(at, Decision::Blocked, vec![why]))
    }

    /// Why nothing may remove a dump, not even an order.
    fn spared(&self, at: usize, force: bool, gone: bool) -> Option<String> {
        let candidate = &self.all[at];
        if candidate.protected {
            return Some("it is protected".to_owned());
        }
        if candidate.gone {
            return None;
        }
        let last = || (self.is_last(at) && !gone).then(|| "it is the last good dump of its guest".to_owned());
        if force {
            return last();
        }
        self.misdated(at).or_else(last).or_else(|| (self.terms.basis)(candidate.id))
    }

    fn ordered(&self, at: usize) -> Item {
        if let Some(item) = self.block(at) {
            return item;
        }
        match self.spared(at, self.terms.force, false) {
            Some(why) => Item::new(at, Decision::Spared, vec![why]),
            None => Item::new(at, Decision::Remove, vec!["removed by name".to_owned()]),
        }
    }

    fn by_policy(&self) -> Vec<Item> {
        let keep = (self.terms.keep)(self.face());
        let gone = (self.terms.is_gone)(&self.all[self.face()]);
        let mut judged = Judged::of(self, &keep, gone);
        let last = |at: usize| self.last.is_none() || (self.is_last(at) && !gone);
        let rulings = std::mem::take(&mut judged.rulings);
        let members = self.members.iter().zip(rulings);
        members.map(|(at, ruling)| Item { last: last(*at), ..self.decide(*at, ruling, &judged) }).collect()
    }

    fn decide(&self, at: usize, ruling: Option<Item>, judged: &Judged) -> Item {
        if let Some(item) = self.block(at) {
            return item;
        }
        let candidate = &self.all[at];
        let mut item = self.wanted(at, ruling, judged);
        if item.decision == Decision::Remove
            && candidate.fault.is_none()
            && let Some(why) = (self.terms.unsent)(at)
        {
            item.decision = Decision::Spared;
            item.why.insert(0, why);
        }
        let Some(why) = self.spared(at, false, judged.gone) else { return item };
        let misdated = !candidate.gone && self.misdated(at).is_some();
        if self.is_last(at) && !candidate.protected && !misdated {
            match item.decision {
                // That the last good dump is also kept by the rules is the normal case, and the better reason.
                Decision::Keep => item,
                _ => {
                    item.decision = Decision::Spared;
                    item.why.insert(0, why);
                    item
                }
            }
        } else {
            Item { misdated, ..Item::new(at, Decision::Spared, vec![why]) }
        }
    }

    /// What would become of a dump if it were not for what is spared.
    fn wanted(&self, at: usize, ruling: Option<Item>, judged: &Judged) -> Item {
        let candidate = &self.all[at];
        let says = |decision, text: String| Item::new(at, decision, vec![text]);
        if candidate.gone {
            return says(Decision::Remove, "its files are gone".to_owned());
        }
        if let Some(expires) = candidate.expires {
            return if self.terms.now > expires {
                says(Decision::Remove, format!("expired {expires}"))
            } else {
                says(Decision::Keep, format!("kept until it expires, {expires}"))
            };
        }
        if let Some(fault) = candidate.fault {
            let (decision, text) = judged.look(self, at, fault);
            return says(decision, text);
        }
        ruling.unwrap_or_else(|| Item::new(at, Decision::Keep, Vec::new()))
    }
}

/// What the rules say of one guest's dumps.
struct Judged {
    gone: bool,
    /// One for each member of the guest; for those that count, and their copies.
    rulings: Vec<Option<Item>>,
    /// The dump before which the guest's history has ended, so that no dump that is not good is worth a look.
    floor: Option<usize>,
    /// How many dumps that are not good are kept, and those that are, newest first.
    failed: Option<(u64, Vec<usize>)>,
}

impl Judged {
    fn of(group: &Group, keep: &Keep, gone: bool) -> Self {
        let places = Self::counted(group);
        let counted: Vec<usize> = places.iter().map(|place| group.members[*place]).collect();
        let moments: Vec<Moment> = counted.iter().map(|at| group.terms.moment(group.all[*at].started)).collect();
        let items = match gone {
            true => Self::gone(group, &counted, moments, keep),
            false => Self::plain(&counted, policy::judge(&moments, keep, group.terms.now)),
        };
        let mut rulings: Vec<Option<Item>> = vec![None; group.members.len()];
        for (place, item) in places.into_iter().zip(items) {
            rulings[place] = Some(item);
        }
        Self::copies(group, &counted, &mut rulings);
        let kept = |item: &&Item| item.decision == Decision::Keep;
        let first = || rulings.iter().flatten().find(kept).map(|item| item.at);
        let floor = if policy::removes(keep) { first().or(group.last) } else { None };
        let failed = keep.failed.filter(|_| keep.all != Some(true)).map(|number| {
            let failed = |at: &usize| group.all[*at].fault.is_some() && !group.all[*at].gone;
            (number, group.members.iter().rev().copied().filter(failed).collect())
        });
        Self { gone, rulings, floor, failed }
    }

    /// The dumps that count, each once, newest first, by their places among the members.
    fn counted(group: &Group) -> Vec<usize> {
        let (all, members) = (group.all, &group.members);
        let counts = |place: &usize| {
            let candidate = &all[members[*place]];
            let decided = || candidate.protected || candidate.expires.is_some();
            candidate.fault.is_none() && !decided() && group.misdated(members[*place]).is_none()
        };
        let mut counted: Vec<usize> = (0..members.len()).filter(counts).collect();
        counted.dedup_by_key(|place| all[members[*place]].id);
        counted.reverse();
        counted
    }

    fn plain(counted: &[usize], verdicts: Vec<Verdict>) -> Vec<Item> {
        let item = |(at, verdict): (&usize, Verdict)| match verdict {
            Verdict::Keep(hold) => Item { ruling: Ruling::Keep(hold), ..Item::new(*at, Decision::Keep, Vec::new()) },
            Verdict::Remove(misses) => {
                let misses = misses.into_iter().map(|miss| miss.renumbered(|number| counted[number])).collect();
                Item { ruling: Ruling::Remove(misses), ..Item::new(*at, Decision::Remove, Vec::new()) }
            }
        };
        counted.iter().zip(verdicts).map(item).collect()
    }

    /// A guest that is gone is judged as if it had been dumped every day since.
    fn gone(group: &Group, counted: &[usize], mut moments: Vec<Moment>, keep: &Keep) -> Vec<Item> {
        let terms = group.terms;
        let real = moments.len();
        moments.extend(gone::since(moments.first().copied(), terms.now, terms.zone));
        let verdicts = policy::judge(&moments, keep, terms.now);
        let name = |number: usize| counted.get(number).map_or(gone::NAME, |at| group.all[*at].id.as_str());
        let item = |((number, at), verdict): ((usize, &usize), Verdict)| {
            let (decision, mut why) = match verdict {
                Verdict::Keep(hold) => (Decision::Keep, vec![hold.say(&moments[number])]),
                Verdict::Remove(misses) => {
                    let say = |miss: &Miss| miss.say(|number| (moments[number], name(number)));
                    (Decision::Remove, misses.iter().map(say).collect())
                }
            };
            why.insert(0, gone::WHY.to_owned());
            Item::new(*at, decision, why)
        };
        counted.iter().enumerate().zip(verdicts).take(real).map(item).collect()
    }

    /// What is decided about a dump holds for its copies in other directories of the store.
    fn copies(group: &Group, counted: &[usize], rulings: &mut [Option<Item>]) {
        if group.members.len() == counted.len() {
            return;
        }
        let id = |item: &Item| (group.all[item.at].id, item.clone());
        let by_id: HashMap<&DumpId, Item> = rulings.iter().flatten().map(id).collect();
        for (at, ruling) in group.members.iter().zip(rulings) {
            let candidate = &group.all[*at];
            let Some(item) = by_id.get(candidate.id).filter(|_| ruling.is_none() && candidate.fault.is_none()) else {
                continue;
            };
            let place = group.all[item.at].place;
            let place = if place.is_empty() { "the top" } else { place };
            let mut copy = Item { at: *at, ..item.clone() };
            copy.why.insert(0, format!("a copy of the one in {place}"));
            *ruling = Some(copy);
        }
    }

    /// What becomes of a dump that is not good.
    fn look(&self, group: &Group, at: usize, fault: &str) -> (Decision, String) {
        let keep = |more: &str| (Decision::Keep, format!("for a look{more}: {fault}"));
        if let (Some((number, failed)), true) = (&self.failed, group.last.is_some()) {
            let rank = failed.iter().position(|other| *other == at).unwrap_or(0);
            return match (rank as u64) < *number {
                true => keep(&format!(" #{}", rank + 1)),
                false if *number == 0 => (Decision::Remove, format!("{fault}, and none such is kept for a look")),
                false => (Decision::Remove, format!("{fault}, and {number} newer of that kind are kept for a look")),
            };
        }
        match self.floor.filter(|floor| group.all[at].started < group.all[*floor].started) {
            Some(floor) => {
                let oldest = group.all[floor].id;
                (Decision::Remove, format!("{fault}, and it is older than all that is kept ({oldest})"))
            }
            None => keep(""),
        }
    }
}
