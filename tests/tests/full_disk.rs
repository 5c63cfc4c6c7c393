//! Each program on a disk that is full but for so many blocks, or out of inodes: it ends in order, says in one line where
//! there is no room, leaves nothing behind, loses nothing, and does its work once there is room.

use bak_tests::disk::{Disk, root};
use bak_tests::{Kit, Ran, check_store, noise, put_dump};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DAYS: [&str; 3] = ["2026-11-18T01:00:00Z", "2026-11-19T01:00:00Z", "2026-11-20T01:00:00Z"];
const NOW: &str = "2026-11-20T12:00:00Z";

#[derive(Clone, Copy, Debug)]
enum Left {
    Kib(usize),
    Inodes(usize),
}
use Left::{Inodes, Kib};

/// What is tried where a program writes little, and where it writes data.
const LITTLE: [Left; 5] = [Kib(0), Kib(1), Kib(4), Inodes(0), Inodes(2)];
const DATA: [Left; 5] = [Kib(0), Kib(30), Kib(53), Inodes(0), Inodes(2)];

/// A program on a full disk. Lines of `sh`, in the kit's directory, in which `disk` is the disk.
struct Case<'a> {
    /// Puts everything there that the program needs.
    scene: &'a dyn Fn(&Kit),
    line: &'a str,
    /// Whether its work is done.
    done: &'a dyn Fn(&Kit) -> bool,
    /// All places with dumps in them.
    stores: &'a [&'a str],
    /// Whether it works on a full disk, too.
    always: bool,
}

impl Case<'_> {
    fn try_all(&self, lefts: &[Left]) {
        if !root() {
            return;
        }
        let kit = Kit::new();
        let disk = Disk::new(&kit, &["mkfs.ext4", "-q", "-b", "1024", "-N", "128", "-m", "0", "-O", "^has_journal"], 2);
        let (mut done, mut failed) = (0, 0);
        for left in lefts {
            match self.try_one(&kit, &disk, *left) {
                true => done += 1,
                false => failed += 1,
            }
        }
        println!("{}: done {done} times, failed {failed} times", self.line);
        assert!(self.always || failed > 0, "no disk was too full for it");
    }

    /// Whether the program did its work all the same.
    fn try_one(&self, kit: &Kit, disk: &Disk, left: Left) -> bool {
        disk.clear();
        (self.scene)(kit);
        let (whole, names) = (self.whole(kit), self.names(kit));
        match left {
            Kib(left) => disk.fill(left),
            Inodes(left) => disk.use_up_inodes(left),
        }
        let ran = kit.sh(self.line);
        let point = format!("{} with {left:?} left: {ran:?}", self.line);
        println!("{point}");
        let done = ran.status == 0;
        assert_eq!(done, (self.done)(kit), "{point}");
        assert!(done || !self.always, "{point}");
        if done {
            assert_eq!(ran.err, "", "{point}");
        } else {
            Self::is_told(&ran, &point);
            let left: Vec<_> = self.names(kit).difference(&names).filter(|name| !is_kept(kit, name)).cloned().collect();
            assert!(left.is_empty(), "{point}: {left:?} is left behind");
            let ids = |whole: &BTreeSet<String>| -> BTreeSet<String> {
                whole.iter().map(|one| one.split(": ").nth(1).unwrap().to_owned()).collect()
            };
            assert!(ids(&self.whole(kit)).is_superset(&ids(&whole)), "{point}: a dump is lost");
        }
        disk.relieve();
        if !done {
            kit.sh(self.line).clean();
            assert!((self.done)(kit), "{point}: then, with room");
        }
        self.whole(kit);
        done
    }

    /// One line for each of at most two dumps says where there is no room; one more may sum up.
    fn is_told(ran: &Ran, point: &str) {
        assert_eq!(ran.status, 1, "{point}");
        let is_sum = |line: &&str| {
            line.split_once(": ").is_some_and(|(_, said)| said.split(' ').next().unwrap().parse::<u32>().is_ok())
        };
        let lines: Vec<&str> = ran.err.lines().filter(|line| !is_sum(line)).collect();
        assert!((1..=2).contains(&lines.len()), "{point}");
        let said = ["No space left on device", "there is no room in", " are free"];
        for line in lines {
            assert!(line.contains("/disk") || line.contains(" disk/"), "where? {point}");
            assert!(said.iter().any(|said| line.contains(said)), "{point}");
        }
    }

    /// All dumps, by place; nothing may lie there by half.
    fn whole(&self, kit: &Kit) -> BTreeSet<String> {
        let mut whole = BTreeSet::new();
        for store in self.stores {
            let seen = check_store(&kit.path(store));
            assert!(seen.broken.is_empty() && seen.unfinished.is_empty(), "{}: {store}: {seen:?}", self.line);
            whole.extend(seen.whole.into_iter().map(|id| format!("{store}: {id}")));
        }
        whole
    }

    /// All files on the disk, but for locks and what was there for a purpose of its own: what says that bak was here.
    fn names(&self, kit: &Kit) -> BTreeSet<String> {
        let found = kit.sh("cd disk && find . -type f ! -name lock ! -name pass ! -name copying").clean().out;
        let ours = |name: &&str| !["ballast", "/ledger/", "vmtool-dblock"].iter().any(|own| name.contains(own));
        found.lines().filter(ours).map(str::to_owned).collect()
    }
}

/// Part of a dump that is whole, or what has arrived over there of one that will go on from it.
fn is_kept(kit: &Kit, name: &str) -> bool {
    let stem = name.split('.').nth(1).unwrap_or_default();
    name.starts_with("./far/") || kit.path(&format!("disk{stem}.dump.json")).exists()
}

fn store(kit: &Kit, at: &str, days: &[&str]) {
    for vm in ["db", "web"] {
        for day in days {
            put_dump(&kit.path(at), vm, day, 25_000, json!({}));
        }
    }
}

fn holds(place: &Path, count: usize) -> bool {
    check_store(place).whole.len() == count
}

fn fresh(kit: &Kit, dirs: &[&str]) {
    for dir in dirs {
        let _ = fs::remove_dir_all(kit.path(dir));
        fs::create_dir_all(kit.path(dir)).unwrap();
    }
}

#[test]
fn dump() {
    let scene = |kit: &Kit| {
        kit.write("images/web.raw", noise(1, 50 << 10));
        store(kit, "disk/store", &DAYS[..1]);
    };
    Case {
        scene: &scene,
        line: "bak-dump --images images --format raw --store disk/store --reserve 0 --now 2026-11-20T12:00:00Z -q --all",
        done: &|kit| holds(&kit.path("disk/store"), 3),
        stores: &["disk/store"],
        always: false,
    }
    .try_all(&DATA);
}

#[test]
fn link() {
    Case {
        scene: &|kit| store(kit, "disk/store", &DAYS[..2]),
        line: "bak-link -q --store disk/store --dest box=far --now 2026-11-20T12:00:00Z",
        done: &|kit| holds(&kit.path("disk/store/.outbox-box"), 2),
        stores: &["disk/store", "disk/store/.outbox-box"],
        always: false,
    }
    .try_all(&LITTLE);
}

#[test]
fn link_by_copies() {
    let scene = |kit: &Kit| {
        fresh(kit, &["disk/outbox"]);
        store(kit, "store", &DAYS[..2]);
    };
    Case {
        scene: &scene,
        line: "bak-link -q --copy --store store --outbox disk/outbox --dest box=far --now 2026-11-20T12:00:00Z",
        done: &|kit| holds(&kit.path("disk/outbox"), 2),
        stores: &["store", "disk/outbox"],
        always: false,
    }
    .try_all(&DATA);
}

/// The disk is the far side, or has the outbox.
#[test]
fn sync() {
    for (outbox, far) in [("outbox", "disk/far"), ("disk/outbox", "far")] {
        let line = format!("bak-sync -q --outbox {outbox} --dest box=$PWD/{far} --now {NOW}");
        let scene = |kit: &Kit| {
            fresh(kit, &[outbox, far]);
            for vm in ["db", "web"] {
                let link = json!({"decision": "linked", "why": "test", "at": DAYS[1], "rank": 1});
                put_dump(&kit.path(outbox), vm, DAYS[0], 25_000, json!({"link": {"box": link}}));
            }
            kit.sh(&format!("{line} --init")).clean();
        };
        Case {
            scene: &scene,
            line: &line,
            done: &|kit| holds(&kit.path(far), 2) && holds(&kit.path(outbox), 0),
            stores: &[far, outbox],
            always: false,
        }
        .try_all(if outbox == "outbox" { &DATA } else { &LITTLE });
    }
}

#[test]
fn prune_makes_room() {
    Case {
        // As bak-dump adds them: what removal needs is made then.
        scene: &|kit| {
            fresh(kit, &["disk/store"]);
            for vm in ["db", "web"] {
                for day in DAYS {
                    kit.sh(&format!("bak-test-store add disk/store {vm} {day} 10000")).clean();
                }
            }
        },
        line: "bak-prune -q --keep-last 1 --all --now 2026-11-20T12:00:00Z disk/store",
        done: &|kit| holds(&kit.path("disk/store"), 2),
        stores: &["disk/store"],
        always: true,
    }
    .try_all(&LITTLE);
}

#[test]
fn state() {
    let scene = |kit: &Kit| {
        fresh(kit, &["disk/db"]);
        let guests: Vec<String> = (0..20).map(|at| format!("guest-{at}")).collect();
        kit.sh(&format!("bak-state set -q --force --db disk/db CLEAN {}", guests.join(" "))).clean();
    };
    let is = |kit: &Kit, status: &str| {
        let text = fs::read_to_string(kit.path("disk/db/vmtool-statedb")).unwrap();
        let count = text.lines().filter(|line| line.ends_with(&format!(":{status}"))).count();
        assert!(count == 0 || count == 20, "by half: {text}");
        count == 20
    };
    let case = |line: &str, status: &str| {
        let done = |kit: &Kit| is(kit, status);
        Case { scene: &scene, line, done: &done, stores: &[], always: false }.try_all(&LITTLE);
    };
    case("bak-state set -q --db disk/db --all ARCHIVED", "ARCHIVED");
    let seen = r#"{"v":1,"type":"guest","vm":"guest-%d","kind":"qemu","driver":"image","fingerprint":"a"}\n"#;
    let line = format!("seq 0 19 | xargs printf '{seen}' | bak-state observe -q --db disk/db -");
    case(&line, "BACKUP_NECESSARY");
}

#[test]
fn scan() {
    let scene = |kit: &Kit| {
        fresh(kit, &["disk/store"]);
        let stem = "disk/store/vzdump-qemu-100-2026_11_20-02_00_02";
        kit.write(&format!("{stem}.vma.zst"), noise(1, 5000));
        kit.write(&format!("{stem}.log"), "2026-11-20 02:01:07 INFO: Finished Backup of VM 100 (00:01:05)\n");
        kit.sh(&format!("touch -d 2026-11-20T02:01:07Z {stem}.*")).clean();
    };
    Case {
        scene: &scene,
        line: "bak-scan -q --store disk/store --now 2026-11-20T12:00:00Z",
        done: &|kit| holds(&kit.path("disk/store"), 1),
        stores: &[],
        always: false,
    }
    .try_all(&LITTLE);
}

#[test]
fn verify() {
    Case {
        scene: &|kit| store(kit, "disk/store", &DAYS[..1]),
        line: "bak-verify -q --mark --all --store disk/store --now 2026-11-20T12:00:00Z",
        done: &|kit| {
            let dump = |vm| fs::read_to_string(kit.path(&format!("disk/store/{vm}/{vm}-20261118T010000Z.dump.json")));
            ["db", "web"].iter().all(|vm| dump(vm).unwrap().contains("\"verify\""))
        },
        stores: &["disk/store"],
        always: false,
    }
    .try_all(&LITTLE);
}

#[test]
fn restore() {
    let scene = |kit: &Kit| {
        fresh(kit, &["disk/vm"]);
        let _ = fs::remove_dir_all(kit.store());
        fs::create_dir(kit.store()).unwrap();
        kit.write("images/web.raw", noise(1, 50 << 10));
        kit.sh("bak-dump --images images --format raw --store store --reserve 0 -q --all").clean();
    };
    Case {
        scene: &scene,
        line: "bak-restore -q --store store --to disk/vm web",
        done: &|kit| fs::read(kit.path("disk/vm/web.raw")).is_ok_and(|data| data == noise(1, 50 << 10)),
        stores: &["store"],
        always: false,
    }
    .try_all(&DATA);
}

/// Onto a full disk, and from it.
#[test]
fn archive() {
    for (from, to) in [("store", "disk/archive"), ("disk/store", "archive")] {
        let line = format!("bak-state archive -q web --db db --store {from} --archive-dir {to} --now {NOW}");
        let scene = |kit: &Kit| {
            fresh(kit, &[from, to, "db"]);
            kit.sh(&format!("bak-test-store add {from} web {} 25000", DAYS[0])).clean();
            kit.write("db/vmtool-statedb", "web:CLEAN\n");
            kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
        };
        Case {
            scene: &scene,
            line: &line,
            done: &|kit| holds(&kit.path(to), 1) && holds(&kit.path(from), 0),
            stores: &[from, to],
            always: from == "disk/store",
        }
        .try_all(if from == "store" { &DATA } else { &LITTLE });
    }
}
