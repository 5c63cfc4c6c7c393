//! bak-restore as users run it, with real images: what is brought back, from where, and to where.

mod images;

use bak_tests::{Kit, compact, put_dump};
use images::*;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn back_to_its_place_in_the_format_of_its_source() {
    let kit = Kit::new();
    let (id, source) = web(&kit);
    let planned = restore(&kit, &["web", "--store", "store", "-n"]).clean().records();
    assert_eq!((&planned[0]["planned"], names(kit.path("vm")).len()), (&json!(true), 0));
    let ran = restore(&kit, &["web", "--store", "store", "--now", "2026-11-21T00:00:00Z"]).clean();
    let records = ran.records();
    assert_eq!((records.len(), ran.column("id")), (1, vec![id]));
    let source = source.parent().unwrap().canonicalize().unwrap().join("web.img");
    assert_eq!(records[0]["restored"], json!({"to": [text(&source)], "at": "2026-11-21T00:00:00Z"}));
    assert_eq!(planned[0]["restored"], json!({"to": [text(&source)]}));
    same_bytes(&source, &kit.path("before"));
    assert_eq!(names(kit.path("vm")), ["web.img"]);
    assert_eq!(source.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(source.metadata().unwrap().blocks() * 512 < 2 << 20, "holes should stay holes");
}

#[test]
fn elsewhere_as_stored_or_as_asked() {
    let kit = Kit::new();
    let (id, source) = web(&kit);
    fs::create_dir(kit.path("out")).unwrap();
    for (args, made, format) in [
        (&["--to", "out"][..], "out/web.qcow2", "qcow2"),
        (&["--to", "out", "--format", "raw"], "out/web.raw", "raw"),
        (&["--to", "out", "--as", "new/1"], "out/new%2F1.qcow2", "qcow2"),
        (&["--to", "x.raw"], "x.raw", "raw"),
        (&["--to", "./y.disk"], "y.disk", "qcow2"),
        (&["--to", "z.raw", "--format", "qcow2"], "z.raw", "qcow2"),
        (&["--as", "copy"], "vm/copy.raw", "raw"),
    ] {
        restore(&kit, &[&[&id, "--store", "store"], args].concat()).clean();
        let made = kit.path(made);
        assert_eq!(format_of(&made), format, "{args:?}");
        tool("qemu-img", &["compare", "-q", "-F", "raw", "-f", format, text(&made), text(&kit.path("before"))]);
    }
    assert!(!source.exists());
    // As stored is a copy, to the byte.
    same_bytes(&kit.path("out/web.qcow2"), &kit.path(&format!("store/web/web-{}.qcow2", compact(DAY))));
}

#[test]
fn raw_dumps_keep_their_holes() {
    let kit = Kit::new();
    let source = kit.path("vm/web.raw");
    image(&source, "raw", 9);
    dump(&kit.store(), "web", DAY, &[&source], "raw", "raw");
    for (args, made) in [(["--to", "."], "web.raw"), (["--to", "web.qcow2"], "web.qcow2")] {
        restore(&kit, &[&["web", "--from", "store"], &args[..]].concat()).clean();
        tool("qemu-img", &["compare", "-q", text(&kit.path(made)), text(&source)]);
        assert!(kit.path(made).metadata().unwrap().blocks() * 512 < 2 << 20, "{made}");
    }
    same_bytes(&kit.path("web.raw"), &source);
}

#[test]
fn several_disks() {
    let kit = Kit::new();
    let disks = [kit.path("vm/a.qcow2"), kit.path("vm/b.qcow2")];
    image(&disks[0], "qcow2", 1);
    image(&disks[1], "qcow2", 2);
    dump(&kit.store(), "db", DAY, &[&disks[0], &disks[1]], "qcow2", "qcow2");
    fs::create_dir(kit.path("out")).unwrap();
    let ran = restore(&kit, &["db", "--store", "store", "--to", "out"]).clean();
    assert_eq!(names(kit.path("out")), ["db.disk0.qcow2", "db.disk1.qcow2"]);
    assert_eq!(ran.records()[0]["restored"]["to"].as_array().unwrap().len(), 2);
    for (number, disk) in disks.iter().enumerate() {
        tool("qemu-img", &["compare", "-q", text(disk), text(&kit.path(&format!("out/db.disk{number}.qcow2")))]);
    }
    restore(&kit, &["db", "--store", "store", "--to", "one.qcow2"]).expect(2).says("has 2 disks");
    // One of two targets is there: nothing at all is written.
    fs::remove_file(&disks[0]).unwrap();
    restore(&kit, &["db", "--store", "store"]).expect(4).says("b.qcow2 is there already");
    assert_eq!(names(kit.path("vm")), ["b.qcow2"]);
}

#[test]
fn a_terminal_gets_a_table() {
    let kit = Kit::new();
    web(&kit);
    let ran = kit.sh("script -qec 'stty cols 200; bak-restore web --store store --to x.raw -n' /dev/null").expect(0);
    assert!(ran.out.contains("WOULD BE WRITTEN TO") && !ran.out.contains('{'), "{}", ran.out);
    let ran = kit.sh("script -qec 'stty cols 200; bak-restore web --store store --to x.raw -q' /dev/null").expect(0);
    assert_eq!(ran.out, "");
    assert!(kit.path("x.raw").exists());
}

#[test]
fn which_dump_is_meant() {
    let kit = Kit::new();
    for (day, seed) in [(18, 1), (19, 2), (20, 3)] {
        let source = kit.path("vm/web.raw");
        image(&source, "raw", seed);
        dump(&kit.store(), "web", &format!("2026-11-{day}T01:00:00Z"), &[&source], "raw", "raw");
    }
    fs::write(kit.path("store/web/web-20261120T010000Z.raw"), "short").unwrap();
    for (asked, day) in
        [("web", 19), ("web@latest", 19), ("web@2026-11-18T12:00:00Z", 18), ("web@20261118T010000Z", 18)]
    {
        let ran = restore(&kit, &[asked, "--store", "store", "--to", "got.raw", "--force"]).expect(0);
        assert_eq!(ran.column("id"), [format!("web@202611{day}T010000Z")], "{asked}");
        // That it is not the newest is said.
        assert_eq!(ran.err.contains("web@20261120T010000Z is newer and not good"), day == 19, "{asked}: {}", ran.err);
        same_bytes(&kit.path("got.raw"), &kit.path(&format!("store/web/web-202611{day}T010000Z.raw")));
    }
    // One that is unknown does not keep the others.
    fs::create_dir(kit.path("out")).unwrap();
    let ran = restore(&kit, &["web@20261101T010000Z", "nobody", "web", "--store", "store", "--to", "out"]).expect(1);
    assert!(ran.err.contains("bak-restore: web@20261101T010000Z: there is no such dump"), "{}", ran.err);
    assert!(ran.err.contains("bak-restore: nobody: there is no dump"), "{}", ran.err);
    assert_eq!(names(kit.path("out")), ["web.raw"]);
    // Two dumps of one guest would be one file, whatever is forced.
    let two = ["web@20261118T010000Z", "web@20261119T010000Z", "--store", "store", "--to", "out", "--force"];
    let ran = restore(&kit, &two).expect(1).says("was written by this run already");
    assert_eq!(ran.column("id"), ["web@20261118T010000Z"]);
    restore(&kit, &[&two[..5], &["one.raw"]].concat()).expect(2).says("--to must be a directory");
    restore(&kit, &[&two[..4], &["--as", "x"]].concat()).expect(2).says("get one name");
    restore(&kit, &["--store", "store"]).expect(2).says("say which");
    restore(&kit, &["web", "--store", "nowhere"]).expect(2).says("there is no store");
    restore(&kit, &["web@now", "--store", "store"]).expect(2).says("`latest` or a time");
    assert!(restore(&kit, &["--help"]).clean().out.contains("Exit status"));
}

#[test]
fn a_number_that_two_guests_have_had() {
    let kit = Kit::new();
    for (day, uid) in [(18, "a"), (19, "b")] {
        put_dump(&kit.store(), "100", &format!("2026-11-{day}T01:00:00Z"), 512, json!({"uid": uid}));
    }
    let ran = restore(&kit, &["100", "--store", "store", "--to", "x.raw"]).expect(2);
    assert!(ran.err.contains("100@20261118T010000Z (qemu with uid a)"), "{}", ran.err);
    restore(&kit, &["100@20261118T010000Z", "--store", "store", "--to", "x.raw"]).clean();
    same_bytes(&kit.path("x.raw"), &kit.path("store/100/100-20261118T010000Z.raw"));
}

#[test]
fn a_sidecar_that_cannot_be_read_may_hide_the_newest() {
    let kit = Kit::new();
    kit.dump("web", DAY, 512);
    kit.dump("db", DAY, 512);
    kit.write("store/web/web-20261121T010000Z.dump.json", "{");
    let ran = restore(&kit, &["web", "--store", "store", "--to", "web.raw"]).expect(1).says("cannot read the sidecar");
    assert_eq!(ran.column("id"), ["web@20261120T010000Z"]);
    // Who names the dump, or another guest, is not bothered.
    restore(&kit, &["web@20261120T010000Z", "--store", "store", "--to", "web2.raw"]).clean();
    restore(&kit, &["db", "--store", "store", "--to", "db.raw"]).clean();
}

#[test]
fn records_on_standard_input_select_and_never_describe() {
    let kit = Kit::new();
    let (id, source) = web(&kit);
    let line = kit.run("bak-list", ["store"]).clean().out;
    let mut record: Value = serde_json::from_str(&line).unwrap();
    record["x-mine"] = json!({"kept": true});
    record["bytes"] = json!(3);
    record["dir"] = json!("/etc");
    record["files"] = json!([{"name": format!("web-{}.raw", compact(DAY)), "bytes": 3, "source": "/etc/passwd"}]);
    let unknown = line.replace(&compact(DAY), "20261101T010000Z").replace(DAY, "2026-11-01T01:00:00Z");
    let ran =
        kit.run_with("bak-restore", ["--store", "store", "-"], &format!("nonsense\n{unknown}{record}\n")).expect(1);
    assert!(ran.err.contains("standard input, line 1: not a record"), "{}", ran.err);
    assert!(ran.err.contains("web@20261101T010000Z: there is no such dump"), "{}", ran.err);
    let out = ran.records();
    assert_eq!((out.len(), &out[0]["id"], &out[0]["x-mine"]), (1, &json!(id), &json!({"kept": true})));
    assert_ne!(out[0]["bytes"], json!(3));
    same_bytes(&source, &kit.path("before"));
    // What a dry run printed is for dry runs.
    let planned = restore(&kit, &["web", "--store", "store", "--to", "x.raw", "-n"]).clean().out;
    kit.run_with("bak-restore", ["--store", "store", "--to", "x.raw", "-"], &planned).expect(2).says("without -n");
    kit.run_with("bak-restore", ["--store", "store", "--to", "x.raw", "-n", "-"], &planned).clean();
    assert!(!kit.path("x.raw").exists());
    let piped =
        kit.sh("bak-list store --latest | jq -c . | bak-restore --store store --to y.raw - | jq -r .restored.to[0]");
    assert!(piped.clean().out.ends_with("/y.raw\n"));
}

#[test]
fn from_an_outbox_or_a_far_side_that_is_mounted() {
    let kit = Kit::new();
    let far = kit.path("far");
    put_dump(&far, "web", DAY, 4096, json!({}));
    put_dump(&kit.path("store/.outbox-box"), "web", DAY, 4096, json!({}));
    kit.write("bak.toml", "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"far\"\n");
    for (number, from) in ["far", "box", "store/.outbox-box"].iter().enumerate() {
        let to = format!("{number}.raw");
        restore(&kit, &["web", "--from", from, "--config", "bak.toml", "--to", &to]).clean();
        same_bytes(&kit.path(&to), &far.join(format!("web/web-{}.raw", compact(DAY))));
    }
    // What the store has not is taken from the destinations; but where it goes they do not say.
    restore(&kit, &["web", "--config", "bak.toml"]).expect(2).says("say where to write by --to");
    restore(&kit, &["web", "--config", "bak.toml", "--to", "x.raw"]).clean();
    same_bytes(&kit.path("x.raw"), &far.join(format!("web/web-{}.raw", compact(DAY))));
    let ran = restore(&kit, &["db", "--config", "bak.toml", "--to", "y.raw"]).expect(1);
    assert!(ran.err.contains("db: there is no dump of a guest called so (in the store; nor at box)"), "{}", ran.err);
}
