//! The two places that dumps move between: which is which, whether they are apart, and what the target has already.

use anyhow::{Context, Result, bail};
use bak_common::args::Session;
use bak_common::fsio;
use bak_common::outbox::apart;
use bak_common::record::Dump;
use bak_common::report::Kind;
use bak_common::store::{Entry, Listing, Store};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::plan::{There, Way};

/// What is asked for.
#[derive(Debug)]
pub struct Order {
    pub way: Way,
    pub store: PathBuf,
    pub archive: PathBuf,
}

/// Where the dumps go. Only the plan for an archive that is yet to be made has no store.
pub struct Target {
    pub store: Option<Store>,
    pub path: PathBuf,
    pub device: u64,
    /// Bytes that may still be written there, less what must stay free.
    pub room: u64,
    /// What must stay free in the store.
    reserve: u64,
}

/// Opens both stores. The archive is made if it is not there, but not in a dry run, nor to take dumps from it.
pub fn open(session: &Session, order: &Order) -> Result<(Store, Target)> {
    let (store, archive) = (&order.store, &order.archive);
    let near = || {
        Kind::Usage.says(format!(
            "the archive {} and the store {} must be apart: one in the other would show its dumps there, unless it is \
             hidden (such as {})",
            archive.display(),
            store.display(),
            store.join(".archive").display()
        ))
    };
    apart("the archive", archive, "the store", store).map_err(|_| near())?;
    let store = Store::open(store)?;
    let there = archive.exists();
    if !there && order.way == Way::Activate {
        return Err(Kind::Usage.says(format!(
            "there is no archive at {}: `bak-state archive` makes it, or name another by --archive-dir",
            archive.display()
        )));
    }
    let archive = match there || !session.dry_run {
        true => Some(if order.way == Way::Archive { Store::create(archive)? } else { Store::open(archive)? }),
        false => None,
    };
    if let Some(archive) = &archive {
        let inode = |store: &Store| store.path().metadata().map(|meta| (meta.dev(), meta.ino()));
        if inode(&store).context("cannot look at a store")? == inode(archive).context("cannot look at a store")? {
            return Err(near());
        }
    }
    match (order.way, archive) {
        (Way::Archive, archive) => Ok((store, Target::of(archive, &order.archive, 0)?)),
        (Way::Activate, Some(archive)) => {
            let reserve = session.config.reserve.map_or(0, u64::from);
            Ok((archive, Target::of(Some(store), &order.store, reserve)?))
        }
        // Cannot be: it is there, as was seen above.
        (Way::Activate, None) => bail!("the archive has vanished"),
    }
}

impl Target {
    fn of(store: Option<Store>, path: &Path, reserve: u64) -> Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let looked = store.as_ref().map_or(parent, Store::path);
        let device = looked.metadata().with_context(|| format!("cannot look at {}", looked.display()))?.dev();
        let path = store.as_ref().map_or(path, Store::path).to_owned();
        let mut target = Self { store, path, device, room: u64::MAX, reserve };
        target.look()?;
        Ok(target)
    }

    /// Looks how much room there is, where that can be told.
    pub fn look(&mut self) -> Result<()> {
        if let Some(store) = &self.store {
            self.room = store.free()?.saturating_sub(self.reserve);
        }
        Ok(())
    }

    pub fn store(&self) -> Result<&Store> {
        self.store.as_ref().context("a plan is not carried out")
    }
}

/// Those of `target` that have the id or the stem of `dump`.
pub fn there<'t>(target: &'t Listing, dump: &Dump) -> Vec<There<'t>> {
    let like = target.dumps.iter().filter(|entry| entry.dump.id == dump.id || entry.dump.stem == dump.stem);
    like.map(|entry| There { dump: &entry.dump, fault: entry.fault.as_deref() }).collect()
}

/// What lies where a file of the dump must go: its sidecar, if it cannot be read, or a stranger.
pub fn in_the_way(from: &Store, to: Option<&Store>, entry: &Entry) -> Result<Option<String>> {
    let Some(to) = to else { return Ok(None) };
    let dir = match fsio::open_place(to.top(), &entry.place) {
        Ok(dir) => dir,
        Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    for name in from.names(entry)?.into_iter().chain([entry.dump.stem.sidecar()]) {
        if fsio::stat(dir.as_fd(), &name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
