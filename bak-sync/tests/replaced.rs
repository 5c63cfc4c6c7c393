//! bak-link replaces dumps that wait while bak-sync carries others.

use bak_tests::{Kit, Ran, bin, check_store, finish};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const DAY1: &str = "2026-11-18T01:00:00Z";
const DAY2: &str = "2026-11-19T01:00:00Z";
/// So large that each goes alone.
const LARGE: usize = (1 << 20) + 3000;
const LINK: &str = "--store store --outbox outbox --now 2026-11-20T12:00:00Z --dest box=far";

fn scene(guests: &[&str]) -> Kit {
    let kit = Kit::new();
    fs::create_dir(kit.path("far")).unwrap();
    kit.sh("bak-sync --outbox outbox --dest box=$PWD/far --init").clean();
    for vm in guests {
        kit.dump(vm, DAY1, LARGE);
    }
    kit.sh(&format!("bak-link {LINK}")).clean();
    kit
}

/// A pass in which bak-link runs as soon as the first dump's data is about to go. What it did is in `linked`.
fn pass(kit: &Kit) -> Ran {
    let here = kit.path("").display().to_string();
    let rsync = kit.sh("command -v rsync").clean().out;
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--partial-dir*) if mkdir '{here}/once' 2>/dev/null; then\n\
         (cd '{here}' && '{}' {LINK} >linked 2>&1 || echo failed >>linked)\nfi ;; esac\nexec {} \"$@\"\n",
        bin("bak-link").display(),
        rsync.trim()
    );
    let stand_in = kit.write("stand-in/rsync", script);
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = kit.command(bin("bak-sync"));
    command.env("PATH", format!("{here}/stand-in:{}", std::env::var("PATH").unwrap()));
    command.args(["--outbox", "outbox", "--dest"]).arg(format!("box={here}/far"));
    finish(command, "")
}

fn linked(kit: &Kit) -> String {
    fs::read_to_string(kit.path("linked")).unwrap()
}

#[test]
fn a_dump_that_is_replaced_before_its_turn_is_no_failure_and_the_newer_one_goes() {
    let kit = scene(&["db", "web"]);
    kit.dump("web", DAY2, LARGE);
    let ran = pass(&kit).clean();
    assert!(linked(&kit).contains("replaces web@20261118T010000Z"), "{}", linked(&kit));
    assert_eq!(ran.column("id"), ["db@20261118T010000Z", "web@20261119T010000Z"]);
    assert_eq!(check_store(&kit.path("far")).whole, ["db@20261118T010000Z", "web@20261119T010000Z"]);
    assert!(check_store(&kit.path("outbox")).whole.is_empty());
}

#[test]
fn a_dump_that_was_begun_is_never_replaced() {
    let kit = scene(&["web"]);
    kit.dump("web", DAY2, LARGE);
    let ran = pass(&kit).clean();
    assert_eq!(linked(&kit), "");
    assert_eq!(ran.column("id"), ["web@20261118T010000Z"]);
    let next = kit.sh(&format!("bak-link {LINK}")).clean();
    assert_eq!(next.column("id"), ["web@20261119T010000Z"]);
}

#[test]
fn both_are_carried_where_a_crash_left_both() {
    let kit = scene(&["web"]);
    kit.sh("cp -al outbox/web older").clean();
    kit.dump("web", DAY2, LARGE);
    kit.sh(&format!("bak-link {LINK}")).clean();
    kit.sh("cp -al older/* outbox/web/").clean();
    let ran = kit.sh("bak-sync --outbox outbox --dest box=$PWD/far").clean();
    assert_eq!(ran.column("id"), ["web@20261118T010000Z", "web@20261119T010000Z"]);
    assert_eq!(check_store(&kit.path("far")).whole.len(), 2);
    assert!(check_store(&kit.path("outbox")).whole.is_empty());
}
