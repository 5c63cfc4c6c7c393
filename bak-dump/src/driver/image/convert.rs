//! Makes a dump's files by `qemu-img convert`.
//!
//! The hazard is a file that looks whole and is not: on a full disk qemu-img exits with 1 and leaves a file of which its
//! own check says "no errors"; and where it cannot write its tables at the very end it says so and exits with 0. So the exit
//! status and its words are believed before anything else. What was written is on its way to the
//! disk while qemu-img still works; then the file is flushed, hashed and checked, all three at once.
//!
//! It writes in order (no `-W`, although that is faster): an unchanged image gives an unchanged file, and a little change
//! a little difference, which is what makes sending it off cheap.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::command::{Event, Finished, Program};
use bak_common::fsio;
use bak_common::hash::hash;
use bak_common::record::{ALLOCATED, FileEntry};
use bak_common::units::total;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::Format;
use super::info::Disk;
use crate::driver::image_restore::data_in;
use crate::driver::{Job, Progress};

/// How often what was written so far is sent to the disk.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Dumps every disk. While one is flushed, hashed and checked, the next is being converted.
pub fn dump(disks: &[Disk], format: Format, job: &Job) -> Result<Vec<FileEntry>> {
    let all = total(disks.iter().map(|disk| disk.allocated.max(1)));
    thread::scope(|scope| {
        let mut before = 0;
        let mut finishing = Vec::new();
        for (number, disk) in disks.iter().enumerate() {
            let name = file_name(job, format, number, disks.len());
            let tick = |part: f64| {
                let done = before as f64 + part * disk.allocated.max(1) as f64;
                (job.tick)(Progress { done: done / all as f64 })
            };
            convert(disk, format, &job.dir.join(&name), job, &tick)
                .with_context(|| format!("cannot convert {}", disk.path.display()))?;
            before += disk.allocated.max(1);
            finishing.push(scope.spawn(move || {
                let (bytes, sha256) = finish(&name, format, job).with_context(|| format!("cannot finish {name}"))?;
                let mut extra = notes(number, disk);
                if format == Format::Raw {
                    extra.insert(ALLOCATED.into(), data_in(&job.dir.join(&name))?.into());
                }
                Ok(FileEntry { name, bytes, sha256: Some(sha256), extra })
            }));
        }
        finishing.into_iter().map(join).collect()
    })
}

fn file_name(job: &Job, format: Format, number: usize, count: usize) -> String {
    let extension = if format == Format::Raw { "raw" } else { "qcow2" };
    match count {
        1 => format!("{}.{extension}", job.stem),
        _ => format!("{}.disk{number}.{extension}", job.stem),
    }
}

fn notes(number: usize, disk: &Disk) -> Map<String, Value> {
    let notes = json!({"disk": number, "source": disk.path, "format": disk.format, "virtual_size": disk.virtual_size});
    match notes {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn qemu_img(job: &Job) -> Result<Program> {
    let mut program = Program::new("qemu-img")?;
    for lock in job.locks {
        program = program.holding(lock)?;
    }
    Ok(program)
}

fn convert(disk: &Disk, format: Format, target: &Path, job: &Job, tick: &dyn Fn(f64) -> Result<()>) -> Result<()> {
    let options: &[&str] = match format {
        Format::Qcow2 => &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
        Format::Plain => &["-O", "qcow2"],
        Format::Raw => &["-O", "raw"],
    };
    let program = qemu_img(job)?.args(["convert", "-p", "-f", &disk.format]).args(options).arg(&disk.path).arg(target);
    let mut said = Vec::new();
    let mut done = 0.0;
    let watch = |event: Event| {
        match event {
            Event::Output(bytes) => {
                said.extend_from_slice(bytes);
                done = percent(&said).unwrap_or(done);
                said.drain(..said.len().saturating_sub(32));
            }
            Event::Tick => tick(done)?,
        }
        Ok(())
    };
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let writer = scope.spawn(move || write_back(target, &end));
        let finished = program.run_with(watch);
        drop(ended);
        let flushed = join(writer);
        // Its own words before ours: a full disk makes both fail.
        well(finished?)?;
        flushed
    })
}

/// Whether a conversion went well: it must also have said nothing but warnings.
pub fn well(ran: Finished) -> Result<()> {
    let complains = ran.stderr.lines().any(|line| !line.trim().is_empty() && !line.contains("warning:"));
    if ran.status.success() && complains {
        bail!("{} said, although it exited with 0: {}", ran.name, ran.last_words());
    }
    ran.check().map(drop)
}

/// Sends what was written to the disk while more is being written, so that the last flush has little to do.
fn write_back(target: &Path, end: &mpsc::Receiver<()>) -> Result<()> {
    let mut file = None;
    while end.recv_timeout(FLUSH_EVERY) == Err(RecvTimeoutError::Timeout) {
        if file.is_none() {
            file = File::open(target).ok();
        }
        if let Some(file) = &file {
            // Not to be tried again after a failure: the last flush would then find nothing to complain about.
            file.sync_data().context("cannot flush to disk")?;
        }
    }
    Ok(())
}

/// How far qemu-img is by its progress line, `    (12.34/100%)`, from 0 to 1.
pub fn percent(said: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(said);
    let number = text.rsplit_once("/100%)")?.0.rsplit_once('(')?.1;
    let percent: f64 = number.trim().parse().ok()?;
    percent.is_finite().then_some((percent / 100.0).clamp(0.0, 1.0))
}

/// Flushes, hashes and checks a file: its size and SHA-256.
fn finish(name: &str, format: Format, job: &Job) -> Result<(u64, String)> {
    let path = job.dir.join(name);
    let file = File::open(&path).context("qemu-img did not make it")?;
    if file.metadata().is_ok_and(|meta| meta.mode() & 0o777 != 0o600) {
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).context("cannot keep others from reading it")?;
    }
    thread::scope(|scope| {
        let flushed = scope.spawn(|| fsio::sync(file.as_fd()));
        let checked = scope.spawn(|| if format == Format::Raw { Ok(()) } else { check(&path, job) });
        let hashed = hash(&file, &mut |_| Ok(())).context("cannot read it back");
        join(flushed)?;
        join(checked)?;
        hashed
    })
}

fn check(path: &Path, job: &Job) -> Result<()> {
    let program = qemu_img(job)?.args(["check", "-q", "-f", "qcow2"]).arg(path);
    program.run()?.check().map(drop)
}

fn join<T>(thread: ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of bak-dump failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines() {
        for (text, expected) in [
            ("    (0.00/100%)\r", Some(0.0)),
            ("    (12.50/100%)\r    (25.00/100%)\r", Some(0.25)),
            ("25.00/100%)\r    (50.00/100%)\r    (51.", Some(0.5)),
            ("    (100.00/100%)\n", Some(1.0)),
            ("(nan/100%", None),
            ("", None),
        ] {
            assert_eq!(percent(text.as_bytes()), expected, "{text}");
        }
    }
}
