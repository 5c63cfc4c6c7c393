//! The arguments that all programs share, and what they resolve to.

use anyhow::{Context, Result, anyhow};
use clap::Args;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::calendar::{Time, Zone};
use crate::config::{Config, Keep, dest_name};
use crate::far::{Access, ssh_words};
use crate::report::{Kind, Report};
use crate::select::{Filter, Selector};
use crate::units::{Limit, Span, limit};

/// A pipe that nobody reads is no log: better an error than to wait for ever.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// What every program takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Configuration file [default: /etc/bak/bak.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what the configuration says for each guest, and do nothing
    #[arg(long)]
    pub check_config: bool,
    /// Print the plan that a real run would carry out, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Also print everything that was considered, with reasons
    #[arg(long)]
    pub explain: bool,
    /// Print nothing but failures
    #[arg(short, long, conflicts_with = "explain")]
    pub quiet: bool,
    /// Print records, even on a terminal
    #[arg(long)]
    pub json: bool,
    /// Take this for the present time (with -n; for real only if BAK_ALLOW_NOW=1)
    #[arg(long, value_name = "TIME")]
    pub now: Option<Time>,
    /// Count days and weeks in this zone [default: this machine's]
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<Zone>,
    /// How long to wait for a lock
    #[arg(long, value_name = "DUR", default_value = "30s")]
    pub wait: Span,
}

/// Where things are.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Places")]
pub struct Places {
    /// The store of dumps
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The outbox [default: <store>/.outbox-<destination>]
    #[arg(long, value_name = "DIR")]
    pub outbox: Option<PathBuf>,
    /// A destination: NAME=URL, a bare URL, or the name of a configured one; may be repeated
    #[arg(long, value_name = "NAME=URL")]
    pub dest: Vec<String>,
}

/// How to get into a far side, instead of what the configuration says.
#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// The command that reaches the host, split at spaces [default: the destination's, or ssh]
    #[arg(long, value_name = "COMMAND")]
    pub ssh: Option<String>,
    /// The file whose first line is the password for rsync://USER@host/module; only its owner may read it
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

impl Reach {
    /// What holds for a place of which the configuration says `known`.
    pub fn access(&self, known: &Access) -> Access {
        Access {
            ssh: self.ssh.as_deref().map_or_else(|| known.ssh.clone(), ssh_words),
            password_file: self.password_file.clone().or_else(|| known.password_file.clone()),
        }
    }
}

/// How much may be carried.
#[derive(Args, Clone, Debug, Default)]
pub struct Limits {
    /// How much may be carried, instead of what the configuration says: 10G a pass, 10G/day, 50G/week, 200G/month,
    /// 200G/month@15, or none; may be repeated
    #[arg(long, value_name = "LIMIT")]
    pub limit: Vec<LimitArg>,
}

/// A limit, or `none`.
#[derive(Clone, Copy, Debug)]
pub struct LimitArg(pub Option<Limit>);

impl std::str::FromStr for LimitArg {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        limit(text).map(Self)
    }
}

impl Limits {
    /// Puts the limits that were given in the place of those of the configuration.
    pub fn apply(&self, destinations: &mut [Destination]) -> Result<()> {
        let limits: Vec<Limit> = self.limit.iter().filter_map(|limit| limit.0).collect();
        if limits.len() < self.limit.len() && !limits.is_empty() {
            return Err(Kind::Usage.says("--limit none goes with no other --limit"));
        }
        for dest in destinations.iter_mut().filter(|_| !self.limit.is_empty()) {
            dest.limits.clone_from(&limits);
        }
        Ok(())
    }
}

/// What to act on, beside operands.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Selection")]
pub struct Picks {
    /// All guests
    #[arg(long)]
    pub all: bool,
    /// Only guests with this tag (name or pattern); may be repeated, as the next ones
    #[arg(long, value_name = "GLOB")]
    pub tag: Vec<String>,
    /// Only guests of this pool
    #[arg(long, value_name = "GLOB")]
    pub pool: Vec<String>,
    /// Only guests of this node
    #[arg(long, value_name = "GLOB")]
    pub node: Vec<String>,
    /// Only guests of this kind (qemu, lxc, …)
    #[arg(long, value_name = "GLOB")]
    pub kind: Vec<String>,
}

impl Picks {
    /// The selection by these and by `operands`, and whether `-` (standard input) is among those.
    pub fn selector(&self, operands: &[String]) -> Result<(Selector, bool)> {
        let names: Vec<String> = operands.iter().filter(|text| *text != "-").cloned().collect();
        let filter = Filter::new(&self.tag, &self.pool, &self.node, &self.kind)?;
        Ok((Selector::new(&names, filter, self.all)?, names.len() < operands.len()))
    }

    /// As [`Picks::selector`], for programs that act on nothing unless told on what (exit 2).
    pub fn explicit(&self, operands: &[String]) -> Result<(Selector, bool)> {
        let (selector, stdin) = self.selector(operands)?;
        if selector.is_empty() && !stdin {
            return Err(Kind::Usage
                .says("say which: names or patterns, --all, or - for records on standard input (see --help)"));
        }
        Ok((selector, stdin))
    }
}

/// One run of a program: its options resolved, its failures collected.
#[derive(Debug)]
pub struct Session {
    pub config: Config,
    pub now: Time,
    /// Whether `now` was given rather than read from the clock.
    pub now_given: bool,
    pub zone: Zone,
    pub wait: Duration,
    pub dry_run: bool,
    pub explain: bool,
    pub quiet: bool,
    /// Print a table rather than records.
    pub table: bool,
    pub report: Report,
}

/// A destination with everything resolved.
#[derive(Clone, Debug)]
pub struct Destination {
    pub name: String,
    pub url: Option<String>,
    pub outbox: PathBuf,
    /// The local store, where it is known.
    pub store: Option<PathBuf>,
    pub limits: Vec<Limit>,
    pub bwlimit: Option<String>,
    /// When a pass ends, as it was written.
    pub until: Option<String>,
    pub overdraft: bool,
    /// Whether bak-link copies what can't be linked.
    pub copy: bool,
    pub access: Access,
    pub ledger: Option<PathBuf>,
    pub keep: Keep,
}

impl Common {
    /// Reads the configuration and the clock.
    pub fn session(&self, program: &'static str) -> Result<Session> {
        let config = Config::load(self.config.as_deref())?;
        if self.now.is_some() && !self.dry_run && std::env::var_os("BAK_ALLOW_NOW").is_none_or(|v| v != "1") {
            return Err(Kind::Usage.says("--now is for what-ifs with -n; to use it for real set BAK_ALLOW_NOW=1"));
        }
        let report = Report::new(program);
        if let Some(path) = &config.log
            && !self.dry_run
        {
            let file =
                std::fs::OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(NONBLOCK).open(path);
            report.log_to(
                file.map_err(|error| Kind::Usage.says(format!("cannot write the log {}: {error}", path.display())))?,
            );
        }
        Ok(Session {
            now: self.now.unwrap_or_else(|| Time::new(chrono::Utc::now())),
            now_given: self.now.is_some(),
            zone: self.tz.unwrap_or_default(),
            wait: Duration::from_secs(self.wait.0),
            dry_run: self.dry_run,
            explain: self.explain,
            quiet: self.quiet,
            table: std::io::stdout().is_terminal() && !self.json,
            config,
            report,
        })
    }
}

impl Session {
    /// The present time: what `--now` says, else the clock, which may have moved since the run began.
    pub fn clock(&self) -> Time {
        self.clock_of_its_own()()
    }

    /// The same to be asked elsewhere and later.
    pub fn clock_of_its_own(&self) -> impl Fn() -> Time + Send + Sync + 'static {
        let (now, given) = (self.now, self.now_given);
        move || if given { now } else { Time::new(chrono::Utc::now()) }
    }
}

impl Places {
    /// The store's directory, from the flag or the configuration.
    pub fn store(&self, config: &Config) -> Result<PathBuf> {
        let path = self.store.clone().or_else(|| config.store.clone());
        path.ok_or_else(|| Kind::Usage.says("no store: name one by --store DIR or `store` in the configuration"))
    }

    /// The destinations that the flags or the configuration name. `limits` beats those of the configuration.
    pub fn destinations(&self, config: &Config, limits: &[Limit]) -> Result<Vec<Destination>> {
        let store = self.store.as_deref().or(config.store.as_deref());
        let mut found = Vec::new();
        for text in &self.dest {
            let (name, url) = match text.split_once('=') {
                Some((name, url)) if dest_name(name).is_ok() => (name, Some(url)),
                _ if config.dest.iter().any(|dest| dest.name == *text) => (text.as_str(), None),
                _ if text.contains(['/', ':']) => ("default", Some(text.as_str())),
                _ => {
                    return Err(Kind::Usage.says(format!(
                        "there is no destination `{}` in the configuration; a new one is --dest NAME=URL",
                        text.escape_debug()
                    )));
                }
            };
            found.push(self.resolve(config, store, name, url)?);
        }
        if self.dest.is_empty() {
            for dest in &config.dest {
                found.push(self.resolve(config, store, &dest.name, None)?);
            }
        }
        if found.is_empty() && self.outbox.is_some() {
            found.push(self.resolve(config, store, "default", None)?);
        }
        if found.is_empty() {
            return Err(
                Kind::Usage.says("no destination: name one by --dest NAME=URL or [[dest]] in the configuration")
            );
        }
        if found.len() > 1 && self.outbox.is_some() {
            return Err(
                Kind::Usage.says("--outbox goes with one destination, and there are several: say which by --dest")
            );
        }
        if !limits.is_empty() {
            for dest in &mut found {
                dest.limits = limits.to_vec();
            }
        }
        let mut names: Vec<&str> = found.iter().map(|dest| dest.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Kind::Usage.says("a destination is named twice"));
        }
        Ok(found)
    }

    fn resolve(&self, config: &Config, store: Option<&Path>, name: &str, url: Option<&str>) -> Result<Destination> {
        let known = config.dest.iter().find(|dest| dest.name == name).cloned().unwrap_or_default();
        let outbox = self
            .outbox
            .clone()
            .or(known.outbox.clone())
            .or_else(|| store.map(|store| store.join(format!(".outbox-{name}"))));
        let outbox = outbox.ok_or_else(|| {
            Kind::Usage.of(anyhow!("the destination {name} has no outbox: give --outbox DIR or --store DIR"))
        })?;
        Ok(Destination {
            name: name.to_owned(),
            url: url.map(str::to_owned).or(known.url.clone()),
            outbox,
            store: store.map(Path::to_owned),
            limits: known.limits().context("limit")?,
            bwlimit: known.bwlimit,
            until: known.until,
            overdraft: known.overdraft,
            copy: known.copy,
            access: Access { ssh: known.ssh, password_file: known.password_file },
            ledger: known.ledger,
            keep: known.keep,
        })
    }
}
