//! Dumps by qemu-img, by a program whose stream bak packs, by vzdump and by VBoxManage; with the database and without.

use super::foreign;
use crate::toy::Toy;
use bak_tests::pve::Node;
use bak_tests::rig::{Rig, Scene};
use bak_tests::vbox::Host;
use bak_tests::{Kit, Ran, Seen, bin, finish, noise, put_dump};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;

const OLD: &str = "2026-11-18T01:00:00Z";
const NOW: &str = "2026-11-20T12:00:00Z";
const FIRST: &str = "@20261120T120000Z";
/// A start must be later than the last one.
const AGAIN: (&str, &str) = ("2026-11-20T12:05:00Z", "@20261120T120500Z");

/// Where the guests are.
enum On {
    Toy(Toy),
    Proxmox(Node),
    VirtualBox(Host),
}

/// Two guests that can be dumped, one of them not for the first time.
struct Dump {
    on: On,
    args: &'static [&'static str],
}

impl Dump {
    fn new(args: &'static [&'static str]) -> Self {
        let toy = Toy::new_in_memory();
        let kit = &toy.kit;
        put_dump(&kit.store(), "web", OLD, 3000, json!({}));
        foreign(kit);
        for vm in ["db", "web"] {
            kit.write(&format!("vm/{vm}.raw"), [noise(7, 100_000), vec![0; 97_632 + 32_000]].concat());
        }
        kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
        kit.write("db/vmtool-statedb", "db:NEW\nweb:BACKUP_NECESSARY\n");
        toy.lists("{\"vm\":\"db\",\"kind\":\"sql\",\"live\":true}\n{\"vm\":\"web\",\"kind\":\"sql\",\"live\":true}\n");
        toy.does(
            "dump",
            r#"echo '{"stream":"sql"}'; seq 20000 >&3; echo x >"$BAK_BASE.roles.txt"; echo said >&2; echo '{"file":"roles.txt"}'"#,
        );
        Self { on: On::Toy(toy), args }
    }

    fn of_proxmox(args: &'static [&'static str]) -> Self {
        let node = Node::with(Kit::in_memory());
        node.machine(100, "name: web\n", 300_000).container(102, "hostname: ct\n", 100_000);
        put_dump(&node.kit.store(), "100", OLD, 3000, json!({}));
        foreign(&node.kit);
        Self { on: On::Proxmox(node), args }
    }

    fn of_virtualbox(args: &'static [&'static str]) -> Self {
        let host = Host::with(Kit::in_memory());
        host.machine(1, "web", 300_000).machine(2, "db", 100_000);
        put_dump(&host.kit.store(), "web", OLD, 3000, json!({}));
        foreign(&host.kit);
        Self { on: On::VirtualBox(host), args }
    }

    fn holds_the_image(&self, id: &str) {
        let (vm, stem) = (id.split_once('@').unwrap().0, id.replace('@', "-"));
        let dir = self.kit().store().join(vm);
        let format = if self.args.contains(&"raw") { "raw" } else { "qcow2" };
        let mut compare = self.kit().command("qemu-img");
        compare.args(["compare", "-q", "-f", "raw", "-F", format]).arg(self.kit().path(&format!("vm/{vm}.raw")));
        compare.arg(dir.join(format!("{stem}.{format}")));
        assert_eq!(finish(compare, "").status, 0, "{id} is not what the image holds");
    }

    fn at(&self, now: &str) -> Command {
        let mut command = match &self.on {
            On::Toy(toy) => toy.command("bak-dump"),
            On::Proxmox(node) => node.command(&bin("bak-dump")),
            On::VirtualBox(host) => host.command(&bin("bak-dump")),
        };
        command.args(self.args).arg("--store").arg(self.kit().store()).args(["--now", now]);
        command
    }
}

impl Scene for Dump {
    fn kit(&self) -> &Kit {
        match &self.on {
            On::Toy(toy) => &toy.kit,
            On::Proxmox(node) => &node.kit,
            On::VirtualBox(host) => &host.kit,
        }
    }

    fn command(&self) -> Command {
        self.at(NOW)
    }

    fn database(&self) -> Option<PathBuf> {
        self.args.contains(&"--db").then(|| self.kit().path("db"))
    }

    /// What is said to be dumped is there.
    fn met(&self, ran: &Ran) {
        let whole = &self.seen()[0].whole;
        let said = ran.column("id");
        assert!(said.iter().all(|id| whole.contains(id)), "{said:?} but {whole:?}: {}", ran.err);
        if self.args.contains(&"--images") {
            whole.iter().filter(|id| id.ends_with(FIRST)).for_each(|id| self.holds_the_image(id));
        }
    }

    fn again(&self, _: &[Seen]) {
        finish(self.at(AGAIN.0), "").clean();
        let whole = &self.seen()[0].whole;
        let guests = if self.args.contains(&"--all") { 2 } else { 1 };
        assert_eq!(whole.iter().filter(|id| id.ends_with(AGAIN.1)).count(), guests, "{whole:?}");
    }

    fn end(&self, clean: &[Seen]) {
        let seen = &self.seen()[0];
        let (again, first): (Vec<String>, Vec<String>) =
            seen.whole.iter().cloned().partition(|id| id.ends_with(AGAIN.1));
        assert!(first.iter().all(|id| clean[0].whole.contains(id)), "{first:?}");
        assert!(!again.is_empty() || first == clean[0].whole, "it says that all was dumped: {first:?}");
        // But logs and notes, which each dump has of its own.
        let own = |name: &str| name.ends_with(".log") || name.ends_with(".notes");
        let foreign = |seen: &Seen| seen.strange.iter().filter(|name| !own(name)).cloned().collect::<Vec<_>>();
        assert_eq!(foreign(seen), foreign(&clean[0]));
    }

    fn done(&self) {
        if self.database().is_some() {
            let mut list = self.kit().command(bin("bak-state"));
            list.args(["list", "--db", "db"]);
            let statuses = finish(list, "").clean().column("status");
            assert!(statuses.iter().all(|status| status != "BACKUP_IN_PROGRESS"), "{statuses:?}");
        }
    }
}

#[test]
fn images() {
    let rig = Rig::new("bak-dump, images").sample(16).tools(&["qemu-img"]);
    rig.run(|| Dump::new(&["web", "--images", "vm"]));
}

#[test]
fn images_with_claims() {
    let rig = Rig::new("bak-dump, images with claims").sample(20);
    rig.run(|| Dump::new(&["web", "--images", "vm", "--db", "db", "--format", "raw"]));
}

#[test]
fn a_stream() {
    Rig::new("bak-dump, a stream").run(|| Dump::new(&["--all", "--driver", "toy"]));
}

/// By a stand-in; vzdump itself is no program of ours, and is told when bak-dump dies.
#[test]
fn guests_of_proxmox() {
    let rig = Rig::new("bak-dump, vzdump's stream").sample(8);
    rig.run(|| Dump::of_proxmox(&["--config", "bak.toml", "--all"]));
    let rig = Rig::new("bak-dump, vzdump's file").sample(8);
    rig.run(|| Dump::of_proxmox(&["--config", "bak.toml", "--all", "--writer", "vzdump"]));
}

#[test]
fn machines_of_virtualbox() {
    Rig::new("bak-dump, VirtualBox").sample(8).run(|| Dump::of_virtualbox(&["--config", "bak.toml", "--all"]));
}
