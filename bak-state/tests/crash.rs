//! The commands of bak-state that write, killed at every system call, and with calls that fail: the database holds the old
//! or the new state, and the same command finishes it.

use bak_tests::rig::{Rig, Scene};
use bak_tests::{Kit, Seen, bin, finish};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const DETAILS: &str = "{\"vm\":\"web\",\"uid\":\"u1\",\"kind\":\"qemu\"}\n";
/// Longer than what is written over it: a program whose name and number were.
const LOCK: &str = "{\"program\":\"bak-something-with-a-longer-name-than-ours-has-so-that-it-is-longer-in-all-whatever-else-is-written-there-now-and-ever-after-that\",\"pid\":4194304,\"node\":\"a-node-with-a-longer-name-than-this-one-has-in-all-likelihood\",\"generation\":41}";

/// A database, and a command.
struct Change {
    kit: Kit,
    args: &'static [&'static str],
    input: &'static str,
    old: Option<&'static str>,
    new: &'static str,
}

impl Change {
    fn new(args: &'static [&'static str], old: Option<&'static str>, new: &'static str) -> Self {
        let kit = Kit::in_memory();
        if let Some(old) = old {
            kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
            kit.write("db/vmtool-statedb", old);
            kit.write("db/vmtool-details", DETAILS);
            kit.write("db/vmtool-dblock", LOCK);
        }
        Self { kit, args, input: "", old, new }
    }

    fn list(&self) -> Option<String> {
        fs::read_to_string(self.kit.path("db/vmtool-statedb")).ok()
    }
}

impl Scene for Change {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-state"));
        command.args(self.args).args(["--db", "db"]);
        command
    }

    fn input(&self) -> String {
        self.input.into()
    }

    fn stores(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn database(&self) -> Option<PathBuf> {
        Some(self.kit.path("db"))
    }

    fn always(&self) {
        let list = self.list();
        // A new one begins with an empty list.
        let new = self.old.is_none() && list.as_deref() == Some("");
        assert!(new || list.as_deref() == self.old || list.as_deref() == Some(self.new), "{list:?}");
        if list.is_some() {
            self.kit.run("bak-state", ["list", "--db", "db"]).clean();
        }
    }

    /// A guest that is gone from it is not forgotten a second time.
    fn again(&self, _: &[Seen]) {
        let ran = finish(self.command(), self.input);
        let gone = self.args[0] == "forget" && ran.status == 1 && self.list().as_deref() == Some(self.new);
        assert!(gone || (ran.status == 0 && ran.err.is_empty()), "{ran:?}");
    }

    fn done(&self) {
        assert_eq!(self.list().as_deref(), Some(self.new));
        let left: Vec<_> = fs::read_dir(self.kit.path("db")).unwrap().map(|name| name.unwrap().file_name()).collect();
        let hidden = left.iter().filter(|name| name.as_encoded_bytes().starts_with(b".")).count();
        assert_eq!(hidden, 0, "{left:?}");
        for name in ["vmtool-statedb", "vmtool-dblock"] {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(self.kit.path("db").join(name)).unwrap().permissions().mode();
            assert!(self.old.is_some() || mode & 0o077 == 0, "others may read {name}: {mode:o}");
        }
    }
}

const OLD: &str = "a:b:NEW\nweb:CLEAN\n";

#[test]
fn a_set_is_done_or_not() {
    let args = &["set", "ARCHIVED", "web"];
    Rig::new("bak-state, set").run(|| Change::new(args, Some(OLD), "a:b:NEW\nweb:ARCHIVED\n"));
}

#[test]
fn a_guest_is_forgotten_or_not() {
    let args = &["forget", "web"];
    Rig::new("bak-state, forget").run(|| Change::new(args, Some(OLD), "a:b:NEW\n"));
}

#[test]
fn a_database_is_made_or_not() {
    Rig::new("bak-state, a new database").run(|| Change::new(&["set", "NEW", "web"], None, "web:NEW\n"));
}

/// Other guests than before under both names.
#[test]
fn a_new_guest_is_never_hidden_behind_an_old_ones_status() {
    struct Observed(Change);

    impl Scene for Observed {
        fn kit(&self) -> &Kit {
            &self.0.kit
        }

        fn command(&self) -> Command {
            self.0.command()
        }

        fn input(&self) -> String {
            let guest = |(vm, uid): (&str, &str)| {
                format!(
                    "{{\"v\":1,\"type\":\"guest\",\"vm\":\"{vm}\",\"kind\":\"qemu\",\"driver\":\"image\",\"uid\":\"{uid}\"}}\n"
                )
            };
            [("web", "u2"), ("db", "u3")].map(guest).concat()
        }

        fn stores(&self) -> Vec<PathBuf> {
            Vec::new()
        }

        fn database(&self) -> Option<PathBuf> {
            self.0.database()
        }

        fn always(&self) {
            self.kit().run("bak-state", ["list", "--db", "db"]).clean();
        }

        fn done(&self) {
            let known = self.kit().run("bak-state", ["get", "web", "db", "--db", "db"]).clean();
            assert_eq!(known.column("status"), ["BACKUP_NECESSARY"; 2]);
            assert_eq!(known.column("uid"), ["u2", "u3"]);
        }
    }

    let old = Some("web:ARCHIVED\ndb:BACKUP_IN_PROGRESS\n");
    Rig::new("bak-state, observe").run(|| Observed(Change::new(&["observe", "-"], old, "")));
}
