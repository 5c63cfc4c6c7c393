//! Deltas that are made here and put together over there: what they cost, and that nothing that goes wrong with them costs a
//! dump.

mod common;

use bak_tests::{Ran, check_store, noise};
use common::{DAY1, DAY2, Place, linked, put_content};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

const MB: usize = 1 << 20;

/// An image of 12 MB, half of it zeros, and the same with `changed` writes of 4 KiB.
fn images(changed: u64) -> [Vec<u8>; 2] {
    let mut old = noise(1, 6 * MB);
    old.resize(12 * MB, 0);
    let mut new = old.clone();
    for i in 0..changed {
        let at = (i * 6 * MB as u64 / changed) as usize & !4095;
        new[at..at + 4096].copy_from_slice(&noise(100 + i, 4096));
    }
    [old, new]
}

/// The old one is over there, and here in the store; the new one waits.
fn scene(place: &Place, [old, new]: &[Vec<u8>; 2]) -> String {
    put_content(&place.outbox(), "web", DAY1, "raw", old, linked(json!({})));
    put_content(&place.kit.store(), "web", DAY1, "raw", old, json!({}));
    place.sync([]).clean();
    put_content(&place.outbox(), "web", DAY2, "raw", new, linked(json!({"cost": 200_000})))
}

fn sync<const N: usize>(place: &Place, more: [&str; N]) -> Ran {
    let mut args = place.command(more).1;
    args.extend(["--store".into(), "store".into()]);
    place.kit.run("bak-sync", args)
}

/// Runs passes with these limits, then without, until nothing waits: what was sent as the record says.
fn passes(place: &Place, limits: impl IntoIterator<Item = u64>) -> Value {
    let mut limits = limits.into_iter();
    loop {
        let limit = limits.next();
        let before = place.counted();
        let limited = limit.map_or("none".to_owned(), |limit| limit.to_string());
        let ran = sync(place, ["--limit", &limited]).clean();
        let cost = place.counted() - before;
        assert!(limit.is_none_or(|limit| cost <= limit + (64 << 10)), "{cost} of {limited}");
        if check_store(&place.outbox()).whole.is_empty() {
            return ran.records()[0]["sent"]["box"].clone();
        }
        assert!(limit.is_some(), "{}", ran.out);
    }
}

/// All has arrived, and nothing else is left, here or over there; both are files of their own.
#[track_caller]
fn all_is_well(place: &Place) {
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0), "{seen:?}");
    let left = "find far/*/.part far/.basis-*/* outbox/.bak/scratch far/web/.w* -type f 2>/dev/null; true";
    assert_eq!(place.kit.sh(left).out, "");
    for file in fs::read_dir(place.far().join("web")).unwrap() {
        let meta = file.unwrap().metadata().unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o77), (1, 0));
    }
}

fn wire(sent: &Value) -> (u64, u64) {
    (sent["wire_out"].as_u64().unwrap(), sent["wire_in"].as_u64().unwrap())
}

#[test]
fn what_is_cut_costs_no_more_than_one_go_and_no_checksums_come_back() {
    let images = images(400);
    let place = Place::new(true);
    scene(&place, &images);
    let usual = wire(&passes(&place, []));
    let place = Place::new(true);
    scene(&place, &images);
    let (out, back) = wire(&passes(&place, [u64::MAX >> 8]));
    all_is_well(&place);
    assert!(usual.1 > 15_000, "{usual:?}: as checksums come back in the usual way");
    assert!(out <= usual.0 + 10_000 && back < 12_000, "{out} out, {back} in, against {usual:?}");
    // Small runs of a pass, and ssh's own, which are not what is measured here, take about 10 KB of each limit.
    let small = 20_000;
    for percent in [10, 90] {
        let place = Place::new(true);
        scene(&place, &images);
        let sent = passes(&place, [out * percent / 100 + small]);
        all_is_well(&place);
        let (cut, cut_back) = wire(&sent);
        assert!(cut <= out * 11 / 10 && cut_back < 30_000, "at {percent} %: {sent} against {out}");
    }
    let place = Place::new(true);
    scene(&place, &images);
    let sent = passes(&place, std::iter::repeat_n(out / 10 + small, 30));
    all_is_well(&place);
    assert!(sent["passes"].as_u64().unwrap() >= 6, "{sent}");
    assert!(wire(&sent).0 <= out * 11 / 10, "{sent} against {out}");
    // Holes stay holes.
    let there = fs::metadata(place.far().join("web/web-20261119T010000Z.raw")).unwrap();
    assert!(there.blocks() * 512 < 8 * MB as u64, "{}", there.blocks());
}

#[test]
fn where_it_cannot_be_put_together_it_goes_in_the_usual_way() {
    let images = images(20);
    let place = Place::new(true);
    let web = scene(&place, &images);
    // What it is compared with has rotted over there, in size and time as it was.
    let old = place.far().join("web/web-20261118T010000Z.raw");
    let modified = fs::metadata(&old).unwrap().modified().unwrap();
    let rotten = fs::OpenOptions::new().write(true).open(&old).unwrap();
    rotten.write_all_at(b"rot", 5 * MB as u64).unwrap();
    rotten.set_modified(modified).unwrap();
    let ran = sync(&place, ["--limit", "500M"]);
    assert!(ran.err.contains("it is sent in the usual way"), "{ran:?}");
    assert_eq!((ran.status, ran.err.lines().count()), (0, 1), "{ran:?}");
    let seen = check_store(&place.far());
    assert!(seen.whole.contains(&web), "{seen:?}");
    assert_eq!(place.kit.sh("find far/*/.part far/.basis-*/* -type f 2>/dev/null; true").out, "");
}

#[test]
fn a_key_that_may_run_nothing_but_rsync_gets_the_dump_in_the_usual_way() {
    let images = images(20);
    let place = Place::new(true);
    scene(&place, &images);
    let only = place.kit.write(
        "only-rsync",
        "#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in rsync\\ *) eval \"exec $SSH_ORIGINAL_COMMAND\" ;; esac\necho no >&2\nexit 9\n",
    );
    place.kit.sh("chmod 755 only-rsync").clean();
    place.sshd.as_ref().unwrap().force(&only.display().to_string());
    let url = place.sshd.as_ref().unwrap().url(&place.far());
    let ssh = place.sshd.as_ref().unwrap().command();
    let args =
        ["--outbox", "outbox", "--dest", &format!("box={url}"), "--ssh", &ssh, "--store", "store", "--limit", "500M"];
    let ran = place.kit.run("bak-sync", args).clean();
    assert!(wire(&ran.records()[0]["sent"]["box"]).1 > 15_000, "{}", ran.out);
    all_is_well(&place);
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let images = images(40);
    let place = Place::new(true);
    scene(&place, &images);
    for (round, millis) in noise(5, 12).into_iter().enumerate() {
        let mut args = place.command(["--limit", "90K"]).1;
        args.extend(["--store".into(), "store".into()]);
        let mut command = place.kit.command(bak_tests::bin("bak-sync"));
        let mut pass = command.args(args).stdout(std::process::Stdio::null()).spawn().unwrap();
        let moment = std::time::Instant::now() + std::time::Duration::from_millis(u64::from(millis) * 8);
        while std::time::Instant::now() < moment && pass.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = pass.kill();
        pass.wait().unwrap();
        let seen = check_store(&place.far());
        assert!(seen.broken.is_empty(), "round {round}: {seen:?}");
    }
    while !check_store(&place.outbox()).whole.is_empty() {
        sync(&place, ["--limit", "200K"]).clean();
    }
    all_is_well(&place);
}
