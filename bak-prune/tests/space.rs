//! `--free`: what goes beyond the rules, and what does not.

use bak_tests::{Kit, Ran, check_store};

const NOW: &str = "2026-11-20T12:00:00Z";

/// A small file system in memory, unmounted at the end; `None` where that cannot be had.
struct Disk(Kit);

impl Disk {
    fn new() -> Option<Self> {
        let kit = Kit::new();
        let ran = kit.sh("mkdir m && mount -t tmpfs -o size=64m none m && mountpoint -q m && mkdir m/store");
        if ran.status != 0 {
            eprintln!("nothing is tested: {}", ran.err);
            return None;
        }
        Some(Self(kit))
    }

    /// A dump of so many MiB a night.
    fn nights(&self, vm: &str, days: impl IntoIterator<Item = u32>, mib: usize) {
        for day in days {
            bak_tests::put_dump(
                &self.0.path("m/store"),
                vm,
                &format!("2026-11-{day:02}T01:00:00Z"),
                mib << 20,
                serde_json::json!({}),
            );
        }
    }

    fn prune(&self, args: &str) -> Ran {
        self.0.sh(&format!("bak-prune m/store --tz UTC --now {NOW} {args}"))
    }

    fn left(&self) -> Vec<String> {
        check_store(&self.0.path("m/store")).whole
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.0.sh("umount m");
    }
}

#[test]
fn what_the_rules_would_let_go_first_makes_room() {
    let Some(disk) = Disk::new() else { return };
    // Of 2..8 November keeps: 8 (a Sunday: its week), then 14 to 20 by day.
    disk.nights("web", [2, 3, 8, 14, 15, 16, 17, 18, 19, 20], 4);
    disk.nights("db", [20], 4);
    let rules = "--keep-daily 5 --keep-weekly 3";
    assert_eq!(
        disk.prune(&format!("{rules} --free 1M -n")).clean().column("id"),
        ["web@20261102T010000Z", "web@20261103T010000Z", "web@20261114T010000Z"]
    );
    // 64 MiB less 11 dumps of 4 are 20; the rules give 12. For 40 two more must go: tomorrow the rules let the 16th go,
    // and the day after the 17th.
    let ran = disk.prune(&format!("{rules} --free 39M")).clean();
    let ids = ran.column("id");
    assert_eq!(ids[3..], ["web@20261116T010000Z", "web@20261117T010000Z"]);
    assert!(
        ran.out.contains("to free space: the rules would let it go in 1 d") && ran.out.contains("in 2 d"),
        "{}",
        ran.out
    );
    assert_eq!(disk.prune(&format!("{rules} --free 39M")).clean().out, "", "it is enough");
    // More than can be had: all but the last good ones.
    let ran =
        disk.prune(&format!("{rules} --free 63M")).expect(1).says("less than 63 MiB can be freed: the rest must stay");
    assert_eq!(
        (ran.out.lines().count(), disk.left()),
        (4, vec!["db@20261120T010000Z".to_owned(), "web@20261120T010000Z".to_owned()])
    );
}

#[test]
fn what_frees_nothing_does_not_go() {
    let Some(disk) = Disk::new() else { return };
    disk.nights("web", 15..=20, 4);
    disk.0.sh("mkdir -p m/store/.outbox-box/web && ln m/store/web/web-20261116* m/store/.outbox-box/web/").clean();
    let ran = disk.prune("--keep-daily 9 --free 50M").clean();
    assert_eq!(ran.column("id"), ["web@20261115T010000Z", "web@20261117T010000Z", "web@20261118T010000Z"]);
    let ran = disk.prune("--keep-daily 9 --free 60M").expect(1).says("4 MiB held by the outbox ").says(".outbox-box");
    assert_eq!(ran.column("id"), ["web@20261119T010000Z"]);
    assert_eq!(disk.left(), ["web@20261116T010000Z", "web@20261120T010000Z"]);
}

#[test]
fn without_rules_nothing_is_let_go() {
    let Some(disk) = Disk::new() else { return };
    disk.nights("web", 18..=20, 4);
    let ran = disk.prune("--free 60M").expect(1).says("the rest must stay");
    assert_eq!((ran.out.as_str(), disk.left().len()), ("", 3));
    // What nothing shows off-site waits here, too.
    disk.0.sh("mkdir -p m/store/.outbox-box/.bak").clean();
    disk.prune("--keep-last 9 --free 60M --only-sent box").expect(1);
    assert_eq!(disk.left().len(), 3);
    disk.prune("--keep-last 9 --free 60M --max-remove 1").expect(4);
    assert_eq!(disk.left().len(), 3);
}
