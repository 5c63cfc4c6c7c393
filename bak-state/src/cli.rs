//! The command line.

use anyhow::Result;
use bak_common::args::{Common, Picks, Places, Session};
use bak_common::report::Kind;
use bak_common::units::Span;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

use crate::edit::{self, Order};
use crate::observe;
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
}

#[derive(Args, Debug)]
struct Base {
    /// The directory of the database
    #[arg(long, value_name = "DIR")]
    db: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
#[command(after_help = format!("Example: bak-guests --images /srv/images | bak-state observe --due - | bak-dump -\n\n{STATUSES}"))]
struct Observe {
    /// `-`: guest records on standard input
    #[arg(value_name = "-", required = true, value_parser = ["-"])]
    input: String,
    /// Print only what is to be dumped, stopped guests first
    #[arg(long)]
    due: bool,
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

impl Base {
    fn session(&self) -> Result<Session> {
        self.common.session("bak-state")
    }

    fn db(&self, session: &Session) -> Result<PathBuf> {
        let path = self.db.clone().or_else(|| session.config.db.clone());
        path.ok_or_else(|| Kind::Usage.says("no database: name one by --db DIR or `db` in the configuration"))
    }
}

/// Runs the program; the exit status.
pub fn run() -> Result<u8> {
    let command = Cli::parse().command;
    let base = match &command {
        Command::Observe(args) => &args.base,
        Command::Get(args) => &args.base,
        Command::List(args) => &args.base,
        Command::Set(args) => &args.base,
        Command::Forget(args) => &args.base,
    };
    let session = &base.session()?;
    let path = &base.db(session)?;
    if base.common.check_config {
        return show::check_config(session, path);
    }
    match &command {
        Command::Observe(args) => observe::run(session, path, &args.places, args.due),
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
    }
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
