//! bak-sync with a key that may only run rrsync, on a real sshd.

mod common;

use bak_tests::{Ran, check_store, finish, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn out(ran: &Ran) -> u64 {
    ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap()
}

/// One pass, or `more`, to `path` as the host of the key takes it.
fn sync_to(place: &Place, path: &str, more: &[&str]) -> Ran {
    let sshd = place.sshd.as_ref().unwrap();
    let (dest, ssh) = (format!("box=127.0.0.1:{path}"), sshd.command());
    place.kit.run("bak-sync", [&["--outbox", "outbox", "--dest", &dest, "--ssh", &ssh], more].concat())
}

fn changed(mut content: Vec<u8>) -> Vec<u8> {
    let middle = content.len() / 2;
    content[middle] ^= 0xff;
    content
}

#[test]
fn arrives_and_the_second_dump_is_a_delta() {
    // Relative or not, a path is one of rrsync's directory.
    for (options, path) in [("", "/"), ("-munge -no-lock", "/a b"), ("-no-del", "x/y/")] {
        let place = Place::rrsync(options);
        fs::create_dir_all(place.far().join("a b")).unwrap();
        fs::create_dir_all(place.far().join("x/y")).unwrap();
        sync_to(&place, path, &["--init"]).clean();
        let content = noise(1, 1_000_000);
        place.wait_with("web", DAY1, &content, json!({}));
        let first = sync_to(&place, path, &[]).clean();
        place.wait_with("web", DAY2, &changed(content), json!({}));
        let second = sync_to(&place, path, &[]).clean();
        assert!(out(&first) > 950_000 && out(&second) < 20_000, "{options}: {} {}", out(&first), out(&second));
        let seen = check_store(&place.far().join(path.trim_start_matches('/')));
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0), "{options} {path}");
        let left = place.kit.sh("find far -name '*.raw' -links +1; find far -path '*/.*/*' -type f");
        assert_eq!(left.out, "", "{options} {path}");
    }
}

#[test]
fn what_is_cut_goes_on_as_a_delta_also_where_nothing_may_be_removed() {
    for (options, most) in [("", 300_000), ("-no-del", 1_300_000)] {
        let place = Place::rrsync(options);
        place.sync(["--init"]).clean();
        let content = noise(1, 1 << 20);
        place.wait_with("web", DAY1, &content, json!({}));
        let mut passes = 0;
        while !check_store(&place.outbox()).whole.is_empty() {
            place.sync(["--limit", "700K"]).clean();
            passes += 1;
            assert!(passes < 6, "{options}");
        }
        assert!(place.counted() < 9 << 17, "{options}: {}", place.counted());
        let mut new = content;
        for at in (0..new.len()).step_by(32 << 10) {
            new[at..at + 4096].copy_from_slice(&noise(at as u64, 4096));
        }
        place.wait_with("web", DAY2, &new, json!({}));
        let before = place.counted();
        while !check_store(&place.outbox()).whole.is_empty() {
            let before = place.counted();
            let limit = if options.is_empty() { "100K" } else { "700K" };
            place.sync(["--limit", limit]).clean();
            passes += 1;
            assert!(passes < 10, "{options}");
            assert!(place.counted() - before < 1 << 20);
        }
        // 32 changes of 4 KiB; or all of it, as nothing can be laid ready.
        assert!(place.counted() - before < most, "{options}: {}", place.counted() - before);
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0), "{options}");
    }
}

#[test]
fn one_that_may_only_be_read_or_only_be_written_is_said_in_words() {
    let place = Place::rrsync("");
    place.sync(["--init"]).clean();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    place.sync([]).clean();
    let db = place.wait_there("db", DAY1, 1000, json!({}));
    let sshd = place.sshd.as_ref().unwrap();
    let far = place.far();
    let rrsync = |options: &str| sshd.force(&format!("/usr/bin/rrsync {options} {}", far.display()));
    rrsync("-ro");
    place.sync([]).expect(1).says("db@20261118T010000Z: stays pending: rrsync over there only lets us read (-ro)");
    let list = || place.kit.run("bak-list", [sshd.url(Path::new("/")), "--ssh".into(), sshd.command()]);
    assert_eq!(list().clean().column("id"), [web.as_str()]);
    rrsync("-wo");
    place.sync([]).expect(1).says("rrsync only lets us write (-wo)");
    list().expect(1).says("rrsync only lets us write (-wo)");
    rrsync("");
    assert_eq!(place.sync([]).clean().column("id"), [db.as_str()]);
    fs::remove_dir_all(place.far().join("db")).unwrap();
    let ran = place.sync(["--reconcile"]).clean();
    assert_eq!((ran.column("id"), &ran.records()[0]["reconcile"]["box"]["decision"]), (vec![db], &json!("gone")));
}

#[test]
fn an_emptied_one_gets_nothing_and_a_path_outside_is_not_made() {
    let place = Place::rrsync("");
    place.sync(["--init"]).clean();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    sync_to(&place, "/not/there", &["--init"]).expect(1).says("is that directory there?");
    fs::remove_file(place.far().join(".bak-store")).unwrap();
    place.sync([]).expect(4).says("not mounted, or was it emptied");
    assert_eq!(fs::read_dir(place.far()).unwrap().count(), 0);
    fs::remove_dir(place.far()).unwrap();
    place.sync([]).expect(4).says("1 dump stays pending");
    assert_eq!(check_store(&place.outbox()).whole, [web]);
}

#[test]
fn another_one_at_work_there_is_waited_for() {
    let place = Place::rrsync("");
    place.sync(["--init"]).clean();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    // As rrsync does it.
    let lock = fs::File::open(place.far()).unwrap();
    lock.lock().unwrap();
    let (program, args) = place.command([]);
    let mut command = place.kit.command(program);
    command.args(args);
    let pass = std::thread::spawn(move || finish(command, ""));
    let begun = Instant::now();
    // Each run of rsync takes two numbers for its files.
    let asked_again = || {
        let names = fs::read_dir(place.outbox().join(".bak/scratch")).into_iter().flatten().flatten();
        let mut names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.any(|name| name.strip_prefix("wire.").is_some_and(|number| number.parse::<u32>().unwrap() > 5))
    };
    while !asked_again() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not ask again");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(lock);
    assert_eq!(pass.join().unwrap().clean().column("id"), [web]);
}
