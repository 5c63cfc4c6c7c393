//! What a directory of a store holds by its names; those that cannot be used; and what lies where records would go.

use anyhow::{Context, Result, bail};
use bak_common::fsio;
use bak_common::name::{SIDECAR, Stem, is_component, printable};
use bak_common::record::Dump;
use bak_common::store::Store;
use rustix::fs::FileType;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use super::look::in_parts;

const DEPTH_MAX: usize = 32;
/// As bak writes records. Any other is read whole.
const HEAD: &[u8] = br#"{"v":1,"type":"dump","#;
const SIDECAR_MAX: u64 = 16 << 20;

/// What a directory holds.
pub enum Dir {
    Names(Listed),
    /// It is not there any more.
    Gone,
    /// It lies on another file system, so that nothing can be moved into it.
    Elsewhere,
}

/// The names in a directory.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    pub names: Vec<(String, FileType)>,
    /// Those that no dump's file can have, escaped, and why.
    pub odd: Vec<(String, &'static str)>,
    /// Stems of what is called like a record and is none, and why.
    pub taken: HashMap<String, String>,
}

pub fn names(store: &Store, place: &str, depth: usize) -> Result<Dir> {
    let dir = match fsio::open_place(store.top(), place) {
        Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::NOENT) => return Ok(Dir::Gone),
        dir => dir?,
    };
    let device = |fd: BorrowedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).context("cannot look at a directory");
    if device(dir.as_fd())? != device(store.top())? {
        return Ok(Dir::Elsewhere);
    }
    anyhow::ensure!(depth <= DEPTH_MAX, "directories are nested too deeply");
    let (all, odd) = fsio::names_and_odd(dir.as_fd()).context("cannot list the directory")?;
    let (mut names, controls): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(name, _)| is_component(name) || name.starts_with('.'));
    // Some file systems don't say.
    for (name, kind) in names.iter_mut().filter(|(_, kind)| *kind == FileType::Unknown) {
        if let Some(stat) = fsio::stat(dir.as_fd(), name)? {
            *kind = FileType::from_raw_mode(stat.st_mode);
        }
    }
    let odd =
        odd.into_iter().filter(|name| !name.starts_with('.')).map(|name| (name, "its name is no UTF-8: rename it"));
    let controls = controls.iter().map(|(name, _)| (printable(name), "its name holds control characters: rename it"));
    let odd = odd.chain(controls).collect();
    let taken = taken(dir.as_fd(), &names);
    Ok(Dir::Names(Listed { names, odd, taken }))
}

/// The stems of what is called like a record and is none, and why.
fn taken(dir: BorrowedFd, names: &[(String, FileType)]) -> HashMap<String, String> {
    let called = names.iter().filter(|(name, _)| is_component(name) && name.ends_with(SIDECAR)).collect();
    let looked = in_parts(called, |some: Vec<&(String, FileType)>| {
        let one = |(name, kind): &(String, FileType)| {
            let error = record(dir, name, *kind).err()?;
            Some((name.strip_suffix(SIDECAR)?.to_owned(), format!("{error:#}")))
        };
        some.into_iter().map(|name| Ok(one(name))).collect()
    });
    looked.into_iter().flatten().flatten().collect()
}

/// Makes sure that something called so is a record; by its beginning, where that tells.
fn record(dir: BorrowedFd, name: &str, kind: FileType) -> Result<()> {
    if kind == FileType::Directory {
        bail!("{name} is a directory");
    }
    let Some((file, _)) = fsio::open_stat(dir, name)? else { return Ok(()) };
    let mut head = [0; HEAD.len()];
    if file.read_exact_at(&mut head, 0).is_ok() && head == *HEAD {
        return Ok(());
    }
    let (Some(stem), Some(text)) = (Stem::of_sidecar(name), fsio::read_file(dir, name, SIDECAR_MAX)?) else {
        return Ok(());
    };
    Dump::from_sidecar(&stem, &text).map(drop).with_context(|| format!("{name} is no record of a dump"))
}
