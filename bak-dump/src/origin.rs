//! Where dumps are read from: a directory, or a destination whose far side is mounted here.

use anyhow::Result;
use bak_common::args::{Places, Session};
use bak_common::config::Dest;
use bak_common::far::{Access, Url};
use bak_common::jsonl::Writer;
use bak_common::name::printable;
use bak_common::record::Dump;
use bak_common::report::Kind;
use bak_common::store::{Entry, Listing, Store};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A place that dumps are read from.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    Dir(PathBuf),
    Far { url: Url, shown: String, access: Access },
}

/// What is meant by `text`: a destination, if one is called so, a far side, or a directory.
pub fn origin(text: &Path, places: &Places, session: &Session) -> Result<Origin> {
    let Some(name) = text.to_str() else { return Ok(Origin::Dir(text.to_owned())) };
    if text.is_dir() {
        return Ok(Origin::Dir(text.to_owned()));
    }
    let given = places.dest.iter().filter_map(|dest| dest.split_once('='));
    let given = given.filter(|(dest, _)| *dest == name).map(|(_, url)| Some(url)).next();
    let known = session.config.dest.iter().find(|dest| dest.name == name);
    let url = match given.or_else(|| known.map(|dest| dest.url.as_deref())) {
        None => name,
        Some(Some(url)) => url,
        Some(None) => return Err(Kind::Usage.says(format!("the destination {name} has no url"))),
    };
    let access = |dest: &Dest| Access { ssh: dest.ssh.clone(), password_file: dest.password_file.clone() };
    let access = known.map(access).unwrap_or_default();
    match Url::parse(url)? {
        Url::Path(_) => Ok(Origin::Dir(url.into())),
        url_there => Ok(Origin::Far { url: url_there, shown: url.to_owned(), access }),
    }
}

/// The directory meant by `text`, for programs that read files in place.
pub fn dir(text: &Path, places: &Places, session: &Session) -> Result<PathBuf> {
    match origin(text, places, session)? {
        Origin::Dir(path) => Ok(path),
        Origin::Far { shown, .. } => Err(Kind::Usage
            .says(format!("{} is not a path on this machine: mount it and name the directory", printable(&shown)))),
    }
}

/// The store that dumps are read from in place: what `--from` names, else the local one.
pub fn store(from: Option<&Path>, places: &Places, session: &Session) -> Result<Store> {
    Store::open(&match from {
        Some(from) => dir(from, places, session)?,
        None => places.store(&session.config)?,
    })
}

/// What a record on standard input says of a dump that we don't know: it is passed on.
pub fn unknown(entry: &Entry, said: Dump) -> Map<String, Value> {
    said.extra.into_iter().filter(|(key, _)| !entry.dump.extra.contains_key(key)).collect()
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
