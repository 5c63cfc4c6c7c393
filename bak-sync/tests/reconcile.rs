//! `bak-sync --reconcile`: what counts as sent is what is over there.

mod common;

use bak_tests::{check_store, put_dump};
use common::{DAY1, DAY2, Place};
use serde_json::{Value, json};
use std::fs;

fn decisions(ran: &bak_tests::Ran) -> Vec<(String, String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |record: &Value| {
        let note = &record["reconcile"]["box"];
        (word(&record["id"]), word(&note["decision"]), word(&note["why"]))
    };
    ran.records().iter().map(one).collect()
}

fn sent(place: &Place) -> Vec<String> {
    let mut names = Vec::new();
    for vm in fs::read_dir(place.outbox().join(".bak/sent")).into_iter().flatten() {
        names.extend(fs::read_dir(vm.unwrap().path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()));
    }
    names.sort();
    names
}

#[test]
fn what_is_there_counts_and_what_is_not_no_longer_does() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let web = place.wait_there("web", DAY1, 50_000, json!({}));
        let db = place.wait_there("db", DAY1, 50_000, json!({"rank": 2}));
        place.sync([]).clean();
        assert_eq!(decisions(&place.sync(["--reconcile"]).clean()), []);
        // The history is lost for one, which is known by its node then; of the other somebody deleted all over there.
        place.kit.write("bak.toml", "node = \"test\"\n");
        fs::remove_dir_all(place.outbox().join(".bak/sent/web")).unwrap();
        fs::remove_dir_all(place.far().join("db")).unwrap();
        let findings = [
            (db.clone(), "gone".to_owned(), "it is not over there".to_owned()),
            (web.clone(), "adopted".to_owned(), "it is over there".to_owned()),
        ];
        let plan = place.sync(["--reconcile", "-n", "--config", "bak.toml"]).clean();
        assert_eq!(decisions(&plan), findings);
        assert!(plan.records().iter().all(|record| record["planned"] == true));
        assert_eq!(sent(&place), ["db-20261118T010000Z.dump.json"], "a plan changes nothing");
        let ran = place.sync(["--reconcile", "--config", "bak.toml"]).clean();
        assert_eq!(decisions(&ran), findings);
        assert_eq!(ran.records()[1]["sent"]["box"]["adopted"], true);
        assert!(ran.records()[0].get("sent").is_none());
        assert_eq!(sent(&place), ["web-20261118T010000Z.dump.json"]);
        assert!(place.outbox().join(".bak/gone/db/db-20261118T010000Z.dump.json").exists(), "nothing is lost");
        assert_eq!(decisions(&place.sync(["--reconcile", "--config", "bak.toml"]).clean()), []);
        // What is gone can be sent again, and what was adopted is not.
        place.wait_there("db", DAY1, 50_000, json!({}));
        place.wait_there("web", DAY1, 50_000, json!({"rank": 2}));
        let ran = place.sync([]).clean();
        assert_eq!(ran.column("id"), [db, web]);
        let sent = |at: usize| ran.records()[at]["sent"]["box"].clone();
        assert!(sent(0)["wire_out"].as_u64() > Some(50_000) && sent(1)["adopted"] == true, "{}", ran.out);
        assert_eq!(check_store(&place.far()).whole.len(), 2);
    }
}

#[test]
fn copies_that_something_else_made_are_known_by_name_and_size() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let store = place.kit.path("store");
        let (flat, deep, short, begun) = ("flat", "deep", "short", "begun");
        let put = |vm: &str, bytes: usize| put_dump(&store, vm, DAY1, bytes, json!({}));
        let ids: Vec<String> = [flat, deep, short, begun].into_iter().map(|vm| put(vm, 30_000)).collect();
        let copy = |vm: &str, to: &str| {
            let name = format!("{vm}-20261118T010000Z.raw");
            fs::create_dir_all(place.far().join(to)).unwrap();
            fs::copy(store.join(vm).join(&name), place.far().join(to).join(name)).unwrap();
        };
        copy(flat, "");
        copy(deep, "old/dumps");
        copy(short, "");
        fs::write(place.far().join("short-20261118T010000Z.raw"), "too short").unwrap();
        // In the place where bak-sync puts them: data without a sidecar is what it has begun.
        copy(begun, begun);
        // Hidden: no part of a store.
        copy(short, ".trash");
        // One of them waits to be sent.
        place.wait_there(flat, DAY1, 30_000, json!({}));
        let store = store.display().to_string();
        let ran = place.sync(["--reconcile", "--store", &store]).clean();
        let why = |place: &str| format!("its files are over there{place}, by name and size");
        let adopted = |id: &String, place: &str| (id.clone(), "adopted".to_owned(), why(place));
        assert_eq!(decisions(&ran), [adopted(&ids[1], " in old/dumps/"), adopted(&ids[0], "")]);
        let there = check_store(&place.far());
        assert_eq!(there.whole, [ids[1].clone(), ids[0].clone()]);
        assert_eq!(decisions(&place.sync(["--reconcile", "--store", &store]).clean()), []);
        let ran = place.sync([]).clean();
        assert_eq!(ran.column("id"), [ids[0].clone()]);
        assert!(!place.far().join(flat).exists(), "it was not sent again");
    }
}

#[test]
fn what_is_not_certain_changes_nothing() {
    let place = Place::new(false);
    let web = place.wait_there("web", DAY1, 50_000, json!({}));
    let db = place.wait_there("db", DAY1, 50_000, json!({"rank": 2}));
    place.sync([]).clean();
    let before = sent(&place);
    // A sidecar that cannot be read may be that of the dump that is missed.
    fs::write(place.far().join("web/web-20261118T010000Z.dump.json"), "{").unwrap();
    let ran = place.sync(["--reconcile"]).expect(1).says("web/web-20261118T010000Z.dump.json");
    assert_eq!(decisions(&ran)[0].1, "unclear");
    assert_eq!(sent(&place), before);
    // A sidecar whose data somebody deleted.
    fs::remove_file(place.far().join("db/db-20261118T010000Z.raw")).unwrap();
    let ran = place.sync(["--reconcile"]).expect(1);
    let (id, what, why) = &decisions(&ran)[0];
    assert_eq!((id, what.as_str()), (&db, "gone"));
    assert!(why.contains("db-20261118T010000Z.raw is missing: remove its sidecar there"), "{why}");
    // Another far side, or none: nothing is believed of it.
    fs::rename(place.far().join(".bak-store"), place.kit.path("identity")).unwrap();
    let before = sent(&place);
    place.sync(["--reconcile"]).expect(4).says("no .bak-store");
    assert_eq!(sent(&place), before);
    fs::rename(place.kit.path("identity"), place.far().join(".bak-store")).unwrap();
    // What is there of guests and nodes that are not ours is none of our business.
    fs::write(place.far().join("web/web-20261118T010000Z.dump.json"), "{").unwrap();
    put_dump(&place.far(), "other", DAY2, 10, json!({"node": "elsewhere"}));
    let ran = place.sync(["--reconcile"]).expect(1);
    assert_eq!(ran.column("id"), [web]);
}

#[test]
fn a_look_at_all_of_it_keeps_to_the_limit() {
    let place = Place::new(true);
    place.wait_there("web", DAY1, 50_000, json!({}));
    place.sync([]).clean();
    fs::remove_dir_all(place.far().join("web")).unwrap();
    fs::create_dir(place.far().join("junk")).unwrap();
    for at in 0..5000 {
        fs::write(place.far().join(format!("junk/{at:0100}")), "").unwrap();
    }
    let before = place.counted();
    let ran = place
        .sync(["--reconcile", "--limit", "16K"])
        .expect(1)
        .says("nothing was changed")
        .says("the limit is reached");
    assert_eq!((ran.out.as_str(), sent(&place).len()), ("", 1));
    let used = place.counted() - before;
    assert!(used <= (16 << 10) + (64 << 10), "{used}");
    assert_eq!(decisions(&place.sync(["--reconcile", "--limit", "none"]).clean()).len(), 1);
}

#[test]
fn a_person_is_told_that_all_is_as_the_history_says() {
    let place = Place::new(false);
    let told = || {
        let args = place.command(["--reconcile"]).1.join(" ");
        place.kit.sh(&format!("script -qec 'stty cols 200; bak-sync {args}' /dev/null")).expect(0).out.trim().to_owned()
    };
    assert_eq!(told(), "box: 0 dumps over there, as the history says");
    place.wait_there("web", DAY1, 50_000, json!({}));
    place.sync([]).clean();
    assert_eq!(told(), "box: 1 dump over there, as the history says");
    fs::remove_dir_all(place.outbox().join(".bak/sent/web")).unwrap();
    put_dump(&place.outbox(), "web", DAY2, 10, json!({}));
    assert!(told().ends_with("box: 1 dump over there; 1 that the history had not so"), "{}", told());
}
