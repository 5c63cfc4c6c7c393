//! Brings the disks of a dump back as image files.
//!
//! Everything that could refuse the restore is looked at first: formats, targets, space. Then every disk is written under
//! a hidden name beside its target and flushed; only when all are whole do they move to their places. A crash leaves
//! hidden files, which the next run of the same restore replaces.
//!
//! Two hazards of the formats: a raw image is never probed, as a guest can write any header into its own disk; and a
//! qcow2 file that refers to another file is refused, as an off-site copy that was tampered with could so read any file.

mod copy;
mod target;

use anyhow::{Context, Result, bail, ensure};
use bak_common::command::{Event, Program};
use bak_common::name::printable;
use bak_common::record::FileEntry;
use bak_common::report::Kind;
use bak_common::units::{show_size, total};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Here, Hopeless, Order, Progress};
pub use copy::size as data_in;
use target::{Hidden, Target};

/// What `qemu-img convert` can write as one file.
pub(super) const WRITABLE: [&str; 7] = ["raw", "qcow2", "qed", "vdi", "vmdk", "vpc", "vhdx"];

/// One disk: where it lies in the dump, and what becomes of it.
struct Disk<'a> {
    file: &'a Path,
    bytes: u64,
    /// What it takes where it has its holes, if that must be told by the record.
    room: u64,
    stored: &'static str,
    wanted: String,
    target: Target,
}

/// Writes the disks of a dump, or only says where to.
pub fn restore(order: &Order) -> Result<Vec<String>> {
    let disks = plan(order)?;
    if !order.dry_run {
        write(order, &disks)?;
    }
    Ok(disks.iter().map(|disk| disk.target.path().display().to_string()).collect())
}

fn plan<'a>(order: &'a Order) -> Result<Vec<Disk<'a>>> {
    let files = &order.dump.files;
    ensure!(!files.is_empty() && files.len() == order.files.len(), "the dump has no files to bring back");
    let mut disks: Vec<Disk> = Vec::new();
    let mut seen = HashSet::new();
    for (position, (entry, file)) in files.iter().zip(order.files).enumerate() {
        let stored = stored_format(entry)?;
        let (path, wanted) = destination(order, entry, position, stored)?;
        if !WRITABLE.contains(&wanted.as_str()) {
            bail!(
                "its source had the format {}, which cannot be written: give --format raw or qcow2",
                printable(&wanted)
            );
        }
        if stored == "qcow2" && order.there {
            refers_to_nothing(file)?;
        }
        let target = Target::open(&path, order.force)?;
        ensure!(seen.insert(target.path().to_owned()), "two of its disks would be written to {}", path.display());
        disks.push(Disk { file, bytes: entry.bytes, room: entry.room(), stored, wanted, target });
    }
    check_space(&disks, order.there)?;
    Ok(disks)
}

fn text<'a>(entry: &'a FileEntry, key: &str) -> Option<&'a str> {
    entry.extra.get(key).and_then(Value::as_str)
}

/// The format of a file of the dump: what its extension says, as bak-dump names it. Never what it looks like.
pub(super) fn stored_format(entry: &FileEntry) -> Result<&'static str> {
    match entry.name.rsplit('.').next() {
        Some("qcow2") => Ok("qcow2"),
        Some("raw") => Ok("raw"),
        _ => bail!("{} is neither .raw nor .qcow2, so its format is not known", printable(&entry.name)),
    }
}

/// The format that the source of a file had, if the dump says so.
pub(super) fn source_format(entry: &FileEntry) -> Option<&str> {
    text(entry, "source_format").or(text(entry, "format"))
}

/// Where a disk goes, and in which format.
///
/// Back to its source it takes the source's own format, as what uses it there expects that; elsewhere it stays as it is
/// stored, which is a copy and no conversion, unless the file's name promises a format.
fn destination(order: &Order, entry: &FileEntry, position: usize, stored: &str) -> Result<(PathBuf, String)> {
    let many = order.dump.files.len() > 1;
    let vm = order.name.unwrap_or(&order.dump.vm).encoded();
    let number = entry.extra.get("disk").and_then(Value::as_u64).unwrap_or(position as u64);
    let file_name = |extension: &str| {
        if many { format!("{vm}.disk{number}.{extension}") } else { format!("{vm}.{extension}") }
    };
    let asked = order.format.map(str::to_owned);
    let Some(to) = order.to else {
        let source = text(entry, "source").map(Path::new).filter(|path| path.is_absolute());
        let source = source.ok_or_else(|| {
            Kind::Usage.says(format!("the dump does not say where {} came from: say where to by --to", entry.name))
        })?;
        let wanted = asked.or(source_format(entry).map(str::to_owned)).unwrap_or_else(|| stored.to_owned());
        // Under a new name it goes beside its source, never over it.
        let path = match order.name {
            None => source.to_owned(),
            Some(_) => source.with_file_name(file_name(&wanted)),
        };
        return Ok((path, wanted));
    };
    if to.is_dir() {
        let wanted = asked.unwrap_or_else(|| stored.to_owned());
        return Ok((to.join(file_name(&wanted)), wanted));
    }
    if many {
        return Err(Kind::Usage.says(format!(
            "the dump has {} disks: --to {} must be an existing directory",
            order.dump.files.len(),
            to.display()
        )));
    }
    let promised =
        to.extension().and_then(|ending| ending.to_str()).filter(|ending| matches!(*ending, "raw" | "qcow2"));
    Ok((to.to_owned(), asked.or(promised.map(str::to_owned)).unwrap_or_else(|| stored.to_owned())))
}

fn qemu_img() -> Result<Program> {
    Program::new("qemu-img")
}

fn json_of(program: Program, what: &str) -> Result<Value> {
    serde_json::from_slice(&program.run()?.check()?).with_context(|| format!("cannot read what {what} printed"))
}

fn refers_to_nothing(file: &Path) -> Result<()> {
    let info = json_of(qemu_img()?.args(["info", "--output=json", "-f", "qcow2"]).arg(file), "qemu-img info")?;
    let backing = info.get("backing-filename");
    let data = info.pointer("/format-specific/data/data-file");
    if let Some(other) = backing.or(data) {
        return Err(Hopeless::says(format!(
            "{} needs another file, {}, and bak makes no such dumps: it is not restored",
            file.display(),
            printable(&other.to_string())
        )));
    }
    Ok(())
}

/// Fails with numbers if the disks cannot fit. What is replaced still takes its space until the end.
fn check_space(disks: &[Disk], there: bool) -> Result<()> {
    let mut needs: BTreeMap<u64, (u64, &Target)> = BTreeMap::new();
    for disk in disks {
        let bytes = if !there {
            disk.room
        } else if disk.stored == disk.wanted {
            copy::size(disk.file)?
        } else {
            // What a qcow2 image of the same data takes is close to what any sparse image takes.
            let measure = ["measure", "--output=json", "-O", "qcow2", "-f", disk.stored];
            let measured = json_of(qemu_img()?.args(measure).arg(disk.file), "qemu-img measure")?;
            measured.get("required").and_then(Value::as_u64).context("qemu-img measure names no size")?
        };
        let sum = needs.entry(disk.target.device()).or_insert((0, &disk.target));
        sum.0 = sum.0.saturating_add(bytes);
    }
    for (need, target) in needs.into_values() {
        let free = target.free()?;
        let dir = target.path().parent().unwrap_or(Path::new("/")).display();
        let (needs, has) = (show_size(need), show_size(free));
        ensure!(
            need <= free,
            Here::says(format!("it needs {needs} ({need} bytes) in {dir}, where only {has} ({free} bytes) are free"))
        );
    }
    Ok(())
}

fn write(order: &Order, disks: &[Disk]) -> Result<()> {
    let all = total(disks.iter().map(|disk| disk.bytes));
    let mut before = 0;
    let mut written = Vec::new();
    for disk in disks {
        let hidden = Hidden::create(&disk.target)?;
        let tick =
            |part: f64| (order.tick)(Progress { done: (before as f64 + part * disk.bytes as f64) / all.max(1) as f64 });
        let filled = if disk.stored == disk.wanted {
            copy::copy(disk.file, hidden.file(), &tick)
        } else {
            convert(disk, hidden.file(), &tick)
        };
        filled.with_context(|| format!("cannot write {}", disk.target.path().display()))?;
        hidden.flush()?;
        written.push(hidden);
        before += disk.bytes;
    }
    // All are whole; look once more at what is there, then move them. Where the second of several fails the first has
    // been moved; there is no call that moves two.
    for disk in disks {
        disk.target.check()?;
    }
    for hidden in written {
        hidden.publish()?;
    }
    Ok(())
}

/// Converts into a file that is open already: qemu-img would follow a symbolic link in its place.
fn convert(disk: &Disk, to: &File, tick: &dyn Fn(f64) -> Result<()>) -> Result<()> {
    let program = qemu_img()?.args(["convert", "-p", "-f", disk.stored, "-O", &disk.wanted]).arg(disk.file);
    let stdin = to.try_clone().context("cannot open a file once more")?;
    let mut part = 0.0;
    let finished = program.arg("/proc/self/fd/0").stdin(Stdio::from(stdin)).run_with(|event| {
        if let Event::Output(bytes) = event {
            part = super::image::convert::percent(bytes).unwrap_or(part);
        }
        tick(part)
    })?;
    super::image::convert::well(finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let entry = |name: &str, format: &str| -> FileEntry {
            serde_json::from_value(serde_json::json!({"name": name, "bytes": 1, "format": format})).unwrap()
        };
        // `format` is that of the source; the extension says what bak-dump made of it.
        let raw = entry("a-1.disk0.qcow2", "raw");
        assert_eq!((stored_format(&raw).unwrap(), source_format(&raw)), ("qcow2", Some("raw")));
        assert_eq!(stored_format(&entry("a-1.raw", "vmdk")).unwrap(), "raw");
        assert!(stored_format(&entry("a-1.img", "raw")).is_err());
    }
}
