//! Which of the files that are left alone were asked for, where only some guests or dumps were: by what their names say, and
//! by what their logs call the guest.

use bak_common::fsio;
use bak_common::name::{DumpId, GuestName, Stem};
use bak_common::select::{Selector, Subject};
use bak_common::store::Store;
use std::os::fd::AsFd;

use super::judge::{Terms, all_moments, what};
use super::log;
use super::look::{self, Left};
use super::name::{self, Began, Pattern, Vzdump};

pub struct Asked<'a> {
    pub store: &'a Store,
    /// Of its own: what is left alone does not count as found.
    pub selector: Selector,
    pub patterns: &'a [Pattern],
    pub terms: &'a Terms<'a>,
}

/// Whose a file is, by its name.
struct Owner {
    vm: String,
    kind: String,
    name: Option<String>,
    began: Began,
}

impl Asked<'_> {
    pub fn wants(&self, left: &Left) -> bool {
        self.selector.takes_all() || self.owner(left).is_some_and(|owner| self.matches(&owner))
    }

    fn matches(&self, owner: &Owner) -> bool {
        let Ok(vm) = GuestName::new(format!("{}{}", self.terms.prefix, owner.vm)) else { return false };
        let matches = |id: Option<&DumpId>| {
            let (name, node) = (owner.name.as_deref(), self.terms.node);
            self.selector.matches(Subject { vm: vm.as_str(), name, tags: &[], pool: None, node, kind: &owner.kind, id })
        };
        let ids = all_moments(owner.began, self.terms.zone).into_iter().map(|started| DumpId::of(&vm, started));
        matches(None) || ids.into_iter().any(|id| matches(Some(&id)))
    }

    fn owner(&self, left: &Left) -> Option<Owner> {
        let file = left.file.split(", ").next()?;
        // Archives, and all that lies beside them or becomes one.
        let (stem, _) = file.split_once('.')?;
        if let Some(Vzdump::Archive(archive)) = name::vzdump(&format!("{stem}.vma")) {
            let name = self.name(left, stem, archive.id);
            let (vm, kind) = (archive.id.to_string(), archive.kind.to_owned());
            return Some(Owner { vm, kind, name, began: Began::Local(archive.wall) });
        }
        let found = self.patterns.iter().find_map(|pattern| pattern.read(file))?;
        let kind = what(file, self.terms.as_kind).0.to_owned();
        Some(Owner { vm: found.vm, kind, name: None, began: found.began })
    }

    /// What a guest is called in the log of its archive.
    fn name(&self, left: &Left, stem: &str, id: u32) -> Option<String> {
        let dir = fsio::open_place(self.store.top(), &left.place).ok()?;
        let (text, _) = look::log(dir.as_fd(), &Stem::new(stem).ok()?.log()).ok()?.ok()?;
        log::read(&text, id).name
    }
}
