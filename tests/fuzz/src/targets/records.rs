//! Records, sidecars, and what is kept beside them; what rsync and sha256sum say of the far side.

use bak_common::calendar::Time;
use bak_common::drills;
use bak_common::far::FarFile;
use bak_common::far::listing;
use bak_common::far::sums as far_sums;
use bak_common::jsonl::Reader;
use bak_common::ledger::{Ledger, trimmed};
use bak_common::name::{DumpId, GuestName, NAME_MAX, Stem, is_component, printable};
use bak_common::record::{Dump, Head, Record, to_line};
use bak_common::store::companion_names;
use bak_prune::remote::drop::{Drops, Fate};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{assert_printable, first_line};

/// No file of a dump can be anywhere but beside its sidecar, and nothing of another's is its.
fn sound(dump: &Dump) {
    assert!(is_component(dump.stem.as_str()) && is_component(&dump.stem.sidecar()));
    assert_eq!(dump.id, DumpId::of(&dump.vm, dump.started));
    name_sound(&dump.vm);
    let mut sum = 0_u64;
    let mut seen = HashSet::new();
    for file in &dump.files {
        assert!(is_component(&file.name) && !file.name.ends_with(".dump.json"), "{}", file.name);
        assert!(file.name.strip_prefix(dump.stem.as_str()).is_some_and(|rest| rest.starts_with('.')));
        assert!(seen.insert(&file.name));
        sum = sum.checked_add(file.bytes).expect("sizes do not overflow");
    }
    assert_eq!(sum, dump.bytes);
    for name in companion_names(dump) {
        assert!(!name.contains('/') && !name.starts_with('.') && !name.contains(char::is_control), "{name}");
    }
    dump.verdict().iter().for_each(|why| assert_printable(why));
}

fn name_sound(vm: &GuestName) {
    let place = vm.encoded();
    assert!(is_component(&place) && place.len() <= NAME_MAX, "{place}");
}

fn same(record: &Record) {
    let line = to_line(record);
    assert!(!line.contains('\n') && !line.is_empty());
    let again = Record::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error:#}"));
    assert_eq!(again, *record);
}

pub fn record(data: &[u8]) {
    let Ok(record) = Record::parse(data) else { return };
    match &record {
        Record::Guest(guest) => {
            name_sound(&guest.vm);
            // What bak would call a dump of it can be read again.
            let started = guest.last_dump.unwrap_or(Time::from_unix(0).expect("the epoch"));
            let mut dump = Dump::of(guest, started, Stem::of(&guest.vm, started));
            dump.adopt(&guest.extra);
            same(&Record::Dump(Box::new(dump)));
        }
        Record::Dump(dump) => sound(dump),
    }
    same(&record);
}

pub fn head(data: &[u8]) {
    let head = Head::parse(data);
    if let Ok(record) = Record::parse(data) {
        let vm = match &record {
            Record::Guest(guest) => &guest.vm,
            Record::Dump(dump) => &dump.vm,
        };
        let head = head.expect("what is a record has a head");
        assert_eq!((&head.vm, head.planned), (vm, record.planned()));
    }
}

/// The first line is the sidecar's stem.
pub fn sidecar(data: &[u8]) {
    let (name, text) = first_line(data);
    let Ok(Ok(stem)) = std::str::from_utf8(name).map(Stem::new) else { return };
    let Ok(dump) = Dump::from_sidecar(&stem, text) else { return };
    sound(&dump);
    assert_eq!((&dump.stem, &dump.dir), (&stem, &None));
    let again = Dump::from_sidecar(&stem, &dump.to_sidecar()).expect("what is written can be read");
    assert_eq!(again, dump);
    assert!(again.bare().same(&dump));
}

pub fn jsonl(data: &[u8]) {
    let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut last = 0;
    let mut reader = Reader::new(data);
    while let Some(item) = reader.next() {
        assert!(last < reader.line() && reader.line() <= lines);
        last = reader.line();
        match item {
            Ok(record) => same(&record),
            Err(bad) => assert_eq!(bad.line, last),
        }
    }
}

pub fn names(data: &[u8]) {
    let (first, rest) = first_line(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_printable(&printable(text));
    if let Ok(id) = DumpId::new(text) {
        let (vm, start) = text.rsplit_once('@').expect("an id has an @");
        let id_of = DumpId::of(&GuestName::new(vm).expect("a name"), Time::from_compact(start).expect("a time"));
        assert_eq!(id, id_of);
    }
    if let Ok(vm) = GuestName::new(text) {
        name_sound(&vm);
        let stem = Stem::of(&vm, Time::from_unix(1_800_000_000).expect("a time"));
        assert_eq!(Stem::new(stem.as_str()).expect("a stem of bak's own"), stem);
        assert_eq!(Stem::of_sidecar(&stem.sidecar()), Some(stem));
    }
    let (Ok(first), Ok(rest)) = (std::str::from_utf8(first), std::str::from_utf8(rest)) else { return };
    if let Ok(stem) = Stem::new(first)
        && stem.owns(rest)
    {
        assert!(is_component(rest) && rest.len() > first.len() && Stem::of_sidecar(rest).is_none());
        assert!(!rest.contains(".."));
    }
}

pub fn ledger(data: &[u8]) {
    let read = |text: &[u8]| Ledger::parse(&[(PathBuf::from("n.jsonl"), text.to_vec())], "box");
    let ledger = read(data);
    let beginning = Time::from_unix(-62_000_000_000).expect("a time");
    let used = ledger.used_since(beginning);
    assert!(ledger.attempts.iter().all(|attempt| used >= attempt.wire_out && attempt.dest == "box"));
    assert!(ledger.by_dump().len() <= ledger.attempts.len());
    // What is trimmed says the same.
    let kept = read(&trimmed(data, beginning));
    let old =
        ledger.attempts.iter().any(|attempt| attempt.at < beginning) || ledger.passes.iter().any(|p| p.at < beginning);
    assert!(old || (&kept.attempts, kept.passes.len()) == (&ledger.attempts, ledger.passes.len()));
    for attempt in ledger.attempts {
        let line = serde_json::to_string(&bak_common::ledger::Line::Attempt(attempt.clone())).expect("an attempt");
        assert_eq!(read(line.as_bytes()).attempts, [attempt]);
    }
}

pub fn drills(data: &[u8]) {
    for drill in drills::parse(data) {
        name_sound(&drill.vm);
        let line = serde_json::to_string(&drill).expect("a drill");
        assert_eq!(drills::parse(line.as_bytes()), [drill]);
    }
}

/// A listing up to an empty line; then what each sidecar in it says.
pub fn listing(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (listed, sidecar) = text.split_once("\n\n").unwrap_or((&text, ""));
    let files: Vec<FarFile> = listed.lines().filter_map(listing::listed).collect();
    let sidecars = listing::sidecars(&files);
    for (place, stem, name) in &sidecars {
        assert!(place.is_empty() || place.split('/').all(is_component), "{place}");
        assert!(is_component(stem.as_str()) && name.ends_with(&stem.sidecar()));
    }
    let texts: HashMap<_, _> =
        sidecars.iter().map(|(_, _, name)| (name.clone(), sidecar.as_bytes().to_vec())).collect();
    let listing = listing::dumps("/far", &files, &texts);
    assert_eq!(listing.dumps.len() + listing.unreadable.len(), sidecars.len());
    for entry in listing.dumps {
        sound(&entry.dump);
        let there = |name: &str| files.iter().any(|file| file.name.rsplit('/').next() == Some(name));
        assert!(!entry.is_good() || entry.dump.files.iter().all(|file| there(&file.name)));
    }
}

pub fn sums(data: &[u8]) {
    for sum in far_sums::read(&String::from_utf8_lossy(data)).into_values() {
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    }
}

/// What bak-prune notes: only what it finds exactly so is left of it.
pub fn drops(data: &[u8]) {
    let Ok(drops) = serde_json::from_slice::<Drops>(data) else { return };
    for dropped in &drops.dumps {
        if let Fate::Left(_) = dropped.fate(&HashMap::new(), &HashSet::new()) {
            panic!("something is left of nothing");
        }
    }
    let text = serde_json::to_vec(&drops).expect("notes");
    let again: Drops = serde_json::from_slice(&text).expect("what is written can be read");
    assert_eq!(again.dumps, drops.dumps);
}
