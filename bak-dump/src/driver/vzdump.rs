//! Guests of a Proxmox node: VMs and containers, dumped by vzdump, live.
//!
//! **Completeness.** vzdump ends with status 0 also after warnings, and when it made nothing because the guest is on another
//! node; so a dump is believed only if vzdump says that it finished this guest, ended well, and what came out begins as such an
//! archive does.
//!
//! **Names.** Dumps lie flat in the store under Proxmox's own names (`vzdump-qemu-100-2026_11_20-02_00_02.vma.zst`, in local
//! time), so that its web interface lists and restores them; so does what it writes beside: `.log`, `.notes`, `.protected`.
//!
//! **Locks.** One vzdump runs a node, and waits for another itself; a guest that its manager has locked is not touched.

mod conf;
mod drill;
mod dump;
pub mod list;
mod log;
mod restore;

use anyhow::{Context, Result, bail, ensure};
use bak_common::calendar::{Time, Zone};
use bak_common::config::{Config, Writer};
use bak_common::name::{GuestName, Stem};
use bak_common::record::{Guest, State};
use bak_common::select::Subject;
use serde_json::{Map, Value};
use std::path::PathBuf;

use super::{Cleared, Driver, Job, Listed, Made, Order, Trial};
pub use conf::Conf;
pub use log::Heard;

pub const NAME: &str = "vzdump";

/// Where Proxmox keeps its configuration.
const ETC: &str = "/etc/pve";

/// What a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Qemu,
    Lxc,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Qemu => "qemu",
            Kind::Lxc => "lxc",
        }
    }

    fn of(text: &str) -> Option<Self> {
        match text {
            "qemu" => Some(Kind::Qemu),
            "lxc" => Some(Kind::Lxc),
            _ => None,
        }
    }

    /// What an archive is called behind its stem.
    fn archive(self) -> &'static str {
        match self {
            Kind::Qemu => "vma",
            Kind::Lxc => "tar",
        }
    }

    /// The command that unlocks a guest.
    fn tool(self) -> &'static str {
        match self {
            Kind::Qemu => "qm",
            Kind::Lxc => "pct",
        }
    }
}

/// A guest's number: what Proxmox knows it by.
pub(crate) fn vmid(text: &str) -> Option<u32> {
    // As Proxmox has them: 100 to 999999999.
    let sound = (3..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| sound)
}

/// The driver.
pub struct Vzdump {
    config: Config,
    etc: PathBuf,
    node: String,
}

impl Vzdump {
    pub fn new(config: &Config) -> Result<Self> {
        let etc = config.vzdump.etc.clone().unwrap_or_else(|| ETC.into());
        // `local` leads to `nodes/<node>`.
        let local = std::fs::read_link(etc.join("local")).ok();
        let named = local.as_deref().and_then(|path| path.file_name()?.to_str().map(str::to_owned));
        let host = || bak_common::lock::node_name().split('.').next().unwrap_or_default().to_owned();
        Ok(Self { config: config.clone(), etc, node: named.unwrap_or_else(host) })
    }

    fn guest_name(&self, id: u32) -> Result<GuestName> {
        GuestName::new(format!("{}{id}", self.config.prefix.as_deref().unwrap_or_default()))
    }

    /// The number of a guest of ours, from what bak calls it.
    fn number(&self, text: &str) -> Result<u32> {
        let prefix = self.config.prefix.as_deref().unwrap_or_default();
        text.strip_prefix(prefix).and_then(vmid).with_context(|| format!("`{text}` is no number of a Proxmox guest"))
    }

    fn conf(&self, kind: Kind, id: u32) -> Result<Conf> {
        Conf::read(&self.etc.join(kind.conf_dir()).join(format!("{id}.conf")))
    }

    /// A guest as its configuration describes it; nothing for a template.
    fn guest(&self, row: &list::Row) -> Result<Option<Guest>> {
        let conf = self.conf(row.kind, row.id)?;
        if row.template || conf.is_template() {
            return Ok(None);
        }
        let mut guest = Guest::new(self.guest_name(row.id)?, row.kind.as_str(), NAME);
        guest.name = conf.name(row.kind).or(row.name.clone());
        guest.uid = conf.uuid();
        guest.node = Some(self.config.node.clone().unwrap_or_else(|| self.node.clone()));
        guest.tags = conf.tags();
        guest.pool.clone_from(&row.pool);
        guest.state = row.state;
        guest.live = true;
        guest.locked = conf.get("lock").map(str::to_owned);
        Ok(Some(guest))
    }
}

impl Kind {
    fn conf_dir(self) -> &'static str {
        match self {
            Kind::Qemu => "qemu-server",
            Kind::Lxc => "lxc",
        }
    }
}

impl Driver for Vzdump {
    fn name(&self) -> &'static str {
        NAME
    }

    fn list(&self) -> Result<Listed> {
        let list::Rows { rows, failed } = list::rows(&self.node)?;
        let mut listed = Listed { failed, ..Listed::default() };
        for row in rows {
            match self.guest(&row) {
                Ok(Some(guest)) => listed.guests.push(guest),
                Ok(None) => {}
                Err(error) => listed.failed.push((row.id.to_string(), error)),
            }
        }
        Ok(listed)
    }

    fn place(&self, _: &Guest) -> String {
        String::new()
    }

    fn stem(&self, guest: &Guest, started: Time) -> Stem {
        let local = Zone::default().local(started).format("%Y_%m_%d-%H_%M_%S");
        let id = self.number(guest.vm.as_str()).unwrap_or_default();
        // Of sound parts; should it not be, a name of bak's own does as well.
        Stem::new(format!("vzdump-{}-{id}-{local}", guest.kind)).unwrap_or_else(|_| Stem::of(&guest.vm, started))
    }

    fn dump(&self, job: &Job) -> Result<Made> {
        let kind = Kind::of(&job.guest.kind).with_context(|| format!("`{}` is no kind of guest", job.guest.kind))?;
        let id = self.number(job.guest.vm.as_str())?;
        let conf = self.conf(kind, id)?;
        if let Some(lock) = conf.get("lock") {
            bail!("is locked ({lock}): if nothing works on it any more, clear that by `{} unlock {id}`", kind.tool());
        }
        ensure!(conf.uuid() == job.guest.uid, "has become another guest since it was listed: its UUID differs");
        let how = self.config.vzdump(&Subject::from(job.guest));
        let notes = job.guest.name.clone().unwrap_or_else(|| id.to_string());
        let order = dump::Order { job, kind, id, how: &how, notes };
        match how.writer.unwrap_or(Writer::Bak) {
            Writer::Bak => dump::framed(&order),
            Writer::Vzdump => dump::by_itself(&order),
        }
    }

    fn restore(&self, order: &Order) -> Result<Vec<String>> {
        restore::restore(self, order)
    }

    fn drill(&self, trial: &Trial) -> Result<String> {
        drill::drill(self, trial)
    }

    fn clear(&self, token: &str, note: &Map<String, Value>) -> Result<Cleared> {
        drill::clear(self, token, note)
    }
}

/// Whether a guest runs, in Proxmox's words.
fn state(text: &str) -> State {
    match text {
        "running" => State::Running,
        "stopped" => State::Stopped,
        "paused" | "suspended" => State::Paused,
        _ => State::Unknown,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers() {
        for (text, number) in [("100", Some(100)), ("999999999", Some(999_999_999)), ("99", None), ("0100", None)] {
            assert_eq!(super::vmid(text), number, "{text}");
        }
        assert_eq!((super::vmid("1000000000"), super::vmid("1x0"), super::vmid("")), (None, None, None));
    }
}
