//! bak-prune, killed at every system call, and with calls that fail: in a store, at a mounted path with an outbox, and over
//! ssh, where only what is here meets that.

mod common;

use bak_tests::rig::{Rig, Scene};
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, Seen, bin, finish, put_dump};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where the dumps lie.
#[derive(Clone, Copy)]
enum Where<'a> {
    Here,
    Mounted,
    Ssh(&'a Sshd),
}

/// Four dumps of a guest, two of which go, and one that does not.
struct Prune<'a> {
    kit: Kit,
    way: Where<'a>,
}

impl<'a> Prune<'a> {
    fn new(way: Where<'a>) -> Self {
        let kit = Kit::in_memory();
        let prune = Self { kit, way };
        let there = prune.there();
        fs::create_dir_all(&there).unwrap();
        let put = |vm: &str, day: u32| put_dump(&there, vm, &format!("2026-11-{day:02}T01:00:00Z"), 900, json!({}));
        for day in 1..=4 {
            put("web", day);
            for companion in [".log", ".raw.notes"] {
                fs::write(there.join(format!("web/web-202611{day:02}T010000Z{companion}")), "said\n").unwrap();
            }
        }
        put("db", 1);
        for name in ["web/web-20261101T010000Z.txt", "readme", "web/.hidden", "web/web-20261101T010000Z.raw.bak"] {
            fs::write(there.join(name), "mine\n").unwrap();
        }
        if !matches!(way, Where::Here) {
            fs::write(there.join(".bak-store"), "{\"v\":1,\"id\":\"the-box\"}\n").unwrap();
        }
        fs::create_dir(prune.kit.path("outbox")).unwrap();
        prune
    }

    fn there(&self) -> PathBuf {
        if matches!(self.way, Where::Here) { self.kit.store() } else { self.kit.path("far") }
    }
}

impl Scene for Prune<'_> {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-prune"));
        command.env("XDG_CACHE_HOME", self.kit.path("cache"));
        command.args(["--keep-last", "2", "--tz", "UTC", "--now", common::NOW]);
        let url = match self.way {
            Where::Here => {
                command.arg(self.there());
                return command;
            }
            Where::Mounted => self.there().display().to_string(),
            Where::Ssh(sshd) => {
                command.args(["--ssh", &sshd.command()]);
                sshd.url(&self.there())
            }
        };
        command.args(["--dest", &format!("box={url}"), "--outbox"]).arg(self.kit.path("outbox"));
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        vec![self.there()]
    }

    fn always(&self) {
        let whole = &self.seen()[0].whole;
        for id in ["db@20261101T010000Z", "web@20261103T010000Z", "web@20261104T010000Z"] {
            assert!(whole.iter().any(|whole| whole == id), "{id} is to be kept: {whole:?}");
        }
    }

    /// What is said to be removed is.
    fn met(&self, ran: &Ran) {
        let whole = &self.seen()[0].whole;
        let said = ran.column("id");
        assert!(said.iter().all(|id| !whole.contains(id)), "{said:?} but {whole:?}: {}", ran.err);
    }

    fn again(&self, _: &[Seen]) {
        finish(self.command(), "").clean();
    }

    fn done(&self) {
        let seen = &self.seen()[0];
        // Foreign files, and the companions of those that stay.
        assert_eq!((seen.whole.len(), seen.strange.len()), (3, 3 + 4), "{seen:?}");
    }
}

#[test]
fn in_a_store() {
    Rig::new("bak-prune, a store").run(|| Prune::new(Where::Here));
}

#[test]
fn at_a_mounted_path() {
    Rig::new("bak-prune, a mounted path").run(|| Prune::new(Where::Mounted));
}

#[test]
fn over_ssh() {
    let kit = Kit::new();
    let sshd = Sshd::start(&kit.path("sshd"));
    Rig::new("bak-prune, ssh").dear(3).run(|| Prune::new(Where::Ssh(&sshd)));
}
