//! The configuration: one TOML file, every key optional, unknown keys refused with line and column. Flags beat it.

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::name::is_component;
use crate::report::Kind;
use crate::select::{Filter, Pattern, Subject};
use crate::units::{Limit, Size, Span, limit, minute};

mod vbox;
mod vzdump;

pub use vbox::{ExportOption, Ovf, Vbox};
pub use vzdump::{Mode, Vzdump, Writer};

/// Where the configuration is if nobody says.
pub const PATH: &str = "/etc/bak/bak.toml";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub store: Option<PathBuf>,
    /// Where `bak-state archive` moves dumps to.
    pub archive: Option<PathBuf>,
    pub driver: Option<String>,
    /// The directory of bak-state's database.
    pub db: Option<PathBuf>,
    /// Every decision and failure is appended here as a record.
    pub log: Option<PathBuf>,
    /// What this machine is called in records; its host name if absent.
    pub node: Option<String>,
    /// Put before every guest's name, for nodes that are no cluster and share a place.
    pub prefix: Option<String>,
    /// What must stay free in the store.
    pub reserve: Option<Size>,
    pub stale_after: Option<Span>,
    /// For how long a guest may need a dump before `bak-state check` alarms.
    pub max_age: Option<Span>,
    /// For how long an off-site copy may lag behind the store before it does.
    pub sent_max_age: Option<Span>,
    /// Retention in the local store.
    pub keep: Keep,
    pub image: Image,
    /// Drivers that are programs, by name.
    pub exec: BTreeMap<String, Exec>,
    pub vbox: Vbox,
    pub vzdump: Vzdump,
    /// What flags say of it: beats the rules, too.
    #[serde(skip)]
    pub vzdump_flags: Vzdump,
    /// The file that was read, if there was one.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    pub dest: Vec<Dest>,
    pub guest: Vec<Rule>,
}

/// Retention rules; the names are those of Proxmox's `prune-backups`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yearly: Option<u64>,
    /// Everything younger than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
    /// How many dumps that are not good are kept for a look; absent: those newer than the oldest that the rules keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
}

/// The image driver: plain disk images of QEMU.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Directories or patterns; each image in them is a guest.
    #[serde(deserialize_with = "one_or_many")]
    pub images: Vec<String>,
    /// `qcow2`, `qcow2-plain` or `raw`.
    pub format: Option<String>,
    /// Guests with several disks, or with a name of their own.
    pub guest: Vec<ImageGuest>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageGuest {
    pub vm: String,
    pub name: Option<String>,
    pub disks: Vec<PathBuf>,
    #[serde(default)]
    pub tags: Vec<String>,
    pub pool: Option<String>,
}

/// A driver that is a program.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exec {
    /// How long one call of it may take.
    pub timeout: Option<Span>,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text, or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    })
}

/// Kept as it was written: refused here, so that every program refuses it, with its line.
fn time_of_day<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    minute(&text).map_err(|error| serde::de::Error::custom(format!("until: {error:#}")))?;
    Ok(Some(text))
}

/// An off-site place.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dest {
    pub name: String,
    pub url: Option<String>,
    pub outbox: Option<PathBuf>,
    limit: Option<OneOrMany>,
    pub bwlimit: Option<String>,
    /// When a pass ends, `06:00`.
    #[serde(deserialize_with = "time_of_day")]
    pub until: Option<String>,
    pub overdraft: bool,
    /// Whether bak-link copies into an outbox on another file system.
    pub copy: bool,
    /// The command that reaches the host, `["ssh", "-p", "2222"]`.
    pub ssh: Vec<String>,
    /// The file whose first line is the password for an `rsync://` destination.
    pub password_file: Option<PathBuf>,
    /// A directory that several nodes share, and so a budget.
    pub ledger: Option<PathBuf>,
    pub keep: Keep,
    pub sent_max_age: Option<Span>,
}

impl Dest {
    /// Its limits; `none` is none.
    pub fn limits(&self) -> Result<Vec<Limit>> {
        let texts = match &self.limit {
            None => return Ok(Vec::new()),
            Some(OneOrMany::One(text)) => std::slice::from_ref(text),
            Some(OneOrMany::Many(texts)) => texts,
        };
        texts.iter().filter_map(|text| limit(text).transpose()).collect()
    }
}

/// What holds for the guests that match; the first rule that has a key decides it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    #[serde(deserialize_with = "one_or_many")]
    r#match: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    tag: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    pool: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    node: Vec<String>,
    #[serde(deserialize_with = "one_or_many")]
    kind: Vec<String>,
    /// Higher goes first; 0 if absent.
    pub priority: Option<i64>,
    pub stale_after: Option<Span>,
    pub max_age: Option<Span>,
    pub sent_max_age: Option<Span>,
    /// Destinations by name; all if absent.
    pub sync: Option<Vec<String>>,
    pub keep: Option<Keep>,
    /// Retention at a destination, by its name.
    pub keep_at: BTreeMap<String, Keep>,
    pub vzdump: Option<Vzdump>,
    #[serde(skip)]
    compiled: Compiled,
}

#[derive(Clone, Debug, Default)]
struct Compiled {
    names: Vec<Pattern>,
    filter: Filter,
}

impl Rule {
    fn matches(&self, subject: &Subject) -> bool {
        let named = |p: &Pattern| p.matches(subject.vm) || subject.name.is_some_and(|name| p.matches(name));
        (self.compiled.names.is_empty() || self.compiled.names.iter().any(named))
            && self.compiled.filter.matches(subject)
    }
}

/// What holds for one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    pub vm: String,
    pub priority: i64,
    pub stale_after_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// By destination.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sent_max_age_s: BTreeMap<String, u64>,
    /// Destinations by name.
    pub sync: Vec<String>,
    pub keep: Keep,
    /// By destination.
    pub keep_at: BTreeMap<String, Keep>,
}

impl Config {
    /// Reads the file named, or the usual one if it is there.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let (path, must) = path.map_or((Path::new(PATH), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must => return Ok(Self::default()),
            Err(error) => {
                return Err(Kind::Usage.says(format!("cannot read the configuration {}: {error}", path.display())));
            }
        };
        let config = Self::parse(&text);
        let config = config.map_err(|error| Kind::Usage.says(format!("{}:{error:#}", path.display())))?;
        Ok(Self { file: Some(path.to_owned()), ..config })
    }

    /// Reads the text of a configuration; an error begins with line and column.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            anyhow!("{line}:{column}: {}", error.message().trim().replace('\n', ", "))
        })?;
        config.check().map_err(|error| anyhow!(" {error:#}"))?;
        Ok(config)
    }

    fn check(&mut self) -> Result<()> {
        let mut names = Vec::new();
        for dest in &self.dest {
            dest_name(&dest.name)?;
            anyhow::ensure!(!names.contains(&dest.name), "two destinations are called {}", dest.name);
            dest.limits().with_context(|| format!("limit of the destination {}", dest.name))?;
            if let Some(url) = &dest.url {
                crate::far::Url::parse(url).with_context(|| format!("url of the destination {}", dest.name))?;
            }
            names.push(dest.name.clone());
        }
        for (name, exec) in &self.exec {
            let sound = |key: &&String| !key.is_empty() && !key.contains(['=', '\0']) && !key.starts_with("BAK_");
            if let Some(key) = exec.env.keys().find(|key| !sound(key)) {
                anyhow::bail!("[exec.{name}] cannot set `{}` in the environment", key.escape_debug());
            }
            if let Some((key, _)) = exec.env.iter().find(|(_, value)| value.contains('\0')) {
                anyhow::bail!("[exec.{name}] has a NUL in the value of {key}");
            }
        }
        for rule in &mut self.guest {
            let known = rule.sync.iter().flatten().chain(rule.keep_at.keys()).find(|name| !names.contains(name));
            if let Some(name) = known {
                anyhow::bail!("a [[guest]] names the destination `{}`, which no [[dest]] has", name.escape_debug());
            }
            let names = rule.r#match.iter().map(|text| Pattern::new(text)).collect::<Result<_>>()?;
            rule.compiled = Compiled { names, filter: Filter::new(&rule.tag, &rule.pool, &rule.node, &rule.kind)? };
        }
        Ok(())
    }

    /// What the first rule that matches and has the key says.
    fn first<'a, T>(&'a self, subject: &'a Subject, key: impl Fn(&'a Rule) -> Option<T>) -> Option<T> {
        self.guest.iter().filter(|rule| rule.matches(subject)).find_map(key)
    }

    /// What holds for one guest.
    pub fn effective<'a>(&self, subject: impl Into<Subject<'a>>) -> Effective {
        let subject = &subject.into();
        let all = || self.dest.iter().map(|dest| dest.name.clone()).collect();
        let keep_at = |dest: &Dest| {
            self.first(subject, |rule| rule.keep_at.get(&dest.name).cloned()).unwrap_or_else(|| dest.keep.clone())
        };
        let sent_max_age = |dest: &Dest| Some((dest.name.clone(), self.sent_max_age(subject, &dest.name)?.0));
        Effective {
            vm: subject.vm.to_owned(),
            priority: self.first(subject, |rule| rule.priority).unwrap_or(0),
            stale_after_s: self.first(subject, |rule| rule.stale_after).or(self.stale_after).unwrap_or_default().0,
            max_age_s: self.max_age(subject).map(|span| span.0),
            sent_max_age_s: self.dest.iter().filter_map(sent_max_age).collect(),
            sync: self.first(subject, |rule| rule.sync.clone()).unwrap_or_else(all),
            keep: self.first(subject, |rule| rule.keep.clone()).unwrap_or_else(|| self.keep.clone()),
            keep_at: self.dest.iter().map(|dest| (dest.name.clone(), keep_at(dest))).collect(),
        }
    }

    /// For how long this guest may need a dump.
    pub fn max_age(&self, subject: &Subject) -> Option<Span> {
        self.first(subject, |rule| rule.max_age).or(self.max_age)
    }

    /// For how long this guest's copy at `dest` may lag behind. The destination need not be one of the configuration.
    pub fn sent_max_age(&self, subject: &Subject, dest: &str) -> Option<Span> {
        let known = self.dest.iter().find(|known| known.name == dest);
        let of_dest = || known.and_then(|known| known.sent_max_age);
        self.first(subject, |rule| rule.sent_max_age).or_else(of_dest).or(self.sent_max_age)
    }

    /// Whether this guest's dumps go to `dest`, which need not be one of the configuration.
    pub fn syncs(&self, subject: &Subject, dest: &str) -> bool {
        self.first(subject, |rule| rule.sync.as_ref()).is_none_or(|names| names.iter().any(|name| name == dest))
    }

    /// What records of this machine carry as `node`.
    pub fn node(&self) -> String {
        self.node.clone().unwrap_or_else(crate::lock::node_name)
    }
}

/// A destination's name becomes part of a file name.
pub fn dest_name(name: &str) -> Result<()> {
    let sound = is_component(name) && name.len() <= 64 && !name.contains(['=', ' ']);
    if sound { Ok(()) } else { Err(anyhow!("`{}` cannot be the name of a destination", name.escape_debug())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
store  = "/var/lib/vz/dump"
driver = "vzdump"
db     = "/var/lib/bak"
log    = "/var/log/bak.jsonl"
keep   = { last = 3, daily = 7 }

[[dest]]
name    = "box"
url     = "backup@box:/srv/bak"
outbox  = "/var/lib/vz/dump/.outbox-box"
limit   = ["10G/day", "200G/month"]
bwlimit = "mon-fri 08:00,512K 19:00,off"
keep    = { daily = 7, weekly = 4, monthly = 6 }

[[guest]]
match = ["db-*", "101"]
priority = 10
stale_after = "6h"

[[guest]]
match = ["scratch-*"]
sync = []
"#;

    fn guest(vm: &str) -> crate::record::Guest {
        crate::record::Guest::new(crate::name::GuestName::new(vm).unwrap(), "qemu", "image")
    }

    #[test]
    fn the_sample_of_the_readme() {
        let config = Config::parse(SAMPLE).unwrap();
        let db = config.effective(&guest("db-1"));
        assert_eq!((db.priority, db.stale_after_s, db.sync.len()), (10, 21_600, 1));
        assert_eq!((db.keep.last, db.keep_at["box"].weekly), (Some(3), Some(4)));
        assert!(config.effective(&guest("scratch-1")).sync.is_empty());
        assert_eq!(config.effective(&guest("web")).priority, 0);
        assert_eq!(config.dest[0].limits().unwrap().len(), 2);
    }

    #[test]
    fn first_match_wins_key_by_key() {
        let text = "[[guest]]\nmatch = \"a*\"\npriority = 1\n[[guest]]\npriority = 2\nstale_after = \"1d\"\n";
        let config = Config::parse(text).unwrap();
        let a = config.effective(&guest("a"));
        assert_eq!((a.priority, a.stale_after_s), (1, 86_400));
        assert_eq!(config.effective(&guest("b")).priority, 2);
    }

    #[test]
    fn ages_of_guests_destinations_and_all() {
        let text = "max_age = \"26h\"\nsent_max_age = \"7d\"\n[[dest]]\nname = \"box\"\n[[dest]]\nname = \"slow\"\n\
                    sent_max_age = \"30d\"\n[[guest]]\nmatch = \"a\"\nmax_age = \"6h\"\nsent_max_age = \"1d\"\nsync = [\"slow\"]\n";
        let config = Config::parse(text).unwrap();
        let (a, b) = (guest("a"), guest("b"));
        let (a, b) = (&Subject::from(&a), &Subject::from(&b));
        let ages = |subject| {
            let sent = ["box", "slow", "other"].map(|dest| config.sent_max_age(subject, dest).unwrap().0 / 86_400);
            (config.max_age(subject).unwrap().0 / 3600, sent)
        };
        assert_eq!(ages(a), (6, [1, 1, 1]));
        assert_eq!(ages(b), (26, [7, 30, 7]));
        assert!(config.syncs(a, "slow") && !config.syncs(a, "box") && config.syncs(b, "box") && config.syncs(b, "x"));
        assert_eq!(config.effective(*b).sent_max_age_s["slow"], 30 * 86_400);
        assert_eq!(Config::default().max_age(b), None);
    }

    #[test]
    fn mistakes_name_their_place() {
        let table = [
            ("stroe = \"/x\"\n", "1:1: unknown field `stroe`"),
            ("store = \"/x\"\n[[dest]]\nname = \"box\"\nlimits = \"1G\"\n", "4:1: unknown field `limits`"),
            ("store = \n", "1:"),
            ("reserve = \"2 apples\"\n", "1:11: `2 apples`"),
            ("[image]\nimages = 7\n", "2:10: a text, or a list of texts"),
            ("[[dest]]\nname = \"a\"\nurl = \"s3://x\"\n", "url of the destination a"),
            ("[[dest]]\nname = \"../x\"\n", "cannot be the name of a destination"),
            ("[[dest]]\nname = \"a\"\nlimit = \"10G/year\"\n", "10G/year"),
            ("[[dest]]\nname = \"a\"\nuntil = \"25:00\"\n", "3:9: until: `25:00` is no time of the day like 06:00"),
            ("[[guest]]\nsync = [\"bxo\"]\n", "`bxo`"),
            ("[exec.pg]\nenv = { BAK_VM = \"x\" }\n", "cannot set `BAK_VM`"),
            ("[exec.pg]\ntimeot = \"1h\"\n", "2:1: unknown field `timeot`"),
        ];
        for (text, expected) in table {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }
}
