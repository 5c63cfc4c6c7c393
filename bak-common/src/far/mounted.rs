//! Looking at a far side that is mounted here: no rsync is needed for that.

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::{FarFile, FarKind, Fetched};
use crate::calendar::Time;
use crate::name::printable;
use crate::stop;

/// The name of the top itself.
const TOP: &str = ".";
const SMALL: u64 = 16 << 20;

/// One small file of the directory `top`.
pub fn fetch(top: &Path, name: &str) -> Result<Fetched> {
    let path = top.join(name);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(&path) {
        Ok(file) => file,
        // No file of ours is a symbolic link (ELOOP), a socket (ENXIO) or below a file.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Fetched::Missing);
        }
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::NXIO)) => {
            return Ok(Fetched::Missing);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let meta = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if !meta.is_file() || meta.len() > SMALL {
        return Ok(Fetched::Missing);
    }
    let mut bytes = Vec::new();
    file.take(SMALL).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Fetched::Here(bytes))
}

/// These names and what lies below them, as rsync would list it.
pub fn list(top: &Path, names: &[String]) -> Result<Vec<FarFile>> {
    let mut found = Vec::new();
    for name in names {
        walk(top, name, &mut found, 0)?;
    }
    Ok(found)
}

fn walk(top: &Path, name: &str, found: &mut Vec<FarFile>, depth: u32) -> Result<()> {
    if depth > 32 {
        bail!("directories are nested too deeply in {}", printable(name));
    }
    stop::check()?;
    let path = top.join(name);
    let meta = match fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    let kind = match meta.file_type() {
        kind if kind.is_file() => FarKind::File,
        kind if kind.is_dir() => FarKind::Dir,
        _ => FarKind::Other,
    };
    let modified =
        Time::from_unix(meta.mtime()).with_context(|| format!("{} has an impossible date", path.display()))?;
    if name != TOP {
        found.push(FarFile { name: name.to_owned(), bytes: meta.len(), modified, kind });
    }
    if kind == FarKind::Dir {
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", path.display()))?.file_name();
            // What is no UTF-8 is nothing of ours.
            if let Some(entry) = entry.to_str() {
                let below = if name == TOP { entry.to_owned() } else { format!("{name}/{entry}") };
                walk(top, &below, found, depth + 1)?;
            }
        }
    }
    Ok(())
}
