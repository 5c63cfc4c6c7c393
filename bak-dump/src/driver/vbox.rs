//! Guests of VirtualBox, exported by VBoxManage while they are stopped.
//!
//! **Whose.** VirtualBox knows each user's machines apart: those listed are of the user who runs bak.
//!
//! **Names** may hold anything, and two machines may have the same. So machines are addressed by their UUIDs; a name is what bak
//! calls the guest, and of two with one name none is dumped.
//!
//! **Use.** Nothing stops a guest from being started while it is exported, and VBoxManage may end well all the same. So its state
//! and when that changed are compared before and after, and an export in whose time it was used is thrown away. The same marks
//! are its fingerprint.
//!
//! **The service.** Work is done by VBoxSVC, which the first VBoxManage starts and which outlives it: it must not inherit the locks
//! of a dump. It runs already when an export begins, as the guest was looked at just before. VBoxManage is asked to end (SIGTERM)
//! when time is up or we die: that has the service give up the export, too.

mod drill;
mod export;
mod import;
mod info;
mod list;
mod say;

use anyhow::{Context, Result, anyhow, bail};
use bak_common::command::{Event, Finished, Program};
use bak_common::config::{self, Config};
use bak_common::name::GuestName;
use bak_common::record::Guest;
use bak_common::report::Kind;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{Cleared, Driver, Job, Listed, Made, Order, Progress, Trial};
use info::Info;

pub const NAME: &str = "vbox";

/// Its program.
const PROGRAM: &str = "VBoxManage";

/// How long it may take to list machines or to describe one; it may have to start its service.
const LOOK_TIMEOUT: Duration = Duration::from_secs(120);

/// How long an export or import may take if nobody says.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How much of the end of its words holds its progress.
const TAIL: u64 = 128;

/// The driver.
pub struct Vbox {
    how: config::Vbox,
    timeout: Duration,
    node: String,
    prefix: Option<String>,
}

/// A machine, and what it is if it could be looked at.
struct Machine {
    uuid: String,
    info: Result<Info>,
}

impl Vbox {
    pub fn new(config: &Config) -> Self {
        let how = config.vbox.clone();
        let timeout = config.vzdump_flags.timeout.or(how.timeout);
        Self {
            timeout: timeout.map_or(TIMEOUT, |span| Duration::from_secs(span.0)),
            how,
            node: config.node(),
            prefix: config.prefix.clone(),
        }
    }

    /// Its names and paths are UTF-8, and it must take ours as such: not so in the locale `C`.
    fn program() -> Result<Program> {
        Ok(Program::new(PROGRAM)?.env("LC_ALL", "C.UTF-8"))
    }

    fn ask(&self, args: &[&str]) -> Result<Finished> {
        Self::program()?.args(args.iter().copied()).timeout(LOOK_TIMEOUT).on_our_death(Signal::TERM).own_group().run()
    }

    fn said(&self, command: &str, finished: Finished) -> Result<String> {
        if !finished.status.success() {
            return Err(say::error(command, &finished));
        }
        String::from_utf8(finished.stdout).with_context(|| format!("VBoxManage {command} prints what is no UTF-8"))
    }

    /// A machine as it is now. `None` if there is none (any more).
    fn machine(&self, uuid: &str) -> Result<Option<Info>> {
        let finished = self.ask(&["showvminfo", uuid, "--machinereadable"])?;
        if !finished.status.success() && say::is_gone(&finished) {
            return Ok(None);
        }
        let info = Info::parse(&self.said("showvminfo", finished)?)?;
        if info.uuid() != uuid {
            bail!("VBoxManage showvminfo describes another machine than the one asked for");
        }
        Ok(Some(info))
    }

    fn machines(&self) -> Result<Vec<Machine>> {
        let listed = self.said("list vms", self.ask(&["list", "vms"])?)?;
        let machine = |uuid: &str| {
            let info = self.machine(uuid).transpose()?;
            Some(Machine { uuid: uuid.to_owned(), info })
        };
        // What is gone was unregistered meanwhile, or never was one.
        Ok(list::uuids(&listed)?.into_iter().filter_map(machine).collect())
    }

    fn guest(&self, info: &Info) -> Result<Guest> {
        let vm = GuestName::new(format!("{}{}", self.prefix.as_deref().unwrap_or_default(), info.name()))?;
        let mut guest = Guest::new(vm, NAME, NAME);
        guest.name = self.prefix.is_some().then(|| info.name().to_owned());
        guest.uid = Some(info.uuid().to_owned());
        guest.node = Some(self.node.clone());
        guest.tags = info.groups();
        guest.state = info.state();
        guest.fingerprint = info.fingerprint();
        let disks = info.disks().iter().map(|disk| json!({"path": disk.path, "uuid": disk.uuid})).collect();
        guest.extra.insert("disks".into(), disks);
        Ok(guest)
    }

    /// The machine that a guest is, as it is now.
    fn info(&self, guest: &Guest) -> Result<Info> {
        let uuid = guest.uid.as_deref().context("its record has no uid: a guest of VirtualBox is found by that")?;
        self.machine(uuid)?.context("it is gone")
    }

    /// Runs a long command; its words are also kept in `log`, which is read for its progress.
    fn work(&self, program: Program, log: File, tick: &dyn Fn(Progress) -> Result<()>) -> Result<Finished> {
        let said = log.try_clone().context("cannot share its log")?;
        let program = program.timeout(self.timeout).on_our_death(Signal::TERM).own_group().log(log);
        program.run_with(|event| match event {
            Event::Output(_) => Ok(()),
            Event::Tick => tick(Progress { done: progress(&said) }),
        })
    }
}

/// How far it has come by the end of what it said.
fn progress(said: &File) -> f64 {
    let mut tail = [0; TAIL as usize];
    let end = said.metadata().map_or(0, |meta| meta.len());
    let count = said.read_at(&mut tail, end.saturating_sub(TAIL)).unwrap_or(0);
    say::percent(&tail[..count]).unwrap_or(0.0)
}

impl Driver for Vbox {
    fn name(&self) -> &'static str {
        NAME
    }

    fn list(&self) -> Result<Listed> {
        // Said once here rather than for every guest.
        drop(Program::new(PROGRAM).map_err(|error| Kind::Usage.of(error))?);
        let mut listed = Listed::default();
        let mut by_name: BTreeMap<GuestName, Vec<Guest>> = BTreeMap::new();
        for Machine { uuid, info } in self.machines()? {
            match info.map(|info| (self.guest(&info), info)) {
                Ok((Ok(guest), _)) => by_name.entry(guest.vm.clone()).or_default().push(guest),
                Ok((Err(error), info)) => listed.failed.push((info.name().to_owned(), error)),
                Err(error) => listed.failed.push((uuid, error)),
            }
        }
        for (vm, mut guests) in by_name {
            if guests.len() == 1 {
                listed.guests.append(&mut guests);
                continue;
            }
            let uuids: Vec<&str> = guests.iter().filter_map(|guest| guest.uid.as_deref()).collect();
            let why = format!("several guests have this name: {}; rename all but one of them", uuids.join(", "));
            listed.failed.push((vm.to_string(), anyhow!(why)));
        }
        Ok(listed)
    }

    fn look(&self, guest: &Guest) -> Result<Guest> {
        self.guest(&self.info(guest)?)
    }

    fn dump(&self, job: &Job) -> Result<Made> {
        export::dump(self, job)
    }

    fn restore(&self, order: &Order) -> Result<Vec<String>> {
        import::restore(self, order)
    }

    fn drill(&self, trial: &Trial) -> Result<String> {
        drill::drill(self, trial)
    }

    fn clear(&self, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
        drill::clear(self, token, note)
    }
}
