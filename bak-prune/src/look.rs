//! A store as it is now: its dumps, what looking at their files told, and what could not be read.

use anyhow::anyhow;
use bak_common::args::Session;
use bak_common::name::GuestName;
use bak_common::store::{Entry, Listing, Looks, Store, Unreadable};

use crate::plan::Candidate;

#[derive(Debug)]
pub struct View {
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
        let mut view = Self { entries: Vec::new(), looks: Vec::new(), unreadable, links };
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

    /// What the plan needs to know of each dump.
    pub fn candidates(&self) -> Vec<Candidate<'_>> {
        self.entries.iter().zip(&self.looks).map(|(entry, looks)| candidate(entry, looks)).collect()
    }

    /// What keeps this guest's dumps from being counted.
    pub fn blocked(&self, store: &Store, vm: &GuestName) -> Option<String> {
        let bad = self.unreadable.iter().find(|bad| bad.may_concern(vm))?;
        Some(store.path().join(bad.path()).display().to_string())
    }

    /// Reports what could not be read and stands in the way of the guests for which `concerns` says so.
    pub fn report(&self, session: &Session, store: &Store, concerns: impl Fn(&Unreadable) -> bool) {
        for bad in &self.unreadable {
            let whole = bad.stem.is_none();
            if whole || concerns(bad) {
                let what = if whole { "in this store" } else { "of its guest" };
                let path = store.path().join(bad.path()).display().to_string();
                session.report.fail(&path, &anyhow!("{:#}; nothing {what} is removed", bad.error));
            }
        }
        for link in self.links.iter().filter(|_| !session.quiet) {
            let path = store.path().join(link).display().to_string();
            session.report.warn(&path, "a symbolic link to a directory: not followed, nothing there is pruned");
        }
    }
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
