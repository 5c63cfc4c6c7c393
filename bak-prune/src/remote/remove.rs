//! Removal over there, and finishing what a crash or a broken line has left of one.

use anyhow::{Context, Error, Result, anyhow, bail};
use bak_common::far::{FarFile, Ran};
use bak_common::fsio;
use bak_common::store::Entry;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use super::drop::{Dropped, Drops, Fate, Files, Known};
use super::{Visit, make};

/// So many dumps are removed together: two runs that remove, and two that look.
const BATCH: usize = 500;
/// The file that says what was decided.
const FILE: &str = "drop.json";
const TEMP: &str = ".drop.new";
const FILE_MAX: u64 = 1 << 30;

/// What became of a dump that was to go.
#[derive(Debug)]
pub enum Outcome {
    Removed,
    Failed(Error),
    /// It was not come to, or cannot be told: what stands in the way was reported for all.
    NotDone,
}

impl Visit<'_> {
    /// Removes dumps. One outcome each, in order; what stands in the way of all of them is reported here.
    pub fn remove(&mut self, entries: &[&Entry]) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::new();
        if let Err(error) = self.remove_all(entries, &mut outcomes) {
            let left = entries.len() - outcomes.len();
            let plural = if left == 1 { "dump was" } else { "dumps were" };
            let text = format!("{left} {plural} not, or not wholly, removed; the next run goes on");
            self.session.report.fail(self.shown, &error.context(text));
        }
        outcomes.resize_with(entries.len(), || Outcome::NotDone);
        outcomes
    }

    fn remove_all(&mut self, entries: &[&Entry], outcomes: &mut Vec<Outcome>) -> Result<()> {
        // Before anything is noted: of what nobody may remove nothing was decided.
        if !entries.is_empty() && !self.far.may_discard()? {
            bail!("over there nothing may be removed (`refuse options` of a daemon, or rrsync -no-del)");
        }
        for batch in entries.chunks(BATCH) {
            let removed = self.remove_batch(batch);
            self.note(&outcomes.len().to_string())?;
            outcomes.extend(removed?);
        }
        Ok(())
    }

    fn remove_batch(&mut self, entries: &[&Entry]) -> Result<Vec<Outcome>> {
        let dropped: Vec<Option<Dropped>> = entries.iter().map(|entry| Dropped::of(entry, &self.files)).collect();
        let going: Vec<Dropped> = dropped.iter().flatten().cloned().collect();
        let mut noted = self.noted()?;
        let before = noted.len();
        noted.extend(going.iter().cloned());
        self.set_noted(&noted)?;
        for one in &going {
            self.mark(one, true)?;
        }
        let ran = self.discard(going.iter().map(|one| &one.sidecar));
        let there = self.look_at(going.iter().map(|one| &one.sidecar))?;
        let why = refused(ran);
        let (still, gone): (Vec<Dropped>, Vec<Dropped>) =
            going.into_iter().partition(|one| there.contains_key(&one.sidecar.name));
        for one in &still {
            self.mark(one, false)?;
        }
        let still: HashMap<String, String> = still.into_iter().map(|one| (one.sidecar.name, why.clone())).collect();
        let left = self.remove_files(gone)?;
        let failed: HashMap<&str, String> = left
            .iter()
            .map(|(one, why)| (one.sidecar.name.as_str(), format!("its sidecar has gone, but not all files: {why}")))
            .chain(still.iter().map(|(name, why)| (name.as_str(), why.clone())))
            .collect();
        noted.truncate(before);
        noted.extend(left.iter().map(|(one, _)| one.clone()));
        self.set_noted(&noted)?;
        let outcome = |one: Option<Dropped>| match one {
            None => Outcome::Removed,
            Some(one) => match failed.get(one.sidecar.name.as_str()) {
                Some(why) => Outcome::Failed(anyhow!("{why}")),
                None => Outcome::Removed,
            },
        };
        Ok(dropped.into_iter().map(outcome).collect())
    }

    /// Finishes what was decided: whatever has lost its sidecar loses its files.
    pub(super) fn recover(&mut self) -> Result<()> {
        let noted = self.noted()?;
        if noted.is_empty() {
            return Ok(());
        }
        let pending = self.pending()?;
        let mut going = Vec::new();
        for one in noted {
            match one.fate(&self.files, &pending) {
                Fate::There => self.mark(&one, false)?,
                Fate::Done => self.mark(&one, true)?,
                Fate::Left(files) => {
                    self.mark(&one, true)?;
                    going.push(Dropped { files, ..one });
                }
            }
        }
        let mut left = Vec::new();
        for batch in going.chunks(BATCH) {
            left.extend(self.remove_files(batch.to_vec())?);
        }
        for (one, why) in &left {
            let text = format!("cannot finish its removal: {why}");
            self.session.report.fail(one.dump.id.as_str(), &anyhow!(text));
        }
        let left: Vec<Dropped> = left.into_iter().map(|(one, _)| one).collect();
        self.set_noted(&left)
    }

    /// Removes the files of dumps that have no sidecar any more. Those of which some are left, with why.
    fn remove_files(&mut self, dropped: Vec<Dropped>) -> Result<Vec<(Dropped, String)>> {
        let files = || dropped.iter().flat_map(|one| &one.files);
        if files().next().is_none() {
            return Ok(Vec::new());
        }
        let ran = self.discard(files());
        let there = self.look_at(files())?;
        let why = refused(ran);
        let left = |mut one: Dropped| {
            // What is not as it was is another's by now.
            one.files.retain(|file| file.is_in(&there));
            (!one.files.is_empty()).then(|| (one, why.clone()))
        };
        Ok(dropped.into_iter().filter_map(left).collect())
    }

    fn discard<'k>(&self, files: impl Iterator<Item = &'k Known>) -> Result<Ran> {
        let files: Vec<FarFile> = files.map(Known::listed).collect();
        self.far.discard("", &files)
    }

    /// Which of these are there now. What the removal itself said matters only if they are.
    fn look_at<'k>(&self, files: impl Iterator<Item = &'k Known>) -> Result<Files> {
        let names: Vec<String> = files.map(|file| file.name.clone()).collect();
        let there = if names.is_empty() { Vec::new() } else { self.far.list(&names)? };
        Ok(there.into_iter().map(|file| (file.name.clone(), file)).collect())
    }

    /// Has the history say that a dump was removed over there, or that it was not.
    fn mark(&self, one: &Dropped, gone: bool) -> Result<()> {
        let Some(outbox) = &self.outbox else { return Ok(()) };
        outbox
            .set_pruned(&one.dump, gone.then(|| self.session.clock()))
            .with_context(|| format!("cannot note in the history that {} goes", one.dump.id))
    }

    fn noted(&self) -> Result<Vec<Dropped>> {
        let top = make(&self.state)?;
        let path = self.state.join(FILE);
        let Some(text) = fsio::read_file(top.as_fd(), FILE, FILE_MAX)? else { return Ok(Vec::new()) };
        let drops: Drops = serde_json::from_slice(&text).with_context(|| {
            format!("cannot read {}, which names files of removed dumps; move it away to leave these", path.display())
        })?;
        Ok(drops.dumps)
    }

    /// Notes, flushed, what was decided.
    fn set_noted(&self, dumps: &[Dropped]) -> Result<()> {
        let top: File = make(&self.state)?;
        if dumps.is_empty() {
            fsio::unlink(top.as_fd(), FILE)?;
            return fsio::sync(top.as_fd());
        }
        let text = serde_json::to_vec(&Drops { v: 1, dumps: dumps.to_vec() }).context("cannot note what goes")?;
        fsio::write_whole(top.as_fd(), TEMP, FILE, &text)
    }
}

/// Why something is still there, as far as the run that should have removed it says.
fn refused(ran: Result<Ran>) -> String {
    match ran.and_then(|ran| ran.check()) {
        Ok(()) => "it has changed over there meanwhile".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}
