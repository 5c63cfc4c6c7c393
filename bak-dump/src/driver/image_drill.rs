//! The disks of a dump brought back on trial: into a directory of ours, each compared with the file of the dump that it came
//! from, as a guest would read both.

use anyhow::{Context, Result, bail, ensure};
use bak_common::command::{Event, Program};
use std::path::Path;

use super::image_restore::{WRITABLE, restore, source_format, stored_format};
use super::{Order, Progress, Trial};
use crate::verify::format::patience;

pub fn drill(trial: &Trial) -> Result<String> {
    let sources = || trial.dump.files.iter().map(source_format);
    // As it would go back to its place, where that is one format that can be written.
    let back = sources().next().flatten().filter(|format| WRITABLE.contains(format));
    let back = back.filter(|format| sources().all(|other| other == Some(*format)));
    let order = Order { to: Some(trial.dir), format: back, ..trial.order(None) };
    let made = restore(&order)?;
    ensure!(made.len() == trial.files.len(), "{} of {} disks came back", made.len(), trial.files.len());
    for ((entry, file), made) in trial.dump.files.iter().zip(trial.files).zip(&made) {
        let stored = stored_format(entry)?;
        let wanted = back.unwrap_or(stored);
        if wanted == "qcow2" {
            check(Path::new(made), trial)?;
        }
        compare((file, stored), (Path::new(made), wanted), trial)
            .with_context(|| format!("{} was brought back", entry.name))?;
    }
    let disks = if made.len() == 1 { "disk" } else { "disks" };
    Ok(format!("{} {disks} restored as {}, the same as in the dump, removed", made.len(), back.unwrap_or("stored")))
}

fn run(words: &[&std::ffi::OsStr], trial: &Trial) -> Result<bak_common::command::Finished> {
    let program = Program::new("qemu-img")?.args(words.iter().map(|word| word.to_os_string())).holding(trial.hold)?;
    program.timeout(patience(trial.dump.bytes)).run_with(|event| match event {
        Event::Output(_) => Ok(()),
        Event::Tick => (trial.tick)(Progress { done: 1.0 }),
    })
}

fn check(made: &Path, trial: &Trial) -> Result<()> {
    let finished = run(&["check".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), made.as_os_str()], trial)?;
    match finished.status.code() {
        // 3: clusters that nothing uses.
        Some(0 | 3) => Ok(()),
        _ => Err(finished.error()),
    }
}

fn compare(a: (&Path, &str), b: (&Path, &str), trial: &Trial) -> Result<()> {
    let words = ["compare", "-q", "-f", a.1, "-F", b.1].map(std::ffi::OsStr::new);
    let finished = run(&[&words[..], &[a.0.as_os_str(), b.0.as_os_str()]].concat(), trial)?;
    match finished.status.code() {
        Some(0) => Ok(()),
        Some(1) => bail!("but it does not hold what the dump holds"),
        _ => Err(finished.error()),
    }
}
