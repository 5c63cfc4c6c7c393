//! In which order guests are dumped, and what to do with those that run and cannot be dumped so.
//!
//! Stopped guests go first, those whose last dump is oldest before the others. Running ones are looked at again when no
//! others wait, and then every so often while others are being dumped. Patience with them is counted from the moment when
//! only they are left. Pure: time is an argument, counted from the start of the run.

use bak_common::calendar::Time;
use bak_common::record::GuestKey;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// What decides a guest's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub key: GuestKey,
    /// Runs, and cannot be dumped while it does.
    pub late: bool,
    /// Start of its newest good dump.
    pub last: Option<Time>,
}

/// The turns, as numbers of candidates.
pub fn order(candidates: &[Candidate]) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..candidates.len()).collect();
    // `None`, never dumped, sorts before every time.
    turns.sort_by_key(|i| (candidates[*i].late, candidates[*i].last, &candidates[*i].key));
    turns
}

/// What a worker that is free does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Dump(usize),
    /// See whether this one still runs; then [`Queue::freed`] or [`Queue::still_runs`].
    Look(usize),
    /// Until another worker is done, but at most so long.
    Wait(Option<Duration>),
    Done,
}

#[derive(Clone, Debug)]
struct Late {
    item: usize,
    due: Duration,
}

#[derive(Clone, Debug)]
pub struct Queue {
    ready: VecDeque<usize>,
    late: Vec<Late>,
    dumping: usize,
    looking: usize,
    alone_since: Option<Duration>,
    /// Those that turned out to run when they were to be dumped.
    returned: HashSet<usize>,
    wait: Duration,
    patience: Duration,
}

impl Queue {
    /// Those that run are looked at every `wait`, and given up after `patience`.
    pub fn new(candidates: &[Candidate], wait: Duration, patience: Duration) -> Self {
        let (late, ready) = order(candidates).into_iter().partition::<Vec<_>, _>(|i| candidates[*i].late);
        Self {
            ready: ready.into(),
            late: late.into_iter().map(|item| Late { item, due: Duration::ZERO }).collect(),
            dumping: 0,
            looking: 0,
            alone_since: None,
            returned: HashSet::new(),
            // Else it would do nothing but look.
            wait: wait.max(Duration::from_secs(1)),
            patience,
        }
    }

    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(item) = self.ready.pop_front() {
            self.dumping += 1;
            return Next::Dump(item);
        }
        if self.late.is_empty() {
            // Who is being looked at or dumped now may come back.
            return if self.dumping + self.looking == 0 { Next::Done } else { Next::Wait(None) };
        }
        let end = self.end(now);
        let due = |late: &Late| end.map_or(late.due, |end| late.due.min(end));
        // Not empty, so there is a first; among equals the order of the turns holds.
        let first = (0..self.late.len()).min_by_key(|i| due(&self.late[*i])).unwrap_or(0);
        let wait = due(&self.late[first]).saturating_sub(now);
        if !wait.is_zero() {
            return Next::Wait(Some(wait));
        }
        self.looking += 1;
        Next::Look(self.late.remove(first).item)
    }

    /// When patience ends, if only those that run are left.
    fn end(&mut self, now: Duration) -> Option<Duration> {
        if self.dumping > 0 || !self.ready.is_empty() {
            self.alone_since = None;
            return None;
        }
        Some(self.alone_since.get_or_insert(now).saturating_add(self.patience))
    }

    /// One that was looked at has stopped, and is being dumped now.
    pub fn freed(&mut self) {
        self.looking -= 1;
        self.dumping += 1;
    }

    /// One that was looked at still runs: whether it will be tried again.
    pub fn still_runs(&mut self, item: usize, now: Duration) -> bool {
        self.looking -= 1;
        if self.end(now).is_some_and(|end| now >= end) {
            return false;
        }
        self.late.push(Late { item, due: now.saturating_add(self.wait) });
        true
    }

    /// One that was to be dumped turned out to run: whether it is looked at again like the others. That is so at least once;
    /// who looks stopped and is not must not be tried for ever.
    pub fn put_back(&mut self, item: usize, now: Duration) -> bool {
        self.dumping -= 1;
        let again = self.returned.insert(item) || self.end(now).is_none_or(|end| now < end);
        if again {
            self.late.push(Late { item, due: now.saturating_add(self.wait) });
        }
        again
    }

    /// One that was to be dumped is dumped, or has failed.
    pub fn done(&mut self) {
        self.dumping -= 1;
    }

    /// One that was looked at has failed.
    pub fn lost(&mut self) {
        self.looking -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::name::GuestName;
    use proptest::prelude::*;

    fn candidate(vm: &str, late: bool, last: Option<i64>) -> Candidate {
        let key = GuestKey { vm: GuestName::new(vm).unwrap(), kind: "qemu".into(), uid: None };
        Candidate { key, late, last: last.map(|seconds| Time::from_unix(seconds).unwrap()) }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn stopped_first_then_never_dumped_then_oldest_then_by_name() {
        let candidates = [
            candidate("d", false, Some(200)),
            candidate("b", true, None),
            candidate("c", false, Some(100)),
            candidate("z", false, None),
            candidate("e", false, Some(100)),
            candidate("a", true, Some(5)),
        ];
        let turns: Vec<_> = order(&candidates).into_iter().map(|i| candidates[i].key.vm.as_str()).collect();
        assert_eq!(turns, ["z", "c", "e", "d", "b", "a"]);
    }

    #[test]
    fn without_patience_one_more_look_and_then_it_is_given_up() {
        let candidates = [candidate("r", true, None), candidate("s", false, None)];
        let mut queue = Queue::new(&candidates, seconds(60), Duration::ZERO);
        assert_eq!(queue.next(seconds(0)), Next::Dump(1));
        queue.done();
        assert_eq!(queue.next(seconds(10)), Next::Look(0));
        assert!(!queue.still_runs(0, seconds(10)));
        assert_eq!(queue.next(seconds(10)), Next::Done);
    }

    #[test]
    fn with_patience_it_is_looked_at_until_that_ends() {
        let mut queue = Queue::new(&[candidate("r", true, None)], seconds(60), seconds(150));
        for now in [100, 160, 220] {
            assert_eq!(queue.next(seconds(now)), Next::Look(0), "{now}");
            assert!(queue.still_runs(0, seconds(now)));
        }
        assert_eq!(queue.next(seconds(220)), Next::Wait(Some(seconds(30))));
        assert_eq!(queue.next(seconds(250)), Next::Look(0));
        assert!(!queue.still_runs(0, seconds(250)));
        assert_eq!(queue.next(seconds(250)), Next::Done);
    }

    #[test]
    fn patience_does_not_run_while_others_are_dumped() {
        let candidates = [candidate("r", true, None), candidate("s", false, None)];
        let mut queue = Queue::new(&candidates, seconds(60), Duration::ZERO);
        assert_eq!(queue.next(seconds(0)), Next::Dump(1));
        assert_eq!(queue.next(seconds(0)), Next::Look(0));
        assert!(queue.still_runs(0, seconds(0)));
        assert_eq!(queue.next(seconds(0)), Next::Wait(Some(seconds(60))));
        queue.done();
        assert_eq!(queue.next(seconds(20)), Next::Look(0));
        queue.freed();
        assert_eq!(queue.next(seconds(20)), Next::Wait(None));
        queue.done();
        assert_eq!(queue.next(seconds(21)), Next::Done);
    }

    #[test]
    fn one_that_was_started_in_between_is_looked_at_once_more() {
        let mut queue = Queue::new(&[candidate("s", false, None)], seconds(60), Duration::ZERO);
        assert_eq!(queue.next(seconds(0)), Next::Dump(0));
        assert!(queue.put_back(0, seconds(1)));
        assert_eq!(queue.next(seconds(1)), Next::Look(0));
        queue.lost();
        assert_eq!(queue.next(seconds(1)), Next::Done);
    }

    #[test]
    fn one_that_never_can_be_dumped_although_it_looks_so_is_given_up() {
        let mut queue = Queue::new(&[candidate("s", false, None)], seconds(60), seconds(90));
        assert_eq!(queue.next(seconds(0)), Next::Dump(0));
        assert!(queue.put_back(0, seconds(1)));
        for (now, again) in [(61, true), (121, true), (150, false)] {
            assert_eq!(queue.next(seconds(now - 1)), Next::Wait(Some(seconds(1))));
            assert_eq!(queue.next(seconds(now)), Next::Look(0), "{now}");
            queue.freed();
            assert_eq!(queue.put_back(0, seconds(now)), again, "{now}");
        }
        assert_eq!(queue.next(seconds(150)), Next::Done);
    }

    proptest! {
        #[test]
        fn turns_are_a_permutation_in_order(kinds in prop::collection::vec((any::<bool>(), prop::option::of(0..50i64)), 0..20)) {
            let candidates: Vec<_> =
                kinds.iter().enumerate().map(|(i, (late, last))| candidate(&format!("g{i}"), *late, *last)).collect();
            let turns = order(&candidates);
            let mut sorted = turns.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..candidates.len()).collect::<Vec<_>>());
            for pair in turns.windows(2) {
                let (a, b) = (&candidates[pair[0]], &candidates[pair[1]]);
                prop_assert!((a.late, a.last) <= (b.late, b.last));
            }
        }

        /// Whatever guests do and however many workers there are: each guest ends exactly once, none that runs is
        /// dumped before those that wait stopped, and none is given up before patience ends.
        #[test]
        fn every_guest_ends_once(
            guests in prop::collection::vec((any::<bool>(), 0..400u64, 1..50u64), 1..8),
            workers in 1..4usize, wait in 0..70u64, patience in 0..300u64,
        ) {
            let candidates: Vec<_> =
                guests.iter().enumerate().map(|(i, (late, ..))| candidate(&format!("g{i}"), *late, None)).collect();
            let mut queue = Queue::new(&candidates, seconds(wait), seconds(patience));
            let mut ended = vec![0; guests.len()];
            let mut busy: Vec<Option<(u64, usize)>> = vec![None; workers];
            let mut now = 0;
            let mut finished = false;
            while !finished {
                prop_assert!(now < 10_000, "it goes on for ever");
                for slot in 0..workers {
                    if let Some((until, item)) = busy[slot] {
                        if until > now {
                            continue;
                        }
                        ended[item] += 1;
                        queue.done();
                        busy[slot] = None;
                    }
                    match queue.next(seconds(now)) {
                        Next::Dump(item) => busy[slot] = Some((now + guests[item].2, item)),
                        Next::Look(item) if now >= guests[item].1 => {
                            queue.freed();
                            prop_assert!(queue.ready.is_empty());
                            busy[slot] = Some((now + guests[item].2, item));
                        }
                        Next::Look(item) => {
                            if !queue.still_runs(item, seconds(now)) {
                                prop_assert!(now >= patience && busy.iter().all(Option::is_none));
                                ended[item] += 1;
                            }
                        }
                        Next::Wait(time) => prop_assert!(time != Some(Duration::ZERO)),
                        Next::Done => {
                            prop_assert!(busy.iter().all(Option::is_none));
                            finished = true;
                            break;
                        }
                    }
                }
                now += 1;
            }
            prop_assert_eq!(ended, vec![1; guests.len()]);
        }
    }
}
