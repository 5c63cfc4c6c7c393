//! One dump by a driver's program: it runs, what it streams is packed meanwhile, and then every file is looked at.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::fsio;
use bak_common::hash::hash;
use bak_common::record::FileEntry;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use serde_json::Map;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::data::{self, Flow};
use super::say::Said;
use super::{Env, Exec, NOT_NOW, base, guest_line};
use crate::driver::{Job, Made, Progress, Running};
use crate::frames::Written;
use crate::writers::writers;

/// What the stream is written as until it has a name.
const STREAM: &str = ".stream";

pub fn dump(exec: &Exec, job: &Job) -> Result<Made> {
    let dir = File::open(job.dir).context("cannot open the work directory")?;
    let made = make(exec, job, &dir);
    // Not one that the program may have put in its place: what goes with a dump, or is kept, must be a file.
    let log = job.stem.log();
    let sound =
        fsio::open_file(dir.as_fd(), &log).is_ok_and(|file| file.is_some_and(|f| size(&f).is_ok_and(|s| s > 0)));
    if !sound {
        remove(job.dir, &log)?;
    }
    made
}

fn make(exec: &Exec, job: &Job, dir: &File) -> Result<Made> {
    let (said, written) = run(exec, job, dir)?;
    if written.stream > 0 && said.stream.is_none() {
        bail!("{} wrote to descriptor 3 and did not say what that is ({{\"stream\":\"…\"}})", exec.program);
    }
    ensure!(
        said.stream.is_some() || !said.files.is_empty(),
        "{} ended well and made no file: it named none",
        exec.program
    );
    let mut files = Vec::new();
    if let Some(name) = &said.stream {
        ensure!(written.stream > 0, "{} named a stream and wrote nothing to descriptor 3", exec.program);
        ensure!(fsio::stat(dir.as_fd(), name)?.is_none(), "{} made {name} itself", exec.program);
        fsio::replace(dir.as_fd(), STREAM, name)?;
        let sha256 = Some(written.sha256);
        files.push(FileEntry { name: name.clone(), bytes: written.bytes, sha256, extra: Map::new() });
    }
    closed(exec, dir, &said.files)?;
    for name in &said.files {
        files.push(finish(dir, name).with_context(|| format!("{} made no good file", exec.program))?);
    }
    sweep(dir, job, &files)?;
    Ok(Made {
        files,
        mode: said.mode,
        fingerprint: said.fingerprint.or_else(|| job.guest.fingerprint.clone()),
        extra: extra(job, said.record),
        ..Made::default()
    })
}

/// What goes into the dump's record: what it said, and by which name it knows the guest.
fn extra(job: &Job, mut record: Map<String, serde_json::Value>) -> Map<String, serde_json::Value> {
    record.remove(super::LISTED_AS);
    if let Some(name) = job.guest.extra.get(super::LISTED_AS) {
        record.insert(super::LISTED_AS.into(), name.clone());
    }
    record
}

/// Runs the program; what it said, and what became of its stream.
fn run(exec: &Exec, job: &Job, dir: &File) -> Result<(Said, Written)> {
    let own = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    let create = |name: &str| -> Result<File> {
        let file = rustix::fs::openat(dir, name, own, Mode::RUSR | Mode::WUSR);
        Ok(file.with_context(|| format!("cannot make {name}"))?.into())
    };
    let (file, log) = (create(STREAM)?, create(&job.stem.log())?);
    let (pipe, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let vm = Exec::own_name(&job.guest.vm, &job.guest.extra).to_owned();
    let mut program = exec.program("dump", Env { vm, base: base(job.dir, job.stem), ..Env::default() })?;
    program = program.dir(job.dir).feed(guest_line(job.guest)).data(end).log(log);
    for lock in job.locks {
        program = program.holding(lock)?;
    }
    let (flow, said) = (Flow::default(), RefCell::new(Said::default()));
    let (finished, written) = std::thread::scope(|scope| {
        let packer = scope.spawn(|| data::pack(pipe, &file, &flow));
        let mut tick = || {
            ensure!(!flow.broken.load(Ordering::Relaxed), "its stream cannot be kept");
            (job.tick)(progress(&said.borrow(), &flow, job))
        };
        let finished = exec.call(program, |message| said.borrow_mut().hear(job.stem, message), &mut tick);
        match &finished {
            Ok(finished) if finished.status.success() => _ = flow.ended.set(Instant::now()),
            _ => flow.over.store(true, Ordering::Relaxed),
        }
        let written = packer.join().unwrap_or_else(|_| Err(anyhow!("a thread of bak-dump failed")));
        (finished, written)
    });
    // Where the stream could not be kept, that is the reason for everything else.
    if flow.broken.load(Ordering::Relaxed) {
        written?;
        bail!("the stream of {} could not be kept", exec.program);
    }
    let finished = finished?;
    if finished.status.code() == Some(NOT_NOW) {
        return Err(Running.into());
    }
    exec.check(&finished, "dump")?;
    Ok((said.into_inner(), written?))
}

/// How far it has come, as it says, or as the guest's size lets guess.
fn progress(said: &Said, flow: &Flow, job: &Job) -> Progress {
    let size = job.guest.size.filter(|size| *size > 0);
    let streamed = size.map_or(0.0, |size| flow.bytes.load(Ordering::Relaxed) as f64 / size as f64);
    Progress { done: said.progress.max(streamed.min(1.0)) }
}

fn size(file: &File) -> Result<u64> {
    Ok(file.metadata().context("cannot look at a file")?.len())
}

/// Makes sure that nobody writes to these files any more: a program that was left running would go on after they were hashed.
fn closed(exec: &Exec, dir: &File, names: &[String]) -> Result<()> {
    let mut inodes = HashMap::new();
    for name in names {
        if let Some(stat) = fsio::stat(dir.as_fd(), name)? {
            inodes.insert((stat.st_dev, stat.st_ino), name);
        }
    }
    if inodes.is_empty() {
        return Ok(());
    }
    let (wanted, begun) = (inodes.keys().copied().collect(), Instant::now());
    while let Some(name) = writers(&wanted).iter().find_map(|inode| inodes.get(inode)) {
        if begun.elapsed() > data::GRACE {
            bail!("{} has ended, and left a program running that has {name} open for writing", exec.program);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A file that the program made: looked at, flushed, hashed.
fn finish(dir: &File, name: &str) -> Result<FileEntry> {
    let file = fsio::open_file(dir.as_fd(), name)?.with_context(|| format!("{name} was not made"))?;
    let meta = file.metadata().with_context(|| format!("cannot look at {name}"))?;
    ensure!(meta.len() > 0, "{name} is empty");
    // Else it could be changed by its other name later.
    ensure!(meta.nlink() == 1, "{name} is a hard link to another file");
    if meta.mode() & 0o777 != 0o600 {
        let private = file.set_permissions(Permissions::from_mode(0o600));
        private.with_context(|| format!("cannot keep others from reading {name}"))?;
    }
    fsio::sync(file.as_fd())?;
    let (bytes, sha256) = hash(&file, &mut |_| Ok(())).with_context(|| format!("cannot read {name}"))?;
    Ok(FileEntry { name: name.to_owned(), bytes, sha256: Some(sha256), extra: Map::new() })
}

/// Removes what is neither named nor ours: what lies beside a dump's files may go with them.
fn sweep(dir: &File, job: &Job, files: &[FileEntry]) -> Result<()> {
    for (name, _) in fsio::names(dir.as_fd()).context("cannot list the work directory")? {
        let named = files.iter().any(|file| file.name == name) || name == job.stem.log();
        if !named && !name.starts_with('.') {
            remove(job.dir, &name)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(name);
    let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
