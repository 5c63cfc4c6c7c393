//! SIGKILL at every system call of a whole claim, bak-state's own and its command's: what is left is no more than a worker
//! that died, and the next one finds it so.

use bak_tests::{Kit, bin, strace};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const GUEST: &str =
    "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\",\"driver\":\"image\",\"fingerprint\":\"a\"}\n";

#[test]
fn a_claim_killed_anywhere() {
    let memory = Path::new("/dev/shm");
    let kit = if memory.is_dir() { Kit::new_in(memory) } else { Kit::new() };
    let observe = || kit.run_with("bak-state", ["observe", "-", "--db", "db"], GUEST).clean().column("status");
    assert_eq!(observe(), ["BACKUP_NECESSARY"]);
    let files = ["vmtool-db-version", "vmtool-details", "vmtool-statedb"];
    let files = files.map(|name| (name, fs::read(kit.path("db").join(name)).unwrap()));
    let prepare = || {
        fs::remove_dir_all(kit.path("db")).unwrap();
        for (name, bytes) in &files {
            kit.write(&format!("db/{name}"), bytes);
        }
    };
    let args = ["claim", "--db", "db", "web", "--", "true"];
    let argv: Vec<OsString> = [bin("bak-state").into()].into_iter().chain(args.map(OsString::from)).collect();
    prepare();
    let calls = strace::count(&kit, &argv, &kit.path("log"));
    let mut left = std::collections::BTreeMap::new();
    for (name, count) in calls {
        for when in 1..=count {
            prepare();
            strace::inject(&kit, &argv, &name, "signal=KILL", when);
            let point = format!("{name}, the {when}th");
            let status = kit.run("bak-state", ["get", "web", "--db", "db"]).clean().column("status").remove(0);
            // Nobody lives who could hold it: it is CLEAN on proof, or to be dumped.
            let seen = observe().remove(0);
            match status.as_str() {
                "CLEAN" => assert_eq!(seen, "CLEAN", "{point}"),
                "BACKUP_NECESSARY" | "BACKUP_IN_PROGRESS" => assert_eq!(seen, "BACKUP_NECESSARY", "{point}"),
                other => panic!("{point}: {other}"),
            }
            kit.run("bak-state", args).clean();
            assert_eq!(observe(), ["CLEAN"], "{point}");
            *left.entry(status).or_insert(0) += 1;
        }
    }
    println!("{left:?}");
    // Kills before the claim, under it, and after its end have all been seen.
    assert_eq!(left.len(), 3, "{left:?}");
}
