//! `--drill`: what the user typed, and what it resolves to.

use anyhow::{Result, anyhow};
use bak_common::args::{Limits, Session};
use bak_common::report::Kind;
use bak_common::select::{Filter, Selector};
use bak_common::stop;
use bak_common::store::Entry;
use bak_common::units::Size;
use std::path::Path;

use super::Cli;
use crate::drill::{self, Request};
use crate::origin::{self, Origin};
use crate::place::Place;

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Drill")]
pub struct DrillArgs {
    /// Bring a sample of the newest good dumps back on trial, check and remove them: images in a directory of ours, guests of Proxmox
    /// and VirtualBox under a number or name of the drill's without network, never started. Names, patterns and ids say of which guests [default: all]; without
    /// --from from the store
    #[arg(long, conflicts_with_all = ["new_name", "format", "force"])]
    pub drill: bool,
    /// How many; those that were not drilled for longest go first
    #[arg(long, value_name = "N", default_value_t = 1, requires = "drill")]
    pub sample: u64,
    /// All of the sample together may hold so much
    #[arg(long, value_name = "SIZE", default_value = "20G", requires = "drill")]
    pub max_bytes: Size,
    /// Which of those that were never drilled [default: another one each day]
    #[arg(long, value_name = "N", requires = "drill")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub limits: Limits,
}

/// Brings a sample back on trial.
pub fn drill_some(cli: &Cli, session: &Session) -> Result<u8> {
    if cli.dumps.iter().any(|text| text == "-") {
        return Err(Kind::Usage.says("--drill does not read standard input: name guests, or none"));
    }
    let mut origin = match &cli.from {
        Some(from) => origin::from(from, &cli.places, session)?,
        None => Origin::Dir(cli.places.store(&session.config)?),
    };
    if let Origin::Far(place) = &mut origin {
        cli.drill.limits.apply(std::slice::from_mut(&mut place.dest))?;
    }
    stop::heed()?;
    let Some(mut place) = Place::open_within(session, origin, &cli.fetch)? else { return Ok(0) };
    let listing = place.take_listing();
    listing.report_at(Path::new(&place.shown()), &session.report);
    let selector = Selector::new(&cli.dumps, Filter::default(), cli.dumps.is_empty())?;
    let dumps: Vec<Entry> = listing.dumps.into_iter().filter(|entry| selector.matches(&entry.dump)).collect();
    for text in selector.unmatched() {
        session.report.fail(text, &anyhow!("no dump matches it"));
    }
    let store = cli.places.store(&session.config).ok();
    let request = Request {
        sample: cli.drill.sample,
        max_bytes: cli.drill.max_bytes.0,
        seed: cli.drill.seed,
        to: cli.to.as_deref(),
        work: cli.fetch.work.as_deref(),
        store: store.as_deref(),
    };
    drill::run(session, &request, &mut place, dumps)?;
    Ok(session.report.finish(|n| format!("{n} failed; see above")))
}
