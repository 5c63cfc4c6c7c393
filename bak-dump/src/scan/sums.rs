//! SHA-256 of what is adopted, and of what was adopted without.
//!
//! The hazard of the latter: a file is no longer what it was when it was adopted, and its sum would make that look proved. So
//! it must have its size, must not have been written to since, and must be the same file when the sums go into the record.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::fsio::{self, FileMark};
use bak_common::hash::hash;
use bak_common::record::Dump;
use bak_common::select::Selector;
use bak_common::store::{Entry, Store};
use std::os::fd::AsFd;

use super::look::{self, Left, Prospect};
use super::show::Output;
use super::{BATCH_BYTES, join};
use crate::bar::{bar, step};
use crate::driver::Progress;

/// So many get their sums under one lock.
const MANY: usize = 100;

/// Puts the SHA-256 of its files into a prospect; `false` if one of them is gone.
pub fn hashed(session: &Session, store: &Store, prospect: &mut Prospect) -> Result<bool> {
    let bar = bar(session, &prospect.dump);
    let show = step(&bar, "hashing");
    let (all, mut done) = (prospect.dump.bytes.max(1) as f64, 0);
    for entry in &mut prospect.dump.files {
        let Some(file) = look::open(store, &prospect.candidate.place, &entry.name)? else { return Ok(false) };
        let mut tick = |bytes| {
            done += bytes;
            show(Progress { done: done as f64 / all })
        };
        let (_, sha256) = hash(&file, &mut tick).with_context(|| format!("cannot read {}", entry.name))?;
        entry.sha256 = Some(sha256);
    }
    bar.finish_and_clear();
    Ok(true)
}

/// A dump with the sums that it lacks, and what its files were meanwhile.
struct Summed {
    entry: Entry,
    marks: Vec<FileMark>,
}

/// Adds sums to dumps that were adopted without.
pub fn add(session: &Session, store: &Store, selector: &Selector, output: &mut Output) -> Result<()> {
    let mut bare = Vec::new();
    store.visit(&mut |seen| {
        if let Ok(entry) = seen
            && lacks(&entry.dump)
            && selector.matches(&entry.dump)
        {
            bare.push(entry);
        }
    });
    bare.sort_by(|a, b| (a.dump.started, &a.dump.id).cmp(&(b.dump.started, &b.dump.id)));
    let (mut ready, mut bytes) = (Vec::new(), 0_u64);
    for entry in bare {
        if let Some(why) = &entry.fault {
            // What Proxmox has pruned stays here as a record for a while.
            match selector.has_names() {
                true => session.report.fail(entry.dump.id.as_str(), &anyhow!("gets no SHA-256: {why}")),
                false => {
                    output.left(vec![Left { place: entry.place, file: entry.dump.stem.sidecar(), why: why.clone() }])
                }
            }
            continue;
        }
        if session.dry_run {
            output.summed(entry.place, entry.dump)?;
            continue;
        }
        let (id, size) = (entry.dump.id.clone(), entry.dump.bytes);
        match summed(session, store, entry) {
            Ok(one) => ready.push(one),
            Err(error) => session.report.fail(id.as_str(), &error.context("cannot be hashed")),
        }
        bytes = bytes.saturating_add(size);
        if ready.len() >= MANY || bytes >= BATCH_BYTES {
            if !put(session, store, std::mem::take(&mut ready), output)? {
                return Ok(());
            }
            bytes = 0;
        }
    }
    put(session, store, ready, output).map(drop)
}

fn lacks(dump: &Dump) -> bool {
    dump.extra.contains_key("adopted") && dump.files.iter().any(|file| file.sha256.is_none())
}

fn summed(session: &Session, store: &Store, mut entry: Entry) -> Result<Summed> {
    let bar = bar(session, &entry.dump);
    let show = step(&bar, "hashing");
    let (all, mut done) = (entry.dump.bytes.max(1) as f64, 0);
    let adopted = entry.dump.extra.get("adopted").and_then(|note| note["at"].as_str()?.parse::<Time>().ok());
    let (mut marks, mut sums) = (Vec::new(), Vec::new());
    for known in &entry.dump.files {
        let file = store.open_file(&entry, &known.name)?;
        let stat = rustix::fs::fstat(&file).context("cannot look at an open file")?;
        if adopted.is_some_and(|adopted| stat.st_mtime > adopted.unix()) {
            bail!("{} was changed after it was adopted", known.name);
        }
        marks.push(FileMark::of_stat(&stat));
        if known.sha256.is_some() {
            sums.push(known.sha256.clone());
            continue;
        }
        let mut tick = |bytes| {
            done += bytes;
            show(Progress { done: done as f64 / all })
        };
        let (size, sha256) = hash(&file, &mut tick).with_context(|| format!("cannot read {}", known.name))?;
        ensure!(size == known.bytes, "{} has {size} bytes instead of {}", known.name, known.bytes);
        sums.push(Some(sha256));
    }
    for (file, sum) in entry.dump.files.iter_mut().zip(sums) {
        file.sha256 = sum;
    }
    bar.finish_and_clear();
    Ok(Summed { entry, marks })
}

/// Puts sums into the records as these are now; whether to go on.
fn put(session: &Session, store: &Store, ready: Vec<Summed>, output: &mut Output) -> Result<bool> {
    if ready.is_empty() {
        return Ok(true);
    }
    let locked = store.lock(session.wait, &session.report)?;
    let mut fresh: Vec<(Entry, Dump)> = Vec::new();
    for one in ready {
        match renewed(session, store, &one) {
            Ok(Some(both)) => fresh.push(both),
            Ok(None) => {
                let (place, file) = (one.entry.place, one.entry.dump.stem.sidecar());
                output.left(vec![Left { place, file, why: "was removed meanwhile".into() }]);
            }
            Err(error) => session.report.fail(one.entry.dump.id.as_str(), &error.context("gets no SHA-256")),
        }
    }
    let changes: Vec<(&Entry, Dump)> = fresh.iter().map(|(entry, dump)| (entry, dump.clone())).collect();
    let results = locked.annotate_all(&changes);
    drop(locked);
    let mut full = None;
    for ((entry, dump), result) in fresh.into_iter().zip(results) {
        match result {
            Ok(()) => output.summed(entry.place, dump)?,
            Err(error) if fsio::is_full(&error) => full = Some(error),
            Err(error) => session.report.fail(dump.id.as_str(), &error.context("gets no SHA-256")),
        }
    }
    let Some(error) = full else { return Ok(true) };
    let error = anyhow!("SHA-256 could not be written into records: {}", error.root_cause());
    session.report.fail(&store.path().display().to_string(), &error);
    Ok(false)
}

/// A record as it is now, and with the sums; nothing if the dump is gone.
fn renewed(session: &Session, store: &Store, one: &Summed) -> Result<Option<(Entry, Dump)>> {
    let (old, place) = (&one.entry.dump, &one.entry.place);
    let Some(now) = store.look(place, &old.stem)? else { return Ok(None) };
    ensure!(now.dump.same(old), "it has become another dump meanwhile");
    let dir = fsio::open_place(store.top(), place)?;
    for (file, mark) in old.files.iter().zip(&one.marks) {
        let same = FileMark::of(dir.as_fd(), &file.name)?.is_some_and(|now| now == *mark);
        ensure!(same, "{} was changed meanwhile", join(place, &file.name));
    }
    let mut dump = now.dump.clone();
    for (file, summed) in dump.files.iter_mut().zip(&old.files) {
        file.sha256 = file.sha256.take().or_else(|| summed.sha256.clone());
    }
    if let Some(note) = dump.extra.get_mut("adopted").and_then(|note| note.as_object_mut()) {
        note.insert("hashed".into(), session.now.to_string().into());
    }
    Ok(Some((now, dump)))
}
