//! What the move makes of files and file systems: holes, damage, links that cannot be made, no room.

use super::*;
use bak_tests::{finish, strace};
use std::os::unix::fs::FileExt;

#[test]
fn sparse_stays_sparse() {
    for back in [false, true] {
        let scene = Scene::new(true);
        let stem = "web-20261120T010000Z";
        let path = scene.kit.path(&format!("store/web/{stem}.raw"));
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        for at in [0, 500 << 20, (1 << 30) - 5] {
            file.write_all_at(b"data!", at).unwrap();
        }
        let sha = sha256_file(&path);
        let record = json!({"v": 1, "type": "dump", "id": "web@20261120T010000Z", "vm": "web", "kind": "qemu", "driver": "image",
            "started": "2026-11-20T01:00:00Z", "finished": "2026-11-20T01:00:00Z", "stem": stem, "bytes": 1 << 30,
            "files": [{"name": format!("{stem}.raw"), "bytes": 1 << 30, "sha256": sha}]});
        fs::write(scene.kit.path(&format!("store/web/{stem}.dump.json")), format!("{record}\n")).unwrap();
        scene.run("archive web").clean();
        let mut now = scene.archive().join("web").join(format!("{stem}.raw"));
        if back {
            scene.run("activate web").clean();
            now = path;
        }
        let meta = fs::metadata(&now).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        assert_eq!(sha256_file(&now), sha);
    }
}

#[test]
fn a_cut_off_move_is_finished() {
    for far in [false, true] {
        // Published there, and not yet removed here.
        let scene = Scene::new(far);
        scene.run("archive web").clean();
        let line = if far { "cp -a" } else { "cp -al" };
        scene
            .kit
            .sh(&format!("mkdir store/web 2>/dev/null; {line} {}/web/* store/web/", scene.archive().display()))
            .clean();
        let records = scene.run("archive web").clean().records();
        assert_eq!(moved(&records, "found"), IDS);
        let (left, there) = scene.whole();
        assert_eq!((left.len(), there.len()), (2, 2));

        // A copy of the right size that is damaged is no reason to remove the original.
        scene
            .kit
            .sh(&format!("mkdir store/web 2>/dev/null; cp -a {}/web/* store/web/", scene.archive().display()))
            .clean();
        let torn = scene.archive().join("web/web-20261119T010000Z.raw");
        fs::File::options().write(true).open(&torn).unwrap().write_all_at(b"torn", 200_000).unwrap();
        let ran = scene.run("archive web").expect(1);
        let ran = ran.says("web@20261119T010000Z: cannot move it to the archive: web-20261119T010000Z.raw is damaged");
        assert_eq!(moved(&ran.records(), "found"), IDS[..1]);
        assert!(check_store(&scene.kit.store()).whole.contains(&IDS[1].to_owned()));
        // Nor one that lacks a mark.
        fs::copy(scene.kit.path(&format!("{NEWEST}.raw")), &torn).unwrap();
        fs::remove_file(torn.with_extension("raw.protected")).unwrap();
        scene.run("archive web").expect(1).says("web-20261119T010000Z.raw.protected is missing in ");
        assert!(scene.kit.path(&format!("{NEWEST}.raw.protected")).exists());
    }
}

/// A dump whose data no longer is what its sidecar says must not become the only one by being copied.
#[test]
fn a_damaged_dump_is_not_copied() {
    let scene = Scene::new(true);
    let data = scene.kit.path(&format!("{NEWEST}.raw"));
    fs::File::options().write(true).open(data).unwrap().write_all_at(b"torn", 200_000).unwrap();
    let ran =
        scene.run("archive web").expect(1).says("web-20261119T010000Z.raw is damaged: the SHA-256 of its copy is");
    assert_eq!(moved(&ran.records(), "copied"), IDS[..1]);
    assert_eq!(check_store(&scene.archive()).whole, IDS[..1]);
    assert_eq!(check_store(&scene.archive()).unfinished, [""; 0]);
    assert!(scene.kit.path(&format!("{NEWEST}.dump.json")).exists());
    assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
}

/// Without SHA-256 in the sidecar the bytes are compared.
#[test]
fn without_hashes() {
    let scene = Scene::new(true);
    let sidecar = scene.kit.path(&format!("{NEWEST}.dump.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    record["files"][0].as_object_mut().unwrap().remove("sha256");
    fs::write(&sidecar, format!("{record}\n")).unwrap();
    let before = tree(&scene.kit.store());
    scene.run("archive web").clean();
    scene.run("activate web").clean();
    assert_eq!(tree(&scene.kit.store()), before);
}

#[test]
fn links_that_cannot_be_made_are_copies() {
    let scene = Scene::new(false);
    for error in ["EPERM", "EXDEV", "EMLINK"] {
        let before = tree(&scene.kit.store());
        strace::inject(&scene.kit, &scene.argv("archive web"), "linkat", &format!("error={error}"), 1);
        assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
        assert_eq!(scene.whole().1, IDS, "{error}");
        scene.run("activate web").clean();
        assert_eq!(tree(&scene.kit.store()), before);
        scene.statuses("web:CLEAN\ndb:CLEAN\n");
    }
}

/// A real full disk, in a mount namespace of its own: nothing stays mounted, whatever happens to this test.
#[test]
fn a_full_disk_leaves_the_source_untouched() {
    let scene = Scene::new(false);
    let before = tree(&scene.kit.store());
    let state = "bak-state archive web --db db --store store --archive-dir mnt";
    let inside = |script: &str| {
        let mut command = scene.kit.command("unshare");
        let script = format!("mkdir -p mnt && mount -t tmpfs -o size=200k none mnt || exit 99; {script}");
        command.args(["-m", "sh", "-c", &script]);
        finish(command, "")
    };
    let ran = inside(&format!("{state}; echo $?")).expect(0);
    assert_eq!(ran.out, "1\n");
    ran.says("web: there is no room in ").says(": its dumps need ");
    assert_eq!((tree(&scene.kit.store()), scene.statedb()), (before.clone(), "web:CLEAN\ndb:CLEAN\n".into()));

    // Room that is there when it is looked at and gone when it is needed; and then is there again.
    let fill =
        "mount -o remount,size=20m mnt; strace -f -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:error=ENOSPC";
    let ran =
        inside(&format!("{fill} {state}; echo $?; find mnt -type f ! -name lock; {state}; echo $?; ls mnt/web store"));
    let ran = ran.expect(0).says("web@20261118T010000Z: cannot move it to the archive: the disk of ");
    let ran = ran.says("/mnt is full, make room there (bak-prune does): cannot copy web-20261118T010000Z.raw: cannot write it: No space left");
    assert!(ran.out.contains("ARCHIVED") && ran.out.contains("\n1\n") && ran.out.contains("\n0\n"), "{}", ran.out);
    assert!(ran.out.contains("mnt/web:\nweb-20261118T010000Z.dump.json\nweb-20261118T010000Z.raw\n"), "{}", ran.out);
}

/// Room in the store is less by what must stay free there.
#[test]
fn the_reserve_is_kept() {
    let scene = Scene::new(true);
    scene.run("archive web").clean();
    scene.kit.write("bak.toml", "reserve = \"9000T\"\n");
    scene.run("activate web --config bak.toml").expect(1).says("web: there is no room in ");
    assert_eq!(scene.statedb(), "web:ARCHIVED\ndb:CLEAN\n");
    scene.run("activate web").clean();
    // Links need none.
    let scene = Scene::new(false);
    scene.run("archive web").clean();
    scene.kit.write("bak.toml", "reserve = \"9000T\"\n");
    scene.run("activate web --config bak.toml").clean();
}
