//! `--protect` and `--unprotect`: nothing but another word of the same kind takes a protected dump away. Idempotent.

use anyhow::{Result, anyhow};
use bak_common::args::Session;
use bak_common::name::DumpId;
use bak_common::record::{PruneNote, Record, to_line};
use std::collections::BTreeSet;

use crate::apply::stores;
use crate::look::View;
use crate::output::Output;
use crate::plan::Decision;
use crate::request::{At, Request};

/// Which dumps to protect, and which no longer.
#[derive(Debug, Default)]
pub struct Protect {
    pub on: BTreeSet<DumpId>,
    pub off: BTreeSet<DumpId>,
}

/// Sets the marks in all stores. Prints the dumps that it changed; with `--explain` also those that were so already.
pub fn run(session: &Session, request: &Request, protect: &Protect, output: &mut Output) -> Result<()> {
    let mut unknown: BTreeSet<&DumpId> = protect.on.union(&protect.off).collect();
    for place in &request.places {
        // The command line has refused others.
        let At::Here(store) = &place.at else { continue };
        let locked = match session.dry_run {
            true => None,
            false => Some(store.lock(session.wait, &session.report)?),
        };
        let view = View::of(store);
        let mut done = Vec::new();
        for (entry, looks) in view.entries.iter().zip(&view.looks) {
            let id = &entry.dump.id;
            let on = protect.on.contains(id);
            if !on && !protect.off.contains(id) {
                continue;
            }
            unknown.remove(id);
            let changed = match &locked {
                Some(locked) => locked.protect(entry, on),
                None => Ok(entry.dump.protected != on || looks.protected != on),
            };
            match changed {
                Ok(changed) if changed || session.explain => {
                    let mut dump = entry.dump.clone();
                    dump.protected = on;
                    dump.planned = session.dry_run;
                    dump.prune = Some(PruneNote { decision: "keep".into(), reasons: vec![told(on, changed).into()] });
                    done.push((changed, dump));
                }
                Ok(_) => {}
                Err(error) => session.report.fail(id.as_str(), &error.context("cannot change its protection")),
            }
        }
        drop(locked);
        for (changed, dump) in done {
            if changed {
                session.report.decided(&to_line(&Record::Dump(Box::new(dump.clone()))));
            }
            output.put(Decision::Keep, dump)?;
        }
    }
    for id in unknown {
        session.report.fail(id.as_str(), &anyhow!("there is no such dump in {}", stores(&request.places)));
    }
    Ok(())
}

fn told(on: bool, changed: bool) -> &'static str {
    match (on, changed) {
        (true, true) => "protected from now on",
        (true, false) => "was protected before",
        (false, true) => "no longer protected: the rules decide",
        (false, false) => "was not protected",
    }
}
