//! Which image files there are, and which guests they make up.

use anyhow::{Context, Result, ensure};
use bak_common::config::ImageGuest;
use bak_common::name::GuestName;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::info;

/// A guest and its images.
#[derive(Debug)]
pub struct Spec {
    pub vm: GuestName,
    pub name: Option<String>,
    pub disks: Vec<PathBuf>,
    pub tags: Vec<String>,
    pub pool: Option<String>,
}

/// What there is, and what should be but cannot be used: what it is, and why.
#[derive(Debug, Default)]
pub struct Found {
    pub specs: Vec<Spec>,
    pub failed: Vec<(String, String)>,
}

pub fn find(sources: &[String], declared: &[ImageGuest], prefix: Option<&str>) -> Found {
    let mut found = Found::default();
    for guest in declared {
        match declare(guest, prefix) {
            Ok(spec) => found.specs.push(spec),
            Err(error) => found.failed.push((guest.vm.clone(), format!("{error:#}"))),
        }
    }
    // An image that is declared as some guest's disk is no guest of its own, by whatever path it is met again.
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let mut taken: HashSet<_> = found.specs.iter().flat_map(|spec| &spec.disks).filter_map(|p| identity(p)).collect();
    let mut images = Vec::new();
    for source in sources {
        if let Err(error) = expand(source, &mut images, &mut found.failed) {
            found.failed.push((source.clone(), format!("{error:#}")));
        }
    }
    images.sort();
    images.dedup();
    taken.extend(images.iter().filter_map(|path| info::extents(path)).flatten().filter_map(|path| identity(&path)));
    for path in images {
        if identity(&path).is_some_and(|id| taken.contains(&id)) {
            continue;
        }
        match name_of(&path).and_then(|name| Ok((full_name(&name, prefix)?, name))) {
            Ok((vm, name)) => found.specs.push(Spec {
                vm,
                name: prefix.is_some().then_some(name),
                disks: vec![path],
                tags: Vec::new(),
                pool: None,
            }),
            Err(error) => found.failed.push((path.to_string_lossy().into_owned(), format!("{error:#}"))),
        }
    }
    refuse_namesakes(&mut found);
    found
}

fn declare(guest: &ImageGuest, prefix: Option<&str>) -> Result<Spec> {
    ensure!(!guest.disks.is_empty(), "it is declared without disks");
    let disks =
        guest.disks.iter().map(std::path::absolute).collect::<Result<_, _>>().context("cannot find its disks")?;
    let name = guest.name.clone().or_else(|| prefix.map(|_| guest.vm.clone()));
    Ok(Spec { vm: full_name(&guest.vm, prefix)?, name, disks, tags: guest.tags.clone(), pool: guest.pool.clone() })
}

fn full_name(name: &str, prefix: Option<&str>) -> Result<GuestName> {
    GuestName::new(format!("{}{name}", prefix.unwrap_or_default()))
}

/// The guest's name that a file's name stands for.
fn name_of(path: &Path) -> Result<String> {
    ensure!(path.to_str().is_some(), "its path is not valid UTF-8");
    let part = if info::named_format(path).is_some() { path.file_stem() } else { path.file_name() };
    Ok(part.context("it has no name")?.to_string_lossy().into_owned())
}

/// The images that `source` stands for: a file, those directly in a directory, or those that a pattern matches.
fn expand(source: &str, images: &mut Vec<PathBuf>, failed: &mut Vec<(String, String)>) -> Result<()> {
    let path = std::path::absolute(source).context("cannot find the images")?;
    let mut consider = |path: PathBuf| match is_image(&path) {
        Ok(true) => images.push(path),
        Ok(false) => {}
        Err(error) => {
            failed.push((name_of(&path).unwrap_or_else(|_| path.display().to_string()), format!("{error:#}")))
        }
    };
    if path.is_dir() {
        for entry in fs::read_dir(&path).context("cannot list the directory")? {
            let entry = entry.context("cannot list the directory")?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                consider(entry.path());
            }
        }
        return Ok(());
    }
    if path.symlink_metadata().is_ok() {
        images.push(path);
        return Ok(());
    }
    ensure!(source.contains(['*', '?', '[']), "there is no such file or directory");
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let pattern = path.to_str().context("it is not valid UTF-8")?;
    let mut any = false;
    for path in glob::glob_with(pattern, options).context("it is no pattern")? {
        any = true;
        consider(path.context("cannot look at all that the pattern may match")?);
    }
    ensure!(any, "nothing matches this pattern");
    Ok(())
}

/// Whether a file that was found rather than named is an image. One that is called so must be one; any other is one if
/// qemu-img sees a format in it, or if it is a block device.
fn is_image(path: &Path) -> Result<bool> {
    let named = info::named_format(path).is_some();
    let kind = match fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if named => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        Err(_) => return Ok(false),
    };
    if kind.is_dir() || named && kind.is_file() || kind.is_block_device() {
        return Ok(!kind.is_dir());
    }
    if !kind.is_file() {
        ensure!(!named, "{} is neither a file nor a block device", path.display());
        return Ok(false);
    }
    Ok(path.to_str().is_some() && info::has_format(path))
}

/// Guests of one name would be taken for one guest, so none of them is dumped.
fn refuse_namesakes(found: &mut Found) {
    let mut paths: BTreeMap<GuestName, Vec<String>> = BTreeMap::new();
    for spec in &found.specs {
        paths.entry(spec.vm.clone()).or_default().push(spec.disks[0].display().to_string());
    }
    paths.retain(|_, paths| paths.len() > 1);
    found.specs.retain(|spec| !paths.contains_key(&spec.vm));
    for (vm, paths) in paths {
        let why = format!("several guests have this name: {}; give them names in [[image.guest]]", paths.join(", "));
        found.failed.push((vm.to_string(), why));
    }
}
