//! bak-restore: brings dumps back, from the store or from an off-site copy that is mounted here.
//!
//! In this order, for each dump: plan (which looks at everything that could refuse it), check every file against its
//! SHA-256, and only then let the driver write. No lock is taken: dumps are immutable, and one that is removed meanwhile
//! fails its check.

use anyhow::{Result, anyhow, bail};
use bak_common::args::{Common, Places, Session};
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::{GuestName, printable};
use bak_common::record::{Record, to_line};
use bak_common::report::{Kind, status};
use bak_common::store::{Entry, Listing, Store};
use bak_common::table::table;
use bak_common::units::show_size;
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

use crate::bar::{bar, step};
use crate::check::{Compared, compare};
use crate::driver::{self, Order, Progress, image};
use crate::{origin, pick};

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
#[derive(Parser, Debug)]
#[command(name = "bak-restore", version, after_help = HELP)]
struct Cli {
    /// A dump's id; a guest's vm or name for its newest good dump (also VM@latest); VM@TIME for the newest begun at or
    /// before TIME (2026-11-20T01:00:00Z); - for dump records on standard input
    #[arg(value_name = "ID|VM[@latest|@TIME]")]
    dumps: Vec<String>,
    /// Take dumps from this store: a directory, or a destination that is mounted [default: --store]
    #[arg(long, value_name = "STORE")]
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
  bak-list /mnt/box --latest --json | bak-restore --from /mnt/box --to /srv/images -

Exit status:
  0  done
  1  some dumps could not be brought back: unknown, not good, damaged, no space
  2  wrong usage, configuration or input, or a name that several guests have had
  3  another bak-restore writes the same file
  4  a file is there already, or is in use";

/// One dump to be brought back.
struct Wanted {
    entry: Entry,
    /// What records on standard input said beyond what we know.
    more: Map<String, Value>,
}

pub fn main() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-restore")?;
    let store = origin::store(cli.from.as_deref(), &cli.places, &session)?;
    let listing = store.list();
    if cli.common.check_config {
        origin::check_config(&session, &[&listing])?;
    } else {
        let wanted = wanted(&cli, &session, &store, &listing)?;
        restore_all(&cli, &session, &store, wanted)?;
    }
    Ok(session.report.finish(|n| format!("{n} failed; see above")))
}

/// Finds all that was asked for, each once. What is not there is reported; what is ambiguous ends the run before
/// anything is done.
fn wanted(cli: &Cli, session: &Session, store: &Store, listing: &Listing) -> Result<Vec<Wanted>> {
    if cli.dumps.is_empty() {
        return Err(Kind::Usage.says("say which: dump ids, guests, or - for records on standard input (see --help)"));
    }
    let mut found: Vec<Wanted> = Vec::new();
    let mut add = |entry: &Entry, more: Map<String, Value>| {
        match found.iter_mut().find(|w| w.entry.dump.id == entry.dump.id) {
            Some(known) => more.into_iter().for_each(|(key, value)| _ = known.more.entry(key).or_insert(value)),
            None => found.push(Wanted { entry: entry.clone(), more }),
        };
    };
    let mut doubtful = HashSet::new();
    for text in cli.dumps.iter().filter(|text| *text != "-") {
        let asked = text;
        match pick::pick(listing, text) {
            Ok(picked) => {
                add(picked.entry, Map::new());
                if let Some(bad) = picked.passed {
                    let (id, why) = (&bad.dump.id, bad.fault.as_deref().unwrap_or_default());
                    let text = format!("{id} is newer and not good ({why}): {} is taken", picked.entry.dump.id);
                    session.report.warn(asked, &text);
                }
                if picked.newest {
                    doubtful.insert(&picked.entry.dump.vm);
                }
            }
            Err(error) if status(&error) == Kind::Usage as u8 => return Err(error),
            Err(error) => session.report.fail(text, &error),
        }
    }
    if cli.dumps.iter().any(|text| text == "-") {
        for record in read_all(&session.report, session.dry_run)? {
            let Record::Dump(said) = record else {
                session.report.fail("standard input", &anyhow!("a record of a guest: bak-restore wants dumps"));
                continue;
            };
            match pick::by_id(listing, &said.id) {
                Ok(entry) => add(entry, origin::unknown(entry, *said)),
                Err(error) => session.report.fail(said.id.as_str(), &error),
            }
        }
    }
    // Where the newest dump was asked for, a sidecar that cannot be read may have been newer still. An id that was not
    // found may be one of these too.
    let failed = session.report.failed() > 0;
    for bad in &listing.unreadable {
        if failed || doubtful.iter().any(|vm| bad.may_concern(vm)) {
            let path = store.path().join(bad.path());
            session.report.fail(&path.display().to_string(), &anyhow!("{:#}", bad.error));
        }
    }
    let images = found.iter().any(|wanted| wanted.entry.dump.driver == image::NAME);
    if images && cli.from.is_some() && cli.to.is_none() {
        // Where a sidecar of our own says is fine; a copy from elsewhere must not choose what is written here.
        return Err(
            Kind::Usage.says("say where to write by --to: a place other than the local store does not decide that")
        );
    }
    let one_file = images && cli.to.as_ref().is_some_and(|to| !to.is_dir());
    if found.len() > 1 && (cli.new_name.is_some() || one_file) {
        return Err(Kind::Usage.says(format!(
            "{} dumps cannot all {}",
            found.len(),
            if one_file { "be written to one file: --to must be a directory" } else { "get one name (--as)" }
        )));
    }
    Ok(found)
}

fn restore_all(cli: &Cli, session: &Session, store: &Store, wanted: Vec<Wanted>) -> Result<()> {
    let mut out = Writer::stdout();
    let mut rows = Vec::new();
    let mut written = HashSet::new();
    for Wanted { entry, more } in wanted {
        let id = entry.dump.id.as_str();
        match restore(cli, session, store, &entry, &mut written) {
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
    store: &Store,
    entry: &Entry,
    written: &mut HashSet<String>,
) -> Result<Vec<String>> {
    let bar = bar(session, &entry.dump);
    let dir = store.path().join(&entry.place);
    let files: Vec<PathBuf> = entry.dump.files.iter().map(|file| dir.join(&file.name)).collect();
    let format = cli.format.and_then(|format| format.to_possible_value());
    let (planning, checking, writing) = (step(&bar, "planning"), step(&bar, "checking"), step(&bar, "writing"));
    let order = |dry_run, tick| Order {
        dump: &entry.dump,
        files: &files,
        name: cli.new_name.as_ref(),
        to: cli.to.as_deref(),
        format: format.as_ref().map(|value| value.get_name()),
        force: cli.force,
        dry_run,
        tick,
    };
    let planned = by_driver(session, &order(true, &planning))?;
    if let Some(twice) = planned.iter().find(|path| written.contains(*path)) {
        bail!("{twice} was written by this run already, from another dump");
    }
    if session.dry_run {
        written.extend(planned.iter().cloned());
        return Ok(planned);
    }
    check_files(session, store, entry, &checking)?;
    let made = by_driver(session, &order(false, &writing))?;
    written.extend(made.iter().cloned());
    bar.finish_and_clear();
    Ok(made)
}

/// Has the driver that made the dump bring it back.
fn by_driver(session: &Session, order: &Order) -> Result<Vec<String>> {
    let name = &order.dump.driver;
    let driver = driver::find(name, &session.config).map_err(|error| {
        anyhow!("it was made by the driver `{}`, which cannot be used here: {error:#}", printable(name))
    })?;
    driver.restore(order)
}

/// Compares every file with the dump's record, whole.
fn check_files(session: &Session, store: &Store, entry: &Entry, tick: &dyn Fn(Progress) -> Result<()>) -> Result<()> {
    match compare(store, entry, true, tick)? {
        Compared::Differs(why) => bail!("{why}"),
        Compared::Same { unhashed } => {
            for name in unhashed {
                let text = format!("{name} has no SHA-256 in its record: only its size was checked");
                session.report.warn(entry.dump.id.as_str(), &text);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
