//! The same judgement as a textfile for node_exporter, in the text format of Prometheus.
//!
//! node_exporter reads `*.prom` at any moment, as another user: so the file is written under a hidden name that ends
//! otherwise, made readable for all against our umask, flushed, and renamed into place.

use anyhow::{Context, Result};
use bak_common::calendar::Time;
use bak_common::fsio;
use bak_common::report::Kind;
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::check::{Judgement, Level, Verdict, What};
use crate::gather::Facts;
use crate::status::{Detail, Status};

/// The text of the file.
pub fn render(facts: &Facts, judgement: &Judgement, now: Time) -> String {
    let details: HashMap<&str, &Detail> =
        facts.guests.iter().filter_map(|guest| Some((guest.vm.as_str(), guest.detail.as_ref()?))).collect();
    let rows: Vec<(Labels, &Verdict)> = judgement
        .guests
        .iter()
        .map(|guest| (Labels::of(guest, details.get(guest.vm.as_str()).copied()), guest))
        .collect();
    let mut text = Text::default();
    guests(&mut text, &rows, facts);
    text.family("bak_dest_pending_bytes", "Dumps in the outbox of the destination.");
    for totals in &facts.totals {
        text.sample(&Labels::default().and("dest", &totals.dest), totals.pending);
    }
    text.family("bak_dest_waiting_bytes", "Newest good dumps that are neither at the destination nor in its outbox.");
    for totals in &facts.totals {
        text.sample(&Labels::default().and("dest", &totals.dest), totals.waiting);
    }
    text.family("bak_check_status", "What the check came to: 0 fine, 1 warning, 2 critical.");
    text.sample(&Labels::default(), number(judgement.level()));
    text.family("bak_check_timestamp_seconds", "When the check was made.");
    text.sample(&Labels::default(), now.unix());
    text.out
}

fn guests(text: &mut Text, rows: &[(Labels, &Verdict)], facts: &Facts) {
    text.family(
        "bak_guest_last_dump_success_timestamp_seconds",
        "Start of the newest good dump; absent if there is none.",
    );
    for (labels, guest) in rows {
        if let Some(last) = guest.last_dump {
            text.sample(labels, last.unix());
        }
    }
    text.family("bak_guest_last_sent_timestamp_seconds", "Start of the newest dump that was sent; absent if none was.");
    for (labels, guest) in rows {
        for (dest, sent) in &guest.last_sent {
            text.sample(&labels.clone().and("dest", dest), sent.unix());
        }
    }
    text.family("bak_guest_last_dump_size_bytes", "Size of the newest good dump.");
    for (labels, guest) in rows {
        if let Some(bytes) = facts.sizes.get(&guest.vm) {
            text.sample(labels, *bytes);
        }
    }
    text.family("bak_guest_due_timestamp_seconds", "Since when the guest needs a dump; absent if it needs none.");
    for (labels, guest) in rows {
        if let Some(due) = guest.due {
            text.sample(labels, due.unix());
        }
    }
    text.family("bak_guest_failed_attempts", "Attempts to dump the guest that failed in a row.");
    for (labels, guest) in rows {
        text.sample(labels, guest.failures);
    }
    text.family("bak_guest_overdue", "Whether the guest has needed a dump for too long.");
    for (labels, guest) in rows {
        text.sample(labels, u8::from(guest.problems.iter().any(|problem| problem.what == What::Overdue)));
    }
    text.family("bak_guest_gone", "Whether the guest is no longer observed.");
    for (labels, guest) in rows {
        text.sample(labels, u8::from(guest.gone));
    }
    text.family("bak_guest_check_status", "What the check came to: 0 fine, 1 warning, 2 critical.");
    for (labels, guest) in rows {
        text.sample(labels, number(guest.level));
    }
    text.family("bak_guest_status", "Whether this is the guest's status in the database.");
    for (labels, guest) in rows {
        for status in Status::ALL {
            let is = guest.status == status.as_str();
            text.sample(&labels.clone().and("status", status.as_str()), u8::from(is));
        }
    }
}

fn number(level: Level) -> u8 {
    crate::nagios::word(level).1
}

/// Labels as they stand between the braces. An absent one is empty to Prometheus, so it is left out.
#[derive(Clone, Default)]
struct Labels(String);

impl Labels {
    fn of(guest: &Verdict, detail: Option<&Detail>) -> Self {
        let mut labels = Self::default().and("vm", &guest.vm);
        let Some(detail) = detail else { return labels };
        for (label, value) in [("name", &detail.name), ("node", &detail.node), ("kind", &detail.kind)] {
            if let Some(value) = value {
                labels = labels.and(label, value);
            }
        }
        labels
    }

    fn and(mut self, label: &str, value: &str) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        self.0.push_str(&format!("{comma}{label}=\"{value}\""));
        self
    }
}

#[derive(Default)]
struct Text {
    out: String,
    family: &'static str,
}

impl Text {
    /// All samples of a family follow its head, and none stand elsewhere.
    fn family(&mut self, name: &'static str, help: &str) {
        self.out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        self.family = name;
    }

    fn sample(&mut self, labels: &Labels, value: impl std::fmt::Display) {
        let (open, close) = if labels.0.is_empty() { ("", "") } else { ("{", "}") };
        self.out.push_str(&format!("{}{open}{}{close} {value}\n", self.family, labels.0));
    }
}

/// Removes what writers of this textfile left who were killed: `<temp>.<pid>.tmp`. What cannot be removed does not matter.
fn clear_away(dir: BorrowedFd, temp: &OsStr) {
    let Some(temp) = temp.to_str() else { return };
    for (name, _) in fsio::names(dir).unwrap_or_default() {
        let pid = name.strip_prefix(temp).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp")?.parse().ok());
        let ended = |pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
        if pid.and_then(rustix::process::Pid::from_raw).is_some_and(ended) {
            let _ = fsio::unlink(dir, &name);
        }
    }
}

/// Puts `text` in the place of `path`, all or nothing.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let wrong = || format!("cannot write {}", path.display());
    let Some(name) = path.file_name() else {
        return Err(Kind::Usage.says(format!("{}: it is no name of a file", wrong())));
    };
    // To root nothing stands in the way of a rename over a device, such as /dev/stdout leads to.
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(Kind::Usage.says(format!("{}: it is there, and is no regular file", wrong())));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = File::open(dir).with_context(wrong)?;
    // One for each process, as two may run at once; never one that is there, which may lead elsewhere.
    let mut temp = OsString::from(".");
    temp.push(name);
    clear_away(dir.as_fd(), &temp);
    temp.push(format!(".{}.tmp", std::process::id()));
    match rustix::fs::unlinkat(&dir, &temp, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).with_context(wrong),
    }
    let written = fill(dir.as_fd(), &temp, text)
        .and_then(|()| rustix::fs::renameat(&dir, &temp, &dir, name).map_err(std::io::Error::from));
    if written.is_err() {
        // What could not be written is no use to anybody; that it is in the way is no failure of its own.
        let _ = rustix::fs::unlinkat(&dir, &temp, rustix::fs::AtFlags::empty());
    }
    written.with_context(wrong)?;
    fsio::sync(dir.as_fd()).with_context(wrong)
}

fn fill(dir: BorrowedFd, temp: &OsString, text: &str) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, temp, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(text.as_bytes())?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    file.sync_all()
}
