//! bak-restore where it must not write: damage, files that are there or in use, crashes, full disks, hostile records.

mod images;

use bak_tests::{Kit, compact, put_dump, sha256_file};
use images::*;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

#[test]
fn damage_is_found_before_anything_is_written() {
    let kit = Kit::new();
    let (_, source) = web(&kit);
    kit.write("vm/web.img", "the old one");
    let file = kit.path(&format!("store/web/web-{}.qcow2", compact(DAY)));
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    fs::write(&file, &bad).unwrap();
    let ran = restore(&kit, &["web", "--store", "store", "--force"]).expect(1).says("is damaged: its SHA-256 is");
    assert_eq!((ran.out.as_str(), ran.err.lines().count()), ("", 2));
    fs::write(&file, &good[..last]).unwrap();
    restore(&kit, &["web", "--store", "store", "--force"])
        .expect(1)
        .says("the newest is web@20261120T010000Z: its file");
    restore(&kit, &[&format!("web@{}", compact(DAY)), "--store", "store", "--force"])
        .expect(1)
        .says(&format!("has {last} bytes instead of {}", last + 1));
    assert_eq!((fs::read(&source).unwrap(), names(kit.path("vm"))), (b"the old one".to_vec(), vec!["web.img".into()]));
}

#[test]
fn without_a_checksum_it_says_so() {
    let kit = Kit::new();
    web(&kit);
    let sidecar = kit.path(&format!("store/web/web-{}.dump.json", compact(DAY)));
    let mut record: Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    record["files"][0].as_object_mut().unwrap().remove("sha256");
    fs::write(&sidecar, format!("{record}\n")).unwrap();
    let ran = restore(&kit, &["web", "--store", "store"]).expect(0).says("has no SHA-256");
    assert_eq!(ran.err.lines().count(), 1);
    same_bytes(&kit.path("vm/web.img"), &kit.path("before"));
}

#[test]
fn what_is_there_is_replaced_only_by_force() {
    let kit = Kit::new();
    let (_, source) = web(&kit);
    kit.write("vm/web.img", "the old one");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
    let as_root = tool("id", &["-u"]).trim() == "0";
    if as_root {
        std::os::unix::fs::chown(&source, Some(1234), Some(4321)).unwrap();
    }
    let args = ["web", "--store", "store"];
    for more in [&[][..], &["-n"]] {
        restore(&kit, &[&args, more].concat()).expect(4).says("is there already: --force");
    }
    assert_eq!(fs::read(&source).unwrap(), b"the old one");
    let open = fs::File::open(&source).unwrap();
    restore(&kit, &[&args[..], &["--force"]].concat()).clean();
    same_bytes(&source, &kit.path("before"));
    // Replaced, not written into: who has the old one open still reads it. The new one has its owner and rights.
    let (new, mut old) = (source.metadata().unwrap(), String::new());
    (&open).read_to_string(&mut old).unwrap();
    assert_eq!((old.as_str(), new.mode() & 0o777), ("the old one", 0o640));
    if as_root {
        assert_eq!((new.uid(), new.gid()), (1234, 4321));
    }
    assert_eq!(names(kit.path("vm")), ["web.img"]);
    // What is no file of its own is never replaced.
    fs::rename(&source, kit.path("vm/real.img")).unwrap();
    symlink("real.img", &source).unwrap();
    restore(&kit, &[&args[..], &["--force"]].concat()).expect(4).says("is a symbolic link");
    fs::remove_file(&source).unwrap();
    fs::create_dir(&source).unwrap();
    restore(&kit, &[&args[..], &["--force"]].concat()).expect(4).says("is not a regular file");
    same_bytes(&kit.path("vm/real.img"), &kit.path("before"));
}

#[test]
fn dumps_are_never_written_into() {
    let kit = Kit::new();
    let (id, _) = web(&kit);
    let file = format!("store/web/web-{}.qcow2", compact(DAY));
    for to in [file.clone(), file.replace("qcow2", "dump.json")] {
        restore(&kit, &[&id, "--store", "store", "--force", "--to", &to]).expect(4).says("file of the dump");
    }
    assert_eq!(bak_tests::check_store(&kit.store()).whole, [id]);
}

/// A qemu-io that has an image open for writing.
struct Holder {
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl Holder {
    fn new(path: &Path, format: &str) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format, text(path)]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.as_ref().unwrap(), "read 0 512").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // Its answer proves that it has the image open.
        while !line.contains("read 512/512") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "qemu-io has ended");
        }
        Self { child, _output: output }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[test]
fn an_image_in_use_is_not_replaced_even_by_force() {
    let kit = Kit::new();
    web(&kit);
    for format in ["raw", "qcow2"] {
        let target = kit.path(&format!("used.{format}"));
        image(&target, format, 5);
        let inode = target.metadata().unwrap().ino();
        let holder = Holder::new(&target, format);
        let args = ["web", "--store", "store", "--force", "--to", text(&target)];
        restore(&kit, &args).expect(4).says("is in use");
        assert_eq!(target.metadata().unwrap().ino(), inode);
        drop(holder);
        restore(&kit, &args).clean();
        assert_eq!(format_of(&target), format);
    }
    assert!(names(kit.path("")).iter().all(|name| !name.contains("bak-restore")));
}

#[test]
fn a_crash_leaves_a_hidden_file_that_the_next_run_replaces() {
    let kit = Kit::new();
    let (_, source) = web(&kit);
    kit.write("vm/web.img", "the old one");
    let line = "ulimit -f 1024; exec bak-restore web --store store --force --to vm/web.img";
    // The limit on file sizes kills it in mid-copy, as a raw image of 8 MiB does not pass 512 KiB.
    let raw = kit.path("vm/raw.raw");
    image(&raw, "raw", 3);
    dump(&kit.store(), "raw", DAY, &[&raw], "raw", "raw");
    fs::remove_file(&raw).unwrap();
    let ran = kit.sh(&line.replace(" web ", " raw "));
    assert!(ran.status < 0, "{ran:?}");
    assert_eq!(names(kit.path("vm")), [".web.img.bak-restore", "web.img"]);
    assert_eq!(fs::read(&source).unwrap(), b"the old one");
    // Where only qemu-img dies, nothing is left.
    kit.write("vm/web.img", "the old one");
    kit.sh(&line.replace("web.img", "web.img --format raw")).expect(1).says("qemu-img");
    assert_eq!((names(kit.path("vm")), fs::read(&source).unwrap()), (vec!["web.img".into()], b"the old one".to_vec()));
    kit.write("vm/.web.img.bak-restore", "left by a crash");
    restore(&kit, &["web", "--store", "store", "--force"]).clean();
    same_bytes(&source, &kit.path("before"));
    assert_eq!(names(kit.path("vm")), ["web.img"]);
}

#[test]
fn what_lies_under_the_hidden_name_is_not_followed() {
    let kit = Kit::new();
    let (_, source) = web(&kit);
    let precious = kit.write("precious", "precious");
    let hidden = kit.path("vm/.web.img.bak-restore");
    symlink(&precious, &hidden).unwrap();
    restore(&kit, &["web", "--store", "store"]).expect(1).says(".web.img.bak-restore is a symbolic link");
    fs::remove_file(&hidden).unwrap();
    fs::hard_link(&precious, &hidden).unwrap();
    restore(&kit, &["web", "--store", "store"]).expect(1).says("has another name too");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    fs::remove_file(&hidden).unwrap();
    // Another one at work there.
    let file = fs::File::create(&hidden).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    restore(&kit, &["web", "--store", "store"]).expect(3).says("another bak-restore");
    assert!(hidden.exists() && !source.exists());
}

/// A small file system, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(kit: &Kit, megabytes: u64) -> Self {
        let (disk, dir) = (kit.path("small.disk"), kit.path("small"));
        fs::File::create(&disk).unwrap().set_len(megabytes << 20).unwrap();
        fs::create_dir(&dir).unwrap();
        tool("mkfs.ext4", &["-q", "-m", "0", text(&disk)]);
        tool("mount", &["-o", "loop", text(&disk), text(&dir)]);
        let mount = Self(dir);
        tool("mountpoint", &["-q", text(&mount.0)]);
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    if tool("id", &["-u"]).trim() != "0" {
        eprintln!("left out: only root can mount a small file system");
        return;
    }
    let kit = Kit::new();
    let mount = Mount::new(&kit, 40);
    // Scattered data: 64 KiB clusters here, blocks of 1 MiB in the format of its source, which so needs far more than
    // could be foreseen.
    let scattered = kit.path("scattered.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&scattered), "64M"]);
    let writes: Vec<String> = (0..64).map(|at| format!("write -P 1 {at}M 4k")).collect();
    let mut args = vec!["-f", "qcow2"];
    writes.iter().for_each(|write| args.extend(["-c", write]));
    args.push(text(&scattered));
    tool("qemu-io", &args);
    let target = mount.0.join("web.vdi");
    fs::write(&target, "the old one").unwrap();
    let id = dump(&kit.store(), "web", DAY, &[&scattered], "qcow2", "qcow2");
    let sidecar = kit.path(&format!("store/web/web-{}.dump.json", compact(DAY)));
    let text_of = fs::read_to_string(&sidecar).unwrap();
    let text_of =
        text_of.replace(text(&scattered), text(&target)).replace("\"format\":\"qcow2\"", "\"format\":\"vdi\"");
    fs::write(&sidecar, text_of).unwrap();
    let untouched = || {
        assert_eq!(fs::read(&target).unwrap(), b"the old one");
        assert_eq!(names(&mount.0), ["lost+found", "web.vdi"]);
    };
    restore(&kit, &[&id, "--store", "store", "--force"]).expect(1).says("No space left on device");
    untouched();
    // What can be foreseen is refused with numbers.
    let big = kit.path("big.raw");
    fs::write(&big, vec![1; 50 << 20]).unwrap();
    dump(&kit.store(), "big", DAY, &[&big], "raw", "raw");
    let ran = restore(&kit, &["big", "--store", "store", "--force", "--to", text(&target)]).expect(1);
    assert!(ran.err.contains("it needs 50 MiB (52428800 bytes) in") && ran.err.contains("are free"), "{}", ran.err);
    restore(&kit, &["big", "--store", "store", "--force", "--to", text(&target), "-n"]).expect(1).says("it needs");
    untouched();
}

#[test]
fn what_must_not_be_trusted() {
    let kit = Kit::new();
    // An image that would read another file.
    let secret = kit.write("secret.raw", vec![7; 1 << 20]);
    let (id, _) = web(&kit);
    let file = kit.path(&format!("store/web/web-{}.qcow2", compact(DAY)));
    let old = sha256_file(&file);
    tool("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", text(&secret), text(&file)]);
    let sidecar = file.with_extension("dump.json");
    let record = fs::read_to_string(&sidecar).unwrap().replace(&old, &sha256_file(&file));
    fs::write(&sidecar, record).unwrap();
    for more in [&[][..], &["--to", "x.qcow2"]] {
        restore(&kit, &[&[&id, "--store", "store"], more].concat()).expect(1).says("needs another file");
    }
    // Names that would move the cursor, a path that is none, another driver, no place to go back to.
    let name = "\u{1b}[2J";
    let file = |more: Value| {
        let mut file = json!({"name": "x-20261120T010000Z.raw", "bytes": 0});
        file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"files": [file], "name": name})
    };
    for (more, status, says) in [
        (file(json!({"source": format!("/no/{name}/x.raw")})), 1, "cannot write into /no/\\u{1b}[2J"),
        (file(json!({"source": "x.raw"})), 2, "does not say where"),
        (file(json!({"source": "/tmp/", "format": "raw"})), 2, "no file name"),
        (
            file(json!({"source": "/tmp/x.dmg", "format": name})),
            1,
            "had the format \\u{1b}[2J, which cannot be written",
        ),
        (json!({"driver": format!("v{name}")}), 1, "made by the driver `v\\u{1b}[2J`"),
    ] {
        put_dump(&kit.store(), "x", DAY, 0, more);
        let ran = restore(&kit, &["x", "--store", "store"]).expect(status).says(says);
        assert!(!ran.err.contains('\u{1b}') && ran.err.lines().count() == 2, "{}", ran.err);
    }
}
