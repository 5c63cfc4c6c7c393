//! `bak-state claim --look`: bak-guests looks at the image before and after a command, so that a change is noticed at once.

use bak_tests::{Kit, Ran, noise};
use std::fs;

fn scene() -> Kit {
    let kit = Kit::new();
    for name in ["web", "we", "a[b]"] {
        kit.write(&format!("images/{name}.raw"), noise(7, 1 << 16));
    }
    kit.write("bak.toml", "db = \"db\"\n[image]\nimages = [\"images\"]\n");
    kit
}

fn claim(kit: &Kit, vm: &str, script: &str) -> Ran {
    kit.run("bak-state", ["claim", "--config", "bak.toml", "--look", vm, "--", "sh", "-c", script])
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

#[test]
fn a_change_is_noticed_at_once() {
    let kit = scene();
    // A look is an observation: the guest need not have been seen before, and no other is touched.
    claim(&kit, "web", "cat images/web.raw >copy").clean();
    assert_eq!(statedb(&kit), "web:CLEAN\n");
    let due = || {
        kit.sh("bak-guests --config bak.toml web | bak-state observe --due - --config bak.toml").clean().column("vm")
    };
    assert_eq!(due(), [""; 0]);
    let ran = claim(&kit, "web", "echo more >>images/web.raw").expect(0);
    ran.says("bak-state: web: it is BACKUP_NECESSARY: its fingerprint is not what it was when the work began\n");
    assert_eq!(statedb(&kit), "web:BACKUP_NECESSARY\n");
    assert_eq!(due(), ["web"]);
    claim(&kit, "web", "true").clean();
    assert_eq!(due(), [""; 0]);
    // A name is no pattern.
    claim(&kit, "a[b]", "true").clean();
    assert!(statedb(&kit).contains("a[b]:CLEAN\n") && statedb(&kit).lines().count() == 2);
}

#[test]
fn a_guest_that_is_started_meanwhile_is_seen() {
    let kit = scene();
    // QEMU's own locks on the image, as a guest that runs has it.
    let script = "qemu-nbd --fork --persistent --socket=$PWD/nbd --pid-file=pid -f raw images/web.raw";
    let ran = claim(&kit, "web", script).expect(0).says("it was started, and cannot be dumped while it runs");
    assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, "web:BACKUP_NECESSARY\n"));
    // What the command left running holds the claim.
    claim(&kit, "web", "true").expect(3);
    kit.sh("pid=$(cat pid); kill $pid; tail --pid=$pid -f /dev/null").clean();
    claim(&kit, "web", "true").clean();
}

#[test]
fn a_look_that_fails_is_no_proof() {
    let kit = scene();
    claim(&kit, "web", "true").clean();
    let ran =
        claim(&kit, "web", "mv images/web.raw away; true").expect(0).says("nothing proves that it is unchanged: ");
    assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, "web:BACKUP_NECESSARY\n"));
    // The work is done all the same, and its exit status is passed on.
    let ran = claim(&kit, "web", "mv away images/web.raw").expect(0).says("nothing proves that it is unchanged: ");
    assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, "web:BACKUP_NECESSARY\n"));
    claim(&kit, "web", "exit 9").expect(9).says("status 9");
    // Without bak-guests there is no look.
    kit.sh("mkdir bin; ln -s \"$(command -v bak-state)\" bin; ln -s /bin/true bin").clean();
    let ran = kit.sh("PATH=$PWD/bin bak-state claim --config bak.toml --look web -- true");
    ran.expect(0).says("cannot find bak-guests on PATH");
    assert_eq!(statedb(&kit), "web:BACKUP_NECESSARY\n");
}
