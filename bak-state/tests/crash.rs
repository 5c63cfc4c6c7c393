//! SIGKILL at every system call that writes, one after another: the database holds the old or the new state.

use bak_tests::{Kit, bin, finish};
use std::fs;

const CALLS: [&str; 9] =
    ["openat", "write", "ftruncate", "fsync", "rename", "renameat", "renameat2", "flock", "mkdirat"];

/// Runs bak-state with `args` again and again, each time killed at another call, and looks at what is left. `prepare`
/// puts the database back; `check` is told what the killed run left.
fn kill_everywhere(kit: &Kit, args: &[&str], input: &str, prepare: impl Fn(), check: impl Fn(&str)) {
    let mut killed = [0; CALLS.len()];
    for (at, call) in CALLS.iter().enumerate() {
        for nth in 1.. {
            prepare();
            let mut command = kit.command("strace");
            let inject = format!("inject={call}:signal=KILL:when={nth}");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            command.arg(bin("bak-state")).args(args);
            let ran = finish(command, input);
            if ran.status == 0 {
                break;
            }
            assert_eq!(ran.status, -9, "{call} {nth}: {}", ran.err);
            killed[at] += 1;
            check(&format!("{call}, the {nth}th"));
        }
    }
    let of = |names: &[&str]| CALLS.iter().zip(killed).filter(|(call, _)| names.contains(call)).map(|(_, n)| n).sum();
    let counts: [i32; 3] = [of(&["write"]), of(&["fsync"]), of(&["rename", "renameat", "renameat2"])];
    assert!(counts.iter().all(|count| *count > 0), "{killed:?}: nothing was killed where it matters");
}

fn put(kit: &Kit, statedb: &str, details: &str) {
    let _ = fs::remove_dir_all(kit.path("db"));
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", statedb);
    if !details.is_empty() {
        kit.write("db/vmtool-details", details);
    }
}

#[test]
fn a_set_is_done_or_not() {
    let kit = Kit::new();
    let (old, new) = ("a:b:NEW\nweb:CLEAN\n", "a:b:NEW\nweb:ARCHIVED\n");
    let args = ["set", "ARCHIVED", "web", "--db", "db"];
    kill_everywhere(
        &kit,
        &args,
        "",
        || put(&kit, old, ""),
        |when| {
            let text = fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap();
            assert!(text == old || text == new, "{when}: {text}");
            kit.run("bak-state", ["list", "--db", "db"]).clean();
            kit.run("bak-state", args).clean();
            assert_eq!(fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap(), new, "{when}");
        },
    );
}

#[test]
fn a_new_guest_is_never_hidden_behind_an_old_ones_status() {
    let kit = Kit::new();
    let old = "web:ARCHIVED\ndb:BACKUP_IN_PROGRESS\n";
    let details = "{\"vm\":\"web\",\"uid\":\"u1\",\"kind\":\"qemu\"}\n";
    let guest = |vm: &str, uid: &str| {
        format!(
            "{{\"v\":1,\"type\":\"guest\",\"vm\":\"{vm}\",\"kind\":\"qemu\",\"driver\":\"image\",\"uid\":\"{uid}\"}}\n"
        )
    };
    let input = guest("web", "u2") + &guest("db", "u3");
    let args = ["observe", "-", "--db", "db"];
    kill_everywhere(
        &kit,
        &args,
        &input,
        || put(&kit, old, details),
        |when| {
            kit.run("bak-state", ["list", "--db", "db"]).clean();
            let ran = kit.run_with("bak-state", args, &input).clean();
            assert_eq!(ran.column("status"), ["BACKUP_NECESSARY"; 2], "{when}");
            assert_eq!(kit.run("bak-state", ["get", "web", "--db", "db"]).clean().column("uid"), ["u2"], "{when}");
        },
    );
}

#[test]
fn a_database_is_made_or_not() {
    let kit = Kit::new();
    let prepare = || _ = fs::remove_dir_all(kit.path("db"));
    let args = ["set", "NEW", "web", "--db", "db"];
    kill_everywhere(&kit, &args, "", prepare, |when| {
        kit.run("bak-state", args).clean();
        assert_eq!(fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap(), "web:NEW\n", "{when}");
    });
}
