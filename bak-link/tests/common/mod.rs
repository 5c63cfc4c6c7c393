//! What the black-box tests of bak-link share.

use bak_tests::{Kit, Ran, check_store};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const NOW: &str = "2026-11-20T12:00:00Z";

/// Two o'clock of a day of November 2026.
pub fn day(day: u32) -> String {
    format!("2026-11-{day:02}T02:00:00Z")
}

#[allow(dead_code, reason = "not every test file needs all of it")]
pub trait Link {
    fn link(&self, args: &[&str]) -> Ran;
    fn link_with(&self, args: &[&str], input: &str) -> Ran;
    fn outbox(&self) -> PathBuf;
    fn pending(&self) -> Vec<String>;
}

impl Link for Kit {
    fn link(&self, args: &[&str]) -> Ran {
        self.link_with(args, "")
    }

    fn link_with(&self, args: &[&str], input: &str) -> Ran {
        let store = self.store();
        let mut fixed = vec!["--store", store.to_str().unwrap(), "--dest", "box=/far"];
        if !args.contains(&"--now") {
            fixed.extend(["--now", NOW]);
        }
        self.run_with("bak-link", fixed.iter().chain(args), input)
    }

    fn outbox(&self) -> PathBuf {
        self.store().join(".outbox-box")
    }

    /// Ids of the outbox, which is right in every way.
    fn pending(&self) -> Vec<String> {
        let seen = check_store(&self.outbox());
        assert_eq!((seen.broken, seen.unfinished), (vec![], vec![]));
        seen.whole
    }
}

/// Whether we are root, without whom nothing can be mounted; else says that a test was left out.
#[allow(dead_code)]
pub fn root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    let root = id.stdout == b"0\n";
    if !root {
        eprintln!("left out: only root can do this");
    }
    root
}

/// A file system of its own in a file, unmounted when dropped. Needs root.
#[allow(dead_code)]
pub struct Disk(PathBuf);

#[allow(dead_code)]
impl Disk {
    /// Made by `mkfs` (with its options), of so many MiB.
    pub fn new(kit: &Kit, mkfs: &[&str], mib: u64) -> Self {
        let (file, dir) = (kit.path("disk.img"), kit.path("disk"));
        std::fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let disk = Self(dir);
        tool(kit, &[mkfs, &[file.to_str().unwrap()]].concat());
        tool(kit, &["mount", "-o", "loop", file.to_str().unwrap(), disk.0.to_str().unwrap()]);
        tool(kit, &["mountpoint", "-q", disk.0.to_str().unwrap()]);
        disk
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-R").arg(&self.0).status();
    }
}

/// Runs one of the system's programs, which must succeed; what it prints.
#[allow(dead_code)]
pub fn tool(kit: &Kit, argv: &[&str]) -> String {
    let mut command = kit.command(argv[0]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(&argv[1..]);
    bak_tests::finish(command, "").expect(0).out
}
