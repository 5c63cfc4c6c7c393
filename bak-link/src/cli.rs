//! The command line: what the user typed, and what it resolves to.

use anyhow::{Result, anyhow};
use bak_common::args::{Common, Destination, Limits, Picks, Places, Session};
use bak_common::config::Dest;
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::DumpId;
use bak_common::record::{Dump, GuestKey, Record};
use bak_common::report::Kind;
use bak_common::select::{Filter, Selector};
use bak_common::store::Store;
use clap::{Parser, ValueEnum};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::ahead::{self, Ahead};
use crate::apply::{Outcome, Run, destination};
use crate::facts::Judge;
use crate::list::List;
use crate::output::{Results, show};

pub const PROGRAM: &str = "bak-link";

const HELP: &str = "\
Examples:
  bak-link --store /srv/dumps --dest box=backup@box:/srv/bak --limit 10G
  bak-link -n --explain                  what would go, what would not, and why
  bak-dump --all | bak-link - | bak-sync -
  bak-link --only 'db-*' --force         these, due or not
  bak-link --list /srv/vms               only guests with a line `NAME sync` there
  bak-link --forecast 30d --limit 10G/day    when each goes, what waits, which limit is enough

Each guest whose newest good dump is newer than what was sent of it is due. They go by
priority, then who was never sent, then the most stale, as far as the limits reach; what
doesn't fit is passed over. A limit is 10G (a pass of bak-sync), 10G/day, 50G/week,
200G/month, 200G/month@15, or none; several may hold at once. A newer dump replaces one
that waits, if bak-sync has not begun that one. Hard links cost no room; an outbox on
another file system wants --copy, and room for the dumps that wait.

Exit status: 0 done; 1 finished, but some dumps failed; 2 usage, configuration or
unreadable input; 3 a lock is held; 4 refused (the outbox is on another file
system, and --copy was not given).";

/// Decide which dumps go off-site, under a traffic limit, and put hard links of them into the outbox
#[derive(Parser, Debug)]
#[command(name = PROGRAM, version, after_help = HELP)]
struct Args {
    /// Wait for the records of the program before to end, and pass them on
    #[arg(value_name = "-", value_parser = ["-"])]
    input: Option<String>,
    /// Only these: a name or pattern, a dump's id, or - for the dumps on standard input; may be repeated
    #[arg(long, value_name = "GLOB|ID|-")]
    only: Vec<String>,
    /// Also what is not due
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    limits: Limits,
    /// What to do with a dump larger than a pass may carry: let it go when it is first and nothing is pending, or never
    #[arg(long, value_name = "WHEN", default_value = "first")]
    oversize: Oversize,
    /// Charge such a dump in full, as bak-sync --overdraft carries it at once
    #[arg(long)]
    overdraft: bool,
    /// Copy dumps that can't be hard-linked, as into an outbox on another file system
    #[arg(long)]
    copy: bool,
    /// What a dump is expected to cost
    #[arg(long, value_name = "HOW", default_value = "history")]
    cost: Cost,
    /// Which guests go: `NAME sync` or `NAME nosync` a line; no others do, whatever the configuration says
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    #[command(flatten)]
    ahead: Ahead,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Oversize {
    First,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cost {
    /// What the dearest of the guest's last five changes cost there, and a quarter; its size where none is known
    History,
    /// As many bytes as its files have
    Size,
}

impl From<Cost> for Judge {
    fn from(cost: Cost) -> Self {
        match cost {
            Cost::History => Judge::History,
            Cost::Size => Judge::Size,
        }
    }
}

const LIST_MAX: u64 = 16 << 20;

/// Reads the list of guests.
fn list(path: &Path) -> Result<List> {
    let wrong =
        |why: &dyn std::fmt::Display| Kind::Usage.says(format!("cannot read the list {}: {why}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
    file.take(LIST_MAX + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if text.len() as u64 > LIST_MAX {
        return Err(wrong(&"it is longer than 16 MiB"));
    }
    // Some editors begin every file with a mark of its encoding.
    List::parse(&path.display().to_string(), text.trim_start_matches('\u{feff}'))
}

/// Which dumps the user wants: what `--only` names, and within that what the filters leave.
struct Selection {
    named: Option<Selector>,
    filter: Selector,
    /// Ids on standard input.
    piped: Option<HashSet<DumpId>>,
}

impl Selection {
    fn holds(&self, dump: &Dump) -> bool {
        let named = self.named.as_ref().map(|selector| selector.matches(dump));
        let piped = self.piped.as_ref().map(|ids| ids.contains(&dump.id));
        let wanted = (named.is_none() && piped.is_none()) || named == Some(true) || piped == Some(true);
        wanted && self.filter.matches(dump)
    }
}

impl Args {
    fn destinations(&self, session: &mut Session) -> Result<Vec<Destination>> {
        let mut found = self.places.destinations(&session.config, &[])?;
        self.limits.apply(&mut found)?;
        for dest in &found {
            // A destination that only the command line names is one of "all destinations" too.
            if !session.config.dest.iter().any(|known| known.name == dest.name) {
                session.config.dest.push(named(&dest.name));
            }
        }
        Ok(found)
    }

    fn selection(&self, input: &[Record]) -> Result<Selection> {
        let names: Vec<String> = self.only.iter().filter(|text| *text != "-").cloned().collect();
        let named = if names.is_empty() { None } else { Some(Selector::new(&names, Filter::default(), false)?) };
        let piped = self.only_input().then(|| input.iter().filter_map(dump_id).collect());
        Ok(Selection { named, filter: self.picks.selector(&[])?.0, piped })
    }

    fn only_input(&self) -> bool {
        self.only.iter().any(|text| text == "-")
    }
}

fn dump_id(record: &Record) -> Option<DumpId> {
    match record {
        Record::Dump(dump) => Some(dump.id.clone()),
        Record::Guest(_) => None,
    }
}

fn named(name: &str) -> Dest {
    let mut dest = Dest::default();
    name.clone_into(&mut dest.name);
    dest
}

pub fn run() -> Result<u8> {
    let mut args = Args::parse();
    // It changes nothing, and may be asked for another time.
    args.common.dry_run |= args.ahead.forecast.is_some();
    let mut session = args.common.session(PROGRAM)?;
    let store = Store::open(&args.places.store(&session.config)?)?;
    let list = args.list.as_deref().map(list).transpose()?;
    if args.common.check_config {
        return check_config(&session, &store, list.as_ref());
    }
    let dests = args.destinations(&mut session)?;
    if args.ahead.forecast.is_some() {
        let (oversize, overdraft) = (args.oversize == Oversize::First, args.overdraft);
        let rules = ahead::Rules { oversize, overdraft, judge: args.cost.into(), list: list.as_ref() };
        return ahead::run(&args.ahead, &rules, &session, &store, &dests);
    }
    // Wrong patterns are found before a long wait for the program before.
    args.selection(&[])?;
    let pass_on = args.input.is_some();
    let reads = pass_on || args.only_input();
    let input = if reads { read_all(&session.report, session.dry_run)? } else { Vec::new() };
    let selection = args.selection(&input)?;
    let selected = |dump: &Dump| selection.holds(dump);
    let asked: HashSet<DumpId> = input.iter().filter_map(dump_id).collect();
    let run = Run {
        session: &session,
        store: &store,
        force: args.force,
        oversize: args.oversize == Oversize::First,
        overdraft: args.overdraft,
        judge: args.cost.into(),
        list: list.as_ref(),
        copy: args.copy,
        selected: &selected,
        asked: &asked,
        reported: RefCell::default(),
    };
    let outcomes = all(&run, &dests);
    if session.table && !session.quiet {
        show(&session, &outcomes)?;
    }
    let mut results = Results::default();
    let planned_any = !outcomes.is_empty();
    for (dest, outcome) in outcomes {
        results.add(&dest, outcome.decided);
    }
    if planned_any {
        results.check(&session, &input);
        for name in selection.named.iter().flat_map(Selector::unmatched) {
            session.report.fail(name, &anyhow!("no dump is called so"));
        }
        for (name, line) in list.iter().flat_map(List::unknown) {
            session.report.fail(name, &anyhow!("{line} names it, and there is no dump of such a guest"));
        }
    }
    results.print(&session, &input, pass_on)?;
    let linked = results.linked();
    Ok(session.report.finish(|failed| format!("{failed} failed, {linked} linked")))
}

/// Destinations are independent: one that fails does not stop the others.
fn all(run: &Run, dests: &[Destination]) -> Vec<(String, Outcome)> {
    let one = |dest: &Destination| match destination(run, dest) {
        Ok(outcome) => Some((dest.name.clone(), outcome)),
        Err(error) => {
            run.session.report.fail(&dest.name, &error);
            None
        }
    };
    dests.iter().filter_map(one).collect()
}

/// What holds for each guest of the store, by its newest dump.
fn check_config(session: &Session, store: &Store, list: Option<&List>) -> Result<u8> {
    let listing = store.list();
    listing.report(store, &session.report);
    let newest: BTreeMap<GuestKey, &Dump> = listing.dumps.iter().map(|entry| (entry.dump.key(), &entry.dump)).collect();
    let mut writer = Writer::stdout();
    for dump in newest.values() {
        let mut effective = session.config.effective(*dump);
        if let Some(list) = list {
            let all = session.config.dest.iter().map(|dest| dest.name.clone());
            effective.sync = all.filter(|_| list.syncs(dump)).collect();
        }
        writer.line(&serde_json::to_string(&effective)?)?;
    }
    Ok(session.report.finish(|failed| format!("{failed} sidecars cannot be read")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_dash_is_the_only_operand() {
        assert!(Args::try_parse_from(["bak-link", "-"]).is_ok());
        assert!(Args::try_parse_from(["bak-link", "--only", "-", "--only", "db-*"]).unwrap().only_input());
        for bad in [&["bak-link", "web"][..], &["bak-link", "--limit", "10G/year"], &["bak-link", "--cost", "wire"]] {
            assert_eq!(Args::try_parse_from(bad).unwrap_err().exit_code(), 2);
        }
    }
}
