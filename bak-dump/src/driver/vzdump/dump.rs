//! One guest, by vzdump: its stream into frames of ours, or its own archive.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::calendar::{Time, Zone};
use bak_common::command::{Program, has_ended, stop_group_within};
use bak_common::config::Vzdump;
use bak_common::hash::hash;
use bak_common::name::printable;
use bak_common::record::FileEntry;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Kind;
use super::log::Heard;
use crate::driver::{Job, Made, Progress};
use crate::frames;

/// How long vzdump may take to end once its archive has.
const ENDING: Duration = Duration::from_secs(600);

/// How long it may take to clear up when it is stopped.
const STOPPING: Duration = Duration::from_secs(20);

/// The longest line of it that is kept, and the longest log, in bytes.
const LINE_MAX: u64 = 4 << 10;
const LOG_MAX: u64 = 16 << 20;

/// One dump to be made.
pub struct Order<'a> {
    pub job: &'a Job<'a>,
    pub kind: Kind,
    pub id: u32,
    pub how: &'a Vzdump,
    /// What Proxmox's web interface shows beside it.
    pub notes: String,
}

impl Order<'_> {
    fn program(&self) -> Result<Program> {
        let how = self.how;
        let mut program = Program::new("vzdump")?.arg(self.id.to_string());
        let options = [
            ("--mode", Some(how.mode.map_or("snapshot", |mode| mode.as_str()).to_owned())),
            // Its unit is KiB a second, and 0 no limit at all.
            ("--bwlimit", how.bwlimit.map(|rate| (rate.0 >> 10).max(1).to_string())),
            ("--ionice", how.ionice.map(|class| class.to_string())),
            ("--lockwait", how.lockwait.map(|span| (span.0 / 60).to_string())),
            ("--fleecing", how.fleecing.clone()),
        ];
        for (name, value) in options.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            program = program.args([name.to_owned(), value]);
        }
        for path in how.exclude_path.iter().filter(|_| self.kind == Kind::Lxc) {
            program = program.args(["--exclude-path", path]);
        }
        // It unlocks its guest and clears up when it is asked to end.
        program = program.on_our_death(Signal::TERM).own_group();
        for lock in self.job.locks {
            program = program.holding(lock)?;
        }
        Ok(program)
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.job.dir.join(format!("{}.{ending}", self.job.stem))
    }

    /// What belongs beside the archive: notes, and the mark of a protected dump.
    fn companions(&self, archive: &str) -> Result<()> {
        write_flushed(&self.job.dir.join(format!("{archive}.notes")), self.notes.as_bytes())?;
        if self.how.protected == Some(true) {
            write_flushed(&self.job.dir.join(format!("{archive}.protected")), b"")?;
        }
        Ok(())
    }

    fn made(&self, file: FileEntry, heard: Heard) -> Result<Made> {
        self.companions(&file.name)?;
        let protected = self.how.protected == Some(true);
        Ok(Made { files: vec![file], mode: heard.mode, protected, ..Made::default() })
    }
}

fn write_flushed(path: &Path, bytes: &[u8]) -> Result<()> {
    let made = File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    made.with_context(|| format!("cannot write {}", path.display()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// vzdump's stream, compressed by us.
pub fn framed(order: &Order) -> Result<Made> {
    let name = format!("{}.{}.zst", order.job.stem, order.kind.archive());
    let program = order.program()?.args(["--compress", "0", "--stdout"]);
    let mut child = program.spawn(Stdio::piped(), Stdio::piped())?;
    let pipes = child.stdout.take().zip(child.stderr.take());
    let run = Run::new(order, child);
    let (stdout, stderr) = pipes.context("vzdump has no output")?;
    frames::widen(&stdout);
    let mut output = File::create(order.job.dir.join(&name)).with_context(|| format!("cannot write {name}"))?;
    let head = Mutex::new(Vec::new());
    let (written, status) = run.with_log(stderr, |run| {
        let stream = Headed { inner: stdout, head: &head };
        let level = order.how.level.unwrap_or(frames::LEVEL);
        let abort = || drop(run.stop());
        let written = frames::write(stream, &mut output, (level, frames::threads()), &|_| run.tick(), abort);
        if written.is_ok() {
            run.wait(Some(ENDING))?;
        }
        Ok(written)
    })?;
    let heard = std::mem::take(&mut *locked(&run.heard));
    // What vzdump says of its failure tells more than that its stream broke off.
    if let Some(why) = &heard.failed {
        bail!("vzdump failed: {why}");
    }
    let written = written?;
    judge(status, &heard)?;
    let head = head.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(is_archive(order.kind, &head), "what vzdump sent is no {} archive", order.kind.archive());
    output.sync_all().with_context(|| format!("cannot flush {name}"))?;
    let file = FileEntry { name, bytes: written.bytes, sha256: Some(written.sha256), extra: Default::default() };
    order.made(file, heard)
}

/// Whether vzdump made what it should have.
fn judge(status: ExitStatus, heard: &Heard) -> Result<()> {
    if !status.success() {
        let how = status.code().map_or("was killed".to_owned(), |code| format!("exited with status {code}"));
        bail!("vzdump {how}: {}", printable(&heard.last));
    }
    if !heard.finished {
        bail!(
            "vzdump ended without having finished this guest (is it on another node?): {}",
            if heard.last.is_empty() { "it said nothing".into() } else { printable(&heard.last) }
        );
    }
    Ok(())
}

/// How an archive begins.
fn is_archive(kind: Kind, head: &[u8]) -> bool {
    match kind {
        Kind::Qemu => head.starts_with(b"VMA\0"),
        Kind::Lxc => head.get(257..262) == Some(b"ustar"),
    }
}

/// Keeps the first bytes of what is read.
struct Headed<'a, R> {
    inner: R,
    head: &'a Mutex<Vec<u8>>,
}

impl<R: Read> Read for Headed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let mut head = locked(self.head);
        if head.len() < 512 {
            head.extend_from_slice(&buffer[..count.min(512)]);
        }
        Ok(count)
    }
}

/// vzdump's own archive. Its name is made of the moment at which it begins, so it gets ours.
pub fn by_itself(order: &Order) -> Result<Made> {
    let program = order.program()?.args(["--compress", "zstd", "--dumpdir"]).arg(order.job.dir);
    let (words, out) = std::io::pipe().context("cannot make a pipe")?;
    let err = out.try_clone().context("cannot make a pipe")?;
    let run = Run::new(order, program.spawn(out.into(), err.into())?);
    let ((), status) = run.with_log(words, |run| run.wait(None))?;
    let heard = std::mem::take(&mut *locked(&run.heard));
    if let Some(why) = &heard.failed {
        bail!("vzdump failed: {why}");
    }
    judge(status, &heard)?;
    let found = own_archive(order)?;
    let (_, ending) =
        found.split_once(&format!(".{}", order.kind.archive())).context("its archive has a strange name")?;
    let name = format!("{}.{}{ending}", order.job.stem, order.kind.archive());
    let path = order.job.dir.join(&name);
    fs::rename(order.job.dir.join(&found), &path).with_context(|| format!("cannot rename {found}"))?;
    // vzdump flushes nothing.
    let file = File::open(&path).with_context(|| format!("cannot open {name}"))?;
    file.sync_all().with_context(|| format!("cannot flush {name}"))?;
    let (bytes, sha256) = hash(&file, &mut |_| (order.job.tick)(Progress { done: 1.0 }))?;
    order.made(FileEntry { name, bytes, sha256: Some(sha256), extra: Default::default() }, heard)
}

/// The one archive in the work directory, with its own log as its proof.
fn own_archive(order: &Order) -> Result<String> {
    let start = format!("vzdump-{}-{}-", order.kind.as_str(), order.id);
    let entries = fs::read_dir(order.job.dir).context("cannot list the work directory")?;
    let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let middle = format!(".{}", order.kind.archive());
    let is = |name: &&String| {
        let rest = name.strip_prefix(&start).and_then(|rest| rest.split_once(&middle)).map(|(_, ending)| ending);
        rest.is_some_and(|ending| matches!(ending, "" | ".zst" | ".gz" | ".lzo"))
    };
    let mut found = names.iter().filter(is);
    match (found.next(), found.next()) {
        (Some(name), None) => {
            let stem = name.split_once(&middle).map_or(name.as_str(), |(stem, _)| stem);
            let text = fs::read(order.job.dir.join(format!("{stem}.log")))
                .with_context(|| format!("vzdump left no log beside {name}: it may not be whole"))?;
            let mut heard = Heard::default();
            let text = String::from_utf8_lossy(&text);
            heard.line(text.lines().next_back().unwrap_or_default(), order.id);
            ensure!(heard.finished, "vzdump's log of {name} does not end with its success");
            Ok(name.clone())
        }
        (Some(_), Some(_)) => bail!("vzdump left several archives"),
        (None, _) => bail!("vzdump says that it finished, and left no archive"),
    }
}

/// A running vzdump.
struct Run<'a> {
    order: &'a Order<'a>,
    child: Mutex<Child>,
    /// How it ended, once it was stopped.
    ended: Mutex<Option<ExitStatus>>,
    heard: Mutex<Heard>,
    begun: Instant,
}

impl<'a> Run<'a> {
    fn new(order: &'a Order<'a>, child: Child) -> Self {
        let (child, ended, heard) = (Mutex::new(child), Mutex::default(), Mutex::default());
        Self { order, child, ended, heard, begun: Instant::now() }
    }

    /// Keeps its words in the dump's log while `work` goes on; then it is ended, with all that it started. How it ended.
    fn with_log<T>(&self, words: impl Read + Send, work: impl FnOnce(&Self) -> Result<T>) -> Result<(T, ExitStatus)> {
        let mut log = File::create(self.order.path("log")).context("cannot write its log")?;
        let both = std::thread::scope(|scope| {
            let listener = scope.spawn(|| self.listen(words, &mut log));
            let done = work(self);
            // What it may have left behind would hold its streams open.
            let status = self.stop();
            listener.join().unwrap_or_else(|_| Err(anyhow!("the listening thread has ended")))?;
            Ok::<_, anyhow::Error>((done?, status?))
        })?;
        log.sync_all().context("cannot flush its log")?;
        Ok(both)
    }

    fn listen(&self, words: impl Read, log: &mut File) -> Result<()> {
        let mut lines = BufReader::new(words);
        let mut kept = 0;
        loop {
            let mut line = Vec::new();
            let count =
                lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).context("cannot read what it says")?;
            if count == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            locked(&self.heard).line(text, self.order.id);
            kept += count as u64;
            if kept < LOG_MAX {
                let now = Zone::default().local(Time::new(chrono::Utc::now())).format("%Y-%m-%d %H:%M:%S");
                writeln!(log, "{now} {text}").context("cannot write its log")?;
            }
        }
    }

    fn tick(&self) -> Result<()> {
        if let Some(limit) = self.order.how.timeout
            && self.begun.elapsed() > Duration::from_secs(limit.0)
        {
            bail!("vzdump took longer than {} s and was stopped", limit.0);
        }
        (self.order.job.tick)(Progress { done: locked(&self.heard).done })
    }

    /// Waits for its end, at most so long.
    fn wait(&self, most: Option<Duration>) -> Result<()> {
        let since = Instant::now();
        while !has_ended(&locked(&self.child)) {
            ensure!(most.is_none_or(|most| since.elapsed() < most), "vzdump does not end although its archive has");
            self.tick()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it and all that it started, as far as they have not ended.
    fn stop(&self) -> Result<ExitStatus> {
        let mut ended = locked(&self.ended);
        match *ended {
            Some(status) => Ok(status),
            None => Ok(*ended.insert(stop_group_within(&mut locked(&self.child), STOPPING)?)),
        }
    }
}
