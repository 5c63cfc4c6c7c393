//! bak-guests, as users run it.

mod machines;

use bak_tests::{Kit, Ran};
use machines::{config, hold, image, must};
use serde::Deserialize;
use std::fs;

/// A guest record of the image driver, as the design has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guest {
    v: u32,
    r#type: String,
    vm: String,
    name: Option<String>,
    kind: String,
    driver: String,
    node: String,
    #[serde(default)]
    tags: Vec<String>,
    pool: Option<String>,
    state: String,
    fingerprint: String,
    size: u64,
    disks: Vec<Disk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    path: String,
    format: String,
    virtual_size: u64,
}

fn guests(ran: &Ran) -> Vec<Guest> {
    ran.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn list(kit: &Kit) -> Ran {
    kit.run("bak-guests", ["--images", "vm"])
}

#[test]
fn images_of_all_formats_are_guests_and_other_files_are_not() {
    let kit = Kit::new();
    for (name, format) in
        [("a.qcow2", "qcow2"), ("b.raw", "raw"), ("c.img", "qcow2"), ("d.vmdk", "vmdk"), ("e.vdi", "vdi")]
    {
        image(&kit, name, format, 1);
    }
    image(&kit, "f", "qcow2", 1);
    image(&kit, ".hidden.qcow2", "qcow2", 1);
    kit.write("vm/README", "no image");
    kit.write("vm/notes.txt", "no image");
    fs::create_dir(kit.path("vm/dir.qcow2")).unwrap();
    let ran = list(&kit).clean();
    let guests = guests(&ran);
    let seen: Vec<_> = guests.iter().map(|g| (g.vm.as_str(), g.disks[0].format.as_str())).collect();
    let expected = [("a", "qcow2"), ("b", "raw"), ("c", "qcow2"), ("d", "vmdk"), ("e", "vdi"), ("f", "qcow2")];
    assert_eq!(seen, expected);
    for guest in &guests {
        assert_eq!((guest.v, guest.r#type.as_str(), guest.kind.as_str()), (1, "guest", "qemu"));
        assert_eq!((guest.driver.as_str(), guest.state.as_str()), ("image", "stopped"));
        assert_eq!((guest.fingerprint.len(), guest.disks.len(), guest.disks[0].virtual_size), (64, 1, 8 << 20));
        assert!(guest.size >= 64 << 10 && !guest.node.is_empty(), "{guest:?}");
        assert!(guest.disks[0].path.starts_with('/') && guest.name.is_none() && guest.pool.is_none());
    }
}

#[test]
fn an_image_split_into_extents_is_one_guest() {
    let kit = Kit::new();
    fs::create_dir(kit.path("vm")).unwrap();
    let path = kit.path("vm/flat.vmdk");
    must("qemu-img", ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path.to_str().unwrap(), "8M"]);
    assert!(kit.path("vm/flat-flat.vmdk").is_file());
    assert_eq!(list(&kit).clean().column("vm"), ["flat"]);
}

#[test]
fn what_is_called_an_image_and_is_none_fails_and_the_others_work() {
    let kit = Kit::new();
    image(&kit, "good.qcow2", "qcow2", 1);
    kit.write("vm/bad.qcow2", "no image");
    std::os::unix::fs::symlink("nowhere", kit.path("vm/gone.qcow2")).unwrap();
    let ran = list(&kit).expect(1).says("bak-guests: bad: cannot read ").says("bak-guests: gone: cannot read ");
    assert_eq!(ran.column("vm"), ["good"]);
    let ran = kit.run("bak-guests", ["--images", "vm", "--explain"]).expect(1);
    let failed: Vec<_> =
        ran.records().iter().filter(|r| r["failed"]["stage"] == "list").map(|r| r["vm"].clone()).collect();
    assert_eq!(failed.len(), 2);
    // Who asks for the good one alone hears nothing of the bad ones.
    kit.run("bak-guests", ["--images", "vm", "good"]).clean();
    kit.run("bak-guests", ["--images", "vm", "bad"]).expect(1).says("not in qcow2 format");
}

#[test]
fn two_images_of_one_name_are_both_refused() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    image(&kit, "web.raw", "raw", 1);
    image(&kit, "db.raw", "raw", 1);
    let ran = list(&kit).expect(1).says("web.qcow2").says("web.raw");
    assert_eq!(ran.column("vm"), ["db"]);
}

#[test]
fn a_running_guest_is_seen_with_its_size_and_its_base_is_not_running() {
    let kit = Kit::new();
    let base = image(&kit, "base.qcow2", "qcow2", 1);
    let top = kit.path("vm/top.qcow2");
    let (base, top_text) = (base.to_str().unwrap(), top.to_str().unwrap());
    must("qemu-img", ["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top_text]);
    let stopped = guests(&list(&kit).clean());
    let _running = hold(&kit, &top, "qcow2");
    let running = guests(&list(&kit).clean());
    let states: Vec<_> = running.iter().map(|g| (g.vm.as_str(), g.state.as_str())).collect();
    assert_eq!(states, [("base", "stopped"), ("top", "running")]);
    assert!(running[1].size >= stopped[0].size + (64 << 10), "the whole chain counts");
}

#[test]
fn a_fingerprint_changes_with_any_file_of_the_chain() {
    let kit = Kit::new();
    let base = image(&kit, "base.qcow2", "qcow2", 1);
    let top = kit.path("vm/top.qcow2");
    must("qemu-img", ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top.to_str().unwrap()]);
    let prints = || list(&kit).clean().column("fingerprint");
    let first = prints();
    assert_eq!(prints(), first);
    machines::write(&base, "qcow2", 9, "2M");
    let second = prints();
    assert!(first[0] != second[0] && first[1] != second[1], "the base is part of both");
    machines::write(&top, "qcow2", 9, "3M");
    let third = prints();
    assert!(second[0] == third[0] && second[1] != third[1]);
}

#[test]
fn what_a_guest_writes_into_a_raw_disk_never_decides_how_it_is_read() {
    let kit = Kit::new();
    fs::create_dir(kit.path("vm")).unwrap();
    for name in ["a.raw", "b.img", "c"] {
        let path = kit.path("vm").join(name);
        let args =
            ["create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path.to_str().unwrap(), "1M"];
        must("qemu-img", args);
    }
    let ran = list(&kit).expect(1).says("bak-guests: b: ").says("bak-guests: c: ").says("refers to /etc/passwd");
    let seen = guests(&ran);
    assert_eq!((seen.len(), seen[0].vm.as_str(), seen[0].disks[0].format.as_str()), (1, "a", "raw"));
}

#[test]
fn declared_guests_have_several_disks_names_and_tags() {
    let kit = Kit::new();
    for name in ["sys.qcow2", "data.qcow2", "web.qcow2"] {
        image(&kit, name, "qcow2", 1);
    }
    let vm = kit.path("vm").display().to_string();
    let config = config(
        &kit,
        &format!(
            "prefix = \"n1-\"\nnode = \"n1\"\n[image]\nimages = [\"{vm}\"]\n[[image.guest]]\nvm = \"db\"\ntags = [\"prod\"]\n\
             pool = \"p\"\ndisks = [\"{vm}/sys.qcow2\", \"{vm}/data.qcow2\"]\n[[guest]]\nmatch = [\"db\"]\npriority = 7\n"
        ),
    );
    let ran = kit.run("bak-guests", ["--config", &config]).clean();
    let seen = guests(&ran);
    assert_eq!(seen.iter().map(|g| g.vm.as_str()).collect::<Vec<_>>(), ["n1-db", "n1-web"]);
    assert_eq!((seen[0].name.as_deref(), seen[0].pool.as_deref(), seen[0].disks.len()), (Some("db"), Some("p"), 2));
    assert_eq!((seen[0].tags.join(","), seen[0].node.as_str()), ("prod".to_owned(), "n1"));
    assert_eq!(kit.run("bak-guests", ["--config", &config, "--tag", "prod"]).clean().column("vm"), ["n1-db"]);
    assert_eq!(kit.run("bak-guests", ["--config", &config, "web"]).clean().column("vm"), ["n1-web"]);
    let ran = kit.run("bak-guests", ["--config", &config, "--check-config"]).clean();
    let held: Vec<_> = ran.records().iter().map(|r| r["priority"].as_i64()).collect();
    assert_eq!(held, [Some(7), Some(0)]);
}

#[test]
fn a_configuration_without_guests_is_checked_all_the_same() {
    let kit = Kit::new();
    std::fs::create_dir_all(kit.path("none")).unwrap();
    let check = |config: &str| {
        kit.write("bak.toml", config);
        kit.run("bak-guests", ["--config", "bak.toml", "--check-config"])
    };
    let images = format!("[image]\nimages = [\"{}\"]\n", kit.path("none").display());
    for (config, note) in [("", "names none"), ("driver = \"image\"\n", "names none"), (&images, "there are none")] {
        let ran = check(config).expect(0).says("bak-guests: the configuration can be read");
        assert!(ran.err.contains(note) && ran.out.is_empty(), "{config}: {}", ran.err);
    }
    check("stroe = \"store\"\n").expect(2).says("stroe");
    check("driver = \"vbxo\"\n").expect(2).says("no driver `vbxo`");
    check("[image]\nimages = [\"nowhere\"]\n").expect(1).says("no such file");
}

#[test]
fn mistakes_of_the_user() {
    let kit = Kit::new();
    image(&kit, "web.qcow2", "qcow2", 1);
    kit.run("bak-guests", ["--driver", "vbxo"])
        .expect(2)
        .says("no driver `vbxo`: it is not built in (image, vbox, vzdump)");
    kit.run("bak-guests", Vec::<&str>::new()).expect(2).says("--images");
    kit.run("bak-guests", ["--driver", "image"]).expect(2).says("--images");
    kit.run("bak-guests", ["--images", "vm", "-"]).expect(2);
    kit.run("bak-guests", ["--images", "vm", "wbe"]).expect(1).says("bak-guests: wbe: there is no guest");
    kit.run("bak-guests", ["--images", "nowhere"]).expect(1).says("no such file");
    kit.run("bak-guests", ["--images", "vm/*.raw"]).expect(1).says("nothing matches");
    assert_eq!(kit.run("bak-guests", ["--images", "vm/w*"]).clean().column("vm"), ["web"]);
    assert_eq!(kit.run("bak-guests", ["--images", "vm", "--images", "vm/*"]).clean().column("vm"), ["web"]);
    kit.run("bak-guests", ["--version"]).clean();
    assert!(kit.run("bak-guests", ["--help"]).clean().out.contains("Exit status"));
}

#[test]
fn on_a_terminal_a_table_is_printed_and_names_cannot_move_the_cursor() {
    let kit = Kit::new();
    image(&kit, "a\u{1b}[2Jb.qcow2", "qcow2", 1);
    let ran = kit.sh("script -qec 'bak-guests --images vm' /dev/null").expect(0);
    assert!(ran.out.contains("VM") && ran.out.contains("stopped") && !ran.out.contains("{\"v\""), "{}", ran.out);
    assert!(ran.out.contains("a\\u{1b}[2Jb") && !ran.out.contains("\u{1b}[2J"), "{:?}", ran.out);
}

#[test]
fn a_raw_image_in_use_is_seen_as_well() {
    for name in ["web.raw", "we,b.img"] {
        let kit = Kit::new();
        let path = image(&kit, name, "raw", 1);
        let state = || guests(&list(&kit).clean())[0].state.clone();
        assert_eq!(state(), "stopped");
        let running = hold(&kit, &path, "raw");
        assert_eq!(state(), "running");
        drop(running);
        assert_eq!(state(), "stopped");
    }
}

#[test]
fn on_80_columns_a_guest_is_a_line_and_empty_columns_are_left_out() {
    let kit = Kit::new();
    for name in ["accounting-database-2.qcow2", "web.raw"] {
        image(&kit, name, if name.ends_with("raw") { "raw" } else { "qcow2" }, 1);
    }
    let heading = |columns: usize| {
        let ran = kit.sh(&format!("script -qec 'stty cols {columns}; bak-guests --images vm' /dev/null")).expect(0);
        let lines: Vec<&str> = ran.out.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.trim_end().chars().count() <= columns), "{}", ran.out);
        lines[0].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(heading(80), "VM STATE SIZE KIND DRIVER");
    assert_eq!(heading(45), "VM STATE SIZE");
}
