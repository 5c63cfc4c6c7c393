//! What bak-link must report, refuse or wait for.

mod common;

use bak_tests::{Kit, Ran, check_store, finish};
use common::{Link, NOW, day};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[test]
fn bad_input_is_reported_and_the_others_go_on() {
    let kit = Kit::new();
    let web = kit.dump("web", &day(19), 10);
    kit.dump("lost", &day(19), 10);
    let read =
        |vm: &str| fs::read_to_string(kit.store().join(format!("{vm}/{vm}-20261119T020000Z.dump.json"))).unwrap();
    let ghost = read("web").replace("web", "ghost");
    let lost = read("lost");
    fs::remove_file(kit.store().join("lost/lost-20261119T020000Z.raw")).unwrap();
    let climber = read("web").replace("\"web\"", "\"../x\"");
    let input = format!("{ghost}not json\n{lost}{climber}{}{{\"v\":1,\"ty", read("web"));
    let ran = kit.link_with(&["-"], &input).expect(1);
    for text in [
        "bak-link: ghost@20261119T020000Z: cannot be linked: there is no such dump in the store\n",
        "bak-link: lost@20261119T020000Z: cannot be linked: it is not good: its file lost-20261119T020000Z.raw is missing\n",
        "bak-link: standard input, line 2: ",
        "bak-link: standard input, line 4: ",
        "bak-link: standard input, line 6: it is cut off",
        "bak-link: 5 failed, 1 linked\n",
    ] {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
    assert_eq!(kit.pending(), [web]);
    assert_eq!(ran.records()[0]["failed"]["stage"], "link");
}

#[test]
fn records_of_a_dry_run_are_refused() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    let dry = kit.link(&["-n"]).clean().out;
    kit.link_with(&["-"], &dry).expect(2).says("planned");
    assert!(!kit.outbox().exists());
    kit.link_with(&["-", "-n"], &dry).clean();
}

#[test]
fn another_file_system_is_refused_and_never_copied_to() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    let shm = tempfile::Builder::new().prefix("bak-test-").tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(shm.path()), device(&kit.store()), "this test needs /dev/shm to be another file system");
    let there = shm.path().to_str().unwrap();
    let new = shm.path().join("new");
    for args in [&["--outbox", there][..], &["--outbox", new.to_str().unwrap()], &["-n", "--outbox", there]] {
        let ran = kit.link(args).expect(4).says("on different file systems");
        assert_eq!(ran.out, "");
    }
    assert!(!new.exists());
    assert!(check_store(shm.path()).whole.is_empty());
}

#[test]
fn what_lies_in_the_way_is_never_touched() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    let db = kit.dump("db", &day(19), 10);
    let foreign = kit.write("store/.outbox-box/web/web-20261119T020000Z.raw", "somebody's");
    let ran = kit.link(&[]).expect(1).says("bak-link: web@20261119T020000Z: cannot put it into the outbox ");
    assert!(ran.err.contains("is there already"), "{}", ran.err);
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "somebody's");
    assert_eq!(ran.column("id"), [db.as_str()]);
    assert_eq!(kit.pending(), [db]);
}

#[test]
fn a_broken_copy_in_the_outbox_is_a_failure_that_says_what_to_do() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    kit.link(&[]).clean();
    fs::remove_file(kit.outbox().join("web/web-20261119T020000Z.raw")).unwrap();
    kit.link(&[]).expect(1).says("its copy in the outbox is not good (its file web-20261119T020000Z.raw is missing)");
    // The next dump goes all the same.
    let newer = kit.dump("web", &day(20), 10);
    assert_eq!(kit.link(&[]).clean().column("id"), [newer]);
}

#[test]
fn unreadable_sidecars_are_reported_once_and_readable_dumps_go() {
    let kit = Kit::new();
    let web = kit.dump("web", &day(19), 10);
    kit.write("store/web/web-20261118T020000Z.dump.json", "{");
    let args = ["--store", "store", "--now", NOW, "--dest", "a=/a", "--dest", "b=/b"];
    let ran = kit.run("bak-link", args).expect(1).says("web/web-20261118T020000Z.dump.json: ");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert_eq!(ran.column("id"), [web]);
}

#[test]
fn two_at_once_give_one_result() {
    let kit = Kit::new();
    for i in 0..40 {
        kit.dump(&format!("g{i}"), &day(19), 100);
    }
    let ran: Vec<Ran> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| kit.link(&["--limit", "2000"]));
        let both = [start(), start()];
        both.map(|thread| thread.join().unwrap()).into()
    });
    let mut ids: Vec<String> = ran.into_iter().flat_map(|ran| ran.clean().column("id")).collect();
    ids.sort();
    assert_eq!(ids.len(), 20, "never over the limit, and none twice");
    assert_eq!(kit.pending(), ids);
}

#[test]
fn a_held_lock_is_waited_for_and_then_status_3() {
    let kit = Kit::new();
    kit.dump("web", &day(19), 10);
    fs::create_dir_all(kit.outbox().join(".bak")).unwrap();
    let mut flock = kit.command("flock");
    flock.arg(kit.outbox().join(".bak/lock")).arg(bak_tests::bin("bak-link"));
    flock.args(["--store", "store", "--dest", "box=/far", "--now", NOW, "--wait", "0s"]);
    finish(flock, "").expect(3).says("is locked by ");
    kit.link(&[]).clean();
}

#[test]
fn usage() {
    let kit = Kit::new();
    for (args, says) in [
        (&["--store", "nowhere"][..], "there is no store"),
        (&[], "no store"),
        (&["--store", "store"], "no destination"),
        (&["--store", "store", "--dest", "x=/far", "--limit", "none", "--limit", "1G"], "none"),
        (&["--store", "store", "--dest", "x=/far", "--only", "a["], "a["),
        (&["--store", "store", "--dest", "x=/far", "web"], "web"),
    ] {
        kit.run("bak-link", args).expect(2).says(says);
    }
    let help = kit.run("bak-link", ["--help"]).clean();
    assert!(help.out.contains("Examples:") && help.out.contains("Exit status:"));
    assert!(kit.run("bak-link", ["-V"]).clean().out.starts_with("bak-link "));
    assert_eq!(kit.link(&["-q"]).clean().out, "");
}
