//! bak-link at the same time as another bak-link, as bak-sync, and as bak-prune of the store: nothing is lost, nothing is
//! there twice, and the outbox is right.

mod common;

use bak_tests::{Kit, Ran, check_store};
use common::{Link, NOW, day};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn guests(kit: &Kit, count: usize, day_of: u32) {
    for i in 0..count {
        kit.dump(&format!("g{i:02}"), &day(day_of), 100);
    }
}

/// Runs both at once.
fn at_once<A: Send, B: Send>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        (one(), other.join().unwrap())
    })
}

fn ids(ran: [Ran; 2]) -> Vec<String> {
    let mut ids: Vec<String> = ran.into_iter().flat_map(|ran| ran.clean().column("id")).collect();
    ids.sort();
    ids
}

#[test]
fn two_bak_links_many_times() {
    for _ in 0..25 {
        let kit = Kit::new();
        guests(&kit, 12, 19);
        let link = || kit.link(&["--limit", "800"]);
        let (one, other) = at_once(link, link);
        let ids = ids([one, other]);
        assert_eq!(ids.len(), 8, "never over the limit, and none twice");
        assert_eq!(kit.pending(), ids);
    }
}

#[test]
fn two_bak_links_that_copy() {
    for _ in 0..10 {
        let kit = Kit::new();
        guests(&kit, 12, 19);
        let shm = tempfile::Builder::new().prefix("bak-test-").tempdir_in("/dev/shm").unwrap();
        let link = || kit.link(&["--copy", "--limit", "800", "--outbox", shm.path().to_str().unwrap()]);
        let (one, other) = at_once(link, link);
        let ids = ids([one, other]);
        assert_eq!(ids.len(), 8, "never over the limit, and none twice");
        let seen = check_store(shm.path());
        assert_eq!((seen.whole, seen.broken, seen.unfinished), (ids, vec![], vec![]));
    }
}

fn sync(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-sync", ["--store", "store", "--dest", "box=far", "--now", NOW].iter().chain(args))
}

#[test]
fn bak_link_beside_bak_sync() {
    let kit = Kit::new();
    fs::create_dir(kit.path("far")).unwrap();
    sync(&kit, &["--init"]).clean();
    let (mut linked, mut sent) = (Vec::new(), Vec::new());
    // Each round finds new dumps, while what the last one linked is on its way.
    for round in 10..16 {
        guests(&kit, 4, round);
        let (link, sync) = at_once(|| kit.link(&[]), || sync(&kit, &[]));
        linked.extend(link.clean().column("id"));
        sent.extend(sync.clean().column("id"));
        kit.pending();
    }
    linked.extend(kit.link(&[]).clean().column("id"));
    sent.extend(sync(&kit, &[]).clean().column("id"));
    linked.sort();
    sent.sort();
    let vm = |id: &str| id.split('@').next().unwrap().to_owned();
    let newer = |old: &&String| sent.iter().any(|id| vm(id) == vm(old) && id > *old);
    for id in linked.iter().filter(|id| !sent.contains(id)) {
        assert!(newer(&id), "{id} was neither sent nor replaced by a newer one");
    }
    let all = (linked.len(), sent.len());
    linked.dedup();
    sent.dedup();
    assert_eq!((linked.len(), sent.len()), all, "none was linked or sent twice");
    assert!(sent.iter().all(|id| linked.contains(id)));
    let newest = (0..4).map(|i| format!("g{i:02}@20261115T020000Z"));
    // A guest whose older dump was still pending waits for the next run.
    for id in newest {
        let vm = id.split('@').next().unwrap();
        assert!(sent.iter().any(|sent| sent.starts_with(vm)), "{id}: {sent:?}");
    }
    let far = check_store(&kit.path("far"));
    assert_eq!((far.whole, far.broken), (sent, vec![]));
    assert_eq!(kit.pending(), [""; 0]);
}

/// While dumps are linked newer ones arrive, so that these are removed.
#[test]
fn bak_link_beside_bak_prune_of_the_store() {
    let (mut linked, mut failed) = (0, 0);
    for _ in 0..12 {
        let kit = Kit::new();
        guests(&kit, 12, 18);
        guests(&kit, 12, 19);
        let staged = kit.path("staged");
        for i in 0..12 {
            bak_tests::put_dump(&staged, &format!("g{i:02}"), &day(20), 100, serde_json::json!({}));
        }
        let prune = || {
            for ending in ["raw", "dump.json"] {
                for i in 0..12 {
                    let name = format!("g{i:02}/g{i:02}-20261120T020000Z.{ending}");
                    fs::rename(staged.join(&name), kit.store().join(&name)).unwrap();
                }
            }
            kit.run("bak-prune", ["store", "--all", "--keep-last", "1", "--now", NOW])
        };
        let (link, prune) = at_once(|| kit.link(&[]), prune);
        assert_eq!(prune.clean().records().len(), 24);
        assert!(link.status == 0 || link.status == 1, "{}", link.err);
        let pending = kit.pending();
        let mut said = link.column("id");
        said.sort();
        assert_eq!(pending, said, "{}", link.err);
        for line in link.err.lines().filter(|line| !line.ends_with(" linked")) {
            assert!(line.contains("meanwhile") || line.contains("is missing"), "{line}");
            failed += 1;
        }
        linked += pending.len();
        // What was removed there stays here; what was not linked goes next.
        kit.link(&[]).clean();
        assert_eq!(kit.pending().len(), 12);
        assert_eq!(check_store(&kit.store()).whole.len(), 12);
    }
    println!("{linked} linked, {failed} failed");
}

/// Whoever looks at an outbox while it is filled and emptied never sees half a dump.
#[test]
fn a_reader_never_sees_half_a_dump() {
    let kit = Kit::new();
    guests(&kit, 30, 19);
    let done = AtomicBool::new(false);
    let outbox = kit.outbox();
    let looks = || {
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) {
            for (sidecar, record) in sidecars(&outbox) {
                let file = sidecar.parent().unwrap().join(record["files"][0]["name"].as_str().unwrap());
                // Gone with its sidecar: that goes first.
                assert!(file.exists() || !sidecar.exists(), "{}", file.display());
            }
            looks += 1;
        }
        looks
    };
    let work = || {
        let _done = Done(&done);
        for _ in 0..10 {
            let ids = kit.link(&[]).clean().column("id");
            assert_eq!(ids.len(), 30);
            // As bak-sync does: sidecar first.
            for (sidecar, record) in sidecars(&outbox) {
                fs::remove_file(&sidecar).unwrap();
                fs::remove_file(sidecar.with_file_name(record["files"][0]["name"].as_str().unwrap())).unwrap();
            }
        }
    };
    let (looks, ()) = at_once(looks, work);
    assert!(looks > 0);
}

/// Ends the reader, whatever happens.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sidecars(top: &Path) -> Vec<(std::path::PathBuf, serde_json::Value)> {
    let mut found = Vec::new();
    for dir in fs::read_dir(top).into_iter().flatten().flatten() {
        for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.to_str().is_some_and(|path| path.ends_with(".dump.json") && !path.contains("/.bak/"))
                && let Ok(text) = fs::read(&path)
            {
                found.push((path, serde_json::from_slice(&text).unwrap()));
            }
        }
    }
    found
}
