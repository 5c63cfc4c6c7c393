//! Which dump is meant by `ID`, `VM`, `VM@latest` or `VM@TIME`.
//!
//! The hazard is to bring back something else than what was meant. So only good dumps are taken, an id is taken
//! literally, and a name that two guests have had is refused.

use anyhow::{Context, Result, bail};
use bak_common::calendar::Time;
use bak_common::name::{DumpId, printable};
use bak_common::record::GuestKey;
use bak_common::report::Kind;
use bak_common::store::{Entry, Listing};
use std::collections::BTreeMap;

/// A dump that is there and not good: why.
#[derive(Debug)]
pub struct NotGood(String);

impl std::fmt::Display for NotGood {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "this dump is not good: {}", self.0)
    }
}

impl std::error::Error for NotGood {}

/// What was found.
#[derive(Debug)]
pub struct Picked<'a> {
    pub entry: &'a Entry,
    /// It was found as the newest of its guest, so that a sidecar that cannot be read may have hidden the right one.
    pub newest: bool,
    /// A newer one that would have been taken if it were good.
    pub passed: Option<&'a Entry>,
}

/// The dump that `text` means. An error of [`Kind::Usage`] says that it means several.
pub fn pick<'a>(listing: &'a Listing, text: &str) -> Result<Picked<'a>> {
    let id = DumpId::new(text).ok();
    if let Some(id) = &id
        && listing.find(id).is_some()
    {
        return Ok(Picked { entry: by_id(listing, id)?, newest: false, passed: None });
    }
    let whole = guest(listing, text);
    if !whole.is_empty() {
        return newest(text, whole, None);
    }
    if id.is_some() {
        bail!("there is no such dump");
    }
    let Some((vm, when)) = text.rsplit_once('@') else { bail!("there is no dump of a guest called so") };
    let at = match when {
        "latest" => None,
        time => Some(time.parse::<Time>().map_err(|error| {
            Kind::Usage.says(format!("{}: after the @ comes `latest` or a time: {error:#}", printable(text)))
        })?),
    };
    let dumps = guest(listing, vm);
    if dumps.is_empty() {
        bail!("there is no dump of a guest called `{}`", printable(vm));
    }
    newest(vm, dumps, at)
}

/// The dump with this id.
pub fn by_id<'a>(listing: &'a Listing, id: &DumpId) -> Result<&'a Entry> {
    let same: Vec<&Entry> = listing.dumps.iter().filter(|entry| entry.dump.id == *id).collect();
    one_guest(id.as_str(), &same)?;
    let entry = listing.find(id).context("there is no such dump")?;
    match &entry.fault {
        None => Ok(entry),
        Some(why) => Err(NotGood(why.clone()).into()),
    }
}

/// The dumps of the guests with this `vm`; where there are none, of those with this name.
fn guest<'a>(listing: &'a Listing, text: &str) -> Vec<&'a Entry> {
    let of = |hit: &dyn Fn(&Entry) -> bool| listing.dumps.iter().filter(|entry| hit(entry)).collect::<Vec<_>>();
    let by_vm = of(&|entry| entry.dump.vm.as_str() == text);
    if by_vm.is_empty() { of(&|entry| entry.dump.name.as_deref() == Some(text)) } else { by_vm }
}

fn one_guest(text: &str, dumps: &[&Entry]) -> Result<()> {
    let mut newest: BTreeMap<GuestKey, &Entry> = BTreeMap::new();
    for entry in dumps {
        newest.insert(entry.dump.key(), entry);
    }
    if newest.len() < 2 {
        return Ok(());
    }
    let each = newest.iter().map(|(key, entry)| {
        let uid = key.uid.as_deref().map_or_else(String::new, |uid| format!(" with uid {}", printable(uid)));
        format!("{} ({}{uid})", printable(entry.dump.id.as_str()), printable(&key.kind))
    });
    let each = each.collect::<Vec<_>>().join(", ");
    Err(Kind::Usage.says(format!("{} has been more than one guest; say which dump by its id: {each}", printable(text))))
}

/// The newest good one of `dumps`, which lie in the order of their start, begun at or before `at`.
fn newest<'a>(vm: &str, dumps: Vec<&'a Entry>, at: Option<Time>) -> Result<Picked<'a>> {
    one_guest(vm, &dumps)?;
    let past: Vec<&Entry> =
        dumps.iter().filter(|entry| at.is_none_or(|at| entry.dump.started <= at)).copied().collect();
    if let Some(entry) = past.iter().rev().find(|entry| entry.is_good()) {
        let passed = past.last().copied().filter(|last| !last.is_good());
        return Ok(Picked { entry, newest: true, passed });
    }
    match (past.last(), dumps.first()) {
        (Some(last), _) => bail!(
            "none of its dumps is good; the newest is {}: {}",
            last.dump.id,
            last.fault.as_deref().unwrap_or_default()
        ),
        (None, first) => bail!(
            "it has no dump from then or before; the oldest is {}",
            first.map_or_else(String::new, |entry| entry.dump.id.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bak_common::name::{GuestName, Stem};
    use bak_common::record::{Dump, Guest};
    use bak_common::report::status;

    fn entry(vm: &str, uid: &str, started: &str, fault: Option<&str>) -> Entry {
        let mut guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
        guest.uid = Some(uid.into());
        guest.name = Some(format!("name-{vm}"));
        let time: Time = started.parse().unwrap();
        let stem = Stem::of(&guest.vm, time);
        Entry {
            dump: Dump::of(&guest, time, stem),
            place: vm.into(),
            fault: fault.map(str::to_owned),
            unfit: None,
            inodes: Vec::new(),
        }
    }

    fn listing() -> Listing {
        let dumps = vec![
            entry("web", "1", "2026-11-18T01:00:00Z", None),
            entry("old", "1", "2026-11-18T01:00:00Z", None),
            entry("web", "1", "2026-11-19T01:00:00Z", None),
            entry("old", "2", "2026-11-19T01:00:00Z", None),
            entry("web", "1", "2026-11-20T01:00:00Z", Some("its file is missing")),
            entry("sad", "1", "2026-11-20T01:00:00Z", Some("its result is failed")),
        ];
        Listing { dumps, ..Listing::default() }
    }

    #[test]
    fn what_is_meant() {
        let listing = listing();
        for (text, id) in [
            ("web", "web@20261119T010000Z"),
            ("name-web", "web@20261119T010000Z"),
            ("web@latest", "web@20261119T010000Z"),
            ("web@20261118T010000Z", "web@20261118T010000Z"),
            ("web@2026-11-18T23:00:00Z", "web@20261118T010000Z"),
            ("web@2026-11-19T01:00:00Z", "web@20261119T010000Z"),
            ("web@2026-11-19T02:00:00+02:00", "web@20261118T010000Z"),
            ("old@20261118T010000Z", "old@20261118T010000Z"),
        ] {
            let picked = pick(&listing, text).unwrap();
            assert_eq!(picked.entry.dump.id.as_str(), id, "{text}");
            assert_eq!(picked.passed.is_some(), matches!(text, "web" | "name-web" | "web@latest"), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let listing = listing();
        for (text, code, says) in [
            ("wbe", 1, "no dump of a guest called so"),
            ("wbe@latest", 1, "no dump of a guest called `wbe`"),
            ("web@20261117T010000Z", 1, "no such dump"),
            ("web@20261120T010000Z", 1, "not good: its file is missing"),
            ("web@2026-11-17T01:00:00Z", 1, "the oldest is web@20261118T010000Z"),
            ("web@yesterday", 2, "`latest` or a time"),
            ("sad", 1, "its result is failed"),
            ("old", 2, "old@20261118T010000Z (qemu with uid 1), old@20261119T010000Z (qemu with uid 2)"),
        ] {
            let error = pick(&listing, text).unwrap_err();
            assert_eq!(status(&error), code, "{text}");
            assert!(format!("{error:#}").contains(says), "{error:#} should say {says}");
        }
    }
}
