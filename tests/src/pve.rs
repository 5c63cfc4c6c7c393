//! A Proxmox node made of stand-ins: `tests/stand-ins` on PATH, and a directory with what they know.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Kit, Ran, bin, finish, noise};

/// A node called `pve1` of a cluster with `pve2`.
pub struct Node {
    pub kit: Kit,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    pub fn new() -> Self {
        Self::with(Kit::new())
    }

    pub fn with(kit: Kit) -> Self {
        for dir in [
            "nodes/pve1/qemu-server",
            "nodes/pve1/lxc",
            "nodes/pve2/qemu-server",
            "nodes/pve2/lxc",
            "content",
            "state",
            "behave",
            "pool",
        ] {
            fs::create_dir_all(kit.path("pve").join(dir)).unwrap();
        }
        for (link, to) in
            [("local", "nodes/pve1"), ("qemu-server", "nodes/pve1/qemu-server"), ("lxc", "nodes/pve1/lxc")]
        {
            symlink(to, kit.path("pve").join(link)).unwrap();
        }
        let config = format!(
            "store = \"store\"\ndriver = \"vzdump\"\nreserve = \"1M\"\n[vzdump]\netc = \"{}\"\n",
            kit.path("pve").display()
        );
        kit.write("bak.toml", config);
        Self { kit }
    }

    fn pve(&self, name: &str) -> PathBuf {
        self.kit.path("pve").join(name)
    }

    /// A machine with this configuration that holds so many bytes.
    pub fn machine(&self, id: u32, conf: &str, bytes: usize) -> &Self {
        fs::write(self.pve(&format!("qemu-server/{id}.conf")), conf).unwrap();
        fs::write(self.content(id), noise(id.into(), bytes)).unwrap();
        self
    }

    /// A container with this configuration and one file of so many bytes.
    pub fn container(&self, id: u32, conf: &str, bytes: usize) -> &Self {
        fs::write(self.pve(&format!("lxc/{id}.conf")), conf).unwrap();
        fs::create_dir_all(self.content(id)).unwrap();
        fs::write(self.content(id).join("data"), noise(id.into(), bytes)).unwrap();
        self
    }

    /// What a guest holds: a file, or for a container a directory.
    pub fn content(&self, id: u32) -> PathBuf {
        self.pve(&format!("content/{id}"))
    }

    /// Sets what the stand-ins know: `state/100` to `running`, `behave/100` to `hangs`, `pool/100` to `web`.
    pub fn set(&self, what: &str, to: &str) -> &Self {
        fs::write(self.pve(what), to).unwrap();
        self
    }

    pub fn conf(&self, path: &str) -> String {
        fs::read_to_string(self.pve(path)).unwrap()
    }

    /// Runs a program of bak's on this node.
    pub fn run(&self, name: &str, args: &[&str]) -> Ran {
        self.run_with(name, args, "")
    }

    pub fn run_with(&self, name: &str, args: &[&str], input: &str) -> Ran {
        let mut command = self.command(&bin(name));
        command.args(["--config", "bak.toml"]).args(args);
        finish(command, input)
    }

    /// Runs a line of `sh` on this node.
    pub fn sh(&self, line: &str) -> Ran {
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", line]);
        finish(command, "")
    }

    /// A command that finds the stand-ins.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.kit.command(program);
        let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).join("stand-ins");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{}:{path}", stand_ins.display(), crate::bin_dir().display()));
        command.env("PVE", self.kit.path("pve"));
        command
    }
}
