//! A far side that means harm: what is planted there, and an rsync that lists what can't be. Nothing is read, written or
//! removed elsewhere, nothing hangs, and dumps that nobody tampered with arrive.

mod common;

use bak_tests::{Ran, bin, check_store, finish, put_dump};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Whatever happens, it is one of the outcomes that programs have, in words.
fn sane(ran: Ran) -> Ran {
    assert!([0, 1, 4].contains(&ran.status) && !ran.err.contains("panicked"), "{ran:?}");
    assert!(!ran.err.chars().any(|c| c.is_control() && c != '\n'), "{:?}", ran.err);
    assert!(ran.err.lines().all(|line| line.len() < 2000), "{}", ran.err);
    ran
}

/// Runs bak-sync; it is stopped after a minute, which is no sane outcome.
fn sync<const N: usize>(place: &Place, path: Option<&Path>, more: [&str; N]) -> Ran {
    let (program, args) = place.command(more);
    let mut command = place.kit.command("timeout");
    command.args(["-k", "1", "60"]).arg(program).args(args);
    if let Some(first) = path {
        let rest = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{}:{rest}", first.display(), bin("bak-sync").parent().unwrap().display()));
    }
    sane(finish(command, ""))
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Foreign things with names and of kinds that nobody expects.
fn plant(place: &Place, dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let names: [&[u8]; 9] = [
        b"a\nb.dump.json",
        b"-rw-r--r--          10 2026 01:00:00 web",
        b"\x1b]0;title\x07.dump.json",
        b"not-utf8-\xff\xfe.dump.json",
        b"\\#012.dump.json",
        b"...dump.json",
        b" .dump.json",
        b"web-20261118T010000Z.dump.json ",
        &[b'x'; 255],
    ];
    for name in names {
        fs::write(dir.join(OsStr::from_bytes(name)), "{}").unwrap();
    }
    symlink(place.kit.path("victim/secret"), dir.join("link-20261118T010000Z.dump.json")).unwrap();
    symlink(place.kit.path("victim"), dir.join("linked")).unwrap();
    symlink("..", dir.join("up")).unwrap();
    fifo(&dir.join("fifo-20261118T010000Z.dump.json"));
    let huge = fs::File::create(dir.join("huge-20261118T010000Z.dump.json")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let outward = json!({"v": 1, "type": "dump", "id": "out@20261118T010000Z", "vm": "out", "kind": "qemu", "driver": "image",
        "started": DAY1, "finished": DAY1, "stem": "out-20261118T010000Z", "bytes": 6,
        "files": [{"name": "../victim/secret", "bytes": 6}, {"name": "/etc/passwd", "bytes": 1}]});
    fs::write(dir.join("out-20261118T010000Z.dump.json"), outward.to_string()).unwrap();
    fs::write(dir.join("deep-20261118T010000Z.dump.json"), "[".repeat(100_000)).unwrap();
}

fn victim(place: &Place) -> impl Fn() + use<> {
    let path = place.kit.write("victim/secret", "secret");
    let dir = path.parent().unwrap().to_owned();
    move || {
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "something was put there");
    }
}

#[test]
fn what_is_planted_over_there_stops_nobody_and_leads_nowhere() {
    for ssh in [false, true] {
        let place = Place::new(ssh);
        let untouched = victim(&place);
        for dir in ["far", "far/web", "far/web/.part", "far/other"] {
            plant(&place, &place.kit.path(dir));
        }
        let web = place.wait_there("web", DAY1, 10_000, json!({"rank": 1}));
        // Where its data, its sidecar or its directory should be there is something else.
        let blocked =
            ["piped", "led", "sided", "gone"].map(|vm| place.wait_there(vm, DAY1, 10_000, json!({"rank": 2})));
        for vm in ["piped", "sided"] {
            fs::create_dir(place.far().join(vm)).unwrap();
        }
        fifo(&place.far().join("piped/piped-20261118T010000Z.raw"));
        symlink(place.kit.path("victim/secret"), place.far().join("sided/sided-20261118T010000Z.dump.json")).unwrap();
        symlink(place.kit.path("victim"), place.far().join("led")).unwrap();
        symlink("/nowhere/at/all", place.far().join("gone")).unwrap();
        let ran = sync(&place, None, []).expect(1);
        assert!(ran.column("id").contains(&web), "{ran:?}");
        untouched();
        let waiting = check_store(&place.outbox()).whole;
        for id in &blocked[1..] {
            assert!(waiting.contains(id) && ran.err.contains(id.as_str()), "{id}: {ran:?}");
        }
        for more in [["--reconcile", "-n"], ["--reconcile", "-q"]] {
            sync(&place, None, more);
        }
        place.wait_there("web", DAY2, 10_000, json!({"rank": 1}));
        assert!(sync(&place, None, []).column("id").contains(&"web@20261119T010000Z".to_owned()));
        untouched();
        assert!(place.kit.path("outbox/.bak/sent").is_dir() && !place.kit.path("outbox/.bak/sent/out").exists());
    }
}

#[test]
fn an_identity_that_is_a_pipe_a_link_or_a_device_is_none() {
    for ssh in [false, true] {
        for kind in ["mkfifo X", "ln -s /etc/hostname X", "mknod X c 1 5", "mknod X b 7 250", "ln -s X X"] {
            let place = Place::new(ssh);
            place.wait_there("web", DAY1, 1000, json!({}));
            let path = place.far().join(".bak-store");
            fs::remove_file(&path).unwrap();
            place.kit.sh(&kind.replace('X', &path.display().to_string())).clean();
            assert_eq!(sync(&place, None, []).expect(4).err.lines().count(), 2, "{kind}");
            assert!(check_store(&place.far()).whole.is_empty());
        }
    }
}

#[test]
fn listings_that_cannot_be_are_refused_or_do_no_harm() {
    let long = "x".repeat(1 << 20);
    let line = |mode: &str, size: &str, name: &str| format!("{mode} {size:>14} 2026/11/20 01:00:00 {name}");
    let file = |size: &str, name: &str| line("-rw-r--r--", size, name);
    let odd = [
        file("6", "../victim/secret"),
        file("6", "web/../../victim/secret"),
        file("6", "/etc/passwd"),
        file("6", "web/.part/../../../victim/secret"),
        file("6", "web/.web-20261118T010000Z.raw.abcdef/../../../victim/secret"),
        file("10", &format!("web/.{long}.abcdef")),
        file("10", &long),
        file("10", "web/\\#056\\#056/\\#000x"),
        file("9223372036854775807", "web/.part/web-20261117T010000Z.raw"),
        file("9223372036854775807", "web/.web-20261118T010000Z.raw.abcdef"),
        line("drwxr-xr-x", "0", "web/web-20261117T010000Z.raw"),
    ];
    let hostile = [
        odd.join("\n"),
        file("400000", "web/.web-20261118T010000Z.raw.abcdef"),
        file("9223372036854775807", "web/.part/web-20261118T010000Z.raw"),
        line("prw-r--r--", "0", "web/.part/web-20261118T010000Z.raw"),
        file("18446744073709551616", "web/web-20261118T010000Z.raw"),
        "-rw-r--r-- 99999999999999999999 0000/99/99 99:99:99 web/y".to_owned(),
        "\u{1b}[2J\u{202e}".to_owned(),
    ];
    let place = Place::new(true);
    let untouched = victim(&place);
    let rsync = place.kit.sh("command -v rsync").clean().out;
    let script = "#!/bin/sh\ncase \"$*\" in *--list-only*) RSYNC \"$@\" && cat LINE; exit ;; esac\nexec RSYNC \"$@\"\n";
    let planted = place.kit.path("line");
    let script = script.replace("RSYNC", rsync.trim()).replace("LINE", &planted.display().to_string());
    let stand_in = place.kit.write("stand-in/rsync", script);
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    for text in hostile {
        for dir in ["far/web", "outbox/web", "outbox/.bak/sent"] {
            let _ = fs::remove_dir_all(place.kit.path(dir));
        }
        put_dump(&place.outbox(), "web", DAY1, 400_000, common::linked(json!({})));
        fs::write(&planted, format!("{text}\n")).unwrap();
        let shown = &text[..text.len().min(80)];
        let ran = sync(&place, stand_in.parent(), []);
        untouched();
        let there = check_store(&place.far());
        assert!(there.broken.is_empty(), "{shown}: {ran:?}");
        assert_eq!(ran.status == 0, there.whole.len() == 1, "{shown}: {ran:?}");
        assert_eq!(there.whole.len() + check_store(&place.outbox()).whole.len(), 1, "{shown}: {ran:?}");
        // The truth again, and all is well.
        fs::write(&planted, "").unwrap();
        sync(&place, None, []).expect(0);
        assert_eq!(check_store(&place.far()).whole.len(), 1, "{shown}");
    }
    fs::write(&planted, format!("{}\n", odd.join("\n"))).unwrap();
    sync(&place, stand_in.parent(), ["--reconcile"]);
    untouched();
}

/// Somebody puts another file in the place of a dump's while it is sent, be it alone or with others: what then lies over there
/// gets no sidecar, and the others arrive.
#[test]
fn a_file_that_is_replaced_while_it_is_sent_makes_no_dump() {
    for bytes in [50_000, 3_000_000] {
        let place = Place::new(true);
        let ids = ["g1", "g2"].map(|vm| place.wait_there(vm, "2026-11-19T02:00:00Z", bytes, json!({})));
        let file = place.outbox().join("g1/g1-20261119T020000Z.raw");
        let ssh = place.kit.write(
            "ssh.sh",
            format!(
                "#!/bin/sh\ncase \"$*\" in *--sender* | *--remove-source-files*) ;; *--server*)\n    \
                 [ -e {0}.old ] || {{ mv {0} {0}.old; echo changed >{0}; }} ;;\nesac\nexec {1} \"$@\"\n",
                file.display(),
                place.sshd.as_ref().unwrap().command()
            ),
        );
        fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut args = place.command([]).1;
        let at = args.iter().position(|arg| arg == "--ssh").unwrap();
        args[at + 1] = ssh.display().to_string();
        let ran = place.kit.run("bak-sync", &args).expect(1).says(&ids[0]).says("changed here");
        assert_eq!(ran.column("id"), [ids[1].clone()], "{bytes}: {}", ran.err);
        let seen = check_store(&place.far());
        assert_eq!((seen.whole, seen.broken.len()), (vec![ids[1].clone()], 0), "{bytes}");
    }
}
