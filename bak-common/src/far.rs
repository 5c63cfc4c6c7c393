//! The far side: a mounted path, or a directory that rsync reaches over ssh. Nothing of bak's is needed over there.
//!
//! Every rsync is given its file names by `--files-from`, zero-terminated and below one directory, so no name is ever an
//! argument, a pattern or a word of a shell.

use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::command::{Event, Program};
use crate::lock::Lock;
use crate::meter::{Counts, METER, METER_HERE, Speed, Wire};

mod append;
mod cache;
pub mod identity;
mod listing;
mod look;
mod mounted;
mod ran;
mod remove;
mod seed;
mod ssh;
mod url;

pub use append::Slice;
pub use cache::Cache;
pub use listing::{FarFile, FarKind};
pub use look::Fetched;
pub use ran::{LimitReached, Ran, refused};
pub use ssh::ssh_words;
pub use url::Url;

/// The longest listing that is read, in bytes: about half a million files.
const LISTING_MAX: usize = 48 << 20;

/// How far beyond the limit small runs may go, in bytes: those that only look, clean up, or finish what has arrived.
const BEYOND: i128 = 32 << 10;

/// Seconds without traffic after which a run is given up.
const SILENCE_S: u64 = 600;

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
    /// The command that reaches the host, and the same over the connection that the runs share.
    shell: Vec<OsString>,
    ssh: Vec<OsString>,
    master: Option<Child>,
    runs: AtomicU64,
    fsync: AtomicBool,
    traffic: Mutex<Traffic>,
    pace: Option<Pace>,
    /// Nothing may cross the line for hours, and that is right.
    may_wait: bool,
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
}

impl<'a> Bounds<'a> {
    pub fn under(lock: &'a Lock) -> Self {
        Self { lock: Some(lock), ..Self::default() }
    }
}

impl Far {
    /// Prepares a connection; over ssh, one that all runs of this pass share. `ssh` is the command that reaches the host,
    /// `scratch` an empty directory of ours.
    pub fn open(url: Url, ssh: &[String], scratch: &Path) -> Result<Self> {
        let mut far = Self {
            url,
            scratch: scratch.to_owned(),
            scratch_dir: fs::File::open(scratch).context("cannot open a temporary directory")?,
            shell: Vec::new(),
            ssh: Vec::new(),
            master: None,
            runs: AtomicU64::new(0),
            fsync: AtomicBool::new(true),
            traffic: Mutex::new(Traffic { wire: Wire::default(), left: None }),
            pace: None,
            may_wait: false,
        };
        fs::create_dir_all(scratch.join("empty")).context("cannot make a temporary directory")?;
        if far.is_remote() {
            far.shell = if ssh.is_empty() { vec!["ssh".into()] } else { ssh.iter().map(OsString::from).collect() };
            for option in ["BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4"] {
                far.shell.extend(["-o".into(), option.into()]);
            }
        }
        far.connect()?;
        Ok(far)
    }

    pub fn is_remote(&self) -> bool {
        matches!(self.url, Url::Ssh { .. })
    }

    /// Has every run, those to a mounted path, too, keep to the speed that `pace` says, which is asked again all the time.
    /// If it may be [`Speed::Wait`], rsync's own limit of time without traffic is off, and only ssh notices that a line is
    /// dead.
    pub fn keep_pace(&mut self, pace: impl Fn() -> Speed + Send + Sync + 'static, may_wait: bool) {
        self.pace = Some(Pace(Box::new(pace)));
        self.may_wait = may_wait;
    }

    /// How fast to send now.
    fn speed(&self) -> Speed {
        self.pace.as_ref().map(|pace| pace.0()).unwrap_or_default()
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
                place.push(path.join(below));
                if !place.as_bytes().ends_with(b"/") {
                    place.push("/");
                }
                place
            }
            Url::Ssh { host, path } => {
                let slash = if below.is_empty() || below.ends_with('/') { "" } else { "/" };
                format!("{host}:{path}{below}{slash}").into()
            }
        }
    }

    fn scratch_file(&self, kind: &str) -> PathBuf {
        self.scratch.join(format!("{kind}.{}", self.runs.fetch_add(1, Relaxed)))
    }

    /// Runs one rsync with `options`, the names of `files`, and the two places that `places` makes of the far one. `watch`
    /// sees what has crossed since the last [`Far::take_wire`].
    fn rsync(
        &self,
        options: &[&str],
        files: &[String],
        places: [OsString; 2],
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let list = self.names(files)?;
        let path = self.scratch_file("wire");
        let counts = Counts::create(&path)?;
        // Ten megabytes a second is slow for a disk.
        let silence = if self.may_wait { 0 } else { SILENCE_S + bounds.silent / 10_000_000 };
        let silence = format!("--timeout={silence}");
        let mut program =
            Program::new("rsync")?.args(options.iter().copied()).args(["-8", "--no-h", "--from0", silence.as_str()]);
        program = program.arg([b"--files-from=", list.as_os_str().as_bytes()].concat_os());
        if self.metered() {
            program = program.arg("-e").arg(self.metered_shell(&path, self.room(&bounds)));
            if !self.is_remote() {
                // No shell is there that would read the path: it goes as it is.
                program = program.arg("--secluded-args");
            }
        }
        let [from, to] = places;
        // Asked to stop, rsync keeps what has arrived as a partial file and tells the far side.
        program = program.args(["--"]).arg(from).arg(to).env("TZ", "UTC").on_our_death(rustix::process::Signal::TERM);
        if let Some(lock) = bounds.lock {
            program = program.holding(lock)?;
        }
        let mut stdout = Vec::new();
        let mut local = Wire::default();
        let (metered, before) = (self.metered(), self.traffic().wire);
        counts.set_speed(self.speed());
        let finished = program.run_with(|event| {
            counts.set_speed(self.speed());
            if let Event::Output(bytes) = event {
                ensure!(stdout.len() + bytes.len() < LISTING_MAX, "rsync says more than {LISTING_MAX} bytes");
                stdout.extend_from_slice(bytes);
                if !metered && let Some(sent) = progress(bytes) {
                    local.out = local.out.max(sent);
                }
            }
            let wire = if metered { counts.wire() } else { local };
            watch(before + wire)?;
            counts.seen(wire);
            Ok(())
        });
        let wire = if metered { counts.wire() } else { local };
        self.spent(wire);
        let _ = fs::remove_file(&list);
        let _ = fs::remove_file(&path);
        let mut finished = finished?;
        finished.stdout = stdout;
        Ok(Ran { finished, wire, cut: counts.cut() })
    }

    /// Writes the names of `files` for `--files-from`.
    fn names(&self, files: &[String]) -> Result<PathBuf> {
        ensure!(files.iter().all(|name| !name.contains('\0')), "a name holds a NUL character");
        let list = self.scratch_file("files");
        // rsync takes a name that begins with `#` or `;` for a comment, even here.
        let named: Vec<String> = files.iter().map(|name| format!("./{name}")).collect();
        fs::write(&list, named.join("\0")).context("cannot write a temporary file")?;
        Ok(list)
    }

    /// rsync's `-e`: a meter that lets `room` bytes pass, before our ssh or before the other end of rsync here.
    fn metered_shell(&self, counts: &Path, room: u64) -> OsString {
        // The path stays ours even if this program is replaced by a newer one meanwhile.
        let mut shell = quote(OsString::from(format!("/proc/{}/exe", std::process::id())));
        let mode = if self.is_remote() { METER } else { METER_HERE };
        let meter = [OsString::from(mode), counts.as_os_str().to_owned(), room.to_string().into()];
        for word in meter.into_iter().chain(self.ssh.iter().cloned()) {
            shell.push(" ");
            shell.push(quote(word));
        }
        shell
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
            let unknown = !ran.finished.status.success() && ran.finished.stderr.contains("--fsync: unknown option");
            if self.fsync.load(Relaxed) && unknown {
                // An rsync older than 3.2.4 over there: its kernel flushes within half a minute.
                self.fsync.store(false, Relaxed);
                continue;
            }
            return Ok(ran);
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(master) = &mut self.master {
            crate::command::stop(master);
        }
    }
}

fn with_slash(path: PathBuf) -> OsString {
    let mut text = path.into_os_string();
    text.push("/");
    text
}

trait ConcatOs {
    fn concat_os(self) -> OsString;
}

impl ConcatOs for [&[u8]; 2] {
    fn concat_os(self) -> OsString {
        OsString::from_vec(self.concat())
    }
}

/// A word of rsync's `-e`, which it splits itself: quoted, quotes doubled.
fn quote(word: OsString) -> OsString {
    let mut quoted = vec![b'\''];
    for byte in word.into_vec() {
        quoted.extend(if byte == b'\'' { &b"''"[..] } else { std::slice::from_ref(&byte) });
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// How many bytes `--info=progress2` says have been sent, from the last of its lines in `output`.
fn progress(output: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(output).ok()?;
    text.split(['\r', '\n']).rev().find_map(|line| {
        let mut words = line.split_whitespace();
        let bytes = words.next()?.parse().ok()?;
        words.next()?.ends_with('%').then_some(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines() {
        assert_eq!(progress(b"\r     32,768   0%\r        65536  12%    1.00MB/s"), Some(65536));
        assert_eq!(progress(b"sent 5 bytes"), None);
    }

    #[test]
    fn words_for_rsync() {
        assert_eq!(quote("a 'b'".into()), OsString::from("'a ''b'''"));
    }
}
