//! The crash rig. A scene is run once while its system calls are recorded; then again and again, each time in a fresh
//! place, killed at another call that may change something on disk, or with one such call failing. After each the checker
//! looks at every store and at the database, the scene is run again, and it must end as if nothing had happened.
//!
//! `BAK_POINTS` says how many kills and how many errors of each scene are tried: a number, `all`, or `every` to kill it also
//! at calls that change nothing; or it is the one point that a fault was told of. Without it that is a sample, always the same one, with all renames, links and unlinks in it.

mod points;
mod tracer;

use crate::checker::{Before, Seen, check_database, check_store};
use crate::process::{about, wait_for};
use crate::{Kit, Ran, finish};
use points::Point;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

/// A place, and a program that is run in it.
pub trait Scene {
    fn kit(&self) -> &Kit;

    /// The run that is killed, or that meets an error.
    fn command(&self) -> Command;

    /// Its standard input.
    fn input(&self) -> String {
        String::new()
    }

    /// Everything in which there are dumps.
    fn stores(&self) -> Vec<PathBuf> {
        vec![self.kit().store()]
    }

    fn database(&self) -> Option<PathBuf> {
        None
    }

    /// Programs of the place that stay when the run has ended.
    fn stays(&self) -> Vec<u32> {
        Vec::new()
    }

    /// What must hold at any moment, beside what the checker looks for.
    fn always(&self) {}

    /// What must be true of a run that met an error, beside that it says so.
    fn met(&self, _ran: &Ran) {}

    /// Runs it again, without mishap. `before`: what its stores were like.
    fn again(&self, _before: &[Seen]) {
        let ran = finish(self.command(), &self.input());
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "run again");
    }

    /// What must hold when all is done.
    fn done(&self) {}

    /// What its stores must be like then; `clean` as when nothing happens to it.
    fn end(&self, clean: &[Seen]) {
        for (seen, clean) in self.seen().iter().zip(clean) {
            assert_eq!((&seen.whole, &seen.strange), (&clean.whole, &clean.strange), "the end is another");
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.stores().iter().map(|store| check_store(store)).collect()
    }
}

/// How a scene is tried.
pub struct Rig {
    name: &'static str,
    sample: usize,
    dear: bool,
    tools: &'static [&'static str],
    errors: &'static [(&'static str, &'static [&'static str])],
}

impl Rig {
    /// `name`: the program, and what it does.
    pub fn new(name: &'static str) -> Self {
        Self { name, sample: 40, dear: false, tools: &[], errors: &[] }
    }

    /// So many kills and so many errors, if `BAK_POINTS` says nothing: for scenes that take their time.
    pub fn sample(self, sample: usize) -> Self {
        Self { sample, ..self }
    }

    /// So many of each at most, whatever they are, and ten times as many for `all`: where each takes a login.
    pub fn dear(self, sample: usize) -> Self {
        Self { sample, dear: true, ..self }
    }

    /// Outside programs that meet the same as the program itself, each time that they are run.
    pub fn tools(self, tools: &'static [&'static str]) -> Self {
        Self { tools, ..self }
    }

    /// More calls that fail, and how.
    pub fn errors(self, errors: &'static [(&'static str, &'static [&'static str])]) -> Self {
        Self { errors, ..self }
    }

    /// Tries all points of a scene; fails if there are faults. Says how many were tried.
    pub fn run<S: Scene>(&self, fresh: impl Fn() -> S + Sync) {
        let first = fresh();
        let calls = tracer::record(&first, self.tools);
        let clean = first.seen();
        assert!(clean.iter().all(|seen| seen.unfinished.is_empty()), "{clean:?}");
        first.end(&clean);
        first.done();
        drop(first);
        let points = points::of(&calls, self.errors);
        let chosen = points::choose(self.name, points, points::Count::of_environment(self.sample, self.dear));
        let enough = chosen.len().min(10).min(self.sample);
        let next = Mutex::new(VecDeque::from(chosen));
        let (tried, faults) = (Mutex::new([0, 0]), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let Some(point) = next.lock().unwrap().pop_front() else { break };
                let hit = catch_unwind(AssertUnwindSafe(|| try_point(&fresh(), &point, self.tools, &clean)));
                match hit {
                    Ok(hit) => tried.lock().unwrap()[usize::from(!point.kills())] += usize::from(hit),
                    Err(why) => faults.lock().unwrap().push(format!("{point}: {}", words(&*why))),
                }
            }
        };
        std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
        let ([killed, failed], faults) = (tried.into_inner().unwrap(), faults.into_inner().unwrap());
        println!("{}: {killed} points killed, {failed} errors, {} faults", self.name, faults.len());
        assert!(faults.is_empty(), "{}: {} faults:\n{}", self.name, faults.len(), faults.join("\n"));
        assert!(killed + failed >= enough, "{}: only {} points", self.name, killed + failed);
    }
}

/// Tries one point; whether the run came to it.
fn try_point<S: Scene>(scene: &S, point: &Point, tools: &[&str], clean: &[Seen]) -> bool {
    let before = Before::of(&scene.stores());
    let generation = scene.database().map(|db| check_database(&db));
    let check = || {
        before.check();
        let seen = scene.seen();
        let broken: Vec<&String> = seen.iter().flat_map(|seen| &seen.broken).collect();
        assert!(broken.is_empty(), "without their files: {broken:?}");
        let now = scene.database().map(|db| check_database(&db));
        assert!(now >= generation, "the generation was {generation:?} and is {now:?}");
        scene.always();
        seen
    };
    let end = || {
        let seen = check();
        let left: BTreeSet<&String> = seen.iter().flat_map(|seen| &seen.unfinished).collect();
        assert!(left.is_empty(), "left over: {left:?}");
        scene.done();
    };
    let (ran, hit) = tracer::strike(scene, point, tools);
    let stays = scene.stays();
    let left = || about(&scene.kit().path("")).into_iter().any(|pid| !stays.contains(&pid));
    wait_for("programs outlive the one that was killed", || !left());
    let seen = check();
    if !hit {
        return false;
    }
    assert!(!ran.err.contains("panicked at"), "{}", ran.err);
    // Whoever is killed says nothing; so do programs of which only a tool is.
    if ran.status >= 0 && !point.kills_program() {
        assert!(ran.status != 124, "it hangs");
        assert!(ran.status == 0 || !ran.err.is_empty(), "it fails silently, with {}", ran.status);
        if ran.status == 0 {
            scene.end(clean);
            scene.done();
        }
        scene.met(&ran);
    }
    scene.again(&seen);
    end();
    scene.end(clean);
    true
}

/// What a panic said.
fn words(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".into())
}
