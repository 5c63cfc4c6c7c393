//! What a machine's power cut leaves on a disk. The kernel's dm-log-writes has recorded every write to a disk, each after
//! it was completed and flushed: so what comes before an entry is what the disk is bound to have kept at that moment, and
//! what comes between it and the next flush the disk may have kept or lost, each write by itself.
//!
//! Marks between the writes say what was begun, and what was done and acknowledged: facts, such as `far:web@20261119T010000Z`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// A write, or a mark, as the kernel's Documentation/admin-guide/device-mapper/log-writes.rst says it is recorded.
pub struct Entry {
    flags: u64,
    sector: u64,
    sectors: u64,
    /// Where its data lies in the log.
    data: u64,
    pub mark: Option<String>,
}

impl Entry {
    /// Whether all before it, and itself, is safe once it is there.
    pub fn is_point(&self) -> bool {
        self.flags & (FLUSH | FUA | MARK) != 0
    }
}

pub struct Log {
    file: File,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let numbers = |at: u64| -> Result<[u64; 4]> {
            let mut bytes = [0; 32];
            file.read_exact_at(&mut bytes, at)?;
            Ok([0, 8, 16, 24].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())))
        };
        let [magic, version, count, size] = numbers(0)?;
        assert_eq!((magic, version, size & 0xffff_ffff), (MAGIC, 1, SECTOR), "not a log that this can read");
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        for _ in 0..count {
            let [sector, sectors, flags, length] = numbers(at)?;
            let mut text = vec![0; if flags & MARK != 0 { length as usize } else { 0 }];
            file.read_exact_at(&mut text, at + 32)?;
            let mark = (flags & MARK != 0).then(|| String::from_utf8(text).unwrap().trim_end_matches('\0').to_owned());
            entries.push(Entry { flags, sector, sectors, data: at + SECTOR, mark });
            // What was discarded has no data.
            at += SECTOR * (1 + if flags & (DISCARD | MARK) != 0 { 0 } else { sectors });
        }
        Ok(Self { file, entries })
    }

    /// Does to the disk what the entry says.
    pub fn apply(&self, entry: &Entry, disk: &mut Disk) -> Result<()> {
        if entry.flags & MARK != 0 {
            return Ok(());
        }
        let mut bytes = vec![0; (entry.sectors * SECTOR) as usize];
        if entry.flags & DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data)?;
        }
        disk.write(entry.sector * SECTOR, &bytes);
        Ok(())
    }
}

const PAGE: usize = 4096;

/// The content of a disk; a copy shares what stays the same.
#[derive(Clone, Default)]
pub struct Disk {
    pages: BTreeMap<u64, Rc<[u8; PAGE]>>,
}

impl Disk {
    fn write(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = at as usize % PAGE;
            let (now, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Rc::new([0; PAGE]));
            Rc::make_mut(page)[within..within + now.len()].copy_from_slice(now);
            (at, bytes) = (at + now.len() as u64, rest);
        }
    }

    /// Its bytes `from..to` as a file.
    pub fn save(&self, path: &Path, from: u64, to: u64) -> Result<()> {
        let _ = std::fs::remove_file(path);
        let file = File::create(path)?;
        file.set_len(to - from)?;
        for (page, bytes) in self.pages.range(from / PAGE as u64..to / PAGE as u64) {
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(&bytes[..], page * PAGE as u64 - from)?;
            }
        }
        Ok(())
    }
}

/// What must be there, must not, or may be. A fact that no mark has named must not.
#[derive(Default)]
pub struct Facts {
    must: BTreeSet<String>,
    may: BTreeSet<String>,
}

impl Facts {
    /// `begin,FACT,…`: these may now change. `done,+FACT,-FACT,…`: these must be, and must not be, from now on.
    pub fn mark(&mut self, mark: &str) {
        let mut words = mark.split(',');
        let is_done = words.next() == Some("done");
        for fact in words {
            let (is, name) = match is_done {
                true => (fact.starts_with('+'), &fact[1..]),
                false => (false, fact),
            };
            self.must.remove(name);
            self.may.remove(name);
            match (is_done, is) {
                (true, true) => _ = self.must.insert(name.to_owned()),
                (true, false) => {}
                (false, _) => _ = self.may.insert(name.to_owned()),
            }
        }
    }

    pub fn may_change(&self, fact: &str) -> bool {
        self.may.contains(fact)
    }

    pub fn must_be(&self, fact: &str) -> bool {
        self.must.contains(fact)
    }

    /// What is wrong with what was seen.
    pub fn faults(&self, seen: &BTreeSet<String>) -> Vec<String> {
        let lost = self.must.iter().filter(|fact| !seen.contains(*fact)).map(|fact| format!("lost: {fact}"));
        let known = |fact: &&String| self.must.contains(*fact) || self.may.contains(*fact);
        let odd = seen.iter().filter(|fact| !known(fact)).map(|fact| format!("should not be: {fact}"));
        lost.chain(odd).collect()
    }
}

/// The same choices for the same seed.
pub struct Chance(pub u64);

impl Chance {
    pub fn heads(&mut self) -> bool {
        self.below(2) != 0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
