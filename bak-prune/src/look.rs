//! A store as it is now: its dumps, what looking at their files told, and what could not be read.

use anyhow::anyhow;
use bak_common::args::Session;
use bak_common::far::FarKind;
use bak_common::name::GuestName;
use bak_common::store::{Entry, Listing, Looks, PROTECTED, Store, Unreadable};
use std::path::PathBuf;

use crate::plan::Candidate;
use crate::remote::drop::{Files, below};

#[derive(Debug)]
pub struct View {
    /// Its top, as it is called.
    pub top: PathBuf,
    pub entries: Vec<Entry>,
    /// One for each entry.
    pub looks: Vec<Looks>,
    pub unreadable: Vec<Unreadable>,
    /// Directories that were not looked into, as symbolic links lead there.
    pub links: Vec<String>,
}

impl View {
    /// Lists the store. A dump whose files cannot be looked at is as bad as one whose sidecar cannot be read.
    pub fn of(store: &Store) -> Self {
        let Listing { dumps, unreadable, links } = store.list();
        let top = store.path().to_owned();
        let mut view = Self { top, entries: Vec::new(), looks: Vec::new(), unreadable, links };
        let looks = store.looks(&dumps);
        for (entry, looks) in dumps.into_iter().zip(looks) {
            match looks {
                Ok(looks) => {
                    view.entries.push(entry);
                    view.looks.push(looks);
                }
                Err(error) => {
                    let Entry { place, dump, .. } = entry;
                    view.unreadable.push(Unreadable { place, stem: Some(dump.stem), error });
                }
            }
        }
        view
    }

    /// The same of an off-site copy, from a whole listing of its files and the dumps that they make up.
    pub fn there(top: &str, files: &Files, listing: Listing) -> Self {
        let Listing { dumps, unreadable, links } = listing;
        let looks = dumps.iter().map(|entry| looks_there(entry, files)).collect();
        Self { top: top.into(), entries: dumps, looks, unreadable, links }
    }

    /// What the plan needs to know of each dump.
    pub fn candidates(&self) -> Vec<Candidate<'_>> {
        self.entries.iter().zip(&self.looks).map(|(entry, looks)| candidate(entry, looks)).collect()
    }

    /// What keeps this guest's dumps from being counted.
    pub fn blocked(&self, vm: &GuestName) -> Option<String> {
        let bad = self.unreadable.iter().find(|bad| bad.may_concern(vm))?;
        Some(self.top.join(bad.path()).display().to_string())
    }

    /// Reports what could not be read and stands in the way of the guests for which `concerns` says so.
    pub fn report(&self, session: &Session, concerns: impl Fn(&Unreadable) -> bool) {
        for bad in &self.unreadable {
            let whole = bad.stem.is_none();
            if whole || concerns(bad) {
                let what = if whole { "in this store" } else { "of its guest" };
                let path = self.top.join(bad.path()).display().to_string();
                session.report.fail(&path, &anyhow!("{:#}; nothing {what} is removed", bad.error));
            }
        }
        for link in self.links.iter().filter(|_| !session.quiet) {
            let path = self.top.join(link).display().to_string();
            session.report.warn(&path, "a symbolic link to a directory: not followed, nothing there is pruned");
        }
    }
}

/// What a listing tells of a dump's files.
fn looks_there(entry: &Entry, files: &Files) -> Looks {
    let mut looks = Looks { protected: entry.dump.protected, ..Looks::default() };
    let at = |name: &str| files.get(&below(&entry.place, name));
    looks.protected |= entry.dump.files.iter().any(|file| at(&format!("{}{PROTECTED}", file.name)).is_some());
    let there = || entry.dump.files.iter().filter_map(|file| at(&file.name));
    looks.written = there().filter(|file| file.kind == FarKind::File).map(|file| file.modified).max();
    looks.gone = there().next().is_none() && !entry.dump.files.is_empty();
    looks
}

fn candidate<'a>(entry: &'a Entry, looks: &Looks) -> Candidate<'a> {
    let Entry { dump, place, fault, .. } = entry;
    Candidate {
        id: &dump.id,
        vm: &dump.vm,
        kind: &dump.kind,
        uid: dump.uid.as_deref(),
        started: dump.started,
        finished: dump.finished,
        expires: dump.expires,
        place,
        fault: fault.as_deref(),
        gone: fault.is_some() && looks.gone,
        protected: looks.protected,
        written: looks.written,
    }
}
