//! What shows, before anything is brought back, that a dump is what was dumped: its SHA-256; where the record has none, as of
//! dumps that others made, what the tools of its format can see.

use anyhow::Result;
use bak_common::config::Config;
use bak_common::store::{Entry, Store};

use crate::check::Compared;
use crate::driver::{Decision, Progress};
use crate::verify::format;
use crate::verify::judge::{Depth, judge};

/// The verdict on a dump that was compared with its record, and why. An error says what could not be run or read, which proves
/// nothing.
pub fn prove(
    config: &Config,
    store: &Store,
    entry: &Entry,
    compared: &Compared,
    tick: &dyn Fn(Progress) -> Result<()>,
) -> Result<(Decision, String)> {
    let formats = match compared {
        Compared::Same { unhashed } if !unhashed.is_empty() => format::check_all(config, store, entry, unhashed, tick)?,
        _ => Vec::new(),
    };
    Ok(judge(Depth::All, compared, &formats))
}
