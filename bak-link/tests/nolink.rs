//! Files that can't be hard-linked one by one: what is said, and that the others go.

mod common;

use bak_tests::{Kit, Ran, bin, check_store, finish, strace};
use common::{Disk, Link, NOW, day, root, tool};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const RAW: &str = "web/web-20261119T020000Z.raw";
const WEB: &str = "web@20261119T020000Z";
const ZOO: &str = "zoo@20261119T020000Z";

fn scene() -> Kit {
    let kit = Kit::new();
    kit.dump("web", &day(19), 100);
    kit.dump("zoo", &day(19), 101);
    kit
}

/// `web` fails in one line, and `zoo` goes.
fn fails(ran: Ran, outbox: &Path, why: &str) {
    let line = format!("bak-link: {WEB}: cannot put it into the outbox {}: no hard link of ", outbox.display());
    let ran = ran.expect(1).says(&line).says(why);
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert_eq!(ran.column("id"), [ZOO]);
    let seen = check_store(outbox);
    assert_eq!((seen.whole, seen.broken, seen.unfinished), (vec![ZOO.to_owned()], vec![], vec![]));
}

fn argv(kit: &Kit) -> Vec<OsString> {
    let words = ["--store", kit.store().to_str().unwrap(), "--dest", "box=/far", "--now", NOW].map(OsString::from);
    [bin("bak-link").into_os_string()].into_iter().chain(words).collect()
}

#[test]
fn a_file_with_as_many_links_as_there_can_be() {
    if !root() {
        return;
    }
    let kit = Kit::new();
    let disk = Disk::new(&kit, &["mkfs.ext4", "-q"], 64);
    let (store, outbox) = (disk.path().join("store"), disk.path().join("outbox"));
    fs::create_dir_all(&store).unwrap();
    for vm in ["web", "zoo"] {
        bak_tests::put_dump(&store, vm, &day(19), 100, serde_json::json!({}));
    }
    let many = disk.path().join("many");
    fs::create_dir(&many).unwrap();
    let full = (0..).map(|at| fs::hard_link(store.join(RAW), many.join(at.to_string()))).find_map(Result::err);
    assert_eq!(full.unwrap().raw_os_error(), Some(31), "EMLINK");
    let place = |path: &Path| path.to_str().unwrap().to_owned();
    let args = ["--store", &place(&store), "--outbox", &place(&outbox), "--dest", "box=/far", "--now", NOW];
    fails(kit.run("bak-link", args), &outbox, "it has as many as its file system allows; remove some, or --copy");
    let ran = kit.run("bak-link", args.iter().chain(&["--copy"])).clean();
    assert_eq!(ran.column("id"), [WEB]);
    assert_eq!(check_store(&outbox).whole, [WEB, ZOO]);
}

/// As some file systems answer that have no hard links at all, or for what is immutable.
#[test]
fn a_file_that_may_not_be_linked() {
    let kit = scene();
    let ran = strace::inject(&kit, &argv(&kit), "linkat", "error=EPERM", 1);
    fails(ran, &kit.outbox(), "not permitted: is it immutable (lsattr), or on a file system without hard links?");
}

/// Who is not root may not link root's files where the kernel protects hard links.
#[test]
fn a_file_of_another_user() {
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
    if protected.trim() != "1" || !root() {
        eprintln!("left out: hard links are not protected here");
        return;
    }
    let kit = scene();
    let outbox = kit.path("outbox");
    fs::create_dir(&outbox).unwrap();
    // The program where that user can reach it.
    fs::copy(bin("bak-link"), kit.path("bak-link")).unwrap();
    let path = |name: &str| kit.path(name).to_str().unwrap().to_owned();
    tool(&kit, &["chmod", "-R", "a+rX", &path("store"), &path("")]);
    tool(&kit, &["chown", "-R", "65534:65534", &path("outbox"), &path("store/zoo")]);
    let mut command = kit.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", &path("bak-link")]);
    command.args(["--store", &path("store"), "--outbox", &path("outbox"), "--dest", "box=/far", "--now", NOW]);
    let why = "it belongs to the user 0, we are 65534, and here nobody may link what is another's \
               (/proc/sys/fs/protected_hardlinks); run as its owner or as root, or --copy";
    fails(finish(command, ""), &outbox, why);
}

/// One guest's directory is a mount of its own: the store and the outbox are on one file system, this guest isn't.
#[test]
fn a_guest_on_a_mount_of_its_own() {
    if !root() {
        return;
    }
    for (mount, what) in [("mount --bind old store/web", "the same one"), ("mount -t tmpfs none store/web", "another")]
    {
        println!("{what}");
        let kit = scene();
        fs::rename(kit.store().join("web"), kit.path("old")).unwrap();
        fs::create_dir(kit.store().join("web")).unwrap();
        let run = |more: &str| {
            let mut command = kit.command("unshare");
            // Nothing stays mounted, whatever happens to this test.
            let line = format!(
                "{mount} && [ -e store/web/*.raw ] || cp -p old/* store/web/
                exec bak-link --store \"$PWD/store\" --dest box=/far --now {NOW} {more}"
            );
            command.args(["-m", "sh", "-c", &line]);
            finish(command, "")
        };
        fails(run(""), &kit.outbox(), "it lies on another file system or below another mount; --copy copies it");
        assert_eq!(run("--copy").clean().column("id"), [WEB]);
        assert_eq!(kit.pending(), [WEB, ZOO]);
    }
}

#[test]
fn a_sidecar_for_which_there_is_no_room() {
    for (error, says) in [("ENOSPC", "No space left on device"), ("EDQUOT", "Disk quota exceeded")] {
        let kit = scene();
        let trace = strace::calls(&scene(), &argv(&kit), &kit.path("trace"));
        fs::remove_dir_all(kit.outbox()).unwrap();
        // The first sidecar that is written: what it says begins so.
        let writes = trace.iter().filter(|call| call.0 == "write");
        let at = writes.clone().position(|call| call.1.contains("\\\"type\\\":\\\"dump\\\"")).unwrap() + 1;
        let ran = strace::inject(&kit, &argv(&kit), "write", &format!("error={error}"), at).expect(1);
        let ran =
            ran.says(&format!("bak-link: {WEB}: ")).says("cannot write web-20261119T020000Z.dump.json: ").says(says);
        assert_eq!(ran.column("id"), [ZOO]);
        assert_eq!(kit.pending(), [ZOO]);
        assert!(!kit.outbox().join(RAW).exists());
    }
}

#[test]
fn two_dumps_of_one_name_are_not_mixed_up() {
    let kit = scene();
    // Another guest of that name, dumped in the same second: it lies elsewhere in the store.
    bak_tests::put_dump(&kit.store().join("b"), "web", &day(19), 100, serde_json::json!({"uid": "another"}));
    let ran = kit.link(&[]).expect(1).says("bak-link: web@20261119T020000Z: ");
    assert_eq!(ran.column("id").iter().filter(|id| *id == ZOO).count(), 1, "{}", ran.out);
    let seen = check_store(&kit.outbox());
    assert_eq!((seen.broken, seen.unfinished), (vec![], vec![]));
}
