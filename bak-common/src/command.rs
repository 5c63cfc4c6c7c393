//! Outside programs: argument vectors, never a shell; their standard error kept for our message; a time limit; and they
//! die with us.
//!
//! "Die with us" must hold even for SIGKILL, so the kernel has to do it (`PR_SET_PDEATHSIG`), and that must be asked for in
//! the child. Without unsafe code in between fork and exec the way is one more exec: we start ourselves as a trampoline,
//! which asks for the signal, makes sure that its parent is still there, and becomes the program. The kernel ties the
//! signal to the thread that forked, so the thread that starts a program must outlive it; [`Program::run`] waits in it.

use anyhow::{Context, Result, anyhow, bail};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

mod ending;
pub mod guard;
mod trampoline;

use ending::{PATIENCE, ask};
pub use ending::{has_ended, stop, stop_group, stop_group_within};
use trampoline::TRAMPOLINE;
pub use trampoline::trampoline;

const STDERR_KEPT: usize = 8 << 10;
const STDOUT_MAX: usize = 256 << 20;
/// What is kept of its standard error where all of that is asked for.
const LOG_MAX: u64 = 4 << 20;

/// The descriptor by which a program hands over data: see [`Program::data`].
pub const DATA: i32 = 3;

/// What bak runs, and the Debian package that has it.
const PACKAGES: [(&str, &str); 10] = [
    ("VBoxManage", "virtualbox"),
    ("bzip2", "bzip2"),
    ("gzip", "gzip"),
    ("lzop", "lzop"),
    ("qemu-img", "qemu-utils"),
    ("rsync", "rsync"),
    ("sha256sum", "coreutils"),
    ("ssh", "openssh-client"),
    ("tar", "tar"),
    ("zstd", "zstd"),
];

/// An outside program to be run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    name: String,
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    env: Vec<(OsString, OsString)>,
    held: Vec<OwnedFd>,
    data: Option<OwnedFd>,
    log: Option<File>,
    stdin: Option<Stdio>,
    feed: Option<Vec<u8>>,
    on_our_death: Signal,
    timeout: Option<Duration>,
    own_locale: bool,
    own_group: bool,
    heeds: bool,
    tick: Duration,
}

/// A program that is there and cannot be run.
#[derive(Debug)]
pub struct NotExecutable;

impl std::fmt::Display for NotExecutable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it is not executable")
    }
}

impl std::error::Error for NotExecutable {}

/// There is no such program, or it was given up as it took too long: what is wrong is here, and says nothing of what it was to
/// work on.
#[derive(Debug)]
pub struct NotRun(String);

impl std::fmt::Display for NotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRun {}

/// How it ended and what it said.
#[derive(Debug)]
pub struct Finished {
    pub name: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The end of its standard error.
    pub stderr: String,
}

/// What a caller may do while a program runs: see its output as it comes, and stop it.
pub enum Event<'a> {
    Output(&'a [u8]),
    /// At least five times a second, or as often as asked for: see [`Program::ticking`].
    Tick,
}

/// A standard error that is kept.
struct Log {
    file: File,
    left: u64,
}

impl Log {
    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let cut = bytes.len() > room && room > 0;
        let kept = &bytes[..bytes.len().min(room)];
        self.left -= kept.len() as u64;
        let more: &[u8] = if cut { b"\n[cut off here: it said more]\n" } else { b"" };
        self.file.write_all(kept).and_then(|()| self.file.write_all(more)).context("cannot write its log")
    }
}

impl Program {
    /// Looks `name` up on PATH. Fails with [`NotExecutable`] if it is there and cannot be run.
    pub fn new(name: impl AsRef<OsStr>) -> Result<Self> {
        let name = name.as_ref();
        let shown = name.to_string_lossy();
        let path = find(name).with_context(|| format!("cannot run {shown}"))?;
        let missing = || match PACKAGES.iter().find(|(program, _)| *program == shown) {
            Some((_, package)) => format!("cannot find {shown}: install the package {package}"),
            None if shown.contains('/') => format!("cannot find {shown}"),
            None => format!("cannot find {shown} on PATH"),
        };
        let path = path.ok_or_else(|| NotRun(missing()))?;
        let name = Path::new(name).file_name().unwrap_or(name).to_string_lossy().into_owned();
        Ok(Self {
            path,
            name,
            args: Vec::new(),
            dir: None,
            env: Vec::new(),
            held: Vec::new(),
            data: None,
            log: None,
            stdin: None,
            feed: None,
            on_our_death: Signal::KILL,
            timeout: None,
            own_locale: false,
            own_group: false,
            heeds: false,
            tick: Duration::from_millis(100),
        })
    }

    /// Whether there is a program `name` on PATH. Fails with [`NotExecutable`] if it is there and cannot be run.
    pub fn exists(name: &str) -> Result<bool> {
        Ok(find(name.as_ref()).with_context(|| format!("cannot run {name}"))?.is_some())
    }

    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Makes it hold `lock` too, so that the lock is free only when both are gone.
    pub fn holding(mut self, lock: &crate::lock::Lock) -> Result<Self> {
        self.held.push(lock.share()?);
        Ok(self)
    }

    /// Gives it `fd` as its descriptor 3, beside the standard streams.
    pub fn data(mut self, fd: OwnedFd) -> Self {
        self.data = Some(fd);
        self
    }

    /// Also writes its standard error to `file`, as it comes, up to some megabytes. Only where it is run, not spawned.
    pub fn log(mut self, file: File) -> Self {
        self.log = Some(file);
        self
    }

    /// Gives it a standard input.
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.stdin = Some(stdin);
        self
    }

    /// Writes `bytes` to its standard input.
    pub fn feed(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.feed = Some(bytes.into());
        self
    }

    /// The signal it gets when we die; SIGKILL if not said.
    pub fn on_our_death(mut self, signal: Signal) -> Self {
        self.on_our_death = signal;
        self
    }

    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Has [`Event::Tick`] come about this often.
    pub fn ticking(mut self, every: Duration) -> Self {
        self.tick = every;
        self
    }

    /// Leaves it the user's locale, for a program that the user named: what others print we may have to read.
    pub fn own_locale(mut self) -> Self {
        self.own_locale = true;
        self
    }

    /// Puts it, and what it starts, into a process group of their own: what a terminal sends to ours does not reach them,
    /// and they can be ended together: see [`stop_group`].
    pub fn own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// Ends it when we are asked to end; the result is a [`crate::stop::Stopped`] then.
    pub fn heeding(mut self) -> Self {
        self.heeds = true;
        self
    }

    fn command(&mut self) -> Result<Command> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(&self.name)
            .arg(TRAMPOLINE)
            .arg(std::process::id().to_string())
            .arg(self.on_our_death.as_raw().to_string());
        command.arg(&self.path).args(&self.args);
        if !self.own_locale {
            command.env("LC_ALL", "C");
        }
        if self.own_group {
            command.process_group(0);
        }
        command.envs(self.env.drain(..));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let stdin = match (self.stdin.take(), &self.feed) {
            (Some(stdin), _) => stdin,
            (None, Some(_)) => Stdio::piped(),
            (None, None) => Stdio::null(),
        };
        command.stdin(stdin);
        let mut held: Vec<OwnedFd> = self.held.drain(..).collect();
        if let Some(data) = self.data.take() {
            // None that is to be handed on may lie where the data goes.
            for fd in held.iter_mut().filter(|fd| fd.as_raw_fd() == DATA) {
                *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, DATA + 1).context("cannot hand a lock on")?;
            }
            let data = FdMapping { parent_fd: data, child_fd: DATA };
            command.fd_mappings(vec![data]).context("cannot hand a descriptor on")?;
        }
        // Under their own numbers: any other may be that of a descriptor which the user hands on through us.
        command.preserved_fds(held);
        Ok(command)
    }

    /// Starts it with its standard streams as the caller sets them, for those who talk with it while it runs. The caller
    /// stays in this thread until it has ended.
    pub fn spawn(mut self, stdout: Stdio, stderr: Stdio) -> Result<Child> {
        let mut command = self.command()?;
        command.stdout(stdout).stderr(stderr).spawn().with_context(|| format!("cannot start {}", self.name))
    }

    /// Runs it to its end and keeps what it says.
    pub fn run(self) -> Result<Finished> {
        let mut stdout = Vec::new();
        let mut finished = self.run_with(|event| {
            if let Event::Output(bytes) = event {
                if stdout.len() + bytes.len() > STDOUT_MAX {
                    bail!("it printed more than {STDOUT_MAX} bytes");
                }
                stdout.extend_from_slice(bytes);
            }
            Ok(())
        })?;
        finished.stdout = stdout;
        Ok(finished)
    }

    /// Runs it to its end; `watch` sees its output and may stop it by an error, which is then the result.
    pub fn run_with(mut self, mut watch: impl FnMut(Event) -> Result<()>) -> Result<Finished> {
        enum Said {
            Out(Vec<u8>),
            Err(Vec<u8>),
            End,
        }
        let begun = Instant::now();
        let mut child = self
            .command()?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let (sender, said) = mpsc::channel();
        fn pump(mut from: impl Read + Send + 'static, to: mpsc::Sender<Said>, wrap: fn(Vec<u8>) -> Said) {
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    if to.send(wrap(buffer[..count].to_vec())).is_err() {
                        return;
                    }
                }
                let _ = to.send(Said::End);
            });
        }
        let mut open = 0;
        if let Some(out) = child.stdout.take() {
            pump(out, sender.clone(), Said::Out);
            open += 1;
        }
        if let Some(err) = child.stderr.take() {
            pump(err, sender, Said::Err);
            open += 1;
        }
        if let (Some(mut stdin), Some(bytes)) = (child.stdin.take(), self.feed.take()) {
            // A program that does not read all of its input says so by its exit status.
            std::thread::spawn(move || stdin.write_all(&bytes));
        }
        let mut stderr = Vec::new();
        let mut log = self.log.take().map(|file| Log { file, left: LOG_MAX });
        let mut ticked = Instant::now();
        let mut ended: Option<Instant> = None;
        let mut hear = |said: Said, open: &mut usize, watch: &mut dyn FnMut(Event) -> Result<()>| match said {
            Said::Out(bytes) => watch(Event::Output(&bytes)),
            Said::Err(bytes) => {
                if let Some(log) = &mut log {
                    log.keep(&bytes)?;
                }
                stderr.extend_from_slice(&bytes);
                let over = stderr.len().saturating_sub(STDERR_KEPT);
                stderr.drain(..over);
                Ok(())
            }
            Said::End => {
                *open -= 1;
                Ok(())
            }
        };
        let outcome = loop {
            if open == 0 {
                // Both streams are closed: the end is near, or it is a daemon's way; the time limit holds all the same.
                if let Some(status) = child.try_wait().context("cannot wait for a program")? {
                    break Ok(status);
                }
                std::thread::sleep(Duration::from_millis(2));
            } else {
                match said.recv_timeout(self.tick) {
                    Ok(event) => {
                        if let Err(error) = hear(event, &mut open, &mut watch) {
                            break Err(error);
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => open = 0,
                    // Something that it left running may hold its streams open: a short grace, then its end is its end.
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(status) = child.try_wait().context("cannot wait for a program")?
                            && ended.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(500)
                        {
                            break Ok(status);
                        }
                    }
                }
            }
            if ticked.elapsed() >= self.tick {
                ticked = Instant::now();
                if let Err(error) = watch(Event::Tick) {
                    break Err(error);
                }
            }
            if self.heeds
                && let Err(error) = crate::stop::check()
            {
                break Err(error);
            }
            if self.timeout.is_some_and(|limit| begun.elapsed() > limit) {
                let limit = self.timeout.unwrap_or_default().as_secs();
                break Err(NotRun(format!("{} took longer than {limit} s and was stopped", self.name)).into());
            }
        };
        match outcome {
            Ok(status) => {
                let stderr = String::from_utf8_lossy(&stderr).into_owned();
                Ok(Finished { name: self.name, status, stdout: Vec::new(), stderr })
            }
            Err(error) => {
                if self.own_group {
                    // What it has started may have to put things in order, too, as rsync's other half does.
                    ask(&child, PATIENCE);
                    std::thread::sleep(Duration::from_millis(200));
                    stop_group(&mut child);
                } else {
                    stop(&mut child);
                }
                Err(error)
            }
        }
    }
}

impl Finished {
    /// Its standard output if it ended well; else what it said last.
    pub fn check(self) -> Result<Vec<u8>> {
        if self.status.success() { Ok(self.stdout) } else { Err(self.error()) }
    }

    /// How it ended, in words, with its last words.
    pub fn error(&self) -> anyhow::Error {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let said = self.last_words();
        if said.is_empty() { anyhow!("{} {how}", self.name) } else { anyhow!("{} {how}: {said}", self.name) }
    }

    /// The last lines of its standard error, as one line.
    pub fn last_words(&self) -> String {
        let lines: Vec<&str> = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }
}

/// The file that `name` means, if there is one.
fn find(name: &OsStr) -> Result<Option<PathBuf>, NotExecutable> {
    let usable = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let candidates: Vec<PathBuf> = if name.as_encoded_bytes().contains(&b'/') {
        vec![name.into()]
    } else {
        let dirs = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        std::env::split_paths(&dirs).map(|dir| dir.join(name)).collect()
    };
    match candidates.iter().position(|path| usable(path)) {
        Some(at) => Ok(candidates.into_iter().nth(at)),
        None if candidates.iter().any(|path| path.exists()) && !name.is_empty() => Err(NotExecutable),
        None => Ok(None),
    }
}
