//! File systems of their own in files, for what a disk may do: be full, be slow, know no links. Needs root.

use crate::Kit;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether we are root, without whom nothing can be mounted; else says that a test was left out.
pub fn root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    let root = id.stdout == b"0\n";
    if !root {
        eprintln!("left out: only root can do this");
    }
    root
}

/// A file system of its own in a file, unmounted when dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// Made by `mkfs` (with its options), of so many MiB.
    pub fn new(kit: &Kit, mkfs: &[&str], mib: u64) -> Self {
        let (file, dir) = (kit.path("disk.img"), kit.path("disk"));
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        let disk = Self(dir);
        tool(kit, &[mkfs, &[file.to_str().unwrap()]].concat());
        tool(kit, &["mount", "-o", "loop", file.to_str().unwrap(), disk.0.to_str().unwrap()]);
        disk.is_mounted();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What fills a file system that is none of ours fills the machine's.
    fn is_mounted(&self) {
        let status = Command::new("mountpoint").arg("-q").arg(&self.0).status().unwrap();
        assert!(status.success(), "{} is not mounted", self.0.display());
    }

    /// Fills it but for `left` KiB (of data; what a directory takes comes from that, too).
    pub fn fill(&self, left: usize) {
        self.is_mounted();
        let gap = self.ballast("gap");
        fs::write(&gap, vec![1; left << 10]).unwrap();
        File::open(&gap).unwrap().sync_all().unwrap();
        let mut file = File::create(self.ballast("ballast")).unwrap();
        for size in [1 << 20, 64 << 10, 4 << 10, 1 << 10] {
            loop {
                match file.write(&vec![1; size]) {
                    // What was only promised room gets it.
                    Ok(count) if count == size => continue,
                    Ok(_) => break,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
            file.sync_all().unwrap();
        }
        fs::remove_file(gap).unwrap();
        sync(&self.0);
    }

    /// Uses up the inodes but for `left`.
    pub fn use_up_inodes(&self, left: usize) {
        self.is_mounted();
        let dir = self.ballast("ballast");
        fs::create_dir(&dir).unwrap();
        let full = (0..).map(|at| File::create(dir.join(at.to_string()))).position(|made| made.is_err()).unwrap();
        for at in full.saturating_sub(left)..full {
            fs::remove_file(dir.join(at.to_string())).unwrap();
        }
        sync(&self.0);
    }

    /// There is room again.
    pub fn relieve(&self) {
        let ballast = self.ballast("ballast");
        let removed = if ballast.is_dir() { fs::remove_dir_all(ballast) } else { fs::remove_file(ballast) };
        removed.unwrap();
        sync(&self.0);
    }

    /// Removes all that is on it.
    pub fn clear(&self) {
        self.is_mounted();
        for entry in fs::read_dir(&self.0).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        sync(&self.0);
    }

    fn ballast(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A program that another thread is just starting has all that is open here for a moment: then it goes with that.
        let umount = |how: &str| Command::new("umount").arg(how).arg(&self.0).status();
        if !umount("-R").is_ok_and(|status| status.success()) {
            let _ = umount("-Rl");
        }
    }
}

/// What was removed gives its room back only when the file system has noted it.
fn sync(path: &Path) {
    let status = Command::new("sync").arg("-f").arg(path).status().unwrap();
    assert!(status.success());
}

/// Runs one of the system's programs, which must succeed; what it prints.
pub fn tool(kit: &Kit, argv: &[&str]) -> String {
    let mut command = kit.command(argv[0]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(&argv[1..]);
    crate::finish(command, "").expect(0).out
}
