//! What bak-prune learns from bak-sync: that a dump was sent, and that `--reconcile` saw it over there.

use bak_tests::{Kit, Ran};
use std::fs;

fn at(kit: &Kit, now: &str, line: &str) -> Ran {
    kit.sh(&format!("{line} --now {now}"))
}

#[test]
fn only_what_was_seen_over_there_goes() {
    let kit = Kit::new();
    let far = kit.path("far");
    fs::create_dir(&far).unwrap();
    let dest = format!("--dest box={}", far.display());
    kit.sh(&format!("bak-sync --store store {dest} --init")).clean();
    let mut web = Vec::new();
    for day in 1..=4 {
        web.push(kit.dump("web", &format!("2026-11-0{day}T01:00:00Z"), 1000));
        let now = format!("2026-11-0{day}T02:00:00Z");
        // On the third day the line is down.
        if day != 3 {
            at(&kit, &now, &format!("bak-link -q --store store {dest}")).clean();
            at(&kit, &now, &format!("bak-sync -q --store store {dest}")).clean();
        }
    }
    let prune = |now: &str| at(&kit, now, "bak-prune store --keep-last 1 --only-sent box --unsent-grace 30d -n");
    assert_eq!(prune("2026-11-05T00:00:00Z").clean().column("id"), [web[0].clone(), web[1].clone()]);
    // Later it is no longer known that they are there; a listing shows that they are, but for one that was removed there.
    assert_eq!(prune("2026-11-15T00:00:00Z").clean().out, "");
    fs::remove_file(far.join("web/web-20261102T010000Z.raw")).unwrap();
    fs::remove_file(far.join("web/web-20261102T010000Z.dump.json")).unwrap();
    at(&kit, "2026-11-14T00:00:00Z", &format!("bak-sync -q --store store {dest} --reconcile -n")).clean();
    assert_eq!(prune("2026-11-15T00:00:00Z").clean().out, "", "a dry run notes nothing");
    at(&kit, "2026-11-14T00:00:00Z", &format!("bak-sync -q --store store {dest} --reconcile")).clean();
    assert_eq!(prune("2026-11-15T00:00:00Z").clean().column("id"), [web[0].clone()]);
    // What lies over there cannot be read as a whole: nothing new is known.
    fs::write(far.join("web/web-20261101T010000Z.dump.json"), "{").unwrap();
    at(&kit, "2026-11-28T00:00:00Z", &format!("bak-sync -q --store store {dest} --reconcile")).expect(1);
    assert_eq!(prune("2026-11-28T01:00:00Z").clean().out, "");
}
