//! A guest's configuration file: `key: value` a line, up to the first `[section]` (snapshots and what is pending).

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Kind;

const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// The longest configuration that is read, in bytes; Proxmox's own end at half a megabyte.
const CONF_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf(BTreeMap<String, String>);

impl Conf {
    pub fn read(path: &Path) -> Result<Self> {
        let read = || {
            // Not even a pipe may keep us waiting.
            let mut file = File::options().read(true).custom_flags(NONBLOCK).open(path)?;
            ensure!(file.metadata()?.is_file(), "it is no file");
            let mut text = Vec::new();
            file.by_ref().take(CONF_MAX).read_to_end(&mut text)?;
            Ok(text)
        };
        let text: Vec<u8> = read().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub fn parse(text: &str) -> Self {
        let lines = text.lines().take_while(|line| !line.starts_with('['));
        let pairs = lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
        // As Proxmox reads it: what comes later counts.
        Self(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn is_template(&self) -> bool {
        self.get("template") == Some("1")
    }

    pub fn name(&self, kind: Kind) -> Option<String> {
        self.get(if kind == Kind::Qemu { "name" } else { "hostname" }).map(str::to_owned)
    }

    /// Of the machine; containers have none.
    pub fn uuid(&self) -> Option<String> {
        let parts = self.get("smbios1")?.split(',');
        let uuid = parts.filter_map(|part| part.trim().strip_prefix("uuid=")).next()?;
        Some(uuid.to_ascii_lowercase()).filter(|uuid| !uuid.is_empty())
    }

    pub fn tags(&self) -> Vec<String> {
        let tags = self.get("tags").unwrap_or_default();
        tags.split([';', ',', ' ']).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_says() {
        let text = "# a note: with a colon\nboot: order=scsi0\nname: web\nsmbios1: base64=1,uuid=6D0C1c5e-0000-4000-8000-000000000001\n\
                    tags: prod;web\nlock: backup\n\n[before-upgrade]\nname: old\ntemplate: 1\n";
        let conf = Conf::parse(text);
        assert_eq!(conf.name(Kind::Qemu).as_deref(), Some("web"));
        assert_eq!(conf.uuid().as_deref(), Some("6d0c1c5e-0000-4000-8000-000000000001"));
        assert_eq!(
            (conf.tags(), conf.get("lock"), conf.is_template()),
            (vec!["prod".into(), "web".into()], Some("backup"), false)
        );
        let conf = Conf::parse("hostname: ct\ntemplate: 1\ntags:\nsmbios1: base64=1\n");
        assert_eq!((conf.name(Kind::Lxc).as_deref(), conf.is_template(), conf.tags().len()), (Some("ct"), true, 0));
        assert_eq!((conf.uuid(), Conf::parse("").name(Kind::Lxc)), (None, None));
    }
}
