//! bak-sync, killed at every system call, and with calls that fail: its own, and those of its rsync. By a mounted path all
//! of it is on one disk; over ssh only what is here meets that.

mod common;

use bak_tests::rig::{Rig, Scene};
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, Seen, check_store, finish, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;

/// An outbox with two small dumps that go together and a larger one that goes alone, in slices, whose guest has another
/// over there; foreign files on both sides.
struct Sync<'a> {
    place: Place,
    sshd: Option<&'a Sshd>,
    ids: Vec<String>,
}

impl<'a> Sync<'a> {
    fn new(sshd: Option<&'a Sshd>) -> Self {
        let place = Place { kit: Kit::in_memory(), sshd: None, rsyncd: None };
        std::fs::create_dir(place.far()).unwrap();
        place.sync(["--init"]).clean();
        let old = noise(1, 1_500_000);
        let new = [&old[..1_400_000], &noise(2, 50_000)].concat();
        let mut ids = vec![place.wait_with("web", DAY1, &old, json!({}))];
        place.sync([]).clean();
        ids.push(place.wait_with("web", DAY2, &new, json!({"rank": 3})));
        ids.push(place.wait_there("db", DAY1, 3000, json!({"rank": 1})));
        ids.push(place.wait_there("mail", DAY1, 5000, json!({"rank": 2})));
        for name in ["web/readme.txt", "lost.raw", "db/.hidden"] {
            place.kit.write(&format!("far/{name}"), name);
            place.kit.write(&format!("outbox/{name}"), name);
        }
        ids.sort();
        Self { place, sshd, ids }
    }
}

impl Scene for Sync<'_> {
    fn kit(&self) -> &Kit {
        &self.place.kit
    }

    fn command(&self) -> Command {
        let far = self.place.far();
        let url = self.sshd.map_or(far.display().to_string(), |sshd| sshd.url(&far));
        let mut command = self.place.kit.command(bak_tests::bin("bak-sync"));
        command.arg("--outbox").arg(self.place.outbox()).args(["--dest", &format!("box={url}"), "--retries", "0"]);
        if let Some(sshd) = self.sshd {
            command.args(["--ssh", &sshd.command()]);
        }
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        vec![self.place.far(), self.place.outbox()]
    }

    /// Nothing is lost, and the ledger is whole lines but for the last.
    fn always(&self) {
        let seen = self.seen();
        let known = [&seen[0].whole[..], &seen[1].whole[..]].concat();
        assert!(self.ids.iter().all(|id| known.contains(id)), "lost: {known:?}");
    }

    /// What is said to be sent is over there.
    fn met(&self, ran: &Ran) {
        let far = &self.seen()[0].whole;
        let said: Vec<_> = ran.records().into_iter().filter(|record| !record["sent"].is_null()).collect();
        assert!(said.iter().all(|dump| far.iter().any(|id| dump["id"] == **id)), "{said:?} but {far:?}: {}", ran.err);
    }

    fn again(&self, _: &[Seen]) {
        finish(self.command(), "").clean();
    }

    fn done(&self) {
        let seen = self.seen();
        assert_eq!((&seen[0].whole, seen[1].whole.len()), (&self.ids, 0));
        let history = check_store(&self.place.outbox().join(".bak/sent"));
        assert_eq!(history.broken.len(), self.ids.len(), "the history of what was sent");
        // Whatever was left over there was hidden, and is gone; links to bases that could not be taken up go with the guest's
        // next dump.
        let left = self.place.kit.sh("find far -type f '(' -name '.*.??????' -o -path '*/.part/*' ')'");
        assert_eq!(left.clean().out, "");
    }
}

#[test]
fn to_a_mounted_path() {
    let rig = Rig::new("bak-sync, a mounted path").sample(20).tools(&["rsync"]);
    rig.run(|| Sync::new(None));
}

#[test]
fn over_ssh() {
    let kit = Kit::new();
    let sshd = Sshd::start(&kit.path("sshd"));
    Rig::new("bak-sync, ssh").dear(3).run(|| Sync::new(Some(&sshd)));
}
