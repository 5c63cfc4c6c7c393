//! An outbox: a store of hard links that wait for one destination, and beside them, in its `.bak/`, the history of what
//! was sent (`sent/<vm>/`), the ledger, and the identity of the far side (`dest`).

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::calendar::Time;
use crate::fsio;
use crate::name::{GuestName, Stem};
use crate::record::{Dump, SentNote};
use crate::report::Kind;
use crate::store::{BAK, Store, Unreadable};

mod begun;

const SENT: &str = "sent";
const GONE: &str = "gone";
const IDENTITY: &str = "dest";
const SIGHTED: &str = "sighted";
const SIDECAR_MAX: u64 = 16 << 20;
/// So many are noted as sent at once: of each, a file and a directory are open.
const MANY: usize = 100;

/// The outbox of one destination.
#[derive(Debug)]
pub struct Outbox {
    pub store: Store,
    /// The destination's name, under which its notes stand in records.
    pub dest: String,
    ledger: Option<PathBuf>,
}

/// What the far side is called, so that an empty mount point, or another storage, is not taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub v: u32,
    pub id: String,
}

/// When the whole far side was last listed, and everything that counts as sent was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sighted {
    v: u32,
    at: Time,
}

/// The sidecars of what was sent.
#[derive(Debug, Default)]
pub struct History {
    /// By start time.
    pub dumps: Vec<Dump>,
    pub unreadable: Vec<Unreadable>,
}

impl Outbox {
    /// Opens an existing outbox; `ledger` if it is kept elsewhere.
    pub fn open(path: &Path, dest: &str, ledger: Option<&Path>) -> Result<Self> {
        if !path.exists() {
            return Err(Kind::Usage
                .says(format!("there is no outbox at {}: bak-link makes it, or bak-sync --init", path.display())));
        }
        Ok(Self { store: Store::open(path)?, dest: dest.to_owned(), ledger: ledger.map(Path::to_owned) })
    }

    /// Opens an outbox, made if it is not there.
    pub fn create(path: &Path, dest: &str, ledger: Option<&Path>) -> Result<Self> {
        let outbox = Self { store: Store::create(path)?, dest: dest.to_owned(), ledger: ledger.map(Path::to_owned) };
        outbox.store.make_bak()?;
        Ok(outbox)
    }

    /// Where files of this guest lie, here and over there.
    pub fn place(vm: &GuestName) -> String {
        vm.encoded()
    }

    pub fn ledger(&self) -> PathBuf {
        self.ledger.clone().unwrap_or_else(|| self.store.path().join(BAK).join("ledger"))
    }

    /// The identity that the far side must carry; `None` before `--init`.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let Some(bak) = self.store.bak()? else { return Ok(None) };
        let Some(text) = fsio::read_file(bak.as_fd(), IDENTITY, 1 << 16)? else { return Ok(None) };
        let path = self.store.path().join(BAK).join(IDENTITY);
        Ok(Some(serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?))
    }

    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        let text = serde_json::to_vec(identity).context("cannot describe the far side")?;
        fsio::write_whole(self.store.make_bak()?.as_fd(), ".dest.new", IDENTITY, &text)
    }

    /// When all that counts as sent was last seen over there; `None` before that has ever been looked for.
    pub fn sighted(&self) -> Result<Option<Time>> {
        let Some(bak) = self.store.bak()? else { return Ok(None) };
        let Some(text) = fsio::read_file(bak.as_fd(), SIGHTED, 1 << 16)? else { return Ok(None) };
        let path = self.store.path().join(BAK).join(SIGHTED);
        let sighted: Sighted =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(sighted.at))
    }

    pub fn set_sighted(&self, at: Time) -> Result<()> {
        let text = serde_json::to_vec(&Sighted { v: 1, at }).context("cannot note what was seen over there")?;
        fsio::write_whole(self.store.make_bak()?.as_fd(), ".sighted.new", SIGHTED, &text)
    }

    fn sent_dir(&self) -> Result<Option<OwnedFd>> {
        let Some(bak) = self.store.bak()? else { return Ok(None) };
        match fsio::open_dir(bak.as_fd(), SENT) {
            Ok(dir) => Ok(Some(dir)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error).context("cannot open the history of what was sent"),
        }
    }

    /// Everything that was sent, as far as the history goes back. Each dump carries its `.sent` note.
    pub fn history(&self) -> Result<History> {
        let Some(sent) = self.sent_dir()? else { return Ok(History::default()) };
        let places = fsio::names(sent.as_fd()).context("cannot list the history of what was sent")?;
        read_history(sent.as_fd(), places.into_iter().map(|(place, _)| place))
    }

    /// What was sent of guests that are called `vm`.
    pub fn history_of(&self, vm: &GuestName) -> Result<History> {
        let Some(sent) = self.sent_dir()? else { return Ok(History::default()) };
        read_history(sent.as_fd(), [Self::place(vm)])
    }

    /// The entry of the history for this dump.
    pub fn sent(&self, dump: &Dump) -> Result<Option<Dump>> {
        let Some(sent) = self.sent_dir()? else { return Ok(None) };
        match fsio::open_dir(sent.as_fd(), &Self::place(&dump.vm)) {
            Ok(dir) => read_sidecar(dir.as_fd(), &dump.stem),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error).context("cannot open the history of what was sent"),
        }
    }

    /// Notes that the dump has arrived. From now on it counts as sent; what was noted before stays if it is the same, unless
    /// it was removed over there since.
    pub fn add_sent(&self, dump: &Dump, note: SentNote) -> Result<Dump> {
        self.add_all_sent(vec![(dump, note)]).pop().context("nothing was noted")?
    }

    /// The same for many dumps, step by step for all of them, so that flushes share what they cost. One result
    /// each.
    pub fn add_all_sent(&self, arrived: Vec<(&Dump, SentNote)>) -> Vec<Result<Dump>> {
        let mut results = Vec::new();
        let mut rest = arrived.into_iter().peekable();
        while rest.peek().is_some() {
            let noted: Vec<Result<Noted>> =
                rest.by_ref().take(MANY).map(|(dump, note)| self.write(dump, note)).collect();
            let flushed = fsio::sync_good(noted, |one: &Noted| one.file.as_ref().map_or(one.dir.as_fd(), File::as_fd));
            let put: Vec<Result<Noted>> = flushed.into_iter().map(|noted| noted.and_then(Noted::put)).collect();
            // One flush serves for all that was made in it.
            let parent = self.sent_dir().and_then(|sent| sent.map_or(Ok(()), |sent| fsio::sync(sent.as_fd())));
            let parent = parent.map_err(|error| format!("{error:#}"));
            let whole = |noted: Noted| parent.clone().map(|()| noted.sent).map_err(|error| anyhow!(error));
            let placed = fsio::sync_good(put, |one: &Noted| one.dir.as_fd());
            results.extend(placed.into_iter().map(|noted| noted.and_then(whole)));
        }
        results
    }

    /// Writes the entry of the history for a dump, unflushed, under another name.
    fn write(&self, dump: &Dump, note: SentNote) -> Result<Noted> {
        let top = fsio::make_dir(self.store.make_bak()?.as_fd(), SENT)?;
        let place = Self::place(&dump.vm);
        fsio::make_dir_unflushed(top.as_fd(), &place)?;
        let dir = fsio::open_dir(top.as_fd(), &place).context("cannot open the history of what was sent")?;
        if let Some(old) = read_sidecar(dir.as_fd(), &dump.stem)? {
            if !old.same(dump) {
                bail!("another dump was sent as {}", dump.stem);
            }
            if !self.was_pruned(&old) {
                return Ok(Noted { sent: old, dir, file: None });
            }
        }
        let mut sent = dump.bare();
        sent.sent.insert(self.dest.clone(), note);
        // What a crash has left.
        fsio::unlink(dir.as_fd(), &temp(&sent))?;
        let file = fsio::write_unflushed(dir.as_fd(), &temp(&sent), &sent.to_sidecar())?;
        Ok(Noted { sent, dir, file: Some(file) })
    }

    fn write_sent(&self, sent: &Dump) -> Result<()> {
        let dir =
            fsio::make_dir(fsio::make_dir(self.store.make_bak()?.as_fd(), SENT)?.as_fd(), &Self::place(&sent.vm))?;
        fsio::write_whole(dir.as_fd(), &temp(sent), &sent.stem.sidecar(), &sent.to_sidecar())
    }

    /// Whether the history says of this entry of it that bak-prune removed it over there.
    pub fn was_pruned(&self, sent: &Dump) -> bool {
        sent.sent.get(&self.dest).is_some_and(|note| note.pruned.is_some())
    }

    /// Notes in the history that the dump was removed over there at that time, or that it was not. What was never sent from
    /// here is not noted. Only for who holds the pass's lock.
    pub fn set_pruned(&self, dump: &Dump, at: Option<Time>) -> Result<()> {
        let Some(mut sent) = self.sent(dump)?.filter(|sent| sent.same(dump)) else { return Ok(()) };
        match sent.sent.get_mut(&self.dest) {
            Some(note) if note.pruned.is_some() != at.is_some() => note.pruned = at,
            _ => return Ok(()),
        }
        self.write_sent(&sent)
    }
}

impl Outbox {
    /// [`Self::unsend`] for a dump whose copy over there was found bad; not for one that bak-prune has removed there.
    pub fn disown(&self, dump: &Dump) -> Result<()> {
        match self.sent(dump)? {
            Some(sent) if sent.same(dump) && !self.was_pruned(&sent) => self.unsend(dump),
            _ => Ok(()),
        }
    }

    /// Has a dump no longer count as sent. Its entry of the history is kept in `.bak/gone/<vm>/`, which nobody reads.
    pub fn unsend(&self, dump: &Dump) -> Result<()> {
        let bak = self.store.make_bak()?;
        let place = Self::place(&dump.vm);
        let Some(sent) = self.sent_dir()? else { return Ok(()) };
        let from = fsio::open_dir(sent.as_fd(), &place).context("cannot open the history of what was sent")?;
        let to = fsio::make_dir(fsio::make_dir(bak.as_fd(), GONE)?.as_fd(), &place)?;
        let name = dump.stem.sidecar();
        rustix::io::retry_on_intr(|| rustix::fs::renameat(&from, &*name, &to, &*name))
            .with_context(|| format!("cannot take {name} out of the history of what was sent"))?;
        fsio::sync(to.as_fd())?;
        fsio::sync(from.as_fd())
    }
}

/// An entry of the history that is being written.
struct Noted {
    sent: Dump,
    dir: OwnedFd,
    /// None where it was there already.
    file: Option<File>,
}

/// What an entry of the history is called until it is whole.
fn temp(sent: &Dump) -> String {
    format!(".{}.new", sent.stem)
}

impl Noted {
    /// Gives the file its name. The directory is not flushed.
    fn put(self) -> Result<Self> {
        if self.file.is_some() {
            fsio::replace(self.dir.as_fd(), &temp(&self.sent), &self.sent.stem.sidecar())?;
        }
        Ok(self)
    }
}

/// Refuses (exit 4) two places that are one, or of which one shows the dumps of the other: a hidden directory may lie in
/// a store. A place that is not there yet counts as what it would be once it is made.
pub fn apart(what: &str, a: &Path, other: &str, b: &Path) -> Result<()> {
    let (Some(a), Some(b)) = (resolve(a), resolve(b)) else { return Ok(()) };
    let shows = |outer: &Path, inner: &Path| {
        let hidden = |part: std::path::Component| part.as_os_str().as_encoded_bytes().starts_with(b".");
        inner.strip_prefix(outer).is_ok_and(|below| !below.components().any(hidden))
    };
    if shows(&a, &b) || shows(&b, &a) {
        return Err(Kind::Refused.says(format!(
            "{what} {} and {other} {} must be apart: a hidden directory in the store (.outbox-…), or elsewhere",
            a.display(),
            b.display()
        )));
    }
    Ok(())
}

/// Where a path leads. The last part need not be there: nothing here makes more than that.
fn resolve(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    })
}

fn read_history(sent: BorrowedFd, places: impl IntoIterator<Item = String>) -> Result<History> {
    let mut history = History::default();
    for place in places {
        let Ok(dir) = fsio::open_dir(sent, &place) else { continue };
        for (name, _) in fsio::names(dir.as_fd()).context("cannot list the history of what was sent")? {
            let Some(stem) = Stem::of_sidecar(&name) else { continue };
            match read_sidecar(dir.as_fd(), &stem) {
                Ok(Some(dump)) => history.dumps.push(dump),
                Ok(None) => {}
                Err(error) => history.unreadable.push(Unreadable { place: place.clone(), stem: Some(stem), error }),
            }
        }
    }
    history.dumps.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    Ok(history)
}

fn read_sidecar(dir: BorrowedFd, stem: &Stem) -> Result<Option<Dump>> {
    let Some(text) = fsio::read_file(dir, &stem.sidecar(), SIDECAR_MAX)? else { return Ok(None) };
    Ok(Some(Dump::from_sidecar(stem, &text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_would_be_one_another_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["s/.outbox-a", "s/web", "t"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let at = |a: &str, b: &str| apart("a", &dir.path().join(a), "b", &dir.path().join(b)).is_ok();
        assert!(at("s", "t") && at("s", "s/.outbox-a") && at("s/.outbox-a", "s") && at("s", "nowhere"));
        assert!(
            at("s", "s/.new")
                && at("s/web", "s/new")
                && !at("s", "s/new")
                && !at("s/new", "s")
                && !at("s", "s/web/new")
        );
        assert!(!at("s", "s") && !at("s", "s/web") && !at("s/web", "s") && !at("s", "t/../s"));
    }
}
