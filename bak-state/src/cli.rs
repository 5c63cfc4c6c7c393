//! The command line.

use anyhow::Result;
use bak_common::args::{Common, Picks, Places, Session};
use bak_common::report::Kind;
use bak_common::units::Span;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::archive::{self, Way};
use crate::edit::{self, Order};
use crate::hold;
use crate::monitor;
use crate::observe;
use crate::repair;
use crate::show::{self, Chooser, Only};
use crate::status::{Status, moves_text};

const STATUSES: &str = "\
Exit status: 0 done; 1 some guests failed, or are unknown; 2 usage, configuration or unreadable input;
3 the database is locked (--wait); 4 refused: an illegal move, a held claim, a damaged or unknown database.";

/// The database of guests: which are to be dumped, and why.
///
/// A directory with `vmtool-statedb` (one `<vm>:<STATUS>` a line), what those lines have no room for (`vmtool-details`),
/// the version, the lock and the claims of those who are dumping. Nodes may share it.
#[derive(Debug, Parser)]
#[command(name = "bak-state", version, after_help = after_help())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    format!(
        "Example: what is due tonight, and what the database thinks of it\n  \
         bak-guests --images /srv/images | bak-state observe --db /var/lib/bak --due -\n  \
         bak-state list --db /var/lib/bak --status RUNNING\n\n{STATUSES}"
    )
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read guest records, update the database, print them with their status
    Observe(Observe),
    /// Print what is known of some guests
    Get(Get),
    /// Print what is known of all guests, or of those selected
    List(List),
    /// Set the status of guests
    Set(Set),
    /// Drop guests from the database; their dumps stay
    Forget(Forget),
    /// Say whether all is well, for monitoring: a Nagios plugin, with exit statuses of its own
    Check(monitor::Check),
    /// Run a command while a guest is claimed, and set the guest's status by how it ends
    Claim(Claim),
    /// Set guests aside: ARCHIVED, and their dumps moved from the store to the archive
    #[command(after_help = moving_help("bak-state archive --db /var/lib/bak --store /srv/dumps --archive-dir /mnt/archive web"))]
    Archive(Moving),
    /// Take guests back: their dumps moved from the archive to the store, then BACKUP_NECESSARY
    #[command(after_help = moving_help("bak-state activate --db /var/lib/bak --store /srv/dumps --archive-dir /mnt/archive web"))]
    Activate(Moving),
}

fn moving_help(example: &str) -> String {
    format!(
        "Example: (`store`, `archive` and `db` may as well stand in the configuration)\n  {example}\n\n\
         Nothing is dumped. Where both places are on one file system the dumps are linked, else copied and read back, \
         before they go from where they were. What was interrupted, the same call finishes. Dumps that are not good stay \
         and are reported. A guest is refused, and nothing of it changed, while its claim is held, and where something \
         else lies in the way of one of its dumps.\n\n\
         Legal moves; a dead worker's BACKUP_IN_PROGRESS goes by way of BACKUP_NECESSARY:\n{}\n{STATUSES}",
        moves_text()
    )
}

#[derive(Args, Debug)]
pub struct Base {
    /// The directory of the database
    #[arg(long, value_name = "DIR")]
    db: Option<PathBuf>,
    /// First leave out what cannot be read in the database, keep a copy of the damaged file, and say what was dropped
    #[arg(long)]
    pub(crate) repair: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Debug)]
#[command(after_help = format!("Example: bak-guests --images /srv/images | bak-state observe --due - | bak-dump -\n\n{STATUSES}"))]
struct Observe {
    /// `-`: guest records on standard input
    #[arg(value_name = "-", required = true, value_parser = ["-"])]
    input: String,
    /// Print only what is to be dumped, stopped guests first; those that run and can't be dumped so are left out
    #[arg(long)]
    due: bool,
    /// Print those too, last, for bak-dump to wait for (--retry-for), or to fail
    #[arg(long, requires = "due")]
    running: bool,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    base: Base,
}

#[derive(Args, Debug)]
#[command(after_help = format!("Example: bak-state get --db /var/lib/bak web | jq -r .status\n\n{STATUSES}"))]
struct Get {
    /// Names or patterns; `-`: records on standard input
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

#[derive(Args, Debug)]
#[command(after_help = format!("Example: bak-state list --db /var/lib/bak --gone --for 90d | bak-state forget --db /var/lib/bak -\n\n{STATUSES}"))]
struct List {
    /// Names or patterns; `-`: records on standard input [default: all]
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    /// Only guests in this status; may be repeated
    #[arg(long, value_name = "STATUS")]
    status: Vec<Status>,
    /// Only guests that no observation has seen for some time
    #[arg(long)]
    gone: bool,
    /// How long not
    #[arg(long = "for", value_name = "DUR", default_value = "7d", requires = "gone")]
    span: Span,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

#[derive(Args, Debug)]
#[command(after_help = format!(
    "Example: take a guest only if it is still to be dumped, by compare and swap\n  \
     bak-state set --db /var/lib/bak --from BACKUP_NECESSARY BACKUP_IN_PROGRESS web\n\n\
     Legal moves, all others need --force:\n{}\n{STATUSES}", moves_text()))]
struct Set {
    /// The status to set
    #[arg(value_name = "STATUS")]
    status: Status,
    /// Names or patterns; `-`: records on standard input
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    /// Set it only where the status is OLD: names that differ fail, patterns pass over
    #[arg(long, value_name = "OLD")]
    from: Option<Status>,
    /// Make illegal moves too, add unknown guests, and disregard claims
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

#[derive(Args, Debug)]
#[command(after_help = format!("Example: bak-state forget --db /var/lib/bak old-web 'test-*'\n\n{STATUSES}"))]
struct Forget {
    /// Names or patterns; `-`: records on standard input
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    /// Guests that are being dumped too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

const CLAIM: &str = "\
Examples: dumps by hand, counted as such
  bak-state claim --db /var/lib/bak web -- cp /var/lib/libvirt/images/web.raw /var/tmp
  bak-state claim --look web -- sh -c 'tar -cf /var/tmp/$BAK_ID.tar /var/lib/libvirt/images'

While the command runs the guest is BACKUP_IN_PROGRESS, and nobody else can claim it; what the
command leaves running holds the claim too. If it exits with 0 the guest becomes CLEAN. It
becomes BACKUP_NECESSARY, and standard error says why, if the command fails or is stopped, or if
any observation meanwhile (the command's own, too) saw another fingerprint, a change, another
uid, or that the guest was started and cannot be dumped while it runs.

The command gets the caller's standard streams and, in its environment, BAK_VM, BAK_STARTED and
BAK_ID (<vm>@<start>). Signals that stop bak-state are passed on to it. `observe --store` counts
a guest without a dump in the store as BACKUP_NECESSARY, whatever a command made of it.

Exit status: the command's; 128 and the signal's number if a signal killed it; 126 if it cannot
be run; 127 if it is not found; 1 if it exited with 0 and the status could not be set. Before it
begins: 2 usage or configuration; 3 the guest is claimed, which is not waited for, or the database
is locked (--wait); 4 refused: it is unknown or ARCHIVED.";

#[derive(Args, Debug)]
#[command(after_help = CLAIM)]
struct Claim {
    /// The guest, by its exact name
    vm: String,
    /// The command and its arguments; no shell comes between
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Have bak-guests look at the guest before and after, by what the configuration says; a look that fails is no proof
    #[arg(long)]
    look: bool,
    #[command(flatten)]
    base: Base,
}

#[derive(Args, Debug)]
struct Moving {
    /// Names or patterns; `-`: records on standard input
    #[arg(value_name = "VM")]
    guests: Vec<String>,
    /// The archive, a store of its own: a directory apart from the store, or hidden in it
    #[arg(long, value_name = "DIR")]
    archive_dir: Option<PathBuf>,
    /// The store of dumps
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    base: Base,
}

impl Moving {
    fn order(&self, session: &Session, way: Way) -> Result<archive::Order> {
        let store = Places { store: self.store.clone(), ..Places::default() }.store(&session.config)?;
        let archive = self.archive_dir.clone().or_else(|| session.config.archive.clone());
        let archive = archive.ok_or_else(|| {
            Kind::Usage.says("no archive: name one by --archive-dir DIR or `archive` in the configuration")
        })?;
        Ok(archive::Order { way, store, archive })
    }
}

impl Base {
    pub fn session(&self) -> Result<Session> {
        self.common.session("bak-state")
    }

    pub fn db(&self, session: &Session) -> Result<PathBuf> {
        let path = self.db.clone().or_else(|| session.config.db.clone());
        path.ok_or_else(|| Kind::Usage.says("no database: name one by --db DIR or `db` in the configuration"))
    }
}

/// Runs the program; the exit status.
pub fn run() -> Result<u8> {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        // Monitoring knows no other exit statuses than its own.
        Err(error) if error.use_stderr() && std::env::args_os().nth(1).is_some_and(|word| word == "check") => {
            return Ok(monitor::usage(&error));
        }
        Err(error) => error.exit(),
    };
    let base = match &command {
        Command::Check(args) => return monitor::run(args),
        Command::Observe(args) => &args.base,
        Command::Get(args) => &args.base,
        Command::List(args) => &args.base,
        Command::Set(args) => &args.base,
        Command::Forget(args) => &args.base,
        Command::Claim(args) => &args.base,
        Command::Archive(args) | Command::Activate(args) => &args.base,
    };
    let session = &base.session()?;
    let path = &base.db(session)?;
    if base.common.check_config {
        return show::check_config(session, path);
    }
    if base.repair {
        repair::run(session, path)?;
    }
    match &command {
        Command::Check(args) => monitor::run(args),
        Command::Observe(args) => observe::run(session, path, &args.places, observe::Shown::of(args.due, args.running)),
        Command::Get(args) => {
            let chooser = Chooser::explicit(session, &args.picks, &args.guests)?;
            show::show(session, path, &chooser, &Only::default())
        }
        Command::List(args) => {
            let chooser = Chooser::any(session, &args.picks, &args.guests)?;
            let only = Only { status: args.status.clone(), gone: args.gone.then_some(args.span) };
            show::show(session, path, &chooser, &only)
        }
        Command::Set(args) => {
            let chooser = Chooser::explicit(session, &args.picks, &args.guests)?;
            let order = Order { to: args.status, from: args.from, force: args.force };
            edit::set(session, path, &chooser, order)
        }
        Command::Forget(args) => {
            let chooser = Chooser::explicit(session, &args.picks, &args.guests)?;
            edit::forget(session, path, &chooser, args.force)
        }
        Command::Claim(args) => {
            let config = args.base.common.config.clone();
            hold::run(session, path, &hold::Order { vm: &args.vm, command: &args.command, look: args.look, config })
        }
        Command::Archive(args) => moving(session, path, args, Way::Archive),
        Command::Activate(args) => moving(session, path, args, Way::Activate),
    }
}

fn moving(session: &Session, path: &Path, args: &Moving, way: Way) -> Result<u8> {
    let order = args.order(session, way)?;
    let chooser = Chooser::explicit(session, &args.picks, &args.guests)?;
    archive::run(session, path, &chooser, &order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
