//! Two users: another one may write in the store's directory, or owns what a program is told to work in.

use crate::scene::{DAY1, NOW, Scene};
use bak_tests::{Ran, put_dump};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Who he is: nobody's number.
const OTHER: u32 = 54321;

fn root() -> bool {
    let root = std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root {
        eprintln!("left out: only root can be two users");
    }
    root
}

impl Scene {
    /// A line of `sh` as the other user.
    fn as_other(&self, line: &str) -> Ran {
        self.kit.sh(&format!("setpriv --reuid {OTHER} --regid {OTHER} --clear-groups sh -c '{line}'"))
    }

    /// Lets the other user into the directory of the test, and write in `dir`.
    fn let_in(&self, dir: &str) {
        fs::set_permissions(self.kit.path(""), fs::Permissions::from_mode(0o711)).unwrap();
        self.kit.sh(&format!("chgrp {OTHER} {dir} && chmod 0775 {dir}")).clean();
    }
}

const RUNS: [(&str, &str); 9] = [
    ("bak-list", "store"),
    ("bak-verify", "--store store --all"),
    ("bak-restore", "--store store theirs@20261118T010000Z --to back.raw"),
    ("bak-scan", "--store store --all"),
    ("bak-link", "--store store --outbox box --dest box=far"),
    ("bak-sync", "--store store --outbox box --dest box=far"),
    ("bak-state", "archive --db state --store store --archive-dir archive theirs"),
    ("bak-prune", "store --keep-last 1"),
    ("bak-prune", "--store store theirs@20261118T010000Z"),
];

#[test]
fn what_another_user_plants_in_a_shared_store_is_not_taken_for_a_dump() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let kit = &scene.kit;
    let good = put_dump(&kit.store(), "web", DAY1, 1000, json!({}));
    kit.run("bak-sync", ["--init", "--store", "store", "--outbox", "box", "--dest", "box=far"]).clean();
    kit.sh("bak-state set --db state --force NEW web theirs").clean();
    scene.let_in("store");
    // A whole dump of his own; links to the directory outside, and to what lies in it, under names of dumps.
    put_dump(&kit.path("made"), "theirs", DAY1, 1000, json!({}));
    kit.sh(&format!("chown -R {OTHER} made")).clean();
    let planted = scene.as_other(
        "mkdir store/theirs && cp made/theirs/* store/theirs/ && ln -s ../outside store/linked && \
         mkdir store/side && ln -s ../../outside/canary/canary-20261118T010000Z.dump.json store/side/ && \
         mkdir store/hard && ln -s ../../outside/canary/canary-20261118T010000Z.raw store/hard/ && \
         mkfifo store/pipe-20261118T010000Z.dump.json",
    );
    planted.clean();
    for (program, args) in RUNS {
        let ran = scene.watched(program, args);
        let told = ran.err.contains("belongs to the user 54321") || ran.err.contains("54321, neither root nor us");
        // His dump is not there, and nobody looks for it; bak-scan finds nothing at all.
        let silent = ["bak-sync", "bak-scan"].contains(&program);
        assert!(told || silent || args.contains("theirs"), "{program} {args}: {ran:?}");
        assert_eq!(ran.status == 0, silent, "{program} {args}: {ran:?}");
    }
    assert!(fs::read_dir(kit.path("far/web")).unwrap().count() == 2, "{good} has arrived");
    assert!(kit.path("store/theirs/theirs-20261118T010000Z.raw").is_file() && !kit.path("far/theirs").exists());
}

#[test]
fn a_directory_of_another_user_in_the_place_of_baks_own_is_refused() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let kit = &scene.kit;
    put_dump(&kit.store(), "web", DAY1, 1000, json!({}));
    put_dump(&kit.path("made"), "theirs", DAY1, 1000, json!({}));
    kit.run("bak-sync", ["--init", "--store", "store", "--outbox", "box", "--dest", "box=far"]).clean();
    scene.let_in("store");
    // What bak would recover, and where it would write.
    scene.as_other("mkdir -p store/.bak/drop store/.bak/work/.added-1 && ln -s ../../outside store/.bak/drill && ln -s ../../outside store/.bak/log").clean();
    for (program, args) in [
        ("bak-link", "--store store --outbox box --dest box=far --force --limit none"),
        ("bak-prune", "--store store web@20261118T010000Z"),
        ("bak-verify", "--store store --all --mark"),
        ("bak-restore", "--store store --drill web"),
        ("bak-scan", "--store store --all"),
        ("bak-dump", "--store store --images images --all"),
    ] {
        kit.write("images/new.raw", "x".repeat(4096));
        let ran = scene.watched(program, args);
        if program != "bak-link" && program != "bak-scan" {
            // A drill first looks at what drills were before.
            let link = ran.err.contains("drill is a symbolic link");
            assert!(
                ran.status != 0 && (link || ran.err.contains("belongs to the user 54321")),
                "{program} {args}: {ran:?}"
            );
        }
    }
    assert!(kit.path("store/web/web-20261118T010000Z.raw").is_file());
}

/// Each program, and a place that belongs to somebody else.
#[test]
fn a_place_of_another_user_is_refused_with_a_reason() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let kit = &scene.kit;
    put_dump(&kit.store(), "web", DAY1, 1000, json!({}));
    kit.run("bak-sync", ["--init", "--store", "store", "--dest", "box=far"]).clean();
    kit.sh("bak-state set --db state --force NEW web").clean();
    kit.write("images/new.raw", "x".repeat(4096));
    let table = [
        ("store", "bak-list", "store"),
        ("store", "bak-dump", "--store store --images images --all"),
        ("store", "bak-scan", "--store store --all"),
        ("store", "bak-verify", "--store store --all"),
        ("store", "bak-restore", "--store store web --to back.raw"),
        ("store", "bak-restore", "--store store --drill web"),
        ("store", "bak-link", "--store store --outbox box --dest box=far"),
        ("store", "bak-prune", "store --keep-last 1"),
        ("store", "bak-prune", "--store store web@20261118T010000Z"),
        ("store", "bak-state", "archive --db state --store store --archive-dir archive web"),
        ("store", "bak-state", "check --db state --store store"),
        ("store/.outbox-box", "bak-link", "--store store --dest box=far"),
        ("store/.outbox-box", "bak-sync", "--store store --dest box=far"),
        ("store/.outbox-box", "bak-list", "store --dest box=far"),
        ("store/.outbox-box", "bak-prune", "--store store --dest box=far --keep-last 1 --all"),
        ("state", "bak-dump", "--store store --images images --db state --all"),
        ("state", "bak-state", "list --db state"),
        ("state", "bak-state", "get --db state web"),
        ("state", "bak-state", "set --db state CLEAN web"),
        ("state", "bak-state", "check --db state"),
        ("state", "bak-state", "claim --db state web -- true"),
    ];
    for (place, program, args) in table {
        let theirs = format!("chown {OTHER} {place}");
        kit.sh(&theirs).clean();
        let mut words: Vec<&str> = args.split(' ').collect();
        let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        words
            .splice(at..at, ["--now", NOW].into_iter().filter(|_| program != "bak-state" || args.starts_with("check")));
        let ran = kit.run(program, words);
        kit.sh(&theirs.replace(&OTHER.to_string(), "0")).clean();
        // A check is a plugin of Nagios, with exit statuses of its own.
        let (told, refused) = (format!("{}{}", ran.out, ran.err), if args.starts_with("check") { 3 } else { 4 });
        assert!(told.contains("belongs to the user 54321"), "{place}: {program} {args}: {ran:?}");
        assert_eq!(ran.status, refused, "{place}: {program} {args}: {ran:?}");
    }
    kit.run("bak-list", ["store"]).clean();
}
