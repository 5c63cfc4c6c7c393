//! Removal over there, and finishing what a crash or a broken line has left of one.

use anyhow::{Context, Error, Result, anyhow, bail};
use bak_common::far::{FarFile, Ran};
use bak_common::fsio;
use bak_common::store::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;

use super::Visit;
use super::drop::{Dropped, Drops, Fate, Files, Known, below};
use bak_common::far::home::make;

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
        let mut done = Done::default();
        if let Err(error) = self.remove_all(entries, &mut done) {
            let undone = |outcome: &&Outcome| matches!(outcome, Outcome::NotDone);
            let left = entries.len() - done.outcomes.len() + done.outcomes.iter().filter(undone).count();
            let mut text = format!("{left} of {} dumps were not removed", entries.len());
            if done.littered > 0 {
                text += &format!(", of {} files are left", done.littered);
            }
            self.session.report.fail(self.shown, &error.context(text + "; the next run goes on"));
        }
        done.outcomes.resize_with(entries.len(), || Outcome::NotDone);
        done.outcomes
    }

    fn remove_all(&mut self, entries: &[&Entry], done: &mut Done) -> Result<()> {
        // Before anything is noted: of what nobody may remove nothing was decided.
        if !entries.is_empty() && !self.far.may_discard()? {
            bail!("over there nothing may be removed (`refuse options` of a daemon, or rrsync -no-del)");
        }
        for batch in entries.chunks(BATCH) {
            let removed = self.remove_batch(batch, done);
            self.note(&done.outcomes.len().to_string())?;
            removed?;
        }
        Ok(())
    }

    fn remove_batch(&mut self, entries: &[&Entry], done: &mut Done) -> Result<()> {
        // Each was listed with its sidecar.
        let going: Vec<Dropped> = entries.iter().filter_map(|entry| Dropped::of(entry, &self.files)).collect();
        let mut noted = self.noted()?;
        let before = noted.len();
        noted.extend(going.iter().cloned());
        self.set_noted(&noted)?;
        for one in &going {
            self.mark(one, true)?;
        }
        let ran = self.discard(going.iter().map(|one| &one.sidecar));
        let there = self.look_at(going.iter().map(|one| &one.sidecar))?;
        let sidecars = Ended::of(ran);
        let (still, gone): (Vec<Dropped>, Vec<Dropped>) =
            going.into_iter().partition(|one| there.contains_key(&one.sidecar.name));
        for one in &still {
            self.mark(one, false)?;
        }
        let (left, ended) = match sidecars.broken {
            Some(error) => (gone.into_iter().map(|one| (one, String::new())).collect(), Some(error)),
            None => {
                let (left, ended) = self.remove_files(gone)?;
                (left, ended.broken)
            }
        };
        noted.truncate(before);
        noted.extend(left.iter().map(|(one, _)| one.clone()));
        self.set_noted(&noted)?;
        let still: HashSet<&str> = still.iter().map(|one| one.sidecar.name.as_str()).collect();
        let left: HashMap<&str, &str> =
            left.iter().map(|(one, why)| (one.sidecar.name.as_str(), why.as_str())).collect();
        let outcome = |entry: &&Entry| {
            let sidecar = below(&entry.place, &entry.dump.stem.sidecar());
            match (&ended, still.contains(sidecar.as_str()), left.get(sidecar.as_str())) {
                (Some(_), true, _) => Outcome::NotDone,
                (None, true, _) => Outcome::Failed(anyhow!("{}", sidecars.why)),
                (None, false, Some(why)) => Outcome::Failed(anyhow!("its sidecar has gone, but not all files: {why}")),
                // Without its sidecar it is no dump any more, whatever is left of its files.
                _ => Outcome::Removed,
            }
        };
        done.outcomes.extend(entries.iter().map(outcome));
        match ended {
            Some(error) => {
                done.littered = left.len();
                Err(error)
            }
            None => Ok(()),
        }
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
            let (unfinished, ended) = self.remove_files(batch.to_vec())?;
            if let Some(error) = ended.broken {
                return Err(error.context("cannot finish what was begun there"));
            }
            left.extend(unfinished);
        }
        for (one, why) in &left {
            let text = format!("cannot finish its removal: {why}");
            self.session.report.fail(one.dump.id.as_str(), &anyhow!(text));
        }
        let left: Vec<Dropped> = left.into_iter().map(|(one, _)| one).collect();
        self.set_noted(&left)
    }

    /// Removes the files of dumps that have no sidecar any more. Those of which some are left, with why.
    fn remove_files(&self, dropped: Vec<Dropped>) -> Result<(Vec<(Dropped, String)>, Ended)> {
        let files = || dropped.iter().flat_map(|one| &one.files);
        if files().next().is_none() {
            return Ok(Default::default());
        }
        let ran = self.discard(files());
        let there = self.look_at(files())?;
        let ended = Ended::of(ran);
        let left = |mut one: Dropped| {
            // What is not as it was is another's by now.
            one.files.retain(|file| file.is_in(&there));
            (!one.files.is_empty()).then(|| (one, ended.why.clone()))
        };
        Ok((dropped.into_iter().filter_map(left).collect(), ended))
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
            .with_context(|| format!("cannot note here what goes, in {}", self.state.display()))
    }
}

/// What has been done so far.
#[derive(Default)]
struct Done {
    outcomes: Vec<Outcome>,
    /// Dumps of which files are left.
    littered: usize,
}

/// How a run that removes files ended.
#[derive(Default)]
struct Ended {
    /// Why what is still there is there.
    why: String,
    /// What ends all.
    broken: Option<Error>,
}

impl Ended {
    fn of(ran: Result<Ran>) -> Self {
        let down = ran.as_ref().map_or(true, |ran| ran.line_down() || ran.cut);
        match ran.and_then(|ran| ran.check()) {
            Ok(()) => Self { why: "it has changed over there meanwhile".to_owned(), broken: None },
            Err(error) => Self { why: format!("{error:#}"), broken: down.then_some(error) },
        }
    }
}
