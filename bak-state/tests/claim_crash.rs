//! A whole claim, killed at every system call, and with calls that fail, bak-state's own and its command's: what is left is
//! no more than a worker that died, and the next one finds it so.

use bak_tests::rig::{Rig, Scene};
use bak_tests::{Kit, Seen, bin, finish};
use std::path::PathBuf;
use std::process::Command;

const GUEST: &str =
    "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\",\"driver\":\"image\",\"fingerprint\":\"a\"}\n";

struct Claim(Kit);

impl Claim {
    fn new() -> Self {
        let claim = Self(Kit::in_memory());
        assert_eq!(claim.observe(), "BACKUP_NECESSARY");
        claim
    }

    fn observe(&self) -> String {
        self.0.run_with("bak-state", ["observe", "-", "--db", "db"], GUEST).clean().column("status").remove(0)
    }
}

impl Scene for Claim {
    fn kit(&self) -> &Kit {
        &self.0
    }

    fn command(&self) -> Command {
        let mut command = self.0.command(bin("bak-state"));
        command.args(["claim", "--db", "db", "web", "--", "touch", "worked"]);
        command
    }

    fn stores(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn database(&self) -> Option<PathBuf> {
        Some(self.0.path("db"))
    }

    /// Nobody lives who could hold it: it is CLEAN on proof, or to be dumped.
    fn again(&self, _: &[Seen]) {
        let status = self.0.run("bak-state", ["get", "web", "--db", "db"]).clean().column("status").remove(0);
        let seen = self.observe();
        match status.as_str() {
            "CLEAN" => assert!(seen == "CLEAN" && self.0.path("worked").exists(), "{seen}"),
            "BACKUP_NECESSARY" | "BACKUP_IN_PROGRESS" => assert_eq!(seen, "BACKUP_NECESSARY"),
            other => panic!("{other}"),
        }
        finish(self.command(), "").clean();
    }

    fn done(&self) {
        assert_eq!(self.observe(), "CLEAN");
    }
}

#[test]
fn a_claim_killed_anywhere() {
    Rig::new("bak-state, claim").tools(&["touch"]).run(Claim::new);
}
