//! What may be read by others, and what may be done without being root: nothing, and everything.

use bak_tests::{Kit, check_store, noise};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Whoever is nobody here.
const USER: u32 = 54322;
const COMMON: &str = "--config bak.toml --now 2026-11-20T12:00:00Z";

/// Every step of a dump's life, by every program that writes; `@` is what they have in common.
const STEPS: [&str; 17] = [
    "bak-sync @ --init",
    "bak-guests @ web db | bak-state observe @ --due - | bak-dump @ - | bak-link @ - | bak-sync @ -",
    "bak-dump --config bak.toml --now 2026-11-20T13:00:00Z web --annotation later",
    "bak-dump @ broken || test $? = 1",
    "bak-scan @ --all",
    "bak-link --config bak.toml --now 2026-11-20T14:00:00Z --force",
    "bak-sync @",
    "bak-sync @ --reconcile",
    "bak-verify @ --all --mark",
    "bak-verify @ --all --from box",
    "bak-restore @ web --to back.raw",
    "bak-restore @ web --from box --to back-far.raw",
    "bak-restore @ --drill --sample 1 db",
    "bak-prune @ store --all --keep-last 1",
    "bak-prune @ --dest box --all --keep-last 1",
    "bak-state set --config bak.toml RUNNING db",
    "bak-state archive @ db --archive-dir archive",
];

/// A place of its own, in which images can be read by all, and nothing else is there yet.
fn scene() -> Kit {
    let kit = Kit::new();
    for (at, vm) in ["web", "db"].iter().enumerate() {
        kit.write(&format!("images/{vm}.raw"), noise(at as u64, 200_000));
    }
    kit.write("images/broken.qcow2", "QFI\u{fb}no image at all");
    kit.write(
        "bak.toml",
        "store = \"store\"\ndb = \"state\"\nlog = \"log.jsonl\"\nreserve = \"1M\"\n[image]\nimages = [\"images\"]\n\
         [[dest]]\nname = \"box\"\nurl = \"far\"\nlimit = \"10G/day\"\n",
    );
    fs::create_dir(kit.path("far")).unwrap();
    kit
}

/// All that lies there.
fn everything(kit: &Kit) -> Vec<PathBuf> {
    let mut found = vec![kit.path("")];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// Runs all steps by `prefix`, and sees that nothing new can be read by others.
fn steps(kit: &Kit, prefix: &str) {
    let before = everything(kit);
    for step in STEPS {
        let line = step.replace('@', COMMON);
        kit.write("step", format!("set -e\numask 0\n{line}\n"));
        let ran = kit.sh(&format!("{prefix} sh step"));
        assert_eq!(ran.status, 0, "{line}: {}\n{}", ran.out, ran.err);
    }
    let after = everything(kit);
    let new: Vec<&PathBuf> = after.iter().filter(|path| !before.contains(path) && !path.ends_with("step")).collect();
    assert!(new.len() > 40, "{new:#?}");
    for path in new {
        let mode = fs::symlink_metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} can be read by others", path.display());
    }
    assert!(!check_store(&kit.path("far")).whole.is_empty() && !check_store(&kit.path("archive")).whole.is_empty());
}

#[test]
fn whatever_is_written_cannot_be_read_by_others() {
    steps(&scene(), "");
}

#[test]
fn all_that_is_done_with_files_is_done_without_being_root() {
    if fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap() != 0 {
        eprintln!("left out: who tests is not root anyway");
        return;
    }
    let kit = scene();
    kit.sh(&format!("chown -R {USER}:{USER} .")).clean();
    let none = "--clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs";
    steps(&kit, &format!("HOME=$PWD setpriv --reuid {USER} --regid {USER} {none}"));
    let strangers = everything(&kit).into_iter().filter(|path| {
        std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(path).unwrap()) != USER && !path.ends_with("step")
    });
    assert_eq!(strangers.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}
