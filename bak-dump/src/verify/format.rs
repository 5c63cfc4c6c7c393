//! What the format of a dump's files can prove about them: checks by the tools that know it. They see damage that was there
//! before the file was hashed, and are all there is for a file that never was.

use anyhow::{Context, Result, anyhow, ensure};
use bak_common::command::{Event, Finished, Program};
use bak_common::config::Config;
use bak_common::store::{Entry, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::ova;
use crate::driver::exec::Exec;
use crate::driver::{Decision, Driver, Progress};

/// The longest report of qemu-img that is read, in bytes.
const REPORT_MAX: usize = 16 << 20;

/// How often it is looked whether time is up.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long one program may look at one file if nobody says: an hour, and a second for each MiB. That is slow for any disk, and
/// leaves time for holes, which take none of it.
pub fn patience(bytes: u64) -> Duration {
    Duration::from_secs(3600 + (bytes >> 20))
}

/// What a check works with.
struct Checker<'a> {
    tick: &'a dyn Fn() -> Result<()>,
    /// When it must have ended.
    until: Instant,
    limit: Duration,
}

impl Checker<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs a program that only looks; `hear` is given what it prints.
    fn run(&self, program: Program, mut hear: impl FnMut(&[u8]) -> Result<()>) -> Result<Finished> {
        program.timeout(self.limit).run_with(|event| match event {
            Event::Output(bytes) => hear(bytes),
            Event::Tick => (self.tick)(),
        })
    }

    fn overdue(&self, name: &str) -> Result<()> {
        ensure!(!self.left().is_zero(), "{name} took longer than {} s and was stopped", self.limit.as_secs());
        (self.tick)()
    }
}

/// How a file is packed, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pack {
    None,
    Zstd,
    Gzip,
    Bzip2,
    Lzo,
}

/// What a file holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Vma,
    Tar,
    Ova,
    Qcow2,
    /// Nothing that could be checked.
    Other,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It would have seen damaged content, and saw none: the tools that looked.
    Sound(String),
    /// What was looked at is right, but damaged content would not show.
    Plausible(String),
    /// Why the file is no good.
    Bad(String),
    /// There is nothing to check, or no tool that could: why.
    Unchecked(String),
}

fn kind(name: &str) -> (Pack, Holds) {
    let (name, pack) = [(".zst", Pack::Zstd), (".gz", Pack::Gzip), (".bz2", Pack::Bzip2), (".lzo", Pack::Lzo)]
        .iter()
        .find_map(|(end, pack)| Some((name.strip_suffix(end)?, *pack)))
        .unwrap_or((name, Pack::None));
    match name.rsplit_once('.').map_or("", |(_, end)| end) {
        "tgz" => (Pack::Gzip, Holds::Tar),
        "vma" => (pack, Holds::Vma),
        "tar" => (pack, Holds::Tar),
        "ova" => (pack, Holds::Ova),
        "qcow2" => (pack, Holds::Qcow2),
        _ => (pack, Holds::Other),
    }
}

/// What the tools of their formats find of these files of a dump, and the driver that made it, by name. An error says what could
/// not be run or read, which proves nothing.
pub fn check_all(
    config: &Config,
    store: &Store,
    entry: &Entry,
    names: &[String],
    tick: &dyn Fn(Progress) -> Result<()>,
) -> Result<Vec<(String, Found)>> {
    let mut found = Vec::new();
    let mut done = 0_u64;
    for file in entry.dump.files.iter().filter(|file| names.contains(&file.name)) {
        let at = Progress { done: done as f64 / entry.dump.bytes.max(1) as f64 };
        let limit = config.vzdump_flags.timeout.map_or(patience(file.bytes), |span| Duration::from_secs(span.0));
        let checker = Checker { tick: &|| tick(at), until: Instant::now() + limit, limit };
        let seen = check(store, entry, &file.name, &checker).with_context(|| format!("cannot check {}", file.name))?;
        found.push((file.name.clone(), seen));
        done += file.bytes;
    }
    if let Some(driver) = Exec::installed(&entry.dump.driver, config)? {
        found.extend(by_driver(&driver, store, entry, &|| tick(Progress { done: 1.0 }))?);
    }
    Ok(found)
}

/// Checks one file of a dump.
fn check(store: &Store, entry: &Entry, name: &str, checker: &Checker) -> Result<Found> {
    let (pack, holds) = kind(name);
    let open = || store.open_file(entry, name);
    match (pack, holds) {
        (Pack::None, Holds::Qcow2) => qcow2(&store.path().join(&entry.place).join(name), checker),
        (Pack::None, Holds::Ova) => ova::check(open()?, checker.tick),
        (Pack::None, Holds::Tar) => tar(open()?.into(), "tar -t", checker),
        (Pack::None, Holds::Vma) => match vma(open()?.into(), checker)? {
            Some(found) => Ok(found),
            None => Ok(missing("vma")),
        },
        (Pack::None, Holds::Other) => Ok(unknown()),
        (_, Holds::Tar | Holds::Vma) if holds == Holds::Tar || has("vma") => unpacked(pack, holds, &open, checker),
        _ => packed(pack, open()?, checker),
    }
}

/// Has the driver that made a dump look at it. By which name, and what it found, if it has an opinion.
fn by_driver(
    driver: &dyn Driver,
    store: &Store,
    entry: &Entry,
    tick: &dyn Fn() -> Result<()>,
) -> Result<Option<(String, Found)>> {
    let name = format!("the driver {}", driver.name());
    let dir = store.path().join(&entry.place);
    let Some(verdict) = driver.verify(&entry.dump, &dir, tick)? else { return Ok(None) };
    let found = match (verdict.decision, verdict.why.is_empty()) {
        (Decision::Good, true) => Found::Plausible(name.clone()),
        (Decision::Good, false) => Found::Plausible(format!("{name} ({})", verdict.why)),
        (Decision::Bad, true) => Found::Bad("it does not say why".into()),
        (Decision::Bad, false) => Found::Bad(verdict.why),
        (Decision::Unknown, _) => Found::Unchecked(verdict.why),
    };
    Ok(Some((name, found)))
}

fn unknown() -> Found {
    Found::Unchecked("nothing checks this format".into())
}

fn missing(program: &str) -> Found {
    Found::Unchecked(format!("the program {program} is not installed"))
}

fn has(program: &str) -> bool {
    Program::new(program).is_ok()
}

/// The program that knows a packing, its arguments to test and to unpack.
fn tool(pack: Pack) -> Option<(&'static str, [&'static str; 2], [&'static str; 2])> {
    match pack {
        Pack::None => None,
        Pack::Zstd => Some(("zstd", ["-q", "-t"], ["-q", "-dc"])),
        Pack::Gzip => Some(("gzip", ["-q", "-t"], ["-q", "-dc"])),
        Pack::Bzip2 => Some(("bzip2", ["-q", "-t"], ["-q", "-dc"])),
        Pack::Lzo => Some(("lzop", ["-q", "-t"], ["-q", "-dc"])),
    }
}

fn packed(pack: Pack, file: File, checker: &Checker) -> Result<Found> {
    let Some((name, test, _)) = tool(pack) else { return Ok(unknown()) };
    if !has(name) {
        return Ok(missing(name));
    }
    let finished = checker.run(Program::new(name)?.args(test).stdin(file.into()), |_| Ok(()))?;
    Ok(match finished.status.success() {
        true => Found::Sound(format!("{name} -t")),
        false => Found::Bad(format!("{:#}", finished.error())),
    })
}

/// Unpacks into the program that knows what is in it. Both must be content: one that is fed nothing may be, too.
fn unpacked(pack: Pack, holds: Holds, open: &dyn Fn() -> Result<File>, checker: &Checker) -> Result<Found> {
    let Some((name, _, unpack)) = tool(pack) else { return Ok(unknown()) };
    if !has(name) {
        return Ok(missing(name));
    }
    let program = Program::new(name)?.args(unpack).stdin(open()?.into());
    let mut child = program.spawn(Stdio::piped(), Stdio::piped())?;
    let out = child.stdout.take().context("the unpacking program has no output")?;
    // What looks inside stops at the end of the archive, and much may follow that. Read to the end here, the unpacking program
    // sees no broken pipe, and has checked all there is.
    let mut rest = File::from(out.as_fd().try_clone_to_owned().context("cannot share a pipe")?);
    let what = format!("{name} -dc | {}", if holds == Holds::Tar { "tar -t" } else { "vma verify -" });
    let inner = match holds {
        Holds::Tar => tar(out.into(), &what, checker),
        _ => vma(out.into(), checker).map(|found| found.unwrap_or(Found::Plausible(String::new()))),
    };
    let both = inner.and_then(|found| {
        drain(&mut rest, name, checker)?;
        Ok((found, ended(&mut child, name, checker)?))
    });
    let (inner, status) = both.inspect_err(|_| bak_common::command::stop(&mut child))?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says last is enough, and it says little.
        let _ = stderr.take(8 << 10).read_to_string(&mut said);
    }
    let unpacking = Finished { name: name.into(), status, stdout: Vec::new(), stderr: said };
    // What broke the stream is the reason; that the inner program then found its end missing follows from it.
    Ok(match inner {
        _ if !unpacking.status.success() => Found::Bad(format!("{:#}", unpacking.error())),
        Found::Bad(why) => Found::Bad(why),
        _ => Found::Sound(what),
    })
}

fn drain(from: &mut File, name: &str, checker: &Checker) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let ready = poll(&mut [PollFd::new(&*from, PollFlags::IN)], Some(&LOOK));
        match ready {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if from.read(&mut buffer).context("cannot read what was unpacked")? == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).context("cannot wait for what is unpacked"),
        }
        checker.overdue(name)?;
    }
}

/// Waits for a program whose output has ended.
fn ended(child: &mut Child, name: &str, checker: &Checker) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {name}"))? {
            return Ok(status);
        }
        checker.overdue(name)?;
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tar(input: Stdio, what: &str, checker: &Checker) -> Result<Found> {
    if !has("tar") {
        return Ok(missing("tar"));
    }
    let finished = checker.run(Program::new("tar")?.args(["-t", "-f", "-"]).stdin(input), |_| Ok(()))?;
    // Its headers have checksums, what lies between them has none.
    Ok(match finished.status.success() {
        true => Found::Plausible(what.into()),
        false => Found::Bad(format!("{:#}", finished.error())),
    })
}

/// Nothing where Proxmox's program is not there. It sees what is cut off or out of place, not what is in the clusters.
fn vma(input: Stdio, checker: &Checker) -> Result<Option<Found>> {
    if !has("vma") {
        return Ok(None);
    }
    let finished = checker.run(Program::new("vma")?.args(["verify", "-"]).stdin(input), |_| Ok(()))?;
    Ok(Some(match finished.status.success() {
        true => Found::Plausible("vma verify".into()),
        false => Found::Bad(format!("{:#}", finished.error())),
    }))
}

/// The image alone: whatever it names as its backing file is not opened.
fn qcow2(path: &Path, checker: &Checker) -> Result<Found> {
    if !has("qemu-img") {
        return Ok(missing("qemu-img"));
    }
    let mut head = [0; 80];
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // Bytes 8 to 15 of its header say where the name of a backing file is, and bit 2 of the features in bytes 72 to 79, from
    // version 3 on, that its data is elsewhere. A dump has neither.
    if file.read_exact(&mut head).is_ok() {
        if head[8..16] != [0; 8] {
            return Ok(Found::Bad("it needs another file, its backing file".into()));
        }
        if head[7] >= 3 && head[79] & 4 != 0 {
            return Ok(Found::Bad("it needs another file, in which its data is".into()));
        }
    }
    let path = path.to_str().ok_or_else(|| anyhow!("{} is not named in UTF-8", path.display()))?;
    let image = json!({"driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": path}});
    let program = Program::new("qemu-img")?.args(["check", "--output=json"]).arg(format!("json:{image}"));
    let mut report = Vec::new();
    let finished = checker.run(program, |bytes| {
        ensure!(report.len() + bytes.len() <= REPORT_MAX, "qemu-img check prints too much");
        report.extend_from_slice(bytes);
        Ok(())
    })?;
    // 3: clusters that nothing uses, which costs space and no more.
    Ok(match finished.status.code() {
        Some(0 | 3) => match cut_off(path, &report)? {
            Some(why) => Found::Bad(why),
            None => Found::Plausible("qemu-img check".into()),
        },
        Some(2) => Found::Bad(format!("qemu-img check finds it corrupt: {}", finished.last_words())),
        _ => {
            ensure!(finished.status.code().is_some(), finished.error());
            Found::Bad(format!("{:#}", finished.error()))
        }
    })
}

/// qemu-img does not mind if the last clusters are not there: they read as zeros.
fn cut_off(path: &str, report: &[u8]) -> Result<Option<String>> {
    let report: serde_json::Value = serde_json::from_slice(report).context("cannot read what qemu-img check says")?;
    let end = report["image-end-offset"].as_u64().unwrap_or_default();
    let size = std::fs::metadata(path).with_context(|| format!("cannot look at {path}"))?.len();
    // The last cluster need not be whole; none is larger than this.
    const CLUSTER_MAX: u64 = 2 << 20;
    let missing = end.saturating_sub(size);
    Ok((missing >= CLUSTER_MAX).then(|| format!("it is cut off: {missing} bytes of its clusters are missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_says() {
        for (name, pack, holds) in [
            ("vzdump-qemu-100-2026_11_20-02_00_02.vma.zst", Pack::Zstd, Holds::Vma),
            ("vzdump-lxc-101-2026_11_20-02_00_02.tar.gz", Pack::Gzip, Holds::Tar),
            ("a.tgz", Pack::Gzip, Holds::Tar),
            ("a.tar.bz2", Pack::Bzip2, Holds::Tar),
            ("a.vma.lzo", Pack::Lzo, Holds::Vma),
            ("a.vma", Pack::None, Holds::Vma),
            ("web.sda.qcow2", Pack::None, Holds::Qcow2),
            ("web.sql.zst", Pack::Zstd, Holds::Other),
            ("web.raw", Pack::None, Holds::Other),
            ("web.ova", Pack::None, Holds::Ova),
        ] {
            assert_eq!(kind(name), (pack, holds), "{name}");
        }
    }
}
