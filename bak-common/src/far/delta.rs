//! Deltas that are made here: where a copy of what lies over there is at hand here, too, what must change is reckoned here,
//! sent like any other file, in slices or not, and applied over there by the rsync of that host. No checksums have to come
//! back, so what crosses is what has changed and hardly more.
//!
//! rsync's batch files are the means; over there it takes a POSIX shell beside rsync ([`super::shell`]). What is applied gets its name
//! only when rsync has proved the whole of it by its checksum, and it says nothing where it could not: so its size is looked at.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::run::SILENCE_S;
use super::{Bounds, Far};
use crate::command::{Event, Finished, Program};

/// The protocols of rsync that batches are made for: 30 came with rsync 3.0, 31 with 3.1. Later ones gain nothing here.
const PROTOCOLS: (u32, u32) = (30, 31);

/// What the name of a file over there becomes where its delta arrives.
pub const DELTA: &str = ".delta";

/// Links the old file to the new one's name in a directory of ours, and takes the link up again: whether that can be done.
/// Read: where, our directory as seen from there, the old name, the new name, the old one's size.
const TRY: &str = r#"unset CDPATH; umask 077; IFS= read -r dir && IFS= read -r basis && IFS= read -r old && IFS= read -r new && read -r size && cd -- "$dir" && mkdir -p -- "$basis" && ln -f -- "./$old" "$basis/$new" && test "$(wc -c <"$basis/$new")" -eq "$size"; ok=$?; rm -f -- "$basis/$new"; rmdir -- "$basis" 2>/dev/null; exit $ok"#;

/// Links it again and applies a delta. Read, too: the directory of the delta, its size, the new one's, the seconds of silence to
/// bear, and an option for rsync or nothing. The delta is gone if all went well, the link in any case.
const APPLY: &str = r#"unset CDPATH; umask 077; IFS= read -r dir && IFS= read -r basis && IFS= read -r old && IFS= read -r new && IFS= read -r part && read -r size && read -r whole && read -r silence && read -r option; cd -- "$dir" && mkdir -p -- "$basis" && ln -f -- "./$old" "$basis/$new" && test "$(wc -c <"./$part/$new.delta")" -eq "$size" && rsync --read-batch="./$part/$new.delta" -t -S --timeout="$silence" $option --compare-dest="$basis" ./ </dev/null && test "$(wc -c <"./$new")" -eq "$whole" && rm -f -- "./$part/$new.delta"; ok=$?; rm -f -- "$basis/$new"; rmdir -- "$basis" "./$part" 2>/dev/null; exit $ok"#;

/// A delta on its way: from which file over there to which, both in the directory `place`.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    pub place: &'a str,
    /// The directory in `place` for what is not whole yet.
    pub partial: &'a str,
    /// Our own directory, beside those of the guests.
    pub basis: &'a str,
    pub old: &'a str,
    pub old_bytes: u64,
    pub new: &'a str,
    pub new_bytes: u64,
}

impl Delta<'_> {
    /// What the delta itself is called, below `partial`.
    pub fn name(&self) -> String {
        format!("{}{DELTA}", self.new)
    }

    /// Our directory for this place, as seen from there.
    fn beside(&self) -> String {
        format!("../{}/{}", self.basis, self.place)
    }
}

/// How what was asked for over there ended.
#[derive(Debug)]
pub enum Asked {
    Done,
    /// It can't be done there: why.
    Refused(String),
    LineDown(String),
}

impl Asked {
    fn of(ran: Option<Finished>) -> Self {
        match ran {
            Some(ran) if ran.status.success() => Asked::Done,
            Some(ran) if ran.status.code() == Some(255) => Asked::LineDown(ran.last_words()),
            Some(ran) => Asked::Refused(ran.last_words()),
            None => Asked::Refused("a name can't be said to a shell there".into()),
        }
    }
}

impl Far {
    /// Whether deltas that are made here can be applied over there: commands may be run, as far as is known.
    pub fn applies_deltas(&self) -> bool {
        self.runs_commands() && self.protocol.is_some_and(|protocol| protocol >= PROTOCOLS.0)
    }

    /// Makes the file `to` here, the delta that turns `old/NAME`, the same as what lies over there, into `new`, whose name
    /// NAME is. Its bytes; `None` if it would be larger than `most`. The same files give the same delta, whenever it is made.
    pub fn make_delta(&self, old: &Path, new: &Path, block: u64, to: &Path, most: u64) -> Result<Option<u64>> {
        let protocol = self.protocol.unwrap_or(PROTOCOLS.0).clamp(PROTOCOLS.0, PROTOCOLS.1);
        let empty = to.with_extension("none");
        fs::create_dir(&empty).context("cannot make a temporary directory")?;
        let mut compare = std::ffi::OsString::from("--compare-dest=");
        compare.push(old);
        let mut batch = std::ffi::OsString::from("--only-write-batch=");
        batch.push(to);
        let program = Program::new("rsync")?
            .args(["-t", "-z", "--zl=1", "--no-whole-file", "--ignore-times", "--checksum-seed=1"])
            .arg(format!("--block-size={block}"))
            .arg(format!("--protocol={protocol}"))
            .args([compare, batch, "--".into(), new.as_os_str().to_owned()])
            .arg(super::with_slash(empty))
            .ticking(Duration::from_millis(50))
            .own_group();
        let bounds = Bounds { long: true, ..Bounds::default() };
        let size = || fs::metadata(to).map_or(0, |meta| meta.len());
        let mut large = false;
        let finished = program.run_with(|event| {
            if let Event::Tick = event {
                self.check(&bounds)?;
                large = size() > most;
                ensure!(!large, "too large");
            }
            Ok(())
        });
        if large || size() > most {
            return Ok(None);
        }
        finished?.check().context("cannot make a delta")?;
        Ok(Some(size()))
    }

    /// Whether a delta could be applied, before any of it is sent. Sends about 1 KB.
    pub fn try_delta(&self, delta: &Delta) -> Result<Asked> {
        let lines = [&delta.beside(), delta.old, delta.new, &delta.old_bytes.to_string()].map(str::to_owned);
        self.ask(TRY, delta.place, &lines, 0)
    }

    /// Applies the delta, all of whose `bytes` are over there, and removes it there: then the new file is there, whole. Sends
    /// about 1 KB.
    pub fn apply_delta(&self, delta: &Delta, bytes: u64) -> Result<Asked> {
        let work = delta.old_bytes.saturating_add(delta.new_bytes);
        let silence = SILENCE_S + work / 10_000_000;
        let fsync = if self.fsync.load(std::sync::atomic::Ordering::Relaxed) { "--fsync" } else { "" };
        let numbers = [bytes, delta.new_bytes, silence].map(|number| number.to_string());
        let [bytes, whole, silence] = numbers;
        let names = [&delta.beside(), delta.old, delta.new, delta.partial].map(str::to_owned);
        let lines = [&names[..], &[bytes, whole, silence, fsync.to_owned()]].concat();
        self.ask(APPLY, delta.place, &lines, work)
    }

    /// Runs one of our scripts, which reads the directory and `lines`. `silent` are the bytes that it reads or writes meanwhile.
    fn ask(&self, script: &str, place: &str, lines: &[String], silent: u64) -> Result<Asked> {
        let lines = [&[self.dir_there(place)], lines].concat();
        let timeout = Duration::from_secs(2 * SILENCE_S + silent / 5_000_000);
        let bounds = Bounds { long: true, ..Bounds::default() };
        Ok(Asked::of(self.over_there(script, &lines, Some(timeout), &bounds)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_one_quoted_word_for_any_shell() {
        for script in [TRY, APPLY] {
            assert!(super::super::shell::is_one_word(script), "{script}");
        }
        assert!(APPLY.contains(&format!("$new{DELTA}\"")));
    }
}
