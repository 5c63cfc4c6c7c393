//! What the user typed, and what it resolves to.

use anyhow::Result;
use bak_common::args::{Common, Limits, Picks, Reach, Session};
use bak_common::config::{Keep, dest_name};
use bak_common::name::{DumpId, GuestName};
use bak_common::report::Kind;
use bak_common::select::Selector;
use bak_common::units::{Size, Span};
use chrono::NaiveDate;
use clap::Parser;
use std::path::PathBuf;

use crate::apply;
use crate::forecast::Simulate;
use crate::offsite::OnlySent;
use crate::places::Asked;
use crate::plan::SKEW_S;
use crate::protect::Protect;
use crate::request::{GoneGuests, MaxRemove, Order, Purge, Request, Task};
use crate::simulate::Schedule;

const AFTER: &str = "\
The rules are those of Proxmox's prune-backups, for each guest by itself, on the start of its dumps in local time. They \
come from the configuration, or all of them from the command line if it names one. Without any rule everything is kept. \
A rule of 0 is off. What a guest is called and which tags it has, its newest good dump says.

Never removed: the last good dump of a guest, protected dumps, dumps whose date cannot be right. Only good dumps count, \
and one that lies in two directories of a store counts once. One that is not good is kept for a look until it is older \
than everything that the rules keep; a sidecar of which all files are gone is removed. A dump that expires is kept until \
then and removed after; it does not count.

An off-site copy needs nothing but rsync over there. It must carry the identity that bak-sync --init gave it, and be the one \
that its outbox belongs to, if that is known. What crosses the line counts in the ledger of its outbox, and keeps to the \
limits. What a broken line leaves unfinished, the next run finishes.

Examples:
  bak-prune -n --explain /srv/dumps --keep-last 3 --keep-daily 7 --keep-weekly 4
  bak-prune --store /srv/dumps --guest 'web*' --keep-within 14d
  bak-prune --store /srv/dumps web@20261120T010002Z
  bak-prune --store /srv/dumps --protect web@20261119T010002Z
  bak-prune --dest box -n --explain
  bak-prune backup@box:/srv/bak --keep-daily 7 --keep-monthly 6
  bak-prune --simulate 1y --every 1d@02:00 --keep-daily 7 --keep-weekly 4 --keep-monthly 6
  bak-state list --gone --for 90d | bak-prune --expire-gone - -n

Exit status:
  0  done; what is spared is a decision, not a failure
  1  finished, but something could not be read or removed
  2  usage, configuration or unreadable input
  3  a store is locked
  4  a dump that must not be removed was named, more than --max-remove would go, or an off-site copy is not the one that
     bak-sync --init was run on: nothing is removed";

/// Remove the dumps that no rule keeps, and say why
#[derive(Debug, Parser)]
#[command(name = "bak-prune", version, after_help = AFTER)]
struct Cli {
    /// Directories of dumps to prune, or off-site copies, [user@]host:path or rsync://host/module; or ids of dumps: exactly those are removed; or
    /// -: the same for the dumps on standard input
    #[arg(value_name = "STORE|ID|-")]
    operands: Vec<String>,
    /// The store, if no operand names one (then say which guests, or --all); with --dest only the place of its outbox
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    store: Option<PathBuf>,
    /// Prune the copy at this destination, a configured one or NAME=URL, by its own rules; may be repeated
    #[arg(long, value_name = "NAME[=URL]", help_heading = "Places")]
    dest: Vec<String>,
    /// The outbox of that destination, or of --only-sent's [default: as configured, or <store>/.outbox-<destination>]
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    outbox: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    limits: Limits,
    /// Only this guest, by number or name or pattern; may be repeated
    #[arg(long, value_name = "GLOB", help_heading = "Selection")]
    guest: Vec<String>,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    orders: Orders,
    #[command(flatten)]
    offsite: Offsite,
    #[command(flatten)]
    forecast: Forecast,
    #[command(flatten)]
    guard: Guard,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Orders")]
struct Orders {
    /// Let nothing remove this dump; may be repeated. For Proxmox's dumps also with Proxmox's own mark
    #[arg(long, value_name = "ID", value_parser = dump_id)]
    protect: Vec<DumpId>,
    /// Take the protection away again; may be repeated
    #[arg(long, value_name = "ID", value_parser = dump_id)]
    unprotect: Vec<DumpId>,
    /// Beyond the rules, remove what they would let go first, until so much is free. The last good dumps stay
    #[arg(long, value_name = "SIZE")]
    free: Option<Size>,
    /// Remove all dumps of the guest VM, the last good one too
    #[arg(long, value_name = "VM", value_parser = guest_name)]
    purge: Option<GuestName>,
    /// Yes, this one
    #[arg(long, value_name = "VM", requires = "purge", value_parser = guest_name)]
    yes_purge: Option<GuestName>,
    /// The guests on standard input are gone, as `bak-state list --gone` prints them: their last dumps age out as if they
    /// had been dumped every day since. Without a store, --all or a selection, prune only theirs
    #[arg(long, value_name = "-", value_parser = ["-"], allow_hyphen_values = true)]
    expire_gone: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Simulation")]
struct Forecast {
    /// Remove nothing; play the rules forward for so long and show what would exist: on a terminal a calendar of the last
    /// day, else a record a day. From the dumps of the stores named, or from none
    #[arg(long, value_name = "DUR")]
    simulate: Option<Span>,
    /// With dumps so often, 1d@02:00 or 6h [default: as the guests were dumped so far, else 1d@02:00]
    #[arg(long, value_name = "DUR[@TIME]", requires = "simulate")]
    every: Option<Schedule>,
    /// Show this day, 2026-12-31
    #[arg(long, value_name = "DAY", requires = "simulate")]
    on: Option<NaiveDate>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Off-site copies")]
struct Offsite {
    /// Spare what is not known to be at this destination, or at all that the guest is sent to
    #[arg(long, value_name = "DEST|all")]
    only_sent: Option<String>,
    /// Believe that a dump is there if it was seen there so lately: when it was sent, or by `bak-sync --reconcile`
    #[arg(long, value_name = "DUR", default_value = "7d", requires = "only_sent")]
    sighted: Span,
    /// After so long a dump goes even if it is not known to be there
    #[arg(long, value_name = "DUR", default_value = "14d", requires = "only_sent")]
    unsent_grace: Span,
}

fn seconds(span: Span) -> i64 {
    i64::try_from(span.0).unwrap_or(i64::MAX)
}

fn dump_id(text: &str) -> Result<DumpId> {
    DumpId::new(text)
}

fn guest_name(text: &str) -> Result<GuestName> {
    GuestName::new(text)
}

impl Offsite {
    fn resolve(&self, session: &Session, outbox: Option<&PathBuf>) -> Result<Option<OnlySent>> {
        let Some(name) = &self.only_sent else { return Ok(None) };
        let known: Vec<String> = session.config.dest.iter().map(|dest| dest.name.clone()).collect();
        let dests = match name.as_str() {
            "all" if known.is_empty() => {
                return Err(Kind::Usage.says("--only-sent all: the configuration has no [[dest]]; name one"));
            }
            "all" => known,
            name => {
                dest_name(name).map_err(|error| Kind::Usage.of(error))?;
                vec![name.to_owned()]
            }
        };
        if outbox.is_some() && dests.len() > 1 {
            return Err(Kind::Usage.says("--outbox goes with one destination: name it by --only-sent"));
        }
        Ok(Some(OnlySent {
            dests,
            outbox: outbox.cloned(),
            sighted_s: seconds(self.sighted),
            grace_s: seconds(self.unsent_grace),
        }))
    }
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Guards")]
struct Guard {
    /// Remove nothing if more than N dumps, or P percent of the guests' dumps, would go
    #[arg(long, value_name = "N|P%")]
    max_remove: Option<MaxRemove>,
    /// How far ahead of our clock a dump may be dated [default: 1h]
    #[arg(long, value_name = "DUR")]
    skew: Option<Span>,
    /// Remove the dumps named even if they are dated in the future or oddly
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Rules")]
struct KeepArgs {
    /// Keep the newest N dumps
    #[arg(long = "keep-last", value_name = "N")]
    last: Option<u64>,
    /// Keep the newest dump of each of the newest N hours that have one
    #[arg(long = "keep-hourly", value_name = "N")]
    hourly: Option<u64>,
    /// The same for days
    #[arg(long = "keep-daily", value_name = "N")]
    daily: Option<u64>,
    /// The same for ISO weeks
    #[arg(long = "keep-weekly", value_name = "N")]
    weekly: Option<u64>,
    /// The same for months
    #[arg(long = "keep-monthly", value_name = "N")]
    monthly: Option<u64>,
    /// The same for years
    #[arg(long = "keep-yearly", value_name = "N")]
    yearly: Option<u64>,
    /// Keep everything that is younger
    #[arg(long = "keep-within", value_name = "DUR")]
    within: Option<Span>,
    /// Keep everything
    #[arg(
        long = "keep-all",
        conflicts_with_all = ["last", "hourly", "daily", "weekly", "monthly", "yearly", "within", "failed"]
    )]
    everything: bool,
    /// Of dumps that are not good keep the newest N for a look, and no others; beside whatever rules hold
    #[arg(long = "keep-failed", value_name = "N")]
    failed: Option<u64>,
}

impl KeepArgs {
    /// The rules of the command line; `None` if it names none.
    fn rules(self) -> Option<Keep> {
        let Self { last, hourly, daily, weekly, monthly, yearly, within, everything, failed: _ } = self;
        (Self { failed: None, ..self } != Self::default()).then(|| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            all: everything.then_some(true),
            failed: None,
        })
    }
}

/// All of bak-prune.
pub fn run() -> Result<u8> {
    let cli = Cli::parse();
    let session = cli.common.session("bak-prune")?;
    let request = cli.resolve(&session)?;
    if cli.common.check_config { apply::check_config(&session, &request) } else { apply::run(&session, request) }
}

/// The operands, told apart. A store whose path ends like a dump's id can be named with a slash at its end.
#[derive(Debug, Default)]
struct Operands {
    stores: Vec<PathBuf>,
    ids: Vec<DumpId>,
    stdin: bool,
}

impl Operands {
    fn of(texts: &[String]) -> Self {
        let mut operands = Self::default();
        for text in texts {
            match DumpId::new(text.as_str()) {
                _ if text == "-" => operands.stdin = true,
                Ok(id) => operands.ids.push(id),
                Err(_) => operands.stores.push(text.into()),
            }
        }
        operands
    }
}

impl Cli {
    fn resolve(&self, session: &Session) -> Result<Request> {
        let operands = Operands::of(&self.operands);
        let (guests, _) = self.picks.selector(&self.guest)?;
        let task = self.task(&operands)?;
        self.check(&operands, &guests, &task)?;
        let gone = match &self.orders.expire_gone {
            None => GoneGuests::No,
            Some(_) if !self.names_stores(&operands) && guests.is_empty() => GoneGuests::Only,
            Some(_) => GoneGuests::Too,
        };
        let asked = Asked {
            stores: &operands.stores,
            store: self.store.as_deref(),
            dests: &self.dest,
            outbox: self.outbox.as_deref(),
            reach: &self.reach,
            limits: &self.limits,
            only_sent: self.offsite.only_sent.as_deref(),
            // What a made-up guest is simulated for, or what the configuration says without any store.
            none_will_do: self.store.is_none()
                && (matches!(task, Task::Simulate(_)) && guests.is_empty()
                    || self.common.check_config && session.config.store.is_none()),
        };
        let places = asked.resolve(session)?;
        if let Some(place) = places.iter().find(|place| place.path().is_none()) {
            self.check_remote(&task, &place.name())?;
        }
        Ok(Request {
            places,
            task,
            guests,
            rules: self.keep.rules(),
            keep_failed: self.keep.failed,
            skew_s: self.guard.skew.map_or(SKEW_S, seconds),
            max_remove: self.guard.max_remove,
            force: self.guard.force,
            free: self.orders.free.map(|size| size.0),
            only_sent: self.offsite.resolve(session, self.outbox.as_ref())?,
            gone,
        })
    }

    fn names_stores(&self, operands: &Operands) -> bool {
        !operands.stores.is_empty() || !self.dest.is_empty()
    }

    /// What is to be done; one thing at a time.
    fn task(&self, operands: &Operands) -> Result<Task> {
        let Orders { protect, unprotect, purge, yes_purge, .. } = &self.orders;
        let mut tasks = Vec::new();
        if !operands.ids.is_empty() || operands.stdin {
            tasks.push(Task::Named(Order { ids: operands.ids.iter().cloned().collect(), stdin: operands.stdin }));
        }
        if !protect.is_empty() || !unprotect.is_empty() {
            let marks = Protect { on: protect.iter().cloned().collect(), off: unprotect.iter().cloned().collect() };
            if let Some(both) = marks.on.intersection(&marks.off).next() {
                return Err(Kind::Usage.says(format!("{both} is to be protected and unprotected: which?")));
            }
            tasks.push(Task::Protect(marks));
        }
        if let Some(vm) = purge {
            let confirmed = match yes_purge {
                Some(yes) if yes != vm => {
                    return Err(Kind::Refused.says(format!("--purge {vm} and --yes-purge {yes} name two guests")));
                }
                yes => yes.is_some(),
            };
            tasks.push(Task::Purge(Purge { vm: vm.clone(), confirmed }));
        }
        if let Some(span) = self.forecast.simulate {
            let Forecast { every, on, .. } = self.forecast;
            tasks.push(Task::Simulate(Simulate { span_s: seconds(span), schedule: every, on }));
        }
        if tasks.len() > 1 {
            return Err(Kind::Usage.says("ids to remove, --protect, --purge and --simulate are orders of their own"));
        }
        Ok(tasks.pop().unwrap_or(Task::Rules))
    }

    /// Refuses what cannot be done where there is nothing but rsync.
    fn check_remote(&self, task: &Task, name: &str) -> Result<()> {
        if self.orders.free.is_some() {
            let text = format!("how much is free at {name} cannot be known: --free is for stores on this machine");
            return Err(Kind::Usage.says(text));
        }
        if matches!(task, Task::Protect(_)) {
            return Err(Kind::Usage.says(format!(
                "{name} is not on this machine, and nothing over there is ever overwritten: protect dumps before they are \
                 sent, or run bak-prune over there"
            )));
        }
        Ok(())
    }

    /// Refuses what does not go together.
    fn check(&self, operands: &Operands, guests: &Selector, task: &Task) -> Result<()> {
        if self.common.check_config {
            return Ok(());
        }
        if !operands.stores.is_empty() && self.store.is_some() {
            return Err(Kind::Usage.says("name stores as operands or by --store, not both"));
        }
        let by_rules = matches!(task, Task::Rules);
        let simulated = matches!(task, Task::Simulate(_));
        let removes = self.offsite.only_sent.is_some()
            || self.orders.expire_gone.is_some()
            || self.orders.free.is_some()
            || self.guard.max_remove.is_some();
        if simulated && removes {
            return Err(Kind::Usage.says("--simulate goes with rules, a schedule, stores and a selection of guests"));
        }
        let ruled = !guests.is_empty()
            || self.keep != KeepArgs::default()
            || self.offsite.only_sent.is_some()
            || self.orders.free.is_some()
            || self.orders.expire_gone.is_some();
        if !by_rules && !simulated && ruled {
            return Err(
                Kind::Usage.says("an order says exactly what to do: rules and selection of guests do not apply")
            );
        }
        if !matches!(task, Task::Named(_)) && self.guard.force {
            return Err(Kind::Usage.says("--force goes with the ids of the dumps to remove"));
        }
        if matches!(task, Task::Purge(_)) && !self.names_stores(operands) && self.store.is_none() {
            return Err(Kind::Usage.says("--purge wants its stores named, as operands or by --store or --dest"));
        }
        if by_rules && !self.names_stores(operands) && guests.is_empty() && self.orders.expire_gone.is_none() {
            return Err(
                Kind::Usage.says("say what to prune: a store, --all, guests (--guest, --tag, …) or ids (see --help)")
            );
        }
        Ok(())
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

    #[test]
    fn operands_are_told_apart() {
        let texts = ["/srv/x", "web@20261120T010002Z", "-", "x@20261120T010002Z/", "me@host:dumps"].map(str::to_owned);
        let operands = Operands::of(&texts);
        assert_eq!(operands.stores.len(), 3);
        assert_eq!(operands.ids.len(), 1);
        assert!(operands.stdin);
    }
}
