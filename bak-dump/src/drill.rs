//! `bak-restore --drill`: dumps brought back on trial, checked, and removed, so that it is known that they can be.
//!
//! What can go wrong is to touch what is not the drill's: a guest, a file, or what an earlier drill was killed over. So one
//! drill runs at a time; before anything is made it is noted here what will be, under a token that nothing else has; and what
//! a killed drill has left is removed by its note only where that token proves that it is its own.
//!
//! Where things lie: `<store>/.bak/drill/` (without a store, where what was fetched is kept): the lock, the history, and a note
//! `<token>.json` for each trial that has not ended. Images come back in `<token>/` beside it, or in `.bak-drill/<token>/` of
//! `--work`.

mod plan;

use anyhow::{Context, Result, anyhow, ensure};
use bak_common::args::Session;
use bak_common::command::{NotExecutable, NotRun};
use bak_common::drills::{self, Drill};
use bak_common::far::{LimitReached, home};
use bak_common::fsio;
use bak_common::jsonl::Writer;
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::record::{Dump, Record, Skipped, to_line};
use bak_common::report::{Kind, status};
use bak_common::stop::{self, Stopped};
use bak_common::store::{BAK, Entry, Store};
use bak_common::table::table;
use bak_common::units::{show_duration, show_size};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::bar::{bar, step};
use crate::check::{Compared, compare};
use crate::driver::{self, Cleared, Decision, Here, Trial};
use crate::place::Place;
use crate::proof::prove;
use plan::Choice;

const LOCK: &str = ".lock";
/// The directory of ours in one that the user names.
const OURS: &str = ".bak-drill";

/// The longest note that is read, in bytes.
const NOTE_MAX: u64 = 1 << 20;

/// What is to be drilled.
pub struct Request<'a> {
    pub sample: u64,
    /// All of the sample together holds no more.
    pub max_bytes: u64,
    pub seed: Option<u64>,
    /// Where to, as drivers understand it.
    pub to: Option<&'a Path>,
    pub work: Option<&'a Path>,
    /// The store of this machine, if it has one.
    pub store: Option<&'a Path>,
}

/// Where a drill keeps its notes, locked.
struct Notes<'a> {
    session: &'a Session,
    dir: PathBuf,
    top: fs::File,
    lock: Lock,
}

/// Drills a sample of `dumps`, which lie in `place`.
pub fn run(session: &Session, request: &Request, place: &mut Place, dumps: Vec<Entry>) -> Result<()> {
    if let Some(work) = request.work {
        home::look(work).context("--work")?;
    }
    let dir = notes_dir(request.store)?;
    let history = drills::read(&dir)?;
    // The same all day, so that a dry run shows what the run will do.
    let seed = request.seed.unwrap_or_else(|| session.now.unix().unsigned_abs() / 86_400);
    let chosen = {
        let known: RefCell<HashMap<String, Result<(), String>>> = RefCell::default();
        let ask = |dump: &Dump| able(session, dump);
        let able = |dump: &Dump| {
            let mut known = known.borrow_mut();
            known.entry(dump.driver.clone()).or_insert_with(|| ask(dump)).clone()
        };
        let begun = |entry: &Entry| matches!(&*place, Place::There(source) if source.has_begun(entry));
        plan::choose(&dumps, &history, &plan::World { able: &able, begun: &begun }, request, seed)
    };
    let (mut told, mut drilled) = (Told::default(), 0);
    let notes = if session.dry_run { None } else { Some(Notes::open(session, dir)?) };
    if let Some(notes) = &notes {
        notes.clear_all();
    }
    for Choice { entry, decision } in &chosen {
        let mut dump = entry.dump.clone();
        dump.planned = session.dry_run;
        match (decision, &notes) {
            (Err(_), _) if !session.explain => continue,
            (Err(why), _) => dump.skipped = Some(Skipped { why: why.clone() }),
            (Ok(why), None) => {
                drilled += 1;
                note(&mut dump, "drill", why, &[]);
            }
            (Ok(_), Some(notes)) => {
                drilled += 1;
                if !notes.outcome(request, place, entry, &mut dump)? {
                    break;
                }
            }
        }
        told.tell(session, dump)?;
    }
    if drilled == 0 && stop::caught().is_none() {
        session.report.fail("drill", &anyhow!(nothing(&chosen)));
    }
    told.end(session)
}

/// Why a dump cannot be drilled, if that is so.
fn able(session: &Session, dump: &Dump) -> Result<(), String> {
    match driver::find(&dump.driver, &session.config) {
        Ok(driver) => driver.cannot_drill().map_or(Ok(()), Err),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Why none was drilled.
fn nothing(chosen: &[Choice]) -> String {
    let mut whys = chosen.iter().filter_map(|choice| Some((&choice.entry.dump.id, choice.decision.as_ref().err()?)));
    let Some((id, why)) = whys.next() else { return "there is no good dump to be drilled".to_owned() };
    let more = match whys.count() {
        0 => String::new(),
        count => format!("; nor could {count} more (--explain says why)"),
    };
    format!("no dump could be drilled: {id}: {why}{more}")
}

/// Whether an error says nothing of the dump that was drilled: something is full, missing, locked or refused here.
fn is_ours(error: &anyhow::Error) -> bool {
    // VirtualBox's words, and LVM's.
    const FULL: [&str; 2] = ["verr_disk_full", "insufficient free space"];
    let text = format!("{error:#}").to_lowercase();
    error.is::<Here>()
        || fsio::is_full(error)
        || error.is::<NotRun>()
        || error.is::<NotExecutable>()
        || status(error) != 1
        || FULL.iter().any(|words| text.contains(words))
}

/// Puts the note of a drill into a record.
fn note(dump: &mut Dump, decision: &str, why: &str, more: &[(&str, Value)]) {
    let mut note = json!({"decision": decision, "why": why});
    for (key, value) in more {
        note[*key] = value.clone();
    }
    dump.extra.insert("drill".into(), note);
}

/// What is printed.
#[derive(Default)]
struct Told {
    rows: Vec<Vec<String>>,
}

impl Told {
    fn tell(&mut self, session: &Session, dump: Dump) -> Result<()> {
        let record = Record::Dump(Box::new(dump));
        session.report.decided(&to_line(&record));
        let Record::Dump(dump) = &record else { return Ok(()) };
        if !session.table {
            return if session.quiet { Ok(()) } else { Writer::stdout().record(&record) };
        }
        let drill = dump.extra.get("drill").unwrap_or(&Value::Null);
        let text = |key: &str| drill[key].as_str().unwrap_or_default().to_owned();
        let took = drill["seconds"].as_i64().map(show_duration).unwrap_or_default();
        let (verdict, why) = match &dump.skipped {
            Some(skipped) => ("skipped".to_owned(), skipped.why.clone()),
            None => (text("decision"), text("why")),
        };
        self.rows.push(vec![dump.id.to_string(), show_size(dump.bytes), took, verdict, why]);
        Ok(())
    }

    fn end(self, session: &Session) -> Result<()> {
        if !session.table || session.quiet || self.rows.is_empty() {
            return Ok(());
        }
        Writer::stdout().line(&table(&["dump", "size", "took", "drill", "why"], &[1, 2], self.rows))
    }
}

/// Where notes are kept; it need not be there.
fn notes_dir(store: Option<&Path>) -> Result<PathBuf> {
    match store.filter(|store| store.is_dir()) {
        Some(store) => Ok(Store::open(store)?.path().join(BAK).join(drills::DIR)),
        None => Ok(home::caches()?.join("bak").join(drills::DIR)),
    }
}

impl<'a> Notes<'a> {
    fn open(session: &'a Session, dir: PathBuf) -> Result<Self> {
        if let Some(above) = dir.parent() {
            home::make(above)?;
        }
        let top = home::make(&dir)?;
        let lock = Lock::take(top.as_fd(), LOCK, Hold::Exclusive, session.wait, "the drill")?;
        lock.sign(&Holder::me())?;
        Ok(Self { session, dir, top, lock })
    }

    /// Removes what killed drills have left, as far as that is surely theirs. The rest is told of, each time.
    fn clear_all(&self) {
        for (name, _) in fsio::names(self.top.as_fd()).unwrap_or_default() {
            let cleared = match (name.strip_suffix(".json"), name.starts_with('.') && name.ends_with(".new")) {
                (Some(token), _) => self.clear(token),
                // A note that was being written: what it tells was not begun.
                (None, true) => fsio::unlink(self.top.as_fd(), &name),
                _ => Ok(()),
            };
            if let Err(error) = cleared {
                self.session.report.fail(&self.dir.join(&name).display().to_string(), &error);
            }
        }
    }

    fn note_path(&self, token: &str) -> PathBuf {
        self.dir.join(format!("{token}.json"))
    }

    /// Removes what the trial with this token has left, then its note.
    fn clear(&self, token: &str) -> Result<()> {
        let path = self.note_path(token);
        let text = fsio::read_file(self.top.as_fd(), &format!("{token}.json"), NOTE_MAX)
            .context("cannot read what a killed drill has noted")?
            .unwrap_or_default();
        let note: Value = serde_json::from_slice(&text).context("cannot read what a killed drill has noted")?;
        // First what a hypervisor knows of, which it may want its files for.
        if let (Some(name), Some(made)) = (note["driver"].as_str(), note["made"].as_object()) {
            match driver::find(name, &self.session.config)?.clear(token, made)? {
                Cleared::Gone => {}
                Cleared::Unsure(what) => {
                    let how = format!("{what}; then remove {}", path.display());
                    return Err(Kind::Refused.says(how));
                }
            }
        }
        if let Some(dir) = note["dir"].as_str().map(Path::new) {
            // Only ever what is called by the token, which is random: nobody else has made that.
            if dir.file_name().is_some_and(|name| name == token) {
                match fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
                    }
                    _ => {}
                }
            }
        }
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Brings one dump back on trial, and says in `dump` and in the history what came of it; false if we were asked to end.
    fn outcome(&self, request: &Request, place: &mut Place, entry: &Entry, dump: &mut Dump) -> Result<bool> {
        let (begun, from, id) = (Instant::now(), place.shown(), entry.dump.id.as_str());
        let tried = self.drill(request, place, entry);
        let (decision, why) = match tried {
            Ok((decision, why)) => (decision.as_str(), why),
            Err(error) if error.is::<Stopped>() => {
                self.session.report.warn(id, &format!("the drill ended: {error:#}"));
                return Ok(false);
            }
            Err(error) if error.is::<LimitReached>() => (drills::SKIPPED, cut(place, entry)),
            Err(error) if is_ours(&error) => {
                self.session.report.fail(id, &anyhow!("the drill failed, which says nothing of the dump: {error:#}"));
                ("failed", format!("{error:#}"))
            }
            Err(error) => {
                self.session.report.fail(id, &anyhow!("the drill failed: {error:#}"));
                ("bad", format!("{error:#}"))
            }
        };
        let drill = Drill {
            seconds: begun.elapsed().as_secs(),
            decision: decision.to_owned(),
            why,
            ..Drill::of(dump, &from, self.session.clock())
        };
        drills::append(self.top.as_fd(), &drill).with_context(|| self.dir.display().to_string())?;
        if drill.is_skipped() {
            dump.skipped = Some(Skipped { why: drill.why });
            return Ok(true);
        }
        let more = [
            ("at", json!(drill.at)),
            ("seconds", json!(drill.seconds)),
            ("bytes", json!(drill.bytes)),
            ("from", json!(drill.from)),
        ];
        note(dump, decision, &drill.why, &more);
        Ok(true)
    }

    /// Brings one dump back on trial; what was found.
    fn drill(&self, request: &Request, place: &mut Place, entry: &Entry) -> Result<(Decision, String)> {
        let bar = bar(self.session, &entry.dump);
        match place {
            Place::Here { store, .. } => {
                let compared = compare(store, entry, true, &step(&bar, "checking")).map_err(Here::of)?;
                self.judged(request, store, entry, &compared, &bar)
            }
            Place::There(source) => {
                if source.is_spent() {
                    return Err(LimitReached.into());
                }
                let copy = source.fetch(entry, &step(&bar, "fetching")).map_err(Here::of)?;
                let tried = self.judged(request, &copy.store, &copy.entry, &copy.compared, &bar);
                copy.remove();
                tried
            }
        }
    }

    fn judged(
        &self,
        request: &Request,
        store: &Store,
        entry: &Entry,
        compared: &Compared,
        bar: &indicatif::ProgressBar,
    ) -> Result<(Decision, String)> {
        let proved = prove(&self.session.config, store, entry, compared, &step(bar, "checking"));
        let (decision, why) = proved.map_err(Here::of)?;
        ensure!(decision != Decision::Bad, "{why}");
        let tried = self.trial(request, store, entry, bar)?;
        bar.finish_and_clear();
        Ok((decision, format!("{why}; {tried}")))
    }

    fn trial(&self, request: &Request, store: &Store, entry: &Entry, bar: &indicatif::ProgressBar) -> Result<String> {
        let driver = driver::find(&entry.dump.driver, &self.session.config)?;
        let token = uuid::Uuid::new_v4().simple().to_string();
        let above = match request.work {
            Some(work) => std::path::absolute(work.join(OURS)).context("cannot tell where --work is")?,
            None => self.dir.clone(),
        };
        let dir = above.join(&token);
        let written = |made: &Map<String, Value>| {
            let note = json!({"v": 1, "token": token, "id": entry.dump.id, "driver": entry.dump.driver, "dir": dir, "made": made,
                "at": self.session.clock()});
            fsio::write_whole(
                self.top.as_fd(),
                &format!(".{token}.new"),
                &format!("{token}.json"),
                note.to_string().as_bytes(),
            )
            .context("cannot note what the drill is about to make")
        };
        written(&Map::new()).map_err(Here::of)?;
        let made = request.work.map_or(Ok(()), |work| home::make(work).map(drop));
        let made = made.and_then(|()| home::make(&above));
        let made = made.and_then(|_| fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display())));
        let place = store.path().join(&entry.place);
        let files: Vec<PathBuf> = entry.dump.files.iter().map(|file| place.join(&file.name)).collect();
        let tick = step(bar, "drilling");
        let tried = made.map_err(Here::of).and_then(|()| {
            driver.drill(&Trial {
                dump: &entry.dump,
                files: &files,
                dir: &dir,
                to: request.to,
                token: &token,
                note: &written,
                hold: &self.lock,
                tick: &tick,
            })
        });
        match (tried, self.clear(&token)) {
            (Ok(_), Err(error)) => Err(Here::of(error)),
            (Err(error), Err(other)) => Err(error.context(format!("{other:#}"))),
            (tried, Ok(())) => tried,
        }
    }
}

/// What a limit has left to be done of a dump.
fn cut(place: &Place, entry: &Entry) -> String {
    let all = show_size(entry.dump.bytes);
    match place {
        Place::There(source) if source.has_begun(entry) => {
            let lacks = show_size(source.lacks(entry));
            format!(
                "the limit is reached: {lacks} of {all} are still to come; what has come is kept, and the next drill goes on with it"
            )
        }
        _ => format!("too little is left of the limits: none of its {all} has come"),
    }
}
