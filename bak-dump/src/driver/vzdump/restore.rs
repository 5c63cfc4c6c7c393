//! Brings a guest back by `qmrestore` or `pct restore`.
//!
//! The hazard is the guest that is there: a number means one guest in the whole cluster, and whoever restores onto it
//! destroys its disks. So a number that any node's configuration holds is refused, and even `--force` replaces only a guest of
//! this node.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::command::{Event, Program};
use bak_common::report::Kind as Status;
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Kind, Vzdump, vmid};
use crate::driver::{Order, Progress, shown};

pub fn restore(driver: &Vzdump, order: &Order) -> Result<Vec<String>> {
    let kind = Kind::of(&order.dump.kind).with_context(|| format!("`{}` is no kind of guest", order.dump.kind))?;
    let [archive] = order.files else {
        bail!("a dump of vzdump is one archive, and this one has {} files", order.files.len())
    };
    ensure!(order.format.is_none(), Status::Usage.says("--format is for disk images: Proxmox restores what it dumped"));
    // What was adopted by a name of its own has none.
    let old = driver.number(order.dump.vm.as_str());
    let id = match order.name {
        Some(name) => vmid(name.as_str()).ok_or_else(|| {
            Status::Usage.says(format!("--as {name}: a guest of Proxmox is a number from 100 to 999999999"))
        })?,
        None => *old.as_ref().map_err(|error| anyhow!("{error:#}: give it one by --as"))?,
    };
    let storage = order.to.map(storage).transpose()?;
    room(driver, id, order.force)?;
    let words = words(kind, archive, id, storage, order.force, old.ok() != Some(id));
    if order.dry_run {
        return Ok(vec![words.iter().map(|word| shown(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")]);
    }
    let mut words = words.into_iter();
    let program = Program::new(words.next().unwrap_or_default())?.args(words).on_our_death(Signal::TERM);
    let mut done = 0.0;
    let mut line = Vec::new();
    let finished = program.run_with(|event| {
        match event {
            Event::Output(bytes) => {
                line.extend_from_slice(bytes);
                done = percent(&line).unwrap_or(done);
                line.drain(..line.len().saturating_sub(200));
            }
            Event::Tick => (order.tick)(Progress { done })?,
        }
        Ok(())
    })?;
    finished.check()?;
    ensure!(driver.conf(kind, id).is_ok(), "{} ended well, and there is no guest {id}", kind.restorer());
    Ok(vec![format!("{} {id} on {}", kind.as_str(), driver.node)])
}

impl Kind {
    fn restorer(self) -> &'static str {
        match self {
            Kind::Qemu => "qmrestore",
            Kind::Lxc => "pct restore",
        }
    }
}

/// A storage of Proxmox, by its name.
fn storage(to: &Path) -> Result<&str> {
    let name = to.to_str().filter(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    });
    name.ok_or_else(|| {
        Status::Usage.says(format!("--to {}: a guest of Proxmox goes to a storage, by its name", to.display()))
    })
}

/// The command, as an argument vector.
fn words(kind: Kind, archive: &Path, id: u32, storage: Option<&str>, force: bool, other: bool) -> Vec<OsString> {
    let (archive, id): (OsString, OsString) = (archive.into(), id.to_string().into());
    let mut words: Vec<OsString> = match kind {
        Kind::Qemu => vec!["qmrestore".into(), archive, id],
        Kind::Lxc => vec!["pct".into(), "restore".into(), id, archive],
    };
    let mut option = |name: &str, value: &str| words.extend([name.into(), value.into()]);
    if let Some(storage) = storage {
        option("--storage", storage);
    }
    if force {
        option("--force", "1");
    }
    // Two guests must not have the same addresses.
    if other {
        option("--unique", "1");
    }
    words
}

/// Makes sure that no guest has this number, or that it may be replaced.
fn room(driver: &Vzdump, id: u32, force: bool) -> Result<()> {
    let Some((node, path)) = holder(driver, id)? else { return Ok(()) };
    if node == driver.node && force {
        return Ok(());
    }
    let text = if node == driver.node {
        format!(
            "there is a guest {id} already: give it another number by --as, or --force to replace that guest and its disks"
        )
    } else {
        format!(
            "the number {id} belongs to a guest of the node {node}, and is not replaced from here: give it another by --as. (Is that \
             node dead for good? Then `mv {} {}` takes the number over, and --force restores onto it)",
            path.display(),
            path.to_string_lossy().replace(&format!("/nodes/{node}/"), &format!("/nodes/{}/", driver.node)),
        )
    };
    Err(Status::Refused.says(text))
}

/// Whose configuration holds this number, in the whole cluster.
fn holder(driver: &Vzdump, id: u32) -> Result<Option<(String, PathBuf)>> {
    let nodes = driver.etc.join("nodes");
    let entries =
        fs::read_dir(&nodes).with_context(|| format!("cannot list {}: is this a Proxmox node?", nodes.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", nodes.display()))?;
        for kind in [Kind::Qemu, Kind::Lxc] {
            let path = entry.path().join(kind.conf_dir()).join(format!("{id}.conf"));
            if path.symlink_metadata().is_ok() {
                return Ok(Some((entry.file_name().to_string_lossy().into_owned(), path)));
            }
        }
    }
    Ok(None)
}

/// `progress 12% (read …)`
fn percent(said: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(said);
    let before = text.rsplit_once("% (read")?.0;
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse::<f64>().ok().map(|percent| (percent / 100.0).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress() {
        assert_eq!(
            percent(b"progress 1% (read 1 bytes)\nprogress 12% (read 134217728 bytes, duration 0 sec)\n"),
            Some(0.12)
        );
        assert_eq!(percent(b"restore vma archive\n"), None);
    }
}
