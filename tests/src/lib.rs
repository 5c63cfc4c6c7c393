//! What the tests share: a temporary place, dumps made by hand, programs run as users run them, and a checker of stores
//! that knows nothing but the design. It uses none of bak's own code, so that it cannot share its mistakes.

pub mod checker;
pub mod clock;
pub mod disk;
pub mod net;
pub mod power;
pub mod process;
pub mod pve;
pub mod rig;
pub mod rsyncd;
pub mod sshd;
pub mod strace;
pub mod vbox;

pub use checker::{Seen, check_store};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory of the built programs, for PATH.
pub fn bin_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().and_then(Path::parent).unwrap().to_owned()
}

/// A built program. It must have been built: `cargo build --workspace` comes before `cargo test`.
pub fn bin(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// How a program ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    /// The exit status, or minus the signal.
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            status: output.status.code().unwrap_or_else(|| -output.status.signal().unwrap()),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Ended well, with nothing on standard error.
    #[track_caller]
    pub fn clean(self) -> Self {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "stdout: {}", self.out);
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "standard error should say `{text}`: {}", self.err);
        self
    }

    #[track_caller]
    pub fn records(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// The string field `field` of each record.
    #[track_caller]
    pub fn column(&self, field: &str) -> Vec<String> {
        self.records().iter().map(|r| r[field].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// A temporary directory with a store in it. Removed when dropped.
pub struct Kit {
    dir: tempfile::TempDir,
}

impl Default for Kit {
    fn default() -> Self {
        Self::new()
    }
}

impl Kit {
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// Below another directory, such as one in memory where many small runs must be quick.
    pub fn new_in(parent: &Path) -> Self {
        let kit = Self { dir: tempfile::Builder::new().prefix("bak-test-").tempdir_in(parent).unwrap() };
        fs::create_dir(kit.store()).unwrap();
        kit
    }

    /// In memory, where there is such a directory.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::new_in(memory) } else { Self::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A command with the built programs first on PATH, in UTC, allowed to use `--now`, in this directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin_dir().display()));
        // What a pseudo terminal is taken for, and what runs in it, must not depend on who tests.
        command.env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.env("TZ", "UTC").env("BAK_ALLOW_NOW", "1").current_dir(self.dir.path());
        command
    }

    /// Runs a program of bak's with `input` on its standard input.
    pub fn run_with<S: AsRef<OsStr>>(&self, name: &str, args: impl IntoIterator<Item = S>, input: &str) -> Ran {
        let mut command = self.command(bin(name));
        command.args(args);
        finish(command, input)
    }

    pub fn run<S: AsRef<OsStr>>(&self, name: &str, args: impl IntoIterator<Item = S>) -> Ran {
        self.run_with(name, args, "")
    }

    /// Runs a line of `sh`, with the built programs on PATH.
    pub fn sh(&self, line: &str) -> Ran {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        finish(command, "")
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Puts a good dump of the guest `vm` with one file of `bytes` bytes into the store: see [`put_dump`].
    pub fn dump(&self, vm: &str, started: &str, bytes: usize) -> String {
        put_dump(&self.store(), vm, started, bytes, json!({}))
    }
}

/// Runs a command to its end with `input` on its standard input.
pub fn finish(mut command: Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || _ = stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Ran::of(output)
}

/// `2026-11-20T01:00:02Z` as ids have it.
pub fn compact(time: &str) -> String {
    time.replace(['-', ':'], "")
}

/// `2026-11-20T01:00:02Z` as the kernel has it.
fn system_time(time: &str) -> std::time::SystemTime {
    let part = |from: usize, to: usize| time[from..to].parse::<u64>().unwrap();
    let (year, month, day) = (part(0, 4), part(5, 7), part(8, 10));
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let days = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days: u64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<u64>()
        + days.iter().take(month as usize - 1).sum::<u64>()
        + (day - 1);
    let seconds = ((days * 24 + part(11, 13)) * 60 + part(14, 16)) * 60 + part(17, 19);
    std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

/// Puts a good dump of one file into a store (or an off-site copy) as the design says it lies there, in `<vm>/`, its file
/// written when the dump began, with the fields of `more` laid over its sidecar. Returns its id. Its content depends on its id alone.
pub fn put_dump(store: &Path, vm: &str, started: &str, bytes: usize, more: Value) -> String {
    let stem = format!("{vm}-{}", compact(started));
    let dir = store.join(vm);
    fs::create_dir_all(&dir).unwrap();
    let seed = Sha256::digest(stem.as_bytes()).iter().fold(0, |sum, byte| sum << 3 ^ u64::from(*byte));
    let content = noise(seed, bytes);
    let file = format!("{stem}.raw");
    fs::write(dir.join(&file), &content).unwrap();
    fs::File::options().append(true).open(dir.join(&file)).unwrap().set_modified(system_time(started)).unwrap();
    let id = format!("{vm}@{}", compact(started));
    let mut record = json!({"v": 1, "type": "dump", "id": id, "vm": vm, "kind": "qemu", "driver": "image", "node": "test",
        "started": started, "finished": started, "stem": stem, "bytes": bytes,
        "files": [{"name": file, "bytes": bytes, "sha256": hex(&Sha256::digest(&content))}]});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    fs::write(dir.join(format!("{stem}.dump.json")), format!("{record}\n")).unwrap();
    id
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256_file(path: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path).unwrap();
    std::io::copy(&mut file, &mut Wrap(&mut hasher)).unwrap();
    hex(&hasher.finalize())
}

struct Wrap<'a>(&'a mut Sha256);

impl Write for Wrap<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
