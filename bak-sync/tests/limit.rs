//! The limit on the wire, over a real sshd and on a mounted path.

mod common;

use bak_tests::{Ran, check_store, noise};
use common::{Place, linked, put_content};
use serde_json::json;
use std::fs;

const DAY1: &str = "2026-11-18T01:00:00Z";
const DAY2: &str = "2026-11-19T01:00:00Z";
const BEYOND: u64 = 64 << 10;

/// Runs passes with `limit` until nothing waits; what each has cost, and the last.
fn passes(place: &Place, limit: u64, most: usize) -> (Vec<u64>, Ran) {
    let mut costs = Vec::new();
    loop {
        let before = place.counted();
        let ran = place.sync(["--limit", &limit.to_string()]).clean();
        costs.push(place.counted() - before);
        assert!(*costs.last().unwrap() <= limit + BEYOND, "{costs:?} of {limit}");
        if check_store(&place.outbox()).whole.is_empty() {
            return (costs, ran);
        }
        assert!(ran.records()[0]["skipped"]["why"].as_str().unwrap().contains("limit"), "{}", ran.out);
        assert!(costs.len() < most, "{costs:?}: it does not end");
    }
}

#[test]
fn a_dump_larger_than_a_pass_crosses_in_slices_that_cost_little_more_than_one_go() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let web = place.wait_with("web", DAY1, &noise(1, 2_000_000), json!({}));
        let (costs, last) = passes(&place, 250_000, 12);
        assert!((8..=10).contains(&costs.len()), "{costs:?}");
        assert!(costs.iter().sum::<u64>() < 2_200_000, "{costs:?}");
        let sent = &last.records()[0]["sent"]["box"];
        assert_eq!(sent["passes"].as_u64().unwrap(), costs.len() as u64);
        let seen = check_store(&place.far());
        assert_eq!((seen.whole, seen.strange.len()), (vec![web], 0));
        assert!(!place.far().join("web/.part").exists());
    }
}

#[test]
fn a_delta_in_slices_costs_little_more_than_one_in_one_go() {
    // One write of 4 KiB in every 100, in an image of 8 MB: 80 of them, and 330 KB.
    let mut content = noise(1, 8 << 20);
    let changed = |content: &mut Vec<u8>| {
        for (i, at) in (0..content.len()).step_by(100 << 10).enumerate() {
            content[at..at + 4096].copy_from_slice(&noise(100 + i as u64, 4096));
        }
    };
    let mut one_go = 0;
    for limit in [0, 300_000, 150_000] {
        let place = Place::new(true);
        place.wait_with("web", DAY1, &content, json!({}));
        place.sync([]).clean();
        let before = place.counted();
        let mut new = content.clone();
        changed(&mut new);
        place.wait_with("web", DAY2, &new, json!({}));
        if limit == 0 {
            place.sync([]).clean();
            one_go = place.counted() - before;
        } else {
            let (costs, last) = passes(&place, limit, 10);
            let sum: u64 = costs.iter().sum();
            let sums = 20_000 * costs.len() as u64;
            assert!(costs.len() > 1 && sum < one_go * 11 / 10 + sums, "{costs:?} against {one_go}");
            assert!(last.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < one_go * 11 / 10);
        }
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len()), (2, 0));
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(place.far().join("web/web-20261118T010000Z.raw")).unwrap().nlink(), 1);
    }
    content.clear();
}

#[test]
fn a_limit_of_a_day_holds_over_passes_and_the_next_day_goes_on() {
    let place = Place::new(true);
    let web = place.wait_with("web", DAY1, &noise(1, 500_000), json!({}));
    let at = |now: &str| place.sync(["--limit", "300K/day", "--limit", "1G/month", "--now", now]).clean();
    let first = at("2026-11-20T09:00:00Z");
    assert!(first.records()[0]["skipped"]["why"].as_str().unwrap().contains("300 KiB a day"), "{}", first.out);
    let used = place.counted();
    assert!((200_000..300 * 1024 + BEYOND).contains(&used), "{used}");
    // Nothing is left: it does not even look, and that is no failure.
    let second = at("2026-11-20T23:59:59Z");
    assert_eq!((second.column("id"), place.counted()), (vec![web.clone()], used));
    assert!(second.records()[0]["skipped"]["why"].as_str().unwrap().contains("too little is left"), "{}", second.out);
    assert_eq!(at("2026-11-21T00:00:00Z").column("id"), [web.as_str()]);
    assert_eq!(check_store(&place.far()).whole, [web]);
    let passes: Vec<_> = place.ledger().into_iter().filter(|line| line["type"] == "pass").collect();
    assert_eq!(passes.len(), 2, "one that may do nothing is none");
    assert_eq!((&passes[0]["limited"], passes[1].get("limited")), (&json!(true), None));
}

#[test]
fn the_others_go_first_and_one_larger_than_a_pass_gets_half_of_it() {
    let place = Place::new(true);
    let big = place.wait_with("big", DAY1, &noise(1, 900_000), json!({"rank": 1, "cost": 900_000}));
    let names: Vec<String> =
        (2..6).map(|i| place.wait_there(&format!("g{i}"), DAY1, 80_000, json!({"rank": i, "cost": 80_000}))).collect();
    let limit = ["--limit", "400K"];
    let plan = place.sync([limit[0], limit[1], "-n"]).clean();
    assert_eq!(plan.column("id"), [&names[..], std::slice::from_ref(&big)].concat());
    let why = |at: usize| plan.records()[at]["skipped"]["why"].as_str().unwrap_or_default().to_owned();
    assert_eq!((why(0), why(1)), (String::new(), String::new()));
    assert_eq!(why(2), "cut after 43.8 KiB of about 78.1 KiB: it goes on in the next pass");
    assert_eq!(why(3), "too little is left of 400 KiB a pass: it stays pending");
    assert_eq!(why(4), "cut after 200 KiB of about 878.9 KiB: it goes on in the next pass");
    let first = place.sync(limit).clean();
    let whole = check_store(&place.far()).whole;
    assert_eq!(whole, names[..2], "half of it is kept: {}", first.out);
    let sent: u64 = place
        .ledger()
        .iter()
        .filter(|line| line["dump"] == big.as_str())
        .map(|line| line["wire_out"].as_u64().unwrap())
        .max()
        .unwrap();
    assert!((190_000..260_000).contains(&sent), "{sent}");
    for _ in 0..5 {
        place.sync(limit).clean();
    }
    assert_eq!(check_store(&place.far()).whole.len(), 5);
}

#[test]
fn with_an_overdraft_the_first_finishes_and_a_limit_of_a_day_holds_all_the_same() {
    let place = Place::new(true);
    let far = place.sshd.as_ref().unwrap().url(&place.far());
    let ssh: Vec<String> = place.sshd.as_ref().unwrap().command().split(' ').map(str::to_owned).collect();
    let config = format!(
        "[[dest]]\nname = \"box\"\nurl = \"{far}\"\noutbox = \"outbox\"\nlimit = [\"100K\", \"1M/day\"]\noverdraft = true\nssh = {ssh:?}\n"
    );
    place.kit.write("bak.toml", config);
    let run = |now: &str| place.kit.run("bak-sync", ["--config", "bak.toml", "--now", now]).clean();
    let big = place.wait_with("big", DAY1, &noise(1, 600_000), json!({"rank": 1}));
    let next = place.wait_with("next", DAY1, &noise(2, 600_000), json!({"rank": 2}));
    let first = run("2026-11-20T09:00:00Z");
    assert_eq!(first.column("id"), [big.as_str(), next.as_str()]);
    assert!(first.records()[0]["sent"].is_object() && first.records()[1]["skipped"].is_object(), "{}", first.out);
    // 400 KiB are left of the day.
    run("2026-11-20T10:00:00Z");
    assert!(place.counted() < (1 << 20) + BEYOND, "{}", place.counted());
    assert_eq!(check_store(&place.far()).whole, [big.as_str()]);
    run("2026-11-21T10:00:00Z");
    assert_eq!(check_store(&place.far()).whole, [big, next]);
}

#[test]
fn what_lies_in_a_partial_file_by_chance_or_is_damaged_there_is_mended() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let web = place.wait_with("web", DAY1, &noise(1, 1_000_000), json!({}));
        place.sync(["--limit", "600K"]).clean();
        // What has arrived rots before the rest of it comes.
        let part = place.far().join("web/.part/web-20261118T010000Z.raw");
        let mut content = fs::read(&part).unwrap();
        assert!(content.len() > 300_000, "{}", content.len());
        content[100_000] ^= 0xff;
        fs::write(&part, content).unwrap();
        let ran = place.sync([]);
        if ran.status != 0 {
            ran.expect(1).says("reads differently");
            place.sync([]).clean();
        }
        assert_eq!(check_store(&place.far()).whole, [web]);
    }
}

#[test]
fn a_limit_that_nothing_fits_into_is_said_and_no_failure() {
    let place = Place::new(true);
    for limit in ["0", "1K", "10K"] {
        let web = place.wait_there("web", DAY1, 200_000, json!({}));
        let ran = place.sync(["--limit", limit]).clean();
        assert_eq!(ran.column("id"), [web]);
        assert!(ran.records()[0]["skipped"]["why"].as_str().unwrap().contains("too little is left"), "{}", ran.out);
        assert!(place.counted() < BEYOND);
    }
    place.sync(["--limit", "none", "--limit", "5G"]).expect(2).says("none goes with no other");
    place.sync(["--limit", "much"]).expect(2);
    place.sync(["--limit", "none"]).clean();
}

#[test]
fn content_that_shifts_stays_a_delta_in_slices_where_the_previous_dump_is_still_here() {
    let old = noise(1, 3_000_000);
    let mut new = Vec::new();
    for (i, piece) in old.chunks(50_000).enumerate() {
        new.extend_from_slice(&noise(i as u64 + 9, 4_000));
        new.extend_from_slice(piece);
    }
    let mut outs = Vec::new();
    for (limit, stored) in [("none", true), ("250K", true), ("1500K", false)] {
        // Where commands may be run the delta is made here.
        let place = Place::rrsync("");
        place.sync(["--init"]).clean();
        put_content(&place.outbox(), "web", DAY1, "vma", &old, linked(json!({})));
        put_content(&place.kit.store(), "web", DAY1, "vma", &old, json!({}));
        fs::create_dir(place.kit.path("elsewhere")).unwrap();
        place.sync([]).clean();
        put_content(&place.outbox(), "web", DAY2, "vma", &new, linked(json!({})));
        let mut records = Vec::new();
        while !check_store(&place.outbox()).whole.is_empty() {
            let store = if stored { "store" } else { "elsewhere" };
            records = place.sync(["--limit", limit, "--store", store]).clean().records();
        }
        let sent = &records[0]["sent"]["box"];
        assert!(limit == "none" || sent["passes"].as_u64().unwrap() > 1, "{sent}");
        outs.push(sent["wire_out"].as_u64().unwrap());
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len()), (2, 0));
        assert_eq!(
            place.kit.sh("find far/*/.part far/.basis-*/* outbox/.bak/scratch -type f 2>/dev/null; true").out,
            ""
        );
    }
    assert!(outs[1] < outs[0] * 11 / 10, "{outs:?}: with a gap");
    assert!(outs[2] > outs[0] * 2, "{outs:?}: without one what is still needed is overrun");
}

/// What comes in several attempts is read back: here it rots after its last byte has arrived.
#[test]
fn a_sliced_dump_that_reads_differently_in_the_end_is_no_dump_and_is_mended() {
    let place = Place::new(true);
    let web = place.wait_with("web", DAY1, &noise(1, 600_000), json!({}));
    place.sync(["--limit", "300K"]).clean();
    let here = place.kit.path("").display().to_string();
    let rsync = place.kit.sh("command -v rsync").clean().out;
    let rot =
        format!("printf x | dd of='{here}/far/web/web-20261118T010000Z.raw' bs=1 seek=70000 conv=notrunc 2>/dev/null");
    let script = format!("#!/bin/sh\ncase \"$*\" in *--checksum*) {rot} ;; esac\nexec {} \"$@\"\n", rsync.trim());
    let stand_in = place.kit.write("stand-in/rsync", script);
    place.kit.sh(&format!("chmod 755 '{}'", stand_in.display())).clean();
    let sshd = place.sshd.as_ref().unwrap();
    let mut command = place.kit.command(bak_tests::bin("bak-sync"));
    let path = command.get_envs().find(|(key, _)| *key == "PATH").and_then(|(_, value)| value).unwrap().to_owned();
    command.env("PATH", format!("{here}/stand-in:{}", path.display()));
    command.args([
        "--outbox",
        "outbox",
        "--dest",
        &format!("box={}", sshd.url(&place.far())),
        "--ssh",
        &sshd.command(),
    ]);
    bak_tests::finish(command, "").expect(1).says("reads differently over there");
    assert!(check_store(&place.far()).whole.is_empty() && check_store(&place.far()).broken.is_empty());
    let ran = place.sync([]).clean();
    assert!(ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < 700_000, "{}", ran.out);
    assert_eq!(check_store(&place.far()).whole, [web]);
}
