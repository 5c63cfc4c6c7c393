//! A dump brought back on trial by a program: under a name that holds the trial's token, by `restore`; then `undrill` removes
//! what has that name. Only a program that knows `undrill` is asked to bring back anything.

use anyhow::Result;
use bak_common::name::GuestName;
use serde_json::{Map, Value, json};

use super::{Env, Exec, LIST_TIMEOUT, NO_COMMAND};
use crate::driver::{Cleared, Driver, Order, Trial};

const COMMAND: &str = "undrill";

fn name(token: &str) -> String {
    format!("bak-drill-{token}")
}

/// Why it cannot, if that is so: asked by a dry run.
pub fn cannot(exec: &Exec) -> Option<String> {
    let asked = exec.program(COMMAND, Env { dry_run: true, ..Env::default() });
    let finished = match asked.and_then(|program| program.timeout(exec.timeout.min(LIST_TIMEOUT)).run()) {
        Ok(finished) => finished,
        Err(error) => return Some(format!("{error:#}")),
    };
    match finished.status.code() {
        Some(0) => None,
        Some(NO_COMMAND) => Some(format!("{} has no command {COMMAND}", exec.program)),
        _ => Some(format!("{COMMAND}: {:#}", finished.error())),
    }
}

pub fn drill(exec: &Exec, trial: &Trial) -> Result<String> {
    let name = GuestName::new(name(trial.token))?;
    let vm = Exec::own_name(&trial.dump.vm, &trial.dump.extra);
    (trial.note)(json!({"name": name, "vm": vm}).as_object().unwrap_or(&Map::new()))?;
    let order = trial.order(Some(&name));
    exec.restore(&Order { dry_run: true, ..order })?;
    let made = exec.restore(&order)?;
    Ok(format!("restored as {}, removed", made.join(", ")))
}

/// Removes what a trial has made, or has not: it is asked for by a name that nobody else has.
pub fn clear(exec: &Exec, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
    let name = name(token);
    if note.get("name").and_then(Value::as_str) != Some(name.as_str()) {
        return Ok(Cleared::Gone);
    }
    let vm = note.get("vm").and_then(Value::as_str).unwrap_or_default().to_owned();
    let finished = exec.program(COMMAND, Env { vm, new_name: &name, ..Env::default() })?.run()?;
    exec.check(&finished, COMMAND)?;
    Ok(Cleared::Gone)
}
