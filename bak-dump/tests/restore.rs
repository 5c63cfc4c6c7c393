//! bak-restore as users run it, with real images.

use bak_tests::{Kit, Ran, compact, put_dump, sha256_file};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const DAY: &str = "2026-11-20T01:00:00Z";

fn restore(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-restore", args)
}

#[track_caller]
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes an image of 8 MiB with data at its begin, in the middle and at its end.
fn image(path: &Path, format: &str, seed: u8) {
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
fn dump(store: &Path, vm: &str, started: &str, sources: &[&Path], source_format: &str, format: &str) -> String {
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
fn web(kit: &Kit) -> (String, PathBuf) {
    let source = kit.path("vm/web.img");
    image(&source, "raw", 7);
    let id = dump(&kit.store(), "web", DAY, &[&source], "raw", "qcow2");
    fs::rename(&source, kit.path("before")).unwrap();
    (id, source)
}

fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn same_bytes(a: &Path, b: &Path) {
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} differs from {}", a.display(), b.display());
}

fn format_of(path: &Path) -> String {
    let info: Value = serde_json::from_str(&tool("qemu-img", &["info", "--output=json", text(path)])).unwrap();
    info["format"].as_str().unwrap().to_owned()
}

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
        let ran = restore(&kit, &[asked, "--store", "store", "--to", "got.raw", "--force"]).clean();
        assert_eq!(ran.column("id"), [format!("web@202611{day}T010000Z")], "{asked}");
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
    restore(&kit, &["web", "--config", "bak.toml", "--to", "x.raw"]).expect(1).says("no dump");
    restore(&kit, &["web", "--from", "b", "--dest", "b=host:/srv", "--to", "x.raw"]).expect(2).says("not a path");
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
