//! Real images, and dumps of them made by hand as bak-dump makes them.

// Each of the tests that share this uses a part of it.
#![allow(dead_code)]

use bak_tests::{Kit, Ran, compact, put_dump, sha256_file};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const DAY: &str = "2026-11-20T01:00:00Z";

pub fn restore(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-restore", args)
}

#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes an image of 8 MiB with data at its begin, in the middle and at its end.
pub fn image(path: &Path, format: &str, seed: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    tool("qemu-img", &["create", "-q", "-f", format, text(path), "8M"]);
    let mut args = vec!["-f".to_owned(), format.to_owned()];
    for (at, size) in [("0", "64k"), ("3M", "300k"), ("8380416", "8k")] {
        args.extend(["-c".to_owned(), format!("write -P {seed} {at} {size}")]);
    }
    args.push(text(path).to_owned());
    tool("qemu-io", &args.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Dumps images by hand as bak-dump does: one file each, in `format`, from sources of `source_format`.
pub fn dump(store: &Path, vm: &str, started: &str, sources: &[&Path], source_format: &str, format: &str) -> String {
    let stem = format!("{vm}-{}", compact(started));
    let dir = store.join(vm);
    let id = put_dump(store, vm, started, 0, json!({}));
    fs::remove_file(dir.join(format!("{stem}.raw"))).unwrap();
    let mut files = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let disk = if sources.len() > 1 { format!("disk{number}.") } else { String::new() };
        let name = format!("{stem}.{disk}{format}");
        let file = dir.join(&name);
        tool("qemu-img", &["convert", "-f", source_format, "-O", format, text(source), text(&file)]);
        files.push(json!({"name": name, "bytes": file.metadata().unwrap().len(), "sha256": sha256_file(&file),
            "disk": number, "source": source, "format": source_format, "virtual_size": 8 << 20}));
    }
    let bytes: u64 = files.iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    let sidecar = dir.join(format!("{stem}.dump.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    record["bytes"] = bytes.into();
    record["files"] = files.into();
    fs::write(&sidecar, format!("{record}\n")).unwrap();
    id
}

/// One raw image `vm/web.img`, dumped as qcow2 into the store and then removed. What it held is in `vm/before`.
pub fn web(kit: &Kit) -> (String, PathBuf) {
    let source = kit.path("vm/web.img");
    image(&source, "raw", 7);
    let id = dump(&kit.store(), "web", DAY, &[&source], "raw", "qcow2");
    fs::rename(&source, kit.path("before")).unwrap();
    (id, source)
}

pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
pub fn same_bytes(a: &Path, b: &Path) {
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} differs from {}", a.display(), b.display());
}

pub fn format_of(path: &Path) -> String {
    let info: Value = serde_json::from_str(&tool("qemu-img", &["info", "--output=json", text(path)])).unwrap();
    info["format"].as_str().unwrap().to_owned()
}
