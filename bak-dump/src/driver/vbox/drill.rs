//! A guest brought back on trial: imported under a name that holds the trial's token, its network cards taken out, never started,
//! and removed again.
//!
//! The hazard is to touch a guest that is not the trial's. Nobody else's has that name, as the token is random; it is addressed by
//! the UUID that it got, and only while it is stopped. Disks and settings lie in a directory of ours, unless another is named.

use anyhow::{Context, Result, ensure};
use bak_common::record::State;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use super::import::{folder, remove, run};
use super::info::Info;
use super::{PROGRAM, Vbox};
use crate::driver::{Cleared, Here, Progress, Trial};

/// What disks are called in an OVA.
const DISKS: [&str; 4] = ["vmdk", "vhd", "vdi", "img"];

fn name(token: &str) -> String {
    format!("bak-drill-{token}")
}

pub fn drill(vbox: &Vbox, trial: &Trial) -> Result<String> {
    let [ova] = trial.files else { return Err(super::import::not_one(trial.files.len())) };
    let name = name(trial.token);
    (trial.note)(json!({"name": name}).as_object().unwrap_or(&Map::new()))?;
    let above = match trial.to {
        Some(to) => folder(to)?,
        None => trial.dir.to_owned(),
    };
    // Its service runs already when the import begins, and so does not inherit the lock.
    ensure!(find(vbox, &name)?.is_empty(), Here::says(format!("there is a guest `{name}` already")));
    let words: [OsString; 9] = [
        PROGRAM.into(),
        "import".into(),
        std::path::absolute(ova).context("cannot find the OVA")?.into(),
        "--vsys".into(),
        "0".into(),
        "--vmname".into(),
        name.clone().into(),
        "--basefolder".into(),
        above.into(),
    ];
    let imported = run(vbox, "import", words.into(), Some(trial.hold), trial.tick);
    let guests = find(vbox, &name).map_err(Here::of)?;
    let seen = imported.and_then(|()| {
        let guest =
            guests.first().with_context(|| format!("VBoxManage import ended well, and there is no guest `{name}`"))?;
        look(guest, ova)
    });
    // Whatever came of it: what was made must go, also where we were asked to end.
    let tamed = seen.and_then(|disks| {
        let cards = tame(vbox, &guests[0]).map_err(Here::of)?;
        Ok(format!("imported with {disks} and {cards}, never started, removed"))
    });
    let gone = guests.iter().try_for_each(|guest| remove_stopped(vbox, guest.uuid())).map_err(Here::of);
    match (tamed, gone) {
        (Err(error), Err(other)) => Err(error.context(format!("and it could not be removed: {other:#}"))),
        (tamed, gone) => tamed.and_then(|seen| gone.map(|()| seen)),
    }
}

/// The guests of this name; there is at most one, unless somebody made more.
fn find(vbox: &Vbox, name: &str) -> Result<Vec<Info>> {
    let machines = vbox.machines()?.into_iter().filter_map(|machine| machine.info.ok());
    Ok(machines.filter(|info| info.name() == name).collect())
}

/// Whether it has all the disks that the OVA has; what it has.
fn look(guest: &Info, ova: &Path) -> Result<String> {
    let mut archive = tar::Archive::new(File::open(ova).with_context(|| format!("cannot open {}", ova.display()))?);
    let mut packed = BTreeSet::new();
    for entry in archive.entries_with_seek().context("cannot read the OVA")? {
        let entry = entry.context("cannot read the OVA")?;
        let path = entry.path().context("cannot read the OVA")?.into_owned();
        if path.extension().and_then(|end| end.to_str()).is_some_and(|end| DISKS.contains(&end)) {
            packed.insert(path);
        }
    }
    let (has, should) = (guest.disks().len(), packed.len());
    ensure!(has == should, "it was imported with {}, and the OVA has {}", count(has, "disk"), count(should, "disk"));
    Ok(count(has, "disk"))
}

fn count(many: usize, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}

/// Takes its network cards out, and makes sure of that. How many it had.
fn tame(vbox: &Vbox, guest: &Info) -> Result<String> {
    let cards = guest.network_cards();
    if !cards.is_empty() {
        let mut words: Vec<OsString> = [PROGRAM, "modifyvm", guest.uuid()].map(OsString::from).into();
        words.extend(cards.iter().flat_map(|card| [format!("--nic{card}"), "none".to_owned()]).map(OsString::from));
        run(vbox, "modifyvm", words, None, &quiet)?;
    }
    let now = vbox.machine(guest.uuid())?.context("it is gone")?;
    let left = now.network_cards();
    ensure!(left.is_empty(), "its network cards could not be taken out: {}", left.join(", "));
    ensure!(now.state() == State::Stopped, "it is in use ({})", now.since());
    Ok(format!("{} out", count(cards.len(), "network card")))
}

fn remove_stopped(vbox: &Vbox, uuid: &str) -> Result<()> {
    let Some(now) = vbox.machine(uuid)? else { return Ok(()) };
    ensure!(now.state() == State::Stopped, "the guest `{}` {{{uuid}}} is in use ({})", now.name(), now.since());
    run(vbox, "unregistervm", remove(uuid), None, &quiet)?;
    ensure!(
        vbox.machine(uuid)?.is_none(),
        "VBoxManage unregistervm ended well, and the guest {{{uuid}}} is still there"
    );
    Ok(())
}

fn quiet(_: Progress) -> Result<()> {
    Ok(())
}

/// What a killed trial has left: the guests that have its name, while nobody uses them.
pub fn clear(vbox: &Vbox, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
    let name = name(token);
    if note.get("name").and_then(Value::as_str) != Some(name.as_str()) {
        return Ok(Cleared::Gone);
    }
    for guest in find(vbox, &name)? {
        if guest.state() != State::Stopped {
            let what = format!("the guest `{name}`, left of a drill that was killed, is in use ({})", guest.since());
            return Ok(Cleared::Unsure(format!(
                "{what}: look at it, and remove it by `{PROGRAM} unregistervm {name} --delete`"
            )));
        }
        remove_stopped(vbox, guest.uuid())?;
    }
    Ok(Cleared::Gone)
}
