//! One add and one remove of the store, killed at every system call, and with calls that fail.

use bak_tests::rig::{Rig, Scene};
use bak_tests::{Kit, Seen, bin, finish, put_dump};
use serde_json::json;
use std::process::Command;

const OLD: &str = "2026-11-18T01:00:00Z";
const NEW: &str = "2026-11-19T01:00:00Z";

/// A store with one good dump, and foreign files between.
struct Change {
    kit: Kit,
    way: &'static [&'static str],
}

impl Change {
    fn new(way: &'static [&'static str]) -> Self {
        let kit = Kit::in_memory();
        put_dump(&kit.store(), "web", OLD, 3000, json!({}));
        for name in ["web/readme.txt", "web/web-20261119T010000Z-copy.raw", "lost.qcow2", "web/.hidden", ".other/x"] {
            kit.write(&format!("store/{name}"), name);
        }
        Self { kit, way }
    }

    fn run(&self, args: &[&str]) -> Command {
        let mut command = self.kit.command(bin("bak-test-store"));
        command.arg(args[0]).arg(self.kit.store()).args(&args[1..]);
        command
    }
}

impl Scene for Change {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        self.run(self.way)
    }

    /// Recovery alone leaves nothing half done; and what was decided is done.
    fn again(&self, before: &[Seen]) {
        finish(self.run(&["recover"]), "").clean();
        let seen = &self.seen()[0];
        assert!(seen.unfinished.is_empty() && seen.strange.len() == 3, "{seen:?}");
        let mut whole = before[0].whole.len();
        if self.way[0] == "add" {
            whole = whole.max(1);
            assert!(seen.whole.len() >= whole, "{seen:?}");
        } else {
            assert!(seen.whole.len() <= whole, "{seen:?}");
        }
        // What is done already is refused the second time.
        finish(self.command(), "");
    }
}

#[test]
fn an_add_is_whole_or_absent() {
    Rig::new("the store, adding").run(|| Change::new(&["add", "web", NEW, "5000"]));
}

#[test]
fn a_remove_is_whole_or_absent() {
    Rig::new("the store, removing").run(|| Change::new(&["remove", "web@20261118T010000Z"]));
}
