//! Verdicts into sidecars over there.
//!
//! Nothing over there is overwritten, but for this: a sidecar is replaced by the same one with another verdict. rsync does
//! that by a temporary file and a rename, so a reader sees the one or the other; only a sidecar that is still there is
//! replaced, and it is read anew before and after. Our own bak-sync and bak-prune wait meanwhile, by the lock of the pass.
//!
//! A bad copy must count for nothing. Over there the sidecar says so, to every node and program that reads it. Here the
//! history no longer says that the dump was sent; its entry is kept in `.bak/gone/`.

use anyhow::{Context, Result, anyhow, bail};
use bak_common::far::{Bounds, home};
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::pass;
use bak_common::record::{Dump, Verify};
use bak_common::report::Kind;
use bak_common::store::Entry;
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use super::{Source, name_of};

impl Source<'_> {
    /// Writes these verdicts, all in one run. A single one that cannot be written is a failure of its own.
    pub fn mark(&mut self, verdicts: &[(Entry, Verify)]) -> Result<()> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let marked = self.mark_all(verdicts);
        let noted = self.note("mark", begun, if marked.is_ok() { "done" } else { "failed" });
        marked.context("cannot write verdicts over there").and(noted)
    }

    fn mark_all(&self, verdicts: &[(Entry, Verify)]) -> Result<()> {
        let lock = self.marking()?;
        let name = |entry: &Entry| name_of(entry, &entry.dump.stem.sidecar());
        let names: Vec<String> = verdicts.iter().map(|(entry, _)| name(entry)).collect();
        // As they are now: somebody may have annotated, or removed, one meanwhile.
        let there = self.far.read(&names)?;
        let mut changed: HashMap<String, Vec<u8>> = HashMap::new();
        for (entry, verify) in verdicts {
            let Some(text) = there.get(&name(entry)) else { continue };
            match with(text, entry, verify) {
                Ok(text) => _ = changed.insert(name(entry), text),
                Err(error) => self.session.report.fail(entry.dump.id.as_str(), &error.context("cannot be marked")),
            }
        }
        // Whether or not it can be written over there, and before that is marked, which keeps it from being looked at again
        // for a while: what is bad there does not count as sent here.
        for (entry, verify) in verdicts.iter().filter(|(_, verify)| verify.decision == "bad") {
            if let Err(error) = self.outbox.as_ref().map_or(Ok(()), |outbox| outbox.disown(&entry.dump)) {
                let text = anyhow!("is bad ({}), but still counts as sent: {error:#}", verify.why);
                self.session.report.fail(entry.dump.id.as_str(), &text);
            }
        }
        let dir = self.scratch.path().join("verdicts");
        let replaced = self.replace(&dir, &changed, &lock);
        let _ = fs::remove_dir_all(&dir);
        replaced
    }

    /// Keeps bak-sync and bak-prune of this machine away from the far side.
    fn marking(&self) -> Result<Lock> {
        if let Some(outbox) = &self.outbox {
            return pass::lock(self.session, outbox);
        }
        let top = home::make(&self.home)?;
        let lock = Lock::take(top.as_fd(), "lock", Hold::Exclusive, self.session.wait, &self.shown)?;
        lock.sign(&Holder::me())?;
        Ok(lock)
    }

    fn replace(&self, dir: &Path, texts: &HashMap<String, Vec<u8>>, lock: &Lock) -> Result<()> {
        if texts.is_empty() {
            return Ok(());
        }
        for (name, text) in texts {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(dir)).context("cannot make a temporary directory")?;
            fs::write(&path, text).context("cannot write a temporary file")?;
        }
        let names: Vec<String> = texts.keys().cloned().collect();
        let options = ["--existing", "--ignore-times", "--no-implied-dirs"];
        self.far.send(dir, "", &names, &options, Bounds::under(lock), &mut |_| Ok(()))?.check()?;
        let there = self.far.read(&names)?;
        match texts.iter().find(|(name, text)| there.get(*name).is_some_and(|read| read != *text)) {
            Some((name, _)) => bail!("{name} was written, but reads differently"),
            None => Ok(()),
        }
    }
}

/// A sidecar's text with another verdict.
fn with(text: &[u8], entry: &Entry, verify: &Verify) -> Result<Vec<u8>> {
    let mut dump = Dump::from_sidecar(&entry.dump.stem, text)?;
    if !dump.same(&entry.dump) {
        return Err(Kind::Refused.says("it has become another dump meanwhile"));
    }
    dump.verify = Some(verify.clone());
    Ok(dump.to_sidecar())
}
