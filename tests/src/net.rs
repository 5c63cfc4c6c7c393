//! Two machines on a line of their own: two network namespaces joined by a pair of devices, for as long as the value
//! lives. The line can be slow, lossy, silent, cut, or refuse. Only root can have it.
//!
//! A namespace lives as long as a process in it. Here that is one which ends with its standard input, so nothing stays
//! behind however a test ends.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Kit;
use crate::rsyncd::Rsyncd;
use crate::sshd::Sshd;

/// The address of the far machine.
pub const FAR: &str = "192.0.2.2";
const NEAR: &str = "192.0.2.1";
/// The device of each of them.
const DEVICE: &str = "line";

pub struct Line {
    near: Machine,
    far: Machine,
}

/// A network namespace.
struct Machine(Child);

impl Machine {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) is needed");
        let mut said = [0; 3];
        let up = child.stdout.as_mut().unwrap().read_exact(&mut said);
        assert!(up.is_ok(), "cannot make a network namespace: these tests want root, and a container that allows it");
        Self(child)
    }

    /// The words before a command that make it run there.
    fn enter(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.0.id())]
    }

    #[track_caller]
    fn run(&self, line: &str, input: &str) {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(line.split(' '));
        let ran = crate::finish(command, input);
        assert!(ran.status == 0, "{line}: {}", ran.err);
    }

    /// Rules for what comes in, instead of those before.
    #[track_caller]
    fn rule(&self, rule: &str) {
        let hook = "type filter hook input priority 0";
        self.run("nft -f -", &format!("flush ruleset\ntable inet line {{\nchain input {{\n{hook}\n{rule}\n}}\n}}\n"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    /// A line as fast as the machine.
    pub fn new() -> Self {
        let line = Self { near: Machine::new(), far: Machine::new() };
        line.near.run(&format!("ip link add {DEVICE} type veth peer name {DEVICE} netns {}", line.far.0.id()), "");
        for (machine, address) in [(&line.near, NEAR), (&line.far, FAR)] {
            machine.run(&format!("ip address add {address}/24 dev {DEVICE}"), "");
            // Packets of the size that lines have: losing one of 64 KiB in a hundred would be another thing.
            machine.run(&format!("ip link set {DEVICE} gso_max_segs 1 up"), "");
        }
        line
    }

    /// From now on no faster than this, such as `20mbit`, each way.
    pub fn slow(&self, rate: &str) {
        for machine in [&self.near, &self.far] {
            machine.run(&format!("tc qdisc replace dev {DEVICE} root tbf rate {rate} burst 16k latency 50ms"), "");
        }
    }

    /// Loses so many packets of a hundred, each way.
    pub fn lose(&self, percent: u32) {
        for machine in [&self.near, &self.far] {
            machine.rule(&format!("numgen random mod 100 < {percent} drop"));
        }
    }

    /// Nothing arrives any more, and nobody is told.
    pub fn silence(&self) {
        for machine in [&self.near, &self.far] {
            machine.rule("drop");
        }
    }

    /// The far machine answers everything by a reset.
    pub fn reset(&self) {
        self.far.rule("meta l4proto tcp reject with tcp reset");
    }

    /// All arrives again after [`Line::lose`], [`Line::silence`] or [`Line::reset`].
    pub fn heal(&self) {
        for machine in [&self.near, &self.far] {
            machine.run("nft flush ruleset", "");
        }
    }

    /// The cable is out.
    pub fn cut(&self) {
        self.far.run(&format!("ip link set {DEVICE} down"), "");
    }

    /// The cable is in again.
    pub fn mend(&self) {
        self.far.run(&format!("ip link set {DEVICE} up"), "");
    }

    /// A command of `kit`'s that runs on the near machine.
    pub fn command(&self, kit: &Kit, program: impl AsRef<OsStr>) -> Command {
        let enter = self.near.enter();
        let mut command = kit.command(&enter[0]);
        command.args(&enter[1..]).arg(program);
        command
    }

    /// What comes from these ports of the near machine is lost, until [`Line::heal`].
    pub fn silence_from(&self, ports: &[u16]) {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        self.far.rule(&format!("tcp sport {{ {} }} drop", ports.join(", ")));
        self.near.run("nft flush ruleset", "");
    }

    /// The near machine's ports whose connections are in one of these states, as `/proc/net/tcp` has them.
    pub fn ports(&self, states: &[&str]) -> Vec<u16> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.near.0.id())).unwrap();
        let port = |row: &str| {
            let words: Vec<&str> = row.split_whitespace().collect();
            let local = words[1].split_once(':').unwrap().1;
            states.contains(&words[3]).then(|| u16::from_str_radix(local, 16).unwrap())
        };
        table.lines().skip(1).filter_map(port).collect()
    }

    /// A real sshd on the far machine, with its files in `dir`.
    pub fn sshd(&self, dir: &Path) -> Sshd {
        Sshd::start_on(dir, FAR, &self.far.enter())
    }

    /// A real rsync daemon on the far machine, with its files in `dir`; the module `bak` is `path`.
    pub fn rsyncd(&self, dir: &Path, path: &Path) -> Rsyncd {
        const PORT: u16 = 8730;
        let table = format!("/proc/{}/net/tcp", self.far.0.id());
        // In state 0A it listens.
        let listens = || {
            let table = std::fs::read_to_string(&table).unwrap();
            let mut rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
            rows.any(|words| words[1].ends_with(&format!(":{PORT:04X}")) && words[3] == "0A")
        };
        Rsyncd::start_on(dir, path, (FAR, PORT), &self.far.enter(), listens)
    }

    /// How often in a row the near machine has sent the same in vain, on the connection that did so most often.
    pub fn in_vain(&self) -> u32 {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.near.0.id())).unwrap();
        let times = |row: &str| u32::from_str_radix(row.split_whitespace().nth(6).unwrap(), 16).unwrap();
        table.lines().skip(1).map(times).max().unwrap_or(0)
    }

    /// What the near machine's device has sent and received so far, in bytes: with all headers, and what was lost after it.
    pub fn crossed(&self) -> u64 {
        let table = std::fs::read_to_string(format!("/proc/{}/net/dev", self.near.0.id())).unwrap();
        let row = table.lines().find_map(|row| row.trim().strip_prefix(DEVICE)?.strip_prefix(':'));
        let numbers: Vec<u64> = row.unwrap().split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers[0] + numbers[8]
    }
}
