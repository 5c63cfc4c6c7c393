//! bak-verify as users run it: dumps of every format, whole, damaged, cut off and swapped; and what its verdict means to the
//! other tools.

use bak_tests::{Kit, Ran, bin_dir, compact, finish, hex, noise, sha256_file};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const DAY: &str = "2026-11-19T02:00:00Z";
const NOW: &str = "2026-11-20T12:00:00Z";

/// Puts a dump with this content into the store, called after its ending.
fn put(kit: &Kit, vm: &str, ending: &str, content: &[u8], hashed: bool) -> PathBuf {
    let stem = format!("{vm}-{}", compact(DAY));
    let name = format!("{stem}.{ending}");
    let path = kit.write(&format!("store/{vm}/{name}"), content);
    let mut file = json!({"name": name, "bytes": content.len()});
    if hashed {
        file["sha256"] = hex(&Sha256::digest(content)).into();
    }
    let record = json!({"v": 1, "type": "dump", "id": format!("{vm}@{}", compact(DAY)), "vm": vm, "kind": "qemu",
        "driver": "image", "started": DAY, "finished": DAY, "stem": stem, "bytes": content.len(), "files": [file]});
    kit.write(&format!("store/{vm}/{stem}.dump.json"), format!("{record}\n"));
    path
}

fn verify(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-verify", [&["--store", "store", "--now", NOW], args].concat())
}

/// Decision and reason of the only dump.
fn verdict(ran: &Ran) -> (String, String) {
    let record = &ran.records()[0]["verify"];
    (record["decision"].as_str().unwrap().into(), record["why"].as_str().unwrap().into())
}

/// What a line of `sh` in a directory with files to pack prints.
fn made(kit: &Kit, line: &str) -> Vec<u8> {
    let dir = kit.path("content");
    if !dir.is_dir() {
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.ovf"), "<Envelope/>").unwrap();
        fs::write(dir.join("disk.vmdk"), noise(7, 300_000)).unwrap();
        fs::write(dir.join("large"), noise(8, 3 << 20)).unwrap();
    }
    let ran = kit.sh(&format!("cd content && {{ {line}; }} >../made")).clean();
    assert_eq!(ran.out, "");
    fs::read(kit.path("made")).unwrap()
}

const OVA: &str = "sha256sum --tag a.ovf disk.vmdk | sed 's/ (/(/; s/) = /)= /' >a.mf && tar -c a.ovf a.mf disk.vmdk";
const QCOW2: &str = "qemu-img create -q -f raw ../d.raw 4M && dd status=none if=large of=../d.raw conv=notrunc && \
    qemu-img convert -f raw -O qcow2 ../d.raw ../d.qcow2 && cat ../d.qcow2";

/// Every format: how it is made, what unpacks what its checksums protect, and the verdict on it with and without SHA-256.
const FORMATS: [(&str, &str, &str, &str, &str); 7] = [
    ("raw", "cat disk.vmdk", "cat", "SHA-256 as recorded", "unknown"),
    ("tar", "tar -c disk.vmdk", "cat", "SHA-256 as recorded, tar -t", "unknown"),
    ("tar.gz", "tar -cz disk.vmdk", "gzip -dc", "SHA-256 as recorded, gzip -dc | tar -t", "good"),
    ("tar.zst", "tar -c disk.vmdk | zstd -q", "zstd -qdc", "SHA-256 as recorded, zstd -dc | tar -t", "good"),
    ("sql.zst", "zstd -q <disk.vmdk", "zstd -qdc", "SHA-256 as recorded, zstd -t", "good"),
    ("qcow2", QCOW2, "cat", "SHA-256 as recorded, qemu-img check", "unknown"),
    ("ova", OVA, "tar -xO", "SHA-256 as recorded, its manifest", "good"),
];

#[test]
fn whole_dumps_of_every_format() {
    let kit = Kit::new();
    for (ending, how, _, hashed, unhashed) in FORMATS {
        let content = made(&kit, how);
        put(&kit, "g", ending, &content, true);
        assert_eq!(verdict(&verify(&kit, &["g"]).clean()), ("good".into(), hashed.into()), "{ending}");
        assert_eq!(verdict(&verify(&kit, &["g", "--hash-only"]).clean()).1, "SHA-256 as recorded", "{ending}");
        let quick = verdict(&verify(&kit, &["g", "--quick"]).clean());
        assert_eq!(quick, ("unknown".into(), "only sizes were compared".into()));
        put(&kit, "g", ending, &content, false);
        assert_eq!(verdict(&verify(&kit, &["g"]).clean()).0, unhashed, "{ending}");
        fs::remove_dir_all(kit.path("store/g")).unwrap();
    }
}

/// What looks inside stops at the end of the archive, however much comes after that.
#[test]
fn padding_behind_the_end_of_an_archive_is_no_damage() {
    let kit = Kit::new();
    for (ending, how) in [("tar.zst", "tar -b 2048 -c a.ovf | zstd -q"), ("tar.gz", "tar -b 2048 -c a.ovf | gzip -c")] {
        let content = made(&kit, &format!("{how}; true"));
        for hashed in [true, false] {
            put(&kit, "g", ending, &content, hashed);
            assert_eq!(verdict(&verify(&kit, &["g"]).clean()).0, "good", "{ending}");
        }
        fs::remove_dir_all(kit.path("store/g")).unwrap();
    }
}

#[test]
fn a_manifest_that_is_too_long_to_be_read_is_no_damage() {
    let kit = Kit::new();
    let long = OVA.replace(" && tar", " && yes \"$(head -n 1 a.mf)\" | head -c 2000000 >>a.mf && tar");
    let content = made(&kit, &format!("({long})"));
    put(&kit, "g", "ova", &content, true);
    assert_eq!(verdict(&verify(&kit, &["g"]).clean()), ("good".into(), "SHA-256 as recorded".into()));
    put(&kit, "g", "ova", &content, false);
    let (decision, why) = verdict(&verify(&kit, &["g"]).clean());
    assert_eq!(
        (decision.as_str(), why.ends_with("its manifest of 1.9 MiB is too long to be read")),
        ("unknown", true),
        "{why}"
    );
}

/// A bit anywhere. With a SHA-256 it is always found; without, a dump that is called good holds what it held.
#[test]
fn flipped_bits() {
    let kit = Kit::new();
    for (ending, how, unpack, _, _) in FORMATS {
        let content = made(&kit, how);
        let before = unpacked(&kit, unpack, &content);
        for seed in 0..8 {
            let place = u64::from_le_bytes(noise(seed, 8).try_into().unwrap()) as usize % content.len();
            let mut flipped = content.clone();
            flipped[place] ^= 1 << (seed % 8);
            let path = put(&kit, "g", ending, &content, true);
            fs::write(path, &flipped).unwrap();
            let ran = verify(&kit, &["g"]).expect(1).says("g@20261119T020000Z: is bad: ").says("SHA-256 is");
            assert_eq!(verdict(&ran).0, "bad");
            put(&kit, "g", ending, &flipped, false);
            let ran = verify(&kit, &["g"]);
            let (decision, why) = verdict(&ran);
            assert_eq!(ran.status == 1, decision == "bad", "{ending} {place}: {why}");
            let same = unpacked(&kit, unpack, &flipped) == before;
            assert!(decision != "good" || same, "{ending}, byte {place}: called good: {why}");
        }
        fs::remove_dir_all(kit.path("store/g")).unwrap();
    }
}

fn unpacked(kit: &Kit, how: &str, content: &[u8]) -> Option<String> {
    kit.write("packed", content);
    let ran = kit.sh(&format!("{how} <packed >unpacked"));
    (ran.status == 0).then(|| sha256_file(&kit.path("unpacked")))
}

#[test]
fn cut_off_swapped_missing_and_failed_ones() {
    let kit = Kit::new();
    for (ending, how, _, _, _) in FORMATS {
        let content = made(&kit, how);
        let path = put(&kit, "g", ending, &content, true);
        fs::write(&path, &content[..content.len() - 1000]).unwrap();
        for args in [&["g"][..], &["g", "--quick"]] {
            let ran = verify(&kit, args).expect(1);
            let expected = format!("has {} bytes instead of {}", content.len() - 1000, content.len());
            assert!(verdict(&ran).1.contains(&expected), "{ending}: {}", ran.out);
        }
        // As long as it was, so that only content tells.
        fs::write(&path, noise(9, content.len())).unwrap();
        assert_eq!(verdict(&verify(&kit, &["g"]).expect(1)).0, "bad");
        fs::remove_file(&path).unwrap();
        assert!(verdict(&verify(&kit, &["g"]).expect(1)).1.contains("is missing"));
        // Cut off when it was made, and never hashed: what has an end says so.
        // (An image may lack a part of its last cluster, which may be large.)
        let cut = if ending == "qcow2" { 2 << 20 } else { 20_000 };
        put(&kit, "g", ending, &content[..content.len() - cut], false);
        assert_eq!(verdict(&verify(&kit, &["g"])).0 == "bad", ending != "raw", "{ending}");
        fs::remove_dir_all(kit.path("store/g")).unwrap();
    }
}

/// What stands in for Proxmox's `vma`, which can't be had: it reads to the end, wants the header and all of its bytes, and
/// sees no flipped bit in the data.
const VMA: &str = r#"#!/bin/sh
[ "$1 $2" = "verify -" ] || exit 255
cat >vma.seen
[ "$(head -c 3 vma.seen)" = VMA ] || { echo 'not a VMA file' >&2; exit 255; }
[ "$(wc -c <vma.seen)" -ge 100000 ] || { echo 'verify failed - vma eof' >&2; exit 255; }
"#;

#[test]
fn what_proxmox_wrote() {
    let kit = Kit::new();
    let vma = kit.write("bin/vma", VMA);
    fs::set_permissions(&vma, fs::Permissions::from_mode(0o755)).unwrap();
    let verify = |with: bool| {
        let mut command = kit.command(bin_dir().join("bak-verify"));
        if with {
            let path = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{path}", kit.path("bin").display()));
        }
        command.args(["--store", "store", "g"]);
        finish(command, "")
    };
    let content = [b"VMA\0".to_vec(), noise(3, 100_000)].concat();
    let pack = |content: &[u8], ending: &str| {
        kit.write("content/x", content);
        let content = made(&kit, if ending == "vma" { "cat x" } else { "zstd -q <x" });
        put(&kit, "g", ending, &content, false)
    };
    made(&kit, "true");
    pack(&content, "vma.zst");
    assert_eq!(
        verdict(&verify(true).clean()),
        ("good".into(), "checksums in the files, zstd -dc | vma verify -".into())
    );
    assert_eq!(verdict(&verify(false).clean()), ("good".into(), "checksums in the files, zstd -t".into()));
    // Whole as a file, but not as an archive.
    for wrong in [&content[..50_000], &noise(1, 100_000)] {
        pack(wrong, "vma.zst");
        assert_eq!(verdict(&verify(true).expect(1)).0, "bad");
        fs::remove_dir_all(kit.path("store/g")).unwrap();
    }
    pack(&content, "vma");
    let (decision, why) = verdict(&verify(true).clean());
    assert_eq!((decision.as_str(), why.contains("vma verify does not look at content")), ("unknown", true), "{why}");
    assert!(verdict(&verify(false).clean()).1.contains("vma is not installed"));
}

#[test]
fn an_image_does_not_lead_elsewhere() {
    leads_nowhere("-F raw -b");
    leads_nowhere("-o data_file_raw=on,size=1M,data_file=");
}

/// `other` has qemu-img make an image that needs another file.
fn leads_nowhere(other: &str) {
    let kit = Kit::new();
    let secret = kit.write("secret.raw", noise(1, 1 << 20));
    let space = if other.ends_with('=') { "" } else { " " };
    let line = format!("qemu-img create -q -f qcow2 {other}{space}{} ../d.qcow2 && cat ../d.qcow2", secret.display());
    put(&kit, "it's,a=\"g\"", "qcow2", &made(&kit, &line), true);
    let log = kit.path("opened");
    let mut command = kit.command("strace");
    command.args(["-f", "-qq", "-e", "trace=open,openat", "-o"]).arg(&log).arg(bin_dir().join("bak-verify"));
    command.args(["--store", "store", "--all"]);
    let ran = finish(command, "").expect(1);
    assert!(verdict(&ran).1.contains("it needs another file"), "{}", ran.out);
    let opened = fs::read_to_string(log).unwrap();
    assert!(opened.contains(".qcow2") && !opened.contains("secret.raw"), "the backing file was opened");
}

#[test]
fn what_is_missing_stays_bad() {
    let kit = Kit::new();
    put(&kit, "web", "raw", &noise(1, 1000), true);
    kit.sh("rm store/web/*.raw").clean();
    for _ in 0..2 {
        let (decision, why) = verdict(&kit.run("bak-verify", ["--store", "store", "--all", "--mark"]).expect(1));
        assert_eq!((decision.as_str(), why.contains("missing")), ("bad", true), "{why}");
    }
}

#[test]
fn what_is_not_there_uses_up_no_limit() {
    let kit = Kit::new();
    put(&kit, "huge", "raw", &noise(1, 1000), true);
    let sidecar = kit.sh("echo store/huge/*.dump.json").clean().out;
    let sidecar = kit.path(sidecar.trim());
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&sidecar).unwrap()).unwrap();
    record["bytes"] = u64::MAX.into();
    record["files"][0]["bytes"] = u64::MAX.into();
    fs::write(&sidecar, record.to_string()).unwrap();
    put(&kit, "small", "raw", &noise(2, 1000), true);
    for limit in [&[][..], &["--max-bytes", "1M"]] {
        let ran = kit.run("bak-verify", [&["--store", "store", "--all"], limit].concat()).expect(1);
        assert_eq!(ran.records().len(), 2, "{}", ran.out);
    }
}

/// The verdict in the sidecar: a bad dump is good for nothing, wherever it lies, until it is found good.
#[test]
fn marked_dumps() {
    let kit = Kit::new();
    let content = made(&kit, "cat disk.vmdk");
    let path = put(&kit, "g", "raw", &content, true);
    let dest = ["--store", "store", "--dest", "box=/far", "--now", NOW];
    kit.run("bak-link", dest).clean();
    let fault = |place: &str| kit.run("bak-list", [place]).records()[0]["fault"].as_str().map(str::to_owned);
    // Nothing is marked unless asked for, nor by a look at sizes.
    let flip = || {
        let mut now = fs::read(&path).unwrap();
        now[1000] ^= 4;
        // In place: the outbox has the same file.
        fs::write(&path, now).unwrap();
    };
    flip();
    verify(&kit, &["g"]).expect(1);
    verify(&kit, &["g", "--quick", "--mark"]).clean();
    assert_eq!((fault("store"), fault("store/.outbox-box")), (None, None));
    kit.run("bak-verify", [&dest[..], &["g", "--mark"]].concat()).expect(1);
    for place in ["store", "store/.outbox-box"] {
        let why = fault(place).unwrap();
        assert!(why.starts_with("bak-verify found it bad: ") && why.contains("is damaged"), "{place}: {why}");
    }
    // It is not sent.
    let out = kit.run("bak-link", [&dest[..], &["--explain"]].concat());
    assert!(out.records().iter().all(|record| record["link"]["box"]["decision"] == "not good"), "{}", out.out);
    // It was the cable.
    flip();
    kit.run("bak-verify", [&dest[..], &["g", "--mark"]].concat()).clean();
    assert_eq!((fault("store"), fault("store/.outbox-box")), (None, None));
    let sidecar: Value = serde_json::from_slice(&fs::read(path.with_extension("dump.json")).unwrap()).unwrap();
    assert_eq!(sidecar["verify"], json!({"decision": "good", "why": "SHA-256 as recorded", "at": NOW}));
    assert_eq!(fs::metadata(path.with_extension("dump.json")).unwrap().permissions().mode() & 0o777, 0o600);
    // What was found here says nothing of the files over there, whether it was found before the dump was linked or after.
    put(&kit, "h", "raw", &content, true);
    verify(&kit, &["h", "--mark"]).clean();
    kit.run("bak-link", dest).clean();
    let waiting = kit.run("bak-list", ["store/.outbox-box"]).records();
    assert_eq!(waiting.iter().map(|dump| &dump["verify"]).collect::<Vec<_>>(), [&json!(null), &json!(null)]);
}

/// A far side that is a path, of this destination: its bad copy does not count as sent either.
#[test]
fn a_bad_copy_on_a_mounted_destination() {
    let kit = Kit::new();
    let path = put(&kit, "g", "raw", &noise(1, 5000), true);
    fs::create_dir(kit.path("far")).unwrap();
    kit.write(
        "bak.toml",
        format!("store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"{}\"\n", kit.path("far").display()),
    );
    let run = |name: &str, args: &[&str]| kit.run(name, [&["--config", "bak.toml", "--now", NOW], args].concat());
    run("bak-sync", &["--init"]).clean();
    run("bak-link", &[]).clean();
    run("bak-sync", &[]).clean();
    let copy = kit.path("far").join("g").join(path.file_name().unwrap());
    let mut bytes = fs::read(&copy).unwrap();
    bytes[99] ^= 1;
    fs::write(&copy, bytes).unwrap();
    assert!(run("bak-link", &[]).clean().out.is_empty());
    run("bak-verify", &["--from", "box", "--all"]).expect(1);
    assert!(run("bak-link", &[]).clean().out.is_empty(), "it was not marked");
    run("bak-verify", &["--from", "box", "--all", "--mark"]).expect(1).says("is damaged");
    assert_eq!(run("bak-link", &[]).clean().column("vm"), ["g"]);
    run("bak-sync", &[]).expect(1).says("bak-prune --dest box g@");
    let id = run("bak-list", &[]).records()[0]["id"].as_str().unwrap().to_owned();
    run("bak-prune", &["--dest", "box", &id]).clean();
    run("bak-sync", &[]).clean();
    run("bak-verify", &["--from", "box", "--all", "--mark"]).clean();
    assert!(run("bak-link", &[]).clean().out.is_empty());
    // The other way round: what is bad here comes back from there, by its id, and that is told.
    let mut bytes = fs::read(&path).unwrap();
    bytes[99] ^= 1;
    fs::write(&path, bytes).unwrap();
    run("bak-verify", &["--all", "--mark"]).expect(1);
    let ran = run("bak-restore", &[&id, "--to", "back.raw"]).expect(0);
    assert!(ran.err.contains("this dump is not good") && ran.err.contains("that of box is taken"), "{}", ran.err);
    assert_eq!(fs::read(kit.path("back.raw")).unwrap(), noise(1, 5000));
}

#[test]
fn which_ones_and_in_which_order() {
    let kit = Kit::new();
    for (vm, on) in [("a", 17), ("a", 18), ("b", 16)] {
        kit.dump(vm, &format!("2026-11-{on}T02:00:00Z"), 1000);
    }
    let ids = |args: &[&str]| verify(&kit, args).clean().column("id");
    let [a17, a18, b16] = ["a@20261117T020000Z", "a@20261118T020000Z", "b@20261116T020000Z"];
    assert_eq!(ids(&["--all"]), [b16, a17, a18]);
    assert_eq!(ids(&["--all", "--latest"]), [b16, a18]);
    assert_eq!(ids(&[a17, "b*"]), [b16, a17]);
    // A share each night: what was verified longest ago goes first, and nothing twice within its time.
    assert_eq!(ids(&["--all", "--mark", "--max-bytes", "1500"]), [b16, a17]);
    assert_eq!(ids(&["--all", "--max-bytes", "1"]), [a18]);
    assert_eq!(ids(&["--all", "--reverify-after", "30d"]), [a18]);
    let later = ["--store", "store", "--all", "--reverify-after", "30d", "--now", "2026-12-25T00:00:00Z"];
    assert_eq!(kit.run("bak-verify", later).clean().column("id"), [a18, b16, a17]);
    // By records; what bak does not know is passed on.
    let piped = kit
        .sh(&format!("bak-list store --id {a17} | sed 's/}}$/,\"note\":\"x\"}}/' | bak-verify --store store -"))
        .clean();
    assert_eq!((piped.column("id"), piped.column("note")), (vec![a17.to_owned()], vec!["x".to_owned()]));
    let planned = verify(&kit, &["--all", "-n"]).clean().records();
    assert!(planned.iter().all(|record| record["planned"] == true));
    verify(&kit, &["nobody"]).expect(1).says("nobody: no dump matches it");
    verify(&kit, &[]).expect(2).says("say which");
    kit.run("bak-verify", ["--from", "nowhere", "--all"]).expect(2).says("there is no store at nowhere");
}

#[test]
fn what_cannot_be_read_is_not_called_bad() {
    let kit = Kit::new();
    let path = put(&kit, "g", "raw", &noise(1, 5000), true);
    let run = |args: &[&str]| {
        let mut command = kit.command("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-P"]).arg(&path);
        command.args(["-e", "inject=pread64:error=EIO"]).arg(bin_dir().join("bak-verify"));
        command.args(["--store", "store", "g"]).args(args);
        finish(command, "")
    };
    let ran = run(&["--mark"]).expect(1).says("cannot be verified: cannot read").says("Input/output error");
    assert_eq!(verdict(&ran).0, "unknown");
    assert!(!fs::read_to_string(sidecar(&path)).unwrap().contains("verify"));
    verify(&kit, &["g"]).clean();
}

/// A program that hangs is stopped, whether it packs or looks; that proves nothing.
#[test]
fn what_hangs_is_stopped() {
    for (ending, how, program) in [("qcow2", QCOW2, "qemu-img"), ("tar.zst", "tar -c disk.vmdk | zstd -q", "zstd")] {
        let kit = Kit::new();
        let content = made(&kit, how);
        put(&kit, "g", ending, &content, false);
        let stand_in = kit.write(&format!("bin/{program}"), "#!/bin/sh\nexec sleep 1000\n");
        kit.sh(&format!("chmod +x bin/{program}")).clean();
        let mut command = kit.command(bin_dir().join("bak-verify"));
        let path = format!("{}:{}", stand_in.parent().unwrap().display(), std::env::var("PATH").unwrap());
        command.args(["--store", "store", "g", "--timeout", "1s"]).env("PATH", path);
        let ran = finish(command, "").expect(1).says("cannot be verified: cannot check ").says("took longer than 1 s");
        assert_eq!(verdict(&ran).0, "unknown", "{ending}");
    }
}

fn sidecar(path: &Path) -> PathBuf {
    path.with_extension("dump.json")
}
