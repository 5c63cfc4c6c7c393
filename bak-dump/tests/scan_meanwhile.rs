//! bak-scan beside others: Proxmox that dumps and prunes, other runs of itself, bak-prune; killed at every system call, and on
//! a failing disk. The archives are never touched, and what has a sidecar is whole.

mod archives;

use archives::{DATE, NOW, archive, names, path, scan};
use bak_tests::pve::Node;
use bak_tests::rig::{self, Rig};
use bak_tests::{Kit, Ran, Seen, bin, check_store, finish, noise, sha256_file, strace};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::process::Command;

/// Archives in memory, with what must not change.
struct Scene {
    kit: Kit,
    files: BTreeMap<String, Vec<u8>>,
    ids: Vec<String>,
}

impl Scene {
    fn new(archives: u32) -> Self {
        Self::of(100..100 + archives)
    }

    /// Of guests with these numbers, which have equally many digits.
    fn of(numbers: Range<u32>) -> Self {
        let kit = Kit::in_memory();
        for id in numbers.clone() {
            archive(&kit, "lxc", id, ".tar.zst", 300);
        }
        kit.write("store/readme.txt", "foreign");
        let files = names(&kit).into_iter().map(|name| (name.clone(), fs::read(path(&kit, &name)).unwrap())).collect();
        let ids = numbers.map(|id| format!("{id}@20261120T020002Z")).collect();
        Self { kit, files, ids }
    }

    fn argv(&self) -> Vec<OsString> {
        let store = [bin("bak-scan").into_os_string(), "--store".into(), self.kit.store().into_os_string()];
        store.into_iter().chain(["--now".into(), NOW.into()]).collect()
    }

    /// What must hold at any moment; which dumps are whole.
    fn look(&self) -> Vec<String> {
        for (name, content) in &self.files {
            assert!(fs::read(path(&self.kit, name)).ok().as_ref() == Some(content), "{name}");
        }
        let seen = check_store(&self.kit.store());
        assert!(seen.broken.is_empty(), "{seen:?}");
        let sidecars = names(&self.kit).len() - self.files.len();
        assert_eq!(sidecars, seen.whole.len(), "only sidecars come: {:?}", names(&self.kit));
        seen.whole
    }
}

impl rig::Scene for Scene {
    fn kit(&self) -> &Kit {
        &self.kit
    }

    fn command(&self) -> Command {
        let mut command = self.kit.command(bin("bak-scan"));
        command.args(&self.argv()[1..]);
        command
    }

    fn always(&self) {
        self.look();
    }

    /// What is said to be adopted is.
    fn met(&self, ran: &Ran) {
        let (said, whole) = (ran.column("id"), self.look());
        assert!(said.iter().all(|id| whole.contains(id)), "{said:?} but {whole:?}: {}", ran.err);
    }

    /// It adopts the rest, and the one after that nothing.
    fn again(&self, before: &[Seen]) {
        let ran = scan(&self.kit, &[]).clean();
        let before = &before[0].whole;
        assert_eq!(ran.records().len() + before.len(), self.ids.len(), "{before:?}, then {}", ran.out);
        self.kit.run("bak-test-store", ["recover".into(), self.kit.store().into_os_string()]).clean();
    }

    fn done(&self) {
        assert_eq!(self.look(), self.ids);
        assert_eq!(scan(&self.kit, &[]).clean().out, "");
    }
}

#[test]
fn killed_or_with_a_failing_disk() {
    let counting = Scene::new(2);
    let calls = strace::calls(&counting.kit, &counting.argv(), &counting.kit.path("trace"));
    // The first `.bak/drop`, both archives, which nobody has flushed so far, and both sidecars, before any sidecar appears.
    let made = calls.iter().skip_while(|(_, line)| !(line.starts_with("mkdirat") && line.contains(".adopting")));
    let before = made.take_while(|(name, _)| name != "renameat2");
    assert_eq!(before.filter(|(name, _)| name == "fsync").count(), 5);
    let rig = Rig::new("bak-scan, two").errors(&[("newfstatat", &["EIO"]), ("pread64", &["EIO"])]);
    rig.run(|| Scene::new(2));
}

/// From some dozens on all are flushed by one call.
#[test]
fn killed_or_with_a_failing_disk_while_many_are_adopted() {
    let counting = Scene::new(33);
    let calls = strace::calls(&counting.kit, &counting.argv(), &counting.kit.path("trace"));
    let flushes = |name: &str| calls.iter().filter(|(call, _)| call == name).count();
    assert!(flushes("syncfs") == 1 && flushes("fsync") < 10, "{} fsync", flushes("fsync"));
    Rig::new("bak-scan, many").sample(20).run(|| Scene::new(33));
}

/// Thousands are adopted part by part, several at a time.
#[test]
fn killed_while_thousands_are_adopted() {
    use rig::Scene as _;
    for (name, when) in [("syncfs", 1), ("renameat2", 1), ("renameat2", 700)] {
        let scene = Scene::of(1000..3600);
        strace::inject(&scene.kit, &scene.argv(), name, "signal=KILL", when);
        scene.look();
        scene.again(&scene.seen());
        scene.done();
    }
}

/// Runs bak-scan, and does something when it has looked at all and is about to adopt.
fn meanwhile(scene: &Scene, what: impl FnOnce()) -> Ran {
    let argv: Vec<OsString> = scene.argv().into_iter().chain(["--explain".into()]).collect();
    let counting = Scene::new(scene.ids.len().try_into().unwrap());
    let calls = strace::calls(&counting.kit, &counting.argv(), &counting.kit.path("trace"));
    let made = calls.iter().filter(|(name, _)| name == "mkdirat").position(|(_, line)| line.contains(".adopting"));
    strace::stopped_after(&scene.kit, &argv, ("mkdirat", made.unwrap() + 1), what)
}

#[test]
fn removed_or_changed_between_looking_and_adopting() {
    for archives in [3, 40] {
        let scene = Scene::new(archives);
        let file = |id: u32, ending: &str| path(&scene.kit, &format!("vzdump-lxc-{id}-{DATE}{ending}"));
        let ran = meanwhile(&scene, || {
            // As Proxmox prunes, and as somebody copies another archive over one.
            fs::remove_file(file(100, ".tar.zst")).unwrap();
            fs::remove_file(file(100, ".log")).unwrap();
            fs::write(file(101, ".tar.zst"), "another").unwrap();
        })
        .clean();
        let records = ran.records();
        let why = |id: u32| {
            let left =
                records.iter().find(|r| r["file"].as_str().is_some_and(|file| file.contains(&format!("-{id}-"))));
            left.unwrap_or_else(|| panic!("{id}: {}", ran.out))["why"].as_str().unwrap().to_owned()
        };
        assert!(why(100).ends_with("was removed meanwhile") && why(101).ends_with("was changed meanwhile"));
        let seen = check_store(&scene.kit.store());
        assert_eq!(
            (seen.whole.len() as u32, seen.broken.len(), seen.unfinished.len()),
            (archives - 2, 0, 0),
            "{seen:?}"
        );
    }
}

#[test]
fn adopted_meanwhile_by_another_run() {
    let scene = Scene::new(2);
    // (Before the lock is asked for: the one that waits finds them adopted.)
    let argv = |scene: &Scene| scene.argv().into_iter().chain(["--explain".into()]).collect::<Vec<OsString>>();
    let ran = strace::stopped_after(&scene.kit, &argv(&scene), ("mkdirat", 1), || {
        assert_eq!(scan(&scene.kit, &[]).clean().column("id"), scene.ids);
    })
    .clean();
    let left = ran.records().into_iter().filter(|left| left["why"] == "it is a dump already").count();
    assert_eq!((left, scene.look()), (2, scene.ids.clone()));
    // Copies of them in another directory: a dump is one, wherever it lies.
    let scene = Scene::new(2);
    let ran = strace::stopped_after(&scene.kit, &argv(&scene), ("mkdirat", 1), || {
        scene.kit.sh("mkdir store/old && mv store/vzdump* store/old").clean();
        assert_eq!(scan(&scene.kit, &[]).clean().column("id"), scene.ids);
        scene.kit.sh("ln store/old/*.zst store/old/*.log store").clean();
    })
    .clean();
    let why = ran.records().into_iter().map(|left| left["why"].clone()).collect::<Vec<_>>();
    let expected = ["100", "101"].map(|id| json!(format!("old/vzdump-lxc-{id}-{DATE} is a dump already")));
    assert!(expected.iter().all(|left| why.contains(left)), "{}", ran.out);
    assert_eq!(check_store(&scene.kit.store()).whole, scene.ids);
    // Many at once: each is adopted, and said to be, once.
    let scene = Scene::new(200);
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let mut command = scene.kit.command(bin("bak-scan"));
            command.args(&scene.argv()[1..]);
            std::thread::spawn(move || finish(command, ""))
        })
        .collect();
    let mut said: Vec<String> = runs.into_iter().flat_map(|run| run.join().unwrap().clean().column("id")).collect();
    said.sort();
    assert_eq!((&said, scene.look()), (&scene.ids, scene.ids.clone()));
}

/// What bak-prune has decided to remove is neither adopted nor brought back.
#[test]
fn what_is_being_removed_stays_so() {
    let scene = Scene::new(2);
    scan(&scene.kit, &[]).clean();
    let sidecar = format!("vzdump-lxc-100-{DATE}.dump.json");
    let drop = path(&scene.kit, ".bak/drop");
    fs::create_dir_all(&drop).unwrap();
    fs::rename(path(&scene.kit, &sidecar), drop.join(&sidecar)).unwrap();
    let left = scan(&scene.kit, &["-n", "--explain"]).clean().records();
    assert_eq!((left.len(), &left[1]["why"]), (2, &json!("bak is removing it")), "{left:?}");
    // The next run that takes the lock finishes the removal.
    archive(&scene.kit, "lxc", 102, ".tar.zst", 300);
    assert_eq!(scan(&scene.kit, &[]).clean().column("vm"), ["102"]);
    assert!(!names(&scene.kit).iter().any(|name| name.contains("-100-")), "{:?}", names(&scene.kit));
    // So it is with what bak is making.
    fs::create_dir_all(path(&scene.kit, &format!(".bak/work/vzdump-lxc-103-{DATE}"))).unwrap();
    archive(&scene.kit, "lxc", 103, ".tar.zst", 300);
    assert_eq!(scan(&scene.kit, &["-n", "--explain"]).clean().records()[1]["why"], "bak is making it");
}

/// vzdump dumps guest after guest while bak-scan runs again and again: each is adopted once it is finished, as it stays.
#[test]
fn beside_a_running_vzdump() {
    let node = Node::new();
    for id in 100..106 {
        node.machine(id, "name: web\n", 3_000_000);
    }
    let dumping = "for id in 100 101 102 103 104 105; do vzdump $id --compress zstd --dumpdir store || exit 1; done 2>/dev/null; >done";
    let mut adopted = BTreeSet::new();
    std::thread::scope(|scope| {
        let vzdump = scope.spawn(|| node.sh(dumping).clean());
        let mut last = false;
        while !last {
            last = node.kit.path("done").exists() || vzdump.is_finished();
            for id in node.run("bak-scan", &["--hash"]).clean().column("id") {
                assert!(adopted.insert(id.clone()), "{id} twice");
            }
        }
    });
    assert_eq!(adopted.len(), 6, "{adopted:?}");
    // Every SHA-256 is that of what is there now.
    let seen = check_store(&node.kit.store());
    assert_eq!((seen.whole.len(), seen.broken.len()), (6, 0), "{seen:?}");
    let listed = node.run("bak-list", &[]).clean();
    let sizes: Vec<u64> = listed.records().iter().map(|dump| dump["bytes"].as_u64().unwrap()).collect();
    assert!(sizes.iter().all(|bytes| *bytes > 2_900_000), "{sizes:?}");
    node.run("bak-verify", &["--all"]).clean();
}

/// The whole way beside Proxmox's own jobs: adopted, chosen, sent; then Proxmox prunes.
#[test]
fn scanned_linked_sent_and_pruned_by_proxmox() {
    let kit = Kit::new();
    let name = archive(&kit, "lxc", 102, ".tar.zst", 100_000);
    kit.write("bak.toml", "store = \"store\"\n[[dest]]\nname = \"box\"\nurl = \"far\"\n");
    fs::create_dir(kit.path("far")).unwrap();
    kit.sh("bak-sync --config bak.toml --init").clean();
    let now = format!("--config bak.toml --now {NOW}");
    let ran = kit.sh(&format!("bak-scan {now} | bak-link {now} - | bak-sync {now} -")).clean();
    assert_eq!(ran.column("id"), ["102@20261120T020002Z"]);
    let far = kit.path(&format!("far/102/{name}"));
    assert_eq!(sha256_file(&far), sha256_file(&path(&kit, &name)));
    assert!(far.with_file_name(format!("vzdump-lxc-102-{DATE}.log")).exists(), "its log goes with it");
    // Proxmox removes it, log and all: what is left is a dump without files, which counts for nothing.
    for ending in [".tar.zst", ".log"] {
        fs::remove_file(path(&kit, &name.replace(".tar.zst", ending))).unwrap();
    }
    let fault = kit.run("bak-list", ["--store", "store"]).clean().records()[0]["fault"].clone();
    assert!(fault.as_str().unwrap().ends_with("is missing"), "{fault}");
    assert_eq!(scan(&kit, &["--explain"]).clean().out, "");
    let linked = kit.sh(&format!("bak-link {now} --explain")).clean().records();
    assert_eq!(linked[0]["link"]["box"]["decision"], json!("not good"), "{linked:?}");
    kit.sh(&format!("bak-prune store {now} --keep-last 3")).clean();
    assert!(names(&kit).is_empty(), "{:?}", names(&kit));
    assert!(far.exists());
    // The next night's goes out as any other.
    let next = archive(&kit, "lxc", 102, ".tar.zst", 90_000);
    for ending in [".tar.zst", ".log"] {
        let name = next.replace(".tar.zst", ending);
        fs::rename(path(&kit, &name), path(&kit, &name.replace("2026_11_20", "2026_11_21"))).unwrap();
    }
    let log = path(&kit, "vzdump-lxc-102-2026_11_21-02_00_02.log");
    fs::write(&log, fs::read_to_string(&log).unwrap().replace("2026_11_20", "2026_11_21")).unwrap();
    let now = "--config bak.toml --now 2026-11-21T12:00:00Z";
    assert_eq!(kit.sh(&format!("bak-scan {now} | bak-link {now} - | bak-sync {now} -")).clean().records().len(), 1);
    assert_eq!(check_store(&kit.path("far")).whole.len(), 2);
    assert_eq!(fs::read(kit.path("far/102/vzdump-lxc-102-2026_11_21-02_00_02.tar.zst")).unwrap(), noise(102, 90_000));
}
