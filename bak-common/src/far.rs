//! The far side: a mounted path, or a directory that rsync reaches over ssh. Nothing of bak's is needed over there.
//!
//! Every rsync is given its file names by `--files-from`, zero-terminated and below one directory, so no name is ever an
//! argument, a pattern or a word of a shell.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::command::{Event, Program};
use crate::meter::{self, METER, METER_HERE, Speed, Wire};
use crate::name::printable;
use crate::store::Listing;

mod listing;
mod mounted;
mod ran;
mod url;

pub use listing::{FarFile, FarKind};
pub use ran::Ran;
pub use url::Url;

use listing::listed;

/// The longest listing that is read, in bytes: about half a million files.
const LISTING_MAX: usize = 48 << 20;

/// The far side was reached and answered, or it was not.
#[derive(Debug)]
pub enum Fetched {
    Here(Vec<u8>),
    /// rsync says that there is no such file.
    Missing,
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
    ssh: Vec<OsString>,
    master: Option<Child>,
    runs: AtomicU64,
    fsync: AtomicBool,
    /// What all runs so far have cost, and the counts of the one that runs.
    wire: Mutex<Wire>,
    pace: Option<Pace>,
    /// Nothing may cross the line for hours, and that is right.
    may_wait: bool,
}

impl Far {
    /// Prepares a connection; over ssh, one that all runs of this pass share. `ssh` is the command that reaches the host,
    /// `scratch` an empty directory of ours.
    pub fn open(url: Url, ssh: &[String], scratch: &Path) -> Result<Self> {
        let mut far = Self {
            url,
            scratch: scratch.to_owned(),
            scratch_dir: fs::File::open(scratch).context("cannot open a temporary directory")?,
            ssh: Vec::new(),
            master: None,
            runs: AtomicU64::new(0),
            fsync: AtomicBool::new(true),
            wire: Mutex::default(),
            pace: None,
            may_wait: false,
        };
        fs::create_dir_all(scratch.join("empty")).context("cannot make a temporary directory")?;
        if let Url::Ssh { host, .. } = far.url.clone() {
            far.ssh = if ssh.is_empty() { vec!["ssh".into()] } else { ssh.iter().map(OsString::from).collect() };
            for option in ["BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4"] {
                far.ssh.extend(["-o".into(), option.into()]);
            }
            far.connect(&host)?;
        }
        Ok(far)
    }

    pub fn is_remote(&self) -> bool {
        matches!(self.url, Url::Ssh { .. })
    }

    /// Starts the ssh connection that the runs share, and waits until it stands.
    fn connect(&mut self, host: &str) -> Result<()> {
        // A socket's path holds 108 bytes, ours may be longer: this is the same directory under a short name.
        let socket = PathBuf::from(format!("/proc/{}/fd/{}/ssh", std::process::id(), self.scratch_dir.as_raw_fd()));
        let with_socket = |more: &[&str]| {
            let mut args: Vec<OsString> = self.ssh[1..].to_vec();
            args.extend(["-S".into(), socket.clone().into_os_string()]);
            args.extend(more.iter().map(OsString::from));
            args
        };
        let program =
            Program::new(&self.ssh[0])?.args(with_socket(&["-M", "-N", "-o", "ControlPersist=no", "--", host]));
        let mut master = program.spawn(Stdio::null(), Stdio::piped())?;
        let said = master.stderr.take().map(last_words);
        let begun = Instant::now();
        loop {
            if let Some(status) = master.try_wait().context("cannot wait for ssh")? {
                let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
                bail!("ssh could not connect ({status}): {said}");
            }
            if socket.exists() {
                let check = Program::new(&self.ssh[0])?
                    .args(with_socket(&["-O", "check", "--", host]))
                    .timeout(Duration::from_secs(10))
                    .run()?;
                if check.status.success() {
                    break;
                }
            }
            if begun.elapsed() > Duration::from_secs(60) {
                crate::command::stop(&mut master);
                bail!("ssh could not connect within 60 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.master = Some(master);
        self.ssh.extend(["-S".into(), socket.into_os_string(), "-o".into(), "ControlMaster=no".into()]);
        Ok(())
    }

    /// Has every run, those to a mounted path, too, keep to the speed that `pace` says, which is asked again all the time.
    /// If it may be [`Speed::Wait`], rsync's own limit of time without traffic is off, and only ssh notices that a line is
    /// dead.
    pub fn keep_pace(&mut self, pace: impl Fn() -> Speed + Send + Sync + 'static, may_wait: bool) {
        self.pace = Some(Pace(Box::new(pace)));
        self.may_wait = may_wait;
    }

    /// Whether a meter stands between rsync and the far side.
    fn metered(&self) -> bool {
        self.is_remote() || self.pace.is_some()
    }

    /// What has crossed the line since the last call.
    pub fn take_wire(&self) -> Wire {
        std::mem::take(&mut self.wire.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// What rsync is to take for its remote shell: a meter, that notes in `counts`.
    fn shell(&self, counts: &Path) -> OsString {
        // The path stays ours even if this program is replaced by a newer one meanwhile.
        let mut shell = quote(OsString::from(format!("/proc/{}/exe", std::process::id())));
        let mode = if self.is_remote() { METER } else { METER_HERE };
        for word in [OsString::from(mode), counts.into()].into_iter().chain(self.ssh.iter().cloned()) {
            shell.push(" ");
            shell.push(quote(word));
        }
        shell
    }

    /// Runs one rsync with `options`, the names of `files`, and the two places that `places` makes of the far one.
    fn rsync(
        &self,
        options: &[&str],
        files: &[String],
        places: [OsString; 2],
        lock: Option<&crate::lock::Lock>,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        ensure!(files.iter().all(|name| !name.contains('\0')), "a name holds a NUL character");
        let list = self.scratch_file("files");
        // rsync takes a name that begins with `#` or `;` for a comment, even here.
        let named: Vec<String> = files.iter().map(|name| format!("./{name}")).collect();
        fs::write(&list, named.join("\0")).context("cannot write a temporary file")?;
        let counts = self.scratch_file("wire");
        let mut program = Program::new("rsync")?.args(options.iter().copied()).args(["-8", "--no-h", "--from0"]);
        program = program.arg(if self.may_wait { "--timeout=0" } else { "--timeout=600" });
        program = program.arg([b"--files-from=", list.as_os_str().as_bytes()].concat_os());
        if self.metered() {
            program = program.arg("-e").arg(self.shell(&counts));
            if !self.is_remote() {
                // No shell is there that would read the path: it goes as it is.
                program = program.arg("--secluded-args");
            }
        }
        let [from, to] = places;
        // Asked to stop, rsync keeps what has arrived as a partial file and tells the far side.
        program = program.args(["--"]).arg(from).arg(to).env("TZ", "UTC").on_our_death(rustix::process::Signal::TERM);
        if let Some(lock) = lock {
            program = program.holding(lock)?;
        }
        let mut stdout = Vec::new();
        let mut local = Wire::default();
        let metered = self.metered();
        let mut speed = None;
        let mut keep_pace = || match self.pace.as_ref().map(|pace| pace.0()) {
            now if now != speed => {
                speed = now;
                meter::set_speed(&counts, now.unwrap_or_default())
            }
            _ => Ok(()),
        };
        keep_pace()?;
        let finished = program.run_with(|event| {
            keep_pace()?;
            if let Event::Output(bytes) = event {
                ensure!(stdout.len() + bytes.len() < LISTING_MAX, "rsync says more than {LISTING_MAX} bytes");
                stdout.extend_from_slice(bytes);
                if !metered && let Some(sent) = progress(bytes) {
                    local.out = local.out.max(sent);
                }
            }
            watch(if metered { meter::read(&counts) } else { local })
        });
        let wire = if metered { meter::read(&counts) } else { local };
        let mut sum = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = *sum + wire;
        drop(sum);
        let _ = fs::remove_file(&list);
        let _ = fs::remove_file(&counts);
        let mut finished = finished?;
        finished.stdout = stdout;
        Ok(Ran { finished, wire })
    }

    /// Sends files of the directory `from`, each to the same name below the destination's directory `below`. What is
    /// there already, by size and time, is not sent again.
    pub fn send(
        &self,
        from: &Path,
        below: &str,
        files: &[String],
        options: &[&str],
        lock: Option<&crate::lock::Lock>,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let source = with_slash(from.to_owned());
        loop {
            let mut all = vec!["-t", "--chmod=Dgo=,Fgo=", "--info=progress2"];
            all.extend(options);
            if self.fsync.load(Relaxed) {
                all.push("--fsync");
            }
            let ran = self.rsync(&all, files, [source.clone(), self.place(below)], lock, watch)?;
            let unknown = !ran.finished.status.success() && ran.finished.stderr.contains("--fsync: unknown option");
            if self.fsync.load(Relaxed) && unknown {
                // An rsync older than 3.2.4 over there: its kernel flushes within half a minute.
                self.fsync.store(false, Relaxed);
                continue;
            }
            return Ok(ran);
        }
    }

    /// Fetches one small file.
    pub fn fetch(&self, name: &str) -> Result<Fetched> {
        if let Url::Path(top) = &self.url {
            return mounted::fetch(top, name);
        }
        let to = self.scratch_file("fetched");
        fs::create_dir(&to).context("cannot make a temporary directory")?;
        let options = ["--max-size=16M"];
        let ran =
            self.rsync(&options, &[name.to_owned()], [self.place(""), to.clone().into_os_string()], None, &mut |_| {
                Ok(())
            })?;
        let result = match fs::read(to.join(name)) {
            Ok(bytes) if ran.finished.status.success() => Ok(Fetched::Here(bytes)),
            // Only a clear "no such file" is an absence; any other trouble is trouble.
            // (Where the directory itself is missing, rsync may end with 23, or break off with 12, or 3 locally.)
            _ if matches!(ran.finished.status.code(), Some(3 | 12 | 23))
                && ran.finished.stderr.contains("No such file or directory (2)") =>
            {
                Ok(Fetched::Missing)
            }
            Ok(_) => Err(ran.error()),
            // A directory, a symbolic link, or far too large: rsync passes over it. No file of ours is like that.
            Err(_) if ran.finished.status.success() => Ok(Fetched::Missing),
            Err(_) => Err(ran.error()),
        };
        let _ = fs::remove_dir_all(&to);
        result
    }

    /// Lists these names and what lies below them; one that is not there lists as nothing. An error if the
    /// listing is not whole.
    pub fn list(&self, names: &[String]) -> Result<Vec<FarFile>> {
        if let Url::Path(top) = &self.url {
            return mounted::list(top, names).context("cannot list the far side");
        }
        let options = ["--list-only", "-r", "--ignore-missing-args"];
        let places = [self.place(""), self.scratch.join("empty").into_os_string()];
        let ran = self.rsync(&options, names, places, None, &mut |_| Ok(()))?;
        ran.check().context("cannot list the far side")?;
        let text = String::from_utf8_lossy(&ran.finished.stdout);
        text.lines()
            .filter(|line| !line.ends_with(" ."))
            .map(|line| listed(line).with_context(|| format!("cannot read rsync's listing: `{}`", printable(line))))
            .collect()
    }

    /// All dumps over there. Their sidecars are fetched anew, in one run; an error if the listing is not whole.
    pub fn dumps(&self, top: &str) -> Result<Listing> {
        Ok(self.whole(top)?.1)
    }

    /// All files over there, and the dumps that they make up: see [`Far::dumps`].
    pub fn whole(&self, top: &str) -> Result<(Vec<FarFile>, Listing)> {
        let files = self.list(&[".".to_owned()])?;
        let names: Vec<String> = listing::sidecars(&files).into_iter().map(|(_, _, name)| name).collect();
        let to = self.scratch_file("sidecars");
        fs::create_dir(&to).context("cannot make a temporary directory")?;
        if !names.is_empty() {
            // One that vanishes meanwhile is unreadable then; its status does not matter beyond that.
            let places = [self.place(""), to.clone().into_os_string()];
            let ran =
                self.rsync(&["--max-size=16M", "--ignore-missing-args"], &names, places, None, &mut |_| Ok(()))?;
            if ran.line_down() {
                return Err(ran.error().context("cannot fetch the sidecars of the far side"));
            }
        }
        let texts = names.into_iter().filter_map(|name| Some((name.clone(), fs::read(to.join(&name)).ok()?))).collect();
        let _ = fs::remove_dir_all(&to);
        let dumps = listing::dumps(top, &files, &texts);
        Ok((files, dumps))
    }

    /// Makes `old`, a file over there, also the basis of `new`: both names in the directory `basis` over there, as hard
    /// links, without sending any of it. `old` must be there just as said. Sends about 100 bytes.
    pub fn seed_basis(&self, basis: &str, old: &FarFile, new: &str) -> Result<Ran> {
        let stub = self.stub(old, new)?;
        let options = ["-tHz", "--link-dest=.."];
        self.rsync(
            &options,
            &[old.name.clone(), new.to_owned()],
            [with_slash(stub), self.place(basis)],
            None,
            &mut |_| Ok(()),
        )
    }

    /// Removes what [`Far::seed_basis`] made. rsync takes a file of the same size and time here for a copy of the one
    /// over there, and then removes that one on request: only these very names, and no directory is ever swept.
    pub fn drop_basis(&self, basis: &str, old: &FarFile, new: &str) -> Result<Ran> {
        let stub = self.stub(old, new)?;
        let options = ["-t", "--remove-source-files", "--ignore-missing-args"];
        self.rsync(
            &options,
            &[old.name.clone(), new.to_owned()],
            [self.place(basis), stub.into_os_string()],
            None,
            &mut |_| Ok(()),
        )
    }

    /// A directory with an empty sparse file of `old`'s name, size and time, hard-linked as `new`.
    fn stub(&self, old: &FarFile, new: &str) -> Result<PathBuf> {
        let dir = self.scratch_file("stub");
        for name in [old.name.as_str(), new] {
            let parent = dir.join(name).parent().map(Path::to_owned).unwrap_or_default();
            fs::create_dir_all(parent).context("cannot make a temporary directory")?;
        }
        let path = dir.join(&old.name);
        let file = fs::File::create(&path).context("cannot make a temporary file")?;
        let modified =
            std::time::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(old.modified.unix()).unwrap_or(0)));
        file.set_len(old.bytes)
            .and_then(|()| file.set_modified(modified.unwrap_or(std::time::UNIX_EPOCH)))
            .context("cannot make a temporary file")?;
        fs::hard_link(&path, dir.join(new)).context("cannot make a temporary file")?;
        Ok(dir)
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(master) = &mut self.master {
            crate::command::stop(master);
        }
    }
}

/// Reads what a program says to its end, and keeps the last line.
fn last_words(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            kept.extend_from_slice(&buffer[..count]);
            let over = kept.len().saturating_sub(buffer.len());
            kept.drain(..over);
        }
        let text = String::from_utf8_lossy(&kept).into_owned();
        text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
    })
}

/// The words of a remote shell's command as `--ssh` takes it: split at spaces.
pub fn ssh_words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
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
