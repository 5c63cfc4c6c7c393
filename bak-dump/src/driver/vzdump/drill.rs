//! A guest brought back on trial: under a number that is free, with its network down, never started, and removed again.
//!
//! The hazard is to touch a guest that is not the trial's. qmrestore and pct restore refuse a number that is taken, so what
//! they have just made is ours; from then on it carries a tag that nothing else has, and only what carries it is ever
//! removed. If we are killed before it has the tag, it is left alone and told of.
//!
//! It is made harmless at once: every network device with its link down, and not started when the node starts.

use anyhow::{Context, Result, anyhow, ensure};
use bak_common::command::Program;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::ffi::OsString;

use super::restore::{holder, restore};
use super::{Kind, Vzdump};
use crate::driver::{Cleared, Here, Trial};
use bak_common::name::GuestName;

/// The numbers that trials take, from the highest on: whoever counts up never gets there.
const HIGHEST: u32 = 999_999_999;
const LOWEST: u32 = 999_999_000;

const DOWN: &str = "link_down=1";

pub fn drill(driver: &Vzdump, trial: &Trial) -> Result<String> {
    let kind = Kind::of(&trial.dump.kind).with_context(|| format!("`{}` is no kind of guest", trial.dump.kind))?;
    let id = free(driver).map_err(Here::of)?;
    let note = json!({"vmid": id, "kind": kind.as_str()});
    (trial.note)(note.as_object().unwrap_or(&Map::new()))?;
    let name = GuestName::new(id.to_string())?;
    restore(driver, &trial.order(Some(&name))).map_err(|error| match driver.conf(kind, id) {
        Ok(_) => error.context(format!(
            "the guest {id} may be what is left of it: look, and remove it by {} destroy {id}",
            kind.tool()
        )),
        Err(_) => error,
    })?;
    // It was made by us, just now: the number was free, and it is refused where it is not.
    let tamed = tame(driver, kind, id, trial);
    let removed = destroy(driver, kind, id, trial);
    let seen = match (tamed, removed) {
        (Err(error), Err(other)) => {
            return Err(Here::of(error.context(format!("and it could not be removed: {other:#}"))));
        }
        // It came back: whatever else goes wrong is not the dump's.
        (tamed, removed) => tamed.and_then(|seen| removed.map(|()| seen)).map_err(Here::of)?,
    };
    Ok(format!("restored as {} {id} with {seen}, never started, removed", kind.as_str()))
}

/// A number that no node's guest has.
fn free(driver: &Vzdump) -> Result<u32> {
    for id in (LOWEST..=HIGHEST).rev() {
        if holder(driver, id)?.is_none() {
            return Ok(id);
        }
    }
    Err(anyhow!("all numbers from {LOWEST} to {HIGHEST} are taken"))
}

fn tag(token: &str) -> String {
    format!("bak-drill-{token}")
}

/// Gives it its tag, takes its network down, and makes sure of both. What it has.
fn tame(driver: &Vzdump, kind: Kind, id: u32, trial: &Trial) -> Result<String> {
    let conf = driver.conf(kind, id)?;
    // One that is protected could not be removed.
    let first = ["--tags", &tag(trial.token), "--onboot", "0", "--protection", "0"].map(OsString::from);
    run(kind, "set", id, first.to_vec(), trial)?;
    let links = conf.networks().flat_map(|(key, value)| [format!("--{key}"), down(value)]);
    let links: Vec<OsString> = links.map(OsString::from).collect();
    if !links.is_empty() {
        run(kind, "set", id, links, trial)?;
    }
    let conf = driver.conf(kind, id)?;
    ensure!(conf.tags().contains(&tag(trial.token)), "it did not take its mark");
    ensure!(conf.get("onboot").is_none_or(|value| value == "0"), "it would start with the node");
    let up: Vec<&str> =
        conf.networks().filter(|(_, value)| !value.split(',').any(|part| part == DOWN)).map(|(key, _)| key).collect();
    ensure!(up.is_empty(), "its network could not be taken down: {}", up.join(", "));
    let networks = conf.networks().count();
    Ok(format!("{networks} network {} down", if networks == 1 { "device" } else { "devices" }))
}

/// A network device with its link down.
fn down(value: &str) -> String {
    let parts = value.split(',').filter(|part| !part.starts_with("link_down="));
    parts.chain([DOWN]).collect::<Vec<_>>().join(",")
}

fn destroy(driver: &Vzdump, kind: Kind, id: u32, trial: &Trial) -> Result<()> {
    run(kind, "destroy", id, Vec::new(), trial)?;
    ensure!(driver.conf(kind, id).is_err(), "{} destroy ended well, and the guest {id} is still there", kind.tool());
    Ok(())
}

fn run(kind: Kind, what: &str, id: u32, more: Vec<OsString>, trial: &Trial) -> Result<()> {
    let words: Vec<OsString> = vec![what.into(), id.to_string().into()];
    let program = Program::new(kind.tool())?.args(words).args(more).on_our_death(Signal::TERM).holding(trial.hold)?;
    // Also where we were asked to end: what was made must go.
    program.run()?.check().map(drop)
}

/// What a killed trial has left: a guest that carries its tag is removed, and no other.
pub fn clear(driver: &Vzdump, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
    let id = note.get("vmid").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let kind = note.get("kind").and_then(Value::as_str).and_then(Kind::of);
    let (Some(id), Some(kind)) = (id, kind) else { return Ok(Cleared::Gone) };
    let Some((node, _)) = holder(driver, id)? else { return Ok(Cleared::Gone) };
    let ours = node == driver.node && driver.conf(kind, id).is_ok_and(|conf| conf.tags().contains(&tag(token)));
    if !ours {
        let how = format!("remove it by `{} destroy {id}` if it is nobody's", kind.tool());
        return Ok(Cleared::Unsure(format!(
            "the guest {id} on {node} may be left of a drill that was killed: look at it, and {how}"
        )));
    }
    let words = ["destroy".to_owned(), id.to_string()];
    Program::new(kind.tool())?.args(words).on_our_death(Signal::TERM).run()?.check()?;
    ensure!(driver.conf(kind, id).is_err(), "{} destroy ended well, and the guest {id} is still there", kind.tool());
    Ok(Cleared::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_go_down() {
        assert_eq!(down("virtio=BC:24:11:00:00:01,bridge=vmbr0"), "virtio=BC:24:11:00:00:01,bridge=vmbr0,link_down=1");
        assert_eq!(down("virtio,link_down=0,bridge=vmbr0"), "virtio,bridge=vmbr0,link_down=1");
        assert_eq!(down("name=eth0,link_down=1"), "name=eth0,link_down=1");
    }
}
