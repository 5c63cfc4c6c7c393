//! Goes through a recording of dm-log-writes (see bak_tests::power), makes what every power cut may have left, mounts it
//! and looks whether all that was acknowledged is there and nothing is there by half, before and after recovery.
//!
//!     bak-test-power LOG HALF-BYTES TYPE MOUNT-OPTIONS VARIANTS EVERY
//!
//! The recorded disk is two file systems, each so large: `here` with store/, store/.outbox-box and db/, and `there` with
//! far/. VARIANTS: so many choices of what was not flushed, beside none of it. At every EVERY-th point a whole night follows.

use bak_tests::check_store;
use bak_tests::power::{Chance, Disk, Facts, Log};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const HERE: &str = "/run/power/here";
/// After so many faults no more are looked for.
const ENOUGH: usize = 100;
const THERE: &str = "/run/power/there";

struct Rig {
    half: u64,
    kind: String,
    options: String,
    every: usize,
    points: usize,
    nights: usize,
    faults: Vec<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [log, half, kind, options, variants, every] = &args[..] else { panic!("see the source") };
    let log = Log::read(Path::new(log)).unwrap();
    let (half, every, variants) = (half.parse().unwrap(), every.parse().unwrap(), variants.parse::<usize>().unwrap());
    let (kind, options) = (kind.clone(), options.clone());
    let mut rig = Rig { half, kind, options, every, points: 0, nights: 0, faults: Vec::new() };
    let (mut disk, mut facts, mut ready) = (Disk::default(), Facts::default(), false);
    let mut chance = Chance(1);
    for (at, entry) in log.entries.iter().enumerate() {
        log.apply(entry, &mut disk).unwrap();
        match entry.mark.as_deref() {
            Some("ready") => ready = true,
            Some(mark) => facts.mark(mark),
            None => {}
        }
        if !ready || !entry.is_point() {
            continue;
        }
        if rig.faults.len() >= ENOUGH {
            println!("and so on");
            break;
        }
        rig.look(&disk, &facts, at, "");
        let unflushed = log.entries[at + 1..].iter();
        let next = unflushed.clone().position(|entry| entry.is_point()).map_or(0, |next| next + 1);
        let unflushed: Vec<_> = unflushed.take(next).filter(|entry| entry.mark.is_none()).collect();
        for variant in 0..if unflushed.len() > 1 { variants } else { 0 } {
            let mut some = disk.clone();
            for entry in &unflushed {
                if chance.heads() {
                    log.apply(entry, &mut some).unwrap();
                }
            }
            rig.look(&some, &facts, at, &format!(" and choice {variant} of {} writes", unflushed.len()));
        }
    }
    println!("{} points, {} nights after them, {} faults", rig.points, rig.nights, rig.faults.len());
    std::process::exit(i32::from(!rig.faults.is_empty()));
}

impl Rig {
    fn look(&mut self, disk: &Disk, facts: &Facts, at: usize, more: &str) {
        self.points += 1;
        for (name, from) in [("here", 0), ("there", self.half)] {
            disk.save(Path::new(&format!("/run/power/{name}.img")), from, from + self.half).unwrap();
        }
        let mut found = Vec::new();
        match self.mount("here").and_then(|()| self.mount("there")) {
            Err(error) => found.push(error),
            Ok(()) => {
                found.extend(facts.faults(&seen(facts, false, &mut Vec::new())));
                let mut faults = Vec::new();
                for store in ["store", "store/.outbox-box"] {
                    let path = format!("{HERE}/{store}");
                    if Path::new(&path).exists() {
                        faults.extend(run("bak-test-store", &["recover", &path]).err());
                    }
                }
                let after = seen(facts, true, &mut faults);
                found.extend(facts.faults(&after));
                found.extend(faults);
                if self.points.is_multiple_of(self.every) {
                    self.nights += 1;
                    found.extend(night());
                }
            }
        }
        for dir in [HERE, THERE] {
            let _ = run("umount", &[dir]);
        }
        found.sort();
        found.dedup();
        for fault in &found {
            println!("after entry {at}{more}: {fault}");
        }
        self.faults.extend(found);
    }

    fn mount(&self, name: &str) -> Result<(), String> {
        let (file, dir) = (format!("/run/power/{name}.img"), format!("/run/power/{name}"));
        run("mount", &["-t", &self.kind, "-o", &format!("loop,{}", self.options), &file, &dir]).map(drop)
    }
}

/// All facts, as they lie there. What is there by half goes to `faults`; what recovery leaves must be `settled`.
fn seen(facts: &Facts, settled: bool, faults: &mut Vec<String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (name, path) in [("store", "store"), ("outbox", "store/.outbox-box"), ("far", "")] {
        let path = if name == "far" { format!("{THERE}/far") } else { format!("{HERE}/{path}") };
        let store = check_store(Path::new(&path));
        seen.extend(store.whole.iter().map(|id| format!("{name}:{id}")));
        seen.extend(store.broken.iter().map(|id| format!("{name}: broken: {id}")));
        if settled && name != "far" {
            faults.extend(store.strange.iter().map(|file| format!("{name}: left: {file}")));
            faults.extend(store.unfinished.iter().map(|file| format!("{name}: unfinished: {file}")));
        }
    }
    for line in fs::read_to_string(format!("{HERE}/db/vmtool-statedb")).unwrap_or_default().lines() {
        seen.insert(format!("state:{line}"));
    }
    for dir in fs::read_dir(format!("{HERE}/store/.outbox-box/.bak/sent")).into_iter().flatten().flatten() {
        for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let name = file.file_name().into_string().unwrap();
            let Some((vm, start)) = name.strip_suffix(".dump.json").and_then(|stem| stem.split_once('-')) else {
                continue;
            };
            let id = format!("{vm}@{start}");
            if serde_json::from_slice::<serde_json::Value>(&fs::read(file.path()).unwrap()).is_err() {
                seen.insert(format!("sent: broken: {id}"));
            }
            let far = format!("far:{id}");
            // What was sent is there, unless its removal over there has begun since.
            let sending = facts.may_change(&format!("sent:{id}"));
            if !seen.contains(&far) && (sending || facts.must_be(&far)) {
                seen.insert(format!("sent, but not there: {id}"));
            }
            seen.insert(format!("sent:{id}"));
        }
    }
    seen
}

/// All programs work on what was left: what is wrong.
fn night() -> Vec<String> {
    let script = format!("cd {HERE} && . ./night");
    let mut faults: Vec<String> = run("sh", &["-euc", &script]).err().into_iter().collect();
    let (store, far) =
        (check_store(Path::new(&format!("{HERE}/store"))), check_store(Path::new(&format!("{THERE}/far"))));
    for (name, seen) in [("store", store), ("far", far)] {
        faults.extend(seen.broken.iter().map(|id| format!("{name} after a night: broken: {id}")));
        faults.extend(seen.strange.iter().map(|file| format!("{name} after a night: left: {file}")));
        for vm in ["web", "db"] {
            if !seen.whole.contains(&format!("{vm}@20261125T010000Z")) {
                faults.push(format!("{name} after a night: {vm} is missing"));
            }
        }
    }
    faults
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().replace('\n', " | ");
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{program} {}: {} {}", args[0], output.status, text(&output.stderr))),
    }
}
