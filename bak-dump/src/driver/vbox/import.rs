//! Brings a guest back by VBoxManage import.
//!
//! The hazard is the guest that is there. It is never touched without `--force`, and with it only once the new one is imported
//! whole, under a name of its own; so there is room needed for both. An import makes a machine with a UUID of its own: to bak it
//! is another guest of the same name.

use anyhow::{Context, Error, Result, anyhow, ensure};
use bak_common::lock::Lock;
use bak_common::name::printable;
use bak_common::record::State;
use bak_common::report::Kind as Status;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::info::Info;
use super::{Machine, PROGRAM, Vbox, say};
use crate::driver::{Order, Progress};

/// What is to be done.
struct Plan {
    ova: PathBuf,
    name: String,
    /// What it is called until the old one is gone; its name if there is no old one.
    first: String,
    folder: Option<PathBuf>,
    /// The UUID of the guest that it replaces.
    old: Option<String>,
    keep_addresses: bool,
}

pub fn restore(vbox: &Vbox, order: &Order) -> Result<Vec<String>> {
    let machines = vbox.machines()?;
    let plan = plan(order, &machines)?;
    if order.dry_run {
        return Ok(plan.commands().iter().map(|words| line(words)).collect());
    }
    let mut commands = plan.commands().into_iter();
    run(vbox, "import", commands.next().unwrap_or_default(), order.hold, order.tick)?;
    let uuid = imported(vbox, &plan, &machines)?;
    if let Some(old) = &plan.old {
        replace(vbox, &plan, old, &uuid)
            .with_context(|| format!("is back as the guest `{}` {{{uuid}}}, but not in its place", plan.first))?;
    }
    Ok(vec![format!("{} {{{uuid}}}", plan.name)])
}

pub(super) fn not_one(files: usize) -> Error {
    anyhow!("a dump of VirtualBox is one OVA, and this one has {files} files")
}

fn plan(order: &Order, machines: &[Machine]) -> Result<Plan> {
    let [ova] = order.files else { return Err(not_one(order.files.len())) };
    ensure!(
        order.format.is_none(),
        Status::Usage.says("--format is for disk images: VirtualBox restores what it exported")
    );
    // Where a prefix was put before its name, `name` is its own.
    let own = order.dump.name.as_deref().unwrap_or(order.dump.vm.as_str());
    let name = order.name.map_or(own, |name| name.as_str()).to_owned();
    let folder = order.to.map(folder).transpose()?;
    let called = |name: &str| -> Vec<&Info> {
        machines.iter().filter_map(|machine| machine.info.as_ref().ok()).filter(|info| info.name() == name).collect()
    };
    let old = match called(&name)[..] {
        [] => None,
        _ if !order.force => {
            return Err(Status::Refused.says(format!(
                "there is a guest `{name}` already: give it another name by --as, or --force to replace that guest and its disks"
            )));
        }
        [one] if one.state() == State::Stopped => Some(one.uuid().to_owned()),
        [one] => {
            let text = format!("the guest `{name}` is in use ({}): shut it down first", one.since());
            return Err(Status::Refused.says(text));
        }
        _ => return Err(Status::Refused.says(format!("several guests are called `{name}`: which is to be replaced?"))),
    };
    let first = match &old {
        None => name.clone(),
        Some(_) => format!("bak-restore-{}", order.dump.started.compact()),
    };
    if let Some(left) = called(&first).first().filter(|_| old.is_some()) {
        return Err(Status::Refused.says(format!(
            "there is a guest `{first}`, which an interrupted bak-restore may have left: remove it by `{PROGRAM} unregistervm {} \
             --delete`",
            left.uuid()
        )));
    }
    let ova = std::path::absolute(ova).context("cannot find the OVA")?;
    // Two guests must not have the same addresses.
    Ok(Plan { ova, keep_addresses: name == own, name, first, folder, old })
}

/// Where VirtualBox makes the machine's own folder.
pub(super) fn folder(to: &Path) -> Result<PathBuf> {
    ensure!(
        to.is_dir(),
        Status::Usage.says(format!("--to {}: a guest of VirtualBox goes into a directory that is there", to.display()))
    );
    std::path::absolute(to).with_context(|| format!("cannot find {}", to.display()))
}

impl Plan {
    /// The commands, as argument vectors.
    fn commands(&self) -> Vec<Vec<OsString>> {
        let mut import: Vec<OsString> = vec![PROGRAM.into(), "import".into(), self.ova.clone().into()];
        if self.keep_addresses {
            import.extend(["--options".into(), "keepallmacs".into()]);
        }
        import.extend(["--vsys", "0", "--vmname"].map(OsString::from));
        import.push(self.first.clone().into());
        if let Some(folder) = &self.folder {
            import.extend(["--basefolder".into(), folder.clone().into()]);
        }
        let mut commands = vec![import];
        if let Some(old) = &self.old {
            commands.extend([remove(old), rename(&self.first, &self.name)]);
        }
        commands
    }
}

pub(super) fn remove(uuid: &str) -> Vec<OsString> {
    [PROGRAM, "unregistervm", uuid, "--delete"].map(OsString::from).into()
}

fn rename(machine: &str, name: &str) -> Vec<OsString> {
    [PROGRAM, "modifyvm", machine, "--name", name].map(OsString::from).into()
}

/// `hold`: a lock that it must hold, too.
pub(super) fn run(
    vbox: &Vbox,
    command: &str,
    words: Vec<OsString>,
    hold: Option<&Lock>,
    tick: &dyn Fn(Progress) -> Result<()>,
) -> Result<()> {
    let log = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut program = Vbox::program()?.args(words.into_iter().skip(1));
    if let Some(lock) = hold {
        program = program.holding(lock)?;
    }
    let finished = vbox.work(program, log, tick)?;
    if finished.status.success() { Ok(()) } else { Err(say::error(command, &finished)) }
}

/// The machine that was not there before.
fn imported(vbox: &Vbox, plan: &Plan, before: &[Machine]) -> Result<String> {
    let machines = vbox.machines()?;
    let new = machines.iter().filter(|machine| !before.iter().any(|old| old.uuid == machine.uuid));
    let mut new = new.filter_map(|machine| machine.info.as_ref().ok()).filter(|info| info.name() == plan.first);
    let uuid = new.next().map(|info| info.uuid().to_owned());
    uuid.with_context(|| format!("VBoxManage import ended well, and there is no guest `{}`", printable(&plan.first)))
}

/// Puts the new guest in the place of the old one, if nobody has started that meanwhile.
fn replace(vbox: &Vbox, plan: &Plan, old: &str, new: &str) -> Result<()> {
    let tick = |_| Ok(());
    if let Some(info) = vbox.machine(old)? {
        ensure!(info.state() == State::Stopped, "the old one is in use by now ({})", info.since());
        run(vbox, "unregistervm", remove(old), None, &tick)?;
    }
    run(vbox, "modifyvm", rename(new, &plan.name), None, &tick)
}

/// A command as a shell reads it.
fn line(words: &[OsString]) -> String {
    words.iter().map(|word| crate::driver::shown(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}
