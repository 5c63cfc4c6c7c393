//! Where dumps are read from: a directory, or a destination whose far side is mounted here.

use anyhow::Result;
use bak_common::args::{Places, Session};
use bak_common::jsonl::Writer;
use bak_common::name::printable;
use bak_common::report::Kind;
use bak_common::store::Listing;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The directory meant by `text`: a destination's, if one is called so, else the one at that path.
pub fn dir(text: &Path, places: &Places, session: &Session) -> Result<PathBuf> {
    let Some(name) = text.to_str() else { return Ok(text.to_owned()) };
    let given = places.dest.iter().filter_map(|dest| dest.split_once('='));
    let given = given.filter(|(dest, _)| *dest == name).map(|(_, url)| Some(url)).next();
    let known = || session.config.dest.iter().find(|dest| dest.name == name).map(|dest| dest.url.as_deref());
    match given.or_else(known) {
        None => Ok(text.to_owned()),
        Some(Some(url)) if is_path(url) => Ok(url.into()),
        Some(Some(url)) => Err(Kind::Usage.says(format!(
            "the destination {name} is at {}, which is not a path on this machine: mount it and name the directory",
            printable(url)
        ))),
        Some(None) => Err(Kind::Usage.says(format!("the destination {name} has no url"))),
    }
}

/// Whether rsync would take `url` for a path here: no colon in its first component.
fn is_path(url: &str) -> bool {
    !url.split('/').next().unwrap_or_default().contains(':')
}

/// Prints what the configuration says for each guest that has a dump here: all of `--check-config`.
pub fn check_config(session: &Session, listings: &[&Listing]) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut out = Writer::stdout();
    for dump in listings.iter().flat_map(|listing| &listing.dumps).map(|entry| &entry.dump).rev() {
        if seen.insert(dump.key()) && !session.quiet {
            out.line(&serde_json::to_string(&session.config.effective(dump))?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_a_path_and_what_a_host() {
        for path in ["/mnt/box", "mnt/a:b", "./a:b", "box"] {
            assert!(super::is_path(path), "{path}");
        }
        for host in ["box:/srv", "me@box:srv", "rsync://box/srv", "box::module"] {
            assert!(!super::is_path(host), "{host}");
        }
    }
}
