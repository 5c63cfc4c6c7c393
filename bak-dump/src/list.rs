//! bak-list: the dumps of any store, good or not, and what the outboxes and histories of destinations know of them.

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Common, Picks, Places, Reach, Session};
use bak_common::calendar::Time;
use bak_common::far::Far;
use bak_common::jsonl::Writer;
use bak_common::name::{DumpId, printable};
use bak_common::outbox::{History, Outbox};
use bak_common::record::{Dump, GuestKey, Record};
use bak_common::report::Kind;
use bak_common::select::{Filter, Selector};
use bak_common::store::{Entry, Listing, Store};
use bak_common::table::fitting;
use bak_common::units::{show_duration, show_size};
use clap::Parser;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::origin::{self, Origin};

/// Print the dumps of stores
///
/// A store is a dump directory, an outbox, or an off-site copy: mounted, over ssh, or of a daemon. Every dump is printed by guest and
/// start, with `.link` where it waits in a destination's outbox, `.sent` where it has arrived, and `.fault` if it is not
/// good. On a terminal a table is printed instead.
#[derive(Parser, Debug)]
#[command(name = "bak-list", version, after_help = HELP)]
struct Cli {
    /// Directories, destinations by name, [user@]host:path, or rsync://[user@]host/module [default: --store, or the configuration's]
    #[arg(value_name = "STORE")]
    stores: Vec<PathBuf>,
    /// Only dumps of guests with this vm or name (name or pattern); may be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Selection")]
    guest: Vec<String>,
    /// Only the dump with this id; may be repeated
    #[arg(long, value_name = "ID", help_heading = "Selection", value_parser = |text: &str| DumpId::new(text))]
    id: Vec<DumpId>,
    /// Only the newest good dump of each guest
    #[arg(long, help_heading = "Selection")]
    latest: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    common: Common,
}

const HELP: &str = "\
Examples:
  bak-list --store /var/lib/vz/dump --latest
  bak-list backup@box:/srv/bak
  bak-list /mnt/box --guest 'db-*' --json | jq -r .id

Exit status:
  0  done
  1  something that should have been listed could not be read, or nothing matched a name
  2  wrong usage or configuration, or a store is not there";

/// A store that was read.
struct Read {
    path: PathBuf,
    listing: Listing,
}

/// What is known of the dumps at one destination.
struct Side {
    name: String,
    pending: HashMap<DumpId, Dump>,
    sent: HashMap<DumpId, Dump>,
}

pub fn main() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-list")?;
    let selector = selector(&cli)?;
    let stores = open(&cli, &session)?;
    for read in &stores {
        read.listing.report_at(&read.path, &session.report);
    }
    if cli.common.check_config {
        origin::check_config(&session, &stores.iter().map(|read| &read.listing).collect::<Vec<_>>())?;
    } else {
        let sides = sides(&cli, &session, &stores)?;
        let dumps: Vec<(usize, Dump)> = stores
            .iter()
            .enumerate()
            .flat_map(|(number, read)| {
                select(&read.listing, &selector, cli.latest).into_iter().map(move |e| (number, e))
            })
            .map(|(number, entry)| (number, annotated(entry, &sides, session.dry_run)))
            .collect();
        for text in selector.unmatched() {
            session.report.fail(text, &anyhow!("no dump matches it"));
        }
        print(&session, &stores, &sides, dumps)?;
    }
    Ok(session.report.finish(|n| format!("{n} of what was to be listed could not be")))
}

fn selector(cli: &Cli) -> Result<Selector> {
    let picks = &cli.picks;
    let filter = Filter::new(&picks.tag, &picks.pool, &picks.node, &picks.kind)?;
    let ids = cli.id.iter().map(|id| id.as_str().to_owned());
    Selector::new(&cli.guest.iter().cloned().chain(ids).collect::<Vec<_>>(), filter, picks.all)
}

/// Refuses what is no directory, and rather the name of a guest or a dump.
fn no_store(dir: &Path, text: &Path) -> Result<()> {
    let Some(word) = text.to_str().filter(|word| !dir.exists() && !word.contains('/')) else { return Ok(()) };
    let hint = if DumpId::new(word).is_ok() { "for the dump of this id: --id" } else { "for a guest: --guest" };
    Err(Kind::Usage.says(format!("there is no store at {0}, nor a destination {0}; {hint} {0}", printable(word))))
}

/// Opens and lists the stores asked for, each once; one that is not there ends the run before anything is printed.
fn open(cli: &Cli, session: &Session) -> Result<Vec<Read>> {
    let mut origins = Vec::new();
    for text in &cli.stores {
        if text.as_os_str() == "-" {
            return Err(Kind::Usage.says("bak-list does not read standard input: its operands are stores"));
        }
        let origin = origin::origin(text, &cli.places, session)?;
        if let Origin::Dir(dir) = &origin {
            no_store(dir, text)?;
        }
        origins.push(origin);
    }
    if origins.is_empty() {
        origins.push(Origin::Dir(cli.places.store(&session.config)?));
    }
    let mut read: Vec<Read> = Vec::new();
    for origin in origins {
        let next = match origin {
            Origin::Dir(path) => {
                let store = Store::open(&path)?;
                Read { listing: store.list(), path: store.path().to_owned() }
            }
            Origin::Far(place) => {
                let (url, shown) = (place.url, place.shown);
                let access = cli.reach.access(&place.dest.access);
                let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
                let listing = Far::open(url, &access, scratch.path()).and_then(|far| far.dumps(&shown));
                Read { listing: listing.with_context(|| format!("cannot list {shown}"))?, path: shown.into() }
            }
        };
        if read.iter().all(|known| known.path != next.path) {
            read.push(next);
        }
    }
    Ok(read)
}

/// Reads the outboxes and histories of the destinations, if any are known and have one.
fn sides(cli: &Cli, session: &Session, stores: &[Read]) -> Result<Vec<Side>> {
    let mut places = cli.places.clone();
    if places.dest.is_empty() && places.outbox.is_none() && session.config.dest.is_empty() {
        return Ok(Vec::new());
    }
    if places.store.is_none() && session.config.store.is_none() {
        // An outbox lies in its store unless told otherwise.
        places.store = stores.first().map(|read| read.path.clone());
    }
    let mut sides = Vec::new();
    for dest in places.destinations(&session.config, &[])? {
        let mut side = Side { name: dest.name.clone(), pending: HashMap::new(), sent: HashMap::new() };
        if dest.outbox.exists() {
            match read_outbox(&dest.outbox, &dest.name, session) {
                Ok((pending, sent)) => {
                    side.pending = pending.into_iter().map(|dump| (dump.id.clone(), dump)).collect();
                    side.sent = sent.into_iter().map(|dump| (dump.id.clone(), dump)).collect();
                }
                Err(error) => session.report.fail(&dest.outbox.display().to_string(), &error),
            }
        }
        sides.push(side);
    }
    Ok(sides)
}

/// What waits in an outbox, and what was sent from it.
fn read_outbox(path: &std::path::Path, dest: &str, session: &Session) -> Result<(Vec<Dump>, Vec<Dump>)> {
    let outbox = Outbox::open(path, dest, None)?;
    let listing = outbox.store.list();
    listing.report(&outbox.store, &session.report);
    let History { dumps, unreadable } = outbox.history().context("cannot read its history")?;
    for bad in &unreadable {
        let path = outbox.store.path().join(".bak/sent").join(bad.path());
        session.report.fail(&path.display().to_string(), &anyhow!("{:#}", bad.error));
    }
    Ok((listing.dumps.into_iter().map(|entry| entry.dump).collect(), dumps))
}

/// The dumps of one store that were asked for, by guest and start.
fn select<'a>(listing: &'a Listing, selector: &Selector, latest: bool) -> Vec<&'a Entry> {
    let mut found: Vec<&Entry> = listing.dumps.iter().filter(|entry| selector.matches(&entry.dump)).collect();
    if latest {
        // The listing is in the order of start times, so what is seen first from its end is the newest.
        let mut seen: HashSet<GuestKey> = HashSet::new();
        found.reverse();
        found.retain(|entry| entry.is_good() && seen.insert(entry.dump.key()));
    }
    found.sort_by_cached_key(|entry| {
        let vm = entry.dump.vm.as_str();
        // Numbers in their own order, before names.
        (vm.parse::<u64>().unwrap_or(u64::MAX), entry.dump.key(), entry.dump.started)
    });
    found
}

/// The dump with what is known of it: its fault, and where it waits or has arrived.
fn annotated(entry: &Entry, sides: &[Side], planned: bool) -> Dump {
    let mut dump = entry.dump.clone();
    dump.extra.remove("fault");
    if let Some(why) = &entry.fault {
        dump.extra.insert("fault".into(), why.as_str().into());
    }
    for side in sides {
        let same = |known: &&Dump| known.same(&dump);
        let link = side.pending.get(&dump.id).filter(same).and_then(|known| known.link.get(&side.name)).cloned();
        let sent = side.sent.get(&dump.id).filter(same).and_then(|known| known.sent.get(&side.name)).cloned();
        dump.link.extend(link.map(|note| (side.name.clone(), note)));
        dump.sent.extend(sent.map(|note| (side.name.clone(), note)));
    }
    dump.planned = planned;
    dump
}

fn print(session: &Session, stores: &[Read], sides: &[Side], dumps: Vec<(usize, Dump)>) -> Result<()> {
    if session.quiet {
        return Ok(());
    }
    let mut out = Writer::stdout();
    if !session.table {
        for (_, dump) in dumps {
            out.record(&Record::Dump(Box::new(dump)))?;
        }
        return Ok(());
    }
    if dumps.is_empty() && session.report.failed() > 0 {
        return Ok(());
    }
    let many = stores.len() > 1;
    let mut headings = vec!["dump", "name", "started", "age", "size", "state"];
    if many {
        headings.insert(0, "store");
    }
    headings.extend(sides.iter().map(|side| side.name.as_str()));
    let first = usize::from(many);
    let rows = dumps.iter().map(|(number, dump)| {
        let store = many.then(|| stores[*number].path.display().to_string());
        store.into_iter().chain(row(session, dump, sides)).collect()
    });
    // The id says when it began, too.
    out.line(&fitting(&headings, &[first + 3, first + 4], &[first + 2, first + 3], rows))
}

fn row(session: &Session, dump: &Dump, sides: &[Side]) -> Vec<String> {
    let local = |time: Time| session.zone.minute(time);
    let fault = dump.extra.get("fault").and_then(|why| why.as_str());
    let mut row = vec![
        dump.id.to_string(),
        dump.name.clone().unwrap_or_default(),
        local(dump.started),
        show_duration(session.now.since(dump.started)),
        show_size(dump.bytes),
        fault.unwrap_or(if dump.protected { "good, protected" } else { "good" }).to_owned(),
    ];
    row.extend(sides.iter().map(|side| match (dump.sent.get(&side.name), dump.link.get(&side.name)) {
        (Some(sent), _) => match sent.pruned {
            Some(at) => format!("removed there {}", local(at)),
            None => format!("sent {}", local(sent.at)),
        },
        (None, Some(link)) => match &link.error {
            Some(why) => format!("pending: {why}"),
            None => "pending".into(),
        },
        (None, None) => String::new(),
    }));
    row
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
