//! `--repair`: a database with lines that cannot be read is made whole again, by leaving them out.
//!
//! Nothing is lost by it: the damaged file is kept under another name, flushed, before the mended one takes its place. A
//! guest whose line is gone and whom the details know is to be dumped, whatever it was.

use anyhow::{Context, Result, bail};
use bak_common::args::Session;
use bak_common::calendar::Time;
use bak_common::fsio;
use bak_common::lock::Hold;
use bak_common::name::printable;
use rustix::io::Errno;
use std::path::Path;

use crate::db::{Db, First, Mode, Step, missing};
use crate::format::{DETAILS, Damage, Details, STATEDB, Table, VERSION, version_text};
use crate::status::Status;

impl Db {
    /// As [`Db::step`], for a database of which files may be damaged or missing.
    fn step_to_repair(&self, mode: Mode) -> Result<Step> {
        let held = self.lock(if mode == Mode::Write { Hold::Exclusive } else { Hold::Shared })?;
        if !self.has_version()? && mode == Mode::Write {
            self.replace(&held, &[(VERSION, Some(vec![version_text().as_bytes()]))], false)?;
        }
        Ok(self.as_it_is(held))
    }

    /// Keeps `bytes`, all of a file that is to be mended, under a name that says when; that name.
    fn keep_copy(&self, name: &str, bytes: &[u8], now: Time) -> Result<String> {
        let stamp = now.to_string().replace(['-', ':'], "");
        for nth in 1_u32.. {
            let copy =
                if nth == 1 { format!("{name}.damaged-{stamp}") } else { format!("{name}.damaged-{stamp}-{nth}") };
            match fsio::write_new(self.dir(), &copy, &[bytes]) {
                Err(error) if error.downcast_ref() == Some(&Errno::EXIST) => continue,
                written => {
                    let written = written.and_then(|()| fsio::sync(self.dir()));
                    if written.is_err() {
                        // Part of a copy must not be taken for one.
                        let _ = fsio::unlink(self.dir(), &copy);
                    }
                    written.with_context(|| format!("cannot keep a copy as {}", self.file(&copy)))?;
                }
            }
            return Ok(self.file(&copy));
        }
        bail!("there are too many copies of {name}")
    }
}

/// Mends the database at `path` and says on standard error what that cost; in a dry run, what it would.
pub fn run(session: &Session, path: &Path) -> Result<()> {
    let db = Db::existing(path, session.wait)?.ok_or_else(|| missing(path))?;
    let step = db.step_to_repair(if session.dry_run { Mode::Plan } else { Mode::Write })?;
    let list = step.read_if_there(STATEDB)?;
    let (statedb, text) = (list.clone().unwrap_or_default(), step.details()?);
    let mut table = Table::parse(&statedb);
    let mut details = Details::parse(&text);
    let dropped = (table.mend(), std::mem::take(&mut details.damage));
    let gone = list.is_none_or(|list| list.is_empty());
    if gone && !details.by_vm.is_empty() {
        let text = "it was missing or empty: made anew, with all guests that the details know";
        session.report.warn(&path.join(STATEDB).display().to_string(), text);
    }
    if gone || !dropped.0.is_empty() {
        for vm in details.by_vm.keys().filter(|vm| table.get(vm).is_none()).collect::<Vec<_>>() {
            table.set(vm, Status::BackupNecessary);
            session.report.warn(vm, "its status is lost: BACKUP_NECESSARY, even if it was ARCHIVED");
        }
    }
    for (name, bytes, dropped) in [(STATEDB, &statedb, &dropped.0), (DETAILS, &text, &dropped.1)] {
        if dropped.is_empty() {
            continue;
        }
        if !session.dry_run {
            let copy = db.keep_copy(name, bytes, session.now)?;
            session
                .report
                .warn(&path.join(name).display().to_string(), &format!("damaged; as it was it is kept as {copy}"));
        }
        tell(session, path, bytes, dropped);
    }
    let mended = (!dropped.1.is_empty()).then(|| details.to_text(&table)).transpose()?;
    step.commit(&table, mended, First::Details)
}

fn tell(session: &Session, path: &Path, bytes: &[u8], dropped: &[Damage]) {
    let would = if session.dry_run { "would be " } else { "" };
    for damage in dropped {
        let line = bytes.split(|byte| *byte == b'\n').nth(damage.line.saturating_sub(1)).unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let short: String = line.chars().take(200).collect();
        let place = format!("{}:{}", path.join(damage.file).display(), damage.line);
        session.report.warn(&place, &format!("{would}dropped, as {}: `{}`", damage.why, printable(&short)));
    }
}
