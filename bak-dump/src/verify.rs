//! bak-verify: proves dumps, or finds the bad ones: sizes, SHA-256, and what the tools of each format can see.
//!
//! A verdict is only as good as what was looked at, so it says what that was. What could not be read or run proves nothing:
//! that is `unknown`, and a failure of its own. With `--mark` a verdict goes into the sidecar, and a bad dump is good for
//! nothing from then on, until a later run finds it good: it does not count, does not cover, is not sent.
//!
//! On a far side SHA-256 is made over there where ssh lets us, and only sums cross the line. Else dumps are fetched one by one, within
//! the limits, and go again.

mod far;
pub mod format;
pub(crate) mod judge;
pub mod ova;

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Common, Destination, Limits, Picks, Places, Session};
use bak_common::far::{LimitReached, Url};
use bak_common::jsonl::{Writer, read_all};
use bak_common::outbox::Outbox;
use bak_common::pass;
use bak_common::record::{Dump, GuestKey, Record, Skipped, Verify, to_line};
use bak_common::report::Kind;
use bak_common::select::Selector;
use bak_common::stop;
use bak_common::store::{Entry, Store};
use bak_common::table::table;
use bak_common::units::{Size, Span, show_size};
use clap::Parser;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::bar::{bar, step};
use crate::check::{Compared, compare};
use crate::driver::{Decision, Progress};
use crate::fetch::FetchArgs;
use crate::origin::{self, Origin};
use crate::place::Place;
use far::Sums;
use format::Found;
use judge::{Depth, judge};

/// Prove dumps
///
/// Each file's size and SHA-256 are compared with the dump's record; then the tools of its format look at it, as far as they
/// are installed: zstd, gzip, bzip2, lzop, tar, vma, qemu-img, and the manifest of an OVA. The records come out with
/// .verify: good, bad or unknown, why, and when. Dumps that were not verified for longest go first.
///
/// On a far side sha256sum is run where ssh lets us run it, and only sums cross the line. Else, or where a record has no SHA-256, dumps
/// are fetched one by one, within the limits of the destination: what these hold back is no failure, and goes on next time.
#[derive(Parser, Debug)]
#[command(name = "bak-verify", version, after_help = HELP)]
struct Cli {
    /// Dumps by id, or all those of guests by vm, name or pattern; - for dump records on standard input
    #[arg(value_name = "ID|VM|GLOB|-")]
    dumps: Vec<String>,
    /// Verify what lies here: a directory, a destination by name, [user@]host:path, or rsync://[user@]host/module [default: --store]
    #[arg(long, value_name = "STORE|DEST")]
    from: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "What to look at")]
struct How {
    /// Compare sizes only: proves nothing, but finds what is missing or cut off
    #[arg(long)]
    quick: bool,
    /// Compare sizes and SHA-256, and leave out what the tools of the format would see
    #[arg(long, conflicts_with = "quick")]
    hash_only: bool,
    /// Write good and bad into the sidecar, also where the dump waits in an outbox: a bad dump counts for nothing from then on
    #[arg(long)]
    mark: bool,
    /// Only the newest dump of each guest
    #[arg(long)]
    latest: bool,
    /// Leave out what was marked so lately
    #[arg(long, value_name = "DUR")]
    reverify_after: Option<Span>,
    /// Give each program that looks at a file so long at most [default: an hour, and a second for each MiB of the file]
    #[arg(long, value_name = "DUR")]
    timeout: Option<Span>,
    /// Begin no more dumps once so much was read
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<Size>,
}

const HELP: &str = "\
Examples:
  bak-verify --store /var/lib/vz/dump --latest --all
  bak-verify --all --mark --reverify-after 30d --max-bytes 200G -q     # a share of the store, nightly
  bak-list /mnt/box --guest 'db-*' --json | bak-verify --from /mnt/box -
  bak-verify --from backup@box:/srv/bak --all --mark --reverify-after 30d --max-bytes 200G -q
  bak-verify --from box --all --quick

Exit status:
  0  none is bad
  1  some are bad, or could not be read
  2  wrong usage, configuration or input
  3  a lock is held (--mark, or another one fetches)
  4  the far side is not the one that it should be";

/// A dump to be looked at.
struct Subject<'a> {
    entry: &'a Entry,
    /// What records on standard input said beyond what we know.
    more: Map<String, Value>,
}

pub fn main() -> Result<u8> {
    let cli = Cli::parse();
    let mut session = cli.common.session("bak-verify")?;
    session.config.vzdump_flags.timeout = cli.how.timeout;
    if cli.common.check_config {
        if let Some(place) = open(&cli, &session)? {
            origin::check_config(&session, &[place.listing()])?;
        }
        return Ok(session.report.finish(|n| format!("{n} failed")));
    }
    let session = session;
    let (selector, stdin) = cli.picks.explicit(&cli.dumps)?;
    let said = if stdin { read_all(&session.report, session.dry_run)? } else { Vec::new() };
    let Some(mut place) = open(&cli, &session)? else { return Ok(session.report.finish(|n| format!("{n} failed"))) };
    let listing = place.take_listing();
    listing.report_at(Path::new(&place.shown()), &session.report);
    let subjects = choose(&cli, &session, &listing.dumps, &selector, said)?;
    let mut verifier = Verifier { cli: &cli, session: &session, place, sums: Sums::default(), unmarked: Vec::new() };
    verifier.all(subjects)?;
    Ok(session.report.finish(|n| format!("{n} failed; see above")))
}

/// Opens the place that is meant; nothing if the limits have no room for a look.
fn open<'a>(cli: &Cli, session: &'a Session) -> Result<Option<Place<'a>>> {
    let mut origin = match &cli.from {
        Some(from) => origin::from(from, &cli.places, session)?,
        None => Origin::Dir(cli.places.store(&session.config)?),
    };
    if let Origin::Far(place) = &mut origin {
        cli.limits.apply(std::slice::from_mut(&mut place.dest))?;
        // Whoever waits for standard input just ends.
        stop::heed()?;
    }
    Place::open_within(session, origin, &cli.fetch)
}

/// The dumps asked for, each once, those that were not verified for longest first.
fn choose<'a>(
    cli: &Cli,
    session: &Session,
    dumps: &'a [Entry],
    selector: &Selector,
    said: Vec<Record>,
) -> Result<Vec<Subject<'a>>> {
    let mut more: HashMap<&str, Map<String, Value>> = HashMap::new();
    let mut chosen: Vec<&Entry> = Vec::new();
    if !selector.is_empty() {
        chosen.extend(dumps.iter().filter(|entry| selector.matches(&entry.dump)));
        for text in selector.unmatched() {
            session.report.fail(text, &anyhow!("no dump matches it"));
        }
    }
    for record in said {
        let Record::Dump(said) = record else {
            session.report.fail("standard input", &anyhow!("a record of a guest: bak-verify wants dumps"));
            continue;
        };
        let found: Vec<&Entry> = dumps.iter().filter(|entry| entry.dump.id == said.id).collect();
        if found.is_empty() {
            session.report.fail(said.id.as_str(), &anyhow!("there is no such dump in the store"));
        }
        for entry in found {
            more.entry(entry.dump.id.as_str()).or_default().extend(origin::unknown(entry, (*said).clone()));
            chosen.push(entry);
        }
    }
    let mut seen = HashSet::new();
    chosen.retain(|entry| seen.insert((&entry.place, entry.dump.stem.as_str())));
    if cli.how.latest {
        let mut newest: HashMap<GuestKey, &Entry> = HashMap::new();
        for entry in &chosen {
            // In the order of their start.
            newest.insert(entry.dump.key(), entry);
        }
        chosen.retain(|entry| newest.get(&entry.dump.key()).is_some_and(|last| std::ptr::eq(*last, *entry)));
    }
    if let Some(span) = cli.how.reverify_after {
        let since = session.now.plus(-i64::try_from(span.0).unwrap_or(i64::MAX));
        chosen.retain(|entry| entry.dump.verify.as_ref().is_none_or(|verify| verify.at <= since));
    }
    chosen.sort_by_key(|entry| (entry.dump.verify.as_ref().map(|verify| verify.at), entry.dump.started));
    let subject =
        |entry: &'a Entry| Subject { entry, more: more.get(entry.dump.id.as_str()).cloned().unwrap_or_default() };
    Ok(chosen.into_iter().map(subject).collect())
}

struct Verifier<'a> {
    cli: &'a Cli,
    session: &'a Session,
    place: Place<'a>,
    /// What was made over there.
    sums: Sums,
    /// Verdicts that are to be written over there.
    unmarked: Vec<(Entry, Verify)>,
}

/// What came of a dump.
enum Outcome {
    Verdict(Decision, String),
    /// It was not looked at, which is in order: why.
    Skipped(String),
}

impl Verifier<'_> {
    fn all(&mut self, mut subjects: Vec<Subject>) -> Result<()> {
        let (mut out, mut rows, mut read) = (Writer::stdout(), Vec::new(), 0_u64);
        // What is beyond that is not begun.
        let most = self.cli.how.max_bytes.map(|most| most.0);
        subjects.retain(|subject| {
            let begun = most.is_none_or(|most| read < most);
            // What is not as its record says is not read.
            if subject.entry.unfit.is_none() {
                read = read.saturating_add(subject.entry.dump.bytes);
            }
            begun
        });
        for at in 0..subjects.len() {
            let Some(mut dump) = self.one(&subjects[at..]) else { continue };
            dump.planned = self.session.dry_run;
            dump.extra.extend(subjects[at].more.clone());
            let record = Record::Dump(Box::new(dump));
            self.session.report.decided(&to_line(&record));
            let Record::Dump(dump) = &record else { continue };
            if self.session.table {
                let verify = dump.verify.as_ref().filter(|_| !self.session.dry_run && dump.skipped.is_none());
                let (verdict, why) = verify.map_or(("", ""), |verify| (verify.decision.as_str(), verify.why.as_str()));
                let (verdict, why) = dump.skipped.as_ref().map_or((verdict, why), |skipped| ("skipped", &skipped.why));
                rows.push([dump.id.as_str(), &show_size(dump.bytes), verdict, why].map(str::to_owned).to_vec());
            } else if !self.session.quiet {
                out.record(&record)?;
            }
            let more = subjects.len() - at - 1;
            if matches!(&self.place, Place::There(source) if source.is_lost()) && more > 0 {
                let text = format!("{more} more {} not looked at", if more == 1 { "dump was" } else { "dumps were" });
                self.session.report.warn(&self.place.shown(), &text);
            }
            if stop::caught().is_some() || matches!(&self.place, Place::There(source) if source.is_lost()) {
                break;
            }
        }
        self.mark_there();
        if self.session.table && !self.session.quiet && !rows.is_empty() {
            out.line(&table(&["dump", "size", "verdict", "why"], &[1], rows))?;
        }
        Ok(())
    }

    /// The first of these dumps with its verdict; nothing if it was removed meanwhile. The others come next.
    fn one(&mut self, subjects: &[Subject]) -> Option<Dump> {
        let entry = subjects[0].entry;
        let mut dump = entry.dump.clone();
        if self.session.dry_run {
            return Some(dump);
        }
        let outcome = match &self.place {
            Place::Here { store, .. } => self.judge(store, entry),
            Place::There(_) => self.judge_far(subjects),
        };
        let (decision, why) = match outcome {
            Ok(Outcome::Verdict(decision, why)) => (decision, why),
            Ok(Outcome::Skipped(why)) => {
                dump.skipped = Some(Skipped { why });
                return Some(dump);
            }
            Err(error) if error.is::<stop::Stopped>() => return None,
            Err(error) if error.is::<LimitReached>() => {
                dump.skipped = Some(Skipped { why: format!("{error:#}") });
                return Some(dump);
            }
            // Somebody pruned it: nothing is wrong with that.
            Err(_) if self.is_gone(entry) => return None,
            Err(error) => {
                self.session.report.fail(dump.id.as_str(), &anyhow!("cannot be verified: {error:#}"));
                (Decision::Unknown, format!("{error:#}"))
            }
        };
        if decision == Decision::Bad {
            if self.is_gone(entry) {
                return None;
            }
            self.session.report.fail(dump.id.as_str(), &anyhow!("is bad: {why}"));
        }
        let verify = Verify { decision: decision.as_str().into(), why, at: self.session.clock() };
        if self.cli.how.mark && decision != Decision::Unknown {
            match &self.place {
                Place::Here { store, .. } => {
                    if let Err(error) = self.mark(store, entry, &verify) {
                        self.session.report.fail(dump.id.as_str(), &error.context("cannot be marked"));
                    }
                }
                Place::There(_) => self.unmarked.push((entry.clone(), verify.clone())),
            }
        }
        dump.verify = Some(verify);
        Some(dump)
    }

    fn is_gone(&mut self, entry: &Entry) -> bool {
        match &mut self.place {
            Place::Here { store, .. } => matches!(store.look(&entry.place, &entry.dump.stem), Ok(None)),
            Place::There(source) => source.is_gone(entry),
        }
    }

    fn depth(&self) -> Depth {
        match (self.cli.how.quick, self.cli.how.hash_only) {
            (true, _) => Depth::Sizes,
            (_, true) => Depth::Hashes,
            _ => Depth::All,
        }
    }

    fn judge(&self, store: &Store, entry: &Entry) -> Result<Outcome> {
        // An older verdict is what is asked about.
        if let Some(why) = &entry.unfit {
            return Ok(Outcome::Verdict(Decision::Bad, why.clone()));
        }
        let depth = self.depth();
        let bar = bar(self.session, &entry.dump);
        let compared = compare(store, entry, depth != Depth::Sizes, &step(&bar, "hashing"))?;
        let formats = self.formats(store, entry, &compared, &step(&bar, "checking"))?;
        bar.finish_and_clear();
        let (decision, why) = judge(depth, &compared, &formats);
        Ok(Outcome::Verdict(decision, why))
    }

    /// What the tools of its formats, and its driver, find of a dump that was compared.
    fn formats(
        &self,
        store: &Store,
        entry: &Entry,
        compared: &Compared,
        checking: &dyn Fn(Progress) -> Result<()>,
    ) -> Result<Vec<(String, Found)>> {
        if self.depth() != Depth::All || matches!(compared, Compared::Differs(_)) {
            return Ok(Vec::new());
        }
        let names: Vec<String> = entry.dump.files.iter().map(|file| file.name.clone()).collect();
        format::check_all(&self.session.config, store, entry, &names, checking)
    }

    /// Has what is bad not be sent, nor count as sent, and writes the verdict into the sidecar last: as long as that lacks
    /// it, `--reverify-after` does not leave the dump out.
    fn mark(&self, store: &Store, entry: &Entry, verify: &Verify) -> Result<()> {
        let places = &self.cli.places;
        if !(places.dest.is_empty() && places.outbox.is_none() && self.session.config.dest.is_empty()) {
            self.mark_elsewhere(store, entry, verify)?;
        }
        self.mark_in(store, entry, Some(verify))
    }

    /// In the outboxes where the same files wait; and in the histories of destinations that are this very directory.
    fn mark_elsewhere(&self, store: &Store, entry: &Entry, verify: &Verify) -> Result<()> {
        let bad = verify.decision == "bad";
        for dest in self.cli.places.destinations(&self.session.config, &[])? {
            if !dest.outbox.exists() {
                continue;
            }
            let outbox = Outbox::open(&dest.outbox, &dest.name, None)?;
            if bad && is_at(&dest, store) {
                let _lock = pass::lock(self.session, &outbox)?;
                outbox.disown(&entry.dump).context("still counts as sent")?;
            }
            let place = Outbox::place(&entry.dump.vm);
            if let Some(waiting) = outbox.store.look(&place, &entry.dump.stem)?
                && waiting.inodes == entry.inodes
            {
                // A good one is of the files here, and would be read over there as if it were of those there.
                self.mark_in(&outbox.store, &waiting, Some(verify).filter(|_| bad))?;
            }
        }
        Ok(())
    }

    fn mark_in(&self, store: &Store, entry: &Entry, verify: Option<&Verify>) -> Result<()> {
        let locked = store.lock(self.session.wait, &self.session.report)?;
        // As it is now: somebody may have annotated it meanwhile.
        let Some(now) = store.look(&entry.place, &entry.dump.stem)? else { return Ok(()) };
        if !now.dump.same(&entry.dump) {
            return Err(Kind::Refused.says("it has become another dump meanwhile"));
        }
        let mut marked = now.dump.clone();
        marked.verify = verify.cloned();
        if marked.verify == now.dump.verify {
            return Ok(());
        }
        locked.annotate(&now, &marked)
    }
}

/// Whether a destination is a path on this machine, and the directory of this store.
fn is_at(dest: &Destination, store: &Store) -> bool {
    let url = dest.url.as_deref().and_then(|url| Url::parse(url).ok());
    matches!(url, Some(Url::Path(path)) if path.canonicalize().is_ok_and(|path| path == store.path()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
