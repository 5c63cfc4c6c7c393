//! bak-dump, as users run it, with the real qemu-img.

mod machines;

use bak_tests::process::{wait_for, wait_for_workers};
use bak_tests::{Kit, Ran, check_store};
use machines::{config, end, hold, image, making, must, noise, processes, same, start};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const MORE: [&str; 4] = ["--images", "vm", "--store", "store"];

fn dump(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-dump", MORE.iter().chain(args))
}

/// The path of the `n`th file of a dump's record.
fn file(record: &Value, n: usize) -> PathBuf {
    Path::new(record["dir"].as_str().unwrap()).join(record["files"][n]["name"].as_str().unwrap())
}

/// Nothing in the store is broken, left over or strange; its dumps.
#[track_caller]
fn sound(store: &Path) -> Vec<String> {
    let seen = check_store(store);
    assert!(seen.broken.is_empty() && seen.strange.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
    seen.whole
}

#[test]
fn what_is_dumped_is_what_the_image_holds() {
    for (format, made) in [("qcow2", "qcow2"), ("qcow2-plain", "qcow2"), ("raw", "raw")] {
        let kit = Kit::new();
        image(&kit, "base.qcow2", "qcow2", 7);
        image(&kit, "raw.raw", "raw", 3);
        image(&kit, "old.vdi", "vdi", 4);
        let top = kit.path("vm/top.qcow2");
        must("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top.to_str().unwrap()]);
        machines::write(&top, "qcow2", 9, "3M");
        let ran = dump(&kit, &["--all", "--format", format]).clean();
        let records = ran.records();
        assert_eq!(ran.column("vm"), ["base", "old", "raw", "top"]);
        for (record, source) in records.iter().zip(["qcow2", "vdi", "raw", "qcow2"]) {
            let path = kit.path("vm").join(record["vm"].as_str().unwrap()).with_extension(source);
            same(&path, source, &file(record, 0), made);
            assert_eq!(record["files"][0]["source"], path.to_str().unwrap());
            assert_eq!(record["files"][0]["virtual_size"], 8 << 20);
            assert_eq!((&record["mode"], &record["driver"]), (&json!("stop"), &json!("image")));
            let mode = fs::metadata(file(record, 0)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let info = must("qemu-img", ["info", "-f", made, "--output=json", file(record, 0).to_str().unwrap()]);
            assert_eq!(info.contains("\"compression-type\": \"zstd\""), format == "qcow2");
            assert!(!info.contains("backing"), "a dump stands alone");
        }
        assert_eq!(sound(&kit.store()).len(), 4);
    }
}

#[test]
fn several_disks_are_one_dump() {
    let kit = Kit::new();
    let paths: Vec<_> = [("a.qcow2", "qcow2", 1), ("b.raw", "raw", 2), ("c.qcow2", "qcow2", 3)]
        .map(|(name, format, byte)| (image(&kit, name, format, byte), format))
        .into();
    let disks: Vec<_> = paths.iter().map(|(path, _)| path).collect();
    let config = config(&kit, &format!("[[image.guest]]\nvm = \".db\"\ndisks = {disks:?}\n"));
    let ran = kit.run("bak-dump", ["--config", &config, "--store", "store", "--all"]).clean();
    let record = &ran.records()[0];
    let stem = record["stem"].as_str().unwrap();
    assert!(stem.starts_with("%2Edb-") && record["vm"] == ".db");
    for (n, (path, format)) in paths.iter().enumerate() {
        assert_eq!(record["files"][n]["name"], format!("{stem}.disk{n}.qcow2"));
        assert_eq!(record["files"][n]["disk"], n);
        same(path, format, &file(record, n), "qcow2");
    }
    let sum: u64 = (0..3).map(|n| record["files"][n]["bytes"].as_u64().unwrap()).sum();
    assert_eq!(record["bytes"], sum);
    assert_eq!(sound(&kit.store()).len(), 1);
}

#[test]
fn odd_names_are_dumped_and_stay_in_the_store() {
    let kit = Kit::new();
    let names = [
        "a b",
        "new\nline",
        "quo'te\"",
        "-dash",
        "Köln 東京",
        "100%",
        "a:b",
        "json:{}",
        "$(reboot)",
        "x@20261120T010002Z",
    ];
    for name in names {
        image(&kit, &format!("{name}.qcow2"), "qcow2", 1);
    }
    let ran = dump(&kit, &["--all"]).clean();
    let mut seen = ran.column("vm");
    seen.sort();
    let mut expected = names.map(str::to_owned);
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(sound(&kit.store()).len(), names.len());
    for record in ran.records() {
        same(Path::new(record["files"][0]["source"].as_str().unwrap()), "qcow2", &file(&record, 0), "qcow2");
    }
    // One of them by its name.
    dump(&kit, &["--now", "2027-01-01T00:00:00Z", "--", "-dash", "new\nline"]).clean();
}

#[test]
fn a_running_guest_goes_last_and_fails_while_the_others_work() {
    let kit = Kit::new();
    let running = image(&kit, "a-running.qcow2", "qcow2", 1);
    image(&kit, "b.qcow2", "qcow2", 1);
    kit.write("vm/c.qcow2", "no image");
    image(&kit, "d.raw", "raw", 1);
    let held = hold(&kit, &running, "qcow2");
    let planned = dump(&kit, &["--all", "-n"]).expect(1);
    assert_eq!(planned.column("vm"), ["b", "d"]);
    assert!(planned.records().iter().all(|record| record["planned"] == true));
    let ran =
        dump(&kit, &["--all", "--explain"]).expect(1).says("bak-dump: a-running: is running").says("bak-dump: c: ");
    assert!(ran.err.ends_with("2 dumped, 2 failed\n"), "{}", ran.err);
    let list: Vec<_> = ran.records().iter().map(|r| (r["vm"].clone(), r["failed"]["stage"].clone())).collect();
    let expected = [("c", json!("list")), ("b", json!(null)), ("d", json!(null)), ("a-running", json!("dump"))];
    assert_eq!(list, expected.map(|(vm, stage)| (json!(vm), stage)));
    assert_eq!(sound(&kit.store()).len(), 2);
    drop(held);
    assert_eq!(dump(&kit, &["a-running"]).clean().column("vm"), ["a-running"]);
}

#[test]
fn a_running_guest_that_stops_is_dumped_within_patience() {
    let kit = Kit::new();
    let running = image(&kit, "a.qcow2", "qcow2", 1);
    image(&kit, "b.qcow2", "qcow2", 1);
    let held = hold(&kit, &running, "qcow2");
    let run = start(&kit, "bak-dump", MORE.iter().chain(&["--all", "--retry-for", "5m", "--retry-wait", "1s"]));
    wait_for("the dump of the other guest", || check_store(&kit.store()).whole.len() == 1);
    drop(held);
    assert_eq!(end(run), (Some(0), String::new()));
    assert_eq!(sound(&kit.store()).len(), 2);
}

#[test]
fn one_that_is_changed_while_it_is_dumped_fails() {
    let kit = Kit::new();
    let path = noise(&kit, "big.raw", 256);
    let run = start(&kit, "bak-dump", MORE.iter().chain(&["--all"]));
    wait_for("the dump's beginning", || !making(&kit.store()).is_empty());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(257 << 20).unwrap();
    let (status, err) = end(run);
    assert_eq!(status, Some(1), "{err}");
    assert!(err.contains("bak-dump: big: was changed while it was dumped"), "{err}");
    assert_eq!(sound(&kit.store()), Vec::<String>::new());
}

#[test]
fn killed_in_mid_dump_nothing_is_left_and_the_next_run_does_it() {
    let kit = Kit::new();
    noise(&kit, "big.raw", 256);
    let mut run = start(&kit, "bak-dump", MORE.iter().chain(&["--all"]));
    wait_for("the dump's beginning", || !making(&kit.store()).is_empty());
    let made = making(&kit.store())[0].to_str().unwrap().to_owned();
    assert!(!processes(&made).is_empty());
    run.0.kill().unwrap();
    wait_for("the end of qemu-img", || processes(&made).is_empty());
    drop(run);
    wait_for_workers(&kit.store());
    let seen = check_store(&kit.store());
    assert!(seen.whole.is_empty() && seen.broken.is_empty() && !seen.unfinished.is_empty(), "{seen:?}");
    dump(&kit, &["--all"]).clean();
    assert_eq!(sound(&kit.store()).len(), 1);
}

#[test]
fn a_full_disk_in_mid_dump_publishes_nothing() {
    let kit = Kit::new();
    let Some(small) = machines::Small::new(&kit, 64) else { return };
    noise(&kit, "big.raw", 100);
    image(&kit, "web.qcow2", "qcow2", 1);
    for format in ["qcow2", "raw"] {
        let store = small.path().join(format);
        fs::create_dir(&store).unwrap();
        let args =
            ["--images", "vm", "--store", store.to_str().unwrap(), "--all", "--reserve", "0", "--format", format];
        let ran = kit.run("bak-dump", args).expect(1).says("bak-dump: big: ").says("No space left");
        assert_eq!(ran.column("vm"), ["web"]);
        assert_eq!(sound(&store).len(), 1);
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn a_dump_is_stopped_before_it_uses_up_the_reserve() {
    let kit = Kit::new();
    let Some(small) = machines::Small::new(&kit, 400) else { return };
    noise(&kit, "big.raw", 340);
    image(&kit, "web.qcow2", "qcow2", 1);
    let store = small.path().join("store");
    fs::create_dir(&store).unwrap();
    let args = ["--images", "vm", "--store", store.to_str().unwrap(), "--all", "--reserve", "340M"];
    let ran = kit.run("bak-dump", args).expect(1).says("bak-dump: big: ").says("340 MiB must stay free (--reserve)");
    assert_eq!(ran.column("vm"), ["web"]);
    assert_eq!(sound(&store).len(), 1);
}

#[test]
fn what_will_not_fit_is_not_begun() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    image(&kit, "db.qcow2", "qcow2", 1);
    // Its last dump, in a sparse file, was larger than any disk.
    let id = kit.dump("web", "2026-01-01T00:00:00Z", 1);
    let stem = "web-20260101T000000Z";
    let bytes = 1_u64 << 43;
    fs::OpenOptions::new()
        .write(true)
        .open(kit.store().join(format!("web/{stem}.raw")))
        .unwrap()
        .set_len(bytes)
        .unwrap();
    let sidecar = kit.store().join(format!("web/{stem}.dump.json"));
    let text = fs::read_to_string(&sidecar).unwrap().replace("\"bytes\":1", &format!("\"bytes\":{bytes}"));
    fs::write(&sidecar, text).unwrap();
    let now = "2026-11-20T01:00:02Z";
    for dry in [&["-n"][..], &[]] {
        let ran = dump(&kit, &[&["--all", "--now", now], dry].concat()).expect(1);
        let ran = ran.says("bak-dump: web: there is no room: it needs 8 TiB by its last dump, 2 GiB must stay free");
        assert_eq!(ran.column("vm"), ["db"], "{id}");
    }
    dump(&kit, &["--all", "--reserve", "9000T"]).expect(1).says("bak-dump: db: there is no room");
}

#[test]
fn the_clock_may_not_run_backwards() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    let at = |now: &str| dump(&kit, &["web", "--now", now]);
    assert_eq!(at("2026-11-20T01:00:02Z").clean().column("id"), ["web@20261120T010002Z"]);
    for (early, why) in [
        ("2026-11-20T01:00:02Z", "its newest dump was begun in this very second"),
        ("2026-11-20T00:30:00Z", "the clock ran backwards: its newest dump is of 2026-11-20T01:00:02Z"),
    ] {
        at(early).expect(1).says(&format!("bak-dump: web: {why}"));
        assert_eq!(sound(&kit.store()), ["web@20261120T010002Z"]);
    }
    at("2026-11-20T01:00:03Z").clean();
}

#[test]
fn those_whose_last_dump_is_oldest_go_first() {
    let kit = Kit::new();
    for name in ["a", "b", "c", "d"] {
        image(&kit, &format!("{name}.qcow2"), "qcow2", 1);
    }
    kit.dump("a", "2026-03-01T00:00:00Z", 9);
    kit.dump("b", "2026-01-01T00:00:00Z", 9);
    kit.dump("d", "2026-02-01T00:00:00Z", 9);
    let ran = dump(&kit, &["--all", "-n"]).clean();
    assert_eq!(ran.column("vm"), ["c", "b", "d", "a"]);
    assert!(!kit.store().join(".bak").exists(), "a dry run changes nothing");
    assert_eq!(ran.records()[1]["last_dump"], "2026-01-01T00:00:00Z");
    assert_eq!(sound(&kit.store()).len(), 3);
    assert_eq!(dump(&kit, &["--all"]).clean().column("vm"), ["c", "b", "d", "a"]);
}

#[test]
fn several_at_once_and_two_programs_at_once() {
    let kit = Kit::new();
    noise(&kit, "a.raw", 200);
    noise(&kit, "b.raw", 200);
    image(&kit, "c.qcow2", "qcow2", 1);
    image(&kit, "d.qcow2", "qcow2", 1);
    let run = start(&kit, "bak-dump", MORE.iter().chain(&["a", "b", "d", "--jobs", "2"]));
    wait_for("two dumps being made", || making(&kit.store()).len() == 2);
    dump(&kit, &["c"]).clean();
    assert_eq!(end(run), (Some(0), String::new()));
    assert_eq!(sound(&kit.store()).len(), 4);
}

#[test]
fn dumps_carry_their_expiry_and_note() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    let args = ["web", "--expire", "7d", "--annotation", "before the upgrade", "--now", "2026-11-20T01:00:02Z"];
    let record = dump(&kit, &args).clean().records().remove(0);
    assert_eq!(
        (&record["expires"], &record["annotation"]),
        (&json!("2026-11-27T01:00:02Z"), &json!("before the upgrade"))
    );
    let sidecar = fs::read_to_string(kit.store().join("web/web-20261120T010002Z.dump.json")).unwrap();
    assert!(sidecar.contains("\"expires\":\"2026-11-27T01:00:02Z\"") && !sidecar.contains("\"dir\""), "{sidecar}");
}

#[test]
fn records_on_standard_input_select_and_do_not_describe() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    image(&kit, "db.qcow2", "qcow2", 1);
    let guest = |vm: &str, more: Value| {
        let mut record = json!({"v": 1, "type": "guest", "vm": vm, "kind": "qemu", "driver": "image"});
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{record}\n")
    };
    let web = guest(
        "web",
        json!({"x-ticket": 42, "tags": ["forged"], "node": "forged", "disks": [{"path": "/etc/shadow"}], "result": "failed",
            "expires": "2020-01-01T00:00:00Z", "id": "db@20200101T000000Z"}),
    );
    let passed = json!({"v": 1, "type": "dump", "id": "old@20260101T000000Z", "vm": "old", "kind": "qemu", "driver": "image",
        "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:00Z", "stem": "old-20260101T000000Z", "bytes": 0,
        "files": [], "dir": "/elsewhere", "x-mine": true});
    let input = format!(
        "{web}{passed}\nno json\n{}{}{}{}{{\"v\":1,\"type\":\"guest\",\"vm\":\"db\"",
        guest("../x", json!({})),
        guest("web", json!({"uid": "another guest"})),
        guest("db", json!({"skipped": {"why": "not due"}})),
        guest("db", json!({"failed": {"stage": "observe", "why": "x"}})),
    );
    let ran = kit.run_with("bak-dump", MORE.iter().chain(&["-"]), &input).expect(1);
    let ran = ran.says("line 3").says("line 8: it is cut off").says("bak-dump: ../x: there is no such guest");
    let ran = ran.says("with the uid another guest");
    let records = ran.records();
    assert_eq!(ran.column("vm"), ["old", "web"]);
    assert_eq!(records[0], passed);
    assert_eq!(
        (&records[1]["x-ticket"], &records[1]["tags"], &records[1]["disks"]),
        (&json!(42), &json!(null), &json!(null))
    );
    assert_eq!((&records[1]["result"], &records[1]["expires"]), (&json!(null), &json!(null)));
    assert!(records[1]["node"] != "forged" && records[1]["id"] != "db@20200101T000000Z");
    assert_eq!(sound(&kit.store()).len(), 1);
    // Nothing due is nothing to do.
    kit.run_with("bak-dump", MORE.iter().chain(&["-"]), "").clean();
}

#[test]
fn programs_in_a_row() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    image(&kit, "db.qcow2", "qcow2", 1);
    let line = "bak-guests --images vm | jq -c '. + {mine: 1}' | bak-dump --images vm --store store - db | jq -c .";
    let ran = kit.sh(line).clean();
    assert_eq!(ran.column("vm"), ["db", "web"]);
    assert!(ran.records().iter().all(|record| record["mine"] == 1 && record["disks"].is_null()));
    for planned in
        ["bak-guests -n --images vm", "bak-dump -n --images vm --store store --all --now 2030-01-01T00:00:00Z"]
    {
        let ran = kit.sh(&format!("{planned} | bak-dump --images vm --store store -")).expect(2);
        ran.says("planned");
    }
    assert_eq!(sound(&kit.store()).len(), 2);
}

#[test]
fn mistakes_of_the_user() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    kit.run("bak-dump", ["--all", "--store", "store", "--driver", "vbxo"]).expect(2).says("no driver `vbxo`");
    kit.run("bak-dump", ["--all", "--images", "vm", "--store", "nowhere"])
        .expect(2)
        .says("there is no store at nowhere");
    kit.run("bak-dump", ["--all", "--images", "vm"]).expect(2).says("no store");
    kit.run("bak-dump", ["--all", "--store", "store"]).expect(2).says("--images");
    kit.run("bak-dump", MORE).expect(2).says("--all");
    dump(&kit, &["--all", "--format", "zip"]).expect(2).says("qcow2-plain");
    dump(&kit, &["--all", "--jobs", "0"]).expect(2);
    dump(&kit, &["--all", "--expire", "7"]).expect(2);
    dump(&kit, &["web", "wbe"]).expect(1).says("bak-dump: wbe: there is no guest of this name");
    assert_eq!(sound(&kit.store()).len(), 1);
    dump(&kit, &["--all", "--tag", "x"]).expect(2).says("no guest to dump");
    kit.run("bak-dump", ["--version"]).clean();
    assert!(kit.run("bak-dump", ["--help"]).clean().out.contains("Exit status"));
}

#[test]
fn quiet_and_terminal() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    assert_eq!(dump(&kit, &["--all", "-q", "--now", "2026-11-20T01:00:02Z"]).clean().out, "");
    let line = "script -qec 'bak-dump --images vm --store store --all --now 2026-11-21T01:00:02Z' /dev/null";
    let ran = kit.sh(line).expect(0);
    assert!(ran.out.contains("web@20261121T010002Z") && !ran.out.contains("{\"v\""), "{}", ran.out);
}

#[test]
fn a_date_that_cannot_be_written_never_blocks_the_store() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    dump(&kit, &["web", "--expire", "9999999d"]).expect(2).says("a thousand years");
    dump(&kit, &["web", "--expire", "99999d", "--now", "9999-12-31T23:59:59Z"])
        .expect(1)
        .says("could not be read back");
    dump(&kit, &["web", "--now", "2026-11-20T01:00:00Z"]).clean();
    assert_eq!(sound(&kit.store()), ["web@20261120T010000Z"]);
}

#[test]
fn a_dump_from_the_future_does_not_stop_the_next() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    dump(&kit, &["web", "--now", "2036-01-01T00:00:00Z"]).clean();
    let ran = dump(&kit, &["web", "--now", "2026-11-20T01:00:00Z"]).expect(0);
    assert_eq!(ran.err, "bak-dump: web: web@20360101T000000Z is dated in the future: was a clock wrong?\n");
    assert_eq!(sound(&kit.store()).len(), 2);
}
