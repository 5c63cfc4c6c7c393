//! Whatever happens to a store over time, the last good dump of a guest that is not gone is never removed. More cases:
//! `PROPTEST_CASES=100000 cargo test --release -p bak-prune --test history`.

use bak_common::calendar::{Time, Zone};
use bak_common::config::Keep;
use bak_common::name::{DumpId, GuestName};
use bak_common::units::Span;
use bak_prune::plan::{Candidate, Decision, SKEW_S, Terms, by_name, by_policy};
use proptest::prelude::*;
use std::collections::BTreeSet;

const GUESTS: [&str; 3] = ["web", "web-2", "gone"];

/// One thing that happens to a store.
#[derive(Clone, Debug)]
enum Event {
    /// A dump of a guest is made; it may fail, be partial, expire, or be protected.
    Night {
        vm: usize,
        fails: bool,
        expires: Option<i64>,
        protected: bool,
    },
    /// The machine's clock is set forward or back.
    Jump {
        seconds: i64,
    },
    /// Somebody deletes a dump's files by hand; or only some of them.
    Deleted {
        pick: usize,
        all: bool,
    },
    /// A sidecar becomes unreadable, and is mended later.
    Unreadable {
        vm: usize,
        on: bool,
    },
    /// Somebody copies a dump to another directory of the store.
    Copied {
        pick: usize,
    },
    /// bak-prune runs, by rules; or by names with or without force.
    Prune {
        keep: Keep,
    },
    Named {
        pick: usize,
        force: bool,
    },
}

#[derive(Clone, Debug)]
struct Have {
    id: DumpId,
    vm: GuestName,
    started: Time,
    /// When it was really made: the clock may have been wrong.
    number: usize,
    written: Time,
    expires: Option<Time>,
    fault: Option<String>,
    gone: bool,
    protected: bool,
    place: String,
}

fn candidate(have: &Have) -> Candidate<'_> {
    let Have { id, vm, started, written, expires, fault, gone, protected, place, .. } = have;
    Candidate {
        id,
        vm,
        kind: "qemu",
        uid: None,
        started: *started,
        finished: *started,
        expires: *expires,
        place,
        fault: fault.as_deref(),
        gone: *gone,
        protected: *protected,
        written: Some(*written),
    }
}

/// A machine with a store, told what happens one thing after another.
struct World {
    now: Time,
    store: Vec<Have>,
    made: usize,
    unreadable: BTreeSet<usize>,
}

impl World {
    fn live(&mut self, event: &Event) {
        match event {
            Event::Night { vm, fails, expires, protected } => self.night(*vm, *fails, *expires, *protected),
            Event::Jump { seconds } => self.now = self.now.plus(*seconds),
            Event::Deleted { pick, all } => {
                if let Some(have) = self.picked(*pick) {
                    have.fault = Some("its file x is missing".to_owned());
                    have.gone = *all;
                }
            }
            Event::Unreadable { vm, on: true } => _ = self.unreadable.insert(*vm),
            Event::Unreadable { vm, on: false } => _ = self.unreadable.remove(vm),
            Event::Copied { pick } => {
                let copy =
                    self.picked(*pick).map(|have| Have { place: format!("{}/copy", have.place), ..have.clone() });
                self.store.extend(copy);
            }
            Event::Prune { keep } => self.prune(Some(keep), BTreeSet::new(), false),
            Event::Named { pick, force } => {
                let ids = self.picked(*pick).map(|have| have.id.clone()).into_iter().collect();
                self.prune(None, ids, *force);
            }
        }
    }

    fn picked(&mut self, pick: usize) -> Option<&mut Have> {
        let count = self.store.len().max(1);
        self.store.get_mut(pick % count)
    }

    fn night(&mut self, vm: usize, fails: bool, expires: Option<i64>, protected: bool) {
        self.now = self.now.plus(86_400);
        let vm = GuestName::new(GUESTS[vm]).unwrap();
        // As bak-dump does: a start not later than the guest's newest is an error.
        if self.store.iter().any(|have| have.vm == vm && have.started >= self.now) {
            return;
        }
        self.made += 1;
        let fault = fails.then(|| "its result is failed".to_owned());
        self.store.push(Have {
            id: DumpId::of(&vm, self.now),
            place: vm.to_string(),
            vm,
            started: self.now,
            number: self.made,
            written: self.now,
            expires: expires.map(|after| self.now.plus(after)),
            fault,
            gone: false,
            protected,
        });
    }

    fn prune(&mut self, keep: Option<&Keep>, ids: BTreeSet<DumpId>, force: bool) {
        let blocked =
            |vm: &GuestName| self.unreadable.iter().any(|n| GUESTS[*n] == vm.as_str()).then(|| "a sidecar".to_owned());
        let rules = |_: usize| keep.cloned().unwrap_or_default();
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        let terms = Terms {
            keep: &rules,
            blocked: &blocked,
            is_gone: &|dump| dump.vm.as_str() == "gone",
            force,
            ..Terms::at(self.now, zone)
        };
        let all: Vec<Candidate> = self.store.iter().map(candidate).collect();
        let items = if keep.is_some() { by_policy(&all, &terms) } else { by_name(&all, &ids, &terms) };
        let going: BTreeSet<usize> =
            items.iter().filter(|item| item.decision == Decision::Remove).map(|item| item.at).collect();
        self.check(&going);
        let mut at = 0;
        self.store.retain(|_| {
            at += 1;
            !going.contains(&(at - 1))
        });
    }

    /// What must hold of every single removal, whatever was before.
    fn check(&self, going: &BTreeSet<usize>) {
        for (n, vm) in GUESTS.iter().enumerate().filter(|(_, vm)| **vm != "gone") {
            let good = || {
                let own = |(_, have): &(usize, &Have)| have.vm.as_str() == *vm && have.fault.is_none();
                self.store.iter().enumerate().filter(own)
            };
            let stays = |(at, _): &(usize, &Have)| !going.contains(at);
            assert!(good().next().is_none() || good().any(|each| stays(&each)), "no good dump of {vm} is left");
            // Not any good one: that with the latest date that can be right.
            let sane = || good().filter(|(_, have)| have.started.since(self.now) <= SKEW_S);
            let newest = sane().max_by_key(|(_, have)| (have.started, have.number));
            assert!(newest.is_none_or(|each| stays(&each)), "the last good dump of {vm} goes");
            let touched = |at: &usize| self.store[*at].vm.as_str() == *vm;
            assert!(!self.unreadable.contains(&n) || !going.iter().any(touched), "{vm} cannot be read");
        }
        assert!(!going.iter().any(|at| self.store[*at].protected), "a protected dump goes");
    }
}

fn keep() -> impl Strategy<Value = Keep> {
    let count = || prop_oneof![2 => Just(None), 1 => Just(Some(0)), 3 => (1u64..4).prop_map(Some)];
    let within = prop_oneof![2 => Just(None), 1 => (0u64..400_000).prop_map(|s| Some(Span(s)))];
    (count(), count(), count(), count(), within).prop_map(|(last, daily, monthly, failed, within)| Keep {
        last,
        daily,
        monthly,
        failed,
        within,
        ..Keep::default()
    })
}

fn event() -> impl Strategy<Value = Event> {
    const YEARS: i64 = 10 * 366 * 86_400;
    let expires = prop_oneof![4 => Just(None), 1 => (0i64..900_000).prop_map(Some)];
    prop_oneof![
        10 => (0usize..3, prop::bool::weighted(0.3), expires, prop::bool::weighted(0.05))
            .prop_map(|(vm, fails, expires, protected)| Event::Night { vm, fails, expires, protected }),
        1 => (-YEARS..YEARS).prop_map(|seconds| Event::Jump { seconds }),
        1 => (0usize..99, any::<bool>()).prop_map(|(pick, all)| Event::Deleted { pick, all }),
        1 => (0usize..3, any::<bool>()).prop_map(|(vm, on)| Event::Unreadable { vm, on }),
        1 => (0usize..99).prop_map(|pick| Event::Copied { pick }),
        5 => keep().prop_map(|keep| Event::Prune { keep }),
        1 => (0usize..99, any::<bool>()).prop_map(|(pick, force)| Event::Named { pick, force }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn the_last_good_dump_of_a_guest_that_is_not_gone_is_never_removed(events in prop::collection::vec(event(), 1..60)) {
        let start = "2026-11-20T01:00:00Z".parse().unwrap();
        let mut world = World { now: start, store: Vec::new(), made: 0, unreadable: BTreeSet::new() };
        events.iter().for_each(|event| world.live(event));
    }
}
