//! The far side: a mounted path, or a directory that rsync reaches over ssh or that an rsync daemon serves. Nothing of
//! bak's is needed over there.
//!
//! Every rsync is given its file names by `--files-from`, zero-terminated and below one directory, so no name is ever an
//! argument, a pattern or a word of a shell.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use crate::lock::Lock;
use crate::meter::{self, Speed, Wire};
use crate::report::Kind;

mod append;
mod cache;
mod daemon;
mod delta;
mod end;
mod flush;
pub mod home;
pub mod identity;
pub mod listing;
mod look;
mod mounted;
mod ran;
mod receive;
mod remove;
mod rrsync;
mod run;
mod seed;
mod shell;
mod ssh;
pub mod sums;
mod url;

pub use append::Slice;
pub use cache::Cache;
pub use delta::{Asked, DELTA, Delta};
pub use end::TimeIsUp;
pub use listing::{FarFile, FarKind};
pub use look::Fetched;
pub use ran::{LimitReached, Ran, refused};
pub use ssh::ssh_words;
pub use url::{Daemon, Url};

/// How far beyond the limit small runs may go, in bytes: those that only look, clean up, or finish what has arrived.
const BEYOND: i128 = 32 << 10;

/// What it takes to be let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The command that reaches the host of a place over ssh; ssh itself if empty.
    pub ssh: Vec<String>,
    /// The file whose first line is the password that a daemon asks for.
    pub password_file: Option<PathBuf>,
}

/// Says how fast to send now.
struct Pace(Box<dyn Fn() -> Speed + Send + Sync>);

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0())
    }
}

/// A connection to the far side for one pass.
#[derive(Debug)]
pub struct Far {
    url: Url,
    /// Temporary files of this pass: lists, stubs, the meter's counts.
    scratch: PathBuf,
    scratch_dir: fs::File,
    /// The directory of a mounted path as it was when the pass began. What is written goes there, never to what comes to
    /// light where it was mounted.
    opened: Option<fs::File>,
    /// The command that reaches the host, and the same over the connection that the runs share.
    shell: Vec<OsString>,
    ssh: Vec<OsString>,
    master: Option<Child>,
    password_file: Option<PathBuf>,
    /// Over there a restricted rrsync is all that can be run: option paths are anchored at its directory.
    restricted: Option<bool>,
    /// The newest protocol that the rsync over there speaks, where it says so.
    protocol: Option<u32>,
    /// Only one run at a time is let in over there; each run holds `turn`, all of it if so.
    alone: AtomicBool,
    turn: RwLock<()>,
    runs: AtomicU64,
    /// Whether the far side knows, and allows, these.
    fsync: AtomicBool,
    compress: AtomicBool,
    /// Whether anything may be removed over there, once it is known.
    removal: OnceLock<bool>,
    traffic: Mutex<Traffic>,
    pace: Option<Pace>,
    /// Nothing may cross the line for hours, and that is right.
    may_wait: bool,
    time: Option<end::Time>,
    /// How many bytes of its files a running transfer has dealt with, crossed or not.
    position: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Traffic {
    /// What the runs since the last [`Far::take_wire`] have cost.
    wire: Wire,
    /// What may still cross, in both directions; less than nothing if small runs went beyond. None for no limit.
    left: Option<i128>,
}

/// How one run is bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds<'a> {
    /// The lock that it holds, so that it is free only when rsync is gone, too.
    pub lock: Option<&'a Lock>,
    /// How many bytes it may cost by itself, in both directions, beside the limit of all.
    pub at_most: Option<u64>,
    /// Bytes that the far side reads or writes in silence meanwhile: it is given the time for that.
    pub silent: u64,
    /// It may take long, so it ends when the time is up ([`Far::until`]); what is small and finishes something goes on.
    pub long: bool,
    /// The speed ([`Far::keep_pace`]) is that of what comes in.
    pub inward: bool,
}

impl<'a> Bounds<'a> {
    pub fn under(lock: &'a Lock) -> Self {
        Self { lock: Some(lock), ..Self::default() }
    }
}

impl Far {
    /// Prepares a connection; over ssh, one that all runs of this pass share. `scratch` is an empty directory of ours.
    pub fn open(url: Url, access: &Access, scratch: &Path) -> Result<Self> {
        daemon::check(&url, access)?;
        let opened = match &url {
            Url::Path(path) => fs::File::open(path).ok(),
            Url::Ssh { .. } | Url::Daemon(_) => None,
        };
        let mut far = Self {
            url,
            opened,
            scratch: scratch.to_owned(),
            scratch_dir: fs::File::open(scratch).context("cannot open a temporary directory")?,
            shell: Vec::new(),
            ssh: Vec::new(),
            master: None,
            password_file: access.password_file.as_deref().map(std::path::absolute).transpose()?,
            restricted: None,
            protocol: None,
            alone: AtomicBool::new(false),
            turn: RwLock::new(()),
            runs: AtomicU64::new(0),
            fsync: AtomicBool::new(true),
            compress: AtomicBool::new(true),
            removal: OnceLock::new(),
            traffic: Mutex::new(Traffic { wire: Wire::default(), left: None }),
            pace: None,
            may_wait: false,
            time: None,
            position: Arc::default(),
        };
        fs::create_dir_all(scratch.join("empty")).context("cannot make a temporary directory")?;
        if let Url::Ssh { .. } = far.url {
            let ssh = &access.ssh;
            far.shell = if ssh.is_empty() { vec!["ssh".into()] } else { ssh.iter().map(OsString::from).collect() };
            for option in ["BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4"] {
                far.shell.extend(["-o".into(), option.into()]);
            }
        }
        far.connect()?;
        Ok(far)
    }

    pub fn is_remote(&self) -> bool {
        !matches!(self.url, Url::Path(_))
    }

    /// Has every run, those to a mounted path, too, keep to the speed that `pace` says, which is asked again all the time.
    /// If it may be [`Speed::Wait`], rsync's own limit of time without traffic is off, and the meter's holds, which knows
    /// when it is to wait.
    pub fn keep_pace(&mut self, pace: impl Fn() -> Speed + Send + Sync + 'static, may_wait: bool) {
        self.pace = Some(Pace(Box::new(pace)));
        self.may_wait = may_wait;
    }

    /// How fast to send now.
    fn speed(&self) -> Speed {
        self.pace.as_ref().map(|pace| pace.0()).unwrap_or_default()
    }

    /// How many bytes of its files a running transfer has dealt with, whether they had to cross or not.
    pub fn position(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.position)
    }

    /// Whether a meter stands between rsync and the far side.
    fn metered(&self) -> bool {
        self.is_remote() || self.pace.is_some()
    }

    fn traffic(&self) -> std::sync::MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has crossed the line since the last call.
    pub fn take_wire(&self) -> Wire {
        std::mem::take(&mut self.traffic().wire)
    }

    /// What has crossed since the last [`Far::take_wire`].
    pub fn wire(&self) -> Wire {
        self.traffic().wire
    }

    /// From now on no more than this many bytes may cross, in both directions, none if it is negative. A run goes up to
    /// 48 KiB beyond, as what is small and finishes something should not fail for want of a few bytes: who begins
    /// something large bounds it by itself. None for no limit.
    pub fn limit(&self, bytes: Option<i128>) {
        self.traffic().left = bytes;
    }

    /// Whether too little is left of the limit to get anywhere.
    pub fn is_spent(&self) -> bool {
        self.traffic().left.is_some_and(|left| left < i128::from(meter::GRACE))
    }

    pub fn is_limited(&self) -> bool {
        self.traffic().left.is_some()
    }

    /// How many bytes a run may carry within these bounds; no limit is `u64::MAX`.
    fn room(&self, bounds: &Bounds) -> u64 {
        let of_all =
            self.traffic().left.map_or(u64::MAX, |left| u64::try_from((left + BEYOND).max(0)).unwrap_or(u64::MAX));
        of_all.min(bounds.at_most.unwrap_or(u64::MAX))
    }

    /// Adds what a run has cost.
    fn spent(&self, wire: Wire) {
        let mut traffic = self.traffic();
        traffic.wire = traffic.wire + wire;
        traffic.left = traffic.left.map(|left| left - i128::from(wire.both()));
    }

    /// The directory `below` over there, as rsync wants it.
    fn place(&self, below: &str) -> OsString {
        match &self.url {
            Url::Path(path) => {
                let mut place = OsString::from(if self.metered() { "here:" } else { "" });
                let top = self.opened.as_ref().map_or_else(|| path.clone(), alias);
                place.push(top.join(below));
                if !place.as_bytes().ends_with(b"/") {
                    place.push("/");
                }
                place
            }
            Url::Ssh { host, path } => {
                let slash = if below.is_empty() || below.ends_with('/') { "" } else { "/" };
                format!("{host}:{path}{below}{slash}").into()
            }
            Url::Daemon(daemon) => {
                let slash = if below.is_empty() || below.ends_with('/') { "" } else { "/" };
                daemon.place(&format!("{}{below}{slash}", daemon.path))
            }
        }
    }

    /// The highest place over there that rsync may be asked for, and the way from it to ours.
    fn top(&self) -> (OsString, String) {
        let Url::Daemon(daemon) = &self.url else { return (self.place(""), String::new()) };
        (daemon.place(""), daemon.path.clone())
    }

    /// The directory `below` over there, as an option of rsync wants it that is run for a place from where it is
    /// `relative`. A daemon and rrsync take what begins with a slash as below their own directory, and `..` not at all.
    fn option_dir(&self, below: &str, relative: &str) -> String {
        match &self.url {
            Url::Daemon(Daemon { path, .. }) => format!("/{path}{below}"),
            Url::Ssh { path, .. } if self.restricted == Some(true) => {
                format!("/{}{below}", path.trim_start_matches('/'))
            }
            _ => relative.to_owned(),
        }
    }

    /// `--compare-dest` for [`Far::send`]: the directory `below` over there.
    pub fn compare_dest(&self, below: &str) -> String {
        format!("--compare-dest={}", self.option_dir(below, below))
    }

    /// `--partial-dir` for [`Far::send`]: `partial` in the directory `place` over there, in which all files to be sent lie.
    pub fn partial_dir(&self, place: &str, partial: &str) -> String {
        match &self.url {
            // rsync itself looks in the directory of each file; rrsync would take it for one of the top.
            Url::Ssh { .. } => format!("--partial-dir={}", self.option_dir(&format!("{place}/{partial}"), partial)),
            _ => format!("--partial-dir={partial}"),
        }
    }

    fn scratch_file(&self, kind: &str) -> PathBuf {
        self.scratch.join(format!("{kind}.{}", self.runs.fetch_add(1, Relaxed)))
    }

    /// Refuses to write to a mounted path where something else is by now.
    fn still_mounted(&self) -> Result<()> {
        let Url::Path(path) = &self.url else { return Ok(()) };
        let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let opened = self.opened.as_ref().and_then(|top| top.metadata().ok()).map(inode);
        let same = opened.is_some() && fs::metadata(path).ok().map(inode) == opened;
        if same {
            return Ok(());
        }
        Err(Kind::Refused.says(format!("{} is not what it was when this began: was it unmounted?", path.display())))
    }

    /// What rsync has said, with the path that the user knows.
    fn said_here(&self, said: String) -> String {
        match (&self.url, &self.opened) {
            (Url::Path(path), Some(opened)) => said.replace(&*alias(opened).to_string_lossy(), &path.to_string_lossy()),
            _ => said,
        }
    }

    /// Sends files of the directory `from`, each to the same name below the destination's directory `below`. What is
    /// there already, by size and time, is not sent again.
    pub fn send(
        &self,
        from: &Path,
        below: &str,
        files: &[String],
        options: &[&str],
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let source = with_slash(from.to_owned());
        loop {
            let mut all = vec!["-t", "--chmod=Dgo=,Fgo=", "--info=progress2"];
            all.extend(options);
            if self.fsync.load(Relaxed) {
                all.push("--fsync");
            }
            let ran = self.rsync(&all, files, [source.clone(), self.place(below)], bounds, watch)?;
            if self.fsync.load(Relaxed) && ran.denies("--fsync") {
                // An rsync older than 3.2.4 over there, or it is forbidden: its kernel flushes within half a minute.
                self.fsync.store(false, Relaxed);
                continue;
            }
            self.flush_names(below, files)?;
            return Ok(ran);
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(master) = &mut self.master {
            crate::command::stop_group(master);
        }
    }
}

/// A path to a directory that is open here, whatever becomes of its name; for us and for the programs we start.
fn alias(dir: &fs::File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd()).into()
}

fn with_slash(path: PathBuf) -> OsString {
    let mut text = path.into_os_string();
    text.push("/");
    text
}
