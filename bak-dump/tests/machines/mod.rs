//! Disk images for the tests, and programs that hold them.
#![allow(dead_code)]

use bak_tests::Kit;
use bak_tests::process::wait_for;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs a program that must succeed.
#[track_caller]
pub fn must<S: AsRef<std::ffi::OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An image of 8 MiB in `vm/` with 1 MiB of `byte` in it.
pub fn image(kit: &Kit, name: &str, format: &str, byte: u8) -> PathBuf {
    let path = kit.path("vm").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    must(
        "qemu-img",
        ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), format.as_ref(), path.as_os_str(), "8M".as_ref()],
    );
    write(&path, format, byte, "1M");
    path
}

/// Writes 64 KiB of `byte` at `at`.
pub fn write(path: &Path, format: &str, byte: u8, at: &str) {
    let line = format!("write -P {byte} {at} 64k");
    must("qemu-io", ["-f".as_ref(), format.as_ref(), "-c".as_ref(), line.as_ref(), path.as_os_str()]);
}

/// A raw image that compression does not shrink, so that dumping it takes a while.
pub fn noise(kit: &Kit, name: &str, mib: usize) -> PathBuf {
    let path = kit.path("vm").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut random = File::open("/dev/urandom").unwrap().take((mib << 20) as u64);
    std::io::copy(&mut random, &mut File::create(&path).unwrap()).unwrap();
    path
}

/// Whether two images hold the same.
#[track_caller]
pub fn same(a: &Path, a_format: &str, b: &Path, b_format: &str) {
    must("qemu-img", ["compare", "-f", a_format, "-F", b_format, a.to_str().unwrap(), b.to_str().unwrap()]);
}

/// A process that is ended when this is dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds QEMU's lock on an image, as a running guest does.
pub fn hold(kit: &Kit, image: &Path, format: &str) -> Process {
    let socket = format!("--socket={}", kit.path("nbd").display());
    let ready = kit.path("nbd.pid");
    let pid_file = format!("--pid-file={}", ready.display());
    let process =
        Process(Command::new("qemu-nbd").args([&socket, &pid_file, "-f", format]).arg(image).spawn().unwrap());
    // It writes that when it has opened the image. To try the lock instead could keep it from getting it.
    wait_for("qemu-nbd", || ready.exists());
    process
}

/// Starts a program of bak's and does not wait for it.
pub fn start<S: AsRef<std::ffi::OsStr>>(kit: &Kit, name: &str, args: impl IntoIterator<Item = S>) -> Process {
    let mut command = kit.command(bak_tests::bin(name));
    Process(command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Its end: status and standard error.
pub fn end(mut process: Process) -> (Option<i32>, String) {
    let mut err = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (process.0.wait().unwrap().code(), err)
}

/// The files that are being made in the store now.
pub fn making(store: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let dirs: Vec<PathBuf> = entries(&store.join(".bak/work"));
    dirs.iter()
        .flat_map(|dir| -> Vec<PathBuf> { entries(dir) })
        .filter(|file| !file.file_name().unwrap().to_str().unwrap().starts_with('.'))
        .filter(|file| fs::metadata(file).is_ok_and(|meta| meta.len() > 1 << 20))
        .collect()
}

/// Processes whose command line names `text`.
pub fn processes(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) {
            found.push(line);
        }
    }
    found
}

/// A small file system, unmounted when dropped. Needs root.
pub struct Small {
    dir: PathBuf,
}

impl Small {
    /// `None` without the right to mount.
    pub fn new(kit: &Kit, mib: u64) -> Option<Self> {
        if must("id", ["-u"]).trim() != "0" {
            eprintln!("not root: nothing is tested");
            return None;
        }
        let (file, dir) = (kit.path("small.ext4"), kit.path("small"));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        must("mkfs.ext4", ["-q", "-m", "0", file.to_str().unwrap()]);
        fs::create_dir(&dir).unwrap();
        let small = Self { dir };
        must("mount", ["-o", "loop", file.to_str().unwrap(), small.dir.to_str().unwrap()]);
        must("mountpoint", ["-q", small.dir.to_str().unwrap()]);
        Some(small)
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

/// A configuration file.
pub fn config(kit: &Kit, text: &str) -> String {
    let mut file = File::create(kit.path("bak.toml")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    kit.path("bak.toml").to_str().unwrap().to_owned()
}
