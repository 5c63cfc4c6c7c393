//! Looks at a store's directories and at the files that may be dumps. Nothing is changed, and nothing is locked: whatever is
//! seen here may be gone or another when it is adopted, which is looked at again then.

use anyhow::{Context, Result};
use bak_common::fsio::{self, FileMark};
use bak_common::name::{SIDECAR, Stem, is_component};
use bak_common::record::Dump;
use bak_common::store::{Inode, Store};
use rustix::fs::FileType;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::ending::{self, Ending};
use super::header;
use super::judge::{Evidence, Judged, Look, Terms, judge};
use super::name::Pattern;
use super::names::{Dir, Listed, names};
use super::sort::{By, Candidate, sort};
use crate::driver::vzdump::{self, Kind};

/// Of a longer log so many bytes are read at its beginning and at its end.
const LOG_PART: usize = 32 << 10;
/// The longest notes that are taken over, in bytes.
const NOTES_MAX: u64 = 4 << 10;

/// A file that is no dump, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub place: String,
    pub file: String,
    pub why: String,
}

/// What the directories of a store hold by their names.
#[derive(Debug, Default)]
pub struct Seen {
    pub candidates: Vec<Candidate>,
    pub left: Vec<Left>,
    /// Those of them that look like archives and that only their owner can help.
    pub barred: Vec<Left>,
    /// Where the stems that have a sidecar lie.
    pub known: HashMap<String, String>,
    /// Directories that could not be read, by their path below the top.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// Walks through a store.
pub fn walk(store: &Store, patterns: &[Pattern]) -> Result<Seen> {
    let busy = store.busy()?;
    let mut seen = Seen::default();
    let mut places = vec![(String::new(), 0)];
    while let Some((place, depth)) = places.pop() {
        match names(store, &place, depth) {
            Ok(Dir::Names(listed)) => {
                let sorted = sort(&place, &listed, patterns, &|stem: &Stem| busy.why(&place, stem));
                seen.candidates.extend(sorted.candidates);
                let left = |(file, why)| Left { place: place.clone(), file, why };
                seen.left.extend(sorted.left.into_iter().map(left));
                seen.barred.extend(sorted.barred.into_iter().map(left));
                places.extend(seen.note(&place, listed).into_iter().map(|place| (place, depth + 1)));
            }
            Ok(Dir::Gone) => {}
            Ok(Dir::Elsewhere) => {
                let why = "lies on another file system than the top of the store".into();
                seen.left.push(Left { place: String::new(), file: place, why });
            }
            Err(error) => seen.failed.push((place, error)),
        }
    }
    seen.candidates.sort_by(|a, b| (&a.place, &a.stem).cmp(&(&b.place, &b.stem)));
    Ok(seen)
}

impl Seen {
    /// Notes the sidecars of a directory; the places below it.
    fn note(&mut self, place: &str, listed: Listed) -> Vec<String> {
        let mut below = Vec::new();
        for (name, kind) in listed.names.into_iter().filter(|(name, _)| is_component(name)) {
            if kind == FileType::Directory {
                // vzdump's own, while it works.
                if name.ends_with(".tmp") {
                    let why = "vzdump is working in it, or died while it did".into();
                    self.left.push(Left { place: place.to_owned(), file: name, why });
                } else {
                    below.push(join(place, &name));
                }
            } else if let Some(stem) = name.strip_suffix(SIDECAR).filter(|stem| !listed.taken.contains_key(*stem)) {
                self.known.insert(stem.to_owned(), place.to_owned());
            }
        }
        below
    }
}

/// A candidate that is a dump, as far as can be seen.
#[derive(Clone, Debug)]
pub struct Prospect {
    pub candidate: Candidate,
    pub dump: Dump,
    pub proof: Vec<&'static str>,
    pub marks: Vec<FileMark>,
    pub inodes: Vec<Inode>,
    /// Nobody may have it open for writing.
    pub doubtful: bool,
}

/// Looks at all candidates. One result each, in order: what it is, or why it is none; an error is what could not be read.
pub fn examine(store: &Store, candidates: Vec<Candidate>, terms: &Terms) -> Vec<Result<Result<Prospect, Left>>> {
    in_parts(candidates, |some| {
        let (mut dirs, mut headers) = (Dirs { store, last: None }, header::Reader::default());
        some.into_iter().map(|candidate| examine_one(&mut dirs, candidate, &mut headers, terms)).collect()
    })
}

/// Does `work` with parts of what there is to do, in as many threads as there are processors. One result each, in order.
pub fn in_parts<T: Send, R: Send>(mut items: Vec<T>, work: impl Fn(Vec<T>) -> Vec<Result<R>> + Sync) -> Vec<Result<R>> {
    /// Not worth a thread.
    const FEW: usize = 64;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
    if items.len() <= FEW || threads == 1 {
        return work(items);
    }
    let size = items.len().div_ceil(threads);
    let mut parts = Vec::new();
    while items.len() > size {
        let rest = items.split_off(size);
        parts.push(std::mem::replace(&mut items, rest));
    }
    parts.push(items);
    std::thread::scope(|scope| {
        let work = &work;
        let spawn = |part: Vec<T>| (part.len(), scope.spawn(move || work(part)));
        let threads: Vec<_> = parts.into_iter().map(spawn).collect();
        let ended = threads.into_iter().flat_map(|(count, thread)| {
            let lost = |_| (0..count).map(|_| Err(anyhow::anyhow!("a thread of bak-scan has ended"))).collect();
            thread.join().unwrap_or_else(lost)
        });
        ended.collect()
    })
}

/// The directory that was asked for last.
struct Dirs<'a> {
    store: &'a Store,
    last: Option<(String, OwnedFd)>,
}

impl Dirs<'_> {
    fn open(&mut self, place: &str) -> Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(last, _)| last != place) {
            self.last = Some((place.to_owned(), fsio::open_place(self.store.top(), place)?));
        }
        // Set just above, where it was not.
        self.last.as_ref().map(|(_, dir)| dir.as_fd()).context("the directory was not opened")
    }
}

fn examine_one(
    dirs: &mut Dirs,
    candidate: Candidate,
    headers: &mut header::Reader,
    terms: &Terms,
) -> Result<Result<Prospect, Left>> {
    let mut prospect = match dirs.open(&candidate.place).and_then(|dir| judged(dir, &candidate, terms)) {
        Ok(Ok((Judged { dump, proof, doubtful }, marks, inodes))) => {
            Prospect { candidate, dump, proof, marks, inodes, doubtful }
        }
        Ok(Err(why)) => return Ok(Err(Left { place: candidate.place, file: candidate.files.join(", "), why })),
        Err(error) => {
            return Err(error.context(format!("cannot look at {}", join(&candidate.place, &candidate.files[0]))));
        }
    };
    if prospect.dump.driver == vzdump::NAME && prospect.dump.kind == Kind::Qemu.as_str() {
        describe(&mut prospect.dump, dirs.open(&prospect.candidate.place)?, headers)?;
    }
    Ok(Ok(prospect))
}

/// A path below the top.
pub fn join(place: &str, file: &str) -> String {
    if place.is_empty() { file.to_owned() } else { format!("{place}/{file}") }
}

/// What judging a candidate comes to, and what its files are.
type Looked = Result<(Judged, Vec<FileMark>, Vec<Inode>), String>;

fn judged(dir: BorrowedFd, candidate: &Candidate, terms: &Terms) -> Result<Looked> {
    let (mut evidence, mut marks, mut inodes) = (Evidence::default(), Vec::new(), Vec::new());
    for name in &candidate.files {
        let Some(stat) = fsio::stat(dir, name)? else { return Ok(Err("was removed meanwhile".into())) };
        marks.push(FileMark::of_stat(&stat));
        inodes.push((stat.st_dev, stat.st_ino));
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let distrust = fsio::distrust(&stat);
        evidence.files.push(Look { bytes, written: stat.st_mtime, changed: stat.st_ctime, distrust });
    }
    if candidate.log {
        match log(dir, &candidate.stem.log())? {
            Ok(log) => evidence.log = Some(log),
            Err(why) if matches!(candidate.by, By::Vzdump(_)) => return Ok(Err(why)),
            Err(_) => {}
        }
    }
    if candidate.notes {
        evidence.notes = notes(dir, candidate)?;
    }
    let mut judged = match judge(candidate, &evidence, terms) {
        Ok(judged) => judged,
        Err(why) => return Ok(Err(why)),
    };
    if judged.doubtful {
        match endings(dir, candidate)? {
            Ok(true) => judged.proof.push("end"),
            Ok(false) => {}
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok((judged, marks, inodes)))
}

/// What a log says, the middle of a long one left out, and when it was written; or why it is no log that can be trusted.
pub fn log(dir: BorrowedFd, name: &str) -> Result<Result<(String, i64), String>> {
    let (file, stat) = match fsio::open_stat(dir, name) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Err("its log was removed meanwhile".into())),
        // What could not be read may say anything; what it is says enough.
        Err(error) if error.downcast_ref::<rustix::io::Errno>().is_some() => return Err(error),
        Err(error) => return Ok(Err(format!("its log {error:#}"))),
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let part = |from: u64, length: u64| -> Result<String> {
        // No truncation: at most two parts.
        let mut bytes = vec![0; length as usize];
        let mut got = 0;
        while got < bytes.len() {
            match file.read_at(&mut bytes[got..], from + got as u64).with_context(|| format!("cannot read {name}"))? {
                0 => break,
                count => got += count,
            }
        }
        bytes.truncate(got);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let long = LOG_PART as u64;
    let text = match size <= 2 * long {
        true => part(0, size)?,
        false => format!("{}\n{}", part(0, long)?, part(size - long, long)?),
    };
    Ok(Ok((text, stat.st_mtime)))
}

/// What Proxmox's web interface shows beside an archive.
fn notes(dir: BorrowedFd, candidate: &Candidate) -> Result<Option<String>> {
    let mut all = Vec::new();
    for file in &candidate.files {
        let name = format!("{file}.notes");
        if fsio::stat(dir, &name)?.is_none_or(|stat| fsio::distrust(&stat).is_some()) {
            continue;
        }
        // Too long for a record: they stay beside, and are read there.
        let text = fsio::read_file(dir, &name, NOTES_MAX).ok().flatten().unwrap_or_default();
        all.push(String::from_utf8_lossy(&text).trim().to_owned());
    }
    let text = all.join("\n");
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

/// Whether all files end as they must, as far as that can be told of all; else which does not.
fn endings(dir: BorrowedFd, candidate: &Candidate) -> Result<Result<bool, String>> {
    let mut all = true;
    for name in &candidate.files {
        let Some(file) = fsio::open_file(dir, name)? else { return Ok(Err("was removed meanwhile".into())) };
        match ending::read(name, &file)? {
            Ending::Right => {}
            Ending::Unknown => all = false,
            Ending::Wrong(format) => {
                return Ok(Err(format!(
                    "{name} does not end as {format} ends its files: it is cut off, or being written"
                )));
            }
        }
    }
    Ok(Ok(all))
}

/// Adds what the archive itself says of its guest.
fn describe(dump: &mut Dump, dir: BorrowedFd, headers: &mut header::Reader) -> Result<()> {
    let [archive] = &dump.files[..] else { return Ok(()) };
    if !archive.name.ends_with(".vma") && !archive.name.ends_with(".vma.zst") {
        return Ok(());
    }
    let Some(file) = fsio::open_file(dir, &archive.name)? else { return Ok(()) };
    let Some(conf) = headers.conf(&archive.name, &file) else { return Ok(()) };
    dump.uid = conf.uuid();
    dump.tags = conf.tags();
    dump.name = dump.name.take().or_else(|| conf.name(Kind::Qemu));
    Ok(())
}

/// Opens a file of a prospect.
pub fn open(store: &Store, place: &str, name: &str) -> Result<Option<File>> {
    let dir = fsio::open_place(store.top(), place)?;
    fsio::open_file(dir.as_fd(), name)
}
