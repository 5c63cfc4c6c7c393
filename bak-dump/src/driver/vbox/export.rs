//! One guest into an OVA.
//!
//! Neither the exit status nor the file alone proves anything, so an export counts if VBoxManage ended well, nobody used the
//! guest meanwhile, and the archive is whole: it ends as a tar archive does, and its manifest, which is written last, has the
//! right checksum of everything in it.
//!
//! What lies in an OVA is called after the OVA, in a format whose names end at 100 bytes; so it is made under a short name, always
//! the same, and gets its own at the end.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::fsio;
use bak_common::hash::hash;
use bak_common::record::{FileEntry, State};
use serde_json::{Map, json};
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use super::info::{self, Info};
use super::{Vbox, say};
use crate::driver::{Job, Made, Progress, Running};
use crate::verify::format::Found;
use crate::verify::ova;

/// What it is made as.
const MADE_AS: &str = "machine.ova";

/// A tar archive consists of such blocks, and ends with two that are empty.
const BLOCK: u64 = 512;

pub fn dump(vbox: &Vbox, job: &Job) -> Result<Made> {
    let before = vbox.info(job.guest)?;
    ensure!(vbox.guest(&before)?.vm == job.guest.vm, "was renamed since it was listed: it is {} now", before.name());
    if before.state() != State::Stopped {
        return Err(Running.into());
    }
    let log = job.dir.join(job.stem.log());
    export(vbox, job, &log, &before)?;
    info::unused(&before, &vbox.info(job.guest)?)?;
    let dir = File::open(job.dir).context("cannot open the work directory")?;
    let name = format!("{}.ova", job.stem);
    let (bytes, sha256) = finish(&dir, job)?;
    fsio::replace(dir.as_fd(), MADE_AS, &name)?;
    // It says nothing but percentages.
    std::fs::remove_file(&log).context("cannot remove its log")?;
    let mut extra = Map::new();
    if before.is_saved() {
        extra.insert("vbox".into(), json!({"state": before.get("VMState")}));
    }
    Ok(Made {
        files: vec![FileEntry { name, bytes, sha256: Some(sha256), extra: Map::new() }],
        mode: Some("stop".into()),
        fingerprint: before.fingerprint(),
        extra,
        ..Made::default()
    })
}

/// Runs VBoxManage export to its end.
fn export(vbox: &Vbox, job: &Job, log: &Path, before: &Info) -> Result<()> {
    let mut program = Vbox::program()?.arg("export").arg(before.uuid()).arg("--output").arg(job.dir.join(MADE_AS));
    program = program.args([vbox.how.ovf.unwrap_or_default().flag(), "--manifest"]);
    if !vbox.how.options.is_empty() {
        let options: Vec<&str> = vbox.how.options.iter().map(|option| option.as_str()).collect();
        program = program.args(["--options", &options.join(",")]);
    }
    for lock in job.locks {
        program = program.holding(lock)?;
    }
    let log = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(log);
    let finished = vbox.work(program, log.context("cannot write its log")?, job.tick)?;
    if finished.status.success() {
        return Ok(());
    }
    // Somebody was quicker: the disks of a guest that runs cannot be exported.
    if vbox.info(job.guest).is_ok_and(|now| now.state() != State::Stopped) {
        return Err(Running.into());
    }
    Err(say::error("export", &finished))
}

/// Flushes, hashes and checks what was made: its size and SHA-256.
fn finish(dir: &File, job: &Job) -> Result<(u64, String)> {
    let open = || fsio::open_file(dir.as_fd(), MADE_AS);
    let file = open()?.context("VBoxManage export ended well and made no file")?;
    let meta = file.metadata().context("cannot look at what it made")?;
    if meta.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600)).context("cannot keep others from reading it")?;
    }
    ends_well(&file, meta.len())?;
    let again = open()?.context("what VBoxManage made is gone")?;
    let tick = || (job.tick)(Progress { done: 1.0 });
    thread::scope(|scope| {
        let flushed = scope.spawn(|| fsio::sync(file.as_fd()));
        let checked = scope.spawn(|| ova::check(again, &tick));
        let hashed = hash(&file, &mut |_| Ok(())).context("cannot read back what it made");
        join(flushed)?;
        match join(checked)? {
            Found::Sound(_) => hashed,
            Found::Bad(why) => bail!("what VBoxManage export made is no good: {why}"),
            Found::Plausible(what) | Found::Unchecked(what) => {
                bail!("what VBoxManage export made proves nothing: it has only {what}")
            }
        }
    })
}

/// Whether a tar archive ends as it should.
fn ends_well(file: &File, size: u64) -> Result<()> {
    let mut end = [1; 2 * BLOCK as usize];
    let whole = size.is_multiple_of(BLOCK) && size > 2 * BLOCK;
    if whole {
        file.read_exact_at(&mut end, size - 2 * BLOCK).context("cannot read back what it made")?;
    }
    ensure!(
        whole && end.iter().all(|byte| *byte == 0),
        "what VBoxManage export made is no whole OVA: its end is not the end of a tar archive"
    );
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of bak-dump failed")))
}
