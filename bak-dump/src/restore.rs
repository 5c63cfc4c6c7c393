//! bak-restore: brings dumps back, from the store or from an off-site copy.
//!
//! In this order, for each dump: plan (which looks at everything that could refuse it), fetch its files if they are not here,
//! check every file against its SHA-256, plan again what only they could tell, and only then let the driver write. No lock
//! is taken on a store: dumps are immutable, and one that is removed meanwhile fails its check.

use anyhow::{Result, anyhow, bail};
use bak_common::args::{Common, Places, Session};
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::GuestName;
use bak_common::record::{Dump, Record, to_line};
use bak_common::report::{Kind, status};
use bak_common::stop;
use bak_common::store::{Entry, Listing, Unreadable};
use bak_common::table::table;
use bak_common::units::show_size;
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

use crate::bar::{bar, step};
use crate::driver::{Hopeless, image};
use crate::fetch::{Budget, FetchArgs};
use crate::origin;
use crate::pick::{self, Picked};
use crate::place::Place;
use sources::Sources;
use trial::DrillArgs;
use work::Work;

mod sources;
mod trial;
mod work;

/// Bring dumps back
///
/// Every file is checked against its SHA-256 before anything is written. Images are written under a hidden name beside
/// their target, and moved there when they are whole; a file that is there already is refused unless --force is given,
/// and one that a running machine uses is always refused.
///
/// Without --to each image goes back to where it came from, in the format that its source had. With --to it stays in the
/// format of the dump, unless --format is given or the file named ends in .raw or .qcow2.
///
/// Guests of Proxmox and VirtualBox are brought back by these; with -n the commands are printed.
///
/// What is not in the store is fetched from the first destination that has it, or from where --from says: over ssh or from
/// a daemon, so that a broken line costs nothing but the time. That is never refused by a limit, but counted in the ledger.
#[derive(Parser, Debug)]
#[command(name = "bak-restore", version, after_help = HELP)]
struct Cli {
    /// A dump's id; a guest's vm or name for its newest good dump (also VM@latest); VM@TIME for the newest begun at or
    /// before TIME (2026-11-20T01:00:00Z); - for dump records on standard input
    #[arg(value_name = "ID|VM[@latest|@TIME]")]
    dumps: Vec<String>,
    /// Take dumps from here only: a directory, a destination by name, [user@]host:path, or rsync://[user@]host/module [default:
    /// --store, then the destinations in their order]
    #[arg(long, value_name = "STORE|DEST")]
    from: Option<PathBuf>,
    /// Call the guest so
    #[arg(long = "as", value_name = "NEWVM", value_parser = |text: &str| GuestName::new(text))]
    new_name: Option<GuestName>,
    /// Write here: an existing directory, or a file for a dump of one disk; for guests of Proxmox a storage, by its name;
    /// for those of VirtualBox the directory in which they get their own [default: where it came from]
    #[arg(long, value_name = "PATH|STORAGE")]
    to: Option<PathBuf>,
    /// Write this format
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    drill: DrillArgs,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

const HELP: &str = "\
Examples:
  bak-restore web@latest --store /var/lib/vz/dump --to /var/tmp
  bak-restore web@2026-11-20T01:00:00Z --from /mnt/box --to web.raw --format raw -n
  bak-restore web --from backup@box:/srv/bak --as web-2 --to /var/tmp --bwlimit 20Mbit
  bak-list /mnt/box --latest --json | bak-restore --from /mnt/box --to /srv/images -
  bak-restore --drill --from box --max-bytes 20G     # weekly: does what lies there come back?

Exit status:
  0  done
  1  some dumps could not be brought back, or a drill failed: unknown, not good, damaged, no space, the line broke
  2  wrong usage, configuration or input, or a name that several guests have had
  3  another bak-restore writes the same file, fetches from the same place, or drills
  4  a file is there already, or is in use; or the far side is not the one that it should be";

/// One dump to be brought back.
struct Wanted {
    /// Which of the sources has it.
    at: usize,
    entry: Entry,
    /// What records on standard input said beyond what we know.
    more: Map<String, Value>,
}

pub fn main() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-restore")?;
    if cli.drill.drill {
        return trial::drill_some(&cli, &session);
    }
    if !cli.drill.limits.limit.is_empty() {
        return Err(Kind::Usage.says("--limit is for --drill: no limit refuses to bring a dump back"));
    }
    let mut sources = Sources::new(&session, cli.from.as_deref(), &cli.places, &cli.fetch, Budget::Counted)?;
    if cli.common.check_config {
        origin::check_config(&session, &[sources.first()?.listing()])?;
    } else {
        let said = said(&cli, &session)?;
        if sources.may_be_far() {
            stop::heed()?;
        }
        sources.must_be_reached()?;
        let wanted = wanted(&cli, &session, &mut sources, said)?;
        restore_all(&cli, &session, &mut sources, wanted)?;
    }
    Ok(session.report.finish(|n| format!("{n} failed; see above")))
}

/// The dumps that records on standard input name, if it is to be read.
fn said(cli: &Cli, session: &Session) -> Result<Vec<Dump>> {
    if cli.dumps.is_empty() {
        return Err(Kind::Usage.says("say which: dump ids, guests, or - for records on standard input (see --help)"));
    }
    let mut dumps = Vec::new();
    if cli.dumps.iter().any(|text| text == "-") {
        for record in read_all(&session.report, session.dry_run)? {
            match record {
                Record::Dump(said) => dumps.push(*said),
                Record::Guest(_) => {
                    let why = anyhow!("a record of a guest: bak-restore wants dumps");
                    session.report.fail("standard input", &why);
                }
            }
        }
    }
    Ok(dumps)
}

/// Finds all that was asked for, each once. What is not there is reported; what is ambiguous ends the run before
/// anything is done.
fn wanted(cli: &Cli, session: &Session, sources: &mut Sources, said: Vec<Dump>) -> Result<Vec<Wanted>> {
    let mut found: Vec<Wanted> = Vec::new();
    let mut add = |at: usize, entry: Entry, more: Map<String, Value>| {
        match found.iter_mut().find(|w| w.entry.dump.id == entry.dump.id) {
            Some(known) => more.into_iter().for_each(|(key, value)| _ = known.more.entry(key).or_insert(value)),
            None => found.push(Wanted { at, entry, more }),
        };
    };
    let mut doubtful = HashSet::new();
    for text in cli.dumps.iter().filter(|text| *text != "-") {
        let picked = |listing: &Listing| {
            let Picked { entry, newest, passed } = pick::pick(listing, text)?;
            Ok((entry.clone(), newest, passed.cloned()))
        };
        match sources.find(text, picked) {
            Ok((at, (entry, newest, passed))) => {
                if let Some(bad) = passed {
                    let (id, why) = (&bad.dump.id, bad.fault.as_deref().unwrap_or_default());
                    let elsewhere =
                        if sources.are_many() { " (by its id it is looked for elsewhere, too)" } else { "" };
                    let warning = format!("{id} is newer and not good ({why}): {} is taken{elsewhere}", entry.dump.id);
                    session.report.warn(text, &warning);
                }
                if newest {
                    doubtful.insert((at, entry.dump.vm.clone()));
                }
                add(at, entry, Map::new());
            }
            Err(error) if status(&error) == Kind::Usage as u8 => return Err(error),
            Err(error) => session.report.fail(text, &error),
        }
    }
    for said in said {
        match sources.find(said.id.as_str(), |listing| pick::by_id(listing, &said.id).cloned()) {
            Ok((at, entry)) => {
                let more = origin::unknown(&entry, said);
                add(at, entry, more);
            }
            Err(error) => session.report.fail(said.id.as_str(), &error),
        }
    }
    // Where the newest dump was asked for, a sidecar that cannot be read may have been newer still. An id that was not
    // found may be one of these too.
    let failed = session.report.failed() > 0;
    for (at, place) in sources.opened() {
        let concerns = |bad: &Unreadable| doubtful.iter().any(|(of, vm)| *of == at && bad.may_concern(vm));
        for bad in place.listing().unreadable.iter().filter(|bad| failed || concerns(bad)) {
            session.report.fail(&format!("{}/{}", place.shown(), bad.path()), &anyhow!("{:#}", bad.error));
        }
    }
    fits(cli, sources, &found)?;
    Ok(found)
}

/// Refuses what cannot be meant, before anything is done.
fn fits(cli: &Cli, sources: &Sources, found: &[Wanted]) -> Result<()> {
    let is_image = |wanted: &&Wanted| wanted.entry.dump.driver == image::NAME;
    if cli.to.is_none() && found.iter().filter(is_image).any(|wanted| !sources.is_own(wanted.at)) {
        // Where a sidecar of our own says is fine; a copy from elsewhere must not choose what is written here.
        return Err(
            Kind::Usage.says("say where to write by --to: a place other than the local store does not decide that")
        );
    }
    let one_file = found.iter().any(|wanted| is_image(&wanted)) && cli.to.as_ref().is_some_and(|to| !to.is_dir());
    if found.len() > 1 && (cli.new_name.is_some() || one_file) {
        return Err(Kind::Usage.says(format!(
            "{} dumps cannot all {}",
            found.len(),
            if one_file { "be written to one file: --to must be a directory" } else { "get one name (--as)" }
        )));
    }
    Ok(())
}

fn restore_all(cli: &Cli, session: &Session, sources: &mut Sources, wanted: Vec<Wanted>) -> Result<()> {
    let mut out = Writer::stdout();
    let mut rows = Vec::new();
    let mut written = HashSet::new();
    for Wanted { at, entry, more } in wanted {
        let id = entry.dump.id.as_str();
        match restore(cli, session, sources.place(at)?, &entry, &mut written) {
            Ok(paths) => {
                let mut dump = entry.dump.clone();
                dump.planned = session.dry_run;
                dump.extra.extend(more);
                let mut note = json!({"to": paths});
                if !session.dry_run {
                    note["at"] = session.clock().to_string().into();
                }
                dump.extra.insert("restored".into(), note);
                let record = Record::Dump(Box::new(dump));
                session.report.decided(&to_line(&record));
                if session.table {
                    rows.push(vec![id.to_owned(), show_size(entry.dump.bytes), paths.join(", ")]);
                } else if !session.quiet {
                    out.record(&record)?;
                }
            }
            Err(error) => session.report.fail(id, &error),
        }
        if stop::caught().is_some() {
            break;
        }
    }
    if session.table && !session.quiet && !rows.is_empty() {
        let to = if session.dry_run { "would be written to" } else { "written to" };
        out.line(&table(&["dump", "size", to], &[1], rows))?;
    }
    Ok(())
}

/// Brings one dump back and says where to. `written` are the targets of this run: none may be written twice, not even
/// with --force.
fn restore(
    cli: &Cli,
    session: &Session,
    place: &mut Place,
    entry: &Entry,
    written: &mut HashSet<String>,
) -> Result<Vec<String>> {
    let bar = bar(session, &entry.dump);
    let work = Work { cli, session, bar: &bar };
    let source = match place {
        Place::Here { store, .. } => {
            let planned = work.plan(store, entry, written)?;
            if session.dry_run {
                written.extend(planned.iter().cloned());
                return Ok(planned);
            }
            work.check(store, entry)?;
            return work.write(store, entry, written);
        }
        Place::There(source) => source,
    };
    // What could refuse it is looked at before anything crosses the line.
    let planned = work.plan_unfetched(source.work(), entry, written)?;
    if session.dry_run {
        written.extend(planned.iter().cloned());
        return Ok(planned);
    }
    let warn = |text: String| session.report.warn(entry.dump.id.as_str(), &text);
    let copy = match source.fetch(entry, &step(&bar, "fetching")) {
        Ok(copy) => copy,
        Err(error) => {
            if source.goes_on(entry) {
                let kept = source.work().display();
                warn(format!("what was fetched is kept in {kept}: the same command goes on from there"));
            }
            return Err(error);
        }
    };
    if let Some(why) = work.prove(&copy.store, &copy.entry, &copy.compared)? {
        // Nothing is won by keeping it.
        copy.remove();
        bail!("was fetched from {}, and is no good: {why}", source.shown());
    }
    let written =
        work.plan(&copy.store, &copy.entry, written).and_then(|_| work.write(&copy.store, &copy.entry, written));
    match &written {
        Err(error) if !error.is::<Hopeless>() => {
            warn(format!("what was fetched is kept in {}: it need not come again", source.work().display()));
        }
        _ => copy.remove(),
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
