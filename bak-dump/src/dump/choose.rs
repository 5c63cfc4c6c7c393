//! Which guests a run is about.

use anyhow::{Result, anyhow};
use bak_common::args::{Picks, Session};
use bak_common::record::{Dump, Guest, Record};
use bak_common::select::Selector;
use serde_json::{Map, Value};

use crate::driver::{Driver, Listed};

/// What the command line asks for.
pub struct Wanted {
    /// Everything but what standard input names; `None` if only that is meant.
    listed: Option<Selector>,
    /// Holds for what standard input names, too.
    filter: Selector,
    pub stdin: bool,
    all: bool,
}

/// A guest to be dumped.
#[derive(Debug)]
pub struct Subject {
    pub guest: Guest,
    /// What records on standard input said of it that bak does not know: passed on.
    pub carried: Map<String, Value>,
}

/// What to dump, and what only to print.
#[derive(Debug, Default)]
pub struct Chosen {
    pub subjects: Vec<Subject>,
    /// Dumps that came by standard input.
    pub passed: Vec<Dump>,
    /// Guests that are not dumped, with the reason in their record.
    pub left: Vec<Guest>,
}

impl Wanted {
    pub fn new(picks: &Picks, operands: &[String]) -> Result<Self> {
        let (selector, stdin) = picks.explicit(operands)?;
        let (filter, _) = picks.selector(&[])?;
        let only_stdin = stdin && !selector.has_names() && !picks.all;
        let all = !stdin && !selector.has_names();
        Ok(Self { listed: (!only_stdin).then_some(selector), filter, stdin, all })
    }

    pub fn choose(self, input: Vec<Record>, driver: &dyn Driver, session: &Session) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        let mut asked = Vec::new();
        for record in input {
            match record {
                Record::Dump(dump) => chosen.passed.push(*dump),
                // Somebody before us has decided that this one is not for us.
                Record::Guest(guest) if guest.failed.is_some() || guest.skipped.is_some() => chosen.left.push(*guest),
                Record::Guest(guest) => asked.push(*guest),
            }
        }
        let mut listed = driver.list()?;
        for guest in asked {
            match take(&mut listed, &guest) {
                Ok(None) => {}
                Ok(Some(found)) if self.filter.matches(&found) => {
                    let carried = carried(&found, guest.extra);
                    chosen.subjects.push(Subject { guest: found, carried });
                }
                Ok(Some(_)) => {}
                Err(error) => session.report.fail(guest.vm.as_str(), &error),
            }
        }
        if let Some(selector) = &self.listed {
            let kept: Vec<Guest> = chosen.subjects.iter().map(|subject| subject.guest.clone()).collect();
            let (guests, failed) = crate::guests::choose(listed, selector, driver, session);
            let new = guests.into_iter().filter(|guest| !kept.iter().any(|kept| kept.key() == guest.key()));
            chosen.subjects.extend(new.map(|guest| Subject { guest, carried: Map::new() }));
            chosen.left.extend(failed);
        }
        if self.all && chosen.subjects.is_empty() && session.report.failed() == 0 {
            return Err(super::nothing(driver.name()));
        }
        Ok(chosen)
    }
}

/// The guest as the driver lists it that a record means. It stays in the list only if it is not this one.
fn take(listed: &mut Listed, asked: &Guest) -> Result<Option<Guest>> {
    if let Some(found) = listed.guests.iter().find(|guest| guest.key() == asked.key()) {
        return Ok(Some(found.clone()));
    }
    match listed.failed.iter().find(|(what, _)| what == asked.vm.as_str()) {
        Some((_, error)) => Err(anyhow!("{error:#}")),
        None => Err(anyhow!(
            "there is no such guest: no {} called so{} is listed now",
            bak_common::name::printable(&asked.kind),
            asked
                .uid
                .as_deref()
                .map(|uid| format!(" with the uid {}", bak_common::name::printable(uid)))
                .unwrap_or_default()
        )),
    }
}

fn carried(found: &Guest, mut extra: Map<String, Value>) -> Map<String, Value> {
    extra.retain(|key, _| !found.extra.contains_key(key));
    extra
}
