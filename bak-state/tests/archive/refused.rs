//! What is refused, and what stays: in any case nothing of that guest, or that dump, is changed.

use super::*;
use std::io::{Read, Write};

#[test]
fn a_held_claim_refuses() {
    let scene = Scene::new(false);
    let holder = r#"{"program":"bak-dump","pid":4711,"node":"pve9"}"#;
    for (line, status) in [("archive", "BACKUP_IN_PROGRESS"), ("archive -n", "CLEAN"), ("activate", "ARCHIVED")] {
        scene.statuses(&format!("web:{status}\ndb:CLEAN\n"));
        scene.kit.write("db/claims/web", holder);
        fs::create_dir_all(scene.archive()).unwrap();
        let before = (tree(&scene.kit.store()), scene.statedb());
        let line = format!(
            "exec 9<>db/claims/web; flock -x 9; bak-state {line} web --db db --store store --archive-dir archive 9<&-"
        );
        scene.kit.sh(&line).expect(4).says("web: it is being dumped by bak-dump (pid 4711 on pve9)");
        assert_eq!((tree(&scene.kit.store()), scene.statedb()), before);
    }
    let ran = scene.kit.sh(
        "exec 9<>db/claims/web; flock -x 9; bak-state archive --all --db db --store store --archive-dir archive 9<&-",
    );
    assert_eq!(moved(&ran.expect(4).records(), "linked").len(), 2, "the other guest is archived");
}

/// Nobody can dump a guest while it is archived, nor archive it twice at once.
#[test]
fn the_claim_is_held_to_the_end() {
    let scene = Scene::new(true);
    // It waits in its first line, as nobody reads its output: a pipe that is full.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let full = vec![b'\n'; 1 << 16];
    writer.write_all(&full).unwrap();
    let mut command = Command::new(bin("bak-state"));
    command.args(&scene.argv("archive web")[1..]).current_dir(scene.kit.path("")).stdout(writer);
    let mut first = command.spawn().unwrap();
    drop(command);
    while scene.statedb() != "web:ARCHIVED\ndb:CLEAN\n" {
        assert!(first.try_wait().unwrap().is_none(), "it should have waited");
        std::thread::yield_now();
    }
    scene.run("archive web").expect(4).says("it is being dumped by bak-state archive (pid ");
    scene.run("activate web").expect(4).says("it is being dumped by bak-state archive (pid ");
    // The database is not locked meanwhile, nor the stores.
    scene.run("archive db --wait 0").clean();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.trim().lines().count(), 3);
    assert!(first.wait().unwrap().success());
    assert_eq!(scene.whole().1.len(), 4);
}

#[test]
fn what_lies_in_the_way_refuses_the_guest() {
    let stem = "web/web-20261119T010000Z";
    type Prepare<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Prepare); 5] = [
        ("the archive has another dump called web@20261119T010000Z", &|archive| {
            put_dump(archive, "web", DAYS[1], 17, json!({}));
        }),
        ("the archive has another dump, db@20261119T010000Z, under the file name web-20261119T010000Z", &|archive| {
            let more = json!({"vm": "db", "id": "db@20261119T010000Z"});
            put_dump(archive, "web", DAYS[1], 300_000, more);
        }),
        (
            "the archive has web@20261119T010000Z, but not good: its file web-20261119T010000Z.raw is missing",
            &|archive| {
                put_dump(archive, "web", DAYS[1], 300_000, json!({}));
                fs::remove_file(archive.join(format!("{stem}.raw"))).unwrap();
            },
        ),
        ("web-20261119T010000Z.dump.json is in the archive already", &|archive| {
            fs::create_dir_all(archive.join("web")).unwrap();
            fs::write(archive.join(format!("{stem}.dump.json")), "{").unwrap();
        }),
        ("web-20261119T010000Z.log is in the archive already", &|archive| {
            fs::create_dir_all(archive.join("web")).unwrap();
            fs::write(archive.join(format!("{stem}.log")), "mine").unwrap();
        }),
    ];
    for (why, prepare) in cases {
        for far in [false, true] {
            let scene = Scene::new(far);
            fs::create_dir(scene.archive()).unwrap();
            prepare(&scene.archive());
            let before = (tree(&scene.kit.store()), tree(&scene.archive()), scene.statedb());
            scene.run("archive web").expect(4).says(&format!("bak-state: web: {why}"));
            assert_eq!((tree(&scene.kit.store()), tree(&scene.archive()), scene.statedb()), before, "{why}");
        }
    }
}

#[test]
fn places_that_are_not_apart() {
    let scene = Scene::new(false);
    let run = |archive: &str| {
        let args = ["archive", "web", "--db", "db", "--store", "store", "--archive-dir", archive];
        scene.kit.run("bak-state", args)
    };
    for archive in ["store", "store/old", "store/web", ".", "store/../store", "store/web/new"] {
        run(archive).expect(2).says("must be apart");
    }
    assert!(!scene.kit.path("store/old").exists());
    assert_eq!(scene.statedb(), "web:CLEAN\ndb:CLEAN\n");
    run("no/such/place").expect(2).says("cannot make the directory");
    let config = scene.kit.write("bak.toml", "store = \"store\"\ndb = \"db\"\n");
    scene.kit.run("bak-state", ["archive", "web", "--config", "bak.toml"]).expect(2).says("no archive");
    scene
        .kit
        .run("bak-state", ["activate", "web", "--config", "bak.toml", "--archive-dir", "x"])
        .expect(2)
        .says("no archive at x");
    fs::write(config, "store = \"store\"\ndb = \"db\"\narchive = \"store/.archive\"\n").unwrap();
    scene.kit.run("bak-state", ["archive", "web", "--config", "bak.toml"]).clean();
    assert_eq!(check_store(&scene.kit.path("store/.archive")).whole, IDS);
    assert_eq!(check_store(&scene.kit.store()).whole.len(), 2, "a hidden archive does not show in the store");
    scene.kit.run("bak-state", ["activate", "web", "--config", "bak.toml"]).clean();
    scene
        .kit
        .run("bak-state", ["archive", "web", "--db", "nowhere", "--config", "bak.toml"])
        .expect(2)
        .says("no database");
    assert!(!scene.kit.path("nowhere").exists());
}

/// A symbolic link where the guest's directory should be leads nowhere.
#[test]
fn a_link_in_the_archive_is_not_followed() {
    let scene = Scene::new(false);
    fs::create_dir_all(scene.archive()).unwrap();
    fs::create_dir(scene.kit.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(scene.kit.path("elsewhere"), scene.archive().join("web")).unwrap();
    scene.run("archive web").expect(1).says("bak-state: web: cannot look where web@20261118T010000Z would go");
    assert_eq!(fs::read_dir(scene.kit.path("elsewhere")).unwrap().count(), 0);
    assert_eq!(scene.statedb(), "web:CLEAN\ndb:CLEAN\n");
}

#[test]
fn what_cannot_be_moved_stays_and_is_said() {
    let scene = Scene::new(true);
    let store = scene.kit.store();
    put(&scene.kit, "web", "2026-11-20T01:00:00Z", 100);
    fs::remove_file(store.join("web/web-20261120T010000Z.raw")).unwrap();
    // The last guest of that name, and one whose sidecar nobody can read.
    put_dump(&store, "web", "2026-11-17T01:00:00Z", 100, json!({"uid": "u1"}));
    put_dump(&store, "web", "2026-11-16T01:00:00Z", 100, json!({"kind": "lxc"}));
    fs::write(store.join("web/web-20261115T010000Z.dump.json"), "{").unwrap();
    scene.kit.write("db/vmtool-details", "{\"vm\":\"web\",\"uid\":\"u2\",\"kind\":\"qemu\"}\n");
    let ran = scene.run("archive web --explain").expect(1);
    let ran = ran.says(
        "web@20261120T010000Z: it stays in the store, as it is not good: its file web-20261120T010000Z.raw is missing",
    );
    let ran = ran.says("web/web-20261115T010000Z.dump.json: cannot read the sidecar").says("2 of what was asked for");
    let records = ran.records();
    assert_eq!(moved(&records, "copied"), IDS);
    let stayed: Vec<&Value> = records.iter().filter(|r| !r["skipped"].is_null()).collect();
    let ids: Vec<_> = stayed.iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["web@20261116T010000Z", "web@20261117T010000Z", "web@20261120T010000Z"]);
    assert_eq!(stayed[0]["skipped"]["why"], "another guest's of that name: its kind or uid differs");
    assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
    assert_eq!(check_store(&scene.archive()).whole, IDS);
    assert_eq!(scene.run("archive web").expect(1).out, "", "without --explain what stays is only said");

    // Back again: what is not good keeps nobody; what may be good, and cannot be read, does.
    fs::create_dir_all(scene.archive().join("web")).unwrap();
    let torn = scene.archive().join("web/web-20261115T010000Z.dump.json");
    fs::write(&torn, "{").unwrap();
    scene.run("activate web").expect(1).says("cannot read the sidecar");
    assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
    fs::remove_file(&torn).unwrap();
    put_dump(&scene.archive(), "web", "2026-11-14T01:00:00Z", 100, json!({}));
    fs::remove_file(scene.archive().join("web/web-20261114T010000Z.raw")).unwrap();
    scene.run("activate web").expect(1).says("it stays in the archive, as it is not good");
    assert_eq!(scene.statedb(), "web:BACKUP_NECESSARY\ndb:CLEAN\n");
}
