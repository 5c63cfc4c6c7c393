//! Small dumps that share their runs, over a real sshd and on a mounted path.

mod common;

use bak_tests::{Ran, bin, check_store, finish, noise};
use common::{DAY1, DAY2, Place};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// `count` dumps of 20 to 80 KB that wait; their ids, in their order.
fn wait(place: &Place, count: usize) -> Vec<String> {
    let one =
        |at: usize| place.wait_there(&format!("g{at:03}"), DAY1, 20_000 + at * 7919 % 60_000, json!({"rank": at}));
    (0..count).map(one).collect()
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// Runs bak-sync with an rsync of ours before the real one on PATH: notes each run's options in `runs`, then does `script`
/// with them.
fn with_stand_in(place: &Place, script: &str) -> Ran {
    let here = place.kit.path("").display().to_string();
    let rsync = place.kit.sh("command -v rsync").clean().out;
    let text = format!("#!/bin/sh\ncd '{here}'\necho \"$*\" >>runs\n{script}\nexec {} \"$@\"\n", rsync.trim());
    let stand_in = place.kit.write("stand-in/rsync", text);
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    let (program, args) = place.command([]);
    let mut command = place.kit.command(program);
    command.env(
        "PATH",
        format!("{here}/stand-in:{}:{}", bin("bak-sync").parent().unwrap().display(), std::env::var("PATH").unwrap()),
    );
    command.args(args);
    finish(command, "")
}

/// The last line of each attempt, by dump.
fn attempts(place: &Place) -> BTreeMap<String, Value> {
    let lines = place.ledger().into_iter().filter(|line| line["type"] == "attempt" && line.get("dump").is_some());
    lines.map(|line| (line["dump"].as_str().unwrap().to_owned(), line)).collect()
}

#[test]
fn many_small_dumps_share_a_few_runs_and_each_is_charged_what_it_took() {
    for ssh in [true, false] {
        let place = Place::new(ssh);
        let ids = wait(&place, 60);
        // One that is large goes alone, in its turn.
        let large = place.wait_there("large", DAY1, 1_200_000, json!({"rank": 60}));
        let ids = [ids, vec![large, place.wait_there("last", DAY1, 20_000, json!({"rank": 61}))]].concat();
        let ran = with_stand_in(&place, "").clean();
        assert_eq!(ran.column("id"), ids, "in their order");
        let seen = check_store(&place.far());
        assert_eq!((seen.whole, seen.broken.len(), seen.strange.len()), (sorted(ids.clone()), 0, 0));
        assert!(check_store(&place.outbox()).whole.is_empty());
        let runs = fs::read_to_string(place.kit.path("runs")).unwrap().lines().count();
        assert!(runs <= 12, "{runs} runs");
        let mut sums = [0; 2];
        for (id, line) in attempts(&place) {
            let of = |key: &str| line[key].as_u64().unwrap();
            let record = ran.records().into_iter().find(|record| record["id"] == *id).unwrap();
            let (bytes, sent) = (record["bytes"].as_u64().unwrap(), &record["sent"]["box"]);
            assert_eq!(
                (&line["result"], &sent["wire_out"], &sent["passes"]),
                (&json!("sent"), &line["wire_out"], &json!(1))
            );
            assert!((bytes..bytes + bytes / 50 + 2000).contains(&of("wire_out")), "{line}");
            sums = [sums[0] + of("wire_out"), sums[1] + of("wire_in")];
        }
        // Beside the dumps there is the look at the far side, and what ran while they went counts no more.
        let others = place.ledger().into_iter().filter(|line| line["type"] == "attempt" && line.get("dump").is_none());
        let others: BTreeMap<String, Value> =
            others.map(|line| (line["id"].as_str().unwrap().to_owned(), line)).collect();
        let look: u64 = others.values().map(|line| line["wire_out"].as_u64().unwrap()).sum();
        let pass = place.ledger().into_iter().find(|line| line["type"] == "pass").unwrap();
        assert_eq!(pass["wire_out"], sums[0] + look);
        assert!(others.iter().filter(|(id, _)| id.contains("/with-")).all(|(_, line)| line["wire_out"] == 0));
    }
}

#[test]
fn small_dumps_go_as_deltas_too_and_a_new_one_beside_them_pays_for_itself() {
    let place = Place::new(true);
    let content = |at: usize| noise(at as u64, 100_000);
    for at in 0..10 {
        place.wait_with(&format!("g{at}"), DAY1, &content(at), json!({"rank": at}));
    }
    place.sync([]).clean();
    for at in 0..10 {
        let mut new = content(at);
        new[50_000..52_000].copy_from_slice(&noise(99, 2000));
        place.wait_with(&format!("g{at}"), DAY2, &new, json!({"rank": at}));
    }
    place.wait_there("new", DAY2, 100_000, json!({"rank": 10}));
    let ran = place.sync([]).clean();
    let costs: Vec<u64> =
        ran.records().iter().map(|record| record["sent"]["box"]["wire_out"].as_u64().unwrap()).collect();
    assert!(costs[..10].iter().all(|cost| (2000..9000).contains(cost)), "{costs:?}");
    assert!((100_000..110_000).contains(&costs[10]), "{costs:?}");
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (21, 0, 0));
    let left = place.kit.sh("find far -path '*/.basis-*/*' -type f; find far -type f -links +1").clean().out;
    assert_eq!(left, "", "what was laid is taken up again");
}

#[test]
fn one_that_vanishes_and_one_that_cannot_be_written_hold_nobody() {
    for ssh in [true, false] {
        let place = Place::new(ssh);
        let ids = wait(&place, 50);
        // What is in the way of one dump's data over there, and no look tells before.
        fs::create_dir_all(place.far().join("g007/g007-20261118T010000Z.raw/full")).unwrap();
        let vanishing = place.outbox().join("g011/g011-20261118T010000Z.raw");
        let script = format!("case \"$*\" in *--partial-dir*) rm -f {} ;; esac", vanishing.display());
        let ran = with_stand_in(&place, &script).expect(1);
        assert!(ran.err.contains("g007@20261118T010000Z: stays pending: "), "{}", ran.err);
        assert!(ran.err.contains("g011@20261118T010000Z: stays pending: "), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 3, "two, and the sum: {}", ran.err);
        let well: Vec<String> =
            ids.iter().filter(|id| !id.starts_with("g007") && !id.starts_with("g011")).cloned().collect();
        assert_eq!((sorted(ran.column("id")), sorted(check_store(&place.far()).whole)), (well.clone(), well.clone()));
        let runs = fs::read_to_string(place.kit.path("runs")).unwrap().lines().count();
        assert!(runs <= 20, "{runs} runs: the others have gone alone");
        let lines = attempts(&place);
        assert!(well.iter().all(|id| lines[id]["result"] == "sent"));
        let note = |vm: &str| {
            let text = fs::read(place.outbox().join(format!("{vm}/{vm}-20261118T010000Z.dump.json"))).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()["link"]["box"].clone()
        };
        assert!(
            note("g007")["error"].as_str().is_some_and(|why| why.contains("g007-20261118T010000Z.raw")),
            "{}",
            note("g007")
        );
        assert!(note("g007")["tries"].as_u64().unwrap() > 0);
        // Once nothing is in its way it goes, together with nobody.
        fs::remove_dir_all(place.far().join("g007")).unwrap();
        assert_eq!(place.sync([]).expect(1).column("id"), ["g007@20261118T010000Z"]);
    }
}

#[test]
fn no_batch_goes_beyond_a_limit_and_what_fits_goes_at_once() {
    let place = Place::new(true);
    let ids = wait(&place, 40);
    let (mut passes, mut arrived) = (Vec::new(), Vec::new());
    while arrived.len() < ids.len() {
        let before = place.counted();
        let ran = place.sync(["--limit", "600K"]).clean();
        let cost = place.counted() - before;
        assert!(cost <= (600 << 10) + (64 << 10), "{cost}");
        arrived.extend(
            ran.records().iter().filter(|r| r.get("skipped").is_none()).map(|r| r["id"].as_str().unwrap().to_owned()),
        );
        assert_eq!(arrived, ids[..arrived.len()], "in their order");
        passes.push(cost);
        assert!(passes.len() < 6, "{passes:?}");
    }
    let all: u64 = (0..40).map(|at| 20_000 + at * 7919 % 60_000).sum();
    assert!(passes.iter().sum::<u64>() < all * 11 / 10, "{passes:?} for {all}");
    assert_eq!(check_store(&place.far()).whole, sorted(ids));
}

#[test]
fn a_far_side_that_is_full_has_no_dump_in_part_and_gets_the_rest_once_there_is_room() {
    let place = Place::new(false);
    let ids = wait(&place, 30);
    let (_, args) = place.command([]);
    let sync = format!("bak-sync {}", args.iter().map(|arg| format!("'{arg}'")).collect::<Vec<_>>().join(" "));
    let script = format!(
        "set -e\ncp far/.bak-store id\nmount -t tmpfs -o size=900k none far\nmountpoint -q far\ncp id far/.bak-store\n\
         {sync} >first 2>errors || echo $? >status\ncp -a far left\nmount -o remount,size=9m far\n{sync}\ncp -a far all\n"
    );
    place.kit.write("script", script);
    place.kit.sh("unshare -m sh script").clean();
    let read = |name: &str| fs::read_to_string(place.kit.path(name)).unwrap();
    assert_eq!(read("status"), "1\n");
    assert!(read("errors").contains("the disk over there is full"), "{}", read("errors"));
    let left = check_store(&place.kit.path("left"));
    assert_eq!(left.broken.len(), 0, "{left:?}");
    assert!((5..25).contains(&left.whole.len()), "{left:?}");
    let all = check_store(&place.kit.path("all"));
    assert_eq!((all.whole, all.broken.len(), all.strange.len()), (sorted(ids), 0, 0));
}
