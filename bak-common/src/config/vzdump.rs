//! How Proxmox's vzdump is called.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::{Config, Subject, one_or_many};
use crate::units::{Rate, Span};

/// For all guests under `[vzdump]`; in a `[[guest]]` for those that match, key by key.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vzdump {
    /// Who writes the archive: `bak`, in frames that cost little on the wire, or `vzdump` itself.
    pub writer: Option<Writer>,
    /// `snapshot`, `suspend` or `stop`.
    pub mode: Option<Mode>,
    /// How hard zstd tries, from 1 to 19.
    pub level: Option<i32>,
    pub bwlimit: Option<Rate>,
    /// From 0 to 8.
    pub ionice: Option<u8>,
    /// How long vzdump waits for another one.
    pub lockwait: Option<Span>,
    /// Paths in a container that are left out.
    #[serde(deserialize_with = "one_or_many")]
    pub exclude_path: Vec<String>,
    /// As vzdump takes it: `enabled=1,storage=local-lvm`.
    pub fleecing: Option<String>,
    /// Mark dumps so that neither Proxmox nor bak-prune removes them.
    pub protected: Option<bool>,
    /// How long one guest may take.
    pub timeout: Option<Span>,
    /// Where Proxmox keeps its configuration; only under `[vzdump]`.
    pub etc: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    Bak,
    Vzdump,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Snapshot,
    Suspend,
    Stop,
}

impl Mode {
    /// As vzdump takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Snapshot => "snapshot",
            Mode::Suspend => "suspend",
            Mode::Stop => "stop",
        }
    }
}

impl Vzdump {
    /// What this says, and else what `other` does.
    fn or(self, other: Self) -> Self {
        Self {
            writer: self.writer.or(other.writer),
            mode: self.mode.or(other.mode),
            level: self.level.or(other.level),
            bwlimit: self.bwlimit.or(other.bwlimit),
            ionice: self.ionice.or(other.ionice),
            lockwait: self.lockwait.or(other.lockwait),
            exclude_path: if self.exclude_path.is_empty() { other.exclude_path } else { self.exclude_path },
            fleecing: self.fleecing.or(other.fleecing),
            protected: self.protected.or(other.protected),
            timeout: self.timeout.or(other.timeout),
            etc: self.etc.or(other.etc),
        }
    }
}

impl Config {
    /// How vzdump is called for this guest: what flags say, then the rules that match, then `[vzdump]`.
    pub fn vzdump(&self, subject: &Subject) -> Vzdump {
        let rules = self.guest.iter().filter(|rule| rule.matches(subject)).filter_map(|rule| rule.vzdump.clone());
        [self.vzdump_flags.clone()].into_iter().chain(rules).fold(Vzdump::default(), Vzdump::or).or(self.vzdump.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_beat_rules_and_the_first_rule_beats_the_rest() {
        let text = "[vzdump]\nmode = \"stop\"\nionice = 7\n[[guest]]\nmatch = \"1*\"\nvzdump = { mode = \"suspend\" }\n\
                    [[guest]]\nvzdump = { mode = \"snapshot\", exclude_path = \"/tmp\" }\n";
        let mut config = Config::parse(text).unwrap();
        let guest = |vm: &str| crate::record::Guest::new(crate::name::GuestName::new(vm).unwrap(), "lxc", "vzdump");
        let of = |config: &Config, vm: &str| config.vzdump(&Subject::from(&guest(vm)));
        assert_eq!(of(&config, "100").mode, Some(Mode::Suspend));
        assert_eq!(of(&config, "200").mode, Some(Mode::Snapshot));
        assert_eq!((of(&config, "100").ionice, of(&config, "100").exclude_path), (Some(7), vec!["/tmp".to_owned()]));
        config.vzdump_flags.mode = Some(Mode::Stop);
        assert_eq!(of(&config, "100").mode, Some(Mode::Stop));
    }
}
