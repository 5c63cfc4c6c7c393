//! Every command of the README's chapter "A node is dead: what now", on a Proxmox node that has nothing but a way to the box.

mod images;

use bak_tests::pve::Node;
use bak_tests::sshd::Sshd;
use bak_tests::{noise, put_dump, sha256_file};
use images::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const TIME: &str = "2026-11-20T01:00:02Z";

/// The lines of `sh` in the chapter of this name.
fn commands(chapter: &str) -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let chapter = readme.split(&format!("\n## {chapter}\n")).nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let blocks = chapter.split("```sh\n").skip(1).map(|block| block.split("\n```").next().unwrap().to_owned());
    let lines = blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| line.split("   #").next().unwrap().trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Puts a dump of one file with this name and content over there.
fn put(far: &Path, vm: &str, stem: &str, ending: &str, content: &[u8], driver: &str) {
    let old = put_dump(far, vm, TIME, 1, json!({}));
    let dir = far.join(vm);
    let old = old.replace('@', "-");
    fs::remove_file(dir.join(format!("{old}.raw"))).unwrap();
    let name = format!("{stem}.{ending}");
    fs::write(dir.join(&name), content).unwrap();
    let text = fs::read(dir.join(format!("{old}.dump.json"))).unwrap();
    fs::remove_file(dir.join(format!("{old}.dump.json"))).unwrap();
    let mut record: Value = serde_json::from_slice(&text).unwrap();
    record["files"] = json!([{"name": name, "bytes": content.len(), "sha256": sha256_file(&dir.join(&name))}]);
    (record["bytes"], record["driver"], record["stem"]) = (content.len().into(), driver.into(), stem.into());
    fs::write(dir.join(format!("{stem}.dump.json")), format!("{record}\n")).unwrap();
}

#[test]
fn every_command_works() {
    let node = Node::new();
    let kit = &node.kit;
    let sshd = Sshd::start(&kit.path("sshd"));
    let root = kit.path("root");
    let far = root.join("srv/bak");
    for dir in ["srv/bak", "var/lib/libvirt/images", "var/lib/vz/dump", "var/cache"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let source = kit.path("vm/web.img");
    image(&source, "raw", 7);
    dump(&far, "web", TIME, &[&source], "raw", "qcow2");
    let content = noise(1, 100_000);
    kit.write("plain", [b"VMA\0", &content[..]].concat());
    kit.sh("zstd -q plain -o packed").clean();
    let packed = fs::read(kit.path("packed")).unwrap();
    put(&far, "100", "vzdump-qemu-100-2026_11_20-02_00_02", "vma.zst", &packed, "vzdump");
    put(&far, "shop", "shop-20261120T010002Z", "sql.zst", &packed, "postgres");
    // For the last command, which is of the time before.
    let words: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    let config = fs::read_to_string(kit.path("bak.toml")).unwrap();
    let dest = format!("[[dest]]\nname = \"box\"\nurl = \"{}\"\nssh = [{}]\n", sshd.url(&far), words.join(", "));
    kit.write("bak.toml", config + &dest);
    let commands = commands("A node is dead: what now");
    assert!(commands.len() > 10, "{commands:?}");
    for command in &commands {
        let mut line = command.replace("backup@box:/srv/bak", &sshd.url(&far));
        for top in ["/var/lib/vz", "/var/lib/libvirt"] {
            line = line.replace(&format!(" {top}"), &format!(" {}{top}", root.display()));
        }
        if line.starts_with("bak-") {
            line += &format!(" --config bak.toml --ssh '{}'", sshd.command());
        }
        let line =
            format!("export RSYNC_RSH='{}' XDG_CACHE_HOME='{}/var/cache'; {line}", sshd.command(), root.display());
        let ran = node.sh(&line);
        assert_eq!(ran.status, 0, "{command}\n{line}\n{}", ran.err);
    }
    for (format, made) in [("qcow2", "web.qcow2"), ("raw", "web.raw")] {
        let made = root.join("var/lib/libvirt/images").join(made);
        tool("qemu-img", &["compare", "-q", "-f", "raw", "-F", format, text(&source), text(&made)]);
    }
    for id in [100, 200, 300] {
        assert!(fs::read(node.content(id)).unwrap() == content, "{id}");
    }
    same_bytes(&kit.path("shop-20261120T010002Z.sql"), &kit.path("plain"));
}
