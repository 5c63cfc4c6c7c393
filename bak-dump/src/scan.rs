//! bak-scan: takes in finished dumps that others made, where they lie.
//!
//! The hazards: an archive that looks finished and is not, and one that its owner, Proxmox, removes at any moment. So each is
//! believed only on a proof, which its record names; its files never move; and what vanished between looking and adopting is
//! no failure. It goes: walk and sort names (`sort`, pure), look at files and logs, judge (`judge`, pure), adopt.

mod asked;
pub mod ending;
pub mod header;
mod judge;
pub mod log;
mod look;
pub mod name;
mod names;
mod show;
mod sort;
mod sums;

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Common, Picks, Places, Session};
use bak_common::name::DumpId;
use bak_common::record::Dump;
use bak_common::report::Kind;
use bak_common::select::Selector;
use bak_common::store::{Adopted, Adoption, Found, Store};
use bak_common::units::Span;
use clap::Parser;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::origin;
use crate::writers::writers;
use asked::Asked;
use judge::Terms;
use look::{Left, Prospect, join};
use name::Pattern;
use show::Output;

/// Adopt finished dumps that others made
///
/// Archives of Proxmox in the store, made by its own jobs, become dumps: each gets a record beside it, on proof that it is whole,
/// and stays where it is and what it is. In-progress, failed, renamed and foreign files are left alone; --explain says why. What
/// was adopted is printed, as bak-dump prints what it made.
#[derive(Parser, Debug)]
#[command(name = "bak-scan", version, max_term_width = 100, after_help = HELP)]
struct Cli {
    /// Only guests with this vm or name (name or pattern) [default: all]
    #[arg(value_name = "GUEST|GLOB")]
    guests: Vec<String>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    picks: Picks,
    /// The store of dumps
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    store: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "What to adopt, and how")]
struct How {
    /// Read all of each file now, for the SHA-256 in its record; also of dumps that were adopted without
    #[arg(long)]
    hash: bool,
    /// Also files that are called so, though no log proves them whole; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pattern: Vec<Pattern>,
    /// How long files that no log proves whole must have been left alone
    #[arg(long, value_name = "DUR", default_value = "10m")]
    settled: Span,
    /// What kind of guest those files are of, where their names do not say it: qemu, lxc, …
    #[arg(long, value_name = "KIND")]
    as_kind: Option<String>,
}

const HELP: &str = "\
Examples:
  bak-scan --store /var/lib/vz/dump
  bak-scan --store /var/lib/vz/dump -n --explain        what would be adopted, and why the rest not
  bak-scan | bak-link - | bak-sync -
  bak-scan --hash 100@20261120T010002Z                  SHA-256 for a dump that was adopted without
  bak-scan --store /srv/dumps --pattern '{vm}-{started}*.vma.lzo' --hash

An archive of Proxmox (vzdump-qemu-100-2026_11_20-02_00_02.vma.zst, all that it can be packed with)
is adopted when the last line of its .log says that the backup finished. Its .notes and .protected
are heeded and stay as they are.

A --pattern is a name with {vm} and {started} in it, and * and ? as in a shell. {started} is a date
and perhaps a time, from the year down: 20261120, 2026-11-20_0200, 2026_11_20-02_00_02,
20261120T010002Z (UTC; else local time). {started:%d.%m.%Y} reads other dates, as date(1) writes
them. Files of one name up to the first dot behind both are one dump. They are taken on trust: not
empty, left alone for --settled, open for writing by nobody (only root can see that of all), and
ending as lzop, bzip2, xz and tar end their files. Which proof there was is in .adopted.proof.

Exit status:
  0  done, also where there was nothing to adopt
  1  finished, but something could not be read or adopted, or a name matched nothing
  2  wrong usage or configuration
  3  a lock is held";

/// So many are adopted under one lock, and about so many bytes hashed before.
const BATCH: usize = 10_000;
const BATCH_BYTES: u64 = 1 << 30;

/// What a run would do.
#[derive(Debug, Default)]
struct Plan {
    adopt: Vec<Prospect>,
    left: Vec<Left>,
}

pub fn main() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-scan")?;
    let places = Places { store: cli.store.clone(), ..Places::default() };
    let store = Store::open(&places.store(&session.config)?)?;
    if cli.common.check_config {
        origin::check_config(&session, &[&store.list()])?;
        return Ok(finish(&session));
    }
    let (selector, stdin) = cli.picks.selector(&cli.guests)?;
    if stdin {
        return Err(Kind::Usage.says("`-` is not for bak-scan: it looks at the store, and reads no records"));
    }
    let plan = plan(&cli, &session, &store, &selector)?;
    let mut output = Output::new(&session, &store);
    output.left(plan.left);
    if apply(&cli, &session, &store, plan.adopt, &mut output)? && cli.how.hash {
        sums::add(&session, &store, &selector, &mut output)?;
    }
    output.end()?;
    Ok(finish(&session))
}

fn finish(session: &Session) -> u8 {
    session.report.finish(|failed| format!("{failed} failed; see above"))
}

/// Looks at everything and decides.
fn plan(cli: &Cli, session: &Session, store: &Store, selector: &Selector) -> Result<Plan> {
    let seen = look::walk(store, &cli.how.pattern)?;
    for (place, error) in &seen.failed {
        session.report.fail(&store.path().join(place).display().to_string(), error);
    }
    let terms = Terms {
        now: session.now,
        zone: session.zone,
        settled_s: i64::try_from(cli.how.settled.0).unwrap_or(i64::MAX),
        prefix: session.config.prefix.as_deref().unwrap_or_default(),
        node: session.config.node.as_deref(),
        as_kind: cli.how.as_kind.as_deref(),
    };
    let (again, _) = cli.picks.selector(&cli.guests)?;
    let asked = Asked { store, selector: again, patterns: &cli.how.pattern, terms: &terms };
    let mut plan = Plan { adopt: Vec::new(), left: seen.left };
    plan.left.retain(|left| asked.wants(left));
    for left in seen.barred.into_iter().filter(|left| asked.wants(left)) {
        // Nobody looks for the reason of what seems to be well.
        if session.explain {
            plan.left.push(left);
        } else {
            let path = store.path().join(join(&left.place, &left.file));
            session.report.warn(&path.display().to_string(), &format!("is left alone: {}", left.why));
        }
    }
    for examined in look::examine(store, seen.candidates, &terms) {
        match examined {
            Ok(Ok(prospect)) if selector.matches(&prospect.dump) => plan.adopt.push(prospect),
            Ok(Ok(_)) => {}
            Ok(Err(left)) if asked.wants(&left) => plan.left.push(left),
            Ok(Err(_)) => {}
            Err(error) => session.report.fail("", &error),
        }
    }
    leave_open(&mut plan);
    leave_twins(store, &seen.known, &mut plan);
    for prospect in &mut plan.adopt {
        let note = judge::note(&prospect.candidate, &prospect.proof, session.now);
        prospect.dump.extra.insert("adopted".into(), note);
    }
    unmatched(session, store, selector);
    Ok(plan)
}

impl Plan {
    /// Leaves what `why` says something against.
    fn leave(&mut self, mut why: impl FnMut(&mut Prospect) -> Option<String>) {
        let (mut adopt, mut left) = (Vec::new(), Vec::new());
        for mut prospect in std::mem::take(&mut self.adopt) {
            match why(&mut prospect) {
                Some(why) => left.push(leave(&prospect, why)),
                None => adopt.push(prospect),
            }
        }
        self.adopt = adopt;
        self.left.extend(left);
    }
}

fn leave(prospect: &Prospect, why: String) -> Left {
    Left { place: prospect.candidate.place.clone(), file: prospect.candidate.files.join(", "), why }
}

/// Leaves what somebody may still be writing.
fn leave_open(plan: &mut Plan) {
    let doubtful = plan.adopt.iter().filter(|prospect| prospect.doubtful);
    let wanted: HashSet<_> = doubtful.flat_map(|prospect| prospect.inodes.iter().copied()).collect();
    if wanted.is_empty() {
        return;
    }
    let open = writers(&wanted);
    // Others' files are seen by root alone.
    let sees_all = rustix::process::geteuid().is_root();
    plan.leave(|prospect| {
        if prospect.doubtful && sees_all {
            prospect.proof.push("closed");
        }
        prospect.inodes.iter().any(|inode| open.contains(inode)).then(|| "somebody has it open for writing".into())
    });
}

/// Leaves what would have the id of another dump of this store.
fn leave_twins(store: &Store, known: &HashMap<String, String>, plan: &mut Plan) {
    let mut ids: HashMap<DumpId, String> = HashMap::new();
    // Nothing is read for what cannot be: most runs find nothing new, and the first finds nothing old.
    if !plan.adopt.is_empty() && !known.is_empty() {
        store.visit(&mut |seen| {
            if let Ok(entry) = seen {
                let path = join(&entry.place, entry.dump.stem.as_str());
                ids.insert(entry.dump.id, path);
            }
        });
    }
    plan.leave(|prospect| {
        let Prospect { candidate, dump, .. } = prospect;
        let path = join(&candidate.place, candidate.stem.as_str());
        if let Some(place) = known.get(candidate.stem.as_str()) {
            return Some(format!("{} is a dump already", join(place, candidate.stem.as_str())));
        }
        match ids.get(&dump.id) {
            Some(other) => Some(format!("{other} has the same id, {}", dump.id)),
            None => {
                ids.insert(dump.id.clone(), path);
                None
            }
        }
    });
}

/// Names that nothing matched, neither here nor among the dumps that were there before.
fn unmatched(session: &Session, store: &Store, selector: &Selector) {
    if selector.unmatched().is_empty() {
        return;
    }
    store.visit(&mut |seen| {
        if let Ok(entry) = seen {
            selector.matches(&entry.dump);
        }
    });
    for name in selector.unmatched() {
        session
            .report
            .fail(name, &anyhow!("nothing to adopt matches it, and no dump (--explain shows what is left alone)"));
    }
}

/// Whether it was not stopped.
fn apply(cli: &Cli, session: &Session, store: &Store, adopt: Vec<Prospect>, output: &mut Output) -> Result<bool> {
    if session.dry_run {
        let mut adopt = adopt.into_iter();
        adopt.try_for_each(|prospect| output.adopted(prospect.candidate.place, prospect.dump))?;
        return Ok(true);
    }
    let mut batch: Vec<Prospect> = Vec::new();
    let mut bytes = 0_u64;
    let mut rest = adopt.into_iter();
    while let Some(mut prospect) = rest.next() {
        if cli.how.hash {
            match sums::hashed(session, store, &mut prospect) {
                Ok(true) => bytes = bytes.saturating_add(prospect.dump.bytes),
                Ok(false) => {
                    output.left(vec![leave(&prospect, "was removed meanwhile".into())]);
                    continue;
                }
                Err(error) => {
                    session.report.fail(prospect.dump.id.as_str(), &error.context("cannot be hashed"));
                    continue;
                }
            }
        }
        batch.push(prospect);
        if batch.len() >= BATCH || bytes >= BATCH_BYTES {
            let whole = adopt_batch(session, store, std::mem::take(&mut batch), rest.len(), output)?;
            if !whole {
                return Ok(false);
            }
            bytes = 0;
        }
    }
    adopt_batch(session, store, batch, 0, output)
}

/// Adopts some, with so many still to come. Whether to go on: what stops it is said once for all that are left.
fn adopt_batch(
    session: &Session,
    store: &Store,
    batch: Vec<Prospect>,
    to_come: usize,
    output: &mut Output,
) -> Result<bool> {
    if batch.is_empty() {
        return Ok(true);
    }
    let ready = look::in_parts(batch, |some| {
        let one = |Prospect { candidate, dump, marks, .. }: Prospect| {
            let path = || join(&candidate.place, candidate.stem.as_str());
            Found::new(dump, &candidate.place, marks).with_context(path)
        };
        some.into_iter().map(one).collect()
    });
    let mut found = Vec::new();
    for one in ready {
        match one {
            Ok(one) => found.push(one),
            Err(error) => session.report.fail("", &error),
        }
    }
    let Adoption { results, stopped } = store.lock(session.wait, &session.report)?.adopt(&found);
    let mut undecided = to_come;
    for (one, result) in found.into_iter().zip(results) {
        let (place, dump): (String, Dump) = one.into_parts();
        match result {
            Ok(Adopted::Yes) => output.adopted(place, dump)?,
            Ok(Adopted::Left(why)) => {
                let file = dump.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
                output.left(vec![Left { place, file, why }]);
            }
            Ok(Adopted::Undecided) => undecided += 1,
            Err(error) => session.report.fail(dump.id.as_str(), &error.context("cannot be adopted")),
        }
    }
    let Some(error) = stopped else { return Ok(true) };
    let archives = if undecided == 1 { "archive" } else { "archives" };
    let error = error.context(format!("{undecided} {archives} could not be adopted"));
    session.report.fail(&store.path().display().to_string(), &error);
    Ok(false)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
