//! bak-sync as users run it: to a mounted path, and to a real sshd on loopback.

mod common;

use bak_tests::{Kit, Ran, check_store, finish, noise, put_dump};
use common::{DAY1, DAY2, Place};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;

fn arrives(ssh: bool) {
    let place = Place::new(ssh);
    let web = place.wait_there("web", DAY1, 300_000, json!({"rank": 2}));
    let db = place.wait_there("my db", DAY1, 100_000, json!({"rank": 1}));
    let ran = place.sync([]).clean();
    assert_eq!(ran.column("id"), [db.clone(), web.clone()], "by rank");
    let seen = check_store(&place.far());
    assert_eq!((seen.whole, seen.broken.len(), seen.strange.len()), (vec![db, web.clone()], 0, 0));
    assert!(check_store(&place.outbox()).whole.is_empty(), "the links are gone");
    let sent = &ran.records()[1]["sent"]["box"];
    assert!(sent["wire_out"].as_u64().unwrap() >= 300_000, "{sent}");
    let sidecar: Value =
        serde_json::from_slice(&fs::read(place.far().join("web/web-20261118T010000Z.dump.json")).unwrap()).unwrap();
    assert!(sidecar.get("link").is_none() && sidecar.get("dir").is_none(), "{sidecar}");
    // Nothing is sent twice: the history knows it, even if it is linked again.
    place.wait_there("web", DAY1, 300_000, json!({}));
    let again = place.sync([]).clean();
    assert_eq!(again.column("id"), [web]);
    let attempts: Vec<Value> =
        place.ledger().into_iter().filter(|line| line["type"] == "attempt" && line.get("dump").is_some()).collect();
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(place.ledger().iter().filter(|line| line["type"] == "pass").count(), 2);
    assert!(!place.outbox().join(".bak/scratch").exists());
    for path in [
        place.far().join("web/web-20261118T010000Z.raw"),
        place.far().join("web"),
        place.outbox().join(".bak/sent/web/web-20261118T010000Z.dump.json"),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0, "{} can be read by others", path.display());
    }
}

#[test]
fn arrives_on_a_mounted_path() {
    arrives(false);
}

#[test]
fn arrives_over_ssh() {
    arrives(true);
}

#[test]
fn a_delta_goes_against_the_previous_dump_even_if_another_name_is_closer() {
    let place = Place::new(true);
    let put = |started: &str, content: &[u8]| place.wait_with("web", started, content, json!({}));
    let mut content = noise(1, 2_000_000);
    put(DAY1, &content);
    let first = place.sync([]).clean();
    // A foreign file whose name is closer to the next one's than the true basis.
    fs::write(place.far().join("web/web-20261119T010000Y.raw"), noise(2, 2_000_000)).unwrap();
    content[1_000_000] ^= 0xff;
    put(DAY2, &content);
    let second = place.sync([]).clean();
    let out = |ran: &Ran| ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap();
    assert!(out(&first) > 1_900_000 && out(&second) < 30_000, "{} {}", out(&first), out(&second));
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len()), (2, 0));
    // The basis was a hard link for a moment: nothing of it stays, and the old dump is untouched.
    assert_eq!(fs::metadata(place.far().join("web/web-20261118T010000Z.raw")).unwrap().nlink(), 1);
}

#[test]
fn a_far_side_that_is_down_another_or_empty_gets_nothing() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let web = place.wait_there("web", DAY1, 1000, json!({}));
        let identity = fs::read(place.far().join(".bak-store")).unwrap();
        fs::write(place.far().join(".bak-store"), "{\"v\":1,\"id\":\"other\"}").unwrap();
        place.sync([]).expect(4).says("is another one");
        fs::write(place.far().join(".bak-store"), "not ours").unwrap();
        place.sync([]).expect(4).says("not one that --init wrote");
        fs::remove_file(place.far().join(".bak-store")).unwrap();
        place.sync([]).expect(4).says("not mounted, or was it emptied");
        place.sync(["--init"]).expect(4).says("none");
        fs::rename(place.far(), place.kit.path("away")).unwrap();
        place.sync([]).expect(4).says("1 dump stays pending");
        fs::rename(place.kit.path("away"), place.far()).unwrap();
        assert_eq!(fs::read_dir(place.far()).unwrap().count(), 0, "nothing was sent");
        assert_eq!(check_store(&place.outbox()).whole, [web.as_str()]);
        fs::write(place.far().join(".bak-store"), identity).unwrap();
        place.sync([]).clean();
        assert_eq!(check_store(&place.far()).whole, [web]);
    }
}

#[test]
fn a_host_that_does_not_answer_leaves_all_pending() {
    let mut place = Place::new(true);
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    let command = place.sshd.as_ref().unwrap().command();
    let url = place.sshd.as_ref().unwrap().url(&place.far());
    place.sshd = None;
    let ran = place.kit.run("bak-sync", ["--outbox", "outbox", "--dest", &format!("box={url}"), "--ssh", &command]);
    ran.expect(1).says("Connection refused").says("1 dump stays pending");
    assert_eq!(check_store(&place.outbox()).whole, [web]);
}

#[test]
fn an_unknown_host_key_is_refused() {
    let place = Place::new(true);
    place.wait_there("web", DAY1, 1000, json!({}));
    fs::write(place.kit.path("sshd/known"), "").unwrap();
    place.sync([]).expect(1).says("Host key verification failed");
    assert!(check_store(&place.far()).whole.is_empty());
}

#[test]
fn one_that_fails_stays_the_others_go_and_it_goes_last_next_time() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let bad = place.wait_there("bad", DAY1, 1000, json!({"rank": 1}));
        let good = place.wait_there("good", DAY1, 1000, json!({"rank": 2}));
        // A file where the guest's directory should be: rsync can't write below it.
        fs::write(place.far().join("bad"), "in the way").unwrap();
        let ran = place.sync([]).expect(1).says("bad@20261118T010000Z: stays pending").says("1 failed");
        assert_eq!(ran.column("id"), [good.as_str()]);
        assert_eq!(check_store(&place.far()).whole, [good]);
        assert_eq!(fs::read_to_string(place.far().join("bad")).unwrap(), "in the way");
        fs::remove_file(place.far().join("bad")).unwrap();
        let next = place.wait_there("next", DAY2, 1000, json!({"at": "2026-11-20T03:00:00Z"}));
        let plan = place.sync(["-n"]).clean();
        assert_eq!(plan.column("id"), [next.as_str(), bad.as_str()]);
        assert_eq!(plan.records()[1]["link"]["box"]["tries"], 1);
        let ran = place.sync([]).clean();
        assert_eq!(ran.column("id"), [next, bad]);
        assert_eq!(ran.records()[1]["sent"]["box"]["passes"], 2);
    }
}

#[test]
fn what_arrived_before_a_crash_is_recognised_and_what_is_another_dump_is_not_overwritten() {
    let place = Place::new(true);
    place.wait_there("web", DAY1, 50_000, json!({}));
    place.sync([]).clean();
    // As if the crash came after the sidecar had arrived: no history, still pending.
    fs::remove_file(place.outbox().join(".bak/sent/web/web-20261118T010000Z.dump.json")).unwrap();
    let web = place.wait_there("web", DAY1, 50_000, json!({}));
    let ran = place.sync([]).clean();
    assert_eq!(ran.column("id"), [web]);
    // Another dump of the same name over there.
    put_dump(&place.far(), "db", DAY1, 777, json!({}));
    let before = fs::read(place.far().join("db/db-20261118T010000Z.raw")).unwrap();
    let db = place.wait_there("db", DAY1, 888, json!({}));
    place.sync([]).expect(1).says("another dump is there under its name");
    assert_eq!(fs::read(place.far().join("db/db-20261118T010000Z.raw")).unwrap(), before);
    assert_eq!(check_store(&place.outbox()).whole, [db]);
}

#[test]
fn a_sidecar_whose_data_someone_deleted_over_there_is_said() {
    let place = Place::new(false);
    place.wait_there("web", DAY1, 1000, json!({}));
    place.sync([]).clean();
    fs::remove_file(place.far().join("web/web-20261118T010000Z.raw")).unwrap();
    fs::remove_dir_all(place.outbox().join(".bak/sent")).unwrap();
    place.wait_there("web", DAY1, 1000, json!({}));
    place.sync([]).expect(1).says("bak-prune --dest ");
}

#[test]
fn an_outbox_whose_file_is_gone_or_whose_sidecar_is_damaged_is_said() {
    let place = Place::new(false);
    place.wait_there("gone", DAY1, 1000, json!({}));
    fs::remove_file(place.outbox().join("gone/gone-20261118T010000Z.raw")).unwrap();
    place.wait_there("torn", DAY1, 1000, json!({}));
    fs::write(place.outbox().join("torn/torn-20261118T010000Z.dump.json"), "{\"v\":1,\"type\":\"du").unwrap();
    let fine = place.wait_there("fine", DAY1, 1000, json!({}));
    let ran =
        place.sync([]).expect(1).says("gone-20261118T010000Z.raw is missing").says("torn-20261118T010000Z.dump.json");
    assert_eq!(ran.column("id"), [fine]);
}

#[test]
fn a_second_pass_waits_and_says_who_holds_the_first() {
    let place = Place::new(false);
    place.wait_there("web", DAY1, 1000, json!({}));
    let bak = fs::File::open(place.outbox().join(".bak")).unwrap();
    drop(bak);
    let lock =
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(place.outbox().join(".bak/pass")).unwrap();
    lock.lock().unwrap();
    place.sync(["--wait", "0"]).expect(3).says("the outbox of box is locked by");
    lock.unlock().unwrap();
    place.sync([]).clean();
}

#[test]
fn nothing_to_do_is_quiet_and_a_pass_that_looks_at_the_far_side_all_the_same() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let ran = place.sync([]).clean();
        assert_eq!(ran.out, "");
        assert_eq!(place.ledger().last().unwrap()["type"], "pass");
        fs::remove_file(place.far().join(".bak-store")).unwrap();
        place.sync([]).expect(4).says("emptied");
    }
}

#[test]
fn an_identity_that_is_none_is_refused() {
    for (ssh, content) in [
        (false, "x".repeat(17 << 20)),
        (true, "x".repeat(17 << 20)),
        (false, format!("{{\"v\":1,\"id\":\"{}\"}}", "A".repeat(100_000))),
    ] {
        let place = Place::new(ssh);
        fs::write(place.far().join(".bak-store"), content).unwrap();
        place.sync([]).expect(4);
        fs::remove_dir_all(place.outbox()).unwrap();
        let ran = place.sync(["--init"]);
        assert!(ran.status == 0 || ran.status == 4, "{ran:?}");
        place.sync([]);
    }
    let place = Place::new(false);
    fs::remove_file(place.far().join(".bak-store")).unwrap();
    fs::create_dir(place.far().join(".bak-store")).unwrap();
    place.sync([]).expect(4);
}

#[test]
fn places_that_are_one_another_lose_nothing() {
    let kit = Kit::new();
    let web = kit.dump("web", DAY1, 1000);
    let store = kit.store().display().to_string();
    let whole = |place: &str| check_store(&kit.path(place)).whole;
    for (outbox, far) in
        [("store", store.as_str()), ("store/zz", store.as_str()), ("store/.outbox", store.as_str()), ("store", "/tmp")]
    {
        let places = ["--store", "store", "--outbox", outbox, "--dest", &format!("box={far}")];
        kit.run("bak-sync", [&places[..], &["--init"]].concat()).expect(4).says("must be apart");
    }
    for outbox in ["store", "store/web"] {
        let places = ["--store", "store", "--outbox", outbox, "--dest", "box=/mnt/box"];
        kit.run("bak-link", places).expect(4).says("must be apart");
    }
    // Without its store's name nothing tells but what lies there: dumps that bak-link never put there.
    fs::create_dir(kit.path("far")).unwrap();
    let places = ["--outbox", "store", "--dest", "box=./far"];
    kit.run("bak-sync", [&places[..], &["--init"]].concat()).clean();
    kit.run("bak-sync", places).expect(1).says("was not put here by bak-link");
    assert_eq!(whole("store"), [web]);
    assert!(whole("far").is_empty());
}

#[test]
fn names_that_rsync_would_take_for_comments_arrive() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        for name in ["#1", ";x", "-rf", " y", "a'b\"c"] {
            place.wait_there(name, DAY1, 100, json!({}));
        }
        assert_eq!(place.sync([]).clean().records().len(), 5);
        assert_eq!(check_store(&place.far()).whole.len(), 5);
    }
}

#[test]
fn links_that_lead_away_over_there_are_not_followed_and_odd_dates_stop_nobody() {
    let place = Place::new(true);
    place.wait_there("web", DAY1, 100_000, json!({}));
    place.sync([]).clean();
    let victim = place.kit.write("victim/web/web-20261118T010000Z.raw", "mine");
    let basis =
        fs::read_dir(place.far()).unwrap().flatten().find(|e| e.file_name().to_str().unwrap().starts_with(".basis"));
    assert!(basis.is_none(), "the first had none");
    let second = place.wait_there("web", DAY2, 100_000, json!({}));
    std::os::unix::fs::symlink(place.kit.path("victim"), place.far().join("web/.part")).unwrap();
    place.sync([]).expect(1).says("web/.part over there is not a directory");
    fs::remove_file(place.far().join("web/.part")).unwrap();
    place.kit.sh("touch -d @-62135596900 far/web/foreign").clean();
    assert_eq!(place.sync([]).clean().column("id"), [second]);
    // Now its name is known: a link in its place.
    let basis = fs::read_dir(place.far())
        .unwrap()
        .flatten()
        .find(|e| e.file_name().to_str().unwrap().starts_with(".basis"))
        .unwrap();
    fs::remove_dir_all(basis.path()).unwrap();
    std::os::unix::fs::symlink(place.kit.path("victim"), basis.path()).unwrap();
    place.wait_there("web", "2026-11-20T01:00:00Z", 100_000, json!({}));
    place.sync([]).expect(1).says("is not a directory");
    assert_eq!(fs::read_to_string(victim).unwrap(), "mine");
}

#[test]
fn data_without_a_sidecar_is_compared_and_never_believed() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        place.wait_there("web", DAY1, 50_000, json!({}));
        let name = "web/web-20261118T010000Z.raw";
        let fake = place.far().join(name);
        fs::create_dir(place.far().join("web")).unwrap();
        fs::write(&fake, noise(99, 50_000)).unwrap();
        place.kit.sh(&format!("touch -r outbox/{name} far/{name}")).clean();
        place.sync([]).clean();
        assert_eq!(check_store(&place.far()).whole.len(), 1);
    }
}

#[test]
fn records_of_the_pipe_keep_what_only_the_pipe_knows() {
    let place = Place::new(false);
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    let record = json!({"v": 1, "type": "dump", "id": web, "vm": "web", "kind": "x", "driver": "image", "started": DAY1, "finished": DAY1,
        "stem": "web-20261118T010000Z", "bytes": 0, "files": [], "x-ticket": 7, "dir": "/etc"});
    let args = ["--outbox", "outbox", "--dest", &format!("box={}", place.far().display()), "-"];
    let planned = format!(
        "{}\n",
        json!({"v": 1, "type": "guest", "vm": "web", "kind": "qemu", "driver": "image", "planned": true})
    );
    place.kit.run_with("bak-sync", args, &planned).expect(2).says("dry run");
    let ran = place.kit.run_with("bak-sync", args, &format!("{record}\n")).clean();
    let sent = &ran.records()[0];
    assert_eq!((&sent["x-ticket"], &sent["kind"], &sent["bytes"]), (&json!(7), &json!("qemu"), &json!(1000)));
}

#[test]
fn bad_usage_is_exit_2() {
    let kit = Kit::new();
    kit.run("bak-sync", ["--outbox", "nowhere", "--dest", "box=/tmp"]).expect(2).says("there is no outbox");
    kit.run("bak-sync", [] as [&str; 0]).expect(2).says("no destination");
    kit.run("bak-sync", ["--store", "store", "typo"]).expect(2).says("typo");
    kit.run("bak-sync", ["--outbox", "o", "--dest", "box=host:", "--init"]).expect(2).says("host:/path");
    kit.run("bak-sync", ["--outbox", "o", "--dest", "box=nowhere/here", "--init"]).expect(2).says("is no directory");
    fs::create_dir_all(kit.path("o/.bak")).unwrap();
    kit.run("bak-sync", ["--outbox", "o", "--dest", "box=x/y"]).expect(4).says("--init");
}

#[test]
fn a_rate_is_kept() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        place.wait_there("web", DAY1, 3_000_000, json!({}));
        let begun = std::time::Instant::now();
        place.sync(["--bwlimit", "1M"]).clean();
        assert!(begun.elapsed().as_secs_f64() > 3_000_000.0 / f64::from(1 << 20) * 0.9, "ssh: {ssh}");
        assert_eq!(check_store(&place.far()).whole.len(), 1);
        assert!(
            place.ledger().iter().any(|line| line["dump"].is_string() && line["wire_out"].as_u64() > Some(3_000_000))
        );
        for (bad, why) in [("fast", "fast"), ("0", "nothing would ever be sent"), ("8:00,1M 8:00,2M", "says twice")] {
            place.sync(["--bwlimit", bad]).expect(2).says(why);
        }
    }
}

#[test]
fn a_timetables_next_rate_takes_effect_in_a_running_transfer() {
    for (ssh, slow) in [(false, "512"), (true, "512"), (true, "0")] {
        let place = Place::new(ssh);
        let id = place.wait_there("web", DAY1, 3_000_000, json!({}));
        // At 512 bytes a second it would take an hour and a half; at 0 for ever.
        let table = format!("mon-sun 07:00,{slow} 08:00,off");
        let mut command = place.kit.command("faketime");
        let clock: i64 = "2026-11-20T07:59:57Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp();
        let offset = clock - chrono::Utc::now().timestamp();
        let (program, args) = place.command(["--bwlimit", &table]);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.args(["-f", &format!("{offset:+}s")]).arg(program).args(args);
        let ran = finish(command, "").clean();
        assert_eq!(ran.column("id"), [id]);
        let at = ran.records()[0]["sent"]["box"]["at"].as_str().unwrap().to_owned();
        assert!(at.as_str() >= "2026-11-20T08:00:00Z", "{at}");
        assert_eq!(check_store(&place.far()).whole.len(), 1);
    }
}

#[test]
fn a_count_of_tries_that_cannot_be_right_stops_nobody() {
    let place = Place::new(false);
    let ids = [
        place.wait_there("a", DAY1, 10, json!({"tries": u64::MAX})),
        place.wait_there("b", DAY1, 10, json!({"rank": 2})),
    ];
    assert_eq!(place.sync([]).clean().column("id"), ids);
}

#[test]
fn a_basis_of_the_same_size_and_time_is_only_a_basis() {
    let place = Place::new(true);
    for day in [DAY1, DAY2] {
        place.wait_there("web", day, 50_000, json!({}));
        place.kit.sh("touch -d 2026-01-01T00:00:00Z outbox/web/*.raw").clean();
        place.sync([]).clean();
    }
    assert_eq!(check_store(&place.far()).whole.len(), 2);
}
