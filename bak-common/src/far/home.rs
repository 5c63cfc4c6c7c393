//! Where it is kept here what is known of a far side, or was fetched from it: with its outbox, or where programs keep what
//! can be fetched again.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::identity::FILE;
use crate::fsio;
use crate::name::is_component;
use crate::outbox::{Identity, Outbox};
use crate::report::Kind;
use crate::store::BAK;

/// The directory of a far side with this identity; it need not be there.
pub fn dir(outbox: Option<&Outbox>, identity: &Identity) -> Result<PathBuf> {
    if !is_component(&identity.id) {
        return Err(Kind::Refused.says(format!("the file {FILE} over there is not one that --init wrote")));
    }
    let base = match outbox {
        Some(outbox) => outbox.store.path().join(BAK).join("far"),
        None => caches()?.join("bak"),
    };
    Ok(base.join(&identity.id))
}

/// Where programs keep what can be made again: `/var/cache`, `~/.cache` or `$XDG_CACHE_HOME`.
pub fn caches() -> Result<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(path) = of("XDG_CACHE_HOME") {
        return Ok(path);
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/cache".into());
    }
    let home = of("HOME").ok_or_else(|| Kind::Usage.says("no HOME: set XDG_CACHE_HOME, or name the outbox"))?;
    Ok(home.join(".cache"))
}

/// Makes a directory of ours, and opens it. What leads there is the administrator's affair; it itself is no symbolic link.
pub fn make(path: &Path) -> Result<File> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    look(path)?.with_context(|| format!("{} has vanished", path.display()))
}

/// The same for one in a directory that the user names, which is none of somebody else's either.
pub fn make_in(named: &Path, below: &[&str]) -> Result<File> {
    let mut path = named.to_owned();
    let mut top = make(&path)?;
    for name in below {
        path.push(name);
        top = make(&path)?;
    }
    Ok(top)
}

/// Opens a directory of ours; `None` if it is not there.
pub fn look(path: &Path) -> Result<Option<File>> {
    let refused = |why: &str| Kind::Refused.says(format!("{} {why}", path.display()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A slash at its end would be followed.
    let plain: PathBuf = path.components().collect();
    let top = match rustix::fs::open(&plain, flags, Mode::empty()) {
        Ok(top) => File::from(top),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) if plain.is_symlink() => {
            return Err(refused("is a symbolic link: name the directory itself"));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let stat = rustix::fs::fstat(&top).context("cannot look at a directory")?;
    fsio::foreign(&stat).map_or(Ok(Some(top)), |why| Err(refused(&why)))
}
