//! Where it is kept here what is known of a far side, or was fetched from it: with its outbox, or where programs keep what
//! can be fetched again.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
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

/// Makes a directory of ours, and opens it. It is never one to which a symbolic link leads.
pub fn make(path: &Path) -> Result<File> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top =
        rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))?;
    fsio::own(top, &path.display().to_string()).map(File::from)
}
