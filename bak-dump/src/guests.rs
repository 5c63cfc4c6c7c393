//! bak-guests: prints the guests that there are.

use anyhow::Result;
use bak_common::args::{Common, Picks, Session};
use bak_common::jsonl::Writer;
use bak_common::name::GuestName;
use bak_common::record::{Failed, Guest, Record, State};
use bak_common::report::Kind;
use bak_common::select::{Selector, Subject};
use bak_common::table::fitting;
use bak_common::units::show_size;
use clap::Parser;

use crate::driver::{Driver, DriverArgs, Listed};

/// Print the guests that can be dumped, one record a line
#[derive(Debug, Parser)]
#[command(name = "bak-guests", version, max_term_width = 100, after_help = HELP)]
struct Cli {
    /// Guests by name or pattern [default: all]
    #[arg(value_name = "GUEST|GLOB")]
    guests: Vec<String>,
    #[command(flatten)]
    driver: DriverArgs,
    #[command(flatten)]
    picks: Picks,
    #[command(flatten)]
    common: Common,
}

const HELP: &str = "\
Examples:
  bak-guests --images /var/lib/libvirt/images
  bak-guests --images '/srv/vm/web*.qcow2' | jq -r 'select(.state == \"stopped\").vm'

With the driver `image` each disk image is a guest, called like its file without the extension;
guests with several disks are declared under [[image.guest]] in the configuration. An image on
which others are based is listed, too. What is called .qcow2, .raw, .img, .vmdk, .vdi, .vhd,
.vhdx, .vpc or .qcow must be a readable image; other files count if qemu-img sees a format in
them. A guest runs if QEMU's lock on its image is held. With the driver `vbox` the guests are the
machines of the user who runs this. With any other driver NAME its program bak-driver-NAME lists the
guests; the README says how to write one.

Exit status: 0 done; 1 some guests could not be read, or a name matched none;
2 usage or configuration.";

const SOUND: &str = "the configuration can be read, which is all that could be checked without guests";

pub fn run() -> Result<u8> {
    let cli = Cli::parse();
    let mut session = cli.common.session("bak-guests")?;
    let (selector, stdin) = cli.picks.selector(&cli.guests)?;
    if stdin {
        return Err(Kind::Usage.says("`-` is not for bak-guests: it lists guests, and reads no records"));
    }
    if cli.common.check_config && !cli.driver.is_named(&session.config) {
        session.report.warn("", &format!("{SOUND}, but names none: --images DIR or a driver does"));
        return Ok(finish(&session));
    }
    let driver = cli.driver.driver(&mut session.config)?;
    if cli.common.check_config {
        return check_config(driver.as_ref(), &session);
    }
    let (guests, failed) = choose(driver.list()?, &selector, driver.as_ref(), &session);
    if session.quiet {
        return Ok(finish(&session));
    }
    if session.table {
        // Headings of nothing beside a failure would look like an answer.
        if !guests.is_empty() || session.report.failed() == 0 {
            print!("{}", show(&guests));
        }
        return Ok(finish(&session));
    }
    let mut out = Writer::stdout();
    for mut guest in guests.into_iter().chain(failed.into_iter().filter(|_| session.explain)) {
        guest.planned = session.dry_run;
        out.record(&Record::Guest(Box::new(guest)))?;
    }
    Ok(finish(&session))
}

fn finish(session: &Session) -> u8 {
    session.report.finish(|failed| format!("{failed} could not be listed"))
}

/// What `selector` takes of `listed`. What it takes and cannot be read, and what it names and is not there, goes to the
/// report; the former is returned, too, as far as it can be written as a guest.
pub fn choose(listed: Listed, selector: &Selector, driver: &dyn Driver, session: &Session) -> (Vec<Guest>, Vec<Guest>) {
    let mut guests = listed.guests;
    guests.retain(|guest| selector.matches(guest));
    // Without names everything unreadable might have been meant. With names, only what is called so, unless a name
    // matches nothing: the reason may then lie in any of the others.
    let meant = |what: &str| {
        selector.matches(Subject { vm: what, name: None, tags: &[], pool: None, node: None, kind: "", id: None })
    };
    let (mut failed, others): (Vec<_>, Vec<_>) = listed.failed.into_iter().partition(|(what, _)| meant(what));
    let unmatched = selector.unmatched();
    if !selector.has_names() || !unmatched.is_empty() {
        failed.extend(others);
    }
    for (what, error) in &failed {
        session.report.fail(what, error);
    }
    for name in unmatched {
        session.report.fail(name, &anyhow::anyhow!("there is no guest of this name"));
    }
    let record = |(what, error): (String, anyhow::Error)| {
        let mut guest = Guest::new(GuestName::new(what).ok()?, "unknown", driver.name());
        guest.failed = Some(Failed { stage: "list".into(), why: format!("{error:#}") });
        Some(guest)
    };
    (guests, failed.into_iter().filter_map(record).collect())
}

/// `--check-config`: what holds for each guest.
pub fn check_config(driver: &dyn Driver, session: &Session) -> Result<u8> {
    let listed = driver.list()?;
    for (what, error) in &listed.failed {
        session.report.fail(what, &anyhow::anyhow!("{error:#}"));
    }
    if listed.guests.is_empty() && listed.failed.is_empty() {
        session.report.warn("", &format!("{SOUND}; there are none"));
    }
    let mut out = Writer::stdout();
    for guest in &listed.guests {
        let line = serde_json::to_string(&session.config.effective(guest))?;
        out.line(&line)?;
    }
    Ok(finish(session))
}

fn show(guests: &[Guest]) -> String {
    let row = |guest: &Guest| {
        vec![
            guest.vm.to_string(),
            guest.name.clone().unwrap_or_default(),
            state(guest.state).to_owned(),
            guest.size.map(show_size).unwrap_or_default(),
            guest.kind.clone(),
            guest.driver.clone(),
            guest.tags.join(" "),
        ]
    };
    let headings = ["vm", "name", "state", "size", "kind", "driver", "tags"];
    format!("{}\n", fitting(&headings, &[3], &[5, 4], guests.iter().map(row)))
}

fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Stopped => "stopped",
        State::Paused => "paused",
        State::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
