//! Stores and outboxes in which somebody who means harm may write, and every program that looks at them. What lies outside
//! is never opened, linked or removed; each bad thing is one line; no terminal gets an escape; what is sound is worked on.

mod others;
mod scene;

use bak_tests::{check_store, put_dump};
use scene::{DAY1, DAY2, NOW, Scene};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

/// What each program is to do in the store, and how it ends: most have something to report.
const RUNS: [(&str, &str, i32); 18] = [
    ("bak-list", "STORE", 1),
    ("bak-list", "STORE --explain --dest box=far --latest", 1),
    ("bak-verify", "--store store --all", 1),
    ("bak-verify", "--store store --all --mark --hash-only", 1),
    ("bak-restore", "--store store data@20261118T010000Z --to back/data.raw", 1),
    ("bak-restore", "--store store thief@20261118T010000Z --to back/thief.raw", 1),
    ("bak-restore", "--store store linked@20261118T010000Z --to back/linked.raw", 1),
    ("bak-restore", "--store store web@20261118T010000Z --to back/web.raw", 0),
    ("bak-scan", "--store store --all --pattern {vm}-{started}*", 0),
    ("bak-state", "check --db state --store store --dest box=far", 2),
    ("bak-state", "archive --db state --store store --archive-dir archive data thief", 1),
    ("bak-link", "--store store --dest box=far --explain", 1),
    ("bak-link", "--store store --dest box=far --forecast 2d", 1),
    ("bak-sync", "--store store --dest box=far", 0),
    ("bak-sync", "--store store --dest box=far --reconcile", 1),
    ("bak-list", "far", 0),
    ("bak-prune", "store --keep-last 1 --explain", 1),
    ("bak-prune", "--store store thief@20261118T010000Z data@20261118T010000Z", 1),
];

#[test]
fn what_is_planted_in_a_store_leads_no_program_out_of_it() {
    let scene = Scene::new();
    scene.plant(&scene.kit.store());
    let sound = scene.ugly_names();
    scene.kit.run("bak-sync", ["--init", "--store", "store", "--dest", "box=far"]).clean();
    scene.kit.sh("bak-state set --db state --force NEW web data thief").clean();
    fs::create_dir(scene.kit.path("back")).unwrap();
    for (program, args, status) in RUNS {
        let ran = scene.watched(program, &args.replace("STORE", "store"));
        assert_eq!(ran.status, status, "{program} {args}: {}\n{}", ran.out, ran.err);
    }
    // What is sound was worked on, whatever it is called.
    let far = check_store(&scene.kit.path("far"));
    assert!(far.broken.is_empty(), "{:?}", far.broken);
    for id in &sound {
        assert!(far.whole.contains(id), "{id:?} is not in {:?}", far.whole);
    }
    assert!(scene.kit.path("store/web/web-20261119T010000Z.raw").is_file());
    scene.untouched();
}

#[test]
fn nor_does_a_terminal_get_an_escape() {
    let scene = Scene::new();
    scene.plant(&scene.kit.store());
    scene.ugly_names();
    scene.kit.run("bak-sync", ["--init", "--store", "store", "--dest", "box=far"]).clean();
    for (program, args, _) in RUNS {
        let args = args.replace("STORE", "store").replace('{', "\\{");
        let line = format!("{program} {args} --now {NOW}");
        let ran = scene.kit.sh(&format!("script -qec '{line}' /dev/null </dev/null"));
        assert!(!ran.out.contains("PWNED\u{7}") && !ran.out.contains("\u{1b}]"), "{line}: {:?}", ran.out);
        assert!(!ran.out.contains(scene::CANARY), "{line}: {}", ran.out);
    }
}

/// An outbox whose dumps were exchanged for links, pipes and directories once they were in it, and what lies beside them.
#[test]
fn what_is_planted_in_an_outbox_is_not_sent() {
    let scene = Scene::new();
    for vm in ["linked", "piped", "sided", "led", "web"] {
        put_dump(&scene.kit.store(), vm, DAY1, 1000, json!({}));
    }
    scene.kit.run("bak-sync", ["--init", "--store", "store", "--dest", "box=far"]).clean();
    scene.kit.run("bak-link", ["--store", "store", "--dest", "box=far", "--now", NOW]).clean();
    scene.kit.sh("bak-state set --db state --force NEW web").clean();
    let inside = |name: &str| scene.kit.path(&format!("store/.outbox-box/{name}"));
    for (name, to) in [
        ("linked/linked-20261118T010000Z.raw", "canary/canary-20261118T010000Z.raw"),
        ("sided/sided-20261118T010000Z.dump.json", "canary/canary-20261118T010000Z.dump.json"),
    ] {
        fs::remove_file(inside(name)).unwrap();
        symlink(scene.outside().join(to), inside(name)).unwrap();
    }
    fs::remove_file(inside("piped/piped-20261118T010000Z.raw")).unwrap();
    scene::fifo(&inside("piped/piped-20261118T010000Z.raw"));
    fs::remove_dir_all(inside("led")).unwrap();
    symlink(scene.outside(), inside("led")).unwrap();
    // Beside a dump, by the name of its log; and in what is kept of the far side.
    symlink(scene.outside().join("secret"), inside("web/web-20261118T010000Z.log")).unwrap();
    fs::create_dir_all(inside(".bak/sent")).unwrap();
    symlink(scene.outside(), inside(".bak/sent/led")).unwrap();
    symlink(scene.outside(), inside(".bak/begun")).unwrap();
    for (program, args, status) in [
        ("bak-list", "store --dest box=far", 1),
        ("bak-sync", "--store store --dest box=far", 1),
        ("bak-sync", "--store store --dest box=far --reconcile -n", 0),
        ("bak-link", "--store store --dest box=far --explain", 1),
        ("bak-state", "check --db state --store store --dest box=far", 2),
    ] {
        let ran = scene.watched(program, args);
        assert_eq!(ran.status, status, "{program} {args}: {}\n{}", ran.out, ran.err);
    }
    fs::remove_file(inside(".bak/begun")).unwrap();
    scene.watched("bak-sync", "--store store --dest box=far").says("linked-20261118T010000Z");
    assert!(scene.kit.path("far/web/web-20261118T010000Z.dump.json").is_file());
    assert!(!scene.kit.path("far/sided/sided-20261118T010000Z.dump.json").exists());
    for path in scene::below(&scene.kit.path("far")) {
        let content = fs::read(&path).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(scene::CANARY), "{} was sent", path.display());
    }
    scene.untouched();
}

/// Images called as nobody expects are guests like others: through the whole line of programs, over ssh too.
#[test]
fn guests_may_be_called_anything() {
    let scene = Scene::new();
    let sshd = bak_tests::sshd::Sshd::start(&scene.kit.path("sshd"));
    let names =
        ["-rf", "--help", "a\nb", "\u{1b}]0;PWNED\u{7}", "'$(touch PWNED)`touch PWNED`\"; touch PWNED", "%2e%2e", "*"];
    for (at, name) in names.iter().enumerate() {
        scene.kit.write(&format!("images/{name}.raw"), bak_tests::noise(at as u64, 64 << 10));
    }
    fs::create_dir(scene.kit.path("back")).unwrap();
    let ssh: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    let url = sshd.url(&scene.kit.path("far"));
    scene.kit.write(
        "bak.toml",
        format!(
            "store = \"store\"\ndb = \"state\"\nreserve = \"1M\"\n[image]\nimages = [\"images\"]\n\
             [[dest]]\nname = \"box\"\nurl = \"{url}\"\nssh = [{}]\n",
            ssh.join(", ")
        ),
    );
    scene.kit.sh("bak-sync --config bak.toml --init").clean();
    let day = format!("--config bak.toml --now {DAY2}");
    let stages = ["bak-guests", "bak-state observe --due -", "bak-dump -", "bak-link -", "bak-sync -"];
    let ran = scene.kit.sh(&stages.map(|stage| format!("{stage} {day}")).join(" | ")).clean();
    assert_eq!(ran.records().len(), names.len(), "{}", ran.out);
    let later = format!("--config bak.toml --now {NOW}");
    for line in ["bak-list far", "bak-verify --all", "bak-verify --all --from box", "bak-prune far --all --keep-last 1"]
    {
        scene.kit.sh(&format!("{line} {later}")).clean();
    }
    for (at, name) in names.iter().enumerate() {
        let ran = scene.kit.run(
            "bak-restore",
            [
                "--config",
                "bak.toml",
                "--now",
                NOW,
                "--to",
                &format!("back/{at}.raw"),
                "--",
                &format!("{name}@20261119T010000Z"),
            ],
        );
        assert_eq!((ran.clean().status, at), (0, at));
        assert_eq!(fs::read(scene.kit.path(&format!("back/{at}.raw"))).unwrap(), bak_tests::noise(at as u64, 64 << 10));
    }
    assert_eq!(check_store(&scene.kit.path("far")).whole.len(), names.len());
    let touched = scene::below(scene.kit.path("store").parent().unwrap());
    assert!(touched.iter().all(|path| path.file_name().unwrap() != "PWNED"));
}
