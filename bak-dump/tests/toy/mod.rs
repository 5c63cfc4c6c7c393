//! A driver that is a script, whose commands the tests write.
#![allow(dead_code)]

use bak_tests::{Kit, Ran, bin, bin_dir, finish};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

const DRIVER: &str = "#!/bin/sh
set -eu
[ -e \"$TOY/$1\" ] || exit 64
. \"$TOY/$1\"
";

/// A place with `bak-driver-toy` on PATH. Its commands are the files in `toy/`, as `sh` reads them.
pub struct Toy {
    pub kit: Kit,
}

impl Toy {
    pub fn new() -> Self {
        Self::with(Kit::new())
    }

    pub fn new_in_memory() -> Self {
        Self::with(Kit::in_memory())
    }

    fn with(kit: Kit) -> Self {
        let toy = Self { kit };
        let driver = toy.kit.write("bin/bak-driver-toy", DRIVER);
        fs::set_permissions(driver, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(toy.path("")).unwrap();
        toy
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.kit.path("toy").join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn does(&self, command: &str, script: &str) {
        fs::write(self.path(command), format!("{script}\n")).unwrap();
    }

    /// Has it list just this.
    pub fn lists(&self, text: &str) {
        fs::write(self.path("listed"), text).unwrap();
        self.does("list", "cat \"$TOY/listed\"");
    }

    pub fn command(&self, name: &str) -> Command {
        let mut command = self.kit.command(bin(name));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{}:{path}", self.kit.path("bin").display(), bin_dir().display()));
        command.env("TOY", self.path(""));
        command
    }

    pub fn run(&self, name: &str, args: &[&str]) -> Ran {
        let mut command = self.command(name);
        command.args(args);
        finish(command, "")
    }
}
