//! bak-dump: dumps guests into the store, each when its turn comes, and prints each dump when it is complete.
//!
//! The order for one guest: its claim in the database, the store's lock for a moment (recovery, its newest dump, the
//! space it may take, its work directory), the driver's work under the work directory's lock alone, and the store's lock
//! again to publish. Whatever fails on the way is that guest's failure and leaves nothing but what recovery removes.

mod choose;
mod make;
mod past;
mod show;
mod space;

use anyhow::Result;
use bak_common::args::{Common, Picks, Places, Session};
use bak_common::config::{Config, Mode, Vzdump, Writer};
use bak_common::jsonl;
use bak_common::report::Kind;
use bak_common::store::Store;
use bak_common::units::{Rate, Size, Span};
use clap::Parser;
use std::path::PathBuf;

use crate::claim::Claims;
use crate::driver::DriverArgs;
use crate::driver::image::Format;
use crate::driver::vbox;
use crate::guests::check_config;

/// What must stay free if nobody says.
const RESERVE: u64 = 2 << 30;

/// How often to look whether a running guest has stopped if nobody says.
const RETRY_WAIT: Span = Span(60);

/// Dump guests into the store
#[derive(Debug, Parser)]
#[command(name = "bak-dump", version, max_term_width = 100, after_help = HELP)]
struct Cli {
    /// Guests by name or pattern; `-` for guest records on standard input
    #[arg(value_name = "GUEST|GLOB|-")]
    guests: Vec<String>,
    #[command(flatten)]
    driver: DriverArgs,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    vzdump: VzdumpArgs,
    #[command(flatten)]
    picks: Picks,
    /// The store of dumps
    #[arg(long, value_name = "DIR", help_heading = "Places")]
    store: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Dumps")]
struct Options {
    /// How images are stored: qcow2 (compressed), qcow2-plain or raw [default: the configuration's, or qcow2]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Dump so many guests at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// What must stay free in the store [default: the configuration's, or 2G]
    #[arg(long, value_name = "SIZE")]
    reserve: Option<Size>,
    /// Keep these dumps so long, whatever the retention rules say
    #[arg(long, value_name = "DUR")]
    expire: Option<Span>,
    /// A note for these dumps
    #[arg(long, value_name = "TEXT")]
    annotation: Option<String>,
    /// How often to look whether a running guest has stopped [default: the configuration's, or 60s]
    #[arg(long, value_name = "DUR")]
    retry_wait: Option<Span>,
    /// How long to do so when only running guests are left [default: the configuration's, or 0]
    #[arg(long, value_name = "DUR")]
    retry_for: Option<Span>,
    /// The database of bak-state: claim each guest there while it is dumped
    #[arg(long, value_name = "DIR")]
    db: Option<PathBuf>,
}

/// How vzdump is called; beats the configuration.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Dumps by vzdump")]
struct VzdumpArgs {
    /// Who writes the archive: bak (compressed so that a change costs little on the wire) or vzdump [default: bak]
    #[arg(long, value_name = "WHO", value_parser = word::<Writer>)]
    writer: Option<Writer>,
    /// snapshot, suspend or stop [default: snapshot]
    #[arg(long, value_name = "MODE", value_parser = word::<Mode>)]
    mode: Option<Mode>,
    /// How fast vzdump may read
    #[arg(long, value_name = "RATE")]
    bwlimit: Option<Rate>,
    /// Its priority on the disk, from 0 to 8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=8))]
    ionice: Option<u8>,
    /// How long it waits for another vzdump
    #[arg(long, value_name = "DUR")]
    lockwait: Option<Span>,
    /// Leave this path of containers out; may be repeated
    #[arg(long, value_name = "PATH")]
    exclude_path: Vec<String>,
    /// As vzdump takes it: enabled=1,storage=local-lvm
    #[arg(long, value_name = "OPTIONS")]
    fleecing: Option<String>,
    /// Mark the dumps so that neither Proxmox nor bak-prune removes them
    #[arg(long)]
    protected: bool,
    /// How long one guest may take, with vbox or a driver that is a program, too
    #[arg(long, value_name = "DUR")]
    timeout: Option<Span>,
}

/// One of a few words, as the configuration spells them.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

impl VzdumpArgs {
    fn flags(&self) -> Vzdump {
        Vzdump {
            writer: self.writer,
            mode: self.mode,
            level: None,
            bwlimit: self.bwlimit,
            ionice: self.ionice,
            lockwait: self.lockwait,
            exclude_path: self.exclude_path.clone(),
            fleecing: self.fleecing.clone(),
            protected: self.protected.then_some(true),
            timeout: self.timeout,
            etc: None,
        }
    }
}

const HELP: &str = "\
Examples:
  bak-dump --images /var/lib/libvirt/images --store /var/backups/vm --all
  bak-guests --tag prod | bak-dump - --jobs 2 | jq -r .id

Stopped guests go first, those whose last dump is oldest before the others. With the drivers
`image` and `vbox` a guest that runs cannot be dumped: it goes last, and is a failure if it still
runs then (see --retry-for). One guest's failure does not stop the others.

Exit status: 0 done; 1 some guests failed; 2 usage, configuration or unreadable input;
3 a lock is held; 4 a guard refused.";

/// What the options and the configuration come to.
#[derive(Debug)]
struct Plan {
    jobs: usize,
    reserve: u64,
    expire: Option<i64>,
    annotation: Option<String>,
    retry_wait: std::time::Duration,
    retry_for: std::time::Duration,
}

/// In seconds. Records write years with four digits.
const EXPIRE_MAX: u64 = 1000 * 365 * 86_400;

impl Options {
    fn plan(&self, config: &Config, driver: &str, dry_run: bool) -> Plan {
        let vbox = driver == vbox::NAME;
        let retry_wait = self.retry_wait.or(config.vbox.retry_wait.filter(|_| vbox)).unwrap_or(RETRY_WAIT);
        let retry_for = self.retry_for.or(config.vbox.retry_for.filter(|_| vbox)).unwrap_or_default();
        Plan {
            // A dry run says what is done in which order, now.
            jobs: if dry_run { 1 } else { usize::from(self.jobs) },
            retry_for: std::time::Duration::from_secs(if dry_run { 0 } else { retry_for.0 }),
            retry_wait: std::time::Duration::from_secs(retry_wait.0),
            reserve: self.reserve.or(config.reserve).map_or(RESERVE, |size| size.0),
            expire: self.expire.map(|span| i64::try_from(span.0).unwrap_or(i64::MAX)),
            annotation: self.annotation.clone(),
        }
    }
}

pub fn run() -> Result<u8> {
    let cli = Cli::parse();
    let mut session = cli.common.session("bak-dump")?;
    if cli.options.expire.is_some_and(|span| span.0 > EXPIRE_MAX) {
        return Err(Kind::Usage.says("--expire: more than a thousand years"));
    }
    if let Some(format) = &cli.options.format {
        Format::new(format)?;
        session.config.image.format = Some(format.clone());
    }
    session.config.vzdump_flags = cli.vzdump.flags();
    if cli.common.check_config {
        return check_config(cli.driver.driver(&mut session.config)?.as_ref(), &session);
    }
    let wanted = choose::Wanted::new(&cli.picks, &cli.guests)?;
    let driver = cli.driver.driver(&mut session.config)?;
    let places = Places { store: cli.store.clone(), ..Places::default() };
    let store = Store::open(&places.store(&session.config)?)?;
    let claims = Claims::new(cli.options.db.clone().or_else(|| session.config.db.clone()), session.wait)?;
    let input = if wanted.stdin { jsonl::read_all(&session.report, session.dry_run)? } else { Vec::new() };
    let plan = cli.options.plan(&session.config, driver.name(), session.dry_run);
    let chosen = wanted.choose(input, driver.as_ref(), &session)?;
    let done = make::Run::new(&session, &store, driver.as_ref(), &claims, &plan, &chosen).work(&chosen)?;
    Ok(finish(&session, done))
}

fn finish(session: &Session, done: usize) -> u8 {
    let verb = if session.dry_run { "would be dumped" } else { "dumped" };
    session.report.finish(|failed| format!("{done} {verb}, {failed} failed"))
}

/// Nothing to dump where everything was asked for: the images may not be mounted.
fn nothing(driver: &str) -> anyhow::Error {
    let ask = if driver == vbox::NAME {
        "VirtualBox knows each user's machines apart: do they belong to the user who runs this?"
    } else {
        "is everything mounted?"
    };
    Kind::Usage.says(format!("there is no guest to dump: {ask}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
