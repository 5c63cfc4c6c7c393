//! One dump brought back: planned, checked, written, by the driver that made it.

use anyhow::{Result, anyhow, bail};
use bak_common::args::Session;
use bak_common::name::printable;
use bak_common::store::{Entry, Store};
use clap::ValueEnum;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::Cli;
use crate::bar::step;
use crate::check::{Compared, compare};
use crate::driver::{self, Decision, Order, Progress};
use crate::proof::prove;

/// What it takes to bring one dump back.
pub struct Work<'a> {
    pub cli: &'a Cli,
    pub session: &'a Session,
    pub bar: &'a indicatif::ProgressBar,
}

impl Work<'_> {
    /// Says what would be made of a dump that lies in `store`.
    pub fn plan(&self, store: &Store, entry: &Entry, written: &HashSet<String>) -> Result<Vec<String>> {
        self.planned(files(&store.path().join(&entry.place), entry), entry, true, written)
    }

    /// The same of one that is still to be fetched into `dir`.
    pub fn plan_unfetched(&self, dir: &Path, entry: &Entry, written: &HashSet<String>) -> Result<Vec<String>> {
        self.planned(files(&dir.join(&entry.place), entry), entry, false, written)
    }

    fn planned(
        &self,
        files: Vec<PathBuf>,
        entry: &Entry,
        there: bool,
        written: &HashSet<String>,
    ) -> Result<Vec<String>> {
        let planned = self.drive(&files, entry, true, there, &step(self.bar, "planning"))?;
        if let Some(twice) = planned.iter().find(|path| written.contains(*path)) {
            bail!("{twice} was written by this run already, from another dump");
        }
        Ok(planned)
    }

    /// Compares every file with the dump's record, whole; what has no SHA-256 there is looked at by the tools of its format.
    pub fn check(&self, store: &Store, entry: &Entry) -> Result<()> {
        let compared = compare(store, entry, true, &step(self.bar, "checking"))?;
        match self.prove(store, entry, &compared)? {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Why a dump that was compared is no good, if that is so. Says what else was looked at where there is no SHA-256.
    pub fn prove(&self, store: &Store, entry: &Entry, compared: &Compared) -> Result<Option<String>> {
        let (decision, why) = prove(&self.session.config, store, entry, compared, &step(self.bar, "checking"))?;
        if decision == Decision::Bad {
            return Ok(Some(why));
        }
        if let Compared::Same { unhashed } = compared
            && let Some(name) = unhashed.first()
        {
            let text = match decision {
                Decision::Good => format!("{name} has no SHA-256 in its record: checked by its size and {why}"),
                _ => format!("{why}: it is brought back unproved"),
            };
            self.session.report.warn(entry.dump.id.as_str(), &text);
        }
        Ok(None)
    }

    pub fn write(&self, store: &Store, entry: &Entry, written: &mut HashSet<String>) -> Result<Vec<String>> {
        let files = files(&store.path().join(&entry.place), entry);
        let made = self.drive(&files, entry, false, true, &step(self.bar, "writing"))?;
        written.extend(made.iter().cloned());
        self.bar.finish_and_clear();
        Ok(made)
    }

    /// Has the driver that made the dump bring it back, or say what it would do.
    fn drive(
        &self,
        files: &[PathBuf],
        entry: &Entry,
        dry_run: bool,
        there: bool,
        tick: &(dyn Fn(Progress) -> Result<()> + Sync),
    ) -> Result<Vec<String>> {
        let cli = self.cli;
        let format = cli.format.and_then(|format| format.to_possible_value());
        by_driver(
            self.session,
            &Order {
                dump: &entry.dump,
                files,
                name: cli.new_name.as_ref(),
                to: cli.to.as_deref(),
                format: format.as_ref().map(|value| value.get_name()),
                force: cli.force,
                dry_run,
                there,
                hold: None,
                tick,
            },
        )
    }
}

fn files(dir: &Path, entry: &Entry) -> Vec<PathBuf> {
    entry.dump.files.iter().map(|file| dir.join(&file.name)).collect()
}

/// Has the driver that made the dump bring it back.
fn by_driver(session: &Session, order: &Order) -> Result<Vec<String>> {
    find_driver(session, &order.dump.driver)?.restore(order)
}

/// The driver that made a dump.
fn find_driver(session: &Session, name: &str) -> Result<Box<dyn driver::Driver>> {
    driver::find(name, &session.config).map_err(|error| {
        anyhow!("it was made by the driver `{}`, which cannot be used here: {error:#}", printable(name))
    })
}
