//! bak-verify of a far side: by sums made over there, by fetching within limits, and what its marks mean to the others.

mod far;

use bak_tests::process::{about, wait_for, words};
use bak_tests::{Ran, compact, noise, put_dump};
use far::*;
use serde_json::json;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

/// Decision and reason of the only dump.
#[track_caller]
fn verdict(ran: &Ran) -> (String, String) {
    let record = &ran.records()[0]["verify"];
    (record["decision"].as_str().unwrap().into(), record["why"].as_str().unwrap().into())
}

#[test]
fn every_way() {
    for way in WAYS {
        let far = Far::ready(way);
        for vm in ["a", "it's\\b", "-c d", "é*"] {
            far.dump(vm);
        }
        let before = far.counted();
        let ran = far.verify(&["--all"]).clean();
        assert_eq!(ran.records().len(), 4);
        let there = if way == Way::Ssh { ", made over there" } else { "" };
        for record in ran.records() {
            let verify = &record["verify"];
            assert_eq!(
                (&verify["decision"], &verify["why"]),
                (&json!("good"), &json!(format!("SHA-256 as recorded{there}")))
            );
        }
        // Four megabytes that don't compress: only sums, or all of it.
        let carried = far.counted() - before;
        let expected = if way == Way::Ssh { 0..40_000 } else { 4_000_000..4_400_000 };
        assert!(expected.contains(&carried), "{way:?}: {carried}");
        assert!(far.left().is_empty(), "{way:?}: {:?}", far.left());
        far.is_sound(4);
        flip(&far.file("a"));
        let ran = far.verify(&["--all"]).expect(1);
        assert!(ran.err.contains("a@20261120T010000Z: is bad: ") && ran.err.contains("its SHA-256 is"), "{}", ran.err);
        let bad = ran.records().iter().filter(|record| record["verify"]["decision"] == "bad").count();
        assert_eq!((bad, ran.records().len(), far.left().len()), (1, 4, 0));
        // Nothing was written over there.
        assert!(!fs::read_to_string(far.sidecar("a")).unwrap().contains("verify"));
    }
}

#[test]
fn sizes_by_the_listing_alone() {
    for way in [Way::Ssh, Way::Daemon] {
        let far = Far::ready(way);
        for vm in ["whole", "cut", "gone", "odd"] {
            far.dump(vm);
        }
        fs::File::options().append(true).open(far.file("cut")).unwrap().set_len(1000).unwrap();
        fs::remove_file(far.file("gone")).unwrap();
        fs::remove_file(far.file("odd")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", far.file("odd")).unwrap();
        let before = far.counted();
        for quick in [&["--all", "--quick"][..], &["cut", "gone", "odd"]] {
            let ran = far.verify(quick).expect(1);
            for record in ran.records() {
                let why = record["verify"]["why"].as_str().unwrap();
                let says = match record["vm"].as_str().unwrap() {
                    "whole" => "only sizes were compared",
                    "cut" => "has 1000 bytes instead of 1000000",
                    "gone" => "is missing",
                    _ => "is not a regular file",
                };
                assert!(why.contains(says), "{record}");
            }
        }
        assert!(far.counted() - before < 20_000);
    }
}

#[test]
fn a_dump_without_sums_is_fetched_and_looked_at() {
    for way in [Way::Ssh, Way::Daemon] {
        let far = Far::ready(way);
        let packed = far.kit.sh("head -c 300000 /dev/urandom >x && zstd -q x && cat x.zst >packed").expect(0);
        assert_eq!(packed.err, "");
        let content = fs::read(far.kit.path("packed")).unwrap();
        let name = format!("db-{}.sql.zst", compact(DAY));
        put_dump(
            &far.far(),
            "db",
            DAY,
            10,
            json!({"bytes": content.len(), "files": [{"name": name, "bytes": content.len()}]}),
        );
        fs::remove_file(far.file("db")).unwrap();
        fs::write(far.far().join("db").join(&name), &content).unwrap();
        assert_eq!(verdict(&far.verify(&["db"]).clean()), ("good".into(), "checksums in the files, zstd -t".into()));
        let mut bad = content;
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(far.far().join("db").join(&name), bad).unwrap();
        assert_eq!(verdict(&far.verify(&["db"]).expect(1)).0, "bad");
        assert!(far.left().is_empty());
    }
}

#[test]
fn no_more_is_fetched_than_the_record_says() {
    for way in [Way::Rrsync, Way::Daemon] {
        let far = Far::ready(way);
        let bad = json!({"verify": {"decision": "bad", "why": "test", "at": "2026-11-20T05:00:00Z"}});
        put_dump(&far.far(), "web", DAY, 1000, bad);
        fs::write(far.file("web"), noise(1, 20 << 20)).unwrap();
        // The verdict from before hides nothing.
        let (decision, why) = verdict(&far.verify(&["web"]).expect(1));
        assert_eq!((decision.as_str(), why.contains("bytes instead of 1000")), ("bad", true), "{why}");
        assert!(far.counted() > 0 && far.counted() < 200_000, "{} bytes came", far.counted());
    }
}

#[test]
fn fetching_keeps_to_the_limits_and_goes_on() {
    let far = Far::ready(Way::Daemon);
    far.dump("a");
    far.dump("b");
    let (mut runs, mut both, mut good) = (0, 0, Vec::new());
    while good.len() < 2 {
        runs += 1;
        assert!(runs < 12, "it does not get on");
        let before = far.counted();
        let ran = far.verify(&["--all", "--mark", "--reverify-after", "1d", "--limit", "400K"]).clean();
        let carried = far.counted() - before;
        assert!(carried <= (400 << 10) + (64 << 10), "{carried}");
        for record in ran.records() {
            match record["verify"]["decision"].as_str() {
                Some("good") => good.push(record["vm"].clone()),
                _ => assert!(record["skipped"]["why"].as_str().unwrap().contains("limit"), "{record}"),
            }
        }
        // Whichever is cut says how many wait behind it, and these are told of, too.
        let whys: Vec<String> =
            ran.records().iter().filter_map(|record| Some(record["skipped"]["why"].as_str()?.into())).collect();
        if let [first, second] = &whys[..] {
            assert!(
                first.ends_with(
                    " are still to come; what has come is kept, and the next run goes on; 1 more to be looked at"
                ),
                "{first}"
            );
            assert_eq!(second, "too little is left of the limits: it is not fetched");
            both += 1;
        }
    }
    assert!(runs >= 5 && both > 0, "{runs} {both}");
    assert!(far.left().is_empty());
    // What the day's limit has no room for is not begun, which is no failure.
    let before = far.counted();
    let ran = far.verify(&["--all", "--limit", "1K/day"]);
    assert!(ran.err.contains("too little is left of 1 KiB a day") && ran.status == 0, "{}", ran.err);
    assert_eq!(far.counted(), before);
    // Only sums cross over ssh: the same limit is enough for much more.
    let ssh = Far::ready(Way::Ssh);
    ssh.dump("a");
    ssh.dump("b");
    assert_eq!(ssh.verify(&["--all", "--limit", "400K"]).clean().records().len(), 2);
}

#[test]
fn a_bad_copy_counts_for_nothing_until_it_is_sent_again() {
    for way in [Way::Ssh, Way::Rrsync, Way::Daemon] {
        let far = Far::ready(way);
        put_dump(&far.kit.store(), "web", DAY, SIZE, json!({}));
        far.run("bak-link", &["--now", "2026-11-20T06:00:00Z"]).clean();
        far.run("bak-sync", &[]).clean();
        far.is_sound(1);
        let at = |command: &str, args: &[&str]| far.run(command, &[args, &["--now", "2026-11-21T06:00:00Z"]].concat());
        assert_eq!(at("bak-link", &[]).clean().out, "", "it was sent");
        flip(&far.file("web"));
        far.verify(&["--all", "--mark", "--now", "2026-11-21T06:00:00Z"]).expect(1).says("is bad: ");
        let record = far.record("web");
        assert_eq!(
            (&record["verify"]["decision"], &record["verify"]["at"]),
            (&json!("bad"), &json!("2026-11-21T06:00:00Z"))
        );
        assert!(record.get("dir").is_none() && record["files"][0]["sha256"].is_string(), "{record}");
        // It is what it was, but for the verdict; nothing else came to lie there.
        let names = far.kit.sh("find far -type f | grep -v /.bak-store | wc -l").clean().out;
        assert_eq!(names.trim(), "2");
        let listed = far.run("bak-list", &["box"]).clean().records();
        assert!(listed[0]["fault"].as_str().unwrap().contains("bak-verify found it bad"), "{}", listed[0]);
        assert!(listed[0]["sent"].is_null(), "{}", listed[0]);
        // Nothing is lost: the last good dump over there is none.
        at("bak-restore", &["web", "--from", "box", "--to", "x.raw"]).expect(1).says("found it bad");
        // Not sent, so it goes again; but nothing over there is overwritten.
        assert_eq!(at("bak-link", &[]).clean().records().len(), 1);
        let ran = at("bak-sync", &[]).expect(1);
        assert!(
            ran.err.contains("its copy over there is no good") && ran.err.contains("bak-prune --dest box web@"),
            "{}",
            ran.err
        );
        assert!(!fs::read_dir(far.outbox().join("web")).unwrap().collect::<Vec<_>>().is_empty(), "it stays pending");
        at("bak-prune", &["--dest", "box", "web@20261120T010000Z"]).clean();
        at("bak-sync", &[]).clean();
        far.is_sound(1);
        assert_eq!(verdict(&far.verify(&["--all", "--mark"]).clean()).0, "good");
        assert_eq!(far.record("web")["verify"]["decision"], "good");
        assert_eq!(at("bak-link", &[]).clean().out, "", "it was sent again");
    }
}

#[test]
fn what_was_marked_lately_is_left_out() {
    let far = Far::ready(Way::Ssh);
    far.dump("a");
    far.verify(&["--all", "--mark", "--now", "2026-11-21T06:00:00Z"]).clean();
    let again = ["--all", "--mark", "--reverify-after", "7d", "--now"];
    assert_eq!(far.verify(&[&again[..], &["2026-11-22T06:00:00Z"]].concat()).clean().out, "");
    assert_eq!(far.verify(&[&again[..], &["2026-11-28T06:00:00Z"]].concat()).clean().records().len(), 1);
}

#[test]
fn where_nothing_may_be_written_a_bad_copy_still_does_not_count_as_sent() {
    let far = Far::ready(Way::Daemon);
    put_dump(&far.kit.store(), "web", DAY, SIZE, json!({}));
    far.run("bak-link", &["--now", "2026-11-20T06:00:00Z"]).clean();
    far.run("bak-sync", &[]).clean();
    flip(&far.file("web"));
    far.rsyncd.as_ref().unwrap().reconfigure("read only = no", "read only = yes");
    let ran = far.verify(&["--all", "--mark"]).expect(1);
    assert!(ran.err.contains("cannot write verdicts over there: ") && ran.err.contains("read only"), "{}", ran.err);
    assert!(far.record("web").get("verify").is_none());
    assert_eq!(far.run("bak-link", &["--now", "2026-11-21T06:00:00Z"]).clean().records().len(), 1);
}

#[test]
fn marking_waits_for_who_works_over_there() {
    let far = Far::ready(Way::Ssh);
    far.dump("a");
    let held = fs::File::options().read(true).append(true).create(true).open(far.outbox().join(".bak/pass")).unwrap();
    held.lock().unwrap();
    let ran = far.verify(&["--all", "--mark", "--wait", "0s"]);
    assert!(ran.status == 3 && ran.err.contains("is locked by"), "{} {}", ran.status, ran.err);
    assert!(far.record("a").get("verify").is_none());
    drop(held);
    far.verify(&["--all", "--mark"]).clean();
    assert_eq!(far.record("a")["verify"]["decision"], "good");
}

#[test]
fn another_far_side_and_wrong_words() {
    let far = Far::ready(Way::Ssh);
    far.dump("a");
    far.verify(&["nobody"]).expect(1).says("no dump matches it");
    far.verify(&[]).expect(2).says("say which");
    assert_eq!(far.verify(&["--all", "-n"]).clean().records()[0]["planned"], true);
    fs::write(far.far().join(".bak-store"), "{\"v\":1,\"id\":\"another\"}").unwrap();
    far.verify(&["--all"]).expect(4).says("this is another far side");
}

/// What ssh runs over there ends with us, however we end.
#[test]
fn sums_that_are_made_over_there_end_with_us() {
    let far = Far::ready(Way::Ssh);
    // Eight terabytes of nothing take hours. The name is in the words of all that runs over there.
    let vm = format!("long{}", std::process::id());
    let file = far.dump(&vm);
    fs::File::options().append(true).open(&file).unwrap().set_len(1 << 43).unwrap();
    let mut record = far.record(&vm);
    record["bytes"] = (1_u64 << 43).into();
    record["files"][0]["bytes"] = (1_u64 << 43).into();
    fs::write(far.sidecar(&vm), record.to_string()).unwrap();
    let below = format!("./{vm}/");
    let sums = || about(Path::new(&below)).into_iter().filter(|pid| words(*pid)[0] == "sha256sum").count();
    for signal in ["-TERM", "-KILL"] {
        let mut command = far.command("bak-verify", &["--from", "box", "--all"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("sha256sum to run over there", || sums() > 0);
        let killed = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(child.wait().unwrap().signal().is_some());
        wait_for("all that ran over there to end", || about(Path::new(&below)).is_empty());
    }
}
