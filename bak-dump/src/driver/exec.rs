//! Any program as a driver: what is called `bak-driver-NAME` on PATH is the driver `NAME`.
//!
//! The protocol, which the README tells in full: its one argument is the command, `list`, `dump`, `verify`, `restore` or `undrill`; the
//! record of the guest or dump is a line of JSON on its standard input, and what a script needs most is in its environment
//! (`BAK_VM`, `BAK_BASE`, …); what it has to say are lines of JSON on its standard output; words for people go to standard
//! error. Of data there is one way in: descriptor 3, whose stream becomes one file of the dump, compressed so that a change of it
//! changes little. Not by a pipe to a compressing program, as in `sh` the failure of a pipe's first half is nobody's failure.
//!
//! A driver is trusted as far as a program of the administrator's is; but it may be wrong in any way. Hence a line that is no
//! message ends it, whatever it prints is bounded, each call has a time limit, what it started ends with it and with us, and a
//! dump counts only if the program ended well and every file that it named is there, regular, not empty and nobody else's.

mod data;
mod drill;
mod dump;
mod list;
mod say;

use anyhow::{Result, anyhow, bail, ensure};
use bak_common::command::{Event, Finished, Program};
use bak_common::config::Config;
use bak_common::name::{GuestName, Stem, printable};
use bak_common::record::{Dump, Guest, Record, to_line};
use bak_common::report::Kind;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::{Cleared, Driver, Job, Listed, Made, Order, Progress, Trial, Verdict};
use say::{Lines, ToRestore, ToVerify};

/// How long a call may take if nobody says: a mistake must not last for ever, and a large database takes its time.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How long it may take to list, at most.
const LIST_TIMEOUT: Duration = Duration::from_secs(300);

/// Its exit status if it does not know the command (EX_USAGE), if the guest cannot be dumped now (EX_TEMPFAIL), and if it
/// refuses, as bak's own programs do.
const NO_COMMAND: i32 = 64;
const NOT_NOW: i32 = 75;
const REFUSED: i32 = 4;

/// What was called otherwise in the driver's own list, where a prefix was put before it.
const LISTED_AS: &str = "listed_as";

/// The driver.
pub struct Exec {
    name: String,
    program: String,
    timeout: Duration,
    env: Vec<(String, String)>,
    node: String,
    prefix: Option<String>,
}

/// The environment of one call. All of it is always set, so that none comes from ours.
#[derive(Default)]
struct Env<'a> {
    vm: String,
    /// The files of the dump, up to the dot before what follows the stem.
    base: OsString,
    new_name: &'a str,
    to: OsString,
    format: &'a str,
    force: bool,
    dry_run: bool,
}

impl Exec {
    /// The driver of this name, if there is such a program.
    pub fn installed(name: &str, config: &Config) -> Result<Option<Self>> {
        let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
            return Ok(None);
        }
        let program = format!("bak-driver-{name}");
        if !Program::exists(&program)? {
            return Ok(None);
        }
        let own = config.exec.get(name).cloned().unwrap_or_default();
        Ok(Some(Self {
            name: name.to_owned(),
            program,
            timeout: config.vzdump_flags.timeout.or(own.timeout).map_or(TIMEOUT, |span| Duration::from_secs(span.0)),
            env: own.env.into_iter().collect(),
            node: config.node(),
            prefix: config.prefix.clone(),
        }))
    }

    fn program(&self, command: &str, env: Env) -> Result<Program> {
        let flag = |set: bool| if set { "1" } else { "" };
        let mut program = Program::new(&self.program)?.arg(command).timeout(self.timeout);
        for (key, value) in &self.env {
            program = program.env(key, value);
        }
        // Guarded, as a script's own children would outlive it.
        Ok(program
            .env("BAK_VM", env.vm)
            .env("BAK_BASE", env.base)
            .env("BAK_AS", env.new_name)
            .env("BAK_TO", env.to)
            .env("BAK_FORMAT", env.format)
            .env("BAK_FORCE", flag(env.force))
            .env("BAK_DRY_RUN", flag(env.dry_run))
            .guarded())
    }

    /// Runs a call to its end and gives each line that it prints to `each`.
    fn call<M: serde::de::DeserializeOwned>(
        &self,
        program: Program,
        mut each: impl FnMut(M) -> Result<()>,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Finished> {
        let mut lines = Lines::default();
        let finished = program.run_with(|event| match event {
            Event::Output(bytes) => lines.feed(bytes, &mut |line| each(say::message(&self.program, line)?)),
            Event::Tick => tick(),
        })?;
        if finished.status.success() {
            lines.end(&mut |line| each(say::message(&self.program, line)?))?;
        }
        Ok(finished)
    }

    /// What a dump's guest is called in the driver's own list.
    fn own_name<'a>(vm: &'a GuestName, extra: &'a Map<String, Value>) -> &'a str {
        extra.get(LISTED_AS).and_then(Value::as_str).unwrap_or(vm.as_str())
    }

    /// How it ended, if not well.
    fn check(&self, finished: &Finished, command: &str) -> Result<()> {
        match finished.status.code() {
            Some(0) => Ok(()),
            Some(NO_COMMAND) => {
                let said = finished.last_words();
                let colon = if said.is_empty() { "" } else { ": " };
                bail!("{} does not know the command {command} (exit status {NO_COMMAND}){colon}{said}", self.program)
            }
            _ => Err(finished.error()),
        }
    }
}

/// Where the files of a dump are in `dir`, up to the dot before what follows the stem.
fn base(dir: &Path, stem: &Stem) -> OsString {
    dir.join(stem.as_str()).into_os_string()
}

/// A record as the line that a program reads.
fn guest_line(guest: &Guest) -> String {
    to_line(&Record::Guest(Box::new(guest.clone()))) + "\n"
}

fn dump_line(dump: &Dump) -> String {
    to_line(&Record::Dump(Box::new(dump.clone()))) + "\n"
}

impl Driver for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self) -> Result<Listed> {
        let program = self.program("list", Env::default())?.timeout(self.timeout.min(LIST_TIMEOUT));
        let finished = program.run()?;
        self.check(&finished, "list")?;
        let source = list::Source { driver: &self.name, node: &self.node, prefix: self.prefix.as_deref() };
        Ok(list::read(&finished.stdout, &source))
    }

    fn dump(&self, job: &Job) -> Result<Made> {
        dump::dump(self, job)
    }

    fn cannot_drill(&self) -> Option<String> {
        drill::cannot(self)
    }

    fn drill(&self, trial: &Trial) -> Result<String> {
        drill::drill(self, trial)
    }

    fn clear(&self, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
        drill::clear(self, token, note)
    }

    fn verify(&self, dump: &Dump, dir: &Path, tick: &dyn Fn() -> Result<()>) -> Result<Option<Verdict>> {
        let vm = Self::own_name(&dump.vm, &dump.extra).to_owned();
        let program = self.program("verify", Env { vm, base: base(dir, &dump.stem), ..Env::default() })?;
        let mut verdict = None;
        let each = |said: ToVerify| {
            ensure!(verdict.is_none(), "{} gave two verdicts", self.program);
            verdict = Some(said.verdict()?);
            Ok(())
        };
        let finished = self.call(program.feed(dump_line(dump)), each, &mut || tick())?;
        if finished.status.code() == Some(NO_COMMAND) {
            return Ok(None);
        }
        self.check(&finished, "verify")?;
        verdict.map(Some).ok_or_else(|| anyhow!("{} verify gave no verdict", self.program))
    }

    fn restore(&self, order: &Order) -> Result<Vec<String>> {
        let dump = order.dump;
        if !order.there {
            // What a program makes of a dump that it cannot read yet, nobody knows.
            return Ok(vec![format!("what {} makes of {} once it is fetched", self.program, dump.id)]);
        }
        let dir = order.files.first().and_then(|file| file.parent()).unwrap_or(Path::new("."));
        let env = Env {
            vm: Self::own_name(&dump.vm, &dump.extra).to_owned(),
            base: base(dir, &dump.stem),
            new_name: order.name.map_or("", GuestName::as_str),
            to: order.to.map(|to| to.as_os_str().to_owned()).unwrap_or_default(),
            format: order.format.unwrap_or_default(),
            force: order.force,
            dry_run: order.dry_run,
        };
        let program = self.program("restore", env)?.feed(dump_line(dump));
        let (mut targets, done) = (Vec::new(), std::cell::Cell::new(0.0));
        let each = |said: ToRestore| {
            done.set(said.progress.unwrap_or(done.get()));
            targets.extend(said.target()?);
            ensure!(targets.len() <= say::NAMES_MAX, "{} names too many targets", self.program);
            Ok(())
        };
        let finished = self.call(program, each, &mut || (order.tick)(Progress { done: done.get() }))?;
        if finished.status.code() == Some(REFUSED) {
            let said = finished.last_words();
            let why = if said.is_empty() { "it does not say why" } else { &said };
            return Err(Kind::Refused.says(format!("{} refuses: {}", self.program, printable(why))));
        }
        self.check(&finished, "restore")?;
        ensure!(!targets.is_empty(), "{} restore ended well, and did not say what it made", self.program);
        Ok(targets)
    }
}
