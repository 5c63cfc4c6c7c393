//! A host of VirtualBox made of a stand-in: `tests/stand-ins/VBoxManage` on PATH, and a directory with what it knows.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Kit, Ran, bin, finish, noise};

pub struct Host {
    pub kit: Kit,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    pub fn new() -> Self {
        Self::with(Kit::new())
    }

    pub fn with(kit: Kit) -> Self {
        fs::create_dir_all(kit.path("vbox/machines")).unwrap();
        kit.write("vbox/order", "");
        kit.write("vbox/version", "6.1\n");
        kit.write("bak.toml", "store = \"store\"\ndriver = \"vbox\"\nreserve = \"1M\"\nnode = \"host\"\n");
        Self { kit }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.kit.path("vbox").join(name)
    }

    /// The UUID of the machine with this number.
    pub fn uuid(number: u32) -> String {
        format!("{number:08x}-0000-4000-8000-00000000000a")
    }

    /// Registers a stopped machine that holds so many bytes.
    pub fn machine(&self, number: u32, name: &str, bytes: usize) -> &Self {
        let uuid = Self::uuid(number);
        fs::create_dir(self.path(&format!("machines/{uuid}"))).unwrap();
        for (what, text) in [
            ("name", name),
            ("groups", "/"),
            ("state", "poweroff"),
            ("since", "2026-11-19T08:45:16.339000000"),
            ("memory", "2048"),
            ("disk", &format!("{number:08x}-1111-4000-8000-00000000000d")),
        ] {
            self.set(number, what, text);
        }
        fs::write(self.file(number, "content"), noise(number.into(), bytes)).unwrap();
        let mut order = fs::File::options().append(true).open(self.path("order")).unwrap();
        writeln!(order, "{uuid}").unwrap();
        self
    }

    pub fn file(&self, number: u32, what: &str) -> PathBuf {
        self.path(&format!("machines/{}/{what}", Self::uuid(number)))
    }

    /// Sets what the stand-in knows of a machine: `state` to `running`, `behave` to `hangs`.
    pub fn set(&self, number: u32, what: &str, to: &str) -> &Self {
        // Whoever reads it meanwhile has the old text or this one.
        let new = self.file(number, ".new");
        fs::write(&new, to).unwrap();
        fs::rename(new, self.file(number, what)).unwrap();
        self
    }

    /// Starts or stops a machine: a state, and since when.
    pub fn turn(&self, number: u32, state: &str, since: &str) -> &Self {
        self.set(number, "since", since).set(number, "state", state)
    }

    /// What the stand-in was called with, a line each.
    pub fn called(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("args")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs a program of bak's on this host.
    pub fn run(&self, name: &str, args: &[&str]) -> Ran {
        self.run_with(name, args, "")
    }

    pub fn run_with(&self, name: &str, args: &[&str], input: &str) -> Ran {
        let mut command = self.command(&bin(name));
        command.args(["--config", "bak.toml"]).args(args);
        finish(command, input)
    }

    /// Runs a line of `sh` on this host.
    pub fn sh(&self, line: &str) -> Ran {
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", line]);
        finish(command, "")
    }

    /// A command that finds the stand-in.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.kit.command(program);
        let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).join("stand-ins");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{}:{path}", stand_ins.display(), crate::bin_dir().display()));
        command.env("VBOX", self.kit.path("vbox"));
        command
    }
}
