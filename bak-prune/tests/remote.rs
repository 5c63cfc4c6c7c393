//! bak-prune on copies that only rsync reaches.

mod common;

use bak_tests::{check_store, put_dump};
use common::{Box, NOW, RULES, Way, copy, files, fill, records};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const WAYS: [Way; 4] = [Way::Ssh, Way::Rrsync(""), Way::Daemon(""), Way::Below];

#[test]
fn a_copy_is_pruned_as_the_same_store_here_would_be() {
    for way in WAYS {
        let there = Box::new(way);
        fill(&there.kit.store());
        copy(&there.kit.store(), &there.far());
        // Where a daemon could mistake them for what is meant: the same names above.
        copy(&there.kit.store().join("web"), &there.kit.path("web"));
        let above = files(&there.kit.path("web"));
        let all = [&RULES[..], &["--explain"]].concat();
        let here = there.prune(&[&["store"][..], &all, &["-n"]].concat());
        let before = files(&there.far());
        let plan = there.there(&[&all[..], &["-n"]].concat());
        assert_eq!(records(&plan), records(&here), "{way:?}");
        assert_eq!((plan.status, &plan.err), (here.status, &here.err));
        assert_eq!(files(&there.far()), before, "a plan changes nothing");
        assert!(!there.kit.path("cache").exists(), "and leaves nothing behind");
        let here = there.prune(&[&["store"][..], &all].concat());
        let ran = there.there(&all);
        assert_eq!(records(&ran), records(&here), "{way:?}");
        assert_eq!(files(&there.far()), files(&there.kit.store()), "{way:?}");
        assert!(files(&there.far()).len() < before.len() - 30);
        assert_eq!(files(&there.kit.path("web")), above);
        // Once more: nothing is left to do, and nothing is fetched that was fetched before.
        assert_eq!(there.there(&RULES).out, "");
        let empty = fs::read_dir(there.kit.path("cache/bak/the-box")).unwrap();
        let mut names: Vec<String> = empty.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["lock", "sidecars"]);
    }
}

#[test]
fn orders_hold_over_there_too() {
    let there = Box::new(Way::Ssh);
    let web: Vec<String> = (1..=5).map(|day| there.dump("web", day)).collect();
    let db = there.dump("db", 1);
    let whole = || check_store(&there.far()).whole;
    there.there(&[&web[4]]).expect(4).says("it is the last good dump of its guest");
    there.there(&[&web[0], "web@20260101T000000Z"]).expect(1).says("there is no such dump in 127.0.0.1:");
    assert_eq!(whole(), [&[db.clone()][..], &web[1..]].concat());
    there.there(&["--keep-last", "1", "--max-remove", "2"]).expect(4).says("3 of 5 dumps would go");
    assert_eq!(whole().len(), 5);
    there.there(&["--purge", "db"]).expect(4).says("add --yes-purge db");
    assert_eq!(there.there(&["--purge", "db", "--yes-purge", "db"]).clean().column("id"), [db]);
    let gone = "{\"v\":1,\"type\":\"guest\",\"vm\":\"web\",\"kind\":\"qemu\"}\n";
    let mut aged = there.command(&[&there.url(), "--expire-gone", "-", "--keep-last", "1"]);
    aged.env("BAK_ALLOW_NOW", "1");
    assert_eq!(bak_tests::finish(aged, gone).clean().column("id"), web[1..]);
    assert_eq!((whole().len(), files(&there.far()).len()), (0, 0));
}

#[test]
fn only_the_right_far_side_is_pruned() {
    for way in WAYS {
        let there = Box::new(way);
        (1..=5).for_each(|day| _ = there.dump("web", day));
        let before = files(&there.far());
        let url = there.url();
        let dest = format!("box={url}");
        let known = ["--dest", &dest, "--outbox", "outbox", "--keep-last", "1"];
        there.kit.write("outbox/.bak/dest", "{\"v\":1,\"id\":\"another-box\"}\n");
        let ran = there.prune(&known).expect(4).says("this is another far side: it says the-box");
        assert!(ran.err.contains("nothing was removed"), "{}", ran.err);
        there.prune(&[&known[..], &["-n"]].concat()).expect(4);
        fs::remove_file(there.far().join(".bak-store")).unwrap();
        there.prune(&known).expect(4).says("the far side has no .bak-store: is it not mounted");
        there.there(&["--keep-last", "1"]).expect(4).says("bak-sync --init gives it one");
        fs::write(there.far().join(".bak-store"), "{\"v\":1,\"id\":\"../../x\"}").unwrap();
        there.there(&["--keep-last", "1"]).expect(4).says("not one that --init wrote");
        assert_eq!(files(&there.far()), before);
    }
}

/// A mounted copy is looked at as closely.
#[test]
fn only_the_right_disk_is_pruned() {
    let there = Box::new(Way::Daemon(""));
    (1..=5).for_each(|day| _ = there.dump("web", day));
    let dest = format!("box={}", there.far().display());
    let args = ["--dest", &dest, "--outbox", "outbox", "--keep-last", "1"];
    there.kit.write("outbox/.bak/dest", "{\"v\":1,\"id\":\"another-box\"}\n");
    there.prune(&args).expect(4).says("this is another far side");
    there.kit.write("outbox/.bak/dest", "{\"v\":1,\"id\":\"the-box\"}\n");
    assert_eq!(there.prune(&args).clean().column("id").len(), 4);
}

#[test]
fn where_nothing_may_be_removed_that_is_said() {
    for (way, why) in [
        (Way::Rrsync("-no-del"), "over there nothing may be removed"),
        (Way::Rrsync("-ro"), "over there nothing may be removed"),
        (Way::Daemon("refuse options = delete"), "over there nothing may be removed"),
        (Way::Daemon("read only = yes"), "read-only"),
    ] {
        let there = Box::new(way);
        (1..=5).for_each(|day| _ = there.dump("web", day));
        let before = files(&there.far());
        assert_eq!(there.there(&["--keep-last", "1", "-n"]).clean().out.lines().count(), 4, "looking is allowed");
        let ran = there.there(&["--keep-last", "1"]).expect(1).says(why);
        assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 2), "{}", ran.err);
        assert_eq!(files(&there.far()), before);
    }
}

#[test]
fn a_listing_that_is_not_whole_prunes_nothing_and_stops_no_other_store() {
    let root = fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0);
    let there = Box::new(Way::Daemon(if root { "uid = nobody\ngid = nogroup" } else { "" }));
    (1..=5).for_each(|day| _ = there.dump("web", day));
    put_dump(&there.kit.store(), "web", "2026-11-01T01:00:00Z", 5, json!({}));
    put_dump(&there.kit.store(), "web", "2026-11-02T01:00:00Z", 5, json!({}));
    let own = if root { "chown -R nobody far && " } else { "" };
    let dir = there.kit.path("");
    there.kit.sh(&format!("chmod a+x {} && chmod -R a+rX far && {own} mkdir -m 0 far/closed", dir.display())).clean();
    let before = files(&there.far().join("web"));
    let url = there.url();
    let ran = there.prune(&[&url, "store", "--keep-last", "1"]).expect(1).says("Permission denied");
    assert!(ran.err.contains("nothing was removed"), "{}", ran.err);
    assert_eq!(ran.column("id"), ["web@20261101T010000Z"], "only here");
    assert_eq!(files(&there.far().join("web")), before);
    there.kit.sh("rmdir far/closed").clean();
    assert_eq!(there.there(&["--keep-last", "1"]).clean().column("id").len(), 4);
}

#[test]
fn a_sidecar_that_cannot_be_read_blocks_its_guest_and_what_is_cached_is_not_believed() {
    let there = Box::new(Way::Ssh);
    for vm in ["web", "db"] {
        (1..=3).for_each(|day| _ = there.dump(vm, day));
    }
    let url = there.url();
    assert_eq!(there.there(&["--keep-last", "3"]).clean().out, "");
    // All sidecars are cached now. One changes over there, one is protected, one cannot be read any more.
    let sidecar = |vm: &str, day: u32| there.far().join(format!("{vm}/{vm}-2026110{day}T010000Z.dump.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(sidecar("web", 1)).unwrap()).unwrap();
    record["protected"] = true.into();
    fs::write(sidecar("web", 1), record.to_string()).unwrap();
    fs::write(sidecar("db", 1), "{").unwrap();
    // A cached one that was spoilt is fetched again.
    let cached = there.kit.path("cache/bak/the-box/sidecars/web/web-20261102T010000Z.dump.json");
    let (text, time) = (fs::read(&cached).unwrap(), fs::metadata(&cached).unwrap().modified().unwrap());
    fs::write(&cached, vec![0; text.len()]).unwrap();
    fs::File::options().append(true).open(&cached).unwrap().set_modified(time).unwrap();
    let ran = there.there(&["--keep-last", "1"]).expect(1).says(&format!("{url}/db/db-20261101T010000Z.dump.json"));
    assert_eq!(ran.column("id"), ["web@20261102T010000Z"]);
    assert_eq!(check_store(&there.far()).whole.len(), 4);
}

#[test]
fn what_crosses_is_counted_and_keeps_to_the_limit() {
    let there = Box::new(Way::Ssh);
    (1..=5).for_each(|day| _ = there.dump("web", day));
    fs::create_dir(there.far().join("junk")).unwrap();
    for at in 0..5000 {
        fs::write(there.far().join(format!("junk/{at:0100}")), "").unwrap();
    }
    there.kit.write("outbox/.bak/dest", "{\"v\":1,\"id\":\"the-box\"}\n");
    let dest = format!("box={}", there.url());
    let known = ["--dest", &dest, "--outbox", "outbox", "--keep-last", "1"];
    let counted = || {
        let ledger = there.kit.sh("cat outbox/.bak/ledger/*.jsonl | jq -s 'map(.wire_out + .wire_in) | add'");
        ledger.clean().out.trim().parse::<u64>().unwrap()
    };
    let ran = there.prune(&[&known[..], &["--limit", "16K"]].concat()).expect(1).says("the limit is reached");
    assert!(ran.err.contains("nothing was removed"), "{}", ran.err);
    assert_eq!(check_store(&there.far()).whole.len(), 5);
    let first = counted();
    assert!((16 << 10..80 << 10).contains(&first), "{first}");
    there.prune(&[&known[..], &["--limit", "16K/day"]].concat()).expect(1).says("too little is left of 16 KiB a day");
    assert_eq!(counted(), first, "nothing crossed");
    there.prune(&[&known[..], &["-n", "--limit", "none"]].concat()).clean();
    assert!(counted() > first, "a look counts, too");
    assert_eq!(there.prune(&known).clean().column("id").len(), 4);
    assert!(there.kit.sh("grep -c '\"dest\":\"box\"' outbox/.bak/ledger/*.jsonl").clean().out.trim() == "4");
}

/// A destination with a store and an outbox, whose dumps bak-link and bak-sync have carried there.
struct Shipped {
    there: Box,
    config: String,
}

impl Shipped {
    fn new() -> Self {
        let there = Box::new(Way::Ssh);
        let sshd = there.sshd.as_ref().unwrap();
        let words: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
        let config = format!(
            "store = {:?}\n[[dest]]\nname = \"box\"\nurl = {:?}\nssh = [{}]\nkeep = {{ last = 2 }}\n",
            there.kit.store().display().to_string(),
            there.url(),
            words.join(", ")
        );
        let config = there.kit.write("bak.toml", config).display().to_string();
        let shipped = Self { there, config };
        shipped.at(NOW, "bak-sync --init").clean();
        for day in 1..=4 {
            put_dump(&shipped.there.kit.store(), "web", &format!("2026-11-0{day}T01:00:00Z"), 2000, json!({}));
            shipped.at(&format!("2026-11-0{day}T02:00:00Z"), "bak-link -q").clean();
            shipped.at(&format!("2026-11-0{day}T02:00:00Z"), "bak-sync -q").clean();
        }
        shipped
    }

    fn at(&self, now: &str, line: &str) -> bak_tests::Ran {
        self.there.kit.sh(&format!("{line} --config {} --now {now} --tz UTC", self.config))
    }
}

#[test]
fn what_was_pruned_over_there_still_counts_as_sent_but_not_as_being_there() {
    let shipped = Shipped::new();
    let there = &shipped.there;
    let ids = |days: [u32; 2]| days.map(|day| format!("web@2026110{day}T010000Z"));
    let ran = shipped.at(NOW, "bak-prune --dest box").clean();
    assert_eq!(ran.column("id"), ids([1, 2]), "by the destination's own rules");
    assert_eq!(check_store(&there.far()).whole, ids([3, 4]));
    assert_eq!(shipped.at(NOW, &format!("bak-prune {}", there.url())).clean().out, "", "the same place by its URL");
    // It is not missed, and not sent again.
    assert_eq!(shipped.at(NOW, "bak-sync --reconcile").clean().out, "");
    assert_eq!(shipped.at(NOW, "bak-link").clean().out, "");
    let by_name = format!("bak-prune --dest box {}", ids([4, 4])[0]);
    shipped.at(NOW, &by_name).expect(4).says("last good dump");
    // Even where the newest was removed, by hand, as it was.
    put_dump(&there.far(), "web", "2026-11-04T02:00:00Z", 10, json!({}));
    assert_eq!(shipped.at(NOW, &by_name).clean().out.lines().count(), 1);
    assert_eq!(shipped.at(NOW, "bak-link").clean().out, "");
    // But it is not off-site any more, so it is no reason to let go what is here.
    let local = shipped.at(NOW, "bak-prune store --keep-last 1 --only-sent box --unsent-grace 60d -n").clean();
    assert_eq!(local.column("id"), ["web@20261103T010000Z"]);
    // What is lost over there is missed as before; what is there again counts again.
    fs::remove_dir_all(there.far().join("web")).unwrap();
    put_dump(&there.far(), "web", "2026-11-01T01:00:00Z", 2000, json!({}));
    let ran = shipped.at(NOW, "bak-sync --reconcile").clean();
    let decisions: Vec<(String, String)> = ran
        .records()
        .iter()
        .map(|r| (r["id"].as_str().unwrap().into(), r["reconcile"]["box"]["decision"].as_str().unwrap().into()))
        .collect();
    let pair = |id: &str, what: &str| (id.to_owned(), what.to_owned());
    assert_eq!(decisions, [pair("web@20261101T010000Z", "adopted"), pair("web@20261103T010000Z", "gone")]);
}

#[test]
fn the_basis_of_a_pending_delta_stays_and_a_pass_keeps_bak_prune_away() {
    let shipped = Shipped::new();
    put_dump(&shipped.there.kit.store(), "web", "2026-11-05T01:00:00Z", 2000, json!({}));
    shipped.at("2026-11-05T02:00:00Z", "bak-link -q").clean();
    let newest = "web@20261104T010000Z";
    put_dump(&shipped.there.far(), "web", "2026-11-06T01:00:00Z", 10, json!({}));
    shipped.at(NOW, &format!("bak-prune --dest box {newest}")).expect(4).says("which waits to be sent, needs it there");
    let ran = shipped.at(NOW, "bak-prune --dest box --keep-last 1 --explain -n").clean();
    let spared = ran.records().into_iter().find(|record| record["id"] == newest).unwrap();
    assert_eq!(spared["prune"]["decision"], "spared", "{spared}");
    // While a pass runs.
    let lock = "flock store/.outbox-box/.bak/pass";
    let line = format!("{lock} bak-prune --dest box --wait 0s --keep-last 1 --config {}", shipped.config);
    shipped.there.kit.sh(&line).expect(3).says("locked");
    shipped.there.kit.sh(&format!("{line} -n")).clean();
    assert_eq!(check_store(&shipped.there.far()).whole.len(), 5);
}

#[test]
fn what_changed_since_it_was_listed_is_neither_fetched_nor_removed() {
    // rsync over there is replaced by one that changes a file between the listing and the removal.
    let there = Box::new(Way::Ssh);
    (1..=3).for_each(|day| _ = there.dump("web", day));
    let sidecar = there.far().join("web/web-20261101T010000Z.dump.json");
    let script = format!(
        "#!/bin/sh\ncase \"$SSH_ORIGINAL_COMMAND\" in *remove-source-files*) echo >>{}; esac\nexec $SSH_ORIGINAL_COMMAND\n",
        sidecar.display()
    );
    let path = there.kit.write("changing", script);
    there.kit.sh("chmod +x changing").clean();
    let url = there.url();
    there.sshd.as_ref().unwrap().force(&path.display().to_string());
    let ran = there.prune(&[&url, "--keep-last", "1"]).expect(1).says("web@20261101T010000Z: cannot remove the dump: ");
    assert_eq!(ran.column("id"), ["web@20261102T010000Z"]);
    assert_eq!(check_store(&there.far()).whole, ["web@20261101T010000Z", "web@20261103T010000Z"]);
    assert!(!Path::new(&there.kit.path("cache/bak/the-box/drop.json")).exists(), "nothing is left to finish");
}

/// Beside the outbox, where the sidecars come to lie that are fetched.
#[test]
fn a_disk_that_is_full_here_is_not_blamed_on_the_far_side() {
    let there = Box::new(Way::Ssh);
    (1..=5).for_each(|day| _ = there.dump("web", day));
    let before = files(&there.far());
    let url = there.url();
    fs::create_dir(there.kit.path("outbox")).unwrap();
    let sshd = there.sshd.as_ref().unwrap().command();
    // So much is left when the pass begins; each sidecar has some hundred bytes.
    for (left, status) in [(0, 1), (12, 1), (200, 0)] {
        let line = format!(
            "mount -t tmpfs -o size=400k none outbox && mountpoint -q outbox || exit 99; mkdir -p outbox/.bak/ledger outbox/.bak/scratch
             echo '{{\"v\":1,\"id\":\"the-box\"}}' >outbox/.bak/dest; : >outbox/.bak/pass; : >outbox/.bak/lock
             dd if=/dev/zero of=outbox/filler bs=1k 2>/dev/null; truncate -s -{left}K outbox/filler
             bak-prune --dest 'box={url}' --outbox outbox --keep-last 1 --tz UTC --now {NOW} --ssh '{sshd}'"
        );
        let mut command = there.kit.command("unshare");
        let ran = bak_tests::finish(
            {
                command.args(["-m", "sh", "-c", &line]);
                command
            },
            "",
        );
        assert_eq!(ran.status, status, "{left}: {}", ran.err);
        if status != 0 {
            assert!(!ran.err.contains("over there is full"), "{left}: {}", ran.err);
            assert!(ran.err.contains("No space left") || ran.err.contains("here is full"), "{left}: {}", ran.err);
            assert_eq!(files(&there.far()), before, "{left}");
        }
    }
}
