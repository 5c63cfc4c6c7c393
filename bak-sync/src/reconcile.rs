//! `--reconcile`: the history of what was sent is made to say what is over there.
//!
//! The hazard is to believe too much. A dump counts as there if its sidecar can be read there and all its files are there
//! in their sizes; or, for copies that something else made, if all files of a dump that is known here lie in one directory
//! there, by name and size: such a dump is given its sidecar beside them. A listing that is not whole changes nothing, and
//! what is not certain stays as it is. What no longer counts as sent is kept, in `.bak/gone/` of the outbox.

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Destination, Session};
use bak_common::calendar::Time;
use bak_common::far::{Bounds, Far, FarFile, FarKind};
use bak_common::ledger::{self, Line};
use bak_common::name::{DumpId, is_component};
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, GuestKey, Record, SentNote, to_line};
use bak_common::store::{Entry, Listing, Store};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::time::Instant;

use crate::apply::{Options, Scratch, attempt, caps, keep_pace, known, lock};
use crate::identity;
use crate::share::Budget;

/// What was found of one dump.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub dump: Dump,
    pub what: What,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is there and counts as sent from now on.
    Adopted,
    /// The same; its sidecar is to be put beside its files, which are in this directory.
    Copied(String),
    /// It is not there and no longer counts as sent.
    Gone,
    /// It cannot be told: nothing changes.
    Unclear,
}

impl What {
    fn as_str(&self) -> &'static str {
        match self {
            What::Adopted | What::Copied(_) => "adopted",
            What::Gone => "gone",
            What::Unclear => "unclear",
        }
    }
}

/// What is known here and there.
#[derive(Debug)]
pub struct Sides<'a> {
    pub dest: &'a str,
    /// What counts as sent.
    pub history: &'a [Dump],
    /// The good dumps of the store and of the outbox.
    pub local: &'a [Dump],
    /// All files over there.
    pub files: &'a [FarFile],
    /// The dumps that they make up.
    pub there: &'a Listing,
    /// This node: its dumps are adopted even if nothing here knows their guest.
    pub node: &'a str,
}

/// Compares the two sides. Pure; by id.
pub fn compare(sides: &Sides) -> Vec<Finding> {
    let mut findings = BTreeMap::new();
    let mut found = |dump: &Dump, what, why: String| {
        findings.entry(dump.id.clone()).or_insert_with(|| Finding { dump: dump.clone(), what, why });
    };
    // What bak-prune removed over there is not missed, and is news if it is there again.
    let (pruned, history): (Vec<&Dump>, Vec<&Dump>) =
        sides.history.iter().partition(|dump| dump.sent.get(sides.dest).is_some_and(|note| note.pruned.is_some()));
    let sent: HashSet<_> = history.iter().map(|dump| &dump.id).collect();
    let pruned: HashSet<_> = pruned.into_iter().map(|dump| &dump.id).collect();
    let guests: HashSet<GuestKey> = sides.history.iter().chain(sides.local).map(Dump::key).collect();
    let mut there: HashMap<&DumpId, Vec<&Entry>> = HashMap::new();
    for entry in &sides.there.dumps {
        there.entry(&entry.dump.id).or_default().push(entry);
    }
    let named = |dump: &Dump| there.get(&dump.id).map_or(&[][..], Vec::as_slice);
    let is_there = |dump: &Dump| named(dump).iter().any(|entry| entry.is_good() && entry.dump.same(dump));
    for dump in history.iter().filter(|dump| !is_there(dump)) {
        if sides.there.unreadable.iter().any(|bad| bad.may_concern(&dump.vm)) {
            found(dump, What::Unclear, "a sidecar of its guest over there cannot be read".into());
        } else {
            let why = match named(dump).first().map(|entry| entry.fault.as_deref()) {
                None => "it is not over there".to_owned(),
                Some(Some(fault)) => format!("over there {fault}: remove its sidecar there, and it can be sent again"),
                Some(None) => "another dump is over there under its name".to_owned(),
            };
            found(dump, What::Gone, why);
        }
    }
    for dump in sides.there.good().map(|entry| &entry.dump).filter(|dump| !sent.contains(&dump.id)) {
        // A place that nodes share also has what is none of our business.
        if dump.node.as_deref() == Some(sides.node) || guests.contains(&dump.key()) {
            found(dump, What::Adopted, "it is over there".into());
        }
    }
    let files = Copies::new(sides.files);
    let known = |dump: &&Dump| !sent.contains(&dump.id) && !pruned.contains(&dump.id) && !there.contains_key(&dump.id);
    for dump in sides.local.iter().filter(known) {
        if let Some(place) = files.place(dump) {
            let why = format!("its files are over there in {place}/, by name and size");
            found(dump, What::Copied(place.to_owned()), why.replace(" in /,", ","));
        }
    }
    findings.into_values().collect()
}

/// All files over there: by their names the directories where such a one lies, and each with its size.
struct Copies<'a> {
    places: HashMap<&'a str, Vec<&'a str>>,
    sizes: HashMap<(&'a str, &'a str), u64>,
}

impl<'a> Copies<'a> {
    fn new(files: &'a [FarFile]) -> Self {
        let (mut places, mut sizes) = (HashMap::<_, Vec<_>>::new(), HashMap::new());
        let sayable = |file: &&FarFile| file.kind == FarKind::File && file.name.split('/').all(is_component);
        for file in files.iter().filter(sayable) {
            let (place, name) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
            places.entry(name).or_default().push(place);
            sizes.insert((place, name), file.bytes);
        }
        Self { places, sizes }
    }

    /// The directory over there in which all files of a dump lie, by name and size, but for the one into which bak-sync itself
    /// sends them: what lies there without a sidecar is its unfinished work.
    fn place(&self, dump: &Dump) -> Option<&'a str> {
        let own = Outbox::place(&dump.vm);
        let all = |place: &str| {
            dump.files.iter().all(|file| self.sizes.get(&(place, file.name.as_str())) == Some(&file.bytes))
        };
        let places = self.places.get(dump.files.first()?.name.as_str())?;
        places.iter().copied().find(|place| *place != own && all(place))
    }
}

/// Compares and, but in a dry run, sets the history right. `done` is called for each dump that the two sides disagree on.
/// What is there, and how many these were, in a line.
pub fn run(
    session: &Session,
    dest: &Destination,
    options: &Options,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<String> {
    let (url, outbox, expected) = known(dest)?;
    let shown = dest.url.clone().unwrap_or_default();
    let lock = lock(session, &outbox)?;
    let scratch = Scratch::new(&outbox, &lock)?;
    let (begun, looked_at) = (Instant::now(), session.clock());
    let mut ledger = ledger::Writer::open(&outbox.ledger(), &session.config.node(), session.clock())?;
    let mut far = Far::open(url, &options.access, scratch.path())?;
    keep_pace(session, options, &mut far);
    far.limit(Budget::new(&caps(session, dest, &outbox)?, false).left());
    let looked = identity::check(&far, &expected).and_then(|()| far.whole(&shown));
    let looked = looked.context("nothing was changed");
    let outcome = looked.and_then(|(files, there)| {
        for bad in &there.unreadable {
            session.report.fail(&bad.path(), &anyhow!("over there: {:#}", bad.error));
        }
        let history = outbox.history()?.dumps;
        let local = local(session, dest, &outbox)?;
        let node = session.config.node();
        let findings = compare(&Sides {
            dest: &dest.name,
            history: &history,
            local: &local,
            files: &files,
            there: &there,
            node: &node,
        });
        let noun = if there.good().count() == 1 { "dump" } else { "dumps" };
        let found = format!("{}: {} {noun} over there", dest.name, there.good().count());
        let line = match findings.len() {
            0 => format!("{found}, as the history says"),
            count => format!("{found}; {count} that the history had not so"),
        };
        findings.into_iter().try_for_each(|finding| settle(session, dest, &outbox, &far, &scratch, finding, done))?;
        // What bak-prune --only-sent relies on: all that counts as sent now was there when the listing began.
        if !session.dry_run && there.unreadable.is_empty() {
            outbox.set_sighted(looked_at)?;
        }
        Ok(line)
    });
    let id = format!("{}/reconcile", uuid::Uuid::new_v4());
    ledger.append(&Line::Attempt(attempt(session, dest, &id, None, far.take_wire(), begun, "done")))?;
    outcome
}

/// The good dumps that are here.
fn local(session: &Session, dest: &Destination, outbox: &Outbox) -> Result<Vec<Dump>> {
    let mut dumps: Vec<Dump> = outbox.store.list().good().map(|entry| entry.dump.clone()).collect();
    if let Some(path) = &dest.store {
        let store = Store::open(path)?;
        let listing = store.list();
        listing.report(&store, &session.report);
        dumps.extend(listing.good().map(|entry| entry.dump.clone()));
    }
    Ok(dumps)
}

fn settle(
    session: &Session,
    dest: &Destination,
    outbox: &Outbox,
    far: &Far,
    scratch: &Scratch,
    finding: Finding,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<()> {
    let Finding { dump, what, why } = finding;
    let at = session.clock();
    let changed = if session.dry_run {
        Ok(dump.bare())
    } else {
        match &what {
            What::Unclear => Ok(dump.bare()),
            What::Gone => outbox.unsend(&dump).map(|()| dump.bare()),
            What::Adopted => outbox.add_sent(&dump, adopted(at)),
            What::Copied(place) => {
                give_sidecar(far, scratch, &dump, place).and_then(|()| outbox.add_sent(&dump, adopted(at)))
            }
        }
    };
    let mut record = match changed {
        Ok(record) => record,
        Err(error) => {
            session.report.fail(dump.id.as_str(), &error);
            return Ok(());
        }
    };
    record.planned = session.dry_run;
    let note = json!({&dest.name: {"decision": what.as_str(), "why": why, "at": at}});
    record.extra.insert("reconcile".to_owned(), note);
    session.report.decided(&to_line(&Record::Dump(Box::new(record.clone()))));
    if what == What::Unclear {
        session.report.fail(dump.id.as_str(), &anyhow!("cannot tell whether it is over there: {why}"));
    }
    done(record)
}

fn adopted(at: Time) -> SentNote {
    let mut note =
        SentNote { at, wire_out: 0, wire_in: 0, seconds: 0, passes: 0, pruned: None, extra: Default::default() };
    note.extra.insert("adopted".to_owned(), true.into());
    note
}

/// Puts the sidecar beside files that something else has copied there, and looks whether it is there.
fn give_sidecar(far: &Far, scratch: &Scratch, dump: &Dump, place: &str) -> Result<()> {
    let name = if place.is_empty() { dump.stem.sidecar() } else { format!("{place}/{}", dump.stem.sidecar()) };
    let dir = scratch.path().join("adopted");
    let path = dir.join(&name);
    let text = dump.bare().to_sidecar();
    fs::create_dir_all(path.parent().unwrap_or(&dir)).context("cannot make a temporary directory")?;
    fs::write(&path, &text).context("cannot write a temporary file")?;
    far.send(&dir, "", std::slice::from_ref(&name), &["--ignore-existing"], Bounds::default(), &mut |_| Ok(()))?
        .check()
        .context("cannot put its sidecar over there")?;
    let there = far.list(std::slice::from_ref(&name))?;
    let arrived = there.iter().any(|file| file.name == name && file.bytes == text.len() as u64);
    if arrived { Ok(()) } else { Err(anyhow!("its sidecar was sent, but the listing does not show it")) }
}
