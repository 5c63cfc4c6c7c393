//! Where dumps are read from: a directory, or a far side that rsync reaches.

use anyhow::Result;
use bak_common::args::{Destination, Places, Session};
use bak_common::config::PATH;
use bak_common::far::Url;
use bak_common::jsonl::Writer;
use bak_common::name::printable;
use bak_common::record::Dump;
use bak_common::report::Kind;
use bak_common::store::{Entry, Listing};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A place that dumps are read from.
#[derive(Debug)]
pub enum Origin {
    Dir(PathBuf),
    Far(Box<FarPlace>),
}

/// A far side that is no path on this machine.
#[derive(Debug)]
pub struct FarPlace {
    pub url: Url,
    /// As the user writes it.
    pub shown: String,
    /// What is known of it here. Its outbox need not be there.
    pub dest: Destination,
    /// The outbox is this place's: it was said, and not only guessed.
    pub sure: bool,
}

/// What is meant by `text`: a directory, a destination, if one is called so, or a far side by its url.
pub fn origin(text: &Path, places: &Places, session: &Session) -> Result<Origin> {
    let Some(name) = text.to_str() else { return Ok(Origin::Dir(text.to_owned())) };
    if text.is_dir() {
        return Ok(Origin::Dir(text.to_owned()));
    }
    let given = places.dest.iter().find(|dest| dest.split_once('=').is_some_and(|(dest, _)| dest == name));
    let known = |named: &str| session.config.dest.iter().any(|dest| dest.name == named);
    if given.is_some() || known(name) {
        let dest = destination(given.map_or(name, String::as_str), places, session)?;
        return at(dest, true);
    }
    let url = match Url::parse(name)? {
        Url::Path(_) => return Ok(Origin::Dir(name.into())),
        url => url,
    };
    let same = |text: &Option<String>| text.as_deref().and_then(|text| Url::parse(text).ok()).as_ref() == Some(&url);
    match session.config.dest.iter().find(|dest| same(&dest.url)) {
        Some(dest) => at(destination(&dest.name, places, session)?, true),
        None => at(destination(&format!("default={name}"), places, session)?, places.outbox.is_some()),
    }
}

/// The same for `--from`: a single word that is neither is refused with what is known.
pub fn from(text: &Path, places: &Places, session: &Session) -> Result<Origin> {
    let origin = origin(text, places, session)?;
    let Origin::Dir(dir) = &origin else { return Ok(origin) };
    let Some(word) = text.to_str().filter(|word| !word.contains('/') && !dir.exists()) else { return Ok(origin) };
    let config = &session.config;
    let known: Vec<&str> = config.dest.iter().map(|dest| dest.name.as_str()).collect();
    let why = match &config.file {
        None => {
            format!("no configuration was found at {PATH}; name one by --config FILE, or the place: [user@]host:path")
        }
        Some(file) if known.is_empty() => format!("{} has no [[dest]]", file.display()),
        Some(file) => format!("{} has these: {}", file.display(), known.join(", ")),
    };
    Err(Kind::Usage.says(format!("there is no store at {0}, nor a destination {0}: {why}", printable(word))))
}

/// All destinations that are known, in their order, by name; those without a url are none to read from.
pub fn destinations(places: &Places, session: &Session) -> Result<Vec<(String, Origin)>> {
    let given = places.dest.iter().map(|text| match Url::parse(text) {
        Ok(_) if !text.contains('=') && text.contains(['/', ':']) => format!("default={text}"),
        _ => text.clone(),
    });
    let mut texts: Vec<String> = given.collect();
    if texts.is_empty() {
        texts = session.config.dest.iter().filter(|dest| dest.url.is_some()).map(|dest| dest.name.clone()).collect();
    }
    let named = |text: String| {
        let dest = destination(&text, places, session)?;
        Ok((dest.name.clone(), at(dest, true)?))
    };
    texts.into_iter().map(named).collect()
}

/// A destination as `--dest` names it. Its outbox may be nowhere.
fn destination(text: &str, places: &Places, session: &Session) -> Result<Destination> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    let store = places.store.clone().or_else(|| session.config.store.clone());
    let known = session.config.dest.iter().any(|dest| dest.name == name && dest.outbox.is_some());
    let nowhere = if known || store.is_some() { None } else { Some(PathBuf::new()) };
    let one = Places { store, outbox: places.outbox.clone().or(nowhere), dest: vec![text.to_owned()] };
    // One was named.
    let dest = one.destinations(&session.config, &[])?.pop();
    dest.ok_or_else(|| Kind::Usage.says("there is no such destination"))
}

fn at(dest: Destination, sure: bool) -> Result<Origin> {
    let Some(shown) = dest.url.clone() else {
        return Err(Kind::Usage.says(format!("the destination {} has no url", dest.name)));
    };
    match Url::parse(&shown)? {
        Url::Path(_) => Ok(Origin::Dir(shown.into())),
        url => Ok(Origin::Far(Box::new(FarPlace { url, shown, dest, sure }))),
    }
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
